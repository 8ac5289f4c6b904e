"""What an image is made of, and the two ends that content moves between.

``BlobSource`` is how pulling reads content and ``BlobSink`` how it is received, so that code never asks whether bytes
lie on a disk, in a registry or in memory, and nothing assumes that a source can seek.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from bundler.errors import BadManifestError
from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest
from bundler.oci.manifest import MAX_DESCRIPTORS, MAX_IMAGE_MANIFEST_BYTES, Index, Manifest, check_sizes

#: Bytes read at a time when content is streamed: large enough to leave Python out, small enough for memory.
CHUNK_BYTES = 1024 * 1024


class BlobStream(Protocol):
    """Bytes of one blob, from ``offset`` to its end."""

    #: Where this stream starts, in bytes; 0 if the source cannot start anywhere else.
    offset: int

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, empty at the end."""


#: Opens a blob at an offset; the stream may start at 0 instead and then says so.
Opener = Callable[[int], AbstractContextManager[BlobStream]]


class BlobSource(Protocol):
    """Somewhere that content of one image can be read from."""

    def get_manifest(self, descriptor: Descriptor) -> bytes:
        """Return the verified bytes of a manifest or index."""

    def open_blob(self, blob: Descriptor, offset: int = 0) -> AbstractContextManager[BlobStream]:
        """Open a blob for streaming."""


class BlobSink(Protocol):
    """Somewhere that content of one image can be written to."""

    def has_blob(self, blob: Descriptor) -> bool:
        """Tell whether the blob is there, whole."""

    def put_blob(self, blob: Descriptor, opener: Opener, on_bytes: Callable[[int], None]) -> None:
        """Store a blob; it becomes visible only when all its bytes are there and right."""


@dataclass(frozen=True, slots=True)
class ImageContent:
    """Everything below one root descriptor.

    ``manifests`` holds each manifest and index once, children before parents, the root last.
    ``blobs`` holds each config and layer once.
    """

    manifests: tuple[Manifest | Index, ...]
    blobs: tuple[Descriptor, ...]

    @property
    def root(self) -> Manifest | Index:
        """The manifest or index that a tag points at."""
        return self.manifests[-1]

    @property
    def blob_bytes(self) -> int:
        """Total size of the blobs in bytes."""
        return sum(blob.size for blob in self.blobs)

    @property
    def total_bytes(self) -> int:
        """Total size of blobs and manifests in bytes."""
        return self.blob_bytes + sum(len(manifest.raw) for manifest in self.manifests)

    def digests(self) -> Iterator[Digest]:
        """Yield the digest of every manifest and blob."""
        for manifest in self.manifests:
            yield manifest.digest
        for blob in self.blobs:
            yield blob.digest


class ContentBuilder:
    """Gathers the content of one image while its manifests are read, within bounds.

    Whoever reads the manifests, from a registry or from a layout, gets the same bounds and the same order.
    """

    def __init__(self) -> None:
        self.manifests: dict[Digest, Manifest | Index] = {}
        self._blobs: dict[Digest, Descriptor] = {}
        self._count = self._bytes = 0

    def count_in(self, document: Manifest | Index) -> None:
        """Bound what one image may list and what its manifests may weigh, before anything below is read.

        Raises:
            BadManifestError: Too many descriptors, too many bytes, or one digest with two sizes.
        """
        self._count += len(document.manifests) if isinstance(document, Index) else 1 + len(document.layers)
        self._bytes += len(document.raw)
        if self._count > MAX_DESCRIPTORS:
            raise BadManifestError(f"an image has more than {MAX_DESCRIPTORS} descriptors")
        if self._bytes > MAX_IMAGE_MANIFEST_BYTES:
            raise BadManifestError(f"the manifests of an image have more than {MAX_IMAGE_MANIFEST_BYTES} bytes")
        if isinstance(document, Index):
            check_sizes(document)

    def add(self, document: Manifest | Index) -> None:
        """Take a document whose children were added before it, with its blobs.

        Raises:
            BadManifestError: A blob is listed with two sizes.
        """
        if isinstance(document, Manifest):
            for blob in document.blobs:
                self.add_blob(blob)
        self.manifests[document.digest] = document

    def add_blob(self, blob: Descriptor) -> None:
        """Take a blob.

        Raises:
            BadManifestError: It is listed with two sizes.
        """
        known = self._blobs.setdefault(blob.digest, blob)
        if known.size != blob.size:
            raise BadManifestError(f"{blob.digest} is listed with {known.size} and with {blob.size} bytes")

    def content(self) -> ImageContent:
        """Return what was gathered; the document added last is the root."""
        return ImageContent(tuple(self.manifests.values()), tuple(self._blobs.values()))
