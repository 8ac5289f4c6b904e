"""``make soak``: the long forms of the tests that a day is too short for, and their figures.

Every number can be set, for a quick try or a longer run: AIRGAP_SYNC_SOAK_KILLS (of bundle, of push, each),
AIRGAP_SYNC_SOAK_CHUNKED_KILLS (of pushes in chunks to a real registry), AIRGAP_SYNC_SOAK_LAYER_MB,
AIRGAP_SYNC_SOAK_IMAGES, AIRGAP_SYNC_SOAK_FUZZ_SECONDS and AIRGAP_SYNC_SEED.
It ends with 1 where anything did not hold.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests import fuzz
from tests.support.bundles import command, one
from tests.support.chunked import ChunkedSite
from tests.support.disks import scratch
from tests.support.handmade import write_bundle
from tests.support.images import BlobStore
from tests.support.kills import BundleSite, KillingRegistry, PushSite, Tally, seed_from
from tests.support.large import LargeImage, pushed_and_bundled
from tests.support.measured import Measured, measured
from tests.support.registry import Registry

PEAK_KIB = 80 * 1024
#: Less than the large layer: what held it in memory, or mapped it, would end here.
ADDRESS_SPACE = 1 << 30
SEED = 20_250_302


def number(name: str, default: int) -> int:
    """Give a number that may be set from outside."""
    return int(os.environ.get(f"AIRGAP_SYNC_SOAK_{name}", str(default)))


def kill(what: str, kills: int, tally: Tally, chain: Callable[[], None]) -> None:
    """Do chains of kills until there were so many."""
    started, goal, told = time.monotonic(), tally.kills + kills, 0
    while tally.kills < goal:
        chain()
        if tally.kills // 50 > told:
            told = tally.kills // 50
            print(f"{what}: {kills - max(0, goal - tally.kills)} kills, {len(tally.violations)} violations", flush=True)
    print(f"{what}: {kills} kills in {time.monotonic() - started:.0f} s", flush=True)


def large_layer(size: int, work: Path) -> list[Measured]:
    """Push one large layer to a registry and bundle it from there."""
    image = LargeImage.make(work / "large", size)
    return list(pushed_and_bundled(image, work / "large-out", address_space=ADDRESS_SPACE))


def many_images(count: int, work: Path) -> list[Measured]:
    """Push many small images to a registry and bundle them from there."""
    store = BlobStore(work / "many-store")
    images = {f"docker.io/some/image-{item}:1": one(store, f"image {item}", 20_000) for item in range(count)}
    bundle = write_bundle(work / "many", images)
    with Registry() as registry:
        push = measured("push", bundle, registry.url, "--state", work / "state", address_space=ADDRESS_SPACE)
        references = [f"{registry.host}/some/image-{item}:1" for item in range(count)]
        pull = measured(*command(references, work / "many-out"), address_space=ADDRESS_SPACE)
    return [push, pull]


def main() -> None:
    """Do it all, print the figures, and fail where something did not hold."""
    started, tally = time.monotonic(), Tally()
    seed = seed_from("AIRGAP_SYNC_SEED", SEED)
    kills, layer_mb, images = number("KILLS", 200), number("LAYER_MB", 2000), number("IMAGES", 300)
    with tempfile.TemporaryDirectory(prefix="airgap-sync-soak-") as name, KillingRegistry() as upstream:
        (Path(name) / "bundle-site").mkdir()
        (Path(name) / "push-site").mkdir()
        bundle_chance, push_chance = random.Random(f"bundle {seed}"), random.Random(f"push {seed}")
        bundles = BundleSite(Path(name) / "bundle-site", upstream)
        kill("bundle", kills, tally, lambda: bundles.chain(bundle_chance, tally))
        pushes = PushSite(Path(name) / "push-site")
        kill("push", kills, tally, lambda: pushes.chain(push_chance, tally))
        (Path(name) / "chunked-site").mkdir()
        chunked_chance = random.Random(f"chunked {seed}")
        chunked = ChunkedSite(Path(name) / "chunked-site", jobs=3)
        kill("push in chunks", number("CHUNKED_KILLS", 100), tally, lambda: chunked.chain(chunked_chance, tally))
    executions = fuzz.main(number("FUZZ_SECONDS", 120))
    # The layer, its bundle, and the registry's storage.
    work = scratch(4 * layer_mb * 1_000_000)
    peaks: dict[str, int] = {}
    try:
        for what, runs in (
            (f"{layer_mb} MB layer", large_layer(layer_mb * 1_000_000, work)),
            (f"{images} images", many_images(images, work)),
        ):
            for verb, run in zip(("push", "bundle"), runs, strict=True):
                tally.check(run.result.code == 0, f"{verb} of {what} ended with {run.result.code}: {run.result.err}")
                peaks[f"{verb} of {what}"] = run.peak_kib
                tally.check(run.peak_kib <= PEAK_KIB, f"{verb} of {what} took {run.peak_kib} KiB")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print()
    by_signal = ", ".join(f"{count} {which}" for which, count in sorted(tally.by_signal.items()))
    print(f"kills done               {tally.kills} ({by_signal})")
    print(f"resumes to the end       {tally.resumes}")
    print(f"bytes transferred twice  {tally.bytes_twice}")
    for what, peak_kib in peaks.items():
        print(f"peak RSS                 {peak_kib / 1024:.1f} MiB, {what}")
    print(f"fuzz executions          {executions}")
    print(f"runtime                  {time.monotonic() - started:.0f} s")
    for violation in tally.violations:
        print(f"VIOLATION: {violation}", file=sys.stderr)
    sys.exit(1 if tally.violations or tally.bytes_twice else 0)


if __name__ == "__main__":
    main()
