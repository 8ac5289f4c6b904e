"""Uploads that a later run can continue: one small file for each, in our state directory, never in the bundle.

A file is written after a chunk was accepted and removed when the blob is there, so what it says is never too much.
Only sessions at the target's own origin are kept: a Location elsewhere may be a signed URL, and so a secret.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from pathlib import Path

from bundler.errors import AirgapSyncError
from bundler.files import PRIVATE, make_directory, write_atomic
from bundler.oci.digest import Digest
from bundler.registry.session import SavedUpload
from bundler.url import check_url, same_origin

#: Registries forget sessions after a day to a week; Harbor forgets their size after a day.
_KEPT_S = 24 * 3600.0
_MAX_FILE_BYTES = 64 * 1024


class UploadJournal:
    """An UploadMemory on the disk, for one target whose lock is held; safe to share between threads.

    Args:
        directory: Where the files lie; made when it is needed.
        origin_url: A URL of the target.
    """

    def __init__(self, directory: Path, origin_url: str) -> None:
        self._directory = directory
        self._origin_url = origin_url
        self._lock = threading.Lock()
        self._known: dict[Path, SavedUpload] = {}
        for path in directory.glob("*.json"):
            upload = _read(path)
            if upload is None or not same_origin(upload.location, origin_url):
                _remove(path)
            else:
                self._known[path] = upload

    def recall(self, repository: str, digest: Digest) -> SavedUpload | None:
        """Return the session of a blob, if one is known that may still live."""
        with self._lock:
            return self._known.get(self._path(repository, digest))

    def keep(self, repository: str, digest: Digest, upload: SavedUpload) -> None:
        """Remember a session, durably; a disk that is full only means that a later run sends more."""
        path = self._path(repository, digest)
        with self._lock:
            self._known[path] = upload
        if not same_origin(upload.location, self._origin_url):
            return
        entry = {"location": upload.location, "offset": upload.offset, "time": int(time.time())}
        try:
            make_directory(self._directory)
            write_atomic(path, json.dumps(entry).encode() + b"\n", mode=PRIVATE)
        except AirgapSyncError:
            return

    def forget(self, repository: str, digest: Digest) -> None:
        """Remember it no longer."""
        path = self._path(repository, digest)
        with self._lock:
            known = self._known.pop(path, None)
        if known is not None:
            _remove(path)

    def _path(self, repository: str, digest: Digest) -> Path:
        name = hashlib.sha256(f"{repository}@{digest}".encode()).hexdigest()
        return self._directory / f"{name}.json"


def _remove(path: Path) -> None:
    # A file that stays is one that a later run finds too old, or the registry does not know.
    with contextlib.suppress(OSError):
        path.unlink()


def _read(path: Path) -> SavedUpload | None:
    try:
        with path.open("rb") as file:
            entry = json.loads(file.read(_MAX_FILE_BYTES))
        upload = SavedUpload(str(entry["location"]), int(entry["offset"]))
        check_url(upload.location)
        age_s = time.time() - float(entry["time"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, AirgapSyncError):
        return None
    # A clock that was set back makes it look as if from the future; that does not make it older.
    return upload if age_s < _KEPT_S and upload.offset >= 0 else None
