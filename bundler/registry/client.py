"""One registry endpoint: requests with authorization, retries and the registry's own error words.

Knows nothing of images; :mod:`bundler.registry.repository` does.

Source: distribution-spec, "API" and "Error Codes".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import IO, cast
from urllib.parse import urlencode, urlsplit

from bundler.errors import (
    AirgapSyncError,
    BodyTooLargeError,
    ConnectionFailedError,
    DeniedError,
    MediaTypeRefusedError,
    ProxyCredentialsError,
    RegistryUnavailableError,
    RepositoryUnknownError,
    ServerError,
    TlsWantedError,
    TooManyRequestsError,
    UnexpectedAnswerError,
)
from bundler.net import Http, Response
from bundler.net.tls import speaks_tls
from bundler.registry.answer import read_error, retry_after_s
from bundler.registry.auth import Authorizer
from bundler.registry.body import UploadBody
from bundler.registry.endpoint import Endpoint
from bundler.registry.host import Host, Hosts
from bundler.registry.retry import retrying
from bundler.registry.token import Scope
from bundler.url import origin, redact, same_origin

#: A body from this size on is worth a token of its own: it must not be refused after it was sent.
LARGE_BODY_BYTES = 16 * 1024 * 1024


class RegistryClient:
    """Talks to one endpoint; safe to share between threads.

    Args:
        endpoint: Where it is and who we are.
        http: The shared HTTP sessions.
        hosts: The hosts of this run; of its own if none are given.
    """

    def __init__(self, endpoint: Endpoint, http: Http, hosts: Hosts | None = None) -> None:
        self.endpoint = endpoint
        self._http = http
        self._hosts = hosts or Hosts()
        self.authorizer = Authorizer(endpoint, http, self._hosts)
        #: What all clients of this host share.
        self.host: Host = self._hosts.at(origin(endpoint.api_url))

    def url(self, path: str, query: Mapping[str, str] | None = None) -> str:
        """Return the URL of an API path such as ``library/busybox/tags/list``."""
        fields = dict(query or {})
        if self.endpoint.namespace:
            fields["ns"] = self.endpoint.namespace
        return f"{self.endpoint.api_url}/{path}" + (f"?{urlencode(fields)}" if fields else "")

    def check_api(self) -> None:
        """Make sure that this is a registry and that it knows us.

        Source: distribution-spec, "Determining Support": GET /v2/.

        Raises:
            AuthError: Refused.
            UnexpectedAnswerError: Something else answers here.
        """

        def operation() -> None:
            response = self.send("GET", self.url(""), scopes=(), accept=(HTTPStatus.OK, HTTPStatus.NOT_FOUND))
            page = response.headers.get("Content-Type", "").startswith("text/html")
            response.close()
            if page or response.status == HTTPStatus.NOT_FOUND:
                what = "a web page" if page else "404"
                raise UnexpectedAnswerError(
                    f"{redact(response.url)} answered {what}: this is not a registry",
                    hint="Check the host and port of the target, and that no proxy or login page stands before it.",
                )

        retrying(operation)

    def send(
        self,
        method: str,
        url: str,
        *,
        scopes: tuple[Scope, ...],
        accept: tuple[int, ...],
        headers: Mapping[str, str] | None = None,
        body: bytes | UploadBody | None = None,
        read_s: float | None = None,
    ) -> Response:
        """Send one request, once more after a 401, and return an answer whose status is in ``accept``.

        Args:
            method: The HTTP method.
            url: From :meth:`url`, or an upload Location. Credentials go along only to the endpoint's own origin.
            scopes: The rights that the request needs.
            accept: The statuses that the caller understands.
            headers: More headers.
            body: Bytes, or part of a blob.
            read_s: Seconds to wait for the answer, where the usual are too few.

        Raises:
            AuthError: Refused.
            RegistryUnavailableError: Not reachable, or another answer than those accepted.
        """
        large = isinstance(body, UploadBody) and len(body) >= LARGE_BODY_BYTES
        path = urlsplit(url).path
        # The path of an upload is another one each time.
        what = f"{method} {scopes[0].repository}" if scopes and "/uploads/" in path else f"{method} {path}"
        if not same_origin(url, self.endpoint.api_url):
            self._hosts.at(origin(url)).ready()
        with self._minding(what):
            response = self._once(method, url, scopes, headers, body, read_s, large=large)
            # A 401 of another host, met through a redirect or an upload Location, is not this registry's challenge.
            own = same_origin(response.url, self.endpoint.api_url)
            if (
                response.status == HTTPStatus.UNAUTHORIZED
                and own
                and self.authorizer.challenged(response, scopes, response.authorization)
            ):
                response.close()
                if isinstance(body, UploadBody):
                    body.seek(0)
                response = self._once(method, url, scopes, headers, body, read_s, large=False)
        return self._judged(method, response, accept, what)

    def send_once(self, method: str, url: str, scopes: tuple[Scope, ...]) -> None:
        """Send a request whose outcome does not matter, and ignore it."""
        try:
            self._once(method, url, scopes, None, None, None, large=False).close()
        except AirgapSyncError:
            return

    def call_api(
        self, method: str, path: str, *, accept: tuple[int, ...], body: bytes | None = None, anonymous: bool = False
    ) -> Response:
        """Send one request to another API of this host, with the user's own name and password.

        Args:
            method: The HTTP method.
            path: With its leading slash, and its query.
            accept: The statuses that the caller understands.
            body: A JSON document.
            anonymous: Do not say who we are.

        Raises:
            AuthError: Refused.
            RegistryUnavailableError: Not reachable, or another answer than those accepted.
        """
        scheme, host = urlsplit(self.endpoint.api_url)[:2]
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if not anonymous and (authorization := self.authorizer.basic_header()):
            headers["Authorization"] = authorization

        what = f"{method} {path}"

        def operation() -> Response:
            with self._minding(what):
                response = self._http.request(
                    method, f"{scheme}://{host}{path}", headers=headers, body=body, tls=self.endpoint.tls
                )
            return self._judged(method, response, accept, what)

        # What makes something new is not done twice.
        return operation() if method == "POST" else retrying(operation)

    def allows(self, scope: Scope) -> bool | None:
        """Tell whether we have a right, before it is needed; None if that cannot be told beforehand.

        Raises:
            AuthError: The token realm refuses us.
            RegistryUnavailableError: The token realm cannot be reached.
        """

        def operation() -> bool | None:
            with self._minding(f"token for {scope}"):
                return self.authorizer.allows(scope)

        return retrying(operation)

    @contextmanager
    def _minding(self, what: str) -> Iterator[None]:
        """Ask the host only when its state allows it, and let that state learn from what fails."""
        with self.host.slot():
            # Not before: while this one waited for its turn, the host may have asked another for a pause.
            self.host.ready()
            with self._learning(what):
                yield

    @contextmanager
    def _learning(self, what: str) -> Iterator[None]:
        try:
            yield
        except ConnectionFailedError as error:
            # A host that a redirect or a Location led to says nothing of this one.
            if there := error.context.get("url"):
                self._hosts.at(origin(there)).unreachable(error)
                if not same_origin(there, self.endpoint.api_url):
                    error.hint = _ELSEWHERE.format(self.host.name)
            raise
        except RegistryUnavailableError as error:
            if error.retryable:
                self.host.troubled()
            # A token realm may ask for a pause as well.
            self.host.judge(error, what)
            raise

    def _judged(self, method: str, response: Response, accept: tuple[int, ...], what: str) -> Response:
        """Return an answer whose status the caller understands; raise what any other means."""
        if not same_origin(response.url, self.endpoint.api_url):
            self._hosts.at(origin(response.url)).reached()
        self.host.answered(response.status, response.headers, what)
        if response.status in accept:
            return response
        with self._learning(what):
            raise self._error(method, response)

    def _once(
        self,
        method: str,
        url: str,
        scopes: tuple[Scope, ...],
        headers: Mapping[str, str] | None,
        body: bytes | UploadBody | None,
        read_s: float | None,
        *,
        large: bool,
    ) -> Response:
        sent = dict(headers or {})
        own = same_origin(url, self.endpoint.api_url)
        authorization = self.authorizer.header(scopes, fresh=large) if own else None
        if authorization:
            sent["Authorization"] = authorization
        tls = self.endpoint.tls if own else self.endpoint.tls.abroad()
        content = cast("bytes | IO[bytes] | None", body)
        if not (authorization or "").startswith("Basic "):
            return self._http.request(method, url, headers=sent, body=content, tls=tls, read_s=read_s)
        with self.authorizer.trial():
            response = self._http.request(method, url, headers=sent, body=content, tls=tls, read_s=read_s)
            if same_origin(response.url, self.endpoint.api_url):
                self.authorizer.tried(response.status)
        return response

    def _error(self, method: str, response: Response) -> AirgapSyncError:
        status, where = response.status, redact(response.url) + response.through
        own = same_origin(response.url, self.endpoint.api_url)
        found = read_error(response.excerpt())
        context = {"status": status, "code": found.code, "request_id": response.headers.get("X-Request-Id", "")[:80]}
        context = {key: value for key, value in context.items() if value}
        request = f" (X-Request-ID {context['request_id']})" if "request_id" in context else ""
        message = f"{method} {where} answered {status}" + (f": {found.words}" if found.words else "") + request
        if status == HTTPStatus.UNAUTHORIZED and own:
            return self.authorizer.refused((found.words or f"{method} {where}") + request, context)
        if status == HTTPStatus.FORBIDDEN:
            return DeniedError(message, context=context)
        if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            pause_s = retry_after_s(response.headers)
            message += f"; it asks to wait {pause_s:.0f} s" if pause_s else ""
            kind = TooManyRequestsError if status == HTTPStatus.TOO_MANY_REQUESTS else ServerError
            return kind(message, context={**context, "retry_after_s": pause_s})
        if status == HTTPStatus.NOT_FOUND and found.code in _NO_REPOSITORY:
            return RepositoryUnknownError(message, context=context)
        if known := _EXPLAINED.get(status):
            return known(message, context=context)
        _, host, port = origin(response.url)
        if (
            status == HTTPStatus.BAD_REQUEST
            and response.url.startswith("http:")
            and not response.through
            and speaks_tls(host, port)
        ):
            return TlsWantedError(f"{host}:{port} speaks TLS, and was asked by plain HTTP", context=context)
        hint = _HINTS.get(status)
        return UnexpectedAnswerError(message, hint=hint, context=context)


_ELSEWHERE = (
    "{} leads there, by a redirect, a Location or its token realm. If it should not, its own address is set wrongly: "
    "check external_url of Harbor, and Host and X-Forwarded-Proto in the proxy before it."
)
_NO_REPOSITORY = ("NAME_UNKNOWN", "RepositoryNotFoundException")
_EXPLAINED: Mapping[int, type[AirgapSyncError]] = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: BodyTooLargeError,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: MediaTypeRefusedError,
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: ProxyCredentialsError,
}
_HINTS: Mapping[int, str] = {
    HTTPStatus.METHOD_NOT_ALLOWED: "The registry may be read-only, or a cache of another registry; it takes no pushes.",
}
