"""The steps of RUNBOOK.md from the controller on: what is saved before each hop, the hops, and the way back.

Invariant: whatever the way back needs, a step before has saved, under a name with the hop in it.
"""

from __future__ import annotations

from bundler.k3s.version import K3sVersion
from bundler.site.plans import AGENT_PLAN, SERVER_PLAN
from bundler.site.routes import Route
from bundler.site.runfacts import AGENT_IMAGES, DATA_DIR, NODE_DIR, Facts, Step, shell
from bundler.site.runsteps import FORMER_REGISTRIES, PROOF

_CRD = "plans.upgrade.cattle.io"
_SNAPSHOTS = f"{DATA_DIR}/server/db/snapshots"


def upgrade_steps(facts: Facts) -> list[Step]:
    """Return the steps of the upgrade; none if the bundle has no release to upgrade to."""
    if not facts.hops:
        return []
    steps = [_install_controller(facts) if facts.suc_files else _look_at_controller()]
    for version, name in zip(facts.hops, facts.plan_files, strict=True):
        steps += [_save(facts, version), _upgrade(facts, version, name)]
    return [*steps, _tidy_up(facts)]


def _install_controller(facts: Facts) -> Step:
    return Step(
        f"Install system-upgrade-controller {facts.suc_version}",
        "It makes the kind `Plan` itself when it starts, so plans can be applied only after that. A controller that is there "
        "already reads a changed ConfigMap only when its pod starts again. One up to v0.13.2 had another role: if `kubectl "
        "apply` then refuses the ClusterRoleBinding `system-upgrade`, as its `roleRef` cannot change, run `kubectl delete "
        "clusterrolebinding system-upgrade` and apply again.",
        [
            *(f'kubectl apply -f "$CONFIG/{name}"' for name in facts.suc_files),
            "kubectl -n system-upgrade rollout restart deployment/system-upgrade-controller",
        ],
        [
            "kubectl -n system-upgrade rollout status deployment/system-upgrade-controller --timeout 5m",
            f"until kubectl get crd {_CRD}; do sleep 2; done",
            f"kubectl wait --for condition=established crd/{_CRD} --timeout 5m",
        ],
        "The last line says `condition met`. (Until the controller has made the kind, `NotFound` is shown.)",
    )


def _look_at_controller() -> Step:
    return Step(
        "Look at system-upgrade-controller",
        "The bundle carries none, so the site's own is used. Its jobs must not use the pull policy `Always` where images are "
        "only imported.",
        (),
        [
            "kubectl -n system-upgrade get configmap default-controller-env -o "
            "jsonpath='{.data.SYSTEM_UPGRADE_JOB_IMAGE_PULL_POLICY}'"
        ],
        "It says `IfNotPresent`.",
    )


def _save(facts: Facts, version: K3sVersion) -> Step:
    hop = version.image_tag
    if version == facts.hops[0]:
        text = (
            "A minor release cannot be taken back without a snapshot that was taken before, and the way back needs the "
            "binary that ran then. A repeated step keeps the first binary and takes another snapshot. With an external "
            "database, back that up instead; with SQLite, stop the server, copy "
            f"`{DATA_DIR}/server/db` to `/root/k3s-db-before-{hop}`, and start it again."
        )
    else:
        text = f"As before {facts.hops[0]}: this hop has a snapshot and a binary of its own."
    return Step(
        f"Save what the way back from {version} needs",
        text,
        [
            "# on one server that has etcd and no `server:` in its config.yaml",
            f"k3s etcd-snapshot save --name before-{hop}",
            "# on every server",
            f"cp -p {DATA_DIR}/server/token /root/k3s-token-before-{hop}",
            "# on every node, agents too",
            f"test -e /root/k3s-before-{hop} || cp -p /usr/local/bin/k3s /root/k3s-before-{hop}",
        ],
        [
            f"ls -l {_SNAPSHOTS}/before-{hop}-*    # on that server",
            f"/root/k3s-before-{hop} --version    # on every node",
        ],
        f"The snapshot is there; copy it and the token off the node. Every binary says {_former(facts, version)}.",
    )


def _former(facts: Facts, version: K3sVersion) -> str:
    """Return the version that nodes run before a hop."""
    at = facts.versions.index(version)
    return str(facts.versions[at - 1]) if at else "the version that the nodes run now"


def _upgrade(facts: Facts, version: K3sVersion, name: str) -> Step:
    text = "Servers one by one, then agents. A node whose job fails stays cordoned: `kubectl uncordon NODE` once it is mended. "
    text += f"A job may take {facts.deadline_s} s." if facts.deadline_s else "A job may take as long as it needs."
    if window := facts.window:
        text += (
            f" Jobs begin only on {', '.join(window.days)} from {window.start} to {window.end} ({window.time_zone}); one that "
            "has begun goes on after that. The day is that of the moment itself"
        )
        if window.end < window.start:
            text += (
                f": on each of these days it is open from midnight to {window.end} and from {window.start} to midnight, so the "
                "two halves of a night count for two days"
            )
        text += "."
    expect = f"Every node is Ready and runs {version}, and no pod is listed."
    if version != facts.hops[-1]:
        expect += (
            f" Only then go on, and only after the step *{PROOF}* was done once more, on every node: nodes of the new version "
            "read the same files, and may read them otherwise."
        )
    return Step(
        f"Upgrade to {version}",
        text,
        [f'kubectl apply -f "$CONFIG/{name}"'],
        [
            "kubectl -n system-upgrade get plans,jobs",
            "kubectl get nodes",
            "kubectl get pods -A | grep -vE ' (Running|Completed) '",
        ],
        expect,
    )


def _tidy_up(facts: Facts) -> Step:
    pulled = facts.counts.get(Route.REGISTRY, 0) > 0
    return Step(
        "Tidy up",
        "When every node is upgraded and the site works, on every node. Not earlier: all of it is part of the way back.",
        [
            *([f"rm -f {AGENT_IMAGES}/airgap-sync-pre-pull-*.txt"] if pulled else []),
            f"ls {AGENT_IMAGES}    # remove archives of versions that no node runs any more",
            f"rm -f {FORMER_REGISTRIES}",
            *(
                f"rm -f /root/k3s-before-{version.image_tag} /root/k3s-token-before-{version.image_tag}"
                for version in facts.hops
            ),
        ],
    )


# --- the way back -----------------------------------------------------------------------------------------------------


def way_back(facts: Facts) -> list[str]:
    """Return the parts of the last section.

    Source: docs.k3s.io, rolling back K3s.
    """
    if not facts.hops:
        return [
            "## The way back",
            f"Put the former files back on every node. {_restart_after(facts)}",
            shell(_former_files(facts)),
        ]
    config = "" if facts.node_dir == NODE_DIR else f" --config {facts.node_dir}/config.yaml"
    return [
        "## The way back",
        f"**Before the first plan was applied:** put the former files back on every node. {_restart_after(facts)}",
        shell(_former_files(facts)),
        "**While a hop is under way:** stop it, and mend what is wrong; nodes that are done stay as they are. A cluster with "
        "both versions of one hop keeps working.",
        shell(
            [
                f"kubectl -n system-upgrade delete plan {SERVER_PLAN} {AGENT_PLAN}",
                "kubectl get nodes    # uncordon those that are cordoned: kubectl uncordon NODE",
            ]
        ),
        "**Back to the version before a hop:** a plan cannot do it (its job refuses an older version), only the snapshot and "
        "the binaries that were saved before that hop. What changed in the cluster since then is lost. The images of that "
        "version must still be on the nodes or in the registry: that is why old archives are kept. Take one hop back, or "
        "several at once: `HOP` is the first that is taken back. The steps of each node in this order:",
        shell(
            [
                f"HOP={facts.hops[-1].image_tag}    # {_choice(facts)}; set it on every node",
                "# once, if the cluster still answers",
                f"kubectl -n system-upgrade delete plan {SERVER_PLAN} {AGENT_PLAN} --ignore-not-found",
                "# 1. on every node: stop K3s and its pods, and put back the binary, but start nothing yet",
                "systemctl stop k3s          # on servers",
                "systemctl stop k3s-agent    # on agents",
                "k3s-killall.sh",
                'install -m 0755 "/root/k3s-before-$HOP" /usr/local/bin/k3s',
                "# 2. on the server with the snapshot (the oldest of that name)",
                f'SNAPSHOT=$(ls -tr {_SNAPSHOTS}/before-"$HOP"-* | head -n 1)',
                f'k3s server{config} --cluster-reset --cluster-reset-restore-path="$SNAPSHOT"',
                "systemctl start k3s",
                "# 3. on each other server with etcd, one by one: its data comes from the first",
                f"rm -rf {DATA_DIR}/server/db",
                "systemctl start k3s",
                "# 4. on servers with the control plane alone, one by one",
                "systemctl start k3s",
                "# 5. on every agent",
                "systemctl start k3s-agent",
            ]
        ),
        "With SQLite or an external database, put the copy back instead of 2 and 3, and start all servers. Check:",
        shell(["kubectl get nodes", "kubectl -n system-upgrade get plans"]),
        "Every node is Ready and runs the version before that hop, and no plan is for a later one. A node that is cordoned "
        "needs `kubectl uncordon NODE`.",
    ]


def _choice(facts: Facts) -> str:
    if len(facts.hops) == 1:
        return "the hop that is taken back"
    return "or " + " or ".join(version.image_tag for version in facts.hops[:-1])


def _restart_after(facts: Facts) -> str:
    text = "Then restart K3s, one node at a time, servers first."
    if facts.site.embedded:
        text = "When that is done on **all** servers, restart K3s, one node at a time, servers first (those with etcd before others)."
    return text


def _former_files(facts: Facts) -> list[str]:
    settings = [there for _, there in (*facts.server_files, *facts.agent_files) if there.endswith("/airgap-sync.yaml")]
    there = facts.registries_there
    return [
        f"if test -s {FORMER_REGISTRIES}; then cp -p {FORMER_REGISTRIES} {there}; else rm -f {there}; fi",
        *(f"rm -f {setting}" for setting in dict.fromkeys(settings)),
        # Without the mirrors K3s would look for each of these names where nothing is.
        *([f"rm -f {AGENT_IMAGES}/airgap-sync-pre-pull-*.txt"] if facts.counts.get(Route.REGISTRY) else []),
        *([f"rm -f {AGENT_IMAGES}/{facts.archive}"] if facts.counts.get(Route.EMBEDDED) else []),
    ]
