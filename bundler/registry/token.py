"""A bearer token: its value, how long it is good for, and the rights that it carries if it tells them.

Source: distribution docs/spec/auth/{token,jwt}.md.
"""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass, field
from typing import Any, Self

from bundler.errors import RegistryUnavailableError
from bundler.url import redact

#: What an answer without ``expires_in`` means. Source: token.md, "expires_in".
DEFAULT_EXPIRY_S = 60
#: A token this much older than new is replaced before a large body is sent with it.
_FRESH_SHARE = 0.1
_FRESH_S = 30.0


@dataclass(frozen=True, slots=True)
class Scope:
    """The right to do something in one repository."""

    repository: str
    actions: str = "pull"

    def __str__(self) -> str:
        return f"repository:{self.repository}:{self.actions}"


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was issued to us.

    Attributes:
        value: What goes into the Authorization header.
        issued: When we got it, on the clock of ``time.monotonic``: clocks that disagree change nothing.
        lifetime_s: How long it is good for from then on, in seconds.
    """

    value: str = field(repr=False)
    issued: float
    lifetime_s: float

    @classmethod
    def from_answer(cls, body: bytes, realm: str) -> Self:
        """Read the answer of a token realm; the first of ``token`` and ``access_token`` that is not empty counts.

        Raises:
            RegistryUnavailableError: There is no token in it.
        """
        try:
            document: Any = json.loads(body)
            value = document.get("token") or document.get("access_token")
            lifetime_s = float(document.get("expires_in") or DEFAULT_EXPIRY_S)
        except (ValueError, AttributeError, TypeError, RecursionError, OverflowError):
            value, lifetime_s = None, 0.0
        # It goes into a header.
        if not isinstance(value, str) or not value or not (value.isascii() and value.isprintable()):
            raise RegistryUnavailableError(f"the token realm {redact(realm)} answered without a token")
        return cls(value, time.monotonic(), lifetime_s)

    @property
    def is_good(self) -> bool:
        """Whether it will be for a while, with a margin for requests under way."""
        margin_s = max(5.0, self.lifetime_s * 0.2)
        return time.monotonic() < self.issued + max(1.0, self.lifetime_s - margin_s)

    @property
    def is_fresh(self) -> bool:
        """Whether it is new enough for a body that takes long to send."""
        return self.is_good and time.monotonic() < self.issued + min(_FRESH_S, self.lifetime_s * _FRESH_SHARE)

    def allows(self, scope: Scope, *, by_project: bool = False) -> bool | None:
        """Tell whether the token carries a right; None if it does not tell.

        Nothing is verified: the registry does that, and this only says earlier what it will say.

        Args:
            scope: The right.
            by_project: A right in one repository is one in all of its project, the first part of the name.
        """

        def place(name: object) -> str:
            return str(name).partition("/")[0] if by_project else str(name)

        access = _access(self.value)
        if access is None:
            return None
        wanted, here, granted = set(scope.actions.split(",")), place(scope.repository), set[str]()
        for entry in access:
            if isinstance(entry, dict) and entry.get("type") == "repository" and place(entry.get("name")) == here:
                actions = entry.get("actions")
                granted |= {str(action) for action in actions} if isinstance(actions, list) else set()
        return wanted <= granted or "*" in granted


def _access(token: str) -> list[Any] | None:
    """Return the ``access`` claim of a JWT; None for any other kind of token."""
    try:
        payload = token.split(".")[1]
        claims: Any = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        access = claims.get("access")
    except (ValueError, IndexError, AttributeError, RecursionError):
        return None
    # Harbor writes null for an account that may do nothing.
    if access is None and "access" in claims:
        return []
    return access if isinstance(access, list) else None
