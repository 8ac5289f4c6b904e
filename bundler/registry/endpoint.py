"""Where one registry's API lies, how it is trusted and who we are there."""

from __future__ import annotations

from dataclasses import dataclass, field

from bundler.errors import NoCredentialsError
from bundler.net import Tls


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name with its password, or an identity token; never shown by ``repr``.

    Attributes:
        source: Where it was found, for messages.
    """

    username: str
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be sent: a text made of bytes that are not UTF-8."""
        for text in (self.username, self.password, self.identity_token):
            try:
                text.encode()
            except UnicodeEncodeError:
                # Not chained: it would quote the text.
                raise NoCredentialsError(
                    f"the user name or password from {self.source or 'the user'} is not UTF-8",
                    hint="Set it in a terminal and a locale with UTF-8, or write it into a file in UTF-8.",
                ) from None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place that serves the registry API.

    Attributes:
        api_url: Base URL including ``/v2`` (or what stands for it), without a trailing slash.
        credential: Sent to this origin and the token realm it names, nowhere else.
        credentials_hint: What the user can do about a missing or wrong credential.
        namespace: The registry this endpoint stands in for, sent as ``?ns=``.
            Source: containerd docs/hosts.md, "registry host namespace".
    """

    api_url: str
    tls: Tls = field(default_factory=Tls)
    credential: Credential | None = None
    namespace: str | None = None
    credentials_hint: str | None = None
