"""A release's own manifest: four values change, nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler import yamlfile
from bundler.errors import BadSucManifestError
from bundler.oci.reference import Reference
from bundler.site.controller import ControllerSettings
from bundler.site.sucmanifest import patch

SETTINGS = ControllerSettings(
    Reference.parse("rancher/system-upgrade-controller:v0.20.1"),
    Reference.parse("rancher/kubectl:v1.30.3"),
    "IfNotPresent",
    1800,
)
IMAGE = "docker.io/rancher/system-upgrade-controller:v0.20.1"

CONFIG_MAP = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: default-controller-env
  namespace: system-upgrade
data:
  SYSTEM_UPGRADE_CONTROLLER_DEBUG: "false"
  SYSTEM_UPGRADE_JOB_IMAGE_PULL_POLICY: "Always"
  SYSTEM_UPGRADE_JOB_KUBECTL_IMAGE: "rancher/kubectl:v1.0.0"
  SYSTEM_UPGRADE_PLAN_POLLING_INTERVAL: "15m"
"""
DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: system-upgrade-controller, namespace: system-upgrade}
spec:
  template:
    spec:
      initContainers:
      - {name: first, image: "rancher/first:1"}
      containers:
      - name: system-upgrade-controller  # the one
        image: mirror.example:5000/suc:v0.20.1
        imagePullPolicy: IfNotPresent
        env:
        - name: SYSTEM_UPGRADE_CONTROLLER_NAME
          valueFrom: {fieldRef: {fieldPath: "metadata.labels['upgrade.cattle.io/controller']"}}
"""
OTHERS = """\
# made by hand, in the shape of a release's
apiVersion: v1
kind: ServiceAccount
metadata: {name: system-upgrade, namespace: system-upgrade}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: plans.upgrade.cattle.io}
spec:
  versions:
  - name: v1
    schema: {openAPIV3Schema: {properties: {mode: {default: 0644, pattern: '^\\d+$', x: ~, y: 1.5, on: true}}}}
"""
WHOLE = f"{OTHERS}---\n{CONFIG_MAP}---\n{DEPLOYMENT}"


def data_of(text: str) -> list[Any]:
    return [document.data for document in yamlfile.load_all(text, "s.yaml", error=BadSucManifestError)]


def expected_of(data: list[Any]) -> list[Any]:
    """Return what should come out of the documents of WHOLE."""
    expected = copy.deepcopy(data)
    expected[2]["data"].update(
        SYSTEM_UPGRADE_JOB_KUBECTL_IMAGE="docker.io/rancher/kubectl:v1.30.3",
        SYSTEM_UPGRADE_JOB_IMAGE_PULL_POLICY="IfNotPresent",
        SYSTEM_UPGRADE_JOB_ACTIVE_DEADLINE_SECONDS="1800",
    )
    expected[3]["spec"]["template"]["spec"]["containers"][0]["image"] = IMAGE
    return expected


def refused(text: str) -> str:
    with pytest.raises(BadSucManifestError) as caught:
        patch(text, "s.yaml", SETTINGS)
    return caught.value.message


def test_four_values_change_and_nothing_else() -> None:
    patched = patch(WHOLE, "s.yaml", SETTINGS)
    assert data_of(patched) == expected_of(data_of(WHOLE))
    assert patch(WHOLE, "s.yaml", SETTINGS) == patched
    assert patch(patched, "s.yaml", SETTINGS) == patched
    assert "SYSTEM_UPGRADE_JOB_ACTIVE_DEADLINE_SECONDS: '1800'" in patched


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ("rancher/system-upgrade-controller:v0.14.2", "is of system-upgrade-controller v0.14.2"),
        ("rancher/system-upgrade-controller", "is of system-upgrade-controller latest"),
        (f"rancher/system-upgrade-controller@sha256:{'0' * 64}", "names no release of system-upgrade-controller"),
        ("$(IMAGE):v0.20.1", "names no release of system-upgrade-controller"),
        ("[1]", "names no release of system-upgrade-controller"),
        ("", "names no release of system-upgrade-controller"),
    ],
    ids=["older", "untagged", "digest", "variable", "list", "none"],
)
def test_a_manifest_of_another_release_is_refused(image: str, found: str) -> None:
    text = WHOLE.replace("mirror.example:5000/suc:v0.20.1", image)
    with pytest.raises(BadSucManifestError) as caught:
        patch(text, "s.yaml", SETTINGS)
    assert caught.value.message == f"s.yaml:35: the manifest {found}, and the bundle has v0.20.1"
    assert "from the assets of release v0.20.1" in str(caught.value.hint)


def test_the_same_release_with_its_digest_is_taken() -> None:
    text = WHOLE.replace(":v0.20.1", f":v0.20.1@sha256:{'0' * 64}")
    assert data_of(patch(text, "s.yaml", SETTINGS)) == expected_of(data_of(WHOLE))


def test_empty_documents_do_not_matter() -> None:
    assert patch(f"---\n# nothing\n---\n{WHOLE}---\n---\n", "s.yaml", SETTINGS) == patch(WHOLE, "s.yaml", SETTINGS)


@pytest.mark.parametrize("kind", ["List", "ConfigMapList"])
def test_lists_are_looked_into(kind: str) -> None:
    every = data_of(WHOLE)
    inner = {"apiVersion": "v1", "kind": "List", "items": every[3:]}
    text = yamlfile.dump({"apiVersion": "v1", "kind": kind, "items": [*every[:3], inner]})
    (patched,) = data_of(patch(text, "s.yaml", SETTINGS))
    assert [*patched["items"][:3], *patched["items"][3]["items"]] == expected_of(every)
    assert patched["kind"] == kind


def test_the_only_container_may_have_another_name() -> None:
    text = WHOLE.replace("name: system-upgrade-controller  # the one", "name: main")
    assert f"image: {IMAGE}" in patch(text, "s.yaml", SETTINGS)


def test_other_containers_stay_as_they_are() -> None:
    text = WHOLE.replace("      containers:\n", "      containers:\n      - {name: beside, image: 'other/x:1'}\n")
    containers = data_of(patch(text, "s.yaml", SETTINGS))[3]["spec"]["template"]["spec"]["containers"]
    assert [item["image"] for item in containers] == ["other/x:1", IMAGE]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "s.yaml:1: there is no Deployment system-upgrade-controller in it"),
        (CONFIG_MAP, "s.yaml:1: there is no Deployment system-upgrade-controller in it"),
        (DEPLOYMENT, "s.yaml:1: there is no ConfigMap default-controller-env in it"),
        (
            WHOLE.replace("kind: Deployment", "kind: DaemonSet"),
            "s.yaml:1: there is no Deployment system-upgrade-controller in it",
        ),
        (
            f"{CONFIG_MAP}---\n{DEPLOYMENT}---\n{CONFIG_MAP}",
            "s.yaml:29: a second ConfigMap default-controller-env; the first is at s.yaml:2",
        ),
        (
            f"{DEPLOYMENT}---\n{DEPLOYMENT}---\n{CONFIG_MAP}",
            "s.yaml:18: a second Deployment system-upgrade-controller; the first is at s.yaml:2",
        ),
        (CONFIG_MAP.partition("data:\n  SYS")[0] + f"---\n{DEPLOYMENT}", "s.yaml:1: data is empty or missing"),
        (
            CONFIG_MAP.partition("data:\n  SYS")[0] + f"data: [1]\n---\n{DEPLOYMENT}",
            "s.yaml:6:7: data must be a mapping (KEY: VALUE), not a list",
        ),
        (
            f"{CONFIG_MAP}---\n{DEPLOYMENT.replace('- name: system-upgrade-controller', '- name: a')}      - name: b\n",
            "s.yaml:20: no single container system-upgrade-controller in the Deployment",
        ),
        (
            f"{CONFIG_MAP}---\n{DEPLOYMENT.partition('      containers:')[0]}      containers: []\n",
            "s.yaml:20: no single container system-upgrade-controller in the Deployment",
        ),
        (
            f"{CONFIG_MAP}---\n{DEPLOYMENT}        - {{name: SYSTEM_UPGRADE_JOB_IMAGE_PULL_POLICY, value: Always}}\n",
            "s.yaml:27: the container sets SYSTEM_UPGRADE_JOB_IMAGE_PULL_POLICY itself, so the ConfigMap's does not",
        ),
        ("- a\n- b\n", "s.yaml:1:1: an object must be a mapping (KEY: VALUE)"),
        (f"{WHOLE}---\nkind: List\nitems: [x]\n", "s.yaml:42:9: an object must be a mapping (KEY: VALUE)"),
        (f"{WHOLE}---\nkind: [\n", "s.yaml:42:1: while parsing a flow node, expected the node content, but found "),
    ],
    ids=lambda value: None if "\n" in value or not value else value.split(": ", 1)[1][:30],
)
def test_refused_with_a_place(text: str, message: str) -> None:
    assert refused(text).startswith(message)


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
PLAIN = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


@given(st.lists(st.dictionaries(st.text(), PLAIN, max_size=3), max_size=4), st.integers(0, 4))
def test_whatever_else_is_in_it_stays(others: list[dict[str, Any]], at: int) -> None:
    mine = data_of(WHOLE)
    others = [other | {"kind": "Other"} for other in others]
    text = yamlfile.dump_all([*others[:at], *mine, *others[at:]])
    patched = data_of(patch(text, "s.yaml", SETTINGS))
    assert patched == [*others[:at], *expected_of(mine), *others[at:]]
