"""What a node of one platform needs of an image. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bundler.bundle.imageset import names_in_layout
from bundler.bundle.lock import BundleLock
from bundler.bundle.selection import ATTESTED_DIGEST, best
from bundler.errors import BadPlatformError
from bundler.oci.content import ImageContent
from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest
from bundler.oci.manifest import Index, Manifest
from bundler.oci.platform import Platform


@dataclass(frozen=True, slots=True)
class PlatformContent:
    """What is fetched for one platform: the root first, then what it leads to, and the blobs of the last."""

    manifests: tuple[Manifest | Index, ...]
    blobs: tuple[Descriptor, ...]

    @property
    def blob_bytes(self) -> int:
        """Total size of the blobs in bytes."""
        return sum(blob.size for blob in self.blobs)


def content_for(content: ImageContent, platform: Platform, known: tuple[Platform, ...] = ()) -> PlatformContent | None:
    """Return what a node of a platform fetches of an image; None if the image is not for it.

    Args:
        content: The image.
        platform: The node's.
        known: The platforms of an image that is one manifest, which does not say so itself; none if not known.
    """
    root = content.root
    if isinstance(root, Manifest):
        suits = [other for other in known if platform.rank(other) is not None]
        return PlatformContent((root,), root.blobs) if suits or not known else None
    documents = {document.digest: document for document in content.manifests}
    return _below(root, platform, documents)


def _below(index: Index, platform: Platform, documents: dict[Digest, Manifest | Index]) -> PlatformContent | None:
    children = [child for child in index.manifests if ATTESTED_DIGEST not in child.annotations]
    stated = {child.digest: child.platform for child in children if child.platform is not None}
    suited = best(platform, stated)
    # containerd takes the first of those that suit equally well.
    order = [child.digest for child in children if child.digest in suited]
    order += [child.digest for child in children if child.digest not in stated]
    for digest in order:
        child = documents.get(digest)
        if isinstance(child, Manifest):
            return PlatformContent((index, child), child.blobs)
        if isinstance(child, Index) and (found := _below(child, platform, documents)):
            return PlatformContent((index, *found.manifests), found.blobs)
    return None


def platforms_by_name(lock: BundleLock | None) -> dict[str, tuple[Platform, ...]]:
    """Return the platforms that the lock knows of each image, by each name that the image has in a layout."""
    return {
        str(name): _parsed(image.platforms)
        for image in (lock.images if lock else ())
        for name in names_in_layout(image.reference)
    }


def bundle_platforms(lock: BundleLock | None) -> tuple[Platform, ...]:
    """Return the platforms that a bundle was made for; for one of all platforms, those that K3s exists for in it."""
    if lock is None:
        return ()
    if lock.request.platforms != ("all",):
        return _parsed(lock.request.platforms)
    upgrade = [image for image in lock.images if image.reference.repository == "rancher/k3s-upgrade"]
    return tuple(sorted({platform for image in upgrade or lock.images for platform in _parsed(image.platforms)}))


def _parsed(texts: Iterable[str]) -> tuple[Platform, ...]:
    found = []
    for text in texts:
        try:
            found.append(Platform.parse(text))
        except BadPlatformError:
            # Of an image for something that no node is, such as an artifact's "unknown/unknown".
            continue
    return tuple(found)
