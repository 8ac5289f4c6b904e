"""kubectl's own validation of objects, without a cluster.

kubectl checks objects against the OpenAPI document of the server it talks to, before it sends anything. Here that
server is a small one on the loopback interface. It answers what kinds there are, and hands out the document that a
real Kubernetes API server (v1.14) once gave, which a Debian package carries as test data. It can do nothing else, so
``create --dry-run=client`` is all that is ever asked.

kubectl takes the document in one form alone: protobuf, ``gnostic.openapi.v2.Document``. That is written here.

That check finds unknown, misplaced and missing fields, but lets a number or a boolean pass for text, which a real API
server refuses. Reading an object into kubectl's own Go types (``decode``) finds those.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.programs import PROJECT, MissingProgramError, find_program
from tests.support.servers import LoopbackServer, QuietHandler

OPENAPI = PROJECT / ".tools/usr/share/gocode/src/k8s.io/kube-openapi/test/integration/testdata/aggregator/openapi.json"
PROTOBUF = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"

#: Fields that are younger than the document, and that objects of ours have.
YOUNGER: Mapping[str, Mapping[str, Any]] = {
    "io.k8s.api.core.v1.SecurityContext": {
        "seccompProfile": {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"type": "string"}, "localhostProfile": {"type": "string"}},
        },
    },
}

#: Group, kind, plural name, and whether it stands in a namespace.
KINDS = (
    ("", "Namespace", "namespaces", False),
    ("", "ServiceAccount", "serviceaccounts", True),
    ("", "ConfigMap", "configmaps", True),
    ("apps", "Deployment", "deployments", True),
    ("rbac.authorization.k8s.io", "ClusterRole", "clusterroles", False),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding", "clusterrolebindings", False),
    ("rbac.authorization.k8s.io", "Role", "roles", True),
    ("rbac.authorization.k8s.io", "RoleBinding", "rolebindings", True),
)


class KubernetesStub(LoopbackServer):
    """A server that knows the kinds above and their OpenAPI document; stop it by leaving the context."""

    def __init__(self) -> None:
        """Prepare the server."""
        super().__init__(_Handler)

    def validate(self, file: Path, home: Path) -> subprocess.CompletedProcess[str]:
        """Let kubectl read a file as `kubectl create` does, strictly and without creating anything.

        Args:
            file: Objects as YAML.
            home: An empty place for what kubectl keeps.
        """
        dry = ("create", "--dry-run=client", "--validate=true", "--output=json")
        return _kubectl(home, "--server", self.origin, *dry, "--filename", file)


def decode(file: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Let kubectl read a file into its Go types; this needs no server.

    Args:
        file: Objects as YAML, of kinds that kubectl has types for.
        home: An empty place for what kubectl keeps.
    """
    # Any command with --local that reads typed objects will do; listing variables changes nothing.
    return _kubectl(home, "set", "env", "--local", "--list", "--filename", file)


def _kubectl(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [find_program("kubectl"), *arguments],
        capture_output=True,
        text=True,
        errors="replace",  # some versions quote what they could not decode in pieces
        check=False,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(home / "none")},
    )


class _Handler(QuietHandler):
    def do_GET(self) -> None:  # noqa: N802 - the name in the base class
        path = self.path.partition("?")[0]
        if path == "/openapi/v2":
            self.reply(200, openapi_document(), {"Content-Type": PROTOBUF})
            return
        document = _discovery().get(path)
        failure = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        body = json.dumps(document or failure).encode()
        self.reply(200 if document else 404, body, {"Content-Type": "application/json"})


def _discovery() -> dict[str, dict[str, Any]]:
    answers: dict[str, dict[str, Any]] = {"/api": {"kind": "APIVersions", "versions": ["v1"]}}
    groups = []
    for group in dict.fromkeys(kind[0] for kind in KINDS):
        version = f"{group}/v1" if group else "v1"
        resources = [
            {"name": plural, "singularName": kind.lower(), "namespaced": inside, "kind": kind, "verbs": ["create"]}
            for owner, kind, plural, inside in KINDS
            if owner == group
        ]
        answers[f"/apis/{version}" if group else "/api/v1"] = {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": version,
            "resources": resources,
        }
        if group:
            served = {"groupVersion": version, "version": "v1"}
            groups.append({"name": group, "versions": [served], "preferredVersion": served})
    answers["/apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    return answers


@cache
def openapi_document() -> bytes:
    """Return the OpenAPI document as kubectl wants it.

    Raises:
        MissingProgramError: `make setup` did not bring it.

    Source: google/gnostic, ``openapiv2/OpenAPIv2.proto`` (the numbers of the fields).
    """
    if not OPENAPI.exists():
        raise MissingProgramError(f"{OPENAPI} is not there; run `make setup` (as root, on Debian)")
    definitions = json.loads(OPENAPI.read_text(encoding="utf-8"))["definitions"]
    for name, fields in YOUNGER.items():
        definitions[name]["properties"].update(fields)
    named = b"".join(_field(1, _named(name, _schema(schema))) for name, schema in sorted(definitions.items()))
    info = _field(1, b"Kubernetes") + _field(2, b"v1.14.0")
    return _field(1, b"2.0") + _field(2, info) + _field(9, named)


def _schema(schema: dict[str, Any]) -> bytes:
    return b"".join(_parts(schema))


def _parts(schema: dict[str, Any]) -> Iterator[bytes]:
    if reference := schema.get("$ref"):
        yield _field(1, reference.encode())
    if form := schema.get("format"):
        yield _field(2, form.encode())
    yield from (_field(19, name.encode()) for name in schema.get("required", []))
    if isinstance(extra := schema.get("additionalProperties"), dict):
        yield _field(21, _field(1, _schema(extra)))
    if kind := schema.get("type"):
        yield _field(22, _field(1, kind.encode()))
    if items := schema.get("items"):
        yield _field(23, _field(1, _schema(items)))
    if properties := schema.get("properties"):
        named = (_field(1, _named(name, _schema(part))) for name, part in properties.items())
        yield _field(25, b"".join(named))
    for name, value in schema.items():
        if name.startswith("x-kubernetes-"):
            # An extension's value is YAML text, and JSON is YAML.
            yield _field(31, _named(name, _field(2, json.dumps(value).encode())))


def _named(name: str, value: bytes) -> bytes:
    return _field(1, name.encode()) + _field(2, value)


def _field(number: int, value: bytes) -> bytes:
    """Write a protobuf field of the kind that has a length: text or a message."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
