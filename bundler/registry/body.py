"""Bodies: an answer's as a stream of a blob, and a blob as the body of a request."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Self

from bundler.net import Response
from bundler.oci.content import BlobStream, Opener
from bundler.oci.descriptor import Descriptor


class BodyStream:
    """The body of an answer as a BlobStream."""

    def __init__(self, response: Response, offset: int) -> None:
        self._response = response
        self.offset = offset

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, empty at the end."""
        return self._response.read(size)


class UploadBody:
    """A blob as a request body of known length, which can be rewound for another try."""

    def __init__(self, blob: Descriptor, opener: Opener, on_bytes: Callable[[int], None]) -> None:
        self._blob = blob
        self._opener = opener
        self._on_bytes = on_bytes
        self._context: AbstractContextManager[BlobStream] | None = None
        self._stream: BlobStream | None = None
        self._sent = 0
        self._committed = False

    def __len__(self) -> int:
        return self._blob.size

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes, opening the content with the first call."""
        if self._stream is None:
            self._context = self._opener(0)
            self._stream = self._context.__enter__()
        data = self._stream.read(size if size > 0 else self._blob.size)
        self._sent += len(data)
        self._on_bytes(len(data))
        return data

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._sent

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go back to the start, for another try; nowhere else."""
        if (offset, whence) != (0, 0):
            raise ValueError("an upload can only be rewound to its start")
        self._close()
        return 0

    def committed(self) -> None:
        """Note that the registry has the blob: what was counted stays counted."""
        self._committed = True

    def _close(self) -> None:
        if self._context is not None:
            self._context.__exit__(None, None, None)
        self._context = self._stream = None
        if not self._committed:
            self._on_bytes(-self._sent)
        self._sent = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()
