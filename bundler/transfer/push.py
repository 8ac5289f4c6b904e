"""Pushing images to a target: exactly what the plan says.

Invariants:

- A tag is written last, when everything below it was accepted by the registry.
- A digest is sent once; where a mount is not granted the blob is sent to that repository too.
- Local content is verified while it is read, so wrong bytes end an upload and never reach a tag.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from bundler.errors import (
    AirgapSyncError,
    BlobMissingError,
    BrokenConnectionError,
    DeniedError,
    NotFoundError,
    NotVerifiedError,
    SizeMismatchError,
    UnexpectedAnswerError,
)
from bundler.layout.store import Layout
from bundler.oci import mediatype
from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest
from bundler.oci.manifest import Index, Manifest
from bundler.progress import Progress, people_bytes
from bundler.registry.client import RegistryClient
from bundler.registry.repository import Repository
from bundler.registry.session import Chunking, RunMemory, UploadMemory
from bundler.transfer.crew import Crew
from bundler.transfer.harbor import HarborCheck
from bundler.transfer.plan import Action, BlobStep, ImagePlan, PushImage, TransferPlan

#: How registries say that a manifest names something that they do not have (distribution, zot, Harbor).
_LACKS = ("MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NOT_FOUND")


@dataclass(slots=True)
class PushedImage:
    """One image on its way; ``error`` is set if it failed."""

    plan: ImagePlan
    error: AirgapSyncError | None = None
    bytes_sent: int = 0
    bytes_mounted: int = 0
    waiting: int = 0
    done: bool = False


class Pusher:
    """Pushes images of one layout to one registry.

    Args:
        layout: Where content comes from; never written.
        client: The target's endpoint.
        jobs: Blobs in flight at once.
        progress: Told of every byte.
        chunking: Which blobs are sent in chunks.
        memory: Of uploads that can be continued.
        verify: Ask for an image's blobs once more before its tag is written.
        harbor: What is known of the target, if it is Harbor.
    """

    def __init__(
        self,
        layout: Layout,
        client: RegistryClient,
        *,
        jobs: int,
        progress: Progress,
        chunking: Chunking | None = None,
        memory: UploadMemory | None = None,
        verify: bool = True,
        harbor: HarborCheck | None = None,
    ) -> None:
        self._layout = layout
        self._client = client
        self._jobs = jobs
        self._progress = progress
        self._chunking = chunking or Chunking()
        self._memory = memory or RunMemory()
        self._verify = verify
        self._harbor = harbor
        self._lock = threading.Lock()
        self._turns: dict[str, threading.Lock] = {}
        self._there: set[tuple[str, Digest]] = set()

    # --- execution ------------------------------------------------------------------------------------------

    def execute(self, plan: TransferPlan, pushed: list[PushedImage]) -> None:
        """Do what the plan says; what became of each image stands in ``pushed``, also if this raises."""
        self._progress.expect(plan.bytes_of(Action.UPLOAD))
        with Crew(self._jobs) as crew:
            _Execution(self, crew, pushed).start()
            crew.wait()

    def put_blob(self, image: PushedImage, step: BlobStep, source: str | None) -> None:
        """Bring one blob into an image's repository: mounted from ``source`` if that is granted, else sent."""
        repository = self._repository(image.plan.image.repository)
        if self._harbor is not None:
            self._harbor.stop_if_full(repository.name)
        session = None
        if source is not None:
            mounted = repository.mount_blob(step.blob, source)
            if mounted.done:
                with self._lock:
                    image.bytes_mounted += step.blob.size
                if step.action is Action.UPLOAD:
                    self._progress.expect(-step.blob.size)
                return
            session = mounted.session
        if step.action is not Action.UPLOAD:
            self._progress.expect(step.blob.size)
        self._send(image, repository, step.blob, session)

    def _send(self, image: PushedImage, repository: Repository, blob: Descriptor, session: str | None) -> None:
        sent = 0

        def on_bytes(size: int) -> None:
            nonlocal sent
            sent += size
            self._progress.advance(size)

        try:
            with self._explained(repository.name, blob.size):
                repository.put_blob(
                    blob,
                    lambda offset: self._layout.open_blob(blob, offset),
                    on_bytes,
                    session=session,
                    chunking=self._chunking,
                    memory=self._memory,
                )
        finally:
            # What was not sent is not to come any more: it failed, or an earlier run had sent it.
            self._progress.expect(sent - blob.size)
            with self._lock:
                image.bytes_sent += sent

    @contextmanager
    def _explained(self, repository: str, size: int) -> Iterator[None]:
        """Let Harbor say why it refuses."""
        try:
            yield
        except (DeniedError, BrokenConnectionError) as error:
            if self._harbor is None:
                raise
            raise self._harbor.explained(error, repository, size) from error

    def put_manifests(self, image: PushedImage) -> None:
        """Store children by digest, each once in a run, then the root under its tag.

        Raises:
            ForeignLayersRefusedError: The target refuses a manifest that has foreign layers.
            NotVerifiedError: The target does not have what it accepted.
            AirgapSyncError: It refuses for another reason.
        """
        wanted = image.plan.image
        repository = self._repository(wanted.repository)
        sent_again = self._send_missing(image, repository) if self._verify else 0
        for last in (bool(sent_again), True):
            try:
                self._put_all(repository, wanted)
            except (UnexpectedAnswerError, NotFoundError) as error:
                # A blob that was there when it was asked for may be gone: registries clean up while they run.
                if last or error.context.get("code") not in _LACKS or not self._send_missing(image, repository):
                    raise
            else:
                return

    def _put_all(self, repository: Repository, image: PushImage) -> None:
        below = image.content.manifests[:-1] if image.reference.tag else image.content.manifests
        for manifest in below:
            self._put_once(repository, manifest)
        # Names of one repository are put one after another: registries write links to a digest without a lock.
        with self._turn(image.repository):
            self._put(repository, image.content.root, image.tag)

    def _send_missing(self, image: PushedImage, repository: Repository) -> int:
        """Ask for every blob of an image, and send what is missing although it was accepted; return how many were.

        Asking also tells registries that collect garbage that these blobs are in use.
        """
        count = 0
        for blob in image.plan.image.content.blobs:
            if repository.has_blob(blob):
                continue
            count += 1
            self._progress.expect(blob.size)
            self._send(image, repository, blob, None)
            if not repository.has_blob(blob):
                raise NotVerifiedError(f"{repository.place} accepts {blob.digest} and does not have it afterwards")
        return count

    def _put_once(self, repository: Repository, manifest: Manifest | Index) -> None:
        with self._turn(repository.name):
            if (repository.name, manifest.digest) not in self._there:
                self._put(repository, manifest, str(manifest.digest))
                self._there.add((repository.name, manifest.digest))

    def _put(self, repository: Repository, manifest: Manifest | Index, reference: str) -> None:
        foreign = isinstance(manifest, Manifest) and any(
            blob.urls or mediatype.is_foreign(blob.media_type) for blob in manifest.layers
        )
        with self._explained(repository.name, len(manifest.raw)):
            repository.put_manifest(manifest.raw, manifest.media_type, manifest.digest, reference, foreign=foreign)

    def _turn(self, repository: str) -> threading.Lock:
        with self._lock:
            return self._turns.setdefault(repository, threading.Lock())

    def image_done(self, line: str) -> None:
        """Say how an image ended."""
        self._progress.image_done(line)

    def _repository(self, name: str) -> Repository:
        return Repository(self._client, name, "pull,push")


def missing_blob(layout: Layout, image: PushImage) -> AirgapSyncError | None:
    """Return what makes an image impossible to push: a blob that is not in the layout, or of another size."""
    for blob in image.content.blobs:
        found = layout.stat_blob(blob.digest)
        if found is None:
            return BlobMissingError(f"{blob.digest} is not in {layout.directory}")
        if found.size != blob.size:
            return SizeMismatchError(
                f"{blob.digest} in {layout.directory} has {found.size} bytes, not {blob.size}",
                hint=BlobMissingError.hint,
            )
    return None


class _Execution:
    """The order of one run.

    A step begins when what it waits for has ended, and the manifests of an image when all its steps have. If the
    image that was to bring a shared blob fails, the next one that needs the blob brings it, and the others wait for
    that one: a digest is sent once whatever fails.
    """

    def __init__(self, pusher: Pusher, crew: Crew, images: list[PushedImage]) -> None:
        self._pusher = pusher
        self._crew = crew
        self._images = images
        self._lock = threading.Lock()
        #: Where each digest is known to be by now.
        self._holders: dict[Digest, list[str]] = {}
        #: Digests that a step is sending, with the tasks that wait for its end.
        self._sending: dict[Digest, list[tuple[Callable[[], None], float]]] = {}

    def start(self) -> None:
        for number, image in enumerate(self._images):
            # Image by image: a step that had to wait comes before those of later images all the same.
            urgency = float(len(self._images) - number)
            image.waiting = len(image.plan.steps)
            if image.plan.up_to_date:
                image.done = True
                self._pusher.image_done(f"up to date: {image.plan.image.reference}")
            elif not image.plan.steps:
                self._crew.submit(partial(self._manifests, image), urgency)
            for step in image.plan.steps:
                self._crew.submit(partial(self._step, image, step, urgency), urgency)

    def _step(self, image: PushedImage, step: BlobStep, urgency: float) -> None:
        digest, repository = step.blob.digest, image.plan.image.repository
        there = step.action is Action.PRESENT and step.after is None
        source = None
        with self._lock:
            if image.error is None and not there:
                holders = self._holders.get(digest, [])
                there = repository in holders
                planned = None if step.after else step.source
                source = planned or next(iter(holders), None)
                if not there and source is None:
                    if digest in self._sending:
                        self._sending[digest].append((partial(self._step, image, step, urgency), urgency))
                        return
                    self._sending[digest] = []
        if image.error is None and not there:
            self._put(image, step, source)
        with self._lock:
            image.waiting -= 1
            last = image.waiting == 0
        if last:
            self._crew.submit(partial(self._manifests, image), urgency + 0.5)

    def _put(self, image: PushedImage, step: BlobStep, source: str | None) -> None:
        digest = step.blob.digest
        try:
            self._pusher.put_blob(image, step, source)
            with self._lock:
                self._holders.setdefault(digest, []).append(image.plan.image.repository)
        except AirgapSyncError as error:
            image.error = error
        finally:
            if source is None:
                with self._lock:
                    waiting = self._sending.pop(digest)
                for task, urgency in waiting:
                    self._crew.submit(task, urgency)

    def _manifests(self, image: PushedImage) -> None:
        name = image.plan.image.reference
        if image.error is None:
            try:
                self._pusher.put_manifests(image)
                image.done = True
            except AirgapSyncError as error:
                image.error = error
        if image.error is not None:
            self._pusher.image_done(f"failed: {name}: {image.error.message}")
        else:
            self._pusher.image_done(f"pushed: {name} ({people_bytes(image.bytes_sent)} sent)")
