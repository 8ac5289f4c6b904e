"""`bundle`: which platforms of an image come along, and what its name then stands for."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import Bundle, GatedRegistry, bundle, many, one
from tests.support.content import UNKNOWN
from tests.support.images import (
    AMD64,
    ARM,
    ARM64,
    BlobStore,
    BuiltImage,
    Entry,
    ImageFactory,
    Manifest,
    Platform,
    image_of,
    index_of,
)
from tests.support.media_types import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX

ARM_V6 = Platform("linux", "arm", "v6")
ARM_V5 = Platform("linux", "arm", "v5")
ARM64_PLAIN = Platform("linux", "arm64")
WINDOWS = Platform("windows", "amd64")
S390X = Platform("linux", "s390x")


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> ImageFactory:
    return ImageFactory(tmp_path_factory.mktemp("factory"))


def choose(*platforms: str) -> list[str]:
    return [part for platform in platforms for part in ("--platform", platform)]


def children(image: BuiltImage) -> list[Any]:
    found: list[Any] = json.loads(image.root_bytes)["manifests"]
    return found


def kept(made: Bundle, reference: str) -> list[Any]:
    found: list[Any] = made.json(made.names[reference])["manifests"]
    return found


# --- choosing ---------------------------------------------------------------------------------------------


def test_the_default_is_linux_amd64(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    image = many(store, "default", platforms=(ARM64, AMD64, ARM))
    reference = registry.put(image, "some/image")

    bundle([reference], to)

    made = Bundle(to).check()
    assert kept(made, reference) == [child for child in children(image) if child["platform"] == AMD64.json()]
    assert made.image(reference)["platforms"] == ["linux/amd64"]
    assert made.lock["request"]["platforms"] == ["linux/amd64"]


def test_only_the_chosen_platforms_are_fetched(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    image = many(store, "chosen", platforms=(AMD64, ARM64, ARM))
    reference = registry.put(image, "some/image")

    bundle([reference], to, *choose("linux/amd64", "linux/arm64"))

    wanted = image.needed_for(image.digest_for(AMD64)) | image.needed_for(image.digest_for(ARM64))
    made = Bundle(to).check()
    assert made.blobs == wanted | {image.root_digest, made.names[reference]}
    assert not any(image.digest_for(ARM) in path for _, path in registry.asked())


@pytest.mark.parametrize(
    ("available", "chosen"),
    [
        ((AMD64, ARM, ARM_V6), ARM),
        ((ARM_V6, ARM, AMD64), ARM),
        ((AMD64, ARM_V6, ARM_V5), ARM_V6),
        ((AMD64, Platform("linux", "arm")), Platform("linux", "arm")),
    ],
    ids=["v7 before v6", "v7 after v6", "v6 for want of v7", "no variant is v7"],
)
def test_arm_is_v7_and_falls_back_to_v6(
    registry: GatedRegistry, store: BlobStore, to: Path, available: tuple[Platform, ...], chosen: Platform
) -> None:
    image = many(store, "arm", platforms=available)
    reference = registry.put(image, "some/image")

    bundle([reference], to, *choose("linux/arm"))

    (child,) = kept(Bundle(to).check(), reference)
    assert child["digest"] == image.digest_for(chosen)
    assert Bundle(to).image(reference)["platforms_missing"] == []


@pytest.mark.parametrize("asked", ["linux/arm64", "linux/arm64/v8"])
@pytest.mark.parametrize("there", [ARM64, ARM64_PLAIN])
def test_arm64_is_v8_or_no_variant(
    registry: GatedRegistry, store: BlobStore, to: Path, asked: str, there: Platform
) -> None:
    image = many(store, "arm64", platforms=(AMD64, ARM, there))
    reference = registry.put(image, "some/image")

    bundle([reference], to, *choose(asked))

    (child,) = kept(Bundle(to).check(), reference)
    assert child["digest"] == image.digest_for(there)


def test_arm_never_stands_in_for_arm64(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    reference = registry.put(many(store, "no arm64", platforms=(AMD64, ARM)), "some/image")

    bundle([reference], to, *choose("linux/arm64"), code=10)


def test_children_without_platform_are_kept(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    amd64, arm64, plain = one(store, "p"), one(store, "p", platform=ARM64), one(store, "plain", platform=S390X)
    image = index_of(Entry(amd64, AMD64), Entry(plain), Entry(arm64, ARM64))
    reference = registry.put(image, "some/image")

    bundle([reference], to)

    digests = [child["digest"] for child in kept(Bundle(to).check(), reference)]
    assert digests == [amd64.root_digest, plain.root_digest]


def test_attestations_come_along_with_a_chosen_child_only(
    registry: GatedRegistry, factory: ImageFactory, to: Path
) -> None:
    image = factory.build("coredns-coredns", "1.12.0", 0.001, (AMD64, ARM64))
    reference = registry.put(image, "some/image")
    chosen = image.digest_for(AMD64)

    bundle([reference], to)

    found = kept(Bundle(to).check(), reference)
    assert len(found) == 2
    assert found[0]["digest"] == chosen
    assert found[1]["platform"] == UNKNOWN.json()
    assert found[1]["annotations"]["vnd.docker.reference.digest"] == chosen
    assert Bundle(to).image(reference)["platforms"] == ["linux/amd64"]


def test_all_takes_everything(registry: GatedRegistry, factory: ImageFactory, to: Path) -> None:
    image = factory.build("coredns-coredns", "1.12.0", 0.001, (AMD64, ARM64, ARM))
    windows = index_of(*(Entry(one(factory.store, "w", platform=p), p) for p in (AMD64, WINDOWS, S390X)))
    references = {registry.put(image, "some/image"): image, registry.put(windows, "some/windows"): windows}

    bundle(references, to, *choose("all"))

    made = Bundle(to).check()
    assert made.names == {reference: image.root_digest for reference, image in references.items()}
    assert made.blobs == image.digests | windows.digests
    assert made.lock["request"]["platforms"] == ["all"]
    assert made.image(registry.ref("some/windows"))["platforms"] == ["linux/amd64", "linux/s390x", "windows/amd64"]


def test_an_index_in_an_index_is_followed(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    inner = many(store, "inner", platforms=(AMD64, ARM64))
    image = index_of(Entry(inner))
    reference = registry.put(image, "some/image")

    bundle([reference], to)

    assert Bundle(to).check().names == {reference: image.root_digest}
    assert Bundle(to).blobs == image.digests


# --- an image without an index ----------------------------------------------------------------------------


@pytest.mark.parametrize("docker", [False, True])
def test_a_single_manifest_is_judged_by_its_config(
    registry: GatedRegistry, store: BlobStore, to: Path, docker: bool
) -> None:
    right, wrong = one(store, "right", docker=docker), one(store, "wrong", platform=ARM64, docker=docker)
    references = [registry.put(right, "some/right"), registry.put(wrong, "some/wrong")]

    result = bundle(references, to, code=10)

    made = Bundle(to).check()
    assert made.names == {references[0]: right.root_digest}
    assert made.image(references[0])["platforms"] == ["linux/amd64"]
    assert [entry["error"] for entry in made.lock["failed"]] == ["wrong-platform"]
    assert "linux/arm64" in result.err


def test_a_single_manifest_for_one_of_two_platforms_misses_the_other(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    reference = registry.put(one(store, "one of two"), "some/image")

    result = bundle([reference], to, *choose("linux/amd64", "linux/arm64"))

    assert Bundle(to).check().image(reference)["platforms_missing"] == ["linux/arm64"]
    assert [line for line in result.err.splitlines() if line.startswith("warning:") and "linux/arm64" in line]


# --- platforms that are not there ---------------------------------------------------------------------------


def test_none_of_the_chosen_platforms_fails_that_image_listing_what_exists(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    good = registry.put(many(store, "good", platforms=(AMD64, S390X)), "some/good")
    bad = registry.put(many(store, "bad", platforms=(ARM64, ARM_V6)), "some/bad")

    result = bundle([good, bad], to, "-o", "json", code=10)

    made = Bundle(to).check()
    assert made.names.keys() == {good}
    assert [(entry["reference"], entry["error"]) for entry in made.lock["failed"]] == [(bad, "wrong-platform")]
    (failed,) = [image for image in result.json["images"] if image["outcome"] == "failed"]
    for platform in ("linux/arm64", "linux/arm/v6", "linux/amd64"):
        assert platform in failed["error"]["message"]


def test_some_missing_platforms_are_a_warning_and_stand_in_the_lock(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    reference = registry.put(many(store, "some", platforms=(AMD64, ARM64)), "some/image")

    result = bundle([reference], to, *choose("linux/amd64", "linux/arm", "linux/s390x"))

    entry = Bundle(to).check().image(reference)
    assert entry["platforms"] == ["linux/amd64"]
    assert entry["platforms_missing"] == ["linux/arm/v7", "linux/s390x"]
    (warning,) = [line for line in result.err.splitlines() if line.startswith("warning:")]
    assert reference in warning
    assert "linux/s390x" in warning


def test_a_missing_platform_is_a_failure_under_strict(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    reference = registry.put(many(store, "strict", platforms=(AMD64, ARM64)), "some/image")

    result = bundle([reference], to, "--strict", *choose("linux/amd64", "linux/s390x"), code=13)

    assert "linux/s390x" in result.err
    assert not (to / "index.json").exists()


@pytest.mark.parametrize("platform", ["amd64", "linux/arm/v7/x", "linux/", ""])
def test_what_is_not_a_platform_is_refused(to: Path, platform: str) -> None:
    result = bundle(["redis"], to, "--platform", platform, code=3)

    assert "bad-platform" in result.err
    assert not to.exists()


# --- what the name stands for -----------------------------------------------------------------------------


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
def test_a_trimmed_index_has_the_chosen_descriptors_as_they_were(
    registry: GatedRegistry, store: BlobStore, to: Path, media_type: str
) -> None:
    image = many(
        store,
        "trimmed",
        platforms=(AMD64, ARM64, ARM),
        media_type=media_type,
        annotations={"org.example.built": "today"},
        unknown=[1, {"ü": None}],
    )
    document = json.loads(image.root_bytes)
    document["manifests"][1] |= {"urls": ["https://example.org/x"], "org.example.extra": {"a": [1.5, True]}}
    document["manifests"][1]["platform"] |= {"features": ["x"]}
    root = Manifest(media_type, json.dumps(document, indent=3, ensure_ascii=False).encode())
    image = image_of(root, image.blobs, [Entry(image).image])
    reference = registry.put(image, "some/image")

    bundle([reference], to, *choose("linux/arm64"))

    made = Bundle(to).check()
    entry = made.image(reference)
    assert made.json(entry["digest"]) == {**document, "manifests": [document["manifests"][1]]}
    assert made.index["manifests"][0]["mediaType"] == media_type
    assert entry["media_type"] == media_type
    assert entry["differs"] == "trimmed-index"
    assert entry["upstream_digest"] == root.digest
    assert entry["digest"] != root.digest
    assert made.blob(root.digest).read_bytes() == root.data


def test_a_trimmed_index_has_the_same_bytes_every_time(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path
) -> None:
    references = [registry.put(many(store, f"t{n}", platforms=(AMD64, ARM64, ARM)), f"some/{n}") for n in range(3)]

    bundle(references, tmp_path / "a", *choose("linux/arm", "linux/amd64"))
    bundle(references, tmp_path / "b", *choose("linux/amd64", "linux/arm/v7"))

    assert Bundle(tmp_path / "a").check().names == Bundle(tmp_path / "b").check().names


def test_an_index_of_which_all_is_kept_stays_byte_for_byte(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    built = many(store, "kept", platforms=(AMD64, ARM64))
    root = Manifest(OCI_INDEX, json.dumps(json.loads(built.root_bytes), indent=7).encode() + b"\n\n")
    image = image_of(root, built.blobs, [built])
    reference = registry.put(image, "some/image")

    bundle([reference], to, *choose("linux/arm64", "linux/amd64"))

    made = Bundle(to).check()
    assert made.names == {reference: root.digest}
    assert made.blob(root.digest).read_bytes() == root.data
    assert made.image(reference)["differs"] is None


def test_a_digest_pins_all_children_of_an_index_and_the_output_says_so(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    image = many(store, "pinned", platforms=(AMD64, ARM64, ARM))
    tagged = many(store, "tagged", platforms=(AMD64, ARM64, ARM))
    registry.add(image, "some/pinned", "1")
    pinned = f"{registry.host}/some/pinned:1@{image.root_digest}"
    plain = registry.put(tagged, "some/tagged")

    result = bundle([pinned, plain], to)

    made = Bundle(to).check()
    assert {made.names[name] for name in made.names if "pinned" in name} == {image.root_digest}
    assert image.digests <= made.blobs
    assert made.image(pinned)["differs"] is None
    assert made.image(pinned)["platforms"] == ["linux/amd64", "linux/arm/v7", "linux/arm64"]
    lines = [line for line in result.err.splitlines() if "pinned" in line and not line.startswith("done")]
    assert len(lines) == 1
    assert pinned in lines[0]


def test_a_digest_of_a_child_is_that_child_alone(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    image = many(store, "child", platforms=(AMD64, ARM64))
    registry.add(image, "some/image", "1")
    child = image.digest_for(AMD64)
    reference = f"{registry.host}/some/image@{child}"

    bundle([reference], to)

    made = Bundle(to).check()
    assert made.names == {reference: child}
    assert made.blobs == image.needed_for(child)
    assert made.index["manifests"][0]["mediaType"] != DOCKER_MANIFEST


def test_another_choice_with_replace_trims_anew_and_drops_the_rest(
    registry: GatedRegistry, store: BlobStore, to: Path, tmp_path: Path
) -> None:
    reference = registry.put(many(store, "again", platforms=(AMD64, ARM64, ARM)), "some/image")
    bundle([reference], to, *choose("all"))
    mark = registry.mark()

    bundle([reference], to, "--replace", *choose("linux/arm"))

    assert registry.fetched(mark) == []
    bundle([reference], tmp_path / "fresh", *choose("linux/arm"))
    assert Bundle(to).check().tree() == Bundle(tmp_path / "fresh").tree()
