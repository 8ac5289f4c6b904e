"""K3s versions: ``v1.32.3+k3s1``, their order, and the names they take in tags and URLs.

Invariants:

- A K3sVersion is one well-formed version; whether it was ever released is not its concern.
- Order is by number in every part: +k3s2 before +k3s10, v1.9 before v1.10, candidates before their release.

Source: tags of k3s-io/k3s (``vX.Y.Z+k3sN``, candidates ``vX.Y.Z-rcM+k3sN``); k3s-io/k3s-upgrade, where image
tags write ``+`` as ``-``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering
from typing import TYPE_CHECKING, Self

from packaging.version import Version

from bundler.errors import BadK3sVersionError
from bundler.k3s.suggest import short

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# No leading zeros: v1.032.3 is another text for the same version, and no tag is written so.
_NUMBER = r"(0|[1-9][0-9]{0,5})"
_COUNT = r"([1-9][0-9]{0,5})"
_FORM = re.compile(rf"v{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-rc{_COUNT})?[+-]k3s{_COUNT}")

# What a user may have meant: up to three numbers, then a build number.
_LOOSE = re.compile(r"([0-9]{1,6})(?:\.([0-9]{1,6}))?(?:\.([0-9]{1,6}))?")
_LOOSE_BUILD = re.compile(r"k3s[^0-9]*([0-9]{1,6})")


@total_ordering
@dataclass(frozen=True, slots=True)
class K3sVersion:
    """One K3s version; ``str()`` is the tag with ``+``, and parsing that gives an equal value."""

    major: int
    minor_number: int
    patch: int
    candidate: int | None
    build: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``v1.32.3+k3s1`` or ``v1.33.0-rc1+k3s1``; an image tag's ``-k3s1`` is accepted too.

        Raises:
            BadK3sVersionError: The text has another form.
        """
        match = _FORM.fullmatch(text)
        if not match:
            raise BadK3sVersionError(
                f"{short(text)} is not a K3s version",
                hint="Write vX.Y.Z+k3sN, for example v1.32.3+k3s1.",
            )
        major, minor, patch, candidate, build = match.groups()
        return cls(int(major), int(minor), int(patch), int(candidate) if candidate else None, int(build))

    @property
    def minor(self) -> str:
        """The minor release: ``v1.32``."""
        return f"v{self.major}.{self.minor_number}"

    @property
    def image_tag(self) -> str:
        """The version as an image tag, which cannot hold ``+``: ``v1.32.3-k3s1``."""
        return str(self).replace("+", "-")

    @property
    def url_name(self) -> str:
        """The version as a path component of a URL: ``v1.32.3%2Bk3s1``."""
        return str(self).replace("+", "%2B")

    def __str__(self) -> str:
        candidate = "" if self.candidate is None else f"-rc{self.candidate}"
        return f"{self.minor}.{self.patch}{candidate}+k3s{self.build}"

    def __lt__(self, other: K3sVersion) -> bool:
        return self._order < other._order

    @property
    def _order(self) -> Version:
        # A local segment of digits alone compares as a number; "k3s10" in one piece would compare as text.
        candidate = "" if self.candidate is None else f"rc{self.candidate}"
        return Version(f"{self.major}.{self.minor_number}.{self.patch}{candidate}+k3s.{self.build}")


def nearest(text: str, known: Iterable[K3sVersion], count: int = 3) -> tuple[K3sVersion, ...]:
    """Return the known versions that a mistyped one most likely means, best first, at most ``count``.

    - The same X.Y.Z is known: only its builds, the given build first, then the newest.
    - The same X.Y is known: its patches, the closest first; the newest if no patch was given.
    - Otherwise, also for ``latest`` and ``stable``: the newest of each minor, the minors closest to the one
      given first, or the newest if none was given.
    """
    versions = sorted(known, reverse=True)
    numbers = _LOOSE.search(text)
    if not numbers or not numbers[2]:
        return tuple(_newest_per_minor(versions)[:count])
    major, minor = int(numbers[1]), int(numbers[2])
    patch = int(numbers[3]) if numbers[3] else None
    build = _LOOSE_BUILD.search(text.lower())
    same_minor = [v for v in versions if (v.major, v.minor_number) == (major, minor)]
    exact = [v for v in same_minor if v.patch == patch]
    if exact:
        exact.sort(key=lambda v: build is None or v.build != int(build[1]))
        return tuple(exact[:count])
    if same_minor:
        if patch is not None:
            same_minor.sort(key=lambda v: abs(v.patch - patch))
        return tuple(same_minor[:count])
    heads = _newest_per_minor(versions)
    heads.sort(key=lambda v: (abs(v.major - major), abs(v.minor_number - minor)))
    return tuple(heads[:count])


def _newest_per_minor(versions: Sequence[K3sVersion]) -> list[K3sVersion]:
    """Return the first version of each minor out of a list sorted newest first."""
    heads: dict[str, K3sVersion] = {}
    for version in versions:
        heads.setdefault(version.minor, version)
    return list(heads.values())
