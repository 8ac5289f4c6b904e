"""TLS, proxies and reachability with real sockets: how trust is given, and what is said where there is none."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.bundles import Bundle, bundle
from tests.support.certificates import Authority, Certificate
from tests.support.command import Result, run
from tests.support.content import BlobStore, BuiltImage
from tests.support.faulty import FaultyRegistry, Redirect
from tests.support.guarded import GuardedRegistry, RememberingTokens, basic
from tests.support.handmade import built, complete, write_bundle, writes
from tests.support.programs import find_program, free_port, require
from tests.support.proxy import ForwardProxy
from tests.support.registry import Registry
from tests.support.releases import ReleaseServer
from tests.support.tokens import TokenServer

IMAGE = "docker.io/rancher/app:1"
USER, PASSWORD = "robot$k3s+push", "s3cr3t w0nder"
LOGIN = {"AIRGAP_SYNC_USERNAME": USER, "AIRGAP_SYNC_PASSWORD": PASSWORD}
# Resolves nowhere: only the proxy knows where it is.
NAME = "registry.example"
CERTS_D = (Path("/etc/docker/certs.d"), Path("/etc/containers/certs.d"))


@pytest.fixture(scope="module")
def image(store: BlobStore) -> BuiltImage:
    return built(store, b"a layer\n" * 300, title="app")


@pytest.fixture(scope="module")
def pushed(image: BuiltImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle to push."""
    return write_bundle(tmp_path_factory.mktemp("pushed") / "bundle", {IMAGE: image})


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The company's own CA."""
    return Authority(tmp_path_factory.mktemp("authority"), "Acme Internal CA")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "Some Other CA")


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    return authority.issue("localhost", "127.0.0.1", "::1", NAME)


@pytest.fixture(scope="module")
def client(authority: Authority) -> Certificate:
    return authority.issue("pusher", client=True)


@pytest.fixture(scope="module")
def real(certificate: Certificate) -> Iterator[Registry]:
    """A real registry with TLS and a password."""
    require("docker-registry")
    with Registry(certificate=certificate, htpasswd=(USER, PASSWORD)) as started:
        yield started


@pytest.fixture(scope="module")
def strict(certificate: Certificate, authority: Authority) -> Iterator[Registry]:
    """A real registry that lets in nobody without a certificate of its CA."""
    require("docker-registry")
    with Registry(certificate=certificate, client_ca=authority.ca_file) as started:
        yield started


@pytest.fixture(scope="module")
def secure(certificate: Certificate) -> Iterator[GuardedRegistry]:
    """A registry in memory with TLS that asks nobody."""
    with GuardedRegistry(certificate=certificate) as started:
        yield started


@pytest.fixture
def guarded(certificate: Certificate) -> Iterator[GuardedRegistry]:
    with GuardedRegistry(basic=(USER, PASSWORD), certificate=certificate) as started:
        yield started


def login(url: str, *options: str | Path, env: dict[str, str] | None = None) -> Result:
    return run("login", url, *options, env={**LOGIN, **(env or {})})


def error_of(result: Result) -> tuple[str, str]:
    """Give the lines of the error and its hint."""
    lines = result.err.splitlines()
    error = next(line for line in lines if line.startswith("error: "))
    return error, next((line for line in lines if line.startswith("hint: ")), "")


def reference_of(result: Result) -> str:
    return error_of(result)[0].rpartition(" [")[2].removesuffix("]")


@contextmanager
def directory(path: Path) -> Iterator[Path]:
    """Make a directory for a moment, and leave nothing of it or of what lies above it."""
    missing = [part for part in (path, *path.parents) if not part.exists()]
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path)
        for part in missing[1:]:
            part.rmdir()


def registries(path: Path, host: str, **tls: Any) -> Path:
    path.write_text(yaml.safe_dump({"configs": {host: {"tls": tls}}}))
    return path


# --- trust ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["flag", "registries", *map(str, CERTS_D)])
def test_a_private_ca_is_trusted_from_every_place(
    pushed: Path, real: Registry, authority: Authority, tmp_path: Path, place: str
) -> None:
    options: list[str | Path] = []
    mark = real.mark()
    with ExitStack() as stack:
        if place == "flag":
            options = ["--ca-file", authority.ca_file]
        elif place == "registries":
            options = [
                "--registries",
                registries(tmp_path / "r.yaml", real.host, ca_file=str(authority.ca_file)),
            ]
        else:
            there = stack.enter_context(directory(Path(place) / real.host))
            shutil.copy(authority.ca_file, there / "ca.crt")
        done = run("push", pushed, f"{real.url}/{Path(place).parts[-2:][0]}", *options, env=LOGIN)

    assert done.code == 0, done.err
    assert [entry.status for entry in real.since(mark) if entry.method == "PUT"] == [201] * 3
    assert not any(path.exists() for path in (CERTS_D[0] / real.host, CERTS_D[1] / real.host))


def test_a_ca_is_trusted_for_its_host_only(secure: GuardedRegistry, authority: Authority, tmp_path: Path) -> None:
    file = registries(tmp_path / "r.yaml", "127.0.0.1:1", ca_file=str(authority.ca_file))
    with directory(CERTS_D[0] / "127.0.0.1") as there:
        shutil.copy(authority.ca_file, there / "ca.crt")
        refused = login(secure.url, "--registries", file)
    assert reference_of(refused) == "unknown-ca"


def test_several_cas_are_trusted_at_once(secure: GuardedRegistry, authority: Authority, stranger: Authority) -> None:
    done = login(secure.url, "--ca-file", stranger.ca_file, "--ca-file", authority.ca_file)
    assert done.code == 0, done.err


@pytest.mark.parametrize("place", ["flags", "one file", "registries", *map(str, CERTS_D)])
def test_our_certificate_is_shown_from_every_place(
    pushed: Path, strict: Registry, authority: Authority, client: Certificate, tmp_path: Path, place: str
) -> None:
    options: list[str | Path] = ["--ca-file", authority.ca_file]
    mark = strict.mark()
    with ExitStack() as stack:
        if place == "flags":
            options += ["--client-cert", client.cert, "--client-key", client.key]
        elif place == "one file":
            (tmp_path / "both.pem").write_bytes(client.key.read_bytes() + client.cert.read_bytes())
            options += ["--client-cert", tmp_path / "both.pem"]
        elif place == "registries":
            pair = {"cert_file": str(client.cert), "key_file": str(client.key)}
            options += ["--registries", registries(tmp_path / "r.yaml", strict.host, **pair)]
        else:
            there = stack.enter_context(directory(Path(place) / strict.host))
            shutil.copy(client.cert, there / "client.cert")
            shutil.copy(client.key, there / "client.key")
        done = run("push", pushed, f"{strict.url}/{Path(place).parts[-2:][0].replace(' ', '-')}", *options)

    assert done.code == 0, done.err
    assert [entry.status for entry in strict.since(mark) if entry.method == "PUT"] == [201] * 3


@pytest.mark.parametrize("ours", ["none", "of a stranger"])
def test_a_registry_that_wants_a_certificate_says_so(
    pushed: Path, strict: Registry, authority: Authority, stranger: Authority, ours: str
) -> None:
    options: list[str | Path] = ["--ca-file", authority.ca_file]
    if ours != "none":
        other = stranger.issue("intruder", client=True)
        options += ["--client-cert", other.cert, "--client-key", other.key]

    refused = run("push", pushed, strict.url, *options)

    assert refused.code == 8, refused.err
    error, hint = error_of(refused)
    assert reference_of(refused) == "client-certificate"
    assert strict.host in error
    assert "--client-cert" in hint


def encrypted(directory: Path, certificate: Certificate) -> Path:
    require("openssl")
    path = directory / "encrypted.key"
    line: list[str | Path] = [
        find_program("openssl"),
        "pkey",
        "-in",
        certificate.key,
        "-aes256",
        "-passout",
        "pass:x",
        "-out",
        path,
    ]
    subprocess.run(line, check=True, capture_output=True)
    return path


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("flags", "encrypted key"),
        ("flags", "other key"),
        ("flags", "no key"),
        ("registries", "encrypted key"),
        ("registries", "no key"),
        ("registries", "garbage certificate"),
        (str(CERTS_D[0]), "garbage key"),
        (str(CERTS_D[0]), "no key"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_named(
    secure: GuardedRegistry, authority: Authority, client: Certificate, tmp_path: Path, place: str, what: str
) -> None:
    cert, key = client.cert, client.key
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nnot base64\n-----END CERTIFICATE-----\n")
    if what == "garbage certificate":
        cert = garbage
    else:
        keys = {
            "other key": authority.issue("other", client=True).key,
            "garbage key": garbage,
            "no key": tmp_path / "no",
        }
        key = keys[what] if what in keys else encrypted(tmp_path, client)
    options: list[str | Path] = ["--ca-file", authority.ca_file]
    with ExitStack() as stack:
        if place == "flags":
            options += ["--client-cert", cert, "--client-key", key]
        elif place == "registries":
            pair = {"cert_file": str(cert), "key_file": str(key)}
            options += ["--registries", registries(tmp_path / "r.yaml", secure.host, **pair)]
        else:
            there = stack.enter_context(directory(Path(place) / secure.host))
            shutil.copy(cert, there / "client.cert")
            if key.exists():
                shutil.copy(key, there / "client.key")
        refused = login(secure.url, *options)

    if (place, what) == ("flags", "no key"):
        # What the user named himself is looked for at once.
        assert refused.code == 2
        return
    assert refused.code == 3, refused.err
    error, hint = error_of(refused)
    assert reference_of(refused) == "bad-tls-file"
    assert ("encrypted" in error) == (what == "encrypted key")
    assert any(
        str(path) in error
        for path in (cert, key, CERTS_D[0] / secure.host / "client.cert", CERTS_D[0] / secure.host / "client.key")
    )
    assert hint


@pytest.mark.parametrize(
    ("place", "content"),
    [
        ("flag", b""),
        ("flag", b"garbage"),
        ("flag", None),
        ("registries", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ("registries", None),
    ],
)
def test_a_ca_file_that_cannot_be_used_is_named(
    secure: GuardedRegistry, tmp_path: Path, place: str, content: bytes | None
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    options: list[str | Path] = (
        ["--ca-file", file]
        if place == "flag"
        else ["--registries", registries(tmp_path / "r", secure.host, ca_file=str(file))]
    )

    refused = login(secure.url, *options)

    assert refused.code == (2 if place == "flag" and content is None else 3)
    assert str(file) in refused.err
    assert (place == "flag" and content is None) or reference_of(refused) == "bad-tls-file"


@pytest.mark.parametrize("place", ["flag", "registries"])
def test_verification_can_be_switched_off_and_is_warned_of_every_time(
    pushed: Path, guarded: GuardedRegistry, tmp_path: Path, place: str
) -> None:
    options: list[str | Path] = ["--insecure-skip-tls-verify"]
    if place == "registries":
        options = [
            "--registries",
            registries(tmp_path / "r.yaml", guarded.host, insecure_skip_verify=True),
        ]

    for _ in range(2):
        done = run("push", pushed, guarded.url, *options, env=LOGIN)

        assert done.code == 0, done.err
        warnings = [line for line in done.err.splitlines() if f"{guarded.host} is NOT verified" in line]
        assert len(warnings) == 1, done.err
        assert "InsecureRequestWarning" not in done.err


# --- no trust -------------------------------------------------------------------------------------------------------

DAY = timedelta(days=1)


def served(stack: ExitStack, certificate: Certificate, **options: Any) -> FaultyRegistry:
    return stack.enter_context(FaultyRegistry(certificate=certificate, **options))


def now() -> datetime:
    return datetime.now(UTC)


@pytest.mark.parametrize(
    ("names", "times", "by_stranger", "reference", "says", "hints"),
    [
        (["127.0.0.1"], {}, True, "unknown-ca", "Some Other CA", "--ca-file"),
        (
            [NAME, "*.acme.example"],
            {},
            False,
            "wrong-host-name",
            f"but for {NAME}, *.acme.example",
            "name of its certificate",
        ),
        (["127.0.0.2"], {}, False, "wrong-host-name", "127.0.0.2", "name of its certificate"),
        (
            ["127.0.0.1"],
            {"not_before": now() - 9 * DAY, "not_after": now() - DAY},
            False,
            "certificate-expired",
            f"expired on {now() - DAY:%b}",
            "date -u",
        ),
        (
            ["127.0.0.1"],
            {"not_before": now() + DAY, "not_after": now() + 9 * DAY},
            False,
            "certificate-expired",
            f"not valid before {now() + DAY:%b}",
            "date -u",
        ),
    ],
    ids=["unknown CA", "other name", "other address", "expired", "not yet valid"],
)
def test_a_certificate_that_is_not_trusted_is_explained(
    authority: Authority, stranger: Authority, pushed: Path, names: list[str], times: dict[str, Any],
    by_stranger: bool, reference: str, says: str, hints: str,
) -> None:  # fmt: skip
    with ExitStack() as stack:
        registry = served(stack, (stranger if by_stranger else authority).issue(*names, **times))
        refused = run("push", pushed, registry.url, "--ca-file", authority.ca_file, "-o", "json", env=LOGIN)
        requests = registry.requests()

    assert refused.code == 8, refused.err
    error, hint = error_of(refused)
    assert reference_of(refused) == reference
    assert registry.host in error
    assert says in error
    assert hints in hint
    assert requests == []
    assert refused.json["error"]["reference"] == reference


def test_login_without_a_credential_names_an_unknown_ca_all_the_same(secure: GuardedRegistry) -> None:
    refused = run("login", secure.url)

    assert refused.code == 8, refused.err
    assert reference_of(refused) == "unknown-ca"
    assert "Acme Internal CA" in error_of(refused)[0]
    assert "--ca-file" in error_of(refused)[1]


def test_a_self_signed_certificate_can_be_trusted_by_itself(stranger: Authority, tmp_path: Path) -> None:
    with ExitStack() as stack:
        registry = served(stack, stranger.issue("127.0.0.1"))
        (tmp_path / "chain.pem").write_text(stranger.ca_file.read_text())
        assert login(registry.url, "--ca-file", tmp_path / "chain.pem").code == 0


@pytest.mark.parametrize("kind", ["real", "python"])
def test_plain_http_to_a_port_of_tls_is_explained(
    pushed: Path, real: Registry, secure: GuardedRegistry, kind: str
) -> None:
    host = real.host if kind == "real" else secure.host

    refused = run("push", pushed, f"http://{host}")

    assert refused.code == 8, refused.err
    error, hint = error_of(refused)
    assert reference_of(refused) == "tls-wanted"
    assert host in error
    assert "https://" in hint


def test_tls_to_a_port_of_plain_http_is_explained(pushed: Path, target: FaultyRegistry, authority: Authority) -> None:
    refused = run("push", pushed, f"https://{target.host}", "--ca-file", authority.ca_file)

    assert refused.code == 8
    assert reference_of(refused) == "not-tls"
    assert f"http://{target.host}" in error_of(refused)[1]
    assert target.requests() == []


# --- no answer ------------------------------------------------------------------------------------------------------


@contextmanager
def full() -> Iterator[str]:
    """Give the address of a port at which connections are neither taken nor refused."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        yield f"{address[0]}:{address[1]}"


@contextmanager
def silent() -> Iterator[str]:
    """Give the address of a port at which connections are taken, and nothing is ever said."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield "{}:{}".format(*listener.getsockname())


@contextmanager
def nobody() -> Iterator[str]:
    yield f"127.0.0.1:{free_port()}"


@contextmanager
def nowhere() -> Iterator[str]:
    yield "registry.invalid:5000"


@dataclass(frozen=True)
class Slow:
    """A run that takes its time, and what it asked."""

    host: str
    result: Result
    seconds: float


SLOW: dict[str, tuple[Callable[[], AbstractContextManager[str]], str, str]] = {
    "DNS": (nowhere, "name-not-resolved", "does not resolve"),
    "refused": (nobody, "connection-refused", "connection refused"),
    "connect timeout": (full, "connect-timeout", "in time"),
    "read timeout": (silent, "timeout", "did not answer in time"),
}


@pytest.fixture(scope="module")
def slow(pushed: Path) -> dict[tuple[str, str], Slow]:
    """All of them at once: they wait most of the time."""

    def one(scheme: str, why: str) -> Slow:
        start = time.monotonic()
        with SLOW[why][0]() as host:
            # Of its own, or they would wait for each other's lock.
            result = run("push", pushed, f"{scheme}://{host}/{scheme}", "--timeout", "0.3", env=LOGIN)
        return Slow(host, result, time.monotonic() - start)

    cases = [(scheme, why) for scheme in ("http", "https") for why in SLOW]
    with ThreadPoolExecutor(len(cases)) as threads:
        return dict(zip(cases, threads.map(lambda case: one(*case), cases), strict=True))


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("why", SLOW)
def test_why_there_is_no_answer_is_told_apart(slow: dict[tuple[str, str], Slow], scheme: str, why: str) -> None:
    found = slow[scheme, why]
    _, reference, says = SLOW[why]

    assert found.result.code == 8, found.result.err
    error, hint = error_of(found.result)
    assert reference_of(found.result) == reference
    assert found.host in error
    assert says in error
    assert hint
    assert ("--timeout" in hint) == (why == "read timeout")
    assert found.seconds < 20


# --- IPv6, tokens, redirects ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_ipv6_works_throughout(pushed: Path, certificate: Certificate, authority: Authority, tls: bool) -> None:
    require("docker-registry", "openssl")
    own = certificate if tls else None
    with (
        TokenServer(USER, PASSWORD, address="::1", certificate=own) as tokens,
        Registry(token=tokens.auth, address="::1", certificate=own) as registry,
    ):
        suffix = "".join(letter if letter.isalnum() else "_" for letter in registry.host)
        env = {f"{name}_{suffix}": value for name, value in LOGIN.items()}
        options: list[str | Path] = ["--ca-file", authority.ca_file] if tls else []
        done = run("push", pushed, f"{registry.url}/k3s", *options, env=env)
        requests = registry.requests()

    assert done.code == 0, done.err
    assert registry.host.startswith("[::1]:")
    assert ("PUT", "/v2/k3s/rancher/app/manifests/1", 201) in [(it.method, it.path, it.status) for it in requests]


def test_tokens_are_had_over_tls_with_the_same_ca(pushed: Path, certificate: Certificate, authority: Authority) -> None:
    require("docker-registry", "openssl")
    with (
        TokenServer(USER, PASSWORD, certificate=certificate) as tokens,
        Registry(token=tokens.auth, certificate=certificate) as registry,
    ):
        done = run("push", pushed, registry.url, "--ca-file", authority.ca_file, env=LOGIN)

    assert done.code == 0, done.err
    assert {asked.user for asked in tokens.requests} == {USER}


def test_a_password_does_not_go_to_a_realm_without_tls(
    pushed: Path, certificate: Certificate, authority: Authority
) -> None:
    require("openssl")
    with (
        RememberingTokens(USER, PASSWORD) as tokens,
        GuardedRegistry(tokens=tokens, certificate=certificate) as registry,
    ):
        refused = run("push", pushed, registry.url, "--ca-file", authority.ca_file, env=LOGIN)

    assert refused.code == 8
    assert "not https" in refused.err
    assert error_of(refused)[1]
    assert tokens.requests == []


@pytest.mark.parametrize(("method", "path"), [("HEAD", "/manifests/"), ("HEAD", "/blobs/"), ("PUT", "/blobs/uploads/")])
def test_a_redirect_from_https_to_http_is_refused(
    pushed: Path, guarded: GuardedRegistry, target: FaultyRegistry, authority: Authority, method: str, path: str
) -> None:
    guarded.fault(method, path, Redirect(f"{target.url}{{target}}?signature=s3cret"), times=None)

    refused = run("push", pushed, guarded.url, "--ca-file", authority.ca_file, env=LOGIN)

    assert refused.code in {8, 10}
    assert "redirects from https to http://" in refused.err
    assert "s3cret" not in refused.err
    assert target.requests() == []


def test_a_redirect_to_another_host_takes_neither_password_nor_certificate_along(
    pushed: Path, guarded: GuardedRegistry, image: BuiltImage, authority: Authority, client: Certificate,
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    options: list[str | Path] = [
        "--ca-file",
        authority.ca_file,
        "--client-cert",
        client.cert,
        "--client-key",
        client.key,
    ]
    with GuardedRegistry(certificate=certificate, client_ca=authority.ca_file) as nosy:
        led = guarded.fault("GET", "/v2/$", Redirect(f"{nosy.url}{{target}}"), times=1)
        refused = login(guarded.url, *options)
        # It was asked, and got no certificate to see.
        assert nosy.handshake_errors != []
        assert nosy.requests() == []
    assert led.hits == 1
    assert refused.code in {0, 8}
    with GuardedRegistry(certificate=certificate) as storage:
        monkeypatch.setattr(storage, "content", guarded.content)
        guarded.fault("PUT", "/blobs/uploads/", Redirect(f"{storage.url}{{target}}"), times=None)
        done = run("push", pushed, guarded.url, *options, env=LOGIN)

    assert done.code == 0, done.err
    assert complete(guarded, "rancher/app", "1", image)
    assert [request.method for request in storage.requests()] == ["PUT", "PUT"]
    assert storage.users() == {""}
    assert guarded.users() == {"", basic(USER, PASSWORD)}


# --- proxies --------------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(secure: GuardedRegistry) -> Iterator[ForwardProxy]:
    with ForwardProxy(
        {f"{NAME}:443": secure.host, f"{NAME}:8443": secure.host}, credentials=("pr", "pr0xy s3cret/#")
    ) as started:
        yield started


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
def test_https_goes_through_a_tunnel_to_a_name_that_only_the_proxy_knows(
    pushed: Path, secure: GuardedRegistry, proxy: ForwardProxy, authority: Authority, variable: str, image: BuiltImage
) -> None:
    mark = secure.mark()

    done = run(
        "push",
        pushed,
        f"{NAME}/tunnel-{variable.lower()}",
        "--ca-file",
        authority.ca_file,
        env={variable: proxy.login_url},
    )

    assert done.code == 0, done.err
    assert complete(secure, f"tunnel-{variable.lower()}/rancher/app", "1", image)
    assert {(request.method, request.target, request.status) for request in proxy.requests} == {
        ("CONNECT", f"{NAME}:443", 200)
    }
    assert all("proxy-authorization" not in request.headers for request in secure.since(mark))
    assert "pr0xy" not in done.out + done.err


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy"])
def test_plain_http_goes_through_the_proxy_too(
    pushed: Path, target: FaultyRegistry, image: BuiltImage, variable: str
) -> None:
    with ForwardProxy({f"{NAME}:5000": target.host}, credentials=("pr", "p:w/ü")) as proxy:
        done = run("push", pushed, f"http://{NAME}:5000", env={variable: proxy.login_url})

    assert done.code == 0, done.err
    assert complete(target, "rancher/app", "1", image)
    assert {request.status for request in proxy.requests} <= {200, 201, 202, 404}
    assert len(proxy.requests) == len(target.requests())


def test_no_proxy_is_heeded_and_so_is_the_scheme(proxy: ForwardProxy) -> None:
    url = proxy.login_url
    cases = [{"HTTPS_PROXY": url, "no_proxy": entry} for entry in (NAME, ".example", f"x,{NAME}:443", "*")]
    cases.append({"HTTP_PROXY": url, "ALL_PROXY": url})
    # At once: a name that does not resolve is tried for some seconds.
    with ThreadPoolExecutor(len(cases)) as threads:
        results = list(threads.map(lambda env: login(f"https://{NAME}", env=env), cases))

    assert [reference_of(result) for result in results] == ["name-not-resolved"] * len(cases)
    assert proxy.requests == []


def test_this_machine_is_never_asked_through_a_proxy(secure: GuardedRegistry, authority: Authority) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    done = login(secure.url, "--ca-file", authority.ca_file, env={"HTTPS_PROXY": dead, "HTTP_PROXY": dead})
    assert done.code == 0, done.err


USELESS = ["no password", "wrong password", "refused", "dead", "silent", "no proxy", "unknown"]


@pytest.fixture(scope="module")
def useless(pushed: Path) -> dict[tuple[str, str], Slow]:
    """Pushes through proxies that do not help, all at once."""
    name = f"{NAME}:8443"
    with ExitStack() as stack:
        proxy = ForwardProxy(credentials=("pr", "s3cret"), refused={name})
        stack.enter_context(proxy)
        urls = {
            "no password": proxy.url,
            "wrong password": proxy.url.replace("//", "//pr:wr0ng-s3cret@"),
            "refused": proxy.login_url,
            "dead": f"http://pr:s3cret@127.0.0.1:{free_port()}",
            "silent": f"http://pr:s3cret@{stack.enter_context(silent())}",
            "no proxy": stack.enter_context(FaultyRegistry()).url,
            "unknown": "http://pr:s3cret@proxy.invalid:3128",
        }

        def one(scheme: str, how: str) -> Slow:
            env = {f"{scheme.upper()}_PROXY": urls[how]}
            # Of its own, or they would wait for each other's lock.
            target = f"{scheme}://{name}/{scheme}-{how.replace(' ', '-')}"
            result = run("push", pushed, target, "--timeout", "0.3", "-o", "json", env=env)
            return Slow(urls[how].rpartition("@")[2].removeprefix("http://"), result, 0)

        cases = [(scheme, how) for scheme in ("http", "https") for how in USELESS]
        with ThreadPoolExecutor(len(cases)) as threads:
            return dict(zip(cases, threads.map(lambda case: one(*case), cases), strict=True))


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("how", USELESS)
def test_a_proxy_that_does_not_help_is_named(useless: dict[tuple[str, str], Slow], scheme: str, how: str) -> None:
    if (scheme, how) == ("http", "no proxy"):
        # A server that takes a whole address for a path behaves as a proxy would.
        return
    found = useless[scheme, how]
    error, hint = error_of(found.result)

    assert found.result.code == 8, found.result.err
    assert "s3cret" not in found.result.err + found.result.out
    assert f"the proxy {found.host}" in error
    assert hint
    reference = "proxy-credentials" if how.endswith("password") else "proxy-failed"
    if how == "silent":
        reference = "timeout"
    elif (scheme, how) == ("http", "refused"):
        # A 502 may be the registry's own as well.
        reference = "server-error"
    assert reference_of(found.result) == reference
    if reference == "proxy-failed":
        assert "NO_PROXY" in hint
    if reference == "proxy-credentials":
        assert "407" in error
        assert "user:password" in hint


@pytest.mark.parametrize(
    ("command", "url"),
    [
        ("push", "socks5://pr:s3cret@127.0.0.1:1080"),
        ("login", "http://pr:12/s3cret@127.0.0.1:3128"),
        ("bundle", "http://:3128"),
        ("images", "https://pr:s3cret@127.0.0.1:3128"),
    ],
)
def test_a_proxy_of_another_kind_is_refused(pushed: Path, tmp_path: Path, command: str, url: str) -> None:
    arguments: dict[str, list[str | Path]] = {
        "push": [pushed, "https://127.0.0.1:9"],
        "login": ["https://127.0.0.1:9"],
        "bundle": ["--image", "127.0.0.1:9/a:1", "--to", tmp_path / "to"],
        "images": ["--k3s", "v1.32.3+k3s1", "--release-url", "https://127.0.0.1:9"],
    }

    refused = run(command, *arguments[command], env={"HTTPS_PROXY": url})

    assert refused.code == 3, refused.err
    assert reference_of(refused) == "bad-proxy"
    assert "HTTPS_PROXY" in error_of(refused)[0]
    assert "s3cret" not in refused.err


# --- the other commands ---------------------------------------------------------------------------------------------


def test_a_bundle_comes_through_a_proxy_from_hosts_with_a_private_ca(
    secure: GuardedRegistry, proxy: ForwardProxy, image: BuiltImage, authority: Authority, tmp_path: Path
) -> None:
    secure.add(image, "some/app", "1")
    options: list[str | Path] = ["--ca-file", authority.ca_file]
    env = {"HTTPS_PROXY": proxy.login_url}

    refused = bundle([f"{NAME}/some/app:1"], tmp_path / "refused", "--timeout", "2", env=env, code=10)
    made = bundle([f"{NAME}/some/app:1"], tmp_path / "to", *options, env=env)

    Bundle(tmp_path / "to").check()
    assert "not trusted" in refused.err
    assert "Acme Internal CA" in refused.err
    assert "--ca-file" in refused.out
    assert set(proxy.targets()) == {f"{NAME}:443"}
    assert "pr0xy" not in made.out + made.err


def test_the_lists_of_a_release_come_over_https_with_a_private_ca(
    authority: Authority, certificate: Certificate
) -> None:
    with ReleaseServer({"v1.99.0+k3s1": "docker.io/rancher/app:1\n"}, certificate=certificate) as server:
        arguments = ["images", "--k3s", "v1.99.0+k3s1", "--release-url", server.url]
        refused = run(*arguments)
        done = run(*arguments, "--ca-file", authority.ca_file)

    assert refused.code == 8
    assert "Acme Internal CA" in refused.err
    assert "--ca-file" in refused.err
    assert done.code == 0, done.err
    assert "docker.io/rancher/app:1" in done.lines


def test_writes_are_not_sent_where_trust_is_missing(pushed: Path, secure: GuardedRegistry) -> None:
    mark = secure.mark()
    refused = run("push", pushed, secure.url, env=LOGIN)
    assert reference_of(refused) == "unknown-ca"
    assert writes(secure.since(mark)) == []
