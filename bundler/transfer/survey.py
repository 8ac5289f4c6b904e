"""What a target holds already, asked with as few requests as it takes.

One HEAD for each name, and for the names that stand for something else one HEAD for each blob. Only if anything is to
be sent is the API itself asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

from bundler.errors import AirgapSyncError, ConnectionFailedError, NoCredentialsError, TlsError, UnauthorizedError
from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest
from bundler.registry.client import RegistryClient
from bundler.registry.repository import Repository
from bundler.transfer.crew import Crew
from bundler.transfer.plan import Existing, PushImage

#: What is the same for every image of a target.
_HOPELESS = (ConnectionFailedError, TlsError, UnauthorizedError, NoCredentialsError)


class Survey:
    """Asks one target about a list of images; safe for the threads it uses itself.

    Attributes:
        failed: The images for which it could not be found out, and why.
    """

    def __init__(self, client: RegistryClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._tags: dict[tuple[str, str], Digest] = {}
        self._blobs: dict[str, set[Digest]] = {}
        self.failed: dict[PushImage, AirgapSyncError] = {}

    @property
    def existing(self) -> Existing:
        """What was found."""
        return Existing(self._tags, {name: frozenset(found) for name, found in self._blobs.items()})

    def ask(self, images: Sequence[PushImage], jobs: int) -> None:
        """Ask.

        Raises:
            AuthError: The target does not know us.
            RegistryUnavailableError: The target cannot be reached, or is no registry.
        """
        if not images:
            return
        with Crew(jobs) as crew:
            # A target that is not there, or does not know us, is asked once and not for every image.
            self._guarded(images[0], self._head)
            if isinstance(self.failed.get(images[0]), _HOPELESS):
                raise self.failed[images[0]]
            for image in images[1:]:
                crew.submit(partial(self._guarded, image, self._head))
            crew.wait()
            todo = [image for image in images if not self.existing.has_image(image) and image not in self.failed]
            if todo:
                self._client.check_api()
            asked: set[tuple[str, Digest]] = set()
            for image in todo:
                for blob in image.content.blobs:
                    if (image.repository, blob.digest) not in asked:
                        asked.add((image.repository, blob.digest))
                        crew.submit(partial(self._guarded, image, partial(self._head_blob, blob)))
            crew.wait()

    def _guarded(self, image: PushImage, step: Callable[[PushImage], None]) -> None:
        try:
            step(image)
        except AirgapSyncError as error:
            with self._lock:
                self.failed.setdefault(image, error)

    def _head(self, image: PushImage) -> None:
        found = Repository(self._client, image.repository, "pull,push").head_manifest(image.tag)
        if found is not None:
            with self._lock:
                self._tags[image.repository, image.tag] = found[0]

    def _head_blob(self, blob: Descriptor, image: PushImage) -> None:
        if Repository(self._client, image.repository, "pull,push").has_blob(blob):
            with self._lock:
                self._blobs.setdefault(image.repository, set()).add(blob.digest)
