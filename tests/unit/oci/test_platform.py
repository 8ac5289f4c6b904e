"""Platforms: which variants stand in for which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.errors import BadPlatformError
from bundler.oci.platform import Platform

P = Platform.parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/arm64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("Windows/AMD64", "windows/amd64"),
        ("linux/riscv64", "linux/riscv64"),
    ],
)
def test_platforms_are_normalised(text: str, expected: str) -> None:
    assert str(P(text)) == expected


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux amd64", "li nux/amd64"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(BadPlatformError):
        P(text)


@pytest.mark.parametrize(
    ("wanted", "candidate", "rank"),
    [
        ("linux/arm", "linux/arm/v7", 0),
        ("linux/arm", "linux/arm/v6", 1),
        ("linux/arm", "linux/arm/v5", 2),
        ("linux/arm", "linux/arm/v8", None),
        ("linux/arm/v6", "linux/arm/v7", None),
        ("linux/arm64", "linux/arm64/v8", 0),
        ("linux/arm64", "linux/arm64/v9", None),
        ("linux/arm64", "linux/arm/v7", None),
        ("linux/amd64", "linux/amd64/v3", None),
        ("linux/amd64/v3", "linux/amd64/v2", 1),
        ("linux/amd64/v3", "linux/amd64", 2),
        ("linux/amd64", "linux/386", None),
        ("linux/amd64", "windows/amd64", None),
    ],
)
def test_variants_stand_in_as_containerd_has_it(wanted: str, candidate: str, rank: int | None) -> None:
    assert P(wanted).rank(P(candidate)) == rank


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"os": "unknown", "architecture": "unknown"},
        {"os": "linux"},
        {"os": "", "architecture": ""},
        {"os": 1, "architecture": 2},
    ],
)
def test_what_names_no_platform_has_none(data: dict[str, object]) -> None:
    assert Platform.from_dict(data) is None


def test_os_version_is_kept_but_not_compared() -> None:
    server = Platform.from_dict({"os": "windows", "architecture": "amd64", "os.version": "10.0.20348.1"})
    assert server is not None
    assert server.os_version == "10.0.20348.1"
    assert P("windows/amd64").rank(server) == 0


@pytest.mark.parametrize("text", ["linux/amd46", "linux/x64", "linus/amd64", "linux/armv7"])
def test_a_typo_is_refused_instead_of_looked_for(text: str) -> None:
    with pytest.raises(BadPlatformError):
        P(text)


@given(st.from_regex(r"(linux|windows)/(amd64|arm|arm64|s390x|riscv64)(/v?[0-9]{1,2})?", fullmatch=True))
def test_a_platform_runs_on_itself_and_round_trips(text: str) -> None:
    platform = P(text)
    assert platform.rank(platform) == 0
    assert P(str(platform)) == platform
