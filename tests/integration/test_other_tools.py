"""What docs/robustness.md says of other tools is tried here."""

from __future__ import annotations

import tarfile
from pathlib import Path

from tests.support.command import run
from tests.support.containerd import Containerd
from tests.support.content import AMD64, BlobStore
from tests.support.faulty import FaultyRegistry
from tests.support.images import build_manifest, image_of, single
from tests.support.media_types import OCI_MANIFEST
from tests.support.programs import require

CHART = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"


def test_containerd_imports_a_layout_with_artifacts_only_without_unpacking(tmp_path: Path) -> None:
    require("containerd", "ctr")
    store = BlobStore(tmp_path / "store")
    config = store.add(b'{"name":"chart","version":"1.0.0"}', "application/vnd.cncf.helm.config.v1+json")
    content = store.add(b"a chart", CHART)
    manifest = build_manifest(config.descriptor(), [content.descriptor()], media_type=OCI_MANIFEST)
    chart = image_of(manifest, [config, content])
    with FaultyRegistry() as upstream:
        upstream.add(single(store, AMD64), "some/image", "1")
        upstream.add(chart, "some/chart", "1")
        names = [f"{upstream.host}/some/{name}:1" for name in ("chart", "image")]
        asked = [text for name in names for text in ("--image", name)]
        made = run("bundle", *asked, "--to", tmp_path / "bundle")
        assert made.code == 0, made.err
    archive = tmp_path / "bundle.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("oci-layout", "index.json", "blobs"):
            tar.add(tmp_path / "bundle" / name, name)
    with Containerd() as node:
        assert node.import_tar(archive, "--all-platforms", check=False).returncode != 0
    with Containerd() as node:
        node.import_tar(archive, "--all-platforms", "--no-unpack")
        assert sorted(node.images()) == names
