"""A cluster tells what it is over the plain API, to who may ask."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from bundler.errors import (
    AirgapSyncError,
    BadKubeconfigError,
    ConnectRefusedError,
    DeniedError,
    NoCredentialsError,
    NotTlsError,
    ServerError,
    TooManyRequestsError,
    UnauthorizedError,
    UnexpectedAnswerError,
    UnknownCaError,
    WrongHostNameError,
)
from bundler.k3s.version import K3sVersion
from bundler.net import Http, Timeouts
from bundler.oci.platform import Platform
from bundler.site import cluster as cluster_module
from bundler.site.cluster import Cluster, FreeBytes
from bundler.site.kubeconfig import Kubeconfig
from tests.support.certificates import Authority, Certificate
from tests.support.faulty import FaultyRegistry
from tests.support.kubernetes import PLANS_PATH, TOKEN, KubernetesApi, node, plan

NODES = "/api/v1/nodes"
STATS = "/api/v1/nodes/server-1/proxy/stats/summary"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesApi]:
    with KubernetesApi(tmp_path_factory.mktemp("api")) as api:
        yield api


@pytest.fixture
def api(started: KubernetesApi) -> KubernetesApi:
    for known in (started.nodes, started.free, started.config_maps, started.refused, started.raw, started.redirects):
        known.clear()
    started.plans = None
    return started


@pytest.fixture
def http() -> Iterator[Http]:
    http = Http(Timeouts(5, 5))
    yield http
    http.close()


@pytest.fixture
def cluster(api: KubernetesApi, http: Http, tmp_path: Path) -> Cluster:
    return Cluster(Kubeconfig.load(api.kubeconfig(tmp_path / "config")), http)


def test_nodes_and_what_they_are(api: KubernetesApi, cluster: Cluster) -> None:
    api.put(node("server-1", server=True, shares=True, images=("docker.io/rancher/mirrored-pause:3.6",)))
    api.put(node("agent-2", "v1.30.9+k3s1", "arm64", unschedulable=True, taints=(("a", "b", "NoExecute"),)))
    api.put(node("agent-1", "v1.30.9+k3s1", "arm", ready=False, taints=(("CriticalAddonsOnly", "", "NoSchedule"),)))
    api.put(node("other", "v1.31.0-eks-1234", runtime="docker://20.10"))

    arm, arm64, other, server = cluster.nodes()

    assert [found.name for found in (arm, arm64, other, server)] == ["agent-1", "agent-2", "other", "server-1"]
    assert server.version == K3sVersion.parse("v1.31.7+k3s1")
    assert server.version_text == "v1.31.7+k3s1"
    assert (server.is_server, server.shares, server.ready, server.unschedulable) == (True, True, True, False)
    assert server.images == {"docker.io/rancher/mirrored-pause:3.6"}
    assert server.container_runtime == "containerd://2.0.4-k3s2"
    assert [found.platform for found in (server, arm64, arm)] == [
        Platform.parse(text) for text in ("linux/amd64", "linux/arm64", "linux/arm/v7")
    ]
    assert (arm64.unschedulable, arm64.taints, arm64.is_server, arm64.shares) == (
        True,
        ("a=b:NoExecute",),
        False,
        False,
    )
    assert (arm.ready, arm.taints) == (False, ("CriticalAddonsOnly:NoSchedule",))
    assert (other.version, other.version_text) == (None, "v1.31.0-eks-1234")
    assert other.container_runtime == "docker://20.10"


def test_a_certificate_written_into_the_kubeconfig_is_shown_and_no_token(api: KubernetesApi, cluster: Cluster) -> None:
    assert cluster.nodes() == []
    asked = api.requests()[-1]
    assert (asked.client, asked.authorization, asked.status) == ("system:admin", None, 200)


def test_certificates_in_files_do_as_well(api: KubernetesApi, http: Http, tmp_path: Path) -> None:
    found = yaml.safe_load(api.kubeconfig(tmp_path / "config").read_text())
    found["clusters"][0]["cluster"] = {"server": api.origin, "certificate-authority": str(api.server_ca.ca_file)}
    found["users"][0]["user"] = {"client-certificate": str(api.admin.cert), "client-key": str(api.admin.key)}
    text = yaml.safe_dump(found)
    assert Cluster(Kubeconfig.parse(text, str(tmp_path / "k")), http).nodes() == []
    assert api.requests()[-1].client == "system:admin"


def test_a_token_does_as_well(api: KubernetesApi, http: Http, tmp_path: Path) -> None:
    cluster = Cluster(Kubeconfig.load(api.kubeconfig(tmp_path / "config", token=TOKEN)), http)
    assert cluster.nodes() == []
    asked = api.requests()[-1]
    assert (asked.client, asked.authorization) == (None, f"Bearer {TOKEN}")


def test_1200_nodes_come_in_pieces(api: KubernetesApi, cluster: Cluster) -> None:
    mark = len(api.requests())
    for number in range(1200):
        api.put(node(f"node-{number:04}"))
    assert [found.name for found in cluster.nodes()] == [f"node-{number:04}" for number in range(1200)]
    queries = [asked.query for asked in api.requests()[mark:]]
    assert queries == [{"limit": "500"}, {"limit": "500", "continue": "500"}, {"limit": "500", "continue": "1000"}]


def test_a_list_without_an_end_is_given_up(api: KubernetesApi, cluster: Cluster) -> None:
    api.raw[NODES] = b'{"kind": "NodeList", "metadata": {"continue": "more"}, "items": []}'
    mark = len(api.requests())
    with pytest.raises(UnexpectedAnswerError, match="has no end"):
        cluster.nodes()
    assert len(api.requests()) - mark == 100


def test_config_maps(api: KubernetesApi, cluster: Cluster) -> None:
    api.config_maps["system-upgrade", "default-controller-env"] = {"SYSTEM_UPGRADE_JOB_IMAGE_PULL_POLICY": "Always"}
    assert cluster.config_map("system-upgrade", "default-controller-env") == {
        "SYSTEM_UPGRADE_JOB_IMAGE_PULL_POLICY": "Always"
    }
    assert cluster.config_map("system-upgrade", "nothing") is None


def test_plans(api: KubernetesApi, cluster: Cluster) -> None:
    assert cluster.plans() is None
    api.plans = []
    assert cluster.plans() == []
    api.plans = [plan("k3s-server", "v1.31.7+k3s1")]
    assert cluster.plans() == api.plans


def test_room_on_a_node(api: KubernetesApi, cluster: Cluster) -> None:
    api.put(node("server-1"), 5_000_000_000, 7_000_000_000)
    api.put(node("agent-1"), 4_000_000_000)
    assert cluster.free_bytes("server-1") == FreeBytes(5_000_000_000, 7_000_000_000)
    assert cluster.free_bytes("agent-1") == FreeBytes(4_000_000_000, None)
    assert cluster.free_bytes("nowhere") is None


@pytest.mark.parametrize("status", [403, 500, 503])
def test_room_that_is_not_told(api: KubernetesApi, cluster: Cluster, status: int) -> None:
    api.put(node("server-1"), 5_000_000_000)
    api.refused[STATS] = status
    assert cluster.free_bytes("server-1") is None


@pytest.mark.parametrize("body", [b"{}", b'{"node": {"fs": {"availableBytes": "5"}}}', b'{"node": []}'])
def test_room_that_makes_no_sense(api: KubernetesApi, cluster: Cluster, body: bytes) -> None:
    api.raw[STATS] = body
    assert cluster.free_bytes("server-1") is None


def test_names_cannot_leave_their_place_in_the_path(api: KubernetesApi, cluster: Cluster) -> None:
    assert cluster.config_map("a/b", "../x?y") is None
    assert api.requests()[-1].path == "/api/v1/namespaces/a%2Fb/configmaps/..%2Fx%3Fy"


def test_wrong_credentials(api: KubernetesApi, http: Http, tmp_path: Path) -> None:
    path = api.kubeconfig(tmp_path / "config", token="hunter2-wrong")  # noqa: S106 - of nothing
    with pytest.raises(UnauthorizedError) as raised:
        Cluster(Kubeconfig.load(path), http).nodes()
    assert raised.value.message == f"GET {api.origin}{NODES} was answered with 401: Unauthorized"
    assert str(path) in raised.value.hint
    assert "hunter2" not in str(raised.value.to_dict())


def test_no_credentials(api: KubernetesApi, http: Http, tmp_path: Path) -> None:
    cluster = Cluster(Kubeconfig.load(api.kubeconfig(tmp_path / "config", anonymous=True)), http)
    with pytest.raises(NoCredentialsError) as raised:
        cluster.nodes()
    assert raised.value.hint == "Use /etc/rancher/k3s/k3s.yaml of a server."


def test_a_certificate_of_another_cluster(api: KubernetesApi, http: Http, tmp_path: Path) -> None:
    other = api.foreign_ca.issue("system:admin", client=True)
    path = api.kubeconfig(tmp_path / "config", certificate=other)
    with pytest.raises(UnauthorizedError) as raised:
        Cluster(Kubeconfig.load(path), http).nodes()
    assert f"does not take who {path} says we are" in raised.value.hint


def test_a_wrong_ca(api: KubernetesApi, http: Http, tmp_path: Path) -> None:
    path = api.kubeconfig(tmp_path / "config", ca_file=Authority(tmp_path / "other").ca_file)
    mark = len(api.requests())
    with pytest.raises(UnknownCaError) as raised:
        Cluster(Kubeconfig.load(path), http).nodes()
    assert f"certificate-authority-data in {path}" in raised.value.hint
    assert len(api.requests()) == mark


def test_a_certificate_for_another_name(http: Http, tmp_path: Path) -> None:
    with KubernetesApi(tmp_path / "api", ("k3s.example",)) as api:
        path = api.kubeconfig(tmp_path / "config")
        with pytest.raises(WrongHostNameError) as raised:
            Cluster(Kubeconfig.load(path), http).nodes()
    assert f"under server in {path}" in raised.value.hint


def test_a_server_that_speaks_no_tls(api: KubernetesApi, http: Http, tmp_path: Path) -> None:
    with FaultyRegistry() as registry:
        path = api.kubeconfig(tmp_path / "config", server=f"https://{registry.host}")
        with pytest.raises(NotTlsError) as raised:
            Cluster(Kubeconfig.load(path), http).nodes()
    assert raised.value.hint == f"Check the port under server in {path}: K3s listens on 6443."


def test_a_key_of_another_certificate(api: KubernetesApi, http: Http, tmp_path: Path) -> None:
    other = api.client_ca.issue("somebody", client=True)
    path = api.kubeconfig(tmp_path / "config", certificate=Certificate(api.admin.cert, other.key))
    with pytest.raises(BadKubeconfigError) as raised:
        Cluster(Kubeconfig.load(path), http).nodes()
    assert raised.value.message.startswith(f"{path}: its -data fields are no certificates, or client-key-data")


def test_a_ca_file_that_is_not_there(api: KubernetesApi, http: Http, tmp_path: Path) -> None:
    text = api.kubeconfig(tmp_path / "config").read_text()
    cut = re.sub("certificate-authority-data: .*", "certificate-authority: nowhere.crt", text)
    with pytest.raises(BadKubeconfigError, match=r"k: the CA file .*nowhere\.crt cannot be read"):
        Cluster(Kubeconfig.parse(cut, str(tmp_path / "k")), http).nodes()


def test_a_server_that_is_down(http: Http, tmp_path: Path) -> None:
    with KubernetesApi(tmp_path / "api") as api:
        path = api.kubeconfig(tmp_path / "config")
    with pytest.raises(ConnectRefusedError) as raised:
        Cluster(Kubeconfig.load(path), http).nodes()
    assert f"Check the address under server in {path}" in raised.value.hint


@pytest.mark.parametrize(
    ("path", "ask", "rule"),
    [
        (NODES, Cluster.nodes, "`list` on `nodes`"),
        (PLANS_PATH, Cluster.plans, "`list` on `plans.upgrade.cattle.io` in the namespace system-upgrade"),
        (
            "/api/v1/namespaces/x/configmaps/y",
            lambda cluster: cluster.config_map("x", "y"),
            "`get` on `configmaps` in the namespace x",
        ),
    ],
    ids=["nodes", "plans", "config-map"],
)
def test_what_is_forbidden_names_the_right_that_is_needed(
    api: KubernetesApi, cluster: Cluster, path: str, ask: Callable[[Cluster], object], rule: str
) -> None:
    api.refused[path] = 403
    with pytest.raises(DeniedError) as raised:
        ask(cluster)
    assert rule in raised.value.hint
    assert f"GET {api.origin}{path} was answered with 403: " in raised.value.message


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, UnexpectedAnswerError), (410, UnexpectedAnswerError), (429, TooManyRequestsError), (503, ServerError)],
)
def test_other_answers(api: KubernetesApi, cluster: Cluster, status: int, kind: type[AirgapSyncError]) -> None:
    api.refused[NODES] = status
    with pytest.raises(kind, match=f"was answered with {status}"):
        cluster.nodes()


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"\xff", b"[" * 100_000, b'{"items": [{}]}', b'{"items": [{"metadata": {"name": "x"}}]}'],
    ids=["empty", "html", "list", "bytes", "deep", "nameless", "no-platform"],
)
def test_answers_that_make_no_sense(api: KubernetesApi, cluster: Cluster, body: bytes) -> None:
    api.raw[NODES] = body
    with pytest.raises(UnexpectedAnswerError):
        cluster.nodes()


def test_an_answer_is_bounded(api: KubernetesApi, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "MAX_ANSWER_BYTES", 1000)
    api.put(node("server-1"))
    with pytest.raises(UnexpectedAnswerError, match="more than 1000 bytes"):
        cluster.nodes()


@pytest.mark.parametrize("token", [TOKEN, None], ids=["token", "certificate"])
def test_credentials_do_not_follow_a_redirect(
    api: KubernetesApi, http: Http, tmp_path: Path, token: str | None
) -> None:
    with KubernetesApi(tmp_path / "other") as other:
        # A host whose certificate is trusted, so that only our own rules are in the way.
        both = tmp_path / "both.pem"
        both.write_bytes(api.server_ca.ca_file.read_bytes() + other.server_ca.ca_file.read_bytes())
        path = api.kubeconfig(tmp_path / "config", token=token, ca_file=both)
        api.redirects[NODES] = f"{other.origin}{NODES}"
        with pytest.raises(UnexpectedAnswerError, match="answered by another host"):
            Cluster(Kubeconfig.load(path), http).nodes()
        assert [(asked.authorization, asked.client) for asked in other.requests()] == [(None, None)]


def test_over_plain_http_nothing_is_asked_with_credentials(http: Http) -> None:
    text = (
        "clusters: [{name: c, cluster: {server: '%s'}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n"
        "current-context: x\nusers: [{name: u, user: {}}]\n"
    )
    with FaultyRegistry() as registry:
        with pytest.raises(UnexpectedAnswerError, match="404"):
            Cluster(Kubeconfig.parse(text % f"http://{registry.host}", "k"), http).nodes()
        assert "authorization" not in registry.requests()[-1].headers
