"""Where credentials are found: files in docker's form, variables, and which of several places decides."""

from __future__ import annotations

import base64
import json
import os
import pwd
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bundler.cli import access
from bundler.cli.session import state_directory
from bundler.errors import BadOutputError, NoCredentialsError
from bundler.registry import authfile
from bundler.registry.authfile import AuthFile, store
from bundler.registry.credentials import (
    CredentialChain,
    EnvironmentCredentials,
    GivenCredential,
    from_pair,
    variable_suffix,
)
from bundler.registry.endpoint import Credential, Endpoint

HOST = "harbor.example:8443"
USER = "robot$proj+name"
PASSWORD = "päss wörd: 'with' \"everything\" $HOME \\ €"  # noqa: S105 - opens nothing


def pair(username: str = USER, password: str = PASSWORD) -> str:
    return base64.b64encode(f"{username}:{password}".encode()).decode()


def write(path: Path, document: Any) -> AuthFile:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return AuthFile(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def found(file: AuthFile, host: str = HOST, repository: str = "") -> tuple[str, str, str] | None:
    credential = file.lookup(host, repository)
    return (credential.username, credential.password, credential.identity_token) if credential else None


# --- entries of files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        {"auths": {HOST: {"auth": pair()}}},
        {"auths": {f"https://{HOST}": {"auth": pair()}}},
        {"auths": {f"http://{HOST}": {"auth": pair()}}},
        {"auths": {f"https://{HOST}/": {"auth": pair()}}},
        {"auths": {f"https://{HOST}/v1/": {"auth": pair()}}},
        {"auths": {f"{HOST}/v2": {"auth": pair()}}},
        {"auths": {HOST: {"username": USER, "password": PASSWORD}}},
        {"auths": {HOST: {"username": USER, "password": PASSWORD, "auth": ""}}},
        {"auths": {HOST: {"username": USER, "password": PASSWORD, "email": "a@example", "identitytoken": ""}}},
        {"auths": {HOST: {"auth": pair(), "identitytoken": ""}}},
        # What is right goes before what is not for us.
        {"auths": {"harbor.example": {"auth": pair("x", "y")}, HOST: {"auth": pair()}}},
        {"auths": {HOST: {"auth": pair()}}, "credHelpers": {}, "credsStore": "", "HttpHeaders": {"X": "y"}},
        # Docker's first files held nothing but the entries.
        {HOST: {"auth": pair(), "email": "a@example"}},
        {f"https://{HOST}/v1/": {"auth": pair(), "email": ""}},
    ],
)
def test_every_form_of_an_entry_is_read_whole(file: Path, document: Any) -> None:
    assert found(write(file, document)) == (USER, PASSWORD, "")


@pytest.mark.parametrize("entry", [{"identitytoken": "id"}, {"auth": pair("x", ""), "identitytoken": "id"}])
def test_an_identity_token_goes_before_a_password(file: Path, entry: dict[str, str]) -> None:
    assert found(write(file, {"auths": {HOST: entry}})) == ("", "", "id")


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"auths": {}},
        {"auths": None},
        {"auths": {HOST: {}}},
        {"auths": {"harbor.example": {"auth": pair()}}},
        {"auths": {"harbor.example:443": {"auth": pair()}}},
        {"auths": {f"other.{HOST}": {"auth": pair()}}},
        {"auths": {f"{HOST}.evil.example": {"auth": pair()}}},
        {"auths": {f"https://evil.example/{HOST}": {"auth": pair()}}},
        {"auths": {f"{HOST}/k3s": {"auth": pair()}}},
        {"HttpHeaders": {"X": "y"}, "detachKeys": "ctrl-p"},
    ],
)
def test_a_credential_of_another_host_or_port_is_none(file: Path, document: Any) -> None:
    assert found(write(file, document)) is None


def test_the_host_without_a_port_is_another_one(file: Path) -> None:
    assert found(write(file, {"auths": {HOST: {"auth": pair()}}}), "harbor.example") is None


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io"])
def test_docker_hub_goes_by_all_of_its_names(file: Path, key: str) -> None:
    assert found(write(file, {"auths": {key: {"auth": pair()}}}), "docker.io") == (USER, PASSWORD, "")


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        ("k3s/rancher/pause", "deep"),
        ("k3s/rancher", "deep"),
        ("k3s/ranchers", "k3s"),
        ("k3s", "k3s"),
        ("k3sx/a", "host"),
        ("other", "host"),
        ("", "host"),
    ],
)
def test_the_longest_namespace_that_holds_the_repository_wins(file: Path, repository: str, expected: str) -> None:
    entries = {"": "host", "/k3s": "k3s", "/k3s/rancher": "deep"}
    document = {"auths": {f"{HOST}{path}": {"auth": pair(name, "x")} for path, name in entries.items()}}

    assert found(write(file, document), HOST, repository) == (expected, "x", "")


@pytest.mark.parametrize("other", [f"https://{HOST}", f"http://{HOST}/", f"https://{HOST}/v1/", f"{HOST}/v2"])
@pytest.mark.parametrize("first", [True, False])
def test_the_host_itself_goes_before_its_older_names(file: Path, other: str, first: bool) -> None:
    right, old = {HOST: {"auth": pair()}}, {other: {"auth": pair("old", "old")}}

    assert found(write(file, {"auths": {**right, **old} if first else {**old, **right}})) == (USER, PASSWORD, "")


def test_a_file_that_is_not_there_holds_nothing_unless_the_user_named_it(file: Path) -> None:
    assert AuthFile(file).lookup(HOST) is None
    with pytest.raises(NoCredentialsError, match="does not exist"):
        AuthFile(file, required=True).lookup(HOST)


def test_a_place_that_cannot_be_looked_at_is_an_error_and_no_crash(tmp_path: Path) -> None:
    with pytest.raises(NoCredentialsError, match="cannot be read"):
        AuthFile(tmp_path / ("x" * 300)).lookup(HOST)


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{",
        '{"auths": {"' + HOST + '": {"auth": "c2VjcmV0OnNlY3JldA=="',
        "[]",
        "null",
        '"secret"',
        "\x00",
        {"auths": ["secret"]},
        {"auths": "secret"},
        {"auths": {HOST: "secret"}},
        {"auths": {HOST: ["secret"]}},
        {"auths": {HOST: {"auth": "%secret%"}}},
        {"auths": {HOST: {"auth": base64.b64encode(b"secret without colon").decode()}}},
        {"auths": {HOST: {"auth": base64.b64encode(b"secret:\xff\xfe").decode()}}},
        {"auths": {HOST: {"auth": 7}}},
        {"auths": {HOST: {"auth": ["secret"]}}},
        {"auths": {HOST: {"username": "secret\ud800", "password": "x"}}},
        {"auths": {HOST: {"identitytoken": ["secret"]}}},
        {"auths": {HOST: {"identitytoken": {"secret": 1}}}},
        {"credHelpers": "secret"},
        {"credHelpers": {HOST: ["secret"]}},
        {"credsStore": {"secret": 1}},
    ],
)
def test_a_broken_file_is_named_and_not_quoted(file: Path, document: Any) -> None:
    with pytest.raises(NoCredentialsError) as caught:
        write(file, document).lookup(HOST)

    assert str(file) in caught.value.message
    assert caught.value.hint
    assert "secret" not in caught.value.message + caught.value.hint + repr(caught.value)


def test_bytes_that_are_no_text_are_a_broken_file(file: Path) -> None:
    file.write_bytes(b'{"auths": {"x": {"auth": "\xff"}}}')
    with pytest.raises(NoCredentialsError):
        AuthFile(file).lookup(HOST)


def test_an_entry_of_another_host_may_be_broken(file: Path) -> None:
    document = {"auths": {"other.example": {"auth": "%"}, "x": 3, HOST: {"auth": pair()}}}
    assert found(write(file, document)) == (USER, PASSWORD, "")


def test_a_helper_of_one_host_may_be_malformed_where_that_of_another_is_not(file: Path) -> None:
    places = write(file, {"auths": {"other.example": {"auth": pair()}}, "credHelpers": {HOST: ["secret"]}})

    assert found(places, "other.example") == (USER, PASSWORD, "")
    for _ in range(2):
        with pytest.raises(NoCredentialsError, match="cannot be read"):
            places.lookup(HOST)


def test_a_file_without_entries_takes_some(file: Path) -> None:
    file.write_text('{"auths": null, "HttpHeaders": {}}')
    store(file, HOST, Credential(USER, PASSWORD))
    assert found(AuthFile(file)) == (USER, PASSWORD, "")


def test_a_file_is_read_once(file: Path) -> None:
    places = write(file, {"auths": {HOST: {"auth": pair()}}})
    assert found(places) == (USER, PASSWORD, "")
    file.unlink()
    assert found(places, HOST, "other/repository") == (USER, PASSWORD, "")


# --- helpers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)
    return directory


def helper(directory: Path, script: str, name: str = "test") -> None:
    path = directory / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def answers(directory: Path, username: str, secret: str, name: str = "test") -> Path:
    """Write a helper with one answer; it keeps the host that it was asked for."""
    answer, asked = directory / f"{name}.answer", directory / f"{name}.asked"
    answer.write_text(json.dumps({"ServerURL": "x", "Username": username, "Secret": secret}))
    helper(directory, f'[ "$1" = get ] && cat >>"{asked}" && echo >>"{asked}" && cat "{answer}"', name)
    return asked


@pytest.mark.parametrize("settings", [{"credsStore": "test"}, {"credHelpers": {HOST: "test"}}])
@pytest.mark.parametrize("auths", [{}, {"auths": {HOST: {}}}, {"auths": {HOST: {"auth": pair("old", "old")}}}])
def test_a_helper_is_asked_for_the_host_and_goes_before_entries(
    helpers: Path, file: Path, settings: dict[str, Any], auths: dict[str, Any]
) -> None:
    asked = answers(helpers, USER, PASSWORD)

    places = write(file, {**settings, **auths})

    assert found(places) == (USER, PASSWORD, "")
    assert found(places) == (USER, PASSWORD, "")
    assert asked.read_text() == f"{HOST}\n"


def test_a_helper_is_asked_once_for_all_repositories_of_a_host(helpers: Path, file: Path) -> None:
    asked = answers(helpers, USER, PASSWORD)
    places = write(file, {"credsStore": "test"})

    assert {found(places, repository=f"k3s/app-{number}") for number in range(9)} == {(USER, PASSWORD, "")}
    assert asked.read_text() == f"{HOST}\n"


def test_a_helper_that_failed_is_not_asked_for_other_repositories(helpers: Path, file: Path) -> None:
    asked = file.with_name("asked")
    helper(helpers, f'cat >>"{asked}"; echo >>"{asked}"; exit 1')
    places = write(file, {"credHelpers": {HOST: "test"}})

    for number in range(9):
        with pytest.raises(NoCredentialsError, match="docker-credential-test failed"):
            places.lookup(HOST, f"k3s/app-{number}")
    assert asked.read_text() == f"{HOST}\n"


def test_a_helper_of_one_host_goes_before_the_store_of_all(helpers: Path, file: Path) -> None:
    answers(helpers, "one", "x", "one")
    answers(helpers, "all", "x", "all")
    places = write(file, {"credHelpers": {HOST: "one"}, "credsStore": "all"})

    assert found(places) == ("one", "x", "")
    assert found(places, "other.example") == ("all", "x", "")


def test_a_helper_may_hold_an_identity_token(helpers: Path, file: Path) -> None:
    answers(helpers, "<token>", "id")
    assert found(write(file, {"credsStore": "test"})) == ("", "", "id")


def test_a_helper_that_knows_docker_hub_is_asked_by_its_old_name(helpers: Path, file: Path) -> None:
    asked = answers(helpers, USER, PASSWORD)
    assert found(write(file, {"credsStore": "test"}), "docker.io") == (USER, PASSWORD, "")
    assert asked.read_text() == "https://index.docker.io/v1/\n"


@pytest.mark.parametrize(
    "script",
    ["echo 'credentials not found in native keychain'; exit 1", 'echo \'{"Username": "", "Secret": ""}\''],
)
def test_a_helper_that_knows_nothing_leaves_it_to_the_entries(helpers: Path, file: Path, script: str) -> None:
    helper(helpers, script)

    assert found(write(file, {"credsStore": "test"})) is None
    assert found(write(file, {"credsStore": "test", "auths": {HOST: {"auth": pair()}}})) == (USER, PASSWORD, "")


@pytest.mark.parametrize(
    "script",
    [
        "echo secret; exit 1",
        "echo secret",
        "echo",
        "exit 0",
        "echo '[\"secret\"]'",
        'echo \'{"Username": "secret"}\'',
        'echo \'{"Username": ["secret"], "Secret": {"secret": 1}}\'',
        'printf \'{"Username": "x", "Secret": "secret\\377"}\'',
        "kill -9 $$",
    ],
)
def test_a_helper_that_fails_or_prints_garbage_is_named_and_not_quoted(helpers: Path, file: Path, script: str) -> None:
    helper(helpers, script)

    with pytest.raises(NoCredentialsError) as caught:
        write(file, {"credsStore": "test"}).lookup(HOST)

    assert str(file) in caught.value.message
    assert "docker-credential-test" in caught.value.message
    assert "secret" not in caught.value.message + caught.value.hint


def test_a_helper_that_is_not_installed_is_named(file: Path) -> None:
    with pytest.raises(NoCredentialsError, match="docker-credential-nowhere is not on PATH"):
        write(file, {"credsStore": "nowhere"}).lookup(HOST)


def test_a_helper_that_waits_for_ever_is_not_waited_for(
    helpers: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    helper(helpers, f'cat "{pipe}"')
    monkeypatch.setattr(authfile, "_HELPER_S", 0.2)

    with pytest.raises(NoCredentialsError, match="did not answer within"):
        write(file, {"credsStore": "test"}).lookup(HOST)

    pipe.write_bytes(b"")  # lets the helper end


# --- keeping --------------------------------------------------------------------------------------------------------


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    "credential", [Credential(USER, PASSWORD), Credential("", "", "id.token"), Credential("u", "a:b:c")]
)
def test_what_is_kept_is_found_again(file: Path, credential: Credential) -> None:
    store(file, HOST, credential)

    again = AuthFile(file).lookup(HOST)
    assert again is not None
    assert (again.username, again.password, again.identity_token) == (
        credential.username,
        credential.password,
        credential.identity_token,
    )
    assert mode_of(file) == 0o600
    assert sorted(path.name for path in file.parent.iterdir()) == ["config.json"]


def test_keeping_leaves_all_else_as_it_is(file: Path) -> None:
    before: dict[str, dict[str, Any]] = {
        "auths": {"other.example": {"auth": pair("x", "y"), "email": "z"}, f"{HOST}/k3s": {"auth": pair("n", "n")}},
        "credHelpers": {"helped.example": "test"},
        "HttpHeaders": {"X": "y"},
    }
    file.write_text(json.dumps(before))
    file.chmod(0o644)

    store(file, HOST, Credential(USER, PASSWORD))

    after = json.loads(file.read_text())
    assert after.pop("auths") == {**before.pop("auths"), HOST: {"auth": pair()}}
    assert after == before
    assert mode_of(file) == 0o600


@pytest.mark.parametrize("key", [HOST, f"https://{HOST}", f"http://{HOST}", f"https://{HOST}/v1/"])
def test_what_is_kept_goes_before_what_was_there_for_the_host(file: Path, key: str) -> None:
    file.write_text(json.dumps({"auths": {key: {"auth": pair("old", "old")}}}))
    store(file, HOST, Credential(USER, PASSWORD))
    assert found(AuthFile(file)) == (USER, PASSWORD, "")


def test_a_link_to_the_file_stays_one(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(file.name)
    for username in (USER, "another"):
        store(link, HOST, Credential(username, PASSWORD))
        assert link.is_symlink()
        assert found(AuthFile(file)) == (username, PASSWORD, "")
    assert mode_of(file) == 0o600


def test_the_entries_of_an_old_file_still_count_afterwards(file: Path) -> None:
    file.write_text(json.dumps({"other.example": {"auth": pair("x", "y"), "email": ""}}))
    store(file, HOST, Credential(USER, PASSWORD))
    assert found(AuthFile(file), "other.example") == ("x", "y", "")
    assert found(AuthFile(file)) == (USER, PASSWORD, "")


def test_a_file_that_a_crash_left_does_not_lend_its_mode(file: Path) -> None:
    stale = file.with_name(f".{file.name}.new")
    stale.write_text("stale")
    stale.chmod(0o666)

    store(file, HOST, Credential(USER, PASSWORD))

    assert mode_of(file) == 0o600
    assert not stale.exists()


@pytest.mark.parametrize("settings", [{"credsStore": "pass"}, {"credHelpers": {HOST: "pass"}}])
def test_a_host_that_a_helper_owns_is_not_kept(file: Path, settings: dict[str, Any]) -> None:
    file.write_text(json.dumps(settings))
    with pytest.raises(BadOutputError, match="docker-credential-pass"):
        store(file, HOST, Credential(USER, PASSWORD))
    assert json.loads(file.read_text()) == settings


@pytest.mark.parametrize(
    "text", ["", "not json", "[]", "null", '{"auths": ["x"]}', '{"auths": "x"}', '{"credHelpers": 3}']
)
def test_a_file_that_is_no_authfile_is_not_touched(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(BadOutputError, match="not touched"):
        store(file, HOST, Credential(USER, PASSWORD))
    assert file.read_text() == text


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadOutputError):
        store(tmp_path / "nowhere" / "auth.json", HOST, Credential(USER, PASSWORD))
    with pytest.raises(BadOutputError):
        store(tmp_path, HOST, Credential(USER, PASSWORD))


# --- variables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "suffix"),
    [
        ("harbor.example", "HARBOR_EXAMPLE"),
        ("harbor.example:8443", "HARBOR_EXAMPLE_8443"),
        ("my-registry.example", "MY_REGISTRY_EXAMPLE"),
        ("10.0.0.1:5000", "10_0_0_1_5000"),
        ("[::1]:5000", "___1__5000"),
        ("docker.io", "DOCKER_IO"),
        ("a_b", "A_B"),
    ],
)
def test_a_host_has_one_variable(host: str, suffix: str) -> None:
    assert variable_suffix(host) == suffix
    environ = {f"AIRGAP_SYNC_USERNAME_{suffix}": USER, f"AIRGAP_SYNC_PASSWORD_{suffix}": PASSWORD}
    credential = EnvironmentCredentials(environ).lookup(host, "any/repository")
    assert credential == Credential(USER, PASSWORD, source=f"AIRGAP_SYNC_USERNAME_{suffix}")
    assert EnvironmentCredentials(environ).lookup(f"x{host}") is None


@pytest.mark.parametrize(
    ("environ", "there", "missing"),
    [
        ({"U": USER}, "U", "P"),
        ({"P": PASSWORD}, "P", "U"),
        ({"U": USER, "P": ""}, "U", "P"),
        ({"U": "", "P": PASSWORD}, "P", "U"),
    ],
)
def test_one_variable_of_two_is_an_error(environ: Mapping[str, str], there: str, missing: str) -> None:
    with pytest.raises(NoCredentialsError) as caught:
        from_pair(("U", "P"), environ)
    assert caught.value.message == f"{there} is set and {missing} is not"
    assert PASSWORD not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("environ", [{}, {"U": "", "P": ""}])
def test_variables_that_are_empty_are_not_set(environ: Mapping[str, str]) -> None:
    assert from_pair(("U", "P"), environ) is None


# --- several places -------------------------------------------------------------------------------------------------


def test_the_first_place_that_knows_the_host_decides(file: Path) -> None:
    first, second = (GivenCredential(HOST, Credential(name, "x")) for name in ("first", "second"))
    other = GivenCredential("other.example", Credential("other", "x"))

    assert CredentialChain([other, first, second]).lookup(HOST) == Credential("first", "x")
    assert CredentialChain([other]).lookup(HOST) is None
    # Those behind a broken place are not asked.
    with pytest.raises(NoCredentialsError):
        CredentialChain([other, write(file, "{"), first]).lookup(HOST)
    assert CredentialChain([first, write(file, "{")]).lookup(HOST) == Credential("first", "x")


def test_a_given_credential_is_for_its_host_and_port_only() -> None:
    given = GivenCredential(HOST, Credential(USER, PASSWORD))
    assert [given.lookup(host) for host in ("harbor.example", f"{HOST}0", f"x{HOST}")] == [None] * 3
    assert given.lookup(HOST, "any") is not None


def test_a_user_without_a_home_directory_has_no_docker_config(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    def unknown(_uid: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    write(file, {"auths": {HOST: {"auth": pair()}}})

    assert access.files(None, {}).lookup(HOST) is None
    assert access.files(str(file), {}).lookup(HOST) is not None
    assert access.files(None, {"DOCKER_CONFIG": str(file.parent)}).lookup(HOST) is not None
    with pytest.raises(BadOutputError, match="no home directory"):
        state_directory(None)


@pytest.mark.parametrize("field", ["username", "password", "identity_token"])
def test_a_credential_that_is_no_text_is_refused_and_not_quoted(field: str) -> None:
    # What Python makes of bytes in the environment that are not UTF-8.
    with pytest.raises(NoCredentialsError, match="from the place") as caught:
        Credential(**{"username": "u", field: "g\udcfcnther", "source": "the place"})
    assert "nther" not in caught.value.message


def test_no_secret_is_shown() -> None:
    credential = Credential("visible", "s3cret", "t0ken", "a place")
    for shown in (repr(credential), str(credential), repr(Endpoint("https://x/v2", credential=credential))):
        assert "visible" in shown
        assert "s3cret" not in shown
        assert "t0ken" not in shown
