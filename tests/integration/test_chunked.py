"""Pushes in chunks to a real registry: killed, resumed, and what else may happen between two runs.

The random points come from a seed, printed and settable: AIRGAP_SYNC_SEED. `make soak` does a hundred of them.
"""

import random
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import requests

from tests.support.bundles import GatedRegistry, eventually, random_bytes
from tests.support.chunked import CHUNK_BYTES, LAYER_BYTES, ChunkedSite, Point, Together, Wire
from tests.support.command import run, start
from tests.support.content import BlobStore
from tests.support.fault_row import PASSWORD, USER
from tests.support.handmade import blob_file, built, complete, flip, outcomes, snapshot, write_bundle
from tests.support.kills import Tally, seed_from
from tests.support.programs import require
from tests.support.pulling import check_pulled
from tests.support.registry import Registry
from tests.support.tokens import TokenServer

KILLS = 5
SEED = 20_261_124
ONE = "some/one"
ALL = ["docker.io/some/one:1", "docker.io/some/two:1"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> ChunkedSite:
    require("docker-registry")
    return ChunkedSite(tmp_path_factory.mktemp("chunked"))


def layer(site: ChunkedSite) -> str:
    """Give the digest of the large layer of the image that goes first: both are of one size."""
    return next(blob.digest for blob in site.images["docker.io/some/one:1"].blobs if blob.size == LAYER_BYTES)


def sizes(site: ChunkedSite) -> int:
    """Give how many bytes go in chunks: of each blob that is larger than one, once."""
    blobs = {blob.digest: blob.size for image in site.images.values() for blob in image.blobs}
    return sum(size for size in blobs.values() if size > CHUNK_BYTES)


def answer_of(registry: Registry, digest: str, repository: str = ONE) -> int:
    """Ask the registry for a blob."""
    return requests.head(f"{registry.url}/v2/{repository}/blobs/{digest}", timeout=20).status_code


def test_a_push_in_chunks_brings_what_one_in_whole_blobs_does(site: ChunkedSite) -> None:
    before = snapshot(site.bundle)
    with site.registry() as wire:
        done = run(*site.command(wire, "-o", "json"), env=wire.env)

        assert done.code == 0, done.err
        site.check(wire)
        chunks = wire.accepted()
        assert sum(size for _, size in chunks) == sizes(site)
        assert {size for _, size in chunks} - {CHUNK_BYTES} == {1000, LAYER_BYTES // 2 % CHUNK_BYTES}
        closing = [
            int(request.headers["content-length"]) for request in wire.since(0, "PUT") if "_state=" in request.target
        ]
        # What fits into a chunk goes as a whole; what closes chunks is empty.
        assert closing.count(0) == 3
        assert done.json["totals"]["bytes_moved"] == sum(
            {blob.digest: blob.size for image in site.images.values() for blob in image.blobs}.values()
        )
        again = run(*site.command(wire, "-o", "json"), env=wire.env)
        assert outcomes(again) == dict.fromkeys(ALL, "up-to-date")
    assert snapshot(site.bundle) == before
    assert list((site.work / f"state-{wire.registry.port}").glob("uploads-*/*")) == []


# --- killed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "continued"),
    [
        (Point("PATCH", 3, "before"), 2),
        (Point("PATCH", 3, "within"), None),
        (Point("PATCH", 3, "after"), None),
        (Point("PUT", 1, "before", "_state="), 6),
        (Point("PUT", 1, "after", "_state="), 6),
    ],
    ids=["between chunks", "within a chunk", "its answer unread", "before the commit", "the commit's answer unread"],
)
def test_a_killed_push_is_continued_and_ends_as_if_undisturbed(
    site: ChunkedSite, point: Point, continued: int | None
) -> None:
    with site.registry() as wire:
        # The large layer of one image goes first.
        killed = wire.killed_at(point, *site.command(wire))
        assert killed.code == -9, killed.err
        accepted = wire.accepted()
        mark = wire.mark()
        done = run(*site.command(wire), env=wire.env)

        assert done.code == 0, done.err
        site.check(wire)
        if continued is None:
            # This registry forgets a session whose chunk broke off, and one whose newest state we do not know.
            assert next(first for first, _ in wire.accepted(mark)) == 0
        else:
            assert len(accepted) == continued
            # Accepted chunks were not sent again: both runs together sent every byte once.
            assert sum(size for _, size in wire.accepted()) == sizes(site)


def test_pushes_killed_at_random_points_end_as_if_undisturbed(tmp_path: Path) -> None:
    require("docker-registry")
    chance, tally = random.Random(seed_from("AIRGAP_SYNC_SEED", SEED)), Tally()
    site = ChunkedSite(tmp_path, jobs=3)
    while tally.kills < KILLS:
        site.chain(chance, tally)

    assert tally.violations == []
    assert tally.bytes_twice == 0


def test_a_killed_upload_is_continued_although_a_mount_opens_another_session(tmp_path: Path) -> None:
    store, large = BlobStore(tmp_path / "store"), random_bytes("in two repositories", LAYER_BYTES)
    images = {f"docker.io/some/{name}:1": built(store, large, title=name) for name in ("one", "two")}
    directory = write_bundle(tmp_path / "bundle", images)
    with GatedRegistry() as target:
        target.content.quirks.mounts = False
        gate = target.gate("PATCH", "", skip=9)
        options: list[str | Path] = ["--chunk-size", str(CHUNK_BYTES), "--state", tmp_path / "state", "--jobs", "1"]
        with start("push", directory, target.url, *options) as process:
            # The fourth chunk of the second repository.
            gate.wait_for()
            process.kill()
            process.wait()
        gate.open()
        eventually(lambda: len(target.requests("PATCH")) == 10, "the end of what was under way")

        done = run("push", directory, target.url, *options)

        assert done.code == 0, done.err
        assert all(complete(target, name[10:-2], "1", image) for name, image in images.items())
        assert sum(request.body_size for request in target.requests("PATCH")) == 2 * LAYER_BYTES


# --- what else happens between two runs, or two chunks -------------------------------------------------------------


def stopped_between_chunks(site: ChunkedSite, wire: Wire) -> None:
    """Kill a push when two chunks of the first layer were accepted."""
    killed = wire.killed_at(Point("PATCH", 3, "before"), *site.command(wire))
    assert killed.code == -9, killed.err
    assert len(wire.accepted()) == 2


def test_a_registry_that_forgot_its_sessions_gets_the_blob_anew(site: ChunkedSite) -> None:
    with site.registry() as wire:
        stopped_between_chunks(site, wire)
        registry = wire.registry
        registry.stop()
        # Another secret, as a registry without a fixed one has after each start: no old session is good.
        registry._config.write_text(registry._config.read_text().replace("only-for-tests", "another"))
        registry.start()
        mark = wire.mark()
        done = run(*site.command(wire), env=wire.env)

        assert done.code == 0, done.err
        site.check(wire)
        assert sum(size for _, size in wire.accepted(mark)) == sizes(site)


def test_a_registry_that_only_was_restarted_goes_on(site: ChunkedSite) -> None:
    with site.registry() as wire:
        stopped_between_chunks(site, wire)
        wire.registry.stop()
        wire.registry.start()
        done = run(*site.command(wire), env=wire.env)

        assert done.code == 0, done.err
        site.check(wire)
        assert sum(size for _, size in wire.accepted()) == sizes(site)


def test_a_session_that_an_earlier_run_without_chunks_left_alone_is_forgotten(site: ChunkedSite) -> None:
    with site.registry() as wire:
        stopped_between_chunks(site, wire)
        done = run(*site.command(wire, "--chunk-size", "0"), env=wire.env)

        assert done.code == 0, done.err
        site.check(wire)
    assert list((site.work / f"state-{wire.registry.port}").glob("uploads-*/*")) == []


def test_a_token_that_expires_between_chunks_is_replaced(site: ChunkedSite) -> None:
    require("openssl")
    # The registry refuses it two seconds after it was issued; whoever got it was told a minute.
    with (
        TokenServer(USER, PASSWORD, lifetime=-58) as tokens,
        Registry(token=tokens.auth) as registry,
        Wire(registry) as wire,
    ):
        wire.call_at(Point("PATCH", 3, "before"), lambda: time.sleep(2.5), cut=False)
        env = {**wire.env, "AIRGAP_SYNC_USERNAME": USER, "AIRGAP_SYNC_PASSWORD": PASSWORD}
        done = run(*site.command(wire), env=env)

        assert done.code == 0, done.err
        statuses = [request.status for request in wire.since(0, "PATCH")]
        assert statuses[:4] == [202, 202, 401, 202]
        assert sum(size for _, size in wire.accepted()) == sizes(site)
        tokens.lifetime = 300
        pulled = run(
            "bundle", "--image", f"{registry.host}/some/one:1", "--to", site.work / "pulled", env=_as_user(registry)
        )
        assert pulled.code == 0, pulled.err
        names = {path.name for path in (site.work / "pulled/blobs/sha256").iterdir()}
        assert names == {digest.removeprefix("sha256:") for digest in site.images["docker.io/some/one:1"].digests}


def _as_user(registry: Registry) -> dict[str, str]:
    suffix = registry.host.upper().replace(".", "_").replace(":", "_")
    return {f"AIRGAP_SYNC_USERNAME_{suffix}": USER, f"AIRGAP_SYNC_PASSWORD_{suffix}": PASSWORD}


@pytest.mark.parametrize(
    "point",
    [Point("PATCH", 3, "before"), Point("PUT", 1, "before", "_state=")],
    ids=["between chunks", "before the commit"],
)
def test_a_wrong_byte_before_the_point_of_return_is_met_and_nothing_is_committed(
    site: ChunkedSite, tmp_path: Path, point: Point
) -> None:
    damaged = write_bundle(tmp_path / "damaged", site.images)
    file = blob_file(damaged, layer(site))
    with site.registry() as wire:
        command = site.command(wire, "-o", "json", bundle=damaged)
        killed = wire.killed_at(point, *command)
        assert killed.code == -9, killed.err
        # In a chunk that was sent, and will not be sent again.
        flip(file, 1000)
        mark = wire.mark()
        failed = run(*command, env=wire.env)

        assert failed.code == 10, failed.err
        assert outcomes(failed) == {"docker.io/some/one:1": "failed", "docker.io/some/two:1": "pushed"}
        errors = [image["error"]["reference"] for image in failed.json["images"] if image["error"]]
        assert errors == ["digest-mismatch"]
        assert answer_of(wire.registry, layer(site)) == 404
        assert [request for request in wire.since(mark, "PUT") if layer(site) in request.target] == []
        assert not [request for request in wire.since(mark, "PUT") if request.target.endswith("some/one/manifests/1")]
        flip(file, 1000)
        mended = run(*command, env=wire.env)
        assert mended.code == 0, mended.err
        site.check(wire)


def test_a_bundle_that_changed_between_two_runs_is_pushed_as_it_is_now(site: ChunkedSite, tmp_path: Path) -> None:
    other = built(BlobStore(tmp_path / "store"), random_bytes("changed", LAYER_BYTES), title="changed")
    changed = write_bundle(tmp_path / "changed", {"docker.io/some/one:1": other})
    with site.registry() as wire:
        stopped_between_chunks(site, wire)
        done = run(*site.command(wire, bundle=changed), env=wire.env)
        assert done.code == 0, done.err
        check_pulled(wire.registry.url, ONE, "1", other)

        # And the old one again: what was sent of it is not lost over that.
        back = run(*site.command(wire), env=wire.env)
        assert back.code == 0, back.err
        site.check(wire)
        assert sum(size for _, size in wire.accepted()) == sizes(site) + LAYER_BYTES


# --- two at once ---------------------------------------------------------------------------------------------------


def test_two_pushers_at_once_with_states_of_their_own_both_end_well(site: ChunkedSite, tmp_path: Path) -> None:
    met = threading.Barrier(2, timeout=20)
    with Registry() as registry, Wire(registry) as left, Wire(registry) as right:
        # Both have opened their sessions when the first chunk of either passes.
        for wire in (left, right):
            wire.call_at(Point("PATCH", 1, "before"), partial(met.wait, 20), cut=False)
        runs = [
            (site.command(wire, "--state", tmp_path / name), wire.env)
            for name, wire in {"left": left, "right": right}.items()
        ]
        with Together(*runs) as both:
            results = both.end()

        assert [result.code for result in results] == [0, 0], [result.err for result in results]
        site.check(left)
        assert not met.broken


@pytest.mark.parametrize("chunked", [True, False], ids=["in chunks", "whole"])
def test_two_pushers_at_once_leave_no_lying_tag(site: ChunkedSite, tmp_path: Path, *, chunked: bool) -> None:
    with GatedRegistry() as target:
        gate = target.gate("PATCH" if chunked else "PUT", "/blobs/uploads/")
        options = ["--chunk-size", str(CHUNK_BYTES)] if chunked else []
        runs: list[tuple[list[str | Path], dict[str, str]]] = [
            (["push", site.bundle, target.url, "--state", tmp_path / name, "--jobs", "2", *options], {})
            for name in ("left", "right")
        ]
        with Together(*runs) as both:
            gate.wait_for(4)
            gate.open()
            results = both.end()

        assert [result.code for result in results] == [0, 0], [result.err for result in results]
        assert target.violations == []
        assert all(complete(target, name[10:-2], "1", image) for name, image in site.images.items())
