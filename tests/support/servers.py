"""A threaded HTTP server on the loopback interface, with TLS to order, that stops cleanly."""

import contextlib
import socket
import socketserver
import ssl
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.certificates import Certificate

#: What is taken in for a handler that does not read, about; the system doubles it.
_RECEIVE_BUFFER = 262_144


class QuietHandler(BaseHTTPRequestHandler):
    """Request handler that logs nothing and speaks HTTP/1.1 with connections kept open."""

    protocol_version = "HTTP/1.1"
    # Head and body are written apart: without this the body would wait for a delayed acknowledgement.
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the base class
        """Log nothing: tests look at what is recorded."""

    def reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Send a whole answer; only its head where the request was HEAD."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Listener(ThreadingHTTPServer):
    """Server that knows its open connections, so that stopping it does not wait for idle clients."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 128

    def __init__(
        self, handler: type[BaseHTTPRequestHandler], address: str = "127.0.0.1", context: ssl.SSLContext | None = None
    ) -> None:
        self.handshake_errors: list[str] = []
        self._context = context
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, 0), handler)

    def server_bind(self) -> None:
        # Left to itself it grows without measure, and whoever sends would not notice that nobody reads.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        # The base class would look the host name up, which takes long where there is no name server.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        # Here and not where connections are accepted: a client that never says hello holds up nobody else.
        connection = self._secured(request) if self._context else request
        if connection is not None:
            super().process_request_thread(connection, client_address)

    def _secured(self, connection: socket.socket) -> ssl.SSLSocket | None:
        """Shake hands; None where that fails, which the client is told and nobody else."""
        assert self._context
        with self._lock:
            self._open.discard(connection)
            try:
                secured = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            except OSError as error:
                self.handshake_errors.append(str(error))
                connection.close()
                return None
            self._open.add(secured)
        try:
            secured.do_handshake()
        except OSError as error:
            self.handshake_errors.append(str(error))
            self.close_request(secured)
            return None
        return secured

    def shutdown_request(self, request: Any) -> None:
        # The base class says goodbye before closing, which would make a reset a good end.
        if _lingers(request):
            _close_notify(request)
            super().shutdown_request(request)
        else:
            self.close_request(request)

    def close_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that go away, which is part of what is tested; print real errors."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def disconnect(self) -> None:
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    # Not that of SSLSocket, which would pull the rug from under the thread that reads from it.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)


def reset_on_close(connection: socket.socket) -> None:
    """Make closing this connection reset it instead of ending it in good order."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def end_politely(connection: socket.socket, seconds: float) -> None:
    """Say that no more comes, and drop what the client still sends for some time, as web servers do.

    Closing a connection with something unread in it resets it, and the client might lose the answer over that.
    """
    _close_notify(connection)
    deadline = time.monotonic() + seconds
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_WR)
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not socket.socket.recv(connection, 65536):
                break


def _close_notify(connection: socket.socket) -> None:
    """End TLS in good order, where there is any, without waiting for the client to do the same."""
    if isinstance(connection, ssl.SSLSocket):
        connection.settimeout(0)
        with contextlib.suppress(OSError, ValueError):
            connection.unwrap()


def _lingers(connection: socket.socket) -> bool:
    enabled, seconds = struct.unpack("ii", connection.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
    return not enabled or seconds > 0


def _context(certificate: Certificate, client_ca: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert, certificate.key)
    if client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


class LoopbackServer:
    """Context manager that serves a handler class on the loopback interface, on a port of its own."""

    def __init__(
        self,
        handler: type[BaseHTTPRequestHandler],
        *,
        certificate: Certificate | None = None,
        client_ca: Path | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        """Prepare the server.

        Args:
            handler: Class of the handlers.
            certificate: Serve https with this certificate.
            client_ca: Certificates of those whose clients may come; others fail.
            address: Where to listen; `::1` for IPv6.
        """
        self.scheme = "https" if certificate else "http"
        self._address = address
        self._listener = _Listener(handler, address, _context(certificate, client_ca) if certificate else None)
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True)
        self._stopping = threading.Event()

    @property
    def host(self) -> str:
        """Address as `127.0.0.1:PORT` or `[::1]:PORT`."""
        address = f"[{self._address}]" if ":" in self._address else self._address
        return f"{address}:{self._listener.server_port}"

    @property
    def origin(self) -> str:
        """Scheme and address as `http://127.0.0.1:PORT`."""
        return f"{self.scheme}://{self.host}"

    @property
    def handshake_errors(self) -> list[str]:
        """Why connections came to nothing before the first request, where TLS is spoken."""
        return self._listener.handshake_errors

    def start(self) -> Self:
        """Start serving."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop serving and drop all connections."""
        self._stopping.set()
        if self._thread.is_alive():
            self._listener.shutdown()
            self._thread.join()
        self._listener.disconnect()
        self._listener.server_close()

    def refuse(self) -> None:
        """Listen no more, as a server that went down: whoever connects is refused, and what is open is dropped."""
        self._listener.shutdown()
        self._listener.socket.close()
        self._listener.disconnect()

    def pause(self, seconds: float | None = None) -> None:
        """Make a handler wait, but not longer than the server lives."""
        self._stopping.wait(seconds)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
