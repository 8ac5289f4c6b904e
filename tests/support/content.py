"""Image content: blobs in files, manifests in memory, and images made of both."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.support.media_types import INDEXES


def digest_of(data: bytes) -> str:
    """Give the digest of some bytes as `sha256:<hex>`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Platform:
    """What an image runs on."""

    os: str
    architecture: str
    variant: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `os/architecture[/variant]`."""
        os_name, architecture, *variant = text.split("/")
        return cls(os_name, architecture, *variant)

    def json(self) -> dict[str, str]:
        """Give it as an index or an image config writes it."""
        written = {"architecture": self.architecture, "os": self.os}
        return {**written, "variant": self.variant} if self.variant else written

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64", "v8")
ARM = Platform("linux", "arm", "v7")
UNKNOWN = Platform("unknown", "unknown")


@dataclass(frozen=True)
class Blob:
    """A layer or config, in a file."""

    digest: str
    path: Path
    size: int
    media_type: str

    def descriptor(self, **fields: Any) -> dict[str, Any]:
        """Describe it as a manifest does; more fields (`annotations`, `urls`) may be given."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size, **fields}


@dataclass(frozen=True)
class Manifest:
    """A manifest or index, as the exact bytes that its digest is of."""

    media_type: str
    data: bytes

    @property
    def digest(self) -> str:
        """Digest of the bytes."""
        return digest_of(self.data)

    def descriptor(self, platform: Platform | None = None, **fields: Any) -> dict[str, Any]:
        """Describe it as an index does; more fields (`annotations`) may be given."""
        written = {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data)}
        return {**written, **({"platform": platform.json()} if platform else {}), **fields}


@dataclass(frozen=True)
class BuiltImage:
    """All content of an image.

    Attributes:
        root_media_type: Media type of what a tag of the image points to.
        root_digest: Its digest.
        root_bytes: Its bytes.
        manifests: Everything below the root by digest, as (media type, bytes), children before parents.
        blobs: Configs and layers, each once.
    """

    root_media_type: str
    root_digest: str
    root_bytes: bytes
    manifests: Mapping[str, tuple[str, bytes]]
    blobs: list[Blob]

    @property
    def root(self) -> Manifest:
        """What a tag of the image points to."""
        return Manifest(self.root_media_type, self.root_bytes)

    @property
    def digests(self) -> set[str]:
        """Digests of everything: root, manifests and blobs."""
        return {self.root_digest, *self.manifests, *(blob.digest for blob in self.blobs)}

    @property
    def size(self) -> int:
        """Bytes of everything."""
        manifests = sum(len(data) for _, data in self.manifests.values())
        return len(self.root_bytes) + manifests + sum(blob.size for blob in self.blobs)

    def digest_for(self, platform: Platform) -> str:
        """Give the digest of the manifest that the root, an index, lists for a platform."""
        for child in json.loads(self.root_bytes)["manifests"]:
            if child.get("platform") == platform.json():
                return str(child["digest"])
        raise KeyError(f"no {platform} in {self.root_digest}")

    def needed_for(self, digest: str) -> set[str]:
        """Give the digests of a manifest of this image and of everything below it."""
        if digest != self.root_digest and digest not in self.manifests:
            return {digest}
        media_type, data = self.manifests.get(digest, (self.root_media_type, self.root_bytes))
        below = references(Manifest(media_type, data))
        return {digest}.union(*(self.needed_for(child) for child in below))


def references(manifest: Manifest) -> list[str]:
    """Give the digests that a manifest or index points to."""
    content = json.loads(manifest.data)
    if manifest.media_type in INDEXES:
        return [child["digest"] for child in content.get("manifests", [])]
    return [part["digest"] for part in (content["config"], *content.get("layers", []))]


class BlobStore:
    """Directory with blobs in files that are named by digest."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Give the file of a blob, whether it exists or not."""
        return self.directory / digest.removeprefix("sha256:")

    def add(self, data: bytes, media_type: str) -> Blob:
        """Store some bytes."""
        digest = digest_of(data)
        path = self.path(digest)
        if not path.exists():
            write_atomically(path, data)
        return Blob(digest, path, len(data), media_type)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that others, also other processes, see all of it or nothing."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)
