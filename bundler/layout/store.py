"""An OCI image layout on disk: blobs by digest, roots in index.json.

Invariants:

- A blob has its final name only if all its bytes were hashed and fsynced.
- Paths are made of validated digests only; links and special files are refused.
- index.json is replaced as a whole, atomically, by one owner.

Source: image-spec image-layout.md.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bundler.errors import (
    BadLayoutError,
    BadManifestError,
    BlobMissingError,
    BundleFormatTooNewError,
    DigestMismatchError,
    LayoutMissingError,
    SizeMismatchError,
)
from bundler.files import disk_errors, fsync_directory, open_regular, publish, write_atomic
from bundler.layout.intake import receive
from bundler.layout.names import annotations_for, name_of
from bundler.layout.stream import VerifiedStream
from bundler.oci import mediatype
from bundler.oci.content import CHUNK_BYTES, BlobStream, Opener
from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest
from bundler.oci.manifest import parse_json
from bundler.oci.reference import Reference

LAYOUT_VERSION = "1.0.0"
MAX_INDEX_BYTES = 64 * 1024 * 1024

_PARTS = ("oci-layout", "index.json", "blobs")
_PARTIAL = re.compile(r"\.([0-9a-f]+)\.partial")


@dataclass(frozen=True, slots=True)
class Root:
    """One named descriptor of index.json."""

    reference: Reference
    descriptor: Descriptor


@dataclass(frozen=True, slots=True)
class BlobStat:
    """What the file system says of a blob file: size in bytes, modification time in nanoseconds."""

    size: int
    mtime_ns: int


class Layout:
    """Reads and writes one layout directory.

    Args:
        directory: Where it is, or will be.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # Images share manifests, and two threads must not write one temporary file.
        self._small = threading.Lock()

    # --- reading ---------------------------------------------------------------------------------------

    def check_version(self) -> None:
        """Make sure that this is a layout of the version we know.

        Raises:
            LayoutMissingError: There is no layout.
            BadLayoutError: The marker file is missing from what looks like a layout, or malformed.
            BundleFormatTooNewError: It is of another version.
        """
        raw = self._read_file("oci-layout", 4096)
        document = self._json(raw, "oci-layout")
        version = document.get("imageLayoutVersion") if isinstance(document, dict) else None
        if not isinstance(version, str):
            raise BadLayoutError(f"{self.directory}/oci-layout does not state an imageLayoutVersion")
        if version != LAYOUT_VERSION:
            raise BundleFormatTooNewError(
                f"{self.directory} is an OCI layout of version {version[:20]!r}; this tool knows {LAYOUT_VERSION}"
            )

    def roots(self) -> list[Root]:
        """Return the named descriptors of index.json, in its order.

        Raises:
            LayoutMissingError: There is no layout.
            BadLayoutError: index.json is malformed, or a descriptor has no usable or not a unique name.
        """
        self.check_version()
        document = self._json(self._read_file("index.json", MAX_INDEX_BYTES), "index.json")
        manifests = document.get("manifests") if isinstance(document, dict) else None
        if not isinstance(manifests, list):
            raise BadLayoutError(f"{self.directory}/index.json has no list of manifests")
        roots: dict[str, Root] = {}
        for number, item in enumerate(manifests):
            where = f"{self.directory}/index.json, manifests[{number}]"
            try:
                descriptor = Descriptor.from_dict(item, where)
            except BadManifestError as error:
                raise BadLayoutError(error.message) from error
            reference = name_of(descriptor, where)
            if str(reference) in roots:
                raise BadLayoutError(f"{where}: a second descriptor is named {reference}")
            roots[str(reference)] = Root(reference, descriptor)
        return list(roots.values())

    def stat_blob(self, digest: Digest) -> BlobStat | None:
        """Return size and time of a blob file; None if there is no such regular file."""
        try:
            found = os.lstat(self._path(digest))
        except OSError:
            return None
        if (found.st_mode & 0o170000) != 0o100000:  # noqa: PLR2004 - S_ISREG without following links
            return None
        return BlobStat(found.st_size, found.st_mtime_ns)

    def has_blob(self, blob: Descriptor) -> bool:
        """Tell whether a blob file of the right size is there; its bytes are not read."""
        found = self.stat_blob(blob.digest)
        return found is not None and found.size == blob.size

    def partial_bytes(self, blob: Descriptor) -> int:
        """Return how much of a blob an unfinished transfer has left, in bytes."""
        try:
            return min(os.lstat(self._partial(blob.digest)).st_size, blob.size)
        except OSError:
            return 0

    def verify_blob(self, blob: Descriptor) -> bool:
        """Tell whether a blob is there with the right bytes, reading all of them."""
        try:
            with self.open_blob(blob) as stream:
                while stream.read(CHUNK_BYTES):
                    pass
        except (BlobMissingError, DigestMismatchError, SizeMismatchError, BadLayoutError):
            return False
        return True

    def read_manifest(self, descriptor: Descriptor) -> bytes:
        """Return the verified bytes of a manifest or index.

        Raises:
            BlobMissingError: It is not there.
            DigestMismatchError: Its bytes are not those of its digest.
            SizeMismatchError: Its size is not the descriptor's.
        """
        data = bytearray()
        with self.open_blob(descriptor) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                data += chunk
        return bytes(data)

    def open_blob(self, blob: Descriptor, offset: int = 0) -> AbstractContextManager[BlobStream]:
        """Open a blob; reading to its end raises unless its bytes are right.

        ``offset`` other than 0 is not needed here: a stream that is to be verified starts at 0.

        Raises:
            BlobMissingError: It is not there.
            BadLayoutError: It is a link or not a regular file.
            SizeMismatchError: Its size is not the descriptor's.
            DigestMismatchError: While reading: its bytes are not those of its digest.
        """
        del offset
        return self._open_blob(blob)

    @contextmanager
    def _open_blob(self, blob: Descriptor) -> Iterator[BlobStream]:
        path = self._path(blob.digest)
        try:
            file = open_regular(path)
        except FileNotFoundError as error:
            raise BlobMissingError(f"{blob.digest} is not in {self.directory}") from error
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno != errno.ELOOP:
                raise BadLayoutError(f"{path} cannot be read: {error.strerror}") from error
            raise BadLayoutError(f"{path} is not a regular file") from error
        with file:
            size = os.fstat(file.fileno()).st_size
            if size != blob.size:
                raise SizeMismatchError(f"{blob.digest} in {self.directory} has {size} bytes, not {blob.size}")
            yield VerifiedStream(file, blob)

    # --- writing ---------------------------------------------------------------------------------------

    def create(self) -> None:
        """Make the directories and the marker of a layout, where they are not there yet.

        Raises:
            DiskFullError: No space is left.
            BadOutputError: The file system refuses.
        """
        with disk_errors(str(self.directory)):
            (self.directory / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        if not (self.directory / "oci-layout").exists():
            write_atomic(
                self.directory / "oci-layout",
                json.dumps({"imageLayoutVersion": LAYOUT_VERSION}).encode() + b"\n",
            )

    def put_bytes(self, raw: bytes, digest: Digest) -> None:
        """Store a manifest or other small content that the caller has verified; one at a time."""
        path = self._path(digest)
        with self._small:
            with disk_errors(str(path)):
                path.parent.mkdir(exist_ok=True)
            write_atomic(path, raw)

    def put_blob(self, blob: Descriptor, opener: Opener, on_bytes: Callable[[int], None]) -> None:
        """Stream a blob to a temporary file in the blob folder, check it, fsync it and give it its name.

        What an earlier try left is hashed and continued from, where the source can start in the middle.
        The folder itself is synced by :meth:`sync`.

        Raises:
            TruncatedBlobError: The source ended early; what came is kept for the next try.
            SizeMismatchError: The source sent more than the blob has.
            DigestMismatchError: The bytes are not the blob's; nothing is kept.
            DiskFullError: No space is left.
            AirgapSyncError: Whatever the source raises.
        """
        path = self._path(blob.digest)
        partial = self._partial(blob.digest)
        with disk_errors(str(path)):
            path.parent.mkdir(exist_ok=True)
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with open(descriptor, "r+b", buffering=0) as file:
            receive(file, blob, opener, on_bytes)
            with disk_errors(str(path)):
                publish(partial, path, file)

    def write_index(self, roots: list[Root]) -> None:
        """Replace index.json: sorted by name, the same roots always give the same bytes."""
        manifests = [
            {
                "mediaType": root.descriptor.media_type,
                "digest": str(root.descriptor.digest),
                "size": root.descriptor.size,
                "annotations": annotations_for(root.reference),
            }
            for root in sorted(roots, key=lambda root: str(root.reference))
        ]
        document = {"schemaVersion": 2, "mediaType": mediatype.OCI_INDEX, "manifests": manifests}
        write_atomic(self.directory / "index.json", json.dumps(document, indent=1).encode() + b"\n")

    def sync(self) -> None:
        """Make the names of all blobs durable."""
        with disk_errors(str(self.directory)):
            for folder in (self.directory / "blobs").iterdir():
                if folder.is_dir():
                    fsync_directory(folder)
            fsync_directory(self.directory / "blobs")
            fsync_directory(self.directory)

    def remove_except(self, kept: set[Digest]) -> tuple[int, int]:
        """Remove every file of the blob folders that is neither a kept blob nor a kept blob's unfinished part.

        Returns:
            How many files were removed, and their bytes.
        """
        names = {digest.hex for digest in kept}
        count = size = 0
        with disk_errors(str(self.directory)):
            for folder in (self.directory / "blobs").iterdir():
                real = folder.is_dir() and not folder.is_symlink()
                for path in folder.iterdir() if real else (folder,):
                    part = _PARTIAL.fullmatch(path.name)
                    # A sealed blob has no use for an unfinished part of itself.
                    keep = part[1] in names and not (folder / part[1]).exists() if part else path.name in names
                    if keep:
                        continue
                    size += path.lstat().st_size
                    count += 1
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink()
        return count, size

    # --- inside -----------------------------------------------------------------------------------------

    def _path(self, digest: Digest) -> Path:
        return self.directory / "blobs" / digest.algorithm / digest.hex

    def _partial(self, digest: Digest) -> Path:
        return self._path(digest).with_name(f".{digest.hex}.partial")

    def _read_file(self, name: str, limit: int) -> bytes:
        path = self.directory / name
        try:
            with open_regular(path) as file:
                data = file.read(limit + 1)
        except (FileNotFoundError, NotADirectoryError) as error:
            if not any((self.directory / part).exists() for part in _PARTS if part != name):
                what = (
                    f"is not an OCI image layout: it holds no {name}" if self.directory.exists() else "does not exist"
                )
                raise LayoutMissingError(f"{self.directory} {what}") from error
            raise BadLayoutError(
                f"{self.directory} holds no {name}: the layout is damaged, or was never finished",
                hint="Run the same `bundle` command again where the bundle was made.",
            ) from error
        except (OSError, ValueError) as error:
            raise BadLayoutError(f"{path} cannot be read: {error}") from error
        if len(data) > limit:
            raise BadLayoutError(f"{path} is larger than {limit} bytes")
        return data

    def _json(self, raw: bytes, name: str) -> object:
        try:
            document: object = parse_json(raw, f"{self.directory}/{name}")
        except BadManifestError as error:
            raise BadLayoutError(error.message) from error
        return document
