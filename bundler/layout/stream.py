"""Reading a blob file and verifying it on the way."""

from __future__ import annotations

from typing import BinaryIO

from bundler.errors import BadLayoutError, DigestMismatchError, SizeMismatchError
from bundler.oci.descriptor import Descriptor

_MEDIUM_HINT = "The medium or its connection is failing: copy the bundle to another one, or make it again."


class VerifiedStream:
    """Hashes a file while it is read, and raises instead of giving out the last bytes of a wrong one."""

    offset = 0

    def __init__(self, file: BinaryIO, blob: Descriptor) -> None:
        self._file = file
        self._blob = blob
        self._hasher = blob.digest.hasher()
        self._left = blob.size

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; the call that would return the last ones raises if the hash is wrong."""
        try:
            data = self._file.read(min(size, self._left))
        except OSError as error:
            raise BadLayoutError(f"{self._blob.digest} cannot be read: {error.strerror}", hint=_MEDIUM_HINT) from error
        self._hasher.update(data)
        self._left -= len(data)
        if not data and self._left:
            raise SizeMismatchError(f"{self._blob.digest} became shorter while it was read")
        if not self._left and self._hasher.hexdigest() != self._blob.digest.hex:
            digest = self._blob.digest
            raise DigestMismatchError(
                f"the bytes of {digest} in the bundle are not those of its digest",
                hint=f"Copy the bundle again; or remove blobs/{digest.algorithm}/{digest.hex} where the bundle was "
                "made and run the same `bundle` command there, which fetches just that.",
            )
        return data
