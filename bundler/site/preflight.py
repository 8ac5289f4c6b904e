"""The rules of a preflight that are about the site as a whole: versions, nodes, the controller, the tags.

Pure: facts in, findings out. Single images are checked in :mod:`bundler.site.pulls`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from bundler.bundle.lock import BundleLock
from bundler.errors import UnsupportedSkewError
from bundler.k3s.features import EMBEDDED, EMBEDDED_STABLE, NO_DEFAULT_ENDPOINT, WILDCARD, shares_imports
from bundler.k3s.hops import hops
from bundler.k3s.images import is_pause, upgrade_image
from bundler.k3s.registries import RegistriesFile
from bundler.k3s.version import K3sVersion
from bundler.oci.reference import DEFAULT_TAG
from bundler.progress import people_bytes
from bundler.site.cluster import FreeBytes, Node
from bundler.site.findings import ImageResult, Problem, Severity, Verdict, refused
from bundler.site.node import LocalNode
from bundler.site.platforms import content_for
from bundler.site.pulls import CheckedImage
from bundler.site.routes import Route, Router, Site

#: Sources that each platform should have, so that one may be down.
_SEEDS = 2
#: Unpacked, content takes about this many times its compressed size: an estimate.
_UNPACKED = 3


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
    if site.running and running and running[0] != site.running and running[0] not in releases:
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
    concerned = {
        str(image.reference)
        for image in images
        if image.route is Route.EMBEDDED and image.reference.tag == DEFAULT_TAG and image.reference.digest is None
    }
    problem = Problem(
        "latest-embedded",
        f"nodes never share the tag {DEFAULT_TAG} with each other (k3s-io/k3s#9966)",
        "Give the image a tag of its own, or route it to the registry: --route NAME=registry.",
    )
    return refused(results, concerned, problem)


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
