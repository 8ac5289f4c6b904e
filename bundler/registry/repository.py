"""One repository of one registry endpoint: manifests and blobs, verified as they pass.

Invariants:

- What is returned has the digest it was asked for by; what was sent was answered with our digest.
- What is repeated is a whole step, never patched up; :mod:`bundler.registry.upload` has the steps of an upload.

Source: distribution-spec, "Pull", "Push", "Mounting a blob from another repository".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit, urlunsplit

from bundler.errors import (
    AirgapSyncError,
    BadDigestError,
    BlobUnknownError,
    DigestMismatchError,
    ForeignLayersRefusedError,
    HiddenByPolicyError,
    ImmutableTagError,
    ManifestUnknownError,
    MediaTypeRefusedError,
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
from bundler.registry.body import BodyStream
from bundler.registry.client import RegistryClient
from bundler.registry.retry import retrying
from bundler.registry.session import Chunking, RunMemory, UploadMemory
from bundler.registry.token import Scope
from bundler.registry.upload import Upload
from bundler.url import redact, resolve

_ACCEPT = ", ".join(mediatype.ACCEPT)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-[0-9]{1,19}/(?:[0-9]{1,19}|\*)")


@dataclass(frozen=True, slots=True)
class Mounted:
    """What came of asking for a mount.

    Attributes:
        done: The blob is there.
        session: If it is not: where an upload was opened instead, if one was.
    """

    done: bool
    session: str | None = None


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
        #: The rights that every request here needs.
        self.scopes = (Scope(name, actions),)

    def head_manifest(self, reference: str) -> tuple[Digest, str] | None:
        """Return digest and media type of what a tag or digest stands for; None if the registry does not have it.

        Raises:
            AuthError: Refused.
            RegistryUnavailableError: Not reachable, or an answer without a digest.
            HiddenByPolicyError: It is there, and nobody may pull it.
        """

        def operation() -> tuple[Digest, str] | None:
            response = self._send("HEAD", f"manifests/{reference}", (200, 404, 405, 412), {"Accept": _ACCEPT})
            response.close()
            self._check_visible(response, reference)
            if response.status == HTTPStatus.NOT_FOUND:
                return None
            digest = _stated_digest(response) if response.status == HTTPStatus.OK else None
            if digest is None:
                _, media_type, digest = self.get_manifest_by(reference)
                return digest, media_type
            return digest, _media_type(response)

        return retrying(operation)

    def get_manifest_by(self, reference: str) -> tuple[bytes, str, Digest]:
        """Return bytes, media type and digest of the manifest that a tag or digest stands for.

        Raises:
            ManifestUnknownError: The registry does not have it.
            DigestMismatchError: The bytes are not those of the digest that was asked for or stated.
            BadManifestError: Larger than a manifest may be.
        """

        def operation() -> tuple[bytes, str, Digest]:
            response = self._send("GET", f"manifests/{reference}", (200, 404, 412), {"Accept": _ACCEPT})
            self._check_visible(response, reference)
            if response.status == HTTPStatus.NOT_FOUND:
                response.close()
                raise ManifestUnknownError(f"{self.place} has no manifest {reference}")
            raw = response.read_all(MAX_MANIFEST_BYTES)
            expected = Digest.parse(reference) if ":" in reference else _stated_digest(response)
            digest = expected or Digest.of(raw)
            if not digest.matches(raw):
                raise DigestMismatchError(f"{self.place} sent other bytes than those of {digest} for {reference}")
            return raw, _media_type(response), digest

        return retrying(operation)

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
        with self.client.host.slot():
            yield from self._blob_stream(blob, offset)

    def _blob_stream(self, blob: Descriptor, offset: int) -> Iterator[BlobStream]:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        response = self._send("GET", f"blobs/{blob.digest}", (200, 206, 404, 416), headers)
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            response.close()
            response = self._send("GET", f"blobs/{blob.digest}", (200, 404), {})
        with response:
            if response.status == HTTPStatus.NOT_FOUND:
                raise BlobUnknownError(f"{self.place} has no blob {blob.digest}")
            start = _range_start(response) if response.status == HTTPStatus.PARTIAL_CONTENT else 0
            length = response.headers.get("Content-Length", "")
            announced = number(length)
            if announced is not None and announced != blob.size - start:
                raise SizeMismatchError(
                    f"{self.place} announces {announced + start} bytes for {blob.digest}, not {blob.size}"
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

        return retrying(operation)

    def mount_blob(self, blob: Descriptor, source: str) -> Mounted:
        """Link a blob from another repository of this registry, if that is granted."""
        url = self.client.url(f"{self.name}/blobs/uploads/", {"mount": str(blob.digest), "from": source})
        scopes = (*self.scopes, Scope(source))
        try:
            response = self.client.send("POST", url, scopes=scopes, accept=(201, 202), headers={"Content-Length": "0"})
            response.close()
            if response.status == HTTPStatus.CREATED:
                return Mounted(done=True)
            # What would have been a mount is an upload that has begun.
            return Mounted(done=False, session=self.upload_url(response))
        except AirgapSyncError:
            # Whatever the reason, the plain upload that follows succeeds or names it.
            return Mounted(done=False)

    def put_blob(
        self,
        blob: Descriptor,
        opener: Opener,
        on_bytes: Callable[[int], None],
        *,
        session: str | None = None,
        chunking: Chunking | None = None,
        memory: UploadMemory | None = None,
    ) -> None:
        """Send a blob.

        Args:
            blob: What is sent.
            opener: Opens the content at an offset; called again for each try.
            on_bytes: Told of the bytes as they are read, with a negative number when a try starts over.
            session: Of an upload that is open already.
            chunking: When to send in chunks.
            memory: Of uploads that can be continued.

        Raises:
            IntegrityError: The local content is not the blob's; nothing was committed.
            AuthError: Refused.
            RegistryUnavailableError: Not reachable.
        """
        Upload(self, blob, opener, on_bytes, chunking or Chunking(), memory or RunMemory()).run(session)

    def open_upload(self) -> tuple[str, int]:
        """Begin an upload; return where it goes, and the smallest chunk that the registry takes, in bytes.

        Raises:
            AuthError: Refused.
            RegistryUnavailableError: Not reachable, or an answer without a Location.
        """
        response = self._send("POST", "blobs/uploads/", (202,), {"Content-Length": "0"})
        response.close()
        location = self.upload_url(response)
        if location is None:
            raise UnexpectedAnswerError(f"{self.place} opened an upload without a Location")
        return location, number(response.headers.get("OCI-Chunk-Min-Length", "")) or 0

    def abandon_upload(self, location: str) -> None:
        """Let the registry drop what it has of an upload; whether it does is its own business."""
        self.client.send_once("DELETE", location, self.scopes)

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
        first = True

        def operation() -> None:
            nonlocal first
            # One whose answer was lost must not be put again: registries refuse to overwrite even with the same.
            if not first and self._stands_for(reference, digest):
                return
            first = False
            self._put_manifest(raw, media_type, digest, reference, foreign=foreign)

        retrying(operation)

    def _put_manifest(self, raw: bytes, media_type: str, digest: Digest, reference: str, *, foreign: bool) -> None:
        url = self.client.url(f"{self.name}/manifests/{reference}")
        headers = {"Content-Type": media_type}
        try:
            response = self.client.send("PUT", url, scopes=self.scopes, accept=(201, 412), headers=headers, body=raw)
        except (ServerError, UnexpectedAnswerError) as error:
            if foreign:
                raise ForeignLayersRefusedError(
                    f"{error.message}; the image has foreign layers", context=error.context
                ) from error
            raise
        except MediaTypeRefusedError as error:
            raise MediaTypeRefusedError(f"{error.message}; it is {media_type}", context=error.context) from error
        response.close()
        if response.status == HTTPStatus.PRECONDITION_FAILED:
            # A tag that must not change refuses the same content as well.
            if self._stands_for(reference, digest):
                return
            raise ImmutableTagError(
                f"{self.place}:{reference} is immutable and, as far as can be seen, does not stand for {digest}",
                context={"status": 412},
            )
        if _stated_digest(response) is None and not self._stands_for(reference, digest):
            raise DigestMismatchError(f"{self.place} did not store {reference} as {digest}")
        self.check_digest(response, digest)

    def _stands_for(self, reference: str, digest: Digest) -> bool:
        try:
            found = self.head_manifest(reference)
        except HiddenByPolicyError:
            return False
        return found is not None and found[0] == digest

    @property
    def place(self) -> str:
        """The repository, for messages."""
        return f"{redact(self.client.endpoint.api_url)}/{self.name}"

    def _check_visible(self, response: Response, reference: str) -> None:
        if response.status == HTTPStatus.PRECONDITION_FAILED:
            response.close()
            raise HiddenByPolicyError(f"{self.place}:{reference} exists, and a policy keeps it from being pulled")

    def _send(self, method: str, path: str, accept: tuple[int, ...], headers: dict[str, str]) -> Response:
        return self.client.send(
            method,
            self.client.url(f"{self.name}/{path}"),
            scopes=self.scopes,
            accept=accept,
            headers=headers,
        )

    def upload_url(self, response: Response) -> str | None:
        """Return the absolute Location of an answer of an upload; None if it has none.

        A registry behind a proxy often names a wrong scheme or port of its own host.

        Raises:
            UnexpectedAnswerError: It leads from https to something else.
        """
        location = response.headers.get("Location")
        if not location:
            return None
        url = resolve(response.url, location)
        own, parts = urlsplit(self.client.endpoint.api_url), urlsplit(url)
        if parts.hostname == own.hostname:
            return urlunsplit((own.scheme, own.netloc, parts.path, parts.query, ""))
        if own.scheme == "https" and parts.scheme != "https":
            raise UnexpectedAnswerError(f"{self.place} wants the upload at {redact(url)}, which is not https")
        return url

    def check_digest(self, response: Response, digest: Digest) -> None:
        """Make sure that the registry stored what was sent, if it says what it stored.

        Raises:
            DigestMismatchError: It stored something else.
        """
        stated = _stated_digest(response)
        # A registry may store a sha512 upload under sha256: only digests of one algorithm can be compared.
        if stated and stated.algorithm == digest.algorithm and stated != digest:
            raise DigestMismatchError(f"{self.place} stored {stated} where {digest} was sent")


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
