"""Disks that are full, read-only or broken, on real small ones; and the memory that big layers take."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bundles import STATE, Bundle, GatedRegistry, bundle, command, layer_of, many, one
from tests.support.command import Result, command_line, environment, home, run
from tests.support.content import BuiltImage
from tests.support.disks import PAGE, small_disk
from tests.support.faulty import FaultyRegistry
from tests.support.handmade import complete, write_bundle
from tests.support.images import AMD64, ARM64, BlobStore
from tests.support.kills import BundleSite, KillingRegistry, Tally, running
from tests.support.large import LargeImage, pushed_and_bundled
from tests.support.programs import require
from tests.support.syscalls import run_injecting

MEBIBYTE = 1024 * 1024


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BundleSite]:
    with KillingRegistry() as upstream:
        yield BundleSite(tmp_path_factory.mktemp("site"), upstream)


@pytest.fixture(autouse=True)
def _gates(site: BundleSite) -> Iterator[None]:
    yield
    site.registry.open_all()


def says(result: Result, code: int, *words: str) -> None:
    """Check that a run ended with an error in plain words."""
    assert result.code == code, result.err
    assert "Traceback" not in result.err
    errors = [line for line in result.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, result.err
    for word in words:
        assert word in errors[0]


# --- full -----------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_at_every_step_is_said_to_be_full_until_it_is_big_enough(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path
) -> None:
    """A page more each time: so every write fails once. What was sealed is never fetched again."""
    images = [many(store, "tiny 0", 50), one(store, "tiny 1", 50)]
    references = [registry.put(image, f"some/tiny-{number}") for number, image in enumerate(images)]
    codes = []
    # For each file a page; and one for what is being written beside what is there.
    most = sum(len(image.digests) for image in images) + 6
    with small_disk(tmp_path / "medium", PAGE) as disk:
        to = disk.path / "bundle"
        for pages in range(1, most + 1):
            disk.resize(pages * PAGE)
            there, mark = Bundle(to).blobs, registry.mark()
            result = run(*command(references, to, "--platform", "all", "--jobs", "1"))
            codes.append(result.code)
            assert not there & {path.rpartition("/")[2] for method, path in registry.asked(mark) if method == "GET"}
            if result.code == 0:
                break
            says(result, 9, "[disk-full]")
            assert not (to / "bundle.lock.json").exists() or Bundle(to).lock
        assert codes[-1] == 0
        assert len(codes) > 5
        assert Bundle(to).check().blobs == images[0].digests | images[1].digests


def test_a_bundle_on_a_disk_that_fills_up_while_it_is_renewed_stands_until_there_is_room(
    site: BundleSite, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "medium", 50 * MEBIBYTE) as disk:
        to = disk.path / "bundle"
        subprocess.run(["cp", "-a", site.old, to], check=True)
        gate = site.registry.gate("GET", "/blobs/", skip=1)
        with running(*site.command(to)) as process:
            gate.wait_for()
            filler = disk.fill()
            gate.open()
            _, err = process.communicate(timeout=20)
        says(Result(process.returncode, "", err), 9, "[disk-full]")
        for name in ("index.json", "bundle.lock.json"):
            assert (to / name).read_bytes() == site.old_whole[name]
        there, mark, tally = Bundle(to).blobs, site.registry.mark(), Tally()
        assert there >= {f"sha256:{Path(name).name}" for name in site.old_whole if name.startswith("blobs/")}
        filler.unlink()
        site.check_end(to, tally)

        assert tally.violations == []
        assert not there & set(site.registry.fetched(mark))


def test_too_little_room_is_said_before_any_layer_is_fetched(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path
) -> None:
    """All sizes are known from the manifests: 9 MB do not go into 2 MB."""
    references = [registry.put(many(store, f"big {number}", 1_500_000), f"some/big-{number}") for number in range(3)]
    with small_disk(tmp_path / "medium", 2 * MEBIBYTE) as disk:
        refused = run(*command(references, disk.path / "bundle", "--platform", "all"))
        says(refused, 9)
        assert registry.fetched() == []
        disk.resize(20 * MEBIBYTE)
        bundle(references, disk.path / "bundle", "--platform", "all")
        Bundle(disk.path / "bundle").check()


def test_room_is_only_asked_for_what_is_still_to_be_fetched(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path
) -> None:
    """Whole blobs and parts of blobs count as there: 6 MB on a disk with 100 kB left are no reason to refuse."""
    references = [registry.put(many(store, f"kept {number}", 1_500_000), f"some/kept-{number}") for number in range(2)]
    with small_disk(tmp_path / "medium", 10 * MEBIBYTE) as disk:
        to = disk.path / "bundle"
        bundle(references, to, "--platform", "all")
        layer = Bundle(to).blob(layer_of(many(store, "kept 0", 1_500_000), AMD64))
        os.truncate(layer.rename(layer.with_name(f".{layer.name}.partial")), 1_450_000)
        filler = disk.fill(leave=200_000)

        bundle(references, to, "--platform", "all")

        filler.unlink()
        Bundle(to).check()


# --- read-only ------------------------------------------------------------------------------------------------------


def test_a_read_only_disk_is_refused_in_plain_words_and_nothing_is_lost(site: BundleSite, tmp_path: Path) -> None:
    with small_disk(tmp_path / "medium", 50 * MEBIBYTE) as disk:
        to = disk.path / "bundle"
        gate = site.registry.gate("GET", "/blobs/", skip=6)
        with running(*site.command(to)) as process:
            gate.wait_for()
            process.kill()
            process.communicate()
        gate.open()
        there = Bundle(to).blobs
        assert there
        disk.read_only()
        mark = site.registry.mark()
        refused = run(*site.command(to))
        says(refused, 3, "Read-only file system")
        assert site.registry.fetched(mark) == []
        into_nothing = run(*site.command(disk.path / "other"))
        says(into_nothing, 3, "Read-only file system")
        disk.writable()
        tally, mark = Tally(), site.registry.mark()
        site.check_end(to, tally)

        assert tally.violations == []
        assert not there & set(site.registry.fetched(mark))


def test_a_write_protected_medium_can_be_pushed(store: BlobStore, tmp_path: Path) -> None:
    image = many(store, "protected", 5000, (AMD64, ARM64))
    with small_disk(tmp_path / "medium", 50 * MEBIBYTE) as disk, FaultyRegistry() as target:
        write_bundle(disk.path / "bundle", {"docker.io/some/protected:1": image})
        disk.read_only()
        pushed = run("push", disk.path / "bundle", target.url, "--state", tmp_path / "state")

        assert pushed.code == 0, pushed.err
        assert complete(target, "some/protected", "1", image)


# --- broken ---------------------------------------------------------------------------------------------------------

LAYER, MANIFEST, JOURNAL = "blobs/sha256/.{layer}.partial", "blobs/sha256/.{manifest}.new", f"{STATE}/journal"
BROKEN = [
    ("openat", LAYER, "EROFS"),
    ("write", LAYER, "ENOSPC"),
    ("write", LAYER, "EIO"),
    ("write", LAYER, "EDQUOT"),
    ("fsync", LAYER, "EIO"),
    ("fsync", LAYER, "ENOSPC"),
    ("rename", LAYER, "EIO"),
    ("write", MANIFEST, "ENOSPC"),
    ("fsync", MANIFEST, "EIO"),
    ("rename", MANIFEST, "ENOSPC"),
    ("openat", JOURNAL, "EROFS"),
    ("write", JOURNAL, "ENOSPC"),
    ("write", JOURNAL, "EIO"),
    ("fsync", "blobs/sha256", "EIO"),
    ("openat", ".index.json.new", "ENOSPC"),
    ("write", ".index.json.new", "ENOSPC"),
    ("fsync", ".index.json.new", "EIO"),
    ("rename", ".index.json.new", "EROFS"),
    ("write", ".bundle.lock.json.new", "ENOSPC"),
    ("fsync", ".bundle.lock.json.new", "EIO"),
    ("rename", ".bundle.lock.json.new", "EIO"),
    ("unlink", "blobs/sha256/{unlisted}", "EIO"),
    ("openat", f"{STATE}/lock", "ENOSPC"),
]


@pytest.mark.parametrize(("call", "where", "error"), BROKEN, ids=[" ".join(row) for row in BROKEN])
def test_a_write_that_fails_is_said_in_plain_words_and_the_next_run_goes_on(
    site: BundleSite, call: str, where: str, error: str
) -> None:
    require("strace")
    new = sorted(set(site.whole) - set(site.old_whole))
    place = where.format(
        layer=Path(max(new, key=lambda name: len(site.whole[name]))).name,
        manifest=next(Path(name).name for name in new if b'"layers"' in site.whole[name]),
        unlisted=Path(min(set(site.old_whole) - set(site.whole))).name,
    )
    tally = Tally()
    with site.directory(renew=True) as to:
        failed = run_injecting(call, to / place, f"error={error}", site.command(to), when="1+")
        says(failed, 9 if error in {"ENOSPC", "EDQUOT"} else 3)
        site.check_state(to, tally)
        with site._sends_nothing_twice(to, tally):
            site.check_end(to, tally)

    assert tally.violations == []


@pytest.mark.parametrize("call", ["openat", "read"])
def test_a_journal_that_cannot_be_read_is_no_defect_of_ours(site: BundleSite, call: str) -> None:
    require("strace")
    with site.directory(renew=True) as to:
        result = run_injecting(call, to / STATE / "journal", "error=EIO", site.command(to))

        if result.code:
            says(result, 3, "journal")
        else:
            assert Bundle(to).tree() == site.whole


# --- what is written elsewhere --------------------------------------------------------------------------------------


@pytest.fixture
def handmade(store: BlobStore, tmp_path: Path) -> tuple[Path, BuiltImage]:
    image = one(store, "handmade", 5000)
    return write_bundle(tmp_path / "handmade", {"docker.io/some/image:1": image}), image


def test_a_report_that_does_not_fit_is_said_and_the_push_was_done(
    handmade: tuple[Path, BuiltImage], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "full", PAGE) as disk, FaultyRegistry() as target:
        (disk.path / "report.json").write_text("the old one")
        args = ("push", handmade[0], target.url, "--state", tmp_path / "state", "--report", disk.path / "report.json")
        done = run(*args)

        says(done, 9, "report.json", "[disk-full]")
        assert (disk.path / "report.json").read_text() == "the old one"
        assert complete(target, "some/image", "1", handmade[1])
        assert "some/image" in done.out, "the result is lost with the report"
        disk.resize(10 * PAGE)
        assert run(*args).code == 0
        assert json.loads((disk.path / "report.json").read_text())["status"] == "succeeded"


def test_a_report_that_does_not_fit_hides_no_other_error(handmade: tuple[Path, BuiltImage], tmp_path: Path) -> None:
    Bundle(handmade[0]).blob(layer_of(handmade[1])).write_bytes(b"damaged")
    with small_disk(tmp_path / "full", PAGE) as disk, FaultyRegistry() as target:
        (disk.path / "other").write_text("full")
        done = run(
            *("push", handmade[0], target.url, "--state", tmp_path / "state"),
            *("--report", disk.path / "report.json"),
        )

        assert done.code in {9, 10}
        assert "Traceback" not in done.err
        assert "1 of 1 images failed" in done.err
        assert "report.json" in done.err


def test_an_interrupt_is_an_interrupt_also_where_the_report_does_not_fit(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path
) -> None:
    reference = registry.put(many(store, "interrupted"), "some/interrupted")
    gate = registry.gate("GET", "/blobs/")
    with small_disk(tmp_path / "full", PAGE) as disk:
        (disk.path / "other").write_text("full")
        report = disk.path / "report.json"
        with running(*command([reference], tmp_path / "bundle", "--report", report)) as process:
            gate.wait_for()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        gate.open()

    assert process.returncode == 130, err
    assert "Traceback" not in err


@pytest.mark.parametrize("error", ["EIO", "EROFS"])
def test_a_report_on_a_broken_disk_is_said(handmade: tuple[Path, BuiltImage], tmp_path: Path, error: str) -> None:
    require("strace")
    report = tmp_path / "report.json"
    with FaultyRegistry() as target:
        done = run_injecting(
            "fsync" if error == "EIO" else "openat",
            tmp_path / ".report.json.new",
            f"error={error}",
            ["push", handmade[0], target.url, "--state", tmp_path / "state", "--report", report],
        )

        says(done, 3, "report.json")
        assert complete(target, "some/image", "1", handmade[1])
        assert not report.exists()


@pytest.mark.parametrize("inodes", [1, 2], ids=["directory", "lock file"])
def test_a_state_directory_on_a_full_disk_ends_the_push_before_it_begins(
    handmade: tuple[Path, BuiltImage], tmp_path: Path, inodes: int
) -> None:
    with small_disk(tmp_path / "full", PAGE, inodes=inodes) as disk, FaultyRegistry() as target:
        done = run("push", handmade[0], target.url, "--state", disk.path / "state")

        says(done, 9, "state")
        assert target.requests() == []


def test_a_state_directory_on_a_read_only_disk_ends_the_push_before_it_begins(
    handmade: tuple[Path, BuiltImage], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "protected", PAGE) as disk, FaultyRegistry() as target:
        (disk.path / "there").mkdir()
        disk.read_only()
        results = [
            run("push", handmade[0], target.url, "--state", disk.path / state) for state in ("there", "not-there")
        ]

        for result in results:
            says(result, 3, "Read-only file system")
        assert target.requests() == []


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_standard_output_that_takes_nothing_is_no_defect_of_ours(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path, form: str
) -> None:
    reference = registry.put(one(store, "said to nobody"), "some/said")
    to = tmp_path / "bundle"
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            command_line(*command([reference], to, "-o", form)),
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            cwd=home(),
            timeout=60,
            check=False,
        )

    Bundle(to).check()
    says(Result(done.returncode, "", done.stderr), 9)


def test_a_standard_error_that_takes_nothing_does_not_matter(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path
) -> None:
    reference = registry.put(one(store, "logged to nobody"), "some/logged")
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            command_line(*command([reference], tmp_path / "bundle")),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            env=environment(),
            cwd=home(),
            timeout=60,
            check=False,
        )

    assert done.returncode == 0
    assert "some/logged" in done.stdout
    Bundle(tmp_path / "bundle").check()


# --- memory ---------------------------------------------------------------------------------------------------------


def test_a_layer_of_300_mb_is_pushed_and_bundled_in_80_mib(tmp_path: Path) -> None:
    require("docker-registry")
    image = LargeImage.make(tmp_path / "made", 300_000_000)

    push, pull = pushed_and_bundled(image, tmp_path)

    assert push.peak_kib <= 80 * 1024
    assert pull.peak_kib <= 80 * 1024
