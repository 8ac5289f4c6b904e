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
from bundler.oci.manifest import MAX_DESCRIPTORS, MAX_MANIFEST_BYTES, Index, Manifest, parse

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
        self._count = 0

    def visit(self, descriptor: Descriptor, depth: int) -> None:
        if descriptor.digest in self.manifests:
            return
        if not (mediatype.is_index(descriptor.media_type) or mediatype.is_manifest(descriptor.media_type)):
            raise BadManifestError(f"{descriptor.digest} is {descriptor.media_type[:80]!r}, neither manifest nor index")
        if depth > MAX_DEPTH:
            raise BadManifestError(f"{descriptor.digest} is nested deeper than {MAX_DEPTH} indexes")
        if descriptor.size > MAX_MANIFEST_BYTES:
            raise BadManifestError(f"{descriptor.digest} is a manifest of more than {MAX_MANIFEST_BYTES} bytes")
        try:
            raw = self._layout.read_manifest(descriptor)
        except BlobMissingError as error:
            if depth:
                raise IndexChildMissingError(f"{error.message}, but an index lists it") from error
            raise
        document = parse(raw, descriptor.media_type, digest=descriptor.digest)
        if isinstance(document, Index):
            self._count_in(len(document.manifests))
            for child in document.manifests:
                if mediatype.is_index(child.media_type) or mediatype.is_manifest(child.media_type):
                    self.visit(child, depth + 1)
                else:
                    self.blobs[child.digest] = child
        else:
            self._count_in(1 + len(document.layers))
            self.blobs |= {blob.digest: blob for blob in document.blobs}
        self.manifests[document.digest] = document

    def _count_in(self, number: int) -> None:
        self._count += number
        if self._count > MAX_DESCRIPTORS:
            raise BadManifestError(f"an image has more than {MAX_DESCRIPTORS} descriptors")
