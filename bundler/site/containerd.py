"""The images that a node has, as its containerd tells through its own client, ``k3s ctr`` or ``ctr``. Read only.

Source: containerd, ``cmd/ctr/commands/images/images.go`` (``check``); K3s keeps all images in the namespace k8s.io.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from bundler.bundle.selection import best
from bundler.errors import (
    AirgapSyncError,
    BadDigestError,
    ConnectionFailedError,
    TimedOutError,
    UnexpectedAnswerError,
)
from bundler.oci.digest import Digest
from bundler.oci.manifest import Index, Manifest, parse
from bundler.oci.platform import Platform

#: Where K3s has its containerd.
K3S_ADDRESS = Path("/run/k3s/containerd/containerd.sock")
NAMESPACE = "k8s.io"
_HEADER = ("REF", "TYPE", "DIGEST", "STATUS")
_COMPLETE = "complete"


def find_ctr(path: str | None) -> tuple[str, ...] | None:
    """Return the command of containerd's client: K3s's own, else ``ctr``; None if there is neither.

    Args:
        path: Directories to look in, as in PATH; None or empty finds nothing.
    """
    if not path:
        return None
    if k3s := shutil.which("k3s", path=path):
        return (k3s, "ctr")
    if ctr := shutil.which("ctr", path=path):
        return (ctr,)
    return None


class Containerd:
    """The containerd of this node.

    Args:
        address: Its socket.
        ctr: The command of its client, as ``find_ctr`` finds it.
        timeout_s: How long the client may take.
    """

    def __init__(self, address: Path, ctr: tuple[str, ...], timeout_s: float = 60.0) -> None:
        self._address = address
        self._ctr = ctr
        self._timeout_s = timeout_s

    def complete_images(self) -> dict[str, Digest]:
        """Return the images of which nothing is missing, by full name, with the digest of what each stands for.

        Of an index, what this node's platform needs is enough. A manifest that is no index counts whatever its
        platform is: compare its digest. Whether an image is unpacked makes no difference: a pod's start does that.

        Raises:
            ConnectionFailedError: The client cannot be run, or containerd does not answer it.
            TimedOutError: The client took too long.
            UnexpectedAnswerError: What it prints is not understood.
        """
        done = self._run("images", "check")
        lines = done.stdout.splitlines()
        if not lines and done.returncode == 0:
            return {}
        if not lines:
            raise self._failed(done)
        # The client fails as soon as one image cannot be unpacked or is missing parts; its table is whole even so.
        if tuple(lines[0].split()[: len(_HEADER)]) != _HEADER:
            raise UnexpectedAnswerError(
                f"`{self._command}` printed no table of images", hint="Run it by hand to see what it prints."
            )
        rows = (line.split() for line in lines[1:])
        complete = (row for row in rows if len(row) >= len(_HEADER) and row[3] == _COMPLETE)
        try:
            return {name: Digest.parse(digest) for name, _, digest, *_ in complete}
        except BadDigestError as error:
            raise UnexpectedAnswerError(f"`{self._command}` printed a table that is not understood") from error

    def config_digest(self, target: Digest, platform: Platform) -> Digest | None:
        """Return the digest of the config of an image that is here, which is the same wherever it came from.

        Args:
            target: What the image's name stands for.
            platform: Of this node.

        Raises:
            ConnectionFailedError: containerd does not have it, or does not answer.
            TimedOutError: The client took too long.
            BadManifestError: It is no manifest.
        """
        document = self._document(target)
        if isinstance(document, Index):
            stated = {child.digest: child.platform for child in document.manifests if child.platform}
            suited = best(platform, stated)
            chosen = next((child.digest for child in document.manifests if child.digest in suited), None)
            document = self._document(chosen) if chosen else document
        return document.config.digest if isinstance(document, Manifest) else None

    def _document(self, digest: Digest) -> Manifest | Index:
        done = self._run("content", "get", str(digest))
        if done.returncode:
            raise self._failed(done)
        return parse(done.stdout.encode(), "", digest=digest)

    @property
    def _command(self) -> str:
        return f"{' '.join(self._ctr)} -a {self._address} -n {NAMESPACE} images check"

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*self._ctr, "-a", str(self._address), "-n", NAMESPACE, *arguments]
        try:
            return subprocess.run(  # noqa: S603 - no shell, and every word is ours or the user's
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=self._timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise TimedOutError(
                f"`{self._command}` did not end within {self._timeout_s:g} s",
                hint="Check that K3s runs on this node (`systemctl status k3s` or `k3s-agent`).",
            ) from error
        except OSError as error:
            raise ConnectionFailedError(
                f"{self._ctr[0]} cannot be run: {error.strerror}", hint="Run this on a node of K3s, as root."
            ) from error

    def _failed(self, done: subprocess.CompletedProcess[str]) -> AirgapSyncError:
        said = (done.stderr.strip().splitlines() or [""])[-1][:300]
        return ConnectionFailedError(
            f"`{self._command}` failed with {done.returncode}{f': {said}' if said else ''}",
            hint="Run this as root on a node where K3s runs (`systemctl status k3s` or `k3s-agent`).",
        )
