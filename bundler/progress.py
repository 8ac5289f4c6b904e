"""Progress: a small protocol and its implementations. The only user of tqdm.

Progress is passed in, never global. Calls come from many threads.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol, TextIO

#: Seconds between lines where there is no terminal.
LINE_EVERY_S = 30.0


class Progress(Protocol):
    """Told of what happens while content moves; sizes in bytes."""

    def expect(self, size: int) -> None:
        """More bytes are to come (or, if negative, fewer)."""

    def advance(self, size: int) -> None:
        """Bytes moved (or, if negative, must move again)."""

    def image_done(self, line: str) -> None:
        """One image came to its end; the line says how."""

    def write(self, line: str) -> None:
        """Show a line of a log without harming a bar."""

    def close(self) -> None:
        """Nothing more will come."""


class NoProgress:
    """Shows nothing but log lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def expect(self, size: int) -> None:
        """Ignore."""

    def advance(self, size: int) -> None:
        """Ignore."""

    def image_done(self, line: str) -> None:
        """Ignore."""

    def write(self, line: str) -> None:
        """Write the line."""
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to end."""


class PlainProgress:
    """A line at each image's end, and one every 30 s while bytes move: for logs and cron."""

    def __init__(self, stream: TextIO, clock: Any = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()
        self._expected = self._moved = 0
        self._started = self._last = clock()

    def expect(self, size: int) -> None:
        """Count what is to come."""
        with self._lock:
            self._expected += size

    def advance(self, size: int) -> None:
        """Count what moved, and say so now and then."""
        with self._lock:
            self._moved += size
            now = self._clock()
            if now - self._last < LINE_EVERY_S:
                return
            self._last = now
            rate = self._moved / max(now - self._started, 0.001)
            text = f"{people_bytes(self._moved)} of {people_bytes(self._expected)}, {people_bytes(rate)}/s"
        self.write(text)

    def image_done(self, line: str) -> None:
        """Write the line."""
        self.write(line)

    def write(self, line: str) -> None:
        """Write the line."""
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to end."""


class BarProgress:
    """One bar with total bytes, rate and time left, for a terminal."""

    def __init__(self, stream: TextIO) -> None:
        from tqdm import tqdm  # noqa: PLC0415 - keeps start-up fast

        self._bar = tqdm(
            total=0,
            unit="B",
            unit_scale=True,
            unit_divisor=1000,
            file=stream,
            dynamic_ncols=True,
            leave=False,
        )
        self._stream = stream
        self._lock = threading.Lock()

    def expect(self, size: int) -> None:
        """Lengthen the bar."""
        with self._lock:
            self._bar.total = (self._bar.total or 0) + size
            self._bar.refresh()

    def advance(self, size: int) -> None:
        """Move the bar."""
        with self._lock:
            self._bar.update(size)

    def image_done(self, line: str) -> None:
        """Write the line above the bar."""
        self.write(line)

    def write(self, line: str) -> None:
        """Write the line above the bar."""
        with self._lock:
            self._bar.write(line, file=self._stream)

    def close(self) -> None:
        """Remove the bar."""
        with self._lock:
            self._bar.close()


def make(kind: str, stream: TextIO) -> Progress:
    """Return the progress of a kind: ``auto``, ``bar``, ``plain`` or ``none``.

    ``auto`` is a bar on a terminal and plain lines elsewhere.
    """
    if kind == "auto":
        kind = "bar" if stream.isatty() else "plain"
    if kind == "bar":
        return BarProgress(stream)
    return PlainProgress(stream) if kind == "plain" else NoProgress(stream)


def people_bytes(size: float) -> str:
    """Return a size for people, in decimal units: ``1.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:  # noqa: PLR2004
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
