"""One repository of one registry endpoint: manifests and blobs, verified as they pass.

Invariants:

- What is returned has the digest it was asked for by; what was sent was answered with our digest.
- An upload is one unit: session, body and commit are repeated together, never patched up.

Source: distribution-spec, "Pull", "Push", "Mounting a blob from another repository".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus
from typing import IO, cast
from urllib.parse import urlsplit, urlunsplit

from bundler.errors import (
    AirgapSyncError,
    BadDigestError,
    BlobUnknownError,
    DigestMismatchError,
    ForeignLayersRefusedError,
    ManifestUnknownError,
    ServerError,
    SizeMismatchError,
    UnexpectedAnswerError,
)
from bundler.net import Response, number
from bundler.oci import mediatype
from bundler.oci.content import BlobStream, Opener
from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest
from bundler.oci.manifest import MAX_MANIFEST_BYTES
from bundler.registry.auth import Scope
from bundler.registry.body import BodyStream, UploadBody
from bundler.registry.client import RegistryClient
from bundler.url import redact, resolve

_ACCEPT = ", ".join(mediatype.ACCEPT)
_COMMIT_BYTES_PER_S = 10_000_000
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-[0-9]{1,19}/(?:[0-9]{1,19}|\*)")


class Repository:
    """Reads and writes one repository.

    Args:
        client: The endpoint.
        name: The repository, for example ``rancher/mirrored-pause``.
        actions: The rights to ask for: ``pull`` or ``pull,push``.
    """

    def __init__(self, client: RegistryClient, name: str, actions: str = "pull") -> None:
        self.client = client
        self.name = name
        self._scopes = (Scope(name, actions),)

    def head_manifest(self, reference: str) -> tuple[Digest, str] | None:
        """Return digest and media type of what a tag or digest stands for; None if the registry does not have it.

        Raises:
            AuthError: Refused.
            RegistryUnavailableError: Not reachable, or an answer without a digest.
        """

        def operation() -> tuple[Digest, str] | None:
            response = self._send("HEAD", f"manifests/{reference}", (200, 404, 405), {"Accept": _ACCEPT})
            response.close()
            if response.status == HTTPStatus.NOT_FOUND:
                return None
            digest = _stated_digest(response) if response.status == HTTPStatus.OK else None
            if digest is None:
                _, media_type, digest = self.get_manifest_by(reference)
                return digest, media_type
            return digest, _media_type(response)

        return self.client.retrying(operation)

    def get_manifest_by(self, reference: str) -> tuple[bytes, str, Digest]:
        """Return bytes, media type and digest of the manifest that a tag or digest stands for.

        Raises:
            ManifestUnknownError: The registry does not have it.
            DigestMismatchError: The bytes are not those of the digest that was asked for or stated.
            BadManifestError: Larger than a manifest may be.
        """

        def operation() -> tuple[bytes, str, Digest]:
            response = self._send("GET", f"manifests/{reference}", (200, 404), {"Accept": _ACCEPT})
            if response.status == HTTPStatus.NOT_FOUND:
                response.close()
                raise ManifestUnknownError(f"{self._place} has no manifest {reference}")
            raw = response.read_all(MAX_MANIFEST_BYTES)
            expected = Digest.parse(reference) if ":" in reference else _stated_digest(response)
            digest = expected or Digest.of(raw)
            if not digest.matches(raw):
                raise DigestMismatchError(f"{self._place} sent other bytes than those of {digest} for {reference}")
            return raw, _media_type(response), digest

        return self.client.retrying(operation)

    def get_manifest(self, descriptor: Descriptor) -> bytes:
        """Return the verified bytes of a manifest or index."""
        raw, _, _ = self.get_manifest_by(str(descriptor.digest))
        if len(raw) != descriptor.size:
            raise SizeMismatchError(f"{descriptor.digest} has {len(raw)} bytes, not {descriptor.size}")
        return raw

    def open_blob(self, blob: Descriptor, offset: int = 0) -> AbstractContextManager[BlobStream]:
        """Open a blob for streaming, from ``offset`` if the registry honours Range, else from 0.

        Raises:
            BlobUnknownError: The registry does not have it.
            SizeMismatchError: The registry announces another size.
        """
        return self._open_blob(blob, offset)

    @contextmanager
    def _open_blob(self, blob: Descriptor, offset: int) -> Iterator[BlobStream]:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        response = self._send("GET", f"blobs/{blob.digest}", (200, 206, 404, 416), headers)
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            response.close()
            response = self._send("GET", f"blobs/{blob.digest}", (200, 404), {})
        with response:
            if response.status == HTTPStatus.NOT_FOUND:
                raise BlobUnknownError(f"{self._place} has no blob {blob.digest}")
            start = _range_start(response) if response.status == HTTPStatus.PARTIAL_CONTENT else 0
            length = response.headers.get("Content-Length", "")
            announced = number(length)
            if announced is not None and announced != blob.size - start:
                raise SizeMismatchError(
                    f"{self._place} announces {announced + start} bytes for {blob.digest}, not {blob.size}"
                )
            yield BodyStream(response, start)

    def has_blob(self, blob: Descriptor) -> bool:
        """Tell whether this repository has a blob of this digest and size.

        Raises:
            AuthError: Refused.
            RegistryUnavailableError: Not reachable.
        """

        def operation() -> bool:
            response = self._send("HEAD", f"blobs/{blob.digest}", (200, 404), {})
            response.close()
            length = response.headers.get("Content-Length", "")
            return response.status == HTTPStatus.OK and number(length) in (None, blob.size)

        return self.client.retrying(operation)

    def mount_blob(self, blob: Descriptor, source: str) -> bool:
        """Link a blob from another repository of this registry; False if it has to be sent instead."""
        scopes = (*self._scopes, Scope(source))
        url = self.client.url(f"{self.name}/blobs/uploads/", {"mount": str(blob.digest), "from": source})
        try:
            response = self.client.send("POST", url, scopes=scopes, accept=(201, 202), headers={"Content-Length": "0"})
        except AirgapSyncError:
            # Whatever the reason, the plain upload that follows succeeds or names it.
            return False
        response.close()
        return response.status == HTTPStatus.CREATED

    def put_blob(self, blob: Descriptor, opener: Opener, on_bytes: Callable[[int], None]) -> None:
        """Send a blob in one streamed PUT.

        Args:
            blob: What is sent.
            opener: Opens the content at an offset; called again for each try.
            on_bytes: Told of the bytes as they are read, with a negative number when a try starts over.

        Raises:
            IntegrityError: The local content is not the blob's; nothing was committed.
            AuthError: Refused.
            RegistryUnavailableError: Not reachable.
        """
        first = True

        def operation() -> None:
            nonlocal first
            # A commit whose answer was lost is found here, instead of sending everything again.
            if not first and self.has_blob(blob):
                on_bytes(blob.size)
                return
            first = False
            self._upload(blob, opener, on_bytes)

        self.client.retrying(operation)

    def _upload(self, blob: Descriptor, opener: Opener, on_bytes: Callable[[int], None]) -> None:
        session = self._send("POST", "blobs/uploads/", (202,), {"Content-Length": "0"})
        session.close()
        location = session.headers.get("Location")
        if not location:
            raise UnexpectedAnswerError(f"{self._place} opened an upload without a Location")
        url = self._upload_url(session.url, location)
        url += ("&" if "?" in url else "?") + f"digest={blob.digest}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        with UploadBody(blob, opener, on_bytes) as body:
            # requests would send an empty file object in chunks, which registries refuse.
            content = cast("IO[bytes]", body) if blob.size else b""
            # Object storage copies the whole blob before it answers.
            patience_s = 60.0 + blob.size / _COMMIT_BYTES_PER_S
            response = self.client.send(
                "PUT", url, scopes=self._scopes, accept=(201,), headers=headers, body=content, read_s=patience_s
            )
            response.close()
            body.committed()
        self._check_digest(response, blob.digest)

    def put_manifest(
        self, raw: bytes, media_type: str, digest: Digest, reference: str, *, foreign: bool = False
    ) -> None:
        """Store a manifest under a tag or its digest.

        Args:
            raw: Its bytes.
            media_type: As its descriptor has it.
            digest: Of the bytes.
            reference: The tag, or the digest.
            foreign: It has foreign layers, which some registries refuse with an answer that explains nothing.

        Raises:
            ForeignLayersRefusedError: It is refused, and has foreign layers.
            DigestMismatchError: The registry made other bytes of it.
            AuthError: Refused.
            RegistryUnavailableError: Not reachable, or the manifest is refused.
        """

        def operation() -> None:
            url = self.client.url(f"{self.name}/manifests/{reference}")
            try:
                response = self.client.send(
                    "PUT", url, scopes=self._scopes, accept=(201,), headers={"Content-Type": media_type}, body=raw
                )
            except (ServerError, UnexpectedAnswerError) as error:
                if foreign:
                    raise ForeignLayersRefusedError(f"{error.message}; the image has foreign layers") from error
                raise
            response.close()
            if _stated_digest(response) is None:
                found = self.head_manifest(reference)
                if found is None or found[0] != digest:
                    raise DigestMismatchError(f"{self._place} did not store {reference} as {digest}")
            self._check_digest(response, digest)

        self.client.retrying(operation)

    @property
    def _place(self) -> str:
        return f"{redact(self.client.endpoint.api_url)}/{self.name}"

    def _send(self, method: str, path: str, accept: tuple[int, ...], headers: dict[str, str]) -> Response:
        return self.client.send(
            method,
            self.client.url(f"{self.name}/{path}"),
            scopes=self._scopes,
            accept=accept,
            headers=headers,
        )

    def _upload_url(self, request_url: str, location: str) -> str:
        """Resolve an upload Location; a registry behind a proxy often names a wrong scheme or port of its own host."""
        url = resolve(request_url, location)
        own, parts = urlsplit(self.client.endpoint.api_url), urlsplit(url)
        if parts.hostname == own.hostname:
            return urlunsplit((own.scheme, own.netloc, parts.path, parts.query, ""))
        if own.scheme == "https" and parts.scheme != "https":
            raise UnexpectedAnswerError(f"{self._place} wants the upload at {redact(url)}, which is not https")
        return url

    def _check_digest(self, response: Response, digest: Digest) -> None:
        stated = _stated_digest(response)
        # A registry may store a sha512 upload under sha256: only digests of one algorithm can be compared.
        if stated and stated.algorithm == digest.algorithm and stated != digest:
            raise DigestMismatchError(f"{self._place} stored {stated} where {digest} was sent")


def _stated_digest(response: Response) -> Digest | None:
    text = response.headers.get("Docker-Content-Digest")
    if not text:
        return None
    try:
        return Digest.parse(text)
    except BadDigestError as error:
        raise UnexpectedAnswerError(f"{redact(response.url)} answered with a bad Docker-Content-Digest") from error


def _media_type(response: Response) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip()


def _range_start(response: Response) -> int:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None:
        raise UnexpectedAnswerError(f"{redact(response.url)} answered 206 without a usable Content-Range")
    return int(match[1])
