"""Which K3s version can do what."""

from __future__ import annotations

import pytest

from bundler.k3s import features
from bundler.k3s.features import Feature
from bundler.k3s.version import K3sVersion


def version(text: str) -> K3sVersion:
    return K3sVersion.parse(text if "+" in text else f"{text}+k3s1")


@pytest.mark.parametrize(
    ("feature", "first", "last_without"),
    [
        (features.HOSTS_TOML, ["v1.26.13", "v1.27.10", "v1.28.6", "v1.29.1"], ["v1.25.16", "v1.26.12", "v1.29.0"]),
        (features.NO_DEFAULT_ENDPOINT, ["v1.28.6", "v1.29.1", "v1.30.0"], ["v1.28.5", "v1.29.0"]),
        (features.EMBEDDED, ["v1.26.13", "v1.29.1"], ["v1.27.9", "v1.29.0"]),
        (features.EMBEDDED_STABLE, ["v1.29.12", "v1.30.8", "v1.31.4", "v1.32.0"], ["v1.29.11", "v1.30.7", "v1.31.3"]),
        (features.WILDCARD, ["v1.26.15", "v1.27.12", "v1.28.8", "v1.29.3"], ["v1.26.13", "v1.28.7", "v1.29.2"]),
        (features.DUPLICATES_DROPPED, ["v1.26.15", "v1.29.3", "v1.30.0"], ["v1.27.11", "v1.29.1"]),
        (features.IMAGES_WATCHED, ["v1.29.13", "v1.30.9", "v1.31.5", "v1.32.0"], ["v1.29.12", "v1.31.4"]),
    ],
    ids=lambda value: value.name.replace(" ", "-") if isinstance(value, Feature) else None,
)
def test_since(feature: Feature, first: list[str], last_without: list[str]) -> None:
    assert all(feature.in_version(version(text)) for text in first)
    assert feature.in_all(map(version, first))
    assert not any(feature.in_version(version(text)) for text in last_without)
    assert not feature.in_all(map(version, [*first, last_without[0]]))
    assert feature.in_version(version("v1.37.1"))


@pytest.mark.parametrize(
    ("near", "first"),
    [("v1.25.0", "v1.29.12"), ("v1.29.1", "v1.29.12"), ("v1.30.2", "v1.30.8"), ("v1.36.0", "v1.31.4")],
)
def test_first(near: str, first: str) -> None:
    assert features.EMBEDDED_STABLE.first(version(near)) == first


@pytest.mark.parametrize(
    ("text", "shares"),
    [("v1.34.2", False), ("v1.33.6", False), ("v1.32.10", False), ("v1.34.3", True), ("v1.31.7", True)],
)
def test_shares_imports(text: str, shares: bool) -> None:
    assert features.shares_imports(version(text)) == shares


@pytest.mark.parametrize(
    ("text", "falls_back"),
    [
        ("v1.28.5", True),
        ("v1.28.6", False),
        ("v1.29.2", False),
        ("v1.29.3", True),
        ("v1.30.0", False),
        ("v1.30.1", True),
        ("v1.31.5", True),
        ("v1.31.6", False),
        ("v1.31.7", True),
        ("v1.32.2", False),
        ("v1.32.3", True),
    ],
)
def test_wildcard_falls_back(text: str, falls_back: bool) -> None:
    assert features.wildcard_falls_back(version(text)) == falls_back


@pytest.mark.parametrize(
    ("text", "takes"),
    [("v1.28.6+k3s1", False), ("v1.28.6+k3s2", True), ("v1.27.10+k3s1", False), ("v1.29.1+k3s1", True)],
)
def test_takes_bare_endpoints(text: str, takes: bool) -> None:
    assert features.takes_bare_endpoints(version(text)) == takes


@pytest.mark.parametrize(("text", "takes"), [("v1.28.7", False), ("v1.28.8", True), ("v1.29.3", True)])
def test_takes_listed_default(text: str, takes: bool) -> None:
    assert features.takes_listed_default(version(text)) == takes
