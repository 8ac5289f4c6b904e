"""Where the content of a reference comes from: the endpoints of its registry, with our credentials and TLS settings.

K3s's registries.yaml decides the endpoints. What it says of a host's credentials and TLS is one of several places.
"""

from __future__ import annotations

import threading

from bundler.k3s.access import credential_of, tls_of
from bundler.k3s.hosts import THIS_COMPUTER, render
from bundler.k3s.registries import Endpoint as FileEndpoint
from bundler.k3s.registries import RegistriesFile
from bundler.net import Http, Tls
from bundler.oci.reference import Reference
from bundler.registry.certsd import merged, tls_for
from bundler.registry.client import RegistryClient
from bundler.registry.credentials import Credentials, variable_suffix
from bundler.registry.endpoint import Credential, Endpoint
from bundler.registry.host import Hosts
from bundler.registry.mirrors import MirroredRepository
from bundler.registry.repository import Repository


class Upstream:
    """Opens repositories; one client per endpoint, shared by all images.

    Args:
        registries: The user's registries.yaml, or an empty one.
        before: Asked for a credential before the file is.
        after: Asked for hosts that the file has no credential for.
        http: The shared HTTP sessions.
        hosts: The hosts of this run.
        ca_files: CAs to trust at every host.
    """

    def __init__(
        self,
        registries: RegistriesFile,
        before: Credentials,
        after: Credentials,
        http: Http,
        hosts: Hosts,
        ca_files: tuple[str, ...] = (),
    ) -> None:
        self._registries = registries
        self._node_hosts = render(registries, THIS_COMPUTER)
        self._before = before
        self._after = after
        self._http = http
        self._hosts = hosts
        self._ca = Tls(ca_files)
        self._clients: dict[tuple[str, str | None, Credential | None], RegistryClient] = {}
        self._lock = threading.Lock()

    def repository(self, reference: Reference) -> MirroredRepository:
        """Return the repository of a reference, over all its endpoints in the order to try.

        Raises:
            AuthError: A credential helper is broken.
        """
        return MirroredRepository(
            [
                Repository(self._client(endpoint, reference), endpoint.repository(reference.repository))
                for endpoint in self._node_hosts.endpoints_for(reference.registry)
            ],
            self._http,
        )

    def _client(self, endpoint: FileEndpoint, reference: Reference) -> RegistryClient:
        # Docker keeps the credential of a registry under the registry's name, also where its API host has another.
        host = reference.registry if endpoint.is_default else endpoint.host
        repository = endpoint.repository(reference.repository)
        credential = self._before.lookup(host, repository)
        if credential is None and endpoint.auth is not None:
            credential = credential_of(endpoint.auth, f"configs.{endpoint.host}.auth of {self._registries.name}")
        credential = credential or self._after.lookup(host, repository)
        key = (endpoint.base_url, endpoint.ns, credential)
        with self._lock:
            client = self._clients.get(key)
            if client is None:
                made = Endpoint(
                    api_url=endpoint.base_url,
                    tls=merged(self._ca, tls_of(endpoint.tls), tls_for(endpoint.host)),
                    credential=credential,
                    namespace=endpoint.ns,
                    credentials_hint=f"Set AIRGAP_SYNC_USERNAME_{variable_suffix(host)} and "
                    f"AIRGAP_SYNC_PASSWORD_{variable_suffix(host)}, run `docker login {host}`, or put the credentials "
                    f"under configs.{endpoint.host}.auth of --registries FILE.",
                )
                client = self._clients[key] = RegistryClient(made, self._http, self._hosts)
        return client


class RegistriesCredentials:
    """The credentials that a registries.yaml has under ``configs.HOST.auth``.

    Args:
        registries: The file.
    """

    def __init__(self, registries: RegistriesFile) -> None:
        self._registries = registries

    def lookup(self, host: str, repository: str = "") -> Credential | None:
        """Return the credential of exactly this host, if the file has one."""
        del repository
        auth, _ = self._registries.settings_of(host)
        return credential_of(auth, f"configs.{host}.auth of {self._registries.name}") if auth else None
