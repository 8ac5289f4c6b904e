"""A forward proxy on the loopback interface that remembers every request."""

import http.client
import socket
import threading
from base64 import b64encode
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote, urlsplit

from tests.support.bodies import RequestBody
from tests.support.servers import LoopbackServer, QuietHandler, end_politely, reset_on_close

_PIECE = 65536
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer"})
_BAD_GATEWAY = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>\n"


@dataclass(frozen=True)
class ProxyRequest:
    """A request to the proxy, and the status of its answer; 0 where a connection broke before there was one.

    `target` is `name:port` for CONNECT, else the whole address. Header names are in lower case.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    status: int


class ForwardProxy(LoopbackServer):
    """Context manager: forwards plain requests, and tunnels what is to be connected.

    Attributes:
        requests: All requests so far.
        routes: Where to connect to instead, by `name:port`. What is not in there must be on loopback itself.
        refused: `name:port` of what is answered by 502.
    """

    def __init__(
        self,
        routes: Mapping[str, str] | None = None,
        *,
        credentials: tuple[str, str] | None = None,
        refused: Collection[str] = (),
        address: str = "127.0.0.1",
    ) -> None:
        """Prepare the proxy.

        Args:
            routes: Such as `{"registry.example:443": "127.0.0.1:12345"}`; the names need not resolve.
            credentials: User and password to ask for; 407 without them.
            refused: Such as `{"registry.example:443"}`.
            address: Where to listen; `::1` for IPv6.
        """
        self.requests: list[ProxyRequest] = []
        self.routes = dict(routes or {})
        self.refused = set(refused)
        self._credentials = credentials
        self._upstreams: set[socket.socket] = set()
        self._guard = threading.Lock()
        server = self

        class Handler(_Handler):
            proxy = server

        super().__init__(Handler, address=address)

    @property
    def url(self) -> str:
        """Address of the proxy, without credentials."""
        return self.origin

    @property
    def login_url(self) -> str:
        """Address of the proxy with the credentials it asks for."""
        user, password = (quote(part, safe="") for part in self._credentials or ("", ""))
        return f"http://{user}:{password}@{self.host}"

    def stop(self) -> None:
        """Stop serving and drop all connections, also those to others."""
        self._stopping.set()
        with self._guard:
            for upstream in self._upstreams:
                with suppress(OSError):
                    upstream.shutdown(socket.SHUT_RDWR)
        super().stop()

    def targets(self, method: str | None = None) -> list[str]:
        """Give the targets of all requests, or of those of one method."""
        return [request.target for request in self.requests if method in {None, request.method}]

    def passing(self, method: str, target: str, sent: int | None) -> None:
        """Be told of a plain request on its way: for classes that do something then, or end it by an OSError.

        Args:
            method: Its method.
            target: Its whole address.
            sent: Bytes of its body that were sent on; None when it was answered, before the client knows.
        """

    def _admits(self, authorization: str | None) -> bool:
        if self._credentials is None:
            return True
        return authorization == "Basic " + b64encode(":".join(self._credentials).encode()).decode()

    def _connect(self, target: str) -> socket.socket | None:
        """Connect to a target; None where that is not allowed or does not work."""
        host, _, port = self.routes.get(target, target).rpartition(":")
        host = host.strip("[]")
        if target in self.refused or host not in _LOOPBACK or not port.isdigit():
            return None
        try:
            upstream = socket.create_connection((host, int(port)), timeout=10)
        except OSError:
            return None
        upstream.settimeout(None)
        upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._guard:
            self._upstreams.add(upstream)
        return upstream

    def _disconnect(self, upstream: socket.socket) -> None:
        with self._guard:
            self._upstreams.discard(upstream)
        upstream.close()


class _Handler(QuietHandler):
    proxy: ForwardProxy

    def do_CONNECT(self) -> None:  # noqa: N802 - the name http.server wants
        upstream = self._admitted(self.path)
        if upstream is None:
            return
        self.close_connection = True
        try:
            self._record(HTTPStatus.OK)
            self.send_response(HTTPStatus.OK, "Connection established")
            self.end_headers()
            back = threading.Thread(target=_pump, args=(upstream, self.connection))
            back.start()
            _pump(self.connection, upstream)
            back.join()
        finally:
            self.proxy._disconnect(upstream)

    def _forward(self) -> None:
        split = urlsplit(self.path)
        if split.scheme != "http" or not split.hostname:
            self._refuse(HTTPStatus.BAD_REQUEST)
            return
        self.proxy.passing(self.command, self.path, 0)
        upstream = self._admitted(
            f"{split.netloc.rpartition('@')[2].removesuffix(f':{split.port}')}:{split.port or 80}"
        )
        if upstream is None:
            return
        connection = http.client.HTTPConnection(split.hostname)
        connection.sock = upstream
        try:
            body = RequestBody(self.rfile, self.headers)
            self._send_on(connection, body)
            self._send_back(connection, body)
        finally:
            connection.close()
            self.proxy._disconnect(upstream)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815

    def _send_on(self, connection: http.client.HTTPConnection, body: RequestBody) -> None:
        """Send the request; one that is answered before it is through goes no further."""
        path = "/" + self.path.removeprefix("http://").partition("/")[2]
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.putrequest(self.command, path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.endheaders()
            sent = 0
            while not body.complete:
                body.receive(sent + _PIECE)
                piece = bytes(body.data[sent:])
                if piece:
                    connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if body.chunked else piece)
                elif not body.complete:
                    self._record(0)
                    reset_on_close(connection.sock)
                    raise ConnectionAbortedError("the client is gone")
                sent += len(piece)
                self.proxy.passing(self.command, self.path, sent)
            if body.chunked:
                connection.send(b"0\r\n\r\n")

    def _send_back(self, connection: http.client.HTTPConnection, body: RequestBody) -> None:
        try:
            response = connection.getresponse()
        except (OSError, http.client.HTTPException):
            self._refuse(HTTPStatus.BAD_GATEWAY)
            return
        self._record(response.status)
        self.proxy.passing(self.command, self.path, None)
        length = response.headers.get("Content-Length")
        empty = self.command == "HEAD" or response.status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
        self.close_connection |= not body.complete or (length is None and not empty)
        self.send_response_only(response.status, response.reason)
        for name, value in response.headers.items():
            if name.lower() not in _HOP_BY_HOP | {"transfer-encoding"}:
                self.send_header(name, value)
        self.end_headers()
        left = 0 if empty or length is None else int(length)
        with suppress(ConnectionResetError):
            while not empty and (piece := response.read1(_PIECE)):
                self.wfile.write(piece)
                left -= len(piece)
        if length is not None and left > 0:
            self.close_connection = True
            reset_on_close(self.connection)
        elif not body.complete:
            end_politely(self.connection, 2)

    def _admitted(self, target: str) -> socket.socket | None:
        """Connect to where a request is to go; None where it has been refused."""
        if not self.proxy._admits(self.headers.get("Proxy-Authorization")):
            self._refuse(HTTPStatus.PROXY_AUTHENTICATION_REQUIRED)
            return None
        upstream = self.proxy._connect(target)
        if upstream is None:
            self._refuse(HTTPStatus.BAD_GATEWAY)
        return upstream

    def _refuse(self, status: int) -> None:
        self._record(status)
        self.close_connection = True
        headers = {"Content-Type": "text/html", "Connection": "close"}
        if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            headers["Proxy-Authenticate"] = 'Basic realm="proxy"'
        self.reply(status, _BAD_GATEWAY if status == HTTPStatus.BAD_GATEWAY else b"", headers)
        end_politely(self.connection, 2)

    def _record(self, status: int) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.proxy._guard:
            self.proxy.requests.append(ProxyRequest(self.command, self.path, headers, status))


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy one direction of a tunnel to its end, and end the other side in the same way."""
    try:
        while data := source.recv(_PIECE):
            sink.sendall(data)
    except OSError:
        # A reset on one side is one on the other; both threads of the tunnel are to see that it is over.
        for end in (source, sink):
            with suppress(OSError):
                reset_on_close(end)
                end.shutdown(socket.SHUT_RD)
        return
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
