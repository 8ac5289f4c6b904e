"""`preflight --kubeconfig`: what it makes of the nodes, the controller's settings and the plans of a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.bundles import Bundle
from tests.support.command import run
from tests.support.kubernetes import PLANS_PATH, KubernetesApi, node, plan
from tests.support.preflights import Preflight, preflight, refused
from tests.support.programs import free_port
from tests.support.registry import Registry
from tests.support.sites import SMALL, V131, V132, bundle_of, names_of

AMD64, ARM64 = "linux/amd64", "linux/arm64"
ENVIRONMENT = ("system-upgrade", "default-controller-env")
UPGRADE, KUBECTL = "docker.io/rancher/k3s-upgrade:v1.32.3-k3s1", "docker.io/rancher/kubectl:v1.30.3"
POLICY = "SYSTEM_UPGRADE_JOB_IMAGE_PULL_POLICY"
#: Room for everything.
PLENTY = 10**12


@dataclass
class Site:
    """A cluster, and a small bundle of v1.32.3 for amd64 that is in a registry."""

    api: KubernetesApi
    bundle: Path
    target: str
    kubeconfig: Path
    directory: Path

    def put(self, *nodes: dict[str, Any]) -> None:
        for document in nodes:
            self.api.put(document, PLENTY)

    def config(self, *options: str, **changed: Any) -> Path:
        """Write the files of a site, and change what its site.json says."""
        to = self.directory / "site"
        made = run("config", self.bundle, *options, "--no-default-endpoint", "--to", to, "--force")
        assert made.code == 0, made.err
        if changed:
            path = to / "site.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
        return to

    def check(self, *options: str | Path, **more: Any) -> Preflight:
        options = options or ("--target", self.target)
        out = self.directory / "result.json"
        return preflight(self.bundle, *options, "--kubeconfig", self.kubeconfig, out=out, **more)

    def refused(self, code: int, *options: str | Path) -> str:
        return refused(self.bundle, *(options or ("--target", self.target)), "--kubeconfig", self.kubeconfig, code=code)


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    bundle = bundle_of(tmp_path_factory, SMALL)
    with Registry() as registry:
        assert run("push", bundle, f"{registry.url}/k3s").code == 0
        yield bundle, f"{registry.url}/k3s"


@pytest.fixture
def site(stocked: tuple[Path, str], tmp_path: Path) -> Iterator[Site]:
    with KubernetesApi(tmp_path / "api") as api:
        yield Site(api, *stocked, api.kubeconfig(tmp_path / "kubeconfig"), tmp_path)


@pytest.fixture
def embedded(site: Site) -> Path:
    return site.config("--mode", "embedded")


# --- nodes ------------------------------------------------------------------------------------------------------------


def test_a_cluster_that_is_well(site: Site) -> None:
    site.put(node("server-1", V131, server=True), node("agent-1", V131))
    site.api.config_maps[ENVIRONMENT] = {"SYSTEM_UPGRADE_JOB_IMAGE_PULL_POLICY": "IfNotPresent"}
    site.api.plans = [plan("server-plan", V132)]
    found = site.check()
    assert found.passed
    assert found.document["findings"] == []
    assert found.document["seeds"] == {}
    assert found.document["not_checked"] == [
        "whether nodes reach the registry from where they are: run preflight on each of them"
    ]
    assert {request.method for request in site.api.requests()} == {"GET"}


def test_platforms_are_those_of_nodes(site: Site) -> None:
    site.put(node("server-1", V131, server=True), node("agent-1", V131, "arm64"))
    found = site.check()
    # What was asked for by its digest is there as a whole.
    assert found.bad == {name: {ARM64} for name in names_of(site.bundle) if "quay.io/store/both" not in name}
    assert found.rules == {"platform-missing"}
    problem = found.problem(UPGRADE, ARM64)
    assert problem["problem"] == f"the bundle has {UPGRADE} for other platforms only"
    assert "--platform linux/arm64" in problem["fix"]
    # What runs no K3s gets nothing of this.
    site.api.nodes[1] = node("agent-1", "v1.31.2", "arm64")
    found = site.check()
    assert found.passed
    assert found.found == [("not-k3s", "node agent-1")]
    site.api.nodes.pop()
    assert site.check().passed


def test_nodes_that_need_a_look(site: Site) -> None:
    site.put(node("a", V131, server=True), node("b", V131, ready=False), node("c", "v1.31.2"))
    found = site.check()
    assert found.passed
    assert found.found == [("node-not-ready", "node b"), ("not-k3s", "node c")]
    assert {finding["severity"] for finding in found.document["findings"]} == {"warning"}
    assert "v1.31.2" in found.findings["not-k3s"]["message"]


def test_an_upgrade_that_skips_a_minor(site: Site) -> None:
    site.put(node("a", V131, server=True), node("b", "v1.30.4+k3s1"))
    found = site.check()
    assert found.bad == {}
    assert found.found == [("unsupported-skew", "bundle")]
    assert "skips minor v1.31" in found.findings["unsupported-skew"]["message"]
    site.api.nodes.pop()
    assert site.check().passed


def test_a_cluster_that_has_the_upgrade_behind_it(site: Site) -> None:
    site.put(node("a", V132, server=True), node("b", V132))
    found = site.check()
    assert found.passed
    assert found.document["findings"] == []
    site.put(node("c", "v1.32.4+k3s1"))
    assert site.check().document["findings"] == []
    del site.api.nodes[:2]
    assert site.check().found == [("unsupported-skew", "bundle")]


def test_nodes_that_run_another_version_than_config_was_told(site: Site) -> None:
    site.put(node("a", V131, server=True))
    files = site.config("--target", site.target, "--from", V131)
    assert site.check("--config", files).document["findings"] == []
    site.put(node("b", "v1.31.4+k3s1"))
    found = site.check("--config", files)
    assert found.passed
    assert found.found == [("running-differs", "site.json")]
    assert found.findings["running-differs"]["fix"] == "Write the files again with --from v1.31.4+k3s1."


# --- the embedded registry --------------------------------------------------------------------------------------------


def test_nodes_that_do_not_share(site: Site, embedded: Path) -> None:
    site.put(node("a", V131, server=True, shares=True), node("b", V131))
    found = site.check("--config", embedded)
    assert found.found == [("node-not-sharing", "node b")]
    assert found.rules == {"on-nodes-only"}
    site.api.nodes[1] = node("b", V131, shares=True)
    assert site.check("--config", embedded).document["findings"] == []


@pytest.mark.parametrize(
    ("version", "changed", "rules"),
    [
        ("v1.31.7+k3s1", {}, set()),
        ("v1.31.3+k3s1", {}, {"embedded-experimental"}),
        ("v1.32.10+k3s1", {}, {"imports-not-shared"}),
        ("v1.26.9+k3s1", {}, {"embedded-unknown", "no-default-endpoint-unknown"}),
        ("v1.26.9+k3s1", {"default_endpoint": True}, {"embedded-unknown"}),
        ("v1.29.1+k3s1", {"wildcard": True}, {"wildcard-unknown", "embedded-experimental"}),
        ("v1.29.3+k3s1", {"wildcard": True}, {"embedded-experimental"}),
        ("v1.31.7+k3s1", {"wildcard": True}, set()),
    ],
    ids=["good", "experimental", "13222", "too-old", "default-endpoint", "wildcard-old", "wildcard", "wildcard-new"],
)
def test_what_versions_can_do(
    site: Site, embedded: Path, version: str, changed: dict[str, Any], rules: set[str]
) -> None:
    path = embedded / "site.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    site.put(node("a", version, server=True, shares=True))
    found = site.check("--config", embedded)
    other = {"unsupported-skew", "k3s-reads-otherwise"}
    assert set(found.findings) - other == rules
    for rule in rules:
        assert version in found.findings[rule]["message"]
        assert found.findings[rule]["place"] == "nodes"
        assert (found.findings[rule]["severity"] == "warning") == (rule == "embedded-experimental")


def test_seeds_are_two_of_each_platform_servers_first(site: Site, embedded: Path) -> None:
    site.put(
        node("a-agent", V131, shares=True),
        node("b-server", V131, server=True, shares=True),
        node("c-server", V131, server=True, shares=True),
        node("d-server", V131, server=True, shares=True),
        node("e-arm", V131, "arm64", shares=True),
        node("f-arm", V131, "arm64", shares=True, ready=False),
        node("g-arm", V131, "arm64", shares=True),
    )
    found = site.check("--config", embedded)
    assert found.document["seeds"] == {AMD64: ["b-server", "c-server"], ARM64: ["e-arm", "g-arm"]}
    assert not found.not_checked("which nodes are to have the archive")


# --- room -------------------------------------------------------------------------------------------------------------


def content_bytes(bundle: Path) -> tuple[int, int]:
    """Give the size of all blobs that an amd64 node needs, each once, and of all blobs of the bundle."""
    read = Bundle(bundle)
    ours: dict[str, int] = {}
    everything: dict[str, int] = {}
    for item in read.index["manifests"]:
        for child in read.json(item["digest"])["manifests"]:
            manifest = read.json(child["digest"])
            sizes = {part["digest"]: part["size"] for part in (manifest["config"], *manifest["layers"])}
            everything |= sizes
            if child["platform"]["architecture"] == "amd64":
                ours |= sizes
    return sum(ours.values()), sum(everything.values())


def test_room_on_nodes(site: Site) -> None:
    needed, _ = content_bytes(site.bundle)
    site.api.put(node("a-full", V131), needed - 1)
    site.api.put(node("b-tight", V131), needed)
    site.api.put(node("c-tight", V131), PLENTY, 4 * needed - 1)
    site.api.put(node("d-enough", V131), 4 * needed, 4 * needed)
    site.api.put(node("e-silent", V131))
    found = site.check()
    assert found.bad == {}
    assert found.found == [("disk-full", "node a-full"), ("disk-tight", "node b-tight"), ("disk-tight", "node c-tight")]
    severities = {finding["place"]: finding["severity"] for finding in found.document["findings"]}
    assert severities == {"node a-full": "error", "node b-tight": "warning", "node c-tight": "warning"}
    assert found.not_checked("whether node e-silent has room for")
    assert not found.passed
    site.api.free["a-full"] = (4 * needed, None)
    assert site.check().passed


def test_the_archive_needs_room_on_seeds(site: Site, embedded: Path) -> None:
    needed, archive = content_bytes(site.bundle)
    for name in "abc":
        site.api.put(node(name, V131, server=name != "c", shares=True), needed + archive - 1)
    found = site.check("--config", embedded)
    assert found.found == [("disk-full", "node a"), ("disk-full", "node b"), ("disk-tight", "node c")]
    assert "as the archive" in found.findings["disk-full"]["message"]
    assert "as the archive" not in found.findings["disk-tight"]["message"]


def test_what_a_node_has_needs_no_room(site: Site, embedded: Path) -> None:
    names = tuple(names_of(site.bundle))
    site.api.put(node("a", V131, server=True, shares=True, images=names), 1)
    assert site.check("--config", embedded).document["findings"] == []
    site.api.nodes[0] = node("a", V131, server=True, shares=True, images=names[1:])
    assert site.check("--config", embedded).found == [("disk-full", "node a")]


@pytest.mark.parametrize("status", [400, 403, 429, 500])
def test_room_that_may_not_be_seen(site: Site, status: int) -> None:
    site.put(node("a", V131))
    site.api.refused["/api/v1/nodes/a/proxy/stats/summary"] = status
    found = site.check()
    assert found.passed
    assert found.not_checked("whether node a has room for")


# --- the controller ---------------------------------------------------------------------------------------------------


def refused_images(found: Preflight) -> dict[str, str]:
    return {image["reference"]: image["rule"] for image in found.document["images"] if image["ok"] is False}


def test_the_policy_of_jobs_in_the_cluster(site: Site, embedded: Path) -> None:
    site.put(node("a", V131, server=True, shares=True))
    environment = {POLICY: "Always", "SYSTEM_UPGRADE_JOB_KUBECTL_IMAGE": "rancher/kubectl:v1.30.3"}
    site.api.config_maps[ENVIRONMENT] = environment
    found = site.check("--mode", "embedded")
    assert refused_images(found) == dict.fromkeys((UPGRADE, KUBECTL), "job-pull-policy")
    assert "configmap system-upgrade/default-controller-env of the cluster" in found.problem(UPGRADE)["problem"]
    # What `config` wrote replaces it.
    found = site.check("--config", embedded)
    assert found.rules == {"on-nodes-only"}
    assert found.found == [("job-pull-policy-now", "configmap system-upgrade/default-controller-env of the cluster")]
    assert found.findings["job-pull-policy-now"]["severity"] == "warning"
    environment[POLICY] = "IfNotPresent"
    assert site.check("--mode", "embedded").rules == {"on-nodes-only"}
    assert site.check("--config", embedded).document["findings"] == []
    # Where jobs have a registry, they may ask it; where they may not, nobody brings the image.
    environment[POLICY] = "Always"
    assert site.check().passed
    environment[POLICY] = "Never"
    assert refused_images(site.check()) == dict.fromkeys((UPGRADE, KUBECTL), "job-pull-policy")
    assert site.check("--mode", "embedded").rules == {"on-nodes-only"}


def test_a_kubectl_image_that_is_not_in_the_bundle(site: Site) -> None:
    site.put(node("a", V131, server=True))
    site.api.config_maps[ENVIRONMENT] = {"SYSTEM_UPGRADE_JOB_KUBECTL_IMAGE": "rancher/kubectl:v1.29.0"}
    found = site.check()
    assert found.passed
    assert found.found == [("job-image-missing", "configmap system-upgrade/default-controller-env of the cluster")]
    assert found.findings["job-image-missing"]["severity"] == "warning"
    files = site.config("--target", site.target)
    (path,) = [path for path in files.glob("system-upgrade-controller/*.yaml") if "KUBECTL_IMAGE" in path.read_text()]
    before = path.read_text()
    assert before.count("rancher/kubectl:v1.30.3") == 1
    assert site.check("--config", files).document["findings"] == []
    path.write_text(before.replace("rancher/kubectl:v1.30.3", "rancher/kubectl:v1.29.0"))
    found = site.check("--config", files)
    assert not found.passed
    assert found.bad == {}
    assert found.found == [("job-image-missing", str(path))]
    assert found.findings["job-image-missing"]["severity"] == "error"
    assert "docker.io/rancher/kubectl:v1.29.0" in found.findings["job-image-missing"]["message"]


def test_plans_that_lead_elsewhere(site: Site) -> None:
    site.put(node("a", V131, server=True))
    followed = plan("latest", "", channel="https://update.k3s.io/v1-release/channels/stable")
    del followed["spec"]["version"]
    site.api.plans = [
        plan("good", V132),
        plan("munged", "v1.32.3-k3s1"),
        plan("tagged", "v1.33.1+k3s1", upgrade={"image": UPGRADE}),
        plan("prepared", V132, prepare={"image": "rancher/k3s-upgrade", "args": ["prepare", "server-plan"]}),
        plan("ahead", "v1.33.1+k3s1"),
        plan("other", V132, upgrade={"image": "registry.example/rancher/k3s-upgrade"}),
        plan("unprepared", V132, prepare={"image": "team/before:2"}),
        followed,
    ]
    found = site.check()
    assert found.passed
    assert found.found == [
        ("plan-with-channel", "plan system-upgrade/latest of the cluster"),
        *(("plan-without-image", f"plan system-upgrade/{name} of the cluster") for name in ("ahead", "other")),
        ("plan-without-image", "plan system-upgrade/unprepared of the cluster"),
    ]
    assert {finding["severity"] for finding in found.document["findings"]} == {"warning"}
    said = {finding["place"].split()[1]: finding["message"] for finding in found.document["findings"]}
    assert "upgrade needs docker.io/rancher/k3s-upgrade:v1.33.1-k3s1," in said["system-upgrade/ahead"]
    assert "upgrade needs registry.example/rancher/k3s-upgrade:v1.32.3-k3s1," in said["system-upgrade/other"]
    assert "prepare needs docker.io/team/before:2," in said["system-upgrade/unprepared"]


def test_plans_in_the_files_must_have_their_images(site: Site) -> None:
    site.put(node("a", V131, server=True))
    files = site.config("--target", site.target)
    assert list(files.glob("plans/*.yaml"))
    assert site.check("--config", files).document["findings"] == []
    (files / "plans" / "99-later.yaml").write_text(yaml.safe_dump(plan("later", "v1.33.1+k3s1")))
    found = site.check("--config", files)
    assert not found.passed
    assert found.bad == {}
    assert found.found == [("plan-without-image", str(files / "plans" / "99-later.yaml"))]
    assert found.findings["plan-without-image"]["severity"] == "error"


# --- a cluster that does not answer -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), [(401, 7), (403, 7), (500, 8), (503, 8)])
def test_nodes_that_may_not_be_seen(site: Site, status: int, code: int) -> None:
    site.api.refused["/api/v1/nodes"] = status
    said = site.refused(code)
    assert f"GET {site.api.origin}/api/v1/nodes was answered with {status}" in said


def test_who_is_not_known(site: Site) -> None:
    site.api.kubeconfig(site.kubeconfig, anonymous=True)
    assert "Use /etc/rancher/k3s/k3s.yaml" in site.refused(7)


def test_nobody_answers(site: Site) -> None:
    site.api.kubeconfig(site.kubeconfig, server=f"https://127.0.0.1:{free_port()}")
    assert "under server in" in site.refused(8)


def test_a_kubeconfig_that_is_none(site: Site) -> None:
    site.kubeconfig.write_text("clusters: 7\n")
    assert str(site.kubeconfig) in site.refused(3)


def test_a_controller_that_may_not_be_seen_is_said(site: Site) -> None:
    site.put(node("a", V131, server=True))
    site.api.refused[PLANS_PATH] = 403
    found = site.check()
    assert found.passed
    assert found.not_checked("what the cluster has of system-upgrade-controller: GET")
    assert found.not_checked("the pull policy of upgrade jobs")


# --- collected --------------------------------------------------------------------------------------------------------


def test_every_node_of_the_cluster_must_have_a_result(site: Site) -> None:
    site.put(node("a", V131, server=True), node("b", V131))
    first = site.check().document
    results = {name: site.directory / f"{name}.json" for name in ("a", "b", "old")}
    for name, path in results.items():
        path.write_text(json.dumps({**first, "node": name}))

    found = site.check(results["a"], "--target", site.target, "--collect")
    assert found.bad == {}
    assert found.found == [("node-without-result", "node b")]
    assert found.findings["node-without-result"]["severity"] == "error"
    assert "--out b.json" in found.findings["node-without-result"]["fix"]

    found = site.check(*results.values(), "--target", site.target, "--collect")
    assert found.passed
    assert found.found == [("node-unknown", "node old")]
    assert "--node NAME" in found.findings["node-unknown"]["fix"]

    found = site.check(results["a"], results["b"], "--target", site.target, "--collect")
    assert found.passed
    assert found.document["findings"] == []


def test_imports_need_not_be_shared_where_results_show_that_everything_is_there(site: Site, embedded: Path) -> None:
    site.put(node("a", "v1.32.10+k3s1", server=True, shares=True))
    document = site.check("--config", embedded).document
    assert {finding["severity"] for finding in document["findings"]} == {"error"}
    images = [{**image, "ok": True, "problem": None, "rule": None, "fix": None} for image in document["images"]]
    result = site.directory / "a.json"

    def severity(listed: list[dict[str, Any]]) -> str:
        result.write_text(json.dumps({**document, "node": "a", "images": listed, "findings": []}))
        found = site.check(result, "--config", embedded, "--collect")
        return str(found.findings["imports-not-shared"]["severity"])

    assert severity(images) == "warning"
    assert severity([document["images"][0], *images[1:]]) == "error"
    assert severity(images[1:]) == "error"
