"""What is remembered of uploads between runs: where a session of the registry lies and how far it has come.

Source: distribution-spec, "Pushing a blob in chunks": the newest Location is the one to use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bundler.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class SavedUpload:
    """An upload session that can be continued.

    Attributes:
        location: Its newest Location, absolute.
        offset: Bytes that the registry has accepted.
    """

    location: str
    offset: int


class UploadMemory(Protocol):
    """Keeps upload sessions; what it cannot keep is only sent again."""

    def recall(self, repository: str, digest: Digest) -> SavedUpload | None:
        """Return the session of a blob, if one is known that may still live."""

    def keep(self, repository: str, digest: Digest, upload: SavedUpload) -> None:
        """Remember a session, durably."""

    def forget(self, repository: str, digest: Digest) -> None:
        """Remember it no longer."""


class RunMemory:
    """Remembers for the length of a run; safe to share between threads."""

    def __init__(self) -> None:
        self._uploads: dict[tuple[str, Digest], SavedUpload] = {}

    def recall(self, repository: str, digest: Digest) -> SavedUpload | None:
        """Return the session of a blob."""
        return self._uploads.get((repository, digest))

    def keep(self, repository: str, digest: Digest, upload: SavedUpload) -> None:
        """Remember a session."""
        self._uploads[repository, digest] = upload

    def forget(self, repository: str, digest: Digest) -> None:
        """Remember it no longer."""
        self._uploads.pop((repository, digest), None)


@dataclass(frozen=True, slots=True)
class Chunking:
    """Which uploads go in chunks, in bytes.

    Attributes:
        over: Blobs larger than this do.
        size: Of a chunk; 0 sends every blob as a whole, whatever its size.
    """

    over: int = 1024**3
    size: int = 256 * 1024**2

    @classmethod
    def of(cls, size: int | None) -> Chunking:
        """Return what ``--chunk-size`` means: a size that was given is also the largest body that is sent."""
        return cls() if size is None else cls(size, size)

    def chunk_for(self, size: int, limit: int | None) -> int | None:
        """Return the chunk for a blob, None to send it as a whole.

        Args:
            size: Of the blob.
            limit: The largest body that the host takes, as far as known.
        """
        if not self.size:
            return None
        if limit is not None and size > limit:
            return min(limit, self.size)
        return self.size if size > self.over else None
