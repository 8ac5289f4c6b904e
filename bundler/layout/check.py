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
from bundler.oci.content import ContentBuilder, ImageContent
from bundler.oci.descriptor import Descriptor
from bundler.oci.manifest import (
    MAX_MANIFEST_BYTES,
    Index,
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
    return walk.found.content()


class _Walk:
    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.found = ContentBuilder()

    def visit(self, descriptor: Descriptor, depth: int) -> None:
        if descriptor.digest in self.found.manifests:
            return
        if not descriptor.is_document:
            raise BadManifestError(f"{descriptor.digest} is {descriptor.media_type[:80]!r}, neither manifest nor index")
        if depth > MAX_DEPTH:
            raise BadManifestError(f"{descriptor.digest} is nested deeper than {MAX_DEPTH} indexes")
        if descriptor.size > MAX_MANIFEST_BYTES:
            raise BadManifestError(f"{descriptor.digest} is a manifest of more than {MAX_MANIFEST_BYTES} bytes")
        raw = self._read(descriptor, depth)
        document = parse(raw, descriptor.media_type, digest=descriptor.digest)
        self.found.count_in(document)
        if isinstance(document, Index):
            for child in document.manifests:
                if child.is_document:
                    self.visit(child, depth + 1)
                else:
                    self.found.add_blob(child)
        self.found.add(document)

    def _read(self, descriptor: Descriptor, depth: int) -> bytes:
        try:
            return self._layout.read_manifest(descriptor)
        except BlobMissingError as error:
            if depth:
                raise IndexChildMissingError(f"{error.message}, but an index lists it") from error
            raise
