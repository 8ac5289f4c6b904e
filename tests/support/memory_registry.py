"""The registry protocol, both pulling and pushing, over content in memory."""

import hashlib
import json
import re
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from tests.support.content import BuiltImage, Manifest, digest_of, references
from tests.support.media_types import INDEXES, OCI_MANIFEST
from tests.support.protocol import JSON, Request, Response, error
from tests.support.quirks import Quirks
from tests.support.sessions import Sessions

__all__ = ["MemoryRegistry", "Request", "Response", "error"]

_NAME = r"(?P<name>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
_UPLOAD = rf"/v2/{_NAME}/blobs/uploads/(?P<upload>[^/]+)"
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_UNSUPPORTED = error(HTTPStatus.METHOD_NOT_ALLOWED, "UNSUPPORTED")


@dataclass
class _Repository:
    blobs: set[str] = field(default_factory=set)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class MemoryRegistry:
    """Answers requests like a registry; thread-safe.

    Attributes:
        quirks: How it differs from others.
        violations: One line for each manifest that was put under a tag when not all of its content was
            there, whether that was refused or not.
    """

    def __init__(self, **options: Any) -> None:
        """Make an empty registry.

        Args:
            options: Those of `Quirks`.
        """
        self.quirks = Quirks(**options)
        self.violations: list[str] = []
        self._lock = threading.RLock()
        self._data: dict[str, bytes] = {}
        self._sessions = Sessions(self.quirks)
        self._repositories: defaultdict[str, _Repository] = defaultdict(_Repository)
        self._created: set[str] = set()

    def create(self, repository: str) -> None:
        """Make a repository, which only registries that `need_repository` ask for."""
        with self._lock:
            self._created.add(repository)

    def add(self, image: BuiltImage, repository: str, tag: str | None = None) -> None:
        """Put an image in, with all of its content."""
        with self._lock:
            self._created.add(repository)
            kept = self._repositories[repository]
            for blob in image.blobs:
                self._data[blob.digest] = blob.path.read_bytes()
                kept.blobs.add(blob.digest)
            for media_type, data in image.manifests.values():
                self._keep(kept, Manifest(media_type, data))
            self._keep(kept, image.root)
            if tag:
                kept.tags[tag] = image.root_digest

    def tags(self, repository: str) -> dict[str, str]:
        """Give the digests that the tags of a repository point to."""
        with self._lock:
            return dict(self._repositories[repository].tags)

    def digests(self, repository: str) -> set[str]:
        """Give the digests of all content of a repository."""
        with self._lock:
            kept = self._repositories[repository]
            return kept.blobs | set(kept.manifests)

    def missing(self, repository: str, digest: str) -> list[str]:
        """Give the digests of what a manifest of a repository needs and the repository does not have."""
        with self._lock:
            kept = self._repositories[repository]
            return self._missing(kept, kept.manifests[digest]) if digest in kept.manifests else [digest]

    def forget(self, repository: str, digest: str) -> None:
        """Lose a blob of a repository, if it is there."""
        with self._lock:
            self._repositories[repository].blobs.discard(digest)

    def lose_session(self, request: Request) -> None:
        """Lose the upload that a request is for, if it is there."""
        if match := re.fullmatch(_UPLOAD, request.path):
            with self._lock:
                self._sessions.close(match["upload"])

    def arriving(self, request: Request) -> int:
        """Look at a request of whose body only this part has arrived so far, and tell how much of it is stored."""
        match = re.fullmatch(_UPLOAD, request.path)
        if not match or request.method not in {"PATCH", "PUT"}:
            return 0
        with self._lock:
            return self._sessions.arriving(request, match["name"], match["upload"])

    def interrupted(self, request: Request) -> None:
        """Treat a request of whose body only this part arrived."""
        match = re.fullmatch(_UPLOAD, request.path)
        if match and request.method in {"PATCH", "PUT"}:
            with self._lock:
                self._sessions.interrupted(request, match["name"], match["upload"])

    def handle(self, request: Request) -> Response:
        """Answer a request."""
        # Uploads come before blobs: their paths would pass for those of blobs.
        routes: list[tuple[str, Callable[[Request, re.Match[str]], Response]]] = [
            (r"/v2/?", lambda *_: Response(HTTPStatus.OK, b"{}", JSON)),
            (rf"/v2/{_NAME}/tags/list", self._list_tags),
            (rf"/v2/{_NAME}/manifests/(?P<reference>[^/]+)", self._manifest),
            (rf"/v2/{_NAME}/blobs/uploads/?", self._open_upload),
            (_UPLOAD, self._upload),
            (rf"/v2/{_NAME}/blobs/(?P<digest>[^/]+)", self._blob),
        ]
        for pattern, answer in routes:
            if match := re.fullmatch(pattern, request.path):
                with self._lock:
                    return self._unknown(match) or answer(request, match)
        return error(HTTPStatus.NOT_FOUND, "NOT_FOUND", request.path)

    def _unknown(self, match: re.Match[str]) -> Response | None:
        name = match.groupdict().get("name")
        if self.quirks.need_repository and name is not None and name not in self._created:
            return error(HTTPStatus.NOT_FOUND, "NAME_UNKNOWN", name)
        return None

    def _list_tags(self, _request: Request, match: re.Match[str]) -> Response:
        name = match["name"]
        if name not in self._repositories:
            return error(HTTPStatus.NOT_FOUND, "NAME_UNKNOWN", name)
        body = json.dumps({"name": name, "tags": sorted(self.tags(name))}).encode()
        return Response(HTTPStatus.OK, body, JSON)

    def _manifest(self, request: Request, match: re.Match[str]) -> Response:
        name, reference = match["name"], match["reference"]
        kept = self._repositories[name]
        if request.method == "PUT":
            return self._put_manifest(request, name, reference)
        if request.method not in {"GET", "HEAD", "DELETE"}:
            return _UNSUPPORTED
        digest = kept.tags.get(reference, reference)
        manifest = kept.manifests.get(digest)
        if manifest is None:
            return error(HTTPStatus.NOT_FOUND, "MANIFEST_UNKNOWN", reference)
        if request.method == "DELETE":
            del kept.manifests[digest]
            kept.tags = {tag: points_to for tag, points_to in kept.tags.items() if points_to != digest}
            return Response(HTTPStatus.ACCEPTED)
        headers = {"Content-Type": manifest.media_type, "Docker-Content-Digest": digest}
        return Response(HTTPStatus.OK, manifest.data, headers)

    def _put_manifest(self, request: Request, name: str, reference: str) -> Response:
        kept = self._repositories[name]
        try:
            media_type = json.loads(request.body).get("mediaType", OCI_MANIFEST)
        except ValueError:
            return error(HTTPStatus.BAD_REQUEST, "MANIFEST_INVALID", "not JSON")
        manifest = Manifest(request.headers.get("content-type", media_type), request.body)
        if self.quirks.refuse_docker_types and manifest.media_type.startswith("application/vnd.docker."):
            return error(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "MANIFEST_INVALID", manifest.media_type)
        by_digest = ":" in reference
        if by_digest and reference != manifest.digest:
            return error(HTTPStatus.BAD_REQUEST, "DIGEST_INVALID", manifest.digest)
        missing = self._missing(kept, manifest)
        if missing and not by_digest:
            self.violations.append(f"{name}:{reference} lacks {' '.join(missing)}")
        if missing and self.quirks.strict:
            return error(HTTPStatus.BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN", " ".join(missing))
        self._keep(kept, manifest)
        if not by_digest:
            kept.tags[reference] = manifest.digest
        place = f"/v2/{name}/manifests/{manifest.digest}"
        return Response(HTTPStatus.CREATED, headers={"Location": place, "Docker-Content-Digest": manifest.digest})

    def _keep(self, kept: _Repository, manifest: Manifest) -> None:
        kept.manifests[manifest.digest] = manifest

    def _missing(self, kept: _Repository, manifest: Manifest) -> list[str]:
        missing = []
        for digest in references(manifest):
            if manifest.media_type not in INDEXES:
                missing += [] if digest in kept.blobs else [digest]
            elif digest in kept.manifests:
                missing += self._missing(kept, kept.manifests[digest])
            else:
                missing.append(digest)
        return missing

    def _blob(self, request: Request, match: re.Match[str]) -> Response:
        if request.method not in {"GET", "HEAD"}:
            return _UNSUPPORTED
        name, digest = match["name"], match["digest"]
        if name not in self._repositories or digest not in self._repositories[name].blobs:
            return error(HTTPStatus.NOT_FOUND, "BLOB_UNKNOWN", digest)
        data = self._data[digest]
        headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest}
        if not self.quirks.ranges:
            return Response(HTTPStatus.OK, data, headers)
        headers["Accept-Ranges"] = "bytes"
        asked = _RANGE.fullmatch(request.headers.get("range", ""))
        if not asked:
            return Response(HTTPStatus.OK, data, headers)
        start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        if start > end:
            headers["Content-Range"] = f"bytes */{len(data)}"
            return Response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", headers)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        return Response(HTTPStatus.PARTIAL_CONTENT, data[start : end + 1], headers)

    def _open_upload(self, request: Request, match: re.Match[str]) -> Response:
        if request.method != "POST":
            return _UNSUPPORTED
        name = match["name"]
        mount, source = request.query("mount"), request.query("from")
        # Looked up without making it: a repository comes into being when something is put into it.
        donor = self._repositories.get(source or "")
        if mount and self.quirks.mounts and donor and mount in donor.blobs:
            self._repositories[name].blobs.add(mount)
            return self._created_blob(name, mount)
        upload = self._sessions.open(name)
        if digest := request.query("digest"):
            self._sessions.receive(request, upload)
            return self._finish_upload(name, upload, digest)
        return self._sessions.progress(request, upload, HTTPStatus.ACCEPTED)

    def _upload(self, request: Request, match: re.Match[str]) -> Response:
        name, upload = match["name"], match["upload"]
        if refusal := self._sessions.refusal(request, name, upload):
            return refusal
        if request.method == "GET":
            return self._sessions.progress(request, upload, HTTPStatus.NO_CONTENT)
        if request.method == "DELETE":
            self._sessions.close(upload)
            return Response(HTTPStatus.NO_CONTENT)
        if request.method not in {"PATCH", "PUT"}:
            return _UNSUPPORTED
        if refusal := self._sessions.receive(request, upload):
            return refusal
        if request.method == "PUT":
            return self._finish_upload(name, upload, request.query("digest") or "")
        return self._sessions.progress(request, upload, self.quirks.patch_status)

    def _finish_upload(self, name: str, upload: str, digest: str) -> Response:
        data = self._sessions.close(upload)
        sha512 = digest.startswith("sha512:")
        actual = "sha512:" + hashlib.sha512(data).hexdigest() if sha512 else digest_of(data)
        if digest != actual:
            return error(HTTPStatus.BAD_REQUEST, "DIGEST_INVALID", actual)
        self._data[digest] = data
        self._repositories[name].blobs.add(digest)
        return self._created_blob(name, digest)

    def _created_blob(self, name: str, digest: str) -> Response:
        headers = {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest}
        return Response(HTTPStatus.CREATED, headers=headers)
