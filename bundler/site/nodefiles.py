"""What is put on every node: registries.yaml and K3s's own configuration.

Rules:

- Names of images stay as they are. Each source registry gets a mirror that leads to where ``push`` puts its images.
- One rewrite a mirror, anchored, without backslashes: K3s tries several rules in no fixed order, and cannot carry a
  backslash to containerd. Source: k3s-io/k3s, ``pkg/agent/templates``; k3s-io/containerd, ``core/remotes/docker``.
- An endpoint has a scheme and, but for one case below, no path: the form that every K3s version understands.
- Secrets are written only if the user asked for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bundler import yamlfile
from bundler.k3s.endpoint import is_localhost
from bundler.oci.reference import Reference
from bundler.oci.target import Target
from bundler.registry.endpoint import Credential
from bundler.site.routes import Route, Site

#: Everything of a registry, wherever it lies below a prefix.
_WHOLE_PATH = "^(.*)$"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAccess:
    """How nodes reach the target.

    Attributes:
        ca_file: Where the CA lies on a node, if it needs one.
        cert_file: Where a node's client certificate lies on it.
        key_file: Where its key lies.
        skip_verify: The certificate of the target is not verified.
        credential: Written into registries.yaml; None: nodes pull without, or the user fills it in.
    """

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    skip_verify: bool = False
    credential: Credential | None = field(default=None, repr=False)


def registries_yaml(site: Site, images: Iterable[tuple[Reference, Route]], access: NodeAccess, made_by: str) -> str:
    """Return registries.yaml for every node of a site.

    Args:
        site: The site.
        images: All images of the bundle, with where they are put.
        access: How nodes reach the target.
        made_by: One line that says what made the file.
    """
    registries: dict[str, list[Reference]] = {}
    pushed: dict[str, list[Reference]] = {}
    for reference, route in images:
        registries.setdefault(reference.registry, []).append(reference)
        if route is Route.REGISTRY:
            pushed.setdefault(reference.registry, []).append(reference)
    mirrors = {registry: _mirror(site, registry, pushed.get(registry, [])) for registry in sorted(registries)}
    if site.wildcard:
        mirrors["*"] = _mirror_of_prefix(site.target, site.target.prefix) if site.target else {}
        if site.target and site.target.prefix and site.target.host not in mirrors:
            # What the site has there under its own names must not be looked for below the prefix.
            mirrors = {**mirrors, site.target.host: {"endpoint": [_otherwise_written(site.target)]}}
    document: dict[str, Any] = {"mirrors": mirrors}
    text = _HEADER.format(made_by)
    if site.target is None:
        return text + yamlfile.dump(document)
    hosts = sorted({site.target.host, *_hosts_of(mirrors)})
    configs = {host: config for host in hosts if (config := _config(site.target, access))}
    if configs:
        document["configs"] = configs
    text += yamlfile.dump(document)
    return text if access.credential else text + _no_credentials(hosts, configs)


def config_yaml(site: Site, *, server: bool) -> dict[str, Any]:
    """Return what K3s's own configuration needs on a server or an agent; empty for nothing.

    The embedded registry is turned on by the servers, for all nodes; the default endpoint is each node's own affair.
    """
    document: dict[str, Any] = {}
    if site.embedded and server:
        document["embedded-registry"] = True
    if not site.default_endpoint:
        document["disable-default-registry-endpoint"] = True
    return document


def _mirror(site: Site, registry: str, pushed: list[Reference]) -> dict[str, Any]:
    """Return the mirror of one source registry; an empty one only enrols it in the embedded registry."""
    if site.target is None or not pushed:
        return {}
    prefix = site.target.prefix_for(registry, keep_registry=site.keep_registry)
    if registry == site.target.host:
        return _mirror_of_itself(site, site.target, prefix, pushed)
    return _mirror_of_prefix(site.target, prefix)


def _mirror_of_prefix(target: Target, prefix: str) -> dict[str, Any]:
    mirror: dict[str, Any] = {"endpoint": [target.url]}
    if prefix:
        mirror["rewrite"] = {_WHOLE_PATH: f"{prefix}/$1"}
    return mirror


def _mirror_of_itself(site: Site, target: Target, prefix: str, pushed: list[Reference]) -> dict[str, Any]:
    """Return the mirror for images that are named after the target already.

    What else the site has there must still be found, so only the repositories of the bundle are rewritten. And an
    endpoint that reads like the registry's own would lose its rewrites.

    Source: k3s-io/k3s, ``pkg/agent/containerd/config.go``, ``getHostConfigs``.
    """
    if not prefix:
        # Where the default endpoint is turned off, listing it turns it on again for this registry.
        return {"endpoint": [target.url]} if target.plain_http or not site.default_endpoint else {}
    names = sorted({reference.repository for reference in pushed})
    pattern = f"^({'|'.join(name.replace('.', '[.]') for name in names)})$"
    return {"endpoint": [_otherwise_written(target)], "rewrite": {pattern: f"{prefix}/$1"}}


def _otherwise_written(target: Target) -> str:
    """Return an endpoint for a target that is another text than that of its own default endpoint."""
    has_port = target.host.rpartition("]")[2].find(":") >= 0
    if target.plain_http and not (has_port and is_localhost(target.host)):
        # The default endpoint is https; but on this machine itself a port makes it http.
        return target.url
    return f"{target.url}/v2/" if has_port else f"{target.url}:443"


def _hosts_of(mirrors: Mapping[str, dict[str, Any]]) -> set[str]:
    """Return host and port of all endpoints, which is what settings are looked up by."""
    return {
        endpoint.partition("://")[2].partition("/")[0]
        for mirror in mirrors.values()
        for endpoint in mirror.get("endpoint", ())
    }


def _config(target: Target, access: NodeAccess) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if access.credential:
        credential = access.credential
        config["auth"] = (
            {"username": credential.username, "password": credential.password}
            if credential.username
            else {"identity_token": credential.identity_token}
        )
    settings = {
        "ca_file": access.ca_file,
        "cert_file": access.cert_file,
        "key_file": access.key_file,
        "insecure_skip_verify": access.skip_verify,
    }
    tls = {key: value for key, value in settings.items() if value and not target.plain_http}
    if tls:
        config["tls"] = tls
    return config


def _no_credentials(hosts: Iterable[str], configs: Mapping[str, Any]) -> str:
    """Return the comment that shows where credentials go, for each host that settings are looked up by."""
    auth = {"auth": {"username": "NAME", "password": "PASSWORD"}}
    full = {"configs": {host: {**auth, **configs.get(host, {})} for host in hosts}}
    how = "`configs` then reads" if configs else "add"
    return _NO_CREDENTIALS.format(how) + "".join(f"# {line}\n" for line in yamlfile.dump(full).splitlines())


_HEADER = """\
# {}
# For every node, servers and agents: /etc/rancher/k3s/registries.yaml, mode 0600. K3s reads it only when it starts.
"""
_NO_CREDENTIALS = """\
# Nodes pull without credentials. If the registry asks for some, use `airgap-sync config --with-credentials`, or
# `chmod 600` this file and put in those of an account that may only pull; {}:
"""
