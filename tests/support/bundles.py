"""What the tests of `bundle` share: a registry with gates, and a reader of bundles. Holds no tests itself."""

import hashlib
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.support.command import Result, run
from tests.support.faulty import FaultyRegistry
from tests.support.images import AMD64, ARM64, BlobStore, BuiltImage, Entry, Platform, index_of, single
from tests.support.media_types import INDEXES, MANIFESTS
from tests.support.memory_registry import Request
from tests.support.programs import PROJECT

STATE = ".airgap-sync"
NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"


# --- images -------------------------------------------------------------------------------------------------


def random_bytes(seed: str, size: int) -> bytes:
    """Give bytes that no compressor makes smaller, always the same ones."""
    return random.Random(seed).randbytes(size)


def one(store: BlobStore, name: str, size: int = 1000, platform: Platform = AMD64, **fields: Any) -> BuiltImage:
    """Build an image without an index, with one layer of about `size` bytes."""
    return single(store, platform, {"data": random_bytes(f"{name} {platform}", size)}, **fields)


def many(
    store: BlobStore, name: str, size: int = 1000, platforms: Sequence[Platform] = (AMD64, ARM64), **fields: Any
) -> BuiltImage:
    """Build an index with an image for each platform."""
    return index_of(*(Entry(one(store, name, size, platform), platform) for platform in platforms), **fields)


def layer_of(image: BuiltImage, platform: Platform | None = None) -> str:
    """Give the digest of the one layer of an image, or of an index's image for a platform."""
    data = image.manifests[image.digest_for(platform)][1] if platform else image.root_bytes
    return str(json.loads(data)["layers"][0]["digest"])


# --- a registry with gates ----------------------------------------------------------------------------------


@dataclass
class Gate:
    """Holds requests until it is opened; `waiting` counts those that have come."""

    method: str
    pattern: str
    skip: int
    waiting: int = 0
    seen: int = 0
    _opened: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def arrive(self, stopping: threading.Event) -> None:
        """Wait as a request, unless it is one of the first to be let through."""
        with self._changed:
            self.seen += 1
            if self.seen > self.skip:
                self.waiting += 1
                self._changed.notify_all()
                while not self._opened and not stopping.is_set():
                    self._changed.wait(0.05)

    def wait_for(self, count: int = 1, timeout: float = 20) -> None:
        """Wait until so many requests are held, or have been."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.waiting >= count, timeout), f"{self.waiting} of {count} came"

    def open(self) -> None:
        """Let all requests through, from now on."""
        with self._changed:
            self._opened = True
            self._changed.notify_all()


class GatedRegistry(FaultyRegistry):
    """A faulty registry that can also hold requests back, for tests that need a run at a certain point."""

    def __init__(self, *, ranges: bool = True) -> None:
        super().__init__(ranges=ranges)
        self._gates: list[Gate] = []

    def gate(self, method: str, pattern: str, *, skip: int = 0) -> Gate:
        """Hold the requests whose target matches, after the first `skip` of them."""
        gate = Gate(method, pattern, skip)
        self._gates.append(gate)
        return gate

    def _action_for(self, request: Request) -> Any:
        for gate in self._gates:
            if gate.method in {"*", request.method} and re.search(gate.pattern, request.target):
                gate.arrive(self._stopping)
        return super()._action_for(request)

    def ref(self, repository: str, tag: str = "1") -> str:
        """Give the reference of an image here. As this host is on loopback, its default endpoint is plain http."""
        return f"{self.host}/{repository}:{tag}"

    def put(self, image: BuiltImage, repository: str, tag: str = "1") -> str:
        """Put an image in and give its reference."""
        self.add(image, repository, tag)
        return self.ref(repository, tag)

    def fetched(self, mark: int = 0) -> list[str]:
        """Give the digests of the blobs asked for since a mark, in order, repeated where asked for again."""
        return [
            request.path.rpartition("/")[2]
            for request in self.since(mark)
            if request.method == "GET" and "/blobs/" in request.path
        ]

    def asked(self, mark: int = 0) -> list[tuple[str, str]]:
        """Give method and path of the requests since a mark."""
        return [(request.method, request.path) for request in self.since(mark)]


# --- the command --------------------------------------------------------------------------------------------


def command(references: Iterable[str], to: Path, *options: str | Path) -> list[str | Path]:
    """Give the arguments of a `bundle` of some images."""
    images = [part for reference in references for part in ("--image", reference)]
    return ["bundle", *images, "--to", to, *options]


def bundle(
    references: Iterable[str], to: Path, *options: str | Path, env: Mapping[str, str] | None = None, code: int = 0
) -> Result:
    """Make a bundle of some images and check the exit code."""
    result = run(*command(references, to, *options), env=env)
    assert result.code == code, result.err
    return result


def registries(path: Path, mirrors: Mapping[str, Any], configs: Mapping[str, Any] | None = None) -> Path:
    """Write a registries.yaml."""
    path.write_text(yaml.safe_dump({"mirrors": dict(mirrors), "configs": dict(configs or {})}, sort_keys=False))
    return path


@contextmanager
def takes_less_than(seconds: float) -> Iterator[None]:
    """Fail where the block takes longer."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


def eventually(condition: Callable[[], bool], what: str, timeout: float = 20) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.01)


# --- bundles ------------------------------------------------------------------------------------------------


@cache
def lock_schema() -> Any:
    """Give the JSON Schema of the lock."""
    return json.loads((PROJECT / "bundler/schema/bundle-lock.schema.json").read_text())


class Bundle:
    """Reads a bundle with nothing but the specifications."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def index(self) -> Any:
        """index.json."""
        return json.loads((self.path / "index.json").read_text())

    @property
    def lock(self) -> Any:
        """bundle.lock.json."""
        return json.loads((self.path / "bundle.lock.json").read_text())

    @property
    def names(self) -> dict[str, str]:
        """The digest of each name."""
        return {item["annotations"][NAME]: item["digest"] for item in self.index["manifests"]}

    def image(self, reference: str) -> Any:
        """Give what the lock says of an image."""
        (found,) = [image for image in self.lock["images"] if image["reference"] == reference]
        return found

    def blob(self, digest: str) -> Path:
        """Give the file of a blob."""
        return self.path / "blobs" / digest.replace(":", "/")

    @property
    def blobs(self) -> set[str]:
        """The digests of all blob files; anything else in the folders counts too."""
        return {f"{path.parent.name}:{path.name}" for path in self.path.glob("blobs/*/*")}

    def json(self, digest: str) -> Any:
        """Give a blob as JSON."""
        return json.loads(self.blob(digest).read_bytes())

    def reachable(self, digest: str, media_type: str) -> set[str]:
        """Give a digest and all below it."""
        if media_type in INDEXES:
            below = self.json(digest)["manifests"]
        elif media_type in MANIFESTS:
            manifest = self.json(digest)
            below = [manifest["config"], *manifest["layers"]]
        else:
            below = []
        return {digest}.union(*(self.reachable(item["digest"], item["mediaType"]) for item in below))

    def tree(self) -> dict[str, bytes]:
        """Give every file of the bundle; what lies in the state directory is none."""
        return {
            str(path.relative_to(self.path)): path.read_bytes()
            for path in sorted(self.path.rglob("*"))
            if path.is_file() and STATE not in path.relative_to(self.path).parts
        }

    def check(self) -> "Bundle":
        """Check that it is a whole OCI layout with a lock that says the same, and holds nothing else."""
        assert json.loads((self.path / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
        assert {path.name for path in self.path.iterdir()} == {
            *("oci-layout", "index.json", "bundle.lock.json", "blobs", STATE)
        }
        jsonschema.Draft202012Validator(lock_schema()).validate(self.lock)
        assert self.index["schemaVersion"] == 2
        reachable: set[str] = {image["upstream_digest"] for image in self.lock["images"]}
        for item in self.index["manifests"]:
            assert item["annotations"][NAME] == item["annotations"][REF_NAME]
            assert item["size"] == self.blob(item["digest"]).stat().st_size
            reachable |= self.reachable(item["digest"], item["mediaType"])
        if self.lock["complete"]:
            assert self.blobs == reachable
        assert self.blobs >= reachable
        for digest in reachable:
            assert "sha256:" + hashlib.sha256(self.blob(digest).read_bytes()).hexdigest() == digest
        locked = {}
        for image in self.lock["images"]:
            tagged, at, digest = image["reference"].partition("@")
            if ":" in tagged.rpartition("/")[2]:
                locked[tagged] = image["digest"]
                tagged = tagged.rpartition(":")[0]
            if at:
                locked[f"{tagged}@{digest}"] = image["digest"]
        assert self.names == locked
        return self

    def sealed(self) -> set[str]:
        """Give the digests that the journal says are there, with the size and time they have."""
        journal = self.path / STATE / "journal"
        found = set()
        for line in journal.read_text().splitlines() if journal.exists() else ():
            if not line.endswith("}"):
                continue  # torn
            entry = json.loads(line)
            state = self.blob(entry["sealed"]).stat()
            if (state.st_size, state.st_mtime_ns) == (entry["size"], entry["mtime_ns"]):
                found.add(entry["sealed"])
        return found


def snapshot(path: Path) -> dict[str, tuple[int, bytes]]:
    """Give time and content of everything below a directory, to see that nothing was touched."""
    return {
        str(item.relative_to(path)): (item.lstat().st_mtime_ns, item.read_bytes() if item.is_file() else b"")
        for item in sorted(path.rglob("*"))
    }
