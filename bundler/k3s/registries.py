"""K3s's registries.yaml: the mirrors that it lists, and what it says of each host.

Invariants:

- What K3s accepts is accepted with K3s's meaning. Keys that K3s drops without a word give a warning here.
- Every scalar is read as it is written, as K3s reads it: ``password: 0123`` is the text ``0123``.
- Credentials go only to hosts that the file names; they are never part of a message or a ``repr()``.

What a node makes of it, which its version and settings decide too, is told in ``hosts.py``.

Source: rancher/wharfie, ``pkg/registries/types.go`` (schema); k3s-io/k3s, ``pkg/agent/containerd/config.go``
(endpoints); docs.k3s.io, "Private Registry Configuration".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from bundler import yamlfile
from bundler.errors import BadRegistriesFileError
from bundler.k3s.endpoint import DOCKER_HUB_HOST, Address, Endpoint, EndpointAuth, EndpointTls, Rewrite
from bundler.k3s.goregexp import GoRegexp, GoRegexpError
from bundler.k3s.suggest import closest, short
from bundler.oci.reference import DOCKER_HUB, is_registry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bundler.yamlfile import Path, YamlDocument

__all__ = ["ANY", "Endpoint", "EndpointAuth", "EndpointTls", "HostConfig", "Mirror", "RegistriesFile", "Rewrite"]

ANY = "*"


@dataclass(frozen=True, slots=True)
class Mirror:
    """An entry of ``mirrors``: its endpoints as they are listed, also those listed twice."""

    addresses: tuple[Address, ...]
    rewrites: tuple[Rewrite, ...]


@dataclass(frozen=True, slots=True)
class HostConfig:
    """An entry of ``configs``. ``is_set``: there is an auth or tls section, be it without effect."""

    auth: EndpointAuth | None = None
    tls: EndpointTls | None = None
    is_set: bool = False


@dataclass(frozen=True, slots=True)
class RegistriesFile:
    """A parsed registries.yaml.

    Attributes:
        name: What messages call it.
        warnings: What K3s would drop or take otherwise than it looks.
        mirrors: By registry, or ``*``.
        configs: By host and port, or ``*``.
    """

    name: str
    warnings: tuple[str, ...]
    mirrors: Mapping[str, Mirror] = field(repr=False)
    configs: Mapping[str, HostConfig] = field(repr=False)

    @classmethod
    def empty(cls) -> Self:
        """Return what no file means: every registry has its default endpoint alone."""
        return cls("", (), {}, {})

    @classmethod
    def parse(cls, text: str, name: str) -> Self:
        """Parse a registries.yaml.

        Args:
            text: The file's content.
            name: What messages call it, usually its path as the user wrote it.

        Raises:
            BadRegistriesFileError: It is not YAML, or a part has a wrong type or form; the message tells where.
        """
        reader = _Reader(yamlfile.load(text, name, error=BadRegistriesFileError))
        mirrors, configs = reader.read()
        return cls(name, tuple(reader.warnings), mirrors, configs)

    def settings_of(self, host: str) -> tuple[EndpointAuth | None, EndpointTls | None]:
        """Return credentials and TLS settings for a host that is asked directly, such as a push target.

        The credentials under ``*`` are for the endpoints that the file lists, so not for this one.
        """
        return self.exact_config(host).auth, self.config_for(host).tls

    @property
    def has_credentials(self) -> bool:
        """Whether it names credentials for any host."""
        return any(config.auth for config in self.configs.values())

    def exact_config(self, *hosts: str) -> HostConfig:
        """Return the config of the first of these hosts that has an entry, if any."""
        return next((self.configs[host] for host in hosts if host in self.configs), NO_CONFIG)

    def config_for(self, *hosts: str) -> HostConfig:
        """Return the config of the first of these hosts that has an entry, else that of ``*``.

        An entry hides ``*`` also where it sets nothing.

        Source: docs.k3s.io, "Private Registry Configuration", "Wildcard Support".
        """
        if DOCKER_HUB_HOST in hosts:
            hosts = (*hosts, DOCKER_HUB)
        return self.exact_config(*hosts, ANY)


NO_CONFIG = HostConfig()


class _Reader:
    """Turns the YAML document into values, collecting warnings; used once."""

    def __init__(self, document: YamlDocument) -> None:
        self._document = document
        self.warnings: list[str] = []

    def read(self) -> tuple[dict[str, Mirror], dict[str, HostConfig]]:
        self._check_keys((), ("mirrors", "configs"))
        configs = {host: self._config(("configs", host)) for host in self._document.mapping(("configs",))}
        mirrors = {
            registry: self._mirror(("mirrors", registry), configs) for registry in self._document.mapping(("mirrors",))
        }
        return mirrors, configs

    def _mirror(self, path: Path, configs: Mapping[str, HostConfig]) -> Mirror:
        self._check_host(path)
        if path[-1] in ("index.docker.io", DOCKER_HUB_HOST):
            self._warn(path, f"K3s never looks here for images of Docker Hub: write {DOCKER_HUB}")
        self._check_keys(path, ("endpoint", "rewrite"))
        addresses: list[Address] = []
        for at in range(len(self._document.sequence((*path, "endpoint")))):
            spot = (*path, "endpoint", at)
            address = self._address(spot)
            if address in addresses:
                self._warn(spot, f"{address.base_url} is listed twice; the second is dropped")
            else:
                self._check_address(spot, address, configs)
            addresses.append(address)
        rewrites = [self._rewrite((*path, "rewrite", key)) for key in self._document.mapping((*path, "rewrite"))]
        return Mirror(tuple(addresses), tuple(rewrites))

    def _address(self, path: Path) -> Address:
        text = self._document.text(path)
        try:
            return Address.parse(text or "")
        except ValueError as error:
            raise self._document.error_at(path, f"a bad endpoint: {error}", hint=_ENDPOINT_HINT) from None

    def _check_address(self, path: Path, address: Address, configs: Mapping[str, HostConfig]) -> None:
        if address.odd_path:
            root = address.base_url.removesuffix(address.odd_path)
            self._warn(
                path,
                f"K3s adds no /v2 to an endpoint with a path: for images below {address.odd_path[1:]} write "
                f"{root}/v2{address.odd_path}",
            )
        config = configs.get(address.host)
        if config and config.tls and not address.is_https:
            self._warn(path, f"the endpoint is plain http, so configs.{address.host}.tls is not used")

    def _rewrite(self, path: Path) -> Rewrite:
        pattern = str(path[-1])
        replacement = self._document.text(path) or ""
        try:
            rule = Rewrite(GoRegexp.compile(pattern), replacement)
        except GoRegexpError as error:
            what = f"the rewrite pattern {short(pattern)} is not a Go regular expression: {error}"
            raise self._document.error_at(path, what, hint=_REWRITE_HINT) from None
        if set(pattern + replacement) & set('\\"'):
            self._warn(
                path,
                f"K3s cannot carry a backslash or a double quote in the rewrite {short(pattern)} to "
                "containerd, and then drops all endpoints of this mirror: write [0-9] for \\d, [.] for \\.",
            )
        return rule

    def _config(self, path: Path) -> HostConfig:
        self._check_host(path)
        self._check_keys(path, ("auth", "tls"))
        auth = self._auth((*path, "auth"))
        if auth and path[-1] == ANY:
            self._warn(
                (*path, "auth"),
                "K3s sends these credentials nowhere; here they go to the endpoints listed under mirrors "
                "that have no entry of their own. Write an entry per host.",
            )
        is_set = any(self._document.get((*path, key)) is not None for key in ("auth", "tls"))
        return HostConfig(auth, self._tls((*path, "tls")), is_set)

    def _auth(self, path: Path) -> EndpointAuth | None:
        self._check_keys(path, ("username", "password", "auth", "identity_token"))
        texts = {key: self._document.text((*path, key)) or "" for key in _AUTH_KEYS}
        # The order in which containerd looks at them.
        if texts["username"]:
            return EndpointAuth(texts["username"], texts["password"])
        if texts["identity_token"]:
            return EndpointAuth(identity_token=texts["identity_token"])
        if texts["auth"]:
            try:
                return EndpointAuth.from_basic(texts["auth"])
            except ValueError as error:
                raise self._document.error_at((*path, "auth"), f"bad credentials: {error}") from None
        if texts["password"]:
            self._warn((*path, "password"), "a password without username is not used")
        return None

    def _tls(self, path: Path) -> EndpointTls | None:
        keys = ("ca_file", "cert_file", "key_file", "insecure_skip_verify")
        self._check_keys(path, keys)
        ca_file, cert_file, key_file = (self._document.text((*path, key)) or None for key in keys[:3])
        skip = self._document.boolean((*path, "insecure_skip_verify")) or False
        if skip:
            self._warn((*path, "insecure_skip_verify"), "the certificate of this host is not verified")
        if bool(cert_file) != bool(key_file):
            raise self._document.error_at(path, "cert_file and key_file go together: one of them is missing")
        tls = EndpointTls(ca_file, cert_file, key_file, skip)
        return None if tls == EndpointTls() else tls

    def _check_host(self, path: Path) -> None:
        host = str(path[-1])
        if host != ANY and not is_registry(host):
            self._warn(path, f"{short(host)} is never used: a key of {path[0]} is HOST[:PORT] without scheme, or *")

    def _check_keys(self, path: Path, known: tuple[str, ...]) -> None:
        for key in self._document.mapping(path):
            if key not in known:
                meant = _NOTES.get((*path[:1], *path[2:], key)) or closest(key, known)
                self._warn((*path, key), f"K3s ignores the key {short(key)} without a word. {meant}".rstrip())

    def _warn(self, path: Path, what: str) -> None:
        self.warnings.append(f"{self._document.place(path)}: {what}")


_AUTH_KEYS = ("username", "password", "auth", "identity_token")
_ENDPOINT_HINT = "Write an endpoint as https://HOST[:PORT], or https://HOST[:PORT]/v2/PREFIX for images below PREFIX."
_REWRITE_HINT = 'A rewrite reads PATTERN: REPLACEMENT, for example "^(.*)$": "project/$1".'
# Keys that look right: what to write instead.
_NOTES: Mapping[Path, str] = {
    (
        "configs",
        "auth",
        "token",
    ): "K3s's documentation shows it, its code does not read it: write identity_token.",
    ("auths",): "It was dropped long ago: write configs.HOST.auth.",
}
