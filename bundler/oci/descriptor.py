"""Descriptors: the typed pointers that hold an image together.

Source: image-spec descriptor.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from bundler.errors import BadDigestError, BadManifestError
from bundler.oci import mediatype
from bundler.oci.digest import Digest
from bundler.oci.platform import Platform


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Media type, digest and size of some content; the rest stays as it was in ``raw``.

    Two descriptors are equal when they point at the same content under the same media type.
    ``size`` is in bytes. ``raw`` keeps unknown fields, so that a descriptor can be written again unchanged.
    """

    media_type: str
    digest: Digest
    size: int
    raw: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def from_dict(cls, data: Any, where: str) -> Self:
        """Read a descriptor.

        Args:
            data: The parsed JSON value.
            where: What it is part of, for the message.

        Raises:
            BadManifestError: A required field is missing or has the wrong type or value.
        """
        if not isinstance(data, dict):
            raise BadManifestError(f"{where}: a descriptor must be an object, not {type(data).__name__}")
        media_type, size, digest = data.get("mediaType"), data.get("size"), data.get("digest")
        if not isinstance(media_type, str) or not media_type:
            raise BadManifestError(f"{where}: a descriptor has no mediaType")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
            raise BadManifestError(f"{where}: a descriptor's size must be an integer from 0 up, not {size!r:.40}")
        if not isinstance(digest, str):
            raise BadManifestError(f"{where}: a descriptor has no digest")
        try:
            return cls(media_type, Digest.parse(digest), size, data)
        except BadDigestError as error:
            raise BadManifestError(f"{where}: {error.message}") from error

    @property
    def is_document(self) -> bool:
        """Whether this points at a manifest or index, and not at a blob."""
        return mediatype.is_index(self.media_type) or mediatype.is_manifest(self.media_type)

    @property
    def platform(self) -> Platform | None:
        """The platform this descriptor states, if any."""
        value = self.raw.get("platform")
        return Platform.from_dict(value) if isinstance(value, dict) else None

    @property
    def annotations(self) -> dict[str, str]:
        """The annotations whose values are strings."""
        value = self.raw.get("annotations")
        if not isinstance(value, dict):
            return {}
        return {key: text for key, text in value.items() if isinstance(text, str)}

    @property
    def urls(self) -> tuple[str, ...]:
        """Where a foreign layer lies, if this is one.

        Source: image-spec descriptor.md, "urls"; layer.md, "Non-Distributable Layers".
        """
        value = self.raw.get("urls")
        return tuple(url for url in value if isinstance(url, str)) if isinstance(value, list) else ()

    def to_dict(self) -> dict[str, Any]:
        """Return the descriptor as JSON: unchanged if it was read, else its three fields."""
        return self.raw or {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
