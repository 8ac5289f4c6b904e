"""The steps of RUNBOOK.md up to the upgrade: nodes, images, and the proof that every node gets every image."""

from __future__ import annotations

from collections.abc import Sequence

from bundler.k3s.features import EMBEDDED_STABLE, IMAGES_WATCHED, shares_imports
from bundler.k3s.version import K3sVersion
from bundler.progress import people_bytes
from bundler.site.routes import Mode, Route
from bundler.site.runfacts import AGENT_IMAGES, DATA_DIR, NODE_DIR, Facts, Step

PROOF = "Prove that every node can pull everything"
#: Where the former registries.yaml is kept; empty if there was none.
FORMER_REGISTRIES = "/root/registries.yaml.before"

_CONTAINERD = f"{DATA_DIR}/agent/etc/containerd"


# --- nodes ------------------------------------------------------------------------------------------------------------


def preparation_steps(facts: Facts) -> list[Step]:
    """Return what comes first: the cluster, the registry, and the files of nodes."""
    running = facts.site.running
    expect = f"Every node is Ready and runs {running}." if running else "Every node is Ready, and all run one version."
    if facts.hops and not running:
        expect += (
            f" It must be of minor {_before(facts.hops[0])} or {facts.hops[0].minor}: no minor may be skipped. (Give "
            "`config --from VERSION`, and this is checked for you.)"
        )
    steps = [
        Step(
            "Look at the cluster",
            f"A node needs room in `{DATA_DIR}`, at most:\n\n{_room(facts)}",
            [f"df -h {DATA_DIR}    # on every node"],
            ["kubectl get nodes -o wide"],
            expect,
        )
    ]
    if facts.counts.get(Route.REGISTRY):
        ca = ' --ca-file "$CONFIG/ca.pem"' if any(here == "ca.pem" for here, _ in facts.server_files) else ""
        steps.append(
            Step(
                "Load the registry",
                "Give credentials as `airgap-sync push --help` tells. What is there already is not sent again.",
                [f'airgap-sync push "$BUNDLE" --site "$CONFIG/site.json"{ca}    # from one machine'],
                [f'airgap-sync push "$BUNDLE" --site "$CONFIG/site.json"{ca} --verify all'],
                "It ends with exit code 0, and every image is `up-to-date`.",
            )
        )
    steps += [_node_files(facts), _restart(facts)]
    if facts.site.embedded:
        steps.append(_sharing(facts))
    return steps


def _room(facts: Facts) -> str:
    lines = [
        f"- `{platform}`: {people_bytes(size)} to fetch, about {people_bytes(4 * size)} on disk once unpacked (estimate: "
        "compressed content, and three times that unpacked)"
        for platform, size in facts.bytes_by_platform.items()
    ]
    if facts.counts.get(Route.EMBEDDED):
        size = facts.archive_bytes
        why = "it is the whole bundle, with all platforms"
        if facts.counts.get(Route.REGISTRY):
            why += ", and with the images that go into the registry"
        lines.append(
            f"- on the seeds {people_bytes(2 * size)} more: {people_bytes(size)} for the archive and as much once it is "
            f"imported ({why})"
        )
    return "\n".join(lines)


def _node_files(facts: Facts) -> Step:
    def copies(files: Sequence[tuple[str, str]]) -> list[str]:
        return [f'install -D -m 0600 "$CONFIG/{here}" {there}' for here, there in files]

    there = facts.registries_there
    text = (
        "An existing `registries.yaml` is replaced: take over from it what the site still needs. Before that it is saved, "
        f"the first time only; if there was none, the saved file is empty. What lies in `{facts.node_dir}/config.yaml.d` is "
        "read in addition to `config.yaml`."
    )
    if facts.node_dir != NODE_DIR:
        text += (
            f"\n\nK3s looks into `{NODE_DIR}` unless it is told otherwise, and so does `airgap-sync preflight` on a node "
            f"(the commands below name the file for it). Every K3s here must be started with `--config "
            f"{facts.node_dir}/config.yaml`, and that file must say `private-registry: {there}`."
        )
    if facts.credentials_missing and facts.site.target:
        text += (
            f"\n\n`registries.yaml` holds no credentials. If `{facts.site.target.host}` asks for some when images are pulled, "
            "put them into the copy of it in this directory now, before it goes to the nodes; comments at its end show "
            "where. (Or run `airgap-sync config` again, with `--with-credentials`.)"
        )
    if facts.client_key_missing:
        text += (
            "\n\nThe key of the client certificate is not among these files. Put it on every node yourself, as "
            f"`{facts.client_key_missing}`, mode 0600; without it nodes get nothing from the registry."
        )
    return Step(
        "Tell every node where to look",
        text,
        [
            "# on every node",
            f"test -e {FORMER_REGISTRIES} || test -e {there} || touch {FORMER_REGISTRIES}",
            f"test -e {FORMER_REGISTRIES} || cp -p {there} {FORMER_REGISTRIES}",
            "# on servers",
            *copies(facts.server_files),
            "# on agents",
            *copies(facts.agent_files),
        ],
        [
            f"ls -l {FORMER_REGISTRIES}    # on every node, agents too",
            f"grep -l airgap-sync {there}",
            *([f"test -s {facts.client_key_missing} && echo there"] if facts.client_key_missing else []),
        ],
    )


def _restart(facts: Facts) -> Step:
    text = (
        "K3s reads these files only when it starts. Pods keep running. Servers first, then agents; wait for a node to be "
        "Ready before the next."
    )
    if facts.site.embedded:
        text += (
            " Servers compare `embedded-registry` when they join, so the files must be on **all** servers before the first is "
            "restarted. Of the servers, those with etcd go before those with the control plane alone."
        )
    expect = "The node is Ready"
    directories = sorted(facts.hosts.files)
    check = ["kubectl get nodes"]
    if not facts.has_hosts_toml:
        check.append(f"grep -c mirrors {_CONTAINERD}/config.toml    # on the node")
        expect += f", and the count is not 0: {facts.versions[0]} keeps its mirrors in that file."
    elif directories:
        check.append(f"ls {_CONTAINERD}/certs.d    # on the node")
        names = ", ".join(f"`{name}`" for name in directories)
        expect += f", and there is a directory of each of these names: {names}."
    else:
        expect += ". (K3s writes nothing for containerd here: every registry is asked itself.)"
    return Step(
        "Restart K3s, one node at a time",
        text,
        ["systemctl restart k3s          # on a server", "systemctl restart k3s-agent    # on an agent"],
        check,
        expect,
    )


def _sharing(facts: Facts) -> Step:
    text = (
        "Nodes share images over TCP 5001 and 6443, between all internal addresses of all nodes, agents included. "
        "`K3S_P2P_PORT` changes the first; it must be the same everywhere."
    )
    early = [version for version in facts.versions if not EMBEDDED_STABLE.in_version(version)]
    if early:
        text += f" In {', '.join(map(str, early))} the embedded registry is still experimental."
    return Step(
        "See that nodes share images",
        text,
        (),
        [
            "kubectl get nodes -L p2p.k3s.cattle.io/enabled",
            "ss -tln '( sport = :5001 or sport = :6443 )'    # on every node",
        ],
        "Every node has `true` in the last column, and listens on both ports. A node without it has no entry under "
        "`mirrors` in its registries.yaml, or was not restarted.",
    )


# --- images -----------------------------------------------------------------------------------------------------------


def image_steps(facts: Facts) -> list[Step]:
    """Return how images get to nodes, with the proof before any node pulls them for good."""
    steps = [_seeds(facts)] if facts.counts.get(Route.EMBEDDED) else []
    steps.append(_proof(facts))
    if facts.counts.get(Route.REGISTRY):
        steps.append(_pre_pull(facts))
    return steps


def _seeds(facts: Facts) -> Step:
    platforms = ", ".join(f"`{platform}`" for platform in facts.bytes_by_platform)
    text = (
        f"Choose at least two nodes of each platform ({platforms}), servers first. The bundle is an OCI layout with full "
        "names, which K3s imports as it is. It is written beside the folder and renamed into it, so that K3s never reads "
        "half of it; and it has a name of its own, since K3s may not read a known name again. Do one seed after the other, "
        "check included: the preflight also takes what another node shares, so from the second seed on the log of K3s counts."
    )
    if facts.site.mode is Mode.HYBRID and facts.counts.get(Route.REGISTRY):
        text += (
            "\n\nThe archive is the whole bundle, although only "
            f"{facts.counts.get(Route.EMBEDDED, 0)} of its {sum(facts.counts.values())} images are put here: the others cost "
            "room on the seeds, and do no harm."
        )
    if not IMAGES_WATCHED.in_all(facts.versions):
        text += "\n\nThe versions here import only when K3s starts: restart the seeds, one by one."
    broken = [version for version in facts.versions if not shares_imports(version)]
    if broken:
        text += (
            f"\n\n**{', '.join(map(str, broken))} does not share imported images (k3s-io/k3s#13222): put the archive on "
            "every node.**"
        )
    return Step(
        "Put the images on the seeds",
        text,
        [
            "# on each seed: is every blob what its name says? It prints nothing if so",
            '(cd "$BUNDLE/blobs/sha256" && for f in [0-9a-f]*; do echo "$f  $f"; done | sha256sum --check --quiet)',
            f"mkdir -p {AGENT_IMAGES}",
            f'tar -C "$BUNDLE" -cf {AGENT_IMAGES}/../{facts.archive}.new oci-layout index.json blobs',
            f"mv {AGENT_IMAGES}/../{facts.archive}.new {AGENT_IMAGES}/{facts.archive}",
        ],
        [
            f"journalctl -u 'k3s*' --no-pager | grep {facts.archive}    # on each seed",
            f"{facts.own_preflight}    # on each seed",
        ],
        "K3s says that it imported the archive, with no error, and the preflight, which looks into containerd, names none of "
        f"the {facts.counts.get(Route.EMBEDDED, 0)} images as `FAIL` or `not checked`. (What it says of other things is for "
        "the proof.) Leave the archive there until every node is upgraded: without it K3s no longer protects its images from "
        "the kubelet's clean-up.",
    )


def _proof(facts: Facts) -> Step:
    return Step(
        PROOF,
        "On every node, servers, agents and seeds alike, for itself; then once for all, on one server that the results were "
        "copied to. Nothing is changed by it. Where a node's name in the cluster is not its host name, add `--node NAME`.",
        [
            "# on every node",
            'rm -f "$RESULTS/$(hostname).json"',
            'mkdir -p "$RESULTS"',
            f'{facts.own_preflight} --out "$RESULTS/$(hostname).json"',
            "# on every node but that server (SERVER)",
            'scp "$RESULTS/$(hostname).json" "root@SERVER:$RESULTS/"',
        ],
        [
            "# on that server",
            'airgap-sync preflight "$BUNDLE" --config "$CONFIG" --kubeconfig /etc/rancher/k3s/k3s.yaml --collect "$RESULTS"/*.json',
        ],
        "It ends with exit code 0 and `verdict: pass`. Do not go on before it does: each line says what to mend, and a node "
        "without a result is named.",
    )


def _pre_pull(facts: Facts) -> Step:
    text = (
        "So that nothing is pulled while nodes are cordoned, and a registry that is down then does no harm. The file has a "
        "name of its own on nodes, since K3s may not read a known name again."
    )
    if not IMAGES_WATCHED.in_all(facts.versions):
        text += " The versions here read it only when K3s starts: restart it, one node at a time."
    return Step(
        "Let every node pull beforehand",
        text,
        [
            f"mkdir -p {AGENT_IMAGES}    # on every node",
            f'install -m 0644 "$CONFIG/pre-pull.txt" {AGENT_IMAGES}/../{facts.pre_pull}.new',
            f"mv {AGENT_IMAGES}/../{facts.pre_pull}.new {AGENT_IMAGES}/{facts.pre_pull}",
        ],
        ["k3s crictl images    # on every node"],
        "All images of `pre-pull.txt` are there. What failed is in the log of K3s (`journalctl -u k3s`, on agents "
        "`journalctl -u k3s-agent`).",
    )


def _before(version: K3sVersion) -> str:
    return f"v{version.major}.{version.minor_number - 1}"
