"""A registry that fails in scripted ways and remembers every request."""

import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tests.support.bodies import RequestBody
from tests.support.certificates import Certificate
from tests.support.content import BuiltImage
from tests.support.faults import (
    Action,
    BreakBody,
    Corrupt,
    Cut,
    Drip,
    EarlyStatus,
    EditHeaders,
    Fault,
    LoseBlob,
    LoseSession,
    Meanwhile,
    Redirect,
    Reset,
    ShortLength,
    Stall,
    StallBody,
    Status,
    WrongDigestHeader,
)
from tests.support.memory_registry import MemoryRegistry, Request, Response, error
from tests.support.servers import LoopbackServer, QuietHandler, end_politely, reset_on_close

__all__ = [
    "Action",
    "BreakBody",
    "Corrupt",
    "Cut",
    "Drip",
    "EarlyStatus",
    "EditHeaders",
    "Fault",
    "FaultyRegistry",
    "LoseBlob",
    "LoseSession",
    "Meanwhile",
    "Recorded",
    "Redirect",
    "Reset",
    "ShortLength",
    "Stall",
    "StallBody",
    "Status",
    "WrongDigestHeader",
]

_TOO_LARGE = EarlyStatus(
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    {"Content-Type": "text/html"},
    b"<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n<body>\r\n"
    b"<center><h1>413 Request Entity Too Large</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n",
)
#: For how long a client that is still sending after the end may do so.
_FAREWELL_S = 2.0


@dataclass(frozen=True)
class Recorded:
    """A request, and the status of the answer; 0 where the connection ended instead.

    Header names are in lower case. `target` is the path with its query. `body_size` is what was read of the body.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body_size: int
    status: int

    @property
    def path(self) -> str:
        """Path without the query."""
        return self.target.partition("?")[0]


class FaultyRegistry(LoopbackServer):
    """Context manager: a registry in memory on the loopback interface, with faults to order."""

    def __init__(
        self,
        *,
        certificate: Certificate | None = None,
        client_ca: Path | None = None,
        address: str = "127.0.0.1",
        **options: Any,
    ) -> None:
        """Prepare an empty registry without faults.

        Args:
            certificate: Serve https with this certificate.
            client_ca: Certificates of those whose clients may come; others fail.
            address: Where to listen; `::1` for IPv6.
            options: Those of `Quirks`: what it does differently from other registries, without any fault.
        """
        self.content = MemoryRegistry(**options)
        self._recorded: list[Recorded] = []
        self._faults: list[Fault] = []
        self._guard = threading.Lock()
        server = self

        class Handler(_Handler):
            registry = server

        super().__init__(Handler, certificate=certificate, client_ca=client_ca, address=address)

    @property
    def url(self) -> str:
        """Address of the registry."""
        return self.origin

    @property
    def violations(self) -> list[str]:
        """One line for each manifest put under a tag before all of its content was there."""
        return self.content.violations

    def add(self, image: BuiltImage, repository: str, tag: str | None = None) -> None:
        """Put an image in, with all of its content."""
        self.content.add(image, repository, tag)

    def create(self, repository: str) -> None:
        """Make a repository, which only a registry that `need_repository` asks for."""
        self.content.create(repository)

    def fault(self, method: str, path_regex: str, action: Action, *, times: int | None = 1, skip: int = 0) -> Fault:
        """Order a fault. Where several match a request, the one ordered first happens.

        Args:
            method: Method of the requests it is for; `*` for any.
            path_regex: Searched for in the path with its query.
            action: What happens.
            times: How often; None for always.
            skip: How many matching requests to leave alone before.

        Returns:
            The rule, whose `hits` tell how often it happened.
        """
        rule = Fault(method, path_regex, action, times, skip)
        with self._guard:
            self._faults.append(rule)
        return rule

    def requests(self, method: str | None = None) -> list[Recorded]:
        """Give all requests so far, or those of one method."""
        with self._guard:
            return [request for request in self._recorded if method in {None, request.method}]

    def mark(self) -> int:
        """Give a point in the list of requests to look `since`."""
        return len(self.requests())

    def since(self, mark: int) -> list[Recorded]:
        """Give the requests after a `mark`."""
        return self.requests()[mark:]

    def _action_for(self, request: Request) -> Action | None:
        with self._guard:
            for rule in self._faults:
                if rule.strikes(request.method, request.target):
                    return rule.action
        return None

    def _record(self, request: Request, status: int) -> None:
        entry = Recorded(request.method, request.target, request.headers, len(request.body), status)
        with self._guard:
            self._recorded.append(entry)


class _Handler(QuietHandler):
    registry: FaultyRegistry

    def _serve(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, scheme=self.registry.scheme)
        action = self.registry._action_for(request)
        if isinstance(action, Meanwhile):
            action.do()
        body = RequestBody(self.rfile, self.headers)
        if isinstance(action, BreakBody):
            body.receive(action.after_bytes)
            self._interrupted(request, body)
            self._break(reset=action.reset, farewell_s=_FAREWELL_S)
            return
        early = action if isinstance(action, EarlyStatus) else self._over_limit(body)
        if early:
            self._answer_early(request, body, early)
            return
        if isinstance(action, StallBody):
            body.receive(action.after_bytes)
            stored = self.registry.content.arriving(replace(request, body=bytes(body.data)))
            request = replace(request, stored=stored)
            self.registry.pause(action.seconds)
        body.receive()
        if not body.complete:
            self._interrupted(request, body)
            self.close_connection = True
            return
        self._answer(replace(request, body=bytes(body.data)), action)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def _answer(self, request: Request, action: Action | None) -> None:
        if isinstance(action, Stall) and action.after_bytes is None:
            self.registry.pause(action.seconds)
        if action == Reset(after_effect=True):
            self.registry.content.handle(request)
        if isinstance(action, Reset):
            self.registry._record(request, 0)
            self._break(reset=True)
            return
        response = self._response(request, action)
        # Recorded first: a client that has the answer must find its request in the record.
        self.registry._record(request, response.status)
        self._send(response, action)

    def _over_limit(self, body: RequestBody) -> EarlyStatus | None:
        limit = self.registry.content.quirks.body_limit
        if limit is None:
            return None
        if body.length is None:
            body.receive(limit + 1)
        return _TOO_LARGE if (body.length or len(body.data)) > limit else None

    def _answer_early(self, request: Request, body: RequestBody, early: EarlyStatus) -> None:
        body.receive(early.after_bytes)
        if early.after_bytes:
            self._interrupted(request, body, early.code)
        else:
            self.registry._record(replace(request, body=bytes(body.data)), early.code)
        self._send(Response(early.code, early.body, {**early.headers, "Connection": "close"}), None)
        self._break(reset=early.reset, farewell_s=_FAREWELL_S)

    def _interrupted(self, request: Request, body: RequestBody, status: int = 0) -> None:
        """Let the registry have what arrived, and record it."""
        part = replace(request, body=bytes(body.data))
        self.registry.content.interrupted(part)
        self.registry._record(part, status)

    def _response(self, request: Request, action: Action | None) -> Response:
        if isinstance(action, Status):
            return Response(action.code, action.body, dict(action.headers))
        if isinstance(action, Redirect):
            location = action.location.replace("{target}", request.target)
            return Response(action.code, headers={"Location": location})
        if isinstance(action, LoseSession):
            self.registry.content.lose_session(request)
            return error(HTTPStatus.NOT_FOUND, "BLOB_UPLOAD_UNKNOWN")
        response = self.registry.content.handle(request)
        if isinstance(action, LoseBlob) and response.status == HTTPStatus.CREATED:
            repository = request.path.removeprefix("/v2/").partition("/blobs/")[0]
            self.registry.content.forget(repository, response.headers["Docker-Content-Digest"])
        if isinstance(action, Corrupt) and response.body:
            body = bytearray(response.body)
            body[len(body) // 2 if action.offset is None else action.offset] ^= 0xFF
            return Response(response.status, bytes(body), response.headers)
        if isinstance(action, ShortLength):
            return Response(response.status, response.body[: action.keep_bytes], response.headers)
        if isinstance(action, WrongDigestHeader):
            headers = {**response.headers, "Docker-Content-Digest": action.digest}
            return Response(response.status, response.body, headers)
        return response

    def _send(self, response: Response, action: Action | None) -> None:
        headers = {"Server": self.version_string(), "Date": self.date_time_string(), **response.headers}
        if response.status != HTTPStatus.NO_CONTENT:
            headers.setdefault("Content-Length", str(len(response.body)))
        if isinstance(action, EditHeaders):
            headers = self._edited(headers, action)
            # Without a length nothing but the end of the connection tells the end of the body.
            self.close_connection |= response.status != HTTPStatus.NO_CONTENT and "Content-Length" not in headers
        self.send_response_only(response.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        body = b"" if self.command == "HEAD" else response.body
        if isinstance(action, Cut):
            self.wfile.write(body[: action.after_bytes])
            self._break(reset=action.reset)
        elif isinstance(action, Stall) and action.after_bytes is not None:
            self.wfile.write(body[: action.after_bytes])
            self.registry.pause(action.seconds)
            self.wfile.write(body[action.after_bytes :])
        elif isinstance(action, Drip):
            for start in range(0, len(body), action.bytes_per_piece):
                self.wfile.write(body[start : start + action.bytes_per_piece])
                self.registry.pause(action.pause_s)
        else:
            self.wfile.write(body)

    def _edited(self, headers: Mapping[str, str], action: EditHeaders) -> dict[str, str]:
        edited = dict(headers)
        for name, value in action.headers.items():
            known = next((key for key in edited if key.lower() == name.lower()), name)
            before = edited.pop(known, "")
            if value is not None:
                edited[known] = value.replace("{value}", before).replace("{host}", self.registry.host)
        return edited

    def _break(self, *, reset: bool, farewell_s: float = 0) -> None:
        """End the connection: with an error at the client, or as if all had been said."""
        self.close_connection = True
        if reset:
            reset_on_close(self.connection)
        elif farewell_s:
            end_politely(self.connection, farewell_s)
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
