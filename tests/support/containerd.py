"""A real containerd of its own, to pull images the way a K3s node does."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.content import Platform
from tests.support.programs import Process, find_program

# JSON strings are TOML strings too.
_CONFIG = """\
version = 2
root = {root}
state = {state}
oom_score = 0
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.opt"]

[grpc]
address = {socket}
"""


class Containerd:
    """Context manager around a containerd with its own directories, socket and content.

    Attributes:
        snapshotter: `overlayfs` where that works on this machine, else `native`.
    """

    namespace = "k8s.io"

    def __init__(self) -> None:
        # The path of a unix socket may have about 100 characters, so it is not below a test's directory.
        self._directory = Path(tempfile.mkdtemp(prefix="containerd-"))
        self.socket = self._directory / "socket"
        self.log = self._directory / "log"
        self.snapshotter = "overlayfs" if _can_overlay(self._directory) else "native"
        self._process: Process | None = None

    def start(self) -> Self:
        """Start it on what it has."""
        config = self._directory / "config.toml"
        places = {name: json.dumps(str(self._directory / name)) for name in ("root", "state", "socket")}
        config.write_text(_CONFIG.format(**places))
        self._process = Process([find_program("containerd"), "--config", config], self.log)
        self._process.wait_for_socket(self.socket)
        # The socket is there before all services behind it are.
        self._process.wait_for(lambda: self.ctr("version", check=False).returncode == 0, "containerd")
        return self

    def stop(self) -> None:
        """Stop it; its content stays."""
        if self._process:
            self._process.stop()

    def close(self) -> None:
        """Stop it and remove everything."""
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ctr(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run containerd's command line client.

        Raises:
            RuntimeError: It failed, and `check` was asked for. The message carries its output.
        """
        ran = subprocess.run(
            [find_program("ctr"), "-a", self.socket, "-n", self.namespace, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        if check and ran.returncode:
            raise RuntimeError(f"ctr {' '.join(map(str, arguments))}: {ran.stdout}{ran.stderr}")
        return ran

    def pull(
        self, reference: str, platform: Platform | str, hosts_dir: Path, *, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Pull and unpack an image for a platform, from where `hosts_dir` says."""
        options = ["--platform", str(platform), "--snapshotter", self.snapshotter]
        return self.ctr("images", "pull", "--hosts-dir", hosts_dir, *options, reference, check=check)

    def import_tar(self, path: Path, *flags: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Import an image archive."""
        options = ["--snapshotter", self.snapshotter, *flags]
        return self.ctr("images", "import", *options, path, check=check)

    def images(self) -> dict[str, str]:
        """Give the digests of all images by name."""
        lines = self.ctr("images", "ls").stdout.splitlines()[1:]
        columns = [line.split() for line in lines]
        return {name: digest for name, _, digest, *_ in columns}

    def content(self) -> set[str]:
        """Give the digests of all content it has."""
        return set(self.ctr("content", "ls", "-q").stdout.split())

    def forget(self) -> None:
        """Remove all images and, before returning, their content."""
        if names := list(self.images()):
            self.ctr("images", "rm", "--sync", *names)


def write_hosts(
    hosts_dir: Path,
    registry: str = "docker.io",
    target_url: str = "http://127.0.0.1:5000",
    prefix: str | None = None,
    *,
    ca_file: Path | None = None,
) -> None:
    """Tell containerd to get all images of a registry from another one, and never from itself.

    Args:
        hosts_dir: Directory to give to `Containerd.pull`.
        registry: The registry that image names carry.
        target_url: The registry to ask instead.
        prefix: First part of the path there, in front of the path in the image's name.
        ca_file: Certificate to trust.
    """
    options = [f"override_path = {json.dumps(bool(prefix))}", 'capabilities = ["pull", "resolve"]']
    if ca_file:
        options.append(f"ca = {json.dumps(str(ca_file))}")
    url = json.dumps(f"{target_url}/v2/{prefix}" if prefix else target_url)
    # `server` is asked last, when no host has the image. It is the real registry unless named here.
    lines = [f"server = {url}", *options, "", f"[host.{url}]", *(f"  {option}" for option in options)]
    directory = hosts_dir / registry
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "hosts.toml").write_text("\n".join(lines) + "\n")


def _can_overlay(directory: Path) -> bool:
    with tempfile.TemporaryDirectory(dir=directory, prefix="overlay-") as name:
        lower, upper, work, merged = (Path(name) / part for part in ("lower", "upper", "work", "merged"))
        for place in (lower, upper, work, merged):
            place.mkdir()
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        mount = ["mount", "-t", "overlay", "overlay", "-o", options, str(merged)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            return False
        subprocess.run(["umount", merged], capture_output=True, check=True)
        return True
