"""Image references: parsing, Docker Hub normalisation, the names the product uses everywhere.

Invariant: a Reference is always full (registry, repository and at least one of tag and digest), so nothing
deeper ever guesses what a name means.

Source: distribution/reference grammar (reference.go, normalize.go); distribution-spec, "Pulling manifests".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Self

from bundler.errors import BadDigestError, BadReferenceError
from bundler.oci.digest import Digest

DOCKER_HUB = "docker.io"
DEFAULT_TAG = "latest"
MAX_REPOSITORY_LENGTH = 255

_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?")
_BARE_HEX = re.compile(r"[a-f0-9]{64}")


def is_registry(text: str) -> bool:
    """Tell whether a text has the form of a registry: ``host``, ``host:port``, ``[v6]:port``."""
    return bool(_DOMAIN.fullmatch(text))


def is_repository(text: str) -> bool:
    """Tell whether a text is a legal repository name of at most 255 characters."""
    return len(text) <= MAX_REPOSITORY_LENGTH and bool(_REPOSITORY.fullmatch(text))


@dataclass(frozen=True, slots=True)
class Reference:
    """A full image reference.

    ``str()`` gives the normalised form, ``docker.io/library/busybox:latest``; parsing that gives an equal value.
    With both a tag and a digest the digest decides what is fetched, and the tag is kept as a name.
    ``text`` is what the user wrote; it does not take part in comparison.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None
    text: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        shown = self.text or f"{self.registry}/{self.repository}"
        if not is_registry(self.registry):
            raise _bad(shown, f"{self.registry!r} is not a registry host")
        if len(self.repository) > MAX_REPOSITORY_LENGTH:
            raise _bad(shown, f"the repository is longer than {MAX_REPOSITORY_LENGTH} characters")
        if not _REPOSITORY.fullmatch(self.repository):
            why = f"{self.repository!r} is not a repository"
            if self.repository.lower() != self.repository:
                raise _bad(shown, f"{why}: it must be lower case")
            raise _bad(shown, why)
        if self.tag is not None and not _TAG.fullmatch(self.tag):
            raise _bad(shown, f"{self.tag!r} is not a tag: 1 to 128 of A-Z a-z 0-9 _ . -, not starting with . or -")
        if self.tag is None and self.digest is None:
            raise _bad(shown, "it has neither a tag nor a digest")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a reference as Docker and containerd do, and normalise it.

        The first component is a registry if it contains ``.`` or ``:``, is ``localhost`` or has upper-case letters.
        ``index.docker.io`` is ``docker.io``; there, a single component gets ``library/``. Without tag and digest
        the tag is ``latest``.

        Raises:
            BadReferenceError: The text is not a reference; the message says which part is wrong.
        """
        if not text:
            raise _bad(text, "it is empty")
        if "://" in text:
            raise _bad(text, "a reference has no scheme", f"Leave out the scheme: {text.split('://', 1)[1]}")
        if _BARE_HEX.fullmatch(text):
            raise _bad(text, "64 hex digits are an image ID, not a name", "Write NAME@sha256:HEX.")
        registry, rest = _split_registry(text)
        name, at, digest_text = rest.partition("@")
        digest = None
        if at:
            try:
                digest = Digest.parse(digest_text)
            except BadDigestError as error:
                raise _bad(text, error.message) from error
        path, colon, tag = name.partition(":")
        if registry == DOCKER_HUB and path and "/" not in path:
            path = f"library/{path}"
        return cls(
            registry=registry,
            repository=path,
            tag=tag if colon else (None if digest else DEFAULT_TAG),
            digest=digest,
            text=text,
        )

    @property
    def name(self) -> str:
        """Registry and repository: ``docker.io/rancher/mirrored-pause``."""
        return f"{self.registry}/{self.repository}"

    @property
    def api_reference(self) -> str:
        """What a manifest is asked for by: the digest if there is one, else the tag."""
        return str(self.digest) if self.digest else str(self.tag)

    def tagged(self) -> Self | None:
        """Return this reference with its tag alone, or None if it has no tag."""
        return replace(self, digest=None, text="") if self.tag else None

    def pinned(self) -> Self | None:
        """Return this reference with its digest alone, or None if it has no digest."""
        return replace(self, tag=None, text="") if self.digest else None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"

    def __lt__(self, other: Self) -> bool:
        return str(self) < str(other)


def _split_registry(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    looks_like_host = "." in first or ":" in first or first == "localhost" or first.lower() != first
    if not slash or not looks_like_host:
        return DOCKER_HUB, text
    return (DOCKER_HUB if first == "index.docker.io" else first), rest


def _bad(text: str, why: str, hint: str | None = None) -> BadReferenceError:
    shown = text if len(text) <= 120 else f"{text[:117]}..."  # noqa: PLR2004 - for a message line
    return BadReferenceError(
        f"{shown!r} is not an image reference: {why}",
        hint=hint or "Write [REGISTRY/]REPOSITORY[:TAG][@DIGEST], for example docker.io/rancher/mirrored-pause:3.6.",
    )
