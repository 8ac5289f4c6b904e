"""Which children of an index come along."""

from __future__ import annotations

import json
from typing import Any

from bundler.bundle.selection import ATTESTED_DIGEST, Selection, select
from bundler.oci import mediatype
from bundler.oci.manifest import Index, parse
from bundler.oci.platform import Platform


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


def child(letter: str, platform: str | None = None, attests: str | None = None, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"mediaType": mediatype.OCI_MANIFEST, "digest": digest(letter), "size": 1}
    if platform:
        parts = platform.split("/")
        found["platform"] = dict(zip(("os", "architecture", "variant"), parts, strict=False)) | fields
    if attests:
        found["platform"] = {"os": "unknown", "architecture": "unknown"}
        found["annotations"] = {ATTESTED_DIGEST: digest(attests)}
    return found


def chosen(children: list[dict[str, Any]], *platforms: str, inside: dict[str, str] | None = None) -> Selection:
    index = parse(json.dumps({"manifests": children}).encode(), mediatype.OCI_INDEX)
    assert isinstance(index, Index)
    found = {d.digest: (Platform.parse((inside or {})[d.digest.hex[0]]),) for d in index.manifests
             if d.digest.hex[0] in (inside or {})}  # fmt: skip
    return select(index, tuple(Platform.parse(text) for text in platforms) or None, found)


def letters(selection: Selection) -> str:
    return "".join(descriptor.digest.hex[0] for descriptor in selection.kept)


MULTI = [
    child("a", "linux/amd64"),
    child("b", "linux/arm64/v8"),
    child("c", "linux/arm/v7"),
    child("d", "linux/arm/v6"),
]


def test_each_chosen_platform_brings_its_best_child() -> None:
    assert letters(chosen(MULTI, "linux/amd64")) == "a"
    assert letters(chosen(MULTI, "linux/arm64", "linux/amd64")) == "ab"
    assert letters(chosen(MULTI, "linux/arm")) == "c"
    assert letters(chosen(MULTI, "linux/arm/v6")) == "d"


def test_arm_falls_back_to_v6_where_there_is_no_v7() -> None:
    selection = chosen([child("d", "linux/arm/v6")], "linux/arm")
    assert letters(selection) == "d"
    assert not selection.missing


def test_without_a_choice_everything_comes() -> None:
    assert letters(chosen(MULTI)) == "abcd"


def test_what_does_not_exist_is_missing() -> None:
    selection = chosen(MULTI, "linux/amd64", "linux/s390x")
    assert [str(platform) for platform in selection.missing] == ["linux/s390x"]
    assert letters(selection) == "a"


def test_an_attestation_comes_with_its_child_only() -> None:
    children = [*MULTI, child("e", attests="a"), child("f", attests="b")]
    assert letters(chosen(children, "linux/amd64")) == "ae"
    assert letters(chosen(children, "linux/arm")) == "c"


def test_children_without_platform_always_come() -> None:
    children = [*MULTI, child("e")]
    assert letters(chosen(children, "linux/amd64")) == "ae"


def test_a_platform_inside_a_child_that_states_none_is_not_missing() -> None:
    selection = chosen([child("e"), child("a", "linux/amd64")], "linux/s390x", inside={"e": "linux/s390x"})
    assert letters(selection) == "e"
    assert not selection.missing
    assert [str(platform) for platform in selection.present] == ["linux/s390x"]


def test_every_os_version_of_a_windows_platform_comes() -> None:
    children = [
        child("a", "windows/amd64", **{"os.version": "10.0.17763.1"}),
        child("b", "windows/amd64", **{"os.version": "10.0.20348.1"}),
    ]
    assert letters(chosen(children, "windows/amd64")) == "ab"
