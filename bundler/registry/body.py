"""Bodies: an answer's as a stream of a blob, and a blob as the body of a request."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Self

from bundler.net import Response
from bundler.oci.content import CHUNK_BYTES, BlobStream, Opener


class BodyStream:
    """The body of an answer as a BlobStream."""

    def __init__(self, response: Response, offset: int) -> None:
        self._response = response
        self.offset = offset

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, empty at the end."""
        return self._response.read(size)


class UploadBody:
    """A part of a blob, or all of it, as a request body of known length that can be rewound for another try.

    Parts follow each other: each begins where the one before it ended. The content is read from its first byte in any
    case, so that all of it is hashed.

    Args:
        opener: Opens the content at its start.
        on_bytes: Told of the bytes of parts as they are read, with a negative number when they are to be sent again.
        start: Where the first part begins, in bytes.
    """

    def __init__(self, opener: Opener, on_bytes: Callable[[int], None], start: int = 0) -> None:
        self._opener = opener
        self._on_bytes = on_bytes
        self._start = start
        self._size = self._sent = 0
        self._context: AbstractContextManager[BlobStream] | None = None
        self._stream: BlobStream | None = None

    def part(self, size: int) -> None:
        """Make the next ``size`` bytes the body; what was the body before was accepted."""
        self._start += self._sent
        self._size, self._sent = size, 0

    def __len__(self) -> int:
        return self._size

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes of the part, opening the content with the first call."""
        left = self._size - self._sent
        if not left and self._size:
            return b""
        data = self._opened().read(min(size, left) if size > 0 else left)
        self._sent += len(data)
        self._on_bytes(len(data))
        return data

    def read_to_end(self) -> None:
        """Read what is left of the content without sending it, so that all of it was hashed."""
        while self._opened().read(CHUNK_BYTES):
            pass

    def tell(self) -> int:
        """Return how many bytes of the part were read."""
        return self._sent

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go back to the start of the part, for another try; nowhere else."""
        if (offset, whence) != (0, 0):
            raise ValueError("an upload can only be rewound to its start")
        if self._sent:
            self._on_bytes(-self._sent)
            self._sent = 0
            self._close()
        return 0

    def _opened(self) -> BlobStream:
        if self._stream is None:
            self._context = self._opener(0)
            self._stream = self._context.__enter__()
            left = self._start
            while left and (data := self._stream.read(min(left, CHUNK_BYTES))):
                left -= len(data)
        return self._stream

    def _close(self) -> None:
        if self._context is not None:
            self._context.__exit__(None, None, None)
        self._context = self._stream = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self._close()
        if kind is not None:
            self._on_bytes(-self._sent)
