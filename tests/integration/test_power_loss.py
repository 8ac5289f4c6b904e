"""What a power loss may take: only what was not yet promised. Shown with the system calls of a run.

What was fsynced survives. So every file is fsynced with all its bytes before it gets its name, every name is
fsynced before it is relied on, and nothing old goes before the new stands.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

from tests.support.bundles import STATE, Bundle
from tests.support.command import run
from tests.support.kills import BundleSite, KillingRegistry
from tests.support.programs import require
from tests.support.syscalls import LINKS, REMOVALS, RENAMES, SYNCS, WRITES, Call, traced

INDEX, LOCK = "index.json", "bundle.lock.json"


@dataclass(frozen=True)
class Trace:
    """A run that has ended well: where it wrote, and its system calls on files there."""

    to: Path
    calls: list[Call]
    removed: set[str]

    def renames(self, final: Callable[[str], bool] = lambda _: True) -> list[tuple[Call, str, str]]:
        """Give the renames to certain names, with both names relative to the directory."""
        found = [
            (call, self._relative(call.names[0]), self._relative(call.names[-1]))
            for call in self.calls
            if call.name in RENAMES and call.worked
        ]
        return [item for item in found if final(item[2])]

    def syncs(self, relative: str) -> list[Call]:
        """Give the fsyncs of a file or directory that worked."""
        path = str(self.to / relative) if relative != "." else str(self.to)
        return [call for call in self.calls if call.name in SYNCS and call.file == path and call.worked]

    def synced_between(self, relative: str, after: Call, before: int) -> bool:
        """Tell whether a directory was fsynced after one call and before a place."""
        return any(after.ended < sync.began and sync.ended < before for sync in self.syncs(relative))

    def _relative(self, name: str) -> str:
        return str(PurePosixPath(name).relative_to(self.to))


@pytest.fixture(scope="module", params=["fresh", "renewed", "continued"])
def trace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trace]:
    """A run into nothing, one over an older bundle, and one that finds unfinished parts of blobs."""
    require("strace")
    work = tmp_path_factory.mktemp("power")
    with KillingRegistry() as upstream:
        site = BundleSite(work, upstream)
        with site.directory(renew=request.param == "renewed") as to:
            if request.param == "continued":
                layers = [name for name in site.whole if name.startswith("blobs/") and len(site.whole[name]) > 5000]
                assert len(layers) > 3
                (to / STATE).mkdir(parents=True)
                (to / "blobs/sha256").mkdir(parents=True)
                for name in layers:
                    path = to / name
                    path.with_name(f".{path.name}.partial").write_bytes(site.whole[name][:4000])
            before = set(Bundle(to).tree())
            result, calls = traced(work / "strace", *site.command(to))
            assert result.code == 0, result.err
            assert Bundle(to).tree() == site.whole
            below = [call for call in calls if _is_below(call, to) or call.name == "exit_group"]
            yield Trace(to, below, {name for name in before - set(site.whole) if not name.endswith(".partial")})


def _is_below(call: Call, to: Path) -> bool:
    places = [PurePosixPath(place) for place in (*call.names, *([call.file] if call.file else []))]
    # The folder that holds the bundle counts as well: the bundle's own name stands there.
    return any(place.is_relative_to(to) or place == PurePosixPath(to.parent) for place in places)


def end_of(trace: Trace) -> int:
    """Give the place of the end of the run; there is one, and it says 0."""
    (last,) = [call for call in trace.calls if call.name == "exit_group"]
    assert last.text.startswith("exit_group(0)")
    return last.began


def is_content(name: str) -> bool:
    return name.startswith("blobs/") or name in {INDEX, LOCK, "oci-layout"}


def test_the_trace_shows_every_file_that_the_run_made(trace: Trace) -> None:
    made = {name for _, _, name in trace.renames(is_content)}

    assert {INDEX, LOCK} <= made
    assert len([name for name in made if name.startswith("blobs/")]) > 5
    # Nothing gets a final name in any other way: no link, no file opened for writing under such a name.
    for call in trace.calls:
        assert call.name not in LINKS, call.text
        if call.name in {"open", "openat", "creat"} and re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", call.text):
            assert not is_content(str(PurePosixPath(call.names[-1]).relative_to(trace.to))) or re.match(
                r"\.[^/]+\.(new|partial)$", PurePosixPath(call.names[-1]).name
            ), call.text


def test_a_file_gets_its_name_only_after_all_its_bytes_were_fsynced(trace: Trace) -> None:
    for rename, temporary, name in trace.renames(is_content):
        writes = [
            call
            for call in trace.calls
            if call.name in WRITES and call.file == str(trace.to / temporary) and call.began < rename.began
        ]
        written = max((call.ended for call in writes), default=-1)
        syncs = [sync for sync in trace.syncs(temporary) if sync.began > written and sync.ended < rename.began]
        assert syncs, f"{name} was not fsynced after its last write and before it got its name"


def test_nothing_is_written_to_a_file_that_has_its_name(trace: Trace) -> None:
    named = {str(trace.to / name) for _, _, name in trace.renames(is_content)}

    late = [call.text for call in trace.calls if call.name in WRITES and {call.file, *call.names} & named]

    assert late == []


def test_the_index_comes_after_all_blobs_and_their_folders_are_durable(trace: Trace) -> None:
    ((index, _, _),) = trace.renames(lambda name: name == INDEX)
    blobs = trace.renames(lambda name: name.startswith("blobs/"))

    for rename, _, name in blobs:
        assert rename.ended < index.began, f"{name} came after index.json"
        folder = str(PurePosixPath(name).parent)
        assert trace.synced_between(folder, rename, index.began), f"the name of {name} was not durable before"
    for call in trace.calls:
        if call.name in {"mkdir", "mkdirat"} and call.worked and call.names[-1] != str(trace.to):
            made = PurePosixPath(call.names[-1]).relative_to(trace.to)
            if made.parts[0] == "blobs":
                assert trace.synced_between(str(made.parent), call, index.began), f"{made} was not durable before"


def test_the_index_comes_after_the_lock_and_after_it_is_durable(trace: Trace) -> None:
    """An index without its lock could pass for a complete bundle; a lock without its index cannot."""
    ((index, _, _),) = trace.renames(lambda name: name == INDEX)
    ((lock, _, _),) = trace.renames(lambda name: name == LOCK)

    assert lock.ended < index.began
    assert trace.synced_between(".", lock, index.began)


def test_success_is_reported_only_when_all_names_are_durable(trace: Trace) -> None:
    end = end_of(trace)

    for rename, _, name in trace.renames(is_content):
        assert trace.synced_between(str(PurePosixPath(name).parent), rename, end), f"the name of {name} may be lost"


def test_a_directory_that_was_made_is_durable_before_success_is_reported(trace: Trace) -> None:
    end = end_of(trace)

    for call in trace.calls:
        if call.name in {"mkdir", "mkdirat"} and call.worked:
            parent = str(PurePosixPath(call.names[-1]).parent)
            syncs = [c for c in trace.calls if c.name in SYNCS and c.file == parent and c.worked]
            assert any(call.ended < sync.began and sync.ended < end for sync in syncs), (
                f"{call.names[-1]} was made, and {parent} was not fsynced after that: all of it may be lost"
            )


def test_nothing_is_removed_before_the_new_lock_is_durable(trace: Trace) -> None:
    ((lock, _, _),) = trace.renames(lambda name: name == LOCK)
    removals = [call for call in trace.calls if call.name in REMOVALS and call.worked]

    assert {str(PurePosixPath(call.names[-1]).relative_to(trace.to)) for call in removals} == trace.removed
    for call in removals:
        assert trace.synced_between(".", lock, call.began), f"{call.names[-1]} went before the lock was durable"


def test_a_line_of_the_journal_is_written_only_after_its_blob_was_fsynced_and_named(trace: Trace) -> None:
    """A line whose blob is lost does no harm: without its file it is not believed. It may not come first, though."""
    named = sorted(rename.ended for rename, temporary, _ in trace.renames() if temporary.endswith(".partial"))
    lines = sorted(
        call.began for call in trace.calls if call.name in WRITES and call.file == str(trace.to / STATE / "journal")
    )

    assert len(lines) >= len(named)
    if len(lines) == len(named):
        assert all(name < line for name, line in zip(named, lines, strict=True))


@pytest.mark.parametrize("lost", ["names", "content"])
def test_a_bundle_continues_from_what_survived(tmp_path: Path, lost: str) -> None:
    """Unsynced names fall back to the names before; unsynced files have their size and no bytes."""
    with KillingRegistry() as upstream:
        site = BundleSite(tmp_path, upstream)
        with site.directory(renew=False) as to:
            done = run(*site.command(to))
            assert done.code == 0, done.err
            (to / INDEX).unlink()
            (to / LOCK).unlink()
            blobs = sorted((to / "blobs/sha256").iterdir())
            for number, path in enumerate(blobs):
                if number % 2:
                    unnamed = path.rename(path.with_name(f".{path.name}.partial"))
                    if lost == "content":
                        unnamed.write_bytes(bytes(unnamed.stat().st_size))
            journal = to / STATE / "journal"
            size = journal.stat().st_size
            # The end of it never got to the disk: its length did, its bytes did not.
            journal.write_bytes(journal.read_bytes()[: size // 2] + bytes(size - size // 2))
            mark = upstream.mark()
            again = run(*site.command(to))

            assert again.code == 0, again.err
            assert Bundle(to).tree() == site.whole
            fetched = set(upstream.fetched(mark))
            kept = {f"sha256:{path.name}" for number, path in enumerate(blobs) if lost == "names" or not number % 2}
            assert not fetched & kept
