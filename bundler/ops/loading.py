"""A bundle as it is loaded: what is in it, under which names at a target. No network is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bundler.bundle.lock import BundleLock
from bundler.bundle.store import check_agreement, read_lock
from bundler.errors import NameCollisionError, NothingSelectedError
from bundler.layout.check import read_image
from bundler.layout.store import Layout
from bundler.oci.digest import Digest
from bundler.oci.target import Target, tag_for
from bundler.transfer.plan import PushImage


@dataclass(frozen=True, slots=True)
class LoadedBundle:
    """A bundle whose manifests were all read and verified."""

    layout: Layout
    images: tuple[PushImage, ...]
    lock: BundleLock | None
    lock_digest: Digest | None

    def lacks(self) -> list[str]:
        """Say what the bundle does not hold."""
        if self.lock is None:
            return []
        texts = [
            f"the bundle is incomplete: {image.reference} is missing ({image.error})" for image in self.lock.failed
        ]
        texts += [
            f"{image.reference} is in the bundle, but not for {', '.join(image.platforms_missing)}"
            for image in self.lock.images
            if image.platforms_missing
        ]
        return texts


def load_bundle(directory: Path, target: Target, *, keep_registry: bool) -> LoadedBundle:
    """Read and verify everything but the blobs, and give every image its name at the target.

    Args:
        directory: The bundle, or any OCI image layout.
        target: The registry and prefix.
        keep_registry: Put the source registry into the name at the target.

    Raises:
        LayoutMissingError: There is no layout.
        IntegrityError: index.json, the lock or a manifest is damaged, or they disagree.
        CompatibilityError: The layout or lock is of a newer format.
        NameCollisionError: Two images would have one name at the target.
    """
    layout = Layout(directory)
    roots = layout.roots()
    found = read_lock(directory)
    if found:
        check_agreement(found[0], roots)
    images: dict[tuple[str, str], PushImage] = {}
    for root in roots:
        content = read_image(layout, root.descriptor)
        repository = target.repository_for(root.reference, keep_registry=keep_registry)
        image = PushImage(root.reference, content, repository, tag_for(root.reference))
        known = images.setdefault((repository, image.tag), image)
        if known is not image:
            raise NameCollisionError(
                f"{known.reference} and {image.reference} would both become {repository}:{image.tag}",
                hint=None if not keep_registry else "Leave one of them out of the bundle.",
            )
    if not images and not (found and found[0].failed):
        raise NothingSelectedError(f"{directory} holds no image", hint="Make a bundle with images in it first.")
    return LoadedBundle(layout, tuple(images.values()), found[0] if found else None, found[1] if found else None)
