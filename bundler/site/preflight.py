"""The rules of a preflight that are about the site as a whole: versions, nodes, the controller, the tags.

Pure: facts in, findings out. Single images are checked in :mod:`bundler.site.pulls`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bundler.bundle.lock import BundleLock
from bundler.errors import BadReferenceError, UnsupportedSkewError
from bundler.k3s.features import EMBEDDED, EMBEDDED_STABLE, NO_DEFAULT_ENDPOINT, WILDCARD, shares_imports
from bundler.k3s.hops import hops
from bundler.k3s.images import is_pause, upgrade_image
from bundler.k3s.registries import RegistriesFile
from bundler.k3s.version import K3sVersion
from bundler.oci.reference import DEFAULT_TAG, Reference
from bundler.progress import people_bytes
from bundler.site.cluster import FreeBytes, Node
from bundler.site.controller import CONFIG_MAP as ENVIRONMENT
from bundler.site.controller import NAMESPACE
from bundler.site.findings import ImageResult, Problem, Severity, Verdict
from bundler.site.node import LocalNode
from bundler.site.platforms import content_for
from bundler.site.pulls import CheckedImage
from bundler.site.routes import Route, Router, Site

PULL_POLICY = "SYSTEM_UPGRADE_JOB_IMAGE_PULL_POLICY"
KUBECTL_IMAGE = "SYSTEM_UPGRADE_JOB_KUBECTL_IMAGE"
_SET_POLICY = (
    f"Set it to IfNotPresent: kubectl -n {NAMESPACE} patch configmap {ENVIRONMENT} --type merge -p "
    f'\'{{"data":{{"{PULL_POLICY}":"IfNotPresent"}}}}\' && kubectl -n {NAMESPACE} rollout restart '
    "deployment/system-upgrade-controller"
)
#: Sources that each platform should have, so that one may be down.
_SEEDS = 2
#: Unpacked, content takes about this many times its compressed size: an estimate.
_UNPACKED = 3


@dataclass(frozen=True, slots=True)
class Policy:
    """How upgrade jobs pull, as one place has it; ``ours``: `config` wrote it."""

    place: str
    environment: Mapping[str, str]
    ours: bool = True


@dataclass(frozen=True, slots=True)
class SeenPlan:
    """A Plan, where it is, and whether `config` wrote it."""

    place: str
    document: Mapping[str, object]
    ours: bool


def releases_of(lock: BundleLock | None) -> list[K3sVersion]:
    """Return the K3s releases of a bundle."""
    return [K3sVersion.parse(release.version) for release in lock.releases] if lock else []


def check_versions(verdict: Verdict, site: Site, versions: Iterable[K3sVersion], place: str) -> None:
    """Check what versions can do that run somewhere, now or on the way."""
    for version in sorted(set(versions)):
        if not site.default_endpoint and not NO_DEFAULT_ENDPOINT.in_version(version):
            verdict.add(
                "no-default-endpoint-unknown",
                Severity.ERROR,
                place,
                f"{version} does not know disable-default-registry-endpoint, which came with "
                f"{NO_DEFAULT_ENDPOINT.first(version)}, and would not start",
                "Write the files again without --no-default-endpoint.",
            )
        if not site.embedded:
            continue
        if not EMBEDDED.in_version(version):
            verdict.add(
                "embedded-unknown",
                Severity.ERROR,
                place,
                f"{version} has no embedded registry: it came with {EMBEDDED.first(version)}",
                "Use --mode registry for this upgrade.",
            )
            continue
        if site.wildcard and not WILDCARD.in_version(version):
            verdict.add(
                "wildcard-unknown",
                Severity.ERROR,
                place,
                f'{version} does not take "*" for the embedded registry: that came with {WILDCARD.first(version)}',
                "Write the files again without --wildcard.",
            )
        if not shares_imports(version):
            verdict.add(
                "imports-not-shared",
                Severity.ERROR,
                place,
                f"{version} does not share imported images with other nodes (k3s-io/k3s#13222)",
                "Take a later patch of this minor; or put the archive on every node, and run preflight on each.",
            )
        if not EMBEDDED_STABLE.in_version(version):
            verdict.add(
                "embedded-experimental",
                Severity.WARNING,
                place,
                f"in {version} the embedded registry is experimental; it is stable from "
                f"{EMBEDDED_STABLE.first(version)}",
                "Take a later patch, if one is to be had.",
            )


def check_nodes(verdict: Verdict, site: Site, nodes: Sequence[Node], releases: Sequence[K3sVersion]) -> None:
    """Check the nodes that the cluster lists."""
    running = sorted({node.version for node in nodes if node.version})
    for node in nodes:
        place = f"node {node.name}"
        if node.version is None:
            verdict.add(
                "not-k3s",
                Severity.WARNING,
                place,
                f"it runs {node.version_text}, which is no K3s",
                "A Plan does not upgrade it: see that it needs nothing of this.",
            )
        if not node.ready:
            verdict.add(
                "node-not-ready",
                Severity.WARNING,
                place,
                "it is not Ready",
                "Mend or remove it first: an upgrade waits for every server.",
            )
        if site.embedded and node.version and not node.shares:
            verdict.add(
                "node-not-sharing",
                Severity.ERROR,
                place,
                "it takes no part in the embedded registry",
                "Copy registries.yaml to it, set embedded-registry on the servers, and restart K3s there.",
            )
    if site.running and running and running[0] != site.running:
        verdict.add(
            "running-differs",
            Severity.WARNING,
            "site.json",
            f"the files were made for nodes of {site.running}, the oldest node runs {running[0]}",
            f"Write the files again with --from {running[0]}.",
        )
    if releases and running and running[0] != max(releases):
        try:
            hops(releases, running[0])
        except UnsupportedSkewError as error:
            verdict.add(error.reference, Severity.ERROR, "bundle", error.message, error.hint)
    check_versions(verdict, site, running, "nodes")


def check_bundle(
    verdict: Verdict,
    lock: BundleLock | None,
    images: Sequence[CheckedImage],
    router: Router,
    hop_list: Sequence[K3sVersion],
) -> None:
    """Check that the bundle itself has what an upgrade needs."""
    if lock is None:
        verdict.not_checked.append(
            "whether the bundle is complete, and has all platforms: there is no bundle.lock.json"
        )
    for failed in lock.failed if lock else ():
        verdict.add(
            "bundle-incomplete",
            Severity.ERROR,
            "bundle",
            f"{failed.reference} is not in the bundle ({failed.error})",
            "Complete the bundle on the connected side: run the same `bundle` command again.",
        )
    names = {str(image.reference.tagged() or image.reference) for image in images}
    for hop in hop_list:
        if str(upgrade_image(hop)) not in names:
            verdict.add(
                "upgrade-image-missing",
                Severity.ERROR,
                "bundle",
                f"{upgrade_image(hop)} is not in the bundle",
                f"Make the bundle with --k3s {hop}.",
            )
    if hop_list and not any(is_pause(image.reference) for image in images if router.in_k3s_set(image.reference)):
        verdict.add(
            "pause-missing",
            Severity.ERROR,
            "bundle",
            "the pause image is not in the bundle, and no pod starts without it",
            "Make the bundle with `airgap-sync bundle --k3s VERSION`.",
        )


def check_tags(images: Sequence[CheckedImage], results: Sequence[ImageResult]) -> list[ImageResult]:
    """Refuse what nodes never share: the tag ``latest``."""
    refused = {
        str(image.reference)
        for image in images
        if image.route is Route.EMBEDDED and image.reference.tag == DEFAULT_TAG and image.reference.digest is None
    }
    problem = Problem(
        "latest-embedded",
        f"nodes never share the tag {DEFAULT_TAG} with each other (k3s-io/k3s#9966)",
        "Give the image a tag of its own, or route it to the registry: --route NAME=registry.",
    )
    return _refused(results, refused, problem)


def check_policy(
    images: Sequence[CheckedImage],
    results: Sequence[ImageResult],
    policies: Sequence[Policy],
    releases: Sequence[K3sVersion],
) -> list[ImageResult]:
    """Refuse the images of upgrade jobs where the jobs insist on a registry that has none of it, or on having it."""
    for policy in policies:
        pulls = policy.environment.get(PULL_POLICY)
        if pulls not in ("Always", "Never"):
            continue
        names = {str(upgrade_image(release)) for release in releases} | {_full(policy.environment.get(KUBECTL_IMAGE))}
        refused = {
            str(image.reference)
            for image in images
            if str(image.reference) in names and (image.route is Route.EMBEDDED) == (pulls == "Always")
        }
        why = (
            "upgrade jobs then ask a registry for it, also on nodes that have it, and at this site it is in none"
            if pulls == "Always"
            else "upgrade jobs then never pull it, and at this site nodes are to pull it"
        )
        problem = Problem("job-pull-policy", f"{PULL_POLICY} is {pulls} in {policy.place}: {why}", _SET_POLICY)
        results = _refused(results, refused, problem)
    return list(results)


def check_live_policy(verdict: Verdict, policy: Policy) -> None:
    """Note that the controller in the cluster pulls otherwise than what `config` wrote for it."""
    pulls = policy.environment.get(PULL_POLICY, "")
    if pulls in ("Always", "Never"):
        verdict.add(
            "job-pull-policy-now",
            Severity.WARNING,
            policy.place,
            f"{PULL_POLICY} is {pulls} there now",
            "Apply what `config` wrote before the first plan, and restart the controller: RUNBOOK.md has the step.",
        )


def check_job_images(verdict: Verdict, policies: Sequence[Policy], images: Sequence[CheckedImage]) -> None:
    """Find jobs that need a kubectl image which is not in the bundle: a plan that cordons cannot do without it."""
    names = {str(image.reference.tagged() or image.reference) for image in images}
    for policy in policies:
        kubectl = _full(policy.environment.get(KUBECTL_IMAGE))
        if kubectl and kubectl not in names:
            verdict.add(
                "job-image-missing",
                Severity.ERROR if policy.ours else Severity.WARNING,
                policy.place,
                f"jobs cordon and drain with {kubectl}, and the bundle does not have it",
                f"Take it into the bundle (--image {kubectl}), or set {KUBECTL_IMAGE} to the one that is there.",
            )


def forgive_imports(verdict: Verdict) -> None:
    """Where every node has everything, it does no harm that a version does not share imported images."""
    if not all(image.ok for image in verdict.images):
        return
    for at, finding in enumerate(verdict.findings):
        if finding.rule == "imports-not-shared":
            verdict.findings[at] = replace(finding, severity=Severity.WARNING)


def check_age(verdict: Verdict, node: LocalNode, file: RegistriesFile) -> None:
    """Find credentials that K3s has not read yet: they are in none of the files that containerd's mirrors are in."""
    if file.has_credentials and node.changed_after_start:
        verdict.add(
            "not-restarted",
            Severity.ERROR,
            file.name,
            "it was changed after K3s wrote what containerd reads, so containerd may have other credentials",
            "K3s reads the file only when it starts: systemctl restart k3s    (on an agent: k3s-agent)",
        )


def check_plans(verdict: Verdict, plans: Sequence[SeenPlan], images: Sequence[CheckedImage]) -> None:
    """Check that plans only lead to what the bundle has; one that `config` made must."""
    names = {str(image.reference.tagged() or image.reference) for image in images}
    for plan in plans:
        spec = plan.document.get("spec")
        if not isinstance(spec, dict):
            continue
        version, channel = spec.get("version"), spec.get("channel")
        if channel and not version:
            verdict.add(
                "plan-with-channel",
                Severity.WARNING,
                plan.place,
                f"it follows a channel ({channel!r:.80}), so it may start an upgrade to what is not here",
                "Give it a version, or delete it.",
            )
            continue
        for part in ("prepare", "upgrade"):
            container = spec.get(part)
            image = container.get("image") if isinstance(container, dict) else None
            wanted = _plan_image(image, version)
            if wanted and wanted not in names:
                verdict.add(
                    "plan-without-image",
                    Severity.ERROR if plan.ours else Severity.WARNING,
                    plan.place,
                    f"its {part} needs {wanted}, and the bundle does not have it",
                    "Write the files again with `config`." if plan.ours else "Delete it, or bring this image as well.",
                )


def _plan_image(image: object, version: object) -> str | None:
    """Return the full name of what a part of a plan runs.

    Source: rancher/system-upgrade-controller, ``pkg/upgrade/container``: the version is the tag of an image without.
    """
    if not isinstance(image, str) or not image:
        return None
    last = image.rpartition("/")[2]
    if ":" in last or "@" in last or not isinstance(version, str):
        return _full(image)
    return _full(f"{image}:{version.replace('+', '-')}")


def propose_seeds(nodes: Sequence[Node]) -> dict[str, list[str]]:
    """Return for each platform the nodes to put the archive on: servers first, those that are Ready."""
    seeds: dict[str, list[str]] = {}
    for node in sorted(nodes, key=lambda node: (not node.ready, not node.is_server, node.name)):
        chosen = seeds.setdefault(str(node.platform), [])
        if len(chosen) < _SEEDS:
            chosen.append(node.name)
    return dict(sorted(seeds.items()))


def check_disk(
    verdict: Verdict, node: Node, free: FreeBytes | None, images: Sequence[CheckedImage], *, seed: bool
) -> None:
    """Compare what a node has room for with what comes to it."""
    sizes = {}
    for image in images:
        if str(image.reference) in node.images:
            continue
        found = content_for(image.content, node.platform, image.platforms)
        sizes.update({blob.digest: blob.size for blob in (found.blobs if found else ())})
    compressed = sum(sizes.values())
    archive = sum({blob.digest: blob.size for image in images for blob in image.content.blobs}.values())
    archive = archive if seed and compressed else 0
    place = f"node {node.name}"
    if free is None:
        verdict.not_checked.append(
            f"whether {place} has room for {people_bytes(compressed + archive)} of images: the API does not tell"
        )
        return
    room = free.node_fs if free.image_fs is None else min(free.node_fs, free.image_fs)
    need = compressed * (1 + _UNPACKED) + archive
    if room < need:
        certain = room < compressed + archive
        verdict.add(
            "disk-full" if certain else "disk-tight",
            Severity.ERROR if certain else Severity.WARNING,
            place,
            f"{people_bytes(room)} are free, and images need {people_bytes(compressed)} as they come"
            + (f", {people_bytes(archive)} as the archive" if archive else "")
            + f" and about {people_bytes(compressed * _UNPACKED)} unpacked (an estimate)",
            "Make room below /var/lib/rancher/k3s. Of images that are there already, the API names at most 50.",
        )


def _full(text: object) -> str:
    """Return the full name of an image that may be written short; empty for none."""
    if not isinstance(text, str) or not text:
        return ""
    try:
        reference = Reference.parse(text)
    except BadReferenceError:
        return text
    # The bundle has one with a tag and a digest under both.
    return str(reference.pinned() or reference)


def _refused(results: Sequence[ImageResult], references: set[str], problem: Problem) -> list[ImageResult]:
    return [
        ImageResult(result.reference, result.platform, ok=False, problem=problem)
        if result.reference in references and result.ok is not False
        else result
        for result in results
    ]
