"""What the steps of RUNBOOK.md depend on, and the form of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bundler.k3s.features import HOSTS_TOML
from bundler.k3s.hosts import NodeHosts
from bundler.k3s.version import K3sVersion
from bundler.oci.platform import Platform
from bundler.site.plans import Window
from bundler.site.routes import Route, Site

#: Where K3s looks for its configuration unless it is told otherwise.
NODE_DIR = "/etc/rancher/k3s"
DATA_DIR = "/var/lib/rancher/k3s"
AGENT_IMAGES = f"{DATA_DIR}/agent/images"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the steps depend on.

    Attributes:
        made_by: One line that says what made the file.
        site: The site.
        counts: Images by route.
        registries: Source registries of the images.
        hosts: What K3s makes of registries.yaml where the steps begin.
        hops: The releases that are upgraded to, in order.
        plan_files: The file of each hop.
        suc_version: Of the controller whose objects were written, if any.
        suc_files: The names of the files with its objects, in the order to apply.
        bundle_name: Part of a file name that no other bundle has.
        archive_bytes: The size of the bundle as an archive.
        bytes_by_platform: What a node of each platform fetches at most.
        node_dir: K3s's configuration directory on nodes.
        server_files: What is copied to servers: name here, path there.
        agent_files: What is copied to agents.
        deadline_s: How long a job may take.
        window: When jobs may begin; None for at any time.
        credentials_missing: There is a target, and registries.yaml has no credentials for it.
        client_key_missing: Where the key of the client certificate belongs on nodes, if it is not among the files.
    """

    made_by: str
    site: Site
    counts: dict[Route, int]
    registries: Sequence[str]
    hosts: NodeHosts
    hops: Sequence[K3sVersion]
    plan_files: Sequence[str]
    suc_version: str | None
    suc_files: Sequence[str]
    bundle_name: str
    archive_bytes: int
    bytes_by_platform: dict[Platform, int]
    node_dir: str
    server_files: Sequence[tuple[str, str]]
    agent_files: Sequence[tuple[str, str]]
    deadline_s: int
    window: Window | None = None
    credentials_missing: bool = False
    client_key_missing: str | None = None

    @property
    def versions(self) -> list[K3sVersion]:
        """All versions that nodes run on the way."""
        return [*([self.site.running] if self.site.running else []), *self.hops]

    @property
    def has_hosts_toml(self) -> bool:
        """Whether nodes have a certs.d when the steps begin."""
        return not self.versions or HOSTS_TOML.in_version(self.versions[0])

    @property
    def archive(self) -> str:
        """A file name for the bundle in agent/images; K3s may not read a name again that it knows."""
        return f"airgap-sync-{self.bundle_name}.tar"

    @property
    def pre_pull(self) -> str:
        """A file name for the list of images to pull in agent/images, for the same reason."""
        return f"airgap-sync-pre-pull-{self.bundle_name}.txt"

    @property
    def registries_there(self) -> str:
        """The path of registries.yaml on nodes."""
        return f"{self.node_dir}/registries.yaml"

    @property
    def own_preflight(self) -> str:
        """The preflight of a node itself, as a command; it looks at K3s's usual directory unless told otherwise."""
        command = 'airgap-sync preflight "$BUNDLE" --config "$CONFIG"'
        return command if self.node_dir == NODE_DIR else f"{command} --registries {self.registries_there}"


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Attributes:
        title: What is done.
        text: Why, and what to know.
        do: The commands.
        check: The commands that show whether it is done.
        expect: What those say then.
    """

    title: str
    text: str
    do: Sequence[str] = ()
    check: Sequence[str] = ()
    expect: str = ""


def shell(lines: Sequence[str]) -> str:
    """Return commands as a block."""
    return "\n".join(["```sh", *lines, "```"])
