"""A node as its files show it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bundler.errors import BadHostsFileError, BadPlatformError, BadRegistriesFileError
from bundler.site.node import platform_of_machine, read_node

AGENT = "var/lib/rancher/k3s/agent"
CERTS = f"{AGENT}/etc/containerd/certs.d"


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_machine_without_k3s_is_no_node(tmp_path: Path) -> None:
    assert read_node(tmp_path) is None
    write(tmp_path / "etc/rancher/k3s/registries.yaml", b"mirrors: {}\n")
    assert read_node(tmp_path) is None
    write(tmp_path / AGENT, b"a file")
    assert read_node(tmp_path) is None


def test_a_node_without_registries(tmp_path: Path) -> None:
    (tmp_path / AGENT).mkdir(parents=True)
    node = read_node(tmp_path)
    assert node is not None
    assert node.registries is None
    assert node.hosts == {}
    assert node.socket == tmp_path / "run/k3s/containerd/containerd.sock"
    assert node.certs_d == tmp_path / CERTS


def test_files_are_read_as_they_are(tmp_path: Path) -> None:
    registries = write(tmp_path / "etc/rancher/k3s/registries.yaml", "mirrors: {}  # ä\n".encode())
    write(tmp_path / CERTS / "docker.io/hosts.toml", b"[host]\n")
    write(tmp_path / CERTS / "_default/hosts.toml", b"")
    (tmp_path / CERTS / "ghcr.io").mkdir()
    write(tmp_path / CERTS / "quay.io/ca.pem", b"no hosts.toml")
    write(tmp_path / CERTS / "readme", b"no directory")
    node = read_node(tmp_path)
    assert node is not None
    assert node.registries == (str(registries), "mirrors: {}  # ä\n")
    assert node.hosts == {"docker.io": "[host]\n", "_default": ""}


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / CERTS / "docker.io/hosts.toml", b"\xff\xfe")
    with pytest.raises(BadHostsFileError, match="cannot be read"):
        read_node(tmp_path)
    path.unlink()
    registries = write(tmp_path / "etc/rancher/k3s/registries.yaml", b"\xff\xfe")
    with pytest.raises(BadRegistriesFileError, match="cannot be read") as raised:
        read_node(tmp_path)
    assert str(registries) in raised.value.message
    assert "as root" in raised.value.hint


def test_a_directory_in_the_place_of_registries_yaml(tmp_path: Path) -> None:
    (tmp_path / AGENT).mkdir(parents=True)
    (tmp_path / "etc/rancher/k3s/registries.yaml").mkdir(parents=True)
    with pytest.raises(BadRegistriesFileError, match="cannot be read"):
        read_node(tmp_path)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / CERTS / "docker.io/hosts.toml", b"#" * (1024 * 1024))
    read_node(tmp_path)
    path.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(BadHostsFileError, match="more than 1048576 bytes"):
        read_node(tmp_path)


@pytest.mark.parametrize(
    ("at", "hosts", "newer"),
    [
        (30, {"docker.io": 10, "ghcr.io": 20}, True),
        (15, {"docker.io": 10, "ghcr.io": 20}, False),
        (20, {"docker.io": 10, "ghcr.io": 20}, False),
        (5, {"docker.io": 10, "ghcr.io": 20}, False),
        (30, {}, False),
        (None, {"docker.io": 10}, False),
    ],
    ids=["newest", "between", "same", "oldest", "no-hosts", "no-registries"],
)
def test_whether_registries_yaml_was_changed_since_k3s_started(
    tmp_path: Path, at: int | None, hosts: dict[str, int], newer: bool
) -> None:
    (tmp_path / CERTS).mkdir(parents=True)
    for name, time in hosts.items():
        os.utime(write(tmp_path / CERTS / name / "hosts.toml", b""), (time, time))
    if at is not None:
        os.utime(write(tmp_path / "etc/rancher/k3s/registries.yaml", b""), (at, at))
    node = read_node(tmp_path)
    assert node is not None
    assert node.changed_after_start is newer


#: Reads a node as a user who may read nothing but what everybody may.
_AS_NOBODY = """
import os, sys
from pathlib import Path
from bundler.errors import AirgapSyncError
from bundler.site.node import read_node
if os.geteuid() == 0:
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
try:
    print(read_node(Path(sys.argv[1])))
except AirgapSyncError as error:
    print(type(error).__name__, error.message, error.hint, sep="; ")
"""


@pytest.mark.parametrize(
    ("closed", "error"),
    [
        ("var/lib/rancher", "BadRegistriesFileError"),
        ("etc/rancher", "BadRegistriesFileError"),
        ("etc/rancher/k3s/registries.yaml", "BadRegistriesFileError"),
        (f"{AGENT}/etc", "BadHostsFileError"),
        (f"{CERTS}/docker.io", "BadHostsFileError"),
        (f"{CERTS}/docker.io/hosts.toml", "BadHostsFileError"),
    ],
    ids=["data", "config", "registries", "agent", "directory", "hosts"],
)
def test_what_only_root_may_read_is_said(closed: str, error: str) -> None:
    # Not below pytest's directories, which are closed themselves.
    with tempfile.TemporaryDirectory(prefix="node-") as name:
        root = Path(name)
        root.chmod(0o755)
        write(root / "etc/rancher/k3s/registries.yaml", b"mirrors: {}\n")
        write(root / CERTS / "docker.io/hosts.toml", b"")

        def said() -> str:
            command = [sys.executable, "-c", _AS_NOBODY, str(root)]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        assert said().startswith("LocalNode(")
        (root / closed).chmod(0)
        try:
            assert said().startswith(f"{error}; ")
            assert "cannot be read: [Errno 13]" in said()
            assert said().endswith("; Run this as root on a node.\n")
        finally:
            (root / closed).chmod(0o755)


@pytest.mark.parametrize(
    ("machine", "platform"),
    [
        ("x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("armv7l", "linux/arm/v7"),
        ("armv8l", "linux/arm/v7"),
        ("armv6l", "linux/arm/v6"),
        ("i686", "linux/386"),
        ("s390x", "linux/s390x"),
        ("riscv64", "linux/riscv64"),
    ],
)
def test_platforms_of_machines(machine: str, platform: str) -> None:
    assert str(platform_of_machine(machine)) == platform


def test_a_machine_that_nobody_knows() -> None:
    with pytest.raises(BadPlatformError):
        platform_of_machine("vax")
