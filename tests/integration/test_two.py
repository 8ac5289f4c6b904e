"""Two runs at once: they keep out of each other's way, or see one bundle and never a mixture of two."""

import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bundles import Bundle, bundle, many
from tests.support.command import run
from tests.support.handmade import write_bundle
from tests.support.images import AMD64, ARM64, BlobStore
from tests.support.kills import BundleSite, KillingRegistry, Tally, running
from tests.support.programs import require
from tests.support.registry import Registry
from tests.support.syscalls import run_injecting, stopped_at


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BundleSite]:
    with KillingRegistry() as upstream:
        yield BundleSite(tmp_path_factory.mktemp("site"), upstream)


@pytest.fixture(autouse=True)
def _gates(site: BundleSite) -> Iterator[None]:
    yield
    site.registry.open_all()


@pytest.fixture
def target() -> Iterator[KillingRegistry]:
    with KillingRegistry() as started:
        yield started


# --- two bundles ----------------------------------------------------------------------------------------------------


def test_two_bundles_that_find_the_same_empty_place_do_not_both_write(site: BundleSite, tmp_path: Path) -> None:
    """Both have seen that nothing is there; one of them stands still before it takes the lock."""
    require("strace")
    with site.directory(renew=False) as to:
        with stopped_at("mkdir", to / ".airgap-sync", site.command(to), tmp_path / "strace") as late:
            gate = site.registry.gate("GET", "/blobs/")
            with running(*site.command(to)) as first:
                gate.wait_for()
                os.kill(late.pid, signal.SIGCONT)
                _, late_err = late.communicate(timeout=20)
                gate.open()
                _, first_err = first.communicate(timeout=20)

        assert late.returncode == 12, late_err
        assert first.returncode == 0, first_err
        assert Bundle(to).check().tree() == site.whole


def test_a_bundle_of_something_else_does_not_disturb_the_one_at_work(site: BundleSite, tmp_path: Path) -> None:
    with site.directory(renew=True) as to:
        (tmp_path / "link").symlink_to(to)
        gate = site.registry.gate("GET", "/blobs/", skip=2)
        with running(*site.command(to)) as first:
            gate.wait_for()
            for other in (to, tmp_path / "link"):
                bundle(site.references[:1], other, "--replace", code=12)
            gate.open()
            _, err = first.communicate(timeout=20)

        assert first.returncode == 0, err
        assert Bundle(to).check().tree() == site.whole


# --- a push while the bundle is being rebuilt -----------------------------------------------------------------------


def standing(target: KillingRegistry, *bundles: dict[str, bytes]) -> list[set[str]]:
    """Give, for each bundle, which names at a target stand for its image; check that every tag is whole."""
    assert target.violations == []
    found: dict[str, str] = {}
    for repository in ("some/kept-0", "some/kept-1", "some/moved-0", "some/moved-1", "some/moved-2", "some/alone"):
        for tag, digest in target.content.tags(repository).items():
            assert target.content.missing(repository, digest) == []
            found[f"{repository}:{tag}"] = digest
    for tag, digest in target.content.tags("some/shared").items():
        assert target.content.missing("some/shared", digest) == []
        found[f"some/shared:{tag}"] = digest
    return [{name for name, digest in found.items() if digest in _roots(tree)} for tree in bundles]


def _roots(tree: dict[str, bytes]) -> set[str]:
    return set(re.findall(r'"digest": "(sha256:[0-9a-f]{64})"', tree["index.json"].decode()))


def test_a_push_sees_the_old_bundle_as_long_as_it_stands(
    site: BundleSite, target: KillingRegistry, tmp_path: Path
) -> None:
    with site.directory(renew=True) as to:
        gate = site.registry.gate("GET", "/blobs/", skip=4)
        with running(*site.command(to)) as builder:
            gate.wait_for()
            pushed = run("push", to, target.url, "--state", tmp_path / "state")
            gate.open()
            _, err = builder.communicate(timeout=20)
        assert builder.returncode == 0, err
        assert pushed.code == 0, pushed.err
        old, new = standing(target, site.old_whole, site.whole)
        assert len(old) == len(site.references)
        assert run("push", to, target.url, "--state", tmp_path / "state").code == 0
        old, new = standing(target, site.old_whole, site.whole)
        assert len(new) == len(site.references)


@pytest.mark.parametrize("point", ["blobs", ".bundle.lock.json.new", ".index.json.new"])
def test_a_push_between_a_new_lock_and_a_new_index_is_refused(
    site: BundleSite, target: KillingRegistry, tmp_path: Path, point: str
) -> None:
    """Or the builder was ended there; before the lock is new, the old bundle stands."""
    require("strace")
    with site.directory(renew=True) as to:
        with stopped_at("fsync", to / point, site.command(to), tmp_path / "strace") as builder:
            pushed = run("push", to, target.url, "--state", tmp_path / "state")
            if point != ".index.json.new":
                assert pushed.code == 0, pushed.err
                assert len(standing(target, site.old_whole)[0]) == len(site.references)
            else:
                assert pushed.code == 5, pushed.err
                assert target.requests() == []
            os.kill(builder.pid, signal.SIGCONT)
            _, err = builder.communicate(timeout=20)
        assert builder.returncode == 0, err
        assert Bundle(to).check().tree() == site.whole


@pytest.mark.parametrize("where", ["index.json", "bundle.lock.json", "manifest"])
def test_a_push_that_reads_while_the_bundle_changes_is_refused(
    site: BundleSite, target: KillingRegistry, tmp_path: Path, where: str
) -> None:
    """It has read the old index, or the old lock too, and then all the rest is new."""
    require("strace")
    moved = next(
        name for name in sorted(set(site.old_whole) - set(site.whole)) if b'"manifests"' in site.old_whole[name]
    )
    with site.directory(renew=True) as to:
        place = to / (where if where != "manifest" else moved)
        args: list[str | Path] = ["push", to, target.url, "--state", tmp_path / "state"]
        with stopped_at("openat", place, args, tmp_path / "strace") as pusher:
            tally = Tally()
            site.check_end(to, tally)
            assert tally.violations == []
            os.kill(pusher.pid, signal.SIGCONT)
            _, err = pusher.communicate(timeout=20)

        assert pusher.returncode == 5, err
        assert target.requests() == []


@pytest.mark.parametrize(
    ("method", "pattern", "skip"),
    [("HEAD", "/manifests/", 0), ("HEAD", "/blobs/", 3), ("PUT", "/blobs/uploads/", 0), ("PUT", "/blobs/uploads/", 5)],
)
def test_a_push_whose_blobs_go_away_never_says_that_all_is_well(
    site: BundleSite, target: KillingRegistry, tmp_path: Path, method: str, pattern: str, skip: int
) -> None:
    """It has read all of the old bundle; then the new one takes its place. What tags there are stand for old images."""
    with site.directory(renew=True) as to:
        gate = target.gate(method, pattern, skip=skip)
        with running("push", to, target.url, "--state", tmp_path / "state", "--jobs", "2") as pusher:
            gate.wait_for()
            tally = Tally()
            site.check_end(to, tally)
            assert tally.violations == []
            gate.open()
            _, err = pusher.communicate(timeout=20)

        assert "Traceback" not in err
        old, new = standing(target, site.old_whole, site.whole)
        everything = {f"{name.partition('/')[2]}" for name in site.references}
        assert old | new <= everything
        if pusher.returncode == 0:
            assert everything in (old, new)
        else:
            assert pusher.returncode == 10, err
        again = run("push", to, target.url, "--state", tmp_path / "state")
        assert again.code == 0, again.err
        assert standing(target, site.whole)[0] == everything


def test_two_pushes_of_two_bundles_to_one_target_do_not_mix(
    site: BundleSite, target: KillingRegistry, tmp_path: Path
) -> None:
    with site.directory(renew=False) as to:
        shutil.copytree(site.old, to)
        gate = target.gate("PUT", "/blobs/uploads/", skip=2)
        with running("push", to, target.url, "--state", tmp_path / "state") as first:
            gate.wait_for()
            second = run("push", site._work / "undisturbed", target.url, "--state", tmp_path / "state")
            assert second.code == 12, second.err
            gate.open()
            _, err = first.communicate(timeout=20)

        assert first.returncode == 0, err
        assert len(standing(target, site.old_whole)[0]) == len(site.references)


def test_tags_of_one_digest_do_not_put_the_same_manifest_at_the_same_time(
    target: KillingRegistry, tmp_path: Path
) -> None:
    """A real registry that is given one manifest twice at once may know it for a moment less than before."""
    image = many(BlobStore(tmp_path / "store"), "tagged", 3000, (AMD64, ARM64))
    names = {f"docker.io/some/tagged:{number}": image for number in range(8)}
    made = write_bundle(tmp_path / "bundle", names)

    done = run("push", made, target.url, "--jobs", "8", "--state", tmp_path / "state")

    assert done.code == 0, done.err
    puts = Counter(request.path for request in target.requests("PUT") if "/manifests/sha256:" in request.path)
    assert set(puts.values()) == {1}
    require("docker-registry")
    for _ in range(3):
        with Registry() as registry:
            done = run("push", made, registry.url, "--jobs", "8", "--state", tmp_path / "state")
            assert done.code == 0, done.err


# --- a clock set back -----------------------------------------------------------------------------------------------

FUTURE, EPOCH = 4_102_444_800 * 10**9, 0


@pytest.mark.parametrize("then", [FUTURE, EPOCH, -(10**18)], ids=["2100", "1970", "1938"])
def test_blobs_of_another_time_are_hashed_and_not_fetched(site: BundleSite, then: int) -> None:
    """As if the clock had gone wrong and was put right between two runs, or the medium had been elsewhere."""
    with site.directory(renew=False) as to:
        assert run(*site.command(to)).code == 0
        for path in [to, *to.rglob("*")]:
            os.utime(path, ns=(then, then))
        spoilt = max(to.glob("blobs/sha256/*"), key=lambda path: path.stat().st_size)
        spoilt.write_bytes(spoilt.read_bytes()[:-1] + b"?")
        os.utime(spoilt, ns=(then, then))
        assert Bundle(to).sealed() == set()
        mark, tally = site.registry.mark(), Tally()

        site.check_end(to, tally)

        assert tally.violations == []
        assert site.registry.fetched(mark) == [f"sha256:{spoilt.name}"]
        mark = site.registry.mark()
        site.check_end(to, tally)
        assert {method for method, _ in site.registry.asked(mark)} == {"HEAD"}


def test_a_run_killed_under_a_clock_that_is_put_back_goes_on(site: BundleSite) -> None:
    """What was sealed in the future stays sealed: not hashed in vain, and not fetched."""
    require("strace")
    with site.directory(renew=False) as to:
        run_injecting("rename", to / ".index.json.new", "signal=KILL", site.command(to))
        journal = to / ".airgap-sync/journal"
        text = journal.read_text()
        for path in to.glob("blobs/sha256/*"):
            text = text.replace(f'"mtime_ns": {path.stat().st_mtime_ns}', f'"mtime_ns": {FUTURE}')
            os.utime(path, ns=(FUTURE, FUTURE))
        journal.write_text(text)
        there, mark, tally = Bundle(to).sealed(), site.registry.mark(), Tally()
        assert there

        site.check_end(to, tally)

        assert tally.violations == []
        assert site.registry.fetched(mark) == []
        assert journal.read_text() == text
