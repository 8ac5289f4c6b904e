"""``push``: from a bundle to a registry, by the plan and nothing but the plan.

Invariants:

- The bundle is never written to.
- index.json, the lock and every manifest are verified before the network is used.
- A survey makes the plan, the plan is a pure value, and exactly it is executed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundler.bundle.lock import BundleLock
from bundler.bundle.store import check_agreement, read_lock
from bundler.errors import AirgapSyncError, NameCollisionError, NothingSelectedError, PartialError
from bundler.files import exclusive_lock
from bundler.layout.check import read_image
from bundler.layout.store import Layout
from bundler.oci.digest import Digest
from bundler.oci.target import Target, tag_for
from bundler.progress import Progress, people_bytes
from bundler.registry.client import RegistryClient
from bundler.report import ImageOutcome, Report
from bundler.transfer.plan import Action, ImagePlan, PushImage, TransferPlan, make_plan
from bundler.transfer.push import PushedImage, Pusher
from bundler.transfer.survey import Survey

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PushOptions:
    """What is pushed where.

    Attributes:
        directory: The bundle.
        target: The registry and prefix.
        state: A directory of ours on this machine; it holds the lock of the target.
        keep_registry: Put the source registry into the name at the target.
        jobs: Blobs in flight at once.
        dry_run: End with the plan.
    """

    directory: Path
    target: Target
    state: Path
    keep_registry: bool = False
    jobs: int = 4
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class LoadedBundle:
    """A bundle whose manifests were all read and verified."""

    layout: Layout
    images: tuple[PushImage, ...]
    lock: BundleLock | None
    lock_digest: Digest | None


def load_bundle(options: PushOptions) -> LoadedBundle:
    """Read and verify everything but the blobs, and give every image its name at the target.

    Raises:
        LayoutMissingError: There is no layout.
        IntegrityError: index.json, the lock or a manifest is damaged, or they disagree.
        CompatibilityError: The layout or lock is of a newer format.
        NameCollisionError: Two images would have one name at the target.
    """
    layout = Layout(options.directory)
    roots = layout.roots()
    found = read_lock(options.directory)
    if found:
        check_agreement(found[0], roots)
    images: dict[tuple[str, str], PushImage] = {}
    for root in roots:
        content = read_image(layout, root.descriptor)
        repository = options.target.repository_for(root.reference, keep_registry=options.keep_registry)
        image = PushImage(root.reference, content, repository, tag_for(root.reference))
        known = images.setdefault((repository, image.tag), image)
        if known is not image:
            raise NameCollisionError(
                f"{known.reference} and {image.reference} would both become {repository}:{image.tag}",
                hint=None if not options.keep_registry else "Leave one of them out of the bundle.",
            )
    if not images and not (found and found[0].failed):
        raise NothingSelectedError(f"{options.directory} holds no image", hint="Make a bundle with images in it first.")
    return LoadedBundle(layout, tuple(images.values()), found[0] if found else None, found[1] if found else None)


def push_bundle(options: PushOptions, client: RegistryClient, progress: Progress, report: Report) -> None:
    """Push a bundle; what happened is in ``report``, also if this raises.

    Raises:
        AirgapSyncError: From :func:`load_bundle`, before any network use.
        LockedError: Another push to this target is running.
        AuthError: The target refuses everything.
        RegistryUnavailableError: The target cannot be reached at all.
        PartialError: Some images failed, or the bundle itself is incomplete.
    """
    bundle = load_bundle(options)
    report.lock_digest = bundle.lock_digest
    _tell(report, bundle)
    place = Digest.of(f"{options.target.host}/{options.target.prefix}".encode())
    with exclusive_lock(options.state / f"push-{place.short}.lock", str(options.target)):
        pusher = Pusher(bundle.layout, client, jobs=options.jobs, progress=progress)
        failed = {image: lacks for image in bundle.images if (lacks := pusher.missing(image))}
        whole = [image for image in bundle.images if image not in failed]
        survey = Survey(client)
        try:
            survey.ask(whole, options.jobs)
        except AirgapSyncError as error:
            report.images += [_outcome(options.target, image, "failed", error=error) for image in whole]
            raise
        failed |= survey.failed
        for image, why in failed.items():
            report.images.append(_outcome(options.target, image, "failed", error=why))
            progress.image_done(f"failed: {image.reference}: {why.message}")
        if whole and len(survey.failed) == len(whole):
            raise next(iter(survey.failed.values()))
        plan = make_plan([image for image in whole if image not in failed], survey.existing)
        report.facts["bytes_to_send"] = plan.bytes_of(Action.UPLOAD)
        report.facts["bytes_to_mount"] = plan.bytes_of(Action.MOUNT)
        if options.dry_run:
            report.facts["plan"] = plan_to_dict(plan, options.target)
            report.images += [_planned(options.target, image) for image in plan.images]
        else:
            pushed = [PushedImage(image) for image in plan.images]
            try:
                pusher.execute(plan, pushed)
            finally:
                report.images += [_pushed(options.target, image) for image in pushed]
    report.images.sort(key=lambda image: str(image.reference))
    if report.failed:
        raise PartialError(f"{len(report.failed)} of {len(report.images)} images failed")
    if bundle.lock and bundle.lock.failed:
        raise PartialError(
            f"the bundle lacks {len(bundle.lock.failed)} of its images; the others are "
            + ("planned, and nothing was sent" if options.dry_run else f"at {options.target}"),
            hint="Complete the bundle on the connected side: run the same `bundle` command again.",
        )


def _tell(report: Report, bundle: LoadedBundle) -> None:
    """Say what the bundle does not hold."""
    if bundle.lock is None:
        report.notices.append("there is no bundle.lock.json, so whether the bundle is complete is not known")
        logger.info(report.notices[-1])
        return
    texts = [f"the bundle is incomplete: {image.reference} is missing ({image.error})" for image in bundle.lock.failed]
    texts += [
        f"{image.reference} is in the bundle, but not for {', '.join(image.platforms_missing)}"
        for image in bundle.lock.images
        if image.platforms_missing
    ]
    for text in texts:
        report.warnings.append(text)
        logger.warning(text)


def plan_to_dict(plan: TransferPlan, target: Target) -> list[dict[str, Any]]:
    """Return the plan as JSON: image by image, in the order of work."""
    return [
        {
            "reference": str(image.image.reference),
            "target": _name(target, image.image),
            "up_to_date": image.up_to_date,
            "blobs": [
                {
                    "digest": str(step.blob.digest),
                    "size": step.blob.size,
                    "action": str(step.action),
                    "mount_from": step.source,
                }
                for step in image.steps
            ],
            "manifests": 0 if image.up_to_date else len(image.image.content.manifests),
        }
        for image in plan.images
    ]


def plan_line(image: dict[str, Any]) -> str:
    """Return one image of a plan for people."""
    if image["up_to_date"]:
        return f"up to date  {image['target']}"
    sums = {str(action): 0 for action in Action}
    for blob in image["blobs"]:
        sums[blob["action"]] += blob["size"]
    return (
        f"push        {image['target']}: send {people_bytes(sums['upload'])}, "
        f"mount {people_bytes(sums['mount'])}, there already {people_bytes(sums['present'])}, "
        f"{image['manifests']} manifests"
    )


def _name(target: Target, image: PushImage) -> str:
    return f"{target.host}/{image.repository}:{image.tag}"


def _outcome(
    target: Target,
    image: PushImage,
    outcome: str,
    *,
    error: AirgapSyncError | None = None,
    sent: int = 0,
    mounted: int = 0,
) -> ImageOutcome:
    return ImageOutcome(
        reference=image.reference,
        outcome=outcome,
        digest=image.content.root.digest,
        target=_name(target, image),
        bytes_moved=sent,
        bytes_mounted=mounted,
        error=error,
    )


def _planned(target: Target, plan: ImagePlan) -> ImageOutcome:
    return _outcome(target, plan.image, "up-to-date" if plan.up_to_date else "planned")


def _pushed(target: Target, image: PushedImage) -> ImageOutcome:
    done = "up-to-date" if image.plan.up_to_date else "pushed"
    outcome = "failed" if image.error else done if image.done else "not-done"
    return _outcome(
        target,
        image.plan.image,
        outcome,
        error=image.error,
        sent=image.bytes_sent,
        mounted=image.bytes_mounted,
    )
