"""registries.yaml: endpoints, their order, and what K3s drops without a word."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.errors import BadRegistriesFileError
from bundler.k3s.endpoint import Address
from bundler.k3s.hosts import THIS_COMPUTER, render
from bundler.k3s.registries import Endpoint, EndpointAuth, EndpointTls, RegistriesFile

HUB = "https://registry-1.docker.io/v2"


def parse(text: str) -> RegistriesFile:
    return RegistriesFile.parse(text, "r.yaml")


def endpoints_of(file: RegistriesFile, registry: str) -> list[Endpoint]:
    return render(file, THIS_COMPUTER).endpoints_for(registry)


def endpoints(text: str, registry: str = "docker.io") -> list[Endpoint]:
    return endpoints_of(parse(text), registry)


def urls(text: str, registry: str = "docker.io") -> list[str]:
    return [endpoint.base_url for endpoint in endpoints(text, registry)]


def refused(text: str) -> BadRegistriesFileError:
    with pytest.raises(BadRegistriesFileError) as caught:
        parse(text)
    return caught.value


@pytest.mark.parametrize(
    ("text", "base_url", "host"),
    [
        ("https://harbor.example", "https://harbor.example/v2", "harbor.example"),
        ("https://harbor.example/", "https://harbor.example/v2", "harbor.example"),
        ("https://harbor.example/v2", "https://harbor.example/v2", "harbor.example"),
        ("https://harbor.example/v2/", "https://harbor.example/v2", "harbor.example"),
        ("https://harbor.example/v2/proj", "https://harbor.example/v2/proj", "harbor.example"),
        ("https://harbor.example/v2/proj/", "https://harbor.example/v2/proj", "harbor.example"),
        ("https://harbor.example/proj", "https://harbor.example/proj", "harbor.example"),
        ("http://harbor.example:8080", "http://harbor.example:8080/v2", "harbor.example:8080"),
        ("harbor.example", "https://harbor.example/v2", "harbor.example"),
        ("harbor.example:80", "https://harbor.example:80/v2", "harbor.example:80"),
        ("harbor.example:5000/v2/proj", "https://harbor.example:5000/v2/proj", "harbor.example:5000"),
        ("https://harbor.example:443", "https://harbor.example:443/v2", "harbor.example:443"),
        ("localhost", "https://localhost/v2", "localhost"),
        ("localhost:443", "https://localhost:443/v2", "localhost:443"),
        ("localhost:5000", "http://localhost:5000/v2", "localhost:5000"),
        ("https://localhost:5000", "https://localhost:5000/v2", "localhost:5000"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000/v2", "127.0.0.1:5000"),
        ("127.1.2.3:80", "http://127.1.2.3:80/v2", "127.1.2.3:80"),
        ("[::1]:5000", "http://[::1]:5000/v2", "[::1]:5000"),
        ("[fd00::1]:5000", "https://[fd00::1]:5000/v2", "[fd00::1]:5000"),
        ("docker.io", HUB, "registry-1.docker.io"),
        ("https://docker.io", HUB, "registry-1.docker.io"),
        ("https://registry-1.docker.io", HUB, "registry-1.docker.io"),
        ("https://index.docker.io", "https://index.docker.io/v2", "index.docker.io"),
    ],
)
def test_addresses(text: str, base_url: str, host: str) -> None:
    assert Address.parse(text) == Address(base_url, host)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://",
        "https:///v2",
        "ftp://harbor.example",
        "unix:///run/x",
        "https://user:hunter2@harbor.example",
        "https://harbor.example?token=hunter2",
        "https://harbor.example/v2#hunter2",
        "https://harbor.example:http",
        "https://harbor.example:99999",
        "https://har bor.example",
        "https://[::1",
        "//",
    ],
)
def test_bad_endpoints_are_refused_with_their_line_and_unquoted(text: str) -> None:
    error = refused(f"mirrors:\n  docker.io:\n    endpoint:\n    - https://one\n    - '{text}'\n")
    assert error.message.startswith("r.yaml:5:7: a bad endpoint: ")
    assert "hunter2" not in error.message


@pytest.mark.parametrize("text", ["", "# nothing", "mirrors:", "mirrors:\nconfigs:\n", "mirrors: {}", "~"])
def test_an_empty_file_is_no_file(text: str) -> None:
    for file in (parse(text), RegistriesFile.empty()):
        assert file.warnings == ()
        assert endpoints_of(file, "docker.io") == [Endpoint(HUB, "registry-1.docker.io", is_default=True)]


@pytest.mark.parametrize(
    ("registry", "base_url"),
    [
        ("ghcr.io", "https://ghcr.io/v2"),
        ("registry.example:5000", "https://registry.example:5000/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("localhost", "https://localhost/v2"),
    ],
)
def test_default_endpoints(registry: str, base_url: str) -> None:
    (endpoint,) = endpoints_of(RegistriesFile.empty(), registry)
    assert endpoint == Endpoint(base_url, registry, is_default=True)


def test_listed_endpoints_come_in_order_and_the_default_last() -> None:
    text = """
mirrors:
  docker.io:
    endpoint: [https://one, "http://two:5000", three/v2/proj]
    rewrite: {"^(.*)$": "p/$1"}
"""
    listed = endpoints(text)
    assert [e.base_url for e in listed] == ["https://one/v2", "http://two:5000/v2", "https://three/v2/proj", HUB]
    assert [e.is_default for e in listed] == [False, False, False, True]
    assert [e.ns for e in listed] == ["docker.io", "docker.io", "docker.io", None]
    assert [e.repository("library/nginx") for e in listed] == ["p/library/nginx"] * 3 + ["library/nginx"]
    assert listed[0].rewrites[0].pattern == "^(.*)$"
    assert urls(text, "ghcr.io") == ["https://ghcr.io/v2"]


def test_duplicates_are_dropped_with_a_warning() -> None:
    text = "mirrors:\n  docker.io:\n    endpoint:\n    - https://one\n    - two\n    - https://one/v2/\n"
    assert urls(text) == ["https://one/v2", "https://two/v2", HUB]
    assert parse(text).warnings == ("r.yaml:6: https://one/v2 is listed twice; the second is dropped",)


def test_the_default_listed_last_loses_its_rewrites() -> None:
    text = "mirrors: {r.example: {endpoint: [one, 'https://r.example'], rewrite: {'^': p/}}}"
    assert [(e.base_url, e.repository("a")) for e in endpoints(text, "r.example")] == [
        ("https://one/v2", "p/a"),
        ("https://r.example/v2", "a"),
    ]
    first = "mirrors: {r.example: {endpoint: ['https://r.example', one], rewrite: {'^': p/}}}"
    assert [(e.base_url, e.repository("a"), e.ns) for e in endpoints(first, "r.example")] == [
        ("https://r.example/v2", "p/a", None),
        ("https://one/v2", "p/a", "r.example"),
        ("https://r.example/v2", "a", None),
    ]


def test_a_port_makes_an_endpoint_of_its_own() -> None:
    text = "mirrors: {r.example: {endpoint: ['https://r.example:443'], rewrite: {'^': p/}}}"
    assert [(e.base_url, e.repository("a"), e.ns) for e in endpoints(text, "r.example")] == [
        ("https://r.example:443/v2", "p/a", "r.example"),
        ("https://r.example/v2", "a", None),
    ]


def test_plain_http_before_the_default() -> None:
    text = "mirrors: {'r.example:5000': {endpoint: ['http://r.example:5000']}}"
    assert urls(text, "r.example:5000") == ["http://r.example:5000/v2", "https://r.example:5000/v2"]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        # With nothing of its own, or nothing that K3s writes a file for, a registry takes the wildcard.
        ("", ["https://any/v2", "https://ghcr.io/v2"]),
        ("  ghcr.io:\n", ["https://any/v2", "https://ghcr.io/v2"]),
        ("  ghcr.io: {endpoint: []}\n", ["https://any/v2", "https://ghcr.io/v2"]),
        ("  ghcr.io: {rewrite: {a: b}}\n", ["https://any/v2", "https://ghcr.io/v2"]),
        ("  ghcr.io: {endpoint: [ghcr.io]}\n", ["https://any/v2", "https://ghcr.io/v2"]),
        ("configs: {ghcr.io: }\n", ["https://any/v2", "https://ghcr.io/v2"]),
        # With something of its own it does not.
        ("  ghcr.io: {endpoint: [own]}\n", ["https://own/v2", "https://ghcr.io/v2"]),
        ("  ghcr.io: {endpoint: [ghcr.io, own]}\n", ["https://ghcr.io/v2", "https://own/v2", "https://ghcr.io/v2"]),
        ("  ghcr.io: {endpoint: [ghcr.io], rewrite: {a: b}}\n", ["https://ghcr.io/v2"]),
        ("configs: {ghcr.io: {tls: {insecure_skip_verify: true}}}\n", ["https://ghcr.io/v2"]),
        ("configs: {ghcr.io: {tls: {}}}\n", ["https://ghcr.io/v2"]),
        ("configs: {ghcr.io: {auth: {username: u}}}\n", ["https://ghcr.io/v2"]),
        ("configs: {any: {auth: {username: u}}}\n", ["https://any/v2", "https://ghcr.io/v2"]),
    ],
)
def test_wildcard_mirror(entries: str, expected: list[str]) -> None:
    text = 'mirrors:\n  "*": {endpoint: [any]}\n' + entries
    assert urls(text, "ghcr.io") == expected


def test_wildcard_mirror_names_the_real_registry() -> None:
    listed = endpoints('mirrors: {"*": {endpoint: [any], rewrite: {"^": p/}}}', "ghcr.io")
    assert [(e.ns, e.repository("a")) for e in listed] == [("ghcr.io", "p/a"), (None, "a")]
    # An image of the mirror itself: with a rewrite K3s keeps the endpoint, without one it would ask twice.
    assert len(endpoints('mirrors: {"*": {endpoint: [any], rewrite: {"^": p/}}}', "any")) == 2
    assert len(endpoints('mirrors: {"*": {endpoint: [any]}}', "any")) == 1


CONFIGS = """
mirrors:
  docker.io: {endpoint: [harbor.example, "harbor.example:8443", other.example]}
configs:
  harbor.example:
    auth: {username: robot$k3s, password: 0123}
    tls: {ca_file: /etc/ca.pem, cert_file: /etc/c.pem, key_file: /etc/k.pem}
  harbor.example:8443:
    auth: {auth: dXNlcjpwYTpzcw==}
    tls: {insecure_skip_verify: true}
"""


def test_configs_are_found_by_host_and_port() -> None:
    first, second, third, default = endpoints(CONFIGS)
    assert first.auth == EndpointAuth("robot$k3s", "0123")
    assert first.tls == EndpointTls("/etc/ca.pem", "/etc/c.pem", "/etc/k.pem")
    assert second.auth == EndpointAuth("user", "pa:ss")
    assert second.tls == EndpointTls(insecure_skip_verify=True)
    assert (third.auth, third.tls, default.auth, default.tls) == (None, None, None, None)


@pytest.mark.parametrize(
    ("configs", "user"),
    [
        ("docker.io: {auth: {username: a}}", "a"),
        ("registry-1.docker.io: {auth: {username: b}}", "b"),
        ("registry-1.docker.io: {auth: {username: b}}, docker.io: {auth: {username: a}}", "a"),
        ("index.docker.io: {auth: {username: c}}", None),
        ("docker.io: , registry-1.docker.io: {auth: {username: b}}", None),
    ],
)
def test_docker_hub_has_two_keys(configs: str, user: str | None) -> None:
    (default,) = endpoints(f"configs: {{{configs}}}")
    assert default.base_url == HUB
    assert (default.auth.username if default.auth else None) == user


def test_docker_hub_as_listed_endpoint() -> None:
    text = "mirrors: {ghcr.io: {endpoint: [docker.io]}}\nconfigs: {docker.io: {auth: {username: a}}}"
    hub, default = endpoints(text, "ghcr.io")
    assert (hub.base_url, hub.host, hub.ns) == (HUB, "registry-1.docker.io", "ghcr.io")
    assert hub.auth == EndpointAuth("a")
    assert default.auth is None


def test_wildcard_config() -> None:
    text = """
mirrors:
  "*": {endpoint: [any]}
configs:
  ghcr.io:
  "*":
    auth: {username: u, password: p}
    tls: {insecure_skip_verify: true}
"""
    listed, default = endpoints(text, "quay.io")
    assert listed.auth == EndpointAuth("u", "p")
    assert listed.tls == default.tls == EndpointTls(insecure_skip_verify=True)
    # Credentials go to no host that the file does not name.
    assert default.auth is None
    _listed, default = endpoints(text, "ghcr.io")
    assert default.tls is None
    first, second = parse(text).warnings
    assert first.startswith("r.yaml:7: K3s sends these credentials nowhere")
    assert second == "r.yaml:8: the certificate of this host is not verified"


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        ("", None),
        ("{}", None),
        ("{username: u, password: p, auth: eDp5, identity_token: t}", EndpointAuth("u", "p")),
        ("{auth: eDp5, identity_token: t}", EndpointAuth(identity_token="t")),  # noqa: S106
        ("{auth: eDp5}", EndpointAuth("x", "y")),
        ("{auth: " + base64.b64encode(b"x:y\0\0").decode() + "}", EndpointAuth("x", "y")),
        ("{username: on, password: 1.10}", EndpointAuth("on", "1.10")),
        ("{username: 007, password: ~}", EndpointAuth("007", "")),
        ("{username: , password: , auth: , identity_token: }", None),
    ],
)
def test_auth(auth: str, expected: EndpointAuth | None) -> None:
    file = parse(f"configs: {{r.example: {{auth: {auth}}}}}")
    assert endpoints_of(file, "r.example")[0].auth == expected
    assert file.warnings == ()


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("- a", "1:1", "the document must be a mapping"),
        ("mirrors: [a]", "1:10", "mirrors must be a mapping"),
        ("mirrors:\n  docker.io: https://one", "2:14", "mirrors.docker.io must be a mapping"),
        ("mirrors:\n  docker.io: [https://one]", "2:14", "must be a mapping"),
        ("mirrors:\n  docker.io:\n    endpoint: https://one", "3:15", "endpoint must be a list"),
        ("mirrors:\n  docker.io:\n    endpoint:\n    -", "4:6", "bad endpoint"),
        ("mirrors:\n  docker.io:\n    endpoint: [{a: b}]", "3:16", "must be text, not a mapping"),
        ("mirrors:\n  docker.io:\n    rewrite: [a]", "3:14", "rewrite must be a mapping"),
        ("mirrors:\n  docker.io:\n    rewrite: {a: [b]}", "3:18", "must be text, not a list"),
        ("mirrors:\n  docker.io:\n    rewrite: {'(?=a)': b}", "3:24", "is not a Go regular expression"),
        ("mirrors:\n  docker.io:\n    rewrite: {'(a)\\1': b}", "3:24", "is not a Go regular expression"),
        ("configs:\n  r: {auth: hunter2}", "2:13", "auth must be a mapping"),
        ("configs:\n  r: {auth: {password: [hunter2]}}", "2:24", "must be text"),
        ("configs:\n  r: {auth: {auth: hunter2}}", "2:20", "not base64"),
        ("configs:\n  r: {auth: {auth: aHVudGVyMg==}}", "2:20", "not base64 of USER:PASSWORD"),
        ("configs:\n  r: {tls: {insecure_skip_verify: 'true'}}", "2:35", "must be true or false"),
        ("configs:\n  r: {tls: {cert_file: /a}}", "2:12", "cert_file and key_file go together"),
        ("configs:\n  r: {tls: {key_file: /a}}", "2:12", "cert_file and key_file go together"),
        ("mirrors:\nmirrors:\n", "2:1", "same key"),
    ],
)
def test_wrong_types_are_refused_with_their_place(text: str, where: str, what: str) -> None:
    error = refused(text)
    assert error.message.startswith(f"r.yaml:{where}: ")
    assert what in error.message
    assert "hunter2" not in f"{error.message} {error.hint} {error.context}"


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("mirror: {}", "r.yaml:1: K3s ignores the key 'mirror' without a word. Did you mean mirrors?"),
        ("xyz: 1", "r.yaml:1: K3s ignores the key 'xyz' without a word."),
        ("auths: {}", "r.yaml:1: K3s ignores the key 'auths' without a word. It was dropped long ago"),
        (
            "mirrors:\n  docker.io:\n    endpoints: [a]\n",
            "r.yaml:3: K3s ignores the key 'endpoints' without a word. Did you mean endpoint?",
        ),
        ("mirrors:\n  docker.io:\n    rewrites: {a: b}\n", "r.yaml:3: K3s ignores the key 'rewrites'"),
        ("configs:\n  r:\n    auth:\n      user: u\n", "r.yaml:4: K3s ignores the key 'user' without a word. Did"),
        ("configs:\n  r:\n    auth: {token: t}\n", "r.yaml:3: K3s ignores the key 'token' without a word. K3s's doc"),
        ("configs:\n  r:\n    tls: {ca: t}\n", "r.yaml:3: K3s ignores the key 'ca' without a word."),
        ("configs:\n  r:\n    auth: {password: hunter2}\n", "r.yaml:3: a password without username is not used"),
        ("configs:\n  https://r: {}\n", "r.yaml:2: 'https://r' is never used: a key of configs is HOST[:PORT]"),
        ("mirrors:\n  https://r: {}\n", "r.yaml:2: 'https://r' is never used: a key of mirrors is"),
        ("mirrors:\n  index.docker.io:\n", "r.yaml:2: K3s never looks here for images of Docker Hub: write docker.io"),
        (
            "mirrors:\n  docker.io:\n    endpoint: [https://h/proj]\n",
            "r.yaml:3: K3s adds no /v2 to an endpoint with a path: for images below proj write https://h/v2/proj",
        ),
        (
            "mirrors:\n  docker.io:\n    endpoint:\n    - http://h:80\nconfigs:\n  h:80: {tls: {ca_file: /a}}\n",
            "r.yaml:4: the endpoint is plain http, so configs.h:80.tls is not used",
        ),
        (
            "mirrors:\n  docker.io:\n    rewrite:\n      '\\d': x\n",
            "r.yaml:4: K3s cannot carry a backslash",
        ),
    ],
)
def test_warnings(text: str, warning: str) -> None:
    (only,) = parse(text).warnings
    assert only.startswith(warning)
    assert "hunter2" not in only


def test_a_path_that_holds_the_api_root_elsewhere_is_no_mistake() -> None:
    assert parse("mirrors: {docker.io: {endpoint: ['https://h/api/docker/v2']}}").warnings == ()


def test_no_secret_in_repr() -> None:
    file = parse(CONFIGS + "  token.example: {auth: {identity_token: hunter2}}\n")
    shown = repr(file) + repr(endpoints_of(file, "docker.io")) + repr(endpoints_of(file, "token.example"))
    assert "robot$k3s" in shown
    for secret in ("0123", "pa:ss", "dXNlcjpwYTpzcw", "hunter2"):
        assert secret not in shown


def test_the_first_rewrite_that_changes_the_name_wins() -> None:
    text = """
mirrors:
  docker.io:
    endpoint: [h]
    rewrite:
      "^nothing/(.*)$": "a/$1"
      "^rancher/(.*)$": "rancher/$1"
      "^rancher/mirrored-(.*)$": "b/$1"
      "^rancher/(.*)x$": "c/$1"
      "^gone/.*$":
"""
    endpoint = endpoints(text)[0]
    assert endpoint.repository("rancher/mirrored-pause") == "b/pause"
    assert endpoint.repository("rancher/mirrored-x") == "b/x"
    assert endpoint.repository("rancher/box") == "c/bo"
    assert endpoint.repository("library/nginx") == "library/nginx"
    with pytest.raises(BadRegistriesFileError, match="which is not a repository"):
        endpoint.repository("gone/x")


SEGMENT = st.from_regex(r"[a-z0-9]{1,8}(?:[._-][a-z0-9]{1,8}){0,2}", fullmatch=True)
REPOSITORIES = st.lists(SEGMENT, min_size=1, max_size=3).map("/".join)


@given(REPOSITORIES, SEGMENT)
def test_an_anchored_rewrite_is_a_prefix(name: str, project: str) -> None:
    text = f'mirrors: {{docker.io: {{endpoint: [h], rewrite: {{"^(.*)$": "{project}/$1"}}}}}}'
    first, default = endpoints(text)
    assert first.repository(name) == f"{project}/{name}"
    assert default.repository(name) == name
