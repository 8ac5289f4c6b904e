"""`preflight` with a real registry: it passes where nodes can pull, else names what they cannot and what mends it."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.bundles import Bundle, GatedRegistry, many
from tests.support.certificates import Authority
from tests.support.command import run, start
from tests.support.content import AMD64
from tests.support.embedded import NodeTree
from tests.support.handmade import multi, write_bundle
from tests.support.harbor import HarborDouble
from tests.support.images import BlobStore, single
from tests.support.kubernetes import KubernetesApi
from tests.support.kubernetes import node as kubernetes_node
from tests.support.preflights import AIR_GAP, Preflight, Storage, edited, follow, preflight, refused
from tests.support.programs import free_port
from tests.support.publishing import publish
from tests.support.registry import Registry
from tests.support.sites import SMALL, V131, V132, Recipe, bundle_of, names_of, routed
from tests.support.tokens import TokenServer

BOTH = {"linux/amd64", "linux/arm64"}
ONE, AGENT = "ghcr.io/team/one:1.0", "quay.io/metrics/agent:v1.2.3"
PAUSE = "docker.io/rancher/mirrored-pause:3.6"
PROJECT = "k3s"
SECRET = "S3cret-0f-preflight-tests"  # noqa: S105 - opens nothing but the registries of these tests


@dataclass
class Shop:
    """A registry with a whole bundle in it, and the files for its nodes."""

    bundle: Path
    registry: Registry
    storage: Storage
    files: Path
    out: Path

    @property
    def registries(self) -> Path:
        return self.files / "registries.yaml"

    @property
    def target(self) -> str:
        return f"{self.registry.url}/{PROJECT}"

    def check(self, *arguments: str | Path, **options: Any) -> Preflight:
        return preflight(self.bundle, *(arguments or ("--config", self.files)), out=self.out, **options)

    def configured(self, to: Path, *options: str | Path) -> Path:
        made = run("config", self.bundle, "--target", self.target, "--to", to, *options)
        assert made.code == 0, made.err
        return to

    def digests(self, reference: str, architecture: str) -> tuple[str, str]:
        """Give the manifest and the layer of an image for a platform."""
        bundle = Bundle(self.bundle)
        children = bundle.json(bundle.names[reference])["manifests"]
        (child,) = [item["digest"] for item in children if item["platform"]["architecture"] == architecture]
        return child, bundle.json(child)["layers"][0]["digest"]


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Registry, Storage]]:
    bundle = bundle_of(tmp_path_factory)
    with Registry() as registry:
        pushed = run("push", bundle, f"{registry.url}/{PROJECT}")
        assert pushed.code == 0, pushed.err
        yield bundle, registry, Storage(registry, tmp_path_factory.mktemp("storage") / "saved")


@pytest.fixture(scope="module")
def files(stocked: tuple[Path, Registry, Storage], tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle, registry, _ = stocked
    to = tmp_path_factory.mktemp("files") / "site"
    # So that what is not in the registry is not looked for elsewhere, which takes its time in an air gap.
    made = run("config", bundle, "--target", f"{registry.url}/{PROJECT}", "--no-default-endpoint", "--to", to)
    assert made.code == 0, made.err
    return to


@pytest.fixture
def shop(stocked: tuple[Path, Registry, Storage], files: Path, tmp_path: Path) -> Iterator[Shop]:
    bundle, registry, storage = stocked
    shutil.copytree(files, tmp_path / "site")
    shop = Shop(bundle, registry, storage, tmp_path / "site", tmp_path / "result.json")
    yield shop
    storage.restore()


def of_registry(bundle: Path, registry: str) -> dict[str, set[str]]:
    return {name: BOTH for name in names_of(bundle) if name.startswith(f"{registry}/")}


# --- what is there ----------------------------------------------------------------------------------------------------


def test_where_everything_is_there_it_passes_and_only_asks(shop: Shop) -> None:
    before, started = shop.registry.mark(), dt.datetime.now(dt.UTC).replace(microsecond=0)

    found = shop.check()

    assert found.passed
    images = {(image["reference"], image["platform"]) for image in found.document["images"]}
    assert images == {(name, platform) for name in names_of(shop.bundle) for platform in BOTH}
    assert len(names_of(shop.bundle)) >= 20
    assert found.document["findings"] == []
    lock = (shop.bundle / "bundle.lock.json").read_bytes()
    assert found.document["lock_digest"] == f"sha256:{hashlib.sha256(lock).hexdigest()}"
    site = (shop.files / "site.json").read_bytes()
    assert found.document["site_digest"] == f"sha256:{hashlib.sha256(site).hexdigest()}"
    assert started <= dt.datetime.fromisoformat(found.document["checked_utc"]) <= dt.datetime.now(dt.UTC)
    assert found.document["node"] is None
    asked = shop.registry.since(before)
    assert {request.method for request in asked} <= {"GET", "HEAD"}
    # Every part of every image was asked for, and no content was fetched.
    heads = {request.path.rpartition("/")[2] for request in asked if request.method == "HEAD"}
    bundle, tops = Bundle(shop.bundle), set(names_of(shop.bundle).values())
    below = set().union(*(bundle.reachable(item["digest"], item["mediaType"]) for item in bundle.index["manifests"]))
    assert len(below - tops) > len(tops)
    assert below - tops <= heads
    assert [request for request in asked if request.method == "GET" and "/blobs/" in request.path] == []


def test_what_cannot_be_seen_from_here_is_said(shop: Shop) -> None:
    found = shop.check()
    assert found.not_checked("give --kubeconfig FILE")
    assert found.not_checked("whether nodes reach the registry from where they are")
    assert not found.not_checked("pull policy")
    found = shop.check("--target", shop.target)
    assert found.passed
    assert found.not_checked("the pull policy of upgrade jobs: give --config DIR")


def test_the_mapping_may_come_from_flags_or_site_json(shop: Shop) -> None:
    assert shop.check("--site", shop.files / "site.json").passed
    assert shop.check("--site", shop.files / "site.json", "--registries", shop.registries).passed
    assert shop.check("--target", shop.target, "--registries", shop.registries).passed
    kept = shop.check("--target", shop.target, "--keep-registry")
    assert kept.rules == {"image-absent"}
    assert f"{shop.registry.host}/v2/k3s/ghcr.io/team/one:1.0 is not there" in kept.problem(ONE)["problem"]
    assert kept.problem(ONE)["fix"].split()[-2:] == [shop.target, "--keep-registry"]


def test_a_registries_yaml_given_counts_before_that_of_config(shop: Shop, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"mirrors": {"ghcr.io": None}}))
    found = shop.check("--config", shop.files, "--registries", other)
    assert found.rules == {"missing-mirror"}
    assert str(other) in found.problem(ONE)["problem"]


def test_json_on_standard_output_is_what_out_keeps(shop: Shop) -> None:
    kept = shop.check().document
    shown = run("preflight", shop.bundle, "--config", shop.files, "-o", "json")
    assert shown.code == 0
    assert {**shown.json, "checked_utc": kept["checked_utc"]} == kept


def test_a_bundle_without_a_lock(tmp_path: Path, store: BlobStore) -> None:
    image = single(store, AMD64)
    bundle = write_bundle(tmp_path / "bundle", {ONE: image}, lock=False)
    with Registry() as registry:
        publish(image, registry.url, "team/one", "1.0")
        found = preflight(bundle, "--target", registry.url, out=tmp_path / "out")
    assert found.document["lock_digest"] is None
    assert found.not_checked("whether the bundle is complete, and has all platforms: there is no bundle.lock.json")
    # A single manifest does not say which platform it is for, so it is checked for this machine's.
    assert found.passed
    assert len(found.document["images"]) == 1


def test_a_layout_without_a_lock_is_for_the_platforms_that_it_states(tmp_path: Path, store: BlobStore) -> None:
    image = multi(store, b"layer\n")
    bundle = write_bundle(tmp_path / "bundle", {ONE: image}, lock=False)
    with Registry() as registry:
        publish(image, registry.url, "team/one", "1.0")
        found = preflight(bundle, "--target", registry.url, out=tmp_path / "out")
    assert found.passed
    assert {(item["reference"], item["platform"]) for item in found.document["images"]} == {
        (ONE, platform) for platform in BOTH
    }


def test_what_only_the_source_registry_has_is_not_known_to_be_there(tmp_path: Path, store: BlobStore) -> None:
    image = single(store, AMD64)
    with Registry() as source, Registry() as target, NodeTree() as node:
        name = f"{source.host}/team/one:1.0"
        bundle = write_bundle(tmp_path / "bundle", {name: image})
        publish(image, source.url, "team/one", "1.0")
        found = preflight(bundle, "--target", target.url, out=tmp_path / "out")
        assert found.bad == {name: {"linux/amd64"}}
        problem = found.problem(name)
        assert (problem["ok"], problem["rule"]) == (None, "source-only")
        assert problem["problem"].startswith(f"only {source.url}/v2/team/one:1.0 has it, which answers here")
        # On a node it is known who answers.
        made = run("config", bundle, "--target", target.url, "--to", tmp_path / "site")
        assert made.code == 0, made.err
        node.install(tmp_path / "site")
        node.restart()
        assert preflight(bundle, "--config", tmp_path / "site", "--root", node.root, out=tmp_path / "out").passed
        follow(problem["fix"])
        assert preflight(bundle, "--target", target.url, out=tmp_path / "out").passed


@pytest.mark.parametrize("options", [(), ("--no-default-endpoint",)], ids=["default", "no-default"])
def test_a_target_that_is_the_source_registry_itself(
    tmp_path: Path, store: BlobStore, options: tuple[str, ...]
) -> None:
    image = single(store, AMD64)
    with Registry() as registry:
        name = f"{registry.host}/team/one:1.0"
        bundle = write_bundle(tmp_path / "bundle", {name: image})
        made = run("config", bundle, "--target", registry.url, *options, "--to", tmp_path / "site")
        assert made.code == 0, made.err
        for arguments in (("--config", tmp_path / "site"), ("--target", registry.url)):
            found = preflight(bundle, *arguments, out=tmp_path / "out")
            assert found.bad == {name: {"linux/amd64"}}
            problem = found.problem(name)
            assert (problem["ok"], problem["rule"]) == (False, "image-absent")
            assert problem["problem"] == f"{registry.url}/v2/team/one:1.0 is not there"
        follow(problem["fix"])
        assert preflight(bundle, "--config", tmp_path / "site", out=tmp_path / "out").passed
        assert preflight(bundle, "--target", registry.url, out=tmp_path / "out").passed


def test_a_release_that_no_node_gets_does_not_matter(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    recipe = Recipe(versions=("v1.31.2+k3s1", V131), apps=(AGENT,), platforms=("linux/amd64",), options=SMALL.options)
    bundle = bundle_of(tmp_path_factory, recipe)
    found = preflight(bundle, "--mode", "embedded", out=tmp_path / "out")
    assert found.rules == {"on-nodes-only"}
    # Of a minor only the newest release is gone to.
    assert found.document["findings"] == []
    with KubernetesApi(tmp_path / "api") as api:
        api.put(kubernetes_node("a", "v1.31.2+k3s1", server=True, shares=True), 10**12)
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        found = preflight(bundle, "--mode", "embedded", "--kubeconfig", kubeconfig, out=tmp_path / "out")
    assert found.found == [("embedded-experimental", "nodes")]


# --- refused ----------------------------------------------------------------------------------------------------------


def test_it_must_be_told_where_images_are(shop: Shop) -> None:
    assert "--config DIR, --site FILE, or --target TARGET" in refused(shop.bundle, code=2)
    assert "--config DIR" in refused(shop.bundle, "--mode", "hybrid", code=2)


@pytest.mark.parametrize(
    "flags",
    [
        ("--target", "https://registry.example/other"),
        ("--mode", "hybrid"),
        ("--keep-registry",),
        ("--route", "k3s=embedded"),
        ("--collect",),
    ],
    ids=["target", "mode", "keep-registry", "route", "collect-nothing"],
)
def test_what_contradicts_the_site_is_refused(shop: Shop, flags: tuple[str, ...]) -> None:
    assert flags[0].lstrip("-") in refused(shop.bundle, "--config", shop.files, *flags, code=2)


def test_results_need_collect_and_out_needs_a_directory(shop: Shop, tmp_path: Path) -> None:
    assert "--collect" in refused(shop.bundle, shop.files / "site.json", "--config", shop.files, code=2)
    missing = tmp_path / "none" / "out"
    assert "in a directory that exists" in refused(shop.bundle, "--config", shop.files, "--out", missing, code=3)


def test_out_replaces_nothing_but_a_result(shop: Shop, tmp_path: Path) -> None:
    where = ("--config", shop.files, "--out")
    index, registries = shop.bundle / "index.json", shop.files / "registries.yaml"
    before = registries.read_bytes()
    assert "would lie in the bundle" in refused(shop.bundle, *where, index, code=3)
    assert "is not the result of a preflight" in refused(shop.bundle, *where, registries, code=3)
    assert registries.read_bytes() == before
    link = tmp_path / "link"
    link.symlink_to(registries)
    assert "is not the result of a preflight" in refused(shop.bundle, *where, link, code=3)
    # A pipe stays one, and gets the result.
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        assert run("preflight", shop.bundle, *where, pipe).code == 0
        assert reader.stdout is not None
        assert json.loads(reader.stdout.read())["verdict"] == "pass"
    assert pipe.is_fifo()


def test_only_a_node_has_a_name_and_a_root(shop: Shop, tmp_path: Path) -> None:
    for option, value in (("--node", "server-1"), ("--root", tmp_path)):
        assert "no node of K3s" in refused(shop.bundle, "--config", shop.files, option, value, code=2)


def test_a_site_besides_that_of_the_directory(shop: Shop, tmp_path: Path) -> None:
    other = tmp_path / "site.json"
    other.write_text((shop.files / "site.json").read_text().replace('"wildcard": false', '"wildcard": true'))
    assert "is another site" in refused(shop.bundle, "--config", shop.files, "--site", other, code=2)


@pytest.mark.parametrize("name", ["site.json", "registries.yaml", "system-upgrade-controller", "plans"])
def test_a_broken_file_of_config_is_named(shop: Shop, name: str) -> None:
    path = next(shop.files.glob(f"{name}/*.yaml"), shop.files / name)
    path.write_text("{ no: [")
    assert str(path) in refused(shop.bundle, "--config", shop.files, code=3)


# --- what is wrong in the registry ------------------------------------------------------------------------------------


def lose_blob(shop: Shop) -> str:
    _, layer = shop.digests(AGENT, "amd64")
    shop.storage.lose_blob(layer)
    return rf"blob {layer} \(\d+ bytes\): {shop.registry.url}/v2/k3s/metrics/agent lacks it"


def move_tag(shop: Shop) -> str:
    other = single(BlobStore(shop.out.parent / "store"), AMD64, {"other": b"content"})
    shop.storage.touched = True
    publish(other, shop.registry.url, "k3s/metrics/agent", "v1.2.3")
    return (
        f"{shop.registry.url}/v2/k3s/metrics/agent:v1.2.3 stands for {other.root_digest}, the bundle has "
        f"{names_of(shop.bundle)[AGENT]}"
    )


def lose_image(shop: Shop) -> str:
    shop.storage.lose_repository("k3s/metrics/agent")
    return f"{shop.registry.url}/v2/k3s/metrics/agent:v1.2.3 is not there"


def lose_child(shop: Shop) -> str:
    child, _ = shop.digests(AGENT, "arm64")
    shop.storage.lose_manifest("k3s/metrics/agent", child)
    return f"manifest {child} of this platform: {shop.registry.url}/v2/k3s/metrics/agent lacks it"


@pytest.mark.parametrize(
    ("damage", "rule", "platforms"),
    [
        (lose_blob, "blob-missing", {"linux/amd64"}),
        (move_tag, "tag-moved", BOTH),
        (lose_image, "image-absent", BOTH),
        (lose_child, "child-missing", {"linux/arm64"}),
    ],
    ids=["blob-missing", "tag-moved", "image-absent", "child-missing"],
)
def test_damage_in_the_registry_is_found_and_mended_by_what_it_says(
    shop: Shop, damage: Callable[[Shop], str], rule: str, platforms: set[str]
) -> None:
    message = damage(shop)

    found = shop.check()

    assert found.bad == {AGENT: platforms}
    problem = found.problem(AGENT, min(platforms))
    assert problem["rule"] == rule
    assert re.fullmatch(message, problem["problem"])
    assert found.document["findings"] == []
    assert f"{len(platforms)} of {2 * len(names_of(shop.bundle))} pulls would fail" in found.result.err
    follow(problem["fix"])
    assert shop.check().passed


def test_an_image_by_digest_is_looked_for_by_it(shop: Shop) -> None:
    (reference,) = [name for name in names_of(shop.bundle) if name.startswith("ghcr.io/other/pinned@")]
    digest = reference.partition("@")[2]
    shop.storage.lose_manifest("k3s/other/pinned", digest)
    found = shop.check()
    assert found.bad == {reference: BOTH}
    assert found.problem(reference)["problem"] == f"{shop.registry.url}/v2/k3s/other/pinned@{digest} is not there"
    follow(found.problem(reference)["fix"])
    assert shop.check().passed


def test_a_source_registry_that_cannot_be_reached_is_not_what_is_told(shop: Shop, tmp_path: Path) -> None:
    lose_image(shop)
    files = shop.configured(tmp_path / "default")
    found = shop.check("--config", files)
    assert found.bad == {AGENT: BOTH}
    assert found.problem(AGENT)["problem"] == f"{shop.registry.url}/v2/k3s/metrics/agent:v1.2.3 is not there"


def test_a_blob_may_come_from_the_next_endpoint(shop: Shop) -> None:
    lose_blob(shop)
    with Registry() as second:
        with edited(shop.registries) as document:
            document["mirrors"]["quay.io"]["endpoint"].append(second.url)
        found = shop.check()
        assert found.bad == {AGENT: {"linux/amd64"}}
        assert (
            f"{shop.registry.url}/v2/k3s/metrics/agent lacks it; {second.url}/v2/k3s/metrics/agent lacks it"
            in (found.problem(AGENT)["problem"])
        )
        shop.storage.restore()
        shop.storage.fill(second)
        lose_blob(shop)
        assert shop.check().passed


# --- what is wrong in registries.yaml ---------------------------------------------------------------------------------


def anew(shop: Shop, fix: str) -> None:
    """Make the nodes' registries.yaml anew by the command that a fix names."""
    assert str(shop.registries) in fix or "airgap-sync config" in fix
    made = shop.out.parent / "anew"
    follow(fix, made)
    (made / "registries.yaml").replace(shop.registries)


def test_a_wrong_rewrite(shop: Shop) -> None:
    with edited(shop.registries) as document:
        document["mirrors"]["ghcr.io"]["rewrite"] = {"^(.*)$": "other/$1"}
    found = shop.check()
    assert found.bad == of_registry(shop.bundle, "ghcr.io")
    assert found.rules == {"wrong-rewrite"}
    problem = found.problem(ONE)
    assert problem["problem"] == (
        f"nodes ask for {shop.registry.url}/v2/other/team/one:1.0, and the image is at "
        f"{shop.registry.host}/k3s/team/one"
    )
    assert f"Mend the mirror of ghcr.io in {shop.registries}" in problem["fix"]
    anew(shop, problem["fix"])
    assert shop.check().passed


def test_a_missing_mirror(shop: Shop) -> None:
    with edited(shop.registries) as document:
        del document["mirrors"]["ghcr.io"]
    found = shop.check()
    assert found.bad == of_registry(shop.bundle, "ghcr.io")
    assert found.rules == {"missing-mirror"}
    problem = found.problem(ONE)
    assert problem["problem"] == f"{shop.registries} gives nodes no mirror for ghcr.io, so they ask ghcr.io itself"
    anew(shop, problem["fix"])
    assert shop.check().passed


def test_an_endpoint_with_a_path_and_no_v2(shop: Shop) -> None:
    with edited(shop.registries) as document:
        document["mirrors"]["ghcr.io"] = {"endpoint": [f"{shop.registry.url}/k3s"]}
    found = shop.check()
    assert found.bad == of_registry(shop.bundle, "ghcr.io")
    assert found.rules == {"wrong-rewrite"}
    assert found.problem(ONE)["problem"].startswith(f"nodes ask for {shop.registry.url}/k3s/team/one:1.0, and")
    assert list(found.findings) == ["registries-yaml"]
    warning = found.findings["registries-yaml"]
    assert (warning["severity"], warning["place"]) == ("warning", str(shop.registries))
    assert f"write {shop.registry.url}/v2/k3s" in warning["message"]
    with edited(shop.registries) as document:
        document["mirrors"]["ghcr.io"] = {"endpoint": [f"{shop.registry.url}/v2/k3s"]}
    mended = shop.check()
    assert mended.passed
    assert mended.document["findings"] == []


def test_a_backslash_in_a_rewrite(shop: Shop) -> None:
    with edited(shop.registries) as document:
        document["mirrors"]["ghcr.io"]["rewrite"] = {"^(\\S+)$": "k3s/$1"}
    found = shop.check()
    assert found.bad == of_registry(shop.bundle, "ghcr.io")
    assert found.rules == {"missing-mirror"}
    assert set(found.findings) == {"registries-yaml", "k3s-reads-otherwise"}
    assert "cannot carry a backslash" in found.findings["registries-yaml"]["message"]
    assert "the hosts.toml of ghcr.io is not TOML" in found.findings["k3s-reads-otherwise"]["message"]
    with edited(shop.registries) as document:
        document["mirrors"]["ghcr.io"]["rewrite"] = {"^([^ ]+)$": "k3s/$1"}
    mended = shop.check()
    assert mended.passed
    assert mended.document["findings"] == []


def test_a_key_that_k3s_does_not_know(shop: Shop) -> None:
    with edited(shop.registries) as document:
        document["mirrors"]["ghcr.io"]["endpoints"] = document["mirrors"]["ghcr.io"].pop("endpoint")
    found = shop.check()
    assert found.bad == of_registry(shop.bundle, "ghcr.io")
    assert found.rules == {"missing-mirror"}
    warning = found.findings["registries-yaml"]
    assert re.search(r"K3s ignores the key 'endpoints'.*'?endpoint\b", warning["message"])
    assert f"{shop.registries}" in warning["place"]
    with edited(shop.registries) as document:
        document["mirrors"]["ghcr.io"]["endpoint"] = document["mirrors"]["ghcr.io"].pop("endpoints")
    assert shop.check().document["findings"] == []


def test_an_endpoint_listed_twice_does_no_harm_today(shop: Shop) -> None:
    with edited(shop.registries) as document:
        document["mirrors"]["ghcr.io"]["endpoint"] *= 2
    found = shop.check()
    assert found.passed
    assert set(found.findings) == {"registries-yaml", "k3s-reads-otherwise"}
    assert "is listed twice" in found.findings["registries-yaml"]["message"]


def test_an_endpoint_listed_twice_breaks_the_file_on_old_nodes(shop: Shop) -> None:
    with edited(shop.registries) as document:
        document["mirrors"]["ghcr.io"]["endpoint"] *= 2
    site = json.loads((shop.files / "site.json").read_text())
    (shop.files / "site.json").write_text(json.dumps({**site, "running": "v1.28.7+k3s1"}))
    found = shop.check()
    assert found.bad == of_registry(shop.bundle, "ghcr.io")
    assert found.rules == {"missing-mirror"}
    assert any("v1.28.7+k3s1: the hosts.toml of ghcr.io is not TOML" in line for line in found.result.out.splitlines())


def test_a_dead_endpoint_in_front_is_passed_over(shop: Shop) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    with edited(shop.registries) as document:
        document["mirrors"]["ghcr.io"]["endpoint"].insert(0, dead)
    found = shop.check()
    assert found.passed
    assert found.found == [("endpoint-failing", f"{dead}/v2")]
    with edited(shop.registries) as document:
        document["mirrors"]["ghcr.io"]["endpoint"] = [dead]
    found = shop.check()
    assert found.bad == of_registry(shop.bundle, "ghcr.io")
    assert found.rules == {"endpoint-unreachable"}
    assert dead.removeprefix("http://") in found.problem(ONE)["problem"]


def test_nothing_left_to_ask(shop: Shop, tmp_path: Path) -> None:
    files = shop.configured(tmp_path / "hybrid", "--mode", "hybrid", "--no-default-endpoint")
    with edited(files / "registries.yaml") as document:
        document["mirrors"]["docker.io"] = None
    found = shop.check("--config", files)
    k3s = routed(shop.bundle, lambda in_set, _: in_set)
    assert {name for name in found.bad if found.problem(name)["rule"] == "no-endpoint"} == k3s
    problem = found.problem(PAUSE)
    assert problem["problem"] == "no endpoint is left to ask"
    follow(problem["fix"], tmp_path / "anew", "--no-default-endpoint")
    again = shop.check("--config", tmp_path / "anew")
    assert again.rules == {"on-nodes-only"}
    assert not k3s & set(again.bad)


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_a_private_ca(shop: Shop, tmp_path: Path) -> None:
    ours, other = Authority(tmp_path / "ours", "ours"), Authority(tmp_path / "other", "other")
    with Registry(certificate=ours.issue("127.0.0.1")) as registry:
        shop.storage.fill(registry)
        target = ("--target", f"{registry.url}/{PROJECT}")
        made = run(
            *("config", shop.bundle, *target, "--ca-file", other.ca_file, "--to", tmp_path / "tls"),
            "--no-default-endpoint",
        )
        assert made.code == 0, made.err
        wrong = shop.check("--config", tmp_path / "tls")
        (tmp_path / "tls" / "ca.pem").unlink()
        absent = shop.check("--config", tmp_path / "tls")
        (tmp_path / "tls" / "ca.pem").write_bytes(ours.ca_file.read_bytes())
        right = shop.check("--config", tmp_path / "tls")
        with edited(tmp_path / "tls" / "registries.yaml") as document:
            del document["configs"]
        # What is trusted here, nodes need not trust; unless there are no files for them yet.
        unset = shop.check("--config", tmp_path / "tls", "--ca-file", ours.ca_file)
        planned = shop.check(*target, "--ca-file", ours.ca_file)
    everything = dict.fromkeys(names_of(shop.bundle), BOTH)
    for found, rule in ((wrong, "unknown-ca"), (absent, "bad-tls-file"), (unset, "unknown-ca")):
        assert found.bad == everything
        assert found.rules == {rule}
        assert (
            f"Set tls.ca_file under configs.{registry.host} of {tmp_path}/tls/registries.yaml"
            in (found.problem(ONE)["fix"])
        )
    assert "/etc/rancher/k3s/ca.pem" in absent.problem(ONE)["problem"]
    assert right.passed
    assert planned.passed


# --- credentials ------------------------------------------------------------------------------------------------------


def test_credentials_are_those_of_nodes_and_no_others(shop: Shop, tmp_path: Path) -> None:
    everything = dict.fromkeys(names_of(shop.bundle), BOTH)
    with Registry(htpasswd=("puller", SECRET)) as registry:
        shop.storage.fill(registry)
        known = {"AIRGAP_SYNC_USERNAME": "puller", "AIRGAP_SYNC_PASSWORD": SECRET}
        made = run(
            *("config", shop.bundle, "--target", f"{registry.url}/{PROJECT}", "--to", tmp_path / "auth"),
            *("--with-credentials", "--no-default-endpoint"),
            env=known,
        )
        assert made.code == 0, made.err
        file = tmp_path / "auth" / "registries.yaml"
        assert SECRET in file.read_text()
        right = shop.check("--config", tmp_path / "auth", secrets=[SECRET, f"puller:{SECRET}"])
        assert right.passed
        with edited(file) as document:
            document["configs"][registry.host]["auth"]["password"] = f"{SECRET}-old"
        wrong = shop.check("--config", tmp_path / "auth", secrets=[SECRET, f"puller:{SECRET}-old"], env=known)
        with edited(file) as document:
            del document["configs"]
        none = shop.check("--config", tmp_path / "auth", env=known)
    for found in (wrong, none):
        assert found.bad == everything
        assert found.rules == {"no-pull-right"}
        fix = found.problem(ONE)["fix"]
        assert f"under configs.{registry.host} of {file}" in fix
        assert "harbor robot --pull-only" in fix
    assert wrong.problem(ONE)["problem"] != none.problem(ONE)["problem"]


def test_a_right_that_lacks_one_repository(shop: Shop, tmp_path: Path) -> None:
    with (
        TokenServer("puller", SECRET, refused={"k3s/team/one"}) as tokens,
        Registry(token=tokens.auth) as registry,
    ):
        shop.storage.fill(registry)
        files = tmp_path / "token"
        made = run(
            *("config", shop.bundle, "--target", f"{registry.url}/{PROJECT}", "--to", files),
            *("--with-credentials", "--no-default-endpoint"),
            env={"AIRGAP_SYNC_USERNAME": "puller", "AIRGAP_SYNC_PASSWORD": SECRET},
        )
        assert made.code == 0, made.err
        found = shop.check("--config", files, secrets=[SECRET])
        assert found.bad == {ONE: BOTH}
        assert found.problem(ONE)["rule"] == "no-pull-right"
        assert "team/one" in found.problem(ONE)["problem"]
        tokens._refused = frozenset()
        assert shop.check("--config", files, secrets=[SECRET]).passed
        assert all(scope.endswith(":pull") for request in tokens.requests for scope in request.scopes)


# --- the bundle itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "rules"),
    [
        (AGENT, set()),
        (PAUSE, {"pause-missing"}),
        ("docker.io/rancher/k3s-upgrade:v1.32.3-k3s1", {"upgrade-image-missing"}),
    ],
    ids=["app", "pause", "upgrade"],
)
def test_an_incomplete_bundle(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, lost: str, rules: set[str]
) -> None:
    recipe = Recipe(
        versions=(V132,), apps=(AGENT,), platforms=("linux/amd64",), lacking=frozenset({lost}), options=SMALL.options
    )
    bundle = bundle_of(tmp_path_factory, recipe)
    with Registry() as registry:
        assert run("push", bundle, registry.url).code == 10
        found = preflight(bundle, "--target", registry.url, out=tmp_path / "out")
    assert not found.passed
    assert found.bad == {}
    assert set(found.findings) == {"bundle-incomplete", *rules}
    assert all(finding["severity"] == "error" for finding in found.document["findings"])
    assert f"{lost} is not in the bundle (manifest-unknown)" in found.findings["bundle-incomplete"]["message"]


# --- what it keeps ----------------------------------------------------------------------------------------------------


def test_a_run_that_is_killed_leaves_the_result_before(tmp_path: Path, store: BlobStore) -> None:
    out = tmp_path / "kept" / "result.json"
    out.parent.mkdir()
    with GatedRegistry() as registry:
        image = many(store, "app")
        registry.add(image, "team/one", "1.0")
        bundle = write_bundle(tmp_path / "bundle", {ONE: image})
        first = preflight(bundle, "--target", registry.url, out=out)
        before = out.read_bytes()
        gate = registry.gate("HEAD", "/blobs/")
        # One at a time: what the second run asks for is not to be taken for the first's.
        arguments = ("preflight", bundle, "--target", registry.url, "--out", out, "--jobs", "1")
        with start(*arguments, env=AIR_GAP) as running:
            gate.wait_for()
            running.send_signal(signal.SIGKILL)
            assert running.wait(20) == -signal.SIGKILL
        assert out.read_bytes() == before
        with start(*arguments, env=AIR_GAP) as running:
            gate.wait_for(2)
            running.send_signal(signal.SIGINT)
            assert running.wait(20) == 130
        assert out.read_bytes() == before
        assert list(out.parent.iterdir()) == [out]
        gate.open()
    assert first.passed


# --- Harbor -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def harbor() -> Iterator[HarborDouble]:
    with HarborDouble() as started:
        started.add_project("mirror", public=True)
        yield started


def test_the_quota_for_what_is_still_to_come(
    harbor: HarborDouble, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    bundle = bundle_of(tmp_path_factory, SMALL)
    target = f"{harbor.url}/mirror"
    robot = harbor.add_robot("looker", SECRET, "mirror", ("pull", "push", "project:read", "quota:read"))
    account = {"AIRGAP_SYNC_USERNAME": robot.name, "AIRGAP_SYNC_PASSWORD": SECRET}

    made = run("config", bundle, "--target", target, "--no-default-endpoint", "--to", tmp_path / "site")
    assert made.code == 0, made.err

    def check(**options: Any) -> Preflight:
        return preflight(bundle, "--config", tmp_path / "site", out=tmp_path / "out", secrets=[SECRET], **options)

    harbor.projects["mirror"].quota_bytes = 500
    small = check(env=account)
    assert small.rules == {"image-absent"}
    warning = small.findings["quota-exceeded"]
    assert warning["severity"] == "warning"
    assert warning["place"] == f"project mirror at {harbor.host}"
    assert re.search(r"it uses 0 B of 500 B, and up to [0-9.]+ kB are still to come", warning["message"])
    unseen = check()
    assert "quota-exceeded" not in unseen.findings
    assert unseen.not_checked("the quota of project 'mirror': this account may not see it")
    harbor.projects["mirror"].quota_bytes = 10_000_000
    assert check(env=account).document["findings"] == []
    pushed = run("push", bundle, target, env=account)
    assert pushed.code == 0, pushed.err
    harbor.projects["mirror"].quota_bytes = 500
    done = check(env=account)
    assert done.passed
    assert done.document["findings"] == []


def test_a_policy_of_harbor_that_keeps_everybody_from_pulling(
    harbor: HarborDouble, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    bundle = bundle_of(tmp_path_factory, SMALL)
    robot = harbor.add_robot("pusher", SECRET, "mirror", ("pull", "push"))
    target = f"{harbor.url}/mirror"
    pushed = run("push", bundle, target, env={"AIRGAP_SYNC_USERNAME": robot.name, "AIRGAP_SYNC_PASSWORD": SECRET})
    assert pushed.code == 0, pushed.err
    harbor.projects["mirror"].metadata["prevent_vul"] = "true"
    made = run("config", bundle, "--target", target, "--no-default-endpoint", "--to", tmp_path / "site")
    assert made.code == 0, made.err
    found = preflight(bundle, "--config", tmp_path / "site", out=tmp_path / "out")
    assert found.rules == {"hidden-by-policy"}
    assert len(found.bad) == len(names_of(bundle))
    assert "exists, and a policy keeps it from being pulled" in found.problem(ONE)["problem"]
    harbor.projects["mirror"].metadata["prevent_vul"] = "false"
    assert preflight(bundle, "--config", tmp_path / "site", out=tmp_path / "out").passed
