"""The node that we run on: what K3s was told there, and what containerd was made of it."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from bundler.errors import BadHostsFileError, BadRegistriesFileError
from bundler.oci.platform import Platform

_DATA = "var/lib/rancher/k3s"
_CONFIG = "etc/rancher/k3s"
_CERTS = f"{_DATA}/agent/etc/containerd/certs.d"
_MAX_FILE_BYTES = 1024 * 1024
#: What `uname -m` says, where it is another word than an image's.
_MACHINES = {"armv7l": "arm/v7", "armv6l": "arm/v6", "armv8l": "arm/v7", "i686": "386", "i386": "386"}


@dataclass(frozen=True, slots=True)
class LocalNode:
    """A node as its files show it.

    Attributes:
        root: Where its file system begins: ``/``, or where it is mounted.
        registries: The place and text of its registries.yaml; None if it has none.
        hosts: The text of each hosts.toml that K3s made, by the name of its directory.
        changed_after_start: registries.yaml is newer than all of these.
    """

    root: Path
    registries: tuple[str, str] | None
    hosts: dict[str, str]
    changed_after_start: bool = False

    @property
    def certs_d(self) -> Path:
        """Where K3s writes what containerd asks."""
        return self.root / _CERTS

    @property
    def socket(self) -> Path:
        """Where its containerd listens."""
        return self.root / "run/k3s/containerd/containerd.sock"


def read_node(root: Path) -> LocalNode | None:
    """Return the node whose file system begins at ``root``; None if that is none.

    Raises:
        BadRegistriesFileError: Its registries.yaml cannot be read.
        BadHostsFileError: A hosts.toml cannot be read.
    """
    registries = None
    path = root / _CONFIG / "registries.yaml"
    try:
        if not _is_directory(root / _DATA / "agent"):
            return None
        registries = (str(path), _text(path))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise BadRegistriesFileError(f"{path} cannot be read: {error}", hint="Run this as root on a node.") from error
    hosts = {}
    written = []
    certs = root / _CERTS
    try:
        for directory in sorted(certs.iterdir()) if certs.is_dir() else ():
            if (directory / "hosts.toml").is_file():
                hosts[directory.name] = _text(directory / "hosts.toml")
                written.append((directory / "hosts.toml").stat().st_mtime)
        newer = bool(registries and written) and path.stat().st_mtime > max(written)
    except (OSError, ValueError) as error:
        raise BadHostsFileError(f"{certs} cannot be read: {error}", hint="Run this as root on a node.") from error
    return LocalNode(root, registries, hosts, newer)


def platform_of_machine(machine: str) -> Platform:
    """Return the platform of a node from what ``uname -m`` says."""
    return Platform.parse(f"linux/{_MACHINES.get(machine, machine)}")


def _is_directory(path: Path) -> bool:
    """Tell whether a directory is there; unlike pathlib, never that it is not because it may not be seen."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(_MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise ValueError(f"more than {_MAX_FILE_BYTES} bytes")
    return data.decode()
