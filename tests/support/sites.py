"""Real bundles of whole K3s releases with apps, for tests of what a site makes of them; and how its nodes pull.

A bundle is made by the real command, from a registry on the loopback interface that stands for all the others. It is
made once for all processes of a test run: take it as it is, and copy it before you change anything in it.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock

from bundler.k3s.hosts import NodeHosts
from bundler.k3s.hoststoml import HostsFile
from tests.support.bundles import Bundle, random_bytes, registries
from tests.support.command import run
from tests.support.content import AMD64, ARM, ARM64, BlobStore, BuiltImage, Platform, digest_of
from tests.support.faulty import FaultyRegistry
from tests.support.images import Entry, index_of, single
from tests.support.media_types import DOCKER_LIST, OCI_INDEX

V131 = "v1.31.7+k3s1"
V132 = "v1.32.3+k3s1"
V133 = "v1.33.4+k3s1"

#: Ten apps of two registries; the names are asked for as they stand, `@` for a digest to be put in.
APPS = (
    "ghcr.io/team/one:1.0",
    "ghcr.io/team/two:2.0",
    "ghcr.io/team/sub/three:v3",
    "ghcr.io/other/four:2024-01-31",
    "ghcr.io/other/pinned@",
    "quay.io/metrics/agent:v1.2.3",
    "quay.io/metrics/server:v1.2.3",
    "quay.io/store/minio:RELEASE.2024",
    "quay.io/store/both:7@",
    "quay.io/store/deep/er/path:1",
)

_DOCKER = re.compile(r"traefik|busybox|minio")


@dataclass(frozen=True)
class Recipe:
    """What a bundle is made of.

    Attributes:
        versions: K3s releases.
        apps: Further images, written as APPS are.
        platforms: What it is made for.
        lacking: Images that upstream does not have, so that the bundle is incomplete.
        options: Further options of `bundle`.
    """

    versions: tuple[str, ...] = (V131, V132)
    apps: tuple[str, ...] = APPS
    platforms: tuple[str, ...] = ("linux/amd64", "linux/arm64")
    lacking: Collection[str] = ()
    options: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """A name for what comes of it."""
        parts = (self.versions, self.apps, self.platforms, sorted(self.lacking), self.options)
        return digest_of(repr(parts).encode())[7:19]


#: One release without parts that can be turned off, and two apps: quick to push.
SMALL = Recipe(
    versions=(V132,),
    apps=(APPS[0], APPS[8]),
    platforms=("linux/amd64",),
    options=("--disable", "traefik,servicelb,metrics-server,local-storage"),
)


def image_of_name(store: BlobStore, name: str) -> BuiltImage:
    """Build the image that a repository stands for; the same name with its tag always gives the same bytes."""
    docker = bool(_DOCKER.search(name))
    # Releases are there for more platforms than a site has, so that indexes are trimmed.
    platforms: tuple[Platform, ...] = (AMD64, ARM64, ARM) if "/rancher/" in name else (AMD64, ARM64)
    children = (
        Entry(single(store, platform, {"data": random_bytes(f"{name} {platform}", 300)}, docker=docker), platform)
        for platform in platforms
    )
    return index_of(*children, media_type=DOCKER_LIST if docker else OCI_INDEX)


def full_name(store: BlobStore, app: str) -> str:
    """Give the reference of an app: its digest in place of an `@` at its end."""
    name = app.removesuffix("@")
    return f"{name}@{image_of_name(store, name).root_digest}" if name != app else app


def k3s_set(version: str, *options: str) -> list[str]:
    """Give the images of a release and its upgrade, as the command lists them."""
    listed = run("images", "--k3s", version, "--release-url", "shipped", *options)
    assert listed.code == 0, listed.err
    return listed.lines


class Upstream(FaultyRegistry):
    """One registry in the place of all that images come from; repositories keep their path.

    Attributes:
        store: Where the content of its images lies.
    """

    def __init__(self, store: BlobStore) -> None:
        super().__init__()
        self.store = store

    def put(self, reference: str) -> BuiltImage:
        """Put in the image of a reference, which may have a digest."""
        name, _, _ = reference.partition("@")
        image = image_of_name(self.store, name)
        path, _, tag = name.partition("/")[2].partition(":")
        self.add(image, path, tag or None)
        return image

    def registries_file(self, path: Path, references: Iterable[str]) -> Path:
        """Write a registries.yaml that leads here from wherever some references come from."""
        return registries(
            path, {name: {"endpoint": [self.url]} for name in {text.partition("/")[0] for text in references}}
        )


def make_bundle(to: Path, recipe: Recipe, *, beside: Path) -> Path:
    """Make a bundle by the real command.

    Args:
        to: Where it is made.
        recipe: What of.
        beside: A directory for what is needed meanwhile.
    """
    beside.mkdir(parents=True, exist_ok=True)
    store = BlobStore(beside / "store")
    apps = [full_name(store, app) for app in recipe.apps]
    wanted = {reference for version in recipe.versions for reference in k3s_set(version, *recipe.options)} | {*apps}
    assert wanted.issuperset(recipe.lacking)
    arguments = [part for version in recipe.versions for part in ("--k3s", version)]
    arguments += [part for app in apps for part in ("--image", app)]
    arguments += [part for platform in recipe.platforms for part in ("--platform", platform)]
    with Upstream(store) as upstream:
        for reference in wanted.difference(recipe.lacking):
            upstream.put(reference)
        mirrors = upstream.registries_file(beside / "registries.yaml", wanted)
        made = run(
            *("bundle", *arguments, *recipe.options, "--release-url", "shipped", "--jobs", "8"),
            *("--registries", mirrors, "--to", to),
        )
    assert made.code == (10 if recipe.lacking else 0), made.err
    return to


def bundle_of(factory: pytest.TempPathFactory, recipe: Recipe | None = None) -> Path:
    """Give a bundle that is made once for a whole test run, by whoever comes first.

    Args:
        factory: Of pytest.
        recipe: What it is made of; the two releases with ten apps by default.
    """
    recipe = recipe or Recipe()
    base = factory.getbasetemp()
    # Under pytest-xdist every process has a directory of its own below the one of the run.
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    place = root / f"site-{recipe.key}"
    with FileLock(f"{place}.lock"):
        if not (place / "made").exists():
            make_bundle(place / "bundle", recipe, beside=place / "beside")
            (place / "made").touch()
    return place / "bundle"


@cache
def names_of(bundle: Path) -> Mapping[str, str]:
    """Give the digest of every name that a bundle has."""
    return Bundle(bundle).names


def routed(bundle: Path, wanted: Callable[[bool, str], bool]) -> set[str]:
    """Give the names of a bundle that a rule takes, which is told whether an image belongs to the K3s set."""
    found = set()
    for image in Bundle(bundle).lock["images"]:
        in_set = any(not reason.startswith("asked for by") for reason in image["reasons"])
        tagged, _, digest = image["reference"].partition("@")
        names = [tagged] if ":" in tagged.rpartition("/")[2] else []
        names += [f"{tagged.rpartition(':')[0] if names else tagged}@{digest}"] if digest else []
        found |= {name for name in names if wanted(in_set, name)}
    return found


# --- nodes ------------------------------------------------------------------------------------------------------------


def write_certs_d(directory: Path, hosts: NodeHosts, change: Callable[[HostsFile], HostsFile]) -> Path:
    """Write certs.d for a containerd that knows no `rewrite`.

    Args:
        directory: Is made.
        hosts: What a node of K3s would have.
        change: Makes of each file one without rewrites: `HostsFile.folded`, or what stands proxies before the hosts.
    """
    for name, file in hosts.files.items():
        (directory / name).mkdir(parents=True)
        (directory / name / "hosts.toml").write_text(change(file).to_toml())
    return directory


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Run the block, and what it starts, under another umask."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
