"""Looking at a target after a push: does every tag stand for our digest, and is every manifest there?

The blobs of an image are asked for before its tag is written (:mod:`bundler.transfer.push`), so that a tag never points
at something incomplete. Here they are only asked for where nothing was sent and the user wants to know all the same.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial

from bundler.errors import AirgapSyncError, HiddenByPolicyError, NotVerifiedError
from bundler.oci.digest import Digest
from bundler.progress import Progress
from bundler.registry.client import RegistryClient
from bundler.registry.harbor import Harbor
from bundler.registry.repository import Repository
from bundler.transfer.crew import Crew
from bundler.transfer.plan import PushImage
from bundler.transfer.push import PushedImage

#: One list of Harbor has a hundred manifests: cheaper than asking for each, from this many on.
_WORTH_A_LIST = 4


class Verifier:
    """Checks images at a target.

    Args:
        client: The target's endpoint.
        harbor: Its API, if it is Harbor.
        progress: Told of what is not as it should be.
    """

    def __init__(self, client: RegistryClient, harbor: Harbor | None, progress: Progress) -> None:
        self._client = client
        self._harbor = harbor
        self._progress = progress
        self._lock = threading.Lock()
        self._manifests = 0
        self._images = 0

    @property
    def counts(self) -> dict[str, int]:
        """How many images and manifests were found to be there."""
        return {"images": self._images, "manifests": self._manifests}

    def verify(self, images: Sequence[PushedImage], jobs: int) -> None:
        """Check the images that were done; one that does not hold gets an error."""
        by_repository: dict[str, list[PushedImage]] = {}
        for image in images:
            if image.done and image.error is None:
                by_repository.setdefault(image.plan.image.repository, []).append(image)
        with Crew(jobs) as crew:
            for repository, group in by_repository.items():
                crew.submit(partial(self._repository, repository, group))
            crew.wait()

    def _repository(self, name: str, images: list[PushedImage]) -> None:
        repository = Repository(self._client, name, "pull,push")
        listed = self._listed(name, images)
        for image in images:
            try:
                self._image(repository, image, listed)
            except AirgapSyncError as error:
                image.error, image.done = error, False
                self._progress.image_done(f"failed: {image.plan.image.reference}: {error.message}")

    def _image(self, repository: Repository, image: PushedImage, listed: dict[str, set[str]] | None) -> None:
        wanted = image.plan.image
        if listed is None:
            for manifest in wanted.content.manifests[:-1]:
                if _head(repository, str(manifest.digest)) is None:
                    raise NotVerifiedError(f"{repository.place} does not have {manifest.digest} of {wanted.reference}")
            self._check_tag(repository, wanted)
        else:
            for manifest in wanted.content.manifests:
                if str(manifest.digest) not in listed:
                    raise NotVerifiedError(f"{repository.place} does not list {manifest.digest} of {wanted.reference}")
            if wanted.tag not in listed[str(wanted.content.root.digest)]:
                raise NotVerifiedError(
                    f"{repository.place}:{wanted.tag} does not stand for {wanted.content.root.digest}"
                )
        if image.plan.up_to_date:
            for blob in wanted.content.blobs:
                if not repository.has_blob(blob):
                    raise NotVerifiedError(f"{repository.place} lacks {blob.digest} of {wanted.reference}")
        with self._lock:
            self._images += 1
            self._manifests += len(wanted.content.manifests)

    def _check_tag(self, repository: Repository, wanted: PushImage) -> None:
        found = _head(repository, wanted.tag)
        root = wanted.content.root
        if found is _HIDDEN:
            artifact = self._harbor.artifact(repository.name, wanted.tag) if self._harbor else None
            if artifact is None or artifact.digest == str(root.digest):
                return
        elif found is not None and (found == root.digest or found.matches(root.raw)):
            return
        raise NotVerifiedError(f"{repository.place}:{wanted.tag} does not stand for {root.digest}")

    def _listed(self, name: str, images: list[PushedImage]) -> dict[str, set[str]] | None:
        """Return tags by digest of a repository as Harbor lists them; None where asking one by one is better."""
        count = sum(len(image.plan.image.content.manifests) for image in images)
        if self._harbor is None or count < _WORTH_A_LIST:
            return None
        try:
            return {artifact.digest: set(artifact.tags) for artifact in self._harbor.artifacts(name)}
        except AirgapSyncError:
            return None


#: Stands for a manifest that is there, but may not be read.
_HIDDEN = Digest.of(b"hidden by policy")


def _head(repository: Repository, reference: str) -> Digest | None:
    try:
        found = repository.head_manifest(reference)
    except HiddenByPolicyError:
        return _HIDDEN
    return found[0] if found else None
