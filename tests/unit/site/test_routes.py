"""A site: which rule is for which image, what site.json holds, and what does not go together."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.bundle.lock import BundleLock, LockedImage, Request
from bundler.errors import BadSiteError, BundleFormatTooNewError, NothingSelectedError
from bundler.k3s.version import K3sVersion
from bundler.oci.digest import Digest
from bundler.oci.mediatype import OCI_INDEX
from bundler.oci.reference import Reference
from bundler.oci.target import Target
from bundler.schema.validation import first_problem
from bundler.site.routes import Mode, Route, Router, RouteRule, Site

DIGEST = Digest.of(b"content")
PAUSE = "docker.io/rancher/mirrored-pause:3.6"
UPGRADE = "docker.io/rancher/k3s-upgrade:v1.32.3-k3s1"
CONTROLLER = "docker.io/rancher/system-upgrade-controller:v0.20.1"
KUBECTL = "docker.io/rancher/kubectl:v1.30.3"
APP = "quay.io/team/app:1.0"
PINNED = f"ghcr.io/team/pinned@{DIGEST}"
BOTH = f"docker.io/rancher/klipper-lb:v0.4.13@{DIGEST}"
REASONS = {
    PAUSE: ("k3s-images.txt of v1.32.3+k3s1 (pause)",),
    UPGRADE: ("binary of v1.32.3+k3s1 for system-upgrade-controller",),
    CONTROLLER: ("system-upgrade-controller v0.20.1",),
    KUBECTL: ("kubectl that system-upgrade-controller v0.20.1 runs to cordon and drain",),
    BOTH: ("asked for by --image", "k3s-images.txt of v1.32.3+k3s1 (servicelb)"),
    APP: ("asked for by --image",),
    PINNED: ("listed in k3s-images.txt of ours",),
}
TARGET = Target.parse("https://harbor.example/k3s")


def ref(text: str) -> Reference:
    return Reference.parse(text)


def rules(*texts: str) -> tuple[RouteRule, ...]:
    return tuple(RouteRule.parse(text) for text in texts)


def lock() -> BundleLock:
    images = tuple(
        LockedImage(ref(name), reasons, OCI_INDEX, DIGEST, 1, DIGEST, None, ("linux/amd64",), (), 1, 1)
        for name, reasons in REASONS.items()
    )
    return BundleLock(Request((), (), None, (), ("linux/amd64",)), (), images)


# --- one rule -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pattern", "route"),
    [
        ("k3s=registry", "k3s", Route.REGISTRY),
        ("*=embedded", "*", Route.EMBEDDED),
        ("docker.io/grafana/*=registry", "docker.io/grafana/*", Route.REGISTRY),
        ("quay.io/a:[!0-9]=b=embedded", "quay.io/a:[!0-9]=b", Route.EMBEDDED),
    ],
)
def test_a_rule_is_parsed_and_written_again(text: str, pattern: str, route: Route) -> None:
    rule = RouteRule.parse(text)
    assert (rule.pattern, rule.route, str(rule)) == (pattern, route, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "k3s",
        "=registry",
        "k3s=",
        "k3s=Registry",
        "k3s=peers",
        "registry=k3s",
        "=",
        "\udcff=registry",
        "a\n=registry",
    ],
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="PATTERN=registry or PATTERN=embedded"):
        RouteRule.parse(text)


@pytest.mark.parametrize(
    ("pattern", "takes", "leaves"),
    [
        ("quay.io/*", [APP, "quay.io/a/b/c:1"], ["quay.iox/a:1", "ghcr.io/quay.io/a:1"]),
        ("quay.io/team/app", [APP, "quay.io/team/app:2"], ["quay.io/team/app2:1"]),
        ("quay.io/team/app:1.0", [APP], ["quay.io/team/app:2", "quay.io/team/app:1.00"]),
        ("quay.io/team/app:1.*", [APP, "quay.io/team/app:1.9"], ["quay.io/team/app:2.0"]),
        ("*:1.0", [APP], ["quay.io/team/app:2", PINNED]),
        ("*@sha256:*", [PINNED, BOTH], [APP]),
        ("docker.io/library/nginx", ["nginx", "docker.io/nginx:1"], ["quay.io/library/nginx:1"]),
        ("*/team/?pp", [APP], ["quay.io/team/aapp:1"]),
        ("quay.io/[a-s]*", ["quay.io/apps/x:1"], [APP]),
        ("Quay.io/*", [], [APP]),
    ],
)
def test_a_pattern_is_over_the_full_name(pattern: str, takes: list[str], leaves: list[str]) -> None:
    rule = RouteRule(pattern, Route.REGISTRY)
    for in_k3s_set in (True, False):
        assert [name for name in takes if not rule.matches(ref(name), in_k3s_set=in_k3s_set)] == []
        assert [name for name in leaves if rule.matches(ref(name), in_k3s_set=in_k3s_set)] == []


def test_the_k3s_set_is_not_a_matter_of_names() -> None:
    rule = RouteRule.parse("k3s=registry")
    assert rule.matches(ref(APP), in_k3s_set=True)
    assert not rule.matches(ref("docker.io/library/k3s:1"), in_k3s_set=False)


# --- all rules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "in_set", "not_in_set"),
    [
        (Mode.REGISTRY, Route.REGISTRY, Route.REGISTRY),
        (Mode.EMBEDDED, Route.EMBEDDED, Route.EMBEDDED),
        (Mode.HYBRID, Route.REGISTRY, Route.EMBEDDED),
    ],
)
def test_what_a_mode_does_by_itself(mode: Mode, in_set: Route, not_in_set: Route) -> None:
    site = Site(mode=mode)
    assert site.route_of(ref(PAUSE), in_k3s_set=True) is in_set
    assert site.route_of(ref(APP), in_k3s_set=False) is not_in_set
    assert site.embedded is (mode is not Mode.REGISTRY)


def test_the_first_rule_that_matches_decides() -> None:
    site = Site(mode=Mode.HYBRID, rules=rules("quay.io/team/app=embedded", "quay.io/*=registry", "k3s=embedded"))
    found = {
        name: str(site.route_of(ref(name), in_k3s_set=in_set))
        for name, in_set in [(APP, False), ("quay.io/a/b:1", False), ("quay.io/a/set:1", True), (PAUSE, True)]
    }
    assert found == {
        APP: "embedded",
        "quay.io/a/b:1": "registry",
        "quay.io/a/set:1": "registry",
        PAUSE: "embedded",
    }
    # What no rule of the user takes falls to the mode's own.
    assert site.route_of(ref("ghcr.io/a/b:1"), in_k3s_set=False) is Route.EMBEDDED


def test_the_lock_tells_what_belongs_to_the_k3s_set() -> None:
    router = Router(Site(mode=Mode.HYBRID, target=TARGET), lock())
    expected = {PAUSE, UPGRADE, CONTROLLER, KUBECTL, str(ref(BOTH).tagged()), str(ref(BOTH).pinned())}
    named = [name for text in REASONS for name in (ref(text).tagged(), ref(text).pinned()) if name]
    assert {str(name) for name in named if router.in_k3s_set(name)} == expected
    assert {str(name) for name in named if router.route(name) is Route.REGISTRY} == expected


@pytest.mark.parametrize("mode", [Mode.REGISTRY, Mode.EMBEDDED])
def test_without_a_lock_one_route_for_all_is_still_possible(mode: Mode) -> None:
    assert Router(Site(mode=mode), None).route(ref(PAUSE)) == str(mode)


@pytest.mark.parametrize(
    "given",
    [(), ("quay.io/*=registry",), ("k3s=embedded", "*=registry"), ("quay.io/*=embedded", "k3s=registry", "*=embedded")],
    ids=["default", "one-rule", "k3s-first", "k3s-second"],
)
def test_without_a_lock_nobody_knows_the_k3s_set(given: tuple[str, ...]) -> None:
    site = Site(mode=Mode.HYBRID, target=TARGET, rules=rules(*given))
    assert site.needs_k3s_set
    with pytest.raises(NothingSelectedError, match=r"bundle\.lock\.json") as raised:
        Router(site, None)
    assert "--route '*=registry'" in raised.value.hint


@pytest.mark.parametrize(
    ("given", "pause", "app"),
    [
        (("*=registry",), Route.REGISTRY, Route.REGISTRY),
        (("*=embedded", "k3s=registry"), Route.EMBEDDED, Route.EMBEDDED),
        (("docker.io/*=registry", "*=embedded"), Route.REGISTRY, Route.EMBEDDED),
    ],
    ids=["one-rule", "k3s-behind", "two-rules"],
)
def test_without_a_lock_routes_for_all_images_suffice(given: tuple[str, ...], pause: Route, app: Route) -> None:
    site = Site(mode=Mode.HYBRID, target=TARGET, rules=rules(*given))
    assert not site.needs_k3s_set
    router = Router(site, None)
    assert router.route(ref(PAUSE)) is pause
    assert router.route(ref("quay.io/team/app:1")) is app


@pytest.mark.parametrize(
    ("given", "idle"),
    [
        (("k3s=embedded", "quay.io/*=registry"), []),
        (("quay.io/tema/*=registry",), ["quay.io/tema/*=registry"]),
        (("*=registry", "quay.io/*=embedded"), ["quay.io/*=embedded"]),
        (("quay.io/*=registry", "quay.io/*=registry"), []),
        (("docker.io/rancher/*=registry", "k3s=embedded"), ["k3s=embedded"]),
    ],
)
def test_rules_that_decide_nothing_are_found(given: tuple[str, ...], idle: list[str]) -> None:
    router = Router(Site(mode=Mode.HYBRID, target=TARGET, rules=rules(*given)), lock())
    assert [str(rule) for rule in router.unmatched(map(ref, REASONS))] == idle


# --- site.json ----------------------------------------------------------------------------------------------------

PATTERNS = st.one_of(st.sampled_from(["k3s", "*", "quay.io/*", "a=b", "ä*"]), st.text(min_size=1, max_size=20))
RULES = st.lists(st.builds(RouteRule, PATTERNS, st.sampled_from(Route)), max_size=4).map(tuple)
TARGETS = st.sampled_from(["http://[::1]:5000/a/b", "harbor.example", "https://10.0.0.1:8443/k3s-1/x_y"])
VERSIONS = st.sampled_from(["v1.30.4+k3s1", "v1.33.0-rc1+k3s1", "v1.25.16+k3s4"])
SITES = st.builds(
    Site,
    mode=st.sampled_from(Mode),
    target=st.none() | TARGETS.map(Target.parse),
    keep_registry=st.booleans(),
    rules=RULES,
    wildcard=st.booleans(),
    default_endpoint=st.booleans(),
    running=st.none() | VERSIONS.map(K3sVersion.parse),
)


@given(SITES)
def test_every_site_without_a_contradiction_comes_back_from_its_file(site: Site) -> None:
    raw = site.to_bytes()
    assert first_problem("site", json.loads(raw)) is None
    if site.contradiction():
        with pytest.raises(BadSiteError, match="contradicts itself"):
            Site.parse(raw, "site.json")
    else:
        assert Site.parse(raw, "site.json") == site
        assert Site.parse(raw, "site.json").to_bytes() == raw


@pytest.mark.parametrize(
    ("site", "words"),
    [
        (Site(rules=rules("*=registry"), target=TARGET), "routes go with the mode hybrid, and the mode is registry"),
        (Site(mode=Mode.EMBEDDED, rules=rules("*=embedded")), "the mode is embedded"),
        (Site(mode=Mode.EMBEDDED, target=TARGET), "nothing is put into a registry, and a target is given"),
        (Site(mode=Mode.EMBEDDED, keep_registry=True), "keep-registry is about names at a target"),
        (Site(target=TARGET, wildcard=True, keep_registry=True), "a wildcard cannot put the name of a registry"),
    ],
)
def test_each_contradiction_has_its_words(site: Site, words: str) -> None:
    assert words in str(site.contradiction())
    with pytest.raises(BadSiteError, match=r"site\.json contradicts itself"):
        Site.parse(site.to_bytes(), "site.json")


@pytest.mark.parametrize(
    "site",
    [
        Site(),
        Site(target=TARGET, wildcard=True, default_endpoint=False),
        Site(mode=Mode.EMBEDDED, wildcard=True),
        Site(mode=Mode.HYBRID, target=TARGET, keep_registry=True, rules=rules("k3s=embedded", "*=registry")),
    ],
)
def test_what_goes_together_is_no_contradiction(site: Site) -> None:
    assert site.contradiction() is None


def changed(**fields: Any) -> bytes:
    document = json.loads(Site(mode=Mode.HYBRID, target=TARGET, rules=rules("k3s=registry")).to_bytes())
    return json.dumps({**document, **fields}).encode()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "BundleLock"}, "kind"),
        ({"mode": "peers"}, "mode"),
        ({"target": 5}, "target"),
        ({"target": "ftp://harbor.example"}, "target scheme"),
        ({"target": "https://user:hunter2@harbor.example"}, "holds no user name"),
        ({"keep_registry": "yes"}, "keep_registry"),
        ({"routes": [{"pattern": "", "route": "registry"}]}, "routes/0/pattern"),
        ({"routes": [{"pattern": "*", "route": "nowhere"}]}, "routes/0/route"),
        ({"routes": [{"pattern": "*"}]}, "routes/0"),
        ({"routes": [{"pattern": "*", "route": "registry", "to": "x"}]}, "routes/0"),
        ({"running": "1.32"}, "1.32"),
        ({"default_endpont": False}, "default_endpont"),
    ],
)
def test_what_is_not_in_the_schema_is_refused_with_its_place(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSiteError) as caught:
        Site.parse(changed(**fields), "here/site.json")
    assert "here/site.json is not a site.json" in caught.value.message
    assert words in caught.value.message
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    "key", ["apiVersion", "kind", "tool", "mode", "target", "keep_registry", "routes", "wildcard", "running"]
)
def test_every_field_must_be_there(key: str) -> None:
    document = json.loads(changed())
    del document[key]
    with pytest.raises(BadSiteError, match=f"{key}"):
        Site.parse(json.dumps(document).encode(), "site.json")


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"{", b"\xff\xfe", b'{"mode": 1, "mode": 2}', b"[" * 100_000])
def test_what_is_no_document_is_refused(raw: bytes) -> None:
    with pytest.raises(BadSiteError, match=r"site\.json"):
        Site.parse(raw, "site.json")


def test_a_site_of_another_version_is_refused_as_that() -> None:
    with pytest.raises(BundleFormatTooNewError, match="airgap-sync/v2"):
        Site.parse(changed(apiVersion="airgap-sync/v2"), "site.json")


def test_two_sites_that_differ_have_files_that_differ() -> None:
    site = Site(mode=Mode.HYBRID, target=TARGET)
    others = [
        replace(site, target=Target.parse("http://harbor.example/k3s")),
        replace(site, keep_registry=True),
        replace(site, wildcard=True),
        replace(site, default_endpoint=False),
        replace(site, running=K3sVersion.parse("v1.31.7+k3s1")),
        replace(site, rules=rules("k3s=registry")),
    ]
    assert len({found.to_bytes() for found in [site, *others]}) == len(others) + 1
