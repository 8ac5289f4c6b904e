"""What a node of a platform fetches of an image."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bundler.bundle.lock import BundleLock, LockedImage, Request
from bundler.bundle.selection import ATTESTED_DIGEST
from bundler.oci.content import ImageContent
from bundler.oci.digest import Digest
from bundler.oci.manifest import Index, Manifest, parse
from bundler.oci.mediatype import OCI_INDEX, OCI_MANIFEST
from bundler.oci.platform import Platform
from bundler.oci.reference import Reference
from bundler.site.platforms import bundle_platforms, content_for, platforms_by_name

AMD64, ARM64, ARM = (Platform.parse(text) for text in ("linux/amd64", "linux/arm64", "linux/arm/v7"))
DIGEST = Digest.of(b"content")


def read(document: dict[str, Any], media_type: str) -> Manifest | Index:
    raw = json.dumps(document).encode()
    return parse(raw, media_type)


def manifest(name: str) -> Manifest | Index:
    def blob(text: str, media_type: str) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": str(Digest.of(text.encode())), "size": len(text)}

    return read(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": blob(f"config {name}", "application/vnd.oci.image.config.v1+json"),
            "layers": [blob(f"layer {name}", "application/vnd.oci.image.layer.v1.tar+gzip")],
        },
        OCI_MANIFEST,
    )


def index(*children: tuple[Manifest | Index, str | None, dict[str, str]]) -> Manifest | Index:
    listed = []
    for child, platform, notes in children:
        written: dict[str, Any] = {
            "mediaType": child.media_type,
            "digest": str(child.digest),
            "size": len(child.raw),
            "annotations": notes,
        }
        if platform:
            os, architecture, *variant = platform.split("/")
            written["platform"] = {"os": os, "architecture": architecture} | (
                {"variant": variant[0]} if variant else {}
            )
        listed.append(written)
    return read({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}, OCI_INDEX)


def content(*documents: Manifest | Index) -> ImageContent:
    """Put together an image; the last document is its root."""
    return ImageContent(documents, ())


A, B, C = manifest("a"), manifest("b"), manifest("c")


def names(image: ImageContent, platform: Platform) -> list[str] | None:
    """Give which of the manifests above a node fetches."""
    found = content_for(image, platform)
    known = {A.digest: "A", B.digest: "B", C.digest: "C"}
    return [known.get(document.digest, "index") for document in found.manifests] if found else None


def test_of_an_index_a_node_fetches_its_own_child() -> None:
    image = content(A, B, index((A, "linux/amd64", {}), (B, "linux/arm64/v8", {})))
    assert names(image, AMD64) == ["index", "A"]
    assert names(image, ARM64) == ["index", "B"]
    assert names(image, ARM) is None


def test_the_blobs_are_those_of_the_child_alone() -> None:
    image = content(A, B, index((A, "linux/amd64", {}), (B, "linux/arm64", {})))
    found = content_for(image, ARM64)
    assert found is not None
    assert {blob.digest for blob in found.blobs} == {Digest.of(b"config b"), Digest.of(b"layer b")}
    assert found.blob_bytes == len("config b") + len("layer b")


def test_the_best_variant_is_taken_and_the_first_of_equals() -> None:
    image = content(A, B, C, index((A, "linux/arm/v6", {}), (B, "linux/arm/v7", {}), (C, "linux/arm/v7", {})))
    assert names(image, ARM) == ["index", "B"]
    assert names(image, Platform.parse("linux/arm/v6")) == ["index", "A"]


def test_what_is_attested_is_no_image() -> None:
    image = content(A, B, index((A, "linux/amd64", {ATTESTED_DIGEST: str(B.digest)}), (B, "linux/amd64", {})))
    assert names(image, AMD64) == ["index", "B"]
    # Nor is it one for a platform that has none.
    assert names(image, ARM64) is None
    unstated = content(A, B, index((A, None, {ATTESTED_DIGEST: str(B.digest)}), (B, "linux/amd64", {})))
    assert names(unstated, ARM64) is None


def test_a_child_without_a_platform_is_taken_where_nothing_else_suits() -> None:
    image = content(A, B, index((A, None, {}), (B, "linux/amd64", {})))
    assert names(image, AMD64) == ["index", "B"]
    assert names(image, ARM64) == ["index", "A"]


def test_an_index_in_an_index_is_followed() -> None:
    inner = index((A, "linux/amd64", {}), (B, "linux/arm64", {}))
    image = content(A, B, inner, index((inner, None, {})))
    assert names(image, ARM64) == ["index", "index", "B"]
    assert names(image, ARM) is None


def test_a_child_that_the_layout_does_not_hold_is_not_fetched() -> None:
    image = content(A, index((A, "linux/amd64", {}), (B, "linux/arm64", {})))
    assert names(image, ARM64) is None
    assert names(image, AMD64) == ["index", "A"]


@pytest.mark.parametrize(
    ("known", "fetched"),
    [((), True), ((AMD64,), False), ((ARM64,), True), ((AMD64, ARM64), True)],
    ids=["unknown", "amd64", "arm64", "both"],
)
def test_an_image_of_one_manifest_is_for_the_platforms_that_are_known_of_it(
    known: tuple[Platform, ...], fetched: bool
) -> None:
    found = content_for(content(A), ARM64, known)
    assert (found is not None) is fetched
    assert found is None or (found.manifests, found.blobs) == ((A,), A.blobs if isinstance(A, Manifest) else ())


# --- the lock -----------------------------------------------------------------------------------------------------


def locked(name: str, *platforms: str) -> LockedImage:
    return LockedImage(Reference.parse(name), ("asked for",), OCI_INDEX, DIGEST, 1, DIGEST, None, platforms, (), 1, 1)


def lock(*images: LockedImage, platforms: tuple[str, ...] = ("all",)) -> BundleLock:
    return BundleLock(Request((), (), None, (), platforms), (), images)


def test_the_platforms_of_an_image_are_found_by_each_of_its_names() -> None:
    both = f"quay.io/a/b:1@{DIGEST}"
    found = lock(locked(both, "linux/amd64", "unknown/unknown"), locked("quay.io/a/c:1", "linux/arm64"))
    platforms = platforms_by_name(found)
    for name in ("quay.io/a/b:1", f"quay.io/a/b@{DIGEST}"):
        assert platforms[name] == (AMD64,)
    assert platforms["quay.io/a/c:1"] == (ARM64,)
    assert "quay.io/a/b:2" not in platforms
    assert platforms_by_name(None) == {}


def test_the_platforms_of_a_bundle_are_those_it_was_made_for() -> None:
    images = [locked("quay.io/a/b:1", "linux/amd64")]
    assert bundle_platforms(lock(*images, platforms=("linux/arm64", "linux/amd64"))) == (ARM64, AMD64)
    assert bundle_platforms(None) == ()


def test_of_a_bundle_of_all_platforms_those_count_that_k3s_exists_for() -> None:
    upgrade = locked("docker.io/rancher/k3s-upgrade:v1.32.3-k3s1", "linux/amd64", "linux/arm64", "linux/arm/v7")
    windows = locked("quay.io/a/b:1", "windows/amd64", "linux/s390x", "unknown/unknown")
    assert bundle_platforms(lock(upgrade, windows)) == tuple(sorted((AMD64, ARM64, ARM)))
    found = bundle_platforms(lock(windows))
    assert [str(platform) for platform in found] == ["linux/s390x", "windows/amd64"]
