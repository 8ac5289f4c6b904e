"""The images of a bundle: what is wanted and why, and what that turned out to be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from bundler.errors import NameCollisionError
from bundler.oci.content import ImageContent
from bundler.oci.digest import Digest
from bundler.oci.platform import Platform
from bundler.oci.reference import Reference

TRIMMED = "trimmed-index"


@dataclass(frozen=True, slots=True)
class WantedImage:
    """An image somebody asked for.

    Attributes:
        reference: Its full name.
        reasons: Why it is wanted, for people; sorted, unique.
        sources: Where that is written down; sorted, unique.
    """

    reference: Reference
    reasons: tuple[str, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """A wanted image whose manifests are known.

    Attributes:
        wanted: What was asked for.
        content: What the layout holds for it, platforms selected.
        upstream: The digest that the registry has for the name; another than the content's root if trimmed.
        platforms: The platforms that are in it, as they are written there; empty for artifacts.
        missing: The chosen platforms that the image does not have.
        complete_because_pinned: All platforms are kept although fewer were chosen, since the digest is an index.
    """

    wanted: WantedImage
    content: ImageContent
    upstream: Digest
    platforms: tuple[Platform, ...]
    missing: tuple[Platform, ...] = ()
    complete_because_pinned: bool = False

    @property
    def trimmed(self) -> bool:
        """Whether the root is an index of ours with fewer children than the upstream one."""
        return self.upstream != self.content.root.digest


def names_in_layout(reference: Reference) -> tuple[Reference, ...]:
    """Return the names that an image has in index.json: ``repo:tag@digest`` has two."""
    return tuple(name for name in (reference.tagged(), reference.pinned()) if name is not None)


def merge(wanted: Iterable[WantedImage]) -> tuple[WantedImage, ...]:
    """Sort images by name, each once, with all its reasons.

    ``repo:tag`` together with ``repo:tag@digest`` is one image: the digest decides what the tag stands for.

    Raises:
        NameCollisionError: One tag is asked for with two digests.
    """
    by_name: dict[str, WantedImage] = {}
    for image in wanted:
        key = str(image.reference.tagged() or image.reference)
        known = by_name.get(key)
        if known is None:
            by_name[key] = image
            continue
        digests = {image.reference.digest, known.reference.digest} - {None}
        if len(digests) > 1:
            raise NameCollisionError(
                f"{image.reference} and {known.reference} ask for one tag with two digests",
                hint="Leave out the tag of one of them, or one of the two.",
            )
        pinned = image.reference if image.reference.digest else known.reference
        by_name[key] = replace(
            known,
            reference=pinned,
            reasons=tuple(sorted({*known.reasons, *image.reasons})),
            sources=tuple(sorted({*known.sources, *image.sources})),
        )
    return tuple(sorted(by_name.values(), key=lambda image: str(image.reference)))
