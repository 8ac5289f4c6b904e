"""How much room a push needs in a project of Harbor. Pure: everything is known from bundle, survey and plan.

A project stores each blob and manifest once, whatever repositories of it they are in.
"""

from __future__ import annotations

from collections.abc import Iterable

from bundler.oci.digest import Digest
from bundler.transfer.plan import Action, Existing, PushImage, TransferPlan


def project_of(repository: str) -> str:
    """Return the project that a repository lies in."""
    return repository.partition("/")[0]


def sizes_in(plan: TransferPlan, existing: Existing, project: str) -> tuple[int, int]:
    """Return the bytes that all images have in a project, and those of them that are not known to be there."""
    every: dict[Digest, int] = {}
    present: set[Digest] = set()
    for repository, digests in existing.blobs.items():
        if project_of(repository) == project:
            present |= digests
    for image in plan.images:
        content = image.image.content
        if project_of(image.image.repository) != project:
            continue
        sizes = {blob.digest: blob.size for blob in content.blobs}
        sizes |= {manifest.digest: len(manifest.raw) for manifest in content.manifests}
        every |= sizes
        if image.up_to_date:
            present |= set(sizes)
        present |= {step.blob.digest for step in image.steps if step.action is Action.PRESENT and step.after is None}
    return sum(every.values()), sum(size for digest, size in every.items() if digest not in present)


def content_bytes(images: Iterable[PushImage], project: str) -> int:
    """Return the bytes of all blobs and manifests that go into a project, each once."""
    sizes: dict[Digest, int] = {}
    for image in images:
        if project_of(image.repository) == project:
            sizes |= {blob.digest: blob.size for blob in image.content.blobs}
            sizes |= {manifest.digest: len(manifest.raw) for manifest in image.content.manifests}
    return sum(sizes.values())
