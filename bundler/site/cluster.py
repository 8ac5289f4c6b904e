"""What a cluster says of itself: nodes, configuration, Plans, room. Read only, each thing asked once.

Credentials go to the API server's own origin and nowhere else, and an answer from elsewhere is none.

Source: Kubernetes API conventions (lists in pieces: ``limit``, ``continue``; ``Status``); k3s-io/k3s,
``pkg/spegel`` (the label of nodes that share their images); rancher/system-upgrade-controller (Plans).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import quote, urlencode

from bundler.errors import (
    AirgapSyncError,
    BadK3sVersionError,
    BadKubeconfigError,
    BadManifestError,
    BadTlsFileError,
    ClientCertificateError,
    ConnectionFailedError,
    DeniedError,
    NoCredentialsError,
    NotTlsError,
    ProxyFailedError,
    ServerError,
    TooManyRequestsError,
    UnauthorizedError,
    UnexpectedAnswerError,
    UnknownCaError,
    WrongHostNameError,
)
from bundler.k3s.version import K3sVersion
from bundler.net import Http, Response
from bundler.oci.platform import Platform
from bundler.site.controller import NAMESPACE
from bundler.site.kubeconfig import K3S_KUBECONFIG, Kubeconfig
from bundler.url import same_origin

PAGE_LIMIT = 500
#: Kubernetes goes up to 5000 nodes.
MAX_PAGES = 100
MAX_ANSWER_BYTES = 64 * 1024 * 1024
_CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
_SHARES = "p2p.k3s.cattle.io/enabled"


@dataclass(frozen=True, slots=True)
class Node:
    """A node as the API server knows it.

    Attributes:
        name: Its name.
        version_text: What its kubelet calls itself.
        version: The same as a version of K3s; None if it is none.
        platform: What it runs images for. Kubernetes names no variant: an ``arm`` node counts as v7.
        is_server: It runs the control plane.
        ready: It reports to be well.
        unschedulable: It is cordoned.
        shares: It takes part in the embedded registry.
        taints: As kubectl writes them, ``KEY=VALUE:EFFECT`` or ``KEY:EFFECT``.
        images: Names of images that it has; the kubelet reports at most 50 images, so this may be a part.
        container_runtime: Name and version, ``containerd://2.0.4-k3s2``.
    """

    name: str
    version_text: str
    version: K3sVersion | None
    platform: Platform
    is_server: bool = False
    ready: bool = False
    unschedulable: bool = False
    shares: bool = False
    taints: tuple[str, ...] = ()
    images: frozenset[str] = frozenset()
    container_runtime: str = ""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read a Node of the core/v1 API.

        Raises:
            ValueError: It has no name or no platform.
        """
        metadata, spec, status = (_mapping(data, part) for part in ("metadata", "spec", "status"))
        labels, info = _mapping(metadata, "labels"), _mapping(status, "nodeInfo")
        name, os, architecture = _text(metadata, "name"), _text(info, "operatingSystem"), _text(info, "architecture")
        if not (name and os and architecture):
            raise ValueError("a node without a name or a platform")
        version = _text(info, "kubeletVersion")
        conditions = {_text(found, "type"): _text(found, "status") for found in _mappings(status, "conditions")}
        names = (name for image in _mappings(status, "images") for name in _items(image, "names"))
        return cls(
            name=name,
            version_text=version,
            version=_k3s(version),
            platform=Platform.make(os, architecture),
            is_server=_CONTROL_PLANE in labels,
            ready=conditions.get("Ready") == "True",
            unschedulable=spec.get("unschedulable") is True,
            shares=labels.get(_SHARES) == "true",
            taints=tuple(_taint(found) for found in _mappings(spec, "taints")),
            images=frozenset(name for name in names if isinstance(name, str)),
            container_runtime=_text(info, "containerRuntimeVersion"),
        )


@dataclass(frozen=True, slots=True)
class FreeBytes:
    """Room on a node in bytes: where the kubelet keeps its state, and where images go (None: it does not say)."""

    node_fs: int
    image_fs: int | None


class Cluster:
    """The API server that a kubeconfig names.

    Args:
        kubeconfig: Where it is, and who we are.
        http: Sends requests.
    """

    def __init__(self, kubeconfig: Kubeconfig, http: Http) -> None:
        self._kubeconfig = kubeconfig
        self._http = http

    def nodes(self) -> list[Node]:
        """Return all nodes in the order of their names.

        Raises:
            AuthError: We may not, or nobody knows us.
            RegistryUnavailableError: No answer, or none that can be used.
            BadKubeconfigError: A file that the kubeconfig names cannot be used.
        """
        where = f"GET {self._kubeconfig.server}/api/v1/nodes"
        items = self._list("/api/v1/nodes", "`list` on `nodes`")
        if items is None:
            raise UnexpectedAnswerError(f"{where} was answered with 404", hint=BadKubeconfigError.hint)
        try:
            found = [Node.from_dict(item) for item in items]
        except ValueError as error:
            raise UnexpectedAnswerError(f"{where} was answered with {error}") from error
        return sorted(found, key=lambda node: node.name)

    def config_map(self, namespace: str, name: str) -> dict[str, str] | None:
        """Return the data of a ConfigMap; None if it does not exist.

        Raises:
            AirgapSyncError: As ``nodes``.
        """
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/configmaps/{quote(name, safe='')}"
        found = self._get(path, f"`get` on `configmaps` in the namespace {namespace}")
        if found is None:
            return None
        return {key: value for key, value in _mapping(found, "data").items() if isinstance(value, str)}

    def plans(self) -> list[dict[str, Any]] | None:
        """Return the Plans of system-upgrade-controller as they stand; None if the cluster knows no Plans.

        Raises:
            AirgapSyncError: As ``nodes``.
        """
        path = f"/apis/upgrade.cattle.io/v1/namespaces/{NAMESPACE}/plans"
        return self._list(path, f"`list` on `plans.upgrade.cattle.io` in the namespace {NAMESPACE}")

    def free_bytes(self, node: str) -> FreeBytes | None:
        """Return how much room a node has; None if that is refused, or the node does not answer.

        Args:
            node: Its name.

        Raises:
            AirgapSyncError: As ``nodes``.
        """
        path = f"/api/v1/nodes/{quote(node, safe='')}/proxy/stats/summary"
        try:
            found = self._get(path, "`get` on `nodes/proxy`")
        except (DeniedError, ServerError):
            return None
        stats = _mapping(found or {}, "node")
        here = _bytes(_mapping(stats, "fs"))
        if here is None:
            return None
        return FreeBytes(here, _bytes(_mapping(_mapping(stats, "runtime"), "imageFs")))

    def _list(self, path: str, rule: str) -> list[dict[str, Any]] | None:
        """Return the items of a list, asked for in pieces; None if there is no such list."""
        items: list[dict[str, Any]] = []
        query = {"limit": str(PAGE_LIMIT)}
        for _ in range(MAX_PAGES):
            page = self._get(path, rule, query)
            if page is None:
                return None
            items += _mappings(page, "items")
            if not (more := _text(_mapping(page, "metadata"), "continue")):
                return items
            query["continue"] = more
        raise UnexpectedAnswerError(f"GET {self._kubeconfig.server}{path} has no end: more than {MAX_PAGES} pieces")

    def _get(self, path: str, rule: str, query: dict[str, str] | None = None) -> dict[str, Any] | None:
        """Return an object of the API; None if it does not exist.

        Args:
            path: Below the server's URL.
            rule: The right that is needed, for a hint.
            query: Its parameters.
        """
        where = f"{self._kubeconfig.server}{path}"
        url = f"{where}?{urlencode(query)}" if query else where
        headers = {"Accept": "application/json"}
        if authorization := self._kubeconfig.authorization():
            headers["Authorization"] = authorization
        with self._request(url, headers) as answer:
            if not same_origin(answer.url, url):
                raise UnexpectedAnswerError(f"GET {where} was answered by another host", hint=BadKubeconfigError.hint)
            if answer.status == HTTPStatus.NOT_FOUND:
                return None
            if answer.status != HTTPStatus.OK:
                raise self._refused(answer, where, rule)
            try:
                found = json.loads(answer.read_all(MAX_ANSWER_BYTES))
            except (BadManifestError, ValueError, RecursionError) as error:
                raise UnexpectedAnswerError(
                    f"GET {where} answered with what is not JSON, or with more than {MAX_ANSWER_BYTES} bytes",
                    hint=BadKubeconfigError.hint,
                ) from error
        if not isinstance(found, dict):
            raise UnexpectedAnswerError(
                f"GET {where} answered with what is no object of Kubernetes", hint=BadKubeconfigError.hint
            )
        return found

    def _request(self, url: str, headers: dict[str, str]) -> Response:
        name = self._kubeconfig.name
        try:
            return self._http.request("GET", url, headers=headers, tls=self._kubeconfig.tls())
        except BadTlsFileError as error:
            raise BadKubeconfigError(_unusable(name, error.message)) from error
        except AirgapSyncError as error:
            for kind, hint in _HINTS:
                if isinstance(error, kind):
                    error.hint = hint.format(name=name)
                    break
            raise

    def _refused(self, answer: Response, where: str, rule: str) -> AirgapSyncError:
        """Return the error that an answer is, which is read and closed."""
        said = _message(answer.excerpt())
        text = f"GET {where} was answered with {answer.status}{said}"
        context = {"url": where, "status": answer.status}
        match answer.status:
            case HTTPStatus.UNAUTHORIZED if not self._kubeconfig.has_credentials:
                return NoCredentialsError(text, hint=f"Use {K3S_KUBECONFIG} of a server.", context=context)
            case HTTPStatus.UNAUTHORIZED:
                hint = f"The API server does not take who {self._kubeconfig.name} says we are: {_COPY}"
                return UnauthorizedError(text, hint=hint, context=context)
            case HTTPStatus.FORBIDDEN:
                hint = f"A role of the kubeconfig's user must allow {rule}; K3s's own kubeconfig may do everything."
                return DeniedError(text, hint=hint, context=context)
            case HTTPStatus.TOO_MANY_REQUESTS:
                hint = "The API server is busy: run the same command again later."
                return TooManyRequestsError(text, hint=hint, context=context)
            case HTTPStatus.GONE:
                return UnexpectedAnswerError(text, hint="The list changed meanwhile: run it again.", context=context)
            case status if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                hint = "The log of K3s on that server says why (`journalctl -u k3s`)."
                return ServerError(text, hint=hint, context=context)
        return UnexpectedAnswerError(text, hint=BadKubeconfigError.hint, context=context)


_COPY = f"copy {K3S_KUBECONFIG} of a server anew, certificates change."
#: What to do about a connection that did not come about: the usual hints are about registries.
_HINTS: tuple[tuple[type[AirgapSyncError], str], ...] = (
    (UnknownCaError, f"Check certificate-authority-data in {{name}}: {_COPY}"),
    (ClientCertificateError, f"Check client-certificate-data in {{name}}: {_COPY}"),
    (
        WrongHostNameError,
        "Write a name of the API server's certificate under server in {name}; K3s has --tls-san to add names.",
    ),
    (NotTlsError, "Check the port under server in {name}: K3s listens on 6443."),
    (ProxyFailedError, "Check HTTPS_PROXY; if the API server is reached without a proxy, add its host to NO_PROXY."),
    (ConnectionFailedError, "Check the address under server in {name}, and that K3s runs there."),
)


def _unusable(name: str, message: str) -> str:
    """Say which part of a kubeconfig OpenSSL does not take; of what is written into it, there is no path to show."""
    if "/proc/self/fd/" in message:
        message = "its -data fields are no certificates, or client-key-data does not belong to client-certificate-data"
    return f"{name}: {message}"


def _message(body: bytes) -> str:
    """Return what a Status says, to go behind a message; nothing if the body is none."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    text = _text(said, "message") if isinstance(said, dict) else ""
    return f": {text[:300]}" if text else ""


def _k3s(text: str) -> K3sVersion | None:
    try:
        return K3sVersion.parse(text)
    except BadK3sVersionError:
        return None


def _taint(data: dict[str, Any]) -> str:
    key, value, effect = (_text(data, part) for part in ("key", "value", "effect"))
    return f"{key}={value}:{effect}" if value else f"{key}:{effect}"


def _bytes(stats: dict[str, Any]) -> int | None:
    found = stats.get("availableBytes")
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None


def _mapping(data: dict[str, Any], key: str) -> dict[str, Any]:
    found = data.get(key)
    return found if isinstance(found, dict) else {}


def _items(data: dict[str, Any], key: str) -> list[Any]:
    found = data.get(key)
    return found if isinstance(found, list) else []


def _mappings(data: dict[str, Any], key: str) -> list[dict[str, Any]]:
    return [item for item in _items(data, key) if isinstance(item, dict)]


def _text(data: dict[str, Any], key: str) -> str:
    found = data.get(key)
    return found if isinstance(found, str) else ""
