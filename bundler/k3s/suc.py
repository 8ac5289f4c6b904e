"""Releases of system-upgrade-controller and the images each of them needs.

Source: rancher/system-upgrade-controller, ``manifests/system-upgrade-controller.yaml`` at each tag: the
ConfigMap ``default-controller-env`` names the kubectl image and the pull policy of upgrade jobs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from bundler.errors import UnknownSucVersionError
from bundler.k3s.suggest import did_you_mean, short
from bundler.oci.reference import DOCKER_HUB, Reference

_FORM = re.compile(r"v?([0-9]{1,6})(?:\.([0-9]{1,6}))?(?:\.([0-9]{1,6}))?")


@dataclass(frozen=True, slots=True)
class SucRelease:
    """One release of system-upgrade-controller.

    ``kubectl_image`` is what its jobs run to cordon and drain; ``job_pull_policy`` is None where the manifest
    sets none.
    """

    version: str
    date: str
    kubectl_image: Reference
    job_pull_policy: str | None

    @property
    def image(self) -> Reference:
        """The controller's own image."""
        return Reference(DOCKER_HUB, "rancher/system-upgrade-controller", self.version)

    @property
    def order(self) -> tuple[int, ...]:
        """What releases are ordered by: v0.9.1 before v0.10.0."""
        return _numbers(self.version)


@cache
def suc_versions() -> tuple[SucRelease, ...]:
    """Return the known releases, oldest first."""
    table = (files("bundler.k3s") / "data" / "suc-versions.tsv").read_text(encoding="utf-8")
    _header, *rows = (line.split("\t") for line in table.splitlines())
    releases = [
        SucRelease(version, date, Reference.parse(kubectl), None if policy == "-" else policy)
        for version, date, kubectl, policy in rows
    ]
    return tuple(sorted(releases, key=lambda release: release.order))


def newest() -> SucRelease:
    """Return the newest known release."""
    return suc_versions()[-1]


def find(text: str) -> SucRelease:
    """Return the release of this version, ``v0.20.1``.

    Raises:
        UnknownSucVersionError: It is not known; the hint names the releases it most likely means.
    """
    for release in suc_versions():
        if release.version == text:
            return release
    raise UnknownSucVersionError(
        f"system-upgrade-controller {short(text)} is not known",
        hint=f"{did_you_mean(release.version for release in _nearest(text))} Images of another release can "
        "be given one by one; its manifest names the kubectl image.",
    )


def _nearest(text: str, count: int = 3) -> list[SucRelease]:
    """Return known releases for a hint: the same written differently, else the closest, else the newest."""
    newest_first = list(reversed(suc_versions()))
    match = _FORM.fullmatch(text.strip().lower())
    if not match:
        return newest_first[:count]
    wanted = _numbers(text)
    same = [release for release in newest_first if release.order[: len(wanted)] == wanted]
    if same:
        return same[:count]
    padded = (*wanted, 0, 0)[:3]
    newest_first.sort(key=lambda release: [abs(a - b) for a, b in zip(release.order, padded, strict=True)])
    return newest_first[:count]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]+", text))
