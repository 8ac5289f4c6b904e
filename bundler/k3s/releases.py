"""K3s releases: the image lists and tags shipped with this program, and the parser for published lists.

Invariants:

- Shipped data is read once, on first use, from the package; it is never fetched or written.
- The text of a shipped list is byte for byte the release's ``k3s-images.txt``.

Source: k3s-io/k3s, ``scripts/airgap/image-list.txt``, which each release publishes as ``k3s-images.txt``;
where each shipped list was read is told in ``data/PROVENANCE.md``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from bundler.errors import BadK3sVersionError, BadReferenceError, BadReleaseListError
from bundler.k3s.suggest import did_you_mean, short
from bundler.k3s.version import K3sVersion, nearest
from bundler.oci.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_LIST_BYTES = 256 * 1024

EVIDENCE: Mapping[str, str] = {
    "A": "read at the git tag",
    "B": "read at the commit that nixpkgs pins for the release",
    "C": "read at the commit in the release's version string",
    "D": "read at a commit of the release branch, around which the list does not change",
    "E": "taken from a public vendoring record, and equal to the asset's SHA-256 there",
    "F": "put together from documented tags",
}

_CREDENTIALS = re.compile(r"//[^/@\s]*@")
_QUERY = re.compile(r"\?.*")


@dataclass(frozen=True, slots=True)
class ReleaseList:
    """The image list of one release as shipped.

    ``evidence`` is a key of ``EVIDENCE``; ``commit`` is the commit of k3s-io/k3s it was read at, if known.
    """

    version: K3sVersion
    lines: tuple[str, ...]
    text: str = field(repr=False)
    sha256: str
    evidence: str
    commit: str | None


@cache
def known_versions() -> tuple[K3sVersion, ...]:
    """Return every released version that the shipped data knows, oldest first."""
    return tuple(sorted(_tags() | set(_lists())))


@cache
def shipped_versions() -> tuple[K3sVersion, ...]:
    """Return the versions that have a shipped list, oldest first."""
    return tuple(sorted(_lists()))


def shipped_list(version: K3sVersion) -> ReleaseList | None:
    """Return the shipped image list of a version, or None if there is none."""
    return _lists().get(version)


def is_listed_tag(version: K3sVersion) -> bool:
    """Tell whether the shipped data knows a k3s-upgrade image of this version.

    False says nothing about versions newer than the data.
    """
    return version in _tags()


def parse_version(text: str) -> K3sVersion:
    """Parse a K3s version; for a malformed one the hint names the known versions it most likely means.

    Raises:
        BadK3sVersionError: The text is not of the form ``vX.Y.Z+k3sN``.
    """
    try:
        return K3sVersion.parse(text)
    except BadK3sVersionError as error:
        meant = did_you_mean(nearest(text, known_versions()))
        raise BadK3sVersionError(error.message, hint=f"{meant} {error.hint}") from None


def parse_release_list(version: K3sVersion, data: bytes) -> tuple[Reference, ...]:
    """Parse a published ``k3s-images.txt``, in its order, each reference once.

    Blank lines and CRLF are tolerated, nothing else: whatever answers in the place of the list (a login
    page, a proxy's error) must not become a bundle.

    Raises:
        BadReleaseListError: The data is not a list of ``HOST/PATH:TAG`` lines.
    """
    if len(data) > MAX_LIST_BYTES:
        raise _bad_list(version, f"it is larger than {MAX_LIST_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _bad_list(version, "it is not text") from None
    lines = [(number, line.strip(" \t\r")) for number, line in enumerate(text.split("\n"), start=1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise _bad_list(version, "it is empty")
    if lines[0][1].startswith("<"):
        raise _bad_list(version, "it is an HTML or XML page")
    return tuple(dict.fromkeys(_parse_line(version, number, line) for number, line in lines))


def _parse_line(version: K3sVersion, number: int, line: str) -> Reference:
    try:
        reference = Reference.parse(line)
    except BadReferenceError:
        reference = None
    # A short name such as rancher/pause:3.6 is normalised on parsing, so that its text differs.
    if reference is None or reference.digest is not None or str(reference) != line:
        shown = short(_QUERY.sub("?...", _CREDENTIALS.sub("//...@", line)))
        raise _bad_list(version, f"line {number} is not HOST/PATH:TAG: {shown}")
    return reference


def _bad_list(version: K3sVersion, why: str) -> BadReleaseListError:
    return BadReleaseListError(f"what was served as k3s-images.txt of {version} is not an image list: {why}")


def _read(name: str) -> str:
    return (files("bundler.k3s") / "data" / name).read_text(encoding="utf-8")


@cache
def _tags() -> frozenset[K3sVersion]:
    return frozenset(K3sVersion.parse(line) for line in _read("k3s-upgrade-tags.txt").split())


@cache
def _lists() -> dict[K3sVersion, ReleaseList]:
    data: dict[str, Any] = json.loads(_read("image-lists.json"))
    lists = {}
    for tag, release in data["releases"].items():
        lines = tuple(data["lists"][release["sha256"]])
        version = K3sVersion.parse(tag)
        lists[version] = ReleaseList(
            version=version,
            lines=lines,
            text="\n".join(lines) + "\n",
            sha256=release["sha256"],
            evidence=release["evidence"],
            commit=release["commit"],
        )
    return lists
