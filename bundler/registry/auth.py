"""Authorization for one endpoint: Basic, or Bearer tokens per repository and action.

Invariants:

- A credential goes to its own origin and to the token realm that origin names; never over plain HTTP when the
  registry itself is https.
- The scope is computed by us, not taken from the challenge: some registries answer a scope that is too small with
  a challenge of another scheme.
- At Harbor one token serves a whole project, so there is one a project.
- Until a credential was accepted once, one request at a time shows it: many that fail in one moment lock accounts.

Source: distribution docs/spec/auth/{token,oauth,scope}.md; HARBOR: ``src/server/middleware/v2auth`` and
``src/core/service/token``.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode, urlsplit

from bundler.errors import (
    AuthError,
    DeniedError,
    NoCredentialsError,
    NotTlsError,
    ServerError,
    TooManyRequestsError,
    UnauthorizedError,
    UnexpectedAnswerError,
)
from bundler.net import Http, Response
from bundler.registry.answer import read_error, retry_after_s
from bundler.registry.challenge import Challenge, parse_challenges
from bundler.registry.endpoint import Endpoint
from bundler.registry.host import Hosts
from bundler.registry.token import Scope, Token
from bundler.url import origin, redact, resolve

#: What Harbor calls itself in its challenges.
HARBOR_SERVICE = "harbor-registry"
_MAX_TOKEN_BYTES = 1024 * 1024
_WRONG_REALM = (
    "The registry names {} as its token realm: its own address is set wrongly (external_url of Harbor, "
    "X-Forwarded-Proto in the proxy before it)."
)


class Authorizer:
    """Knows how one endpoint wants to be asked, and keeps its tokens; safe to share between threads."""

    def __init__(self, endpoint: Endpoint, http: Http, hosts: Hosts) -> None:
        self._endpoint = endpoint
        self._http = http
        self._hosts = hosts
        self._challenge: Challenge | None = None
        self._tokens: dict[tuple[object, ...], Token] = {}
        self._lock = threading.Lock()
        #: One request for one token at a time; those for different ones do not wait for each other.
        self._turns: dict[tuple[object, ...], threading.Lock] = {}
        self._wrong: UnauthorizedError | None = None
        self._accepted = False
        #: Held by whoever shows a credential that was not accepted yet.
        self._trying = threading.RLock()

    @property
    def service(self) -> str:
        """The service that the endpoint's challenge names; empty while it has not challenged us."""
        return self._challenge.parameters.get("service", "") if self._challenge else ""

    @property
    def is_harbor(self) -> bool:
        """Whether the endpoint's tokens are those of Harbor."""
        return self.service == HARBOR_SERVICE

    @property
    def was_asked(self) -> bool:
        """Whether the endpoint has asked who we are."""
        return self._challenge is not None

    def header(self, scopes: tuple[Scope, ...], *, fresh: bool = False) -> str | None:
        """Return the Authorization header for a request, or None while the endpoint has not asked for one.

        Args:
            scopes: What the request needs.
            fresh: The request takes long: use a token that is as good as new.

        Raises:
            AuthError: The token realm refuses us.
            RegistryUnavailableError: The token realm cannot be reached.
        """
        challenge = self._challenge
        if challenge is None:
            return None
        # A wrong password is not tried again and again: that locks accounts.
        if self._wrong is not None:
            raise self._wrong
        if challenge.scheme == "basic":
            return self._basic()
        return f"Bearer {self._token(challenge, scopes, fresh=fresh).value}"

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Show the credential in the block: alone, as long as nobody has accepted it.

        Raises:
            UnauthorizedError: It was found to be wrong meanwhile.
        """
        if self._accepted or self._endpoint.credential is None:
            yield
            return
        self._trying.acquire()
        alone = not self._accepted
        if not alone:
            self._trying.release()
        try:
            if self._wrong is not None:
                raise self._wrong
            yield
        finally:
            if alone:
                self._trying.release()

    def tried(self, status: int) -> None:
        """Learn from the answer to a request that showed user name and password."""
        if status == HTTPStatus.UNAUTHORIZED and not self._accepted:
            self._refused_for_good()
        elif status < HTTPStatus.BAD_REQUEST or status == HTTPStatus.NOT_FOUND:
            self._accepted = True

    def basic_header(self) -> str | None:
        """Return the Authorization header for an API that takes user name and password; None without a credential."""
        credential = self._endpoint.credential
        return self._basic() if credential and credential.username else None

    def challenged(self, response: Response, scopes: tuple[Scope, ...], used: str | None) -> bool:
        """Learn from a 401; tell whether the request is worth sending once more.

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
            # One that was accepted elsewhere may lack a right here: some registries say that with a 401.
            raise self._refused() if self._accepted else self._refused_for_good()
        if known is not None and known.scheme == "bearer" and used:
            # Another scheme, or none, offered to a bearer request means that its token was too weak or too old, not a
            # change of mind: Harbor then offers Basic, and nothing at all for a project that does not exist.
            with self._lock:
                token = self._tokens.get(self._key(scopes))
                if token is not None and used == f"Bearer {token.value}":
                    # A new one that says itself that it is too weak will be no stronger the next time.
                    weak = any(token.allows(scope, by_project=self.is_harbor) is False for scope in scopes)
                    if weak and token.is_fresh:
                        return False
                    del self._tokens[self._key(scopes)]
            return True
        challenge = offered.get("bearer") or offered.get("basic")
        if challenge is None:
            raise UnexpectedAnswerError(f"{redact(response.url)} answered 401 without a challenge that we know")
        if challenge.scheme == "basic" and self._endpoint.credential is None:
            raise self._refused()
        self._challenge = challenge
        return True

    def check_credential(self) -> None:
        """Make sure that the token realm knows our credential, by a request that asks for no right.

        A realm may answer a wrong password with a token without rights, but not if no right was asked for.

        Raises:
            UnauthorizedError: The user name or the password is wrong.
        """
        challenge = self._challenge
        if challenge is None or challenge.scheme != "bearer" or self._endpoint.credential is None:
            return
        if self._wrong is not None:
            raise self._wrong
        self._token(challenge, (), fresh=True)

    def allows(self, scope: Scope) -> bool | None:
        """Tell whether we have a right, before it is needed; None if that cannot be told beforehand.

        Raises:
            AuthError: The token realm refuses us.
            RegistryUnavailableError: The token realm cannot be reached.
        """
        challenge = self._challenge
        if challenge is None or challenge.scheme != "bearer":
            return None
        return self._token(challenge, (scope,)).allows(scope, by_project=self.is_harbor)

    def forget_tokens(self) -> None:
        """Ask for new tokens from now on: what they stand for has changed."""
        with self._lock:
            self._tokens.clear()

    def refused(self, detail: str, context: Mapping[str, Any] | None = None) -> AuthError:
        """Return the error for a request that was refused although it was authorized as asked.

        A wrong password and a missing right can look the same here, so the token realm is asked which it is.
        """
        credential = self._endpoint.credential
        if credential is None or self._challenge is None or self._challenge.scheme != "bearer":
            return self._refused(detail, context)
        try:
            self.check_credential()
        except AuthError as error:
            return error
        where = urlsplit(self._endpoint.api_url).netloc
        return DeniedError(
            f"{where} knows {_who(credential.username)}, and does not allow this: {detail}", context=dict(context or {})
        )

    def _refused(self, detail: str = "", context: Mapping[str, Any] | None = None) -> AuthError:
        where = urlsplit(self._endpoint.api_url).netloc
        extra = f" ({detail})" if detail else ""
        if self._endpoint.credential is None:
            text = f"{where} wants credentials, and there are none for it{extra}"
            return NoCredentialsError(text, hint=self._endpoint.credentials_hint, context=dict(context or {}))
        credential = self._endpoint.credential
        source = f" (from {credential.source})" if credential.source else ""
        why = "it is wrong or has expired" if credential.identity_token else "wrong user name or password"
        text = f"{where} refuses {_who(credential.username)}{source}: {why}{extra}"
        return UnauthorizedError(text, hint=self._endpoint.credentials_hint, context=dict(context or {}))

    def _refused_for_good(self, detail: str = "", context: Mapping[str, Any] | None = None) -> AuthError:
        """Return the error for a credential that is wrong, whatever is asked for with it."""
        error = self._refused(detail, context)
        if isinstance(error, UnauthorizedError):
            self._wrong = error
        return error

    def _basic(self) -> str:
        credential = self._endpoint.credential
        if credential is None:
            raise self._refused()
        pair = f"{credential.username}:{credential.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"

    def _key(self, scopes: tuple[Scope, ...]) -> tuple[object, ...]:
        """Return what a token is kept under: the rights themselves, or at Harbor the projects that they lie in."""
        if not self.is_harbor:
            return scopes
        # Harbor's answer has all rights of the account there, whichever were asked for.
        return tuple(sorted({scope.repository.partition("/")[0] for scope in scopes}))

    def _token(self, challenge: Challenge, scopes: tuple[Scope, ...], *, fresh: bool = False) -> Token:
        key = self._key(scopes)
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
        with self.trial(), turn:
            if self._wrong is not None:
                raise self._wrong
            token = self._tokens.get(key)
            if token is None or not (token.is_fresh if fresh else token.is_good):
                token = self._fetch(challenge, scopes)
                self._accepted = True
                with self._lock:
                    self._tokens[key] = token
        return token

    def _fetch(self, challenge: Challenge, scopes: tuple[Scope, ...]) -> Token:
        """Ask the token realm."""
        realm = resolve(self._endpoint.api_url, challenge.parameters.get("realm", ""))
        credential = self._endpoint.credential
        own = urlsplit(realm).hostname == urlsplit(self._endpoint.api_url).hostname
        tls = self._endpoint.tls if own else self._endpoint.tls.abroad()
        if credential and self._endpoint.api_url.startswith("https:") and not realm.startswith("https:"):
            raise UnexpectedAnswerError(
                f"the token realm {redact(realm)} is not https; credentials are not sent there",
                hint=_WRONG_REALM.format(redact(realm)),
            )
        fields = [("scope", str(scope)) for scope in scopes]
        if service := challenge.parameters.get("service"):
            fields.insert(0, ("service", service))
        if credential and credential.identity_token:
            form = [*fields, ("grant_type", "refresh_token"), ("refresh_token", credential.identity_token)]
            form.append(("client_id", "airgap-sync"))
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            method, url, body = "POST", realm, urlencode(form).encode()
        else:
            headers = {"Authorization": self._basic()} if credential else {}
            separator = "&" if "?" in realm else "?"
            method, url, body = "GET", f"{realm}{separator}{urlencode(fields)}" if fields else realm, None
        host = self._hosts.at(origin(realm))
        host.ready()
        try:
            response = self._http.request(method, url, headers=headers, body=body, tls=tls)
        except NotTlsError as error:
            error.hint = _WRONG_REALM.format(redact(realm))
            raise
        host.reached()
        if response.status == HTTPStatus.UNAUTHORIZED and scopes and credential:
            # Some realms say so of a right as well; of a request for none they can only mean the password.
            response.close()
            self.check_credential()
            raise DeniedError(f"the token realm {redact(realm)} answered 401 to {', '.join(map(str, scopes))}")
        return Token.from_answer(self._answer(response, realm), realm)

    def _answer(self, response: Response, realm: str) -> bytes:
        status = response.status
        if status == HTTPStatus.OK:
            return response.read_all(_MAX_TOKEN_BYTES)
        found = read_error(response.excerpt())
        request = response.headers.get("X-Request-Id", "")[:80]
        context: dict[str, Any] = {"status": status, "code": found.code, "request_id": request}
        context = {key: value for key, value in context.items() if value}
        text = f"the token realm {redact(realm)} answered {status}" + (f": {found.words}" if found.words else "")
        text += f" (X-Request-ID {request})" if request else ""
        if status == HTTPStatus.UNAUTHORIZED:
            raise self._refused_for_good(text, context)
        if status == HTTPStatus.FORBIDDEN:
            raise DeniedError(text, context=context)
        pause = {**context, "retry_after_s": retry_after_s(response.headers)}
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            raise TooManyRequestsError(text, context=pause)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise ServerError(text, context=pause)
        if self._endpoint.credential and self._endpoint.credential.identity_token:
            raise self._refused_for_good(text, context)
        raise UnexpectedAnswerError(text, context=context)


def _who(username: str) -> str:
    return f"user {username!r}" if username else "the identity token"
