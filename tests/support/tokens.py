"""A token server, as registries with bearer authentication send their clients to."""

import base64
import json
import ssl
import subprocess
import tempfile
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.certificates import make_certificate
from tests.support.programs import find_program
from tests.support.registry import TokenAuth
from tests.support.servers import LoopbackServer, QuietHandler


@dataclass(frozen=True)
class TokenRequest:
    """What a client asked the token server for, and what came of it."""

    scopes: tuple[str, ...]
    service: str
    user: str | None
    status: int
    granted: tuple[dict[str, Any], ...] = ()


class TokenServer(LoopbackServer):
    """Issues signed tokens for exactly the scopes a client asks for.

    Start it before the registry that trusts it, and give the registry its `auth`.
    """

    def __init__(
        self,
        user: str = "alice",
        password: str = "wonderland",  # noqa: S107 - opens nothing but this server
        *,
        anonymous_pull: bool = False,
        refused: Collection[str] = (),
        lifetime: int = 300,
    ) -> None:
        """Prepare the server.

        Args:
            user: The one user there is.
            password: That user's password.
            anonymous_pull: Grant pulling to clients without credentials, which otherwise get 401.
            refused: Repositories for which nothing is ever granted.
            lifetime: Seconds until a token expires. docker-registry goes on accepting a token for 60
                seconds after that, so a token that it refuses after 2 seconds has a lifetime of -58.
        """
        self.service = "test-registry"
        self.issuer = "test-issuer"
        self.requests: list[TokenRequest] = []
        self.lifetime = lifetime
        self._credentials = (user, password)
        self._anonymous_pull = anonymous_pull
        self._refused = frozenset(refused)
        self._directory = tempfile.TemporaryDirectory(prefix="tokens-")
        self._certificate = make_certificate(Path(self._directory.name))
        server = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:  # noqa: N802 - the name http.server wants
                server._answer(self)

        super().__init__(Handler)

    @property
    def realm(self) -> str:
        """Address where clients ask for tokens."""
        return f"http://{self.host}/token"

    @property
    def auth(self) -> TokenAuth:
        """What a registry needs to know to trust this server."""
        return TokenAuth(self.realm, self.service, self.issuer, self._certificate.cert)

    def stop(self) -> None:
        """Stop serving and forget the key."""
        super().stop()
        self._directory.cleanup()

    def _answer(self, handler: QuietHandler) -> None:
        query = parse_qs(urlsplit(handler.path).query)
        # Clients repeat the parameter or put several scopes into one, separated by spaces.
        scopes = tuple(scope for value in query.get("scope", []) for scope in value.split())
        service = query.get("service", [""])[0]
        user, allowed = self._check(handler.headers.get("Authorization"))
        if not allowed:
            self.requests.append(TokenRequest(scopes, service, user, HTTPStatus.UNAUTHORIZED))
            body = json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "access denied"}]}).encode()
            handler.reply(HTTPStatus.UNAUTHORIZED, body, {"Content-Type": "application/json"})
            return
        granted = tuple(self._grant(scope, anonymous=user is None) for scope in scopes)
        token = self.issue(granted, user or "")
        self.requests.append(TokenRequest(scopes, service, user, HTTPStatus.OK, granted))
        # Clients are told at least the minute that the protocol guarantees, whatever the token itself says.
        answer = {"token": token, "access_token": token, "expires_in": max(self.lifetime, 60)}
        handler.reply(HTTPStatus.OK, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _check(self, authorization: str | None) -> tuple[str | None, bool]:
        if authorization is None:
            return None, self._anonymous_pull
        kind, _, value = authorization.partition(" ")
        if kind.lower() != "basic":
            return None, False
        user, _, password = base64.b64decode(value).decode().partition(":")
        return user, (user, password) == self._credentials

    def _grant(self, scope: str, *, anonymous: bool) -> dict[str, Any]:
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        granted = [] if name in self._refused else actions.split(",")
        if anonymous:
            granted = [action for action in granted if action == "pull"]
        return {"type": kind, "name": name, "actions": granted}

    def issue(self, access: Collection[dict[str, Any]], user: str) -> str:
        """Sign a token that grants the given access."""
        now = int(time.time())
        head = {"typ": "JWT", "alg": "RS256", "x5c": [self._certificate_text()]}
        claims = {
            "iss": self.issuer,
            "sub": user,
            "aud": self.service,
            "exp": now + self.lifetime,
            "nbf": now - 600,
            "iat": now - 600,
            "jti": uuid.uuid4().hex,
            "access": list(access),
        }
        content = ".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        # openssl signs because no Python library among the project's dependencies can.
        signed = subprocess.run(
            [find_program("openssl"), "dgst", "-sha256", "-sign", self._certificate.key],
            input=content.encode(),
            capture_output=True,
            check=True,
        )
        return f"{content}.{_base64url(signed.stdout)}"

    def _certificate_text(self) -> str:
        return base64.b64encode(ssl.PEM_cert_to_DER_cert(self._certificate.cert.read_text())).decode()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
