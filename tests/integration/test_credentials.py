"""Credentials with real sockets: each place they come from, their order, and everywhere they must not go."""

import json
import os
import pty
import select
import signal
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.bundles import Bundle, bundle, one
from tests.support.command import Result, command_line, environment, run
from tests.support.content import BlobStore, BuiltImage
from tests.support.faulty import EditHeaders, FaultyRegistry, Redirect, Status
from tests.support.guarded import GuardedRegistry, RememberingTokens, basic
from tests.support.handmade import built, write_bundle, writes
from tests.support.hostile import HostileRegistry, raw
from tests.support.memory_registry import Request, Response
from tests.support.programs import find_program, free_port, require
from tests.support.proxy import ForwardProxy
from tests.support.registry import Registry
from tests.support.servers import QuietHandler
from tests.support.tokens import TokenServer
from tests.support.traces import Traces, trace

IMAGE = "docker.io/rancher/app:1"
USER = "robot$proj+name"
PASSWORD = "a b$HOME 'c' \"d\" é€:x\\n"  # noqa: S105 - opens nothing but the registries of these tests
WRONG = "wr0ng"
TARGET_PAIR = ("AIRGAP_SYNC_USERNAME", "AIRGAP_SYNC_PASSWORD")
numbers = count()


# --- places ---------------------------------------------------------------------------------------------------------


@dataclass
class Given:
    """What a run is given: options, variables, standard input."""

    options: list[str | Path] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    stdin: str | None = None

    def __add__(self, other: "Given") -> "Given":
        stdin = other.stdin if self.stdin is None else self.stdin
        return Given([*self.options, *other.options], {**self.env, **other.env}, stdin)

    def push(self, bundle: Path, target: str, *options: str | Path) -> Result:
        return run("push", bundle, target, *self.options, *options, env=self.env, stdin=self.stdin)

    def login(self, host: str, *options: str | Path) -> Result:
        return run("login", host, *self.options, *options, env=self.env, stdin=self.stdin)


#: Puts a user and password for a host into one place: directory, host, user, password.
Place = Callable[[Path, str, str, str], Given]


def suffix(host: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in host.upper())


def by_stdin(_directory: Path, _host: str, user: str, password: str) -> Given:
    return Given(["--username", user, "--password-stdin"], stdin=f"{password}\n")


def by_file(directory: Path, _host: str, user: str, password: str) -> Given:
    (directory / "password").write_text(f"{password}\n")
    return Given(["--username", user, "--password-file", directory / "password"])


def by_target_variables(_directory: Path, _host: str, user: str, password: str) -> Given:
    return Given(env=dict(zip(TARGET_PAIR, (user, password), strict=True)))


def by_host_variables(_directory: Path, host: str, user: str, password: str) -> Given:
    return Given(
        env={f"{name}_{suffix(host)}": value for name, value in zip(TARGET_PAIR, (user, password), strict=True)}
    )


def by_registries(auth: Callable[[str, str], dict[str, str]]) -> Place:
    def place(directory: Path, host: str, user: str, password: str) -> Given:
        (directory / "registries.yaml").write_text(yaml.safe_dump({"configs": {host: {"auth": auth(user, password)}}}))
        return Given(["--registries", directory / "registries.yaml"])

    return place


def pair(user: str, password: str) -> str:
    return b64encode(f"{user}:{password}".encode()).decode()


def entry(user: str, password: str) -> dict[str, str]:
    return {"auth": pair(user, password)}


def plain(user: str, password: str) -> dict[str, str]:
    return {"username": user, "password": password}


def write_auths(path: Path, key: str, content: Mapping[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"auths": {key: content}}))
    return path


def by_authfile(directory: Path, host: str, user: str, password: str) -> Given:
    return Given(["--authfile", write_auths(directory / "authfile.json", host, entry(user, password))])


def by_docker(key: str = "{host}", content: Callable[[str, str], dict[str, str]] = entry) -> Place:
    def place(directory: Path, host: str, user: str, password: str) -> Given:
        file = write_auths(directory / "docker" / "config.json", key.replace("{host}", host), content(user, password))
        return Given(env={"DOCKER_CONFIG": str(file.parent)})

    return place


def by_home(directory: Path, host: str, user: str, password: str) -> Given:
    write_auths(directory / ".docker" / "config.json", host, entry(user, password))
    return Given(env={"HOME": str(directory), "DOCKER_CONFIG": ""})


def by_helper(settings: Callable[[str], dict[str, Any]]) -> Place:
    def place(directory: Path, host: str, user: str, password: str) -> Given:
        answer = directory / "answer"
        answer.write_text(json.dumps({"ServerURL": host, "Username": user, "Secret": password}))
        helper = directory / "docker-credential-test"
        unknown = 'echo "credentials not found in native keychain"; exit 1'
        script = ("#!/bin/sh", "read -r host", f'[ "$host" = "{host}" ] || {{ {unknown}; }}', f'cat "{answer}"')
        helper.write_text("\n".join(script) + "\n")
        helper.chmod(0o755)
        (directory / "docker").mkdir()
        (directory / "docker" / "config.json").write_text(json.dumps({**settings(host), "auths": {host: {}}}))
        path = f"{directory}:{os.environ['PATH']}"
        return Given(env={"DOCKER_CONFIG": str(directory / "docker"), "PATH": path})

    return place


def by_containers(directory: Path, host: str, user: str, password: str) -> Given:
    return Given(env={"REGISTRY_AUTH_FILE": str(write_auths(directory / "podman.json", host, entry(user, password)))})


def by_runtime(directory: Path, host: str, user: str, password: str) -> Given:
    write_auths(directory / "run" / "containers" / "auth.json", host, entry(user, password))
    return Given(env={"XDG_RUNTIME_DIR": str(directory / "run")})


#: One place for each row of the table in docs/credentials.md, in its order.
ORDER: dict[str, Place] = {
    "options": by_file,
    "target variables": by_target_variables,
    "host variables": by_host_variables,
    "registries": by_registries(plain),
    "authfile": by_authfile,
    "docker": by_docker(),
    "containers": by_containers,
    "runtime": by_runtime,
}
EVERY: dict[str, Place] = {
    **ORDER,
    "stdin": by_stdin,
    "registries auth": by_registries(entry),
    "docker plain": by_docker(content=plain),
    "docker v1": by_docker("https://{host}/v1/"),
    "docker http": by_docker("http://{host}"),
    "docker home": by_home,
    "docker namespace": by_docker("{host}/ours"),
    "credHelpers": by_helper(lambda host: {"credHelpers": {host: "test"}}),
    "credsStore": by_helper(lambda _: {"credsStore": "test"}),
}
FOR_BUNDLE = ["host variables", "registries", "authfile", "docker", "containers", "runtime", "credHelpers"]


@pytest.fixture(scope="module")
def image(store: BlobStore) -> BuiltImage:
    return built(store, b"a layer\n" * 300, title="app")


@pytest.fixture(scope="module")
def pushed(image: BuiltImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle to push."""
    return write_bundle(tmp_path_factory.mktemp("pushed") / "bundle", {IMAGE: image})


@pytest.fixture(scope="module")
def real() -> Iterator[Registry]:
    """A real registry with a user and password that nothing must mangle."""
    require("docker-registry")
    with Registry(htpasswd=(USER, PASSWORD)) as started:
        yield started


@pytest.fixture
def guarded() -> Iterator[GuardedRegistry]:
    with GuardedRegistry(basic=(USER, PASSWORD)) as started:
        yield started


# --- each place -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", EVERY)
def test_a_push_authenticates_from_every_place(pushed: Path, real: Registry, tmp_path: Path, place: str) -> None:
    given = EVERY[place](tmp_path, real.host, USER, PASSWORD)
    prefix, mark = f"ours/{next(numbers)}", real.mark()

    done = given.push(pushed, f"{real.url}/{prefix}", "--state", tmp_path / "state")

    assert done.code == 0, done.err
    put = [(entry.path, entry.status) for entry in real.since(mark) if entry.method == "PUT"]
    assert (f"/v2/{prefix}/rancher/app/manifests/1", 201) in put
    assert {status for _, status in put} == {201}
    assert PASSWORD not in done.out + done.err


@pytest.mark.parametrize("place", FOR_BUNDLE)
def test_a_bundle_authenticates_from_every_place_that_is_for_one_host(
    guarded: GuardedRegistry, image: BuiltImage, tmp_path: Path, place: str
) -> None:
    guarded.add(image, "some/app", "1")
    given = EVERY[place](tmp_path, guarded.host, USER, PASSWORD)

    bundle([f"{guarded.host}/some/app:1"], tmp_path / "to", *given.options, env=given.env)

    Bundle(tmp_path / "to").check()
    assert guarded.users() == {"", basic(USER, PASSWORD)}


def identity(place: str, directory: Path, host: str) -> Given:
    if place == "registries":
        return by_registries(lambda *_: {"identity_token": "1d-t0ken"})(directory, host, "", "")
    if place == "helper":
        return by_helper(lambda _: {"credsStore": "test"})(directory, host, "<token>", "1d-t0ken")
    if place == "authfile":
        return Given(["--authfile", write_auths(directory / "a.json", host, {"identitytoken": "1d-t0ken"})])
    # As docker writes it: with a user name that stands for nothing.
    return by_docker(content=lambda *_: {"auth": pair("00000000-0000", ""), "identitytoken": "1d-t0ken"})(
        directory, host, "", ""
    )


@pytest.mark.parametrize("place", ["docker", "authfile", "registries", "helper"])
def test_an_identity_token_opens_a_registry(pushed: Path, tmp_path: Path, place: str) -> None:
    require("openssl")
    with (
        RememberingTokens(USER, PASSWORD, identity_token="1d-t0ken") as tokens,  # noqa: S106 - opens nothing
        GuardedRegistry(tokens=tokens) as registry,
    ):
        done = identity(place, tmp_path, registry.host).push(pushed, registry.url)

    assert done.code == 0, done.err
    assert {(asked.grant, asked.status) for asked in tokens.requests} == {("refresh_token", 200)}
    assert b"1d-t0ken" not in registry.heard
    assert "1d-t0ken" not in done.out + done.err


@pytest.mark.parametrize("identity_token", ["another", None], ids=["wrong", "not taken"])
def test_an_identity_token_that_is_refused_is_named_as_such(
    pushed: Path, tmp_path: Path, identity_token: str | None
) -> None:
    require("openssl")
    with (
        RememberingTokens(USER, PASSWORD, identity_token=identity_token) as tokens,
        GuardedRegistry(tokens=tokens) as registry,
    ):
        refused = identity("docker", tmp_path, registry.host).push(pushed, registry.url)

    assert refused.code == 7, refused.err
    assert "identity token" in refused.err
    assert "wrong user name or password" not in refused.err
    assert "1d-t0ken" not in refused.out + refused.err


# --- their order ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(ORDER)))
def test_the_first_place_that_knows_the_host_decides(guarded: GuardedRegistry, tmp_path: Path, number: int) -> None:
    names = list(ORDER)[number:]

    def given(right: list[str]) -> Given:
        (directory := tmp_path / str(next(numbers))).mkdir()
        found = Given()
        for name in names:
            password = PASSWORD if name in right else WRONG
            found += ORDER[name](directory, guarded.host, USER, password)
        # Where one variable switches another off, the other place is the one behind.
        return found

    if names[0] == "runtime":
        assert given(names).login(guarded.url).code == 0
    assert given(names[:1]).login(guarded.url).code == 0
    refused = given(names[1:]).login(guarded.url)
    assert refused.code == 7
    assert "wrong user name or password" in refused.err


def test_a_push_stops_at_a_wrong_password_though_a_right_one_lies_behind(
    guarded: GuardedRegistry, pushed: Path, tmp_path: Path
) -> None:
    given = by_file(tmp_path, guarded.host, USER, WRONG) + by_docker()(tmp_path, guarded.host, USER, PASSWORD)

    refused = given.push(pushed, guarded.url)

    assert refused.code == 7
    assert "from --username" in refused.err
    assert writes(guarded.requests()) == []
    # A password that is wrong is not tried again and again: that locks accounts.
    assert [request.headers.get("authorization") for request in guarded.requests()].count(basic(USER, WRONG)) <= 2


@pytest.mark.parametrize(
    ("place", "other"),
    [
        ("host variables", "{host}0"),
        ("registries", "127.0.0.1"),
        ("authfile", "{host}0"),
        ("docker v1", "127.0.0.1"),
        ("docker namespace", "{host}0"),
        ("containers", "127.0.0.1"),
        ("runtime", "{host}0"),
        ("credHelpers", "127.0.0.1"),
        ("credsStore", "{host}0"),
    ],
)
def test_a_credential_is_for_its_host_and_port_only(
    guarded: GuardedRegistry, tmp_path: Path, place: str, other: str
) -> None:
    given = EVERY[place](tmp_path, other.replace("{host}", guarded.host), USER, PASSWORD)

    refused = given.login(guarded.url)

    assert refused.code == 7
    assert "wants credentials, and there are none for it" in refused.err
    assert guarded.users() == {""}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"auths": {"{host}": {"auth": "%secret%"}}}', '{"credsStore": "nowhere"}']
)
def test_a_broken_place_stops_the_search(guarded: GuardedRegistry, pushed: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.json").write_text(text.replace("{host}", guarded.host))
    given = Given(["--authfile", tmp_path / "broken.json"]) + by_docker()(tmp_path, guarded.host, USER, PASSWORD)

    refused = given.push(pushed, guarded.url)

    assert refused.code == 7
    assert "broken.json" in refused.err
    assert "secret" not in refused.err
    assert len(refused.err.splitlines()) == 2, refused.err
    assert guarded.requests() == []


def test_a_pipe_may_be_the_authfile(guarded: GuardedRegistry, tmp_path: Path) -> None:
    file = by_authfile(tmp_path, guarded.host, USER, PASSWORD).options[1]
    shell = ["bash", "-c", '"$@" --authfile <(cat "$AUTHFILE")', "-", *command_line("login", guarded.url)]

    done = subprocess.run(
        shell, env=environment({"AUTHFILE": str(file)}), capture_output=True, text=True, timeout=30, check=False
    )

    assert done.returncode == 0, done.stderr


# --- what is a mistake on the command line --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--username", "u"], "--password-stdin or --password-file"),
        (["--password-stdin"], "without --username"),
        (["--password-file", "{file}"], "without --username"),
        (["--username", "u", "--password-stdin", "--password-file", "{file}"], "exclude each other"),
        (["--username", "", "--password-file", "{file}"], "empty"),
        (["--username", "u", "--password-stdin"], "standard input holds no password"),
        (["--username", "u", "--password-file", "{empty}"], "holds no password"),
        (["--username", "u", "--password-file", "{latin}"], "is not UTF-8"),
        (["--username", "u", "--password-file", "{two}"], "holds more than one line"),
        (["--username", "u", "--password-file", "{file}-missing"], "does not exist"),
        (["--username", "u", "--password", "x"], "No such option"),
        (["--client-key", "{file}"], "--client-cert"),
    ],
)
def test_options_that_do_not_fit_together_are_a_usage_error(
    pushed: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    # All commands with a target share them; which one takes part is a matter of chance.
    command = "push" if len(says) % 2 else "login"
    files = {"file": b"s3cret\n", "empty": b"\n", "latin": "s3cret-\u00fc\n".encode("latin-1"), "two": b"u\ns3cret\n"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        options = [option.replace(f"{{{name}}}", str(tmp_path / name)) for option in options]
    place = [pushed, "http://127.0.0.1:9"] if command == "push" else ["http://127.0.0.1:9"]

    refused = run(command, *place, *options)

    assert refused.code == 2, refused.err
    assert says in refused.err
    assert "s3cret" not in refused.err


def test_a_password_on_standard_input_that_is_no_text_is_a_usage_error() -> None:
    done = subprocess.run(
        command_line("login", "http://127.0.0.1:9", "--username", "u", "--password-stdin"),
        input="s3cret-\u00fc\n".encode("latin-1"), env=environment(), capture_output=True, timeout=30, check=False,
    )  # fmt: skip

    assert done.returncode == 2, done.stderr
    assert b"not UTF-8" in done.stderr
    assert b"s3cret" not in done.stderr


def test_variables_that_are_no_text_are_an_error_and_no_crash() -> None:
    env = {**environment(), "AIRGAP_SYNC_USERNAME": "u", "AIRGAP_SYNC_PASSWORD": "s3cret-\udcfc"}
    done = subprocess.run(
        command_line("login", "http://127.0.0.1:9"), env=env, capture_output=True, timeout=30, check=False
    )

    assert done.returncode == 7, done.stderr
    assert b"AIRGAP_SYNC_USERNAME is not UTF-8" in done.stderr
    assert b"s3cret" not in done.stderr


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_variables_may_end_like_the_files_that_they_were_read_from(guarded: GuardedRegistry, end: str) -> None:
    done = run("login", guarded.url, env=dict(zip(TARGET_PAIR, (f"{USER}{end}", f"{PASSWORD}{end}"), strict=True)))

    assert done.code == 0, done.err
    assert guarded.users() == {"", basic(USER, PASSWORD)}


@pytest.mark.parametrize("there", TARGET_PAIR)
def test_one_of_two_variables_is_an_error(pushed: Path, guarded: GuardedRegistry, there: str) -> None:
    refused = run("push", pushed, guarded.url, env={there: "s3cret"})

    assert refused.code == 7
    assert f"{there} is set and" in refused.err
    assert "s3cret" not in refused.err
    assert guarded.requests() == []


@pytest.mark.parametrize(
    ("options", "env"),
    [
        (["--username", "s3cret"], {}),
        (["--username="], {}),
        (["--password-stdin"], {}),
        (["--password-file", "s3cret"], {}),
        ([], {"AIRGAP_SYNC_USERNAME": "s3cret"}),
        ([], {"AIRGAP_SYNC_PASSWORD": "s3cret"}),
        ([], dict.fromkeys(TARGET_PAIR, "s3cret")),
    ],
)
def test_bundle_takes_no_credential_that_would_go_to_every_upstream(
    guarded: GuardedRegistry, tmp_path: Path, options: list[str], env: dict[str, str]
) -> None:
    refused = run("bundle", "--image", f"{guarded.host}/a:1", "--to", tmp_path / "to", *options, env=env)

    assert refused.code == 2, refused.err
    for word in ("every upstream", "_<HOST>", "--registries", "--authfile"):
        assert word in refused.err
    assert "s3cret" not in refused.err
    assert guarded.requests() == []
    assert not (tmp_path / "to").exists()


def test_a_password_in_the_target_is_refused_and_not_shown(pushed: Path) -> None:
    refused = run("push", pushed, "https://u:s3cret@registry.example")

    assert refused.code == 3
    assert "s3cret" not in refused.err
    assert "--password-file" in refused.err


@pytest.mark.parametrize(
    "url",
    ["https://u:s3cret@a.example:99999/x", "https://u:s3cret?x@a.example", "https://a.example:x/y?s3cret=a@s3cret"],
)
def test_a_password_in_the_address_of_a_release_is_not_shown(url: str) -> None:
    refused = run("images", "--k3s", "v1.32.3+k3s1", "--release-url", url)

    assert refused.code == 8, refused.err
    assert "is not a usable URL" in refused.err
    assert "s3cret" not in refused.out + refused.err


@pytest.mark.parametrize("location", ["http://u:s3cret@localhost:99999/x", "http://u:s3cret@localhost:{free}/x"])
def test_a_password_in_a_location_is_not_shown(pushed: Path, target: FaultyRegistry, location: str) -> None:
    headers = {"Location": location.replace("{free}", str(free_port()))}
    target.fault("POST", "/blobs/uploads/", Status(202, headers), times=None)

    refused = run("push", pushed, target.url, "-o", "json")

    assert refused.code == 10, refused.err
    assert "localhost" in refused.err
    assert "s3cret" not in refused.out + refused.err


# --- what is never used, kept or sent -------------------------------------------------------------------------------


def test_netrc_is_never_used(image: BuiltImage, pushed: Path, tmp_path: Path) -> None:
    require("openssl")
    machines = ("machine 127.0.0.1", "machine localhost", "default")
    for name in (".netrc", "elsewhere"):
        lines = [f"{machine} login {USER} password netrc-s3cret" for machine in machines]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        (tmp_path / name).chmod(0o600)
    env = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "elsewhere")}
    with (
        GuardedRegistry(basic=(USER, "netrc-s3cret")) as registry,
        FaultyRegistry() as storage,
        RememberingTokens("x", "y", anonymous_pull=True) as tokens,
        GuardedRegistry(tokens=tokens) as open_registry,
    ):
        refused = [run("push", pushed, registry.url, env=given) for given in (env, {"HOME": str(tmp_path)})]
        for place in (open_registry, storage):
            place.add(image, "some/app", "1")
        open_registry.fault(
            "GET", "/blobs/", Redirect(f"http://localhost:{storage.host.rpartition(':')[2]}{{target}}"), times=None
        )
        bundle([f"{open_registry.host}/some/app:1"], tmp_path / "to", env=env)

    assert [result.code for result in refused] == [7, 7]
    assert all("no-credentials" in result.err for result in refused)
    assert registry.users() == {""}
    assert {asked.user for asked in tokens.requests} == {None}
    assert all(user == "" or user.startswith("Bearer ") for user in open_registry.users())
    assert storage.requests() != []
    assert all("authorization" not in request.headers for request in storage.requests())


def test_cookies_are_not_sent_back(pushed: Path, tmp_path: Path) -> None:
    require("openssl")
    with RememberingTokens(USER, PASSWORD) as tokens, GuardedRegistry(tokens=tokens) as registry:
        registry.fault("*", "", EditHeaders({"Set-Cookie": "sid=c00kie; Path=/"}), times=None)
        done = by_target_variables(tmp_path, "", USER, PASSWORD).push(pushed, registry.url)

    assert done.code == 0, done.err
    assert b"c00kie" not in registry.heard
    assert b"cookie" not in registry.heard.lower()


@pytest.mark.parametrize("place", ["docker", "identity token"])
def test_a_token_realm_that_leads_elsewhere_takes_no_secret_along(pushed: Path, tmp_path: Path, place: str) -> None:
    with GuardedRegistry() as registry, GuardedRegistry() as realm, GuardedRegistry() as stranger:
        challenge = f'Bearer realm="{realm.url}/token",service="x"'
        registry.fault("*", "", Status(401, {"WWW-Authenticate": challenge}), times=None)
        realm.fault("*", "/token", Redirect(f"{stranger.url}{{target}}"), times=None)
        given = (
            identity("docker", tmp_path, registry.host)
            if place == "identity token"
            else by_docker()(tmp_path, registry.host, USER, PASSWORD)
        )
        refused = given.push(pushed, registry.url)

    assert refused.code in {7, 8}, refused.err
    assert basic(USER, PASSWORD).encode() in realm.heard or b"1d-t0ken" in realm.heard
    assert Traces(0, {"stranger": stranger.heard}).places_of([PASSWORD, f"{USER}:{PASSWORD}", "1d-t0ken"]) == []
    assert b"authorization" not in stranger.heard
    assert writes(registry.requests()) == []


@pytest.mark.parametrize("order", [("basic", "BEARER"), ("bEARER", "Basic"), ("Negotiate", "Bearer", "Basic")])
def test_bearer_is_found_in_several_header_lines(tmp_path: Path, order: tuple[str, ...]) -> None:
    require("openssl")
    with RememberingTokens(USER, PASSWORD) as tokens, HostileRegistry() as registry:
        fields = {"basic": 'realm="x"', "bearer": f'realm="{tokens.realm}", service="{tokens.service}"'}
        lines = [("WWW-Authenticate", f"{scheme} {fields.get(scheme.lower(), '')}".strip()) for scheme in order]
        registry.answer("*", "", raw("401 Unauthorized", [*lines, ("Content-Length", "0")], b""))
        refused = by_target_variables(tmp_path, "", USER, PASSWORD).login(registry.url)

    assert refused.code == 7
    assert {(asked.user, asked.status) for asked in tokens.requests} == {(USER, 200)}


@pytest.mark.parametrize("fields", ["access_token", "empty-token", "empty-access"])
def test_a_token_is_found_in_either_field(pushed: Path, tmp_path: Path, fields: str) -> None:
    require("openssl")
    with RememberingTokens(USER, PASSWORD, fields=fields) as tokens, GuardedRegistry(tokens=tokens) as registry:
        done = by_target_variables(tmp_path, "", USER, PASSWORD).push(pushed, registry.url)

    assert done.code == 0, done.err
    assert {request.status for request in writes(registry.requests())} <= {201, 202}


# --- a wrong password, or a right that is missing -------------------------------------------------------------------


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize(("password", "reference"), [(WRONG, "unauthorized"), (PASSWORD, "denied")])
def test_a_wrong_password_is_told_apart_from_missing_rights_before_anything_is_sent(
    pushed: Path, tmp_path: Path, lenient: bool, password: str, reference: str
) -> None:
    require("docker-registry", "openssl")
    with (
        RememberingTokens(USER, PASSWORD, lenient=lenient, refused=["rancher/app"]) as tokens,
        Registry(token=tokens.auth) as registry,
    ):
        refused = by_target_variables(tmp_path, "", USER, password).push(pushed, registry.url, "-o", "json")
        requests = registry.requests()

    assert refused.code == 7, refused.err
    assert refused.json["error"]["reference"] == reference
    assert ("wrong user name or password" in refused.err) == (reference == "unauthorized")
    assert ("does not allow" in refused.err) == (reference == "denied")
    assert f"{USER!r}" in refused.err
    assert {entry.method for entry in requests} <= {"HEAD", "GET"}
    assert len([asked for asked in tokens.requests if asked.status == 401]) <= 2


@pytest.mark.parametrize("word", ["bundle", "push"])
@pytest.mark.parametrize("how", ["basic", "token"])
def test_a_wrong_password_costs_many_images_two_failed_logins_at_most(
    image: BuiltImage, tmp_path: Path, how: str, word: str
) -> None:
    """Accounts are locked after three or five of them."""
    require("openssl")
    names = [f"some/app-{number}" for number in range(12)]
    with RememberingTokens(USER, PASSWORD) as tokens:
        options: dict[str, Any] = {"basic": (USER, PASSWORD)} if how == "basic" else {"tokens": tokens}
        with GuardedRegistry(**options) as registry:
            given = by_authfile(tmp_path, registry.host, USER, WRONG)
            if word == "push":
                many = write_bundle(tmp_path / "many", {f"docker.io/{name}:1": image for name in names})
                refused = given.push(many, registry.url, "--jobs", "16", "-o", "json")
            else:
                references = [f"{registry.host}/{name}:1" for name in names]
                refused = bundle(references, tmp_path / "to", *given.options, "-o", "json", code=10)
            tried = [request.headers.get("authorization") for request in registry.requests()]

    assert {found["error"]["reference"] for found in refused.json["images"]} == {"unauthorized"}
    failed = [request for request in tokens.requests if request.status == 401]
    assert 1 <= len(failed) + tried.count(basic(USER, WRONG)) <= 2


class SlowTokens(RememberingTokens):
    """Takes its time for each token, and counts those it is asked for at once."""

    def __init__(self, *pair: str, **options: Any) -> None:
        super().__init__(*pair, **options)
        self.most = self._here = 0
        self._counting = threading.Lock()

    def _answer(self, handler: QuietHandler) -> None:
        with self._counting:
            self._here += 1
            self.most = max(self.most, self._here)
        self.pause(0.3)
        super()._answer(handler)
        with self._counting:
            self._here -= 1


@pytest.mark.parametrize("user", [None, USER])
def test_tokens_for_several_repositories_are_asked_for_at_once(
    image: BuiltImage, tmp_path: Path, user: str | None
) -> None:
    require("openssl")
    with SlowTokens(USER, PASSWORD, anonymous_pull=True) as tokens, GuardedRegistry(tokens=tokens) as registry:
        for number in range(6):
            registry.add(image, f"some/app-{number}", "1")
        given = by_authfile(tmp_path, registry.host, user, PASSWORD) if user else Given()
        bundle([f"{registry.host}/some/app-{number}:1" for number in range(6)], tmp_path / "to", *given.options)

    assert {request.user for request in tokens.requests} == {user}
    assert sorted(request.scopes for request in tokens.requests) == [
        (f"repository:some/app-{number}:pull",) for number in range(6)
    ]
    assert tokens.most > 1


# --- clocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset_s", [-600, 600])
def test_a_token_realm_whose_clock_is_wrong_makes_no_difference(pushed: Path, tmp_path: Path, offset_s: float) -> None:
    require("docker-registry", "openssl")
    # Long enough for the registry, which does mind.
    with (
        TokenServer(USER, PASSWORD, lifetime=1200, clock_offset_s=offset_s) as tokens,
        Registry(token=tokens.auth) as registry,
    ):
        done = by_target_variables(tmp_path, "", USER, PASSWORD).push(pushed, registry.url)

    assert done.code == 0, done.err
    # One for the registry, one for the repository: none was thought to be too old.
    assert len(tokens.requests) == 2


@pytest.mark.parametrize("offset", ["-10m", "+10m"])
def test_our_own_clock_may_be_wrong(pushed: Path, tmp_path: Path, offset: str) -> None:
    require("docker-registry", "openssl", "faketime")
    with TokenServer(USER, PASSWORD, lifetime=120) as tokens, Registry(token=tokens.auth) as registry:
        report = tmp_path / "report.json"
        given = by_target_variables(tmp_path, "", USER, PASSWORD)
        line = command_line("push", pushed, registry.url, "--report", report)
        done = subprocess.run(
            [find_program("faketime"), "-f", offset, *line], env=environment(given.env),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert len(tokens.requests) == 2
    started = datetime.fromisoformat(json.loads(report.read_text())["started_utc"])
    assert abs(abs((started - datetime.now(UTC)).total_seconds()) - 600) < 60


@pytest.mark.parametrize("offset_s", [-600, 600])
def test_a_pause_until_a_time_is_kept_whatever_the_registrys_clock_says(
    pushed: Path, target: FaultyRegistry, offset_s: int
) -> None:
    there = datetime.now(UTC) + timedelta(seconds=offset_s)
    dates = {"Date": there, "Retry-After": there + timedelta(seconds=2)}
    headers = {name: format_datetime(date, usegmt=True) for name, date in dates.items()}
    busy = target.fault("HEAD", "/manifests/", Status(429, headers), times=1)
    start = time.monotonic()

    done = run("push", pushed, target.url, "--max-wait", "5")

    assert done.code == 0, done.err
    assert busy.hits == 1
    assert 1.9 < time.monotonic() - start < 30


# --- login ----------------------------------------------------------------------------------------------------------


def test_login_says_who_was_accepted_and_where_that_was_found(real: Registry, tmp_path: Path) -> None:
    given = by_docker()(tmp_path, real.host, USER, PASSWORD)

    done, document = given.login(real.url), given.login(real.url, "-o", "json").json

    assert done.code == 0, done.err
    assert done.out == f"{real.host} accepts {USER} (from {tmp_path}/docker/config.json)\n"
    assert document == {
        "host": real.host,
        "username": USER,
        "source": f"{tmp_path}/docker/config.json",
        "checked": True,
        "stored": None,
    }


@pytest.mark.parametrize("how", ["basic", "token", "lenient"])
def test_login_finds_a_wrong_password_and_keeps_nothing(tmp_path: Path, how: str) -> None:
    require("openssl")
    with RememberingTokens(USER, PASSWORD, lenient=how == "lenient") as tokens:
        options: dict[str, Any] = {"basic": (USER, PASSWORD)} if how == "basic" else {"tokens": tokens}
        with GuardedRegistry(**options) as registry:
            given = by_stdin(tmp_path, registry.host, USER, WRONG)
            refused = given.login(registry.url, "--store", tmp_path / "auth.json")

    assert refused.code == 7
    assert "wrong user name or password" in refused.err
    assert not (tmp_path / "auth.json").exists()


def test_login_without_a_credential_says_how_to_give_one(guarded: GuardedRegistry) -> None:
    refused = run("login", guarded.url)

    assert refused.code == 7
    assert "no-credentials" in refused.err
    assert "--username" in refused.err
    assert "--password-file" in refused.err
    assert [request.headers.get("authorization") for request in guarded.requests()] == [None]


def test_login_without_a_credential_tries_a_registry_that_wants_none(target: FaultyRegistry) -> None:
    done = run("login", target.url, "-o", "json")

    assert done.code == 0, done.err
    assert done.json == {"host": target.host, "username": None, "source": None, "checked": False, "stored": None}


def test_login_at_a_registry_that_asks_nobody_does_not_claim_that_the_password_is_right(
    target: FaultyRegistry, tmp_path: Path
) -> None:
    done = by_stdin(tmp_path, "", USER, PASSWORD).login(target.url)

    assert done.code == 0
    assert "needs no login" in done.out
    assert "accepts" not in done.out
    assert "not found out" in done.err
    assert all("authorization" not in request.headers for request in target.requests())


def test_docker_hub_is_asked_at_its_own_api_host(tmp_path: Path) -> None:
    with ForwardProxy(refused=["registry-1.docker.io:443"]) as proxy:
        given = by_stdin(tmp_path, "", USER, PASSWORD) + Given(env={"HTTPS_PROXY": proxy.url})
        refused = given.login("docker.io")

    assert refused.code == 8, refused.err
    assert set(proxy.targets()) == {"registry-1.docker.io:443"}
    assert "registry-1.docker.io" in refused.err


def test_login_is_for_a_host(guarded: GuardedRegistry) -> None:
    refused = run("login", f"{guarded.url}/project")
    assert refused.code == 3
    assert f"Write {guarded.host}" in refused.err


def test_what_login_keeps_opens_the_registry_for_a_push(real: Registry, pushed: Path, tmp_path: Path) -> None:
    kept = tmp_path / "auth.json"
    write_auths(kept, "other.example", {"auth": "b3RoZXI6eA=="})

    logged_in = by_stdin(tmp_path, real.host, USER, PASSWORD).login(real.url, "--store", kept)
    done = Given(["--authfile", kept]).push(pushed, f"{real.url}/ours/{next(numbers)}")

    assert logged_in.code == 0, logged_in.err
    assert f"--authfile {kept}" in logged_in.out
    assert done.code == 0, done.err
    assert kept.stat().st_mode & 0o777 == 0o600
    assert json.loads(kept.read_text())["auths"] == {
        "other.example": {"auth": "b3RoZXI6eA=="},
        real.host: {"auth": pair(USER, PASSWORD)},
    }


def test_a_password_is_asked_for_on_a_terminal_and_not_shown(guarded: GuardedRegistry) -> None:
    line = command_line("login", guarded.url, "--username", USER, "--password-stdin")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(line[0], line, environment())  # noqa: S606 - the command, on a terminal of its own
    try:
        shown = read_until(terminal, b"Password")
        os.write(terminal, f"{PASSWORD}\n".encode())
        shown += read_until(terminal, None)
    finally:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == 0, shown
    assert b"accepts" in shown
    assert PASSWORD.encode() not in shown
    assert guarded.users() == {"", basic(USER, PASSWORD)}


def test_ctrl_c_at_the_question_for_a_password_ends_it(guarded: GuardedRegistry) -> None:
    line = command_line("login", guarded.url, "--username", USER, "--password-stdin")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(line[0], line, environment())  # noqa: S606 - the command, on a terminal of its own
    try:
        read_until(terminal, b"Password")
        os.write(terminal, b"\x03")
        shown = read_until(terminal, None)
    finally:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == 130, shown
    assert b"Traceback" not in shown
    assert guarded.requests() == []


def read_until(terminal: int, end: bytes | None) -> bytes:
    """Read what a terminal shows, until something comes or there is no more."""
    shown, deadline = b"", time.monotonic() + 20
    while end is None or end not in shown:
        ready, _, _ = select.select([terminal], [], [], deadline - time.monotonic())
        assert ready, shown
        try:
            data = os.read(terminal, 4096)
        except OSError:
            # So the end looks on Linux, once nobody has the terminal open.
            return shown
        if not data:
            return shown
        shown += data
    return shown


# --- the scan -------------------------------------------------------------------------------------------------------

PROXY_PASSWORD = "pr0xy s3cret/"  # noqa: S105 - opens nothing but the proxy of these tests
SIGNED = "S1GNED-abcdef"
LAYER = b"layer of a larger image\n" * 20_000


@dataclass
class Scene:
    """The servers of a run that is scanned, and the secrets of it."""

    directory: Path
    bundle: Path
    tokens: RememberingTokens
    registry: GuardedRegistry
    storage: GuardedRegistry
    proxy: ForwardProxy

    @property
    def home(self) -> Path:
        """Where the run may write; not made yet."""
        return self.directory / "run"

    @property
    def strange_url(self) -> str:
        """Address of the storage; under the registry's own name it would be taken for the registry."""
        return self.storage.url.replace("127.0.0.1", "localhost")

    def given(self, password: str = PASSWORD) -> Given:
        """Give the password in a file that lies elsewhere."""
        return by_file(self.directory, "", USER, password)

    def run(self, command: str, *args: str | Path, given: Given | None = None, during: Any = None) -> Traces:
        given = self.given() if given is None else given
        return trace(self.home, command, *args, *given.options, env=given.env, stdin=given.stdin, during=during)

    def push(self, *options: str | Path, **how: Any) -> Traces:
        return self.run("push", self.bundle, how.pop("url", self.registry.url), *options, **how)


def elsewhere(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let uploads go to another host with a signed URL."""
    handle = scene.registry.content.handle

    def answer(request: Request) -> Response:
        response = handle(request)
        if request.method == "POST" and response.status == 202:
            location = f"{scene.strange_url}{response.headers['Location']}?X-Signature={SIGNED}"
            return Response(response.status, response.body, {**response.headers, "Location": location})
        return response

    monkeypatch.setattr(scene.registry.content, "handle", answer)
    monkeypatch.setattr(scene.storage, "content", scene.registry.content)


def terminated_at(method: str, registry: GuardedRegistry) -> Callable[[subprocess.Popen[bytes]], None]:
    """Give what ends a run by SIGTERM when a request of a kind has come for the second time."""

    def during(process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 20
        while len(registry.requests(method)) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)

    return during


def scan_success(scene: Scene, _: pytest.MonkeyPatch) -> tuple[Traces, int]:
    return scene.push("--report", scene.home / "home" / "report.json", "--state", scene.home / "state"), 0


def scan_json(scene: Scene, _: pytest.MonkeyPatch) -> tuple[Traces, int]:
    given = by_target_variables(scene.directory, "", USER, PASSWORD)
    return scene.push("-o", "json", "--progress", "plain", given=given), 0


def scan_wrong_password(scene: Scene, _: pytest.MonkeyPatch) -> tuple[Traces, int]:
    return scene.push("--report", scene.home / "home" / "report.json", given=scene.given("wr0ng-but-mine")), 7


def scan_location_elsewhere(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> tuple[Traces, int]:
    elsewhere(scene, monkeypatch)
    traces = scene.push("--state", scene.home / "state", "--report", scene.home / "home" / "report.json")
    assert any(request.method == "PUT" for request in scene.storage.requests())
    return traces, 0


def scan_chunks_elsewhere(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> tuple[Traces, int]:
    elsewhere(scene, monkeypatch)
    scene.storage.fault("PATCH", "", Status(503), times=None, skip=2)
    options = ("--chunk-size", "64KiB", "--state", scene.home / "state", "--jobs", "1")
    return scene.push(*options, during=terminated_at("PATCH", scene.storage)), 143


def scan_redirect(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> tuple[Traces, int]:
    monkeypatch.setattr(scene.storage, "content", scene.registry.content)
    location = f"{scene.strange_url}{{target}}?X-Signature={SIGNED}"
    scene.registry.fault("HEAD", "/blobs/", Redirect(location), times=None)
    traces = scene.push("--report", scene.home / "home" / "report.json", "-o", "json")
    assert any("X-Signature" in request.target for request in scene.storage.requests())
    return traces, 0


def scan_failing_redirect(scene: Scene, _: pytest.MonkeyPatch) -> tuple[Traces, int]:
    location = f"{scene.strange_url}{{target}}?X-Signature={SIGNED}"
    scene.registry.fault("PUT", "/blobs/uploads/", Redirect(location), times=None)
    scene.storage.fault("*", "", Status(403, {}, b"no"), times=None)
    return scene.push("--report", scene.home / "home" / "report.json"), 10


def scan_terminated(scene: Scene, _: pytest.MonkeyPatch) -> tuple[Traces, int]:
    options = ("--chunk-size", "64KiB", "--jobs", "1", "--report", scene.home / "home" / "report.json")
    traces = scene.push(*options, during=terminated_at("PATCH", scene.registry))
    assert any("uploads-" in place for place in traces.seen), "there is no journal to scan"
    return traces, 143


def scan_proxied(scene: Scene, _: pytest.MonkeyPatch) -> tuple[Traces, int]:
    given = scene.given() + Given(env={"HTTP_PROXY": scene.proxy.login_url})
    traces = scene.push(
        "--report", scene.home / "home" / "report.json", url="http://registry.example:5000", given=given
    )
    assert "http://registry.example:5000" in scene.proxy.requests[0].target
    return traces, 0


def scan_dead_proxy(scene: Scene, _: pytest.MonkeyPatch) -> tuple[Traces, int]:
    scene.proxy.stop()
    given = scene.given() + Given(env={"HTTP_PROXY": scene.proxy.login_url})
    return scene.push("-o", "json", url="http://registry.example:5000", given=given), 8


def scan_login(scene: Scene, _: pytest.MonkeyPatch) -> tuple[Traces, int]:
    kept = scene.home / "home" / "kept.json"
    traces = scene.run("login", scene.registry.url, "--store", kept)
    assert kept.stat().st_mode & 0o777 == 0o600
    # The one file that may hold it.
    return Traces(traces.code, {name: text for name, text in traces.seen.items() if name != "home/kept.json"}), 0


def scan_bundle(scene: Scene, _: pytest.MonkeyPatch) -> tuple[Traces, int]:
    image = one(BlobStore(scene.directory / "more"), "app")
    for place in (scene.registry, scene.storage):
        place.add(image, "some/app", "1")
    location = f"{scene.strange_url}{{target}}?X-Signature={SIGNED}"
    scene.registry.fault("GET", "/blobs/", Redirect(location), times=None)
    arguments = ("--image", f"{scene.registry.host}/some/app:1", "--to", scene.home / "to")
    return scene.run("bundle", *arguments, given=by_authfile(scene.directory, scene.registry.host, USER, PASSWORD)), 0


SCANS = [
    scan_success,
    scan_json,
    scan_wrong_password,
    scan_location_elsewhere,
    scan_chunks_elsewhere,
    scan_redirect,
    scan_failing_redirect,
    scan_terminated,
    scan_proxied,
    scan_dead_proxy,
    scan_login,
    scan_bundle,
]


@pytest.mark.parametrize("scan", SCANS, ids=lambda scan: scan.__name__)
def test_no_secret_is_left_anywhere_or_heard_by_strangers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scan: Callable[[Scene, pytest.MonkeyPatch], tuple[Traces, int]],
) -> None:
    require("openssl")
    store = BlobStore(tmp_path / "store")
    bundle = write_bundle(tmp_path / "bundle", {IMAGE: built(store, LAYER, title="larger")})
    with (
        RememberingTokens(USER, PASSWORD) as tokens,
        GuardedRegistry(tokens=tokens) as registry,
        GuardedRegistry() as storage,
        ForwardProxy({"registry.example:5000": registry.host}, credentials=("proxy user", PROXY_PASSWORD)) as proxy,
    ):
        scene = Scene(tmp_path, bundle, tokens, registry, storage, proxy)
        traces, code = scan(scene, monkeypatch)

    assert traces.code == code, traces.err
    assert "Traceback" not in traces.err
    proxy_secrets = [PROXY_PASSWORD, f"proxy user:{PROXY_PASSWORD}"]
    secrets = [
        PASSWORD,
        f"{USER}:{PASSWORD}",
        "wr0ng-but-mine",
        f"{USER}:wr0ng-but-mine",
        *tokens.issued,
        *proxy_secrets,
    ]
    assert tokens.issued or code in {7, 8}
    assert traces.places_of([*secrets, SIGNED]) == []
    # What the registry itself may know is not for other hosts; what the proxy knows is for nobody else.
    strangers = Traces(0, {"storage": storage.heard})
    assert strangers.places_of(secrets) == []
    assert b"authorization" not in storage.heard.lower()
    assert Traces(0, {"registry": registry.heard}).places_of(proxy_secrets) == []


def test_the_scan_would_find_a_secret(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(json.dumps({"password": PASSWORD}))
    found = Traces(
        0, {"file": (tmp_path / "file").read_bytes(), "other": b"nothing", "pair": basic(USER, PASSWORD).encode()}
    )
    assert found.places_of([PASSWORD]) == ["file"]
    assert found.places_of([f"{USER}:{PASSWORD}"]) == ["pair"]
