"""Where the nodes of a site look: from their registries.yaml, or on a node from what K3s made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundler import yamlfile
from bundler.errors import BadRegistriesFileError
from bundler.k3s.endpoint import Endpoint
from bundler.k3s.features import HOSTS_TOML
from bundler.k3s.hosts import DEFAULT_DIRECTORY, NodeHosts, NodeSettings, parse, render
from bundler.k3s.registries import RegistriesFile
from bundler.k3s.version import K3sVersion
from bundler.site.findings import Severity, Verdict
from bundler.site.node import LocalNode
from bundler.site.routes import Site

_RESTART = "systemctl restart k3s    (on an agent: k3s-agent)"


@dataclass(frozen=True, slots=True)
class Lookup:
    """Where nodes look, by all versions that they run now and on the way.

    Attributes:
        rendered: What each version makes of registries.yaml.
        actual: What this node does now, if we are on one.
    """

    rendered: tuple[NodeHosts, ...]
    actual: NodeHosts | None = None

    def endpoints_for(self, registry: str) -> list[list[Endpoint]]:
        """Return the endpoints of a registry in their order: one list for each kind of node, each kind once."""
        lists = [hosts.endpoints_for(registry) for hosts in self.rendered]
        if self.actual is not None:
            here = self.actual.endpoints_for(registry)
            own = [endpoint for endpoint in here if endpoint.is_embedded]
            # After an upgrade the embedded registry is where it is now.
            lists = [here, *([*own, *(e for e in endpoints if not e.is_embedded)] for endpoints in lists)]
        return [endpoints for at, endpoints in enumerate(lists) if endpoints not in lists[:at]]


def look_up(
    verdict: Verdict,
    site: Site,
    file: RegistriesFile,
    versions: Iterable[K3sVersion],
    registries: Sequence[str],
    *,
    node: LocalNode | None = None,
    running: K3sVersion | None = None,
) -> Lookup:
    """Find out where nodes look, and note what is odd about it.

    Args:
        verdict: Where findings go.
        site: The site.
        file: The nodes' registries.yaml.
        versions: All that nodes run now and on the way.
        registries: The source registries that count.
        node: The node that we are on.
        running: What it runs, if known.

    Raises:
        BadHostsFileError: A hosts.toml of this node cannot be read.
    """
    for warning in file.warnings:
        verdict.add("registries-yaml", Severity.WARNING, file.name, warning, "Mend the file on every node.")
    known: list[K3sVersion | None] = [*sorted(set(versions))]
    rendered = []
    for version in known or [None]:
        hosts = render(file, NodeSettings(version, site.embedded, site.default_endpoint))
        rendered.append(hosts)
        for note in hosts.notes_for_people(site.target.host if site.target else ""):
            words = note if version is None or str(version) in note else f"{version}: {note}"
            verdict.add("k3s-reads-otherwise", Severity.WARNING, file.name, words, "Mend the file on every node.")
    if node is None:
        return Lookup(tuple(rendered))
    # What is for other registries may be anything.
    names = {DEFAULT_DIRECTORY, *registries, *(_with_underscores(registry) for registry in registries)}
    texts = {name: text for name, text in node.hosts.items() if name in names}
    if not node.hosts and running and not HOSTS_TOML.in_version(running):
        verdict.not_checked.append(
            f"whether K3s was restarted since {file.name} was changed: {running} has no certs.d to compare it with"
        )
        return Lookup(tuple(rendered))
    actual = parse(texts, file, running)
    _compare(verdict, site, actual, rendered, file.name, registries)
    return Lookup(tuple(rendered), actual)


def _with_underscores(registry: str) -> str:
    """Return the other name that containerd looks for a directory by."""
    host, colon, port = registry.rpartition(":")
    return f"{host}_{port}_" if colon else registry


def _compare(
    verdict: Verdict,
    site: Site,
    actual: NodeHosts,
    rendered: Sequence[NodeHosts],
    place: str,
    registries: Sequence[str],
) -> None:
    """Find out whether K3s was restarted since its registries.yaml was changed."""
    shares = any(endpoint.is_embedded for registry in registries for endpoint in actual.endpoints_for(registry))

    def places(hosts: NodeHosts, registry: str) -> list[str]:
        # The embedded registry may listen on any port, and where it is off nowhere, that is said once.
        found = [endpoint for endpoint in hosts.endpoints_for(registry) if not endpoint.is_default]
        found = [endpoint for endpoint in found if shares or not endpoint.is_embedded]
        return ["other nodes" if endpoint.is_embedded else endpoint.base_url for endpoint in found]

    if site.embedded and not shares:
        verdict.add(
            "embedded-off",
            Severity.ERROR,
            "certs.d",
            "the embedded registry is not on, so this node asks no other node",
            f"Set embedded-registry: true on the servers, then: {_RESTART}",
        )
    for registry in registries:
        if not any(places(hosts, registry) == places(actual, registry) for hosts in rendered):
            verdict.add(
                "not-restarted",
                Severity.ERROR,
                f"certs.d of {registry}",
                f"containerd asks {', '.join(places(actual, registry)) or 'no mirror'}, and {place} says "
                f"{', '.join(places(rendered[0], registry)) or 'none'}",
                f"K3s reads the file only when it starts: {_RESTART}",
            )


class NodeFiles:
    """Finds the files that a registries.yaml names, such as the CA: on the node, or beside what `config` wrote.

    Args:
        text: The registries.yaml.
        name: What messages call it.
        node: The node that we are on.
        config: The directory that `config` wrote, if it is there.
    """

    def __init__(self, text: str, name: str, node: LocalNode | None, config: Path | None) -> None:
        self._root = node.root if node else Path("/")
        self._written = _beside(text, name, config) if config and node is None else {}

    def here(self, path: str) -> str:
        """Return where a file lies for us, by its path on nodes."""
        return self._written.get(path) or str(self._root / path.lstrip("/"))


def _beside(text: str, name: str, config: Path) -> Mapping[str, str]:
    document = yamlfile.load(text, name, error=BadRegistriesFileError)
    found: dict[str, str] = {}
    for host in document.mapping(("configs",)):
        for key in ("ca_file", "cert_file", "key_file"):
            path = document.text(("configs", host, "tls", key))
            if path and (config / Path(path).name).is_file():
                found[path] = str(config / Path(path).name)
    return found
