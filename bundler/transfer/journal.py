"""The journal of a bundle directory: which blob files were sealed, and how they looked then.

A line is written after the file has its name, so a line means: these bytes were hashed and fsynced. A blob file
without a line, or one that has changed since, is hashed again before it is believed.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path

from bundler.files import disk_errors
from bundler.layout.store import BlobStat
from bundler.oci.digest import Digest


class Journal:
    """Append-only; a line that a crash cut off is ignored.

    Args:
        path: The file; its directory must exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._sealed: dict[str, BlobStat] = {}
        self._closed = False
        ends_whole = True
        text = b""
        # What cannot be read vouches for nothing, and costs no more than hashing again.
        with contextlib.suppress(OSError):
            text = path.read_bytes()
        if text:
            ends_whole = text.endswith(b"\n")
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                    self._sealed[str(entry["sealed"])] = BlobStat(int(entry["size"]), int(entry["mtime_ns"]))
                except (ValueError, KeyError, TypeError):
                    continue
        with disk_errors(str(path)):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        if not ends_whole:
            self._append(b"\n")

    def is_sealed(self, digest: Digest, found: BlobStat) -> bool:
        """Tell whether a blob file still looks as it did when it was sealed."""
        return self._sealed.get(str(digest)) == found

    def seal(self, digest: Digest, found: BlobStat) -> None:
        """Record that a blob file holds the bytes of its digest."""
        entry = {"sealed": str(digest), "size": found.size, "mtime_ns": found.mtime_ns}
        self._append(json.dumps(entry).encode() + b"\n")
        self._sealed[str(digest)] = found

    def close(self) -> None:
        """Close the file; what a thread seals after that is hashed again by the next run."""
        with self._lock:
            os.close(self._file)
            self._closed = True

    def _append(self, line: bytes) -> None:
        # After an interrupt threads still run, and the descriptor's number may belong to another file by then.
        with self._lock, disk_errors(str(self._path)):
            if not self._closed:
                os.write(self._file, line)
