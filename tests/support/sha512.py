"""A registry that knows content by its sha512 digest too, as the specification allows."""

import hashlib
import re
from pathlib import Path

from tests.support.content import Blob, Manifest
from tests.support.faulty import FaultyRegistry
from tests.support.memory_registry import MemoryRegistry, Request, Response, _Repository


def sha512(data: bytes) -> str:
    """Give the sha512 digest of some bytes."""
    return "sha512:" + hashlib.sha512(data).hexdigest()


def sha512_blob(directory: Path, data: bytes, media_type: str) -> Blob:
    """Make a blob that is known by its sha512 digest."""
    digest = sha512(data)
    path = directory / digest.replace(":", "-")
    path.write_bytes(data)
    return Blob(digest, path, len(data), media_type)


class _Content(MemoryRegistry):
    def _keep(self, kept: _Repository, manifest: Manifest) -> None:
        super()._keep(kept, manifest)
        kept.manifests[sha512(manifest.data)] = manifest

    def _put_manifest(self, request: Request, name: str, reference: str) -> Response:
        if reference == sha512(request.body):
            stored = super()._put_manifest(request, name, Manifest("", request.body).digest)
            return Response(stored.status, stored.body, {**stored.headers, "Docker-Content-Digest": reference})
        return super()._put_manifest(request, name, reference)


class Sha512Registry(FaultyRegistry):
    """Context manager: a registry in memory that serves and takes both kinds of digest."""

    def __init__(self) -> None:
        super().__init__()
        self.content = _Content()

    def asked_by_sha512(self) -> set[str]:
        """Give the sha512 digests that manifests and blobs were asked for by."""
        found = (re.search(r"/(?:manifests|blobs)/(sha512:[0-9a-f]{128})$", item.path) for item in self.requests("GET"))
        return {match[1] for match in found if match}
