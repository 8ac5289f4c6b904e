"""Bundles written by hand for the tests of `push`; `test_handmade.py` shows that they are what `bundle` writes."""

import json
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from bundler import __version__
from tests.support.command import Result
from tests.support.content import AMD64, BlobStore, BuiltImage, Platform, digest_of
from tests.support.faulty import FaultyRegistry, Recorded
from tests.support.images import Entry, build_manifest, image_config, image_of, index_of
from tests.support.media_types import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    INDEXES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
)

NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
ARM64 = Platform("linux", "arm64")


def built(
    store: BlobStore, *layers: bytes, platform: Platform = AMD64, title: str = "", docker: bool = False
) -> BuiltImage:
    """Build an image of one platform whose layers are exactly the given bytes; the title makes its config unique."""
    blobs = [store.add(layer, DOCKER_LAYER if docker else OCI_LAYER) for layer in layers]
    labels = {"org.opencontainers.image.title": title}
    config = store.add(
        image_config(platform, [blob.digest for blob in blobs], labels=labels), DOCKER_CONFIG if docker else OCI_CONFIG
    )
    manifest = build_manifest(
        config.descriptor(),
        [blob.descriptor() for blob in blobs],
        media_type=DOCKER_MANIFEST if docker else OCI_MANIFEST,
    )
    return image_of(manifest, [config, *blobs])


def multi(store: BlobStore, *layers: bytes, title: str = "") -> BuiltImage:
    """Build an index over two platforms that share the given layers and have one more each."""
    return index_of(
        *(
            Entry(built(store, *layers, f"{title} {platform}\n".encode() * 9, platform=platform, title=title), platform)
            for platform in (AMD64, ARM64)
        )
    )


def write_bundle(
    directory: Path, images: Mapping[str, BuiltImage], *, lock: bool = True, failed: Iterable[str] = ()
) -> Path:
    """Write a bundle as `bundle --platform all --image ...` does.

    Args:
        directory: Is made.
        images: By full reference; one with a tag and a digest gets both names.
        lock: Write bundle.lock.json too.
        failed: References that the lock lists as missing.
    """
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for image in images.values():
        manifests = [image.root_bytes, *(data for _, data in image.manifests.values())]
        for data in [*manifests, *(blob.path.read_bytes() for blob in image.blobs)]:
            (blobs / digest_of(data).removeprefix("sha256:")).write_bytes(data)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}\n')
    roots = {name: image for reference, image in images.items() for name in names(reference)}
    write_index(directory, [root(name, image) for name, image in sorted(roots.items())])
    if lock:
        document = {
            "apiVersion": "airgap-sync/v1",
            "kind": "BundleLock",
            "tool": {"name": "airgap-sync", "version": __version__},
            "request": {
                "k3s": [],
                "disable": [],
                "system_upgrade_controller": None,
                "images": sorted([*images, *failed]),
                "platforms": ["all"],
            },
            "releases": [],
            "complete": not list(failed),
            "images": [_locked(reference, image) for reference, image in sorted(images.items())],
            "failed": [
                {"reference": reference, "reasons": ["asked for by --image"], "error": "manifest-unknown"}
                for reference in failed
            ],
        }
        write_json(directory / "bundle.lock.json", document)
    return directory


def names(reference: str) -> list[str]:
    """Give the names in index.json of a reference."""
    tagged, at, digest = reference.partition("@")
    last = tagged.rpartition("/")[2]
    if not at or ":" not in last:
        return [reference]
    return [tagged, f"{tagged.rpartition(':')[0]}@{digest}"]


def root(name: str, image: BuiltImage) -> dict[str, Any]:
    """Give the descriptor in index.json of an image."""
    return {
        "mediaType": image.root_media_type,
        "digest": image.root_digest,
        "size": len(image.root_bytes),
        "annotations": {NAME: name, REF_NAME: name},
    }


def write_index(directory: Path, descriptors: list[dict[str, Any]]) -> None:
    """Write index.json."""
    write_json(directory / "index.json", {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors})


def write_json(path: Path, document: Any) -> None:
    """Write a document as the product does."""
    path.write_text(json.dumps(document, indent=1) + "\n")


def blob_file(bundle: Path, digest: str) -> Path:
    """Give the file of a blob or manifest."""
    return bundle / "blobs" / digest.replace(":", "/")


def flip(path: Path, offset: int | None = None) -> None:
    """Flip one byte of a file, the middle one where no offset is given."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if offset is None else offset] ^= 0xFF
    path.write_bytes(data)


def snapshot(directory: Path) -> dict[str, tuple[object, ...]]:
    """Give everything that can be known of a tree but the times of reading."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [directory, *sorted(directory.rglob("*"))]:
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        found[str(path.relative_to(directory))] = (
            *(status.st_mode, status.st_ino, status.st_uid, status.st_size, status.st_mtime_ns, status.st_ctime_ns),
            content,
        )
    return found


def uploads(requests: Iterable[Recorded], status: int | None = 201) -> Counter[str]:
    """Count the uploads of each digest that ended with a status; None for whatever they ended with."""
    return Counter(
        parse_qs(urlsplit(request.target).query)["digest"][0]
        for request in requests
        if request.method == "PUT" and "/blobs/uploads/" in request.path and status in {None, request.status}
    )


def writes(requests: Iterable[Recorded]) -> list[Recorded]:
    """Give the requests that are not just questions."""
    return [request for request in requests if request.method not in {"HEAD", "GET"}]


def outcomes(result: Result) -> dict[str, str]:
    """Give the outcome of each image from JSON output."""
    return {image["reference"]: image["outcome"] for image in result.json["images"]}


def complete(registry: FaultyRegistry, repository: str, tag: str, image: BuiltImage) -> bool:
    """Tell whether a tag points to an image of which everything is there."""
    pointed = registry.content.tags(repository).get(tag)
    return pointed == image.root_digest and not registry.content.missing(repository, image.root_digest)


def _locked(reference: str, image: BuiltImage) -> dict[str, Any]:
    return {
        "reference": reference,
        "registry": reference.partition("/")[0],
        "reasons": ["asked for by --image"],
        "media_type": image.root_media_type,
        "digest": image.root_digest,
        "size_bytes": len(image.root_bytes),
        "upstream_digest": image.root_digest,
        "differs": None,
        "platforms": _platforms(image),
        "platforms_missing": [],
        "blobs": len(image.blobs),
        "total_bytes": image.size,
    }


def _platforms(image: BuiltImage) -> list[str]:
    if image.root_media_type not in INDEXES:
        config = json.loads(image.blobs[0].path.read_bytes())
        return ["/".join(config[key] for key in ("os", "architecture", "variant") if key in config)]
    children = [child.get("platform", {}) for child in json.loads(image.root_bytes)["manifests"]]
    return ["/".join(child[key] for key in ("os", "architecture", "variant") if key in child) for child in children]
