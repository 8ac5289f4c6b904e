"""``preflight``: can every node pull every image? Nothing is changed anywhere.

Invariant: what could not be checked is said, and never counts as passed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bundler import yamlfile
from bundler.errors import AirgapSyncError, BadRegistriesFileError, BadResultError, BadSucManifestError
from bundler.k3s import features
from bundler.k3s.endpoint import Endpoint
from bundler.k3s.hosts import NodeHosts, NodeSettings, parse, render
from bundler.k3s.registries import RegistriesFile
from bundler.k3s.version import K3sVersion
from bundler.net import Http
from bundler.oci.platform import Platform
from bundler.ops.loading import LoadedBundle, load_bundle
from bundler.progress import people_bytes
from bundler.registry.client import RegistryClient
from bundler.registry.harbor import Harbor
from bundler.registry.host import Hosts
from bundler.site import preflight as rules
from bundler.site.cluster import Cluster, Node
from bundler.site.containerd import Containerd
from bundler.site.findings import ImageResult, Problem, Severity, Verdict
from bundler.site.node import LocalNode
from bundler.site.nodefiles import NodeAccess, registries_yaml
from bundler.site.platforms import bundle_platforms, platforms_of
from bundler.site.pulls import Advice, CheckedImage, PullCheck
from bundler.site.routes import Route, Site
from bundler.transfer.crew import Crew
from bundler.transfer.room import content_bytes, project_of


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightOptions:
    """What is checked, and with what.

    Attributes:
        directory: The bundle.
        site: The site.
        advice: What messages name.
        registries: Place and text of the nodes' registries.yaml; None: as `config` would write it.
        config: What `config` wrote, if it is there.
        node: The node that we run on.
        node_name: Its name.
        platform: Its platform.
        containerd: Its containerd, if it answers.
        cluster: The cluster, if it can be asked.
        target: The client of the target for questions about room, if there is one.
        ca_files: Where there is no registries.yaml yet: the CAs that it will name.
        jobs: Images checked at once.
    """

    directory: Path
    site: Site
    advice: Advice
    registries: tuple[str, str] | None = None
    config: Path | None = None
    node: LocalNode | None = None
    node_name: str | None = None
    platform: Platform | None = None
    containerd: Containerd | None = None
    cluster: Cluster | None = None
    target: Callable[[], RegistryClient] | None = None
    ca_files: tuple[str, ...] = ()
    jobs: int = 4


@dataclass(slots=True)
class _Facts:
    """What was found out before images are checked."""

    nodes: list[Node] = field(default_factory=list)
    policies: list[rules.Policy] = field(default_factory=list)
    plans: list[tuple[str, Mapping[str, object]]] = field(default_factory=list)


def run_preflight(
    options: PreflightOptions, http: Http, hosts: Hosts, results: Sequence[tuple[str, Verdict]] = ()
) -> Verdict:
    """Check everything.

    Args:
        options: What is checked.
        http: What registries are asked with.
        hosts: The hosts of this run.
        results: Of nodes, each with its place, to be put together instead of checking pulls from here.

    Raises:
        BadResultError: A result is not of a node, not of this bundle, or of the same node as another.
        AirgapSyncError: The bundle, the registries file or the configuration cannot be used, or the cluster not asked.
    """
    bundle = load_bundle(options.directory, options.site)
    check = _Preflight(options, bundle, http, hosts)
    check.accept(results)
    return check.run([result for _, result in results])


class _Preflight:
    def __init__(self, options: PreflightOptions, bundle: LoadedBundle, http: Http, hosts: Hosts) -> None:
        self._options = options
        self._bundle = bundle
        self._http = http
        self._hosts = hosts
        self._facts = _Facts()
        self._verdict = Verdict(str(bundle.lock_digest) if bundle.lock_digest else None, options.node_name)
        self._releases = rules.releases_of(bundle.lock)
        self._images = [
            CheckedImage(image.reference, image.content, image.route, platforms_of(bundle.lock, image.reference))
            for image in bundle.images
        ]

    def accept(self, results: Sequence[tuple[str, Verdict]]) -> None:
        """Make sure that results are those of different nodes, for this bundle."""
        places: dict[str, str] = {}
        for place, result in results:
            if result.node is None:
                raise BadResultError(f"{place} is not the result of a node: preflight was run elsewhere")
            if result.lock_digest != self._verdict.lock_digest:
                raise BadResultError(
                    f"{place} is the result for another bundle, whose lock is {result.lock_digest}, not "
                    f"{self._verdict.lock_digest}"
                )
            if result.node in places:
                raise BadResultError(
                    f"{places[result.node]} and {place} are both of node {result.node}",
                    hint="Name one of them; or, if they are of two nodes, run preflight there again with --node NAME.",
                )
            places[result.node] = place

    def run(self, results: Sequence[Verdict]) -> Verdict:
        options, verdict = self._options, self._verdict
        self._read_config()
        self._ask_cluster()
        rules.check_bundle(verdict, self._bundle.lock, self._images, self._bundle.router, self._releases)
        rules.check_nodes(verdict, options.site, self._facts.nodes, self._releases)
        rules.check_versions(verdict, options.site, self._releases, "bundle")
        rules.check_plans(verdict, self._facts.plans, self._images)
        found = self._collected(results) if results else self._pulled()
        if not self._facts.policies:
            verdict.not_checked.append(
                "the pull policy of upgrade jobs: give --config DIR, or --kubeconfig FILE once the controller is there"
            )
        found = rules.check_tags(self._images, found)
        verdict.images = rules.check_policy(self._images, found, self._facts.policies, self._releases)
        self._check_nodes_room()
        if options.target and not results:
            self._check_quota(options.target)
        return verdict

    # --- facts ------------------------------------------------------------------------------------------------

    def _read_config(self) -> None:
        directory = self._options.config
        if directory is None:
            return
        for path in sorted((*directory.glob("system-upgrade-controller/*.yaml"), *directory.glob("plans/*.yaml"))):
            for document in _documents(path):
                kind, name = document.get("kind"), (document.get("metadata") or {}).get("name")
                if kind == "ConfigMap" and name == rules.ENVIRONMENT:
                    self._facts.policies.append(rules.Policy(str(path), document.get("data") or {}))
                elif kind == "Plan":
                    self._facts.plans.append((str(path), document))

    def _ask_cluster(self) -> None:
        cluster = self._options.cluster
        if cluster is None:
            if self._options.node is None:
                self._verdict.not_checked.append(
                    "the nodes (versions, platforms, readiness, room): give --kubeconfig FILE"
                )
            return
        self._facts.nodes = cluster.nodes()
        try:
            environment = cluster.config_map(rules.NAMESPACE, rules.ENVIRONMENT)
            plans = cluster.plans()
        except AirgapSyncError as error:
            self._verdict.not_checked.append(f"what the cluster has of system-upgrade-controller: {error.message}")
            return
        if environment is not None:
            place = f"configmap {rules.NAMESPACE}/{rules.ENVIRONMENT} of the cluster"
            self._facts.policies.append(rules.Policy(place, environment))
        for plan in plans or ():
            name = (plan.get("metadata") or {}).get("name")
            self._facts.plans.append((f"plan {rules.NAMESPACE}/{name} of the cluster", plan))

    def _platforms(self) -> list[Platform]:
        if self._facts.nodes:
            return sorted({node.platform for node in self._facts.nodes})
        if self._options.platform:
            return [self._options.platform]
        return list(bundle_platforms(self._bundle.lock)) or sorted(
            {platform for image in self._images for platform in image.platforms}
        )

    # --- pulls ------------------------------------------------------------------------------------------------

    def _pulled(self) -> list[ImageResult]:
        options = self._options
        variants = self._variants()
        check = PullCheck(
            options.site,
            lambda registry: _distinct([hosts.endpoints_for(registry) for hosts in variants]),
            self._http,
            self._hosts,
            options.advice,
            on_node=options.node is not None,
            here=self._here_of(self._files()),
            # `config` would write them into a registries.yaml; in one that is there, they are or are not.
            ca_files=options.ca_files if options.registries is None else (),
        )
        if options.node is None and options.site.target:
            self._verdict.not_checked.append(
                "whether nodes reach the registry from where they are: run preflight on each of them"
            )
        if options.node is None and options.site.embedded:
            self._verdict.not_checked.append(
                "what nodes have under these names already: they believe each other before they ask the registry"
            )
        present = self._present()
        results: dict[tuple[str, str], ImageResult] = {}

        def task(image: CheckedImage, platform: Platform) -> None:
            own = options.node is not None and platform == options.platform
            result = (self._on_this_node(image, platform, present) if own else None) or check.check(image, platform)
            results[result.reference, result.platform] = result

        with Crew(options.jobs) as crew:
            for image in self._images:
                for platform in self._platforms():
                    crew.submit(partial(task, image, platform))
            crew.wait()
        return [results[key] for key in sorted(results)]

    def _variants(self) -> list[NodeHosts]:
        """Return where nodes look, one entry for each kind of node."""
        options, site = self._options, self._options.site
        place, text = options.registries or ("registries.yaml as `config` writes it", self._as_written())
        file = RegistriesFile.parse(text, place)
        for warning in file.warnings:
            self._verdict.add("registries-yaml", Severity.WARNING, place, warning, "Mend the file on every node.")
        versions: list[K3sVersion | None] = [
            *sorted(
                {node.version for node in self._facts.nodes if node.version}
                | set(self._releases)
                | ({site.running} if site.running else set())
            )
        ]
        rendered = []
        for version in versions or [None]:
            hosts = render(file, NodeSettings(version, site.embedded, site.default_endpoint))
            rendered.append(hosts)
            for note in hosts.notes:
                self._verdict.add(
                    "k3s-reads-otherwise", Severity.WARNING, place, f"{version or 'K3s'}: {note}", "Mend the file."
                )
        if options.node is None:
            return rendered
        running = self._running()
        if not options.node.hosts and running and not features.HOSTS_TOML.in_version(running):
            self._verdict.not_checked.append(
                f"whether K3s was restarted since {place} was changed: {running} has no certs.d to compare it with"
            )
            return rendered
        actual = parse(options.node.hosts, file, running)
        self._compare(actual, rendered, place)
        return [actual]

    def _compare(self, actual: NodeHosts, rendered: Sequence[NodeHosts], place: str) -> None:
        """Find out whether K3s was restarted since its registries.yaml was changed."""
        registries = sorted({image.reference.registry for image in self._images})
        restart = "systemctl restart k3s    (on an agent: k3s-agent)"

        shares = any(endpoint.is_embedded for registry in registries for endpoint in actual.endpoints_for(registry))

        def places(hosts: NodeHosts, registry: str) -> list[str]:
            # The embedded registry may listen on any port, and where it is off nowhere, that is said once.
            found = [endpoint for endpoint in hosts.endpoints_for(registry) if not endpoint.is_default]
            found = [endpoint for endpoint in found if shares or not endpoint.is_embedded]
            return ["other nodes" if endpoint.is_embedded else endpoint.base_url for endpoint in found]

        if self._options.site.embedded and not shares:
            self._verdict.add(
                "embedded-off",
                Severity.ERROR,
                "certs.d",
                "the embedded registry is not on, so this node asks no other node",
                f"Set embedded-registry: true on the servers, then: {restart}",
            )
        for registry in registries:
            if not any(places(hosts, registry) == places(actual, registry) for hosts in rendered):
                self._verdict.add(
                    "not-restarted",
                    Severity.ERROR,
                    f"certs.d of {registry}",
                    f"containerd asks {', '.join(places(actual, registry)) or 'no mirror'}, and {place} says "
                    f"{', '.join(places(rendered[0], registry)) or 'none'}",
                    f"K3s reads the file only when it starts: {restart}",
                )

    def _running(self) -> K3sVersion | None:
        """Return the version that this node runs, as far as known."""
        listed = {node.name: node.version for node in self._facts.nodes}
        return listed.get(self._options.node_name or "") or self._options.site.running

    def _as_written(self) -> str:
        if self._options.node is not None:
            return ""
        routed = [(image.reference, image.route) for image in self._images]
        return registries_yaml(self._options.site, routed, NodeAccess(), "made for this check")

    def _files(self) -> dict[str, str]:
        """Return where files that registries.yaml names lie in the directory that `config` wrote."""
        directory, registries = self._options.config, self._options.registries
        if directory is None or registries is None:
            return {}
        document = yamlfile.load(registries[1], registries[0], error=BadRegistriesFileError)
        found: dict[str, str] = {}
        for host in document.mapping(("configs",)):
            for key in ("ca_file", "cert_file", "key_file"):
                path = document.text(("configs", host, "tls", key))
                if path and (directory / Path(path).name).is_file():
                    found[path] = str(directory / Path(path).name)
        return found

    def _here_of(self, written: Mapping[str, str]) -> Callable[[str], str]:
        """Return what finds files of nodes: on the node that is looked at, else beside what `config` wrote."""
        root = self._options.node.root if self._options.node else Path("/")

        def here(path: str) -> str:
            place = root / path.lstrip("/")
            return str(place) if place.exists() else written.get(path, str(place))

        return here

    def _present(self) -> dict[str, Any] | None:
        options, containerd = self._options, self._options.containerd
        if options.node is None or not options.site.embedded:
            return None
        if containerd is None:
            self._verdict.not_checked.append(
                f"what containerd has on this node: {options.node.socket} is not there, or no `k3s` or `ctr` is in PATH"
            )
            return None
        try:
            return dict(containerd.complete_images())
        except AirgapSyncError as error:
            self._verdict.not_checked.append(f"what containerd has on this node: {error.message}")
            return None

    def _on_this_node(
        self, image: CheckedImage, platform: Platform, present: Mapping[str, Any] | None
    ) -> ImageResult | None:
        """Return the result for an image that need not be pulled here; None where it must be."""
        name = str(image.reference)
        if image.route is not Route.EMBEDDED or present is None or name not in present:
            return None
        if present[name] == image.content.root.digest:
            return ImageResult(name, str(platform), ok=True)
        problem = Problem(
            "other-content",
            f"this node has {present[name]} under this name, which pods start, and the bundle has "
            f"{image.content.root.digest}",
            f"Remove it (k3s crictl rmi {name}), and put the archive of this bundle into agent/images again.",
        )
        return ImageResult(name, str(platform), ok=False, problem=problem)

    # --- the whole --------------------------------------------------------------------------------------------

    def _collected(self, results: Sequence[Verdict]) -> list[ImageResult]:
        """Put the results of nodes together."""
        verdict = self._verdict
        together: dict[tuple[str, str], ImageResult] = {}
        for result in results:
            for finding in result.findings:
                verdict.add(
                    finding.rule, finding.severity, f"{result.node}: {finding.place}", finding.message, finding.fix
                )
            verdict.not_checked += [f"{result.node}: {text}" for text in result.not_checked]
            for image in result.images:
                key = (image.reference, image.platform)
                known = together.get(key)
                if known is None or (known.ok is not False and image.ok is not True):
                    together[key] = _of_node(image, str(result.node))
        for wanted in self._images:
            for platform in self._platforms():
                key = (str(wanted.reference), str(platform))
                problem = Problem("no-result", "no node of this platform has a result for it", "Run preflight there.")
                together.setdefault(key, ImageResult(*key, ok=None, problem=problem))
        have = {result.node for result in results}
        if not self._facts.nodes:
            verdict.not_checked.append(
                f"whether {', '.join(sorted(map(str, have)))} are all nodes: give --kubeconfig FILE"
            )
        for node in self._facts.nodes:
            if node.name not in have:
                verdict.add(
                    "node-without-result",
                    Severity.ERROR,
                    f"node {node.name}",
                    "there is no result of it",
                    f"Run there: airgap-sync preflight BUNDLE --config DIR --out {node.name}.json",
                )
        listed = {node.name for node in self._facts.nodes}
        for name in sorted(map(str, have)):
            if listed and name not in listed:
                verdict.add(
                    "node-unknown",
                    Severity.WARNING,
                    f"node {name}",
                    "the cluster has no node of this name",
                    "Run preflight there again with --node NAME, as `kubectl get nodes` shows it.",
                )
        return [together[key] for key in sorted(together)]

    def _check_nodes_room(self) -> None:
        site, nodes, cluster = self._options.site, self._facts.nodes, self._options.cluster
        seeds: set[str] = set()
        if site.embedded and nodes:
            self._verdict.seeds = rules.propose_seeds(nodes)
            seeds = {name for names in self._verdict.seeds.values() for name in names}
        elif site.embedded:
            self._verdict.not_checked.append("which nodes are to have the archive: give --kubeconfig FILE")
        for node in nodes:
            free = cluster.free_bytes(node.name) if cluster else None
            rules.check_disk(self._verdict, node, free, self._images, seed=node.name in seeds)

    def _check_quota(self, make: Callable[[], RegistryClient]) -> None:
        """Compare what is still to come to the registry with the quota of its project, if it is Harbor."""
        target = self._options.site.target
        if target is None:
            return
        absent = {result.reference for result in self._verdict.images if result.ok is False}
        coming = [image for image in self._bundle.at(target) if str(image.reference) in absent]
        if not coming:
            return
        try:
            client = make()
            api = Harbor(client)
            if not api.is_there():
                self._verdict.not_checked.append(
                    f"whether {target.host} has room for what is still to come: only Harbor can be asked"
                )
                return
            for name in sorted({project_of(image.repository) for image in coming}):
                project = api.project(name)
                quota = api.quota(project) if project else None
                if quota is None:
                    self._verdict.not_checked.append(f"the quota of project {name!r}: this account may not see it")
                    continue
                missing = content_bytes(coming, name)
                if quota.hard is not None and quota.used + missing > quota.hard:
                    self._verdict.add(
                        "quota-exceeded",
                        Severity.WARNING,
                        f"project {name} at {target.host}",
                        f"it uses {people_bytes(quota.used)} of {people_bytes(quota.hard)}, and up to "
                        f"{people_bytes(missing)} are still to come",
                        "Ask Harbor's administrator to raise the quota, before the next push.",
                    )
        except AirgapSyncError as error:
            self._verdict.not_checked.append(
                f"whether {target.host} has room for what is still to come: {error.message}"
            )


def _of_node(image: ImageResult, node: str) -> ImageResult:
    if image.problem is None:
        return image
    problem = Problem(image.problem.rule, f"on {node}: {image.problem.message}", image.problem.fix)
    return ImageResult(image.reference, image.platform, image.ok, problem)


def _distinct(lists: Sequence[Sequence[Endpoint]]) -> list[Sequence[Endpoint]]:
    found: list[Sequence[Endpoint]] = []
    for endpoints in lists:
        if endpoints not in found:
            found.append(endpoints)
    return found


def _documents(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadSucManifestError(f"{path} cannot be read: {error}") from error
    found = yamlfile.load_all(text, str(path), error=BadSucManifestError)
    return [document.data for document in found if isinstance(document.data, dict)]
