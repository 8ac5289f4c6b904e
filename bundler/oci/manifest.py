"""Manifests and indexes over the bytes they were received as.

Invariants:

- ``raw`` is never re-serialised: digests are taken over it, and it is what is stored and sent.
- A document is parsed leniently (unknown fields are fine) but unambiguously: duplicate keys, NaN and a
  ``mediaType`` that contradicts the descriptor are refused.
- Nothing is parsed that is over 4 MiB.

Source: image-spec manifest.md and image-index.md; distribution-spec "Pushing manifests" for the 4 MiB.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from bundler.errors import BadManifestError
from bundler.oci import mediatype
from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_DESCRIPTORS = 10_000
#: All manifests of one image together.
MAX_IMAGE_MANIFEST_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest: one config, some layers."""

    raw: bytes = field(repr=False)
    media_type: str
    digest: Digest
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def descriptor(self) -> Descriptor:
        """A plain descriptor of this manifest."""
        return Descriptor(self.media_type, self.digest, len(self.raw))

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Config and layers in order, each pair of digest and size once."""
        return tuple(dict.fromkeys((self.config, *self.layers)))


@dataclass(frozen=True, slots=True)
class Index:
    """An index (manifest list): children, each usually for one platform."""

    raw: bytes = field(repr=False)
    media_type: str
    digest: Digest
    manifests: tuple[Descriptor, ...]

    @property
    def descriptor(self) -> Descriptor:
        """A plain descriptor of this index."""
        return Descriptor(self.media_type, self.digest, len(self.raw))

    def trimmed(self, kept: tuple[Descriptor, ...]) -> Index:
        """Return an index with only the given children; everything else stands as it was.

        The bytes are deterministic: the same children of the same index always give the same digest.
        """
        document = json.loads(self.raw)
        document["manifests"] = [child.to_dict() for child in kept]
        try:
            raw = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        except ValueError as error:
            raise BadManifestError(f"index {self.digest} holds a number that JSON cannot write: {error}") from error
        if len(raw) > MAX_MANIFEST_BYTES:
            raise BadManifestError(f"index {self.digest} is larger than {MAX_MANIFEST_BYTES} bytes when trimmed")
        return Index(raw, self.media_type, Digest.of(raw), kept)


def check_sizes(index: Index) -> None:
    """Refuse an index that lists one digest with two sizes.

    Raises:
        BadManifestError: It does.
    """
    sizes: dict[Digest, int] = {}
    for child in index.manifests:
        if sizes.setdefault(child.digest, child.size) != child.size:
            raise BadManifestError(f"{child.digest} is listed with {sizes[child.digest]} and with {child.size} bytes")


def parse_json(raw: bytes, where: str) -> Any:
    """Parse JSON strictly: valid Unicode, no duplicate keys, no NaN or Infinity, bounded nesting.

    Raises:
        BadManifestError: The bytes are not such a document.
    """
    try:
        document = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        if b"\\u" in raw:
            # An escaped lone surrogate is no text: nothing that holds one could be written again.
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadManifestError(f"{where} is not valid JSON: {error}"[:300]) from error
    return document


def parse(raw: bytes, media_type: str, *, digest: Digest | None = None) -> Manifest | Index:
    """Parse a manifest or index.

    Args:
        raw: The bytes as received.
        media_type: From the descriptor or the Content-Type header; empty if nobody said.
        digest: The digest these bytes are known to have; computed with sha256 if not given.

    Raises:
        BadManifestError: Too large, not JSON, of another or contradicting kind, or malformed.
    """
    digest = digest or Digest.of(raw)
    where = f"manifest {digest.algorithm}:{digest.short}"
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BadManifestError(f"{where} is larger than {MAX_MANIFEST_BYTES} bytes")
    document = parse_json(raw, where)
    if not isinstance(document, dict):
        raise BadManifestError(f"{where} is not a JSON object")
    kind = _kind(document, media_type, where)
    if mediatype.is_index(kind):
        return Index(raw, kind, digest, _descriptors(document, "manifests", where))
    return Manifest(
        raw,
        kind,
        digest,
        Descriptor.from_dict(document.get("config"), f"{where}, config"),
        _descriptors(document, "layers", where),
    )


def _kind(document: dict[str, Any], media_type: str, where: str) -> str:
    """Decide what a document is; what it says itself must not contradict what it was served as."""
    stated = document.get("mediaType", "")
    if not isinstance(stated, str):
        raise BadManifestError(f"{where}: mediaType is not a string")
    if mediatype.is_schema1(media_type) or mediatype.is_schema1(stated) or document.get("schemaVersion") == 1:
        raise BadManifestError(
            f"{where} is in Docker's retired schema 1 format",
            hint="Ask for the image to be pushed again with a current tool, or use another tag.",
        )
    known = (*mediatype.INDEXES, *mediatype.MANIFESTS)
    if stated and media_type in known and stated != media_type:
        raise BadManifestError(f"{where} says it is {stated[:80]}, but was served as {media_type[:80]}")
    kind = stated or media_type
    if kind not in known:
        if kind not in ("", "application/json", "text/plain", "application/octet-stream"):
            raise BadManifestError(f"{where} is of media type {kind[:80]!r}, which is neither manifest nor index")
        kind = mediatype.OCI_INDEX if "manifests" in document else mediatype.OCI_MANIFEST
    if "manifests" in document and ("layers" in document or "config" in document):
        raise BadManifestError(f"{where} claims to be a manifest and an index at once")
    return kind


def _descriptors(document: dict[str, Any], key: str, where: str) -> tuple[Descriptor, ...]:
    items = document.get(key, [] if key == "layers" else None)
    if not isinstance(items, list):
        raise BadManifestError(f"{where}: {key} is not a list")
    if len(items) > MAX_DESCRIPTORS:
        raise BadManifestError(f"{where}: {key} has more than {MAX_DESCRIPTORS} entries")
    return tuple(Descriptor.from_dict(item, f"{where}, {key}[{n}]") for n, item in enumerate(items))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("an object has the same key twice")
    return document


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
