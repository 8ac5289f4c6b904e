"""One request to the Harbor double and its answer, its own or that of the registry behind it."""

import contextlib
import secrets
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.support.faulty import Recorded
from tests.support.harbor_accounts import Identity
from tests.support.harbor_projects import HarborError
from tests.support.harbor_state import HarborState
from tests.support.registry import Registry
from tests.support.servers import QuietHandler, reset_on_close

PIECE_BYTES = 256 * 1024
MANIFEST_BYTES = 4 * 1024 * 1024

_BACKEND_TIMEOUT_S = 60
# Of one connection only, or not the registry's business.
_HOP = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"})
_NOT_FORWARDED = _HOP | {"authorization", "cookie", "host", "expect"}
_NOT_RETURNED = _HOP | {"date", "server"}


@dataclass(frozen=True)
class HarborRequest(Recorded):
    """A request, the status of the answer (0 where there was none), and who it was found to be from."""

    user: str | None


class Backend(Registry):
    """The registry behind Harbor, which takes layers with `urls` as Harbor has it configured."""

    def __init__(self) -> None:
        super().__init__()
        config = yaml.safe_load(self._config.read_text())
        self._config.write_text(yaml.safe_dump({**config, "validation": {"disabled": True}}))


class ClientGoneError(ConnectionError):
    """The client has gone before the end of its request."""


class LostAnswerError(ConnectionError):
    """The answer has been dropped on purpose."""


class Exchange(QuietHandler):
    """Handler of requests, with what their processing needs.

    Attributes:
        identity: Who the request is from.
        received: Bytes of the body read so far.
        lost: Drop the answer and reset the connection instead.
    """

    state: HarborState
    backend: Backend

    identity: Identity
    received: int
    lost: bool
    _body_read: bool
    _answered: bool

    def answer(self) -> None:
        """Answer the request."""
        raise NotImplementedError

    def record(self, request: HarborRequest) -> None:
        """Remember a request."""
        raise NotImplementedError

    def _serve(self) -> None:
        self.identity, self.received, self.lost, self._answered = Identity(), 0, False, False
        self._body_read = not self._chunked and not self.content_length
        try:
            self.answer()
        except HarborError as error:
            self.reply(error.status, error.body, {"Content-Type": "application/json; charset=utf-8", **error.headers})
        finally:
            if not self._answered:
                self.close_connection = True
                self._record(0)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    @property
    def path_only(self) -> str:
        """Path, decoded once as front proxies do, without the query."""
        return unquote(urlsplit(self.path).path)

    @property
    def host(self) -> str:
        """Host and port that the client calls this server by."""
        return str(self.headers.get("Host", "localhost"))

    @property
    def content_length(self) -> int:
        """Announced size of the body; 0 where none is."""
        return int(self.headers.get("Content-Length") or 0)

    @property
    def safe(self) -> bool:
        """Whether the method is one that changes nothing."""
        return self.command in {"GET", "HEAD"}

    @property
    def _chunked(self) -> bool:
        return str(self.headers.get("Transfer-Encoding", "")).lower() == "chunked"

    def query(self, name: str) -> str:
        """Give a parameter of the query; empty where there is none."""
        return (self.queries(name) or [""])[0]

    def queries(self, name: str) -> list[str]:
        """Give all values of a parameter of the query."""
        return parse_qs(urlsplit(self.path).query).get(name, [])

    def pieces(self) -> Iterator[bytes]:
        """Give the body in pieces, as they come.

        Raises:
            ClientGoneError: The body ended early.
        """
        if self._chunked:
            while size := int(self._line().split(b";")[0], 16):
                yield from self._exactly(size)
                self._line()
            while self._line().strip():
                pass  # trailers
        else:
            yield from self._exactly(self.content_length)
        self._body_read = True

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self._got(partial(self.rfile.read1, min(size, PIECE_BYTES)))
            size -= len(piece)
            self.received += len(piece)
            yield piece

    def _line(self) -> bytes:
        return self._got(self.rfile.readline)

    @staticmethod
    def _got(read: Callable[[], bytes]) -> bytes:
        try:
            data = read()
        except OSError as error:
            raise ClientGoneError from error
        if not data:
            raise ClientGoneError
        return data

    def body(self) -> bytes:
        """Give the whole body of a request that has only a small one.

        Raises:
            HarborError: It is larger than manifests may be.
        """
        read = bytearray()
        for piece in self.pieces():
            read += piece
            if len(read) > MANIFEST_BYTES:
                message = f"the request body exceeds {MANIFEST_BYTES} bytes"
                raise HarborError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "REQUEST_ENTITY_TOO_LARGE", message)
        return bytes(read)

    def reply(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Send a whole answer; only its head where the request was HEAD.

        Blobs are not read before it, nor after: the connection is closed. Smaller bodies are.
        """
        if not self.received and self.content_length <= MANIFEST_BYTES and "/blobs/uploads/" not in self.path:
            for _ in self.pieces():
                pass
        self.head(status, {"Content-Length": str(len(body)), **(headers or {})}.items())
        if self.command != "HEAD":
            self.wfile.write(body)

    def head(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Send the head of an answer.

        Raises:
            LostAnswerError: It was to be dropped.
        """
        if self.lost:
            self.drop()
        # Recorded first: a client that has the answer must find its request in the record.
        self._record(status)
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("X-Request-Id", self.headers.get("X-Request-Id") or str(uuid.uuid4()))
        secure = "; Secure" if self.state.external_scheme == "https" else ""
        self.send_header("Set-Cookie", f"sid={secrets.token_hex(16)}; Path=/; HttpOnly{secure}")
        if not self._body_read:
            self.send_header("Connection", "close")
        self.end_headers()

    def drop(self) -> NoReturn:
        """Reset the connection instead of answering.

        Raises:
            LostAnswerError: Always, to end the processing.
        """
        reset_on_close(self.connection)
        raise LostAnswerError

    def _record(self, status: int) -> None:
        self._answered = True
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.record(HarborRequest(self.command, self.path, headers, self.received, status, self.identity.name or None))

    def forward(self, target: str | None = None, answered: Callable[[int, Message], None] | None = None) -> None:
        """Pass the request to the registry, and its answer to the client, both in pieces.

        Args:
            target: Path and query there, where they are others.
            answered: Gets the status and headers before the client does.
        """
        with self._connection() as connection:
            self._pass_request(connection, target or self.path)
            response = connection.getresponse()
            if answered:
                answered(response.status, response.headers)
            headers = [(name, value) for name, value in response.getheaders() if name.lower() not in _NOT_RETURNED]
            empty = self.command == "HEAD" or response.status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
            chunked = not empty and response.getheader("Content-Length") is None
            if chunked:
                headers.append(("Transfer-Encoding", "chunked"))
            self.head(response.status, [(name, self._located(name, value)) for name, value in headers])
            while not empty and (piece := response.read1(PIECE_BYTES)):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            if chunked:
                self.wfile.write(b"0\r\n\r\n")
            if not empty and response.length:
                raise ConnectionError("the registry broke off")

    def ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Give the registry's answer to the request, whose body has been read."""
        with self._connection() as connection:
            connection.request(self.command, self.path, body, {"Content-Type": self.headers["Content-Type"]})
            response = connection.getresponse()
            headers = {name: self._located(name, value) for name, value in response.getheaders()}
            kept = {name: value for name, value in headers.items() if name.lower() not in _NOT_RETURNED}
            return response.status, kept, response.read()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[HTTPConnection]:
        """Connect to the registry; what goes wrong there before it has answered is an error of this server's."""
        connection = HTTPConnection("127.0.0.1", self.backend.port, timeout=_BACKEND_TIMEOUT_S)
        try:
            yield connection
        except (OSError, HTTPException) as error:
            if self._answered or isinstance(error, ClientGoneError | LostAnswerError):
                raise
            raise HarborError(HTTPStatus.BAD_GATEWAY, "UNKNOWN", "internal server error") from error
        finally:
            connection.close()

    def _pass_request(self, connection: HTTPConnection, target: str) -> None:
        connection.putrequest(self.command, target, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _NOT_FORWARDED:
                connection.putheader(name, value)
        if self._chunked:
            connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        for piece in self._encoded():
            try:
                connection.send(piece)
            except OSError:
                return  # it has answered already

    def _encoded(self) -> Iterator[bytes]:
        for piece in self.pieces():
            yield b"%x\r\n%s\r\n" % (len(piece), piece) if self._chunked else piece
        if self._chunked:
            yield b"0\r\n\r\n"

    def _located(self, name: str, value: str) -> str:
        if name.lower() != "location" or not value.startswith(self.backend.url):
            return value
        base = self.state.location_base or f"{self.state.external_scheme}://{self.host}"
        return base + value.removeprefix(self.backend.url)
