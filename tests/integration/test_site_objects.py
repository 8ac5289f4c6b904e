"""The controller's objects, as kubectl itself judges them before it sends anything."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bundler import yamlfile
from bundler.k3s import suc
from bundler.oci.reference import Reference
from bundler.site.controller import ControllerSettings, controller_objects
from bundler.site.sucmanifest import patch
from tests.support.kubectl import KubernetesStub, decode

#: One release of each form that the objects take.
RELEASES = ("v0.2.0", "v0.13.2", "v0.13.4", "v0.14.2", "v0.15.0", "v0.20.1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[KubernetesStub]:
    with KubernetesStub() as stub:
        yield stub


def files_of(version: str) -> dict[str, list[dict[str, Any]]]:
    release = suc.find(version)
    settings = ControllerSettings(release.image, release.kubectl_image, "IfNotPresent", 1800)
    return dict(controller_objects(release, settings))


def accepted(cluster: KubernetesStub, text: str, to: Path) -> list[dict[str, Any]]:
    """Return the objects that kubectl would send."""
    file = to / "objects.yaml"
    file.write_text(text)
    read = decode(file, to)
    assert read.returncode == 0, read.stderr
    done = cluster.validate(file, to)
    assert done.returncode == 0, done.stderr
    decoder, at = json.JSONDecoder(), 0
    found: list[dict[str, Any]] = []
    while at < len(done.stdout.rstrip()):
        item, at = decoder.raw_decode(done.stdout, at)
        found += item["items"] if item["kind"] == "List" else [item]
        at += len(done.stdout[at:]) - len(done.stdout[at:].lstrip())
    return found


@pytest.mark.parametrize("version", RELEASES)
def test_kubectl_takes_every_object_as_it_was_meant(cluster: KubernetesStub, tmp_path: Path, version: str) -> None:
    every = [item for items in files_of(version).values() for item in items]
    assert accepted(cluster, yamlfile.dump_all(every), tmp_path) == every


def test_kubectl_takes_a_patched_manifest(cluster: KubernetesStub, tmp_path: Path) -> None:
    every = [item for items in files_of("v0.14.2").values() for item in items]
    settings = ControllerSettings(
        Reference.parse("host:5000/suc:v0.14.2"), Reference.parse("host:5000/kubectl:1"), "Always", 60
    )
    sent = accepted(cluster, patch(yamlfile.dump_all(every), "suc.yaml", settings), tmp_path)
    found = {(item["kind"], item["metadata"]["name"]): item for item in sent}
    assert len(found) == len(every)
    data = found["ConfigMap", "default-controller-env"]["data"]
    assert data["SYSTEM_UPGRADE_JOB_KUBECTL_IMAGE"] == "host:5000/kubectl:1"
    pod = found["Deployment", "system-upgrade-controller"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "host:5000/suc:v0.14.2"


def broken(version: str, file: str, path: tuple[str | int, ...], value: Any) -> str:
    """Return an object of a file with one part of it changed, or gone where the value is None."""
    item = copy.deepcopy(next(item for item in files_of(version)[file] if path[0] in item))
    part: Any = item
    for step in path[:-1]:
        part = part[step]
    if value is None:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return yamlfile.dump(item)


@pytest.mark.parametrize(
    ("file", "path", "value", "why"),
    [
        ("30-deployment.yaml", ("spec", "template", "spec", "toleration"), [], 'unknown field "toleration"'),
        ("30-deployment.yaml", ("spec", "template", "spec", "volumes", 0, "name"), None, 'required field "name"'),
        ("30-deployment.yaml", ("spec", "template", "spec", "affinity", "node"), {}, 'unknown field "node"'),
        ("30-deployment.yaml", ("spec", "selector"), None, 'required field "selector"'),
        ("10-rbac.yaml", ("rules", 0, "verb"), ["get"], 'unknown field "verb"'),
        ("10-rbac.yaml", ("rules", 0, "apiGroups"), "batch", "apiGroups"),
        ("10-rbac.yaml", ("roleRef",), None, 'required field "roleRef"'),
        ("00-namespace.yaml", ("metadata", "lables"), {"a": "b"}, 'unknown field "lables"'),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_kubectl_refuses_wrong_fields(
    cluster: KubernetesStub, tmp_path: Path, file: str, path: tuple[str | int, ...], value: Any, why: str
) -> None:
    objects = tmp_path / "objects.yaml"
    objects.write_text(broken("v0.20.1", file, path, value))
    done = cluster.validate(objects, tmp_path)
    assert done.returncode == 1
    assert "error validating data" in done.stderr
    assert why in done.stderr


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        ("20-config.yaml", ("data", "SYSTEM_UPGRADE_JOB_PRIVILEGED"), True),
        ("20-config.yaml", ("data", "SYSTEM_UPGRADE_CONTROLLER_THREADS"), 2),
        ("30-deployment.yaml", ("spec", "template", "spec", "containers", 0, "env", 0, "name"), 7),
        ("30-deployment.yaml", ("spec", "template", "spec", "containers", 0, "securityContext", "runAsUser"), "x"),
        ("10-rbac.yaml", ("rules", 0, "resources"), [True]),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_kubectl_refuses_wrong_types(tmp_path: Path, file: str, path: tuple[str | int, ...], value: Any) -> None:
    objects = tmp_path / "objects.yaml"
    objects.write_text(broken("v0.20.1", file, path, value))
    done = decode(objects, tmp_path)
    assert done.returncode == 1
    assert "unable to decode" in done.stderr
