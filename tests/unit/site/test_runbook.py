"""RUNBOOK.md: the order of its steps, and that each command is one that an operator can run as it stands."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundler.k3s.hosts import NodeSettings, render
from bundler.k3s.registries import RegistriesFile
from bundler.k3s.version import K3sVersion
from bundler.oci.platform import Platform
from bundler.oci.reference import Reference
from bundler.oci.target import Target
from bundler.site.nodefiles import NodeAccess, registries_yaml
from bundler.site.plans import Window
from bundler.site.routes import Mode, Route, Site
from bundler.site.runbook import runbook
from bundler.site.runfacts import Facts

V130, V131, V132 = (K3sVersion.parse(text) for text in ("v1.30.8+k3s1", "v1.31.7+k3s1", "v1.32.3+k3s1"))
V126, V127 = K3sVersion.parse("v1.26.9+k3s1"), K3sVersion.parse("v1.27.9+k3s1")
TARGET = Target.parse("https://harbor.example/k3s")
IMAGES = {"docker.io/rancher/mirrored-pause:3.6": True, "ghcr.io/team/app:1": False, "quay.io/team/tool:1": False}
MODES = list(Mode)
BUNDLE = "0123456789ab"
KUBECONFIG = "/etc/rancher/k3s/k3s.yaml"
IMAGES_DIRECTORY = "/var/lib/rancher/k3s/agent/images"
INSTALLED = ("registries.yaml", "/etc/rancher/k3s/registries.yaml")
SETTINGS = ("config-server.yaml", "/etc/rancher/k3s/config.yaml.d/airgap-sync.yaml")


def facts_of(mode: Mode, running: K3sVersion | None = V130, **changes: Any) -> Facts:
    """Give the facts of a site with two hops; ``site`` changes are by name."""
    target = None if mode is Mode.EMBEDDED else TARGET
    site = replace(Site(mode=mode, target=target, running=running), **changes.pop("site", {}))
    routes = {
        Reference.parse(name): site.route_of(Reference.parse(name), in_k3s_set=in_set)
        for name, in_set in IMAGES.items()
    }
    text = registries_yaml(site, routes.items(), NodeAccess(), "made for a test")
    hops = tuple(changes.pop("hops", (V131, V132)))
    version = running or (hops[0] if hops else None)
    settings = NodeSettings(version, site.embedded, site.default_endpoint)
    facts = Facts(
        made_by="made for a test",
        site=site,
        counts={route: list(routes.values()).count(route) for route in Route},
        registries=sorted({reference.registry for reference in routes}),
        hosts=render(RegistriesFile.parse(text, "registries.yaml"), settings),
        hops=hops,
        plan_files=[f"plans/{number:02}-{hop.image_tag}.yaml" for number, hop in enumerate(hops, 1)],
        suc_version="v0.20.1",
        suc_files=["system-upgrade-controller/10-rbac.yaml"],
        bundle_name=BUNDLE,
        archive_bytes=3_000_000_000,
        bytes_by_platform={Platform.parse("linux/amd64"): 1_000_000_000},
        node_dir="/etc/rancher/k3s",
        server_files=[INSTALLED, *([SETTINGS] if site.embedded else [])],
        agent_files=[INSTALLED],
        deadline_s=900,
    )
    return replace(facts, **changes)


def steps(text: str) -> dict[str, str]:
    """Give each step by its title, in order; the way back is one too."""
    parts = re.split(r"^## (?:[0-9]+\. )?(.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def step(text: str, start: str) -> str:
    """Give the one step whose title starts so."""
    (found,) = (part for title, part in steps(text).items() if title.startswith(start))
    return found


def commands(text: str) -> list[str]:
    """Give all commands, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```\n", text, re.DOTALL)
    lines = [line.partition("#")[0].rstrip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


# --- order --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_images_first_then_the_proof_then_what_changes_the_cluster(mode: Mode) -> None:
    registry, embedded = mode is not Mode.EMBEDDED, mode is not Mode.REGISTRY
    assert list(steps(runbook(facts_of(mode)))) == [
        "Before you begin",
        "Look at the cluster",
        *(["Load the registry"] if registry else []),
        "Tell every node where to look",
        "Restart K3s, one node at a time",
        *(["See that nodes share images", "Put the images on the seeds"] if embedded else []),
        "Prove that every node can pull everything",
        *(["Let every node pull beforehand"] if registry else []),
        "Install system-upgrade-controller v0.20.1",
        f"Save what the way back from {V131} needs",
        f"Upgrade to {V131}",
        f"Save what the way back from {V132} needs",
        f"Upgrade to {V132}",
        "Tidy up",
        "The way back",
    ]


@pytest.mark.parametrize("mode", MODES)
def test_without_a_release_there_is_no_upgrade(mode: Mode) -> None:
    text = runbook(facts_of(mode, hops=()))
    assert [
        title for title in steps(text) if title.startswith(("Install", "Look at s", "Save", "Upgrade", "Tidy"))
    ] == []
    assert "etcd-snapshot" not in text
    assert any(
        line.startswith("if test -s /root/registries.yaml.before") for line in commands(step(text, "The way back"))
    )


def test_without_a_controller_in_the_bundle_that_of_the_site_is_looked_at() -> None:
    text = runbook(facts_of(Mode.REGISTRY, suc_version=None, suc_files=[]))
    assert "It says `IfNotPresent`." in step(text, "Look at system-upgrade-controller")
    assert "Install system-upgrade-controller" not in text


@pytest.mark.parametrize("mode", MODES)
def test_paths_that_the_user_chose_are_quoted(mode: Mode) -> None:
    for line in commands(runbook(facts_of(mode, node_dir="/opt/k3s", client_key_missing="/opt/k3s/client.key"))):
        for used in re.finditer(r"\$(BUNDLE|CONFIG|RESULTS)\b", line):
            assert line.count('"', 0, used.start()) % 2 == 1, line


# --- the proof ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_proof_has_results_of_nodes_alone_in_its_directory(mode: Mode) -> None:
    text = runbook(facts_of(mode))
    assert commands(step(text, "Prove")) == [
        # So that a result from before the last hop is not taken for one of now.
        'rm -f "$RESULTS/$(hostname).json"',
        'mkdir -p "$RESULTS"',
        'airgap-sync preflight "$BUNDLE" --config "$CONFIG" --out "$RESULTS/$(hostname).json"',
        'scp "$RESULTS/$(hostname).json" "root@SERVER:$RESULTS/"',
        f'airgap-sync preflight "$BUNDLE" --config "$CONFIG" --kubeconfig {KUBECONFIG} --collect "$RESULTS"/*.json',
    ]
    before = step(text, "Before you begin")
    # Results of another bundle would be refused, so they lie elsewhere.
    assert f"RESULTS=/root/airgap-sync-results-{BUNDLE}" in commands(before)
    for needed in ("Every node", "the program `airgap-sync`", "the bundle", "a copy of this directory"):
        assert needed in before


def test_the_proof_is_done_again_after_each_hop_but_the_last() -> None:
    text = runbook(facts_of(Mode.REGISTRY))
    again = "only after the step *Prove that every node can pull everything* was done once more, on every node"
    assert again in step(text, f"Upgrade to {V131}")
    assert again not in step(text, f"Upgrade to {V132}")


# --- nodes --------------------------------------------------------------------------------------------------------


def test_the_former_registries_file_is_saved_once() -> None:
    found = commands(step(runbook(facts_of(Mode.REGISTRY)), "Tell every node"))
    saved = "/root/registries.yaml.before"
    assert found[:2] == [
        f"test -e {saved} || test -e /etc/rancher/k3s/registries.yaml || touch {saved}",
        f"test -e {saved} || cp -p /etc/rancher/k3s/registries.yaml {saved}",
    ]
    assert found[2].startswith("install -D -m 0600 ")


def test_only_where_nodes_share_images_do_all_servers_get_the_files_first() -> None:
    for mode in MODES:
        text = runbook(facts_of(mode))
        for part in (step(text, "Restart K3s"), step(text, "The way back")):
            assert ("**all** servers" in part) == (mode is not Mode.REGISTRY)
        restart = step(text, "Restart K3s")
        assert ("those with etcd go before those with the control plane alone" in restart) == (
            mode is not Mode.REGISTRY
        )


@pytest.mark.parametrize(
    ("mode", "site", "names"),
    [
        (Mode.REGISTRY, {}, ["docker.io", "ghcr.io", "quay.io"]),
        (Mode.REGISTRY, {"wildcard": True}, ["_default", "docker.io", "ghcr.io", "harbor.example", "quay.io"]),
        (Mode.EMBEDDED, {}, ["127.0.0.1:6443", "docker.io", "ghcr.io", "quay.io"]),
        (Mode.HYBRID, {}, ["127.0.0.1:6443", "docker.io", "ghcr.io", "quay.io"]),
    ],
    ids=["registry", "wildcard", "embedded", "hybrid"],
)
def test_the_directories_to_expect_are_those_that_k3s_makes(mode: Mode, site: dict[str, Any], names: list[str]) -> None:
    part = step(runbook(facts_of(mode, site=site)), "Restart K3s")
    assert "ls /var/lib/rancher/k3s/agent/etc/containerd/certs.d" in commands(part)
    assert f"a directory of each of these names: {', '.join(f'`{name}`' for name in names)}." in part


def test_where_k3s_makes_no_directory_none_is_looked_for() -> None:
    # Of registries that have an entry without an endpoint.
    nothing = render(RegistriesFile.parse("mirrors: {quay.io: {}}", "registries.yaml"), NodeSettings(V130))
    part = step(runbook(facts_of(Mode.REGISTRY, hosts=nothing)), "Restart K3s")
    assert commands(part)[2:] == ["kubectl get nodes"]


def test_before_certs_d_the_mirrors_are_in_one_file() -> None:
    part = step(runbook(facts_of(Mode.REGISTRY, V126, hops=(V127,))), "Restart K3s")
    assert "grep -c mirrors /var/lib/rancher/k3s/agent/etc/containerd/config.toml" in commands(part)
    assert "certs.d" not in part
    assert f"{V126} keeps its mirrors in that file" in part


def test_another_directory_of_k3s_is_told_to_k3s_and_to_the_preflight() -> None:
    text = runbook(facts_of(Mode.HYBRID, node_dir="/opt/k3s"))
    part = step(text, "Tell every node")
    assert "--config /opt/k3s/config.yaml" in part
    assert "`private-registry: /opt/k3s/registries.yaml`" in part
    assert "K3s looks into `/etc/rancher/k3s` unless it is told otherwise, and so does `airgap-sync preflight`" in part
    own = [line for line in commands(text) if line.startswith("airgap-sync preflight") and "--collect" not in line]
    assert len(own) == 2
    assert all(" --registries /opt/k3s/registries.yaml" in line for line in own)
    assert "k3s server --config /opt/k3s/config.yaml --cluster-reset" in step(text, "The way back")
    usual = runbook(facts_of(Mode.HYBRID))
    assert "private-registry" not in usual
    assert "--registries" not in usual


def test_what_is_to_be_put_there_by_hand_is_said() -> None:
    key = "/etc/rancher/k3s/client.key"
    text = runbook(facts_of(Mode.REGISTRY, credentials_missing=True, client_key_missing=key))
    part = step(text, "Tell every node")
    assert "`registries.yaml` holds no credentials. If `harbor.example` asks for some" in part
    assert f"Put it on every node yourself, as `{key}`, mode 0600" in part
    assert f"test -s {key} && echo there" in commands(part)
    # It is said before the restart that reads the file.
    assert text.index("holds no credentials") < text.index("systemctl restart k3s")
    without = runbook(facts_of(Mode.REGISTRY))
    assert "credentials. If" not in without
    assert "client certificate" not in without


# --- where nodes look ---------------------------------------------------------------------------------------------

ITSELF = "the registry of that name itself"
HARBOR = "the endpoint `https://harbor.example`"


@pytest.mark.parametrize(
    ("mode", "site", "lines"),
    [
        (Mode.REGISTRY, {}, [f"- `docker.io`, `ghcr.io`, `quay.io`: {HARBOR}, then {ITSELF}"]),
        (Mode.REGISTRY, {"default_endpoint": False}, [f"- `docker.io`, `ghcr.io`, `quay.io`: {HARBOR}"]),
        (
            Mode.REGISTRY,
            {"wildcard": True},
            [f"- `docker.io`, `ghcr.io`, `quay.io`, any other: {HARBOR}, then {ITSELF}"],
        ),
        (Mode.EMBEDDED, {}, [f"- `docker.io`, `ghcr.io`, `quay.io`: the other nodes, then {ITSELF}"]),
        (
            Mode.HYBRID,
            {},
            [
                f"- `docker.io`: the other nodes, then {HARBOR}, then {ITSELF}",
                f"- `ghcr.io`, `quay.io`: the other nodes, then {ITSELF}",
            ],
        ),
        (
            Mode.HYBRID,
            {"default_endpoint": False},
            [f"- `docker.io`: the other nodes, then {HARBOR}", "- `ghcr.io`, `quay.io`: the other nodes"],
        ),
    ],
    ids=["registry", "registry alone", "wildcard", "embedded", "hybrid", "hybrid alone"],
)
def test_each_registry_is_said_to_be_looked_for_where_it_is(mode: Mode, site: dict[str, Any], lines: list[str]) -> None:
    text = runbook(facts_of(mode, site=site)).partition("## Before you begin")[0]
    orders, _, costs = text.partition("What a miss costs")
    assert [line for line in orders.splitlines() if line.startswith("- ")] == lines
    # Only what is asked can cost something.
    for place in ("the other nodes", HARBOR, ITSELF):
        assert (f"- {place}: " in costs) == any(place in line for line in lines)


# --- images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [Mode.EMBEDDED, Mode.HYBRID])
def test_the_seeds_are_checked_by_what_must_be_there(mode: Mode) -> None:
    part = step(runbook(facts_of(mode)), "Put the images on the seeds")
    assert 'airgap-sync preflight "$BUNDLE" --config "$CONFIG"' in commands(part)
    assert f"journalctl -u 'k3s*' --no-pager | grep airgap-sync-{BUNDLE}.tar" in commands(part)
    assert "ctr" not in part


def test_the_archive_costs_room_on_the_seeds() -> None:
    whole = "The archive is the whole bundle, although only 2 of its 3 images are put here"
    for mode in MODES:
        text = runbook(facts_of(mode))
        room = step(text, "Look at the cluster")
        assert "- `linux/amd64`: 1.0 GB to fetch, about 4.0 GB on disk" in room
        assert ("on the seeds 6.0 GB more: 3.0 GB for the archive" in room) == (mode is not Mode.REGISTRY)
        assert ("with the images that go into the registry" in room) == (mode is Mode.HYBRID)
        assert (whole in text) == (mode is Mode.HYBRID)


@pytest.mark.parametrize("mode", [Mode.REGISTRY, Mode.HYBRID])
def test_the_list_to_pull_has_the_name_of_its_bundle_on_nodes(mode: Mode) -> None:
    text = runbook(facts_of(mode))
    name = f"airgap-sync-pre-pull-{BUNDLE}.txt"
    assert commands(step(text, "Let every node pull beforehand"))[1:3] == [
        f'install -m 0644 "$CONFIG/pre-pull.txt" {IMAGES_DIRECTORY}/../{name}.new',
        f"mv {IMAGES_DIRECTORY}/../{name}.new {IMAGES_DIRECTORY}/{name}",
    ]
    assert f"rm -f {IMAGES_DIRECTORY}/airgap-sync-pre-pull-*.txt" in commands(step(text, "Tidy up"))
    assert "pre-pull" not in runbook(facts_of(Mode.EMBEDDED))


# --- the upgrade and the way back ---------------------------------------------------------------------------------


def test_the_kind_is_waited_for_before_it_is_asked_about() -> None:
    part = step(runbook(facts_of(Mode.REGISTRY)), "Install system-upgrade-controller")
    found = commands(part)
    wait = next(line for line in found if line.startswith("kubectl wait"))
    assert found.index("until kubectl get crd plans.upgrade.cattle.io; do sleep 2; done") == found.index(wait) - 1
    assert "v0.13.2" in part
    assert "kubectl delete clusterrolebinding system-upgrade" in part


@pytest.mark.parametrize("mode", MODES)
def test_the_way_back_uses_only_what_was_saved_before_the_hop(mode: Mode) -> None:
    text = runbook(facts_of(mode))
    back = step(text, "The way back")
    for before, hop in ((V130, V131), (V131, V132)):
        part = step(text, f"Save what the way back from {hop} needs")
        saved = f"/root/k3s-before-{hop.image_tag}"
        found = commands(part)
        assert f"k3s etcd-snapshot save --name before-{hop.image_tag}" in found
        # Done again after half of the hop, it keeps the binary of before.
        assert f"test -e {saved} || cp -p /usr/local/bin/k3s {saved}" in found
        assert f"{saved} --version" in found
        assert f"Every binary says {before}." in part
        assert hop.image_tag in back
        assert any(saved in line for line in commands(step(text, "Tidy up")))
    found = commands(back)
    assert 'install -m 0755 "/root/k3s-before-$HOP" /usr/local/bin/k3s' in found
    assert 'SNAPSHOT=$(ls -tr /var/lib/rancher/k3s/server/db/snapshots/before-"$HOP"-* | head -n 1)' in found
    # What is stopped is started, servers before agents.
    starts = [line for line in found if line.startswith("systemctl start")]
    assert starts == [*["systemctl start k3s"] * 3, "systemctl start k3s-agent"]
    stopped = found.index("systemctl stop k3s-agent")
    reset = next(at for at, line in enumerate(found) if "--cluster-reset" in line)
    assert stopped < reset < found.index("systemctl start k3s") < found.index("systemctl start k3s-agent")


def test_the_version_before_the_first_hop_may_not_be_known() -> None:
    text = runbook(facts_of(Mode.REGISTRY, None))
    assert "Every binary says the version that the nodes run now." in step(text, f"Save what the way back from {V131}")
    assert f"Every binary says {V131}." in step(text, f"Save what the way back from {V132}")


@pytest.mark.parametrize("former", ["mirrors: {}\n", None], ids=["there was one", "there was none"])
@pytest.mark.parametrize("hops", [(), (V131,)], ids=["images alone", "upgrade"])
def test_the_former_files_come_back_also_if_the_step_was_done_twice(
    tmp_path: Path, former: str | None, hops: tuple[K3sVersion, ...]
) -> None:
    text = runbook(facts_of(Mode.EMBEDDED, hops=hops))
    there, settings = (tmp_path / path.removeprefix("/") for path in (INSTALLED[1], SETTINGS[1]))
    (tmp_path / "root").mkdir()
    there.parent.mkdir(parents=True)
    if former is not None:
        there.write_text(former)
    for name in (INSTALLED[0], SETTINGS[0]):
        (tmp_path / name).write_text("of airgap-sync\n")

    def done(lines: list[str]) -> None:
        shell = "\n".join(
            line.replace("/root/", f"{tmp_path}/root/").replace("/etc/", f"{tmp_path}/etc/") for line in lines
        )
        environment = {"CONFIG": str(tmp_path), "PATH": "/usr/bin:/bin"}
        subprocess.run(["sh", "-ceu", shell], check=True, env=environment)

    for _ in range(2):
        done([line for line in commands(step(text, "Tell every node")) if line.startswith(("test -e", "install"))])
        assert there.read_text() == "of airgap-sync\n"
        assert settings.exists()
    done(commands(step(text, "The way back"))[:2])
    assert (there.read_text() if there.exists() else None) == former
    assert not settings.exists()


@pytest.mark.parametrize(
    ("window", "said", "halves"),
    [
        ("fri-sat 22:00-04:00 Europe/Berlin", "only on fri, sat from 22:00 to 04:00 (Europe/Berlin)", True),
        ("sun 02:00-04:00", "only on sun from 02:00 to 04:00 (UTC)", False),
    ],
    ids=["over midnight", "one night"],
)
def test_a_window_says_when_jobs_begin(window: str, said: str, halves: bool) -> None:
    text = runbook(facts_of(Mode.REGISTRY, window=Window.parse(window)))
    for hop in (V131, V132):
        part = step(text, f"Upgrade to {hop}")
        assert f"Jobs begin {said}" in part
        assert "The day is that of the moment itself" in part
        assert ("from midnight to 04:00 and from 22:00 to midnight" in part) == halves
    assert "Jobs begin" not in runbook(facts_of(Mode.REGISTRY))


def test_a_job_without_a_deadline_takes_as_long_as_it_needs() -> None:
    assert "A job may take 900 s." in runbook(facts_of(Mode.REGISTRY))
    assert "A job may take as long as it needs." in runbook(facts_of(Mode.REGISTRY, deadline_s=0))
