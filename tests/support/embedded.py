"""A node of K3s as its file system shows it, and a double of the embedded registry that it asks.

The double answers as the node's own end of the embedded registry does: only to the cluster's certificate, only to
questions, only for the registry that `?ns=` names, and with what other nodes have.

Source: k3s-io/k3s, `pkg/spegel`; K3s's documentation, "Embedded Registry Mirror".
"""

import json
import os
import re
import shutil
import tempfile
import threading
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

from bundler.k3s.hosts import NodeSettings, render
from bundler.k3s.registries import RegistriesFile
from bundler.k3s.version import K3sVersion
from tests.support.bundles import Bundle
from tests.support.certificates import Authority, Certificate
from tests.support.containerd import Containerd
from tests.support.media_types import OCI_INDEX
from tests.support.servers import LoopbackServer, QuietHandler

_PATH = re.compile(r"/v2/(?P<repository>.+)/(?P<kind>manifests|blobs)/(?P<reference>[^/]+)")
_AGENT = "var/lib/rancher/k3s/agent"


@dataclass(frozen=True)
class Asked:
    """A question, and what it was answered with."""

    method: str
    registry: str
    path: str
    status: int


class EmbeddedRegistry(LoopbackServer):
    """The embedded registry of a node whose peers have what is in some layouts.

    Attributes:
        client: The certificate that the cluster's nodes show.
        server_ca: Issued its own certificate.
        peers: What other nodes have, as layouts.
        lost: Digests that no node has.
        moved: What names stand for on the first node that answers, instead of what the layouts say.
        asked: All questions so far.
    """

    def __init__(self, directory: Path, *peers: Path) -> None:
        """Prepare it.

        Args:
            directory: Gets the certificates; of its own, and made if it is not there.
            peers: Layouts that other nodes have imported.
        """
        authority, clients = Authority(directory / "server-ca"), Authority(directory / "client-ca")
        self.server_ca = authority.ca_file
        self.client: Certificate = clients.issue("system:k3s-controller", client=True)
        self.peers = [Bundle(path) for path in peers]
        self.lost: set[str] = set()
        self.moved: dict[str, str] = {}
        self.asked: list[Asked] = []
        self._guard = threading.Lock()
        registry = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:  # noqa: N802 - the name http.server wants
                parts = urlsplit(self.path)
                source = parse_qs(parts.query).get("ns", [""])[0]
                status, body, headers = registry._answer(source, parts.path)
                with registry._guard:
                    registry.asked.append(Asked(self.command, source, parts.path, status))
                self.reply(status, body, headers)

            do_HEAD = do_GET  # noqa: N815

        super().__init__(Handler, certificate=authority.issue("127.0.0.1", "localhost"), client_ca=clients.ca_file)

    def _answer(self, source: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        match = _PATH.fullmatch(path)
        if not match or not source:
            return HTTPStatus.NOT_FOUND, b"", {}
        reference = match["reference"]
        digest: str | None = reference
        if ":" not in reference:
            digest = self._named(f"{source}/{match['repository']}:{reference}") if reference != "latest" else None
        for peer in self.peers:
            if digest and digest not in self.lost and peer.blob(digest).exists():
                data = peer.blob(digest).read_bytes()
                media_type = "application/octet-stream"
                if match["kind"] == "manifests":
                    media_type = json.loads(data).get("mediaType", OCI_INDEX)
                return HTTPStatus.OK, data, {"Content-Type": media_type, "Docker-Content-Digest": digest}
        return HTTPStatus.NOT_FOUND, b"", {}

    def _named(self, name: str) -> str | None:
        if name in self.moved:
            return self.moved[name]
        return next((peer.names[name] for peer in self.peers if name in peer.names), None)


class NodeTree:
    """Context manager around the file system of a node, in a directory with a short name.

    A unix socket has a short path, and the node's containerd is reached below this directory.
    """

    def __init__(self, version: str = "v1.31.7+k3s1") -> None:
        """Begin with a node on which K3s has run, without registries.yaml.

        Args:
            version: Of K3s, which decides what its files look like.
        """
        self.root = Path(tempfile.mkdtemp(prefix="node-"))
        self.registries = self.root / "etc/rancher/k3s/registries.yaml"
        self.agent = self.root / _AGENT
        self.certs_d = self.agent / "etc/containerd/certs.d"
        self._version = K3sVersion.parse(version)
        self.certs_d.mkdir(parents=True)
        self.registries.parent.mkdir(parents=True)

    def install(self, files: Path) -> None:
        """Put what `config` wrote where its RUNBOOK.md says."""
        shutil.copy(files / "registries.yaml", self.registries)
        if (files / "ca.pem").exists():
            shutil.copy(files / "ca.pem", self.registries.parent)

    def restart(self, embedded: EmbeddedRegistry | None = None, *, default_endpoint: bool = True) -> None:
        """Write certs.d as K3s does when it starts.

        Args:
            embedded: The embedded registry, if it is on.
            default_endpoint: Whether that is left on.
        """
        settings = NodeSettings(self._version, embedded is not None, default_endpoint)
        if embedded:
            settings = NodeSettings(self._version, True, default_endpoint, embedded_host=embedded.host)
            shutil.copy(embedded.server_ca, self.agent / "server-ca.crt")
            shutil.copy(embedded.client.cert, self.agent / "client-k3s-controller.crt")
            shutil.copy(embedded.client.key, self.agent / "client-k3s-controller.key")
        shutil.rmtree(self.certs_d, ignore_errors=True)
        self.certs_d.mkdir(parents=True)
        text = self.registries.read_text() if self.registries.exists() else ""
        for name, file in render(RegistriesFile.parse(text, "registries.yaml"), settings).files.items():
            (self.certs_d / name).mkdir()
            (self.certs_d / name / "hosts.toml").write_text(file.to_toml())

    def age(self) -> None:
        """Let what K3s wrote be older than registries.yaml, as when that is changed and K3s not restarted."""
        changed = self.registries.stat().st_mtime
        for path in self.certs_d.rglob("hosts.toml"):
            os.utime(path, (changed - 60, changed - 60))

    def attach(self, containerd: Containerd) -> None:
        """Let a containerd be that of this node."""
        socket = self.root / "run/k3s/containerd/containerd.sock"
        socket.parent.mkdir(parents=True, exist_ok=True)
        socket.unlink(missing_ok=True)
        socket.symlink_to(containerd.socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
