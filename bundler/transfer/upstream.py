"""Where the content of a reference comes from: the endpoints of its registry, with our credentials.

K3s's registries.yaml decides the endpoints; docker's config.json adds credentials where that file has none.
"""

from __future__ import annotations

import threading
from typing import Protocol

from bundler.k3s.registries import Endpoint as FileEndpoint
from bundler.k3s.registries import RegistriesFile
from bundler.net import Http, Tls
from bundler.oci.reference import Reference
from bundler.registry.client import RegistryClient
from bundler.registry.endpoint import Credential, Endpoint
from bundler.registry.mirrors import MirroredRepository
from bundler.registry.repository import Repository


class Credentials(Protocol):
    """Finds the credential for a registry host."""

    def lookup(self, host: str) -> Credential | None:
        """Return the credential for this host and port, if there is one."""


class Upstream:
    """Opens repositories; one client per endpoint, shared by all images.

    Args:
        registries: The user's registries.yaml, or an empty one.
        credentials: Asked for hosts that the file has no credential for.
        http: The shared HTTP sessions.
    """

    def __init__(self, registries: RegistriesFile, credentials: Credentials, http: Http) -> None:
        self._registries = registries
        self._credentials = credentials
        self._http = http
        self._clients: dict[tuple[str, str | None], RegistryClient] = {}
        self._lock = threading.Lock()

    def repository(self, reference: Reference) -> MirroredRepository:
        """Return the repository of a reference, over all its endpoints in the order to try.

        Raises:
            AuthError: A credential helper is broken.
        """
        return MirroredRepository(
            [
                Repository(self._client(endpoint, reference.registry), endpoint.repository(reference.repository))
                for endpoint in self._registries.endpoints_for(reference.registry)
            ],
            self._http,
        )

    def _client(self, endpoint: FileEndpoint, registry: str) -> RegistryClient:
        key = (endpoint.base_url, endpoint.ns)
        with self._lock:
            client = self._clients.get(key)
            if client is None:
                client = self._clients[key] = RegistryClient(self._resolved(endpoint, registry), self._http)
        return client

    def _resolved(self, endpoint: FileEndpoint, registry: str) -> Endpoint:
        # Docker keeps the credential of a registry under the registry's name, also where its API host has another.
        host = registry if endpoint.is_default else endpoint.host
        auth, tls = endpoint.auth, endpoint.tls
        return Endpoint(
            api_url=endpoint.base_url,
            tls=Tls(tls.ca_file, tls.cert_file, tls.key_file, tls.insecure_skip_verify) if tls else Tls(),
            credential=Credential(auth.username or "", auth.password or "", auth.identity_token or "")
            if auth
            else self._credentials.lookup(host),
            namespace=endpoint.ns,
            credentials_hint=f"Run `docker login {host}`, or put the credentials under configs.{endpoint.host}.auth of "
            "--registries FILE.",
        )
