"""Runs of `bundle` and `push` that are ended: at random moments, and at every point where something is written.

The random moments come from a seed, printed and settable: AIRGAP_SYNC_SEED. `make soak` does hundreds of them.
"""

import http.client
import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import STATE, Bundle, bundle, command, layer_of, many, one
from tests.support.command import environment, home, run, start
from tests.support.images import AMD64, ARM64, BlobStore
from tests.support.kills import BundleSite, KillingRegistry, PushSite, Tally, seed_from
from tests.support.media_types import INDEXES, MANIFESTS
from tests.support.programs import require
from tests.support.registry import Registry
from tests.support.syscalls import injecting, run_injecting

KILLS = 5
SEED = 20_250_301


@pytest.fixture(scope="module")
def upstream() -> Iterator[KillingRegistry]:
    with KillingRegistry() as started:
        yield started


@pytest.fixture(scope="module")
def site(upstream: KillingRegistry, tmp_path_factory: pytest.TempPathFactory) -> BundleSite:
    return BundleSite(tmp_path_factory.mktemp("site"), upstream)


# --- random moments -------------------------------------------------------------------------------------------------


def test_a_bundle_killed_at_random_moments_ends_as_if_undisturbed(site: BundleSite) -> None:
    chance, tally = random.Random(seed_from("AIRGAP_SYNC_SEED", SEED)), Tally()
    while tally.kills < KILLS:
        site.chain(chance, tally)

    assert tally.violations == []
    assert tally.bytes_twice == 0


def test_a_push_killed_at_random_moments_ends_as_if_undisturbed(tmp_path: Path) -> None:
    chance, tally = random.Random(seed_from("AIRGAP_SYNC_SEED", SEED)), Tally()
    site = PushSite(tmp_path)
    while tally.kills < KILLS:
        site.chain(chance, tally)

    assert tally.violations == []
    assert tally.bytes_twice == 0


def test_a_push_to_a_real_registry_killed_at_random_moments_ends_as_if_undisturbed(tmp_path: Path) -> None:
    require("docker-registry")
    site = PushSite(tmp_path)
    chance = random.Random(seed_from("AIRGAP_SYNC_SEED", SEED))
    with Registry() as target:
        for _ in range(KILLS):
            before, mark = committed(target), target.mark()
            with start(*site.command(target.url)) as process:
                try:
                    # A moment of the run, not a wait: it may be over by then.
                    process.wait(chance.uniform(0.15, 0.45))
                except subprocess.TimeoutExpired:
                    process.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
                process.communicate(timeout=20)
            assert not before & sent(target, mark)
            for reference, image in site.images.items():
                repository, _, tag = reference.removeprefix("docker.io/").partition(":")
                assert pulled(target, repository, tag) in (set(), image.digests), reference
        before, mark = committed(target), target.mark()
        done = run(*site.command(target.url))

        assert done.code == 0, done.err
        assert not before & sent(target, mark)
        for reference, image in site.images.items():
            repository, _, tag = reference.removeprefix("docker.io/").partition(":")
            assert pulled(target, repository, tag) == image.digests


def committed(target: Registry) -> set[str]:
    """Give the digests of the blobs that some repository of a real registry has, by its access log."""
    return {digest for status, digest in _uploads(target, 0) if status == 201}


def sent(target: Registry, mark: int) -> set[str]:
    """Give the digests of all blobs that a client began to send since a mark."""
    return {digest for _, digest in _uploads(target, mark)}


def _uploads(target: Registry, mark: int) -> list[tuple[int, str]]:
    return [
        (entry.status, entry.query.partition("digest=")[2].replace("%3A", ":").partition("&")[0])
        for entry in target.since(mark)
        if entry.method == "PUT" and "/blobs/uploads/" in entry.path
    ]


def pulled(target: Registry, repository: str, tag: str) -> set[str]:
    """Give the digests of all that a tag stands for, each asked for; none at all where there is no such tag.

    A tag of which a part is missing fails the test.
    """
    connection = http.client.HTTPConnection(target.host, timeout=10)
    accept = {"Accept": ", ".join([*INDEXES, *MANIFESTS])}

    def ask(method: str, path: str) -> tuple[int, bytes, str]:
        connection.request(method, f"/v2/{repository}/{path}", headers=accept)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers.get("Docker-Content-Digest", "")

    def visit(reference: str) -> set[str]:
        status, raw, digest = ask("GET", f"manifests/{reference}")
        if status == 404 and reference == tag:
            return set()
        assert status == 200, f"{repository}:{tag} lacks {reference}"
        document: Any = json.loads(raw)
        found = {digest}.union(*(visit(child["digest"]) for child in document.get("manifests", [])))
        for blob in [document["config"], *document["layers"]] if "config" in document else []:
            assert ask("HEAD", f"blobs/{blob['digest']}")[0] == 200, f"{repository}:{tag} lacks {blob['digest']}"
            found.add(blob["digest"])
        return found

    try:
        return visit(tag)
    finally:
        connection.close()


# --- every point where something is written -------------------------------------------------------------------------

#: What is written, and the system calls that do it. {layer}, {manifest} and {unlisted} stand for blobs.
POINTS = [
    (f"{STATE}", "mkdir"),
    (f"{STATE}/lock", "openat"),
    (f"{STATE}/lock", "flock"),
    ("blobs", "mkdir"),
    (".oci-layout.new", "openat"),
    (".oci-layout.new", "write"),
    (".oci-layout.new", "rename"),
    (f"{STATE}/journal", "openat"),
    (f"{STATE}/journal", "write"),
    ("blobs/sha256/.{manifest}.new", "openat"),
    ("blobs/sha256/.{manifest}.new", "write"),
    ("blobs/sha256/.{manifest}.new", "fsync"),
    ("blobs/sha256/.{manifest}.new", "rename"),
    ("blobs/sha256/.{layer}.partial", "openat"),
    ("blobs/sha256/.{layer}.partial", "write"),
    ("blobs/sha256/.{layer}.partial", "fsync"),
    ("blobs/sha256/.{layer}.partial", "rename"),
    ("blobs", "fsync"),
    (".index.json.new", "openat"),
    (".index.json.new", "write"),
    (".index.json.new", "fsync"),
    (".index.json.new", "rename"),
    (".bundle.lock.json.new", "openat"),
    (".bundle.lock.json.new", "write"),
    (".bundle.lock.json.new", "fsync"),
    (".bundle.lock.json.new", "rename"),
    ("blobs/sha256/{unlisted}", "unlink"),
    (f"{STATE}/lock", "close"),
]
NEEDS_NOTHING_THERE = frozenset({(STATE, "mkdir"), ("blobs", "mkdir")})


@pytest.mark.parametrize(("where", "call"), POINTS, ids=[f"{call} {where}" for where, call in POINTS])
def test_a_bundle_killed_at_a_point_where_it_writes_ends_as_if_undisturbed(
    site: BundleSite, where: str, call: str
) -> None:
    require("strace")
    old, new = Bundle(site.old), set(site.whole)
    unlisted = next(name for name in sorted(old.tree()) if name.startswith("blobs/") and name not in new)
    listed = [Path(name) for name in sorted(new - set(old.tree()))]
    place = where.format(
        layer=max(listed, key=lambda path: len(site.whole[str(path)])).name,
        manifest=next(path.name for path in listed if b'"layers"' in site.whole[str(path)]),
        unlisted=Path(unlisted).name,
    )
    renew = (where, call) not in NEEDS_NOTHING_THERE and "oci-layout" not in where
    tally = Tally()
    with site.directory(renew=renew) as to:
        ended = run_injecting(call, to / place, "signal=KILL", site.command(to), when="1+")
        assert ended.code == -signal.SIGKILL, f"it never came to this point: {ended.err}"
        if renew and "unlink" not in call and call != "close":
            assert (to / "index.json").read_bytes() == site.old_whole["index.json"]
            if where != ".index.json.new":
                assert (to / "bundle.lock.json").read_bytes() == site.old_whole["bundle.lock.json"]
        site.check_state(to, tally)
        with site._sends_nothing_twice(to, tally):
            site.check_end(to, tally)

    assert tally.violations == []


@pytest.mark.parametrize("number", ["TERM", "INT"])
@pytest.mark.parametrize("where", [".index.json.new", ".bundle.lock.json.new", f"{STATE}/journal"])
def test_a_signal_while_the_run_writes_ends_it_in_good_order(site: BundleSite, where: str, number: str) -> None:
    require("strace")
    tally = Tally()
    with site.directory(renew=True) as to:
        ended = run_injecting("write", to / where, f"signal={number}", site.command(to))
        assert ended.code == 128 + signal.Signals[f"SIG{number}"], ended.err
        assert "Traceback" not in ended.err
        site.check_state(to, tally)
        with site._sends_nothing_twice(to, tally):
            site.check_end(to, tally)

    assert tally.violations == []


def test_a_bundle_killed_before_its_first_lock_stood_is_not_pushed_as_if_it_were_whole(
    tmp_path: Path, upstream: KillingRegistry
) -> None:
    require("strace")
    store = BlobStore(tmp_path / "store")
    references = [upstream.put(one(store, "there"), "half/there"), upstream.ref("half/missing")]
    to = tmp_path / "bundle"
    ended = run_injecting("rename", to / ".bundle.lock.json.new", "signal=KILL", command(references, to))
    assert ended.code == -signal.SIGKILL, ended.err

    with KillingRegistry() as target:
        pushed = run("push", to, target.url, "--state", tmp_path / "state")

    assert pushed.code != 0, "half/missing is asked for and not there, and nobody says so"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_spoil_the_end_of_the_first(
    tmp_path: Path, upstream: KillingRegistry, number: signal.Signals
) -> None:
    require("strace")
    store = BlobStore(tmp_path / "store")
    reference = upstream.put(many(store, "twice", platforms=(AMD64, ARM64)), "some/twice")
    report = tmp_path / "report.json"
    args = command([reference], tmp_path / "bundle", "--report", report)
    gate = upstream.gate("GET", f"/blobs/{layer_of(many(store, 'twice', platforms=(AMD64, ARM64)), AMD64)}")
    # The first comes from outside; the second while the report of the first is being written.
    second = "INT" if number is signal.SIGINT else "TERM"
    with subprocess.Popen(
        injecting("write", tmp_path / ".report.json.new", f"signal={second}", args, apart=True),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=home(),
    ) as process:
        try:
            gate.wait_for()
            os.kill(process.pid, number)
            _, err = process.communicate(timeout=20)
        finally:
            process.kill()
            gate.open()

    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    bundle([reference], tmp_path / "bundle")
