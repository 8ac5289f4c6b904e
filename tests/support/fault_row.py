"""One row of the table of faults: what is provoked, what the tool is to do, and what a run of it looks like."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tests.support.command import Result
from tests.support.content import BuiltImage
from tests.support.faults import Action, EarlyStatus, Fault, Status
from tests.support.faulty import FaultyRegistry
from tests.support.proxy import ForwardProxy
from tests.support.tokens import TokenServer

#: Of the layer that only the image "big" has.
LAYER_BYTES = 1_300_000
CHUNK_BYTES = 256 * 1024
CHUNKED = ("--chunk-size", "256KiB")
USER, PASSWORD = "alice", "wonderland"


@dataclass
class Scene:
    """Where one row is tried.

    Attributes:
        target: The registry: the target of `push`, the upstream of `bundle`.
        other: Another host with the same content.
        proxy: A proxy that wants a password, and knows the registry as registry.example.
        tokens: Where both send whoever has to show a token.
        images: By repository; each has the tag 1.
        layer: Digest of the large layer, which only `rancher/big` has.
        base: Digest of the layer that both images share.
        work: A directory of its own.
        rules: The faults that were ordered.
    """

    target: FaultyRegistry
    other: FaultyRegistry
    proxy: ForwardProxy
    tokens: TokenServer
    images: Mapping[str, BuiltImage]
    layer: str
    base: str
    work: Path
    rules: list[Fault] = field(default_factory=list)

    @property
    def to(self) -> Path:
        """Where `bundle` writes to."""
        return self.work / "bundle"

    def challenge(self) -> dict[str, str]:
        """Give the header that asks for a token."""
        return {"WWW-Authenticate": f'Bearer realm="{self.tokens.realm}",service="{self.tokens.service}"'}

    def bytes_of(self, method: str, where: str = "/v2/rancher/big/blobs/uploads/") -> int:
        """Give how much of requests was read."""
        return sum(request.body_size for request in self.target.requests(method) if where in request.target)

    def count(self, method: str, where: str) -> int:
        """Count requests."""
        return sum(where in request.target for request in self.target.requests(method))


@dataclass(frozen=True)
class Order:
    """A fault to order: `{layer}` and `{base}` in `where` stand for digests; an action may depend on the scene."""

    method: str
    where: str
    action: Action | Callable[[Scene], Action]
    times: int | None = 1
    skip: int = 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """A fault and what is to come of it.

    Attributes:
        name: Of the test.
        fault: What happens, in words.
        does: What the tool does, in a sentence.
        orders: The faults to order; each must have struck.
        quirks: How the registry differs; it does no longer when the command is run again.
        options: Of the command, in both runs.
        env: Of the first run; `{proxy}` is a proxy that wants a password.
        at: Target of the first run, if it is another one than the registry.
        tls: The registry speaks TLS.
        auth: The registry asks for a token at its first request.
        before: What else is to be done first.
        code: The exit code.
        error: Reference of the error, if it fails: of each image that does, or of the run.
        fails: The repositories that fail; the others arrive.
        statuses: What the registry must have answered.
        proof: Checks what else is to hold after the first run.
    """

    name: str
    fault: str
    does: str
    orders: tuple[Order, ...] = ()
    quirks: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    at: str = ""
    tls: bool = False
    auth: bool = False
    before: Callable[[Scene], None] | None = None
    code: int = 0
    error: str = ""
    fails: frozenset[str] = frozenset()
    statuses: tuple[int, ...] = ()
    proof: Callable[[Scene, Result], None] | None = None
    command: str = "push"

    @property
    def id(self) -> str:
        """Name of the test."""
        return f"{self.command}: {self.name}"


def unauthorized(scene: Scene) -> Action:
    """Ask for another token, before any of the body is read."""
    return Status(HTTPStatus.UNAUTHORIZED, scene.challenge())


def unauthorized_early(scene: Scene) -> Action:
    """Ask for another token in the middle of the body."""
    return EarlyStatus(HTTPStatus.UNAUTHORIZED, scene.challenge(), after_bytes=200_000)


def in_seconds(seconds: float) -> Callable[[Scene], Action]:
    """Refuse with 429 until a date, which lies so far ahead when the scene is set."""

    def action(scene: Scene) -> Action:
        del scene
        moment = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
        return Status(HTTPStatus.TOO_MANY_REQUESTS, {"Retry-After": moment})

    return action


def failing(*repositories: str) -> frozenset[str]:
    """Give the names of repositories that fail."""
    return frozenset(f"rancher/{name}" for name in repositories)
