"""Reading a bundle's lock from its directory, and checking it against the layout beside it."""

from __future__ import annotations

from pathlib import Path

from bundler.bundle.lock import KIND, BundleLock
from bundler.errors import BadManifestError, LockMismatchError
from bundler.files import open_regular
from bundler.layout.store import Root
from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest
from bundler.oci.manifest import parse_json

LOCK_NAME = "bundle.lock.json"
_MAX_LOCK_BYTES = 64 * 1024 * 1024


def is_bundle_lock(directory: Path) -> bool:
    """Tell whether a directory has a lock of ours, of whatever version and however damaged inside."""
    try:
        with open_regular(directory / LOCK_NAME) as file:
            document = parse_json(file.read(_MAX_LOCK_BYTES), LOCK_NAME)
    except (OSError, ValueError, BadManifestError):
        return False
    return isinstance(document, dict) and document.get("kind") == KIND


def read_lock(directory: Path) -> tuple[BundleLock, Digest] | None:
    """Return a bundle's lock and the digest of its bytes; None if there is no lock.

    Raises:
        LockMismatchError: It cannot be read or is malformed.
        BundleFormatTooNewError: It is of another version.
    """
    path = directory / LOCK_NAME
    try:
        with open_regular(path) as file:
            raw = file.read(_MAX_LOCK_BYTES + 1)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LockMismatchError(f"{path} cannot be read: {error}") from error
    if len(raw) > _MAX_LOCK_BYTES:
        raise LockMismatchError(f"{path} is larger than {_MAX_LOCK_BYTES} bytes")
    return BundleLock.parse(raw, str(path)), Digest.of(raw)


def check_agreement(lock: BundleLock, roots: list[Root]) -> None:
    """Make sure that lock and index.json name the same images with the same digests.

    Raises:
        LockMismatchError: They do not; the message names the first difference.
    """
    locked = lock.names()
    listed = {str(root.reference): root.descriptor for root in roots}
    for name in sorted(locked.keys() | listed.keys()):
        if name not in listed:
            raise LockMismatchError(f"bundle.lock.json names {name}, index.json does not")
        if name not in locked:
            raise LockMismatchError(f"index.json names {name}, bundle.lock.json does not")
        if locked[name] != listed[name]:
            raise LockMismatchError(
                f"{name} is {_shown(locked[name])} in bundle.lock.json and {_shown(listed[name])} in index.json"
            )


def _shown(descriptor: Descriptor) -> str:
    return f"{descriptor.digest} ({descriptor.media_type}, {descriptor.size} bytes)"
