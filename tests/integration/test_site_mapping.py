"""One mapping for all commands: `push` puts into the registry what the site's mode and routes say, and nothing else."""

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Result, run
from tests.support.registry import Registry
from tests.support.sites import SMALL, bundle_of, names_of, routed

HARBOR = "https://harbor.example/k3s"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(tmp_path_factory, SMALL)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as started:
        yield started


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310 - of a peer
        return json.load(answer)


def tags(registry: Registry) -> set[str]:
    """Give everything that a registry holds, as repository:tag."""
    return {
        f"{name}:{tag}"
        for name in get(f"{registry.url}/v2/_catalog?n=1000")["repositories"]
        for tag in get(f"{registry.url}/v2/{name}/tags/list")["tags"] or ()
    }


def expected(names: set[str], prefix: str = "", *, keep_registry: bool = False) -> set[str]:
    """Give what names become at a target, by the rule that the documentation states."""
    found = set()
    for name in names:
        registry, _, path = name.partition("/")
        path, at, digest = path.partition("@")
        tag = f":digest-{digest.partition(':')[2][:12]}" if at else ""
        found.add("/".join(part for part in (prefix, registry if keep_registry else "", path) if part) + tag)
    return found


def pushed(result: Result) -> set[str]:
    """Give the names that a push reports on."""
    assert result.code == 0, result.err
    return {image["reference"] for image in result.json["images"]}


def config(bundle: Path, to: Path, *options: str | Path) -> Path:
    """Write the files of a site and give its site.json."""
    made = run("config", bundle, "--to", to, *options)
    assert made.code == 0, made.err
    return to / "site.json"


# --- what is pushed -----------------------------------------------------------------------------------------------


def test_hybrid_puts_the_k3s_set_into_the_registry_and_nothing_else(
    bundle: Path, registry: Registry, tmp_path: Path
) -> None:
    k3s_set = routed(bundle, lambda in_set, _: in_set)
    assert 0 < len(k3s_set) < len(names_of(bundle))
    result = run("push", bundle, f"{registry.url}/site", "--mode", "hybrid", "-o", "json")
    assert pushed(result) == k3s_set
    assert tags(registry) == expected(k3s_set, "site")
    left = len(names_of(bundle)) - len(k3s_set)
    notice = f"{left} images are routed to the embedded registry, and are not pushed"
    assert notice in result.json["notices"]
    assert f"note: {notice}" in result.err

    # The same from the file that `config` wrote; all of it is there already.
    site = config(bundle, tmp_path / "site", "--target", f"{registry.url}/site", "--mode", "hybrid")
    again = run("push", bundle, "--site", site, "-o", "json")
    assert pushed(again) == k3s_set
    assert {image["outcome"] for image in again.json["images"]} == {"up-to-date"}
    assert again.json["target"] == f"{registry.url}/site"


def test_the_reverse_puts_the_apps_into_the_registry(bundle: Path, registry: Registry, tmp_path: Path) -> None:
    apps = routed(bundle, lambda in_set, _: not in_set)
    routes = ("--route", "k3s=embedded", "--route", "*=registry")
    site = config(bundle, tmp_path / "site", "--target", registry.url, "--mode", "hybrid", *routes)
    assert json.loads(site.read_text())["routes"] == [
        {"pattern": "k3s", "route": "embedded"},
        {"pattern": "*", "route": "registry"},
    ]
    assert pushed(run("push", bundle, "--site", site, "-o", "json")) == apps
    assert tags(registry) == expected(apps)
    assert pushed(run("push", bundle, registry.url, "--mode", "hybrid", *routes, "-o", "json")) == apps


def test_a_route_for_a_pattern_comes_before_those_of_the_mode(bundle: Path, registry: Registry) -> None:
    wanted = routed(bundle, lambda in_set, name: (in_set and "mirrored-" not in name) or name.startswith("quay.io/"))
    routes = ("--route", "quay.io/store/*=registry", "--route", "docker.io/rancher/mirrored-*=embedded")
    assert pushed(run("push", bundle, registry.url, "--mode", "hybrid", *routes, "-o", "json")) == wanted
    assert tags(registry) == expected(wanted)


def test_the_plan_is_of_the_routed_images_alone(bundle: Path, registry: Registry) -> None:
    result = run("push", bundle, registry.url, "--mode", "hybrid", "--dry-run", "-o", "json")
    assert result.code == 0, result.err
    planned = {image["reference"] for image in result.json["images"]}
    assert planned == routed(bundle, lambda in_set, _: in_set)
    assert tags(registry) == set()


def test_the_file_says_how_names_are_made(bundle: Path, registry: Registry, tmp_path: Path) -> None:
    site = config(bundle, tmp_path / "site", "--target", f"{registry.url}/a/b", "--keep-registry")
    assert pushed(run("push", bundle, "--site", site, "-o", "json")) == set(names_of(bundle))
    assert tags(registry) == expected(set(names_of(bundle)), "a/b", keep_registry=True)


@pytest.mark.parametrize("given", ["file", "flag"])
def test_with_the_mode_embedded_nothing_is_pushed_and_that_is_said(bundle: Path, tmp_path: Path, given: str) -> None:
    options: tuple[str | Path, ...] = ("--mode", "embedded")
    if given == "file":
        options = ("--site", config(bundle, tmp_path / "site", *options))
    result = run("push", bundle, *options, "--report", tmp_path / "report.json")
    assert result.code == 3, result.err
    assert "no image is put into a registry at this site: its mode is embedded [nothing-selected]" in result.err
    assert "hint: Nodes get them through agent/images" in result.err
    assert json.loads((tmp_path / "report.json").read_text())["error"]["reference"] == "nothing-selected"


def test_routes_that_leave_nothing_for_the_registry_say_so_too(bundle: Path, registry: Registry) -> None:
    result = run("push", bundle, registry.url, "--mode", "hybrid", "--route", "*=embedded")
    assert result.code == 3, result.err
    assert "no image of this bundle is put into a registry" in result.err
    assert registry.requests() == []


def test_a_route_that_decides_nothing_gives_a_warning(bundle: Path, registry: Registry, tmp_path: Path) -> None:
    routes = ("--route", "quay.io/tsore/*=registry")
    text = (
        "the route quay.io/tsore/*=registry is for no image of this bundle, or comes after one that takes all of them"
    )
    result = run("push", bundle, registry.url, "--mode", "hybrid", *routes, "-o", "json")
    assert result.code == 0, result.err
    assert result.json["warnings"] == [text]
    assert f"warning: {text}" in result.err
    made = run(
        *("config", bundle, "--to", tmp_path / "site", "--target", HARBOR, "--mode", "hybrid", *routes, "-o", "json")
    )
    assert made.code == 0, made.err
    assert text in made.json["warnings"]


ALL = ("--route", "*=registry")


def test_a_layout_without_a_lock_has_no_k3s_set(bundle: Path, registry: Registry, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(bundle, bare)
    (bare / "bundle.lock.json").unlink()
    result = run("push", bare, registry.url, "--mode", "hybrid")
    assert result.code == 3, result.err
    assert "which images K3s needs is not known" in result.err
    assert run("config", bare, "--to", tmp_path / "site", "--target", HARBOR, "--mode", "hybrid").code == 3
    assert registry.requests() == []
    # Where it does not matter what belongs to that set, nothing is missing.
    assert run("config", bare, "--to", tmp_path / "all", "--target", HARBOR, "--mode", "hybrid", *ALL).code == 0
    pushed = run("push", bare, registry.url, "--mode", "hybrid", *ALL)
    assert pushed.code == 0, pushed.err


# --- what does not go together ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hybrid(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a site.json with a route."""
    directory = tmp_path_factory.mktemp("hybrid") / "site"
    options = ("--target", HARBOR, "--mode", "hybrid", "--route", "ghcr.io/*=registry")
    return config(bundle, directory, *options)


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        (("--mode", "registry"), "mode hybrid"),
        (("--mode", "embedded"), "mode hybrid"),
        (("--route", "quay.io/*=registry"), "other routes"),
        (("--route", "ghcr.io/*=registry", "--route", "*=embedded"), "other routes"),
        (("--route", "ghcr.io/*=embedded"), "other routes"),
        (("--keep-registry",), "names without the source registry"),
        (("https://harbor.example/other",), f"target {HARBOR}"),
        (("http://harbor.example/k3s",), f"target {HARBOR}"),
        (("https://harbor.example",), f"target {HARBOR}"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_flag_that_contradicts_the_file_is_refused(
    bundle: Path, hybrid: Path, tmp_path: Path, flags: tuple[str, ...], has: str
) -> None:
    result = run("push", bundle, *flags, "--site", hybrid, "--report", tmp_path / "report.json", "-o", "json")
    assert result.code == 2, result.err
    assert f"contradicts --site {hybrid}, which has {has}" in " ".join(result.err.split())
    report = json.loads((tmp_path / "report.json").read_text())
    assert report == result.json
    assert (report["status"], report["error"]["reference"], report["error"]["exit_code"]) == ("failed", "usage", 2)
    assert str(hybrid) in report["error"]["message"]


def test_routes_contradict_a_file_that_has_none(bundle: Path, tmp_path: Path) -> None:
    site = config(bundle, tmp_path / "site", "--target", HARBOR, "--mode", "hybrid")
    result = run("push", bundle, "--site", site, "--route", "ghcr.io/*=registry")
    assert result.code == 2
    assert "which has no routes" in " ".join(result.err.split())


def test_flags_that_say_what_the_file_says_are_no_contradiction(
    bundle: Path, registry: Registry, tmp_path: Path
) -> None:
    same = ("--mode", "hybrid", "--route", "ghcr.io/*=registry", "--keep-registry")
    site = config(bundle, tmp_path / "site", "--target", registry.url, *same)
    result = run("push", bundle, registry.url, *same, "--site", site, "-o", "json")
    assert pushed(result) == routed(bundle, lambda in_set, name: in_set or name.startswith("ghcr.io/"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "a target is needed"),
        (("--mode", "hybrid"), "a target is needed"),
        ((HARBOR, "--mode", "embedded"), "a target is given"),
        ((HARBOR, "--route", "*=registry"), "routes go with the mode hybrid"),
        (("--mode", "embedded", "--keep-registry"), "keep-registry is about names at a target"),
        ((HARBOR, "--mode", "hybrid", "--route", "k3s"), "'k3s' is not PATTERN=registry or PATTERN=embedded"),
        ((HARBOR, "--mode", "hybrid", "--route", "k3s=harbor"), "is not PATTERN=registry or PATTERN=embedded"),
        ((HARBOR, "--mode", "hybrid", "--route", "\udcff*=registry"), "is not PATTERN=registry or PATTERN=embedded"),
        ((HARBOR, "--mode", "mixed"), "'mixed' is not one of"),
    ],
    ids=lambda value: ascii(" ".join(value)) if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("command", ["push", "config"])
def test_flags_that_contradict_each_other_are_refused(
    bundle: Path, tmp_path: Path, command: str, flags: tuple[str, ...], words: str
) -> None:
    if command == "config":
        flags = tuple(part for flag in flags for part in (("--target", flag) if flag == HARBOR else (flag,)))
        flags = (*flags, "--to", str(tmp_path / "site"))
    result = run(command, bundle, *flags)
    # Whether the mode hybrid needs a target, the bundle decides for `config`.
    by_bundle = command == "config" and flags[:2] == ("--mode", "hybrid")
    assert result.code == (3 if by_bundle else 2), result.err
    assert ("[bad-target]" if by_bundle else words) in " ".join(result.err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "code", "reference"),
    [
        ("", 3, "bad-site"),
        ("{}", 3, "bad-site"),
        ('{"apiVersion": "airgap-sync/v9"}', 11, "bundle-format-too-new"),
        (" " * 1024 * 1025, 3, "bad-site"),
    ],
    ids=["empty", "no fields", "newer", "large"],
)
def test_a_file_that_is_no_site_is_refused(
    bundle: Path, registry: Registry, tmp_path: Path, text: str, code: int, reference: str
) -> None:
    site = tmp_path / "site.json"
    site.write_text(text)
    result = run("push", bundle, registry.url, "--site", site)
    assert result.code == code, result.err
    assert str(site) in result.err
    assert f"[{reference}]" in result.err
    assert registry.requests() == []


def test_a_site_without_a_target_takes_one(bundle: Path, registry: Registry, hybrid: Path, tmp_path: Path) -> None:
    document = {**json.loads(hybrid.read_text()), "target": None}
    site = tmp_path / "site.json"
    site.write_text(json.dumps(document))
    assert run("push", bundle, "--site", site).code == 2
    result = run("push", bundle, registry.url, "--site", site, "-o", "json")
    assert pushed(result) == routed(bundle, lambda in_set, name: in_set or name.startswith("ghcr.io/"))
