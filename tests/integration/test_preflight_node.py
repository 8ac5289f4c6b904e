"""`preflight` on a node: its files, its real containerd, a double of its embedded registry; and `--collect`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import Bundle
from tests.support.command import run
from tests.support.containerd import Containerd
from tests.support.content import AMD64, ARM, ARM64, BuiltImage
from tests.support.embedded import EmbeddedRegistry, NodeTree
from tests.support.handmade import write_bundle
from tests.support.images import BlobStore, Entry, index_of, publish, single
from tests.support.kubernetes import KubernetesApi
from tests.support.kubernetes import node as kubernetes_node
from tests.support.preflights import Preflight, edited, preflight, refused
from tests.support.programs import find_program
from tests.support.registry import Registry
from tests.support.sites import SMALL, bundle_of, names_of, routed

HERE = {"x86_64": AMD64, "aarch64": ARM64, "armv7l": ARM}[os.uname().machine]
PLATFORM = str(HERE)
ONE, AGENT = "ghcr.io/team/one:1.0", "quay.io/metrics/agent:v1.2.3"
SECRET = "S3cret-0f-node-tests"  # noqa: S105 - opens nothing
#: Where a node's client of containerd is found.
NODE_PATH = {"PATH": f"{find_program('ctr').parent}:{os.environ.get('PATH', os.defpath)}"}
JOBS = {
    "docker.io/rancher/k3s-upgrade:v1.31.7-k3s1",
    "docker.io/rancher/k3s-upgrade:v1.32.3-k3s1",
    "docker.io/rancher/kubectl:v1.30.3",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(tmp_path_factory)


@pytest.fixture(scope="module")
def files(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("files") / "site"
    # So that what no node has is not looked for elsewhere, which takes its time in an air gap.
    made = run("config", bundle, "--mode", "embedded", "--no-default-endpoint", "--to", to)
    assert made.code == 0, made.err
    return to


@pytest.fixture(scope="module")
def archive(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "images.tar"
    subprocess.run(["tar", "-C", bundle, "-cf", path, "oci-layout", "index.json", "blobs"], check=True)
    return path


@pytest.fixture(scope="module")
def fed(archive: Path) -> Iterator[Containerd]:
    with Containerd() as containerd:
        containerd.import_tar(archive, "--no-unpack")
        yield containerd


@pytest.fixture(scope="module")
def empty() -> Iterator[Containerd]:
    with Containerd() as containerd:
        yield containerd


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry(tmp_path / "certificates") as registry:
        yield registry


@pytest.fixture
def node(files: Path, peers: EmbeddedRegistry, empty: Containerd) -> Iterator[NodeTree]:
    with NodeTree() as tree:
        tree.install(files)
        tree.restart(peers, default_endpoint=False)
        tree.attach(empty)
        yield tree


def check(bundle: Path, files: Path, node: NodeTree, tmp_path: Path, *options: str | Path, **more: Any) -> Preflight:
    return preflight(
        *(bundle, "--config", files, "--root", node.root, "--node", "node-1", *options),
        out=tmp_path / "result.json",
        env=NODE_PATH,
        **more,
    )


def layer(bundle: Path, reference: str) -> str:
    found = Bundle(bundle)
    children = found.json(found.names[reference])["manifests"]
    (child,) = [item["digest"] for item in children if item["platform"]["architecture"] == HERE.architecture]
    return str(found.json(child)["layers"][0]["digest"])


# --- where images come from -------------------------------------------------------------------------------------------


def test_a_node_that_has_all_images_asks_nobody(
    bundle: Path, files: Path, node: NodeTree, peers: EmbeddedRegistry, fed: Containerd, tmp_path: Path
) -> None:
    node.attach(fed)
    found = check(bundle, files, node, tmp_path)
    assert found.passed
    assert {(image["reference"], image["platform"]) for image in found.document["images"]} == {
        (name, PLATFORM) for name in names_of(bundle)
    }
    assert found.document["node"] == "node-1"
    assert found.document["findings"] == []
    assert peers.asked == []


def test_a_node_without_images_gets_them_from_others(
    bundle: Path, files: Path, node: NodeTree, peers: EmbeddedRegistry, tmp_path: Path
) -> None:
    peers.peers.append(Bundle(bundle))
    found = check(bundle, files, node, tmp_path)
    assert found.passed
    assert found.document["findings"] == []
    assert {asked.registry for asked in peers.asked} == {name.partition("/")[0] for name in names_of(bundle)}
    assert {(asked.method, asked.status) for asked in peers.asked} == {("HEAD", 200)}
    assert peers.handshake_errors == []


def test_what_no_node_has(bundle: Path, files: Path, node: NodeTree, peers: EmbeddedRegistry, tmp_path: Path) -> None:
    found = check(bundle, files, node, tmp_path)
    assert set(found.bad) == set(names_of(bundle))
    assert found.rules == {"image-absent"}
    problem = found.problem(ONE, PLATFORM)
    assert problem["problem"] == f"https://{peers.host}/v2/team/one:1.0 is not there"
    assert "Put the archive of this bundle into agent/images of the seeds" in problem["fix"]


def test_a_layer_that_no_node_has(
    bundle: Path, files: Path, node: NodeTree, peers: EmbeddedRegistry, tmp_path: Path
) -> None:
    peers.peers.append(Bundle(bundle))
    peers.lost.add(layer(bundle, AGENT))
    found = check(bundle, files, node, tmp_path)
    assert found.bad == {AGENT: {PLATFORM}}
    problem = found.problem(AGENT, PLATFORM)
    assert problem["rule"] == "blob-missing"
    assert layer(bundle, AGENT) in problem["problem"]
    assert "agent/images of the seeds" in problem["fix"]
    peers.lost.clear()
    assert check(bundle, files, node, tmp_path).passed


def test_a_name_that_another_node_has_otherwise(
    bundle: Path, files: Path, node: NodeTree, peers: EmbeddedRegistry, tmp_path: Path
) -> None:
    peers.peers.append(Bundle(bundle))
    peers.moved[ONE] = names_of(bundle)[AGENT]
    found = check(bundle, files, node, tmp_path)
    assert found.bad == {ONE: {PLATFORM}}
    problem = found.problem(ONE, PLATFORM)
    assert problem["rule"] == "tag-moved"
    assert problem["fix"].endswith(f"k3s crictl rmi {ONE}")


def test_an_image_of_which_this_node_has_a_part(
    bundle: Path, files: Path, node: NodeTree, archive: Path, tmp_path: Path
) -> None:
    with Containerd() as containerd:
        containerd.import_tar(archive, "--no-unpack")
        containerd.ctr("content", "rm", layer(bundle, AGENT))
        node.attach(containerd)
        found = check(bundle, files, node, tmp_path)
        assert found.bad == {AGENT: {PLATFORM}}
        assert found.problem(AGENT, PLATFORM)["rule"] == "image-absent"
        containerd.import_tar(archive, "--no-unpack")
        assert check(bundle, files, node, tmp_path).passed


def test_other_content_under_a_name_of_this_node(
    bundle: Path, files: Path, node: NodeTree, archive: Path, tmp_path: Path
) -> None:
    with Containerd() as containerd:
        containerd.import_tar(archive, "--no-unpack")
        containerd.ctr("images", "tag", "--force", AGENT, ONE)
        node.attach(containerd)
        found = check(bundle, files, node, tmp_path)
        assert found.bad == {ONE: {PLATFORM}}
        problem = found.problem(ONE, PLATFORM)
        assert problem["rule"] == "other-content"
        assert problem["problem"].startswith(f"this node has {names_of(bundle)[AGENT]} under this name")
        assert problem["fix"].startswith("Put the archive of this bundle into agent/images on this node")
        assert "rmi" not in problem["fix"]
        containerd.ctr("images", "rm", ONE)
        containerd.import_tar(archive, "--no-unpack")
        assert check(bundle, files, node, tmp_path).passed


def forms(store: BlobStore) -> dict[str, BuiltImage]:
    """Give an image as bundles have it, in other forms, and another one."""

    def one(title: str = "") -> BuiltImage:
        return single(store, HERE, {"etc/image": b"one"}, annotations={"title": title} if title else None)

    elsewhere = ARM64 if HERE == AMD64 else AMD64
    made = {
        "bundle": index_of(Entry(one(), HERE)),
        "archive": one("as docker save writes it"),
        "platforms": index_of(Entry(single(store, elsewhere), elsewhere), Entry(one("anew"), HERE)),
        "other": single(store, HERE, {"etc/image": b"other"}),
        "other-index": index_of(Entry(single(store, HERE, {"etc/image": b"index"}), HERE)),
        "elsewhere": index_of(Entry(single(store, elsewhere), elsewhere)),
    }
    assert len({image.root_digest for image in made.values()}) == len(made)
    return made


def put(containerd: Containerd, image: BuiltImage, directory: Path) -> None:
    """Let a containerd have an image under a name, as an import does."""
    layout = write_bundle(directory / "layout", {ONE: image}, lock=False)
    archive = directory / "layout.tar"
    subprocess.run(["tar", "-C", layout, "-cf", archive, "oci-layout", "index.json", "blobs"], check=True)
    containerd.import_tar(archive, "--no-unpack")
    assert containerd.images() == {ONE: image.root_digest}


@pytest.mark.parametrize(
    ("form", "fine"),
    [("bundle", True), ("archive", True), ("platforms", True), ("other", False), ("other-index", False)],
    ids=["bundle", "archive", "platforms", "other", "other-index"],
)
@pytest.mark.parametrize("mode", ["embedded", "registry"])
def test_it_is_the_config_that_tells_whether_an_image_is_the_same(
    node: NodeTree, peers: EmbeddedRegistry, tmp_path: Path, mode: str, form: str, fine: bool
) -> None:
    images = forms(BlobStore(tmp_path / "store"))
    bundle = write_bundle(tmp_path / "bundle", {ONE: images["bundle"]})
    with Registry() as registry, Containerd() as containerd:
        target = ("--target", registry.url) if mode == "registry" else ()
        made = run("config", bundle, "--mode", mode, *target, "--no-default-endpoint", "--to", tmp_path / "site")
        assert made.code == 0, made.err
        node.install(tmp_path / "site")
        node.restart(peers if mode == "embedded" else None, default_endpoint=False)
        node.attach(containerd)
        put(containerd, images[form], tmp_path)
        if mode == "registry":
            # Other nodes depend on it, whatever this one has.
            absent = check(bundle, tmp_path / "site", node, tmp_path)
            assert absent.rules == ({"image-absent"} if fine else {"other-content"})
            publish(images["bundle"], registry.url, "team/one", "1.0")
        found = check(bundle, tmp_path / "site", node, tmp_path)
    assert found.passed is fine
    assert peers.asked == []
    if not fine:
        assert found.bad == {ONE: {PLATFORM}}
        problem = found.problem(ONE, PLATFORM)
        assert problem["rule"] == "other-content"
        assert images[form].root_digest in problem["problem"]
        assert "rmi" not in problem["fix"]


def test_a_containerd_that_cannot_be_asked_is_said(
    bundle: Path, files: Path, node: NodeTree, peers: EmbeddedRegistry, tmp_path: Path
) -> None:
    peers.peers.append(Bundle(bundle))
    socket = node.root / "run/k3s/containerd/containerd.sock"
    socket.unlink()
    found = check(bundle, files, node, tmp_path)
    assert found.passed
    assert found.not_checked(f"what containerd has on this node: {socket} is not there")
    socket.write_text("no socket")
    found = check(bundle, files, node, tmp_path)
    assert found.passed
    assert found.not_checked("what containerd has on this node: `")


# --- pull policy of jobs ----------------------------------------------------------------------------------------------


def test_jobs_that_insist_on_a_registry(
    bundle: Path, files: Path, node: NodeTree, fed: Containerd, tmp_path: Path
) -> None:
    node.attach(fed)
    changed = tmp_path / "changed"
    shutil.copytree(files, changed)
    (path,) = [
        path for path in (changed / "system-upgrade-controller").glob("*.yaml") if "PULL_POLICY" in path.read_text()
    ]
    before = path.read_text()
    key = "SYSTEM_UPGRADE_JOB_IMAGE_PULL_POLICY: IfNotPresent"
    assert before.count(key) == 1
    path.write_text(before.replace(key, key.replace("IfNotPresent", "Always")))
    found = check(bundle, changed, node, tmp_path)
    assert found.bad == {name: {PLATFORM} for name in JOBS}
    assert found.rules == {"job-pull-policy"}
    problem = found.problem(min(JOBS), PLATFORM)
    assert f"SYSTEM_UPGRADE_JOB_IMAGE_PULL_POLICY is Always in {path}" in problem["problem"]
    assert "kubectl -n system-upgrade patch configmap default-controller-env" in problem["fix"]
    path.write_text(before)
    assert check(bundle, changed, node, tmp_path).passed


# --- what K3s made of registries.yaml ---------------------------------------------------------------------------------


def test_a_registries_yaml_changed_since_k3s_started(
    bundle: Path, files: Path, node: NodeTree, peers: EmbeddedRegistry, fed: Containerd, tmp_path: Path
) -> None:
    node.attach(fed)
    with edited(node.registries) as document:
        document["mirrors"]["ghcr.io"] = {"endpoint": ["http://127.0.0.1:9"]}
    found = check(bundle, files, node, tmp_path)
    assert found.bad == {}
    assert found.found == [("not-restarted", "certs.d of ghcr.io")]
    finding = found.findings["not-restarted"]
    assert finding["severity"] == "error"
    assert finding["message"] == (
        f"containerd asks other nodes, and {node.registries} says other nodes, http://127.0.0.1:9/v2"
    )
    assert "systemctl restart k3s" in finding["fix"]
    node.restart(peers, default_endpoint=False)
    assert check(bundle, files, node, tmp_path).passed


def test_credentials_changed_since_k3s_started(
    bundle: Path, files: Path, node: NodeTree, peers: EmbeddedRegistry, fed: Containerd, tmp_path: Path
) -> None:
    node.attach(fed)
    with edited(node.registries) as document:
        document["configs"] = {"registry.example": {"auth": {"username": "puller", "password": SECRET}}}
    node.age()
    found = check(bundle, files, node, tmp_path, secrets=[SECRET])
    assert found.bad == {}
    assert found.found == [("not-restarted", str(node.registries))]
    assert found.findings["not-restarted"]["severity"] == "error"
    assert "systemctl restart k3s" in found.findings["not-restarted"]["fix"]
    # Of another file than the node's own, its times tell nothing.
    other = tmp_path / "other.yaml"
    shutil.copy(node.registries, other)
    assert check(bundle, files, node, tmp_path, "--registries", other).passed
    node.restart(peers, default_endpoint=False)
    assert check(bundle, files, node, tmp_path, secrets=[SECRET]).passed
    # Without credentials, containerd's files have everything that could have changed.
    node.install(files)
    node.age()
    assert check(bundle, files, node, tmp_path).passed


def test_what_is_for_other_registries_does_not_matter(
    bundle: Path, files: Path, node: NodeTree, fed: Containerd, tmp_path: Path
) -> None:
    node.attach(fed)
    for name, text in (("other.example", "[host\n"), ("more.example", '[host."http://127.0.0.1:9"]\n')):
        (node.certs_d / name).mkdir()
        (node.certs_d / name / "hosts.toml").write_text(text)
    found = check(bundle, files, node, tmp_path)
    assert found.passed
    assert found.document["findings"] == []


def test_a_node_on_which_k3s_never_saw_the_file(
    bundle: Path, files: Path, node: NodeTree, peers: EmbeddedRegistry, tmp_path: Path
) -> None:
    peers.peers.append(Bundle(bundle))
    shutil.rmtree(node.certs_d)
    found = check(bundle, files, node, tmp_path)
    assert set(found.findings) == {"embedded-off"}
    assert found.rules == {"missing-mirror"}
    problem = found.problem(ONE, PLATFORM)
    assert problem["problem"] == f"{node.certs_d} has no mirror for ghcr.io, so this node asks ghcr.io itself"
    node.restart(peers, default_endpoint=False)
    assert check(bundle, files, node, tmp_path).passed


def test_versions_without_certs_d_are_not_said_to_need_a_restart(
    bundle: Path, files: Path, node: NodeTree, fed: Containerd, tmp_path: Path
) -> None:
    node.attach(fed)
    shutil.rmtree(node.certs_d)
    files = Path(shutil.copytree(files, tmp_path / "old"))
    site = files / "site.json"
    site.write_text(json.dumps({**json.loads(site.read_text()), "running": "v1.25.3+k3s1"}))
    found = check(bundle, files, node, tmp_path)
    assert found.not_checked("v1.25.3+k3s1 has no certs.d to compare it with")
    assert "not-restarted" not in found.findings


def test_the_embedded_registry_is_off(
    bundle: Path, files: Path, node: NodeTree, peers: EmbeddedRegistry, fed: Containerd, tmp_path: Path
) -> None:
    node.attach(fed)
    node.restart(None, default_endpoint=False)
    found = check(bundle, files, node, tmp_path)
    assert found.bad == {}
    assert found.found == [("embedded-off", "certs.d")]
    assert found.findings["embedded-off"]["severity"] == "error"
    assert "embedded-registry: true" in found.findings["embedded-off"]["fix"]
    node.restart(peers, default_endpoint=False)
    assert check(bundle, files, node, tmp_path).passed


def test_a_node_without_a_mirror_for_an_app(
    bundle: Path, files: Path, node: NodeTree, peers: EmbeddedRegistry, tmp_path: Path
) -> None:
    peers.peers.append(Bundle(bundle))
    with edited(node.registries) as document:
        del document["mirrors"]["quay.io"]
    node.restart(peers, default_endpoint=False)
    found = check(bundle, files, node, tmp_path)
    assert set(found.bad) == {name for name in names_of(bundle) if name.startswith("quay.io/")}
    assert found.rules == {"missing-mirror"}
    node.install(files)
    node.restart(peers, default_endpoint=False)
    assert check(bundle, files, node, tmp_path).passed


def test_a_certs_d_that_is_not_toml_is_named(bundle: Path, files: Path, node: NodeTree) -> None:
    (node.certs_d / "ghcr.io" / "hosts.toml").write_text("[host\n")
    said = refused(bundle, "--config", files, "--root", node.root, code=3)
    assert "ghcr.io/hosts.toml is not TOML" in said


def test_the_tag_latest_is_never_shared(node: NodeTree, peers: EmbeddedRegistry, tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "store")
    names = ("ghcr.io/team/app:latest", "ghcr.io/team/app:1")
    bundle = write_bundle(tmp_path / "bundle", {name: single(store, HERE, {"name": name.encode()}) for name in names})
    peers.peers.append(Bundle(bundle))
    made = run("config", bundle, "--mode", "embedded", "--no-default-endpoint", "--to", tmp_path / "site")
    assert made.code == 0, made.err
    node.install(tmp_path / "site")
    node.restart(peers, default_endpoint=False)
    found = check(bundle, tmp_path / "site", node, tmp_path)
    assert found.bad == {names[0]: {PLATFORM}}
    archive = tmp_path / "images.tar"
    subprocess.run(["tar", "-C", bundle, "-cf", archive, "oci-layout", "index.json", "blobs"], check=True)
    with Containerd() as containerd:
        containerd.import_tar(archive, "--no-unpack")
        node.attach(containerd)
        found = check(bundle, tmp_path / "site", node, tmp_path)
    assert found.bad == {names[0]: {PLATFORM}}
    assert found.problem(names[0], PLATFORM)["rule"] == "latest-embedded"


# --- hybrid -----------------------------------------------------------------------------------------------------------


def test_hybrid_takes_from_both(bundle: Path, node: NodeTree, peers: EmbeddedRegistry, tmp_path: Path) -> None:
    with Registry() as registry:
        target = f"{registry.url}/k3s"
        made = run(
            *("config", bundle, "--mode", "hybrid", "--target", target, "--no-default-endpoint"),
            *("--to", tmp_path / "site"),
        )
        assert made.code == 0, made.err
        pushed = run("push", bundle, "--site", tmp_path / "site" / "site.json")
        assert pushed.code == 0, pushed.err
        node.install(tmp_path / "site")
        node.restart(peers, default_endpoint=False)
        apps = routed(bundle, lambda in_set, _: not in_set)
        found = check(bundle, tmp_path / "site", node, tmp_path)
        assert set(found.bad) == apps
        assert found.rules == {"image-absent"}
        peers.peers.append(Bundle(bundle))
        assert check(bundle, tmp_path / "site", node, tmp_path).passed
        # Elsewhere only the registry can be seen.
        outside = preflight(bundle, "--config", tmp_path / "site", out=tmp_path / "outside.json")
        assert set(outside.bad) == apps
        assert outside.rules == {"on-nodes-only"}
        assert outside.not_checked("what nodes have under these names already")
        assert "could not be checked" in outside.result.err


def test_elsewhere_nothing_can_be_told_of_embedded_images(bundle: Path, files: Path, tmp_path: Path) -> None:
    found = preflight(bundle, "--config", files, out=tmp_path / "out")
    assert set(found.bad) == set(names_of(bundle))
    assert {image["ok"] for image in found.document["images"]} == {None}
    assert found.rules == {"on-nodes-only"}
    assert "--collect" in found.problem(ONE)["fix"]
    assert found.not_checked("which nodes are to have the archive: give --kubeconfig FILE")


# --- a registry, from a node ------------------------------------------------------------------------------------------


def test_a_node_uses_its_own_files(tmp_path_factory: pytest.TempPathFactory, node: NodeTree, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path_factory, SMALL)
    with Registry() as registry:
        target = f"{registry.url}/k3s"
        assert run("push", bundle, target).code == 0
        node.registries.unlink()
        node.restart()
        found = preflight(*(bundle, "--target", target, "--root", node.root, "--node", "n"), out=tmp_path / "out")
        assert found.rules == {"missing-mirror"}
        assert found.document["node"] == "n"
        made = run("config", bundle, "--target", target, "--to", tmp_path / "site")
        assert made.code == 0, made.err
        node.install(tmp_path / "site")
        node.restart()
        found = preflight(*(bundle, "--target", target, "--root", node.root), out=tmp_path / "out", env=NODE_PATH)
        assert found.passed
        assert found.document["node"] == os.uname().nodename.lower()
        assert not found.not_checked("whether nodes reach the registry")
        assert not found.not_checked("containerd")


# --- collected --------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(
    bundle: Path, files: Path, node: NodeTree, peers: EmbeddedRegistry, fed: Containerd, tmp_path: Path
) -> tuple[Path, Path]:
    peers.peers.append(Bundle(bundle))
    node.attach(fed)
    made = []
    for name in ("server", "agent"):
        made.append(tmp_path / f"{name}.json")
        found = preflight(
            *(bundle, "--config", files, "--root", node.root, "--node", name), out=made[-1], env=NODE_PATH
        )
        assert found.passed
    return made[0], made[1]


def rewritten(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_results_of_nodes_are_put_together(
    bundle: Path, files: Path, results: tuple[Path, Path], tmp_path: Path
) -> None:
    def collect() -> Preflight:
        return preflight(bundle, *results, "--config", files, "--collect", out=tmp_path / "all.json")

    # There is no node of the other platform among them.
    other = {"linux/amd64", "linux/arm64"} - {PLATFORM}
    found = collect()
    assert found.bad == dict.fromkeys(names_of(bundle), other)
    assert found.rules == {"no-result"}
    assert found.not_checked("whether agent, server are all nodes: give --kubeconfig FILE")
    first = json.loads(results[0].read_text())
    images = [{**image, "platform": platform} for image in first["images"] for platform in (PLATFORM, *other)]
    rewritten(results[0], images=images)
    assert collect().passed

    broken = json.loads(results[1].read_text())["images"]
    broken[0] |= {"ok": False, "problem": "it is gone", "rule": "image-absent", "fix": "put it there"}
    finding = {
        "rule": "not-restarted",
        "severity": "error",
        "place": "certs.d of ghcr.io",
        "message": "old",
        "fix": "restart",
    }
    rewritten(results[1], images=broken, findings=[finding], not_checked=["the weather"])
    found = collect()
    assert found.bad == {broken[0]["reference"]: {PLATFORM}}
    assert found.problem(broken[0]["reference"], PLATFORM)["problem"] == "on agent: it is gone"
    assert found.found == [("not-restarted", "agent: certs.d of ghcr.io")]
    assert found.not_checked("agent: the weather")


def test_results_that_say_too_little_or_are_too_old(
    bundle: Path, files: Path, results: tuple[Path, Path], tmp_path: Path
) -> None:
    cut = json.loads(results[0].read_text())["images"]
    rewritten(results[0], images=cut[:-1], node_version="v1.31.7+k3s1")
    with KubernetesApi(tmp_path / "api") as api:
        for name in ("server", "agent"):
            api.put(kubernetes_node(name, version="v1.32.3+k3s1", architecture=PLATFORM.partition("/")[2], shares=True))
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        found = preflight(
            *(bundle, *results, "--config", files, "--collect", "--kubeconfig", kubeconfig), out=tmp_path / "all.json"
        )
    assert found.bad == {cut[-1]["reference"]: {PLATFORM}}
    problem = found.problem(cut[-1]["reference"], PLATFORM)
    assert (problem["ok"], problem["problem"]) == (None, "the result of server does not have it")
    assert ("result-stale", "node server") in found.found
    assert "v1.31.7+k3s1, and it runs v1.32.3+k3s1" in found.findings["result-stale"]["message"]
    assert found.not_checked("what changed on nodes since their results")


def test_results_that_are_refused(bundle: Path, files: Path, results: tuple[Path, Path]) -> None:
    def said() -> str:
        return refused(bundle, *results, "--config", files, "--collect", code=3)

    kept = results[1].read_text()
    rewritten(results[1], lock_digest=f"sha256:{'0' * 64}")
    assert f"{results[1]} is the result for another bundle" in said()
    rewritten(results[1], lock_digest=None)
    assert f"{results[1]} is the result for another bundle" in said()
    results[1].write_text(kept)
    rewritten(results[1], site_digest=f"sha256:{'0' * 64}")
    assert f"{results[1]} is the result for another site" in said()
    results[1].write_text(kept)
    rewritten(results[1], node=None)
    assert f"{results[1]} is not the result of a node" in said()
    rewritten(results[1], node="server")
    assert f"{results[0]} and {results[1]} are both of node server" in said()
    results[1].write_text(kept.replace('"Preflight"', '"Something"'))
    assert f"{results[1]} is not the result of a preflight" in said()
    results[1].write_text("[")
    assert str(results[1]) in said()


def test_results_for_another_site_are_refused(bundle: Path, results: tuple[Path, Path]) -> None:
    for flags in (
        ("--mode", "hybrid", "--target", "registry.example"),
        ("--mode", "registry", "--target", "registry.example"),
    ):
        said = refused(bundle, *results, *flags, "--collect", code=3)
        assert f"{results[0]} is the result for another site: mode, target, routes or names differ" in said


def test_results_for_a_layout_without_a_lock_are_refused(node: NodeTree, tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "store")
    bundle = write_bundle(tmp_path / "bundle", {ONE: single(store, HERE)}, lock=False)
    result = tmp_path / "result.json"
    site = ("--mode", "embedded")
    found = preflight(bundle, *site, "--root", node.root, "--node", "a", out=result, env=NODE_PATH)
    assert found.document["lock_digest"] is None
    said = refused(bundle, result, *site, "--collect", code=3)
    assert f"{result} " in said
    assert "bundle.lock.json" in said
