"""The names that descriptors of index.json carry.

Written as containerd and skopeo read them: both annotations hold the full reference.
Source: image-spec annotations.md; containerd's importer reads ``io.containerd.image.name`` first.
"""

from __future__ import annotations

from bundler.errors import BadLayoutError, BadReferenceError
from bundler.oci.descriptor import Descriptor
from bundler.oci.reference import Reference

NAME_ANNOTATION = "io.containerd.image.name"
REF_ANNOTATION = "org.opencontainers.image.ref.name"


def name_of(descriptor: Descriptor, where: str) -> Reference:
    """Return the full name of a root.

    Source: image-spec annotations.md and containerd's importer; a bare tag in ``ref.name`` names nothing.
    """
    for key in (NAME_ANNOTATION, REF_ANNOTATION):
        text = descriptor.annotations.get(key, "")
        if "/" not in text:
            continue
        try:
            return Reference.parse(text)
        except BadReferenceError as error:
            raise BadLayoutError(f"{where}: {error.message}") from error
    raise BadLayoutError(
        f"{where} has no image name",
        hint=f"Each descriptor needs the annotation {NAME_ANNOTATION} with a full reference.",
    )


def annotations_for(reference: Reference) -> dict[str, str]:
    """Return the annotations that give a descriptor its name."""
    return {NAME_ANNOTATION: str(reference), REF_ANNOTATION: str(reference)}
