"""The results of all nodes as one: what each node found out about itself, put together."""

from __future__ import annotations

from collections.abc import Sequence

from bundler.errors import BadResultError
from bundler.oci.platform import Platform
from bundler.site.cluster import Node
from bundler.site.findings import ImageResult, Problem, Severity, Verdict
from bundler.site.pulls import CheckedImage


def check_results(results: Sequence[tuple[str, Verdict]], verdict: Verdict) -> None:
    """Make sure that results are those of different nodes, for this bundle and this site.

    Args:
        results: Each with its place.
        verdict: The one that they are to become.

    Raises:
        BadResultError: They are not.
    """
    places: dict[str, str] = {}
    if results and verdict.lock_digest is None:
        raise BadResultError(
            f"{results[0][0]} may be for another bundle: this one has no bundle.lock.json to tell it by",
            hint="Only results for bundles that `airgap-sync bundle` made can be put together.",
        )
    for place, result in results:
        if result.node is None:
            raise BadResultError(f"{place} is not the result of a node: preflight was run elsewhere")
        if result.lock_digest != verdict.lock_digest:
            raise BadResultError(
                f"{place} is the result for another bundle, whose lock is {result.lock_digest}, not "
                f"{verdict.lock_digest}"
            )
        if result.site_digest != verdict.site_digest:
            raise BadResultError(f"{place} is the result for another site: mode, target, routes or names differ")
        if result.node in places:
            raise BadResultError(
                f"{places[result.node]} and {place} are both of node {result.node}",
                hint="Name one of them; or, if they are of two nodes, run preflight there again with --node NAME.",
            )
        places[result.node] = place


def collect(
    verdict: Verdict,
    results: Sequence[Verdict],
    images: Sequence[CheckedImage],
    platforms: Sequence[Platform],
    nodes: Sequence[Node],
) -> list[ImageResult]:
    """Put results together: an image is fine if it is on every node that has a result.

    Args:
        verdict: Findings and what was not checked are added to it.
        results: Of nodes.
        images: All that should be in them, for each platform.
        platforms: Those of the cluster, or of the bundle where that is not known.
        nodes: Of the cluster, if it was asked: each is to have a result.
    """
    together: dict[tuple[str, str], ImageResult] = {}
    for result in results:
        for finding in result.findings:
            place = f"{result.node}: {finding.place}"
            verdict.add(finding.rule, finding.severity, place, finding.message, finding.fix)
        verdict.not_checked += [f"{result.node}: {text}" for text in result.not_checked]
        for image in result.images:
            key = (image.reference, image.platform)
            known = together.get(key)
            if known is None or (known.ok is not False and image.ok is not True):
                together[key] = _of_node(image, str(result.node))
        _fill(together, result, images)
    missing = Problem("no-result", "no node of this platform has a result for it", "Run preflight on such a node.")
    for platform in platforms:
        for wanted in images:
            key = (str(wanted.reference), str(platform))
            together.setdefault(key, ImageResult(*key, ok=None, problem=missing))
    _compare_nodes(verdict, {str(result.node) for result in results}, nodes)
    _compare_age(verdict, results, nodes)
    return [together[key] for key in sorted(together)]


def _fill(together: dict[tuple[str, str], ImageResult], result: Verdict, images: Sequence[CheckedImage]) -> None:
    """Note the images that a result says nothing of, for each platform that it is about."""
    has = {(image.reference, image.platform) for image in result.images}
    problem = Problem("no-result", f"the result of {result.node} does not have it", "Run preflight there again.")
    for platform in {platform for _, platform in has}:
        for image in images:
            key = (str(image.reference), platform)
            if key not in has and (key not in together or together[key].ok):
                together[key] = ImageResult(*key, ok=None, problem=problem)


def _compare_age(verdict: Verdict, results: Sequence[Verdict], nodes: Sequence[Node]) -> None:
    """Name results that were made before the node was upgraded, and say how old they are."""
    runs = {node.name: node.version_text for node in nodes}
    for result in results:
        now = runs.get(str(result.node))
        if result.node_version and now and result.node_version != now:
            verdict.add(
                "result-stale",
                Severity.ERROR,
                f"node {result.node}",
                f"its result is of {result.node_version}, and it runs {now}",
                "Run preflight there again.",
            )
    oldest = min(results, key=lambda result: result.checked_utc)
    verdict.not_checked.append(f"what changed on nodes since their results (the oldest is of {oldest.checked_utc})")


def _compare_nodes(verdict: Verdict, have: set[str], nodes: Sequence[Node]) -> None:
    """Name nodes without a result, and results without a node."""
    if not nodes:
        verdict.not_checked.append(f"whether {', '.join(sorted(have))} are all nodes: give --kubeconfig FILE")
        return
    for node in nodes:
        if node.name not in have:
            verdict.add(
                "node-without-result",
                Severity.ERROR,
                f"node {node.name}",
                "there is no result of it",
                f"Run there: airgap-sync preflight BUNDLE --config DIR --out {node.name}.json",
            )
    for name in sorted(have - {node.name for node in nodes}):
        verdict.add(
            "node-unknown",
            Severity.WARNING,
            f"node {name}",
            "the cluster has no node of this name",
            "Run preflight there again with --node NAME, as `kubectl get nodes` shows it.",
        )


def _of_node(image: ImageResult, node: str) -> ImageResult:
    if image.problem is None:
        return image
    problem = Problem(image.problem.rule, f"on {node}: {image.problem.message}", image.problem.fix)
    return ImageResult(image.reference, image.platform, image.ok, problem)
