"""`config`: the files of a site from what is in a bundle; the same every time, all or none, and no secret unasked."""

import base64
import json
import os
import random
import re
import shlex
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterable
from functools import reduce
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from bundler import __version__
from bundler.cli.main import cli
from bundler.k3s import suc
from bundler.k3s.registries import RegistriesFile
from bundler.site.controller import ControllerSettings, controller_objects
from tests.support.bundles import Bundle
from tests.support.bundles import bundle as bundle_from
from tests.support.certificates import Authority
from tests.support.command import Result, command_line, environment, run, start
from tests.support.content import BlobStore, digest_of
from tests.support.faulty import FaultyRegistry
from tests.support.images import build_manifest, image_of, single
from tests.support.media_types import OCI_MANIFEST
from tests.support.plan_crd import check_plan
from tests.support.programs import require
from tests.support.sites import APPS, SMALL, V131, V132, V133, Recipe, bundle_of, names_of, routed, umask
from tests.support.syscalls import run_injecting, stopped_at

TARGET = ("--target", "https://harbor.example/k3s")
FROM = ("--from", "v1.30.4+k3s1")
MODES: dict[str, tuple[str, ...]] = {
    "registry": TARGET,
    "embedded": ("--mode", "embedded"),
    "hybrid": (*TARGET, "--mode", "hybrid"),
}
COMMON = {
    "RUNBOOK.md",
    "plans/01-v1.31.7-k3s1.yaml",
    "plans/02-v1.32.3-k3s1.yaml",
    "registries.yaml",
    "site.json",
    "system-upgrade-controller/00-namespace.yaml",
    "system-upgrade-controller/10-rbac.yaml",
    "system-upgrade-controller/20-config.yaml",
    "system-upgrade-controller/30-deployment.yaml",
}
SECRET = "s3cret$of'nobody"  # noqa: S105 - of nothing real
MODE_NAMES = tuple(MODES)
OLD = Recipe(versions=("v1.26.15+k3s1",), apps=(), platforms=("linux/amd64",))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(tmp_path_factory)


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "site"


def config(bundle: Path, to: Path, *options: str | Path, **given: Any) -> Result:
    """Run the command, which must succeed."""
    made = run("config", bundle, "--to", to, *options, **given)
    assert made.code == 0, made.err
    return made


def tree(directory: Path) -> dict[str, bytes]:
    """Give every file below a directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def documents(path: Path) -> list[Any]:
    """Give the documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text()))


# --- what is written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "options", "more"),
    [
        ("registry", (), {"pre-pull.txt"}),
        ("registry", ("--no-default-endpoint",), {"pre-pull.txt", "config.yaml"}),
        ("embedded", (), {"config-server.yaml"}),
        ("embedded", ("--no-default-endpoint",), {"config-server.yaml", "config-agent.yaml"}),
        ("hybrid", (), {"config-server.yaml", "pre-pull.txt"}),
        ("hybrid", ("--route", "*=embedded"), {"config-server.yaml"}),
    ],
)
def test_these_files_and_no_others(bundle: Path, to: Path, mode: str, options: tuple[str, ...], more: set[str]) -> None:
    made = config(bundle, to, *MODES[mode], *FROM, *options, "-o", "json")
    files = tree(to)
    assert set(files) == COMMON | more
    assert [path.name for path in to.parent.iterdir()] == [to.name]
    # What is said on standard output is what is there.
    document = made.json
    assert {item["path"]: item["digest"] for item in document["files"]} == {
        name: digest_of(data) for name, data in files.items()
    }
    assert {item["path"]: item["mode"] for item in document["files"]} == {
        name: f"{stat.S_IMODE((to / name).stat().st_mode):04o}" for name in files
    }
    assert {item["mode"] for item in document["files"]} == {"0644"}
    assert (document["to"], document["kept"], document["mode"]) == (str(to), None, mode)
    assert document["hops"] == [V131, V132]
    assert sum(document["images"].values()) == len(names_of(bundle))


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_every_file_says_what_made_it(bundle: Path, to: Path, mode: str) -> None:
    config(bundle, to, *MODES[mode], *FROM, "--no-default-endpoint")
    lock = digest_of((bundle / "bundle.lock.json").read_bytes())
    words = f"Made by airgap-sync {__version__} from a bundle of {V131}, {V132}, lock {lock}; mode {mode}."
    for name, data in tree(to).items():
        if name == "site.json":
            assert json.loads(data)["tool"] == {"name": "airgap-sync", "version": __version__}
        # K3s takes every line of a list for a name.
        elif name != "pre-pull.txt":
            assert words in "\n".join(data.decode().splitlines()[:3]), name


def test_the_text_on_standard_output_names_each_file(bundle: Path, to: Path) -> None:
    made = config(bundle, to, *MODES["hybrid"], *FROM)
    assert made.lines[:-2] == sorted(str(to / name) for name in tree(to))
    apps = routed(bundle, lambda in_set, _: not in_set)
    rest = len(names_of(bundle)) - len(apps)
    assert (
        made.lines[-2]
        == f"mode hybrid: {rest} images registry, {len(apps)} images embedded; {FROM[1]} -> {V131} -> {V132}"
    )
    assert made.lines[-1] == f"next: follow {to}/RUNBOOK.md"


def test_the_list_for_pulling_beforehand_is_of_what_is_at_the_registry(bundle: Path, tmp_path: Path) -> None:
    expected = {
        (): set(names_of(bundle)),
        ("--mode", "hybrid"): routed(bundle, lambda in_set, _: in_set),
        ("--mode", "hybrid", "--route", "k3s=embedded", "--route", "*=registry"): routed(
            bundle, lambda in_set, _: not in_set
        ),
    }
    for number, (options, names) in enumerate(expected.items()):
        config(bundle, tmp_path / str(number), *TARGET, *options)
        assert (tmp_path / str(number) / "pre-pull.txt").read_text() == "".join(f"{name}\n" for name in sorted(names))


def test_what_no_node_can_pull_is_not_in_the_list(tmp_path: Path, to: Path) -> None:
    store = BlobStore(tmp_path / "store")
    described = store.add(b'{"name":"chart","version":"1.0.0"}', "application/vnd.cncf.helm.config.v1+json")
    content = store.add(b"a chart", "application/vnd.cncf.helm.chart.content.v1.tar+gzip")
    manifest = build_manifest(described.descriptor(), [content.descriptor()], media_type=OCI_MANIFEST)
    with FaultyRegistry() as upstream:
        upstream.add(single(store), "some/image", "1")
        upstream.add(image_of(manifest, [described, content]), "some/chart", "1")
        chart, image = (f"{upstream.host}/some/{name}:1" for name in ("chart", "image"))
        bundle_from([chart, image], tmp_path / "made")
    made = config(tmp_path / "made", to, *TARGET, "-o", "json")
    assert (to / "pre-pull.txt").read_text() == f"{image}\n"
    (notice,) = (notice for notice in made.json["notices"] if "pre-pull.txt" in notice)
    assert notice.startswith("1 of the 2 names for the registry are of artifacts, such as charts and signatures")
    # Without a lock nobody knows.
    (tmp_path / "made" / "bundle.lock.json").unlink()
    config(tmp_path / "made", to, *TARGET, "--force")
    assert (to / "pre-pull.txt").read_text() == f"{chart}\n{image}\n"


def test_a_plan_a_hop_in_order_with_the_version_of_that_hop(bundle: Path, to: Path) -> None:
    window = "mon-fri 22:00-04:00 Europe/Berlin"
    options = ("--concurrency", "3", "--deadline", "5400", "--window", window)
    config(bundle, to, *TARGET, *FROM, *options)
    for number, version in enumerate((V131, V132), 1):
        plans = documents(to / f"plans/{number:02}-{version.replace('+', '-')}.yaml")
        assert [plan["metadata"]["name"] for plan in plans] == ["server-plan", "agent-plan"]
        assert [plan["spec"]["concurrency"] for plan in plans] == [1, 3]
        assert "prepare" in plans[1]["spec"]
        for plan in plans:
            check_plan(plan, suc.newest().order)
            assert plan["spec"]["version"] == version
            assert plan["spec"]["upgrade"]["image"].endswith("rancher/k3s-upgrade")
            assert plan["spec"]["jobActiveDeadlineSecs"] == 5400
            assert plan["spec"]["window"]["timeZone"] == "Europe/Berlin"


def test_only_what_is_newer_than_what_runs_is_planned(bundle: Path, to: Path) -> None:
    made = config(bundle, to, *TARGET, "--from", "v1.31.4+k3s1", "-o", "json")
    assert made.json["hops"] == [V131, V132]
    made = config(bundle, to, *TARGET, "--from", V131, "--force", "-o", "json")
    assert made.json["hops"] == [V132]
    assert [path.name for path in (to / "plans").iterdir()] == ["01-v1.32.3-k3s1.yaml"]


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_no_pod_always_pulls_and_images_are_those_of_the_bundle(bundle: Path, to: Path, mode: str) -> None:
    config(bundle, to, *MODES[mode], *FROM)
    (environment,) = (
        item["data"]
        for item in documents(to / "system-upgrade-controller/20-config.yaml")
        if item["kind"] == "ConfigMap"
    )
    assert environment["SYSTEM_UPGRADE_JOB_IMAGE_PULL_POLICY"] == "IfNotPresent"
    assert environment["SYSTEM_UPGRADE_JOB_ACTIVE_DEADLINE_SECONDS"] == "7200"
    text = b"\n".join(data for name, data in tree(to).items() if name.endswith(".yaml")).decode()
    assert "Always" not in text
    named = set(re.findall(r"(?:image|KUBECTL_IMAGE): '?\"?([a-z][^\s'\"]+)", text))
    untagged = {name.rpartition(":")[0] for name in names_of(bundle)}
    assert named
    assert {name for name in named if name not in names_of(bundle) and name not in untagged} == set()


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_registries_yaml_has_a_mirror_for_every_source(bundle: Path, to: Path, mode: str) -> None:
    config(bundle, to, *MODES[mode], *FROM)
    file = RegistriesFile.parse((to / "registries.yaml").read_text(), "registries.yaml")
    assert file.warnings == ()
    assert set(file.mirrors) == {"docker.io", "ghcr.io", "quay.io"}
    with_endpoint = {name for name, mirror in file.mirrors.items() if mirror.addresses}
    assert with_endpoint == {"registry": set(file.mirrors), "embedded": set(), "hybrid": {"docker.io"}}[mode]


def test_a_site_without_k3s_gets_no_plans(tmp_path_factory: pytest.TempPathFactory, to: Path) -> None:
    apps = bundle_of(tmp_path_factory, Recipe(versions=(), apps=(APPS[0],), platforms=("linux/amd64",)))
    made = config(apps, to, *TARGET, "-o", "json")
    assert set(tree(to)) == {"RUNBOOK.md", "pre-pull.txt", "registries.yaml", "site.json"}
    assert made.json["hops"] == []
    assert any("no K3s release" in notice for notice in made.json["notices"])
    assert "kubectl apply" not in (to / "RUNBOOK.md").read_text()


# --- the same every time ------------------------------------------------------------------------------------------


def test_the_same_bundle_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    """Wherever it and the files lie, and whoever runs it when and where."""
    options = (*MODES["hybrid"], *FROM, "--route", "ghcr.io/*=registry", "--no-default-endpoint", "--wildcard")
    config(bundle, tmp_path / "one", *options)
    shutil.copytree(bundle, tmp_path / "elsewhere" / "medium", copy_function=os.link)
    there = {"TZ": "Asia/Tokyo", "LC_ALL": "C", "LANG": "tr_TR.UTF-8", "PYTHONHASHSEED": "7"}
    with umask(0o077):
        config(tmp_path / "elsewhere" / "medium", tmp_path / "deep" / "er" / "two", *options, env=there)
    assert tree(tmp_path / "one") == tree(tmp_path / "deep" / "er" / "two")


# --- all or none --------------------------------------------------------------------------------------------------


def test_what_is_there_is_not_touched(bundle: Path, to: Path) -> None:
    to.mkdir()
    (to / "mine").write_text("mine")
    result = run("config", bundle, "--to", to, *TARGET)
    assert result.code == 3, result.err
    assert f"{to} is not empty" in result.err
    assert "--force" in result.err
    assert tree(to.parent) == {"site/mine": b"mine"}


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "force"])
def test_what_is_no_directory_is_never_replaced(bundle: Path, to: Path, kind: str, force: tuple[str, ...]) -> None:
    if kind == "file":
        to.write_text("mine")
    else:
        to.symlink_to(to.parent / "elsewhere")
        if kind == "link":
            (to.parent / "elsewhere").mkdir()
    before = sorted(path.name for path in to.parent.iterdir())
    result = run("config", bundle, "--to", to, *TARGET, *force)
    assert result.code in (2, 3), result.err
    assert sorted(path.name for path in to.parent.iterdir()) == before
    assert to.is_symlink() or to.read_text() == "mine"


@pytest.mark.parametrize("place", [".", "site", "blobs/site", ".."])
@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "force"])
def test_the_bundle_itself_is_never_moved_or_written_to(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, place: str, force: tuple[str, ...]
) -> None:
    own = tmp_path / "medium" / "bundle"
    shutil.copytree(bundle_of(tmp_path_factory, SMALL), own, copy_function=os.link)
    before = tree(tmp_path)
    result = run("config", own, "--to", own / place, *TARGET, *force)
    assert result.code == 3, result.err
    assert "are not apart" in result.err
    assert tree(tmp_path) == before


def test_an_empty_directory_is_filled(bundle: Path, to: Path) -> None:
    to.mkdir()
    config(bundle, to, *TARGET)
    assert (to / "site.json").exists()


def test_force_keeps_what_was_there(bundle: Path, to: Path) -> None:
    to.mkdir()
    (to / "mine").write_text("mine")
    made = config(bundle, to, *TARGET, "--force", "-o", "json")
    assert made.json["kept"] == f"{to}.old-1"
    first = tree(to)
    again = config(bundle, to, *TARGET, *FROM, "--force")
    assert f"what was there before is in {to}.old-2" in again.lines
    assert tree(to.with_name("site.old-1")) == {"mine": b"mine"}
    assert tree(to.with_name("site.old-2")) == first
    assert tree(to) != first
    assert sorted(path.name for path in to.parent.iterdir()) == ["site", "site.old-1", "site.old-2"]


def config_in(directory: Path, bundle: Path, to: str, *options: str) -> Result:
    """Run the command with another working directory."""
    done = subprocess.run(
        command_line("config", bundle, "--to", to, *TARGET, *options),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        cwd=directory,
        timeout=60,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("to", [".", "./", "..", "../", "../here", "../..", "/"])
@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "force"])
def test_the_current_directory_is_not_moved_away(bundle: Path, tmp_path: Path, to: str, force: tuple[str, ...]) -> None:
    here = tmp_path / "some" / "here"
    here.mkdir(parents=True)
    result = config_in(here, bundle, to, *force)
    assert result.code == 3, result.err
    assert f"{(here / to).resolve()}" in result.err or to in result.err
    assert re.search("is the current directory, or has it in it|are not apart", result.err)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["some", "some/here"]


@pytest.mark.parametrize("to", ["site", "site/", "./site", "other/../site", "site/none/..", "../here/site"])
def test_a_directory_may_be_named_in_any_way(bundle: Path, tmp_path: Path, to: str) -> None:
    here = tmp_path / "here"
    (here / "other").mkdir(parents=True)
    for force in ((), ("--force",)):
        result = config_in(here, bundle, to, *force)
        assert result.code == 0, result.err
    assert sorted(path.name for path in here.iterdir()) == ["other", "site", "site.old-1"]
    assert tree(here / "site") == tree(here / "site.old-1")


def test_modes_are_said_as_they_are(bundle: Path, to: Path) -> None:
    with umask(0o077):
        made = config(bundle, to, *TARGET, "-o", "json")
    assert {item["mode"] for item in made.json["files"]} == {"0600"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in to.rglob("*") if path.is_file()} == {0o600}


def test_two_runs_at_once_do_not_mix(bundle: Path, tmp_path: Path, to: Path) -> None:
    require("strace")
    config(bundle, to, *TARGET)
    before = tree(to)
    options = ("config", bundle, "--to", to, *TARGET, *FROM, "--force")
    with stopped_at("mkdir", to.with_name(".site.new"), options, tmp_path / "strace") as first:
        for name in (str(to), f"{to.parent}/./{to.name}/"):
            second = run("config", bundle, "--to", name, *TARGET, "--force")
            assert second.code == 12, second.err
            assert f"another airgap-sync run is using {to}" in second.err
            assert tree(to) == before
        # Another directory is another matter.
        config(bundle, to.with_name("other"), *TARGET)
        os.kill(first.pid, signal.SIGCONT)
        out, err = first.communicate(timeout=30)
    assert first.returncode == 0, err
    assert f"what was there before is in {to}.old-1" in out
    assert tree(to.with_name("site.old-1")) == before
    assert not to.with_name(".site.new").exists()
    assert set(tree(to)) == COMMON | {"pre-pull.txt"}


def test_a_refused_run_leaves_nothing(bundle: Path, to: Path) -> None:
    result = run("config", bundle, "--to", to, *TARGET, "--from", V133)
    assert result.code == 11
    assert list(to.parent.iterdir()) == []
    config(bundle, to, *TARGET)
    before = tree(to)
    assert run("config", bundle, "--to", to, *TARGET, "--from", V133, "--force").code == 11
    assert tree(to.parent) == {f"site/{name}": data for name, data in before.items()}


def test_what_a_killed_run_has_left_is_no_harm(bundle: Path, to: Path) -> None:
    stale = to.with_name(".site.new")
    (stale / "plans").mkdir(parents=True)
    (stale / "plans" / "03-of-before.yaml").write_text("half")
    config(bundle, to, *TARGET)
    assert not stale.exists()
    assert set(tree(to)) == COMMON | {"pre-pull.txt"}


def whole(directory: Path, *states: dict[str, bytes]) -> None:
    """Check that whatever stands under a name that people use is whole."""
    for path in directory.iterdir():
        if path.name.startswith("site"):
            assert tree(path) in states, path


@pytest.fixture(scope="module")
def states(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], dict[str, bytes]]:
    """Give a directory as it was before, its files, and those of a new run."""
    directory = tmp_path_factory.mktemp("states")
    config(bundle, directory / "old", *TARGET)
    config(bundle, directory / "new", *TARGET, *FROM)
    return directory / "old", tree(directory / "old"), tree(directory / "new")


@pytest.mark.parametrize(
    ("call", "place", "before"),
    [
        ("mkdir", ".site.new", "nothing"),
        ("mkdir", ".site.new", "former"),
        ("rename", ".site.new/.registries.yaml.new", "nothing"),
        ("rename", ".site.new/.registries.yaml.new", "former"),
        ("rename", ".site.new", "nothing"),
        ("rename", ".site.new", "former"),
        ("rename", "site", "former"),
    ],
)
def test_a_run_that_is_killed_at_its_worst_moments_leaves_no_half_directory(
    bundle: Path, to: Path, states: tuple[Path, dict[str, bytes], dict[str, bytes]], call: str, place: str, before: str
) -> None:
    require("strace")
    former, old, new = states
    if before == "former":
        shutil.copytree(former, to)
    options = ("config", bundle, "--to", to, *TARGET, *FROM, "--force")
    killed = run_injecting(call, to.parent / place, "signal=KILL", options)
    assert killed.code == -9, killed.err
    whole(to.parent, old, new)
    if before == "former":
        # It stands under one of two names.
        assert old in [tree(path) for path in to.parent.glob("site*")]
    config(bundle, to, *TARGET, *FROM, "--force")
    assert tree(to) == new
    whole(to.parent, old, new)
    assert not to.with_name(".site.new").exists()


def test_a_run_that_is_killed_at_any_moment_leaves_no_half_directory(
    bundle: Path, to: Path, states: tuple[Path, dict[str, bytes], dict[str, bytes]]
) -> None:
    former, old, new = states
    shutil.copytree(former, to)
    moments = random.Random(5)
    for _ in range(4):
        with start("config", bundle, "--to", to, *TARGET, *FROM, "--force") as process:
            time.sleep(moments.uniform(0.1, 0.5))
            os.kill(process.pid, signal.SIGKILL)
            process.communicate(timeout=20)
        whole(to.parent, old, new)
        assert old in [tree(path) for path in to.parent.glob("site*")]


# --- what a site cannot do ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--from", "v1.29.9+k3s1"), "skips minor v1.30"),
        (("--from", "v1.28.6+k3s1"), "skips minors v1.29, v1.30"),
        (("--from", "v1.33.1+k3s1"), "K3s cannot be downgraded by a Plan"),
        (("--from", V132), f"the cluster runs {V132} already"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_a_way_that_is_none_is_refused(bundle: Path, to: Path, options: tuple[str, ...], words: str) -> None:
    refused(run("config", bundle, "--to", to, *TARGET, *options), to, words, "unsupported-skew")


def test_a_bundle_that_skips_a_minor_is_refused(tmp_path_factory: pytest.TempPathFactory, to: Path) -> None:
    skipping = bundle_of(tmp_path_factory, Recipe(versions=(V131, V133), apps=(), platforms=("linux/amd64",)))
    words = f"the upgrade from {V131} to {V133} skips minor v1.32"
    refused(run("config", skipping, "--to", to, *TARGET), to, words, "unsupported-skew")
    # Where the first is passed already, the second is still no next step.
    refused(run("config", skipping, "--to", to, *TARGET, "--from", V131), to, words, "unsupported-skew")
    config(skipping, to, *TARGET, "--from", "v1.32.9+k3s1")


@pytest.mark.parametrize("lacking", ["k3s-upgrade:v1.31.7-k3s1", "mirrored-pause:3.6"])
def test_a_bundle_that_lacks_what_an_upgrade_needs_is_refused(
    tmp_path_factory: pytest.TempPathFactory, to: Path, lacking: str
) -> None:
    name = f"docker.io/rancher/{lacking}"
    broken = bundle_of(tmp_path_factory, Recipe(apps=(), platforms=("linux/amd64",), lacking=(name,)))
    words = f"the bundle lacks {name}"
    refused(run("config", broken, "--to", to, *TARGET, *FROM), to, words, "hop-incomplete")


def test_a_bundle_that_lacks_an_app_gives_a_warning(tmp_path_factory: pytest.TempPathFactory, to: Path) -> None:
    broken = bundle_of(tmp_path_factory, Recipe(apps=APPS[:2], platforms=("linux/amd64",), lacking=APPS[:1]))
    made = config(broken, to, *TARGET, *FROM)
    assert f"warning: the bundle is incomplete: {APPS[0]} is missing" in made.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--mode", "embedded"), "v1.25.16+k3s4 does not have the embedded registry: it came with v1.26.13"),
        ((*TARGET, "--mode", "hybrid"), "v1.25.16+k3s4 does not have the embedded registry"),
        ((*TARGET, "--no-default-endpoint"), "v1.25.16+k3s4 does not have disable-default-registry-endpoint"),
    ],
    ids=["embedded", "hybrid", "no default endpoint"],
)
def test_what_a_version_on_the_way_does_not_have_is_refused(
    tmp_path_factory: pytest.TempPathFactory, to: Path, options: tuple[str, ...], words: str
) -> None:
    old = bundle_of(tmp_path_factory, OLD)
    result = run("config", old, "--to", to, *options, "--from", "v1.25.16+k3s4")
    refused(result, to, words, "k3s-too-old")
    assert "hint: Upgrade with --mode registry first, or leave the option out." in result.err
    # Nodes that run the release of the bundle have it.
    config(old, to, *options)


def refused(result: Result, to: Path, words: str, reference: str) -> None:
    """Check that a run was refused as not possible, and has left nothing."""
    assert result.code == 11, result.err
    assert words in result.err
    assert f"[{reference}]" in result.err
    assert result.out == ""
    assert not to.exists()


def test_of_an_experimental_feature_one_is_warned(bundle: Path, to: Path) -> None:
    made = config(bundle, to, *MODES["hybrid"], *FROM, "-o", "json")
    assert made.json["warnings"] == ["in v1.30.4+k3s1 the embedded registry is experimental"]
    assert "warning: in v1.30.4+k3s1" in made.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((*TARGET, "--username", "robot", "--password-stdin"), "--username is only used with --with-credentials"),
        ((*TARGET, "--username", ""), "--username is only used with --with-credentials"),
        ((*TARGET, "--password-stdin"), "--password-stdin is only used with --with-credentials"),
        ((*TARGET, "--password-file", "/dev/null"), "--password-file is only used with --with-credentials"),
        ((*TARGET, "--authfile", "none.json"), "--authfile is only used with --with-credentials"),
        ((*TARGET, "--registries", "none.yaml"), "--registries is only used with --with-credentials"),
        (("--mode", "embedded", "--registries", "none.yaml"), "--registries is only used with --with-credentials"),
        (("--mode", "embedded", "--with-credentials"), "credentials and certificates are for a registry"),
        ((*TARGET, "--client-key", "/dev/null"), "--client-key goes with --client-cert"),
        ((*TARGET, "--node-dir", "etc/k3s"), "--node-dir is an absolute path"),
        ((*TARGET, "--node-dir", "/"), "--node-dir is an absolute path"),
        ((*TARGET, "--node-dir", "/etc/my k3s"), "--node-dir is an absolute path"),
        ((*TARGET, "--node-dir", "/etc/\udcff"), "--node-dir is an absolute path"),
        ((*TARGET, "--window", "at night"), "--window"),
        ((*TARGET, "--window", "daily 22:00-04:00 Europe/Berln"), "Did you mean Europe/Berlin?"),
        ((*TARGET, "--concurrency", "0"), "--concurrency"),
        ((*TARGET, "--wildcard", "--keep-registry"), "a wildcard cannot put the name of a registry"),
        ((), "a target is needed"),
    ],
    ids=lambda value: ascii(" ".join(value)) if isinstance(value, tuple) else "",
)
def test_a_wrong_use_is_refused_and_writes_nothing(
    bundle: Path, to: Path, options: tuple[str, ...], words: str
) -> None:
    result = run("config", bundle, "--to", to, *options, stdin=SECRET)
    assert result.code == 2, result.err
    assert words in " ".join(result.err.split())
    assert list(to.parent.iterdir()) == []


# --- secrets and certificates -------------------------------------------------------------------------------------


def encoded(secret: str, username: str = "robot") -> Iterable[bytes]:
    """Give the forms that a secret may be seen in."""
    pair = base64.b64encode(f"{username}:{secret}".encode())
    return (secret.encode(), base64.b64encode(secret.encode()).rstrip(b"="), pair, shlex.quote(secret).encode())


def holding(secret: str, result: Result, to: Path) -> set[str]:
    """Give where a secret is to be seen."""
    places = {**tree(to), "standard output": result.out.encode(), "standard error": result.err.encode()}
    # YAML doubles an apostrophe.
    plain = {name: data.replace(b"''", b"'") for name, data in places.items()}
    return {name for name, data in plain.items() if any(form in data for form in encoded(secret))}


@pytest.mark.parametrize("source", ["password-file", "environment", "authfile", "registries"])
def test_a_secret_is_written_where_it_was_asked_for_and_nowhere_else(
    bundle: Path, tmp_path: Path, to: Path, source: str
) -> None:
    options: tuple[str | Path, ...] = ()
    env: dict[str, str] = {}
    file = tmp_path / "given"
    if source == "password-file":
        file.write_text(f"{SECRET}\n")
        options = ("--username", "robot", "--password-file", file)
    elif source == "environment":
        env = {"AIRGAP_SYNC_USERNAME": "robot", "AIRGAP_SYNC_PASSWORD": SECRET}
    elif source == "authfile":
        auth = base64.b64encode(f"robot:{SECRET}".encode()).decode()
        file.write_text(json.dumps({"auths": {"harbor.example": {"auth": auth}}}))
        options = ("--authfile", file)
    else:
        auths = {"harbor.example": {"auth": {"username": "robot", "password": SECRET}}}
        file.write_text(yaml.safe_dump({"configs": auths}))
        options = ("--registries", file)
    with umask(0o000):
        made = config(bundle, to, *TARGET, *options, "--with-credentials", "-o", "json", env=env)
    assert holding(SECRET, made, to) == {"registries.yaml"}
    modes = {item["path"]: item["mode"] for item in made.json["files"]}
    assert {name for name, mode in modes.items() if mode == "0600"} == {"registries.yaml"}
    assert stat.S_IMODE((to / "registries.yaml").stat().st_mode) == 0o600
    parsed = RegistriesFile.parse((to / "registries.yaml").read_text(), "registries.yaml")
    auth_of = parsed.configs["harbor.example"].auth
    assert auth_of is not None
    assert (auth_of.username, auth_of.password) == ("robot", SECRET)

    # Without being asked, options that say where it is are refused, and the environment does not count.
    other = to.with_name("other")
    if options:
        refusal = run("config", bundle, "--to", other, *TARGET, *options)
        assert refusal.code == 2, refusal.err
        assert f"{options[0]} is only used with --with-credentials" in " ".join(refusal.err.split())
        assert not other.exists()
        return
    made = config(bundle, other, *TARGET, env=env)
    assert holding(SECRET, made, other) == set()
    assert stat.S_IMODE((other / "registries.yaml").stat().st_mode) == 0o644


def test_an_identity_token_is_a_secret_too(bundle: Path, tmp_path: Path, to: Path) -> None:
    file = tmp_path / "given"
    file.write_text(json.dumps({"auths": {"harbor.example": {"identitytoken": SECRET}}}))
    made = config(bundle, to, *TARGET, "--authfile", file, "--with-credentials")
    assert holding(SECRET, made, to) == {"registries.yaml"}
    parsed = RegistriesFile.parse((to / "registries.yaml").read_text(), "registries.yaml")
    auth = parsed.configs["harbor.example"].auth
    assert auth is not None
    assert auth.identity_token == SECRET


def test_credentials_that_are_nowhere_are_an_error(bundle: Path, to: Path) -> None:
    result = run("config", bundle, "--to", to, *TARGET, "--with-credentials")
    assert result.code == 7, result.err
    assert "no credentials for harbor.example were found to write" in result.err
    assert not to.exists()


def test_an_authority_is_copied_and_named_by_its_place_on_nodes(bundle: Path, tmp_path: Path, to: Path) -> None:
    first, second = (Authority(tmp_path / name, name).ca_file for name in ("one", "two"))
    config(bundle, to, *TARGET, "--ca-file", first, "--ca-file", second, "--node-dir", "/opt/k3s/")
    assert (to / "ca.pem").read_text().split() == (first.read_text() + second.read_text()).split()
    parsed = RegistriesFile.parse((to / "registries.yaml").read_text(), "registries.yaml")
    tls = parsed.configs["harbor.example"].tls
    assert tls is not None
    assert tls.ca_file == "/opt/k3s/ca.pem"
    assert 'install -D -m 0600 "$CONFIG/ca.pem" /opt/k3s/ca.pem' in (to / "RUNBOOK.md").read_text().splitlines()


@pytest.mark.parametrize("content", [b"", b"no certificate\n", b"-----BEGIN CERTIFICATE-----\nAAAA\n", b"\xff\xfe"])
def test_what_is_no_authority_is_refused_here_and_not_on_a_node(
    bundle: Path, tmp_path: Path, to: Path, content: bytes
) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(content)
    result = run("config", bundle, "--to", to, *TARGET, "--ca-file", file)
    assert result.code == 3, result.err
    assert str(file) in result.err
    assert not to.exists()


def test_of_the_files_of_authorities_only_certificates_are_taken(bundle: Path, tmp_path: Path, to: Path) -> None:
    """A file may hold a key too, and words in any encoding; none of it is for all nodes."""
    authority = Authority(tmp_path / "authority")
    own = authority.issue("harbor.example")
    certificate, key = authority.ca_file.read_bytes(), own.key.read_bytes()
    file = tmp_path / "both.pem"
    file.write_bytes(key + b"Bag of M\xfcller: secret words\n" + certificate.replace(b"\n", b"\r\n") + key)
    config(bundle, to, *TARGET, "--ca-file", file)
    assert (to / "ca.pem").read_bytes().strip() == certificate.strip()


def test_a_file_of_other_things_is_no_authority(bundle: Path, tmp_path: Path, to: Path) -> None:
    """OpenSSL takes certificates under other labels too, which nodes do not read."""
    certificate = Authority(tmp_path / "authority").ca_file.read_text()
    file = tmp_path / "trusted.pem"
    file.write_text(certificate.replace(" CERTIFICATE-", " X509 CERTIFICATE-"))
    result = run("config", bundle, "--to", to, *TARGET, "--ca-file", file)
    assert result.code == 3, result.err
    assert f"{file} holds no certificate in PEM form" in result.err
    assert "[bad-tls-file]" in result.err
    assert not to.exists()


def install_lines(to: Path) -> list[str]:
    """Give the lines of a runbook that copy files to nodes."""
    return [line for line in (to / "RUNBOOK.md").read_text().splitlines() if line.startswith("install -D ")]


@pytest.mark.parametrize("apart", [True, False], ids=["two files", "one file"])
def test_a_client_certificate_is_written_and_its_key_if_asked_for(
    bundle: Path, tmp_path: Path, to: Path, apart: bool
) -> None:
    own = Authority(tmp_path / "authority").issue("a node", client=True)
    certificates, key = own.cert.read_text(), own.key.read_text()
    options: tuple[str | Path, ...] = ("--client-cert", own.cert, "--client-key", own.key)
    if not apart:
        (tmp_path / "both.pem").write_text(key + certificates)
        options = ("--client-cert", tmp_path / "both.pem")
    there = "/etc/rancher/k3s"

    made = config(bundle, to, *TARGET, *options, "-o", "json")
    assert (to / "client.pem").read_text().split() == certificates.split()
    assert "client.key" not in tree(to)
    assert holding(key.splitlines()[1], made, to) == set()
    assert {item["mode"] for item in made.json["files"]} == {"0644"}
    assert f'install -D -m 0600 "$CONFIG/client.pem" {there}/client.pem' in install_lines(to)
    assert [line for line in install_lines(to) if "$CONFIG/client.key" in line] == []
    assert f"test -s {there}/client.key && echo there" in (to / "RUNBOOK.md").read_text().splitlines()

    both = to.with_name("both")
    made = config(bundle, both, *TARGET, *options, "--with-credentials", "-o", "json")
    assert (both / "client.pem").read_bytes() == (to / "client.pem").read_bytes()
    assert (both / "client.key").read_text().split() == key.split()
    assert holding(key.splitlines()[1], made, both) == {"client.key"}
    assert {item["path"] for item in made.json["files"] if item["mode"] == "0600"} == {"client.key"}
    assert stat.S_IMODE((both / "client.key").stat().st_mode) == 0o600
    assert f'install -D -m 0600 "$CONFIG/client.key" {there}/client.key' in install_lines(both)
    assert "test -s /etc/rancher/k3s/client.key" not in (both / "RUNBOOK.md").read_text()
    assert any("nodes show their client certificate alone" in notice for notice in made.json["notices"])
    for directory in (to, both):
        parsed = RegistriesFile.parse((directory / "registries.yaml").read_text(), "registries.yaml")
        tls = parsed.configs["harbor.example"].tls
        assert tls is not None
        assert (tls.cert_file, tls.key_file) == (f"{there}/client.pem", f"{there}/client.key")


def test_a_client_certificate_without_its_key_is_refused(bundle: Path, tmp_path: Path, to: Path) -> None:
    authority = Authority(tmp_path / "authority")
    one, other = authority.issue("one", client=True), authority.issue("other", client=True)
    for options in (("--client-cert", one.cert), ("--client-cert", one.cert, "--client-key", other.key)):
        result = run("config", bundle, "--to", to, *TARGET, *options)
        assert result.code == 3, result.err
        assert "[bad-tls-file]" in result.err
        assert str(one.cert) in result.err
    assert not to.exists()


@pytest.mark.parametrize("option", ["--ca-file", "--suc-manifest"])
def test_a_file_that_is_too_large_is_refused_and_not_cut(bundle: Path, tmp_path: Path, to: Path, option: str) -> None:
    file = tmp_path / "large"
    if option == "--ca-file":
        file.write_bytes(Authority(tmp_path / "authority").ca_file.read_bytes() + b"#" * 1024 * 1024)
    else:
        release_manifest(file)
        file.write_text(file.read_text() + "#" * 1024 * 1024)
    result = run("config", bundle, "--to", to, *TARGET, option, file)
    assert result.code == 3, result.err
    assert f"{file} is larger than 1048576 bytes" in result.err
    assert not to.exists()


@pytest.mark.parametrize(
    ("target", "options", "hosts"),
    [
        ("https://[fd00::1]:5000/k3s", (), ["[fd00::1]:5000"]),
        ("https://harbor.example/k3s", (), ["harbor.example"]),
        ("https://harbor.example/k3s", ("--wildcard",), ["harbor.example", "harbor.example:443"]),
    ],
    ids=["ipv6", "name", "wildcard"],
)
def test_what_is_said_of_credentials_is_valid_and_for_every_host(
    bundle: Path, to: Path, target: str, options: tuple[str, ...], hosts: list[str]
) -> None:
    config(bundle, to, "--target", target, *options)
    text = (to / "registries.yaml").read_text()
    shown = re.findall(r"^#   (.*)$", text, re.MULTILINE)
    auth = {"auth": {"username": "NAME", "password": "PASSWORD"}}
    assert yaml.safe_load("\n".join(shown)) == dict.fromkeys(hosts, auth)
    # Put in as it is said, it counts for every endpoint.
    filled = RegistriesFile.parse(text + "configs:\n" + "".join(f"  {line}\n" for line in shown), "registries.yaml")
    assert filled.warnings == ()
    assert set(filled.configs) == set(hosts)


# --- the controller's own manifest --------------------------------------------------------------------------------


def release_manifest(to: Path) -> list[Any]:
    """Write a manifest in the shape of a release's, and give its documents."""
    newest = suc.newest()
    settings = ControllerSettings(newest.image, newest.kubectl_image, "Always", 900)
    objects = [item for _, items in controller_objects(newest, settings) for item in items]
    objects[0]["metadata"]["annotations"] = {"of": "the release"}
    to.write_text("# of the release\n" + yaml.safe_dump_all(objects))
    return objects


def test_the_manifest_of_the_release_is_changed_in_four_values_alone(bundle: Path, tmp_path: Path, to: Path) -> None:
    expected = release_manifest(tmp_path / "suc.yaml")
    config(bundle, to, *TARGET, *FROM, "--suc-manifest", tmp_path / "suc.yaml")
    assert {name for name in tree(to) if name.startswith("system-upgrade-controller/")} == {
        "system-upgrade-controller/system-upgrade-controller.yaml"
    }
    written = documents(to / "system-upgrade-controller/system-upgrade-controller.yaml")
    (data,) = (item["data"] for item in expected if item["kind"] == "ConfigMap")
    data["SYSTEM_UPGRADE_JOB_IMAGE_PULL_POLICY"] = "IfNotPresent"
    data["SYSTEM_UPGRADE_JOB_ACTIVE_DEADLINE_SECONDS"] = "7200"
    assert written == expected


def test_a_manifest_of_something_else_is_refused(bundle: Path, tmp_path: Path, to: Path) -> None:
    file = tmp_path / "suc.yaml"
    file.write_text("kind: Deployment\nmetadata: {name: other}\n")
    result = run("config", bundle, "--to", to, *TARGET, "--suc-manifest", file)
    assert result.code == 3, result.err
    assert f"{file}:1: there is no Deployment system-upgrade-controller" in result.err
    assert not to.exists()


def test_a_manifest_of_another_release_is_refused(bundle: Path, tmp_path: Path, to: Path) -> None:
    """Such as that of the git tree, which names an older image."""
    file = tmp_path / "suc.yaml"
    release_manifest(file)
    newest = suc.newest().version
    file.write_text(file.read_text().replace(f"{suc.newest().image.repository}:{newest}", "rancher/suc:v0.9.1"))
    result = run("config", bundle, "--to", to, *TARGET, "--suc-manifest", file)
    assert result.code == 3, result.err
    assert f"the manifest is of system-upgrade-controller v0.9.1, and the bundle has {newest}" in result.err
    assert f"hint: Take system-upgrade-controller.yaml from the assets of release {newest}" in result.err
    assert not to.exists()


def test_a_manifest_for_a_bundle_without_the_controller_is_not_used(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, to: Path
) -> None:
    without = bundle_of(tmp_path_factory, Recipe((V132,), (), ("linux/amd64",), (), ("--no-suc",)))
    release_manifest(tmp_path / "suc.yaml")
    made = config(without, to, *TARGET, "--suc-manifest", tmp_path / "suc.yaml")
    assert "--suc-manifest is not used" in made.err
    assert not (to / "system-upgrade-controller").exists()
    text = (to / "RUNBOOK.md").read_text()
    assert "Look at system-upgrade-controller\n" in text
    assert "Install system-upgrade-controller" not in text


# --- RUNBOOK.md ---------------------------------------------------------------------------------------------------


def blocks(text: str) -> list[str]:
    """Give the commands of a runbook, block by block."""
    return re.findall(r"```sh\n(.*?)```\n", text, re.DOTALL)


RUNBOOKS = [
    ("registry", (*MODES["registry"], *FROM)),
    ("registry, more", (*MODES["registry"], "--no-default-endpoint", "--wildcard", "--node-dir", "/opt/k3s")),
    ("embedded", (*MODES["embedded"], *FROM)),
    ("hybrid", (*MODES["hybrid"], *FROM, "--no-default-endpoint")),
    ("hybrid, new", (*MODES["hybrid"], "--from", V131)),
]


@pytest.mark.parametrize("options", [options for _, options in RUNBOOKS], ids=[name for name, _ in RUNBOOKS])
def test_every_step_of_the_runbook_can_be_done(bundle: Path, to: Path, options: tuple[str, ...]) -> None:
    config(bundle, to, *options)
    text = (to / "RUNBOOK.md").read_text()
    # Every file that it names is there, and every file that is there is named.
    named = set(re.findall(r"\$CONFIG/([\w./-]+)", text))
    assert named == set(tree(to)) - {"RUNBOOK.md"} - ({"site.json"} - named)
    # Its blocks are what a shell understands, without a line that nobody can read.
    for block in blocks(text):
        checked = subprocess.run(["sh", "-n"], input=block, capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")
        assert [line for line in block.splitlines() if len(line) > 180] == []
    assert [line for line in text.splitlines() if len(line) > 800] == []
    # Its own commands are those that there are.
    file = to.parent / "node.json"
    file.write_text("{}")
    there = {
        "$BUNDLE": bundle,
        "$CONFIG": to,
        '"$RESULTS"/*.json': file,
        "$RESULTS": to.parent,
        "$(hostname)": "node",
        "/etc/rancher/k3s/k3s.yaml": file,
        "/opt/k3s/registries.yaml": to / "registries.yaml",
    }
    commands = [line for block in blocks(text) for line in block.splitlines() if line.startswith("airgap-sync ")]
    # Two for the proof; one for the seeds, two for the registry.
    seeds, pushed = "--mode" in options, "embedded" not in options
    assert len(commands) == 2 + seeds + 2 * pushed
    for line in commands:
        filled = reduce(lambda text, item: text.replace(item[0], str(item[1])), there.items(), line)
        _, name, *arguments = shlex.split(filled, comments=True)
        context = click.Context(cli, info_name="airgap-sync", **cli.context_settings)
        command = cli.get_command(context, name)
        assert command is not None
        command.make_context(name, arguments, parent=context)
    # Each hop has its step, in order, and the steps are numbered.
    titles = re.findall(r"^## ([0-9]+)\. (.*)$", text, re.MULTILINE)
    assert [int(number) for number, _ in titles] == list(range(1, len(titles) + 1))
    hops = [V132] if V131 in options else [V131, V132]
    assert [title for _, title in titles if title.startswith("Upgrade to")] == [f"Upgrade to {hop}" for hop in hops]


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_the_runbook_is_for_exactly_this_mode(bundle: Path, to: Path, mode: str) -> None:
    config(bundle, to, *MODES[mode], *FROM)
    text = (to / "RUNBOOK.md").read_text()
    assert ("airgap-sync push" in text, "pre-pull.txt" in text) == (mode != "embedded",) * 2
    assert ("5001" in text, "the seeds" in text, "oci-layout index.json blobs" in text) == (mode != "registry",) * 3
    assert "does not decide where nodes *look*" in text
    assert "a miss costs" in text
    assert "etcd-snapshot save" in text
    assert "## The way back" in text
    # The archive has a name that no other bundle has.
    digest = digest_of((bundle / "bundle.lock.json").read_bytes()).partition(":")[2]
    assert (f"airgap-sync-{digest[:12]}.tar" in text) == (mode != "registry")


def test_what_a_node_needs_of_room_is_what_its_platform_fetches(bundle: Path, to: Path) -> None:
    config(bundle, to, *TARGET)
    text = (to / "RUNBOOK.md").read_text()
    read = Bundle(bundle)
    for architecture in ("amd64", "arm64"):
        sizes: dict[str, int] = {}
        for root in read.names.values():
            for child in read.json(root)["manifests"]:
                if child["platform"]["architecture"] == architecture:
                    manifest = read.json(child["digest"])
                    sizes |= {item["digest"]: item["size"] for item in (manifest["config"], *manifest["layers"])}
        assert f"- `linux/{architecture}`: {sum(sizes.values()) / 1000:.1f} kB to fetch" in text


def test_the_runbook_knows_the_archive_the_window_and_whether_credentials_are_there(
    bundle: Path, tmp_path: Path, to: Path
) -> None:
    config(bundle, to, *MODES["hybrid"], *FROM, "--window", "fri 22:00-04:00 Europe/Berlin")
    text = (to / "RUNBOOK.md").read_text()
    blobs: dict[str, int] = {}
    read = Bundle(bundle)
    for root in read.names.values():
        for child in read.json(root)["manifests"]:
            manifest = read.json(child["digest"])
            blobs |= {item["digest"]: item["size"] for item in (manifest["config"], *manifest["layers"])}
    assert f": {sum(blobs.values()) / 1000:.1f} kB for the archive" in text
    assert "Jobs begin only on fri from 22:00 to 04:00 (Europe/Berlin)" in text
    assert "`registries.yaml` holds no credentials. If `harbor.example` asks for some" in text
    file = tmp_path / "password"
    file.write_text(SECRET)
    given = ("--with-credentials", "--username", "node", "--password-file", file)
    config(bundle, to.with_name("other"), *TARGET, *given)
    text = (to.with_name("other") / "RUNBOOK.md").read_text()
    assert "credentials. If" not in text
    assert "Jobs begin" not in text


def test_a_small_bundle_of_one_platform_names_that_one_alone(
    tmp_path_factory: pytest.TempPathFactory, to: Path
) -> None:
    config(bundle_of(tmp_path_factory, SMALL), to, "--mode", "embedded")
    text = (to / "RUNBOOK.md").read_text()
    assert "linux/amd64" in text
    assert "arm64" not in text
