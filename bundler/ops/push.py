"""``push``: from a bundle to a registry, by the plan and nothing but the plan.

Invariants:

- The bundle is never written to.
- index.json, the lock and every manifest are verified before the network is used.
- A survey makes the plan, the plan is a pure value, and exactly it is executed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from bundler.errors import (
    AirgapSyncError,
    DeniedError,
    NotHarborError,
    NothingSelectedError,
    NotVerifiedError,
    PartialError,
)
from bundler.files import exclusive_lock
from bundler.layout.store import Layout
from bundler.oci.digest import Digest
from bundler.oci.target import Target
from bundler.ops.loading import load_bundle
from bundler.ops.notes import note, warn
from bundler.ops.outcomes import outcome_of, plan_to_dict, planned, pushed_outcome
from bundler.progress import Progress
from bundler.registry.client import RegistryClient
from bundler.registry.harbor import Harbor
from bundler.registry.session import Chunking
from bundler.report import Report
from bundler.site.routes import NO_REGISTRY_HINT, Route, Site
from bundler.transfer.harbor import FIRST_AT_ONCE, MOST_AT_ONCE, CreateProjects, HarborCheck, check_names
from bundler.transfer.plan import Action, PushImage, TransferPlan, make_plan
from bundler.transfer.push import PushedImage, Pusher, missing_blob
from bundler.transfer.room import project_of
from bundler.transfer.survey import Survey
from bundler.transfer.uploads import UploadJournal
from bundler.transfer.verify import Verifier


class TargetKind(StrEnum):
    """What a target is."""

    AUTO = "auto"
    HARBOR = "harbor"
    REGISTRY = "registry"


class Verify(StrEnum):
    """Which images are looked at after a push."""

    NONE = "none"
    PUSHED = "pushed"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class PushOptions:
    """What is pushed where.

    Attributes:
        directory: The bundle.
        target: The registry and prefix.
        state: A directory of ours on this machine; it holds the lock of the target.
        site: Which images are put into the registry, and under which names.
        jobs: Blobs in flight at once.
        dry_run: End with the plan.
        kind: Whether the target is Harbor.
        create: Whether missing projects are made at Harbor.
        project_quota_bytes: The quota of those; None for Harbor's default.
        chunking: Which blobs are sent in chunks.
        verify: Which images are looked at afterwards.
    """

    directory: Path
    target: Target
    state: Path
    site: Site = field(default_factory=Site)
    jobs: int = 4
    dry_run: bool = False
    kind: TargetKind = TargetKind.AUTO
    create: CreateProjects = CreateProjects.NO
    project_quota_bytes: int | None = None
    chunking: Chunking = field(default_factory=Chunking)
    verify: Verify = Verify.PUSHED


def push_bundle(options: PushOptions, client: RegistryClient, progress: Progress, report: Report) -> None:
    """Push a bundle; what happened is in ``report``, also if this raises.

    Raises:
        AirgapSyncError: From :func:`load_bundle`, before any network use.
        LockedError: Another push to this target is running.
        AuthError: The target refuses everything.
        RegistryUnavailableError: The target cannot be reached at all.
        PartialError: Some images failed, or the bundle itself is incomplete.
    """
    bundle = load_bundle(options.directory, options.site)
    images = bundle.at(options.target)
    report.lock_digest = bundle.lock_digest
    if bundle.lock is None:
        note(report, "there is no bundle.lock.json, so whether the bundle is complete is not known")
    for text in (*bundle.lacks(), *bundle.idle_rules()):
        warn(report, text)
    if elsewhere := bundle.routed(Route.EMBEDDED):
        if not images:
            raise NothingSelectedError(
                "no image of this bundle is put into a registry at this site", hint=NO_REGISTRY_HINT
            )
        note(report, f"{len(elsewhere)} images are routed to the embedded registry, and are not pushed")
    place = Digest.of(f"{options.target.host}/{options.target.prefix}".encode()).short
    with exclusive_lock(options.state / f"push-{place}.lock", str(options.target)):
        _Push(options, bundle.layout, images, client, progress, report).run(options.state / f"uploads-{place}")
    report.images.sort(key=lambda image: str(image.reference))
    if report.failed:
        raise PartialError(f"{len(report.failed)} of {len(report.images)} images failed")
    if bundle.lock and bundle.lock.failed:
        raise PartialError(
            f"the bundle lacks {len(bundle.lock.failed)} of its images; the others are "
            + ("planned, and nothing was sent" if options.dry_run else f"at {options.target}"),
            hint="Complete the bundle on the connected side: run the same `bundle` command again.",
        )


class _Push:
    """One push, step by step: look, ask Harbor, plan, do, look again."""

    def __init__(
        self,
        options: PushOptions,
        layout: Layout,
        images: tuple[PushImage, ...],
        client: RegistryClient,
        progress: Progress,
        report: Report,
    ) -> None:
        self._options = options
        self._layout = layout
        self._images = images
        self._client = client
        self._progress = progress
        self._report = report
        self._survey = Survey(client)
        self._harbor: HarborCheck | None = None
        self._verified: list[PushImage] = []

    def run(self, uploads: Path) -> None:
        """Push; what happened is in the report, also if this raises."""
        layout, options = self._layout, self._options
        lacking = {image: lacks for image in self._images if (lacks := missing_blob(layout, image))}
        whole = [image for image in self._images if image not in lacking]
        try:
            plan = self._look(whole)
        except AirgapSyncError as error:
            self._report.images += [outcome_of(options.target, image, "failed", error=error) for image in whole]
            raise
        finally:
            self._tell_harbor()
        failed = {**lacking, **self._survey.failed}
        for image, why in failed.items():
            self._report.images.append(outcome_of(options.target, image, "failed", error=why))
            self._progress.image_done(f"failed: {image.reference}: {why.message}")
        if whole and len(self._survey.failed) == len(whole):
            raise next(iter(self._survey.failed.values()))
        facts = self._report.facts
        facts["bytes_to_send"] = plan.bytes_of(Action.UPLOAD)
        facts["bytes_to_mount"] = plan.bytes_of(Action.MOUNT)
        if options.dry_run:
            facts["plan"] = plan_to_dict(plan, options.target)
            self._report.images += [planned(options.target, image) for image in plan.images]
            return
        pusher = Pusher(
            layout,
            self._client,
            jobs=options.jobs,
            progress=self._progress,
            chunking=options.chunking,
            memory=UploadJournal(uploads, self._client.endpoint.api_url),
            verify=options.verify is not Verify.NONE,
            harbor=self._harbor,
        )
        pushed = [PushedImage(image) for image in plan.images]
        try:
            pusher.execute(plan, pushed)
            self._verify(pushed)
        finally:
            self._report.images += [pushed_outcome(options.target, image) for image in pushed]

    # --- before -------------------------------------------------------------------------------------------------

    def _look(self, images: list[PushImage]) -> TransferPlan:
        """Find out what is there and whether the rest can be sent, and plan."""
        options, survey = self._options, self._survey
        if any("/" not in image.repository for image in images) and options.kind is not TargetKind.REGISTRY:
            self._client.check_api()
            if self._find_harbor():
                check_names(images)
        survey.ask_names(images, options.jobs)
        if options.verify is Verify.ALL:
            self._doubt(images)
        denied = [image for image, error in survey.failed.items() if isinstance(error, DeniedError)]
        todo = survey.todo(images)
        if todo or denied:
            self._client.check_api()
            if self._harbor or self._find_harbor():
                todo = self._ask_harbor(images, todo, denied)
        if todo and not self._harbor and options.create is not CreateProjects.NO:
            note(self._report, "the target is no Harbor, so --create-projects does nothing")
        coming = self._harbor.to_create if self._harbor else []
        survey.ask_blobs([image for image in todo if project_of(image.repository) not in coming], options.jobs)
        plan = make_plan([image for image in images if image not in survey.failed], survey.existing)
        if self._harbor:
            for image, why in survey.failed.items():
                if isinstance(why, DeniedError):
                    survey.failed[image] = self._harbor.explained(why, image.repository, 0)
            self._harbor.check_room(plan, survey.existing)
        return plan

    def _doubt(self, images: list[PushImage]) -> None:
        """Look whether what is there is whole; what is not is pushed as if it were not there."""
        there = [image for image in images if self._survey.existing.has_image(image)]
        lists = self._client.authorizer.is_harbor and self._options.kind is not TargetKind.REGISTRY
        wrong = Verifier(self._client, Harbor(self._client) if lists else None).check(
            there, self._options.jobs, blobs=True
        )
        for image, why in wrong.items():
            if isinstance(why, NotVerifiedError):
                self._survey.lost(image)
                warn(self._report, f"{why.message}; it is pushed again")
            else:
                self._survey.failed[image] = why
        self._verified += [image for image in there if image not in wrong]

    def _find_harbor(self) -> bool:
        """Find out whether the target is Harbor.

        Raises:
            NotHarborError: It is not, and was said to be.
        """
        kind, client = self._options.kind, self._client
        if kind is TargetKind.REGISTRY or (kind is TargetKind.AUTO and not client.authorizer.is_harbor):
            return False
        if not Harbor(client).is_there():
            if kind is TargetKind.HARBOR:
                raise NotHarborError(f"{self._options.target.host} does not answer as Harbor does at /api/version")
            note(
                self._report,
                "this looks like Harbor, but its API does not answer: projects, quota and policies are not checked",
            )
            return False
        client.host.cap(MOST_AT_ONCE, FIRST_AT_ONCE)
        self._harbor = HarborCheck(
            client, self._options.create, self._options.project_quota_bytes, self._options.dry_run
        )
        return True

    def _ask_harbor(self, images: list[PushImage], todo: list[PushImage], denied: list[PushImage]) -> list[PushImage]:
        """Ask Harbor all that can be known beforehand; return what is left to do."""
        assert self._harbor is not None  # noqa: S101 - found by the caller
        survey, harbor = self._survey, self._harbor
        harbor.check_system()
        for image in survey.hidden:
            artifact = harbor.api.artifact(image.repository, image.tag)
            if artifact is not None:
                survey.found(image, Digest.parse(artifact.digest))
            if survey.existing.has_image(image):
                harbor.warnings.append(
                    f"{image.repository}:{image.tag} is there, but a policy of its project keeps everybody from "
                    "pulling it: nodes cannot start it"
                )
        # A name in a project that is not there yet is refused like one that is not ours.
        harbor.check_projects([*todo, *denied])
        survey.forgive([image for image in denied if not harbor.knows(image.repository)])
        for image, error in harbor.check_tags(survey.todo(images), survey.existing).items():
            survey.failed[image] = error
        return survey.todo(images)

    def _tell_harbor(self) -> None:
        if self._harbor is None:
            return
        for text in self._harbor.warnings:
            warn(self._report, text)
        for text in self._harbor.notices:
            note(self._report, text)
        if self._harbor.to_create:
            self._report.facts["projects_to_create"] = self._harbor.to_create

    # --- after --------------------------------------------------------------------------------------------------

    def _verify(self, pushed: list[PushedImage]) -> None:
        """Look at what was pushed; an image that is not there as it should be has failed."""
        if self._options.verify is Verify.NONE:
            return
        done = {image.plan.image: image for image in pushed if image.done and not image.plan.up_to_date}
        verifier = Verifier(self._client, self._harbor.api if self._harbor else None)
        wrong = verifier.check(list(done), self._options.jobs, blobs=False)
        for image, why in wrong.items():
            done[image].error, done[image].done = why, False
            self._progress.image_done(f"failed: {image.reference}: {why.message}")
        self._verified += [image for image in done if image not in wrong]
        if self._verified:
            manifests = sum(len(image.content.manifests) for image in self._verified)
            self._report.facts["verified"] = {"images": len(self._verified), "manifests": manifests}
