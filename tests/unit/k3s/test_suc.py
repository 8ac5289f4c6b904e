"""Releases of system-upgrade-controller."""

from __future__ import annotations

import pytest

from bundler.errors import UnknownSucVersionError
from bundler.k3s import suc


def test_releases_are_in_numeric_order() -> None:
    names = [release.version for release in suc.suc_versions()]
    assert len(names) == 46
    assert names[0] == "v0.1.0"
    assert names.index("v0.9.1") + 1 == names.index("v0.10.0")
    assert suc.newest().version == names[-1] == "v0.20.1"


@pytest.mark.parametrize(
    ("text", "kubectl", "policy"),
    [
        ("v0.20.1", "docker.io/rancher/kubectl:v1.30.3", "Always"),
        ("v0.14.0", "docker.io/rancher/kubectl:v1.30.3", "Always"),
        ("v0.13.4", "docker.io/rancher/kubectl:v1.25.4", "Always"),
        ("v0.11.0", "docker.io/rancher/kubectl:v1.21.9", "Always"),
        ("v0.7.7", "docker.io/rancher/kubectl:v1.18.3", "Always"),
        ("v0.2.0", "docker.io/rancher/kubectl:v1.17.0", "IfNotPresent"),
        ("v0.1.0", "docker.io/rancher/kubectl:v1.17.0", None),
    ],
)
def test_find(text: str, kubectl: str, policy: str | None) -> None:
    release = suc.find(text)
    assert str(release.kubectl_image) == kubectl
    assert str(release.image) == f"docker.io/rancher/system-upgrade-controller:{text}"
    assert release.job_pull_policy == policy


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("0.20.1", "Did you mean v0.20.1?"),
        ("V0.20.1", "Did you mean v0.20.1?"),
        ("v0.16", "Did you mean v0.16.3, v0.16.2 or v0.16.1?"),
        ("v0.20.0", "Did you mean v0.20.1, "),
        ("v0.13.9", "Did you mean v0.13.4, v0.13.3 or v0.13.2?"),
        ("v0.99", "Did you mean v0.20.1, "),
        ("latest", "Did you mean v0.20.1, v0.19.2 or v0.19.1?"),
        ("", "Did you mean v0.20.1, v0.19.2 or v0.19.1?"),
    ],
)
def test_unknown(text: str, hint: str) -> None:
    with pytest.raises(UnknownSucVersionError) as caught:
        suc.find(text)
    assert caught.value.hint.startswith(hint)
