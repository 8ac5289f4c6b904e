"""Uploading one blob: as a whole, or in chunks that survive a restart.

Invariants:

- The local content is hashed from its first byte to its last, also where the registry has some of it already; wrong
  bytes end the upload before it is committed.
- A session that something went wrong with is asked for its state once, and else begun anew: it is never patched up.
- What commits a chunked upload has no body, so that a registry that books the size of the last request books none.

Source: distribution-spec, "Pushing blobs"; docs of CNCF distribution, ``spec/api.md``, "Resumable Upload".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

from bundler.errors import (
    AirgapSyncError,
    BodyTooLargeError,
    IntegrityError,
    ServerError,
    UnexpectedAnswerError,
)
from bundler.net import Response, number
from bundler.oci.content import Opener
from bundler.oci.descriptor import Descriptor
from bundler.registry.body import UploadBody
from bundler.registry.retry import retrying
from bundler.registry.session import Chunking, SavedUpload, UploadMemory

if TYPE_CHECKING:
    from bundler.registry.repository import Repository

#: Object storage copies the whole blob before it answers: about how fast.
_COMMIT_BYTES_PER_S = 10_000_000
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")
#: How often an upload is begun anew because its session is gone or its digest was not right.
_RESTARTS = 2
#: A registry that wants larger chunks than this is not believed.
_ABSURD_CHUNK_BYTES = 1024**3


class _SessionLostError(Exception):
    """The registry does not know the session, or has other bytes in it than we sent."""


class Upload:
    """Brings one blob into one repository.

    Args:
        repository: Where it goes.
        blob: What is sent.
        opener: Opens the content at its start; called again for each try.
        on_bytes: Told of the bytes as they are read, with a negative number when a try starts over.
        chunking: When to send in chunks.
        memory: Of sessions that can be continued.
    """

    def __init__(
        self,
        repository: Repository,
        blob: Descriptor,
        opener: Opener,
        on_bytes: Callable[[int], None],
        chunking: Chunking,
        memory: UploadMemory,
    ) -> None:
        self._repository = repository
        self._host = repository.client.host
        self._blob = blob
        self._opener = opener
        self._tell = on_bytes
        self._chunking = chunking
        self._memory = memory
        self._told = self._accepted = 0
        self._tries = self._restarts = 0

    def run(self, session: str | None) -> None:
        """Send the blob.

        Args:
            session: The Location of a session that is open already, after a mount that was not granted.

        Raises:
            IntegrityError: The local content is not the blob's; nothing was committed.
            AuthError: Refused.
            RegistryUnavailableError: Not reachable.
        """

        def operation() -> None:
            nonlocal session
            first, self._tries = self._tries == 0, self._tries + 1
            # A commit whose answer was lost is found here, instead of sending everything again.
            if not first and self._repository.has_blob(self._blob):
                self._on_bytes(self._blob.size - self._told)
            else:
                at, session = session, None
                self._send_blob(at)
            self._memory.forget(self._repository.name, self._blob.digest)

        retrying(operation, lambda: self._accepted)

    def _send_blob(self, session: str | None) -> None:
        """Send it, with smaller bodies as long as their size is what is wrong, and anew where a session is lost."""
        while True:
            chunk = self._chunking.chunk_for(self._blob.size, self._host.body_limit)
            # A limit on bodies counts more: then chunks are the only way.
            whole = chunk is None or (self._host.refuses_chunks and self._host.body_limit is None)
            try:
                if whole or chunk is None or self._restarts >= _RESTARTS:
                    self._whole(session or self._repository.open_upload()[0])
                else:
                    self._in_chunks(session, chunk)
            except BodyTooLargeError:
                self._start_over()
                if not self._chunking.size or not self._host.shrink(min(chunk or self._blob.size, self._blob.size)):
                    raise
            except _SessionLostError as error:
                self._start_over()
                self._restarts += 1
                if self._restarts > _RESTARTS:
                    # The content was right when it was read, so what the registry says of it is all there is to say.
                    if isinstance(error.__cause__, UnexpectedAnswerError) and _is_refusal(error.__cause__):
                        raise error.__cause__ from None
                    raise ServerError(f"{self._repository.place} loses the upload of {self._blob.digest}") from error
            else:
                return
            session = None

    def _whole(self, location: str) -> None:
        """Send the blob in one streamed PUT."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(self._blob.size)}
        try:
            with UploadBody(self._opener, self._on_bytes) as body:
                body.part(self._blob.size)
                # requests would send an empty file object in chunks, which registries refuse.
                content = body if self._blob.size else b""
                self._send("PUT", _with_digest(location, self._blob), headers, content, commit=True)
        except IntegrityError:
            self._repository.abandon_upload(location)
            raise
        except UnexpectedAnswerError as error:
            # What broke off in the middle, before a 401 for example, may still be in the session.
            if error.context.get("status") in _GONE or error.context.get("code") in _SPOILT:
                raise _SessionLostError from error
            raise

    # --- chunks ---------------------------------------------------------------------------------------------

    def _in_chunks(self, session: str | None, chunk: int) -> None:
        """Send the blob in chunks, from where an earlier try or run has come to."""
        blob, name, smallest = self._blob, self._repository.name, 0
        saved = self._memory.recall(name, blob.digest)
        if saved is not None:
            if session is not None:
                # One that was opened in the place of a mount has nothing in it.
                self._repository.abandon_upload(session)
            location, offset = self._status(saved)
        else:
            location, smallest = (session, 0) if session else self._repository.open_upload()
            offset = 0
        if chunk < smallest <= _ABSURD_CHUNK_BYTES:
            chunk = smallest
        self._accepted = offset
        self._memory.keep(name, blob.digest, SavedUpload(location, offset))
        try:
            with UploadBody(self._opener, self._on_bytes, start=offset) as body:
                while offset < blob.size:
                    size = min(chunk, blob.size - offset)
                    body.part(size)
                    location = self._chunk(location, body, offset, size)
                    offset = self._accepted = offset + size
                    self._memory.keep(name, blob.digest, SavedUpload(location, offset))
                body.read_to_end()
        except IntegrityError:
            self._start_over()
            self._repository.abandon_upload(location)
            raise
        headers = {"Content-Type": "application/octet-stream", "Content-Length": "0"}
        try:
            self._send("PUT", _with_digest(location, blob), headers, b"", commit=True)
        except UnexpectedAnswerError as error:
            if error.context.get("status") in _NOT_OURS:
                raise _SessionLostError from error
            raise

    def _chunk(self, location: str, body: UploadBody, offset: int, size: int) -> str:
        """Send one chunk; return the session's new Location."""
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size),
            "Content-Range": f"{offset}-{offset + size - 1}",
        }
        try:
            # ECR answers 201.
            response = self._send("PATCH", location, headers, body, accept=(201, 202, 416))
        except UnexpectedAnswerError as error:
            if error.context.get("status") in _NOT_OURS:
                raise _SessionLostError from error
            raise
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if offset:
                raise _SessionLostError
            # The first chunk starts where it should, so it is its size that is not wanted.
            self._host.refuses_chunks = True
            raise _SessionLostError
        return self._repository.upload_url(response) or location

    def _status(self, saved: SavedUpload) -> tuple[str, int]:
        """Ask a session how far it has come; return its newest Location and its offset.

        Raises:
            _SessionLostError: It is gone, or has less than was acknowledged.
        """
        try:
            response = self._send("GET", saved.location, {}, None, accept=(204, 200))
        except UnexpectedAnswerError as error:
            raise _SessionLostError from error
        except AirgapSyncError as error:
            if HTTPStatus.BAD_REQUEST <= error.context.get("status", 0) < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise _SessionLostError from error
            raise
        match = _RANGE.fullmatch(response.headers.get("Range", "").strip())
        has = number(match[1]) if match else None
        offset = saved.offset
        if has is not None:
            # 0-0 is one byte, or none: registries say so of a session that is new, or whose bytes they have lost.
            offset = has + 1 if has else min(saved.offset, 1)
        if not saved.offset <= offset <= self._blob.size:
            raise _SessionLostError
        return self._repository.upload_url(response) or saved.location, offset

    # --- both -----------------------------------------------------------------------------------------------

    def _send(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: UploadBody | bytes | None,
        *,
        accept: tuple[int, ...] = (201,),
        commit: bool = False,
    ) -> Response:
        """Send a request of the session; what commits gets time for the registry to move the blob."""
        patience_s = 60.0 + self._blob.size / _COMMIT_BYTES_PER_S if commit else None
        response = self._repository.client.send(
            method, url, scopes=self._repository.scopes, accept=accept, headers=headers, body=body, read_s=patience_s
        )
        response.close()
        if commit:
            self._repository.check_digest(response, self._blob.digest)
        return response

    def _on_bytes(self, size: int) -> None:
        self._told += size
        self._tell(size)

    def _start_over(self) -> None:
        self._memory.forget(self._repository.name, self._blob.digest)
        self._accepted = 0
        self._on_bytes(-self._told)


#: What says that a session is not there.
_GONE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.GONE})
#: The same, or that it holds other bytes than ours.
_NOT_OURS = _GONE | {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}
#: How registries say that what arrived is not what was announced.
_SPOILT = frozenset({"DIGEST_INVALID", "SIZE_INVALID", "BLOB_UPLOAD_INVALID"})


def _is_refusal(error: UnexpectedAnswerError) -> bool:
    return error.context.get("status") == HTTPStatus.BAD_REQUEST


def _with_digest(location: str, blob: Descriptor) -> str:
    return location + ("&" if "?" in location else "?") + f"digest={blob.digest}"
