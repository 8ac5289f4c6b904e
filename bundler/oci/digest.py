"""Digests: how every byte of a bundle is named.

A Digest is validated when made, so its parts are safe to join to a path.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Protocol, Self

from bundler.errors import BadDigestError

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+")


class Hasher(Protocol):
    """The part of hashlib's objects that we use."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Feed bytes."""

    def hexdigest(self) -> str:
        """Return the hash of all bytes fed, in lower-case hex."""


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A content digest, ``algorithm:hex``.

    Source: image-spec descriptor.md, "Digests": sha256 must be supported, sha512 may be; hex is lower case.
    """

    algorithm: str
    hex: str

    def __post_init__(self) -> None:
        length = _HEX_LENGTH.get(self.algorithm)
        if length is None:
            msg = f"digest algorithm {self.algorithm[:40]!r} is not sha256 or sha512"
            raise BadDigestError(msg)
        if len(self.hex) != length or not _HEX.fullmatch(self.hex):
            msg = f"a {self.algorithm} digest is {length} lower-case hex digits, not {self.hex[:140]!r}"
            raise BadDigestError(msg)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``algorithm:hex``.

        Raises:
            BadDigestError: The text is not a digest of a known algorithm.
        """
        algorithm, colon, hexdigits = text.partition(":")
        if not colon:
            msg = f"{text[:140]!r} is not a digest: it has no algorithm"
            raise BadDigestError(msg)
        return cls(algorithm, hexdigits)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Self:
        """Return the digest of the given bytes."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def hasher(self) -> Hasher:
        """Return a fresh hasher of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def matches(self, data: bytes) -> bool:
        """Tell whether the bytes hash to this digest."""
        return hashlib.new(self.algorithm, data).hexdigest() == self.hex

    @property
    def short(self) -> str:
        """The first 12 hex digits, for people."""
        return self.hex[:12]

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
