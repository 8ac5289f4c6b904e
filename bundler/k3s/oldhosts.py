"""Where nodes of older K3s versions look: mirrors in config.toml, and the first form of hosts.toml.

Source: k3s-io/k3s, ``pkg/agent/templates/templates_linux.go`` of v1.28 and ``pkg/agent/containerd/config.go`` of
February 2024; containerd 1.7, ``pkg/cri/server/image_pull.go`` (``registryEndpoints``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bundler.k3s.endpoint import Address, Endpoint
from bundler.k3s.hoststoml import OWN, HostsFile, quoted
from bundler.k3s.registries import ANY, HostConfig, Mirror
from bundler.oci.reference import is_registry

_PLUGIN = '[plugins."io.containerd.grpc.v1.cri".registry'


def inline(mirrors: Mapping[str, Mirror], configs: Mapping[str, HostConfig]) -> dict[str, HostsFile]:
    """Return what mirrors in config.toml mean, as the hosts.toml files that would say the same.

    An entry hides ``*`` also where it lists nothing. Rewrites hold for the default endpoint too (k3s-io/k3s#7007),
    which is left out where an endpoint of the same host is listed.
    """
    files = {}
    for key, mirror in mirrors.items():
        endpoints = tuple(_endpoint(address, mirror, configs) for address in mirror.addresses)
        if key == ANY:
            default: Endpoint | None = replace(OWN, rewrites=mirror.rewrites)
        else:
            address = Address.parse(key)
            tls = configs.get(address.host, HostConfig()).tls
            default = Endpoint(address.base_url, address.host, is_default=True, rewrites=mirror.rewrites, tls=tls)
            if any(listed.host == key for listed in mirror.addresses):
                default = None
        files["_default" if key == ANY else key] = HostsFile(default, endpoints, early=True)
    for key, config in configs.items():
        # With no mirror of its own a registry takes those of "*", but its TLS settings still hold.
        if key not in files and ANY not in mirrors and config.tls and is_registry(key):
            address = Address.parse(key)
            files[key] = HostsFile(Endpoint(address.base_url, address.host, is_default=True, tls=config.tls))
    return files


def inline_toml(mirrors: Mapping[str, Mirror], configs: Mapping[str, HostConfig]) -> str:
    """Return the text of mirrors in config.toml, with placeholders for credentials."""
    lines: list[str] = []
    if mirrors:
        lines += [f"{_PLUGIN}.mirrors]", ""]
    for key, mirror in sorted(mirrors.items()):
        listed = ", ".join(quoted(address.base_url.removesuffix("/v2")) for address in mirror.addresses)
        lines += [f'{_PLUGIN}.mirrors."{key}"]', f"  endpoint = [{listed}]"]
        if mirror.rewrites:
            lines.append(f'  {_PLUGIN}.mirrors."{key}".rewrite]')
            rules = sorted(mirror.rewrites, key=lambda rule: rule.pattern.encode(errors="surrogatepass"))
            lines += [f'    "{rule.pattern}" = "{rule.replacement}"' for rule in rules]
        lines.append("")
    for key, config in sorted(configs.items()):
        if config.auth:
            lines.append(f'{_PLUGIN}.configs."{key}".auth]')
            if config.auth.identity_token:
                lines.append('  identitytoken = "<secret>"')
            else:
                lines += [f"  username = {quoted(config.auth.username)}", '  password = "<secret>"']
            lines.append("")
        if config.tls:
            lines.append(f'{_PLUGIN}.configs."{key}".tls]')
            names = ("ca_file", "cert_file", "key_file")
            lines += [f"  {name} = {quoted(path)}" for name in names if (path := getattr(config.tls, name))]
            lines += ["  insecure_skip_verify = true"] * config.tls.insecure_skip_verify
            lines.append("")
    return "\n".join(lines)


class Early:
    """The first form of hosts.toml, from v1.26.13, v1.27.10, v1.28.6 and v1.29.1 on for one or two patches.

    Args:
        default_endpoint: Whether default endpoints are on.
        embedded_host: Where the embedded registry listens.
        embedded: Whether it is on.
    """

    def __init__(self, default_endpoint: bool, embedded_host: str, embedded: bool) -> None:
        self.notes: list[str] = []
        self._default_endpoint = default_endpoint
        self._embedded_host = embedded_host if embedded else ""

    def render(self, mirrors: Mapping[str, Mirror], configs: Mapping[str, HostConfig]) -> dict[str, HostsFile]:
        """Return the files by directory."""
        files: dict[str, HostsFile] = {}
        for key in (*mirrors, *(key for key in configs if key not in mirrors)):
            mirror, config = mirrors.get(key), configs.get(key)
            file = self._wildcard(mirror, config, configs) if key == ANY else self._own(key, mirror, config, configs)
            if file is not None:
                files["_default" if key == ANY else key] = file
        return files

    def _own(
        self, key: str, mirror: Mirror | None, config: HostConfig | None, configs: Mapping[str, HostConfig]
    ) -> HostsFile | None:
        try:
            address = Address.parse(f"https://{key}" if key == self._embedded_host else key)
        except ValueError:
            return None
        endpoints = self._endpoints(mirror, configs)
        settings = [configs.get(endpoint.host, HostConfig()) for endpoint in endpoints]
        if not endpoints and config is not None:
            endpoints = [Endpoint(address.base_url, address.host, is_default=False, tls=config.tls)]
            settings = [config]
        if not endpoints:
            if mirror is not None and not self._default_endpoint:
                self.notes.append(f"mirrors.{key} lists no endpoint, so its default endpoint is asked all the same")
            return None
        default: Endpoint | None = None
        if self._default_endpoint:
            default = Endpoint(address.base_url, address.host, is_default=True)
            if endpoints[-1].base_url == address.base_url:
                if not settings[-1].is_set and not endpoints[-1].rewrites:
                    if len(endpoints) > 1:
                        self.notes.append(
                            f"{key}: its default endpoint is listed last, so all endpoints before it are dropped "
                            "(k3s-io/k3s#9626)"
                        )
                    return None
                default = None
        return HostsFile(default, tuple(endpoints), early=True)

    def _wildcard(
        self, mirror: Mirror | None, config: HostConfig | None, configs: Mapping[str, HostConfig]
    ) -> HostsFile | None:
        endpoints = self._endpoints(mirror, configs)
        if endpoints:
            self.notes.append('with "*" nothing is tried after the listed endpoints (k3s-io/k3s#9728)')
        elif config is not None:
            self.notes.append('configs."*" makes every registry without an entry of its own unreachable')
        else:
            return None
        return HostsFile(None, tuple(endpoints), early=True)

    def _endpoints(self, mirror: Mirror | None, configs: Mapping[str, HostConfig]) -> list[Endpoint]:
        if mirror is None:
            return []
        return [
            replace(_endpoint(address, mirror, configs), is_embedded=True, rewrites=())
            if address.host == self._embedded_host
            else _endpoint(address, mirror, configs)
            for address in mirror.addresses
        ]


def _endpoint(address: Address, mirror: Mirror, configs: Mapping[str, HostConfig]) -> Endpoint:
    return Endpoint(
        base_url=address.base_url,
        host=address.host,
        is_default=False,
        rewrites=mirror.rewrites,
        tls=configs.get(address.host, HostConfig()).tls,
        override_path=address.overrides_path,
    )
