"""bundle.lock.json: what a bundle was asked to hold and what it holds, pinned.

Invariants:

- The same request on the same upstream content gives the same bytes: no times, no mirror, no path of a machine.
- A lock is read only through its JSON Schema.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Self

from bundler import __version__
from bundler.bundle.imageset import TRIMMED, ResolvedImage, WantedImage, names_in_layout
from bundler.errors import BadManifestError, BundleFormatTooNewError, DefinitionError, LockMismatchError
from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest
from bundler.oci.manifest import parse_json
from bundler.oci.reference import Reference
from bundler.schema.validation import first_problem

API_VERSION = "airgap-sync/v1"
KIND = "BundleLock"


@dataclass(frozen=True, slots=True)
class Request:
    """What the bundle was asked to be; two bundles of one request may only differ by what upstream changed.

    Attributes:
        k3s: K3s versions.
        disable: Components left out.
        system_upgrade_controller: Its version, or None if it was left out.
        images: References asked for by hand.
        platforms: The chosen platforms, or ``("all",)``.
    """

    k3s: tuple[str, ...]
    disable: tuple[str, ...]
    system_upgrade_controller: str | None
    images: tuple[str, ...]
    platforms: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the request as it stands in the lock."""
        return {
            "k3s": list(self.k3s),
            "disable": list(self.disable),
            "system_upgrade_controller": self.system_upgrade_controller,
            "images": list(self.images),
            "platforms": list(self.platforms),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read a request that passed the schema."""
        return cls(
            tuple(data["k3s"]),
            tuple(data["disable"]),
            data["system_upgrade_controller"],
            tuple(data["images"]),
            tuple(data["platforms"]),
        )

    def differences(self, new: Request) -> list[str]:
        """Return what a new request changes, one line each."""
        lines = []
        before, after = self.to_dict(), new.to_dict()
        for key, old in before.items():
            if old == after[key]:
                continue
            if isinstance(old, list):
                gone = [f"-{item}" for item in old if item not in after[key]]
                come = [f"+{item}" for item in after[key] if item not in old]
                lines.append(f"{key}: {' '.join(gone + come)}")
            else:
                lines.append(f"{key}: {old or 'none'} -> {after[key] or 'none'}")
        return lines


@dataclass(frozen=True, slots=True)
class LockedRelease:
    """A K3s release whose image list was used.

    Attributes:
        version: The release.
        list_sha256: Of the sorted list of references, one a line.
    """

    version: str
    list_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Return the release as it stands in the lock."""
        return {"version": self.version, "list_sha256": self.list_sha256}


@dataclass(frozen=True, slots=True)
class LockedImage:
    """One image of the bundle.

    Attributes:
        digest: Of the root that the layout holds.
        upstream_digest: Of what the registry has under the name.
        differs: Why the two digests differ: ``trimmed-index``, or None if they do not.
        size_bytes: Of the root manifest.
        total_bytes: Of all its manifests and blobs.
    """

    reference: Reference
    reasons: tuple[str, ...]
    media_type: str
    digest: Digest
    size_bytes: int
    upstream_digest: Digest
    differs: str | None
    platforms: tuple[str, ...]
    platforms_missing: tuple[str, ...]
    blobs: int
    total_bytes: int

    @classmethod
    def of(cls, image: ResolvedImage) -> Self:
        """Pin a resolved image."""
        root = image.content.root
        return cls(
            reference=image.wanted.reference,
            reasons=image.wanted.reasons,
            media_type=root.media_type,
            digest=root.digest,
            size_bytes=len(root.raw),
            upstream_digest=image.upstream,
            differs=TRIMMED if image.trimmed else None,
            platforms=tuple(str(platform) for platform in image.platforms),
            platforms_missing=tuple(str(platform) for platform in image.missing),
            blobs=len(image.content.blobs),
            total_bytes=image.content.total_bytes,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the image as it stands in the lock."""
        return {
            "reference": str(self.reference),
            "registry": self.reference.registry,
            "reasons": list(self.reasons),
            "media_type": self.media_type,
            "digest": str(self.digest),
            "size_bytes": self.size_bytes,
            "upstream_digest": str(self.upstream_digest),
            "differs": self.differs,
            "platforms": list(self.platforms),
            "platforms_missing": list(self.platforms_missing),
            "blobs": self.blobs,
            "total_bytes": self.total_bytes,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read an image that passed the schema."""
        return cls(
            reference=Reference.parse(data["reference"]),
            reasons=tuple(data["reasons"]),
            media_type=data["media_type"],
            digest=Digest.parse(data["digest"]),
            size_bytes=data["size_bytes"],
            upstream_digest=Digest.parse(data["upstream_digest"]),
            differs=data["differs"],
            platforms=tuple(data["platforms"]),
            platforms_missing=tuple(data["platforms_missing"]),
            blobs=data["blobs"],
            total_bytes=data["total_bytes"],
        )


@dataclass(frozen=True, slots=True)
class FailedImage:
    """An image that the bundle should hold and does not."""

    reference: Reference
    reasons: tuple[str, ...]
    error: str

    @classmethod
    def of(cls, wanted: WantedImage, error: str) -> Self:
        """Record a failure by the error's stable reference."""
        return cls(wanted.reference, wanted.reasons, error)

    def to_dict(self) -> dict[str, Any]:
        """Return the failure as it stands in the lock."""
        return {"reference": str(self.reference), "reasons": list(self.reasons), "error": self.error}


@dataclass(frozen=True, slots=True)
class BundleLock:
    """The whole lock; ``complete`` is false while images are missing."""

    request: Request
    releases: tuple[LockedRelease, ...]
    images: tuple[LockedImage, ...]
    failed: tuple[FailedImage, ...] = ()
    tool_version: str = field(default=__version__)

    @property
    def complete(self) -> bool:
        """Whether every image asked for is there."""
        return not self.failed

    def to_bytes(self) -> bytes:
        """Return the file's bytes; the same lock always gives the same."""
        document = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "tool": {"name": "airgap-sync", "version": self.tool_version},
            "request": self.request.to_dict(),
            "releases": [release.to_dict() for release in self.releases],
            "complete": self.complete,
            "images": [image.to_dict() for image in self.images],
            "failed": [image.to_dict() for image in self.failed],
        }
        return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def parse(cls, raw: bytes, where: str) -> Self:
        """Read a lock.

        Raises:
            BundleFormatTooNewError: It is of another version.
            LockMismatchError: It is not a lock.
        """
        try:
            document = parse_json(raw, where)
        except BadManifestError as error:
            raise LockMismatchError(error.message) from error
        if isinstance(document, dict) and document.get("apiVersion", API_VERSION) != API_VERSION:
            raise BundleFormatTooNewError(f"{where} is of version {document['apiVersion']!r:.60}, not {API_VERSION}")
        if problem := first_problem("bundle-lock", document):
            raise LockMismatchError(f"{where} is not a bundle lock: {problem}")
        if document["complete"] == bool(document["failed"]):
            raise LockMismatchError(f"{where} contradicts itself: complete is {document['complete']}")
        names = [image["reference"] for image in document["images"] + document["failed"]]
        if len(set(names)) != len(names):
            raise LockMismatchError(f"{where} names an image twice")
        try:
            return cls(
                request=Request.from_dict(document["request"]),
                releases=tuple(LockedRelease(**release) for release in document["releases"]),
                images=tuple(LockedImage.from_dict(image) for image in document["images"]),
                failed=tuple(
                    FailedImage(Reference.parse(item["reference"]), tuple(item["reasons"]), item["error"])
                    for item in document["failed"]
                ),
                tool_version=document["tool"]["version"],
            )
        except DefinitionError as error:
            raise LockMismatchError(f"{where} is not a bundle lock: {error.message}") from error

    def names(self) -> dict[str, Descriptor]:
        """Return the name of every descriptor that index.json must have, with the descriptor."""
        return {
            str(name): Descriptor(image.media_type, image.digest, image.size_bytes)
            for image in self.images
            for name in names_in_layout(image.reference)
        }
