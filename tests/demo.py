"""``make demo``: the main job on one machine, with real registries, real images and the real commands.

An "internet" of our own stands on 127.0.0.1: a registry filled with images under the names of one K3s release, and
a release server with its image list. The "site" is another registry, empty at first. Nothing else is touched, and
everything that was started is stopped.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.images import PLATFORMS, ImageFactory, publish_k3s
from tests.support.registry import Registry
from tests.support.releases import ReleaseServer

VERSION = "v1.32.3+k3s1"
#: A quarter of the real sizes: enough to see bytes move.
SCALE = 0.25


class Demo:
    """Runs airgap-sync as a user would, showing command and output."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._environment = {**os.environ, "XDG_STATE_HOME": str(work / "state"), "COLUMNS": "120"}

    def run(self, *arguments: str, show: bool = True) -> str:
        """Run one command in the demo's folder; stop the demo if it fails."""
        if show:
            print(f"\n$ airgap-sync {shlex.join(arguments)}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "bundler", *arguments],
            cwd=self._work,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if show:
            print(done.stdout, end="", flush=True)
        if done.returncode:
            sys.exit(f"demo: this command ended with {done.returncode}")
        return done.stdout


def say(text: str) -> None:
    """Tell what comes next."""
    print(f"\n=== {text}", flush=True)


def main() -> None:
    """Run the demo."""
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    with tempfile.TemporaryDirectory(prefix="airgap-sync-demo-") as name, Registry() as upstream, Registry() as site:
        work = Path(name)
        demo = Demo(work)
        references = demo.run("images", "--k3s", VERSION, "--release-url", "shipped", show=False).split()
        say(
            f"Preparing an upstream registry on {upstream.host}: {len(references)} images, made of this machine's files"
        )
        publish_k3s(upstream.url, ImageFactory(work / "images"), references, SCALE, PLATFORMS)
        (work / "registries.yaml").write_text(f"mirrors:\n  docker.io:\n    endpoint:\n      - {upstream.url}\n")
        listed = "".join(f"{line}\n" for line in references if line.partition(":")[0] not in UPGRADE_IMAGES)
        with ReleaseServer({VERSION: listed}) as releases:
            source = ("--k3s", VERSION, "--release-url", releases.url)
            say("Connected side 1: which images does this release need?")
            demo.run("images", *source)
            say("Connected side 2: write them to the transfer medium")
            platforms = ("--platform", "linux/amd64", "--platform", "linux/arm64")
            demo.run("bundle", *source, *platforms, "--registries", "registries.yaml", "--to", "medium")
        say(f"Isolated side 1: load the medium into the site's registry on {site.host}")
        before = site.mark()
        demo.run("push", "medium", site.url)
        say("Isolated side 2: the same again; everything is there, so one question an image is all that is sent")
        middle = site.mark()
        demo.run("push", "medium", site.url)
        first, second = len(site.since(before)) - len(site.since(middle)), site.since(middle)
        methods = ", ".join(sorted({entry.method for entry in second}))
        say(f"The site's access log: {first} requests for the first push, {len(second)} ({methods}) for the second")
        say("Isolated side 3: what nodes and cluster need besides the images")
        demo.run("config", "medium", "--target", site.url, "--from", "v1.31.7+k3s1", "--to", "files")
        say("Isolated side 4: proof, before anything is upgraded, that nodes will find all of it as they look for it")
        demo.run("preflight", "medium", "--config", "files")
        say("Done. files/RUNBOOK.md has the rest: every step for this bundle, each with its check, and the way back.")


#: In the set, but not in the release's own list.
UPGRADE_IMAGES = {
    "docker.io/rancher/k3s-upgrade",
    "docker.io/rancher/system-upgrade-controller",
    "docker.io/rancher/kubectl",
}


if __name__ == "__main__":
    main()
