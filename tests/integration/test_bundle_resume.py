"""`bundle`: what happens to a transfer that breaks, and how an interrupted run goes on."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.bundles import (
    STATE,
    Bundle,
    GatedRegistry,
    bundle,
    command,
    eventually,
    layer_of,
    many,
    one,
    registries,
    takes_less_than,
)
from tests.support.command import command_line, environment, start
from tests.support.faulty import (
    Action,
    Corrupt,
    Cut,
    Fault,
    Redirect,
    Reset,
    ShortLength,
    Stall,
    Status,
    WrongDigestHeader,
)
from tests.support.images import AMD64, ARM, ARM64, BlobStore, digest_of
from tests.support.programs import require
from tests.support.releases import ReleaseServer
from tests.support.tokens import TokenServer

MEBIBYTE = 1024 * 1024
#: Never looked up: its endpoints stand in a registries.yaml.
FAR = "far.invalid"


def leftovers(path: Path) -> list[str]:
    """Give the names of files that are neither blobs nor the known ones."""
    return [name for name in Bundle(path).tree() if Path(name).name.startswith(".") or Path(name).suffix == ".new"]


def part_size(path: Path, digest: str) -> int:
    """Give how much of a blob lies in its temporary file."""
    part = Bundle(path).blob(digest)
    part = part.with_name(f".{part.name}.partial")
    return part.stat().st_size if part.exists() else 0


def ranges(registry: GatedRegistry, digest: str) -> list[str | None]:
    """Give the Range header of each request for a blob."""
    return [request.headers.get("range") for request in registry.requests("GET") if request.path.endswith(digest)]


# --- transfers that break ------------------------------------------------------------------------------------


def test_a_cut_connection_is_continued_where_it_broke(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    image = one(store, "cut", 200_000)
    reference = registry.put(image, "some/image")
    registry.fault("GET", f"/blobs/{layer_of(image)}", Cut(150_000))

    report = bundle([reference], to, "-o", "json").json

    assert ranges(registry, layer_of(image)) == [None, "bytes=150000-"]
    assert [request.status for request in registry.requests("GET") if request.path.endswith(layer_of(image))] == [
        *(200, 206)
    ]
    assert report["images"][0]["bytes_moved"] == sum(blob.size for blob in image.blobs)
    assert leftovers(to) == []
    Bundle(to).check()


def test_a_reset_connection_is_continued_and_not_started_over(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    image = one(store, "reset", 900_000)
    reference = registry.put(image, "some/image")
    registry.fault("GET", f"/blobs/{layer_of(image)}", Cut(700_000, reset=True))

    bundle([reference], to)

    first, second = ranges(registry, layer_of(image))
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 700_000
    Bundle(to).check()


def test_a_connection_that_breaks_often_gets_there_as_long_as_it_gets_on(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    image = one(store, "often", 60_000)
    reference = registry.put(image, "some/image")
    registry.fault("GET", f"/blobs/{layer_of(image)}", Cut(10_000), times=5)

    bundle([reference], to)

    assert ranges(registry, layer_of(image)) == [
        *(None, "bytes=10000-", "bytes=20000-", "bytes=30000-", "bytes=40000-", "bytes=50000-")
    ]


def test_a_server_without_ranges_sends_all_of_it_again(store: BlobStore, to: Path) -> None:
    image = one(store, "no ranges", 200_000)
    with GatedRegistry(ranges=False) as registry:
        reference = registry.put(image, "some/image")
        registry.fault("GET", f"/blobs/{layer_of(image)}", Cut(150_000))

        bundle([reference], to)

        statuses = [r.status for r in registry.requests("GET") if r.path.endswith(layer_of(image))]
    assert statuses == [200, 200]
    assert Bundle(to).check().blobs == image.digests


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ("manifests", Corrupt()),
        ("manifests", Reset()),
        ("manifests", Status(503)),
        ("blobs", Corrupt()),
        ("blobs", Reset()),
        ("blobs", ShortLength(10)),
        ("blobs", Status(503)),
        ("blobs", Status(429, {"Retry-After": "1"})),
    ],
    ids=lambda value: value if isinstance(value, str) else str(getattr(value, "code", type(value).__name__)),
)
def test_what_goes_wrong_once_is_put_right_in_the_same_run(
    registry: GatedRegistry, store: BlobStore, to: Path, what: str, fault: Action
) -> None:
    image = one(store, "once", 3000)
    reference = registry.put(image, "some/image")
    rule = registry.fault("GET", f"/{what}/", fault)

    bundle([reference], to)

    assert rule.hits == 1
    assert Bundle(to).check().blobs == image.digests
    assert leftovers(to) == []


def test_a_wrong_digest_header_is_not_believed(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    good, bad = one(store, "good"), one(store, "bad")
    references = [registry.put(good, "some/good"), registry.put(bad, "some/bad")]
    registry.fault("*", "/v2/some/bad/manifests/", WrongDigestHeader(), times=None)

    bundle(references, to, code=10)

    made = Bundle(to).check()
    assert made.names == {references[0]: good.root_digest}
    assert made.lock["failed"][0]["error"] == "digest-mismatch"
    assert made.blobs == good.digests


@pytest.mark.parametrize(
    ("fault", "errors"),
    [
        (Corrupt(), {"digest-mismatch"}),
        (ShortLength(100), {"size-mismatch", "truncated-blob"}),
        (Status(404), {"blob-unknown"}),
    ],
    ids=["corrupt", "truncated length", "missing"],
)
def test_wrong_bytes_fail_that_image_and_get_no_name(
    registry: GatedRegistry, store: BlobStore, to: Path, fault: Action, errors: set[str]
) -> None:
    good, bad = one(store, "good", 3000), one(store, "bad", 3000)
    references = [registry.put(good, "some/good"), registry.put(bad, "some/bad")]
    rule: Fault = registry.fault("GET", f"/blobs/{layer_of(bad)}", fault, times=None)

    bundle(references, to, code=10)

    made = Bundle(to).check()
    assert made.names == {references[0]: good.root_digest}
    assert made.lock["failed"][0]["error"] in errors
    assert layer_of(bad) not in made.blobs
    rule.times = rule.hits
    bundle(references, to)
    assert Bundle(to).check().blobs == good.digests | bad.digests
    assert leftovers(to) == []


# --- one queue -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 3])
def test_no_more_blobs_are_in_flight_than_jobs(registry: GatedRegistry, store: BlobStore, to: Path, jobs: int) -> None:
    references = [registry.put(many(store, f"jobs {number}"), f"some/image-{number}") for number in range(6)]
    gate = registry.gate("GET", "/blobs/")
    with start(*command(references, to, "--jobs", str(jobs))) as process:
        gate.wait_for(jobs)
        # Time enough for one too many to come.
        time.sleep(0.3)
        assert gate.waiting == jobs
        gate.open()
        _, err = process.communicate(timeout=20)

    assert process.returncode == 0, err
    assert len(registry.fetched()) == 12


def test_manifests_do_not_wait_for_blobs(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    references = [registry.put(many(store, f"lane {number}"), f"some/image-{number}") for number in range(6)]
    gate = registry.gate("GET", "/blobs/")

    def all_manifests() -> bool:
        return len({path for _, path in registry.asked() if path.endswith("/manifests/1")}) == 6

    with start(*command(references, to, "--jobs", "1")) as process:
        gate.wait_for()
        eventually(all_manifests, "all manifests while a blob is on its way")
        gate.open()
        process.communicate(timeout=20)

    Bundle(to).check()


def test_blobs_go_biggest_first_across_all_images(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    sizes = [3000, 50_000, 9000, 30_000]
    images = [many(store, f"queue {size}", size) for size in sizes]
    references = [registry.put(image, f"some/image-{number}") for number, image in enumerate(images)]
    known = {blob.digest: blob.size for image in images for blob in image.blobs}
    gate = registry.gate("GET", "/blobs/")
    with start(*command(references, to, "--jobs", "1")) as process:
        gate.wait_for()
        eventually(lambda: len([path for _, path in registry.asked() if "/manifests/" in path]) == 8, "manifests")
        # From the last answer to the queue is a moment's work.
        time.sleep(0.3)
        gate.open()
        process.communicate(timeout=20)

    order = [known[digest] for digest in registry.fetched()[1:]]
    assert len(order) == 7
    assert order == sorted(order, reverse=True)


def test_memory_does_not_grow_with_the_blob(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    image = one(store, "large", 48 * MEBIBYTE)
    reference = registry.put(image, "some/image")
    registry.fault("GET", f"/blobs/{layer_of(image)}", Stall(60, after_bytes=47 * MEBIBYTE))
    with start(*command([reference], to)) as process:
        eventually(lambda: part_size(to, layer_of(image)) >= 46 * MEBIBYTE, "nearly all of the blob")
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.kill()

    peak_kib = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
    assert peak_kib <= 80 * 1024


# --- kill -9, power loss -------------------------------------------------------------------------------------


def six(registry: GatedRegistry, store: BlobStore) -> list[str]:
    """Put six images in, with and without index, some trimmed, one layer shared."""
    references = [
        registry.put(many(store, f"resumed {number}", 8000 * (number + 1), (AMD64, ARM64, ARM)), f"some/{number}")
        for number in range(4)
    ]
    references.append(registry.put(one(store, "resumed alone", 20_000), "some/alone"))
    references.append(registry.put(one(store, "resumed 0", 8000), "some/shared"))
    return references


@pytest.mark.parametrize(
    ("pattern", "skip"),
    [
        ("/manifests/", 0),
        ("/manifests/", 9),
        ("/blobs/", 0),
        ("/blobs/", 5),
        ("/blobs/", 9),
    ],
)
def test_a_killed_run_is_continued_and_nothing_sealed_is_fetched_again(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path, to: Path, pattern: str, skip: int
) -> None:
    references = six(registry, store)
    options = ("--platform", "linux/amd64", "--platform", "linux/arm")
    bundle(references, tmp_path / "undisturbed", *options)
    gate = registry.gate("GET", pattern, skip=skip)
    with start(*command(references, to, *options, "--jobs", "2")) as process:
        gate.wait_for()
        process.kill()
        process.communicate()
    gate.open()
    sealed, mark = Bundle(to).sealed(), registry.mark()
    assert not (to / "bundle.lock.json").exists()

    bundle(references, to, *options)

    assert not sealed & set(registry.fetched(mark))
    assert sealed <= Bundle(to).check().blobs
    assert Bundle(to).tree() == Bundle(tmp_path / "undisturbed").tree()
    if pattern == "/blobs/" and skip > 4:
        assert sealed


def test_a_run_killed_again_and_again_gets_there(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path, to: Path
) -> None:
    references = six(registry, store)
    bundle(references, tmp_path / "undisturbed")
    chance = random.Random(7)
    mark = registry.mark()
    while True:
        with start(*command(references, to)) as process:
            try:
                process.wait(chance.uniform(0.15, 0.5))
            except subprocess.TimeoutExpired:
                process.kill()
            process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        assert registry.mark() - mark < 500

    assert Bundle(to).check().tree() == Bundle(tmp_path / "undisturbed").tree()


def test_a_run_killed_while_renewing_leaves_the_old_bundle_and_goes_on(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path, to: Path
) -> None:
    references = six(registry, store)
    bundle(references, to)
    before = Bundle(to).tree()
    for number in range(4):
        registry.put(many(store, f"renewed {number}", 9000, (AMD64, ARM64, ARM)), f"some/{number}")
    bundle(references, tmp_path / "undisturbed")
    gate = registry.gate("GET", "/blobs/", skip=3)
    with start(*command(references, to)) as process:
        gate.wait_for()
        process.kill()
        process.communicate()
    gate.open()
    during = Bundle(to).tree()
    assert {name: during[name] for name in before} == before
    sealed, mark = Bundle(to).sealed(), registry.mark()

    bundle(references, to)

    assert not sealed & set(registry.fetched(mark))
    assert Bundle(to).check().tree() == Bundle(tmp_path / "undisturbed").tree()


def test_a_killed_download_is_continued_by_range(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    image = one(store, "killed", 3 * MEBIBYTE)
    reference = registry.put(image, "some/image")
    layer = layer_of(image)
    registry.fault("GET", f"/blobs/{layer}", Stall(60, after_bytes=5 * MEBIBYTE // 2))
    with start(*command([reference], to)) as process:
        eventually(lambda: part_size(to, layer) >= MEBIBYTE, "a part of the blob")
        process.kill()
        process.communicate()
    size = part_size(to, layer)

    bundle([reference], to)

    assert ranges(registry, layer) == [None, f"bytes={size}-"]
    assert leftovers(to) == []
    Bundle(to).check()


@pytest.mark.parametrize("spoilt", [False, True], ids=["right", "with a wrong byte"])
def test_a_killed_download_is_continued_from_another_mirror_and_checked_as_a_whole(
    store: BlobStore, tmp_path: Path, to: Path, *, spoilt: bool
) -> None:
    image = one(store, f"two mirrors {spoilt}", 3 * MEBIBYTE)
    layer = layer_of(image)
    with GatedRegistry() as first, GatedRegistry() as second:
        for mirror in (first, second):
            mirror.put(image, "some/image")
        first.fault("GET", f"/blobs/{layer}", Stall(60, after_bytes=5 * MEBIBYTE // 2))
        file = registries(tmp_path / "registries.yaml", {FAR: {"endpoint": [first.url, second.url]}})
        args = command([f"{FAR}/some/image:1"], to, "--registries", file)
        with start(*args) as process:
            eventually(lambda: part_size(to, layer) >= MEBIBYTE, "a part of the blob")
            process.kill()
            process.communicate()
        size = part_size(to, layer)
        if spoilt:
            part = Bundle(to).blob(layer)
            part = part.with_name(f".{part.name}.partial")
            data = part.read_bytes()
            part.write_bytes(bytes([data[0] ^ 0xFF]) + data[1:])
        # Then the first one has it no more.
        first.content.forget("some/image", layer)

        bundle([f"{FAR}/some/image:1"], to, "--registries", file)

        # A wrong byte of the first part is met when all of it is hashed, and then all of it comes anew.
        assert ranges(second, layer) == [f"bytes={size}-", *([None] if spoilt else [])]
    assert leftovers(to) == []
    assert Bundle(to).check().blobs == image.digests


def test_a_killed_download_behind_a_signed_redirect_is_continued_without_the_token(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    require("openssl")
    image = one(store, "signed", 3 * MEBIBYTE)
    reference, layer = registry.put(image, "some/image"), layer_of(image)
    with TokenServer(anonymous_pull=True) as tokens, GatedRegistry() as storage:
        storage.content = registry.content
        challenge = {"WWW-Authenticate": f'Bearer realm="{tokens.realm}",service="{tokens.service}"'}
        # Each run is asked for a token at its first request, and sent on with a signature of its own.
        asked = registry.fault("GET", "/manifests/", Status(401, challenge))
        sent_on = Redirect(f"{storage.url}{{target}}?X-Amz-Signature=s3cr3t")
        registry.fault("GET", f"/blobs/{layer}", sent_on, times=None)
        storage.fault("GET", f"/blobs/{layer}", Stall(60, after_bytes=5 * MEBIBYTE // 2))
        with start(*command([reference], to)) as process:
            eventually(lambda: part_size(to, layer) >= MEBIBYTE, "a part of the blob")
            process.kill()
            process.communicate()
        size = part_size(to, layer)
        again = registry.fault("*", "/manifests/", Status(401, challenge))

        result = bundle([reference], to)

        assert (asked.hits, again.hits) == (1, 1)
        assert ranges(storage, layer) == [None, f"bytes={size}-"]
        assert [request for request in storage.requests() if "authorization" in request.headers] == []
        own = [request for request in registry.requests("GET") if request.path.endswith(layer)]
        assert [request.headers["authorization"].partition(" ")[0] for request in own] == ["Bearer", "Bearer"]
        assert "s3cr3t" not in result.out + result.err
    assert leftovers(to) == []
    assert Bundle(to).check().blobs == image.digests


@pytest.mark.parametrize("content", [b"", b"\0" * 30_000, b"x" * 900_000], ids=["empty", "wrong", "too long"])
def test_a_part_that_a_crash_spoilt_does_no_harm(
    registry: GatedRegistry, store: BlobStore, to: Path, content: bytes
) -> None:
    image = one(store, "spoilt", 60_000)
    reference = registry.put(image, "some/image")
    bundle([reference], to)
    layer = Bundle(to).blob(layer_of(image))
    layer.unlink()
    layer.with_name(f".{layer.name}.partial").write_bytes(content)

    bundle([reference], to)

    assert leftovers(to) == []
    assert Bundle(to).check().blobs == image.digests


def test_power_loss_between_index_and_lock_is_mended(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    references = six(registry, store)
    bundle(references, to)
    whole = Bundle(to).tree()
    lock = to / "bundle.lock.json"
    lock.rename(lock.with_name(".bundle.lock.json.new"))
    os.truncate(lock.with_name(".bundle.lock.json.new"), 100)
    (to / ".index.json.new").write_text("{")
    mark = registry.mark()

    bundle(references, to)

    assert registry.fetched(mark) == []
    assert Bundle(to).check().tree() == whole


def test_a_torn_journal_line_costs_a_hash_and_no_download(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    references = six(registry, store)
    bundle(references, to)
    whole, mark = Bundle(to).tree(), registry.mark()
    journal = to / STATE / "journal"
    os.truncate(journal, journal.stat().st_size - 20)

    bundle(references, to)

    assert registry.fetched(mark) == []
    assert Bundle(to).check().tree() == whole
    assert Bundle(to).sealed() >= {layer_of(one(store, "resumed alone", 20_000))}


# --- files that changed behind our back ---------------------------------------------------------------------


def flip(path: Path) -> None:
    """Change the last byte of a file; its size stays and its time does not."""
    data = path.read_bytes()
    before = path.stat().st_mtime_ns
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(before + 1, before + 1))


@pytest.mark.parametrize(
    "damage",
    [flip, lambda path: os.truncate(path, path.stat().st_size - 1), Path.unlink],
    ids=["changed", "shortened", "removed"],
)
def test_a_damaged_blob_is_fetched_again_and_nothing_else(
    registry: GatedRegistry, store: BlobStore, to: Path, damage: Callable[[Path], None]
) -> None:
    references = six(registry, store)
    bundle(references, to)
    whole, mark = Bundle(to).tree(), registry.mark()
    victim = layer_of(one(store, "resumed alone", 20_000))
    damage(Bundle(to).blob(victim))

    bundle(references, to)

    assert registry.fetched(mark) == [victim]
    assert Bundle(to).check().tree() == whole


def test_a_blob_with_another_time_is_hashed_and_not_fetched(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    references = six(registry, store)
    bundle(references, to)
    victim = layer_of(one(store, "resumed alone", 20_000))
    os.utime(Bundle(to).blob(victim))
    mark = registry.mark()
    assert victim not in Bundle(to).sealed()

    bundle(references, to)

    assert registry.fetched(mark) == []
    assert victim in Bundle(to).sealed()


@pytest.mark.parametrize("which", ["root", "upstream", "child"])
@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["changed", "removed"])
def test_a_damaged_manifest_is_put_right(
    registry: GatedRegistry, store: BlobStore, to: Path, which: str, damage: Callable[[Path], None]
) -> None:
    image = many(store, "damaged", platforms=(AMD64, ARM64))
    reference = registry.put(image, "some/image")
    bundle([reference], to)
    whole = Bundle(to).tree()
    victims = {
        "root": Bundle(to).names[reference],
        "upstream": image.root_digest,
        "child": image.digest_for(AMD64),
    }
    damage(Bundle(to).blob(victims[which]))

    bundle([reference], to)

    assert Bundle(to).check().tree() == whole


def test_a_link_in_the_place_of_a_blob_is_not_followed(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path, to: Path
) -> None:
    image = one(store, "linked", 5000)
    reference = registry.put(image, "some/image")
    bundle([reference], to)
    layer = Bundle(to).blob(layer_of(image))
    outside = tmp_path / "outside"
    layer.rename(outside)
    layer.symlink_to(outside)
    before = outside.stat().st_mtime_ns

    bundle([reference], to)

    assert not layer.is_symlink()
    assert digest_of(layer.read_bytes()) == layer_of(image)
    assert outside.stat().st_mtime_ns == before


# --- Ctrl-C and SIGTERM ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("where", ["/manifests/", "/blobs/"])
def test_a_signal_ends_the_run_within_two_seconds_and_the_next_one_goes_on(
    registry: GatedRegistry,
    store: BlobStore,
    tmp_path: Path,
    to: Path,
    number: signal.Signals,
    code: int,
    where: str,
) -> None:
    references = six(registry, store)
    bundle(references, tmp_path / "undisturbed")
    gate = registry.gate("GET", where, skip=4)
    with start(*command(references, to)) as process:
        gate.wait_for()
        process.send_signal(number)
        with takes_less_than(2):
            out, err = process.communicate(timeout=20)
    gate.open()
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert out == ""
    sealed, mark = Bundle(to).sealed(), registry.mark()

    bundle(references, to)

    assert not sealed & set(registry.fetched(mark))
    assert Bundle(to).check().tree() == Bundle(tmp_path / "undisturbed").tree()


def test_ctrl_c_ends_a_wait_between_two_tries(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    reference = registry.put(one(store, "waiting"), "some/image")
    rule = registry.fault("GET", "/blobs/", Status(429, {"Retry-After": "30"}), times=None)
    with start(*command([reference], to)) as process:
        eventually(lambda: rule.hits > 0, "the first refusal")
        process.send_signal(signal.SIGINT)
        with takes_less_than(2):
            process.communicate(timeout=20)

    assert process.returncode == 130


def test_ctrl_c_ends_a_wait_for_the_release_list(to: Path) -> None:
    with (
        ReleaseServer({}, hang=True) as server,
        start(*command([], to, "--k3s", "v1.32.3+k3s1", "--release-url", server.url)) as process,
    ):
        eventually(lambda: bool(server.paths), "the request for the list")
        process.send_signal(signal.SIGINT)
        with takes_less_than(2):
            process.communicate(timeout=20)

    assert process.returncode == 130
    assert not (to / "index.json").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_report_of_an_interrupted_run_does_not_look_like_a_success(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path, to: Path, number: signal.Signals, code: int
) -> None:
    reference = registry.put(one(store, "reported"), "some/image")
    gate = registry.gate("GET", "/blobs/")
    with start(*command([reference], to, "--report", tmp_path / "report.json")) as process:
        gate.wait_for()
        process.send_signal(number)
        process.communicate(timeout=20)

    assert process.returncode == code
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["finished_utc"]
    assert report["status"] == "interrupted"


def test_the_lock_is_free_after_a_kill(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    reference = registry.put(one(store, "freed"), "some/image")
    gate = registry.gate("GET", "/blobs/")
    with start(*command([reference], to)) as process:
        gate.wait_for()
        bundle([reference], to, code=12)
        process.kill()
        process.communicate()
    gate.open()

    bundle([reference], to)


# --- no room ---------------------------------------------------------------------------------------------------


def test_a_full_disk_ends_the_run_and_with_more_room_it_goes_on(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path
) -> None:
    require("unshare")
    small, large = one(store, "small", 50_000), one(store, "large", 900_000)
    references = [registry.put(small, "some/small"), registry.put(large, "some/large")]
    medium = tmp_path / "medium"
    medium.mkdir()
    once = ["env", *(f"{name}={value}" for name, value in environment().items())]
    once += command_line(*command(references, medium / "bundle", "--jobs", "1"))
    # A mount of our own, gone with the shell; its content is copied out before.
    script = (
        'medium=$1 out=$2; shift 2; mount -t tmpfs -o size=600k tmpfs "$medium" || exit 99; '
        '"$@" 2>"$out/first"; echo $? >"$out/code"; test -e "$medium/bundle/index.json" && exit 98; '
        'mount -o remount,size=50m "$medium"; "$@" 2>"$out/second"; code=$?; cp -r "$medium/bundle" "$out"; exit $code'
    )
    out = tmp_path / "out"
    out.mkdir()

    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", medium, out, *once],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert (out / "code").read_text() == "9\n"
    assert "disk-full" in (out / "first").read_text()
    assert "Traceback" not in (out / "first").read_text()
    assert Bundle(out / "bundle").check().blobs == small.digests | large.digests
    shutil.rmtree(out)


def test_a_directory_that_cannot_be_written_is_refused_in_plain_words(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    reference = registry.put(one(store, "no entry"), "some/image")

    result = bundle([reference], Path("/proc/airgap-sync/bundle"), code=3)

    assert "Traceback" not in result.err
    assert not to.exists()
