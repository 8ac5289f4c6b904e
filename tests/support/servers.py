"""A threaded HTTP server on the loopback interface that stops cleanly."""

import contextlib
import socket
import socketserver
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


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

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), handler)

    def server_bind(self) -> None:
        # The base class would look the host name up, which takes long where there is no name server.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        # The base class says goodbye before closing, which would make a reset a good end.
        if _lingers(request):
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
                    connection.shutdown(socket.SHUT_RDWR)


def reset_on_close(connection: socket.socket) -> None:
    """Make closing this connection reset it instead of ending it in good order."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _lingers(connection: socket.socket) -> bool:
    enabled, seconds = struct.unpack("ii", connection.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
    return not enabled or seconds > 0


class LoopbackServer:
    """Context manager that serves a handler class on 127.0.0.1, on a port of its own."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._listener = _Listener(handler)
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True)
        self._stopping = threading.Event()

    @property
    def host(self) -> str:
        """Address as `127.0.0.1:PORT`."""
        return f"127.0.0.1:{self._listener.server_port}"

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

    def pause(self, seconds: float | None = None) -> None:
        """Make a handler wait, but not longer than the server lives."""
        self._stopping.wait(seconds)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
