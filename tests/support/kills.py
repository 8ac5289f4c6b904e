"""Ends runs of `bundle` and `push` at random moments, and checks what must hold after each end.

`tests/integration/test_kills.py` does a few, `make soak` hundreds. Which moments is decided by a seed; moments
are counted in requests of the run, so that a slow machine does not move them all to its start-up.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.bundles import Bundle, GatedRegistry, command, eventually, many, one
from tests.support.command import Result, run, start
from tests.support.content import BuiltImage
from tests.support.handmade import uploads, write_bundle
from tests.support.images import AMD64, ARM, ARM64, BlobStore
from tests.support.memory_registry import Request

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PLATFORMS = ("--platform", "linux/amd64", "--platform", "linux/arm")
#: A run is killed at most so often before it may end.
LONGEST_CHAIN = 4
#: How long after a request a kill may come: longer than a run takes from one request to the next.
LONGEST_DELAY_S = 0.03
#: What a run takes until its first request, about.
START_UP_S = 0.25


def seed_from(variable: str, default: int) -> int:
    """Give the seed of an environment variable, or the default one; print it, to be able to do it again."""
    seed = int(os.environ.get(variable, str(default)))
    print(f"{variable}={seed}")
    return seed


@contextmanager
def running(*args: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Start the command; it is killed where the block leaves it running."""
    with start(*args) as process:
        try:
            yield process
        finally:
            process.kill()


@dataclass
class Tally:
    """What was done, and what went wrong."""

    kills: int = 0
    resumes: int = 0
    #: Of blobs that were whole at the place they go to before a run began.
    bytes_twice: int = 0
    violations: list[str] = field(default_factory=list)
    by_signal: dict[str, int] = field(default_factory=dict)

    def check(self, holds: object, otherwise: str) -> None:
        """Note a violation unless something holds."""
        if not holds:
            self.violations.append(otherwise)


class KillingRegistry(GatedRegistry):
    """A registry that can call back at a certain request."""

    def __init__(self) -> None:
        super().__init__()
        self._left = -1
        self._callback: Callable[[], None] = lambda: None
        self._count = threading.Lock()

    def call_at(self, number: int, callback: Callable[[], None]) -> None:
        """Call back when the request of this number, from now on, has come; counted from 1."""
        with self._count:
            self._left, self._callback = number, callback

    def open_all(self) -> None:
        """Open all gates and forget them, whatever a failed test has left."""
        for gate in self._gates:
            gate.open()
        self._gates.clear()

    def settle(self) -> None:
        """Wait until all that clients which are gone have sent has been dealt with."""
        eventually(lambda: not self._listener._open, "the end of all connections")

    def _action_for(self, request: Request) -> Any:
        with self._count:
            self._left -= 1
            due = self._left == 0
        if due:
            self._callback()
        return super()._action_for(request)


@dataclass(frozen=True)
class Moment:
    """When a run is ended: so long after a request, or after its start where `request` is 0."""

    request: int
    delay_s: float
    number: signal.Signals

    @classmethod
    def draw(cls, chance: random.Random, requests: int) -> "Moment":
        """Draw one within a run of about so many requests."""
        request = 0 if chance.random() < 0.1 else chance.randint(1, requests)
        delay_s = chance.uniform(0, LONGEST_DELAY_S if request else START_UP_S)
        return cls(request, delay_s, chance.choice(SIGNALS))


def end_at(moment: Moment, registry: KillingRegistry, args: list[str | Path]) -> Result:
    """Run the command and end it at a moment, unless it ends before."""
    due = threading.Event()
    with start(*args) as process:
        if moment.request:
            registry.call_at(moment.request, due.set)
        else:
            due.set()
        while not due.wait(0.02) and process.poll() is None:
            pass
        # Not a wait for something to happen: the moment is anywhere in between on purpose.
        time.sleep(moment.delay_s)
        process.send_signal(moment.number)
        try:
            out, err = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            err += "\n(it did not end within 20 seconds)"
    registry.call_at(-1, lambda: None)
    registry.settle()
    return Result(process.returncode, out, err)


def judge_end(result: Result, moment: Moment, tally: Tally) -> bool:
    """Count a kill and check how the run ended; tell whether it was ended at all."""
    if result.code == 0:
        return False
    tally.kills += 1
    tally.by_signal[moment.number.name] = tally.by_signal.get(moment.number.name, 0) + 1
    # A negative code: the signal came before the command could take care of it. While Python itself starts, before
    # the command's first line, SIGINT is Python's to answer.
    if moment.number == signal.SIGINT and "Could not import runpy module" in result.err:
        return True
    tally.check(
        result.code in {-moment.number, 128 + moment.number}, f"{moment} ended with {result.code}: {result.err}"
    )
    tally.check(result.code < 0 or "Traceback" not in result.err, f"{moment} printed: {result.err}")
    return True


# --- bundle ---------------------------------------------------------------------------------------------------------


class BundleSite:
    """An upstream registry, a bundle of what it held once, and what an undisturbed run makes of it now."""

    def __init__(self, work: Path, registry: KillingRegistry) -> None:
        self.registry = registry
        self._work = work
        self.store = BlobStore(work / "store")
        self.references = self._fill("old")
        self.old = work / "old"
        done = run(*self.command(self.old))
        assert done.code == 0, done.err
        self._fill("new")
        undisturbed = work / "undisturbed"
        mark = registry.mark()
        done = run(*self.command(undisturbed))
        assert done.code == 0, done.err
        self.requests = len(registry.since(mark))
        self.whole = Bundle(undisturbed).check().tree()
        self.old_whole = Bundle(self.old).check().tree()

    def command(self, to: Path) -> list[str | Path]:
        """Give the arguments of the run that is to be ended."""
        return command(self.references, to, *PLATFORMS, "--jobs", "3")

    def _fill(self, when: str) -> list[str]:
        store, put = self.store, self.registry.put
        references = [
            put(many(store, f"kept {number}", 9000 * (number + 1), (AMD64, ARM64, ARM)), f"some/kept-{number}")
            for number in range(2)
        ]
        references += [
            put(many(store, f"{when} {number}", 7000 * (number + 1), (AMD64, ARM64, ARM)), f"some/moved-{number}")
            for number in range(3)
        ]
        references.append(put(one(store, f"{when} alone", 30_000), "some/alone"))
        # Shares its layer with another one.
        references.append(put(one(store, "kept 0", 9000), "some/shared"))
        return references

    @contextmanager
    def directory(self, *, renew: bool) -> Iterator[Path]:
        """Give a directory to write to, absent or with the old bundle."""
        to = self._work / "bundle"
        if renew:
            shutil.copytree(self.old, to)
        try:
            yield to
        finally:
            shutil.rmtree(to, ignore_errors=True)

    def chain(self, chance: random.Random, tally: Tally, *, kills: int = LONGEST_CHAIN) -> None:
        """End runs of one command at up to so many moments, then let it end by itself, checking all the way."""
        with self.directory(renew=chance.random() < 0.5) as to:
            for _ in range(chance.randint(1, kills)):
                moment = Moment.draw(chance, self.requests)
                with self._sends_nothing_twice(to, tally):
                    result = end_at(moment, self.registry, self.command(to))
                if not judge_end(result, moment, tally):
                    break
                self.check_state(to, tally)
            with self._sends_nothing_twice(to, tally):
                self.check_end(to, tally)

    def check_end(self, to: Path, tally: Tally) -> None:
        """Run the command to its end: it makes what an undisturbed run makes."""
        result = run(*self.command(to))
        tally.resumes += 1
        tally.check(result.code == 0, f"the run that was to go on ended with {result.code}: {result.err}")
        if result.code == 0:
            tree = Bundle(to).tree()
            odd = {name for name in tree.keys() | self.whole.keys() if tree.get(name) != self.whole.get(name)}
            tally.check(not odd, f"not what an undisturbed run makes: {sorted(odd)}")

    def check_state(self, to: Path, tally: Tally) -> None:
        """Check what must hold at every moment: index and lock are whole, and all that the index names is there."""
        for name in ("index.json", "bundle.lock.json", "oci-layout"):
            path = to / name
            if path.exists():
                known = {self.whole[name], self.old_whole[name]}
                tally.check(path.read_bytes() in known, f"{name} is neither the old nor the new one")
        for path in to.glob("blobs/sha256/[0-9a-f]*"):
            right = hashlib.sha256(path.read_bytes()).hexdigest() == path.name
            tally.check(right, f"{path.name} does not hold its bytes")
        if (to / "index.json").exists():
            bundle = Bundle(to)
            for item in bundle.index["manifests"]:
                try:
                    missing = bundle.reachable(item["digest"], item["mediaType"]) - bundle.blobs
                except FileNotFoundError as error:
                    missing = {str(error.filename)}
                tally.check(not missing, f"index.json names {item['digest']}, but not all of it is there: {missing}")

    @contextmanager
    def _sends_nothing_twice(self, to: Path, tally: Tally) -> Iterator[None]:
        """Check that no blob or manifest that was there with all its bytes is fetched in the block."""
        there = Bundle(to).blobs
        mark = self.registry.mark()
        yield
        for request in self.registry.since(mark):
            digest = request.path.rpartition("/")[2]
            if request.method == "GET" and digest in there:
                size = next((blob.size for blob in self._blobs() if blob.name == digest[7:]), 1)
                tally.bytes_twice += size
                tally.violations.append(f"{digest} was there and was fetched again")

    def _blobs(self) -> list["_File"]:
        return [_File(path.name, path.stat().st_size) for path in self.store.directory.iterdir()]


@dataclass(frozen=True)
class _File:
    name: str
    size: int


# --- push -----------------------------------------------------------------------------------------------------------


class PushSite:
    """A bundle, and what a target holds after an undisturbed push of it."""

    def __init__(self, work: Path) -> None:
        store = BlobStore(work / "store")
        images: dict[str, BuiltImage] = {
            f"docker.io/some/many-{number}:1": many(store, f"many {number}", 9000 * (number + 1), (AMD64, ARM64, ARM))
            for number in range(4)
        }
        images["docker.io/some/alone:1"] = one(store, "alone", 40_000)
        # Two names and one content; a layer in two repositories.
        images["docker.io/some/many-0:2"] = images["docker.io/some/many-0:1"]
        images["docker.io/some/shared:1"] = one(store, "many 1", 18_000)
        self.images = images
        self.bundle = write_bundle(work / "bundle", images)
        self._state = work / "state"
        with KillingRegistry() as target:
            done = run(*self.command(target.url))
            assert done.code == 0, done.err
            self.requests = len(target.requests())
            self.whole = self.content(target)

    def command(self, url: str) -> list[str | Path]:
        """Give the arguments of the run that is to be ended."""
        return ["push", self.bundle, url, "--jobs", "3", "--state", self._state]

    def repositories(self) -> set[str]:
        """Give the repositories at the target."""
        return {reference.removeprefix("docker.io/").partition(":")[0] for reference in self.images}

    def content(self, target: KillingRegistry) -> dict[str, tuple[dict[str, str], set[str]]]:
        """Give tags and digests of all repositories."""
        return {name: (target.content.tags(name), target.content.digests(name)) for name in self.repositories()}

    def chain(self, chance: random.Random, tally: Tally, *, kills: int = LONGEST_CHAIN) -> None:
        """End pushes to one empty target at up to so many moments, then let one end by itself."""
        with KillingRegistry() as target:
            for _ in range(chance.randint(1, kills)):
                moment = Moment.draw(chance, self.requests)
                with self._sends_nothing_twice(target, tally):
                    result = end_at(moment, target, self.command(target.url))
                if not judge_end(result, moment, tally):
                    break
                self.check_tags(target, tally)
            with self._sends_nothing_twice(target, tally):
                result = run(*self.command(target.url))
            tally.resumes += 1
            tally.check(result.code == 0, f"the push that was to go on ended with {result.code}: {result.err}")
            self.check_tags(target, tally)
            tally.check(self.content(target) == self.whole, "the target is not what an undisturbed push makes it")

    def check_tags(self, target: KillingRegistry, tally: Tally) -> None:
        """Check that every tag stands for its whole image, and that none was put before it was whole."""
        tally.violations += [f"put too early: {line}" for line in target.violations]
        for reference, image in self.images.items():
            repository, _, tag = reference.removeprefix("docker.io/").partition(":")
            found = target.content.tags(repository).get(tag)
            if found is not None:
                tally.check(found == image.root_digest, f"{repository}:{tag} stands for another image")
                missing = target.content.missing(repository, found)
                tally.check(not missing, f"{repository}:{tag} lacks {missing}")

    @contextmanager
    def _sends_nothing_twice(self, target: KillingRegistry, tally: Tally) -> Iterator[None]:
        """Check that no blob that the target had is sent in the block, to whatever repository and however it ends."""
        there = set().union(*(digests for _, digests in self.content(target).values()))
        mark = target.mark()
        yield
        for request in target.since(mark):
            for digest in uploads([request], None):
                if digest in there:
                    tally.bytes_twice += request.body_size
                    tally.violations.append(f"{digest} was at the target and was sent again")
