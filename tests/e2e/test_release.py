"""The main job end to end, for an old, a middle and the newest release: list, bundle, push, and nodes that pull.

The registries are Debian's docker-registry, the node is a real containerd, the second opinion is skopeo.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bundler.oci.digest import Digest
from bundler.schema.validation import first_problem
from tests.support.command import run
from tests.support.containerd import Containerd, write_hosts
from tests.support.images import PLATFORMS, ImageFactory, publish_k3s
from tests.support.programs import find_program, require
from tests.support.registry import Registry
from tests.support.releases import ReleaseServer

VERSIONS = ("v1.21.9+k3s1", "v1.32.3+k3s1", "v1.37.1+k3s1")
NODE_PLATFORMS = ("linux/amd64", "linux/arm64")
SCALE = 0.01


@dataclass
class Site:
    """One release, bundled and pushed."""

    version: str
    references: list[str]
    bundle: Path
    bundle_arguments: list[str]
    upstream: Registry
    target: Registry
    state: str

    @property
    def lock(self) -> dict[str, dict[str, object]]:
        document = json.loads((self.bundle / "bundle.lock.json").read_text())
        return {image["reference"]: image for image in document["images"]}

    def files(self) -> dict[Path, bytes]:
        return {
            path: path.read_bytes()
            for path in self.bundle.rglob("*")
            if path.is_file() and ".airgap-sync" not in path.parts
        }


@pytest.fixture(scope="module", params=VERSIONS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    require("docker-registry", "containerd", "ctr", "skopeo")
    version: str = request.param
    work = tmp_path_factory.mktemp("site")
    listed = run("images", "--k3s", version, "--release-url", "shipped")
    assert listed.code == 0, listed.err
    references = listed.out.split()
    with Registry() as upstream, Registry() as target:
        publish_k3s(upstream.url, ImageFactory(work / "images"), references, SCALE, PLATFORMS)
        registries = work / "registries.yaml"
        registries.write_text(f"mirrors:\n  docker.io:\n    endpoint: ['{upstream.url}']\n")
        added = ("k3s-upgrade", "system-upgrade-controller", "kubectl")
        text = "".join(f"{line}\n" for line in references if not any(f"/{name}:" in line for name in added))
        with ReleaseServer({version: text}) as releases:
            arguments = ["bundle", "--k3s", version, "--release-url", releases.url]
            arguments += [item for platform in NODE_PLATFORMS for item in ("--platform", platform)]
            arguments += ["--registries", str(registries), "--to", str(work / "bundle")]
            made = run(*arguments, "--strict")
            assert made.code == 0, made.err
            state = str(work / "state")
            pushed = run("push", str(work / "bundle"), target.url, "--state", state)
            assert pushed.code == 0, pushed.err
            yield Site(version, references, work / "bundle", arguments, upstream, target, state)


def test_the_set_is_the_release_list_and_what_upgrades_it(site: Site) -> None:
    assert len(site.references) == 11
    assert f"docker.io/rancher/k3s-upgrade:{site.version.replace('+', '-')}" in site.references
    assert sorted(site.lock) == site.references


def test_containerd_pulls_every_image_by_its_own_name_for_both_platforms(site: Site, tmp_path: Path) -> None:
    write_hosts(tmp_path, "docker.io", site.target.url)
    mark = site.upstream.mark()
    with Containerd() as node:
        for platform in NODE_PLATFORMS:
            for reference in site.references:
                node.pull(reference, platform, tmp_path)
            assert {name: node.images()[name] for name in site.references} == {
                name: image["digest"] for name, image in site.lock.items()
            }
    assert site.upstream.since(mark) == []


def test_a_tar_of_the_layout_gives_containerd_every_name(site: Site, tmp_path: Path) -> None:
    archive = tmp_path / "bundle.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("oci-layout", "index.json", "blobs"):
            tar.add(site.bundle / name, name)
    with Containerd() as node:
        node.import_tar(archive, "--all-platforms", "--digests", "--skip-digest-for-named")
        assert node.images() == {name: image["digest"] for name, image in site.lock.items()}


def test_skopeo_reads_and_copies_every_oci_image_of_the_layout(site: Site, tmp_path: Path) -> None:
    skopeo = str(find_program("skopeo"))
    oci = {name: image for name, image in site.lock.items() if "vnd.oci." in str(image["media_type"])}
    assert len(oci) == 9
    for number, (reference, image) in enumerate(oci.items()):
        source = f"oci:{site.bundle}:{reference}"
        raw = subprocess.run([skopeo, "inspect", "--raw", source], capture_output=True, check=True).stdout
        assert str(Digest.of(raw)) == image["digest"]
        copy = tmp_path / str(number)
        subprocess.run(
            [skopeo, "copy", "-q", "--all", "--preserve-digests", source, f"dir:{copy}"],
            capture_output=True,
            check=True,
        )
        assert (copy / "manifest.json").read_bytes() == raw


def test_skopeo_refuses_docker_media_types_in_any_oci_layout(site: Site) -> None:
    # Its limit, not ours: keeping the upstream's bytes, which a pull by digest needs, keeps their media type.
    docker = [name for name, image in site.lock.items() if "vnd.docker." in str(image["media_type"])]
    assert len(docker) == 2
    for reference in docker:
        done = subprocess.run(
            [find_program("skopeo"), "inspect", "--raw", f"oci:{site.bundle}:{reference}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode
        assert reference in done.stderr


def test_the_lock_follows_its_schema_and_says_why_digests_differ(site: Site) -> None:
    assert first_problem("bundle-lock", json.loads((site.bundle / "bundle.lock.json").read_text())) is None
    for image in site.lock.values():
        assert image["platforms"] == list(NODE_PLATFORMS)
        assert image["differs"] == "trimmed-index"
        upstream = str(image["upstream_digest"]).partition(":")[2]
        assert (site.bundle / "blobs" / "sha256" / upstream).exists()


def test_a_second_push_is_one_head_an_image(site: Site) -> None:
    mark = site.target.mark()
    again = run("push", str(site.bundle), site.target.url, "--state", site.state)
    assert again.code == 0, again.err
    entries = site.target.since(mark)
    assert {entry.method for entry in entries} == {"HEAD"}
    assert len(entries) == len(site.references)


def test_a_second_bundle_is_nothing_but_heads_and_changes_no_byte(site: Site) -> None:
    before = site.files()
    mark = site.upstream.mark()
    again = run(*site.bundle_arguments)
    assert again.code == 0, again.err
    assert {entry.method for entry in site.upstream.since(mark)} == {"HEAD"}
    assert site.files() == before
