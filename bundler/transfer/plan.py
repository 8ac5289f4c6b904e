"""What a push has to do, as a pure value made before anything is sent; the pusher does exactly this.

Rules:

- An image whose name at the target already stands for its digest needs nothing.
- A digest is sent once: every other repository that needs it mounts it from where it is or will be.
- The images with most missing bytes go first, and in an image the biggest blob.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bundler.oci.content import ImageContent
from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest
from bundler.oci.reference import Reference


@dataclass(frozen=True, slots=True)
class PushImage:
    """One name of the bundle and where it goes."""

    reference: Reference
    content: ImageContent
    repository: str
    tag: str


class Action(StrEnum):
    """What a blob needs in one repository."""

    PRESENT = "present"
    MOUNT = "mount"
    UPLOAD = "upload"


@dataclass(frozen=True, slots=True)
class BlobStep:
    """One blob in one repository.

    Attributes:
        source: For a mount, the repository to mount from.
        after: The (repository, digest) whose step must have ended before this one is worth beginning.
    """

    blob: Descriptor
    action: Action
    source: str | None = None
    after: tuple[str, Digest] | None = None


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """The steps of one image, biggest blob first."""

    image: PushImage
    up_to_date: bool
    steps: tuple[BlobStep, ...] = ()

    def bytes_of(self, action: Action) -> int:
        """Return the bytes of all blobs with this action."""
        return sum(step.blob.size for step in self.steps if step.action is action)


@dataclass(frozen=True, slots=True)
class TransferPlan:
    """All images, in the order they are worked on."""

    images: tuple[ImagePlan, ...]

    def bytes_of(self, action: Action) -> int:
        """Return the bytes of all blobs with this action."""
        return sum(image.bytes_of(action) for image in self.images)


@dataclass(frozen=True, slots=True)
class Existing:
    """What the target was found to hold.

    Attributes:
        tags: Digest by (repository, tag).
        blobs: Digests by repository.
    """

    tags: Mapping[tuple[str, str], Digest]
    blobs: Mapping[str, frozenset[Digest]]

    def has_image(self, image: PushImage) -> bool:
        """Tell whether the image's name stands for its digest already."""
        found, root = self.tags.get((image.repository, image.tag)), image.content.root
        # A registry may name content of a sha512 digest by its sha256.
        return found is not None and (found == root.digest or found.matches(root.raw))


def make_plan(images: Sequence[PushImage], existing: Existing) -> TransferPlan:
    """Plan a push.

    Args:
        images: What is to be at the target, one entry a name.
        existing: What is there.
    """
    done = [ImagePlan(image, up_to_date=True) for image in images if existing.has_image(image)]
    # Where a digest can be mounted from at once, and where it will be once a planned step has ended.
    holders: dict[Digest, str] = {}
    for repository in sorted(existing.blobs):
        for digest in existing.blobs[repository]:
            holders.setdefault(digest, repository)
    for plan in done:
        for blob in plan.image.content.blobs:
            holders.setdefault(blob.digest, plan.image.repository)
    coming: dict[Digest, str] = {}
    planned: set[tuple[str, Digest]] = set()

    def missing_bytes(image: PushImage) -> int:
        held = existing.blobs.get(image.repository, frozenset())
        return sum(blob.size for blob in image.content.blobs if blob.digest not in held)

    def step(image: PushImage, blob: Descriptor) -> BlobStep:
        key = (image.repository, blob.digest)
        if blob.digest in existing.blobs.get(image.repository, frozenset()):
            return BlobStep(blob, Action.PRESENT)
        if key in planned:
            return BlobStep(blob, Action.PRESENT, after=key)
        planned.add(key)
        if holder := holders.get(blob.digest):
            return BlobStep(blob, Action.MOUNT, source=holder)
        if repository := coming.get(blob.digest):
            return BlobStep(blob, Action.MOUNT, source=repository, after=(repository, blob.digest))
        coming[blob.digest] = image.repository
        return BlobStep(blob, Action.UPLOAD)

    todo = [image for image in images if not existing.has_image(image)]
    todo.sort(key=lambda image: (-missing_bytes(image), image.repository, image.tag))
    plans = [
        ImagePlan(
            image,
            up_to_date=False,
            steps=tuple(
                step(image, blob)
                for blob in sorted(image.content.blobs, key=lambda blob: (-blob.size, str(blob.digest)))
            ),
        )
        for image in todo
    ]
    return TransferPlan((*plans, *done))
