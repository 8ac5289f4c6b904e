"""The way of an upgrade: which versions a cluster goes through, one minor after the other.

Source: kubernetes.io, version skew policy (no minor is skipped, whatever the number of servers);
rancher/system-upgrade-controller does not check this.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from bundler.errors import UnsupportedSkewError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bundler.k3s.version import K3sVersion


def hops(versions: Sequence[K3sVersion], running: K3sVersion | None = None) -> tuple[K3sVersion, ...]:
    """Return the versions to upgrade to, in order: the newest of each minor.

    A candidate counts as its patch: v1.33.0-rc1 is of the minor v1.33. Patches may be skipped.

    Args:
        versions: What is in the bundle, in any order.
        running: What the cluster runs, its oldest node; only what is newer than this remains. None if not known.

    Raises:
        UnsupportedSkewError: A minor is missing on the way, or nothing is newer than what runs.
    """
    newest: dict[str, K3sVersion] = {}
    for version in sorted(versions):
        newest[version.minor] = version
    way = tuple(version for version in newest.values() if running is None or version > running)
    if running is not None and not way:
        raise _nothing_newer(max(versions, default=None), running)
    for before, after in pairwise(way if running is None else (running, *way)):
        _check_step(before, after)
    return way


def _check_step(before: K3sVersion, after: K3sVersion) -> None:
    if before.major != after.major:
        raise UnsupportedSkewError(f"no way is known from {before} to {after}")
    missing = [f"v{before.major}.{number}" for number in range(before.minor_number + 1, after.minor_number)]
    if missing:
        one = len(missing) == 1
        raise UnsupportedSkewError(
            f"the upgrade from {before} to {after} skips {'minor' if one else 'minors'} {', '.join(missing)}",
        )


def _nothing_newer(newest: K3sVersion | None, running: K3sVersion) -> UnsupportedSkewError:
    if newest is None:
        return UnsupportedSkewError("there is no K3s version to upgrade to")
    if newest == running:
        return UnsupportedSkewError(
            f"the cluster runs {running} already, and nothing newer is in the bundle",
            hint="There is nothing to upgrade.",
        )
    return UnsupportedSkewError(
        f"the cluster runs {running}, and the newest in the bundle is {newest}: K3s cannot be downgraded by a Plan",
        hint="The way back is the datastore's snapshot, made on the old version, together with the old binary.",
    )
