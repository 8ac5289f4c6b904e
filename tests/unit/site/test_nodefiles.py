"""registries.yaml and config.yaml of nodes: read back as K3s reads them, they lead to where `push` puts the images."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.k3s.endpoint import EndpointAuth, EndpointTls
from bundler.k3s.hosts import NodeSettings, render
from bundler.k3s.registries import Endpoint, RegistriesFile
from bundler.k3s.version import K3sVersion
from bundler.oci.digest import Digest
from bundler.oci.reference import Reference
from bundler.oci.target import Target
from bundler.registry.endpoint import Credential
from bundler.site.nodefiles import NodeAccess, config_yaml, registries_yaml
from bundler.site.routes import Mode, Route, Site

DIGEST = Digest.of(b"content")
MADE_BY = "Made by airgap-sync 0 from a bundle."
PAUSE = "docker.io/rancher/mirrored-pause:3.6"
APP = "quay.io/team/app:1.0"
PINNED = f"ghcr.io/team/sub.path/pinned@{DIGEST}"
PORT = "registry.other:5000/a/b:1"
SIX = "[fd00::1]:5000/a/b:1"
ALL = (PAUSE, APP, PINNED, PORT, SIX)
VERSIONS = [K3sVersion.parse(text) for text in ("v1.25.16+k3s4", "v1.28.5+k3s1", "v1.28.6+k3s2", "v1.32.3+k3s1")]


def ref(text: str) -> Reference:
    return Reference.parse(text)


def written(
    target: str | None,
    names: tuple[str, ...] = ALL,
    access: NodeAccess | None = None,
    embedded: tuple[str, ...] = (),
    **site: object,
) -> str:
    """Write the file of a site; the images of `embedded` are not put into its registry."""
    place = Site(target=Target.parse(target) if target else None, **site)  # type: ignore[arg-type]
    images = [(ref(name), Route.EMBEDDED if name in embedded or not target else Route.REGISTRY) for name in names]
    return registries_yaml(place, images, access or NodeAccess(), MADE_BY)


def parsed(text: str) -> RegistriesFile:
    """Read it as K3s does; nothing in it may look otherwise than it is."""
    file = RegistriesFile.parse(text, "registries.yaml")
    assert file.warnings == ()
    assert "\\" not in text
    assert text.startswith(f"# {MADE_BY}\n")
    return file


def listed(file: RegistriesFile, name: str, version: K3sVersion) -> list[Endpoint]:
    """Give the endpoints that a node asks before the default one."""
    found = render(file, NodeSettings(version)).endpoints_for(ref(name).registry)
    return [endpoint for endpoint in found if not endpoint.is_default]


def assert_leads(text: str, target: str, names: tuple[str, ...] = ALL, *, keep_registry: bool = False) -> None:
    """Check, for every K3s version, that the first place where a node looks is where `push` puts each image."""
    place, file = Target.parse(target), parsed(text)
    for version in VERSIONS:
        for name in names:
            first = listed(file, name, version)[0]
            assert first.base_url == f"{place.url}/v2"
            assert not first.override_path
            expected = place.repository_for(ref(name), keep_registry=keep_registry)
            assert first.repository(ref(name).repository) == expected


# --- where it leads -----------------------------------------------------------------------------------------------

TARGETS = [
    "https://harbor.example",
    "https://harbor.example/k3s",
    "https://harbor.example:8443/k3s/mirror",
    "http://10.0.0.7:5000",
    "http://10.0.0.7:5000/a_b/c-d.e",
    "https://[fd00::9]:5000/k3s",
    "http://[::1]:5000/k3s",
    "localhost:5000",
    "https://localhost:5000/k3s",
]


@pytest.mark.parametrize("keep_registry", [False, True], ids=["short-names", "keep-registry"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_image_is_looked_for_where_it_was_put(target: str, keep_registry: bool) -> None:
    assert_leads(written(target, keep_registry=keep_registry), target, keep_registry=keep_registry)


PATHS = st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,5}){0,3}", fullmatch=True)
HOSTS = st.sampled_from(
    ["docker.io", "quay.io", "localhost:5000", "[fd00::1]:5000", "harbor.example", "h.example:8443"]
)


@given(
    st.sampled_from(["https://harbor.example", "http://harbor.example", "https://h.example:8443", "http://[::1]:80"]),
    st.just("") | PATHS,
    st.lists(st.tuples(HOSTS, PATHS), min_size=1, max_size=6),
    st.booleans(),
)
def test_it_does_so_for_all_names_there_are(
    origin: str, prefix: str, names: list[tuple[str, str]], keep_registry: bool
) -> None:
    """Also for names of the target itself, of which only those of the bundle are changed."""
    target = f"{origin}/{prefix}".rstrip("/")
    host = Target.parse(target).host
    images = tuple(f"{registry}/library/{path}:1" for registry, path in names)
    text = written(target, images, keep_registry=keep_registry)
    others = tuple(name for name in images if ref(name).registry != host)
    assert_leads(text, target, others, keep_registry=keep_registry)
    file = parsed(text)
    for name in set(images) - set(others):
        endpoints = render(file, NodeSettings(VERSIONS[-1])).endpoints_for(host)
        assert endpoints[0].host.removesuffix(":443") == host.removesuffix(":443")
        expected = Target.parse(target).repository_for(ref(name), keep_registry=keep_registry)
        assert endpoints[0].repository(ref(name).repository) == expected
        assert endpoints[0].repository("some/thing-else") == "some/thing-else"


def test_without_a_prefix_there_is_no_rewrite() -> None:
    file = parsed(written("https://harbor.example"))
    assert {name for name, mirror in file.mirrors.items() if mirror.rewrites} == set()
    assert set(file.mirrors) == {"docker.io", "quay.io", "ghcr.io", "registry.other:5000", "[fd00::1]:5000"}


def test_a_prefix_is_one_rule_for_the_whole_path() -> None:
    text = written("https://harbor.example/k3s")
    rules = {(rule.pattern, rule.replacement) for mirror in parsed(text).mirrors.values() for rule in mirror.rewrites}
    assert rules == {("^(.*)$", "k3s/$1")}
    assert {len(mirror.rewrites) for mirror in parsed(text).mirrors.values()} == {1}


def test_with_the_registry_in_the_names_each_mirror_has_its_own_rule() -> None:
    file = parsed(written("https://harbor.example/k3s", keep_registry=True))
    rules = {name: mirror.rewrites[0].replacement for name, mirror in file.mirrors.items()}
    assert rules == {
        "docker.io": "k3s/docker.io/$1",
        "quay.io": "k3s/quay.io/$1",
        "ghcr.io": "k3s/ghcr.io/$1",
        "registry.other:5000": "k3s/registry.other-5000/$1",
        "[fd00::1]:5000": "k3s/fd00--1-5000/$1",
    }


def test_a_wildcard_is_for_registries_that_the_bundle_has_nothing_of() -> None:
    file = parsed(written("https://harbor.example/k3s", (PAUSE,), wildcard=True))
    assert set(file.mirrors) == {"docker.io", "harbor.example", "*"}
    endpoints = render(file, NodeSettings(VERSIONS[-1])).endpoints_for("gcr.io")
    assert [(found.base_url, found.is_default) for found in endpoints] == [
        ("https://harbor.example/v2", False),
        ("https://gcr.io/v2", True),
    ]
    assert endpoints[0].repository("a/b") == "k3s/a/b"
    # Without quotes it would be an alias, and no YAML.
    assert "\n  '*':\n" in written("https://harbor.example/k3s", wildcard=True)


# Before v1.28.8 a registry that lists just itself has no file, so "*" is for it as well.
@pytest.mark.parametrize("version", [K3sVersion.parse("v1.28.8+k3s1"), VERSIONS[-1]], ids=str)
@pytest.mark.parametrize(
    ("target", "endpoint"),
    [
        ("http://reg.example:5000/k3s", "http://reg.example:5000/v2"),
        ("https://reg.example:5000/k3s", "https://reg.example:5000/v2"),
        ("https://reg.example/k3s", "https://reg.example:443/v2"),
    ],
    ids=["http", "port", "https"],
)
@pytest.mark.parametrize("default_endpoint", [True, False], ids=["default", "no-default"])
def test_a_wildcard_is_not_for_the_target_itself(
    target: str, endpoint: str, version: K3sVersion, default_endpoint: bool
) -> None:
    host = Target.parse(target).host
    file = parsed(written(target, (PAUSE,), wildcard=True, default_endpoint=default_endpoint))
    found = render(file, NodeSettings(version, default_endpoint=default_endpoint)).endpoints_for(host)
    # What the site has there under its own names.
    assert found[0].base_url == endpoint
    assert {asked.repository("team/app") for asked in found} == {"team/app"}


def test_a_wildcard_and_images_named_after_the_target() -> None:
    own = "reg.example:5000/team/app:1"
    file = parsed(written("http://reg.example:5000/k3s", (PAUSE, own), wildcard=True))
    first = listed(file, own, VERSIONS[-1])[0]
    assert first.repository("team/app") == "k3s/team/app"
    assert first.repository("team/other") == "team/other"


def test_a_wildcard_without_a_prefix_needs_no_entry_for_the_target() -> None:
    file = parsed(written("https://harbor.example", (PAUSE,), wildcard=True))
    assert set(file.mirrors) == {"docker.io", "*"}
    found = render(file, NodeSettings(VERSIONS[-1])).endpoints_for("harbor.example")
    assert [(asked.base_url, asked.repository("team/app")) for asked in found] == [
        ("https://harbor.example/v2", "team/app")
    ]


# --- a target that images are named after ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "endpoint"),
    [
        ("https://harbor.example/k3s", "https://harbor.example:443/v2"),
        ("https://harbor.example:8443/k3s", "https://harbor.example:8443/v2"),
        ("https://[fd00::9]/k3s", "https://[fd00::9]:443/v2"),
        ("http://harbor.example:5000/k3s", "http://harbor.example:5000/v2"),
        ("http://harbor.example/k3s", "http://harbor.example/v2"),
        ("http://127.0.0.1:5000/k3s", "http://127.0.0.1:5000/v2"),
        ("https://localhost:5000/k3s", "https://localhost:5000/v2"),
    ],
)
def test_names_of_the_target_itself_are_rewritten_one_by_one(target: str, endpoint: str) -> None:
    host = Target.parse(target).host
    names = (PAUSE, f"{host}/team/a.b:1", f"{host}/team/a.b:2", f"{host}/team/c@{DIGEST}")
    file = parsed(written(target, names))
    (rule,) = file.mirrors[host].rewrites
    assert rule.pattern == "^(team/a[.]b|team/c)$"
    for version in VERSIONS[1:]:
        first = listed(file, names[1], version)[0]
        assert first.base_url == endpoint, version
        assert first.repository("team/a.b") == "k3s/team/a.b"
        assert first.repository("team/axb") == "team/axb"
        assert first.repository("k3s/team/a.b") == "k3s/team/a.b"


def test_without_a_prefix_the_target_is_asked_as_it_is() -> None:
    file = parsed(written("https://harbor.example", (PAUSE, "harbor.example/team/a:1")))
    assert file.mirrors["harbor.example"].addresses == ()
    (only,) = render(file, NodeSettings(VERSIONS[-1])).endpoints_for("harbor.example")
    assert (only.base_url, only.is_default) == ("https://harbor.example/v2", True)


@pytest.mark.parametrize("version", VERSIONS[2:], ids=str)
@pytest.mark.parametrize("target", ["https://harbor.example", "http://harbor.example:5000"], ids=["https", "http"])
def test_without_a_default_endpoint_the_target_lists_itself(target: str, version: K3sVersion) -> None:
    host = Target.parse(target).host
    file = parsed(written(target, (PAUSE, f"{host}/team/a:1"), default_endpoint=False))
    assert [address.base_url for address in file.mirrors[host].addresses] == [f"{target}/v2"]
    found = render(file, NodeSettings(version, default_endpoint=False)).endpoints_for(host)
    assert [asked.base_url for asked in found] == [f"{target}/v2"]
    assert found[0].repository("team/a") == "team/a"


def test_a_target_of_plain_http_is_not_asked_over_https() -> None:
    file = parsed(written("http://harbor.example:5000", (PAUSE, "harbor.example:5000/team/a:1")))
    assert listed(file, "harbor.example:5000/team/a:1", VERSIONS[-1])[0].base_url == "http://harbor.example:5000/v2"


def test_a_written_out_port_443_is_another_host_for_settings_too() -> None:
    access = NodeAccess(ca_file="/etc/rancher/k3s/ca.pem", credential=Credential("robot", "secret"))
    text = written("https://harbor.example/k3s", (PAUSE, "harbor.example/team/a:1"), access)
    for name in (PAUSE, "harbor.example/team/a:1"):
        first = listed(parsed(text), name, VERSIONS[-1])[0]
        assert first.tls == EndpointTls(ca_file="/etc/rancher/k3s/ca.pem")
        assert first.auth == EndpointAuth("robot", "secret")


# --- embedded and hybrid ------------------------------------------------------------------------------------------


def test_the_mode_embedded_only_enrols_registries() -> None:
    text = written(None, mode=Mode.EMBEDDED)
    file = parsed(text)
    assert set(file.mirrors) == {ref(name).registry for name in ALL}
    assert {mirror.addresses for mirror in file.mirrors.values()} == {()}
    assert file.configs == {}
    assert "credentials" not in text
    (embedded, default) = render(file, NodeSettings(VERSIONS[-1], embedded=True)).endpoints_for("quay.io")
    assert (embedded.is_embedded, default.is_default) == (True, True)


def test_in_hybrid_mode_a_registry_with_nothing_at_the_target_has_no_endpoint_there() -> None:
    other = "quay.io/team/pushed:1"
    file = parsed(written("harbor.example/k3s", (*ALL, other), embedded=(APP, PINNED), mode=Mode.HYBRID))
    assert {name for name, mirror in file.mirrors.items() if mirror.addresses} == {
        "docker.io",
        "quay.io",
        "registry.other:5000",
        "[fd00::1]:5000",
    }
    assert file.mirrors["ghcr.io"].addresses == ()
    places = [
        found.base_url for found in render(file, NodeSettings(VERSIONS[-1], embedded=True)).endpoints_for("quay.io")
    ]
    assert places == ["https://127.0.0.1:6443/v2", "https://harbor.example/v2", "https://quay.io/v2"]


# --- access -------------------------------------------------------------------------------------------------------


def test_certificates_are_named_by_their_place_on_nodes() -> None:
    access = NodeAccess(ca_file="/k/ca.pem", cert_file="/k/client.pem", key_file="/k/client.key", skip_verify=False)
    file = parsed(written("https://harbor.example:8443/k3s", access=access))
    assert set(file.configs) == {"harbor.example:8443"}
    assert file.configs["harbor.example:8443"].tls == EndpointTls("/k/ca.pem", "/k/client.pem", "/k/client.key")


def test_not_to_verify_is_written_as_a_boolean() -> None:
    text = written("https://harbor.example", access=NodeAccess(skip_verify=True))
    file = RegistriesFile.parse(text, "registries.yaml")
    assert file.configs["harbor.example"].tls == EndpointTls(insecure_skip_verify=True)
    assert [warning.partition(": ")[2] for warning in file.warnings] == ["the certificate of this host is not verified"]


def test_a_target_of_plain_http_gets_no_tls_settings() -> None:
    access = NodeAccess(ca_file="/k/ca.pem", credential=Credential("robot", "secret"))
    file = parsed(written("http://harbor.example", access=access))
    assert file.configs["harbor.example"].tls is None
    assert file.configs["harbor.example"].auth == EndpointAuth("robot", "secret")


PASSWORDS = [
    *("0123", "on", "null", "~", "1e3", "12:30", "0x1f", "2024-01-31", "=", "<<", "*", "&a", "!x", "%", "@", "`"),
    *('quo"te', "apo'strophe", "$1 ${2} $(x)", "back\\slash", " spaces ", "#comment", "a: b", "- a", "{}", "[", "ü€😀"),
    *("\ttab", "tab\t", "next\u0085line", "\u2028", "\ufeff", "x" * 4000),
]


@pytest.mark.parametrize("password", PASSWORDS, ids=ascii)
def test_every_password_comes_back_as_it_was(password: str) -> None:
    access = NodeAccess(credential=Credential("robot$k3s", password))
    text = written("https://harbor.example", access=access)
    file = RegistriesFile.parse(text, "registries.yaml")
    assert file.warnings == ()
    assert file.configs["harbor.example"].auth == EndpointAuth("robot$k3s", password)
    assert "without credentials" not in text


@given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
def test_so_does_any_other_pair(username: str, password: str) -> None:
    access = NodeAccess(credential=Credential(username, password))
    text = written("https://harbor.example", access=access)
    assert RegistriesFile.parse(text, "r").configs["harbor.example"].auth == EndpointAuth(username, password)


def test_an_identity_token_is_written_as_that() -> None:
    access = NodeAccess(credential=Credential("", "", identity_token="0123.tok-en"))  # noqa: S106 - of nothing real
    file = parsed(written("https://harbor.example", access=access))
    assert file.configs["harbor.example"].auth == EndpointAuth(identity_token="0123.tok-en")  # noqa: S106


def test_without_credentials_the_file_says_where_they_would_go() -> None:
    text = written("https://harbor.example:8443/k3s")
    assert parsed(text).configs == {}
    comment = [line for line in text.splitlines() if line.startswith("# ")]
    assert "# configs:" in comment
    assert any("--with-credentials" in line for line in comment)
    # What the comment shows works when it is uncommented, or put in the place of `configs`.
    head, _, tail = text.partition("# configs:\n")
    shown = ["configs:", *(line.removeprefix("# ") for line in tail.splitlines())]
    file = RegistriesFile.parse(head + "\n".join(shown), "r")
    assert file.warnings == ()
    assert file.configs["harbor.example:8443"].auth == EndpointAuth("NAME", "PASSWORD")


def test_no_repr_shows_a_password() -> None:
    assert "hunter2" not in repr(NodeAccess(credential=Credential("robot", "hunter2")))


def test_the_order_of_images_is_nothing_to_the_file() -> None:
    assert written("harbor.example/k3s", ALL) == written("harbor.example/k3s", ALL[::-1])


# --- K3s's own configuration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "server", "agent"),
    [
        (Site(), {}, {}),
        (Site(mode=Mode.EMBEDDED), {"embedded-registry": True}, {}),
        (Site(mode=Mode.HYBRID), {"embedded-registry": True}, {}),
        (
            Site(default_endpoint=False),
            {"disable-default-registry-endpoint": True},
            {"disable-default-registry-endpoint": True},
        ),
        (
            Site(mode=Mode.HYBRID, default_endpoint=False),
            {"embedded-registry": True, "disable-default-registry-endpoint": True},
            {"disable-default-registry-endpoint": True},
        ),
    ],
    ids=["registry", "embedded", "hybrid", "no-default", "hybrid-no-default"],
)
def test_servers_turn_the_embedded_registry_on_and_each_node_its_default_endpoint_off(
    site: Site, server: dict[str, bool], agent: dict[str, bool]
) -> None:
    assert config_yaml(site, server=True) == server
    assert config_yaml(site, server=False) == agent
