"""Manifests and indexes: parsed leniently, never ambiguously, bytes untouched."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.errors import BadManifestError
from bundler.oci import mediatype
from bundler.oci.manifest import MAX_MANIFEST_BYTES, Index, Manifest, parse

DIGEST = "sha256:" + "a" * 64
CONFIG = {"mediaType": mediatype.OCI_CONFIG, "digest": DIGEST, "size": 2}


def manifest(**fields: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "config": CONFIG, "layers": [], **fields}).encode()


def child(letter: str, **fields: Any) -> dict[str, Any]:
    return {"mediaType": mediatype.OCI_MANIFEST, "digest": "sha256:" + letter * 64, "size": 7, **fields}


def test_a_manifest_without_media_type_is_what_the_descriptor_says() -> None:
    found = parse(manifest(), mediatype.OCI_MANIFEST)
    assert isinstance(found, Manifest)
    assert found.media_type == mediatype.OCI_MANIFEST
    assert [str(blob.digest) for blob in found.blobs] == [DIGEST]


def test_an_index_without_any_media_type_is_known_by_its_shape() -> None:
    found = parse(json.dumps({"manifests": [child("b")]}).encode(), "")
    assert isinstance(found, Index)


@pytest.mark.parametrize(
    ("raw", "media_type", "why"),
    [
        (b"", "", "not valid JSON"),
        (b"\xff\xfe", "", "not valid JSON"),
        (b"[]", "", "not a JSON object"),
        (b'{"config": {}, "config": {}}', "", "same key twice"),
        (b'{"a": NaN}', "", "NaN"),
        (b'{"a": Infinity}', "", "Infinity"),
        (b"[" * 100_000, "", "not valid JSON"),
        (b'{"schemaVersion": 1, "fsLayers": []}', "", "schema 1"),
        (manifest(), "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1"),
        (manifest(mediaType=mediatype.DOCKER_MANIFEST), mediatype.OCI_MANIFEST, "was served as"),
        (manifest(mediaType=7), "", "not a string"),
        (manifest(), "text/html", "neither manifest nor index"),
        (manifest(config=None), "", "must be an object"),
        (manifest(config={**CONFIG, "digest": "sha256:../x"}), "", "64 lower-case hex"),
        (manifest(config={**CONFIG, "size": -1}), "", "size must be"),
        (manifest(config={**CONFIG, "size": True}), "", "size must be"),
        (manifest(config={**CONFIG, "size": 2**63}), "", "size must be"),
        (manifest(config={**CONFIG, "size": "2"}), "", "size must be"),
        (manifest(config={"digest": DIGEST, "size": 2}), "", "no mediaType"),
        (manifest(layers={}), "", "not a list"),
        (manifest(layers=[CONFIG] * 10_001), "", "more than 10000"),
        (manifest(manifests=[]), "", "at once"),
        (b'{"manifests": null}', mediatype.OCI_INDEX, "not a list"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "", "larger than"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(raw: bytes, media_type: str, why: str) -> None:
    with pytest.raises(BadManifestError) as caught:
        parse(raw, media_type)
    assert why in caught.value.message
    assert "\n" not in caught.value.message


def test_trimming_keeps_the_chosen_descriptors_and_all_else_as_it_was() -> None:
    document = {
        "schemaVersion": 2,
        "mediaType": mediatype.OCI_INDEX,
        "x-unknown": {"ü": [1]},
        "manifests": [child("b"), child("c", platform={"os": "linux", "x": 1}, annotations={"a": "ä"})],
        "annotations": {"k": "v"},
    }
    index = parse(json.dumps(document, indent=3).encode(), mediatype.OCI_INDEX)
    assert isinstance(index, Index)
    trimmed = index.trimmed(index.manifests[1:])
    assert json.loads(trimmed.raw) == {**document, "manifests": document["manifests"][1:]}  # type: ignore[index]
    assert trimmed.digest == index.trimmed(index.manifests[1:]).digest
    assert trimmed.digest.matches(trimmed.raw)
    assert "ä".encode() in trimmed.raw


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["config", "layers", "manifests", "mediaType", "schemaVersion"]), json_values),
    st.sampled_from(["", *mediatype.ACCEPT]),
)
def test_any_document_is_either_parsed_with_its_bytes_kept_or_refused(document: dict[str, Any], kind: str) -> None:
    raw = json.dumps(document).encode()
    try:
        found = parse(raw, kind)
    except BadManifestError:
        return
    assert found.raw == raw
    assert found.digest.matches(raw)
