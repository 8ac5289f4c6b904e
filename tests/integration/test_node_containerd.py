"""What a node's containerd has, told by a real one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundler.errors import BadManifestError, ConnectionFailedError, TimedOutError, UnexpectedAnswerError
from bundler.oci.digest import Digest
from bundler.oci.platform import Platform
from bundler.site.containerd import Containerd as NodeContainerd
from bundler.site.containerd import find_ctr
from tests.support.bundles import layer_of
from tests.support.containerd import Containerd, write_hosts
from tests.support.faulty import FaultyRegistry
from tests.support.images import AMD64, ARM, ARM64, BlobStore, Entry, index_of, single
from tests.support.programs import find_program

HERE = {"x86_64": AMD64, "aarch64": ARM64, "armv7l": ARM}[os.uname().machine]
ELSEWHERE = ARM64 if HERE == AMD64 else AMD64


@pytest.fixture(scope="module")
def upstream() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        yield registry


@pytest.fixture
def node() -> Iterator[Containerd]:
    with Containerd() as containerd:
        yield containerd


@pytest.fixture
def asked(node: Containerd) -> NodeContainerd:
    return NodeContainerd(node.socket, (str(find_program("ctr")),), 30)


@pytest.fixture
def hosts(upstream: FaultyRegistry, tmp_path: Path) -> Path:
    write_hosts(tmp_path / "hosts", target_url=upstream.origin)
    return tmp_path / "hosts"


def script(path: Path, text: str) -> tuple[str, ...]:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return (str(path),)


def test_a_node_without_images(asked: NodeContainerd) -> None:
    assert asked.complete_images() == {}


def test_images_are_told_by_name_and_digest_where_nothing_is_missing(
    node: Containerd, asked: NodeContainerd, upstream: FaultyRegistry, store: BlobStore, hosts: Path
) -> None:
    whole = single(store, HERE, {"etc/image": b"whole"})
    holed = single(store, HERE, {"etc/image": b"holed"})
    headless = single(store, HERE, {"etc/image": b"headless"})
    for name, image in (("whole", whole), ("holed", holed), ("headless", headless)):
        upstream.add(image, f"some/{name}", "1")
        node.pull(f"docker.io/some/{name}:1", HERE, hosts)
    digest_name = f"docker.io/some/whole@{whole.root_digest}"
    node.ctr("images", "tag", "docker.io/some/whole:1", digest_name)
    before = asked.complete_images()
    assert before["docker.io/some/holed:1"] == Digest.parse(holed.root_digest)

    node.ctr("content", "rm", layer_of(holed))
    node.ctr("content", "rm", headless.root_digest)

    expected = Digest.parse(whole.root_digest)
    assert asked.complete_images() == {"docker.io/some/whole:1": expected, digest_name: expected}


def test_of_an_index_this_platform_is_enough_and_another_is_not(
    node: Containerd, asked: NodeContainerd, upstream: FaultyRegistry, store: BlobStore, hosts: Path
) -> None:
    entries = {platform: Entry(single(store, platform), platform) for platform in (HERE, ELSEWHERE)}
    both, other = index_of(*entries.values()), index_of(entries[ELSEWHERE])
    for name, image in (("both", both), ("wrong", both), ("other", other)):
        upstream.add(image, f"some/{name}", "1")
    node.pull("docker.io/some/wrong:1", ELSEWHERE, hosts)
    node.pull("docker.io/some/other:1", ELSEWHERE, hosts)
    assert asked.complete_images() == {}
    node.pull("docker.io/some/both:1", HERE, hosts)
    assert asked.complete_images()["docker.io/some/both:1"] == Digest.parse(both.root_digest)
    assert "docker.io/some/other:1" not in asked.complete_images()


def test_a_manifest_alone_counts_whatever_its_platform(
    node: Containerd, asked: NodeContainerd, upstream: FaultyRegistry, store: BlobStore, hosts: Path
) -> None:
    image = single(store, ELSEWHERE, {"etc/image": b"alone"})
    upstream.add(image, "some/alone", "1")
    node.pull("docker.io/some/alone:1", ELSEWHERE, hosts)
    assert asked.complete_images() == {"docker.io/some/alone:1": Digest.parse(image.root_digest)}


def test_an_image_that_is_not_unpacked_is_complete(
    node: Containerd, upstream: FaultyRegistry, store: BlobStore, hosts: Path, tmp_path: Path
) -> None:
    image = single(store, HERE, {"etc/image": b"packed"})
    upstream.add(image, "some/packed", "1")
    node.pull("docker.io/some/packed:1", HERE, hosts)
    node.ctr("images", "export", tmp_path / "image.tar", "docker.io/some/packed:1")
    with Containerd() as fresh:
        fresh.import_tar(tmp_path / "image.tar", "--no-unpack")
        found = NodeContainerd(fresh.socket, (str(find_program("ctr")),), 30).complete_images()
    assert list(found) == ["docker.io/some/packed:1"]


def test_the_config_of_an_image_whatever_its_form(
    node: Containerd, asked: NodeContainerd, upstream: FaultyRegistry, store: BlobStore, hosts: Path
) -> None:
    here = single(store, HERE, {"etc/image": b"formed"})
    config = Digest.parse(here.blobs[0].digest)
    again = single(store, HERE, {"etc/image": b"formed"}, annotations={"made": "anew"})
    entries = (Entry(single(store, ELSEWHERE), ELSEWHERE), Entry(again, HERE))
    forms = {"alone": here, "again": again, "index": index_of(*entries), "other": index_of(entries[0])}
    for name, image in forms.items():
        upstream.add(image, f"some/{name}", "1")
        node.pull(f"docker.io/some/{name}:1", ELSEWHERE if name == "other" else HERE, hosts)
    found = {
        name: asked.config_digest(Digest.parse(image.root_digest), Platform.parse(str(HERE)))
        for name, image in forms.items()
    }
    assert found == {"alone": config, "again": config, "index": config, "other": None}


def test_the_config_of_what_is_not_there_or_no_manifest(
    node: Containerd, asked: NodeContainerd, upstream: FaultyRegistry, store: BlobStore, hosts: Path
) -> None:
    platform = Platform.parse(str(HERE))
    with pytest.raises(ConnectionFailedError):
        asked.config_digest(Digest.of(b"nothing"), platform)
    image = single(store, HERE, {"etc/image": b"torn"})
    upstream.add(image, "some/torn", "1")
    node.pull("docker.io/some/torn:1", HERE, hosts)
    with pytest.raises(BadManifestError):
        asked.config_digest(Digest.parse(image.blobs[0].digest), platform)


def test_a_containerd_that_is_down(tmp_path: Path) -> None:
    down = NodeContainerd(tmp_path / "socket", (str(find_program("ctr")), "--connect-timeout", "100ms"), 30)
    with pytest.raises(ConnectionFailedError, match=r"images check` failed with 1: ctr: ") as raised:
        down.complete_images()
    assert "as root" in raised.value.hint


def test_a_client_that_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailedError, match="cannot be run: No such file"):
        NodeContainerd(tmp_path / "socket", (str(tmp_path / "ctr"),)).complete_images()


def test_a_client_that_does_not_end(tmp_path: Path) -> None:
    slow = NodeContainerd(tmp_path / "socket", script(tmp_path / "ctr", "exec sleep 60"), 0.2)
    with pytest.raises(TimedOutError, match=r"did not end within 0\.2 s"):
        slow.complete_images()


@pytest.mark.parametrize(
    "printed", ["hello", "REF TYPE DIGEST STATUS SIZE UNPACKED\na b sha256:12 complete (1/1)"], ids=["text", "digest"]
)
def test_a_client_that_prints_something_else(tmp_path: Path, printed: str) -> None:
    odd = NodeContainerd(tmp_path / "socket", script(tmp_path / "ctr", f"cat <<'END'\n{printed}\nEND"))
    with pytest.raises(UnexpectedAnswerError):
        odd.complete_images()


def test_the_client_of_k3s_comes_first(tmp_path: Path) -> None:
    assert find_ctr(None) is None
    assert find_ctr("") is None
    assert find_ctr(str(tmp_path)) is None
    ctr = script(tmp_path / "ctr", "exit 0")
    assert find_ctr(str(tmp_path)) == ctr
    k3s = script(tmp_path / "k3s", "exit 0")
    assert find_ctr(str(tmp_path)) == (*k3s, "ctr")
