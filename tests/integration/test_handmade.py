"""The hand-written bundles of other tests are what the command writes."""

import json
from pathlib import Path

from tests.support.command import run
from tests.support.content import BlobStore
from tests.support.faulty import FaultyRegistry
from tests.support.handmade import built, multi, write_bundle


def test_bundles_written_by_hand_are_what_bundle_writes(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "store")
    first, second = multi(store, b"shared" * 99, title="first"), built(store, b"shared" * 99, b"", title="second")
    images = {"docker.io/rancher/first:1": first, f"docker.io/rancher/second:2@{second.root_digest}": second}
    by_hand = write_bundle(tmp_path / "by-hand", images)
    with FaultyRegistry() as upstream:
        upstream.add(first, "rancher/first", "1")
        upstream.add(second, "rancher/second", "2")
        registries = tmp_path / "registries.yaml"
        registries.write_text(json.dumps({"mirrors": {"docker.io": {"endpoint": [upstream.url]}}}))
        asked = [text for reference in images for text in ("--image", reference)]
        made = run("bundle", *asked, "--platform", "all", "--registries", registries, "--to", tmp_path / "real")

    assert made.code == 0, made.err
    real = {
        str(path.relative_to(tmp_path / "real")): path.read_bytes()
        for path in (tmp_path / "real").rglob("*")
        if path.is_file() and ".airgap-sync" not in path.parts
    }
    assert real.keys() == {str(path.relative_to(by_hand)) for path in by_hand.rglob("*") if path.is_file()}
    for name in ("index.json", "oci-layout"):
        assert real[name] == (by_hand / name).read_bytes()
    lock = json.loads((by_hand / "bundle.lock.json").read_bytes())
    written = json.loads(real["bundle.lock.json"])
    for one, other in zip(lock["images"], written["images"], strict=True):
        one["reasons"] = other["reasons"]
    assert lock == written
