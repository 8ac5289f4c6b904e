"""Upload sessions of the registry in memory."""

import re
import uuid
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import quote

from tests.support.protocol import Request, Response, error
from tests.support.quirks import Quirks

_CHUNK = re.compile(r"(?:bytes )?(\d+)-(\d+)(?:/\S+)?")


@dataclass
class _Session:
    repository: str
    data: bytearray = field(default_factory=bytearray)
    first: tuple[int, int] | None = None
    last: tuple[int, int] = (0, 0)
    too_small: bool = False
    broken: bool = False

    def append(self, body: bytes) -> None:
        if body:
            self.last = len(self.data), len(self.data) + len(body) - 1
            self.first = self.first or self.last
            self.data += body


class Sessions:
    """The open uploads of a registry; not thread-safe by itself."""

    def __init__(self, quirks: Quirks) -> None:
        self._quirks = quirks
        self._open: dict[str, _Session] = {}

    def open(self, repository: str) -> str:
        """Open a session and give its name."""
        upload = uuid.uuid4().hex
        self._open[upload] = _Session(repository)
        return upload

    def close(self, upload: str) -> bytes:
        """End a session and give what it has got; nothing where there is none."""
        session = self._open.pop(upload, None)
        return bytes(session.data) if session else b""

    def refusal(self, request: Request, repository: str, upload: str) -> Response | None:
        """Refuse a request to a session that is not there, or not what the client takes it for."""
        session = self._open.get(upload)
        if session is None or session.repository != repository:
            return error(HTTPStatus.NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", upload)
        state = request.query("_state")
        # Whoever only asks needs no state where uploads are kept; whose body has begun to be stored has shown it.
        exempt = (request.method == "GET" and self._quirks.broken_patch == "keep") or request.stored
        if session.broken or (self._quirks.session_state and not exempt and state != self._state(upload)):
            if session.broken or state is not None:
                del self._open[upload]
            return error(HTTPStatus.NOT_FOUND, "BLOB_UPLOAD_INVALID", upload)
        return None

    def receive(self, request: Request, upload: str) -> Response | None:
        """Take the body of a PATCH or PUT, or refuse it."""
        session = self._open[upload]
        if refusal := self._misplaced(request, session, upload):
            return refusal
        if self._quirks.check_range and (chunk := _chunk(request)) and chunk[1] - chunk[0] + 1 != len(request.body):
            return error(HTTPStatus.BAD_REQUEST, "SIZE_INVALID", f"{chunk} with {len(request.body)} bytes")
        if session.too_small and request.body:
            return self.progress(request, upload, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
        if request.method == "PATCH":
            if self._over_limit(request):
                text = f"the request body is too large and exceeds the maximum of {self._quirks.patch_limit} bytes"
                return error(self._quirks.patch_limit_status, "REQUESTED_RANGE_NOT_SATISFIABLE", message=text)
            session.too_small = len(request.body) < (self._quirks.chunk_min or 0)
        session.append(request.body[request.stored :])
        return None

    def arriving(self, request: Request, repository: str, upload: str) -> int:
        """Let others see the part that has arrived of a PATCH or PUT, and tell how much of it is stored."""
        if self._quirks.broken_patch != "keep":
            return 0
        before = len(self._open[upload].data) if upload in self._open else 0
        self.interrupted(request, repository, upload)
        return len(self._open[upload].data) - before if upload in self._open else 0

    def interrupted(self, request: Request, repository: str, upload: str) -> None:
        """Treat the part that arrived of a PATCH or PUT whose body broke off."""
        if self.refusal(request, repository, upload):
            return
        session = self._open[upload]
        if self._quirks.broken_patch == "delete":
            del self._open[upload]
        elif self._quirks.broken_patch == "forget":
            session.broken = True
        elif not self._misplaced(request, session, upload) and not self._over_limit(request):
            session.append(request.body[request.stored :])

    def progress(self, request: Request, upload: str, status: int) -> Response:
        """Answer with where to go on, and from which byte."""
        session = self._open[upload]
        headers = {
            "Location": self._location(request, session, upload),
            "Docker-Upload-UUID": upload,
            "Range": self._range(session),
        }
        if self._quirks.chunk_min is not None and request.method == "POST":
            headers["OCI-Chunk-Min-Length"] = str(self._quirks.chunk_min)
        return Response(status, headers=headers)

    def _misplaced(self, request: Request, session: _Session, upload: str) -> Response | None:
        """Refuse a chunk that does not start where the upload ends."""
        if not self._quirks.check_range or "content-range" not in request.headers:
            return None
        chunk = _chunk(request)
        if chunk and chunk[0] + request.stored == len(session.data):
            return None
        return self.progress(request, upload, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)

    def _over_limit(self, request: Request) -> bool:
        limit = self._quirks.patch_limit
        return limit is not None and request.method == "PATCH" and len(request.body) > limit

    def _location(self, request: Request, session: _Session, upload: str) -> str:
        place = f"{upload}?_state={quote(self._state(upload))}"
        if self._quirks.location == "relative":
            return place
        path = f"/v2/{session.repository}/blobs/uploads/{place}"
        return path if self._quirks.location == "path" else f"{request.scheme}://{request.headers['host']}{path}"

    def _state(self, upload: str) -> str:
        if not self._quirks.session_state:
            return "0"
        return urlsafe_b64encode(f"{upload} {len(self._open[upload].data)}".encode()).decode()

    def _range(self, session: _Session) -> str:
        if self._quirks.range_quirk == "chunk":
            return f"{session.last[0]}-{session.last[1]}"
        if self._quirks.range_quirk == "sticks":
            return f"0-{session.first[1] if session.first else 0}"
        return f"0-{max(len(session.data) - 1, 0)}"


def _chunk(request: Request) -> tuple[int, int] | None:
    """Give the first and the last byte that a chunk claims to be."""
    match = _CHUNK.fullmatch(request.headers.get("content-range", ""))
    return (int(match[1]), int(match[2])) if match else None
