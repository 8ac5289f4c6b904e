"""Authorization for one endpoint: Basic, or Bearer tokens per repository and action.

Invariants:

- A credential goes to its own origin and to the token realm that origin names; never over plain HTTP when the
  registry itself is https.
- The scope is computed by us, not taken from the challenge: some registries answer a scope that is too small with
  a challenge of another scheme.

Source: distribution docs/spec/auth/{token,oauth,scope}.md; LIBRARIES.md lists what other clients get wrong.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from bundler.errors import (
    AuthError,
    DeniedError,
    NoCredentialsError,
    RegistryUnavailableError,
    ServerError,
    TooManyRequestsError,
    UnauthorizedError,
    UnexpectedAnswerError,
)
from bundler.net import Http, Response
from bundler.registry.challenge import Challenge, parse_challenges
from bundler.registry.endpoint import Credential, Endpoint
from bundler.url import redact, resolve

#: What an answer without ``expires_in`` means. Source: token.md, "expires_in".
DEFAULT_EXPIRY_S = 60
_MAX_TOKEN_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Scope:
    """The right to do something in one repository."""

    repository: str
    actions: str = "pull"

    def __str__(self) -> str:
        return f"repository:{self.repository}:{self.actions}"


@dataclass(frozen=True, slots=True)
class _Token:
    value: str = field(repr=False)
    good_until: float


class Authorizer:
    """Knows how one endpoint wants to be asked, and keeps its tokens; safe to share between threads."""

    def __init__(self, endpoint: Endpoint, http: Http) -> None:
        self._endpoint = endpoint
        self._http = http
        self._challenge: Challenge | None = None
        self._tokens: dict[tuple[Scope, ...], _Token] = {}
        self._lock = threading.Lock()

    def header(self, scopes: tuple[Scope, ...]) -> str | None:
        """Return the Authorization header for a request, or None while the endpoint has not asked for one.

        Raises:
            AuthError: The token realm refuses us.
            RegistryUnavailableError: The token realm cannot be reached.
        """
        challenge = self._challenge
        if challenge is None:
            return None
        if challenge.scheme == "basic":
            return self._basic()
        with self._lock:
            token = self._tokens.get(scopes)
            if token is None or token.good_until <= time.monotonic():
                token = self._tokens[scopes] = self._fetch(challenge, scopes)
        return f"Bearer {token.value}"

    def challenged(self, response: Response, scopes: tuple[Scope, ...], used: str | None) -> None:
        """Learn from a 401, so that the request can be sent once more.

        Args:
            response: The 401.
            scopes: What the request needs.
            used: The Authorization header that was refused, if there was one.

        Raises:
            AuthError: There is nothing new to try.
        """
        text = response.headers.get("WWW-Authenticate", "")
        offered = {challenge.scheme: challenge for challenge in reversed(parse_challenges(text))}
        known = self._challenge
        if used and known and known.scheme == "basic":
            raise self._refused()
        if known is not None and known.scheme == "bearer" and used:
            # Another scheme offered to a bearer request means that its scope was too small, not a change of mind.
            with self._lock:
                token = self._tokens.get(scopes)
                if token is not None and used == f"Bearer {token.value}":
                    del self._tokens[scopes]
            return
        challenge = offered.get("bearer") or offered.get("basic")
        if challenge is None:
            raise UnexpectedAnswerError(f"{redact(response.url)} answered 401 without a challenge that we know")
        if challenge.scheme == "basic" and self._endpoint.credential is None:
            raise self._refused()
        self._challenge = challenge

    def refused(self, detail: str) -> AuthError:
        """Return the error for a request that was refused although it was authorized as asked.

        A fresh token that does not do is a matter of rights: whoever issued it knew the password.
        """
        if self._endpoint.credential and self._challenge and self._challenge.scheme == "bearer":
            where = urlsplit(self._endpoint.api_url).netloc
            return DeniedError(
                f"{where} does not allow user {self._endpoint.credential.username!r} to do this: {detail}"
            )
        return self._refused(detail)

    def _refused(self, detail: str = "") -> AuthError:
        where = urlsplit(self._endpoint.api_url).netloc
        extra = f": {detail}" if detail else ""
        if self._endpoint.credential is None:
            text = f"{where} wants credentials, and there are none for it{extra}"
            return NoCredentialsError(text, hint=self._endpoint.credentials_hint)
        text = f"{where} refuses user {self._endpoint.credential.username!r}{extra}"
        return UnauthorizedError(text, hint=self._endpoint.credentials_hint)

    def _basic(self) -> str:
        credential = self._endpoint.credential
        if credential is None:
            raise self._refused()
        pair = f"{credential.username}:{credential.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"

    def _fetch(self, challenge: Challenge, scopes: tuple[Scope, ...]) -> _Token:
        """Ask the token realm."""
        realm = resolve(self._endpoint.api_url, challenge.parameters.get("realm", ""))
        credential = self._endpoint.credential
        if credential and self._endpoint.api_url.startswith("https:") and not realm.startswith("https:"):
            raise UnexpectedAnswerError(f"the token realm {redact(realm)} is not https; credentials are not sent there")
        fields = [("scope", str(scope)) for scope in scopes]
        if service := challenge.parameters.get("service"):
            fields.insert(0, ("service", service))
        if credential and credential.identity_token:
            fields += [("grant_type", "refresh_token"), ("refresh_token", credential.identity_token)]
            fields.append(("client_id", "airgap-sync"))
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            response = self._http.request(
                "POST", realm, headers=headers, body=urlencode(fields).encode(), tls=self._endpoint.tls
            )
        else:
            headers = {"Authorization": self._basic()} if credential else {}
            separator = "&" if "?" in realm else "?"
            response = self._http.request(
                "GET", f"{realm}{separator}{urlencode(fields)}", headers=headers, tls=self._endpoint.tls
            )
        return _read_token(self._answer(response, realm), realm)

    def _answer(self, response: Response, realm: str) -> bytes:
        status = response.status
        if status == HTTPStatus.OK:
            return response.read_all(_MAX_TOKEN_BYTES)
        response.close()
        where = f"the token realm {redact(realm)}"
        if status == HTTPStatus.UNAUTHORIZED:
            raise self._refused(f"{where} answered 401")
        if status == HTTPStatus.FORBIDDEN:
            raise DeniedError(f"{where} answered 403")
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            raise TooManyRequestsError(f"{where} answered 429")
        raise ServerError(f"{where} answered {status}")


def _read_token(body: bytes, realm: str) -> _Token:
    try:
        document: Any = json.loads(body)
        value = str(document.get("token") or document["access_token"])
        lifetime = float(document.get("expires_in") or DEFAULT_EXPIRY_S)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise RegistryUnavailableError(f"the token realm {redact(realm)} answered without a token") from error
    margin = max(5.0, lifetime * 0.2)
    return _Token(value, time.monotonic() + max(1.0, lifetime - margin))


class DockerConfig:
    """Credentials from docker's config.json, its helpers and stores included.

    Args:
        path: The file; it may be absent.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._config: Any = None

    def lookup(self, host: str) -> Credential | None:
        """Return the credential for a registry host (``docker.io`` for Docker Hub), if there is one.

        Raises:
            NoCredentialsError: The file or a credential helper that it names is broken.
        """
        if not self._path.is_file():
            return None
        import docker.auth  # noqa: PLC0415 - 100 ms that only a user with such a file pays
        import docker.errors  # noqa: PLC0415

        with self._lock:
            try:
                if self._config is None:
                    # docker's own reader takes a broken file for an empty one.
                    json.loads(self._path.read_bytes())
                    self._config = docker.auth.load_config(str(self._path))
                found = self._config.resolve_authconfig(host)
            except (docker.errors.DockerException, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                # Only the kind: the text of an error about a credential may quote it.
                raise NoCredentialsError(
                    f"the credentials for {host} in {self._path} cannot be read: {type(error).__name__}",
                    hint="Repair the file or its credential helper, or log in again.",
                ) from error
        if not found:
            return None
        # Lower case from the file, capitals from a helper.
        token = found.get("identitytoken") or found.get("IdentityToken") or ""
        username = found.get("username") or found.get("Username") or ""
        password = found.get("password") or found.get("Password") or ""
        return Credential(username, password, token) if token or username else None
