"""A registry in memory that lets in who has the right password or token, and remembers all it heard."""

from base64 import b64encode
from collections.abc import Collection
from http import HTTPStatus
from typing import Any

from tests.support.faults import Action, Status
from tests.support.faulty import FaultyRegistry
from tests.support.memory_registry import Request
from tests.support.servers import QuietHandler
from tests.support.tokens import TokenServer


class RememberingTokens(TokenServer):
    """A token server that knows which tokens it gave out.

    Attributes:
        issued: All of them, of whatever power.
    """

    def __init__(self, user: str, password: str, *, lenient: bool = False, **options: Any) -> None:
        """Prepare the server.

        Args:
            user: The one user there is.
            password: That user's password.
            lenient: Answer a wrong password with a token without any right, if a right was asked for.
            options: Those of `TokenServer`.
        """
        super().__init__(user, password, **options)
        self.issued: list[str] = []
        self._lenient = lenient

    def issue(self, access: Collection[dict[str, Any]], user: str) -> str:
        """Sign a token and remember it."""
        token = super().issue(access, user)
        self.issued.append(token)
        return token

    def _decide(
        self, handler: QuietHandler, asked: dict[str, list[str]], user: str | None, grant: str | None, *, allowed: bool
    ) -> None:
        if self._lenient and not allowed and asked.get("scope"):
            # Somebody without a name may do nothing here.
            super()._decide(handler, asked, None, grant, allowed=True)
        else:
            super()._decide(handler, asked, user, grant, allowed=allowed)

    def _grant(self, scope: str, *, anonymous: bool) -> dict[str, Any]:
        granted = super()._grant(scope, anonymous=anonymous)
        return {**granted, "actions": []} if self._lenient and anonymous else granted


class GuardedRegistry(FaultyRegistry):
    """A faulty registry behind Basic or Bearer authentication; a fault strikes only those who were let in."""

    def __init__(
        self, basic: tuple[str, str] | None = None, tokens: RememberingTokens | None = None, **options: Any
    ) -> None:
        """Prepare an empty registry.

        Args:
            basic: User and password to ask for.
            tokens: The server whose tokens are taken, whatever they allow; nobody is asked if both are None.
            options: Those of `FaultyRegistry`.
        """
        super().__init__(**options)
        self._basic = basic
        self._tokens = tokens
        self._heard: list[bytes] = []

    @property
    def heard(self) -> bytes:
        """The request lines, headers and bodies of all requests so far."""
        with self._guard:
            return b"\n".join(self._heard)

    def users(self) -> set[str]:
        """Give the Authorization headers that came; "" stands for requests without one."""
        return {request.headers.get("authorization", "") for request in self.requests()}

    def _action_for(self, request: Request) -> Action | None:
        if self._admits(request.headers.get("authorization", "")):
            return super()._action_for(request)
        challenge = 'Basic realm="test"'
        if self._tokens:
            challenge = f'Bearer realm="{self._tokens.realm}",service="{self._tokens.service}"'
        return Status(HTTPStatus.UNAUTHORIZED, {"WWW-Authenticate": challenge})

    def _admits(self, authorization: str) -> bool:
        if self._tokens:
            return authorization.removeprefix("Bearer ") in self._tokens.issued
        return self._basic is None or authorization == basic(*self._basic)

    def _record(self, request: Request, status: int) -> None:
        lines = [f"{request.method} {request.target}", *(f"{name}: {value}" for name, value in request.headers.items())]
        with self._guard:
            self._heard.append("\n".join(lines).encode() + b"\n\n" + request.body)
        super()._record(request, status)


def basic(user: str, password: str) -> str:
    """Give the Authorization header of a user."""
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"
