"""Everything that `config` writes: files for nodes, for the cluster, and for the people who work through them.

Pure: the same bundle and the same wishes give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bundler import __version__, yamlfile
from bundler.bundle.lock import BundleLock
from bundler.errors import FeatureMissingError, HopIncompleteError, UnknownSucVersionError
from bundler.files import PRIVATE
from bundler.k3s import suc
from bundler.k3s.features import (
    CONTROL_PLANE_LABEL,
    EMBEDDED,
    EMBEDDED_STABLE,
    NO_DEFAULT_ENDPOINT,
    WILDCARD,
    Feature,
    shares_imports,
)
from bundler.k3s.hops import hops
from bundler.k3s.hosts import NodeHosts, NodeSettings, render
from bundler.k3s.images import needed_by_k3s, upgrade_image
from bundler.k3s.registries import RegistriesFile
from bundler.k3s.suc import SucRelease
from bundler.k3s.version import K3sVersion
from bundler.oci.content import ImageContent
from bundler.oci.digest import Digest
from bundler.oci.reference import DEFAULT_TAG, Reference
from bundler.site.controller import ControllerSettings, controller_objects
from bundler.site.nodefiles import NodeAccess, config_yaml, registries_yaml
from bundler.site.plans import PlanSettings, plan_objects
from bundler.site.platforms import bundle_platforms, content_for, platforms_by_name
from bundler.site.routes import Route, Router, Site
from bundler.site.runbook import runbook
from bundler.site.runfacts import Facts
from bundler.site.sucmanifest import patch

#: The pull policy of upgrade jobs. Their images have tags of releases, which never move: what a node has is right,
#: and a node that was fed beforehand needs nobody while it is cordoned.
JOB_PULL_POLICY = "IfNotPresent"


@dataclass(frozen=True, slots=True)
class SiteFile:
    """One file to write; ``name`` is relative and may have a directory in it."""

    name: str
    data: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigRequest:
    """What the files are made of.

    Attributes:
        site: The site.
        images: Every name of the bundle with its content.
        lock: The bundle's lock, if it has one.
        lock_digest: Of its bytes.
        router: Tells where each image is put.
        access: How nodes reach the target.
        plans: How upgrades go on.
        node_dir: K3s's configuration directory on nodes.
        ca: The CAs that nodes need, in PEM form, if any.
        client_cert: The certificate that nodes show, in PEM form, if any.
        client_key: Its key, if it is to be written.
        suc_manifest: Name and text of the controller's own manifest, if its objects are to be those.
    """

    site: Site
    images: Sequence[tuple[Reference, ImageContent]]
    lock: BundleLock | None
    lock_digest: Digest | None
    router: Router
    access: NodeAccess
    plans: PlanSettings
    node_dir: str
    ca: bytes | None = None
    client_cert: bytes | None = None
    client_key: bytes | None = field(default=None, repr=False)
    suc_manifest: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class MadeFiles:
    """What was made, and what the user should know.

    Attributes:
        files: In the order of their names.
        hops: The releases that plans were made for, in order.
        warnings: What may go wrong.
        notices: What was done otherwise than one may expect.
    """

    files: tuple[SiteFile, ...]
    hops: tuple[K3sVersion, ...]
    warnings: tuple[str, ...] = field(default=())
    notices: tuple[str, ...] = field(default=())


def make_files(request: ConfigRequest) -> MadeFiles:
    """Make all files.

    Raises:
        UnsupportedSkewError: The releases in the bundle are no way to upgrade along.
        HopIncompleteError: The bundle lacks images of one of them.
        FeatureMissingError: A version at the site cannot do what was chosen.
        BadSucManifestError: The manifest given is not the controller's.
    """
    return _Maker(request).make()


class _Maker:
    def __init__(self, request: ConfigRequest) -> None:
        self._request = request
        self._site = request.site
        self._lock = request.lock
        self._platforms = platforms_by_name(request.lock)
        self._files: dict[str, SiteFile] = {}
        self._warnings: list[str] = []
        self._notices: list[str] = []
        self._releases = [K3sVersion.parse(release.version) for release in (self._lock.releases if self._lock else ())]
        self._hops = hops(self._releases, self._site.running) if self._releases else ()
        self._versions = [*([self._site.running] if self._site.running else []), *self._hops]
        self._suc = self._controller()
        digest = f", lock {request.lock_digest}" if request.lock_digest else ""
        versions = ", ".join(str(version) for version in self._hops) or "no K3s release"
        self.made_by = f"Made by airgap-sync {__version__} from a bundle of {versions}{digest}; mode {self._site.mode}."

    def make(self) -> MadeFiles:
        self._check_hops()
        self._check_versions()
        self._check_tags()
        self._add("site.json", self._site.to_bytes())
        server_files, agent_files = self._for_nodes()
        suc_files = self._for_controller()
        plan_files = self._plans()
        pushed = [reference for reference, _ in self._request.images if self._route(reference) is Route.REGISTRY]
        if pushed:
            names = [reference for reference in sorted(pushed) if self._can_be_pulled(reference)]
            self._add("pre-pull.txt", "".join(f"{reference}\n" for reference in names).encode())
            if len(names) < len(pushed):
                self._notices.append(
                    f"{len(pushed) - len(names)} of the {len(pushed)} names for the registry are of artifacts, such as "
                    "charts and signatures, which no node can pull: they are not in pre-pull.txt"
                )
        counts = dict.fromkeys(Route, 0)
        for reference, _ in self._request.images:
            counts[self._route(reference)] += 1
        digest = self._request.lock_digest
        facts = Facts(
            made_by=self.made_by,
            site=self._site,
            counts=counts,
            registries=sorted({reference.registry for reference, _ in self._request.images}),
            hosts=self._hosts(),
            hops=self._hops,
            plan_files=plan_files,
            suc_version=self._suc.version if self._suc else None,
            suc_files=suc_files,
            bundle_name=digest.short if digest else "bundle",
            archive_bytes=self._archive_bytes(),
            bytes_by_platform=self._bytes_by_platform(),
            node_dir=self._request.node_dir,
            server_files=server_files,
            agent_files=agent_files,
            deadline_s=self._request.plans.deadline_s,
            window=self._request.plans.window,
            credentials_missing=self._site.target is not None and self._request.access.credential is None,
            client_key_missing=None if self._request.client_key else self._request.access.key_file,
        )
        self._add("RUNBOOK.md", runbook(facts).encode())
        files = tuple(self._files[name] for name in sorted(self._files))
        return MadeFiles(files, self._hops, tuple(self._warnings), tuple(self._notices))

    def _add(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self._files[name] = SiteFile(name, data, mode)

    def _route(self, reference: Reference) -> Route:
        return self._request.router.route(reference)

    def _can_be_pulled(self, reference: Reference) -> bool:
        """Tell whether a node can pull an image; an artifact has no platform, and the whole list would fail at it."""
        return self._lock is None or bool(self._platforms.get(str(reference)))

    # --- what goes together -----------------------------------------------------------------------------------

    def _controller(self) -> SucRelease | None:
        """Return the controller that the bundle carries."""
        version = self._lock.request.system_upgrade_controller if self._lock else None
        if version is None:
            return None
        try:
            return suc.find(version)
        except UnknownSucVersionError:
            self._warnings.append(f"system-upgrade-controller {version} is not known here, so its objects are not made")
            return None

    def _check_hops(self) -> None:
        if self._lock is None or not self._hops:
            return
        present = {str(image.reference.tagged() or image.reference) for image in self._lock.images}
        lacking = [str(upgrade_image(hop)) for hop in self._hops if str(upgrade_image(hop)) not in present]
        lacking += [str(image.reference) for image in self._lock.failed if self._on_the_way(image.reasons)]
        lacking += [
            f"{image.reference} for {', '.join(image.platforms_missing)}"
            for image in self._lock.images
            if image.platforms_missing and self._on_the_way(image.reasons)
        ]
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise HopIncompleteError(f"the bundle lacks {lacking[0]}{more}, which an upgrade needs")

    def _on_the_way(self, reasons: Sequence[str]) -> bool:
        """Tell whether an image is needed by a hop or by the controller, not just by a release that is passed over."""
        passed = {str(version) for version in self._releases} - {str(hop) for hop in self._hops}
        return needed_by_k3s(reason for reason in reasons if not passed & set(reason.split()))

    def _check_versions(self) -> None:
        site = self._site
        if self._lock is None:
            self._warnings.append(
                "there is no bundle.lock.json, so which K3s releases are in the bundle is not known: neither plans nor "
                "objects of the controller are made"
            )
        if not self._versions:
            self._notices.append(
                "the bundle has no K3s release and --from is not given: files are for current versions"
            )
            return
        if site.running is None:
            self._notices.append(
                "which version the nodes run now is not known: the files suit the versions of the bundle (give --from)"
            )
        self._need(CONTROL_PLANE_LABEL, "Upgrade these by hand to v1.20 first.")
        if site.embedded:
            self._need(EMBEDDED)
            if site.wildcard:
                self._need(WILDCARD)
            early = [str(version) for version in self._versions if not EMBEDDED_STABLE.in_version(version)]
            if early:
                self._warnings.append(f"in {', '.join(early)} the embedded registry is experimental")
            broken = [str(version) for version in self._versions if not shares_imports(version)]
            if broken:
                self._warnings.append(
                    f"{', '.join(broken)} does not share imported images with other nodes (k3s-io/k3s#13222): put the "
                    "archive on every node, or take another patch of this minor"
                )
        if not site.default_endpoint:
            self._need(NO_DEFAULT_ENDPOINT)

    def _need(
        self, feature: Feature, hint: str = "Upgrade with --mode registry first, or leave the option out."
    ) -> None:
        for version in self._versions:
            if not feature.in_version(version):
                raise FeatureMissingError(
                    f"{version} does not have {feature.name}: it came with {feature.first(version)}",
                    hint=hint,
                )

    def _check_tags(self) -> None:
        for reference, _ in self._request.images:
            if reference.tag == DEFAULT_TAG and self._route(reference) is Route.EMBEDDED:
                self._warnings.append(
                    f"{reference}: nodes never share the tag {DEFAULT_TAG} with each other (k3s-io/k3s#9966); give the "
                    "image a tag of its own, or put it into a registry"
                )

    # --- the files --------------------------------------------------------------------------------------------

    def _for_nodes(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        request, node_dir = self._request, self._request.node_dir
        routed = [(reference, self._route(reference)) for reference, _ in request.images]
        text = registries_yaml(self._site, routed, request.access, self.made_by)
        self._add("registries.yaml", text.encode(), PRIVATE if request.access.credential else 0o644)
        for version in self._versions:
            settings = NodeSettings(version, self._site.embedded, self._site.default_endpoint)
            found = render(RegistriesFile.parse(text, "registries.yaml"), settings)
            notes = found.notes_for_people(self._site.target.host if self._site.target else "")
            self._warnings += [f"{version}: {note}" for note in notes if note not in self._warnings]
        common = [("registries.yaml", f"{node_dir}/registries.yaml")]
        if request.ca:
            self._add("ca.pem", request.ca)
            common.append(("ca.pem", str(request.access.ca_file)))
        if request.client_cert:
            self._add("client.pem", request.client_cert)
            common.append(("client.pem", str(request.access.cert_file)))
        if request.client_key:
            self._add("client.key", request.client_key, PRIVATE)
            common.append(("client.key", str(request.access.key_file)))
            if not request.access.credential:
                self._notices.append(
                    "no user name and password were found, so nodes show their client certificate alone"
                )
        there = f"{node_dir}/config.yaml.d/airgap-sync.yaml"
        server, agent = (config_yaml(self._site, server=server) for server in (True, False))
        if server == agent:
            files = [("config.yaml", server, "servers and agents")]
        else:
            files = [("config-server.yaml", server, "servers"), ("config-agent.yaml", agent, "agents")]
        for name, document, who in files:
            if document:
                head = f"# {self.made_by}\n# For {who}: {there}, read in addition to config.yaml when K3s starts.\n"
                self._add(name, (head + yamlfile.dump(document)).encode())
        named = {name for name, document, _ in files if document}
        return (
            [*common, *((name, there) for name in ("config.yaml", "config-server.yaml") if name in named)],
            [*common, *((name, there) for name in ("config.yaml", "config-agent.yaml") if name in named)],
        )

    def _for_controller(self) -> list[str]:
        release = self._suc
        if release is None:
            if self._request.suc_manifest:
                self._warnings.append("the bundle carries no system-upgrade-controller, so --suc-manifest is not used")
            return []
        settings = ControllerSettings(
            image=release.image,
            kubectl_image=release.kubectl_image,
            pull_policy=JOB_PULL_POLICY,
            deadline_s=self._request.plans.deadline_s,
        )
        folder = "system-upgrade-controller"
        if self._request.suc_manifest:
            name, text = self._request.suc_manifest
            path = f"{folder}/system-upgrade-controller.yaml"
            self._add(path, f"# {self.made_by}\n{patch(text, name, settings)}".encode())
            return [path]
        names = []
        for name, objects in controller_objects(release, settings):
            names.append(f"{folder}/{name}")
            self._add(names[-1], self._yaml(objects))
        return names

    def _plans(self) -> list[str]:
        names = []
        for number, hop in enumerate(self._hops, 1):
            names.append(f"plans/{number:02}-{hop.image_tag}.yaml")
            self._add(names[-1], self._yaml(plan_objects(hop, self._request.plans, self._suc)))
        return names

    def _yaml(self, objects: Sequence[dict[str, Any]]) -> bytes:
        return (f"# {self.made_by}\n" + "---\n".join(yamlfile.dump(item) for item in objects)).encode()

    def _hosts(self) -> NodeHosts:
        """Return what K3s makes of registries.yaml on the nodes as they are now."""
        name = "registries.yaml"
        first = self._versions[0] if self._versions else None
        settings = NodeSettings(first, self._site.embedded, self._site.default_endpoint)
        return render(RegistriesFile.parse(self._files[name].data.decode(), name), settings)

    def _archive_bytes(self) -> int:
        return sum({blob.digest: blob.size for _, content in self._request.images for blob in content.blobs}.values())

    def _bytes_by_platform(self) -> dict[Any, int]:
        sizes = {}
        for platform in bundle_platforms(self._lock):
            blobs = {}
            for reference, content in self._request.images:
                found = content_for(content, platform, self._platforms.get(str(reference), ()))
                blobs.update({blob.digest: blob.size for blob in (found.blobs if found else ())})
            sizes[platform] = sum(blobs.values())
        return sizes
