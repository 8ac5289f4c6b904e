"""``make bench``: time and memory of bundle and push, side by side with skopeo on the same images and registries.

Prints figures and judges none of them: a machine's mood is not a test result.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.images import AMD64, ImageFactory, publish_k3s
from tests.support.programs import find_program
from tests.support.registry import Registry

ROUNDS = 3
#: Sizes of the eleven images of a real release and one app, scaled to about 600 MB for one platform.
SCALE = 1.7
IMAGES = [
    "docker.io/rancher/k3s-upgrade:v1.32.3-k3s1",
    "docker.io/rancher/klipper-helm:v0.9.4-build20250113",
    "docker.io/rancher/klipper-lb:v0.4.13",
    "docker.io/rancher/kubectl:v1.30.3",
    "docker.io/rancher/local-path-provisioner:v0.0.31",
    "docker.io/rancher/mirrored-coredns-coredns:1.12.0",
    "docker.io/rancher/mirrored-library-busybox:1.36.1",
    "docker.io/rancher/mirrored-library-traefik:3.3.2",
    "docker.io/rancher/mirrored-metrics-server:v0.7.2",
    "docker.io/rancher/mirrored-pause:3.6",
    "docker.io/rancher/system-upgrade-controller:v0.20.1",
    "docker.io/acme/app:1.0",
]


@dataclass(frozen=True)
class Run:
    """One measured run of one or more programs: wall seconds and the highest resident set of any of them."""

    seconds: float
    peak_mib: float


def measure(*commands: list[str]) -> Run:
    """Run programs one after another."""
    peak = 0
    # What an earlier run left to be written must not slow this one down.
    os.sync()
    started = time.perf_counter()
    for command in commands:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        errors = process.stderr.read()
        process.stderr.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{command[0]} ended with {process.returncode}:\n{errors}")
        peak = max(peak, usage.ru_maxrss)
    return Run(time.perf_counter() - started, peak / 1024)


def path_of(reference: str) -> str:
    """Return the part of a reference behind its registry."""
    return reference.partition("/")[2]


def report(what: str, ours: list[Run], theirs: list[Run]) -> None:
    """Print one row: medians, their ratio, our peak memory."""
    own = statistics.median(run.seconds for run in ours)
    other = statistics.median(run.seconds for run in theirs)
    peak = max(run.peak_mib for run in ours)
    print(f"{what:<6} airgap-sync {own:6.2f} s   skopeo {other:6.2f} s   ratio {own / other:.2f}   RSS {peak:.0f} MiB")


def main() -> None:
    """Measure and print."""
    airgap_sync, skopeo = [sys.executable, "-m", "bundler"], str(find_program("skopeo"))
    cache = Path(os.environ.get("AIRGAP_SYNC_BENCH_CACHE", ".cache/bench"))
    cache.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[Run]] = {"pull": [], "skopeo pull": [], "push": [], "skopeo push": []}
    with Registry() as upstream, tempfile.TemporaryDirectory(prefix="airgap-sync-bench-", dir=cache) as name:
        work = Path(name)
        images = publish_k3s(upstream.url, ImageFactory(cache / "images"), IMAGES, SCALE, (AMD64,))
        size = sum({blob.digest: blob.size for image in images.values() for blob in image.blobs}.values())
        print(f"{len(images)} images, {size / 1e6:.0f} MB, linux/amd64; median of {ROUNDS} rounds")
        registries = work / "registries.yaml"
        registries.write_text(f"mirrors:\n  docker.io:\n    endpoint: ['{upstream.url}']\n")
        wanted = [argument for image in IMAGES for argument in ("--image", image)]
        for _ in range(ROUNDS):
            ours, theirs = work / "ours", work / "theirs"
            bundle = [*airgap_sync, "bundle", *wanted, "--to", str(ours), "--registries", str(registries)]
            runs["pull"].append(measure(bundle))
            runs["skopeo pull"].append(
                measure(
                    *(
                        [skopeo, "copy", "-q", "--all", "--src-tls-verify=false",
                         f"docker://{upstream.host}/{path_of(image)}", f"oci:{theirs}:{image}"]
                        for image in IMAGES
                    )
                )
            )  # fmt: skip
            with Registry() as target:
                push = [*airgap_sync, "push", str(ours), target.url, "--state", str(work / "state")]
                runs["push"].append(measure(push))
            with Registry() as target:
                runs["skopeo push"].append(
                    measure(
                        *(
                            [skopeo, "copy", "-q", "--all", "--dest-tls-verify=false",
                             f"oci:{theirs}:{image}", f"docker://{target.host}/{path_of(image)}"]
                            for image in IMAGES
                        )
                    )
                )  # fmt: skip
            shutil.rmtree(ours)
            shutil.rmtree(theirs)
    report("pull", runs["pull"], runs["skopeo pull"])
    report("push", runs["push"], runs["skopeo push"])
    helps = [measure([*airgap_sync, "--help"]).seconds for _ in range(10)]
    print(f"--help {statistics.median(helps) * 1000:.0f} ms (median of {len(helps)})")


if __name__ == "__main__":
    main()
