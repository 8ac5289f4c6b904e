"""Where credentials come from: several places, asked in order; the first that knows a host decides.

A credential is for exactly one host and port. The order is documented in docs/credentials.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from bundler.errors import NoCredentialsError
from bundler.registry.endpoint import Credential

_NOT_IN_VARIABLE = re.compile(r"[^A-Z0-9]")


class Credentials(Protocol):
    """Finds the credential for a registry host."""

    def lookup(self, host: str, repository: str = "") -> Credential | None:
        """Return the credential for this host and port, if there is one.

        Args:
            host: ``docker.io`` for Docker Hub.
            repository: What is to be read or written there.
        """


class CredentialChain:
    """Several places, the first hit wins."""

    def __init__(self, places: Sequence[Credentials]) -> None:
        self._places = tuple(places)

    def lookup(self, host: str, repository: str = "") -> Credential | None:
        """Return the first credential that a place knows.

        Raises:
            NoCredentialsError: A place is broken; those behind it are not asked, or the wrong one might be used.
        """
        for place in self._places:
            found = place.lookup(host, repository)
            if found is not None:
                return found
        return None


class GivenCredential:
    """One credential for one host, as the user gave it for this run.

    Args:
        host: The target's host and port.
        credential: For it.
    """

    def __init__(self, host: str, credential: Credential) -> None:
        self._host = host
        self._credential = credential

    def lookup(self, host: str, repository: str = "") -> Credential | None:
        """Return the credential if it is for this host."""
        del repository
        return self._credential if host == self._host else None


class EnvironmentCredentials:
    """AIRGAP_SYNC_USERNAME_<HOST> and AIRGAP_SYNC_PASSWORD_<HOST>.

    Args:
        environ: The environment, read by ``cli``.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def lookup(self, host: str, repository: str = "") -> Credential | None:
        """Return the credential that the variables of a host hold.

        Raises:
            NoCredentialsError: There is one of the two.
        """
        del repository
        suffix = variable_suffix(host)
        names = (f"AIRGAP_SYNC_USERNAME_{suffix}", f"AIRGAP_SYNC_PASSWORD_{suffix}")
        return from_pair(names, self._environ)


def variable_suffix(host: str) -> str:
    """Return what a host is called in a variable's name: upper case, all but letters and digits as ``_``."""
    return _NOT_IN_VARIABLE.sub("_", host.upper())


def from_pair(names: tuple[str, str], environ: Mapping[str, str]) -> Credential | None:
    """Return the credential of two variables, user name and password; None if neither is set.

    Raises:
        NoCredentialsError: One is set and the other is not.
    """
    # Whatever fills variables from files tends to leave the end of the line in them.
    username, password = (environ.get(name, "").removesuffix("\n").removesuffix("\r") for name in names)
    if not username and not password:
        return None
    if not username or not password:
        there, missing = names if username else names[::-1]
        raise NoCredentialsError(f"{there} is set and {missing} is not", hint="Set both, or neither.")
    return Credential(username, password, source=names[0])
