"""Every row of the table of faults, with the real command over real sockets: what holds after each of them.

The rows run side by side before the first test: most of their time they wait.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from tests.support.bundles import Bundle, random_bytes, registries
from tests.support.certificates import Authority
from tests.support.command import Result, run
from tests.support.content import BlobStore, BuiltImage, digest_of
from tests.support.fault_row import LAYER_BYTES, PASSWORD, USER, Order, Row, Scene, unauthorized
from tests.support.fault_table import TABLE
from tests.support.faulty import FaultyRegistry
from tests.support.handmade import built, complete, multi, snapshot, write_bundle
from tests.support.programs import free_port, require
from tests.support.proxy import ForwardProxy
from tests.support.quirks import Quirks
from tests.support.tokens import TokenServer

BASE = b"base layer\n" * 400
LAYER = random_bytes("the large layer", LAYER_BYTES)
#: The rows wait more than they work; the machine has few processors.
AT_ONCE = 12
TIMEOUT_S = 120


@dataclass(frozen=True)
class Stage:
    """What all rows share."""

    images: Mapping[str, BuiltImage]
    bundle: Path
    authority: Authority
    tokens: TokenServer
    work: Path


@dataclass(frozen=True)
class Outcome:
    """How a row went: both runs, and the bundle that was pushed before and after."""

    first: Result
    again: Result | None
    broken: list[str]


def names(stage: Stage) -> dict[str, BuiltImage]:
    return {f"docker.io/{repository}:1": image for repository, image in stage.images.items()}


class Trial:
    """One row on its stage."""

    def __init__(self, row: Row, stage: Stage, work: Path) -> None:
        self.row = row
        self.stage = stage
        self.work = work
        self.broken: list[str] = []

    def check(self, holds: object, otherwise: str) -> None:
        """Note what does not hold."""
        if not holds:
            self.broken.append(otherwise)

    def run(self) -> Outcome:
        """Provoke the fault, look at what it left, and run the command again without it."""
        row, stage = self.row, self.stage
        certificate = stage.authority.issue("localhost", "127.0.0.1") if row.tls else None
        with ExitStack() as stack:
            target = stack.enter_context(FaultyRegistry(certificate=certificate, **row.quirks))
            other = stack.enter_context(FaultyRegistry())
            other.content = target.content
            proxy = stack.enter_context(
                ForwardProxy({"registry.example:80": target.host}, credentials=("someone", "secret"))
            )
            scene = Scene(
                target, other, proxy, stage.tokens, stage.images, digest_of(LAYER), digest_of(BASE), self.work
            )
            self.prepare(scene)
            env = {name: value.replace("{proxy}", proxy.url) for name, value in row.env.items()}
            first = run(*self.arguments(scene, first=True), env={**self.credentials(), **env}, timeout=TIMEOUT_S)
            self.look(scene, first)
            if first.code == 0:
                return Outcome(first, None, self.broken)
            again = self.again(scene, stack)
            return Outcome(first, again, self.broken)

    def prepare(self, scene: Scene) -> None:
        if self.row.command == "bundle":
            for repository, image in scene.images.items():
                scene.target.add(image, repository, "1")
        if self.row.before:
            self.row.before(scene)
        where = "/manifests/1$"
        asked = [Order("*", where, unauthorized)] if self.row.auth else []
        for order in (*asked, *self.row.orders):
            action = order.action(scene) if callable(order.action) else order.action
            pattern = order.where.replace("{layer}", scene.layer).replace("{base}", scene.base)
            scene.rules.append(scene.target.fault(order.method, pattern, action, times=order.times, skip=order.skip))

    def credentials(self) -> dict[str, str]:
        if not self.row.auth or self.row.command != "push":
            return {}
        return {"AIRGAP_SYNC_USERNAME": USER, "AIRGAP_SYNC_PASSWORD": PASSWORD}

    def arguments(self, scene: Scene, *, first: bool) -> list[str | Path]:
        trust: list[str | Path] = ["--ca-file", self.stage.authority.ca_file] if self.row.tls else []
        if self.row.command == "push":
            at = self.row.at.replace("{free}", str(free_port())) if first else ""
            return [
                *("push", self.stage.bundle, at or scene.target.url, "--state", self.work / "state"),
                *(*self.row.options, *trust, "-o", "json"),
            ]
        if self.row.tls:
            mirror = {scene.target.host: {"endpoint": [scene.target.url]}}
            trust += ["--registries", registries(self.work / "registries.yaml", mirror)]
        images = [part for name in scene.images for part in ("--image", f"{scene.target.host}/{name}:1")]
        return ["bundle", *images, "--platform", "all", "--to", scene.to, *self.row.options, *trust, "-o", "json"]

    def look(self, scene: Scene, result: Result) -> None:
        """Check what is to hold after the first run."""
        row = self.row
        self.check("Traceback" not in result.err, "there is a traceback")
        self.check(result.code == row.code, f"exit code {result.code}")
        for rule in scene.rules:
            self.check(rule.hits, f"never happened: {rule.method} {rule.path_regex}")
        answered = {request.status for request in scene.target.requests()}
        self.check(answered.issuperset(row.statuses), f"answers were {sorted(answered)}")
        self.errors(result)
        if row.command == "push":
            self.tags(scene, complete_but=set(scene.images) if row.code not in {0, 10} else set(row.fails))
        else:
            self.bundle(scene, missing=row.fails)
        if row.proof:
            try:
                row.proof(scene, result)
            except (AssertionError, ValueError, IndexError) as error:
                self.broken.append(f"proof {getattr(row.proof, '__doc__', '')}: {error}")

    def errors(self, result: Result) -> None:
        """Check that the report names the error: of the images that fail, or of the run."""
        row, report = self.row, result.json
        failed = {image["reference"]: image["error"]["reference"] for image in report["images"] if image["error"]}
        if row.code == 10:
            found = {name.partition("/")[2].removesuffix(":1"): error for name, error in failed.items()}
            self.check(found == dict.fromkeys(row.fails, row.error), f"failed: {found}")
        elif row.code:
            self.check(report["error"]["reference"] == row.error, f"error: {report['error']}")

    def tags(self, scene: Scene, *, complete_but: set[str]) -> None:
        """Check that no tag stands for incomplete content, and that all images but some are there."""
        for repository, image in scene.images.items():
            tag = scene.target.content.tags(repository).get("1")
            lacks = scene.target.content.missing(repository, tag) if tag else []
            self.check(not lacks, f"{repository}:1 lacks {lacks}")
            there = complete(scene.target, repository, "1", image)
            self.check(there or repository in complete_but, f"{repository}:1 is not there")
        self.check(not scene.target.violations, f"put too early: {scene.target.violations}")

    def bundle(self, scene: Scene, missing: frozenset[str]) -> None:
        """Check that index and lock are sound and name all images but some."""
        try:
            made = Bundle(scene.to).check()
        except (AssertionError, OSError, ValueError) as error:
            self.broken.append(f"the bundle is not sound: {error!r}")
            return
        wanted = {
            f"{scene.target.host}/{repository}:1": image.root_digest
            for repository, image in scene.images.items()
            if repository not in missing
        }
        self.check(made.names == wanted, f"index.json names {made.names}")
        failed = {entry["error"] for entry in made.lock["failed"]}
        self.check(failed == ({self.row.error} if missing else set()), f"the lock says {failed}")

    def again(self, scene: Scene, stack: ExitStack) -> Result:
        """Run the command once more, without the fault."""
        for rule in scene.rules:
            rule.times = 0
        for field in fields(Quirks):
            setattr(scene.target.content.quirks, field.name, field.default)
        if not scene.target._thread.is_alive():
            revived = stack.enter_context(FaultyRegistry())
            revived.content = scene.target.content
            scene.target = revived
        for repository in scene.images:
            scene.target.create(repository)
        done = run(*self.arguments(scene, first=False), env=self.credentials(), timeout=TIMEOUT_S)
        self.check("Traceback" not in done.err, "there is a traceback in the second run")
        self.check(done.code == 0, f"the second run ended with {done.code}")
        if self.row.command == "push":
            self.tags(scene, complete_but=set())
        else:
            self.bundle(scene, missing=frozenset())
        return done


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    require("openssl")
    top = tmp_path_factory.mktemp("faults")
    store = BlobStore(top / "store")
    images = {
        "rancher/big": multi(store, BASE, LAYER, title="big"),
        "rancher/small": built(store, BASE, b"small", title="small", docker=True),
    }
    bundle = write_bundle(top / "pushed", {f"docker.io/{name}:1": image for name, image in images.items()})
    with TokenServer(USER, PASSWORD, anonymous_pull=True) as tokens:
        yield Stage(images, bundle, Authority(top / "authority"), tokens, top)


@pytest.fixture(scope="module")
def outcomes(stage: Stage, request: pytest.FixtureRequest) -> Iterator[Mapping[str, "Future[Outcome]"]]:
    chosen = {row.id for item in request.session.items if (row := _row_of(item))}
    before = snapshot(stage.bundle)

    def try_one(row: Row, number: int) -> Outcome:
        work = stage.work / str(number)
        work.mkdir()
        outcome = Trial(row, stage, work).run()
        if snapshot(stage.bundle) != before:
            outcome.broken.append("the bundle was touched")
        return outcome

    with ThreadPoolExecutor(AT_ONCE) as threads:
        # Those that wait longest first.
        rows = sorted((row for row in TABLE if row.id in chosen), key=lambda row: row.code == 0 and not row.options)
        yield {row.id: threads.submit(try_one, row, number) for number, row in enumerate(rows)}


def _row_of(item: pytest.Item) -> Row | None:
    """Give the row that a test is for."""
    row = item.callspec.params.get("row") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
    return row if isinstance(row, Row) else None


@pytest.mark.parametrize("row", TABLE, ids=[row.id for row in TABLE])
def test_fault(outcomes: Mapping[str, "Future[Outcome]"], row: Row) -> None:
    outcome = outcomes[row.id].result()

    shown = outcome.first.err + (outcome.again.err if outcome.again else "")
    assert outcome.broken == [], shown


def test_the_table_is_long_enough_and_every_row_has_a_name_of_its_own() -> None:
    assert len({row.id for row in TABLE}) == len(TABLE) >= 45
