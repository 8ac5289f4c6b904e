"""Reading the body of a request as it arrives."""

from contextlib import suppress
from email.message import Message
from io import BufferedIOBase

_PIECE = 65536


class RequestBody:
    """The body of one request, of which no more is read than asked for.

    Attributes:
        data: What was read so far.
        complete: Whether that is all of it. Where it is not after `receive()`, the client is gone.
    """

    def __init__(self, file: BufferedIOBase, headers: Message) -> None:
        self.data = bytearray()
        self._file = file
        self.chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"
        #: How long it claims to be, where that is known beforehand.
        self.length = None if self.chunked else int(headers.get("Content-Length", 0))
        self._left = self.length or 0
        self.complete = self.length == 0

    def receive(self, up_to: int | None = None) -> None:
        """Read until so many bytes of it are there, or all, or the client has gone away."""
        with suppress(OSError):
            while not self.complete and (up_to is None or len(self.data) < up_to):
                if not self._left:
                    if not self._next_chunk():
                        return
                    continue
                wanted = _PIECE if up_to is None else up_to - len(self.data)
                piece = self._file.read1(min(self._left, wanted, _PIECE))
                if not piece:
                    return
                self.data += piece
                self._left -= len(piece)
                if not self.chunked:
                    self.complete = self._left == 0
                elif self._left == 0:
                    self._file.readline()

    def _next_chunk(self) -> bool:
        """Read the head of a chunk; with that of the last one, which is empty, the body is complete."""
        line = self._file.readline().split(b";")[0].strip()
        if not line:
            return False
        self._left = int(line, 16)
        if self._left == 0:
            while (line := self._file.readline()).strip():
                pass  # trailers
            self.complete = bool(line)
        return self._left > 0
