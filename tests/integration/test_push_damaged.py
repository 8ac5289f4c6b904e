"""`push` of bundles that are damaged or hostile: what is wrong never reaches a tag, often not even the network."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import run
from tests.support.content import BlobStore, BuiltImage, Manifest, digest_of
from tests.support.faulty import FaultyRegistry
from tests.support.handmade import (
    NAME,
    blob_file,
    built,
    complete,
    flip,
    multi,
    outcomes,
    root,
    uploads,
    write_bundle,
    write_index,
    write_json,
)
from tests.support.manifests import build_index
from tests.support.media_types import OCI_MANIFEST

BASE = b"base layer\n" * 400
BIG_LAYER = b"big" * 5000
BIG, SMALL = "docker.io/rancher/big:1", "docker.io/rancher/small:1"


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "store")


@pytest.fixture
def images(store: BlobStore) -> dict[str, BuiltImage]:
    return {BIG: multi(store, BASE, BIG_LAYER, title="big"), SMALL: built(store, BASE, b"small", title="small")}


@pytest.fixture
def bundle(tmp_path: Path, images: dict[str, BuiltImage]) -> Path:
    return write_bundle(tmp_path / "bundle", images)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON document."""
    document = json.loads(path.read_bytes())
    change(document)
    write_json(path, document)


# --- blobs: that image fails ----------------------------------------------------------------------------------------


def remove(path: Path) -> None:
    path.unlink()


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"!")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_first(path: Path) -> None:
    flip(path, 0)


def flip_last(path: Path) -> None:
    flip(path, -1)


def link(path: Path) -> None:
    elsewhere = path.parents[3] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    """Put a device of endless bytes in the place of a file."""
    path.unlink()
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))


def hard_link(path: Path) -> None:
    """Put another name of a secret file in the place of a blob: it is a regular file, with other bytes."""
    elsewhere = path.parent.parent.parent.parent / "secret"
    elsewhere.write_bytes(bytes(path.stat().st_size))
    path.unlink()
    path.hardlink_to(elsewhere)


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        *(
            ("layer", damage)
            for damage in (
                *(remove, shorten, lengthen, empty, flip_first, flip_last),
                *(link, directory, fifo, device, hard_link),
            )
        ),
        *(("config", damage) for damage in (remove, shorten, flip)),
    ],
)
def test_a_damaged_blob_fails_its_image_and_the_others_go_on(
    bundle: Path,
    target: FaultyRegistry,
    images: dict[str, BuiltImage],
    part: str,
    damage: Callable[[Path], None],
) -> None:
    digest = digest_of(BIG_LAYER) if part == "layer" else images[BIG].blobs[0].digest
    damage(blob_file(bundle, digest))

    done = run("push", bundle, target.url, "-o", "json")

    assert done.code == 10, done.err
    assert outcomes(done) == {BIG: "failed", SMALL: "pushed"}
    failed = next(image for image in done.json["images"] if image["outcome"] == "failed")
    assert failed["error"]["exit_code"] == 5
    assert digest in failed["error"]["message"]
    assert complete(target, "rancher/small", "1", images[SMALL])
    assert target.content.tags("rancher/big") == {}
    assert digest not in target.content.digests("rancher/big")
    assert digest not in uploads(target.requests())
    assert target.violations == []


def test_a_damaged_blob_that_two_images_share_fails_both(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage]
) -> None:
    flip(blob_file(bundle, digest_of(BASE)))

    done = run("push", bundle, target.url, "-o", "json")

    assert done.code == 10
    assert set(outcomes(done).values()) == {"failed"}
    assert all(target.content.tags(name) == {} for name in ("rancher/big", "rancher/small"))
    assert target.violations == []
    assert images[BIG].root_digest not in target.content.digests("rancher/big")


def test_a_repaired_bundle_is_completed_by_the_next_push(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage]
) -> None:
    layer = blob_file(bundle, digest_of(BIG_LAYER))
    flip(layer)
    assert run("push", bundle, target.url).code == 10
    flip(layer)
    mark = target.mark()

    done = run("push", bundle, target.url, "-o", "json")

    assert done.code == 0, done.err
    assert outcomes(done) == {BIG: "pushed", SMALL: "up-to-date"}
    assert complete(target, "rancher/big", "1", images[BIG])
    assert digest_of(BASE) not in uploads(target.since(mark), None)


# --- index.json, oci-layout, manifests and lock: refused before any network use -------------------------------------


def text(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        (bundle / name).write_bytes(content)

    return damage


def file(name: str, change: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        change(bundle / name)

    return damage


def first(**fields: Any) -> Callable[[Path], None]:
    """Replace fields of the first descriptor of index.json; None removes one."""

    def damage(bundle: Path) -> None:
        def change(document: Any) -> None:
            descriptor = document["manifests"][0] | fields
            document["manifests"][0] = {key: value for key, value in descriptor.items() if value is not None}

        edit(bundle / "index.json", change)

    return damage


def named(name: str) -> Callable[[Path], None]:
    return first(annotations={NAME: name})


def manifest_link(path: Path) -> None:
    path.rename(path.parent / "moved")
    path.symlink_to(path.parent / "moved")


def lock(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        edit(bundle / "bundle.lock.json", change)

    return damage


def of_manifest(kind: str, change: Callable[[Path], None]) -> Callable[[Path], None]:
    """Change the file of the root or of a child of the index."""

    def damage(bundle: Path) -> None:
        top = next(
            descriptor["digest"]
            for descriptor in json.loads((bundle / "index.json").read_bytes())["manifests"]
            if descriptor["annotations"][NAME] == BIG
        )
        path = blob_file(bundle, top)
        if kind == "child":
            path = blob_file(bundle, json.loads(path.read_bytes())["manifests"][1]["digest"])
        change(path)

    return damage


def drop_lock(damage: Callable[[Path], None]) -> Callable[[Path], None]:
    def without(bundle: Path) -> None:
        (bundle / "bundle.lock.json").unlink()
        damage(bundle)

    return without


DEEP = b"[" * 100_000 + b"]" * 100_000

REFUSED: dict[str, Callable[[Path], None]] = {
    "index.json is gone": file("index.json", remove),
    "index.json is empty": text("index.json", b""),
    "index.json is cut": file("index.json", cut),
    "index.json is not JSON": text("index.json", b"<html>"),
    "index.json is not UTF-8": text("index.json", b'{"manifests": ["\xff\xfe"]}'),
    "index.json is a list": text("index.json", b"[]"),
    "index.json is nested deeply": text("index.json", DEEP),
    "index.json has no manifests": text("index.json", b'{"schemaVersion": 2}'),
    "index.json has manifests that are no list": text("index.json", b'{"manifests": {}}'),
    "index.json has a key twice": text("index.json", b'{"manifests": [], "manifests": []}'),
    "index.json is a link": file("index.json", manifest_link),
    "index.json is a directory": file("index.json", directory),
    "index.json is a FIFO": file("index.json", fifo),
    "oci-layout is gone": file("oci-layout", remove),
    "oci-layout is empty": text("oci-layout", b""),
    "oci-layout is not JSON": text("oci-layout", b"1.0.0"),
    "oci-layout is no object": text("oci-layout", b"[]"),
    "oci-layout states no version": text("oci-layout", b"{}"),
    "oci-layout states a number": text("oci-layout", b'{"imageLayoutVersion": 1}'),
    "oci-layout is huge": text("oci-layout", b'{"imageLayoutVersion": "1.0.0"}' + b" " * 10_000),
    "oci-layout is a link": file("oci-layout", manifest_link),
    "a descriptor is no object": lambda bundle: edit(
        bundle / "index.json", lambda document: document["manifests"].append("x")
    ),
    "a descriptor has no digest": first(digest=None),
    "a descriptor's digest leaves the layout": first(digest="sha256:../../../etc/passwd"),
    "a descriptor's digest is upper case": first(digest="sha256:" + "A" * 64),
    "a descriptor's digest is of an unknown algorithm": first(digest="md5:" + "0" * 32),
    "a descriptor's digest has a lone surrogate": first(digest="sha256:\ud800"),
    "a descriptor has no size": first(size=None),
    "a descriptor's size is negative": first(size=-1),
    "a descriptor's size is wrong": first(size=1),
    "a descriptor's size is absurd": first(size=2**62),
    "a descriptor's size is a bool": first(size=True),
    "a descriptor has no media type": first(mediaType=None),
    "a descriptor's media type is another": first(mediaType=OCI_MANIFEST),
    "a descriptor's media type is that of no manifest": first(mediaType="application/octet-stream"),
    "a descriptor's media type has a lone surrogate": first(mediaType="\ud800"),
    "a descriptor has no name": first(annotations=None),
    "a descriptor's name is no reference": named("docker.io/UPPER/x:1"),
    "a descriptor's name leaves the registry": named("docker.io/../x:1"),
    "a descriptor's name has a lone surrogate": named("docker.io/\ud800/x:1"),
    "a descriptor's name has control characters": named("docker.io/x/\x1b[2J:1"),
    "two descriptors have one name": lambda bundle: edit(
        bundle / "index.json", lambda document: document["manifests"].append(document["manifests"][0])
    ),
    "a root manifest is gone": of_manifest("root", remove),
    "a root manifest is flipped": of_manifest("root", flip),
    "a root manifest is cut": of_manifest("root", shorten),
    "a root manifest is a link": of_manifest("root", manifest_link),
    "a child manifest is gone": of_manifest("child", remove),
    "a child manifest is flipped": of_manifest("child", flip),
    "a child manifest is longer": of_manifest("child", lengthen),
    "a child manifest is a FIFO": of_manifest("child", fifo),
    "the lock is empty": text("bundle.lock.json", b""),
    "the lock is not JSON": text("bundle.lock.json", b"{"),
    "the lock is nested deeply": text("bundle.lock.json", DEEP),
    "the lock is a list": text("bundle.lock.json", b"[]"),
    "the lock is a link": file("bundle.lock.json", manifest_link),
    "the lock lacks a field": lock(lambda document: document.pop("images")),
    "the lock has an unknown field": lock(lambda document: document.update(more=1)),
    "the lock has a bad reference": lock(lambda document: document["images"][0].update(reference="UPPER")),
    "the lock has a bad digest": lock(lambda document: document["images"][0].update(digest="sha256:0")),
    "the lock names another digest": lock(lambda document: document["images"][0].update(digest="sha256:" + "0" * 64)),
    "the lock states another media type": lock(lambda document: document["images"][0].update(media_type=OCI_MANIFEST)),
    "the lock states another size": lock(lambda document: document["images"][0].update(size_bytes=1)),
    "the lock names an image less": lock(lambda document: document["images"].pop()),
    "the lock names an image more": lock(
        lambda document: document["images"].append(document["images"][0] | {"reference": "docker.io/rancher/more:1"})
    ),
    "the lock names an image twice": lock(lambda document: document["images"].append(document["images"][0])),
    "the lock says complete and names what failed": lock(
        lambda document: document["failed"].append(
            {"reference": "docker.io/rancher/absent:1", "reasons": [], "error": "manifest-unknown"}
        )
    ),
    "the lock says incomplete and names nothing": lock(lambda document: document.update(complete=False)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_with_index_manifests_or_lock_is_refused_before_any_network_use(
    bundle: Path, target: FaultyRegistry, tmp_path: Path, what: str
) -> None:
    REFUSED[what](bundle)
    report = tmp_path / "report.json"

    refused = run("push", bundle, target.url, "--report", report)

    assert "Traceback" not in refused.err
    assert refused.code == 5, refused.err
    assert "\x1b" not in refused.err
    assert target.requests() == []
    assert json.loads(report.read_text())["error"]["exit_code"] == 5


@pytest.mark.parametrize(
    "what",
    [
        "a descriptor has no name",
        "a descriptor's name is no reference",
        "two descriptors have one name",
        "a descriptor's size is wrong",
        "a descriptor's media type is another",
        "a root manifest is flipped",
        "a child manifest is gone",
    ],
)
def test_a_layout_without_a_lock_is_checked_as_well(bundle: Path, target: FaultyRegistry, what: str) -> None:
    drop_lock(REFUSED[what])(bundle)

    refused = run("push", bundle, target.url)

    assert refused.code == 5, refused.err
    assert target.requests() == []


@pytest.mark.parametrize(
    "damage",
    [
        text("oci-layout", b'{"imageLayoutVersion": "2.0.0"}'),
        text("oci-layout", b'{"imageLayoutVersion": "1.1.0"}'),
        lock(lambda document: document.update(apiVersion="airgap-sync/v2")),
    ],
    ids=["layout 2.0.0", "layout 1.1.0", "lock v2"],
)
def test_a_format_of_another_version_is_incompatible(
    bundle: Path, target: FaultyRegistry, damage: Callable[[Path], None]
) -> None:
    damage(bundle)

    refused = run("push", bundle, target.url)

    assert refused.code == 11, refused.err
    assert "bundle-format-too-new" in refused.err
    assert target.requests() == []


def raw_image(manifest: Manifest, inner: BuiltImage) -> BuiltImage:
    """Give an image whose root is any bytes at all."""
    return BuiltImage(manifest.media_type, manifest.digest, manifest.data, dict(inner.manifests), list(inner.blobs))


def document(image: BuiltImage, **fields: Any) -> bytes:
    content = json.loads(image.root_bytes) | fields
    return json.dumps({key: value for key, value in content.items() if value is not None}).encode()


@pytest.mark.parametrize(
    "make",
    [
        lambda _: b"",
        lambda _: b"null",
        lambda _: b"{}",
        lambda _: DEEP,
        lambda image: document(image, config=None),
        lambda image: document(image, config="x"),
        lambda image: document(image, layers={}),
        lambda image: document(image, layers=[None]),
        lambda image: document(image, layers=[{"mediaType": "x", "digest": "sha256:../../x", "size": 1}]),
        lambda image: document(image, layers=[{"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": 1.5}]),
        lambda image: document(image, manifests=[]),
        lambda image: document(image, mediaType="application/vnd.oci.image.index.v1+json"),
        lambda image: document(image, schemaVersion=1),
        lambda image: document(image).replace(b'"config"', b'"config": {}, "config"', 1),
        lambda image: document(image, filler="x" * (4 << 20)),
    ],
)
def test_a_manifest_that_is_none_is_refused_before_any_network_use(
    tmp_path: Path, store: BlobStore, target: FaultyRegistry, make: Callable[[BuiltImage], bytes]
) -> None:
    inner = built(store, BASE)
    image = raw_image(Manifest(OCI_MANIFEST, make(inner)), inner)
    bundle = write_bundle(tmp_path / "bundle", {}, lock=False)
    blob_file(bundle, image.root_digest).write_bytes(image.root_bytes)
    for blob in inner.blobs:
        blob_file(bundle, blob.digest).write_bytes(blob.path.read_bytes())
    write_index(bundle, [root("docker.io/rancher/x:1", image)])

    refused = run("push", bundle, target.url)

    assert refused.code == 5, refused.err
    assert target.requests() == []


def test_indexes_nested_without_end_are_refused(tmp_path: Path, store: BlobStore, target: FaultyRegistry) -> None:
    image = built(store, BASE)
    bundle = write_bundle(tmp_path / "bundle", {"docker.io/rancher/x:1": image}, lock=False)
    level = image.root
    for _ in range(50):
        level = build_index([level.descriptor()])
        blob_file(bundle, level.digest).write_bytes(level.data)
    write_index(bundle, [root("docker.io/rancher/x:1", raw_image(level, image))])

    refused = run("push", bundle, target.url)

    assert refused.code == 5, refused.err
    assert target.requests() == []


def test_a_blob_folder_that_is_a_link_elsewhere_does_not_leak_files(
    bundle: Path, target: FaultyRegistry, tmp_path: Path
) -> None:
    (bundle / "blobs").rename(tmp_path / "elsewhere")
    (bundle / "blobs").symlink_to(tmp_path / "elsewhere")

    done = run("push", bundle, target.url)

    # What lies there has the right digests: whichever way it is judged, nothing else can be sent.
    assert done.code in {0, 5}
    assert set(uploads(target.requests(), None)) <= {
        digest_of(path.read_bytes()) for path in (tmp_path / "elsewhere/sha256").iterdir()
    }
