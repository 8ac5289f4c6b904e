"""`bundle` from hostile upstreams: what is wrong fails its image alone, is never stored, and never crashes the run."""

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bundler.errors import TimedOutError
from bundler.net import Http, Timeouts
from tests.support.bundles import Bundle, bundle, command, many, one
from tests.support.command import Result, run
from tests.support.hostile import Answer, Exchange, HostileRegistry, endless, raw, redirects, says
from tests.support.images import (
    AMD64,
    ARM64,
    BlobStore,
    BuiltImage,
    Entry,
    Manifest,
    build_index,
    build_manifest,
    image_config,
    image_of,
    index_of,
)
from tests.support.measured import measured
from tests.support.media_types import DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from tests.support.programs import free_port, require
from tests.support.registry import Registry

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
MARK = b"bytes that no bundle may hold"


@dataclass(frozen=True)
class Trap:
    """An image that must fail: how it is laid, and the references of the errors that may name it."""

    lay: Callable[[HostileRegistry, BlobStore, str], str]
    errors: frozenset[str]


TRAPS: dict[str, Trap] = {}


def trap(name: str, lay: Callable[[HostileRegistry, BlobStore, str], str], *errors: str) -> None:
    assert name not in TRAPS
    TRAPS[name] = Trap(lay, frozenset(errors))


def path(repository: str, rest: str) -> str:
    return rf"/v2/{re.escape(repository)}/{rest}"


def at_manifest(answer: Answer) -> Callable[[HostileRegistry, BlobStore, str], str]:
    """Lay a trap in the answer to the tag of an image without an index."""

    def lay(registry: HostileRegistry, store: BlobStore, repository: str) -> str:
        registry.answer("GET", path(repository, "manifests/"), answer)
        return registry.put(one(store, repository), repository)

    return lay


def at_layer(answer: Answer) -> Callable[[HostileRegistry, BlobStore, str], str]:
    """Lay a trap in the answer to the layer of an image."""

    def lay(registry: HostileRegistry, store: BlobStore, repository: str) -> str:
        image = one(store, repository)
        registry.answer("GET", path(repository, f"blobs/{image.blobs[1].digest}"), answer)
        return registry.put(image, repository)

    return lay


def of_document(change: Callable[[Any], Any], media_type: str = OCI_MANIFEST) -> Any:
    """Lay a trap in the document of an image: changed as JSON, or put in its place where bytes are given."""

    def lay(registry: HostileRegistry, store: BlobStore, repository: str) -> str:
        image = one(store, repository) if media_type == OCI_MANIFEST else many(store, repository)
        changed = change(json.loads(image.root_bytes))
        data = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        return registry.put_root(Manifest(media_type, data), image, repository)

    return lay


def of_part(part: str, number: int | None = None, **fields: Any) -> Any:
    """Lay a trap in a descriptor: `config`, or one of `layers` or `manifests`; None removes a field."""

    def change(document: Any) -> Any:
        found = document[part] if number is None else document[part][number]
        found |= fields
        for key in [key for key, value in fields.items() if value is None]:
            del found[key]
        return document

    return of_document(change, OCI_INDEX if part == "manifests" else OCI_MANIFEST)


def of_bytes(data: bytes, media_type: str = OCI_MANIFEST) -> Any:
    return of_document(lambda _: data, media_type)


# --- answers that are not what was asked for -----------------------------------------------------------------

INTEGRITY = ("digest-mismatch", "size-mismatch", "bad-manifest")

for what, stated in {
    "no digest": "not-a-digest",
    "a path": "sha256:../../../../etc/passwd",
    "another algorithm": "md5:" + "0" * 32,
    "upper case": "sha256:" + "A" * 64,
}.items():
    trap(f"digest header: {what}", at_manifest(says(headers={"Docker-Content-Digest": stated})), "unexpected-answer")
trap(
    "digest header: of sha512", at_manifest(says(headers={"Docker-Content-Digest": "sha512:" + "0" * 128})), *INTEGRITY
)
trap("manifest: endless", at_manifest(endless()), "bad-manifest")
trap("manifest: endless in chunks", at_manifest(endless(chunked=True)), "bad-manifest")
trap("manifest: one byte over 4 MiB", of_document(lambda d: {**d, "x": "x" * MAX_MANIFEST_BYTES}), "bad-manifest")
trap("manifest: empty", at_manifest(says(body=b"")), *INTEGRITY)
trap(
    "manifest: a login page",
    at_manifest(says(body=b"<html>", headers={"Content-Type": "text/html", "Docker-Content-Digest": ""})),
    "bad-manifest",
)
trap(
    "manifest: of a Content-Type that is none",
    at_manifest(says(body=b"{}", headers={"Content-Type": "\xff;;/,", "Docker-Content-Digest": ""})),
    "bad-manifest",
)
trap("manifest: served as another kind", at_manifest(says(headers={"Content-Type": OCI_INDEX})), "bad-manifest")
trap("manifest: served as schema 1", at_manifest(says(headers={"Content-Type": SCHEMA1})), "bad-manifest")


def zipped(**headers: str) -> Answer:
    def answer(exchange: Exchange) -> None:
        body = gzip.compress(exchange.honest.body, mtime=0)
        says(body=body, headers={"Content-Encoding": "gzip", **headers})(exchange)

    return answer


def zipped_without_length(exchange: Exchange) -> None:
    body = gzip.compress(exchange.honest.body, mtime=0)
    raw("200 OK", [("Content-Encoding", "gzip"), ("Connection", "close")], body)(exchange)


trap("gzip: manifest", at_manifest(zipped()), *INTEGRITY)
trap("gzip: manifest without digest header", at_manifest(zipped(**{"Docker-Content-Digest": ""})), "bad-manifest")
trap("gzip: layer", at_layer(zipped()), *INTEGRITY)
trap("gzip: layer without length", at_layer(zipped_without_length), *INTEGRITY)
trap("layer: endless", at_layer(endless()), "size-mismatch")
trap("layer: endless in chunks", at_layer(endless(chunked=True)), "size-mismatch")
trap("layer: of another length", at_layer(says(body=MARK)), "size-mismatch")
trap(
    "layer: two lengths",
    at_layer(raw("200 OK", [("Content-Length", "1"), ("Content-Length", "2")])),
    "connection-reset",
)
trap("layer: a part that nobody asked for", at_layer(says(206, headers={"Content-Range": "bytes 7-9/10"})), *INTEGRITY)
trap("layer: a part from nowhere", at_layer(says(206, headers={"Content-Range": "bytes */10"})), "unexpected-answer")
trap("layer: gone", at_layer(says(410, MARK)), "unexpected-answer")


def of_other_bytes(registry: HostileRegistry, store: BlobStore, repository: str) -> str:
    image = one(store, repository)
    size = image.blobs[1].size
    registry.answer("GET", path(repository, f"blobs/{image.blobs[1].digest}"), says(body=(MARK * size)[:size]))
    return registry.put(image, repository)


trap("layer: other bytes", of_other_bytes, "digest-mismatch")


def other_for_pin(registry: HostileRegistry, store: BlobStore, repository: str) -> str:
    image, other = one(store, repository), one(store, "another image")
    registry.answer("*", path(repository, "manifests/"), says(body=other.root_bytes))
    registry.put(image, repository)
    return f"{registry.host}/{repository}@{image.root_digest}"


def other_for_child(registry: HostileRegistry, store: BlobStore, repository: str) -> str:
    image, other = many(store, repository), one(store, "another image")
    registry.answer("GET", path(repository, f"manifests/{image.digest_for(AMD64)}"), says(body=other.root_bytes))
    return registry.put(image, repository)


def listing_itself(registry: HostileRegistry, store: BlobStore, repository: str) -> str:
    child = one(store, repository).root.descriptor(AMD64, mediaType=OCI_INDEX, digest="sha256:" + "5" * 64)
    index = image_of(build_index([child]), [], [])
    body = says(body=index.root_bytes, headers={"Content-Type": OCI_INDEX, "Docker-Content-Digest": child["digest"]})
    registry.answer("GET", path(repository, "manifests/sha256:"), body)
    return registry.put(index, repository)


trap("manifest: of another image, for a pinned digest", other_for_pin, "digest-mismatch")
trap("manifest: of another image, for a child", other_for_child, "digest-mismatch")
trap("index: lists itself", listing_itself, "digest-mismatch")

for what, location in {
    "to file": "file:///etc/passwd",
    "to file with a host": "file://127.0.0.1/etc/passwd",
    "to ftp": "ftp://127.0.0.1/x",
    "to gopher": "gopher://127.0.0.1/x",
    "to data": "data:application/json,{}",
    "to a script": "javascript:alert(1)",
    "to a bad host": "http://[::1/",
    "to a bad port": "http://127.0.0.1:99999/",
    "to port 0": "http://127.0.0.1:0/",
    "to no host": "http://",
}.items():
    trap(f"redirect: manifest {what}", at_manifest(redirects(location)), "unexpected-answer", "connection-failed")
    trap(f"redirect: layer {what}", at_layer(redirects(location)), "unexpected-answer", "connection-failed")
trap("redirect: layer without end", at_layer(redirects("{target}?again", 302)), "unexpected-answer")
trap("redirect: manifest without Location", at_manifest(says(307, b"")), "unexpected-answer")

# --- documents that lie --------------------------------------------------------------------------------------

for what, size in {
    "negative": -1,
    "a float": 10.0,
    "text": "10",
    "a bool": True,
    "over 63 bits": 2**63,
    "a number of 400 digits": 10**400,
    "missing": None,
}.items():
    trap(f"size of a layer: {what}", of_part("layers", 0, size=size), "bad-manifest")
trap("size of a config: negative", of_part("config", size=-(2**62)), "bad-manifest")
trap("size of a child: negative", of_part("manifests", 0, size=-1), "bad-manifest")
trap("size of a child: over 4 MiB", of_part("manifests", 0, size=MAX_MANIFEST_BYTES + 1), "bad-manifest")
trap("size of a child: one off", of_part("manifests", 0, size=1), "size-mismatch")
trap("size of a config: over 4 MiB", of_part("config", size=MAX_MANIFEST_BYTES + 1), "bad-manifest")
trap("size of a layer: one more", of_part("layers", 0, size=1 + 2**20), "size-mismatch")
trap("size of a layer: 0", of_part("layers", 0, size=0), "size-mismatch")

for what, digest in {
    "a path": "sha256:../../../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "too short": "sha256:abc",
    "too long": "sha256:" + "0" * 65,
    "upper case": "sha256:" + "A" * 64,
    "md5": "md5:" + "0" * 32,
    "a number": 5,
    "with a line end": "sha256:" + "0" * 64 + "\n",
    "in other digits": "sha256:" + "\u0660" * 64,
    "a surrogate": "sha256:\ud800",
}.items():
    trap(f"digest of a layer: {what}", of_part("layers", 0, digest=digest), "bad-manifest")
trap("digest of a config: a path", of_part("config", digest="sha256:../x"), "bad-manifest")
trap("digest of a child: a path", of_part("manifests", 0, digest="sha256:../x"), "bad-manifest")
trap("media type of a child: an index that is none", of_part("manifests", 0, mediaType=OCI_INDEX), "bad-manifest")
trap("media type of a child: Docker's", of_part("manifests", 0, mediaType=DOCKER_MANIFEST), "bad-manifest")
trap("media type of a layer: no text", of_part("layers", 0, mediaType=7), "bad-manifest")
trap("media type of an image: another", of_document(lambda d: {**d, "mediaType": DOCKER_MANIFEST}), "bad-manifest")
trap("media type of an image: none of ours", of_document(lambda d: {**d, "mediaType": "text/html"}), "bad-manifest")

for what, data in {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "a number": b"1",
    "not JSON": b"{",
    "not UTF-8": b'{"a":"\xff"}',
    "UTF-16": '{"schemaVersion":2}'.encode("utf-16"),
    "with a byte order mark": b'\xef\xbb\xbf{"schemaVersion":2}',
    "deep": b"[" * 200_000,
    "deep in objects": b'{"a":' * 200_000,
    "NaN": b'{"schemaVersion":NaN}',
    "a key twice": b'{"layers":[],"layers":[]}',
    "a number without end": b'{"schemaVersion":' + b"1" * 100_000 + b"}",
    "only a version": b'{"schemaVersion":2}',
    "schema 1": b'{"schemaVersion":1,"fsLayers":[]}',
}.items():
    trap(f"document: {what}", of_bytes(data), "bad-manifest")
    trap(f"document: {what} as an index", of_bytes(data, OCI_INDEX), "bad-manifest")
trap("document: manifest and index at once", of_document(lambda d: {**d, "manifests": []}), "bad-manifest")
trap("document: config is missing", of_document(lambda d: {k: d[k] for k in d if k != "config"}), "bad-manifest")
trap("document: layers is an object", of_document(lambda d: {**d, "layers": {}}), "bad-manifest")
trap("document: layers is null", of_document(lambda d: {**d, "layers": None}), "bad-manifest")
trap("document: manifests is null", of_document(lambda d: {**d, "manifests": None}, OCI_INDEX), "bad-manifest")
trap("10,001 layers", of_document(lambda d: {**d, "layers": d["layers"] * 10_001}), "bad-manifest")
trap(
    "10,001 children", of_document(lambda d: {**d, "manifests": d["manifests"][:1] * 10_001}, OCI_INDEX), "bad-manifest"
)


def many_layers(registry: HostileRegistry, store: BlobStore, repository: str) -> str:
    images = []
    for number in range(3):
        image = one(store, f"{repository} {number}")
        document = json.loads(image.root_bytes)
        root = Manifest(OCI_MANIFEST, json.dumps({**document, "layers": document["layers"] * 3400}).encode())
        images.append(image_of(root, image.blobs))
    return registry.put(index_of(*(Entry(image, AMD64) for image in images)), repository)


def five_indexes(registry: HostileRegistry, store: BlobStore, repository: str) -> str:
    image = one(store, repository)
    for _ in range(5):
        image = index_of(Entry(image))
    return registry.put(image, repository)


trap("10,203 descriptors in all", many_layers, "bad-manifest")
trap("five indexes deep", five_indexes, "bad-manifest")


def of_config(data: bytes) -> Callable[[HostileRegistry, BlobStore, str], str]:
    def lay(registry: HostileRegistry, store: BlobStore, repository: str) -> str:
        config, layer = store.add(data, OCI_CONFIG), store.add(repository.encode(), OCI_LAYER)
        image = image_of(build_manifest(config.descriptor(), [layer.descriptor()]), [config, layer])
        return registry.put(image, repository)

    return lay


trap("config: not JSON", of_config(b"\x7fELF"), "bad-manifest")
trap("config: deep", of_config(b'{"os":' * 100_000), "bad-manifest")
trap("config: NaN", of_config(b'{"os":"linux","architecture":"amd64","x":NaN}'), "bad-manifest")
trap("config: another platform", of_config(image_config(ARM64, [])), "wrong-platform")


def two_sizes(registry: HostileRegistry, store: BlobStore, repository: str) -> str:
    image = one(store, repository)
    document = json.loads(image.root_bytes)
    document["layers"].insert(0, {**document["layers"][0], "size": 1})
    return registry.put_root(Manifest(OCI_MANIFEST, json.dumps(document).encode()), image, repository)


def two_sizes_of_a_child(registry: HostileRegistry, store: BlobStore, repository: str) -> str:
    image = one(store, repository)
    children = [image.root.descriptor(AMD64), {**image.root.descriptor(AMD64), "size": 1}]
    return registry.put(image_of(build_index(children), [], [image]), repository)


trap("one layer with two sizes", two_sizes, "size-mismatch", "bad-manifest")
trap("one child with two sizes", two_sizes_of_a_child, "size-mismatch", "bad-manifest")


# --- one run with all of them --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A bundle of every trap, and of honest images between them."""

    result: Result
    references: Mapping[str, str]
    honest: Mapping[str, BuiltImage]
    directory: Path
    targets: list[tuple[str, str]]
    sent_bytes: int


@pytest.fixture(scope="module")
def all_at_once(store: BlobStore, tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp("hostile") / "bundle"
    with HostileRegistry() as registry:
        references = {
            name: trap.lay(registry, store, f"trap/{number}") for number, (name, trap) in enumerate(TRAPS.items())
        }
        honest = {registry.put(many(store, name), name): many(store, name) for name in ("aaa/first", "zzz/last")}
        result = run(*command([*references.values(), *honest], directory, "-o", "json", "--jobs", "8"), timeout=120)
        return Run(result, references, honest, directory, list(registry.targets), registry.sent_bytes)


@pytest.mark.parametrize("name", TRAPS)
def test_what_is_hostile_fails_its_image_with_the_right_error(all_at_once: Run, name: str) -> None:
    assert "Traceback" not in all_at_once.result.err
    (image,) = [i for i in all_at_once.result.json["images"] if i["reference"] == all_at_once.references[name]]
    assert image["outcome"] == "failed"
    assert image["error"]["reference"] in TRAPS[name].errors, image["error"]
    assert len(image["error"]["message"]) < 1000
    assert is_one_line(image["error"]["message"])


def test_the_honest_images_between_hostile_ones_are_complete_and_nothing_wrong_is_stored(all_at_once: Run) -> None:
    assert all_at_once.result.code == 10, all_at_once.result.err
    check_stored(all_at_once.directory, set(all_at_once.honest))
    made = Bundle(all_at_once.directory)
    for reference in all_at_once.honest:
        assert made.image(reference)["platforms"] == ["linux/amd64"]
    assert {entry["reference"] for entry in made.lock["failed"]} == set(all_at_once.references.values())


def test_hostile_answers_are_cut_off_and_tag_lists_are_never_asked_for(all_at_once: Run) -> None:
    # Four endless bodies, each asked for twice; what a client has not read yet lies in buffers of the system.
    assert all_at_once.sent_bytes < 300_000_000
    assert not [target for _, target in all_at_once.targets if "tags/list" in target or "referrers" in target]


def test_a_hostile_registry_is_refused_the_same_when_the_bundle_is_renewed(store: BlobStore, tmp_path: Path) -> None:
    """Asking for the digest first (HEAD) believes nothing more than asking at once."""
    with HostileRegistry() as registry:
        image, victim = many(store, "renewed"), many(store, "victim")
        references = [registry.put(image, "some/image"), registry.put(victim, "some/victim")]
        bundle(references, tmp_path / "bundle")
        layer = image.blobs[1]
        lie = {"Docker-Content-Digest": layer.digest, "Content-Type": OCI_MANIFEST}
        registry.answer("HEAD", "/some/image/manifests/1", says(headers=lie))

        result = bundle(references, tmp_path / "bundle", "-o", "json", code=10)

    assert "Traceback" not in result.err
    check_stored(tmp_path / "bundle", {references[1]})


def is_one_line(text: str) -> bool:
    return not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", text)


def check_stored(directory: Path, names: set[str]) -> None:
    """Check that a bundle names only these images, and that every blob file has the bytes of its name."""
    made = Bundle(directory)
    assert set(made.names) == names
    for digest in made.blobs:
        algorithm, _, hexdigits = digest.partition(":")
        data = made.blob(digest).read_bytes()
        assert MARK not in data
        if not hexdigits.startswith("."):
            assert hashlib.new(algorithm, data).hexdigest() == hexdigits


# --- one image must not pull others down ---------------------------------------------------------------------


@pytest.mark.parametrize("order", ["aaa", "zzz"])
@pytest.mark.parametrize("off", [-1, 1])
def test_an_image_that_lies_about_a_shared_layer_fails_alone(
    store: BlobStore, tmp_path: Path, order: str, off: int
) -> None:
    """Blobs are fetched once for all images: the size that one of them claims must not be held against the others."""
    image = one(store, "shared")
    document = json.loads(image.root_bytes)
    document["layers"][0]["size"] += off
    with HostileRegistry() as registry:
        honest = registry.put(image, "mmm/honest")
        liar = registry.put_root(Manifest(OCI_MANIFEST, json.dumps(document).encode()), image, f"{order}/liar")
        result = bundle([honest, liar], tmp_path / "bundle", "-o", "json", code=10)

    outcome = {i["reference"]: i["outcome"] for i in result.json["images"]}
    assert outcome == {honest: "fetched", liar: "failed"}
    check_stored(tmp_path / "bundle", {honest})


def test_an_image_of_absurd_size_fails_alone(store: BlobStore, tmp_path: Path) -> None:
    image = one(store, "absurd")
    document = json.loads(image.root_bytes)
    document["layers"][0]["size"] = 2**62
    with HostileRegistry() as registry:
        honest = registry.put(one(store, "beside an absurd one"), "some/honest")
        absurd = registry.put_root(Manifest(OCI_MANIFEST, json.dumps(document).encode()), image, "some/absurd")
        bundle([honest, absurd], tmp_path / "bundle", code=10)

    check_stored(tmp_path / "bundle", {honest})


@pytest.mark.parametrize("what", ["manifest", "layer"])
@pytest.mark.parametrize("place", ["a dead port", "a host that is none", "a name that does not resolve"])
def test_a_redirect_to_where_nobody_is_fails_its_image_alone(
    store: BlobStore, tmp_path: Path, what: str, place: str
) -> None:
    """That a storage host is down says nothing of the registry, which goes on answering for its other images."""
    location = {
        "a dead port": f"http://127.0.0.1:{free_port()}/x",
        "a host that is none": "http://\u00c0\u00bd/",
        "a name that does not resolve": "http://storage.invalid/x",
    }[place]
    with HostileRegistry() as registry:
        lay = (at_layer if what == "layer" else at_manifest)(redirects(location))
        # As many as there are images and blobs in flight: the honest ones come when these have failed.
        hostile = [lay(registry, store, f"aaa/hostile-{number}") for number in range(2)]
        references = [registry.put(many(store, f"honest {number}"), f"honest/{number}") for number in range(4)]
        bundle([*hostile, *references], tmp_path / "bundle", "--jobs", "2", code=10)

    check_stored(tmp_path / "bundle", set(references))


# --- numbers and words in headers ----------------------------------------------------------------------------

DIGITS = "1" * 5000


#: What is laid where, and in the answer to what: a manifest or a layer.
HEADERS: dict[str, tuple[str, Answer]] = {
    "length: none": ("layer", raw("200 OK", [("Connection", "close")])),
    "length: no digit": ("layer", raw("200 OK", [("Content-Length", "\u00b2")])),
    "length: 30 digits": ("layer", raw("200 OK", [("Content-Length", "9" * 30)])),
    "length: 5000 digits": ("layer", raw("200 OK", [("Content-Length", DIGITS)])),
    "length: negative": ("layer", raw("200 OK", [("Content-Length", "-5")])),
    "range: 5000 digits": ("layer", says(206, headers={"Content-Range": f"bytes {DIGITS}-2/3"})),
    "416 for no range": ("layer", says(416, b"")),
    "retry: no digit": ("manifest", says(429, b"", {"Retry-After": "\u00b2"})),
    "retry: 5000 digits": ("manifest", says(429, b"", {"Retry-After": DIGITS})),
    "retry: a date without zone": ("manifest", says(503, b"", {"Retry-After": "Mon, 01 Jan 0001 00:00:00 -0000"})),
    "retry: a date of 400 digits": ("manifest", says(429, b"", {"Retry-After": f"Mon, 01 Jan 0001 00:{DIGITS[:400]}"})),
    "retry: a day": ("manifest", says(429, b"", {"Retry-After": "86400"})),
    "error: deep": ("manifest", says(400, b"[" * 8000)),
    "error: of lists": ("manifest", says(400, b'{"errors":[[1],null]}')),
    "error: control characters": ("manifest", says(403, b'{"errors":[{"code":"\\ud800\\u001b[2J","message":{}}]}')),
    "realm: file": ("manifest", says(401, b"", {"WWW-Authenticate": 'Bearer realm="file:///etc/passwd"'})),
    "realm: bad URL": ("manifest", says(401, b"", {"WWW-Authenticate": 'Bearer realm="http://[::1"'})),
    "realm: none": ("manifest", says(401, b"", {"WWW-Authenticate": "Bearer"})),
    "basic": ("manifest", says(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})),
    "challenge: nonsense": ("manifest", says(401, b"", {"WWW-Authenticate": "\u00b2, , =,=;"})),
}


# --- what passes for a fault of the network is tried again, and no more often than that ----------------------


def headers_without_end(exchange: Exchange) -> None:
    exchange.close()
    exchange.head("200 OK", [(f"X-{number}", "x" * 1000) for number in range(200)])


def nothing(exchange: Exchange) -> None:
    exchange.close()


AGAIN: dict[str, Callable[[HostileRegistry, BlobStore, str], str]] = {
    "manifest: 200 headers": at_manifest(headers_without_end),
    "manifest: a header of 100 kB": at_manifest(says(headers={"X-Long": "x" * 100_000})),
    "manifest: absurd Content-Length": at_manifest(raw("200 OK", [("Content-Length", "9" * 30)])),
    "manifest: no status": at_manifest(raw("okay", [])),
    "manifest: no answer": at_manifest(nothing),
    "manifest: chunks that are none": at_manifest(raw("200 OK", [("Transfer-Encoding", "chunked")], b"xyz\r\n")),
    "manifest: a chunk of negative size": at_manifest(raw("200 OK", [("Transfer-Encoding", "chunked")], b"-1\r\n")),
    "layer: chunks that are none": at_layer(raw("200 OK", [("Transfer-Encoding", "chunked")], b"\xff\r\n")),
    "layer: less than announced": at_layer(raw("200 OK", [("Content-Length", "10")], b"x")),
    "layer: a chunk without end": at_layer(raw("200 OK", [("Transfer-Encoding", "chunked")], b"f" * 70_000)),
}


def tokens(answer: Answer) -> Callable[[HostileRegistry, BlobStore, str], str]:
    """Lay a trap in a token realm on the registry's own host."""

    def lay(registry: HostileRegistry, store: BlobStore, repository: str) -> str:
        def challenge(exchange: Exchange) -> None:
            if "authorization" in exchange.request.headers:
                says()(exchange)
            else:
                header = f'Bearer realm="{registry.url}/token",service="x"'
                says(401, b"", {"WWW-Authenticate": header})(exchange)

        registry.answer("GET", "^/token", answer)
        registry.answer("*", "/v2/", challenge)
        return registry.put(one(store, repository), repository)

    return lay


TOKENS: dict[str, Answer] = {
    "endless": endless(start=b'{"token":"'),
    "huge": says(200, b'{"token":"' + b"x" * 2_000_000 + b'"}'),
    "not JSON": says(200, b"<html>"),
    "a list": says(200, b"[]"),
    "no token": says(200, b'{"expires_in":300}'),
    "deep": says(200, b"[" * 100_000),
    "deep in objects": says(200, b'{"token":' * 100_000),
    "gzip": says(200, gzip.compress(b'{"token":"x"}', mtime=0), {"Content-Encoding": "gzip"}),
    "another header in it": says(200, b'{"token":"x\\r\\nHost: elsewhere"}'),
    "a surrogate in it": says(200, b'{"token":"\\ud800"}'),
    "too long for a number": says(200, b'{"token":"x","expires_in":1' + b"0" * 400 + b"}"),
    "redirect without end": redirects("{target}"),
    "redirect to file": redirects("file:///etc/passwd"),
    "404": says(404, b""),
    "500": says(500, b""),
    "302 without Location": says(302, b""),
}


@dataclass(frozen=True)
class Waiting:
    """Runs that wait between tries, all at the same time."""

    results: Mapping[str, Result]
    directories: Mapping[str, Path]
    honest: Mapping[str, str]
    requests: Mapping[str, int]


@pytest.fixture(scope="module")
def waiting(store: BlobStore, tmp_path_factory: pytest.TempPathFactory) -> Waiting:
    top = tmp_path_factory.mktemp("waiting")
    lays = {**AGAIN, **{f"token: {name}": tokens(answer) for name, answer in TOKENS.items()}}
    for name, (what, answer) in HEADERS.items():
        lays[name] = (at_layer if what == "layer" else at_manifest)(answer)
    directories = {name: top / str(number) for number, name in enumerate(lays)}
    honest: dict[str, str] = {}
    requests: dict[str, int] = {}

    def try_one(name: str) -> Result:
        with HostileRegistry() as registry, HostileRegistry() as other:
            reference = lays[name](registry, store, "some/hostile")
            honest[name] = other.put(one(store, "honest"), "some/honest")
            result = run(*command([reference, honest[name]], directories[name], "-o", "json"), timeout=120)
            requests[name] = len(registry.targets)
        return result

    # They mostly wait; the servers' threads and these are all there is to run.
    with ThreadPoolExecutor(24) as threads:
        results = dict(zip(lays, threads.map(try_one, lays), strict=True))
    return Waiting(results, directories, honest, requests)


@pytest.mark.parametrize("name", [*AGAIN, *(f"token: {name}" for name in TOKENS)])
def test_what_never_gets_better_is_given_up_and_the_rest_is_complete(waiting: Waiting, name: str) -> None:
    result = waiting.results[name]

    assert "Traceback" not in result.err
    assert result.code == 10 or name == "token: too long for a number", result.err
    check_waited(waiting, name)
    # Four tries, a second round of four, and what each of them needs to ask before: nothing goes on for ever.
    assert waiting.requests[name] <= 120


@pytest.mark.parametrize("name", HEADERS)
def test_no_header_and_no_error_body_crashes_the_run(waiting: Waiting, name: str) -> None:
    result = waiting.results[name]

    assert "Traceback" not in result.err
    # A length that cannot be read is as good as none: the bytes decide.
    assert result.code in ({0, 10} if HEADERS[name][0] == "layer" else {10})
    assert "\x1b" not in result.err
    json.loads(result.out, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    check_waited(waiting, name)


def check_waited(waiting: Waiting, name: str) -> None:
    """Check that the honest image is there, the other one only if all is well, and nothing wrong is."""
    names = set(Bundle(waiting.directories[name]).names)
    assert waiting.honest[name] in names
    check_stored(waiting.directories[name], names if waiting.results[name].code == 0 else {waiting.honest[name]})


# --- bombs ---------------------------------------------------------------------------------------------------


def bomb(store: BlobStore, fan: int, levels: int) -> BuiltImage:
    """Build indexes that list the next one many times; walked naively that is fan ** levels visits."""
    image = one(store, "at the bottom")
    for _ in range(levels):
        image = image_of(build_index([image.root.descriptor()] * fan), [], [image])
    return image


def test_a_fan_out_bomb_is_walked_once(store: BlobStore, tmp_path: Path) -> None:
    """2,000 ** 4 paths lead to one image of five manifests; 8,000 descriptors are within the limit."""
    require("docker-registry")
    with HostileRegistry() as registry, Registry() as there:
        reference = registry.put(bomb(store, 2_000, 4), "some/bomb")
        result = run(*command([reference], tmp_path / "bundle", "--platform", "all"), timeout=30)

        assert result.code in {0, 10}, result.err
        assert len([target for _, target in registry.targets if "/manifests/" in target]) <= 20
        if result.code == 0:
            pushed = run("push", tmp_path / "bundle", there.url, timeout=30)
            assert pushed.code in {0, 10}, pushed.err


@pytest.mark.parametrize("platform", ["linux/amd64", "all"])
def test_a_fan_out_bomb_of_too_many_descriptors_is_refused(store: BlobStore, tmp_path: Path, platform: str) -> None:
    with HostileRegistry() as registry:
        reference = registry.put(bomb(store, 9_000, 4), "some/bomb")
        result = run(*command([reference], tmp_path / "bundle", "--platform", platform, "-o", "json"), timeout=30)

        assert result.code == 10, result.err
        assert result.json["images"][0]["error"]["reference"] == "bad-manifest"
        assert len(registry.targets) <= 20


def test_an_image_of_very_many_big_manifests_is_bounded_in_memory(store: BlobStore, tmp_path: Path) -> None:
    """48 manifests of 4 MiB are 200 MB that no image needs: refused, or at least not held all at once."""
    images = []
    for number in range(48):
        image = one(store, f"big {number}")
        root = {**json.loads(image.root_bytes), "x": "x" * (MAX_MANIFEST_BYTES - 2000)}
        images.append(image_of(Manifest(OCI_MANIFEST, json.dumps(root).encode()), image.blobs))
    with HostileRegistry() as registry:
        reference = registry.put(index_of(*(Entry(image, AMD64) for image in images)), "some/big")
        done = measured(*command([reference], tmp_path / "bundle"))

    assert done.result.code in {0, 10}
    assert done.peak_kib < 150_000, f"{done.peak_kib} KiB"


# --- time ----------------------------------------------------------------------------------------------------


def test_a_server_that_falls_silent_is_given_up_after_the_read_timeout() -> None:
    """The timeout is for each next piece: 60 seconds in the product, a moment here."""

    def silent(exchange: Exchange) -> None:
        exchange.close()
        exchange.head("200 OK", [("Content-Length", "10")])
        exchange.write(b"12345")
        exchange.registry.pause(20)

    with HostileRegistry() as registry:
        registry.answer("GET", "/silent", silent)
        http = Http(Timeouts(connect_s=5, read_s=0.2))
        response = http.request("GET", f"{registry.url}/v2/silent")
        with pytest.raises(TimedOutError):
            response.read_all(100)
        http.close()


def test_a_slow_body_comes_whole_as_long_as_it_keeps_coming(store: BlobStore, tmp_path: Path) -> None:
    """A slow link is no attack: no least speed is asked for, so a body may take as long as it gets on."""
    image = one(store, "slow")

    def slow(exchange: Exchange) -> None:
        exchange.head("200 OK", [("Content-Length", str(len(exchange.honest.body)))])
        for start in range(0, len(exchange.honest.body), 100):
            exchange.write(exchange.honest.body[start : start + 100])
            exchange.registry.pause(0.02)

    with HostileRegistry() as registry:
        registry.answer("GET", "/blobs/", slow)
        reference = registry.put(image, "some/slow")
        bundle([reference], tmp_path / "bundle")

    check_stored(tmp_path / "bundle", {reference})
