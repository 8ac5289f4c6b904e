"""``login``: does a registry know this user name and password?"""

from __future__ import annotations

from bundler.errors import NoCredentialsError
from bundler.registry.client import RegistryClient
from bundler.registry.endpoint import Credential


def check_login(client: RegistryClient) -> tuple[Credential, bool]:
    """Make sure that a registry knows the credential of its endpoint.

    Returns:
        The credential, and whether the registry asked for one at all: one that does not ask cannot tell a right
        password from a wrong one.

    Raises:
        NoCredentialsError: There is no credential.
        UnauthorizedError: It is wrong.
        RegistryUnavailableError: The registry cannot be reached, or is none.
    """
    credential = client.endpoint.credential
    if credential is None:
        raise NoCredentialsError(
            f"there are no credentials for {client.host.name}", hint=client.endpoint.credentials_hint
        )
    client.check_api()
    client.authorizer.check_credential()
    return credential, client.authorizer.was_asked
