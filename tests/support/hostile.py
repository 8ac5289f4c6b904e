"""A registry that answers as no registry should: any bytes, any headers, without end."""

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from tests.support.content import BuiltImage, Manifest
from tests.support.memory_registry import MemoryRegistry, Request, Response
from tests.support.servers import LoopbackServer, QuietHandler


@dataclass(frozen=True)
class Exchange:
    """One request on its way to an answer: `honest` is what a registry would say."""

    registry: "HostileRegistry"
    handler: QuietHandler
    request: Request
    honest: Response

    def head(self, status: str, headers: Iterable[tuple[str, str]]) -> None:
        """Send a status line and headers as they are."""
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), "", ""]
        self.write("\r\n".join(lines).encode("latin-1"))

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.handler.wfile.write(data)
        self.registry.count(len(data))

    def close(self) -> None:
        """Let the connection end after this answer."""
        self.handler.close_connection = True


Answer = Callable[[Exchange], None]


class HostileRegistry(LoopbackServer):
    """Context manager: a registry in memory that gives the ordered answers, and honest ones to all else."""

    def __init__(self) -> None:
        self.content = MemoryRegistry(strict=False)
        self.targets: list[tuple[str, str]] = []
        self.sent_bytes = 0
        self._rules: list[tuple[str, str, Answer]] = []
        self._guard = threading.Lock()
        server = self

        class Handler(QuietHandler):
            def _serve(self) -> None:
                server._serve(self)

            do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815

        super().__init__(Handler)

    @property
    def url(self) -> str:
        """Address of the registry."""
        return f"http://{self.host}"

    @property
    def stopping(self) -> bool:
        """Whether endless answers have to end."""
        return self._stopping.is_set()

    def put(self, image: BuiltImage, repository: str, tag: str = "1") -> str:
        """Put an image in, with all of its content, and give its reference."""
        self.content.add(image, repository, tag)
        return f"{self.host}/{repository}:{tag}"

    def put_root(self, root: Manifest, image: BuiltImage, repository: str, tag: str = "1") -> str:
        """Put the content of an image in below another root, whatever that is, and give its reference."""
        below = {**image.manifests, image.root_digest: (image.root_media_type, image.root_bytes)}
        return self.put(BuiltImage(root.media_type, root.digest, root.data, below, list(image.blobs)), repository, tag)

    def answer(self, method: str, pattern: str, answer: Answer) -> None:
        """Give this answer, always, to requests whose target matches; `*` is any method."""
        with self._guard:
            self._rules.append((method, pattern, answer))

    def count(self, sent: int) -> None:
        """Count bytes that a client took."""
        with self._guard:
            self.sent_bytes += sent

    def _serve(self, handler: QuietHandler) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        request = Request(handler.command, handler.path, headers, body)
        with self._guard:
            self.targets.append((request.method, request.target))
            rules = list(self._rules)
        honest = self.content.handle(request)
        for method, pattern, answer in rules:
            if method in {"*", request.method} and re.search(pattern, request.target):
                answer(Exchange(self, handler, request, honest))
                return
        handler.reply(honest.status, honest.body, dict(honest.headers))


# --- answers ------------------------------------------------------------------------------------------------


def says(status: int = 200, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Answer:
    """Answer in good form: the honest body and headers where no others are given; an empty header is left out."""

    def answer(exchange: Exchange) -> None:
        content = exchange.honest.body if body is None else body
        sent = {**exchange.honest.headers, "Content-Length": str(len(content)), **(headers or {})}
        exchange.head(f"{status} Said", [(name, value) for name, value in sent.items() if value])
        if exchange.request.method != "HEAD":
            exchange.write(content)

    return answer


def raw(status: str, headers: Iterable[tuple[str, str]], body: bytes | None = None) -> Answer:
    """Answer these bytes, the honest body where no other is given, and close the connection."""
    lines = list(headers)

    def answer(exchange: Exchange) -> None:
        exchange.close()
        exchange.head(status, lines)
        if exchange.request.method != "HEAD":
            exchange.write(exchange.honest.body if body is None else body)

    return answer


def endless(headers: Mapping[str, str] | None = None, *, chunked: bool = False, start: bytes = b"") -> Answer:
    """Answer 200 with a body that never ends."""
    block = b" " * 65536
    piece = b"10000\r\n" + block + b"\r\n" if chunked else block

    def answer(exchange: Exchange) -> None:
        exchange.close()
        framing = {"Transfer-Encoding": "chunked"} if chunked else {"Connection": "close"}
        sent = {**exchange.honest.headers, **framing, **(headers or {})}
        exchange.head("200 OK", [(name, value) for name, value in sent.items() if value])
        # The client goes away in the middle: that is what the tests want of it.
        with suppress(OSError):
            exchange.write(start if not chunked else b"")
            while not exchange.registry.stopping:
                exchange.write(piece)

    return answer


def redirects(location: str, status: int = 307) -> Answer:
    """Redirect; `{target}` stands for what was asked for."""

    def answer(exchange: Exchange) -> None:
        exchange.handler.reply(status, b"", {"Location": location.replace("{target}", exchange.request.target)})

    return answer
