"""What a target holds already, asked with as few requests as it takes.

One HEAD for each name, and for the names that stand for something else one HEAD for each blob.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

from bundler.errors import (
    AirgapSyncError,
    ConnectionFailedError,
    HiddenByPolicyError,
    NoCredentialsError,
    TlsError,
    UnauthorizedError,
)
from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest
from bundler.registry.client import RegistryClient
from bundler.registry.repository import Repository
from bundler.registry.token import Scope
from bundler.transfer.crew import Crew
from bundler.transfer.plan import Existing, PushImage

#: What is the same for every image of a target.
_HOPELESS = (ConnectionFailedError, TlsError, UnauthorizedError, NoCredentialsError)
_RIGHTS = "pull,push"


class Survey:
    """Asks one target about a list of images; safe for the threads it uses itself.

    Attributes:
        failed: The images for which it could not be found out, and why.
        hidden: The images that are there, but that a policy hides: what their names stand for is not known.
    """

    def __init__(self, client: RegistryClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._tags: dict[tuple[str, str], Digest] = {}
        self._blobs: dict[str, set[Digest]] = {}
        self.failed: dict[PushImage, AirgapSyncError] = {}
        self.hidden: set[PushImage] = set()

    @property
    def existing(self) -> Existing:
        """What was found."""
        return Existing(self._tags, {name: frozenset(found) for name, found in self._blobs.items()})

    def todo(self, images: Sequence[PushImage]) -> list[PushImage]:
        """Return the images that are not there as they should be, as far as could be found out."""
        existing = self.existing
        return [image for image in images if image not in self.failed and not existing.has_image(image)]

    def found(self, image: PushImage, digest: Digest) -> None:
        """Note what a name stands for that was found out by other means."""
        with self._lock:
            self._tags[image.repository, image.tag] = digest

    def lost(self, image: PushImage) -> None:
        """Note that a name stands for something that is not whole."""
        with self._lock:
            self._tags.pop((image.repository, image.tag), None)

    def forgive(self, images: Sequence[PushImage]) -> None:
        """Take a refusal for an absence: what the images would lie in does not exist yet."""
        for image in images:
            self.failed.pop(image, None)

    def ask_names(self, images: Sequence[PushImage], jobs: int) -> None:
        """Ask what the names stand for.

        Raises:
            AuthError: The target does not know us.
            RegistryUnavailableError: The target cannot be reached.
        """
        if not images:
            return
        # A target that is not there, or does not know us, is asked once and not for every image.
        self._guarded(images[0], self._head)
        if isinstance(self.failed.get(images[0]), _HOPELESS):
            raise self.failed[images[0]]
        with Crew(jobs) as crew:
            for image in images[1:]:
                crew.submit(partial(self._guarded, image, self._head))
            crew.wait()

    def ask_blobs(self, images: Sequence[PushImage], jobs: int) -> None:
        """Ask which blobs of these images are there; an image that we may not push fails."""
        asked: set[tuple[str, Digest]] = set()
        with Crew(jobs) as crew:
            for image in images:
                self._guarded(image, self._check_rights)
                for blob in () if image in self.failed else image.content.blobs:
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
        try:
            found = Repository(self._client, image.repository, _RIGHTS).head_manifest(image.tag)
        except HiddenByPolicyError:
            with self._lock:
                self.hidden.add(image)
            return
        if found is not None:
            self.found(image, found[0])

    def _check_rights(self, image: PushImage) -> None:
        if self._client.allows(Scope(image.repository, _RIGHTS)) is False:
            raise self._client.authorizer.refused(f"pushing to {image.repository} (its token does not hold that right)")

    def _head_blob(self, blob: Descriptor, image: PushImage) -> None:
        if Repository(self._client, image.repository, _RIGHTS).has_blob(blob):
            with self._lock:
                self._blobs.setdefault(image.repository, set()).add(blob.digest)
