"""Small real disks: a tmpfs of any size, mounted for a test and taken away after it."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PAGE = 4096


@dataclass(frozen=True)
class Disk:
    """A mounted tmpfs."""

    path: Path

    def resize(self, size: int) -> None:
        """Give it another size, in bytes."""
        self._remount(f"size={size}")

    def read_only(self) -> None:
        """Let nobody write to it any more."""
        self._remount("ro")

    def writable(self) -> None:
        """Let everybody write to it again."""
        self._remount("rw")

    @property
    def free(self) -> int:
        """Bytes that are free."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int = 0) -> Path:
        """Fill it with one file but for some bytes, and give that file."""
        filler = self.path / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            # Others may write at the same time: it ends when there is no more room.
            while (left := self.free - leave) > 0:
                file.write(bytes(min(left, 1 << 20)))
        return filler

    def _remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", self.path], check=True, timeout=20)


@contextmanager
def small_disk(path: Path, size: int, *, inodes: int = 0) -> Iterator[Disk]:
    """Mount a tmpfs; skip the running test where that is not possible, and fail it in CI.

    Args:
        path: Where; made if need be.
        size: In bytes.
        inodes: How many files and directories it can hold; 0 for any number.
    """
    path.mkdir(exist_ok=True)
    options = f"size={size},nr_inodes={inodes}"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, text=True, timeout=20, check=False
    )
    if done.returncode:
        import pytest  # noqa: PLC0415 - the soak uses this module without pytest

        if os.environ.get("CI") == "true":
            pytest.fail(f"a tmpfs cannot be mounted here: {done.stderr}")
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True, timeout=20)


def scratch(size: int) -> Path:
    """Give a new directory with room for so many bytes; the caller removes it.

    Raises:
        OSError: There is no such room where temporary files go.
    """
    path = Path(tempfile.mkdtemp(prefix="airgap-sync-"))
    found = os.statvfs(path)
    if found.f_bavail * found.f_frsize < size:
        path.rmdir()
        raise OSError(f"{path.parent} has no {size} bytes free; choose another place with TMPDIR")
    return path
