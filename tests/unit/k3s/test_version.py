"""K3s versions: form, order, names, and what a mistyped one most likely means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.errors import BadK3sVersionError
from bundler.k3s.version import K3sVersion, nearest

NUMBERS = st.integers(0, 30)
VERSIONS = st.builds(K3sVersion, NUMBERS, NUMBERS, NUMBERS, st.none() | st.integers(1, 12), st.integers(1, 12))


def versions(*texts: str) -> tuple[K3sVersion, ...]:
    return tuple(K3sVersion.parse(text) for text in texts)


KNOWN = versions(
    "v1.31.13+k3s1",
    "v1.31.14+k3s1",
    "v1.32.0+k3s1",
    "v1.32.3+k3s1",
    "v1.32.9+k3s1",
    "v1.32.11+k3s1",
    "v1.32.11+k3s3",
    "v1.33.0+k3s1",
    "v1.35.7+k3s1",
    "v1.36.3+k3s1",
    "v1.37.1+k3s1",
)


@pytest.mark.parametrize(
    ("text", "plus", "tag", "url"),
    [
        ("v1.32.3+k3s1", "v1.32.3+k3s1", "v1.32.3-k3s1", "v1.32.3%2Bk3s1"),
        ("v1.32.3-k3s1", "v1.32.3+k3s1", "v1.32.3-k3s1", "v1.32.3%2Bk3s1"),
        ("v1.33.0-rc1+k3s1", "v1.33.0-rc1+k3s1", "v1.33.0-rc1-k3s1", "v1.33.0-rc1%2Bk3s1"),
        ("v1.33.0-rc10-k3s2", "v1.33.0-rc10+k3s2", "v1.33.0-rc10-k3s2", "v1.33.0-rc10%2Bk3s2"),
    ],
)
def test_forms(text: str, plus: str, tag: str, url: str) -> None:
    version = K3sVersion.parse(text)
    assert (str(version), version.image_tag, version.url_name) == (plus, tag, url)
    assert version.minor == plus[:5]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1.32.3",
        "v1.32.3",
        "1.32.3+k3s1",
        "v1.32+k3s1",
        "v1.32.3+k3s",
        "v1.32.3+k3s0",
        "v1.32.3+k3s01",
        "v1.032.3+k3s1",
        "v01.32.3+k3s1",
        "v1.32.03+k3s1",
        "v1.33.0-rc+k3s1",
        "v1.33.0-rc01+k3s1",
        "v1.33.0-rc0+k3s1",
        "v1.33.0-beta1+k3s1",
        "v1.32.3_k3s1",
        "v1.32.3%2Bk3s1",
        "v1.32.3+rke2r1",
        "V1.32.3+K3S1",
        " v1.32.3+k3s1",
        "v1.32.3+k3s1\n",
        "v1.32.3+k3s1 ",
        "v1.32.3 +k3s1",
        "v1.32.٣+k3s1",
        "v1.32.3333333+k3s1",
        "latest",
        "stable",
        "v1.32.3+k3s1+k3s1",
    ],
)
def test_malformed(text: str) -> None:
    with pytest.raises(BadK3sVersionError) as caught:
        K3sVersion.parse(text)
    assert "vX.Y.Z+k3sN" in caught.value.hint
    assert "\n" not in caught.value.message


def test_a_long_text_is_cut_in_the_message() -> None:
    with pytest.raises(BadK3sVersionError) as caught:
        K3sVersion.parse("v" * 10_000)
    assert len(caught.value.message) < 120


def test_order_by_example() -> None:
    ordered = versions(
        "v1.9.12+k3s1",
        "v1.32.3+k3s1",
        "v1.32.3+k3s2",
        "v1.32.3+k3s10",
        "v1.32.10+k3s1",
        "v1.33.0-rc1+k3s1",
        "v1.33.0-rc1+k3s2",
        "v1.33.0-rc2+k3s1",
        "v1.33.0-rc10+k3s1",
        "v1.33.0+k3s1",
        "v2.0.0+k3s1",
    )
    assert sorted(set(ordered)) == list(ordered)


@given(VERSIONS)
def test_text_round_trips(version: K3sVersion) -> None:
    assert K3sVersion.parse(str(version)) == version
    assert K3sVersion.parse(version.image_tag) == version
    assert hash(K3sVersion.parse(str(version))) == hash(version)


@given(VERSIONS, VERSIONS)
def test_order_is_total_and_that_of_the_numbers(one: K3sVersion, other: K3sVersion) -> None:
    def key(v: K3sVersion) -> tuple[int, int, int, float, int]:
        return v.major, v.minor_number, v.patch, v.candidate or float("inf"), v.build

    assert (one < other) == (key(one) < key(other))
    assert (one == other) == (key(one) == key(other))
    assert (one < other) + (one == other) + (one > other) == 1
    assert (one <= other) == (one < other or one == other)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.32.3", ["v1.32.3+k3s1"]),
        ("v1.32.3", ["v1.32.3+k3s1"]),
        ("v1.32.3+k3s", ["v1.32.3+k3s1"]),
        ("V1.32.3+K3S1", ["v1.32.3+k3s1"]),
        ("v1.32.3%2Bk3s1", ["v1.32.3+k3s1"]),
        (" v1.32.3+k3s1 ", ["v1.32.3+k3s1"]),
        ("v1.032.03+k3s1", ["v1.32.3+k3s1"]),
        ("v1.32.11", ["v1.32.11+k3s3", "v1.32.11+k3s1"]),
        ("1.32.11+k3s1", ["v1.32.11+k3s1", "v1.32.11+k3s3"]),
        ("v1.32.11+k3s2", ["v1.32.11+k3s3", "v1.32.11+k3s1"]),
        ("v1.32.8", ["v1.32.9+k3s1", "v1.32.11+k3s3", "v1.32.11+k3s1"]),
        ("v1.32.4", ["v1.32.3+k3s1", "v1.32.0+k3s1", "v1.32.9+k3s1"]),
        ("v1.32.99+k3s1", ["v1.32.11+k3s3", "v1.32.11+k3s1", "v1.32.9+k3s1"]),
        ("1.32", ["v1.32.11+k3s3", "v1.32.11+k3s1", "v1.32.9+k3s1"]),
        ("v1.34.2+k3s1", ["v1.35.7+k3s1", "v1.33.0+k3s1", "v1.36.3+k3s1"]),
        ("v1.99", ["v1.37.1+k3s1", "v1.36.3+k3s1", "v1.35.7+k3s1"]),
        ("latest", ["v1.37.1+k3s1", "v1.36.3+k3s1", "v1.35.7+k3s1"]),
        ("stable", ["v1.37.1+k3s1", "v1.36.3+k3s1", "v1.35.7+k3s1"]),
        ("", ["v1.37.1+k3s1", "v1.36.3+k3s1", "v1.35.7+k3s1"]),
        ("k3s", ["v1.37.1+k3s1", "v1.36.3+k3s1", "v1.35.7+k3s1"]),
    ],
)
def test_nearest(text: str, expected: list[str]) -> None:
    assert [str(v) for v in nearest(text, KNOWN)] == expected


def test_nearest_is_bounded() -> None:
    assert nearest("1.32", KNOWN, count=1) == versions("v1.32.11+k3s3")
    assert nearest("1.32", ()) == ()


@given(st.text(max_size=30))
def test_nearest_takes_any_text(text: str) -> None:
    assert 1 <= len(nearest(text, KNOWN)) <= 3
