"""RUNBOOK.md: the ordered steps for exactly this bundle and site, each with its check, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bundler.k3s.features import EMBEDDED_STABLE, IMAGES_WATCHED, shares_imports
from bundler.k3s.version import K3sVersion
from bundler.oci.platform import Platform
from bundler.progress import people_bytes
from bundler.site.routes import Mode, Route, Site

AGENT_IMAGES = "/var/lib/rancher/k3s/agent/images"
CERTS_D = "/var/lib/rancher/k3s/agent/etc/containerd/certs.d"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the steps depend on.

    Attributes:
        made_by: One line that says what made the file.
        site: The site.
        counts: Images by route.
        registries: Source registries of the images.
        hops: The releases that are upgraded to, in order.
        plan_files: The file of each hop.
        suc_version: Of the controller whose objects were written, if any.
        suc_files: The names of the files with its objects, in the order to apply.
        archive: A file name for the bundle in agent/images that no former bundle had.
        bytes_by_platform: What a node of each platform fetches at most.
        node_dir: K3s's configuration directory on nodes.
        server_files: What is copied to servers: name here, path there.
        agent_files: What is copied to agents.
        deadline_s: How long a job may take.
    """

    made_by: str
    site: Site
    counts: dict[Route, int]
    registries: Sequence[str]
    hops: Sequence[K3sVersion]
    plan_files: Sequence[str]
    suc_version: str | None
    suc_files: Sequence[str]
    archive: str
    bytes_by_platform: dict[Platform, int]
    node_dir: str
    server_files: Sequence[tuple[str, str]]
    agent_files: Sequence[tuple[str, str]]
    deadline_s: int

    @property
    def versions(self) -> list[K3sVersion]:
        """All versions that nodes run on the way."""
        return [*([self.site.running] if self.site.running else []), *self.hops]


@dataclass(frozen=True, slots=True)
class _Step:
    title: str
    text: str
    do: Sequence[str] = ()
    check: Sequence[str] = ()
    expect: str = ""


def runbook(facts: Facts) -> str:
    """Return RUNBOOK.md."""
    steps = [
        *_preparation(facts),
        *_images(facts),
        *_proof(facts),
        *_upgrade(facts),
    ]
    parts = [
        "# Runbook: " + (_path(facts) if facts.hops else "images of this bundle"),
        f"<!-- {facts.made_by} -->",
        _introduction(facts),
        "Set these once in the shell that you work in:",
        _shell(
            [
                "BUNDLE=/media/usb/k3s          # where the bundle is mounted",
                "CONFIG=$PWD                    # this directory",
            ]
        ),
    ]
    for number, step in enumerate(steps, 1):
        parts += _rendered(number, step)
    parts += _way_back(facts)
    return "\n\n".join(parts) + "\n"


def _rendered(number: int, step: _Step) -> list[str]:
    parts = [f"## {number}. {step.title}", step.text]
    if step.do:
        parts.append(_shell(step.do))
    if step.check:
        parts += ["Check:", _shell(step.check)]
    if step.expect:
        parts.append(step.expect)
    return [part for part in parts if part]


def _shell(lines: Sequence[str]) -> str:
    return "\n".join(["```sh", *lines, "```"])


def _path(facts: Facts) -> str:
    return " to ".join(str(version) for version in facts.versions)


def _introduction(facts: Facts) -> str:
    site = facts.site
    counts = {route: facts.counts.get(route, 0) for route in Route}
    target = f"`{site.target}`" if site.target else "no registry"
    match site.mode:
        case Mode.REGISTRY:
            how = f"All {counts[Route.REGISTRY]} images go into {target}, and every node pulls them from there."
        case Mode.EMBEDDED:
            how = (
                f"All {counts[Route.EMBEDDED]} images are put on a few nodes (the seeds) as an archive. All other nodes "
                "pull them from these, through K3s's embedded registry. There is no registry to run."
            )
        case Mode.HYBRID:
            how = (
                f"{counts[Route.REGISTRY]} images go into {target}, {counts[Route.EMBEDDED]} are put on a few nodes "
                "(the seeds) as an archive, from where K3s's embedded registry shares them."
            )
    return how + "\n\n" + _where_nodes_look(facts)


def _where_nodes_look(facts: Facts) -> str:
    site = facts.site
    registries = ", ".join(f"`{registry}`" for registry in facts.registries)
    order = []
    if site.embedded:
        order.append("the other nodes (a miss costs up to some seconds: 5 s a try, three tries)")
    if site.target:
        order.append(f"the endpoint `{site.target.url}` (a miss costs one request)")
    if site.default_endpoint:
        order.append(
            "the source registry itself (in an air gap this fails, at worst after minutes, and the kubelet then shows "
            "only this last error: the others are in `/var/lib/rancher/k3s/agent/containerd/containerd.log`)"
        )
    listed = "\n".join(f"{number}. {place}" for number, place in enumerate(order, 1))
    return (
        f"Where an image was *put* does not decide where nodes *look*: for each source registry ({registries}) K3s asks, "
        f"in this order,\n\n{listed}\n\nand takes the first that has it. Image names stay as they are everywhere."
    )


# --- before -----------------------------------------------------------------------------------------------------------


def _preparation(facts: Facts) -> list[_Step]:
    need = "\n".join(
        f"- `{platform}`: {people_bytes(size)} to fetch, about {people_bytes(4 * size)} on disk once unpacked (estimate: "
        "compressed content, and three times that unpacked)"
        for platform, size in facts.bytes_by_platform.items()
    )
    running = facts.site.running
    expect = f"Every node is Ready and runs {running}." if running else "Every node is Ready, and all run one version."
    if facts.hops and not running:
        expect += (
            f" It must be of minor {_before(facts.hops[0])} or {facts.hops[0].minor}: no minor may be skipped. (Give "
            "`config --from VERSION`, and this is checked for you.)"
        )
    steps = [
        _Step(
            "Look at the cluster",
            f"A node needs room in `/var/lib/rancher/k3s`, at most:\n\n{need}",
            ["df -h /var/lib/rancher/k3s    # on every node"],
            ["kubectl get nodes -o wide"],
            expect,
        )
    ]
    if facts.counts.get(Route.REGISTRY):
        steps.append(
            _Step(
                "Load the registry",
                "Give credentials as `airgap-sync push --help` tells. What is there already is not sent again.",
                ["airgap-sync push $BUNDLE --site $CONFIG/site.json"],
                ["airgap-sync push $BUNDLE --site $CONFIG/site.json --verify all"],
                "It ends with exit code 0, and every image is `up-to-date`.",
            )
        )
    return [*steps, *_node_files(facts)]


def _node_files(facts: Facts) -> list[_Step]:
    def copies(files: Sequence[tuple[str, str]]) -> list[str]:
        return [f"install -D -m 0600 $CONFIG/{here} {there}" for here, there in files]

    steps = [
        _Step(
            "Tell every node where to look",
            "An existing `registries.yaml` is replaced: take over from it what the site still needs. What lies in "
            f"`{facts.node_dir}/config.yaml.d` is read in addition to `config.yaml`.",
            [
                f"test ! -e {facts.node_dir}/registries.yaml || cp -p {facts.node_dir}/registries.yaml "
                "/root/registries.yaml.before",
                "# on servers",
                *copies(facts.server_files),
                "# on agents",
                *copies(facts.agent_files),
            ],
            [f"grep -l airgap-sync {facts.node_dir}/registries.yaml    # on every node, agents too"],
        ),
        _Step(
            "Restart K3s, one node at a time",
            "K3s reads these files only when it starts. Pods keep running. Servers first, then agents; wait for a node "
            "to be Ready before the next.",
            ["systemctl restart k3s          # on a server", "systemctl restart k3s-agent    # on an agent"],
            ["kubectl get nodes", f"ls {CERTS_D}    # on the node"],
            f"The node is Ready, and there is a directory for each of {', '.join(facts.registries)}"
            + (" and one named `_default`." if facts.site.wildcard else "."),
        ),
    ]
    if facts.site.embedded:
        text = (
            "Nodes share images over TCP 5001 and 6443, between all internal addresses of all nodes, agents included. "
            "`K3S_P2P_PORT` changes the first; it must be the same everywhere."
        )
        early = [version for version in facts.versions if not EMBEDDED_STABLE.in_version(version)]
        if early:
            text += f" In {', '.join(map(str, early))} the embedded registry is still experimental."
        steps.append(
            _Step(
                "See that nodes share images",
                text,
                (),
                ["kubectl get nodes -L p2p.k3s.cattle.io/enabled", "ss -tln '( sport = :5001 or sport = :6443 )'"],
                "Every node has `true` in the last column, and listens on both ports. A node without it has no entry "
                "under `mirrors` in its registries.yaml, or was not restarted.",
            )
        )
    return steps


# --- images -----------------------------------------------------------------------------------------------------------


def _images(facts: Facts) -> list[_Step]:
    steps = []
    if facts.counts.get(Route.EMBEDDED):
        steps.append(_seeds(facts))
    if facts.counts.get(Route.REGISTRY):
        watched = IMAGES_WATCHED.in_all(facts.versions)
        steps.append(
            _Step(
                "Let every node pull beforehand",
                "So that nothing is pulled while nodes are cordoned, and a registry that is down then does no harm."
                + ("" if watched else " The versions here read the file only when K3s starts: restart it."),
                [
                    f"mkdir -p {AGENT_IMAGES}    # on every node",
                    f"install -m 0644 $CONFIG/pre-pull.txt {AGENT_IMAGES}/../pre-pull.txt.new",
                    f"mv {AGENT_IMAGES}/../pre-pull.txt.new {AGENT_IMAGES}/airgap-sync-pre-pull.txt",
                ],
                ["k3s crictl images    # on every node"],
                "All images of `pre-pull.txt` are there. What failed is in the log of K3s (`journalctl -u k3s`).",
            )
        )
    return steps


def _seeds(facts: Facts) -> _Step:
    platforms = ", ".join(f"`{platform}`" for platform in facts.bytes_by_platform)
    text = (
        f"Choose at least two nodes of each platform ({platforms}), servers first. The bundle is an OCI layout with full "
        "names, which K3s imports as it is. It is written beside the folder and renamed into it, so that K3s never reads "
        "half of it; and it has a name of its own, since K3s may not read a known name again."
    )
    if not IMAGES_WATCHED.in_all(facts.versions):
        text += " The versions here import only when K3s starts: restart the seeds, one by one."
    broken = [version for version in facts.versions if not shares_imports(version)]
    if broken:
        text += (
            f" **{', '.join(map(str, broken))} does not share imported images (k3s-io/k3s#13222): put the archive on "
            "every node.**"
        )
    return _Step(
        "Put the images on the seeds",
        text,
        [
            f"mkdir -p {AGENT_IMAGES}    # on each seed",
            f"tar -C $BUNDLE -cf {AGENT_IMAGES}/../{facts.archive}.new oci-layout index.json blobs",
            f"mv {AGENT_IMAGES}/../{facts.archive}.new {AGENT_IMAGES}/{facts.archive}",
        ],
        ["k3s ctr -n k8s.io images check | grep -v ' complete '    # on each seed"],
        "No image of this bundle is listed. Leave the archive there until every node is upgraded: without it K3s no "
        "longer protects its images from the kubelet's clean-up.",
    )


# --- proof and upgrade ------------------------------------------------------------------------------------------------


def _proof(facts: Facts) -> list[_Step]:
    steps = [
        _Step(
            "Prove that every node can pull everything",
            "On every node, then once for all. Nothing is changed by it.",
            [
                'airgap-sync preflight $BUNDLE --config $CONFIG --out "$(hostname).json"    # on every node',
                "airgap-sync preflight $BUNDLE --config $CONFIG --kubeconfig /etc/rancher/k3s/k3s.yaml --collect *.json    # on a server",
            ],
            (),
            "The last command ends with exit code 0 and `verdict: pass`. Do not go on before it does: each line says what "
            "to mend.",
        )
    ]
    if facts.hops:
        steps.append(
            _Step(
                "Take a snapshot",
                "A minor release cannot be taken back without it. With an external database, back that up instead, and with "
                "SQLite the directory `/var/lib/rancher/k3s/server/db` of the stopped server. Keep the token with it.",
                [
                    "k3s etcd-snapshot save --name before-upgrade    # on a server",
                    "cp -p /var/lib/rancher/k3s/server/token /root/k3s-token.before",
                ],
                ["k3s etcd-snapshot ls"],
                "The snapshot is listed. Copy it off the node.",
            )
        )
    return steps


def _upgrade(facts: Facts) -> list[_Step]:
    steps: list[_Step] = []
    if not facts.hops:
        return steps
    if facts.suc_files:
        steps.append(
            _Step(
                f"Install system-upgrade-controller {facts.suc_version}",
                "It makes the kind `Plan` itself when it starts, so plans can be applied only after that. A controller that "
                "is there already reads a changed ConfigMap only when its pod starts again.",
                [
                    *(f"kubectl apply -f $CONFIG/{name}" for name in facts.suc_files),
                    "kubectl -n system-upgrade rollout restart deployment/system-upgrade-controller",
                ],
                [
                    "kubectl -n system-upgrade rollout status deployment/system-upgrade-controller --timeout 5m",
                    "kubectl wait --for condition=established crd/plans.upgrade.cattle.io --timeout 5m",
                ],
            )
        )
    else:
        steps.append(
            _Step(
                "Look at system-upgrade-controller",
                "The bundle carries none, so the site's own is used. Its jobs must not use the pull policy `Always` where "
                "images are only imported.",
                (),
                [
                    "kubectl -n system-upgrade get configmap default-controller-env -o "
                    "jsonpath='{.data.SYSTEM_UPGRADE_JOB_IMAGE_PULL_POLICY}'"
                ],
                "It says `IfNotPresent`.",
            )
        )
    for number, (version, name) in enumerate(zip(facts.hops, facts.plan_files, strict=True), 1):
        last = number == len(facts.hops)
        steps.append(
            _Step(
                f"Upgrade to {version}",
                "Servers one by one, then agents. A node whose job fails stays cordoned: `kubectl uncordon NODE` once it is "
                f"mended. A job may take {facts.deadline_s} s.",
                [f"kubectl apply -f $CONFIG/{name}"],
                [
                    "kubectl -n system-upgrade get plans,jobs",
                    "kubectl get nodes",
                    "kubectl get pods -A | grep -vE ' (Running|Completed) '",
                ],
                f"Every node is Ready and runs {version}, and no pod is listed."
                + (
                    ""
                    if last
                    else " Only then go on, with the preflight first: nodes of the new version read the same files."
                ),
            )
        )
    pulled = facts.counts.get(Route.REGISTRY, 0) > 0
    steps.append(
        _Step(
            "Tidy up",
            "When every node is upgraded and the site works. Not earlier: the archive of the version before is part of the "
            "way back.",
            [
                *([f"rm -f {AGENT_IMAGES}/airgap-sync-pre-pull.txt    # on every node"] if pulled else []),
                f"ls {AGENT_IMAGES}    # remove archives of versions that no node runs any more",
            ],
        )
    )
    return steps


def _before(version: K3sVersion) -> str:
    return f"v{version.major}.{version.minor_number - 1}"


def _former_files(facts: Facts) -> list[str]:
    lines = [
        f"cp -p /root/registries.yaml.before {facts.node_dir}/registries.yaml    # or remove it, if there was none"
    ]
    settings = [there for _, there in (*facts.server_files, *facts.agent_files) if there.endswith("/airgap-sync.yaml")]
    return lines + [f"rm -f {there}" for there in dict.fromkeys(settings)]


def _way_back(facts: Facts) -> list[str]:
    if not facts.hops:
        return [
            "## The way back",
            "Put the former files back on every node, and restart K3s one node at a time:",
            _shell(_former_files(facts)),
        ]
    before = str(facts.site.running) if facts.site.running else "the former version"
    return [
        "## The way back",
        "Before the first plan was applied: put the former files back on every node, and restart K3s one node at a time.",
        _shell(_former_files(facts)),
        "While a hop is under way: stop it, and mend what is wrong; nodes that are done stay as they are. A cluster with "
        "both versions of one hop keeps working.",
        _shell(
            [
                "kubectl -n system-upgrade delete plan server-plan agent-plan",
                "kubectl get nodes    # uncordon those that are cordoned: kubectl uncordon NODE",
            ]
        ),
        f"Back to {before}: a K3s minor cannot be taken back by a plan (the job refuses an older version), only by the "
        "snapshot. The images of that version must still be on the nodes or in the registry: that is why old archives "
        "are kept.",
        _shell(
            [
                "systemctl stop k3s    # on every server; k3s-agent on every agent",
                f"install -m 0755 k3s-of-{before.replace(' ', '-')} /usr/local/bin/k3s    # on every node: the former binary",
                "k3s server --cluster-reset --cluster-reset-restore-path=/var/lib/rancher/k3s/server/db/snapshots/SNAPSHOT    # on one server",
                "systemctl start k3s    # there; on the other servers remove /var/lib/rancher/k3s/server/db first, then start",
            ]
        ),
        "Check with `kubectl get nodes`: every node is Ready and runs the former version.",
    ]
