"""Files that survive: atomic writes, fsync, locks. The only module that renames files.

Invariants:

- A file appears under its final name only after its bytes were fsynced.
- A full or broken disk is reported as one of our errors, never as a traceback.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bundler.errors import BadOutputError, DiskFullError, LockedError

#: The mode of files that hold secrets.
PRIVATE = 0o600
_held_to_the_end: list[object] = []
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Translate a failed write into our errors.

    Args:
        what: What was being written, for the message.

    Raises:
        DiskFullError: No space, or no quota, is left.
        BadOutputError: Any other failure of the file system.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            raise DiskFullError(f"cannot write {what}: {reason}") from error
        raise BadOutputError(f"cannot write {what}: {reason}", hint="Check permissions and the disk.") from error


def free_bytes(path: Path) -> int:
    """Return the bytes that an ordinary user may still write to the file system of a directory."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def fsync_directory(path: Path) -> None:
    """Make renames inside a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems of removable media cannot sync a directory; they have nothing better to offer.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory with its parents, so that a power loss does not take their names away.

    Raises:
        DiskFullError: No space is left.
        BadOutputError: The file system refuses.
    """
    missing = [part for part in (path, *path.parents) if not part.exists()]
    with disk_errors(str(path)):
        path.mkdir(parents=True, exist_ok=True)
        for part in missing:
            fsync_directory(part.parent)


def publish(temporary: Path, final: Path, stream: BinaryIO) -> None:
    """Fsync an open temporary file and give it its final name, in the same directory.

    The directory itself is not synced: a caller that publishes many files does that once, at the end.
    """
    stream.flush()
    os.fsync(stream.fileno())
    temporary.replace(final)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a whole file so that at every moment either the old or the new content stands.

    Raises:
        DiskFullError: No space is left; the old content stands.
        BadOutputError: The file system refuses; the old content stands.
    """
    temporary = path.with_name(f".{path.name}.new")
    with disk_errors(str(path)):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with open(descriptor, "wb") as stream:
            if mode == PRIVATE:
                # One that a crash has left may have been made with another mode.
                os.fchmod(descriptor, mode)
            stream.write(data)
            publish(temporary, path, stream)
        fsync_directory(path.parent)


def publish_directory(made: Path, final: Path) -> Path | None:
    """Give a finished directory its final name, in the same parent; one that is there is kept beside it.

    Args:
        made: The directory; its files were written with :func:`write_atomic`.
        final: Its name; at most a directory is there.

    Returns:
        Where the former directory is now, or None if there was none, or an empty one.

    Raises:
        BadOutputError: The file system refuses; what was there stands under one of the two names.
    """
    kept: Path | None = None
    with disk_errors(str(final)):
        if final.exists() and not any(final.iterdir()):
            final.rmdir()
        elif final.exists():
            kept = next(
                path
                for number in itertools.count(1)
                if not (path := final.with_name(f"{final.name}.old-{number}")).exists()
            )
            final.rename(kept)
        made.rename(final)
        fsync_directory(final.parent)
    return kept


@contextmanager
def new_private_file(path: Path) -> Iterator[BinaryIO]:
    """Make a file that was not there before, with mode 0600, for what is written to it in the block.

    It is made first, so that what cannot be had twice is only asked for when there is a place for it; if the block
    fails with nothing written, the file goes.

    Raises:
        BadOutputError: There is something under this name, or it cannot be made.
        DiskFullError: No space is left.
    """
    with disk_errors(str(path)):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE)
        except FileExistsError as error:
            raise BadOutputError(f"{path} exists already", hint="Name a file that is not there yet.") from error
    with open(descriptor, "wb", buffering=0) as stream:
        try:
            yield stream
            with disk_errors(str(path)):
                os.fsync(stream.fileno())
                fsync_directory(path.parent)
        except BaseException:
            if not os.fstat(stream.fileno()).st_size:
                path.unlink(missing_ok=True)
            raise


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, refusing symbolic links and anything but a regular file.

    Raises:
        OSError: The file cannot be opened, or is a link (ELOOP).
        ValueError: It is a directory, device, FIFO or socket.
    """
    # O_NONBLOCK: opening a FIFO must not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is not a regular file")
    return open(descriptor, "rb", buffering=0)


@contextmanager
def exclusive_lock(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file for the length of a block, or fail at once.

    Args:
        path: The lock file; its directory must exist.
        what: What is locked, for the message.

    Raises:
        LockedError: Another process holds it.
        BadOutputError: The lock file cannot be made.
    """
    from filelock import FileLock, Timeout  # noqa: PLC0415 - keeps start-up fast

    lock = FileLock(path, timeout=0)
    with disk_errors(str(path)):
        try:
            lock.acquire()
        except Timeout as error:
            raise LockedError(f"another airgap-sync run is using {what}") from error
    try:
        yield
    except BaseException:
        # Threads may still write until the process ends, and with it the lock.
        _held_to_the_end.append(lock)
        raise
    lock.release()
