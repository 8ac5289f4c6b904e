"""A bundle as it is loaded: what is in it, where it goes, under which names at a target. No network is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bundler.bundle.lock import BundleLock
from bundler.bundle.store import check_agreement, read_lock
from bundler.errors import NameCollisionError, NothingSelectedError
from bundler.layout.check import read_image
from bundler.layout.store import Layout
from bundler.oci.content import ImageContent
from bundler.oci.digest import Digest
from bundler.oci.reference import Reference
from bundler.oci.target import Target, tag_for
from bundler.site.routes import Route, Router, Site
from bundler.transfer.plan import PushImage


@dataclass(frozen=True, slots=True)
class RoutedImage:
    """One name of the bundle and where it is put."""

    reference: Reference
    content: ImageContent
    route: Route


@dataclass(frozen=True, slots=True)
class LoadedBundle:
    """A bundle whose manifests were all read and verified."""

    layout: Layout
    images: tuple[RoutedImage, ...]
    lock: BundleLock | None
    lock_digest: Digest | None
    router: Router

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

    def routed(self, route: Route) -> tuple[RoutedImage, ...]:
        """Return the images that are put to one place."""
        return tuple(image for image in self.images if image.route is route)

    def idle_rules(self) -> list[str]:
        """Say which of the site's routes decide nothing here."""
        return [
            f"the route {rule} is for no image of this bundle, or comes after one that takes all of them"
            for rule in self.router.unmatched([image.reference for image in self.images])
        ]

    def at(self, target: Target) -> tuple[PushImage, ...]:
        """Give every image that is put into the registry its name there.

        Raises:
            NameCollisionError: Two images would have one name.
        """
        keep_registry = self.router.site.keep_registry
        named: dict[tuple[str, str], PushImage] = {}
        for image in self.routed(Route.REGISTRY):
            repository = target.repository_for(image.reference, keep_registry=keep_registry)
            pushed = PushImage(image.reference, image.content, repository, tag_for(image.reference))
            known = named.setdefault((repository, pushed.tag), pushed)
            if known is not pushed:
                raise NameCollisionError(
                    f"{known.reference} and {pushed.reference} would both become {repository}:{pushed.tag}",
                    hint=None if not keep_registry else "Leave one of them out of the bundle.",
                )
        return tuple(named.values())


def load_bundle(directory: Path, site: Site) -> LoadedBundle:
    """Read and verify everything but the blobs, and decide where each image is put.

    Args:
        directory: The bundle, or any OCI image layout.
        site: The site that it goes to.

    Raises:
        LayoutMissingError: There is no layout.
        IntegrityError: index.json, the lock or a manifest is damaged, or they disagree.
        CompatibilityError: The layout or lock is of a newer format.
        NothingSelectedError: There is no image in it, or a route needs a lock and there is none.
    """
    layout = Layout(directory)
    roots = layout.roots()
    lock, lock_digest = read_lock(directory) or (None, None)
    if lock:
        check_agreement(lock, roots)
    router = Router(site, lock)
    images = tuple(
        RoutedImage(root.reference, read_image(layout, root.descriptor), router.route(root.reference)) for root in roots
    )
    if not images and not (lock and lock.failed):
        raise NothingSelectedError(f"{directory} holds no image", hint="Make a bundle with images in it first.")
    return LoadedBundle(layout, images, lock, lock_digest, router)
