"""`bundle`: the layout and the lock it writes, what it does to a directory, how it reports."""

import json
import os
from pathlib import Path

import pytest

from tests.support.bundles import (
    NAME,
    REF_NAME,
    STATE,
    Bundle,
    GatedRegistry,
    bundle,
    command,
    layer_of,
    many,
    one,
    registries,
    snapshot,
    takes_less_than,
)
from tests.support.command import run, start
from tests.support.faulty import Stall, Status
from tests.support.images import AMD64, ARM64, BlobStore, ImageFactory, digest_of
from tests.support.releases import ReleaseServer

VERSION = "v1.32.3+k3s1"


# --- what is written ----------------------------------------------------------------------------------------


def test_a_release_becomes_a_layout_with_every_image_under_its_full_name(
    registry: GatedRegistry, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, to: Path
) -> None:
    factory = ImageFactory(tmp_path_factory.mktemp("factory"))
    selectors = ("--k3s", VERSION, "--release-url", "shipped")
    references = run("images", *selectors).lines
    images = {}
    for reference in references:
        path, _, tag = reference.removeprefix("docker.io/").rpartition(":")
        images[reference] = factory.build(path.rpartition("/")[2], tag, 0.001, (AMD64, ARM64))
        registry.add(images[reference], path, tag)
    mirror = registries(tmp_path / "registries.yaml", {"docker.io": {"endpoint": [registry.url]}})
    platforms = ("--platform", "linux/amd64", "--platform", "linux/arm64")

    result = run("bundle", *selectors, *platforms, "--registries", mirror, "--to", to)

    assert result.code == 0, result.err
    made = Bundle(to).check()
    assert sorted(made.names) == references
    assert made.names == {reference: image.root_digest for reference, image in images.items()}
    assert [release["version"] for release in made.lock["releases"]] == [VERSION]
    assert {image["registry"] for image in made.lock["images"]} == {"docker.io"}
    assert registry.host not in (to / "bundle.lock.json").read_text()
    assert len(registry.fetched()) == len(set(registry.fetched()))


def test_each_image_is_a_descriptor_with_both_names(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    image = one(store, "named")
    reference = registry.put(image, "some/image")

    bundle([reference], to)

    assert Bundle(to).check().index["manifests"] == [
        {
            "mediaType": image.root_media_type,
            "digest": image.root_digest,
            "size": len(image.root_bytes),
            "annotations": {NAME: reference, REF_NAME: reference},
        }
    ]
    assert Bundle(to).blobs == image.digests


def test_a_tag_with_digest_gives_two_descriptors_of_one_digest(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    image = one(store, "pinned")
    registry.put(image, "some/image", "1")
    name = f"{registry.host}/some/image"
    registry.add(one(store, "moved on"), "some/image", "1")

    bundle([f"{name}:1@{image.root_digest}"], to)

    made = Bundle(to).check()
    assert made.names == {f"{name}:1": image.root_digest, f"{name}@{image.root_digest}": image.root_digest}
    assert [entry["reference"] for entry in made.lock["images"]] == [f"{name}:1@{image.root_digest}"]
    assert made.lock["images"][0]["upstream_digest"] == image.root_digest


def test_a_digest_alone_gives_one_descriptor(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    image = one(store, "digest alone")
    registry.add(image, "some/image")
    reference = f"{registry.host}/some/image@{image.root_digest}"

    bundle([reference], to)

    assert Bundle(to).check().names == {reference: image.root_digest}


def test_two_registries_may_share_a_path_and_tag(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    with GatedRegistry() as other:
        here, there = one(store, "here"), one(store, "there")
        references = {
            registry.put(here, "same/image"): here.root_digest,
            other.put(there, "same/image"): there.root_digest,
        }

        bundle(references, to)

    assert Bundle(to).check().names == references


def test_the_lock_tells_of_each_image_what_it_is_and_why(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    image = many(store, "locked")
    reference = registry.put(image, "some/image")

    bundle([reference], to, "--platform", "linux/amd64", "--platform", "linux/arm64")

    lock = Bundle(to).check().lock
    entry = Bundle(to).image(reference)
    assert lock["complete"] is True
    assert lock["failed"] == []
    assert lock["request"]["images"] == [reference]
    assert lock["request"]["platforms"] == ["linux/amd64", "linux/arm64"]
    assert lock["tool"]["name"] == "airgap-sync"
    assert entry["registry"] == registry.host
    assert entry["reasons"]
    assert entry["media_type"] == image.root_media_type
    assert entry["digest"] == entry["upstream_digest"] == image.root_digest
    assert entry["differs"] is None
    assert entry["platforms"] == ["linux/amd64", "linux/arm64"]
    assert entry["platforms_missing"] == []
    assert entry["size_bytes"] == len(image.root_bytes)
    assert entry["total_bytes"] == image.size
    assert entry["blobs"] == len(image.blobs)


def test_the_same_input_gives_the_same_bytes(registry: GatedRegistry, store: BlobStore, tmp_path: Path) -> None:
    references = [registry.put(many(store, f"same {number}"), f"some/image-{number}") for number in range(4)]

    bundle(references, tmp_path / "first")
    bundle(reversed(references), tmp_path / "second", "--jobs", "1")

    assert Bundle(tmp_path / "first").check().tree() == Bundle(tmp_path / "second").check().tree()


def test_neither_time_nor_mirror_nor_path_of_the_machine_gets_into_the_bundle(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path, to: Path
) -> None:
    registry.put(one(store, "mirrored"), "acme/image")
    mirror = registries(tmp_path / "registries.yaml", {"registry.invalid": {"endpoint": [registry.url]}})

    bundle(["registry.invalid/acme/image:1"], to, "--registries", mirror)

    text = (to / "bundle.lock.json").read_text() + (to / "index.json").read_text()
    assert "registry.invalid/acme/image:1" in text
    assert registry.host not in text
    assert str(tmp_path) not in text
    assert "_utc" not in text


def test_a_blob_that_images_share_is_there_once_and_fetched_once(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    image = many(store, "shared", 50_000)
    references = [registry.put(image, f"some/image-{number}") for number in range(6)]

    bundle(references, to)

    assert len(Bundle(to).check().names) == 6
    assert sorted(registry.fetched()) == sorted(set(registry.fetched()))


def test_a_config_that_images_without_index_share_is_fetched_once(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    images = [one(store, "shared config", annotations={"built": str(number)}) for number in range(3)]
    references = [registry.put(image, "some/image", f"{number}") for number, image in enumerate(images)]
    (config,) = {json.loads(image.root_bytes)["config"]["digest"] for image in images}
    # Long enough for the other images to want it too while it is on its way.
    registry.fault("GET", f"/blobs/{config}", Stall(0.3), times=None)

    bundle(references, to)

    assert registry.fetched().count(config) == 1
    Bundle(to).check()


def test_requests_ask_for_bytes_as_they_are_and_for_every_kind_of_manifest(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    bundle([registry.put(many(store, "headers"), "some/image")], to)

    for request in registry.requests():
        assert request.headers["accept-encoding"] == "identity"
        if "/manifests/" in request.path:
            assert request.headers["accept"].count("application/vnd.") == 4


# --- the second run -----------------------------------------------------------------------------------------


def test_a_second_run_sends_nothing_but_heads_and_changes_nothing(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    references = [
        registry.put(many(store, "again"), "some/index"),
        registry.put(one(store, "again, alone"), "some/image"),
        registry.put(many(store, "again and whole", platforms=(AMD64,)), "some/whole"),
    ]
    bundle(references, to)
    before, mark = Bundle(to).tree(), registry.mark()

    result = bundle(references, to)

    assert sorted(registry.asked(mark)) == sorted(
        ("HEAD", f"/v2/some/{name}/manifests/1") for name in ("image", "index", "whole")
    )
    assert Bundle(to).check().tree() == before
    assert "moved" not in result.err


def test_a_moved_tag_is_printed_and_renewed_and_its_old_content_removed(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    old, new, other = one(store, "old"), one(store, "new"), one(store, "other")
    references = [registry.put(old, "some/image"), registry.put(other, "other/image")]
    bundle(references, to)
    registry.put(new, "some/image")

    result = bundle(references, to)

    (line,) = [line for line in result.err.splitlines() if "moved" in line]
    assert registry.ref("some/image") in line
    assert old.root_digest in line
    assert new.root_digest in line
    assert Bundle(to).check().names[registry.ref("some/image")] == new.root_digest
    assert Bundle(to).blobs == new.digests | other.digests


def test_an_image_whose_manifest_alone_changed_does_not_count_as_unchanged(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    reference = registry.put(one(store, "relabelled", annotations={"built": "1"}), "some/image")
    bundle([reference], to)
    registry.put(one(store, "relabelled", annotations={"built": "2"}), "some/image")

    report = bundle([reference], to, "-o", "json").json

    assert [image["outcome"] for image in report["images"]] == ["fetched"]


# --- whose directory it is ----------------------------------------------------------------------------------


def test_an_empty_directory_and_missing_parents_are_fine(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path
) -> None:
    reference = registry.put(one(store, "empty"), "some/image")
    (tmp_path / "empty").mkdir()

    bundle([reference], tmp_path / "empty")
    bundle([reference], tmp_path / "not" / "there")

    assert Bundle(tmp_path / "empty").check().tree() == Bundle(tmp_path / "not" / "there").check().tree()


@pytest.mark.parametrize("options", [(), ("--replace",)])
def test_a_directory_with_anything_else_is_refused_and_not_touched(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path, options: tuple[str, ...]
) -> None:
    reference = registry.put(one(store, "foreign"), "some/image")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "layout" / "blobs").mkdir(parents=True)
    (tmp_path / "layout" / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (tmp_path / "layout" / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    (tmp_path / "file").write_text("")
    before = snapshot(tmp_path)

    for name in ("photos", "layout", "file"):
        result = bundle([reference], tmp_path / name, *options, code=3)
        assert "not-a-bundle" in result.err

    assert snapshot(tmp_path) == before
    assert registry.requests() == []


def test_a_request_that_is_refused_makes_no_directory(to: Path) -> None:
    bundle(["Not A Reference"], to, code=3)
    bundle([], to, "--k3s", "latest", code=3)
    bundle(["redis"], to, "--platform", "amd64", code=3)

    assert not to.exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--platform", "linux/arm64"), "linux/arm64"),
        (("--platform", "linux/amd64", "--platform", "linux/arm64"), "linux/arm64"),
        (("--platform", "all"), "all"),
        (("--image", "registry.invalid/more:1"), "registry.invalid/more:1"),
        (("--k3s", VERSION, "--release-url", "shipped"), VERSION),
    ],
)
def test_another_request_is_refused_naming_the_difference(
    registry: GatedRegistry, store: BlobStore, to: Path, options: tuple[str, ...], named: str
) -> None:
    reference = registry.put(many(store, "request"), "some/image")
    bundle([reference], to)
    before, mark = Bundle(to).tree(), registry.mark()

    result = bundle([reference], to, *options, code=3)

    assert "request-changed" in result.err
    assert named in result.err
    assert "--replace" in result.err
    assert Bundle(to).tree() == before
    assert registry.since(mark) == []


def test_other_components_or_another_controller_are_another_request(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path, to: Path
) -> None:
    releases = tmp_path / "releases" / VERSION
    releases.mkdir(parents=True)
    (releases / "k3s-images.txt").write_text("docker.io/rancher/mirrored-pause:3.6\n")
    for name, tag in (
        *(("mirrored-pause", "3.6"), ("k3s-upgrade", "v1.32.3-k3s1")),
        *(("system-upgrade-controller", "v0.20.1"), ("kubectl", "v1.30.3")),
    ):
        registry.add(one(store, name), f"rancher/{name}", tag)
    mirror = registries(tmp_path / "registries.yaml", {"docker.io": {"endpoint": [registry.url]}})
    options = ("--k3s", VERSION, "--release-url", tmp_path / "releases", "--registries", mirror)
    bundle([], to, *options)

    assert "traefik" in bundle([], to, *options, "--disable", "traefik", code=3).err
    assert "v0.19.0" in bundle([], to, *options, "--suc-version", "v0.19.0", code=3).err
    assert "v0.20.1" in bundle([], to, *options, "--no-suc", code=3).err
    # Where the list was found is not part of what was asked for.
    assert len(Bundle(to).check().names) == 4


def test_the_same_request_in_other_words_is_the_same(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    reference = registry.put(many(store, "words"), "some/image", "latest")
    bundle([reference], to, "--platform", "linux/amd64", "--platform", "linux/arm64/v8")

    bundle(
        [reference.removesuffix(":latest"), reference], to, "--platform", "linux/arm64", "--platform", "linux/x86_64"
    )


def test_replace_makes_the_new_bundle_and_removes_and_counts_what_is_not_listed(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    old, new = one(store, "replaced", 20_000), one(store, "replacing")
    bundle([registry.put(old, "old/image")], to)
    (to / "blobs" / "sha256" / "stray.txt").write_text("12345")
    (to / "blobs" / "sha256" / f".{'0' * 64}.partial").write_text("123")

    report = bundle([registry.put(new, "new/image")], to, "--replace", "-o", "json").json

    made = Bundle(to).check()
    assert made.names == {registry.ref("new/image"): new.root_digest}
    assert made.blobs == new.digests
    assert report["facts"]["removed_files"] == len(old.digests) + 2
    assert report["facts"]["removed_bytes"] == old.size + 8


def test_a_file_that_an_operating_system_left_on_the_medium_does_no_harm(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    reference = registry.put(one(store, "stray"), "some/image")
    bundle([reference], to)
    whole = Bundle(to).tree()
    (to / "blobs" / ".DS_Store").write_bytes(b"Bud1")
    (to / "blobs" / "sha256" / "._stray").write_bytes(b"Mac")

    bundle([reference], to)

    assert Bundle(to).check().tree() == whole


def test_the_text_output_counts_what_was_removed(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    bundle([registry.put(one(store, "replaced"), "old/image")], to)

    result = bundle([registry.put(one(store, "replacing"), "new/image")], to, "--replace")

    assert "removed 3 " in result.out


def test_replace_keeps_what_both_requests_need_without_fetching_it_again(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    reference = registry.put(many(store, "widened", 50_000), "some/image")
    bundle([reference], to)
    mark = registry.mark()

    bundle([reference], to, "--replace", "--platform", "linux/amd64", "--platform", "linux/arm64")

    assert len(registry.fetched(mark)) == 2
    assert len(Bundle(to).check().image(reference)["platforms"]) == 2


def test_the_old_bundle_stands_until_the_new_one_is_whole(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    reference = registry.put(one(store, "stands"), "old/image")
    bundle([reference], to)
    before = Bundle(to).tree()
    gate = registry.gate("GET", "/v2/new/image/blobs/", skip=1)
    with start(*command([registry.put(one(store, "comes"), "new/image")], to, "--replace")) as process:
        gate.wait_for()
        during = Bundle(to).tree()
        assert {name: during[name] for name in before} == before
        gate.open()
        assert process.wait(20) == 0
        process.communicate()

    assert Bundle(to).check().names.keys() == {registry.ref("new/image")}


def test_a_broken_lock_is_refused_and_replaced_only_when_told(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    reference = registry.put(one(store, "broken lock"), "some/image")
    bundle([reference], to)
    whole = Bundle(to).tree()
    (to / "bundle.lock.json").write_text("{}")

    result = bundle([reference], to, code=5)
    assert "--replace" in result.err
    bundle([reference], to, "--replace")

    assert Bundle(to).check().tree() == whole


def test_a_bundle_copied_without_its_state_is_still_ours(
    registry: GatedRegistry, store: BlobStore, to: Path, tmp_path: Path
) -> None:
    reference = registry.put(many(store, "copied"), "some/image")
    bundle([reference], to)
    before = Bundle(to).tree()
    for path in (to / STATE).iterdir():
        path.unlink()
    (to / STATE).rmdir()
    to.rename(tmp_path / "copy")
    mark = registry.mark()

    bundle([reference], tmp_path / "copy")

    assert Bundle(tmp_path / "copy").check().tree() == before
    assert {method for method, _ in registry.asked(mark)} == {"HEAD"}


def test_a_second_run_at_the_same_time_is_turned_away_at_once(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    reference = registry.put(one(store, "locked"), "some/image")
    gate = registry.gate("GET", "/blobs/")
    with start(*command([reference], to)) as process:
        gate.wait_for()
        mark = registry.mark()
        with takes_less_than(5):
            result = bundle([reference], to, code=12)
        assert "locked" in result.err
        assert registry.since(mark) == []
        gate.open()
        assert process.wait(20) == 0
        process.communicate()

    Bundle(to).check()


# --- some images fail ---------------------------------------------------------------------------------------


def test_an_image_that_is_not_there_fails_alone_and_the_same_command_completes_later(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path, to: Path
) -> None:
    there, late = many(store, "there", 20_000), many(store, "late", 20_000)
    references = [registry.put(there, "some/there"), registry.ref("some/late")]

    result = bundle(references, to, "-o", "json", code=10)

    made = Bundle(to).check()
    assert made.names.keys() == {references[0]}
    assert made.lock["complete"] is False
    assert [(entry["reference"], entry["error"]) for entry in made.lock["failed"]] == [
        (references[1], "manifest-unknown")
    ]
    assert made.lock["failed"][0]["reasons"]
    outcomes = {image["reference"]: image for image in result.json["images"]}
    assert outcomes[references[0]]["outcome"] == "fetched"
    assert outcomes[references[1]]["outcome"] == "failed"
    assert outcomes[references[1]]["error"]["reference"] == "manifest-unknown"
    assert result.json["error"]["exit_code"] == 10
    assert result.json["finished_utc"]

    registry.put(late, "some/late")
    mark = registry.mark()
    bundle(references, to)

    assert set(registry.fetched(mark)) <= late.digests
    bundle(references, tmp_path / "undisturbed")
    assert Bundle(to).check().tree() == Bundle(tmp_path / "undisturbed").tree()


def test_failed_images_are_tried_again_last(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    references = [registry.put(one(store, name, 5000), f"some/{name}") for name in ("a", "b", "c")]
    registry.fault("GET", "/v2/some/a/manifests/1", Status(404))

    bundle(references, to, "--jobs", "1")

    Bundle(to).check()
    asked = [path for method, path in registry.asked() if path.endswith("/manifests/1") and method == "GET"]
    assert asked.count("/v2/some/a/manifests/1") == 2
    assert asked[-1] == "/v2/some/a/manifests/1"


def test_a_failing_image_keeps_what_was_fetched_for_it(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    image = one(store, "half", 30_000)
    reference = registry.put(image, "some/image")
    config = json.loads(image.root_bytes)["config"]["digest"]
    fault = registry.fault("GET", f"/blobs/{layer_of(image)}", Status(404), times=None)

    bundle([reference], to, code=10)

    assert fault.hits
    assert Bundle(to).lock["failed"][0]["error"] == "blob-unknown"
    assert Bundle(to).index["manifests"] == []
    registry._faults.clear()
    mark = registry.mark()
    bundle([reference], to)
    assert registry.fetched(mark) == [layer_of(image)]
    assert config in Bundle(to).check().blobs


def test_every_image_failing_is_still_a_partial_failure(registry: GatedRegistry, to: Path) -> None:
    result = bundle([registry.ref("not/there"), registry.ref("not/there/either")], to, code=10)

    assert registry.ref("not/there") in result.err + result.out
    assert "images-failed" in result.err
    assert len(Bundle(to).check().lock["failed"]) == 2


def test_fail_fast_stops_at_the_first_failed_image(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    good = [registry.put(one(store, f"good {number}"), f"some/good-{number}") for number in range(9)]
    bad = registry.ref("some/bad")

    result = bundle([bad, *good], to, "--fail-fast", "-o", "json", code=10)

    assert not (to / "index.json").exists()
    assert len({path for _, path in registry.asked() if "/manifests/" in path}) < 10
    failed = [image["reference"] for image in result.json["images"] if image["outcome"] == "failed"]
    assert failed == [bad]
    registry.put(one(store, "bad"), "some/bad")
    mark, sealed = registry.mark(), Bundle(to).sealed()
    bundle([bad, *good], to)
    assert not sealed & set(registry.fetched(mark))
    Bundle(to).check()


def test_fail_fast_does_not_call_an_image_fetched_that_is_not_whole(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    half = many(store, "half", 5000)
    bad = registry.gate("GET", "/v2/some/bad/manifests/1")
    blobs = registry.gate("GET", "/v2/some/half/blobs/")
    references = [registry.put(half, "some/half"), registry.ref("some/bad")]
    with start(*command(references, to, "--fail-fast", "--jobs", "1", "-o", "json")) as process:
        bad.wait_for()
        blobs.wait_for()
        bad.open()
        assert process.stderr is not None
        # Only then is the rest of the first image dropped.
        assert any("failed" in line for line in process.stderr)
        blobs.open()
        out, err = process.communicate(timeout=20)

    assert process.returncode == 10, err
    whole = len(registry.fetched()) == len(half.needed_for(half.digest_for(AMD64))) - 1
    outcomes = {image["reference"]: image["outcome"] for image in json.loads(out)["images"]}
    assert outcomes[references[1]] == "failed"
    # The line may be a moment ahead of the stop.
    assert (outcomes[references[0]] == "fetched") is whole
    assert outcomes[references[0]] != "unchanged"


# --- warnings -----------------------------------------------------------------------------------------------


def test_strict_ends_at_a_warning_about_the_release_list(to: Path) -> None:
    with ReleaseServer({VERSION: "docker.io/rancher/mirrored-pause:3.6\n"}) as server:
        result = bundle([], to, "--k3s", VERSION, "--release-url", server.url, "--strict", code=13)

    assert "warning-under-strict" in result.err
    assert not (to / "index.json").exists()


def test_strict_ends_at_a_missing_platform_and_leaves_the_old_bundle(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    platforms = ("--platform", "linux/amd64", "--platform", "linux/arm64")
    reference = registry.put(many(store, "both"), "some/image")
    bundle([reference], to, *platforms)
    before = {name: data for name, data in Bundle(to).tree().items() if "blobs" not in name}
    registry.put(many(store, "only one now", platforms=(AMD64,)), "some/image")

    result = bundle([reference], to, *platforms, "--strict", code=13)

    assert "linux/arm64" in result.err
    assert {name: data for name, data in Bundle(to).tree().items() if "blobs" not in name} == before


def test_strict_ends_at_a_warning_about_the_registries_file(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path, to: Path
) -> None:
    reference = registry.put(one(store, "warned"), "some/image")
    (tmp_path / "registries.yaml").write_text("mirrors:\n  ghcr.io:\n    endpoints: [https://mirror.invalid]\n")

    result = bundle([reference], to, "--registries", tmp_path / "registries.yaml", "--strict", code=13)

    assert "endpoints" in result.err


def test_strict_without_a_warning_is_a_success(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    bundle([registry.put(one(store, "fine"), "some/image")], to, "--strict")

    Bundle(to).check()


# --- output -------------------------------------------------------------------------------------------------


def test_json_output_is_one_document_and_equals_the_report(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path, to: Path
) -> None:
    image = many(store, "reported", 4000)
    reference = registry.put(image, "some/image")

    result = bundle([reference], to, "-o", "json", "--report", tmp_path / "report.json")

    report = json.loads((tmp_path / "report.json").read_text())
    assert result.json == report
    assert report["command"] == "bundle"
    assert report["tool"]["version"]
    assert report["started_utc"] <= report["finished_utc"]
    assert report["finished_utc"].endswith("Z")
    assert (report["status"], report["error"]) == ("succeeded", None)
    (entry,) = report["images"]
    assert (entry["reference"], entry["outcome"]) == (reference, "fetched")
    assert entry["digest"] == Bundle(to).names[reference]
    fetched = [blob for blob in image.blobs if blob.digest in Bundle(to).blobs]
    assert entry["bytes_moved"] == report["totals"]["bytes_moved"] == sum(blob.size for blob in fetched)
    assert report["facts"]["blobs"] == 2
    lock = (to / "bundle.lock.json").read_bytes()
    assert report["lock_digest"] == digest_of(lock)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ((), 10),
        (("--fail-fast",), 10),
        (("--k3s", "latest"), 3),
        (("--k3s", "v1.31.9+k3s1"), 8),
        (("--platform", "amd64"), 3),
    ],
)
def test_the_report_is_written_when_the_run_fails(
    registry: GatedRegistry, tmp_path: Path, to: Path, options: tuple[str, ...], code: int
) -> None:
    report = tmp_path / "report.json"

    bundle([registry.ref("not/there")], to, *options, "--release-url", "shipped", "--report", report, code=code)

    written = json.loads(report.read_text())
    assert written["status"] == "failed"
    assert written["error"]["exit_code"] == code
    assert written["started_utc"] <= written["finished_utc"]
    assert sorted(path.name for path in tmp_path.iterdir()) in (["report.json"], ["bundle", "report.json"])


def test_the_report_of_an_earlier_run_is_replaced_as_a_whole(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path, to: Path
) -> None:
    report = tmp_path / "report.json"
    report.write_text("x" * 100_000)

    bundle([registry.put(one(store, "report"), "some/image")], to, "--report", report)

    assert json.loads(report.read_text())["error"] is None


def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    registry: GatedRegistry, store: BlobStore, tmp_path: Path, to: Path
) -> None:
    reference = registry.put(one(store, "no report"), "some/image")

    bundle([reference], to, "--report", tmp_path / "no" / "such" / "place.json", code=3)

    assert registry.requests() == []


def test_text_output_names_each_image_and_log_lines_go_to_stderr(
    registry: GatedRegistry, store: BlobStore, to: Path
) -> None:
    images = {registry.put(one(store, name), f"some/{name}"): one(store, name) for name in ("a", "b")}

    result = bundle(images, to)

    assert len(result.lines) == 3
    for reference, image in images.items():
        (line,) = [line for line in result.lines if reference in line]
        assert image.root_digest in line
        assert len([line for line in result.err.splitlines() if reference in line]) == 1


def test_an_image_that_fails_has_one_line_a_try(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    reference = registry.put(many(store, "two blobs"), "some/image")
    registry.fault("GET", "/blobs/", Status(404), times=None)

    result = bundle([reference], to, code=10)

    assert len([line for line in result.err.splitlines() if line.startswith("failed") and reference in line]) == 2


def test_json_output_is_one_document_also_when_the_run_fails(registry: GatedRegistry, to: Path) -> None:
    assert bundle([registry.ref("not/there")], to, "-o", "json", code=10).json["status"] == "failed"
    assert bundle(["Not A Reference"], to, "-o", "json", code=3).json["error"]["reference"] == "bad-reference"


def test_progress_may_be_turned_off(registry: GatedRegistry, store: BlobStore, to: Path) -> None:
    result = bundle([registry.put(one(store, "quiet"), "some/image")], to, "--progress", "none")

    assert result.err == ""


def test_a_directory_must_be_named_and_be_one() -> None:
    assert run("bundle", "--image", "redis").code == 2
    assert run("bundle", "--image", "redis", "--to", os.devnull).code == 3


@pytest.mark.parametrize("lock", [b"", b"{", b"[]", b'{"kind": "Deployment"}'])
def test_a_directory_with_a_lock_of_somebody_else_is_not_touched(
    registry: GatedRegistry, store: BlobStore, to: Path, lock: bytes
) -> None:
    reference = registry.put(one(store, "image"), "some/image")
    to.mkdir()
    (to / "bundle.lock.json").write_bytes(lock)
    (to / "oci-layout").write_bytes(b"{}")

    result = bundle([reference], to, code=3)

    assert "[not-a-bundle]" in result.err
    assert sorted(path.name for path in to.iterdir()) == ["bundle.lock.json", "oci-layout"]
    assert registry.requests() == []
