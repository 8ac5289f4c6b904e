"""A registry that fails in scripted ways and remembers every request."""

import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from tests.support.content import BuiltImage
from tests.support.faults import (
    Action,
    Corrupt,
    Cut,
    Fault,
    Redirect,
    Reset,
    ShortLength,
    Stall,
    Status,
    WrongDigestHeader,
)
from tests.support.memory_registry import MemoryRegistry, Request, Response
from tests.support.servers import LoopbackServer, QuietHandler, reset_on_close

__all__ = [
    "Action",
    "Corrupt",
    "Cut",
    "Fault",
    "FaultyRegistry",
    "Recorded",
    "Redirect",
    "Reset",
    "ShortLength",
    "Stall",
    "Status",
    "WrongDigestHeader",
]


@dataclass(frozen=True)
class Recorded:
    """A request, and the status of the answer; 0 where the connection was reset instead.

    Header names are in lower case. `target` is the path with its query.
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

    def __init__(self, *, ranges: bool = True, mounts: bool = True, strict: bool = True) -> None:
        """Prepare an empty registry without faults.

        Args:
            ranges: Serve parts of blobs.
            mounts: Mount blobs of other repositories.
            strict: Refuse manifests whose content is not there.
        """
        self.content = MemoryRegistry(ranges=ranges, mounts=mounts, strict=strict)
        self._recorded: list[Recorded] = []
        self._faults: list[Fault] = []
        self._guard = threading.Lock()
        server = self

        class Handler(_Handler):
            registry = server

        super().__init__(Handler)

    @property
    def url(self) -> str:
        """Address of the registry."""
        return f"http://{self.host}"

    @property
    def violations(self) -> list[str]:
        """One line for each manifest put under a tag before all of its content was there."""
        return self.content.violations

    def add(self, image: BuiltImage, repository: str, tag: str | None = None) -> None:
        """Put an image in, with all of its content."""
        self.content.add(image, repository, tag)

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
        request = Request(self.command, self.path, headers, self._body())
        action = self.registry._action_for(request)
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

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def _response(self, request: Request, action: Action | None) -> Response:
        if isinstance(action, Status):
            return Response(action.code, action.body, dict(action.headers))
        if isinstance(action, Redirect):
            location = action.location.replace("{target}", request.target)
            return Response(action.code, headers={"Location": location})
        response = self.registry.content.handle(request)
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
        self.send_response(response.status)
        headers = dict(response.headers)
        if response.status != HTTPStatus.NO_CONTENT:
            headers.setdefault("Content-Length", str(len(response.body)))
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
        else:
            self.wfile.write(body)

    def _break(self, *, reset: bool) -> None:
        """End the connection: with an error at the client, or as if all had been said."""
        self.close_connection = True
        if reset:
            reset_on_close(self.connection)
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return body
