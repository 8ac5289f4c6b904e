"""Where a node looks for images: K3s's certs.d, rendered from a registries.yaml or read from a node.

Invariants:

- What ``preflight`` asks, what ``config`` shows and where images are bundled from is decided here alone.
- It is what K3s's code does, also where its documentation says otherwise.

Source: k3s-io/k3s, ``pkg/agent/containerd/config.go`` (``getHostConfigs``), ``pkg/spegel/registry.go``
(``InjectMirror``); k3s-io/containerd, ``core/remotes/docker/config/hosts.go``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bundler.errors import BadHostsFileError
from bundler.k3s import features, oldhosts
from bundler.k3s.endpoint import DOCKER_HUB_HOST, Address, Endpoint, EndpointTls, is_localhost
from bundler.k3s.hoststoml import EMBEDDED_CERTIFICATE, OWN, HostsFile
from bundler.k3s.registries import ANY, HostConfig, Mirror, RegistriesFile
from bundler.k3s.suggest import short
from bundler.k3s.version import K3sVersion
from bundler.oci.reference import DOCKER_HUB

#: The directory of what holds for registries that have none of their own.
DEFAULT_DIRECTORY = "_default"

_IGNORED = HostsFile(OWN)


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What decides, besides registries.yaml, where a node looks.

    Attributes:
        version: None: as the newest release known does it.
        embedded: ``embedded-registry: true``.
        default_endpoint: False: ``disable-default-registry-endpoint: true``.
        wildcard_configs: ``configs."*"`` reaches listed endpoints and the default ones (its credentials only the
            listed ones), as K3s's documentation has it. K3s's code does not do so: leave it off to know what nodes do.
        data_dir: K3s's data directory, where the certificates of the embedded registry are.
        embedded_host: Where the embedded registry listens; ``[::1]:6443`` on a cluster of IPv6 alone.
    """

    version: K3sVersion | None = None
    embedded: bool = False
    default_endpoint: bool = True
    wildcard_configs: bool = False
    data_dir: str = "/var/lib/rancher/k3s"
    embedded_host: str = "127.0.0.1:6443"

    def has(self, feature: features.Feature) -> bool:
        """Tell whether the version has a feature; the newest release has all."""
        return self.version is None or feature.in_version(self.version)


#: As settings: no node, but this computer, which takes the file by its documentation.
THIS_COMPUTER = NodeSettings(wildcard_configs=True)


@dataclass(frozen=True, slots=True)
class NodeHosts:
    """All of certs.d on a node.

    Attributes:
        files: By directory name: a registry (host[:port]) or ``_default``. As written, also if containerd ignores it.
        notes: What K3s drops or does otherwise than it looks.
    """

    files: Mapping[str, HostsFile]
    notes: tuple[str, ...] = ()
    _credentials: RegistriesFile = field(default_factory=RegistriesFile.empty, repr=False)
    # What containerd makes of a file, where that is not what was meant.
    _taken: Mapping[str, HostsFile] = field(default_factory=dict, repr=False)
    _blank_server: bool = True
    _wildcard_configs: bool = False

    def endpoints_for(self, registry: str) -> list[Endpoint]:
        """Return the endpoints of a registry in the order containerd tries them, the default last.

        Args:
            registry: As in a normalised reference: ``docker.io``, ``registry.example:5000``.

        Returns:
            A new list. It is empty if nothing is tried at all.
        """
        own = Address.parse(registry)
        file = self._file_of(registry)
        found = [self._listed(endpoint, registry, own) for endpoint in file.endpoints]
        if file.default is None or (file.endpoints and not file.default.base_url and not self._blank_server):
            return found
        default = self._default(file.default, registry, own)
        if found and replace(found[-1], is_default=True) == default:
            # To ask the same place twice finds nothing more.
            found.pop()
        return [*found, default]

    def notes_for_people(self, target: str) -> list[str]:
        """Return the notes without that which is meant to be so: the site's own registry keeps its default endpoint."""
        return [note for note in self.notes if not (target and note.startswith(f"{target} keeps its default endpoint"))]

    def _file_of(self, registry: str) -> HostsFile:
        host, colon, port = registry.rpartition(":")
        names = [f"{host}_{port}_"] if colon and host else []
        for name in (*names, registry, DEFAULT_DIRECTORY):
            if name in self.files:
                return self._taken.get(name, self.files[name])
        return _IGNORED

    def _listed(self, endpoint: Endpoint, registry: str, own: Address) -> Endpoint:
        ns = None if endpoint.host == own.host else registry
        hosts = (DOCKER_HUB_HOST, DOCKER_HUB) if endpoint.host == DOCKER_HUB_HOST else (endpoint.host,)
        if self._wildcard_configs:
            config = self._credentials.config_for(*hosts)
            return replace(endpoint, ns=ns, auth=config.auth, tls=config.tls)
        return replace(endpoint, ns=ns, auth=self._credentials.exact_config(*hosts).auth)

    def _default(self, default: Endpoint, registry: str, own: Address) -> Endpoint:
        if not default.base_url:
            default = replace(default, base_url=own.base_url, host=own.host)
        hosts = (registry, own.host) if default.host == own.host else (default.host,)
        ns = None if default.host == own.host else registry
        default = replace(default, ns=ns, auth=self._credentials.exact_config(*hosts).auth)
        return replace(default, tls=self._credentials.config_for(*hosts).tls) if self._wildcard_configs else default


def render(file: RegistriesFile, settings: NodeSettings | None = None) -> NodeHosts:
    """Return what K3s makes of a registries.yaml on a node.

    Before there were hosts.toml files (features.HOSTS_TOML) the same endpoints are in config.toml: show inline_toml()
    for those, not the texts of ``files``.

    Args:
        file: The registries.yaml.
        settings: Of the node; None: the defaults.
    """
    settings = settings or NodeSettings()
    work = _Rendering(file, settings)
    files = work.render()
    taken = {name: found for name, written in files.items() if (found := work.taken(name, written)) is not None}
    return NodeHosts(
        files,
        tuple(dict.fromkeys(work.notes)),
        file,
        taken,
        settings.version is None or features.wildcard_falls_back(settings.version),
        settings.wildcard_configs,
    )


def parse(texts: Mapping[str, str], credentials: RegistriesFile, version: K3sVersion | None = None) -> NodeHosts:
    """Return what a node's certs.d says.

    Args:
        texts: The hosts.toml files by the name of their directory.
        credentials: The node's registries.yaml: only its credentials are taken, as K3s puts them in config.toml.
        version: Of the node, if known.

    Raises:
        BadHostsFileError: A text is not TOML or no hosts.toml. (containerd ignores such a file.)
    """
    files = {name: HostsFile.parse(text, f"{name}/hosts.toml") for name, text in texts.items()}
    blank = version is None or features.wildcard_falls_back(version)
    return NodeHosts(files, (), credentials, {}, blank)


def inline_toml(file: RegistriesFile) -> str:
    """Return the part of config.toml that K3s wrote before there were hosts.toml files, without credentials."""
    return oldhosts.inline_toml(file.mirrors, file.configs)


class _Rendering:
    """One rendering."""

    def __init__(self, file: RegistriesFile, settings: NodeSettings) -> None:
        self.notes: list[str] = []
        self._settings = settings
        self._mirrors = dict(file.mirrors)
        self._configs = dict(file.configs)
        self._embedded = settings.embedded and settings.has(features.EMBEDDED)
        if settings.embedded and not self._embedded:
            self.notes.append(f"{settings.version} has no embedded registry")
        self._default_endpoint = settings.default_endpoint
        if not settings.default_endpoint and not settings.has(features.NO_DEFAULT_ENDPOINT):
            self.notes.append(f"{settings.version} does not know disable-default-registry-endpoint")
            self._default_endpoint = True
        if self._embedded:
            self._inject()

    def render(self) -> dict[str, HostsFile]:
        version = self._settings.version
        if version is not None and not features.HOSTS_TOML.in_version(version):
            self.notes.append(
                f"{version} keeps mirrors in config.toml, with no hosts.toml; it rewrites at the default endpoint "
                "as well (k3s-io/k3s#7007)"
            )
            return oldhosts.inline(self._usable(self._mirrors), self._configs)
        bare = any(address.bare for mirror in self._mirrors.values() for address in mirror.addresses)
        if version is not None and bare and not features.takes_bare_endpoints(version):
            self.notes.append(f"{version} does not understand an endpoint without a scheme: write https://HOST")
        if version is not None and not features.DUPLICATES_DROPPED.in_version(version):
            early = oldhosts.Early(self._default_endpoint, self._settings.embedded_host, self._embedded)
            files = early.render(self._usable(self._mirrors), self._configs)
            self.notes += [f"{version}: {note}" for note in early.notes]
            return files
        files = self._render()
        if version is not None and not features.wildcard_falls_back(version) and DEFAULT_DIRECTORY in files:
            self.notes.append(
                f'{version}: with "*" alone nothing is tried after the listed endpoints (k3s-io/k3s#11857)'
            )
        return files

    def _render(self) -> dict[str, HostsFile]:
        files: dict[str, HostsFile] = {}
        for key, config in self._configs.items():
            directory = key
            if key == ANY:
                directory, default = DEFAULT_DIRECTORY, replace(OWN, tls=config.tls)
            elif (address := self._own(key)) is not None:
                default = Endpoint(address.base_url, address.host, is_default=True, tls=config.tls)
            else:
                continue
            if config.is_set:
                files[directory] = HostsFile(default)
        for key, mirror in self._usable(self._mirrors).items():
            directory = DEFAULT_DIRECTORY if key == ANY else key
            files.pop(directory, None)
            if (file := self._of_mirror(key, mirror)) is not None:
                files[directory] = file
        return files

    def _of_mirror(self, key: str, mirror: Mirror) -> HostsFile | None:
        """Return the file of a mirror entry; None if it says nothing that is not so anyway."""
        address = None if key == ANY else self._own(key)
        default: Endpoint | None = OWN
        has_config = False
        if address is not None:
            config = self._configs.get(key) or self._config(key)
            default = Endpoint(address.base_url, address.host, is_default=True, tls=config.tls)
            has_config = config.is_set
        if not self._default_endpoint:
            if key in self._configs and key != ANY:
                if key != self._settings.embedded_host:
                    self.notes.append(
                        f"{key} keeps its default endpoint although that is turned off, as configs lists it too"
                    )
            else:
                default, has_config = None, False
        endpoints: list[Endpoint] = []
        for at, listed in enumerate(mirror.addresses):
            if listed in mirror.addresses[:at]:
                self.notes.append(f"{key}: {listed.base_url} is listed twice; the second is dropped")
                continue
            endpoint = self._endpoint(listed, mirror)
            is_last = at + 1 == len(mirror.addresses)
            if is_last and default is not None and default.base_url == endpoint.base_url and not listed.slash:
                if endpoint.rewrites:
                    self.notes.append(f"{key}: no rewrite is done at its default endpoint, also if that is listed last")
                has_config = self._config(_name(listed.host)).is_set or bool(endpoint.rewrites)
                default = replace(endpoint, is_default=True, rewrites=())
            else:
                endpoints.append(endpoint)
        if endpoints or has_config:
            return HostsFile(default, tuple(endpoints))
        if not self._settings.default_endpoint:
            self.notes.append(
                f"mirrors.{key} lists no endpoint, so K3s writes no file for it and the default endpoint is asked "
                "although it is turned off"
            )
        return None

    def _endpoint(self, address: Address, mirror: Mirror) -> Endpoint:
        embedded = self._embedded and address.host == self._settings.embedded_host
        return Endpoint(
            base_url=address.base_url,
            host=address.host,
            is_default=False,
            rewrites=() if embedded else mirror.rewrites,
            tls=self._config(_name(address.host)).tls,
            override_path=address.overrides_path,
            is_embedded=embedded,
        )

    def _config(self, host: str) -> HostConfig:
        """Return the config of a host. That of Docker Hub may stand under the host of its API, which counts first."""
        names = (DOCKER_HUB_HOST, DOCKER_HUB) if host == DOCKER_HUB else (host,)
        return next((self._configs[name] for name in names if name in self._configs), HostConfig())

    def _own(self, key: str) -> Address | None:
        """Return the address of a registry's own endpoint; None for a key that is no registry and never used."""
        try:
            return Address.parse(f"https://{key}" if self._is_embedded(key) else key)
        except ValueError:
            return None

    def _usable(self, mirrors: Mapping[str, Mirror]) -> dict[str, Mirror]:
        return {key: mirror for key, mirror in mirrors.items() if key == ANY or self._own(key) is not None}

    def _is_embedded(self, host: str) -> bool:
        return self._embedded and host == self._settings.embedded_host

    def _inject(self) -> None:
        """Put the embedded registry before the endpoints of each mirror, and give it an entry of its own."""
        settings = self._settings
        if not self._mirrors:
            self.notes.append("no mirrors entry: this node takes no part in the embedded registry")
        if ANY in self._mirrors and not settings.has(features.WILDCARD):
            self.notes.append(f'{settings.version} shares nothing of registries that only "*" stands for')
        agent = f"{settings.data_dir}/agent"
        tls = EndpointTls(
            f"{agent}/server-ca.crt", f"{agent}/{EMBEDDED_CERTIFICATE}", f"{agent}/client-k3s-controller.key"
        )
        address = Address.parse(f"https://{settings.embedded_host}")
        for key, mirror in self._mirrors.items():
            if not is_localhost(key):
                self._mirrors[key] = replace(mirror, addresses=(address, *mirror.addresses))
        self._configs[settings.embedded_host] = HostConfig(tls=tls, is_set=True)
        self._mirrors[settings.embedded_host] = Mirror((address,), ())

    def taken(self, directory: str, file: HostsFile) -> HostsFile | None:
        """Return what containerd makes of a file that reads otherwise than meant, None for any other."""
        if not self._settings.has(features.HOSTS_TOML):
            return None
        urls = [endpoint.base_url for endpoint in file.endpoints]
        odd = any(
            character in '\\"' or not character.isprintable()
            for endpoint in file.endpoints
            for rule in endpoint.rewrites
            for character in rule.pattern + rule.replacement
        )
        if not odd and len(urls) == len(set(urls)):
            return None
        try:
            found = HostsFile.parse(file.to_toml(), directory)
        except BadHostsFileError:
            why = "one endpoint is in it twice" if not odd else "a rewrite holds a character that nothing escapes"
            self.notes.append(
                f"the hosts.toml of {directory} is not TOML, as {why}: containerd ignores it, and asks the default "
                "endpoint alone"
            )
            return _IGNORED
        self.notes.append(f"in the hosts.toml of {directory} a rewrite reads otherwise than written: {short(urls[0])}")
        return replace(
            file,
            endpoints=tuple(
                replace(written, rewrites=read.rewrites)
                for written, read in zip(file.endpoints, found.endpoints, strict=True)
            ),
        )


def _name(host: str) -> str:
    """Return the name under which ``configs`` is looked up for the host of an endpoint."""
    return DOCKER_HUB if host == DOCKER_HUB_HOST else host
