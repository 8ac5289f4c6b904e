"""Walking an image from its root through the manifests of a layout.

Everything is verified that is read, and bounded: depth, number of descriptors, size of each manifest.
"""

from __future__ import annotations

from bundler.errors import (
    BadManifestError,
    BlobMissingError,
    IndexChildMissingError,
)
from bundler.layout.store import Layout
from bundler.oci import mediatype
from bundler.oci.content import ImageContent
from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest
from bundler.oci.manifest import (
    MAX_DESCRIPTORS,
    MAX_IMAGE_MANIFEST_BYTES,
    MAX_MANIFEST_BYTES,
    Index,
    Manifest,
    check_sizes,
    parse,
)

#: Levels of indexes above a manifest that are followed.
MAX_DEPTH = 4


def read_image(layout: Layout, root: Descriptor) -> ImageContent:
    """Read all manifests below a root; blobs are listed, not opened.

    Raises:
        BlobMissingError: The root manifest is not there.
        IndexChildMissingError: A manifest that an index lists is not there.
        IntegrityError: A manifest is damaged, malformed, too large, or nested too deep.
    """
    walk = _Walk(layout)
    walk.visit(root, 0)
    return ImageContent(tuple(walk.manifests.values()), tuple(walk.blobs.values()))


class _Walk:
    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.manifests: dict[Digest, Manifest | Index] = {}
        self.blobs: dict[Digest, Descriptor] = {}
        self._count = self._bytes = 0

    def visit(self, descriptor: Descriptor, depth: int) -> None:
        if descriptor.digest in self.manifests:
            return
        if not _is_document(descriptor):
            raise BadManifestError(f"{descriptor.digest} is {descriptor.media_type[:80]!r}, neither manifest nor index")
        if depth > MAX_DEPTH:
            raise BadManifestError(f"{descriptor.digest} is nested deeper than {MAX_DEPTH} indexes")
        if descriptor.size > MAX_MANIFEST_BYTES:
            raise BadManifestError(f"{descriptor.digest} is a manifest of more than {MAX_MANIFEST_BYTES} bytes")
        raw = self._read(descriptor, depth)
        document = parse(raw, descriptor.media_type, digest=descriptor.digest)
        self._bytes += len(raw)
        if self._bytes > MAX_IMAGE_MANIFEST_BYTES:
            raise BadManifestError(f"the manifests of an image have more than {MAX_IMAGE_MANIFEST_BYTES} bytes")
        if isinstance(document, Index):
            check_sizes(document)
            self._count_in(len(document.manifests))
            for child in document.manifests:
                if _is_document(child):
                    self.visit(child, depth + 1)
                else:
                    self._take(child)
        else:
            self._count_in(1 + len(document.layers))
            for blob in document.blobs:
                self._take(blob)
        self.manifests[document.digest] = document

    def _read(self, descriptor: Descriptor, depth: int) -> bytes:
        try:
            return self._layout.read_manifest(descriptor)
        except BlobMissingError as error:
            if depth:
                raise IndexChildMissingError(f"{error.message}, but an index lists it") from error
            raise

    def _take(self, blob: Descriptor) -> None:
        known = self.blobs.setdefault(blob.digest, blob)
        if known.size != blob.size:
            raise BadManifestError(f"{blob.digest} is listed with {known.size} and with {blob.size} bytes")

    def _count_in(self, number: int) -> None:
        self._count += number
        if self._count > MAX_DESCRIPTORS:
            raise BadManifestError(f"an image has more than {MAX_DESCRIPTORS} descriptors")


def _is_document(descriptor: Descriptor) -> bool:
    return mediatype.is_index(descriptor.media_type) or mediatype.is_manifest(descriptor.media_type)
