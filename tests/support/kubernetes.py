"""A small API server of Kubernetes on the loopback interface, with TLS and a CA of its own for clients, as K3s.

Take it as a context manager, put objects into it, and give `kubeconfig()` to what is tested.
"""

import copy
import json
import ssl
import threading
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.support.certificates import Authority, Certificate
from tests.support.servers import LoopbackServer, QuietHandler

TOKEN = "K10test-token-of-nobody"  # noqa: S105 - of nothing real
PLANS_PATH = "/apis/upgrade.cattle.io/v1/namespaces/system-upgrade/plans"
_PARTIES = ("subject", "issuer")
_CLIENT_CA = "k3s-client-ca"
_NODES_PATH = "/api/v1/nodes"
_REASONS = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 500: "InternalError", 503: "ServiceUnavailable"}


@dataclass(frozen=True)
class ApiRequest:
    """A request that the server has answered.

    Attributes:
        method: Its method.
        path: Its path, without the query.
        query: Its query.
        authorization: Its Authorization header.
        client: Common name of its client's certificate.
        status: What it was answered with.
    """

    method: str
    path: str
    query: dict[str, str]
    authorization: str | None
    client: str | None
    status: int


def node(
    name: str,
    version: str = "v1.31.7+k3s1",
    architecture: str = "amd64",
    *,
    server: bool = False,
    shares: bool = False,
    ready: bool = True,
    unschedulable: bool = False,
    taints: tuple[tuple[str, str, str], ...] = (),
    images: tuple[str, ...] = (),
    runtime: str = "containerd://2.0.4-k3s2",
) -> dict[str, Any]:
    """Build a node as the API has it.

    Args:
        name: Name.
        version: Version of its kubelet.
        architecture: In Go's words: `amd64`, `arm64`, `arm`.
        server: It runs the control plane.
        shares: It takes part in the embedded registry.
        ready: It is well.
        unschedulable: It is cordoned.
        taints: Key, value and effect of each.
        images: Names that its kubelet reports; one image each.
        runtime: Name and version of its container runtime.
    """
    labels = {
        "beta.kubernetes.io/arch": architecture,
        "kubernetes.io/arch": architecture,
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "node.kubernetes.io/instance-type": "k3s",
    }
    if server:
        labels |= {"node-role.kubernetes.io/control-plane": "true", "node-role.kubernetes.io/master": "true"}
    if shares:
        labels["p2p.k3s.cattle.io/enabled"] = "true"
    spec: dict[str, Any] = {"podCIDR": "10.42.0.0/24", "podCIDRs": ["10.42.0.0/24"], "providerID": f"k3s://{name}"}
    if unschedulable:
        spec["unschedulable"] = True
    if taints:
        spec["taints"] = [
            {"key": key, **({"value": value} if value else {}), "effect": effect} for key, value, effect in taints
        ]
    return {
        "metadata": {"name": name, "labels": labels, "annotations": {"k3s.io/internal-ip": "192.0.2.1"}},
        "spec": spec,
        "status": {
            "capacity": {"cpu": "4", "memory": "8039056Ki"},
            "conditions": [
                {"type": "MemoryPressure", "status": "False", "reason": "KubeletHasSufficientMemory"},
                {"type": "DiskPressure", "status": "False", "reason": "KubeletHasNoDiskPressure"},
                {"type": "Ready", "status": "True" if ready else "Unknown", "reason": "KubeletReady"},
            ],
            "nodeInfo": {
                "architecture": architecture,
                "containerRuntimeVersion": runtime,
                "kubeProxyVersion": version,
                "kubeletVersion": version,
                "operatingSystem": "linux",
                "osImage": "Debian GNU/Linux 12 (bookworm)",
            },
            "images": [{"names": [image], "sizeBytes": 1000} for image in images],
        },
    }


def plan(name: str, version: str, **spec: Any) -> dict[str, Any]:
    """Build a Plan of system-upgrade-controller; more fields of its spec may be given."""
    return {
        "apiVersion": "upgrade.cattle.io/v1",
        "kind": "Plan",
        "metadata": {"name": name, "namespace": "system-upgrade"},
        "spec": {"version": version, "concurrency": 1, "upgrade": {"image": "rancher/k3s-upgrade"}, **spec},
    }


class KubernetesApi(LoopbackServer):
    """An API server that lets in who has a certificate of its client CA, or the token.

    Everything may be changed while it runs.

    Attributes:
        server_ca: Issues its own certificate.
        client_ca: Issues certificates of clients that it knows.
        foreign_ca: Issues certificates of clients that it does not know.
        admin: The certificate that K3s's own kubeconfig has.
        nodes: Its nodes, as `node` builds them.
        free: Room on nodes by name, in bytes: node.fs and, if it is told apart, imageFs.
        config_maps: Data of ConfigMaps by namespace and name.
        plans: Plans; None while it does not know what Plans are.
        refused: What a path is answered with instead, by path.
        raw: Bodies by path that go out as they are, with 200.
        redirects: Where a path is redirected to, by path.
    """

    def __init__(self, directory: Path, names: tuple[str, ...] = ("127.0.0.1", "localhost")) -> None:
        """Prepare the server.

        Args:
            directory: Gets the certificates; of its own, and made if it is not there.
            names: What its certificate is for.
        """
        self.server_ca = Authority(directory / "server-ca", "k3s-server-ca")
        self.client_ca = Authority(directory / "client-ca", _CLIENT_CA)
        self.foreign_ca = Authority(directory / "foreign-ca", "k3s-client-ca of another cluster")
        self.admin = self.client_ca.issue("system:admin", client=True)
        self.nodes: list[dict[str, Any]] = []
        self.free: dict[str, tuple[int, int | None]] = {}
        self.config_maps: dict[tuple[str, str], dict[str, str]] = {}
        self.plans: list[dict[str, Any]] | None = None
        self.refused: dict[str, int] = {}
        self.raw: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self._guard = threading.Lock()
        self._requests: list[ApiRequest] = []
        certificate = self.server_ca.issue(*names)
        super().__init__(_handler(self), certificate=certificate)
        context = self._listener._context
        assert context
        # A certificate is asked for, but who has a token needs none; a wrong one is answered with 401 and not by TLS.
        context.verify_mode = ssl.CERT_OPTIONAL
        for authority in (self.client_ca, self.foreign_ca):
            context.load_verify_locations(authority.ca_file)

    def put(self, document: dict[str, Any], free_bytes: int | None = None, image_bytes: int | None = None) -> None:
        """Add a node, with the room it has if it tells."""
        self.nodes.append(document)
        if free_bytes is not None:
            self.free[document["metadata"]["name"]] = (free_bytes, image_bytes)

    def requests(self) -> list[ApiRequest]:
        """Give all requests answered so far."""
        with self._guard:
            return list(self._requests)

    def kubeconfig(
        self,
        path: Path,
        *,
        token: str | None = None,
        certificate: Certificate | None = None,
        anonymous: bool = False,
        ca_file: Path | None = None,
        server: str | None = None,
    ) -> Path:
        """Write a kubeconfig in the shape that K3s gives its own, with everything in it.

        Args:
            path: The file.
            token: Come with this token instead of a certificate.
            certificate: Come with this certificate instead of the administrator's.
            anonymous: Come with nothing.
            ca_file: The CA to trust instead of the server's.
            server: URL of the server, where it is another.
        """
        shown = certificate or self.admin
        user = {"token": token} if token else {}
        if not token and not anonymous:
            user = {"client-certificate-data": _base64(shown.cert), "client-key-data": _base64(shown.key)}
        cluster = {
            "certificate-authority-data": _base64(ca_file or self.server_ca.ca_file),
            "server": server or self.origin,
        }
        document = {
            "apiVersion": "v1",
            "clusters": [{"cluster": cluster, "name": "default"}],
            "contexts": [{"context": {"cluster": "default", "user": "default"}, "name": "default"}],
            "current-context": "default",
            "kind": "Config",
            "preferences": {},
            "users": [{"name": "default", "user": user}],
        }
        path.write_text(yaml.safe_dump(document))
        path.chmod(0o600)
        return path

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, bytes]:
        """Give status and body for a request of somebody who is known."""
        if path in self.refused:
            return self.refused[path], _status(self.refused[path], path)
        if path in self.raw:
            return 200, self.raw[path]
        if path == _NODES_PATH:
            return _page("NodeList", "v1", self.nodes, query)
        if path == PLANS_PATH and self.plans is not None:
            return _page("PlanList", "upgrade.cattle.io/v1", self.plans, query)
        match path.split("/")[3:]:
            case ["nodes", name, "proxy", "stats", "summary"] if name in self.free:
                return 200, json.dumps(_summary(name, *self.free[name])).encode()
            case ["namespaces", namespace, "configmaps", name] if (namespace, name) in self.config_maps:
                metadata = {"name": name, "namespace": namespace}
                found = {"metadata": metadata, "data": self.config_maps[namespace, name]}
                return 200, json.dumps({"kind": "ConfigMap", "apiVersion": "v1", **found}).encode()
            case ["namespaces", _, "configmaps", _] | ["nodes", *_]:
                return 404, _status(404, path)
        # What is in no group that it knows.
        return 404, b"404 page not found\n"

    def record(self, request: ApiRequest) -> None:
        """Remember a request."""
        with self._guard:
            self._requests.append(request)


def _handler(api: KubernetesApi) -> type[QuietHandler]:
    class Handler(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802 - the name that the base class calls
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            authorization, client = self.headers["Authorization"], _client(self.connection)
            headers = {"Content-Type": "application/json"}
            if client is None and authorization != f"Bearer {TOKEN}":
                status, body = 401, _status(401, parts.path)
            elif parts.path in api.redirects:
                status, body = 307, b""
                headers["Location"] = api.redirects[parts.path]
            else:
                status, body = api.answer(parts.path, query)
            api.record(ApiRequest("GET", parts.path, query, authorization, client, status))
            self.reply(status, body, headers)

    return Handler


def _page(kind: str, version: str, items: list[dict[str, Any]], query: dict[str, str]) -> tuple[int, bytes]:
    start, limit = int(query.get("continue", "0")), int(query.get("limit", "0")) or len(items)
    metadata: dict[str, Any] = {"resourceVersion": "12345"}
    if left := len(items[start + limit :]):
        metadata |= {"continue": str(start + limit), "remainingItemCount": left}
    found = copy.deepcopy(items[start : start + limit])
    return 200, json.dumps({"kind": kind, "apiVersion": version, "metadata": metadata, "items": found}).encode()


def _status(code: int, path: str) -> bytes:
    message = _REASONS.get(code, "") if code == 401 else f'{path} is {_REASONS.get(code, "wrong")}: User "system:test"'
    found = {"status": "Failure", "message": message, "reason": _REASONS.get(code, "Unknown"), "code": code}
    return json.dumps({"kind": "Status", "apiVersion": "v1", "metadata": {}, **found}).encode()


def _summary(name: str, free: int, image_free: int | None) -> dict[str, Any]:
    stats: dict[str, Any] = {"nodeName": name, "fs": {"availableBytes": free, "capacityBytes": free * 4}}
    if image_free is not None:
        stats["runtime"] = {"imageFs": {"availableBytes": image_free, "usedBytes": 1000}}
    return {"node": stats, "pods": []}


def _client(connection: Any) -> str | None:
    """Give the common name of a client's certificate, if the client CA issued it."""
    shown = connection.getpeercert() or {}
    subject, issuer = ({key: value for part in shown.get(which, ()) for key, value in part} for which in _PARTIES)
    return subject.get("commonName") if issuer.get("organizationName") == _CLIENT_CA else None


def _base64(path: Path) -> str:
    return b64encode(path.read_bytes()).decode()
