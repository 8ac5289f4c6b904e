"""A real containerd pulls every image of a bundle by its own name, through the registries.yaml that `config` wrote.

What K3s makes of that file is rendered as v1.32.3+k3s1 does it. Debian's containerd knows no `rewrite`: where a rule
puts a prefix before every path, that becomes part of the endpoint; else a proxy that rewrites stands in its place.
"""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bundler.k3s.hosts import NodeHosts, NodeSettings, render
from bundler.k3s.hoststoml import HostsFile
from bundler.k3s.registries import RegistriesFile
from bundler.k3s.version import K3sVersion
from tests.support.bundles import Bundle
from tests.support.certificates import Authority
from tests.support.command import run
from tests.support.containerd import Containerd
from tests.support.content import BlobStore
from tests.support.faulty import FaultyRegistry
from tests.support.images import publish
from tests.support.programs import free_port, require
from tests.support.registry import Registry
from tests.support.rewriting import RewritingProxy
from tests.support.sites import (
    V132,
    Upstream,
    bundle_of,
    image_of_name,
    names_of,
    routed,
    write_certs_d,
)

USER, PASSWORD = "robot$k3s+pull", "0123"
Document = dict[str, Any]
SOME = re.compile(r"k3s-upgrade:v1.32|pause|traefik:3|ghcr.io/other/pinned@|quay.io/store/both:7|/deep/er/path|minio")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("containerd", "ctr", "docker-registry")
    return bundle_of(tmp_path_factory)


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    with Containerd() as started:
        yield started


class Site:
    """A bundle at a registry, and a node that was told where to look.

    Attributes:
        directory: What `config` wrote.
        node_dir: K3s's directory on the node; the files are there as RUNBOOK.md says.
    """

    def __init__(self, containerd: Containerd, bundle: Path, work: Path) -> None:
        self.bundle = bundle
        self.directory = work / "site"
        self.node_dir = work / "node"
        self._containerd = containerd
        self._work = work
        containerd.forget()

    def load(self, target: str | None, *options: str | Path, access: tuple[str | Path, ...] = ()) -> "Site":
        """Write the configuration, put it on the node, and push.

        Args:
            target: The registry with its prefix.
            options: Of `config`.
            access: Options that `push` and `config` take both.
        """
        to = ("--target", target) if target else ()
        made = run(
            *("config", self.bundle, *to, *options, *access, "--to", self.directory, "--node-dir", self.node_dir)
        )
        assert made.code == 0, made.err
        self.node_dir.mkdir()
        for name in ("registries.yaml", "ca.pem"):
            if (self.directory / name).exists():
                (self.node_dir / name).write_bytes((self.directory / name).read_bytes())
        pushed = run("push", self.bundle, "--site", self.directory / "site.json", *access)
        assert pushed.code == 0, pushed.err
        return self

    def document(self) -> Document:
        """Give registries.yaml as data, to change it."""
        found: Document = yaml.safe_load((self.directory / "registries.yaml").read_text())
        return found

    def hosts(self, document: Document | None = None) -> NodeHosts:
        """Give what K3s makes of registries.yaml, or of a changed one."""
        text = yaml.safe_dump(document) if document else (self.node_dir / "registries.yaml").read_text()
        file = RegistriesFile.parse(text, "registries.yaml")
        assert file.warnings == ()
        site = json.loads((self.directory / "site.json").read_text())
        hosts = render(file, NodeSettings(K3sVersion.parse(V132), default_endpoint=site["default_endpoint"]))
        assert hosts.notes == ()
        return hosts

    def certs_d(self, hosts: NodeHosts, change: Callable[[HostsFile], HostsFile] = HostsFile.folded) -> Path:
        """Write what containerd reads."""
        return write_certs_d(self._work / "certs.d", hosts, change)

    def pull(self, certs_d: Path, names: set[str], platform: str = "linux/amd64", user: str | None = None) -> None:
        """Pull images by their own names, and check that they are those of the bundle."""
        options = ["--platform", platform, "--snapshotter", self._containerd.snapshotter]
        options += ["--user", user] if user else []

        def pull(name: str) -> None:
            self._containerd.ctr("images", "pull", "--hosts-dir", certs_d, *options, name)

        self._containerd.forget()
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(pull, sorted(names)))
        found = self._containerd.images()
        digests = Bundle(self.bundle).names
        assert {name: found[name] for name in names} == {name: digests[name] for name in names}
        content = self._containerd.content()
        for name in names:
            assert self.needed(digests[name], platform) <= content, name

    def needed(self, root: str, platform: str) -> set[str]:
        """Give the digests that an image of a platform is made of."""
        read = Bundle(self.bundle)
        (child,) = (
            item["digest"]
            for item in read.json(root)["manifests"]
            if f"{item['platform']['os']}/{item['platform']['architecture']}" == platform
        )
        manifest = read.json(child)
        return {root, child, manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])}

    @property
    def names(self) -> set[str]:
        """All names of the bundle."""
        return set(names_of(self.bundle))

    @property
    def some(self) -> set[str]:
        """Some of them: of every registry, by tag and by digest, of OCI's and Docker's media types."""
        found = {name for name in self.names if SOME.search(name)}
        assert len(found) == len(SOME.pattern.split("|"))
        return found


@pytest.fixture
def site(containerd: Containerd, bundle: Path, tmp_path: Path) -> Site:
    return Site(containerd, bundle, tmp_path)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as started:
        yield started


def repositories(registry: Registry) -> set[str]:
    """Give the repositories whose manifests were asked for by name or digest, and found."""
    return {
        entry.path.removeprefix("/v2/").partition("/manifests/")[0]
        for entry in registry.requests()
        if "/manifests/" in entry.path and entry.method == "HEAD" and "ns=" in entry.query and entry.status == 200
    }


def asked_for(names: set[str], before: Callable[[str], str]) -> set[str]:
    """Give the repositories of names at a target, each below what stands before those of its registry."""
    found = set()
    for name in names:
        registry, _, path = name.partition("/")
        found.add(before(registry) + path.partition("@")[0].partition(":")[0])
    return found


# --- every image, by its own name -----------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64"])
def test_plain(site: Site, registry: Registry, platform: str) -> None:
    site.load(registry.url)
    names = site.names if platform == "linux/amd64" else site.some
    site.pull(site.certs_d(site.hosts()), names, platform)
    assert repositories(registry) == asked_for(names, lambda _: "")


def test_a_prefix(site: Site, registry: Registry) -> None:
    site.load(f"{registry.url}/mirror/k3s")
    site.pull(site.certs_d(site.hosts()), site.names)
    assert repositories(registry) == asked_for(site.names, lambda _: "mirror/k3s/")


def test_a_project_as_in_harbor_with_the_source_registry_in_the_names(site: Site, registry: Registry) -> None:
    site.load(f"{registry.url}/k3s", "--keep-registry")
    certs_d = site.certs_d(site.hosts())
    site.pull(certs_d, site.names)
    assert repositories(registry) == asked_for(site.names, lambda source: f"k3s/{source}/")


def test_tls_with_a_private_authority(site: Site, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    with Registry(certificate=authority.issue("127.0.0.1")) as registry:
        site.load(f"{registry.url}/k3s", access=("--ca-file", authority.ca_file))
        certs_d = site.certs_d(site.hosts())
        for source in ("docker.io", "ghcr.io", "quay.io"):
            assert f'ca = ["{site.node_dir}/ca.pem"]' in (certs_d / source / "hosts.toml").read_text()
        site.pull(certs_d, site.names)


def test_basic_authentication(site: Site, tmp_path: Path) -> None:
    """K3s gives the credentials to containerd in config.toml; `ctr` takes them as an option."""
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    with Registry(htpasswd=(USER, PASSWORD)) as registry:
        access = ("--username", USER, "--password-file", str(password))
        made = run(
            *("config", site.bundle, "--target", registry.url, "--to", site.directory, "--with-credentials", *access)
        )
        assert made.code == 0, made.err
        assert run("push", site.bundle, "--site", site.directory / "site.json", *access).code == 0
        hosts = site.hosts(site.document())
        found = {hosts.endpoints_for(name.partition("/")[0])[0].auth for name in site.names}
        (auth,) = found
        assert auth is not None
        certs_d = site.certs_d(hosts)
        with pytest.raises(RuntimeError, match=r"authorization failed|401"):
            site.pull(certs_d, {min(site.names)})
        site.pull(certs_d, site.names, user=f"{auth.username}:{auth.password}")


def test_several_endpoints_of_which_the_first_is_dead(site: Site, registry: Registry) -> None:
    site.load(f"{registry.url}/k3s")
    document = site.document()
    for mirror in document["mirrors"].values():
        mirror["endpoint"].insert(0, f"http://127.0.0.1:{free_port()}")
    site.pull(site.certs_d(site.hosts(document)), site.names)


def test_an_endpoint_with_a_path(site: Site, registry: Registry) -> None:
    """The other way to say the same: no rewrite, and the prefix behind /v2 in the endpoint."""
    site.load(f"{registry.url}/k3s/deep")
    document = site.document()
    for mirror in document["mirrors"].values():
        assert mirror.pop("rewrite") == {"^(.*)$": "k3s/deep/$1"}
        mirror["endpoint"] = [f"{endpoint}/v2/k3s/deep" for endpoint in mirror["endpoint"]]
    certs_d = site.certs_d(site.hosts(document), lambda file: file)
    assert "override_path = true" in (certs_d / "quay.io" / "hosts.toml").read_text()
    site.pull(certs_d, site.names)
    assert repositories(registry) == asked_for(site.names, lambda _: "k3s/deep/")


def test_a_wildcard(site: Site, registry: Registry, containerd: Containerd, tmp_path: Path) -> None:
    site.load(f"{registry.url}/k3s", "--wildcard")
    # Of a registry that the bundle has nothing of.
    other = image_of_name(BlobStore(tmp_path / "store"), "gcr.io/extra/other:1")
    publish(other, registry.url, "k3s/extra/other", "1")
    certs_d = site.certs_d(site.hosts())
    mirrored = {"_default", "docker.io", "ghcr.io", "quay.io"}
    assert {path.name for path in certs_d.iterdir()} == {*mirrored, registry.host}
    containerd.pull("gcr.io/extra/other:1", "linux/amd64", certs_d)
    assert containerd.images()["gcr.io/extra/other:1"] == other.root_digest


def test_a_wildcard_alone(site: Site, registry: Registry) -> None:
    site.load(f"{registry.url}/k3s", "--wildcard")
    document = site.document()
    document["mirrors"] = {"*": document["mirrors"]["*"]}
    certs_d = site.certs_d(site.hosts(document))
    assert {path.name for path in certs_d.iterdir()} == {"_default"}
    site.pull(certs_d, site.names)


def test_by_digest_what_the_bundle_has_by_digest(site: Site, registry: Registry, containerd: Containerd) -> None:
    pinned = {name for name in site.names if "@sha256:" in name}
    assert {name.partition("@")[0] for name in pinned} == {"ghcr.io/other/pinned", "quay.io/store/both"}
    site.load(f"{registry.url}/k3s", "--keep-registry")
    certs_d = site.certs_d(site.hosts())
    site.pull(certs_d, pinned, "linux/arm64")
    # Pods that name tag and digest, as the kubelet passes both on.
    (both,) = (image["reference"] for image in Bundle(site.bundle).lock["images"] if ":7@" in image["reference"])
    containerd.pull(both, "linux/amd64", certs_d)
    assert containerd.images()[both] == both.partition("@")[2]


def test_the_default_endpoint_off(site: Site, registry: Registry) -> None:
    site.load(f"{registry.url}/k3s", "--no-default-endpoint")
    certs_d = site.certs_d(site.hosts())
    for source in ("docker.io", "ghcr.io", "quay.io"):
        assert "server" not in (certs_d / source / "hosts.toml").read_text()
    site.pull(certs_d, site.names)


def test_hybrid(site: Site, registry: Registry) -> None:
    """What is routed to the registry comes from there, the rest by the archive that RUNBOOK.md has nodes import."""
    site.load(f"{registry.url}/k3s", "--mode", "hybrid")
    in_set = routed(site.bundle, lambda in_set, _: in_set)
    assert set((site.directory / "pre-pull.txt").read_text().split()) == in_set
    # The embedded registry itself is left out here.
    certs_d = site.certs_d(site.hosts())
    assert {path.name for path in certs_d.iterdir()} == {"docker.io"}
    site.pull(certs_d, in_set)


def test_the_archive_of_the_runbook_has_every_image_by_its_name(
    site: Site, containerd: Containerd, tmp_path: Path
) -> None:
    made = run("config", site.bundle, "--mode", "embedded", "--to", site.directory)
    assert made.code == 0, made.err
    lines = (site.directory / "RUNBOOK.md").read_text().splitlines()
    (command,) = (line for line in lines if line.startswith("tar "))
    shell = command.replace("/var/lib/rancher/k3s/agent/images/..", str(tmp_path)).partition("#")[0]
    subprocess.run(["sh", "-ceu", shell], check=True, env={"BUNDLE": str(site.bundle), "PATH": "/usr/bin:/bin"})
    (archive,) = tmp_path.glob("airgap-sync-*.tar.new")
    containerd.forget()
    containerd.import_tar(archive, "--all-platforms", "--no-unpack")
    assert containerd.images() == names_of(site.bundle)
    for digest in names_of(site.bundle).values():
        for platform in ("linux/amd64", "linux/arm64"):
            assert site.needed(digest, platform) <= containerd.content()


# --- a target that images are named after ---------------------------------------------------------------------------


def test_images_named_after_the_target_are_rewritten_and_its_others_are_not(
    containerd: Containerd, registry: Registry, tmp_path: Path
) -> None:
    store = BlobStore(tmp_path / "store")
    own, elsewhere = f"{registry.host}/team/own.app:1", "quay.io/team/app:1"
    with Upstream(store) as upstream:
        for name in (own, elsewhere):
            upstream.put(name)
        mirrors = upstream.registries_file(tmp_path / "upstream.yaml", [own, elsewhere])
        images = ("--image", own, "--image", elsewhere)
        made = run("bundle", *images, "--registries", mirrors, "--to", tmp_path / "bundle")
        assert made.code == 0, made.err
    other = image_of_name(store, "other:1")
    publish(other, registry.url, "team/ownxapp", "1")
    site = Site(containerd, tmp_path / "bundle", tmp_path)
    site.load(f"{registry.url}/k3s", "--mode", "registry")
    rules = site.document()["mirrors"][registry.host]["rewrite"]
    assert rules == {"^(team/own[.]app)$": "k3s/$1"}

    with RewritingProxy(registry.url, rules) as proxy:

        def through_proxy(file: HostsFile) -> HostsFile:
            try:
                return file.folded()
            except ValueError:
                (endpoint,) = file.endpoints
                assert {rule.pattern: rule.replacement for rule in endpoint.rewrites} == rules
                return replace(file, endpoints=(replace(endpoint, base_url=f"{proxy.origin}/v2", rewrites=()),))

        certs_d = site.certs_d(site.hosts(), through_proxy)
        site.pull(certs_d, {own, elsewhere})
        assert {sent.partition("/manifests/")[0] for _, sent in proxy.asked if "/manifests/" in sent} == {
            "/v2/k3s/team/own.app"
        }
        # It came with the registry that it stands in for, and went on with it.
        namespace = f"?ns={registry.host.replace(':', '%3A')}"
        assert {(came.endswith(namespace), sent.endswith(namespace)) for came, sent in proxy.asked} == {(True, True)}
        # Not of the bundle, and so still where it was.
        containerd.pull(f"{registry.host}/team/ownxapp:1", "linux/amd64", certs_d)
        assert containerd.images()[f"{registry.host}/team/ownxapp:1"] == other.root_digest


# --- what Debian's containerd is no proof of ------------------------------------------------------------------------


@pytest.mark.parametrize("off", [False, True], ids=["on", "off"])
def test_without_a_server_line_debians_containerd_asks_the_source_all_the_same(
    containerd: Containerd, registry: Registry, tmp_path: Path, off: bool
) -> None:
    """K3s's containerd does not. So pulls here show that a default endpoint is not needed, not that none is asked."""
    with FaultyRegistry() as source, ExitStack() as stack:
        name = f"{source.host}/team/app:1"
        upstream = stack.enter_context(Upstream(BlobStore(tmp_path / "store")))
        upstream.put(name)
        mirrors = upstream.registries_file(tmp_path / "upstream.yaml", [name])
        made = run("bundle", "--image", name, "--registries", mirrors, "--to", tmp_path / "bundle")
        assert made.code == 0, made.err
        site = Site(containerd, tmp_path / "bundle", tmp_path)
        site.load(f"{registry.url}/k3s", *(["--no-default-endpoint"] if off else []))
        hosts = site.hosts()
        certs_d = site.certs_d(hosts)
        assert ("server =" in (certs_d / source.host / "hosts.toml").read_text()) is not off
        site.pull(certs_d, {name})
        assert source.requests() == []

        missing = containerd.pull(f"{source.host}/team/absent:1", "linux/amd64", certs_d, check=False)
        assert missing.returncode
        assert len(hosts.endpoints_for(source.host)) == (1 if off else 2)
        assert {request.path for request in source.requests()} == {"/v2/team/absent/manifests/1"}
