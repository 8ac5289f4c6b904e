"""Pulling images into a layout: one queue of blobs across all images, biggest first, and a lane for manifests.

Invariants:

- A blob that was sealed is not fetched again; one that only looks right is hashed first.
- A blob is fetched once, however many images use it.
- One image's failure does not touch another; what failed is tried once more at the end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from bundler.bundle.imageset import ResolvedImage, WantedImage
from bundler.bundle.selection import Wanted
from bundler.errors import (
    AirgapSyncError,
    AuthError,
    BadManifestError,
    BadOutputError,
    CapacityError,
    CompatibilityError,
    DiskFullError,
    IntegrityError,
    RegistryUnavailableError,
)
from bundler.files import free_bytes
from bundler.layout.store import Layout
from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest
from bundler.oci.reference import DOCKER_HUB, Reference
from bundler.progress import Progress, people_bytes
from bundler.registry.retry import retrying
from bundler.transfer.crew import Crew
from bundler.transfer.journal import Journal
from bundler.transfer.resolve import ImageSource, Resolver

logger = logging.getLogger(__name__)

MANIFEST_LANE = 2
_ABSURD_BYTES = 2**50
_FINAL = (AuthError, CompatibilityError)


@dataclass(slots=True)
class PulledImage:
    """One image on its way; ``error`` is set if it failed, ``done`` if it came whole."""

    wanted: WantedImage
    resolved: ResolvedImage | None = None
    error: AirgapSyncError | None = None
    done: bool = False
    bytes_fetched: int = 0
    waiting: set[Digest] = field(default_factory=set)


@dataclass(slots=True)
class _Blob:
    """One blob, and the images that wait for it with the repositories they can have it from."""

    descriptor: Descriptor
    takers: list[tuple[PulledImage, ImageSource]]
    done: bool = False


def _content(blob: Descriptor) -> Descriptor:
    """Return what makes two descriptors the same to fetch: digest and size, whatever media type they are given.

    An image may lie about the size of a layer that others have too: it fails, and they do not.
    """
    return Descriptor("", blob.digest, blob.size)


class Puller:
    """Pulls a list of images.

    Args:
        layout: Where content goes; created already.
        journal: Of that layout.
        open_source: Returns the repository that a reference's content comes from.
        wanted: The chosen platforms.
        jobs: Blobs in flight at once.
        progress: Told of every byte.
        ask_first: Whether the layout may hold content already.
        fail_fast: Stop at the first failed image.
    """

    def __init__(
        self,
        *,
        layout: Layout,
        journal: Journal,
        open_source: Callable[[Reference], ImageSource],
        wanted: Wanted,
        jobs: int,
        progress: Progress,
        ask_first: bool,
        fail_fast: bool,
    ) -> None:
        self._layout = layout
        self._journal = journal
        self._open_source = open_source
        self._wanted = wanted
        self._jobs = jobs
        self._progress = progress
        self._ask_first = ask_first
        self._fail_fast = fail_fast
        self._lock = threading.Lock()
        self._blobs: dict[Descriptor, _Blob] = {}
        self._trusted: set[Digest] = set()
        self._turns: dict[Digest, threading.Lock] = {}
        self._counted: set[Digest] = set()
        self._needed_bytes = 0
        self._free_bytes = free_bytes(layout.directory)

    def pull(self, images: list[PulledImage]) -> None:
        """Pull all images; what became of each stands in it, also if this raises.

        Raises:
            CapacityError: The disk is full: nothing more can be done.
            BadOutputError: The disk refuses: nothing more can be done.
        """
        self._round(images)
        # A refusal or a wrong platform is the same a minute later, and a password must not be tried too often.
        again = [image for image in images if image.error and not isinstance(image.error, _FINAL)]
        if again and not self._fail_fast:
            logger.info("trying what failed once more: %d of %d images", len(again), len(images))
            for image in again:
                image.error = None
            self._round(again)

    # --- one round ------------------------------------------------------------------------------------------

    def _round(self, images: list[PulledImage]) -> None:
        self._blobs.clear()
        with Crew(MANIFEST_LANE) as manifests, Crew(self._jobs) as blobs:
            for image in images:
                manifests.submit(partial(self._resolve, image, (manifests, blobs)))
            manifests.wait(beside=blobs)
            blobs.wait()

    def _resolve(self, image: PulledImage, crews: tuple[Crew, Crew]) -> None:
        """Find an image's manifests and queue its blobs."""
        try:
            source = self._open_source(image.wanted.reference)
            fetch_config = partial(self._fetch, image, source)
            # Docker Hub counts each GET of a manifest and no HEAD.
            ask_first = self._ask_first or image.wanted.reference.registry == DOCKER_HUB
            resolver = Resolver(self._layout, source, fetch_config, self._wanted, ask_first=ask_first)
            image.resolved = resolver.resolve(image.wanted)
            with self._lock:
                self._reserve(image.resolved.content.blobs)
        except (CapacityError, BadOutputError):
            raise
        except AirgapSyncError as error:
            self._failed(image, error, crews)
            return
        with self._lock:
            image.waiting.clear()
            for descriptor in image.resolved.content.blobs:
                blob = self._blobs.get(_content(descriptor))
                if blob is None:
                    blob = self._blobs[_content(descriptor)] = _Blob(descriptor, [])
                    self._progress.expect(descriptor.size)
                    crews[1].submit(partial(self._bring, blob, crews), descriptor.size)
                if not blob.done:
                    blob.takers.append((image, source))
                    image.waiting.add(descriptor.digest)
            finished = not image.waiting
        if finished:
            self._finished(image)

    def _reserve(self, blobs: Iterable[Descriptor]) -> None:
        """Count what is still to come, and stop as soon as it is known not to fit.

        Raises:
            BadManifestError: One image claims more than any disk holds; it is not believed, and fails alone.
            DiskFullError: The images whose manifests are known need more than was free at the start.
        """
        blobs = tuple(blobs)
        if sum(blob.size for blob in blobs) > _ABSURD_BYTES:
            raise BadManifestError(f"an image claims to have more than {people_bytes(_ABSURD_BYTES)}")
        for blob in blobs:
            if blob.digest not in self._counted:
                self._counted.add(blob.digest)
                self._needed_bytes += 0 if self._layout.has_blob(blob) else blob.size - self._layout.partial_bytes(blob)
        if self._needed_bytes > self._free_bytes:
            raise DiskFullError(
                f"{self._layout.directory} has room for {people_bytes(self._free_bytes)}, and at least "
                f"{people_bytes(self._needed_bytes)} are still to be fetched"
            )

    def _bring(self, blob: _Blob, crews: tuple[Crew, Crew]) -> None:
        """Fetch a blob for all images that wait for it, from the first repository that can give it."""
        tried = 0
        while True:
            with self._lock:
                while tried < len(blob.takers) and blob.takers[tried][0].error is not None:
                    tried += 1
                if tried == len(blob.takers):
                    # An image that comes later starts anew, with its own repository.
                    del self._blobs[_content(blob.descriptor)]
                    self._progress.expect(-blob.descriptor.size)
                    return
                image, source = blob.takers[tried]
            try:
                self._fetch(image, source, blob.descriptor)
                break
            except (CapacityError, BadOutputError):
                raise
            except AirgapSyncError as error:
                self._failed(image, error, crews)
        self._progress.expect(-blob.descriptor.size)
        finished = []
        with self._lock:
            blob.done = True
            for image, _ in blob.takers:
                image.waiting.discard(blob.descriptor.digest)
                if not image.waiting and image.error is None:
                    finished.append(image)
        for image in finished:
            self._finished(image)

    def _failed(self, image: PulledImage, error: AirgapSyncError, crews: tuple[Crew, Crew]) -> None:
        with self._lock:
            first = image.error is None
            image.error = image.error or error
        if self._fail_fast:
            for crew in crews:
                crew.stop()
        if first:
            self._progress.image_done(f"failed: {image.wanted.reference}: {error.message}")

    def _finished(self, image: PulledImage) -> None:
        image.done = True
        how = f"fetched {people_bytes(image.bytes_fetched)}" if image.bytes_fetched else "nothing to fetch"
        self._progress.image_done(f"done: {image.wanted.reference} ({how})")

    # --- one blob ---------------------------------------------------------------------------------------------

    def _fetch(self, image: PulledImage, source: ImageSource, descriptor: Descriptor) -> None:
        """Bring a blob into the layout unless it is there; each by one thread at a time."""
        with self._lock:
            turn = self._turns.setdefault(descriptor.digest, threading.Lock())
        with turn:
            while not self._have(descriptor):
                try:
                    self._receive(image, source, descriptor)
                except (IntegrityError, RegistryUnavailableError):
                    # A mirror with damaged content, or one that always breaks, must not hide the next one.
                    if not source.skip_endpoint(descriptor):
                        raise

    def _receive(self, image: PulledImage, source: ImageSource, descriptor: Descriptor) -> None:
        received = 0

        def on_bytes(size: int) -> None:
            nonlocal received
            received += size
            self._progress.advance(size)

        try:
            retrying(
                lambda: self._layout.put_blob(
                    descriptor, lambda offset: source.open_blob(descriptor, offset), on_bytes
                ),
                lambda: self._layout.partial_bytes(descriptor),
            )
        finally:
            # What came twice, or was there already, is not what was expected.
            self._progress.expect(received)
            with self._lock:
                image.bytes_fetched += received
        found = self._layout.stat_blob(descriptor.digest)
        if found is not None:
            self._journal.seal(descriptor.digest, found)
        self._trusted.add(descriptor.digest)

    def _have(self, blob: Descriptor) -> bool:
        found = self._layout.stat_blob(blob.digest)
        if blob.digest in self._trusted and found is not None and found.size == blob.size:
            return True
        if found is None or found.size != blob.size:
            return False
        if not self._journal.is_sealed(blob.digest, found):
            if not self._layout.verify_blob(blob):
                return False
            self._journal.seal(blob.digest, found)
        self._trusted.add(blob.digest)
        return True
