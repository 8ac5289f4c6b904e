"""Odd but legal images: through `bundle`, `push` and a pull back by another client, byte for byte."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.bundles import Bundle, GatedRegistry, bundle, one, registries
from tests.support.certificates import make_certificate
from tests.support.command import Result, run
from tests.support.content import Blob, digest_of
from tests.support.handmade import outcomes
from tests.support.images import (
    AMD64,
    ARM,
    ARM64,
    BlobStore,
    BuiltImage,
    Entry,
    Platform,
    build_index,
    build_manifest,
    image_config,
    image_of,
    index_of,
)
from tests.support.media_types import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
)
from tests.support.programs import require
from tests.support.pulling import check_pulled, pull
from tests.support.registry import Registry
from tests.support.servers import LoopbackServer, QuietHandler
from tests.support.sha512 import Sha512Registry, sha512, sha512_blob

TAR, ZSTD = "application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.v1.tar+zstd"
EMPTY = "application/vnd.oci.empty.v1+json"
HELM_CONFIG = "application/vnd.cncf.helm.config.v1+json"
HELM_CHART = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
ARM_V6, ARM_V5 = Platform("linux", "arm", "v6"), Platform("linux", "arm", "v5")
WINDOWS = Platform("windows", "amd64")
LONG_REPOSITORY = "/".join(["a" * 63, "b" * 63, "c" * 63, "d" * 63])
LONG_TAG = "V" + "aB9_.-" * 21 + "Z"


# --- builders -----------------------------------------------------------------------------------------------


def made_of(
    store: BlobStore,
    layers: Sequence[tuple[bytes, str]],
    *,
    platform: Platform = AMD64,
    media_type: str = OCI_MANIFEST,
    config: tuple[bytes, str] | None = None,
    layer_fields: Mapping[str, Any] | None = None,
    **fields: Any,
) -> BuiltImage:
    """Build an image of exactly these layers."""
    blobs = [store.add(data, kind) for data, kind in layers]
    content, kind = config or (image_config(platform, [blob.digest for blob in blobs]), OCI_CONFIG)
    described = store.add(content, kind)
    descriptors = [blob.descriptor(**(layer_fields or {})) for blob in blobs]
    return image_of(
        build_manifest(described.descriptor(), descriptors, media_type=media_type, **fields), [described, *blobs]
    )


def under(data: bytes, image: BuiltImage, media_type: str | None = None) -> BuiltImage:
    """Give an image with other bytes of its root, which point at the same content."""
    kind = media_type or image.root_media_type
    return BuiltImage(kind, digest_of(data), data, dict(image.manifests), list(image.blobs))


def document(image: BuiltImage, *without: str) -> Any:
    return {key: value for key, value in json.loads(image.root_bytes).items() if key not in without}


def bare(image: BuiltImage) -> BuiltImage:
    """Give an image whose root states no mediaType."""
    return under(json.dumps(document(image, "mediaType")).encode(), image)


def zstd(data: bytes) -> bytes:
    """Pack up to 255 bytes as a zstd frame of one raw block."""
    return b"\x28\xb5\x2f\xfd\x20" + bytes([len(data)]) + struct.pack("<I", len(data) << 3 | 1)[:3] + data


def nested(image: BuiltImage, levels: int, kinds: Sequence[str] = (OCI_INDEX,)) -> BuiltImage:
    for level in range(levels):
        image = index_of(Entry(image), media_type=kinds[level % len(kinds)])
    return image


def windows(store: BlobStore) -> BuiltImage:
    """Build an index over Windows images that only differ by os.version, and a Linux one."""
    below, children = [], []
    for version in ("10.0.17763.6893", "10.0.20348.3207"):
        image = made_of(store, [(version.encode(), OCI_LAYER)], platform=WINDOWS)
        platform = {**WINDOWS.json(), "os.version": version, "os.features": ["win32k"]}
        children.append({**image.root.descriptor(), "platform": platform})
        below.append(image)
    linux = one(store, "linux beside windows")
    return image_of(build_index([*children, linux.root.descriptor(AMD64)]), [], [*below, linux])


def annotated(store: BlobStore) -> BuiltImage:
    notes = {"org.example.note": 'ünï \u2028 \\ " \u0007', "": "", "org.opencontainers.image.ref.name": "not/a/name:1"}
    layer, config = store.add(b"annotated", OCI_LAYER), store.add(image_config(AMD64, []), OCI_CONFIG)
    manifest = build_manifest(
        config.descriptor(annotations=notes), [layer.descriptor(annotations=notes)], annotations=notes
    )
    return index_of(Entry(image_of(manifest, [config, layer]), AMD64, notes), annotations=notes)


def odd_json(store: BlobStore) -> BuiltImage:
    """Build an image whose manifests are written as nobody writes them."""
    inner = made_of(store, [(b"odd json", OCI_LAYER)], annotations={"ключ": "值 🚢"})
    text = json.dumps(document(inner), indent="\t", ensure_ascii=False, separators=(" ,\r\n", " :\t"), sort_keys=True)
    inner = under(f"\n\n {text}\r\n\n".encode(), inner)
    text = json.dumps(document(index_of(Entry(inner, AMD64))), ensure_ascii=True)
    text = text.replace("application/", "application\\/").replace('"schemaVersion"', '"\\u0073chemaVersion"')
    return under(
        text.replace("{", '{ "x": [1.0, 1E+2, -0, 1e-7, "\\ud83d\\udea2"],', 1).encode(), index_of(Entry(inner))
    )


def artifact(store: BlobStore, **fields: Any) -> BuiltImage:
    return made_of(store, [(b"some artifact", "application/vnd.example.data")], config=(b"{}", EMPTY), **fields)


def subject_of(image: BuiltImage) -> dict[str, Any]:
    return image.root.descriptor()


def of_exactly(size: int, image: BuiltImage) -> BuiltImage:
    start = json.dumps({**document(image), "filler": ""}).encode()
    return under(start[:-2] + b"x" * (size - len(start)) + start[-2:], image)


def twice(store: BlobStore) -> BuiltImage:
    image, other = one(store, "listed twice"), one(store, "other", platform=ARM64)
    children = [image.root.descriptor(AMD64), image.root.descriptor(AMD64), other.root.descriptor(ARM64)]
    return image_of(build_index([*children, image.root.descriptor(AMD64, annotations={"n": "3"})]), [], [image, other])


IMAGES: dict[str, Callable[[BlobStore], BuiltImage]] = {
    "docker-schema2": lambda store: one(store, "docker", docker=True),
    "docker-list": lambda store: index_of(
        Entry(one(store, "d", docker=True), AMD64),
        Entry(one(store, "d", platform=ARM64, docker=True), ARM64),
        media_type=DOCKER_LIST,
    ),
    "docker-in-oci-index": lambda store: index_of(Entry(one(store, "mixed", docker=True), AMD64)),
    "oci-in-docker-list": lambda store: index_of(Entry(one(store, "mixed"), AMD64), media_type=DOCKER_LIST),
    "two-indexes": lambda store: nested(one(store, "nested 2"), 2),
    "four-indexes": lambda store: nested(one(store, "nested 4"), 4),
    "four-indexes-of-both-kinds": lambda store: nested(one(store, "nested 4"), 4, (OCI_INDEX, DOCKER_LIST)),
    "zstd-layers": lambda store: made_of(store, [(zstd(bytes(n)), ZSTD) for n in (100, 200)]),
    "uncompressed-layers": lambda store: made_of(store, [(bytes(10240), TAR), (b"x" * 10240, TAR)]),
    "no-layers": lambda store: made_of(store, []),
    "empty-blob": lambda store: made_of(store, [(b"", TAR), (b"not empty", TAR)]),
    "127-layers": lambda store: made_of(store, [(f"layer {n}".encode(), OCI_LAYER) for n in range(127)]),
    "layer-repeated": lambda store: made_of(store, [(b"again", OCI_LAYER), (b"x", OCI_LAYER), (b"again", OCI_LAYER)]),
    "layer-is-its-config": lambda store: made_of(store, [(b"{}", EMPTY)], config=(b"{}", EMPTY)),
    "arm-variants": lambda store: index_of(
        *(Entry(one(store, "arm", platform=p), p) for p in (ARM_V5, ARM_V6, ARM, Platform("linux", "arm", "v8"), ARM64))
    ),
    "windows": windows,
    "one-child": lambda store: index_of(Entry(one(store, "only child"), AMD64)),
    "child-twice": twice,
    "children-without-platform": lambda store: index_of(
        Entry(one(store, "no platform")), Entry(one(store, "no platform", platform=ARM64))
    ),
    "manifest-without-mediatype": lambda store: bare(one(store, "bare")),
    "index-without-mediatype": lambda store: bare(index_of(Entry(bare(one(store, "bare child")), AMD64))),
    "helm-chart": lambda store: made_of(
        store, [(b"chart", HELM_CHART)], config=(b'{"name":"traefik","version":"34.2.1"}', HELM_CONFIG)
    ),
    "empty-config": artifact,
    "artifact-type": lambda store: artifact(store, artifactType="application/vnd.example.thing"),
    "subject": lambda store: artifact(store, subject=subject_of(one(store, "the subject")), artifactType="a/b"),
    "index-of-artifacts": lambda store: index_of(
        Entry(artifact(store)), Entry(one(store, "beside"), AMD64), artifactType="application/vnd.example.set"
    ),
    "embedded-data": lambda store: under(
        json.dumps(
            {
                **document(artifact(store)),
                "config": {"mediaType": EMPTY, "digest": digest_of(b"{}"), "size": 2, "data": "e30="},
            }
        ).encode(),
        artifact(store),
    ),
    "odd-json": odd_json,
    "annotations-everywhere": annotated,
    "unknown-fields": lambda store: made_of(
        store, [(b"u", OCI_LAYER)], layer_fields={"x.y": {"z": [None]}}, xUnknown={"a": 1}
    ),
    "manifest-of-4-MiB": lambda store: of_exactly(MAX_MANIFEST_BYTES, one(store, "of 4 MiB")),
    "nondistributable-layer-without-urls": lambda store: made_of(store, [(b"n", NONDISTRIBUTABLE)]),
}


# --- there and back -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Journey:
    """All odd images, bundled and pushed in one go."""

    images: Mapping[str, BuiltImage]
    references: Mapping[str, str]
    bundled: Result
    directory: Path
    pushed: Result
    target: Registry

    def outcome(self, result: Result, name: str) -> Any:
        (found,) = [image for image in result.json["images"] if image["reference"] == self.references[name]]
        return found


@pytest.fixture(scope="module")
def target() -> Iterator[Registry]:
    require("docker-registry")
    with Registry() as started:
        yield started


@pytest.fixture(scope="module")
def journey(store: BlobStore, target: Registry, tmp_path_factory: pytest.TempPathFactory) -> Journey:
    directory = tmp_path_factory.mktemp("journey") / "bundle"
    images = {name: build(store) for name, build in IMAGES.items()}
    with GatedRegistry() as upstream:
        references = {name: upstream.put(image, f"odd/{name.lower()}") for name, image in images.items()}
        bundled = run("bundle", *asked(references.values()), "--platform", "all", "--to", directory, "-o", "json")
    pushed = run("push", directory, target.url, "-o", "json")
    return Journey(images, references, bundled, directory, pushed, target)


def asked(references: Any) -> list[str]:
    return [part for reference in references for part in ("--image", reference)]


@pytest.mark.parametrize("name", IMAGES)
def test_an_odd_image_goes_there_and_back_byte_for_byte(journey: Journey, name: str) -> None:
    assert "Traceback" not in journey.bundled.err + journey.pushed.err
    assert journey.outcome(journey.bundled, name)["outcome"] == "fetched", journey.bundled.err
    assert journey.outcome(journey.pushed, name)["outcome"] == "pushed", journey.pushed.err

    check_pulled(journey.target.url, f"odd/{name.lower()}", "1", journey.images[name])


def test_all_odd_images_together_are_a_sound_bundle_and_a_second_push_sends_nothing(journey: Journey) -> None:
    made = Bundle(journey.directory).check()
    assert set(made.names) == set(journey.references.values())

    again = run("push", journey.directory, journey.target.url, "-o", "json")

    assert (journey.bundled.code, journey.pushed.code, again.code) == (0, 0, 0)
    assert {image["outcome"] for image in again.json["images"]} == {"up-to-date"}


@pytest.mark.parametrize(
    ("name", "platforms"),
    [
        ("arm-variants", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm/v8", "linux/arm64"]),
        ("windows", ["linux/amd64", "windows/amd64", "windows/amd64"]),
        ("child-twice", ["linux/amd64", "linux/arm64"]),
        ("four-indexes", ["linux/amd64"]),
        ("helm-chart", []),
        ("index-of-artifacts", ["linux/amd64"]),
    ],
)
def test_the_lock_names_the_platforms_of_an_odd_image(journey: Journey, name: str, platforms: list[str]) -> None:
    assert Bundle(journey.directory).image(journey.references[name])["platforms"] == platforms


# --- trimmed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "platform", "kept"),
    [
        ("windows", "windows/amd64", [0, 1]),
        ("child-twice", "linux/amd64", [0, 1, 3]),
        ("arm-variants", "linux/arm/v8", [3]),
        ("arm-variants", "linux/arm/v6", [1]),
        ("index-of-artifacts", "linux/arm64", [0, 1]),
    ],
)
def test_a_choice_of_platforms_keeps_odd_children_as_they_were(
    store: BlobStore, target: Registry, tmp_path: Path, name: str, platform: str, kept: list[int]
) -> None:
    image = IMAGES[name](store)
    repository = f"trimmed/{name}/{platform.replace('/', '-')}"
    children = json.loads(image.root_bytes)["manifests"]
    with GatedRegistry() as upstream:
        reference = upstream.put(image, repository)
        if name == "index-of-artifacts":
            # What has no platform always comes along, but alone it does not make an image for another platform.
            bundle([reference], tmp_path / "bundle", "--platform", platform, code=10)
            return
        bundle([reference], tmp_path / "bundle", "--platform", platform)

    pushed = run("push", tmp_path / "bundle", target.url)

    assert pushed.code == 0, pushed.err
    pulled = pull(target.url, repository, "1")
    assert pulled.root == Bundle(tmp_path / "bundle").check().names[reference]
    root = json.loads(pulled.manifests[pulled.root][1])
    assert root == {**json.loads(image.root_bytes), "manifests": [children[number] for number in kept]}


def test_trimming_an_index_never_makes_it_worse_json(store: BlobStore, target: Registry, tmp_path: Path) -> None:
    """A number too big for floating point is legal JSON; written again as `Infinity` it would not be."""
    image = index_of(Entry(one(store, "big"), AMD64), Entry(one(store, "big", platform=ARM64), ARM64))
    data = image.root_bytes.replace(b"{", b'{"x": [1e999, -1E400, 123456789012345678901234567890],', 1)
    with GatedRegistry() as upstream:
        reference = upstream.put(under(data, image), "trimmed/numbers")
        bundled = run("bundle", "--image", reference, "--to", tmp_path / "bundle", "-o", "json")

    # Refused is as good as kept; a bundle that `push` then calls damaged is not.
    assert bundled.code in {0, 10}, bundled.err
    if bundled.code == 0:
        assert b"Infinity" not in Bundle(tmp_path / "bundle").blob(bundled.json["images"][0]["digest"]).read_bytes()
        pushed = run("push", tmp_path / "bundle", target.url)
        assert pushed.code == 0, pushed.err


# --- names --------------------------------------------------------------------------------------------------


def test_two_tags_on_one_digest_and_long_and_upper_case_names(
    store: BlobStore, target: Registry, tmp_path: Path
) -> None:
    image, other = index_of(Entry(one(store, "names"), AMD64)), one(store, "long name")
    assert (len(LONG_REPOSITORY), len(LONG_TAG)) == (255, 128)
    with GatedRegistry() as upstream:
        references = [upstream.put(image, "names/tags", tag) for tag in ("1", "V1.0-RC_2", "_x", LONG_TAG)]
        references.append(upstream.put(other, LONG_REPOSITORY, LONG_TAG))
        references.append(f"{upstream.host}/names/tags:pinned@{image.root_digest}")
        bundle(references, tmp_path / "bundle")

    pushed = run("push", tmp_path / "bundle", target.url, "-o", "json")

    assert pushed.code == 0, pushed.err
    Bundle(tmp_path / "bundle").check()
    for tag in ("1", "V1.0-RC_2", "_x", LONG_TAG, "pinned"):
        check_pulled(target.url, "names/tags", tag, image)
    check_pulled(target.url, LONG_REPOSITORY, LONG_TAG, other)


@pytest.mark.parametrize("prefix", ["p", "k3s/x"])
def test_a_name_that_becomes_too_long_at_the_target_is_refused_before_anything_is_sent(
    store: BlobStore, target: Registry, tmp_path: Path, prefix: str
) -> None:
    with GatedRegistry() as upstream:
        bundle([upstream.put(one(store, "too long"), LONG_REPOSITORY)], tmp_path / "bundle")
    mark = target.mark()

    refused = run("push", tmp_path / "bundle", f"{target.url}/{prefix}")

    assert refused.code == 3, refused.err
    assert "prefix" in refused.err
    assert target.since(mark) == []


def test_one_path_on_two_registries_goes_apart_with_the_registry_in_the_name(
    store: BlobStore, target: Registry, tmp_path: Path
) -> None:
    first, second = one(store, "of the first"), one(store, "of the second")
    with GatedRegistry() as one_registry, GatedRegistry() as other_registry:
        one_registry.put(first, "same/path")
        other_registry.put(second, "same/path")
        mirrors = {
            "one.invalid:5000": {"endpoint": [one_registry.url]},
            "two.invalid": {"endpoint": [other_registry.url]},
        }
        file = registries(tmp_path / "registries.yaml", mirrors)
        references = ["one.invalid:5000/same/path:1", "two.invalid/same/path:1"]
        bundle(references, tmp_path / "bundle", "--registries", file)

    collision = run("push", tmp_path / "bundle", f"{target.url}/folded")
    pushed = run("push", tmp_path / "bundle", f"{target.url}/apart", "--keep-registry")

    assert collision.code == 3
    assert "--keep-registry" in collision.err
    assert pushed.code == 0, pushed.err
    check_pulled(target.url, "apart/one.invalid-5000/same/path", "1", first)
    check_pulled(target.url, "apart/two.invalid/same/path", "1", second)


# --- sha512 -------------------------------------------------------------------------------------------------


def with_sha512_blobs(directory: Path) -> BuiltImage:
    layer = sha512_blob(directory, b"layer by sha512", OCI_LAYER)
    config = sha512_blob(directory, image_config(AMD64, [layer.digest]), OCI_CONFIG)
    return image_of(build_manifest(config.descriptor(), [layer.descriptor()]), [config, layer])


def test_sha512_digests_of_blobs_and_children_are_kept_where_the_target_knows_them(tmp_path: Path) -> None:
    inner = with_sha512_blobs(tmp_path)
    child = {**inner.root.descriptor(AMD64), "digest": sha512(inner.root_bytes)}
    image = image_of(build_index([child]), [], [inner])
    with Sha512Registry() as upstream, Sha512Registry() as there:
        upstream.add(image, "some/image", "1")
        reference = f"{upstream.host}/some/image:1"
        bundle([reference], tmp_path / "bundle")
        pushed = run("push", tmp_path / "bundle", there.url, "-o", "json")
        again = run("push", tmp_path / "bundle", there.url, "-o", "json")

        assert pushed.code == 0, pushed.err
        assert again.json["images"][0]["outcome"] == "up-to-date"
        assert upstream.asked_by_sha512() == {child["digest"], *(blob.digest for blob in inner.blobs)}
        check_pulled(there.url, "some/image", "1", image)
    made = Bundle(tmp_path / "bundle")
    for digest in (child["digest"], *(blob.digest for blob in inner.blobs)):
        assert sha512(made.blob(digest).read_bytes()) == digest


def test_a_tag_pinned_by_sha512_arrives_at_a_registry_that_only_knows_sha256(
    store: BlobStore, target: Registry, tmp_path: Path
) -> None:
    """docker-registry answers DIGEST_INVALID to a manifest put by its sha512 digest: only the tag can arrive."""
    image = one(store, "pinned by sha512")
    digest = sha512(image.root_bytes)
    with Sha512Registry() as upstream:
        upstream.add(image, "pinned/sha512", "1")
        tagged = f"{upstream.host}/pinned/sha512:1"
        bundle([f"{tagged}@{digest}"], tmp_path / "bundle")
    assert set(Bundle(tmp_path / "bundle").names.values()) == {digest}

    pushed = run("push", tmp_path / "bundle", target.url, "-o", "json")
    again = run("push", tmp_path / "bundle", target.url, "-o", "json")

    assert outcomes(pushed)[tagged] == "pushed"
    check_pulled(target.url, "pinned/sha512", "1", image)
    failed = [image["error"] for image in pushed.json["images"] if image["outcome"] == "failed"]
    assert pushed.code == (10 if failed else 0), pushed.err
    assert all("DIGEST_INVALID" in error["message"] for error in failed)
    # The registry reports the tag by sha256, which says the same of the same bytes.
    assert outcomes(again)[tagged] == "up-to-date"


def test_sha512_that_does_not_match_is_refused(tmp_path: Path) -> None:
    inner = with_sha512_blobs(tmp_path)
    inner.blobs[1].path.write_bytes(b"LAYER by sha512")
    with Sha512Registry() as upstream:
        upstream.add(inner, "some/image", "1")
        result = bundle([f"{upstream.host}/some/image:1"], tmp_path / "bundle", "-o", "json", code=10)

    assert result.json["images"][0]["error"]["reference"] == "digest-mismatch"
    assert not Bundle(tmp_path / "bundle").blob(inner.blobs[1].digest).exists()


# --- foreign layers -----------------------------------------------------------------------------------------


def test_a_docker_foreign_layer_without_urls_is_a_blob_like_any_other(store: BlobStore, tmp_path: Path) -> None:
    with GatedRegistry() as upstream, GatedRegistry() as there:
        image = docker_foreign(store)
        bundle([upstream.put(image, "some/image")], tmp_path / "bundle")
        pushed = run("push", tmp_path / "bundle", there.url)

        assert pushed.code == 0, pushed.err
        check_pulled(there.url, "some/image", "1", image)


def test_a_target_that_wants_urls_on_foreign_layers_fails_that_image_and_names_the_reason(
    store: BlobStore, target: Registry, tmp_path: Path
) -> None:
    with GatedRegistry() as upstream:
        bundle([upstream.put(docker_foreign(store), "refused/without")], tmp_path / "bundle")

    pushed = run("push", tmp_path / "bundle", target.url, "-o", "json")

    assert pushed.code == 10, pushed.err
    error = pushed.json["images"][0]["error"]
    assert "foreign" in f"{error['message']} {error.get('hint', '')}".lower()


def docker_foreign(store: BlobStore) -> BuiltImage:
    config = (image_config(AMD64, []), DOCKER_CONFIG)
    return made_of(store, [(b"f", FOREIGN), (b"docker", DOCKER_LAYER)], config=config, media_type=DOCKER_MANIFEST)


def foreign(store: BlobStore, name: str, urls: Sequence[Any], *, docker: bool = True) -> BuiltImage:
    """Build an image with an ordinary layer, and a foreign one with `urls`."""
    base = store.add(f"foreign base of {name}".encode(), FOREIGN if docker else NONDISTRIBUTABLE)
    own = store.add(f"own layer of {name}".encode(), DOCKER_LAYER if docker else OCI_LAYER)
    config = store.add(image_config(AMD64, [base.digest, own.digest]), DOCKER_CONFIG if docker else OCI_CONFIG)
    manifest = build_manifest(
        config.descriptor(),
        [base.descriptor(urls=list(urls)), own.descriptor()],
        media_type=DOCKER_MANIFEST if docker else OCI_MANIFEST,
    )
    return image_of(manifest, [config, base, own])


def without(image: BuiltImage, missing: Blob) -> BuiltImage:
    blobs = [blob for blob in image.blobs if blob.digest != missing.digest]
    return BuiltImage(image.root_media_type, image.root_digest, image.root_bytes, image.manifests, blobs)


class RegistryWithUrls(Registry):
    """A registry that is configured to take manifests with `urls`."""

    def __init__(self) -> None:
        super().__init__()
        config = yaml.safe_load(self._config.read_text())
        config["validation"] = {"manifests": {"urls": {"allow": ["^https?://"]}}}
        self._config.write_text(yaml.safe_dump(config))


class Lure(LoopbackServer):
    """Serves a foreign layer where no client may fetch it, and counts who comes, also if it is for TLS."""

    def __init__(self, body: bytes) -> None:
        self.connections = 0
        server = self

        class Handler(QuietHandler):
            def setup(self) -> None:
                server.connections += 1
                super().setup()

            def do_GET(self) -> None:  # noqa: N802 - the name http.server wants
                self.reply(200, body)

        super().__init__(Handler)


@pytest.mark.parametrize("docker", [True, False])
def test_a_foreign_layer_that_the_registry_has_comes_from_there(store: BlobStore, tmp_path: Path, docker: bool) -> None:
    require("docker-registry")
    with Lure(b"") as lure, GatedRegistry() as upstream, RegistryWithUrls() as there:
        image = foreign(store, "at the registry", [f"http://{lure.host}/layer"], docker=docker)
        bundle([upstream.put(image, "some/image")], tmp_path / "bundle")
        pushed = run("push", tmp_path / "bundle", there.url)

        assert pushed.code == 0, pushed.err
        assert lure.connections == 0
        Bundle(tmp_path / "bundle").check()
        check_pulled(there.url, "some/image", "1", image)


@pytest.mark.parametrize(
    ("urls", "why"),
    [
        (["http://{host}/layer"], "https"),
        (["https://{host}/layer"], "private"),
        (["https://localhost:{port}/layer"], "private"),
        (["https://[::1]:{port}/layer", "https://[::ffff:127.0.0.1]:{port}/layer"], "private"),
        (["https://2130706433:{port}/layer", "https://0x7f.1:{port}/layer", "https://0.0.0.0:{port}/layer"], "private"),
        (["https://10.1.2.3/layer", "https://192.168.0.1/x", "https://172.16.0.1/x", "https://[fd00::1]/x"], "private"),
        (["https://169.254.169.254/meta-data", "https://[fe80::1]/layer", "https://100.64.0.1/layer"], "private"),
        (["https://[64:ff9b::7f00:1]:{port}/layer", "https://[2002:7f00:1::]:{port}/layer"], "private"),
        (["https://224.0.0.1/layer", "https://240.0.0.1/layer", "https://[ff02::1]/layer"], "private"),
        (["file:///etc/passwd", "ftp://{host}/layer", "//{host}/layer", "layer", ""], "https"),
        (["https://{host}:99999/", "https://[/layer", "https:///layer"], "usable"),
        (["https://user:secret@{host}/layer"], ""),
        ([None, 1, ["https://{host}/layer"]], ""),
        ([], ""),
    ],
    ids=[
        *("http", "loopback", "localhost", "v6 loopback", "odd loopback", "private", "link local", "v4 in v6"),
        *("multicast", "other schemes", "not usable", "password", "not text", "none at all"),
    ],
)
def test_a_foreign_layer_is_never_fetched_from_a_private_place_or_without_https(
    store: BlobStore, tmp_path: Path, urls: list[Any], why: str
) -> None:
    layer = b"foreign base of private"
    with Lure(layer) as lure, GatedRegistry() as upstream:
        port = lure.host.partition(":")[2]
        written = [url.format(host=lure.host, port=port) if isinstance(url, str) else url for url in urls]
        image = foreign(store, "private", written)
        bad = upstream.put(without(image, image.blobs[1]), "some/urls")
        good = upstream.put(one(store, "beside a foreign one"), "some/good")
        result = bundle([bad, good], tmp_path / "bundle", "-o", "json", code=10)

        assert lure.connections == 0
    made = Bundle(tmp_path / "bundle")
    assert set(made.names) == {good}
    assert digest_of(layer) not in made.blobs
    error = next(image["error"] for image in result.json["images"] if image["reference"] == bad)
    assert digest_of(layer) in error["message"]
    assert why in error["message"]
    assert "secret" not in result.out + result.err


def test_a_foreign_layer_whose_https_place_is_on_loopback_is_not_fetched_even_with_a_good_certificate(
    store: BlobStore, tmp_path: Path
) -> None:
    require("docker-registry")
    certificate = make_certificate(tmp_path)
    with Registry(certificate=certificate) as lure, GatedRegistry() as upstream:
        image = foreign(store, "tls", [f"{lure.url}/v2/"])
        reference = upstream.put(without(image, image.blobs[1]), "some/urls")
        configs = {lure.host: {"tls": {"ca_file": str(certificate.cert)}}}
        file = registries(tmp_path / "registries.yaml", {}, configs)
        bundle([reference], tmp_path / "bundle", "--registries", file, code=10)

        assert lure.requests() == []


def test_a_foreign_layer_whose_place_does_not_exist_fails_that_image_naming_the_place(
    store: BlobStore, tmp_path: Path
) -> None:
    with GatedRegistry() as upstream:
        image = foreign(store, "nowhere", ["https://layers.invalid/base?signature=s3cret"])
        reference = upstream.put(without(image, image.blobs[1]), "some/urls")
        result = bundle([reference], tmp_path / "bundle", "-o", "json", code=10)

    error = result.json["images"][0]["error"]
    assert "layers.invalid" in error["message"]
    assert "s3cret" not in result.out + result.err


def test_a_target_that_refuses_foreign_layers_fails_that_image_and_says_what_to_configure(
    store: BlobStore, target: Registry, tmp_path: Path
) -> None:
    with GatedRegistry() as upstream:
        bad = upstream.put(foreign(store, "refused", ["https://layers.example/base"]), "refused/urls")
        good = upstream.put(one(store, "beside a refused one"), "refused/good")
        bundle([bad, good], tmp_path / "bundle")
    mark = target.mark()

    pushed = run("push", tmp_path / "bundle", target.url, "-o", "json")

    assert pushed.code == 10, pushed.err
    assert outcomes(pushed) == {good: "pushed", bad: "failed"}
    error = next(image["error"] for image in pushed.json["images"] if image["reference"] == bad)
    words = f"{error['message']} {error.get('hint', '')}"
    assert "foreign" in words.lower()
    assert "validation.manifests.urls" in words
    # The refusal is an answer, not a failure that passes: the manifest is not sent again and again.
    assert len([e for e in target.since(mark) if e.method == "PUT" and e.path == "/v2/refused/urls/manifests/1"]) == 1
