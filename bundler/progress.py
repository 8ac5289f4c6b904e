"""Progress: a small protocol and its implementations. The only user of tqdm.

Progress is passed in, never global. Calls come from many threads.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Protocol, TextIO

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
        """Write the line, whole: lines of two threads must not mix."""
        # Nobody may be listening any more; the work matters more than its lines.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def close(self) -> None:
        """Nothing to end."""


class PlainProgress(NoProgress):
    """A line at each image's end, and one every 30 s until the end, also while nothing moves: for logs and cron."""

    def __init__(self, stream: TextIO, every_s: float = LINE_EVERY_S) -> None:
        super().__init__(stream)
        self._lock = threading.Lock()
        self._expected = self._moved = 0
        self._started = time.monotonic()
        self._every_s = every_s
        self._closed = threading.Event()
        threading.Thread(target=self._tick, name="progress", daemon=True).start()

    def expect(self, size: int) -> None:
        """Count what is to come."""
        with self._lock:
            self._expected += size

    def advance(self, size: int) -> None:
        """Count what moved."""
        with self._lock:
            self._moved += size

    def image_done(self, line: str) -> None:
        """Write the line."""
        self.write(line)

    def close(self) -> None:
        """Write no more lines by itself."""
        self._closed.set()

    def _tick(self) -> None:
        while not self._closed.wait(self._every_s):
            with self._lock:
                moved, expected = self._moved, max(self._expected, self._moved)
            rate = moved / max(time.monotonic() - self._started, 0.001)
            left_s = (expected - moved) / rate if rate else 0.0
            self.write(
                f"{people_bytes(moved)} of {people_bytes(expected)}, {people_bytes(rate)}/s, about {left_s:.0f} s left"
            )


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
        with self._lock, contextlib.suppress(OSError, ValueError):
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
