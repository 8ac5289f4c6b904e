"""What requests to one host share: pauses, being down, how many run at once; and that other hosts go on meanwhile."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import Bundle, GatedRegistry, bundle, command, many, one, registries, takes_less_than
from tests.support.command import Result, command_line, environment, home, run
from tests.support.content import BlobStore
from tests.support.faulty import EditHeaders, FaultyRegistry, Meanwhile, Status
from tests.support.handmade import built, complete, write_bundle
from tests.support.memory_registry import Request
from tests.support.programs import find_program, free_port, require

#: Never looked up: its endpoints stand in a registries.yaml.
FAR = "far.invalid"
PAUSE_S = 4


class TimedRegistry(GatedRegistry):
    """A registry that knows when it was asked, and how many requests it had at once."""

    def __init__(self) -> None:
        super().__init__()
        #: When each request came, how many were there then, it included, and whether it is to be refused by 503.
        self.came: list[tuple[float, int, bool]] = []
        self.hold_s = 0.0
        self._here = 0

    def _action_for(self, request: Request) -> Any:
        action = super()._action_for(request)
        with self._guard:
            self._here += 1
            self.came.append((time.monotonic(), self._here, action == Status(503)))
        self.pause(self.hold_s)
        return action

    def _record(self, request: Request, status: int) -> None:
        with self._guard:
            self._here -= 1
        super()._record(request, status)

    @property
    def times(self) -> list[float]:
        """When each request came."""
        return [moment for moment, _, _ in self.came]


@pytest.fixture
def two() -> Iterator[tuple[TimedRegistry, TimedRegistry]]:
    with TimedRegistry() as first, TimedRegistry() as second:
        yield first, second


def limited(seconds: object, **headers: str) -> Status:
    return Status(429, {"Retry-After": str(seconds), **headers})


def date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def quiet_s(registry: TimedRegistry) -> float:
    """Give the longest time in which a registry was not asked between two requests."""
    return max(later - earlier for earlier, later in zip(registry.times, registry.times[1:], strict=False))


# --- pauses -----------------------------------------------------------------------------------------------------


def test_a_host_that_wants_a_pause_gets_it_and_the_other_is_done_first(
    two: tuple[TimedRegistry, TimedRegistry], store: BlobStore, to: Path
) -> None:
    parked, other = two
    images = {number: many(store, f"two hosts {number}", 50_000) for number in range(3)}
    references = [at.put(image, f"some/image-{number}") for number, image in images.items() for at in two]
    rule = parked.fault("*", "", limited(PAUSE_S))

    result = bundle(references, to, "--progress", "plain")

    assert rule.hits == 1
    assert set(Bundle(to).check().names) == set(references)
    # What was under way when the answer came may still have been asked; then nothing was until the time was over.
    assert quiet_s(parked) >= PAUSE_S - 0.2
    resumed = max(later for earlier, later in zip(parked.times, parked.times[1:], strict=False) if later - earlier > 3)
    assert max(other.times) < resumed
    told = re.findall(rf"{re.escape(parked.host)} asks to wait: .* until (\d\d:\d\d:\d\d) UTC; other", result.err)
    assert len(told) == 1, result.err
    assert re.search(rf"done: {re.escape(other.host)}.*done: {re.escape(parked.host)}", result.err, re.DOTALL)
    names = [line.split()[1] for line in result.err.splitlines() if line.startswith("done: ")]
    assert [name.partition("/")[0] for name in names] == [other.host] * 3 + [parked.host] * 3


def test_the_time_that_is_told_is_the_time_of_the_next_request(
    two: tuple[TimedRegistry, TimedRegistry], store: BlobStore, to: Path
) -> None:
    parked, _ = two
    reference = parked.put(one(store, "told"), "some/told")
    parked.fault("*", "", limited(PAUSE_S))
    before = datetime.now(UTC)

    result = bundle([reference], to)

    (told,) = re.findall(r"until (\d\d:\d\d:\d\d) UTC", result.err)
    asked_again_s = parked.times[1] - parked.times[0]
    again = before + timedelta(seconds=asked_again_s)
    clock = datetime.strptime(told, "%H:%M:%S").replace(tzinfo=UTC)
    apart_s = abs((again - clock.replace(year=again.year, month=again.month, day=again.day)).total_seconds())
    assert min(apart_s, 86_400 - apart_s) < 3


def test_a_mirror_that_wants_a_pause_is_passed_over(
    two: tuple[TimedRegistry, TimedRegistry], store: BlobStore, tmp_path: Path, to: Path
) -> None:
    image = many(store, "passed over", 20_000)
    for registry in two:
        registry.put(image, "some/image")
    two[0].fault("*", "", limited(600))
    file = registries(tmp_path / "registries.yaml", {FAR: {"endpoint": [registry.url for registry in two]}})

    with takes_less_than(20):
        bundle([f"{FAR}/some/image:1"], to, "--registries", file, "--platform", "all")

    assert Bundle(to).check().blobs == image.digests
    assert len(two[0].requests()) == 1


def test_a_mirror_that_alone_has_a_blob_is_waited_for(
    two: tuple[TimedRegistry, TimedRegistry], store: BlobStore, tmp_path: Path, to: Path
) -> None:
    image = one(store, "waited for", 20_000)
    for registry in two:
        registry.put(image, "some/image")
    layer = image.blobs[1].digest
    two[0].fault("GET", f"/blobs/{layer}", limited(PAUSE_S))
    two[1].content.forget("some/image", layer)
    file = registries(tmp_path / "registries.yaml", {FAR: {"endpoint": [registry.url for registry in two]}})

    bundle([f"{FAR}/some/image:1"], to, "--registries", file)

    assert Bundle(to).check().blobs == image.digests
    assert quiet_s(two[0]) >= PAUSE_S - 0.2


@pytest.mark.parametrize("clock_s", [0, -3600, 7200], ids=["right clock", "an hour behind", "two hours ahead"])
def test_a_date_is_taken_by_the_clock_of_the_answer(
    two: tuple[TimedRegistry, TimedRegistry], store: BlobStore, to: Path, clock_s: int
) -> None:
    registry, _ = two
    reference = registry.put(one(store, "date"), "some/date")
    registry.fault("*", "", limited(date(clock_s + PAUSE_S), Date=date(clock_s)))

    with takes_less_than(30):
        bundle([reference], to)

    # Dates know no fractions of a second.
    assert quiet_s(registry) >= PAUSE_S - 1.2


@pytest.mark.parametrize("retry_after", ["7200", "date"])
def test_a_pause_over_the_limit_fails_the_images_of_that_host_and_says_when_to_come_back(
    two: tuple[TimedRegistry, TimedRegistry], store: BlobStore, to: Path, retry_after: str
) -> None:
    limiting, other = two
    images = {number: one(store, f"max wait {number}") for number in range(6)}
    references = [limiting.put(image, f"some/image-{number}") for number, image in images.items()]
    there = other.put(images[0], "some/there")
    limiting.fault("*", "", limited(date(7200) if retry_after == "date" else retry_after), times=None)

    with takes_less_than(30):
        result = bundle([*references, there], to, "--max-wait", "60", "-o", "json", code=10)

    made = Bundle(to).check()
    assert set(made.names) == {there}
    assert {entry["error"] for entry in made.lock["failed"]} == {"too-many-requests"}
    hints = {image["error"]["hint"] for image in result.json["images"] if image["error"]}
    assert all(re.search(r"again after [0-9:. -]+UTC, or allow the wait with --max-wait", hint) for hint in hints)
    # When three things were answered so, no other is asked for.
    assert len(limiting.requests()) <= 4


def test_a_push_waits_and_loses_nothing(tmp_path: Path, store: BlobStore) -> None:
    images = {f"docker.io/some/image-{number}:1": built(store, b"%d" % number * 5000) for number in range(4)}
    directory = write_bundle(tmp_path / "pushed", images)
    with TimedRegistry() as target:
        target.fault("POST", "", limited(PAUSE_S), skip=3)
        result = run("push", directory, target.url, "--state", tmp_path / "state")

        assert result.code == 0, result.err
        assert all(complete(target, f"some/image-{number}", "1", image) for number, image in enumerate(images.values()))
        assert quiet_s(target) >= PAUSE_S - 0.3
        assert re.search(r"asks to wait: nothing more is asked of it until \d\d:\d\d:\d\d UTC\n", result.err)


def test_what_is_always_refused_fails_in_the_end_though_all_else_is_answered(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    """The tag is answered each time, and is another thing than the manifest below it."""
    image, other = many(store, "always refused"), many(store, "answered")
    references = [registry.put(image, "some/refused"), registry.put(other, "some/answered")]
    child = next(iter(image.manifests))
    rule = registry.fault("GET", f"/some/refused/manifests/{child}", limited(1), times=None)
    # As the command is, but for the patience of minutes.
    patient = "from bundler.registry import host; host.MOST_PAUSES, host.PAUSES_WITHIN_S = 2, 3.0"
    script = f"{patient}; from bundler.cli.main import run; run()"
    line = [sys.executable, "-c", script, *map(str, command(references, to, "--platform", "all", "-o", "json"))]

    with takes_less_than(45):
        done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 10, done.stderr
    assert set(Bundle(to).check().names) == {references[1]}
    failed = {
        image["reference"]: image["error"]["reference"] for image in json.loads(done.stdout)["images"] if image["error"]
    }
    assert failed == {references[0]: "too-many-requests"}
    assert 3 <= rule.hits <= 16


class BusyRegistry(TimedRegistry):
    """Refuses uploads for the first two seconds of them, and more of them than there are tries."""

    def __init__(self) -> None:
        super().__init__()
        self.refused = 0
        self._until = 0.0

    def _action_for(self, request: Request) -> Any:
        action = super()._action_for(request)
        if "/blobs/uploads/" not in request.target:
            return action
        with self._guard:
            self._until = self._until or time.monotonic() + 2
            # On a busy machine few may have come by then.
            busy = time.monotonic() < self._until or self.refused <= 4
            self.refused += busy
        return limited(1) if busy else action


def test_a_burst_of_429_to_many_at_once_is_waited_for(tmp_path: Path, store: BlobStore) -> None:
    image = built(store, *(b"burst %03d" % number * 200 for number in range(60)), title="burst")
    directory = write_bundle(tmp_path / "pushed", {"docker.io/some/burst:1": image})
    with BusyRegistry() as target, takes_less_than(40):
        result = run("push", directory, target.url, "--state", tmp_path / "state", "--jobs", "16")

        assert result.code == 0, result.err
        assert complete(target, "some/burst", "1", image)
        # More than there are tries, in the first second.
        assert target.refused > 4


# --- down -------------------------------------------------------------------------------------------------------


def refused(log: Path, *args: str | Path) -> tuple[Result, list[float]]:
    """Run the command and give the moments at which it learned that a connection was refused."""
    traced = ["-f", "-ttt", "-qq", "--seccomp-bpf", "-e", "trace=getsockopt", "-o", str(log)]
    done = subprocess.run(
        [find_program("strace"), *traced, "--", *command_line(*args)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        cwd=home(),
        timeout=120,
        check=False,
    )
    lines = [line for line in log.read_text().splitlines() if "ECONNREFUSED" in line]
    return Result(done.returncode, done.stdout, done.stderr), [float(line.split()[1]) for line in lines]


def test_a_dead_host_is_tried_three_times_in_five_seconds_and_never_again(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path, to: Path
) -> None:
    require("strace")
    port, image = free_port(), one(store, "alive", 20_000)
    dead = [f"127.0.0.1:{port}/some/dead-{number}:1" for number in range(12)]
    alive = registry.put(image, "some/alive")

    result, tries = refused(tmp_path / "log", *command([*dead, alive], to))

    assert result.code == 10, result.err
    made = Bundle(to).check()
    assert set(made.names) == {alive}
    assert {entry["error"] for entry in made.lock["failed"]} == {"connection-refused"}
    # Two manifests are asked for at once, so the first of the tries may be two connections.
    assert 3 <= len(tries) <= 4
    assert tries[-1] - tries[0] <= 5


def test_a_dead_mirror_costs_a_run_three_tries_and_no_image(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path, to: Path
) -> None:
    require("strace")
    port = free_port()
    images = {number: many(store, f"behind {number}", 10_000) for number in range(8)}
    for number, image in images.items():
        registry.put(image, f"some/image-{number}")
    mirrors = {FAR: {"endpoint": [f"http://127.0.0.1:{port}", registry.url]}}
    file = registries(tmp_path / "registries.yaml", mirrors)
    references = [f"{FAR}/some/image-{number}:1" for number in images]

    result, tries = refused(tmp_path / "log", *command(references, to, "--registries", file))

    assert result.code == 0, result.err
    assert set(Bundle(to).check().names) == set(references)
    assert len(tries) <= 4
    assert tries[-1] - tries[0] <= 5


def test_a_mirror_that_goes_down_in_the_middle_is_replaced_by_the_next(
    store: BlobStore, tmp_path: Path, to: Path
) -> None:
    images = {number: many(store, f"middle {number}", 30_000) for number in range(4)}
    with ExitStack() as stack:
        first, second = (stack.enter_context(FaultyRegistry()) for _ in range(2))
        for number, image in images.items():
            for registry in (first, second):
                registry.add(image, f"some/image-{number}", "1")
        gone = first.fault("GET", "/blobs/", Meanwhile(first.refuse), skip=3)
        file = registries(tmp_path / "registries.yaml", {FAR: {"endpoint": [first.url, second.url]}})
        references = [f"{FAR}/some/image-{number}:1" for number in images]
        bundle(references, to, "--registries", file, "--platform", "all")

        assert gone.hits == 1
        assert second.requests("GET")
    assert Bundle(to).check().blobs == set().union(*(image.digests for image in images.values()))


def test_a_target_that_goes_down_is_not_asked_for_every_image_that_is_left(tmp_path: Path, store: BlobStore) -> None:
    require("strace")
    images = {f"docker.io/some/image-{number:02}:1": built(store, b"%02d" % number * 500) for number in range(20)}
    directory = write_bundle(tmp_path / "pushed", images)
    with FaultyRegistry() as target:
        target.fault("PUT", "/blobs/uploads/", Meanwhile(target.refuse), skip=8)
        args: list[str | Path] = [
            *("push", directory, target.url, "--state", tmp_path / "state"),
            *("--jobs", "4", "-o", "json"),
        ]
        result, tries = refused(tmp_path / "log", *args)

    assert result.code == 10, result.err
    failed = [image["error"]["reference"] for image in result.json["images"] if image["error"]]
    assert len(failed) >= 10
    assert set(failed) == {"connection-refused"}
    # All four that were at work may notice at once; two tries follow, and nothing after them.
    assert 3 <= len(tries) <= 4 + 2
    assert tries[-1] - tries[0] <= 5


@pytest.mark.parametrize("word", ["bundle", "push"])
def test_a_dead_token_realm_is_given_up_once_and_not_by_each_image(tmp_path: Path, store: BlobStore, word: str) -> None:
    require("strace")
    images = {f"some/image-{number:02}": built(store, b"%02d" % number * 500) for number in range(12)}
    challenge = f'Bearer realm="http://127.0.0.1:{free_port()}/token",service="x"'
    with FaultyRegistry() as registry:
        registry.fault("*", "", Status(401, {"WWW-Authenticate": challenge}), times=None)
        args = command([f"{registry.host}/{name}:1" for name in images], tmp_path / "made")
        if word == "push":
            pushed = write_bundle(tmp_path / "pushed", {f"docker.io/{name}:1": image for name, image in images.items()})
            args = ["push", pushed, registry.url, "--state", tmp_path / "state"]
        result, tries = refused(tmp_path / "log", *args, "-o", "json")

    assert result.code == (10 if word == "bundle" else 8), result.err
    assert {image["error"]["reference"] for image in result.json["images"]} == {"connection-refused"}
    assert all("token realm" in image["error"]["hint"] for image in result.json["images"])
    assert 2 <= len(tries) <= 4 + 2
    assert tries[-1] - tries[0] <= 5


# --- how many at once -------------------------------------------------------------------------------------------


def test_a_burst_of_503_halves_what_is_in_flight_and_success_brings_it_back(tmp_path: Path, store: BlobStore) -> None:
    layers = [b"%03d" % number * 400 for number in range(60)]
    image = built(store, *layers, title="many layers")
    directory = write_bundle(tmp_path / "pushed", {"docker.io/some/many:1": image})
    with TimedRegistry() as target:
        target.hold_s = 0.05
        burst = target.fault("PUT", "/blobs/uploads/", Status(503), skip=8, times=8)
        result = run("push", directory, target.url, "--state", tmp_path / "state", "--jobs", "8")

        assert result.code == 0, result.err
        assert complete(target, "some/many", "1", image)
        assert burst.hits == 8
    last = max(moment for moment, _, refused in target.came if refused)
    before = [count for moment, count, _ in target.came if moment <= last]
    # The burst is a reason for all to pause: what comes now comes when all that was under way has been answered.
    after = [count for moment, count, _ in target.came if moment > last + 0.15]
    assert max(before) == 8
    assert max(after[:4]) <= 4, after
    assert max(after[:8]) <= 5, after
    assert max(after) == 8, after


# --- quota of pulls ------------------------------------------------------------------------------------------------


def test_pulls_that_are_left_are_shown(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    reference = registry.put(one(store, "left"), "some/left")
    headers = EditHeaders({"RateLimit-Remaining": "76;w=21600", "RateLimit-Limit": "100;w=21600"})
    registry.fault("*", "/manifests/", headers, times=None)

    shown = bundle([reference], to)
    told = bundle([reference], to, "-o", "json").json

    assert f"{registry.host} grants 76 more pulls for now" in shown.out
    assert told["facts"]["pulls_left"] == {registry.host: 76}


def test_docker_hub_is_asked_by_head_first_which_it_does_not_count(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path, to: Path
) -> None:
    image = many(store, "hub")
    registry.put(image, "library/hub")
    registry.put(image, "some/far")
    mirrors = {name: {"endpoint": [registry.url]} for name in ("docker.io", FAR)}
    file = registries(tmp_path / "registries.yaml", mirrors)

    bundle(["docker.io/library/hub:1", f"{FAR}/some/far:1"], to, "--registries", file)

    asked = [(request.method, request.target) for request in registry.requests() if "/manifests/" in request.path]
    hub = [(method, target) for method, target in asked if "ns=docker.io" in target]
    assert hub[0] == ("HEAD", "/v2/library/hub/manifests/1?ns=docker.io")
    gets = [target for method, target in hub if method == "GET"]
    # Not by its tag: that would count once more for nothing. What the other image brought is not fetched again.
    assert all("/manifests/sha256:" in target for target in gets)
    assert len(gets) == len(set(gets)) <= 1 + len(image.manifests)
    far = [method for method, target in asked if f"ns={FAR}" in target]
    assert far[0] == "GET"
    assert "HEAD" not in far

    mark = registry.mark()
    bundle(["docker.io/library/hub:1", f"{FAR}/some/far:1"], to, "--registries", file)
    assert {method for method, _ in registry.asked(mark)} == {"HEAD"}
