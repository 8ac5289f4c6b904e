"""Looking at a target: does every tag stand for our digest, and is every manifest and blob there?

After a push only tags and manifests are asked for: the blobs of an image were asked for before its tag was written
(:mod:`bundler.transfer.push`), so that a tag never points at something incomplete.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial

from bundler.errors import AirgapSyncError, HiddenByPolicyError, NotVerifiedError
from bundler.oci.digest import Digest
from bundler.registry.client import RegistryClient
from bundler.registry.harbor import Harbor
from bundler.registry.repository import Repository
from bundler.transfer.crew import Crew
from bundler.transfer.plan import PushImage

#: One list of Harbor has a hundred manifests: cheaper than asking for each, from this many on.
_WORTH_A_LIST = 4


class Verifier:
    """Checks images at a target.

    Args:
        client: The target's endpoint.
        harbor: Its API, if it is Harbor.
    """

    def __init__(self, client: RegistryClient, harbor: Harbor | None) -> None:
        self._client = client
        self._harbor = harbor
        self._lock = threading.Lock()
        self._wrong: dict[PushImage, AirgapSyncError] = {}

    def check(self, images: Sequence[PushImage], jobs: int, *, blobs: bool) -> dict[PushImage, AirgapSyncError]:
        """Return the images that are not at the target as they should be, each with what is wrong.

        Args:
            images: Those that are to be there.
            jobs: Requests at once.
            blobs: Ask for every blob as well.
        """
        self._wrong = {}
        by_repository: dict[str, list[PushImage]] = {}
        for image in images:
            by_repository.setdefault(image.repository, []).append(image)
        with Crew(jobs) as crew:
            for name, group in by_repository.items():
                crew.submit(partial(self._repository, name, group, blobs=blobs))
            crew.wait()
        return self._wrong

    def _repository(self, name: str, images: list[PushImage], *, blobs: bool) -> None:
        repository = Repository(self._client, name, "pull,push")
        listed = self._listed(name, images)
        for image in images:
            try:
                self._image(repository, image, listed)
                if blobs:
                    self._check_blobs(repository, image)
            except AirgapSyncError as error:
                with self._lock:
                    self._wrong[image] = error

    def _image(self, repository: Repository, wanted: PushImage, listed: dict[str, set[str]] | None) -> None:
        if listed is None:
            for manifest in wanted.content.manifests[:-1]:
                if _head(repository, str(manifest.digest)) is None:
                    raise NotVerifiedError(f"{repository.place} does not have {manifest.digest} of {wanted.reference}")
            self._check_tag(repository, wanted)
            return
        for manifest in wanted.content.manifests:
            if str(manifest.digest) not in listed:
                raise NotVerifiedError(f"{repository.place} does not list {manifest.digest} of {wanted.reference}")
        if wanted.tag not in listed[str(wanted.content.root.digest)]:
            raise NotVerifiedError(f"{repository.place}:{wanted.tag} does not stand for {wanted.content.root.digest}")

    def _check_blobs(self, repository: Repository, wanted: PushImage) -> None:
        for blob in wanted.content.blobs:
            if not repository.has_blob(blob):
                raise NotVerifiedError(f"{repository.place} lacks {blob.digest} of {wanted.reference}")

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

    def _listed(self, name: str, images: list[PushImage]) -> dict[str, set[str]] | None:
        """Return tags by digest of a repository as Harbor lists them; None where asking one by one is better."""
        count = sum(len(image.content.manifests) for image in images)
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
