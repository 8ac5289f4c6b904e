"""The way of an upgrade, one minor after the other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.errors import UnsupportedSkewError
from bundler.k3s.hops import hops
from bundler.k3s.version import K3sVersion


def versions(text: str) -> list[K3sVersion]:
    return [K3sVersion.parse(f"v{name}" if "+" in name else f"v{name}+k3s1") for name in text.split()]


def names(way: tuple[K3sVersion, ...]) -> str:
    return " ".join(str(version).removeprefix("v").removesuffix("+k3s1") for version in way)


@pytest.mark.parametrize(
    ("bundle", "running", "expected"),
    [
        ("", None, ""),
        ("1.32.3", None, "1.32.3"),
        ("1.32.3 1.31.7", None, "1.31.7 1.32.3"),
        ("1.31.7 1.32.3 1.32.1 1.31.9", None, "1.31.9 1.32.3"),
        ("1.9.1 1.10.0 1.11.0", None, "1.9.1 1.10.0 1.11.0"),
        ("1.32.3+k3s2 1.32.3+k3s10", None, "1.32.3+k3s10"),
        ("1.33.0-rc1 1.33.0-rc2", None, "1.33.0-rc2"),
        ("1.33.0-rc1 1.33.0", None, "1.33.0"),
        ("1.32.3 1.33.0-rc1", None, "1.32.3 1.33.0-rc1"),
        ("1.31.7 1.32.3", "1.30.4", "1.31.7 1.32.3"),
        ("1.31.7 1.32.3", "1.31.2", "1.31.7 1.32.3"),
        ("1.31.7 1.32.3", "1.31.7", "1.32.3"),
        ("1.31.7 1.32.3", "1.31.9", "1.32.3"),
        ("1.31.7 1.32.3", "1.32.1", "1.32.3"),
        ("1.32.9", "1.32.1", "1.32.9"),
        ("1.32.3+k3s2", "1.32.3", "1.32.3+k3s2"),
        ("1.33.0", "1.33.0-rc1", "1.33.0"),
        ("1.29.1 1.31.7 1.32.3", "1.31.2", "1.31.7 1.32.3"),
    ],
)
def test_ways(bundle: str, running: str | None, expected: str) -> None:
    assert names(hops(versions(bundle), versions(running)[0] if running else None)) == expected


@pytest.mark.parametrize(
    ("bundle", "running", "why"),
    [
        ("1.31.7 1.33.1", None, r"from v1\.31\.7\+k3s1 to v1\.33\.1\+k3s1 skips minor v1\.32$"),
        ("1.30.1 1.33.1", None, r"skips minors v1\.31, v1\.32$"),
        ("1.32.3", "1.30.9", r"from v1\.30\.9\+k3s1 to v1\.32\.3\+k3s1 skips minor v1\.31$"),
        ("1.32.3 1.33.1", "1.30.9", r"skips minor v1\.31$"),
        ("1.31.2 1.33.1", "1.31.9", r"from v1\.31\.9\+k3s1 to v1\.33\.1\+k3s1 skips minor v1\.32$"),
        ("1.31.7 1.32.3", "1.32.3", r"runs v1\.32\.3\+k3s1 already"),
        ("1.32.3", "1.32.5", r"runs v1\.32\.5\+k3s1, and the newest in the bundle is v1\.32\.3\+k3s1.*downgraded"),
        ("1.31.7", "1.33.0", "cannot be downgraded"),
        ("1.33.0-rc1", "1.33.0", "cannot be downgraded"),
        ("", "1.33.0", "no K3s version to upgrade to"),
        ("2.0.0", "1.40.0", r"no way is known from v1\.40\.0\+k3s1 to v2\.0\.0\+k3s1"),
    ],
)
def test_no_way(bundle: str, running: str | None, why: str) -> None:
    with pytest.raises(UnsupportedSkewError, match=why) as caught:
        hops(versions(bundle), versions(running)[0] if running else None)
    assert caught.value.exit_code == 11
    assert caught.value.hint


VERSIONS = st.builds(
    K3sVersion,
    st.just(1),
    st.integers(28, 33),
    st.integers(0, 3),
    st.none() | st.integers(1, 2),
    st.integers(1, 2),
)


@given(st.lists(VERSIONS, max_size=12), st.none() | VERSIONS)
def test_a_way_takes_each_minor_once_and_skips_none(bundle: list[K3sVersion], running: K3sVersion | None) -> None:
    minors = {version.minor_number for version in bundle if running is None or version > running}
    start = set() if running is None else {running.minor_number}
    every = set(range(min(minors | start), max(minors) + 1)) if minors else set()
    possible = every == minors | start and (bool(minors) or running is None)
    if not possible:
        with pytest.raises(UnsupportedSkewError):
            hops(bundle, running)
        return
    way = hops(bundle, running)
    assert [version.minor_number for version in way] == sorted(minors)
    assert all(version == max(v for v in bundle if v.minor == version.minor) for version in way)
    assert hops(list(reversed(bundle)), running) == way
