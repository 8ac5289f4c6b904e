"""What a registries.yaml says of a host, as what requests are sent with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bundler.net import Tls
from bundler.registry.endpoint import Credential

if TYPE_CHECKING:
    from bundler.k3s.endpoint import EndpointAuth, EndpointTls


def credential_of(auth: EndpointAuth, source: str) -> Credential:
    """Return what a registries.yaml holds as a credential."""
    return Credential(auth.username or "", auth.password or "", auth.identity_token or "", source)


def tls_of(tls: EndpointTls | None) -> Tls:
    """Return what a registries.yaml holds as TLS settings."""
    if tls is None:
        return Tls()
    return Tls((tls.ca_file,) if tls.ca_file else (), tls.cert_file, tls.key_file, tls.insecure_skip_verify)
