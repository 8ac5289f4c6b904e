"""Large images, made quickly, and their way into a real registry and out again, with memory measured."""

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

from tests.support.bundles import Bundle, command
from tests.support.content import AMD64, digest_of
from tests.support.handmade import NAME, REF_NAME, write_index
from tests.support.images import build_manifest, image_config
from tests.support.measured import Measured, measured
from tests.support.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from tests.support.registry import Registry

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class LargeImage:
    """A layout with one image of one large layer.

    Attributes:
        directory: The layout; it has no lock.
        repository: Of the image; its tag is 1.
        layer: Digest of the layer.
    """

    directory: Path
    repository: str
    layer: str

    @classmethod
    def make(cls, directory: Path, size: int) -> "LargeImage":
        """Write a layer of so many bytes: the same random mebibyte again and again, numbered."""
        blobs = directory / "blobs/sha256"
        blobs.mkdir(parents=True)
        piece, hasher = random.Random(size).randbytes(MEBIBYTE), hashlib.sha256()
        with (blobs / "layer").open("wb") as file:
            for number in range(0, size, MEBIBYTE):
                data = (number.to_bytes(8) + piece)[: min(MEBIBYTE, size - number)]
                hasher.update(data)
                file.write(data)
        layer = f"sha256:{hasher.hexdigest()}"
        (blobs / "layer").rename(blobs / hasher.hexdigest())
        config = image_config(AMD64, [layer])
        manifest = build_manifest(
            {"mediaType": OCI_CONFIG, "digest": digest_of(config), "size": len(config)},
            [{"mediaType": OCI_LAYER, "digest": layer, "size": size}],
            media_type=OCI_MANIFEST,
        )
        for data in (config, manifest.data):
            (blobs / digest_of(data).removeprefix("sha256:")).write_bytes(data)
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}\n')
        name = "docker.io/some/large:1"
        root = {**manifest.descriptor(), "annotations": {NAME: name, REF_NAME: name}}
        write_index(directory, [root])
        return cls(directory, "some/large", layer)


def pushed_and_bundled(image: LargeImage, work: Path, *, address_space: int = 0) -> tuple[Measured, Measured]:
    """Push a layout to a real registry and bundle it from there; check that every byte came back.

    Args:
        image: What is carried.
        work: Gets the bundle and our state.
        address_space: RLIMIT_AS of both runs in bytes; 0 for none.
    """
    with Registry() as registry:
        push = measured(
            *("push", image.directory, registry.url, "--state", work / "state"), address_space=address_space
        )
        assert push.result.code == 0, push.result.err
        reference = f"{registry.host}/{image.repository}:1"
        pull = measured(*command([reference], work / "bundle"), address_space=address_space)
        assert pull.result.code == 0, pull.result.err
    made = Bundle(work / "bundle")
    assert made.blobs == {f"sha256:{path.name}" for path in (image.directory / "blobs/sha256").iterdir()}
    with made.blob(image.layer).open("rb") as file:
        assert f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == image.layer
    assert json.loads((work / "bundle/bundle.lock.json").read_text())["complete"]
    return push, pull
