"""``login``: does a registry know this user name and password?"""

from __future__ import annotations

from bundler.errors import NoCredentialsError
from bundler.registry.client import RegistryClient
from bundler.registry.endpoint import Credential


def check_login(client: RegistryClient) -> tuple[Credential | None, bool]:
    """Make sure that a registry can be reached and knows the credential of its endpoint.

    Returns:
        The credential, and whether the registry asked for one at all: one that does not ask cannot tell a right
        password from a wrong one.

    Raises:
        NoCredentialsError: It wants a credential, and there is none.
        UnauthorizedError: The credential is wrong.
        RegistryUnavailableError: The registry cannot be reached, or is none.
    """
    client.check_api()
    client.authorizer.check_credential()
    credential, asked = client.endpoint.credential, client.authorizer.was_asked
    if asked and credential is None:
        # Some realms give a token to anybody.
        raise NoCredentialsError(
            f"there are no credentials for {client.host.name}", hint=client.endpoint.credentials_hint
        )
    return credential, asked
