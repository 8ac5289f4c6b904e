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
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.certificates import Certificate, make_certificate
from tests.support.programs import find_program
from tests.support.registry import TokenAuth
from tests.support.servers import LoopbackServer, QuietHandler


@dataclass(frozen=True)
class TokenRequest:
    """What a client asked the token server for, and what came of it.

    Attributes:
        grant: The `grant_type` of an OAuth2 request, which is a POST; None for a GET.
    """

    scopes: tuple[str, ...]
    service: str
    user: str | None
    status: int
    granted: tuple[dict[str, Any], ...] = ()
    grant: str | None = None


#: The fields of an answer that hold a token: with the token itself, or empty.
_FIELDS = {
    "both": {"token": True, "access_token": True},
    "token": {"token": True},
    "access_token": {"access_token": True},
    "empty-token": {"token": False, "access_token": True},
    "empty-access": {"token": True, "access_token": False},
}


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
        clock_offset_s: float | None = None,
        fields: str = "both",
        identity_token: str | None = None,
        certificate: Certificate | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        """Prepare the server.

        Args:
            user: The one user there is.
            password: That user's password.
            anonymous_pull: Grant pulling to clients without credentials, which otherwise get 401.
            refused: Repositories for which nothing is ever granted.
            lifetime: Seconds until a token expires. docker-registry goes on accepting a token for 60
                seconds after that, so a token that it refuses after 2 seconds has a lifetime of -58.
            clock_offset_s: How far its clock is ahead. Answers then tell when the token was issued (`issued_at`).
            fields: Where the token is: in "both" of the fields, in "token" or "access_token" alone, or with the
                other field there and empty: "empty-token", "empty-access". Answers to POST have no `token` with
                "both", as OAuth2 has none.
            identity_token: Take POST with this refresh token, or with user and password (`grant_type=password`),
                whose answer holds it. Without it POST is answered by 405.
            certificate: Serve https with this certificate.
            address: Where to listen; `::1` for IPv6.
        """
        self.service = "test-registry"
        self.issuer = "test-issuer"
        self.requests: list[TokenRequest] = []
        self.lifetime = lifetime
        self.clock_offset_s = clock_offset_s
        self.identity_token = identity_token
        self._fields = _FIELDS[fields]
        self._oauth_fields = _FIELDS["access_token" if fields == "both" else fields]
        self._credentials = (user, password)
        self._anonymous_pull = anonymous_pull
        self._refused = frozenset(refused)
        self._signing = _signing_key(Path(_keys().name))
        server = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:  # noqa: N802 - the name http.server wants
                server._answer(self)

            def do_POST(self) -> None:  # noqa: N802 - the name http.server wants
                server._answer_oauth(self)

        super().__init__(Handler, certificate=certificate, address=address)

    @property
    def realm(self) -> str:
        """Address where clients ask for tokens."""
        return f"{self.origin}/token"

    @property
    def auth(self) -> TokenAuth:
        """What a registry needs to know to trust this server."""
        return TokenAuth(self.realm, self.service, self.issuer, self._signing.cert)

    def _answer(self, handler: QuietHandler) -> None:
        query = parse_qs(urlsplit(handler.path).query)
        user, allowed = self._check(handler.headers.get("Authorization"))
        self._decide(handler, query, user, None, allowed=allowed)

    def _answer_oauth(self, handler: QuietHandler) -> None:
        form = parse_qs(handler.rfile.read(int(handler.headers.get("Content-Length", 0))).decode())
        grant = form.get("grant_type", [""])[0]
        if self.identity_token is None:
            self._refuse(handler, HTTPStatus.METHOD_NOT_ALLOWED, form, None, grant)
        elif grant == "refresh_token":
            allowed = form.get("refresh_token") == [self.identity_token]
            self._decide(handler, form, self._credentials[0] if allowed else None, grant, allowed=allowed)
        elif grant == "password":
            given = tuple(form.get(name, [""])[0] for name in ("username", "password"))
            self._decide(handler, form, given[0], grant, allowed=given == self._credentials)
        else:
            self._refuse(handler, HTTPStatus.BAD_REQUEST, form, None, grant)

    def _decide(
        self, handler: QuietHandler, asked: dict[str, list[str]], user: str | None, grant: str | None, *, allowed: bool
    ) -> None:
        if not allowed:
            self._refuse(handler, HTTPStatus.UNAUTHORIZED, asked, user, grant)
            return
        scopes = _scopes(asked)
        granted = tuple(self._grant(scope, anonymous=user is None) for scope in scopes)
        token = self.issue(granted, user or "")
        service = asked.get("service", [""])[0]
        self.requests.append(TokenRequest(scopes, service, user, HTTPStatus.OK, granted, grant))
        fields = self._fields if grant is None else self._oauth_fields
        # Clients are told at least the minute that the protocol guarantees, whatever the token itself says.
        answer: dict[str, Any] = {name: token if full else "" for name, full in fields.items()}
        answer["expires_in"] = max(self.lifetime, 60)
        if self.clock_offset_s is not None:
            issued = datetime.fromtimestamp(self._now(), UTC)
            answer["issued_at"] = issued.isoformat(timespec="seconds").replace("+00:00", "Z")
        if grant is not None:
            answer["scope"] = " ".join(scopes)
            answer["refresh_token"] = self.identity_token
        handler.reply(HTTPStatus.OK, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _refuse(
        self, handler: QuietHandler, status: int, asked: dict[str, list[str]], user: str | None, grant: str | None
    ) -> None:
        service = asked.get("service", [""])[0]
        self.requests.append(TokenRequest(_scopes(asked), service, user, status, grant=grant))
        code, message = ("UNAUTHORIZED", "access denied") if status == HTTPStatus.UNAUTHORIZED else ("UNSUPPORTED", "")
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        handler.reply(status, body, {"Content-Type": "application/json"})

    def _now(self) -> float:
        return time.time() + (self.clock_offset_s or 0)

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
        now = int(self._now())
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
            [find_program("openssl"), "dgst", "-sha256", "-sign", self._signing.key],
            input=content.encode(),
            capture_output=True,
            check=True,
        )
        return f"{content}.{_base64url(signed.stdout)}"

    def _certificate_text(self) -> str:
        return base64.b64encode(ssl.PEM_cert_to_DER_cert(self._signing.cert.read_text())).decode()


@cache
def _keys() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tokens-")


@cache
def _signing_key(directory: Path) -> Certificate:
    """Make the key of all token servers of this process, since making one takes long."""
    return make_certificate(directory)


def _scopes(asked: dict[str, list[str]]) -> tuple[str, ...]:
    # Clients repeat the parameter or put several scopes into one, separated by spaces.
    return tuple(scope for value in asked.get("scope", []) for scope in value.split())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
