"""The Kubernetes objects of system-upgrade-controller, written for one of its releases.

For bundles that do not carry the release's own manifest (:mod:`bundler.site.sucmanifest` is for those that do).
Every object stands in the namespace ``system-upgrade``, where the Plans have to be too. The CustomResourceDefinition
is not among them: the controller makes it when it starts, so Plans can be applied only after that.

Source: rancher/system-upgrade-controller, ``manifests/`` at each tag.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from bundler.errors import FeatureMissingError
from bundler.k3s import suc

if TYPE_CHECKING:
    from bundler.k3s.suc import SucRelease
    from bundler.oci.reference import Reference

KubernetesObject: TypeAlias = dict[str, Any]

NAMESPACE = "system-upgrade"
SERVICE_ACCOUNT = "system-upgrade"
CONTROLLER = "system-upgrade-controller"
CONFIG_MAP = "default-controller-env"
PULL_POLICIES = ("Always", "IfNotPresent", "Never")

_DRAINER = f"{CONTROLLER}-drainer"
_RBAC = "rbac.authorization.k8s.io"
_READ = ("get", "list", "watch")
#: Runs as nobody: it talks to the API server only, its jobs do the work on the nodes.
_USER = 65534


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """What of the controller depends on the site.

    Attributes:
        image: The controller's image.
        kubectl_image: What its jobs cordon and drain with.
        pull_policy: Of the jobs' images: ``Always``, ``IfNotPresent`` or ``Never``. With ``Always`` an image that
            was imported is of no use where no registry answers for it.
        deadline_s: Seconds after which a job has failed, pulling its images included; 0 for never.

    Raises:
        ValueError: The pull policy or the deadline is none.
    """

    image: Reference
    kubectl_image: Reference
    pull_policy: str
    deadline_s: int

    def __post_init__(self) -> None:
        if self.pull_policy not in PULL_POLICIES:
            raise ValueError(f"a pull policy is one of {', '.join(PULL_POLICIES)}")
        if self.deadline_s < 0:
            raise ValueError("a deadline cannot be negative")

    @property
    def image_name(self) -> str:
        """The controller's image as the Deployment has it."""
        return _written(self.image)

    @property
    def environment(self) -> dict[str, str]:
        """The keys of the ConfigMap that depend on the site, as text: a ConfigMap holds nothing else."""
        return {
            "SYSTEM_UPGRADE_JOB_ACTIVE_DEADLINE_SECONDS": str(self.deadline_s),
            "SYSTEM_UPGRADE_JOB_IMAGE_PULL_POLICY": self.pull_policy,
            "SYSTEM_UPGRADE_JOB_KUBECTL_IMAGE": _written(self.kubectl_image),
        }


def controller_objects(release: SucRelease, settings: ControllerSettings) -> list[tuple[str, list[KubernetesObject]]]:
    """Return the objects of the controller: file name and its objects, in the order to apply.

    Covers v0.2.0 and later. Permissions, ConfigMap and rollout follow the release; what else a pod has (where it
    may run, whom it runs as, what it mounts) is as the latest known releases have it, for all of them.

    Args:
        release: The release whose image ``settings`` names.
        settings: What depends on the site.

    Raises:
        FeatureMissingError: The release cannot be told a pull policy for its jobs (v0.1.0).

    Source: rancher/system-upgrade-controller, ``manifests/`` at each tag.
    """
    if release.job_pull_policy is None:
        raise FeatureMissingError(
            f"system-upgrade-controller {release.version} cannot be told how its jobs pull images",
            hint=f"Take {suc.newest().version} into the bundle.",
        )
    return [
        ("00-namespace.yaml", [_namespace()]),
        ("10-rbac.yaml", _rbac(release)),
        ("20-config.yaml", [_config_map(release, settings)]),
        ("30-deployment.yaml", [_deployment(release, settings)]),
    ]


def _namespace() -> KubernetesObject:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": NAMESPACE,
            # The jobs are privileged and mount the node's root; releases before the label take no harm from it.
            "labels": {"pod-security.kubernetes.io/enforce": "privileged"},
        },
    }


def _rbac(release: SucRelease) -> list[KubernetesObject]:
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": SERVICE_ACCOUNT, "namespace": NAMESPACE},
    }
    if release.order < (0, 13, 3):
        return [account, _binding("ClusterRoleBinding", "system-upgrade", "ClusterRole", "cluster-admin")]
    return [
        account,
        _role("ClusterRole", CONTROLLER, _controller_rules(release)),
        _role("Role", CONTROLLER, _namespace_rules()),
        _role("ClusterRole", _DRAINER, _drainer_rules(release)),
        _binding("ClusterRoleBinding", "system-upgrade-drainer", "ClusterRole", _DRAINER),
        _binding("ClusterRoleBinding", "system-upgrade", "ClusterRole", CONTROLLER),
        _binding("RoleBinding", "system-upgrade", "Role", CONTROLLER),
    ]


def _controller_rules(release: SucRelease) -> list[KubernetesObject]:
    rules = [
        _rule("batch", ["jobs"], *_READ),
        # v0.13.3 and v0.13.4 came without this one and could not start where the definition was not there yet:
        # the controller makes it itself. Here nothing else does.
        _rule("apiextensions.k8s.io", ["customresourcedefinitions"], *_READ, "create", "patch", "update"),
        _rule("", ["namespaces", "nodes"], *_READ),
        _rule("", ["nodes"], "update"),
        _rule("upgrade.cattle.io", ["plans", "plans/status"], *_READ, "create", "patch", "update", "delete"),
    ]
    if release.order >= (0, 15, 0):
        leases = "coordination.k8s.io"
        rules += [
            _rule("", ["events"], "get", "create", "patch", "update"),
            # A lease to come has no name that a rule could ask for.
            _rule(leases, ["leases"], "create"),
            {**_rule(leases, ["leases"], "get", "update"), "resourceNames": [CONTROLLER]},
        ]
    return rules


def _namespace_rules() -> list[KubernetesObject]:
    return [
        _rule("batch", ["jobs"], "create", "delete", "deletecollection", "patch", "update", *_READ),
        _rule("", ["secrets"], *_READ),
    ]


def _drainer_rules(release: SucRelease) -> list[KubernetesObject]:
    pods = ("get", "list", "delete") if release.order >= (0, 14, 0) else ("get", "list")
    return [
        _rule("", ["pods/eviction"], "create"),
        _rule("", ["pods"], *pods),
        _rule("", ["nodes"], "get", "patch"),
        _rule("apps", ["statefulsets", "daemonsets", "replicasets"], "get", "list"),
    ]


def _rule(group: str, resources: list[str], *verbs: str) -> KubernetesObject:
    return {"apiGroups": [group], "resources": resources, "verbs": list(verbs)}


def _role(kind: str, name: str, rules: list[KubernetesObject]) -> KubernetesObject:
    return {"apiVersion": f"{_RBAC}/v1", "kind": kind, "metadata": _metadata(kind, name), "rules": rules}


def _binding(kind: str, name: str, role_kind: str, role: str) -> KubernetesObject:
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": kind,
        "metadata": _metadata(kind, name),
        "roleRef": {"apiGroup": _RBAC, "kind": role_kind, "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": SERVICE_ACCOUNT, "namespace": NAMESPACE}],
    }


def _metadata(kind: str, name: str) -> KubernetesObject:
    return {"name": name} if kind.startswith("Cluster") else {"name": name, "namespace": NAMESPACE}


def _config_map(release: SucRelease, settings: ControllerSettings) -> KubernetesObject:
    data = {
        "SYSTEM_UPGRADE_CONTROLLER_DEBUG": "false",
        "SYSTEM_UPGRADE_CONTROLLER_THREADS": "2",
        "SYSTEM_UPGRADE_JOB_BACKOFF_LIMIT": "99",
        "SYSTEM_UPGRADE_JOB_PRIVILEGED": "true",
        "SYSTEM_UPGRADE_JOB_TTL_SECONDS_AFTER_FINISH": "900",
        "SYSTEM_UPGRADE_PLAN_POLLING_INTERVAL": "15m",
        **settings.environment,
    }
    if release.order >= (0, 15, 0):
        data["SYSTEM_UPGRADE_CONTROLLER_LEADER_ELECT"] = "true"
    if release.order >= (0, 19, 0):
        data["SYSTEM_UPGRADE_JOB_KUBECTL_IMAGE_WINDOWS"] = ""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG_MAP, "namespace": NAMESPACE},
        "data": dict(sorted(data.items())),
    }


def _deployment(release: SucRelease, settings: ControllerSettings) -> KubernetesObject:
    # A pod with this label is never drained, and the controller reads its own name from it.
    selector = {"upgrade.cattle.io/controller": CONTROLLER}
    elects_leader = release.order >= (0, 15, 0)
    names = {"app.kubernetes.io/component": "controller", "app.kubernetes.io/name": CONTROLLER}
    labels = {**names, **selector} if elects_leader else selector
    metadata: KubernetesObject = {"name": CONTROLLER, "namespace": NAMESPACE}
    spec: KubernetesObject = {"selector": {"matchLabels": selector}}
    if elects_leader:
        metadata["labels"] = labels
        spec["strategy"] = {"type": "Recreate"}
    spec["template"] = {"metadata": {"labels": labels}, "spec": _pod(settings, elects_leader=elects_leader)}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def _pod(settings: ControllerSettings, *, elects_leader: bool) -> KubernetesObject:
    mounts, volumes = _volumes()
    return {
        "affinity": _affinity(elects_leader=elects_leader),
        "serviceAccountName": SERVICE_ACCOUNT,
        "tolerations": _tolerations(),
        "containers": [
            {
                "name": CONTROLLER,
                "image": settings.image_name,
                "imagePullPolicy": "IfNotPresent",
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": _USER,
                    "runAsGroup": _USER,
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "envFrom": [{"configMapRef": {"name": CONFIG_MAP}}],
                "env": _environment(elects_leader=elects_leader),
                "volumeMounts": mounts,
            },
        ],
        "volumes": volumes,
    }


def _environment(*, elects_leader: bool) -> list[KubernetesObject]:
    fields = {
        "NAME": "metadata.labels['upgrade.cattle.io/controller']",
        "NAMESPACE": "metadata.namespace",
    }
    if elects_leader:
        fields["NODE_NAME"] = "spec.nodeName"
    return [
        {"name": f"SYSTEM_UPGRADE_CONTROLLER_{name}", "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for name, path in fields.items()
    ]


def _affinity(*, elects_leader: bool) -> KubernetesObject:
    on_servers = [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]
    if elects_leader:
        on_servers.append({"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]})  # type: ignore[dict-item]
    affinity: KubernetesObject = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": on_servers}],
            },
        },
    }
    if elects_leader:
        same = {"key": "app.kubernetes.io/name", "operator": "In", "values": [CONTROLLER]}
        affinity["podAntiAffinity"] = {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"labelSelector": {"matchExpressions": [same]}, "topologyKey": "kubernetes.io/hostname"},
            ],
        }
    return affinity


def _tolerations() -> list[KubernetesObject]:
    def tolerated(key: str, effect: str | None) -> KubernetesObject:
        return {"key": key, "operator": "Exists", **({"effect": effect} if effect else {})}

    role = "node-role.kubernetes.io"
    return [
        tolerated("CriticalAddonsOnly", None),
        tolerated(f"{role}/master", "NoSchedule"),
        tolerated(f"{role}/controlplane", "NoSchedule"),
        tolerated(f"{role}/control-plane", "NoSchedule"),
        tolerated(f"{role}/etcd", "NoExecute"),
    ]


def _volumes() -> tuple[list[KubernetesObject], list[KubernetesObject]]:
    """Return the mounts and the volumes: the node's certificate authorities, for a channel at an internal server."""
    mounts: list[KubernetesObject] = []
    volumes: list[KubernetesObject] = []
    for path in ("/etc/ssl", "/etc/pki", "/etc/ca-certificates"):
        name = path.removeprefix("/").replace("/", "-")
        mounts.append({"name": name, "mountPath": path, "readOnly": True})
        volumes.append({"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}})
    mounts.append({"name": "tmp", "mountPath": "/tmp"})  # noqa: S108 - in the container, where it is a volume
    volumes.append({"name": "tmp", "emptyDir": {}})
    return mounts, volumes


def _written(image: Reference) -> str:
    """Return an image as objects name it: with its tag, the name that imports and mirrors go by."""
    return str(image.tagged() or image)
