"""Which children of an index come along for the chosen platforms. Pure.

Rules:

- For each chosen platform the children that suit it best, as containerd would choose.
- Children that state no platform always come along.
- Attestations come along with the child that they speak of, and only then.
  Source: BuildKit docs/attestations/attestation-storage.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest
from bundler.oci.manifest import Index
from bundler.oci.platform import Platform

ATTESTED_DIGEST = "vnd.docker.reference.digest"

#: The chosen platforms, or None for all.
Wanted = tuple[Platform, ...] | None


@dataclass(frozen=True, slots=True)
class Selection:
    """The outcome for one index.

    Attributes:
        kept: Descriptors in the index's order.
        present: Platforms of what is kept, sorted.
        missing: Chosen platforms that nothing suits, sorted.
        available: All platforms of the index, sorted.
    """

    kept: tuple[Descriptor, ...]
    present: tuple[Platform, ...]
    missing: tuple[Platform, ...]
    available: tuple[Platform, ...]


def best(wanted: Platform, available: Mapping[Digest, Platform]) -> set[Digest]:
    """Return the digests whose platform suits best; several if they are equally good."""
    ranks = {digest: wanted.rank(platform) for digest, platform in available.items()}
    found = [rank for rank in ranks.values() if rank is not None]
    return {digest for digest, rank in ranks.items() if found and rank == min(found)}


def select(index: Index, wanted: Wanted, inside: Mapping[Digest, tuple[Platform, ...]]) -> Selection:
    """Choose the children of an index.

    Args:
        index: The index.
        wanted: The chosen platforms.
        inside: For children that state no platform, the platforms found in them.
    """
    attestations = {child.digest for child in index.manifests if ATTESTED_DIGEST in child.annotations}
    stated = {
        child.digest: child.platform
        for child in index.manifests
        if child.platform is not None and child.digest not in attestations
    }
    within = tuple(platform for platforms in inside.values() for platform in platforms)
    available = tuple(sorted({*stated.values(), *within}))
    if wanted is None:
        return Selection(index.manifests, available, (), available)
    chosen: set[Digest] = set()
    missing: set[Platform] = set()
    for platform in wanted:
        suited = best(platform, stated)
        chosen |= suited
        if not suited and all(platform.rank(other) is None for other in within):
            missing.add(platform)
    unstated = {child.digest for child in index.manifests if child.digest not in stated} - attestations
    comes = chosen | unstated
    kept = tuple(
        child
        for child in index.manifests
        if child.digest in comes or child.annotations.get(ATTESTED_DIGEST) in {str(digest) for digest in comes}
    )
    present = tuple(sorted({*(stated[digest] for digest in chosen), *within}))
    return Selection(kept, present, tuple(sorted(missing)), available)
