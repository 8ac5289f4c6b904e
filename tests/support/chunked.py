"""Pushes in chunks to a real registry, ended at certain points of their traffic, and what must hold afterwards.

The registry knows of no points: a proxy before it does, which sees each request, each piece of its body and its answer.
"""

import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

from tests.support.bundles import random_bytes
from tests.support.command import Result, run, start
from tests.support.content import BlobStore, BuiltImage
from tests.support.handmade import built, write_bundle
from tests.support.kills import LONGEST_CHAIN, Tally
from tests.support.proxy import ForwardProxy, ProxyRequest
from tests.support.pulling import check_pulled
from tests.support.registry import Registry

NAME = "registry.example"
CHUNK_BYTES = 256 * 1024
#: Five chunks and a bit.
LAYER_BYTES = 5 * CHUNK_BYTES + 1000


@dataclass(frozen=True)
class Point:
    """A point in the traffic of a run.

    Attributes:
        method: Of the requests that count; `*` for all but GET and HEAD.
        number: Which of them, counted from 1.
        when: "before" the registry knows of it, "within" its body, or "after" it was answered: only the client does not
            know then.
        where: What its address must hold.
    """

    method: str
    number: int
    when: str
    where: str = ""

    @classmethod
    def draw(cls, chance: random.Random, requests: int) -> "Point":
        """Draw one in a run that writes so often."""
        return cls("*", chance.randint(1, requests), chance.choice(("before", "within", "after")))


class Wire(ForwardProxy):
    """The way to a real registry, called `registry.example` at its end."""

    def __init__(self, registry: Registry) -> None:
        super().__init__({f"{NAME}:80": registry.host})
        self.registry = registry
        self.target = f"http://{NAME}"
        self.env = {"HTTP_PROXY": self.url}
        self._point: Point | None = None
        self._due: Callable[[], object] = lambda: None
        self._cut = True
        self._seen = 0
        self._turn = threading.Lock()
        self._here = threading.local()

    def call_at(self, point: Point | None, callback: Callable[[], object] = lambda: None, *, cut: bool = True) -> None:
        """Call back at a point of what comes from now on, and cut the connection there or let it pass."""
        with self._turn:
            self._point, self._due, self._cut, self._seen = point, callback, cut, 0

    def passing(self, method: str, target: str, sent: int | None) -> None:
        """Count requests, and do what is due at the point."""
        with self._turn:
            point = self._point
            if point is None:
                return
            if sent == 0:
                counts = method == point.method or (point.method == "*" and method not in {"GET", "HEAD"})
                counts = counts and point.where in target
                self._seen += counts
                self._here.number = self._seen if counts else 0
            if self._here.number != point.number or not self._reached(point, method, sent):
                return
            self._point, cut = None, self._cut
        self._due()
        if cut:
            raise ConnectionAbortedError("the point was reached")

    def _reached(self, point: Point, method: str, sent: int | None) -> bool:
        # A request without a body has no middle; its answer comes next.
        if point.when == "within" and method in {"PATCH", "PUT"}:
            return bool(sent) or sent is None
        return sent == 0 if point.when == "before" else sent is None

    def killed_at(self, point: Point, *args: str | Path) -> Result:
        """Run the command and kill it at a point, unless it ends before."""
        started = threading.Event()
        victim: list[subprocess.Popen[str]] = []

        def kill() -> None:
            started.wait(20)
            victim[0].kill()
            victim[0].wait()

        self.call_at(point, kill)
        with start(*args, env=self.env) as process:
            victim.append(process)
            started.set()
            try:
                out, err = process.communicate(timeout=60)
            finally:
                process.kill()
        self.call_at(None)
        return Result(process.returncode, out, err)

    def mark(self) -> int:
        """Give a point in the list of requests to look `since`."""
        return len(self.requests)

    def since(self, mark: int, method: str) -> list[ProxyRequest]:
        """Give the requests of a method after a mark."""
        return [request for request in self.requests[mark:] if request.method == method]

    def accepted(self, mark: int = 0) -> list[tuple[int, int]]:
        """Give first byte and size of each chunk that the registry accepted."""
        return [
            (int(request.headers["content-range"].partition("-")[0]), int(request.headers["content-length"]))
            for request in self.since(mark, "PATCH")
            if request.status == 202
        ]


@dataclass
class ChunkedSite:
    """A bundle whose layers go in chunks, and registries to push it to.

    Attributes:
        work: Gets everything.
        jobs: Blobs in flight at once.
    """

    work: Path
    jobs: int = 1
    images: dict[str, BuiltImage] = field(init=False)
    bundle: Path = field(init=False)
    #: How many requests write something in an undisturbed push, about.
    requests: int = 0

    def __post_init__(self) -> None:
        store = BlobStore(self.work / "store")
        shared = random_bytes("shared", LAYER_BYTES // 2)
        self.images = {
            f"docker.io/some/{name}:1": built(store, random_bytes(name, LAYER_BYTES), shared, title=name)
            for name in ("one", "two")
        }
        self.bundle = write_bundle(self.work / "bundle", self.images)
        with self.registry() as wire:
            done = run(*self.command(wire), env=wire.env)
            assert done.code == 0, done.err
            self.requests = len([request for request in wire.requests if request.method not in {"GET", "HEAD"}])
            self.check(wire)

    @contextmanager
    def registry(self) -> Iterator[Wire]:
        """Give an empty registry, and the way to it."""
        with Registry() as registry, Wire(registry) as wire:
            yield wire

    def command(self, wire: Wire, *options: str | Path, bundle: Path | None = None) -> list[str | Path]:
        """Give the arguments of a push in chunks."""
        return [
            *("push", bundle or self.bundle, wire.target, "--chunk-size", str(CHUNK_BYTES)),
            *("--jobs", str(self.jobs), "--state", self.work / f"state-{wire.registry.port}", *options),
        ]

    def check(self, wire: Wire) -> None:
        """Pull everything back and check that it is what an undisturbed push brings, byte for byte."""
        for reference, image in self.images.items():
            check_pulled(wire.registry.url, reference.removeprefix("docker.io/").partition(":")[0], "1", image)

    def chain(self, chance: random.Random, tally: Tally, *, kills: int = LONGEST_CHAIN) -> None:
        """Kill pushes to one registry at up to so many points, then let one end by itself."""
        with self.registry() as wire:
            for _ in range(chance.randint(1, kills)):
                point = Point.draw(chance, self.requests)
                mark = wire.mark()
                result = wire.killed_at(point, *self.command(wire))
                self._sent_twice(wire, mark, tally)
                if result.code == 0:
                    break
                tally.kills += 1
                tally.by_signal["SIGKILL"] = tally.by_signal.get("SIGKILL", 0) + 1
                tally.check(result.code == -9, f"{point} ended with {result.code}: {result.err}")
            mark = wire.mark()
            done = run(*self.command(wire), env=wire.env)
            self._sent_twice(wire, mark, tally)
            tally.resumes += 1
            tally.check(done.code == 0, f"the push that was to go on ended with {done.code}: {done.err}")
            try:
                self.check(wire)
            except (AssertionError, OSError) as error:
                tally.violations.append(f"the target is not what an undisturbed push makes it: {error!r}")

    def _sent_twice(self, wire: Wire, mark: int, tally: Tally) -> None:
        """Note what was committed to a repository before a mark, and was sent there again after it."""
        there = {_commit(request) for request in wire.requests[:mark] if request.status == 201}
        for request in wire.since(mark, "PUT"):
            commit = _commit(request)
            if commit and commit in there:
                tally.bytes_twice += int(request.headers.get("content-length", "0"))
                tally.violations.append(f"{commit} was at the target and was sent again")


def _commit(request: ProxyRequest) -> tuple[str, str] | None:
    """Give repository and digest of a request that puts a blob."""
    parts = urlsplit(request.target)
    digest = parse_qs(parts.query).get("digest")
    if request.method != "PUT" or not digest:
        return None
    return parts.path.partition("/blobs/")[0], digest[0]


class Together:
    """Runs that go on side by side; each ends with the block."""

    def __init__(self, *runs: tuple[list[str | Path], dict[str, str]]) -> None:
        self._processes = [start(*args, env=env) for args, env in runs]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def end(self) -> list[Result]:
        """Wait for all of them."""
        results = []
        for process in self._processes:
            out, err = process.communicate(timeout=60)
            results.append(Result(process.returncode, out, err))
        return results
