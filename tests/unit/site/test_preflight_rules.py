"""The rules of a preflight about the site as a whole: what makes each appear, and what makes it go away."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bundler.bundle.lock import BundleLock, FailedImage, LockedImage, LockedRelease, Request
from bundler.errors import BadK3sVersionError
from bundler.k3s.images import upgrade_image
from bundler.k3s.registries import RegistriesFile
from bundler.k3s.version import K3sVersion
from bundler.oci.content import ImageContent
from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest
from bundler.oci.manifest import Manifest
from bundler.oci.mediatype import OCI_MANIFEST
from bundler.oci.platform import Platform
from bundler.oci.reference import Reference
from bundler.site import jobs
from bundler.site import preflight as rules
from bundler.site.cluster import FreeBytes, Node
from bundler.site.findings import ImageResult, Problem, Severity, Verdict
from bundler.site.node import LocalNode
from bundler.site.pulls import CheckedImage
from bundler.site.routes import Mode, Route, Router, Site

AMD64, ARM64 = Platform.parse("linux/amd64"), Platform.parse("linux/arm64")
V131, V132 = K3sVersion.parse("v1.31.7+k3s1"), K3sVersion.parse("v1.32.3+k3s1")
UPGRADE, KUBECTL = str(upgrade_image(V132)), "docker.io/rancher/kubectl:v1.30.3"
PAUSE, APP = "docker.io/rancher/mirrored-pause:3.6", "ghcr.io/team/app:1"
PINNED = f"ghcr.io/team/pinned@sha256:{'2' * 64}"
REGISTRY, EMBEDDED = Site(), Site(mode=Mode.EMBEDDED)
ALWAYS = {jobs.PULL_POLICY: "Always", jobs.KUBECTL_IMAGE: "rancher/kubectl:v1.30.3"}

NEVER = {**ALWAYS, jobs.PULL_POLICY: "Never"}


def content(seed: str, *sizes: int) -> ImageContent:
    blobs = tuple(
        Descriptor("application/octet-stream", Digest.of(f"{seed} {at}".encode()), size)
        for at, size in enumerate(sizes or (1, 1))
    )
    raw = seed.encode()
    return ImageContent((Manifest(raw, OCI_MANIFEST, Digest.of(raw), blobs[0], blobs[1:]),), blobs)


def image(name: str, route: Route = Route.EMBEDDED, *sizes: int, platforms: tuple[Platform, ...] = ()) -> CheckedImage:
    return CheckedImage(Reference.parse(name), content(name, *sizes), route, platforms)


def lock(*names: str, k3s: bool = True, failed: tuple[str, ...] = ()) -> BundleLock:
    reason = f"k3s-images.txt of {V132}" if k3s else "asked for by hand"
    images = tuple(
        LockedImage(
            *(Reference.parse(name), (reason,), OCI_MANIFEST, Digest.of(name.encode()), 1, Digest.of(name.encode())),
            *(None, ("linux/amd64",), (), 1, 1),
        )
        for name in names
    )
    missing = tuple(FailedImage(Reference.parse(name), (reason,), "manifest-unknown") for name in failed)
    request = Request((str(V132),), (), None, (), ("linux/amd64",))
    return BundleLock(request, (LockedRelease(str(V132), "0" * 64),), images, missing)


def node(name: str, version: str = str(V131), platform: Platform = AMD64, **fields: Any) -> Node:
    try:
        parsed = K3sVersion.parse(version)
    except BadK3sVersionError:
        parsed = None
    return Node(name, version, parsed, platform, **{"ready": True, "shares": True, **fields})


def blank() -> Verdict:
    return Verdict(None, str(Digest.of(b"site.json")), "2026-01-02T03:04:05Z")


def found(verdict: Verdict) -> list[tuple[str, Severity, str]]:
    return sorted((finding.rule, finding.severity, finding.place) for finding in verdict.findings)


def fine(*images: CheckedImage) -> list[ImageResult]:
    return [ImageResult(str(image.reference), "linux/amd64", ok=True) for image in images]


def refused(results: list[ImageResult]) -> dict[str, str]:
    return {result.reference: result.problem.rule for result in results if result.problem}


# --- versions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "version", "expected"),
    [
        (REGISTRY, "v1.20.1+k3s1", []),
        (EMBEDDED, "v1.31.4+k3s1", []),
        (EMBEDDED, "v1.31.3+k3s1", ["embedded-experimental"]),
        (EMBEDDED, "v1.29.0+k3s1", ["embedded-unknown"]),
        (Site(mode=Mode.HYBRID), "v1.29.0+k3s1", ["embedded-unknown"]),
        (EMBEDDED, "v1.33.6+k3s1", ["imports-not-shared"]),
        (EMBEDDED, "v1.33.7+k3s1", []),
        (EMBEDDED, "v1.34.2+k3s1", ["imports-not-shared"]),
        (Site(mode=Mode.EMBEDDED, wildcard=True), "v1.29.2+k3s1", ["embedded-experimental", "wildcard-unknown"]),
        (Site(mode=Mode.EMBEDDED, wildcard=True), "v1.29.3+k3s1", ["embedded-experimental"]),
        (Site(wildcard=True), "v1.29.2+k3s1", []),
        (Site(default_endpoint=False), "v1.29.0+k3s1", ["no-default-endpoint-unknown"]),
        (Site(default_endpoint=False), "v1.29.1+k3s1", []),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_a_version_cannot_do(site: Site, version: str, expected: list[str]) -> None:
    verdict = blank()
    rules.check_versions(verdict, site, [K3sVersion.parse(version)] * 2, "nodes")
    assert [rule for rule, _, _ in found(verdict)] == expected
    for finding in verdict.findings:
        assert finding.message.startswith((version, f"in {version}"))
        assert finding.fix
        assert (finding.severity is Severity.WARNING) == (finding.rule == "embedded-experimental")


# --- nodes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "site", "releases", "expected"),
    [
        ([], EMBEDDED, [V132], []),
        ([node("a"), node("b")], EMBEDDED, [V132], []),
        ([node("a", ready=False)], REGISTRY, [V132], [("node-not-ready", "node a")]),
        ([node("a", "v1.31.2")], REGISTRY, [V132], [("not-k3s", "node a")]),
        ([node("a", "v1.31.2", shares=False)], EMBEDDED, [V132], [("not-k3s", "node a")]),
        ([node("a", shares=False)], EMBEDDED, [V132], [("node-not-sharing", "node a")]),
        ([node("a", shares=False)], REGISTRY, [V132], []),
        ([node("a"), node("b", "v1.30.9+k3s1")], REGISTRY, [V132], [("unsupported-skew", "bundle")]),
        ([node("a"), node("b", "v1.30.9+k3s1")], REGISTRY, [V131, V132], []),
        ([node("a", str(V132))], REGISTRY, [V132], []),
        ([node("a", str(V132)), node("b", str(V132))], REGISTRY, [V131, V132], []),
        ([node("a", str(V132)), node("b")], REGISTRY, [V132], []),
        ([node("a", str(V132))], REGISTRY, [V131], [("unsupported-skew", "bundle")]),
        ([node("a")], REGISTRY, [], []),
        ([node("a")], Site(running=V131), [V132], []),
        ([node("a")], Site(running=V132), [V132], [("running-differs", "site.json")]),
        ([node("a", "v1.31.2")], Site(running=V132), [V132], [("not-k3s", "node a")]),
    ],
    ids=[
        *("none", "well", "not-ready", "not-k3s", "not-k3s-embedded", "not-sharing", "registry", "skew", "hops"),
        *("done", "done-on-all", "done-on-one", "newer", "no-releases", "running", "differs", "unknown"),
    ],
)
def test_nodes(nodes: list[Node], site: Site, releases: list[K3sVersion], expected: list[tuple[str, str]]) -> None:
    verdict = blank()
    rules.check_nodes(verdict, site, nodes, releases)
    assert [(rule, place) for rule, _, place in found(verdict)] == expected
    assert all(finding.fix for finding in verdict.findings)


# --- the bundle -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "locked", "expected"),
    [
        ((UPGRADE, PAUSE, APP), lock(UPGRADE, PAUSE), []),
        ((UPGRADE, APP), lock(UPGRADE), ["pause-missing"]),
        ((PAUSE, APP), lock(PAUSE), ["upgrade-image-missing"]),
        ((UPGRADE, PAUSE), lock(UPGRADE, PAUSE, failed=(APP,)), ["bundle-incomplete"]),
    ],
    ids=["whole", "pause", "upgrade", "failed"],
)
def test_the_bundle(names: tuple[str, ...], locked: BundleLock, expected: list[str]) -> None:
    verdict = blank()
    images = [image(name) for name in names]
    rules.check_bundle(verdict, locked, images, Router(REGISTRY, locked), rules.releases_of(locked))
    assert found(verdict) == [(rule, Severity.ERROR, "bundle") for rule in expected]
    assert verdict.not_checked == []


def test_a_bundle_of_apps_needs_no_pause() -> None:
    verdict = blank()
    locked = lock(APP, k3s=False)
    rules.check_bundle(verdict, locked, [image(APP)], Router(REGISTRY, locked), [])
    assert verdict.findings == []


def test_a_layout_without_a_lock() -> None:
    verdict = blank()
    rules.check_bundle(verdict, None, [image(APP)], Router(REGISTRY, None), rules.releases_of(None))
    assert verdict.findings == []
    assert verdict.not_checked == [
        "whether the bundle is complete, and has all platforms: there is no bundle.lock.json"
    ]


# --- latest -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "route", "expected"),
    [
        ("ghcr.io/team/app:latest", Route.EMBEDDED, "latest-embedded"),
        ("ghcr.io/team/app:latest", Route.REGISTRY, None),
        ("ghcr.io/team/app:1", Route.EMBEDDED, None),
        (f"ghcr.io/team/app:latest@sha256:{'1' * 64}", Route.EMBEDDED, None),
    ],
    ids=["latest", "registry", "other", "digest"],
)
def test_latest(name: str, route: Route, expected: str | None) -> None:
    images = [image(name, route), image(APP)]
    results = rules.check_tags(images, fine(*images))
    assert refused(results) == ({name: expected} if expected else {})
    assert [result.ok for result in results] == [expected is None, True]


def test_a_problem_that_is_known_is_kept() -> None:
    latest = image("ghcr.io/team/app:latest")
    absent = ImageResult(str(latest.reference), "linux/amd64", ok=False, problem=Problem("image-absent", "gone", "x"))
    unknown = ImageResult(str(latest.reference), "linux/arm64", ok=None, problem=Problem("on-nodes-only", "ask", "x"))
    results = rules.check_tags([latest], [absent, unknown])
    assert results[0] == absent
    assert (results[1].ok, refused(results[1:])) == (False, {str(latest.reference): "latest-embedded"})


# --- pull policy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "route", "expected"),
    [
        (ALWAYS, Route.EMBEDDED, {UPGRADE, KUBECTL}),
        ({**ALWAYS, jobs.PULL_POLICY: "IfNotPresent"}, Route.EMBEDDED, set()),
        ({}, Route.EMBEDDED, set()),
        (ALWAYS, Route.REGISTRY, set()),
        (NEVER, Route.REGISTRY, {UPGRADE, KUBECTL}),
        (NEVER, Route.EMBEDDED, set()),
        ({**ALWAYS, jobs.KUBECTL_IMAGE: KUBECTL}, Route.EMBEDDED, {UPGRADE, KUBECTL}),
        ({**ALWAYS, jobs.KUBECTL_IMAGE: "other/kubectl:1"}, Route.EMBEDDED, {UPGRADE}),
        ({**ALWAYS, jobs.KUBECTL_IMAGE: ""}, Route.EMBEDDED, {UPGRADE}),
    ],
    ids=["always", "if-not-present", "not-set", "registry", "never-registry", "never", "full-name", "other", "empty"],
)
def test_the_pull_policy_of_jobs(environment: Mapping[str, str], route: Route, expected: set[str]) -> None:
    images = [image(name, route) for name in (UPGRADE, KUBECTL, APP, PAUSE)]
    policies = [jobs.Policy("here", {}), jobs.Policy("there", environment)]
    results = jobs.check_policy(images, fine(*images), policies, [V132])
    assert refused(results) == dict.fromkeys(expected, "job-pull-policy")
    for result in results:
        if result.problem:
            assert f"{environment[jobs.PULL_POLICY]} in there" in result.problem.message
            assert "patch configmap default-controller-env" in result.problem.fix


@pytest.mark.parametrize(
    ("pulls", "expected"),
    [("Always", True), ("Never", True), ("IfNotPresent", False), ("", False), (None, False)],
    ids=["always", "never", "if-not-present", "empty", "not-set"],
)
def test_the_pull_policy_that_the_controller_has_now(pulls: str | None, expected: bool) -> None:
    verdict = blank()
    environment = {} if pulls is None else {jobs.PULL_POLICY: pulls}
    jobs.check_live_policy(verdict, jobs.Policy("the cluster", environment, ours=False))
    assert found(verdict) == ([("job-pull-policy-now", Severity.WARNING, "the cluster")] if expected else [])
    assert all(f"is {pulls} there now" in finding.message for finding in verdict.findings)


@pytest.mark.parametrize(
    ("kubectl", "lacking"),
    [
        (None, None),
        ("", None),
        ("rancher/kubectl:v1.30.3", None),
        (KUBECTL, None),
        (PINNED, None),
        (PINNED.replace("@", ":1@"), None),
        ("rancher/kubectl:v1.31.0", "docker.io/rancher/kubectl:v1.31.0"),
        ("registry.example/rancher/kubectl:v1.30.3", "registry.example/rancher/kubectl:v1.30.3"),
        ("No Reference", "No Reference"),
    ],
    ids=["not-set", "empty", "short", "full", "digest", "tag-and-digest", "other-tag", "other-registry", "no-name"],
)
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "theirs"])
def test_the_kubectl_image_of_jobs_must_be_in_the_bundle(kubectl: str | None, lacking: str | None, ours: bool) -> None:
    verdict = blank()
    environment = {} if kubectl is None else {jobs.KUBECTL_IMAGE: kubectl}
    images = [image(KUBECTL, Route.REGISTRY), image(PINNED)]
    jobs.check_job_images(verdict, [jobs.Policy("here", environment, ours)], images)
    severity = Severity.ERROR if ours else Severity.WARNING
    assert found(verdict) == ([("job-image-missing", severity, "here")] if lacking else [])
    for finding in verdict.findings:
        assert f"with {lacking}, and" in finding.message
        assert f"--image {lacking}" in finding.fix


# --- a node that was not restarted ------------------------------------------------------------------------------------

CREDENTIALS = "configs:\n  reg.example:\n    auth:\n      username: puller\n      password: secret\n"
CA = "configs:\n  reg.example:\n    tls:\n      ca_file: /ca.pem\n"


@pytest.mark.parametrize(
    ("text", "newer", "expected"),
    [(CREDENTIALS, True, True), (CREDENTIALS, False, False), (CA, True, False), ("", True, False)],
    ids=["newer", "older", "no-credentials", "empty"],
)
def test_credentials_that_k3s_has_not_read(text: str, newer: bool, expected: bool) -> None:
    verdict = blank()
    here = LocalNode(Path("/"), ("registries.yaml", text), {"reg.example": ""}, newer)
    rules.check_age(verdict, here, RegistriesFile.parse(text, "registries.yaml"))
    assert found(verdict) == ([("not-restarted", Severity.ERROR, "registries.yaml")] if expected else [])
    assert all("systemctl restart k3s" in finding.fix for finding in verdict.findings)


# --- imports that are not shared --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ok", "severity"),
    [(True, Severity.WARNING), (False, Severity.ERROR), (None, Severity.ERROR)],
    ids=["there", "not-there", "not-known"],
)
def test_imports_need_not_be_shared_where_every_node_has_everything(ok: bool | None, severity: Severity) -> None:
    verdict = blank()
    rules.check_versions(verdict, EMBEDDED, [K3sVersion.parse("v1.32.10+k3s1")], "bundle")
    verdict.add("node-not-sharing", Severity.ERROR, "node a", "no", "do")
    problem = None if ok else Problem("image-absent", "gone", "x")
    verdict.images = [*fine(image(APP)), ImageResult(PAUSE, "linux/amd64", ok=ok, problem=problem)]
    rules.forgive_imports(verdict)
    assert found(verdict) == [
        ("imports-not-shared", severity, "bundle"),
        ("node-not-sharing", Severity.ERROR, "node a"),
    ]


# --- plans ------------------------------------------------------------------------------------------------------------

NEWER = "v1.33.1+k3s1"


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "theirs"])
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"version": str(V132), "upgrade": {"image": "rancher/k3s-upgrade"}}, None),
        ({"version": "v1.32.3-k3s1", "upgrade": {"image": "docker.io/rancher/k3s-upgrade"}}, None),
        ({"version": NEWER, "upgrade": {"image": UPGRADE}}, None),
        ({"version": NEWER, "upgrade": {"image": "rancher/k3s-upgrade:v1.32.3-k3s1"}}, None),
        ({"version": NEWER, "upgrade": {"image": PINNED}}, None),
        ({"version": NEWER, "upgrade": {"image": PINNED.replace("@", ":1@")}}, None),
        (
            {"version": NEWER, "upgrade": {"image": "rancher/k3s-upgrade"}},
            "upgrade needs docker.io/rancher/k3s-upgrade:v1.33.1-k3s1",
        ),
        (
            {"version": str(V132), "upgrade": {"image": "registry.example:5000/rancher/k3s-upgrade"}},
            "upgrade needs registry.example:5000/rancher/k3s-upgrade:v1.32.3-k3s1",
        ),
        (
            {"version": str(V132), "upgrade": {"image": "rancher/other"}},
            "upgrade needs docker.io/rancher/other:v1.32.3",
        ),
        ({"version": str(V132), "upgrade": {"image": "busybox:1"}}, "upgrade needs docker.io/library/busybox:1,"),
        (
            {"version": str(V132), "prepare": {"image": "team/before:2"}, "upgrade": {"image": "rancher/k3s-upgrade"}},
            "prepare needs docker.io/team/before:2,",
        ),
        (
            {"version": NEWER, "prepare": {"image": "rancher/k3s-upgrade"}, "upgrade": {"image": UPGRADE}},
            "prepare needs docker.io/rancher/k3s-upgrade:v1.33.1-k3s1",
        ),
        ({"version": str(V132), "prepare": {"args": ["prepare"]}, "upgrade": {"image": "rancher/k3s-upgrade"}}, None),
        ({"channel": "https://x", "version": str(V132), "upgrade": {"image": "rancher/k3s-upgrade"}}, None),
        ({"version": str(V132), "upgrade": "rancher/k3s-upgrade"}, None),
        ({"version": str(V132), "upgrade": {"image": 7}}, None),
        ("no spec", None),
        (None, None),
    ],
    ids=[
        *("good", "munged", "own-tag", "own-tag-short", "digest", "tag-and-digest", "ahead", "other-registry", "other"),
        *(
            "tagged",
            "prepare",
            "prepare-version",
            "prepare-without",
            "version-wins",
            "text",
            "number",
            "no-spec",
            "none",
        ),
    ],
)
def test_plans(spec: object, expected: str | None, ours: bool) -> None:
    verdict = blank()
    jobs.check_plans(verdict, [jobs.SeenPlan("plan x", {"spec": spec}, ours)], [image(UPGRADE), image(PINNED)])
    severity = Severity.ERROR if ours else Severity.WARNING
    assert found(verdict) == ([("plan-without-image", severity, "plan x")] if expected else [])
    for finding in verdict.findings:
        assert f"its {expected}" in finding.message
        assert finding.fix


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "theirs"])
def test_a_plan_that_follows_a_channel(ours: bool) -> None:
    verdict = blank()
    spec = {"channel": "https://update.k3s.io/v1-release/channels/stable", "upgrade": {"image": "rancher/k3s-upgrade"}}
    jobs.check_plans(verdict, [jobs.SeenPlan("plan x", {"spec": spec}, ours)], [image(UPGRADE)])
    assert found(verdict) == [("plan-with-channel", Severity.WARNING, "plan x")]


# --- seeds and room ---------------------------------------------------------------------------------------------------


def test_seeds() -> None:
    assert rules.propose_seeds([]) == {}
    nodes = [
        node("agent"),
        node("z-server", is_server=True),
        node("down", is_server=True, ready=False),
        node("y-server", is_server=True),
        node("arm", platform=ARM64, ready=False),
    ]
    assert rules.propose_seeds(nodes) == {"linux/amd64": ["y-server", "z-server"], "linux/arm64": ["arm"]}
    assert rules.propose_seeds([nodes[0], nodes[2]]) == {"linux/amd64": ["agent", "down"]}


@pytest.mark.parametrize(
    ("free", "seed", "expected"),
    [
        (FreeBytes(400, None), False, None),
        (FreeBytes(399, None), False, "disk-tight"),
        (FreeBytes(100, None), False, "disk-tight"),
        (FreeBytes(99, None), False, "disk-full"),
        (FreeBytes(1000, 99), False, "disk-full"),
        (FreeBytes(99, 1000), False, "disk-full"),
        (FreeBytes(1000, 400), False, None),
        (FreeBytes(499, None), True, "disk-tight"),
        (FreeBytes(500, None), True, None),
        (FreeBytes(199, None), True, "disk-full"),
    ],
)
def test_room(free: FreeBytes, seed: bool, expected: str | None) -> None:
    verdict = blank()
    images = [image(APP, Route.EMBEDDED, 40, 60), image(APP, Route.EMBEDDED, 40, 60)]
    rules.check_disk(verdict, node("a"), free, images, seed=seed)
    severity = Severity.ERROR if expected == "disk-full" else Severity.WARNING
    assert found(verdict) == ([(expected, severity, "node a")] if expected else [])
    assert verdict.not_checked == []


def test_room_counts_what_the_platform_needs() -> None:
    verdict = blank()
    images = [
        image(APP, Route.EMBEDDED, 40, 60, platforms=(ARM64,)),
        image(PAUSE, Route.EMBEDDED, 10, platforms=(AMD64,)),
    ]
    rules.check_disk(verdict, node("a"), FreeBytes(40, None), images, seed=False)
    assert verdict.findings == []
    # The archive has all platforms.
    rules.check_disk(verdict, node("a"), FreeBytes(40, None), images, seed=True)
    assert [rule for rule, _, _ in found(verdict)] == ["disk-full"]


def test_room_is_not_needed_for_what_the_node_has() -> None:
    images = [image(APP, Route.EMBEDDED, 40, 60), image(PAUSE, Route.EMBEDDED, 10)]
    verdict = blank()
    rules.check_disk(verdict, node("a", images=frozenset({APP})), FreeBytes(40, None), images, seed=False)
    assert found(verdict) == []
    rules.check_disk(verdict, node("a", images=frozenset({PAUSE})), FreeBytes(40, None), images, seed=False)
    assert found(verdict) == [("disk-full", Severity.ERROR, "node a")]
    # A seed that has all of it gets no archive either.
    verdict = blank()
    everything = node("a", images=frozenset({APP, PAUSE}))
    rules.check_disk(verdict, everything, FreeBytes(1, None), images, seed=True)
    assert found(verdict) == []
    # One that lacks something gets the archive as a whole.
    rules.check_disk(verdict, node("b", images=frozenset({APP})), FreeBytes(119, None), images, seed=True)
    assert found(verdict) == [("disk-full", Severity.ERROR, "node b")]


def test_room_that_is_not_told() -> None:
    verdict = blank()
    rules.check_disk(verdict, node("a"), None, [image(APP, Route.EMBEDDED, 40, 60)], seed=False)
    assert verdict.findings == []
    assert verdict.not_checked == ["whether node a has room for 100 B of images: the API does not tell"]
