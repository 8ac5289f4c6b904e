"""Bearer tokens: which field holds one, how long it is good for, and what it says it allows."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest

from bundler.errors import RegistryUnavailableError
from bundler.registry.token import DEFAULT_EXPIRY_S, Scope, Token

REALM = "https://auth.example/token?service=s3cret"
APP = Scope("k3s/app", "pull,push")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the test set the time."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def answer(**fields: Any) -> Token:
    return Token.from_answer(json.dumps(fields).encode(), REALM)


def jwt(claims: Any, *, head: str = "e30", signature: str = "c2ln") -> str:
    text = claims if isinstance(claims, str) else json.dumps(claims)
    return f"{head}.{base64.urlsafe_b64encode(text.encode()).rstrip(b'=').decode()}.{signature}"


def granting(*access: Any) -> Token:
    return answer(token=jwt({"access": list(access)}))


def entry(name: str, *actions: str, kind: str = "repository") -> dict[str, Any]:
    return {"type": kind, "name": name, "actions": list(actions)}


# --- the answer of a realm ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"token": "t"},
        {"access_token": "t"},
        {"token": "t", "access_token": "other"},
        {"token": "", "access_token": "t"},
        {"token": None, "access_token": "t"},
        {"token": "t", "access_token": ""},
        {"token": "t", "issued_at": "not a date", "refresh_token": "r"},
    ],
)
def test_the_first_field_that_is_not_empty_holds_the_token(fields: dict[str, Any]) -> None:
    assert answer(**fields).value == "t"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>s3cret</html>",
        b"null",
        b"[]",
        b'"s3cret"',
        b"{}",
        b'{"token": ""}',
        b'{"token": ["s3cret"]}',
        b'{"token": 7}',
        b'{"token": "s3cret", "expires_in": "soon"}',
        b'{"token": "s3cret", "expires_in": [1]}',
        b'{"token": "s3cret", "expires_in": 1' + b"0" * 400 + b"}",
        b'{"token": "s3cret\\r\\nX-Injected: 1"}',
        b'{"token": "s3cret\\u0000"}',
        '{"token": "s3cret-ü"}'.encode(),
        b'{"token": "s3cret\\ud800"}',
        b"[" * 100_000,
    ],
)
def test_an_answer_without_a_usable_token_is_an_error_that_quotes_nothing(body: bytes) -> None:
    with pytest.raises(RegistryUnavailableError) as caught:
        Token.from_answer(body, REALM)
    assert "https://auth.example/token" in caught.value.message
    assert "s3cret" not in caught.value.message


# --- for how long ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "lifetime_s"),
    [
        ({}, DEFAULT_EXPIRY_S),
        ({"expires_in": 0}, DEFAULT_EXPIRY_S),
        ({"expires_in": 300}, 300),
        ({"expires_in": "9"}, 9),
    ],
)
def test_without_a_lifetime_it_is_a_minute(fields: dict[str, Any], lifetime_s: float) -> None:
    assert answer(token="t", **fields).lifetime_s == lifetime_s  # noqa: S106 - a token of nothing


@pytest.mark.parametrize(
    ("lifetime_s", "good_s", "fresh_s"),
    [(60, 48, 6), (300, 240, 30), (1800, 1440, 30), (20, 15, 2), (6, 1, 0.6), (1, 1, 0.1)],
)
def test_it_is_replaced_before_it_expires_and_earlier_for_large_bodies(
    clock: list[float], lifetime_s: float, good_s: float, fresh_s: float
) -> None:
    token = answer(token="t", expires_in=lifetime_s)  # noqa: S106 - a token of nothing
    start = clock[0]

    def at(seconds: float) -> tuple[bool, bool]:
        clock[0] = start + seconds
        return token.is_good, token.is_fresh

    assert at(0) == (True, True)
    assert at(fresh_s - 0.01) == (True, True)
    assert at(fresh_s + 0.01) == (True, False)
    assert at(good_s - 0.01) == (True, False)
    assert at(good_s + 0.01) == (False, False)


@pytest.mark.parametrize("text", ["-5", "NaN", "Infinity", "1e308"])
def test_a_lifetime_that_makes_no_sense_is_no_reason_to_use_it_for_ever_or_never(clock: list[float], text: str) -> None:
    token = Token.from_answer(f'{{"token": "t", "expires_in": {text}}}'.encode(), REALM)
    assert token.is_good
    if text == "-5":
        clock[0] += 10
        assert not token.is_good


@pytest.mark.parametrize("issued_at", ["1999-01-01T00:00:00Z", "2199-01-01T00:00:00Z"])
def test_when_the_realm_thinks_it_issued_it_does_not_matter(clock: list[float], issued_at: str) -> None:
    token = answer(token="t", expires_in=300, issued_at=issued_at)  # noqa: S106 - a token of nothing
    assert token.is_good
    clock[0] += 299
    assert not token.is_good


# --- what it allows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("access", "expected"),
    [
        ([entry("k3s/app", "pull", "push")], True),
        ([entry("k3s/app", "push", "pull", "delete")], True),
        ([entry("k3s/app", "*")], True),
        ([entry("other", "pull"), entry("k3s/app", "pull", "push")], True),
        ([entry("k3s/app", "pull"), entry("k3s/app", "push")], True),
        ([entry("k3s/app", "pull")], False),
        ([entry("k3s/app")], False),
        ([], False),
        ([entry("k3s/other", "pull", "push")], False),
        ([entry("k3s/app", "pull", "push", kind="registry")], False),
        ([{"type": "repository", "name": "k3s/app", "actions": None}], False),
        ([{"type": "repository", "name": "k3s/app"}], False),
        ([{"type": "repository", "name": ["k3s/app"], "actions": [["pull"]]}, None, 7, "x"], False),
    ],
)
def test_its_access_tells_what_it_allows(access: list[Any], expected: bool) -> None:
    assert granting(*access).allows(APP) is expected


@pytest.mark.parametrize(
    ("access", "by_project", "expected"),
    [
        ([entry("k3s/other", "pull", "push")], True, True),
        ([entry("k3s/other", "pull", "push")], False, False),
        ([entry("k3s/other", "pull"), entry("k3s/more", "pull", "push")], True, True),
        ([entry("k3s/other", "pull")], True, False),
        ([entry("k3sx/app", "pull", "push")], True, False),
        ([entry("k3s", "pull", "push")], True, True),
    ],
)
def test_at_harbor_a_right_is_one_in_the_whole_project(access: list[Any], by_project: bool, expected: bool) -> None:
    assert granting(*access).allows(APP, by_project=by_project) is expected


def test_an_account_of_harbor_without_any_right_has_null() -> None:
    assert answer(token=jwt({"access": None})).allows(APP) is False


@pytest.mark.parametrize(
    "value",
    [
        "opaque",
        "a.b",
        "a.b.c",
        "..",
        "a.%%%.c",
        jwt("not json"),
        jwt([]),
        jwt("null"),
        jwt({}),
        jwt({"access": "pull"}),
        jwt({"access": {"type": "repository"}}),
        jwt("[" * 100_000),
        "djEuMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw",
    ],
)
def test_a_token_that_says_nothing_is_left_to_the_registry(value: str) -> None:
    assert answer(token=value).allows(APP) is None


@pytest.mark.parametrize("length", range(8))
def test_a_claim_is_read_whatever_its_length(length: int) -> None:
    claims = {"sub": "x" * length, "access": [entry("k3s/app", "pull", "push")]}
    assert answer(token=jwt(claims)).allows(APP) is True


def test_no_token_is_shown() -> None:
    token = answer(token="s3cret", expires_in=300)  # noqa: S106 - a token of nothing
    assert "s3cret" not in repr(token) + str(token)
    assert str(Scope("a/b", "pull,push")) == "repository:a/b:pull,push"
