"""`push` into a registry that is well: names, plan, what is sent and what is not, report, state."""

import contextlib
import itertools
import json
import re
import stat
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from bundler import __version__
from tests.support.command import run
from tests.support.content import AMD64, BlobStore, BuiltImage, digest_of
from tests.support.faulty import FaultyRegistry, Recorded, Status
from tests.support.handmade import (
    NAME,
    REF_NAME,
    built,
    complete,
    multi,
    outcomes,
    root,
    snapshot,
    uploads,
    write_bundle,
    write_index,
    writes,
)
from tests.support.images import Entry, ImageFactory, index_of, publish_k3s, single
from tests.support.memory_registry import Request, Response
from tests.support.programs import find_program, require
from tests.support.registry import Registry

ACCEPT = {
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}
BASE = b"base layer\n" * 400


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "store")


@pytest.fixture
def images(store: BlobStore) -> dict[str, BuiltImage]:
    """Three images that share a layer, one of them an index, one with an empty layer and Docker's media types."""
    return {
        "docker.io/rancher/big:1": multi(store, BASE, b"big" * 5000, title="big"),
        "docker.io/rancher/middle:v2": built(store, BASE, b"middle" * 1000, title="middle"),
        "docker.io/library/small:3": built(store, BASE, b"", b"small", title="small", docker=True),
    }


@pytest.fixture
def bundle(tmp_path: Path, images: dict[str, BuiltImage]) -> Path:
    return write_bundle(tmp_path / "bundle", images)


def place(reference: str) -> tuple[str, str]:
    """Give repository and tag at the target of a tagged Docker Hub reference."""
    repository, _, tag = reference.removeprefix("docker.io/").rpartition(":")
    return repository, tag


def mounts(requests: list[Recorded]) -> set[tuple[str, str, str]]:
    """Give (repository, digest, source) of all mounts that were granted."""
    found = set()
    for request in requests:
        query = parse_qs(urlsplit(request.target).query)
        if request.method == "POST" and "mount" in query and request.status == 201:
            repository = request.path.removeprefix("/v2/").removesuffix("/blobs/uploads/")
            found.add((repository, query["mount"][0], query["from"][0]))
    return found


def sent(requests: list[Recorded]) -> set[tuple[str, str]]:
    """Give (repository, digest) of all uploads."""
    return {
        (request.path.removeprefix("/v2/").partition("/blobs/uploads/")[0], digest)
        for request in requests
        for digest in uploads([request])
    }


# --- what arrives -------------------------------------------------------------------------------------------------


def test_everything_arrives_in_a_real_registry_and_a_second_push_asks_one_head_per_image(tmp_path: Path) -> None:
    require("docker-registry")
    references = [
        "docker.io/rancher/klipper-helm:v0.9.4-build20250113",
        "docker.io/rancher/klipper-lb:v0.4.13",
        "docker.io/rancher/mirrored-coredns-coredns:1.12.0",
        "docker.io/rancher/mirrored-library-traefik:3.3.2",
    ]
    factory = ImageFactory(tmp_path / "cache")
    with Registry() as upstream, Registry(relative_urls=True) as target:
        published = publish_k3s(upstream.url, factory, references, 0.002, [AMD64])
        registries = tmp_path / "registries.yaml"
        registries.write_text(json.dumps({"mirrors": {"docker.io": {"endpoint": [upstream.url]}}}))
        asked = [text for reference in references for text in ("--image", reference)]
        made = run("bundle", *asked, "--platform", "all", "--registries", registries, "--to", tmp_path / "bundle")
        assert made.code == 0, made.err

        first = run("push", tmp_path / "bundle", target.url)
        assert first.code == 0, first.err
        mark = target.mark()
        again = run("push", tmp_path / "bundle", target.url, "-o", "json")

        assert again.code == 0, again.err
        assert outcomes(again) == dict.fromkeys(references, "up-to-date")
        tags = {f"/v2/{name}/manifests/{tag}" for name, tag in map(place, references)}
        assert Counter((entry.method, entry.path, entry.status) for entry in target.since(mark)) == Counter(
            ("HEAD", path, 200) for path in tags
        )
        for reference, image in published.items():
            name, tag = place(reference)
            subprocess.run(
                [
                    *(find_program("skopeo"), "copy", "--all", "--src-tls-verify=false"),
                    *(f"docker://{target.host}/{name}:{tag}", f"dir:{tmp_path / name.replace('/', '-')}"),
                ],
                check=True,
                capture_output=True,
            )
            copied = tmp_path / name.replace("/", "-") / "manifest.json"
            assert digest_of(copied.read_bytes()) == image.root_digest


def test_everything_arrives_and_every_tag_points_to_the_digest_of_the_bundle(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage]
) -> None:
    done = run("push", bundle, target.url, "-o", "json")

    assert done.code == 0, done.err
    assert outcomes(done) == dict.fromkeys(images, "pushed")
    for reference, image in images.items():
        assert complete(target, *place(reference), image)
        assert target.content.digests(place(reference)[0]) == image.digests
    assert target.violations == []


def test_a_head_of_a_tag_accepts_all_four_media_types(bundle: Path, target: FaultyRegistry) -> None:
    run("push", bundle, target.url)

    heads = [request for request in target.requests("HEAD") if "/manifests/" in request.path]
    # One each before, and what is there afterwards.
    assert len(heads) > 3
    for head in heads:
        assert {part.strip() for part in head.headers["accept"].split(",")} == ACCEPT


def test_a_second_push_is_one_head_per_image_and_nothing_else(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage]
) -> None:
    run("push", bundle, target.url)
    mark = target.mark()

    again = run("push", bundle, target.url, "-o", "json")

    assert again.code == 0
    assert sorted((request.method, request.target) for request in target.since(mark)) == sorted(
        ("HEAD", "/v2/{}/manifests/{}".format(*place(reference))) for reference in images
    )
    assert again.json["totals"] == {"images": 3, "up-to-date": 3, "bytes_moved": 0, "bytes_mounted": 0}


def test_a_tag_that_moved_in_the_bundle_is_moved_at_the_target(
    tmp_path: Path, store: BlobStore, target: FaultyRegistry
) -> None:
    old, new = built(store, BASE, title="old"), built(store, BASE, b"new", title="new")
    target.add(old, "rancher/app", "1")

    done = run("push", write_bundle(tmp_path / "bundle", {"docker.io/rancher/app:1": new}), target.url)

    assert done.code == 0, done.err
    assert complete(target, "rancher/app", "1", new)
    assert uploads(target.requests()) == Counter({blob.digest: 1 for blob in new.blobs} | {digest_of(BASE): 0})


# --- what is sent -------------------------------------------------------------------------------------------------


def test_a_digest_is_sent_once_and_mounted_everywhere_else(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage]
) -> None:
    run("push", bundle, target.url)

    digests = {blob.digest for image in images.values() for blob in image.blobs}
    assert uploads(target.requests(), None) == Counter(dict.fromkeys(digests, 1))
    holders = {name for name, digest in sent(target.requests()) if digest == digest_of(BASE)}
    assert {name for name, digest, _ in mounts(target.requests()) if digest == digest_of(BASE)} | holders == {
        place(reference)[0] for reference in images
    }


def test_a_blob_is_mounted_from_an_image_that_is_up_to_date(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage]
) -> None:
    target.add(images["docker.io/rancher/middle:v2"], "rancher/middle", "v2")

    done = run("push", bundle, target.url)

    assert done.code == 0, done.err
    assert digest_of(BASE) not in uploads(target.requests(), None)
    assert {entry for entry in mounts(target.requests()) if entry[1] == digest_of(BASE)} == {
        ("rancher/big", digest_of(BASE), "rancher/middle"),
        ("library/small", digest_of(BASE), "rancher/middle"),
    }


def test_a_blob_is_mounted_from_a_repository_that_only_the_survey_found_to_hold_it(
    tmp_path: Path, store: BlobStore, target: FaultyRegistry
) -> None:
    target.add(built(store, BASE, title="other"), "rancher/one", "other")
    bundle = write_bundle(
        tmp_path / "bundle",
        {
            "docker.io/rancher/one:1": built(store, BASE, title="one"),
            "docker.io/rancher/two:1": built(store, BASE, title="two"),
        },
    )

    done = run("push", bundle, target.url)

    assert done.code == 0, done.err
    assert digest_of(BASE) not in uploads(target.requests(), None)
    assert mounts(target.requests()) == {("rancher/two", digest_of(BASE), "rancher/one")}


def test_two_tags_of_one_repository_send_their_common_blobs_once(
    tmp_path: Path, store: BlobStore, target: FaultyRegistry
) -> None:
    same = built(store, BASE, title="same")
    other = built(store, BASE, title="other")
    named = {"docker.io/rancher/app:1": same, "docker.io/rancher/app:2": same, "docker.io/rancher/app:3": other}

    done = run("push", write_bundle(tmp_path / "bundle", named), target.url)

    assert done.code == 0, done.err
    assert set(uploads(target.requests(), None).values()) == {1}
    assert mounts(target.requests()) == set()
    assert target.content.tags("rancher/app") == {
        "1": same.root_digest,
        "2": same.root_digest,
        "3": other.root_digest,
    }


def test_bodies_have_an_exact_length_and_are_never_chunked_an_empty_blob_included(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage]
) -> None:
    run("push", bundle, target.url)

    sizes = {blob.digest: blob.size for image in images.values() for blob in image.blobs}
    assert sizes[digest_of(b"")] == 0
    seen = set()
    for request in writes(target.requests()):
        assert "transfer-encoding" not in request.headers, request
        assert request.headers["content-length"] == str(request.body_size)
        for digest in uploads([request]):
            seen.add(digest)
            assert request.body_size == sizes[digest]
            assert request.headers["content-type"] == "application/octet-stream"
    assert seen == set(sizes)


def test_a_real_registry_takes_an_empty_blob_and_a_nested_index(tmp_path: Path, store: BlobStore) -> None:
    require("docker-registry")
    nested = index_of(Entry(multi(store, b"", BASE, title="inner")), Entry(built(store, b"x", title="flat")))
    bundle = write_bundle(tmp_path / "bundle", {"docker.io/rancher/nested:1": nested})
    with Registry() as registry:
        done = run("push", bundle, registry.url)

        assert done.code == 0, done.err
        assert registry.requests()[-1].path == "/v2/rancher/nested/manifests/1"


def test_blobs_go_before_child_manifests_before_the_index_before_the_tag(
    tmp_path: Path, store: BlobStore, target: FaultyRegistry
) -> None:
    nested = index_of(Entry(multi(store, BASE, title="inner")), Entry(built(store, b"x", title="flat")))
    bundle = write_bundle(tmp_path / "bundle", {"docker.io/rancher/nested:1": nested})

    done = run("push", bundle, target.url)

    assert done.code == 0, done.err
    puts = [request for request in target.requests("PUT") if request.status == 201]
    kinds = ["blob" if "/blobs/" in request.path else request.path.rpartition("/")[2] for request in puts]
    blobs = len(nested.blobs)
    assert kinds[:blobs] == ["blob"] * blobs
    assert kinds[-1] == "1"
    assert set(kinds[blobs:-1]) == set(nested.manifests)
    for digest in nested.manifests:
        below = nested.needed_for(digest) & set(nested.manifests) - {digest}
        assert all(kinds.index(child) < kinds.index(digest) for child in below)


def test_manifests_are_sent_as_the_bytes_and_media_types_of_the_bundle(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage]
) -> None:
    run("push", bundle, target.url)

    sent_types = {
        request.path: request.headers["content-type"]
        for request in target.requests("PUT")
        if "/manifests/" in request.path
    }
    for reference, image in images.items():
        repository, tag = place(reference)
        assert sent_types[f"/v2/{repository}/manifests/{tag}"] == image.root_media_type
        for digest, (media_type, _) in image.manifests.items():
            assert sent_types[f"/v2/{repository}/manifests/{digest}"] == media_type


def test_images_go_one_by_one_the_one_with_most_missing_bytes_first(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage]
) -> None:
    done = run("push", bundle, target.url, "--jobs", "1")

    assert done.code == 0, done.err
    order = [request.path.removeprefix("/v2/").split("/blobs/")[0] for request in target.requests("PUT")]
    order = [re.sub(r"/manifests/.*", "", name) for name in order]
    assert [name for name, _ in itertools.groupby(order)] == ["rancher/big", "rancher/middle", "library/small"]
    sizes = {digest_of(data.read_bytes()): data.stat().st_size for data in (bundle / "blobs/sha256").iterdir()}
    for reference in images:
        own = [
            sizes[digest]
            for request in target.requests("PUT")
            if request.path.startswith(f"/v2/{place(reference)[0]}/blobs/")
            for digest in uploads([request])
        ]
        assert own == sorted(own, reverse=True)


@pytest.mark.parametrize("jobs", [1, 3])
def test_never_more_than_jobs_blobs_are_in_flight(
    tmp_path: Path, store: BlobStore, target: FaultyRegistry, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    image = built(store, *(f"layer {number}\n".encode() * 20 for number in range(9)))
    bundle = write_bundle(tmp_path / "bundle", {"docker.io/rancher/app:1": image})
    handle, changed = target.content.handle, threading.Condition()
    active = peak = 0

    def counted(request: Request) -> Response:
        nonlocal active, peak
        if request.method != "PUT" or "/blobs/uploads/" not in request.path:
            return handle(request)
        with changed:
            active += 1
            peak = max(peak, active)
            changed.notify_all()
            # One too many would come now; nobody else is to be waited for.
            changed.wait_for(lambda: active > jobs, timeout=0.15)
        response = handle(request)
        with changed:
            active -= 1
        return response

    monkeypatch.setattr(target.content, "handle", counted)
    done = run("push", bundle, target.url, "--jobs", str(jobs))

    assert done.code == 0, done.err
    assert peak == jobs


# --- plan ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_only_asks_and_the_real_run_then_does_exactly_its_plan(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage]
) -> None:
    # One up to date, one with a blob there already, so that every action occurs.
    target.add(images["docker.io/rancher/middle:v2"], "rancher/middle", "v2")
    target.content.handle(
        Request("POST", f"/v2/rancher/big/blobs/uploads/?digest={digest_of(b'big' * 5000)}", {}, b"big" * 5000)
    )

    dry = run("push", bundle, target.url, "--dry-run", "-o", "json")

    assert dry.code == 0, dry.err
    assert {request.path for request in target.requests() if request.method != "HEAD"} == {"/v2/"}
    plan = dry.json["facts"]["plan"]
    planned = {
        (place(image["reference"])[0], blob["digest"], blob["action"], blob["mount_from"])
        for image in plan
        for blob in image["blobs"]
    }
    assert {action for _, _, action, _ in planned} == {"present", "mount", "upload"}
    assert outcomes(dry) == {
        "docker.io/rancher/big:1": "planned",
        "docker.io/rancher/middle:v2": "up-to-date",
        "docker.io/library/small:3": "planned",
    }
    assert [image["reference"] for image in plan if image["up_to_date"]] == ["docker.io/rancher/middle:v2"]

    mark = target.mark()
    real = run("push", bundle, target.url, "-o", "json")

    assert real.code == 0, real.err
    done = target.since(mark)
    assert sent(done) == {(name, digest) for name, digest, action, _ in planned if action == "upload"}
    assert mounts(done) == {(name, digest, source) for name, digest, action, source in planned if action == "mount"}
    assert real.json["totals"]["bytes_moved"] == dry.json["facts"]["bytes_to_send"]
    assert real.json["totals"]["bytes_mounted"] == dry.json["facts"]["bytes_to_mount"]


def test_a_dry_run_prints_the_plan_for_people(bundle: Path, target: FaultyRegistry) -> None:
    dry = run("push", bundle, target.url, "--dry-run")

    assert dry.code == 0
    for name in ("rancher/big:1", "rancher/middle:v2", "library/small:3"):
        assert f"{target.host}/{name}" in dry.out
    assert "nothing was sent" in dry.out
    assert writes(target.requests()) == []


# --- names --------------------------------------------------------------------------------------------------------


def test_names_at_the_target_with_and_without_the_source_registry(
    tmp_path: Path, store: BlobStore, target: FaultyRegistry
) -> None:
    hub, other = built(store, b"hub", title="hub"), built(store, b"other", title="other")
    bundle = write_bundle(tmp_path / "bundle", {"docker.io/rancher/x:t": hub, "registry.example:5000/team/y:2": other})

    for arguments in ([], ["--keep-registry"]):
        for prefix in ("", "/k3s/images"):
            assert run("push", bundle, target.url + prefix, *arguments).code == 0

    for name in ("rancher/x", "k3s/images/rancher/x", "docker.io/rancher/x", "k3s/images/docker.io/rancher/x"):
        assert complete(target, name, "t", hub), name
    for name in ("team/y", "k3s/images/team/y", "registry.example-5000/team/y"):
        assert complete(target, name, "2", other), name


def test_a_reference_without_a_tag_is_pushed_by_digest_and_under_a_tag_made_of_it(
    tmp_path: Path, store: BlobStore, target: FaultyRegistry
) -> None:
    image = multi(store, BASE, title="pinned")
    bundle = write_bundle(tmp_path / "bundle", {f"docker.io/rancher/x@{image.root_digest}": image})

    done = run("push", bundle, target.url)

    assert done.code == 0, done.err
    tag = f"digest-{image.root_digest.removeprefix('sha256:')[:12]}"
    roots = [request.path for request in target.requests("PUT") if "/manifests/" in request.path][-2:]
    assert roots == [f"/v2/rancher/x/manifests/{image.root_digest}", f"/v2/rancher/x/manifests/{tag}"]
    assert complete(target, "rancher/x", tag, image)
    mark = target.mark()
    assert run("push", bundle, target.url).code == 0
    assert [(request.method, request.path) for request in target.since(mark)] == [
        ("HEAD", f"/v2/rancher/x/manifests/{tag}")
    ]


def test_a_tag_with_a_digest_arrives_under_both_names(tmp_path: Path, store: BlobStore, target: FaultyRegistry) -> None:
    image = built(store, BASE)
    bundle = write_bundle(tmp_path / "bundle", {f"docker.io/rancher/x:7@{image.root_digest}": image})

    done = run("push", bundle, target.url)

    assert done.code == 0, done.err
    tag = f"digest-{image.root_digest.removeprefix('sha256:')[:12]}"
    assert target.content.tags("rancher/x") == {"7": image.root_digest, tag: image.root_digest}


@pytest.mark.parametrize("same", [False, True], ids=["two images", "one image under two names"])
def test_two_images_landing_on_one_name_are_refused_before_anything_is_sent(
    tmp_path: Path, store: BlobStore, target: FaultyRegistry, same: bool
) -> None:
    one = built(store, b"one", title="one")
    other = one if same else built(store, b"other", title="other")
    bundle = write_bundle(tmp_path / "bundle", {"docker.io/team/x:1": one, "quay.io/team/x:1": other})

    refused = run("push", bundle, target.url)

    assert refused.code == 3
    for words in ("docker.io/team/x:1", "quay.io/team/x:1", "--keep-registry", "name-collision"):
        assert words in refused.err
    assert target.requests() == []
    assert run("push", bundle, target.url, "--keep-registry").code == 0
    assert complete(target, "quay.io/team/x", "1", other)


def test_two_registries_that_fold_into_one_name_are_refused_and_the_flag_is_not_offered_again(
    tmp_path: Path, store: BlobStore, target: FaultyRegistry
) -> None:
    image = built(store, b"one")
    names = {"registry.example:5000/x/y:1": image, "registry.example-5000/x/y:1": image}

    refused = run("push", write_bundle(tmp_path / "bundle", names), target.url, "--keep-registry")

    assert refused.code == 3
    assert all(name in refused.err for name in names)
    assert "Use --keep-registry" not in refused.err
    assert target.requests() == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://",
        "https:///prefix",
        "ftp://{host}",
        "oci://{host}",
        "http://{host}/Upper",
        "http://{host}/a//b",
        "http://{host}/a?b=c",
        "http://{host}/a#b",
        "http://{host}/-a",
        "http://{host}/" + "a" * 250,
        "http://127.0.0.1:port",
        "http://127.0.0.1:99999",
        "http://[::",
        "http://[:::]:5000",
        "http://bad_host:5000",
        "http://{host} /x",
        "http:/{host}",
    ],
)
def test_a_target_of_another_form_is_refused(bundle: Path, target: FaultyRegistry, text: str) -> None:
    refused = run("push", bundle, text.replace("{host}", target.host))

    assert refused.code == 3, refused.err
    assert "bad-target" in refused.err
    assert "Traceback" not in refused.err
    assert target.requests() == []


@pytest.mark.parametrize("text", ["http://alice:s3cr3t@{host}", "alice:s3cr3t@{host}/k3s", "https://s3cr3t@{host}"])
def test_credentials_in_the_target_are_refused_and_not_repeated(
    bundle: Path, target: FaultyRegistry, tmp_path: Path, text: str
) -> None:
    report = tmp_path / "report.json"

    refused = run("push", bundle, text.replace("{host}", target.host), "--report", report)

    assert refused.code == 3
    assert "docker login" in refused.err
    assert "s3cr3t" not in refused.out + refused.err
    assert not report.exists() or "s3cr3t" not in report.read_text()
    assert target.requests() == []


# --- layouts of others, and the bundle stays as it is ---------------------------------------------------------------


def test_a_layout_without_a_lock_is_pushed_by_its_annotations(
    tmp_path: Path, target: FaultyRegistry, images: dict[str, BuiltImage]
) -> None:
    layout = write_bundle(tmp_path / "layout", images, lock=False)

    done = run("push", layout, target.url, "-o", "json")

    assert done.code == 0, done.err
    assert done.json["lock_digest"] is None
    for reference, image in images.items():
        assert complete(target, *place(reference), image)


def test_the_name_of_containerd_goes_before_the_name_of_the_specification(
    tmp_path: Path, store: BlobStore, target: FaultyRegistry
) -> None:
    image = built(store, BASE)
    layout = write_bundle(tmp_path / "layout", {"docker.io/rancher/x:1": image}, lock=False)
    descriptor = root("docker.io/rancher/x:1", image)
    write_index(layout, [descriptor | {"annotations": {NAME: "docker.io/rancher/x:1", REF_NAME: "1"}}])

    done = run("push", layout, target.url)

    assert done.code == 0, done.err
    assert complete(target, "rancher/x", "1", image)


def test_a_layout_that_skopeo_wrote_is_pushed(tmp_path: Path, store: BlobStore, target: FaultyRegistry) -> None:
    require("skopeo")
    images = {
        "docker.io/rancher/x:1": single(store),
        "docker.io/rancher/y:2": single(store, files={"etc/y": b"other"}),
    }
    bundle = write_bundle(tmp_path / "bundle", images)
    layout = tmp_path / "layout"
    for reference in images:
        subprocess.run(
            [find_program("skopeo"), "copy", f"oci:{bundle}:{reference}", f"oci:{layout}:{reference}"],
            check=True,
            capture_output=True,
        )

    done = run("push", layout, target.url)

    assert done.code == 0, done.err
    for reference, image in images.items():
        assert complete(target, *place(reference), image)


def test_a_layout_whose_names_are_only_tags_is_refused_with_a_way_out(
    tmp_path: Path, store: BlobStore, target: FaultyRegistry
) -> None:
    image = built(store, BASE)
    layout = write_bundle(tmp_path / "layout", {"docker.io/rancher/x:1": image}, lock=False)
    write_index(layout, [root("docker.io/rancher/x:1", image) | {"annotations": {REF_NAME: "1"}}])

    refused = run("push", layout, target.url)

    assert refused.code == 5
    assert NAME in refused.err
    assert target.requests() == []


def test_an_incomplete_bundle_is_pushed_as_far_as_it_goes(
    tmp_path: Path, target: FaultyRegistry, images: dict[str, BuiltImage]
) -> None:
    bundle = write_bundle(tmp_path / "bundle", images, failed=["docker.io/rancher/absent:9"])

    done = run("push", bundle, target.url, "-o", "json")

    assert done.code == 10
    assert "docker.io/rancher/absent:9" in done.err
    assert any("docker.io/rancher/absent:9" in warning for warning in done.json["warnings"])
    assert outcomes(done) == dict.fromkeys(images, "pushed")
    for reference, image in images.items():
        assert complete(target, *place(reference), image)


def test_an_incomplete_bundle_without_any_image_is_said_to_be_incomplete(
    tmp_path: Path, target: FaultyRegistry
) -> None:
    bundle = write_bundle(tmp_path / "bundle", {}, failed=["docker.io/rancher/absent:9"])

    done = run("push", bundle, target.url)

    assert done.code == 10, done.err
    assert "docker.io/rancher/absent:9" in done.err


def test_the_bundle_is_never_written_to(bundle: Path, target: FaultyRegistry, tmp_path: Path) -> None:
    before = snapshot(bundle)

    for arguments in (["--dry-run"], [], [], ["--keep-registry", "--report", tmp_path / "report.json"]):
        assert run("push", bundle, target.url, *arguments).code == 0
    assert run("push", bundle, "http://127.0.0.1:1").code == 8

    assert snapshot(bundle) == before


@contextlib.contextmanager
def write_protected(directory: Path, place: Path) -> Iterator[Path]:
    """Give a view of a directory that cannot be written to: a read-only mount, or for a user, by its modes."""
    place.mkdir()
    mount, umount = (find_program(name) for name in ("mount", "umount"))
    if subprocess.run([mount, "--bind", directory, place], capture_output=True, check=False).returncode == 0:
        try:
            subprocess.run([mount, "-o", "remount,bind,ro", place], check=True, capture_output=True)
            yield place
        finally:
            subprocess.run([umount, place], check=True)
        return
    modes = {path: path.stat().st_mode for path in [directory, *directory.rglob("*")]}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    try:
        yield directory
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def test_a_write_protected_medium_is_pushed(
    bundle: Path, target: FaultyRegistry, tmp_path: Path, images: dict[str, BuiltImage]
) -> None:
    with write_protected(bundle, tmp_path / "medium") as medium:
        done = run("push", medium, target.url)

    assert done.code == 0, done.err
    assert all(complete(target, *place(reference), image) for reference, image in images.items())


# --- state --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "arguments", "expected"),
    [
        ({}, [], "xdg/airgap-sync"),
        ({"XDG_STATE_HOME": ""}, [], "home/.local/state/airgap-sync"),
        ({"AIRGAP_SYNC_STATE": "{tmp}/by-variable"}, [], "by-variable"),
        ({"AIRGAP_SYNC_STATE": "{tmp}/by-variable"}, ["--state", "{tmp}/deep/by-option"], "deep/by-option"),
    ],
)
def test_state_lies_where_it_was_told_to_and_is_private(
    bundle: Path, target: FaultyRegistry, tmp_path: Path, env: dict[str, str], arguments: list[str], expected: str
) -> None:
    home = {"HOME": str(tmp_path / "home"), "XDG_STATE_HOME": str(tmp_path / "xdg")}
    env = home | {name: value.replace("{tmp}", str(tmp_path)) for name, value in env.items()}
    before = {path.name for path in tmp_path.iterdir()}

    done = run("push", bundle, target.url, *(text.replace("{tmp}", str(tmp_path)) for text in arguments), env=env)

    assert done.code == 0, done.err
    state = tmp_path / expected
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert {path.name for path in tmp_path.iterdir()} - before == {expected.partition("/")[0]}


def test_a_target_with_a_very_long_prefix_has_a_state_too(
    tmp_path: Path, store: BlobStore, target: FaultyRegistry
) -> None:
    bundle = write_bundle(tmp_path / "bundle", {"docker.io/a/b:1": built(store, BASE)})

    done = run("push", bundle, f"{target.url}/{'p' * 240}")

    assert done.code == 0, done.err


def test_a_state_directory_that_cannot_be_made_is_an_error_with_a_way_out(
    bundle: Path, target: FaultyRegistry, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()

    refused = run("push", bundle, target.url, "--state", tmp_path / "file" / "state")

    assert refused.code == 3
    assert "--state" in refused.err
    assert target.requests() == []


# --- report and output --------------------------------------------------------------------------------------------


def check_report(report: dict[str, Any], target: FaultyRegistry, bundle: Path) -> None:
    """Check what every report of a push has."""
    assert report["tool"] == {"name": "airgap-sync", "version": __version__}
    assert report["command"] == "push"
    assert report["target"] == target.url
    assert report["lock_digest"] == digest_of((bundle / "bundle.lock.json").read_bytes())
    for time in (report["started_utc"], report["finished_utc"]):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", time)
    assert report["started_utc"] <= report["finished_utc"]


def test_the_report_tells_what_was_sent_and_mounted_for_each_image(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage], tmp_path: Path
) -> None:
    report_file = tmp_path / "report.json"
    target.add(images["docker.io/rancher/middle:v2"], "rancher/middle", "v2")

    done = run("push", bundle, target.url, "--report", report_file, "-o", "json")

    assert done.code == 0, done.err
    report = json.loads(report_file.read_text())
    check_report(report, target, bundle)
    assert report["error"] is None
    assert {image["reference"]: (image["outcome"], image["digest"]) for image in report["images"]} == {
        reference: ("up-to-date" if "middle" in reference else "pushed", image.root_digest)
        for reference, image in images.items()
    }
    sizes = {blob.digest: blob.size for image in images.values() for blob in image.blobs}
    for image in report["images"]:
        name, tag = place(image["reference"])
        assert image["target"] == f"{target.host}/{name}:{tag}"
        assert image["bytes_moved"] == sum(sizes[d] for repository, d in sent(target.requests()) if repository == name)
        assert image["bytes_mounted"] == sum(sizes[d] for to, d, _ in mounts(target.requests()) if to == name)
    assert report["totals"] == {
        "images": 3,
        "pushed": 2,
        "up-to-date": 1,
        "bytes_moved": sum(image["bytes_moved"] for image in report["images"]),
        "bytes_mounted": sum(image["bytes_mounted"] for image in report["images"]),
    }
    assert done.json | {"finished_utc": ""} == report | {"finished_utc": ""}


def test_the_report_replaces_an_older_one_as_a_whole(bundle: Path, target: FaultyRegistry, tmp_path: Path) -> None:
    report_file = tmp_path / "out" / "report.json"
    report_file.parent.mkdir()
    report_file.write_text("old")
    # A reader that has the old one open keeps it: the new one is another file.
    with report_file.open() as reader:
        assert run("push", bundle, target.url, "--report", report_file).code == 0
        assert reader.read() == "old"

    assert json.loads(report_file.read_text())["command"] == "push"
    assert [path.name for path in report_file.parent.iterdir()] == ["report.json"]


def test_a_report_that_cannot_be_written_is_noticed_before_anything_is_sent(
    bundle: Path, target: FaultyRegistry, tmp_path: Path
) -> None:
    refused = run("push", bundle, target.url, "--report", tmp_path / "absent" / "report.json")

    assert refused.code == 3
    assert target.requests() == []


def test_text_output_is_one_line_per_image_and_a_total(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage]
) -> None:
    done = run("push", bundle, target.url)

    for reference, image in images.items():
        assert re.search(
            rf"^pushed +{target.host}/{'{}:{}'.format(*place(reference))} {image.root_digest}$", done.out, re.MULTILINE
        )
    assert len(done.out.splitlines()) == len(images) + 2
    assert "verified at the target: 3 images" in done.out
    assert "3 pushed" in done.out
    assert len([line for line in done.err.splitlines() if line.startswith("pushed: ")]) == 3


def test_progress_none_leaves_standard_error_empty(bundle: Path, target: FaultyRegistry) -> None:
    done = run("push", bundle, target.url, "--progress", "none")

    assert (done.code, done.err) == (0, "")


def test_a_path_that_is_no_layout_is_not_found(target: FaultyRegistry, tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        missing = run("push", path, target.url)

        assert missing.code == 4
        assert "layout-missing" in missing.err
        assert ("does not exist" in missing.err) == (path != tmp_path)
    assert target.requests() == []


def test_what_all_images_fail_of_is_told_once(tmp_path: Path, store: BlobStore, target: FaultyRegistry) -> None:
    images = {f"docker.io/some/image-{number:02}:1": built(store, b"%02d" % number) for number in range(11)}
    challenge = {"WWW-Authenticate": 'Basic realm="test"'}
    target.fault("*", "", Status(401, challenge), times=None)

    refused = run("push", write_bundle(tmp_path / "many", images), target.url)

    assert refused.code == 7, refused.err
    (why,) = [line for line in refused.out.splitlines() if line.startswith("failed because: ")]
    assert why.startswith("failed because: 11 images: ")
    assert len([line for line in refused.out.splitlines() if line.startswith("hint: ")]) == 1


def test_create_projects_at_a_plain_registry_is_noted(bundle: Path, target: FaultyRegistry) -> None:
    done = run("push", bundle, target.url, "--create-projects", "private", "-o", "json")

    assert done.code == 0, done.err
    assert any("no Harbor, so --create-projects does nothing" in note for note in done.json["notices"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--project-quota", "50GiB"], "--create-projects private or public"),
        (["--project-quota", "0", "--create-projects", "private"], "more than 0"),
        (["--chunk-size", "10"], "at least 65536 bytes"),
    ],
)
def test_options_that_mean_nothing_are_a_usage_error(
    bundle: Path, target: FaultyRegistry, options: list[str], says: str
) -> None:
    refused = run("push", bundle, target.url, *options)

    assert refused.code == 2, refused.err
    assert says in " ".join(refused.err.split())
    assert target.requests() == []
