"""Receiving one blob into a file: what an earlier try left is used, and nothing is believed without its hash."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO

from bundler.errors import DigestMismatchError, SizeMismatchError, TruncatedBlobError
from bundler.files import disk_errors
from bundler.oci.content import CHUNK_BYTES, Opener
from bundler.oci.descriptor import Descriptor


def receive(file: BinaryIO, blob: Descriptor, opener: Opener, on_bytes: Callable[[int], None]) -> None:
    """Fill a file with exactly the bytes of a blob.

    Args:
        file: Open for reading and writing, unbuffered; its present content is continued where it can be.
        blob: What is expected.
        opener: Opens the source at an offset.
        on_bytes: Told of each piece received from the source.

    Raises:
        TruncatedBlobError: The source ended early; the file keeps what came.
        SizeMismatchError: The source sent too much; the file is emptied.
        DigestMismatchError: The bytes are not the blob's; the file is emptied.
        AirgapSyncError: Whatever the source raises; the file keeps what came.
    """
    resumed = os.fstat(file.fileno()).st_size > 0
    if _matches(file, blob, opener, on_bytes):
        return
    _empty(file)
    # Bytes that survived a crash need not be those that were written: once more, all from the source.
    if not resumed or not _matches(file, blob, opener, on_bytes):
        _empty(file)
        raise DigestMismatchError(f"what was received for {blob.digest} are not the bytes of this digest")


def _matches(file: BinaryIO, blob: Descriptor, opener: Opener, on_bytes: Callable[[int], None]) -> bool:
    hasher = blob.digest.hasher()
    have = 0
    with disk_errors(str(blob.digest)):
        file.seek(0)
        while chunk := file.read(CHUNK_BYTES):
            hasher.update(chunk)
            have += len(chunk)
    if have > blob.size:
        return False
    if have < blob.size or not blob.size:
        with opener(have) as stream:
            if stream.offset != have:
                if stream.offset:
                    return False
                _empty(file)
                hasher, have = blob.digest.hasher(), 0
            while chunk := stream.read(CHUNK_BYTES):
                have += len(chunk)
                if have > blob.size:
                    _empty(file)
                    raise SizeMismatchError(f"more than the {blob.size} bytes of {blob.digest} were sent")
                hasher.update(chunk)
                with disk_errors(str(blob.digest)):
                    _write_all(file, chunk)
                on_bytes(len(chunk))
    if have < blob.size:
        raise TruncatedBlobError(f"{blob.digest} ended after {have} of {blob.size} bytes")
    return hasher.hexdigest() == blob.digest.hex


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write all of it: an unbuffered file may take less, for example on a disk that is nearly full."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _empty(file: BinaryIO) -> None:
    with disk_errors("a blob"):
        file.seek(0)
        file.truncate()
