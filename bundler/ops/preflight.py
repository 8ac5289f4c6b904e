"""``preflight``: can every node pull every image? Nothing is changed anywhere.

Invariant: what could not be checked is said, and never counts as passed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bundler import yamlfile
from bundler.errors import AirgapSyncError, BadSucManifestError, UnsupportedSkewError
from bundler.k3s.hops import hops
from bundler.k3s.registries import RegistriesFile
from bundler.k3s.version import K3sVersion
from bundler.net import Http
from bundler.oci.digest import Digest
from bundler.oci.manifest import Index, Manifest
from bundler.oci.platform import Platform
from bundler.ops.collect import check_results, collect
from bundler.ops.loading import LoadedBundle, load_bundle
from bundler.ops.lookup import NodeFiles, look_up
from bundler.ops.quota import check_quota
from bundler.registry.client import RegistryClient
from bundler.registry.host import Hosts
from bundler.site import jobs
from bundler.site import preflight as rules
from bundler.site.cluster import Cluster, Node
from bundler.site.containerd import Containerd
from bundler.site.controller import CONFIG_MAP, NAMESPACE
from bundler.site.findings import ImageResult, Problem, Severity, Verdict
from bundler.site.node import LocalNode, platform_of_machine
from bundler.site.nodefiles import NodeAccess, registries_yaml
from bundler.site.platforms import bundle_platforms, content_for, platforms_by_name
from bundler.site.pulls import Advice, CheckedImage, PullCheck
from bundler.site.routes import Route, Site
from bundler.transfer.crew import Crew


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightOptions:
    """What is checked, and with what.

    Attributes:
        directory: The bundle.
        site: The site.
        now_utc: The time (RFC 3339), for the result.
        advice: What messages name.
        registries: Place and text of the nodes' registries.yaml; None: as `config` would write it.
        config: What `config` wrote, if it is there.
        node: The node that we run on.
        node_name: Its name.
        platform: Its platform.
        containerd: Its containerd, if it answers.
        k3s_version: What its k3s says that it is, if it was asked.
        cluster: The cluster, if it can be asked.
        target: The client of the target for questions about room, if there is one.
        ca_files: Where there is no registries.yaml yet: the CAs that it will name.
        jobs: Images checked at once.
    """

    directory: Path
    site: Site
    now_utc: str
    advice: Advice
    registries: tuple[str, str] | None = None
    config: Path | None = None
    node: LocalNode | None = None
    node_name: str | None = None
    platform: Platform | None = None
    containerd: Containerd | None = None
    k3s_version: str | None = None
    cluster: Cluster | None = None
    target: Callable[[], RegistryClient] | None = None
    ca_files: tuple[str, ...] = ()
    jobs: int = 4


@dataclass(slots=True)
class _Facts:
    """What was found out before images are checked."""

    nodes: list[Node] = field(default_factory=list)
    policies: list[jobs.Policy] = field(default_factory=list)
    plans: list[jobs.SeenPlan] = field(default_factory=list)


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
    check_results(results, check.verdict)
    check.run([result for _, result in results])
    return check.verdict


class _Preflight:
    def __init__(self, options: PreflightOptions, bundle: LoadedBundle, http: Http, hosts: Hosts) -> None:
        self._options = options
        self._bundle = bundle
        self._http = http
        self._hosts = hosts
        self._facts = _Facts()
        self.verdict = Verdict(
            str(bundle.lock_digest) if bundle.lock_digest else None,
            str(Digest.of(options.site.to_bytes())),
            options.now_utc,
            options.node_name,
            node_version=options.k3s_version,
        )
        self._releases = rules.releases_of(bundle.lock)
        platforms = platforms_by_name(bundle.lock)
        self._images = [
            CheckedImage(image.reference, image.content, image.route, platforms.get(str(image.reference), ()))
            for image in bundle.images
        ]

    def run(self, results: Sequence[Verdict]) -> None:
        """Check everything; what was found is in the verdict."""
        options, verdict = self._options, self.verdict
        self._read_config()
        self._ask_cluster()
        rules.check_bundle(verdict, self._bundle.lock, self._images, self._bundle.router, self._releases)
        rules.check_nodes(verdict, options.site, self._facts.nodes, self._releases)
        rules.check_versions(verdict, options.site, self._hops(), "bundle")
        jobs.check_plans(verdict, self._facts.plans, self._images)
        found = (
            collect(verdict, results, self._images, self._platforms(), self._facts.nodes) if results else self._pulled()
        )
        if not self._facts.policies:
            verdict.not_checked.append(
                "the pull policy of upgrade jobs: give --config DIR, or --kubeconfig FILE once the controller is there"
            )
        found = rules.check_tags(self._images, found)
        verdict.images = jobs.check_policy(self._images, found, self._facts.policies, self._releases)
        jobs.check_job_images(verdict, self._facts.policies, self._images)
        if results:
            rules.forgive_imports(verdict)
        self._check_nodes_room()
        target = options.site.target
        if options.target and target and not results:
            absent = {result.reference for result in verdict.images if result.ok is False}
            coming = [image for image in self._bundle.at(target) if str(image.reference) in absent]
            check_quota(verdict, target, coming, options.target)

    # --- facts ------------------------------------------------------------------------------------------------

    def _read_config(self) -> None:
        directory = self._options.config
        if directory is None:
            return
        for path in sorted((*directory.glob("system-upgrade-controller/*.yaml"), *directory.glob("plans/*.yaml"))):
            for document in _documents(path):
                kind, name = document.get("kind"), (document.get("metadata") or {}).get("name")
                if kind == "ConfigMap" and name == CONFIG_MAP:
                    self._facts.policies.append(jobs.Policy(str(path), document.get("data") or {}, ours=True))
                elif kind == "Plan":
                    self._facts.plans.append(jobs.SeenPlan(str(path), document, ours=True))

    def _ask_cluster(self) -> None:
        cluster = self._options.cluster
        if cluster is None:
            if self._options.node is None:
                self.verdict.not_checked.append(
                    "the nodes (versions, platforms, readiness, room): give --kubeconfig FILE"
                )
            return
        self._facts.nodes = cluster.nodes()
        if not self._facts.nodes:
            self.verdict.not_checked.append("the nodes: the cluster lists none")
        try:
            environment = cluster.config_map(NAMESPACE, CONFIG_MAP)
            plans = cluster.plans()
        except AirgapSyncError as error:
            self.verdict.not_checked.append(f"what the cluster has of system-upgrade-controller: {error.message}")
            return
        if environment is not None:
            place = f"configmap {NAMESPACE}/{CONFIG_MAP} of the cluster"
            live = jobs.Policy(place, environment, ours=False)
            if self._facts.policies:
                # What `config` wrote replaces it before the first plan.
                jobs.check_live_policy(self.verdict, live)
            else:
                self._facts.policies.append(live)
        for plan in plans or ():
            name = (plan.get("metadata") or {}).get("name")
            self._facts.plans.append(jobs.SeenPlan(f"plan {NAMESPACE}/{name} of the cluster", plan, ours=False))

    def _platforms(self) -> list[Platform]:
        if listed := {node.platform for node in self._facts.nodes if node.version}:
            return sorted(listed)
        if self._options.platform:
            return [self._options.platform]
        if self._bundle.lock:
            return list(bundle_platforms(self._bundle.lock))
        return _platforms_in(self._images)

    # --- pulls ------------------------------------------------------------------------------------------------

    def _pulled(self) -> list[ImageResult]:
        options = self._options
        place, text = options.registries or ("registries.yaml as `config` writes it", self._as_written())
        lookup = look_up(
            self.verdict,
            options.site,
            RegistriesFile.parse(text, place),
            self._versions(),
            sorted({image.reference.registry for image in self._images}),
            node=options.node,
            running=self._running(),
        )
        if options.node is not None and options.node.registries == (place, text):
            rules.check_age(self.verdict, options.node, RegistriesFile.parse(text, place))
        check = PullCheck(
            options.site,
            lookup.endpoints_for,
            self._http,
            self._hosts,
            options.advice,
            on_node=options.node is not None,
            here=NodeFiles(text, place, options.node, options.config).here,
            # `config` would write them into a registries.yaml; in one that is there, they are or are not.
            ca_files=options.ca_files if options.registries is None else (),
        )
        if options.node is None and options.site.target:
            self.verdict.not_checked.append(
                "whether nodes reach the registry from where they are: run preflight on each of them"
            )
        if options.node is None and options.site.embedded:
            self.verdict.not_checked.append(
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
        for place, words in sorted(check.failing.items()):
            self.verdict.add(
                "endpoint-failing",
                Severity.WARNING,
                place,
                f"{words}; each pull asks it before the next",
                "Mend it, or take it out of registries.yaml on every node.",
            )
        return [results[key] for key in sorted(results)]

    def _hops(self) -> tuple[K3sVersion, ...]:
        """Return the releases that the cluster is upgraded to."""
        running = min((node.version for node in self._facts.nodes if node.version), default=self._options.site.running)
        try:
            return hops(self._releases, running)
        except UnsupportedSkewError:
            # A finding of its own, or nothing is left to do.
            return ()

    def _versions(self) -> set[K3sVersion]:
        """Return what nodes run, now and on the way."""
        running = self._options.site.running
        listed = {node.version for node in self._facts.nodes if node.version}
        return listed | set(self._hops()) | ({running} if running else set())

    def _running(self) -> K3sVersion | None:
        """Return the version that this node runs, as far as known."""
        listed = {node.name: node.version for node in self._facts.nodes}
        return listed.get(self._options.node_name or "") or self._options.site.running

    def _as_written(self) -> str:
        if self._options.node is not None:
            return ""
        routed = [(image.reference, image.route) for image in self._images]
        return registries_yaml(self._options.site, routed, NodeAccess(), "made for this check")

    def _present(self) -> Mapping[str, Digest]:
        """Return what is complete in this node's containerd, with what each name stands for."""
        options, containerd = self._options, self._options.containerd
        if options.node is None:
            return {}
        if containerd is None:
            self.verdict.not_checked.append(
                f"what containerd has on this node: {options.node.socket} is not there, or no `k3s` or `ctr` is in PATH"
            )
            return {}
        try:
            return containerd.complete_images()
        except AirgapSyncError as error:
            self.verdict.not_checked.append(f"what containerd has on this node: {error.message}")
            return {}

    def _on_this_node(
        self, image: CheckedImage, platform: Platform, present: Mapping[str, Digest]
    ) -> ImageResult | None:
        """Return the result for an image that pods start from what this node has; None where more is to be asked.

        Images of a registry are asked for there as well: other nodes depend on it.
        """
        name = str(image.reference)
        containerd, found = self._options.containerd, present.get(name)
        if containerd is None or found is None:
            return None
        wanted = content_for(image.content, platform, image.platforms)
        if wanted is None:
            return None
        if found != image.content.root.digest:
            # The same image has another digest when it came from an archive, or with other platforms.
            config = next((part.config for part in wanted.manifests if isinstance(part, Manifest)), None)
            try:
                same = config is not None and containerd.config_digest(found, platform) == config.digest
            except AirgapSyncError as error:
                self.verdict.not_checked.append(f"what {name} is on this node: {error.message}")
                return None
            if not same:
                problem = Problem(
                    "other-content",
                    f"this node has {found} under this name, which pods start, and the bundle has "
                    f"{image.content.root.digest}",
                    "Put the archive of this bundle into agent/images on this node, as RUNBOOK.md of `config` has it.",
                )
                return ImageResult(name, str(platform), ok=False, problem=problem)
        return ImageResult(name, str(platform), ok=True) if image.route is Route.EMBEDDED else None

    # --- room -----------------------------------------------------------------------------------------------------

    def _check_nodes_room(self) -> None:
        site, nodes, cluster = self._options.site, self._facts.nodes, self._options.cluster
        seeds: set[str] = set()
        if site.embedded and nodes:
            self.verdict.seeds = rules.propose_seeds(nodes)
            seeds = {name for names in self.verdict.seeds.values() for name in names}
        elif site.embedded:
            self.verdict.not_checked.append("which nodes are to have the archive: give --kubeconfig FILE")
        for node in nodes:
            try:
                free = cluster.free_bytes(node.name) if cluster else None
            except AirgapSyncError:
                free = None
            rules.check_disk(self.verdict, node, free, self._images, seed=node.name in seeds)


def _platforms_in(images: Sequence[CheckedImage]) -> list[Platform]:
    """Return the platforms that a layout without a lock says it has anything for; this machine's if it says nothing."""
    stated = {
        child.platform
        for image in images
        for manifest in image.content.manifests
        if isinstance(manifest, Index)
        for child in manifest.manifests
        if child.platform and child.platform.os == "linux"
    }
    return sorted(stated) or [platform_of_machine(os.uname().machine)]


def _documents(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadSucManifestError(f"{path} cannot be read: {error}") from error
    found = yamlfile.load_all(text, str(path), error=BadSucManifestError)
    return [document.data for document in found if isinstance(document.data, dict)]
