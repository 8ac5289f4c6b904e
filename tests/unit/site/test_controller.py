"""The controller's own objects, by release."""

from __future__ import annotations

from typing import Any

import pytest

from bundler import yamlfile
from bundler.errors import BadSucManifestError, FeatureMissingError
from bundler.k3s import suc
from bundler.oci.reference import Reference
from bundler.site.controller import ControllerSettings, controller_objects

KUBECTL = "registry.example/rancher/kubectl:v1.30.3"
COVERED = [release for release in suc.suc_versions() if release.version != "v0.1.0"]
DIGEST = "sha256:" + "a" * 64


def settings(image: str = "rancher/system-upgrade-controller:v0.20.1", **changed: Any) -> ControllerSettings:
    given = {"pull_policy": "IfNotPresent", "deadline_s": 1800, "kubectl_image": Reference.parse(KUBECTL), **changed}
    return ControllerSettings(Reference.parse(image), **given)


def objects(version: str) -> dict[tuple[str, str], dict[str, Any]]:
    files = controller_objects(suc.find(version), settings(f"rancher/system-upgrade-controller:{version}"))
    every = [item for _, items in files for item in items]
    found = {(item["kind"], item["metadata"]["name"]): item for item in every}
    assert len(found) == len(every)
    return found


def rules(version: str, kind: str, name: str) -> set[tuple[str, str, str]]:
    """Return (group, resource, verb) of each permission, a resource's name behind a slash."""
    return {
        (rule["apiGroups"][0], "/".join([resource, *rule.get("resourceNames", [])]), verb)
        for rule in objects(version)[kind, name]["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize("release", COVERED, ids=lambda release: release.version)
def test_what_holds_for_every_release(release: suc.SucRelease) -> None:
    files = controller_objects(release, settings(str(release.image)))
    assert [name for name, _ in files] == ["00-namespace.yaml", "10-rbac.yaml", "20-config.yaml", "30-deployment.yaml"]
    found = objects(release.version)
    for (kind, _), item in found.items():
        cluster_wide = kind == "Namespace" or kind.startswith("Cluster")
        assert item["metadata"].get("namespace") == (None if cluster_wide else "system-upgrade")
        if kind.endswith("Binding"):
            role = item["roleRef"]
            assert role["name"] == "cluster-admin" or (role["kind"], role["name"]) in found
            assert [(s["kind"], s["name"], s["namespace"]) for s in item["subjects"]] == [
                ("ServiceAccount", "system-upgrade", "system-upgrade")
            ]
    data = found["ConfigMap", "default-controller-env"]["data"]
    assert all(isinstance(value, str) for value in data.values())
    deployment = found["Deployment", "system-upgrade-controller"]["spec"]
    pod = deployment["template"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == {"upgrade.cattle.io/controller": "system-upgrade-controller"}
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
    assert pod["serviceAccountName"] == "system-upgrade"
    container = pod["containers"][0]
    assert container["image"] == f"docker.io/rancher/system-upgrade-controller:{release.version}"
    assert container["envFrom"] == [{"configMapRef": {"name": "default-controller-env"}}]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    for _, items in files:
        text = yamlfile.dump_all(items)
        assert [d.data for d in yamlfile.load_all(text, "x", error=BadSucManifestError)] == items


def test_the_namespace_lets_privileged_jobs_run() -> None:
    labels = objects("v0.20.1")["Namespace", "system-upgrade"]["metadata"]["labels"]
    assert labels == {"pod-security.kubernetes.io/enforce": "privileged"}


@pytest.mark.parametrize("version", ["v0.2.0", "v0.6.2", "v0.9.1", "v0.12.0", "v0.13.2"])
def test_before_the_roles_were_split(version: str) -> None:
    found = objects(version)
    assert found["ClusterRoleBinding", "system-upgrade"]["roleRef"]["name"] == "cluster-admin"
    assert not any(kind in {"ClusterRole", "Role", "RoleBinding"} for kind, _ in found)


@pytest.mark.parametrize(
    ("version", "deletes_pods", "elects"),
    [
        ("v0.13.3", False, False),
        ("v0.13.4", False, False),
        ("v0.14.0", True, False),
        ("v0.14.2", True, False),
        ("v0.15.0", True, True),
        ("v0.20.1", True, True),
    ],
)
def test_split_roles(version: str, deletes_pods: bool, elects: bool) -> None:
    found = objects(version)
    assert {name for name in found if name[0].endswith("Binding")} == {
        ("ClusterRoleBinding", "system-upgrade-drainer"),
        ("ClusterRoleBinding", "system-upgrade"),
        ("RoleBinding", "system-upgrade"),
    }
    controller = rules(version, "ClusterRole", "system-upgrade-controller")
    crds = {verb for group, what, verb in controller if (group, what) == _CRDS}
    assert crds == {"get", "list", "watch", "create", "patch", "update"}
    assert ("", "nodes", "update") in controller
    assert ("upgrade.cattle.io", "plans/status", "update") in controller
    assert (("", "events", "create") in controller) == elects
    assert (("coordination.k8s.io", "leases", "create") in controller) == elects
    assert (("coordination.k8s.io", "leases/system-upgrade-controller", "update") in controller) == elects
    assert ("coordination.k8s.io", "leases", "update") not in controller
    drainer = rules(version, "ClusterRole", "system-upgrade-controller-drainer")
    assert (("", "pods", "delete") in drainer) == deletes_pods
    assert {("", "nodes", "patch"), ("", "pods/eviction", "create"), ("apps", "daemonsets", "get")} < drainer
    inside = rules(version, "Role", "system-upgrade-controller")
    assert {("batch", "jobs", "deletecollection"), ("", "secrets", "watch")} < inside


_CRDS = ("apiextensions.k8s.io", "customresourcedefinitions")


@pytest.mark.parametrize(
    ("version", "added"),
    [
        ("v0.4.0", set()),
        ("v0.14.2", set()),
        ("v0.15.0", {"SYSTEM_UPGRADE_CONTROLLER_LEADER_ELECT"}),
        ("v0.18.0", {"SYSTEM_UPGRADE_CONTROLLER_LEADER_ELECT"}),
        ("v0.19.0", {"SYSTEM_UPGRADE_CONTROLLER_LEADER_ELECT", "SYSTEM_UPGRADE_JOB_KUBECTL_IMAGE_WINDOWS"}),
    ],
)
def test_config_map(version: str, added: set[str]) -> None:
    data = objects(version)["ConfigMap", "default-controller-env"]["data"]
    always = {
        "SYSTEM_UPGRADE_CONTROLLER_DEBUG": "false",
        "SYSTEM_UPGRADE_CONTROLLER_THREADS": "2",
        "SYSTEM_UPGRADE_JOB_ACTIVE_DEADLINE_SECONDS": "1800",
        "SYSTEM_UPGRADE_JOB_BACKOFF_LIMIT": "99",
        "SYSTEM_UPGRADE_JOB_IMAGE_PULL_POLICY": "IfNotPresent",
        "SYSTEM_UPGRADE_JOB_KUBECTL_IMAGE": KUBECTL,
        "SYSTEM_UPGRADE_JOB_PRIVILEGED": "true",
        "SYSTEM_UPGRADE_JOB_TTL_SECONDS_AFTER_FINISH": "900",
        "SYSTEM_UPGRADE_PLAN_POLLING_INTERVAL": "15m",
    }
    assert {name: value for name, value in data.items() if name in always} == always
    assert set(data) - set(always) == added
    assert list(data) == sorted(data)


@pytest.mark.parametrize(("version", "elects"), [("v0.14.2", False), ("v0.15.0", True), ("v0.20.1", True)])
def test_deployment_with_leader_election(version: str, elects: bool) -> None:
    deployment = objects(version)["Deployment", "system-upgrade-controller"]
    pod = deployment["spec"]["template"]["spec"]
    assert ("strategy" in deployment["spec"]) == elects
    assert ("podAntiAffinity" in pod["affinity"]) == elects
    names = [variable["name"] for variable in pod["containers"][0]["env"]]
    assert ("SYSTEM_UPGRADE_CONTROLLER_NODE_NAME" in names) == elects
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    keys = [expression["key"] for expression in terms[0]["matchExpressions"]]
    assert keys == ["node-role.kubernetes.io/control-plane", *(["kubernetes.io/os"] if elects else [])]
    if elects:
        anti = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
        wanted = anti["labelSelector"]["matchExpressions"][0]
        assert deployment["spec"]["template"]["metadata"]["labels"][wanted["key"]] in wanted["values"]


def test_the_controller_has_few_rights_on_its_node() -> None:
    pod = objects("v0.20.1")["Deployment", "system-upgrade-controller"]["spec"]["template"]["spec"]
    context = pod["containers"][0]["securityContext"]
    assert context["runAsUser"] == context["runAsGroup"] == 65534
    assert context["runAsNonRoot"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    mounts = {mount["mountPath"]: mount.get("readOnly") for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == {"/etc/ssl": True, "/etc/pki": True, "/etc/ca-certificates": True, "/tmp": None}  # noqa: S108
    assert {"key": "node-role.kubernetes.io/etcd", "operator": "Exists", "effect": "NoExecute"} in pod["tolerations"]
    assert {"key": "CriticalAddonsOnly", "operator": "Exists"} in pod["tolerations"]


def test_the_release_that_knows_no_pull_policy() -> None:
    with pytest.raises(FeatureMissingError, match=r"v0\.1\.0 cannot be told how its jobs pull") as caught:
        controller_objects(suc.find("v0.1.0"), settings())
    assert "v0.20.1" in caught.value.hint


@pytest.mark.parametrize(
    ("image", "written"),
    [
        ("rancher/kubectl:v1", "docker.io/rancher/kubectl:v1"),
        (f"rancher/kubectl:v1@{DIGEST}", "docker.io/rancher/kubectl:v1"),
        (f"host:5000/kubectl@{DIGEST}", f"host:5000/kubectl@{DIGEST}"),
    ],
)
def test_images_are_written_in_full(image: str, written: str) -> None:
    some = settings(image, kubectl_image=Reference.parse(image))
    assert some.image_name == written
    assert some.environment["SYSTEM_UPGRADE_JOB_KUBECTL_IMAGE"] == written


@pytest.mark.parametrize("wrong", [{"pull_policy": "always"}, {"pull_policy": ""}, {"deadline_s": -1}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"pull policy|negative"):
        settings(**wrong)
