"""One registry endpoint: requests with authorization, retries and the registry's own error words.

Knows nothing of images; :mod:`bundler.registry.repository` does.

Source: distribution-spec, "API" and "Error Codes".
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import IO, TypeVar
from urllib.parse import urlencode

from bundler.errors import (
    AirgapSyncError,
    ConnectionFailedError,
    DeniedError,
    ServerError,
    TooManyRequestsError,
    UnexpectedAnswerError,
    one_line,
)
from bundler.net import Http, Response, number
from bundler.registry.auth import Authorizer, Scope
from bundler.registry.endpoint import Endpoint
from bundler.registry.retry import retrying
from bundler.url import redact, same_origin

Result = TypeVar("Result")


#: How long a host that could not be connected to is left alone.
QUIET_S = 10.0


class RegistryClient:
    """Talks to one endpoint; safe to share between threads.

    Args:
        endpoint: Where it is and who we are.
        http: The shared HTTP sessions.
    """

    def __init__(self, endpoint: Endpoint, http: Http) -> None:
        self.endpoint = endpoint
        self._http = http
        self._authorizer = Authorizer(endpoint, http)
        #: The last failure to connect, while no later request got through.
        self.unreachable: ConnectionFailedError | None = None
        self._ask_again = 0.0

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

        self.retrying(operation)

    def send(
        self,
        method: str,
        url: str,
        *,
        scopes: tuple[Scope, ...],
        accept: tuple[int, ...],
        headers: Mapping[str, str] | None = None,
        body: bytes | IO[bytes] | None = None,
        read_s: float | None = None,
    ) -> Response:
        """Send one request, once more after a 401, and return an answer whose status is in ``accept``.

        Args:
            method: The HTTP method.
            url: From :meth:`url`, or an upload Location. Credentials go along only to the endpoint's own origin.
            scopes: The rights that the request needs.
            accept: The statuses that the caller understands.
            headers: More headers.
            body: Bytes, or a file object that can be rewound.
            read_s: Seconds to wait for the answer, where the usual are too few.

        Raises:
            AuthError: Refused.
            RegistryUnavailableError: Not reachable, or another answer than those accepted.
        """
        response = self._once(method, url, scopes, headers, body, read_s)
        # A 401 of another host, met through a redirect or an upload Location, is not this registry's challenge.
        if response.status == HTTPStatus.UNAUTHORIZED and same_origin(response.url, self.endpoint.api_url):
            self._authorizer.challenged(response, scopes, response.authorization)
            response.close()
            if body is not None and not isinstance(body, bytes):
                body.seek(0)
            response = self._once(method, url, scopes, headers, body, read_s)
        self.unreachable = None
        if response.status in accept:
            return response
        raise self._error(method, response)

    def retrying(self, operation: Callable[[], Result]) -> Result:
        """Run an operation that may be repeated as a whole, again after failures that may pass.

        Raises:
            AirgapSyncError: The last failure.
        """
        if self.unreachable and time.monotonic() < self._ask_again:
            raise self.unreachable
        try:
            return retrying(operation)
        except ConnectionFailedError as error:
            # A host that a redirect led to says nothing of this one.
            if same_origin(error.context.get("url", ""), self.endpoint.api_url):
                self.unreachable, self._ask_again = error, time.monotonic() + QUIET_S
            raise

    def _once(
        self,
        method: str,
        url: str,
        scopes: tuple[Scope, ...],
        headers: Mapping[str, str] | None,
        body: bytes | IO[bytes] | None,
        read_s: float | None,
    ) -> Response:
        sent = dict(headers or {})
        own = same_origin(url, self.endpoint.api_url)
        authorization = self._authorizer.header(scopes) if own else None
        if authorization:
            sent["Authorization"] = authorization
        return self._http.request(
            method, url, headers=sent, body=body, tls=self.endpoint.tls if own else None, read_s=read_s
        )

    def _error(self, method: str, response: Response) -> AirgapSyncError:
        status, where = response.status, redact(response.url)
        words = _registry_words(response.excerpt())
        message = f"{method} {where} answered {status}" + (f": {words}" if words else "")
        if status == HTTPStatus.UNAUTHORIZED and same_origin(response.url, self.endpoint.api_url):
            return self._authorizer.refused(words or f"{method} {where}")
        if status == HTTPStatus.FORBIDDEN:
            return DeniedError(message)
        if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            pause_s = _retry_after_s(response.headers)
            message += f"; it asks to wait {pause_s:.0f} s" if pause_s else ""
            kind = TooManyRequestsError if status == HTTPStatus.TOO_MANY_REQUESTS else ServerError
            return kind(message, context={"retry_after_s": pause_s})
        if status == HTTPStatus.BAD_REQUEST and response.url.startswith("http:"):
            return UnexpectedAnswerError(
                message, hint="If this port speaks TLS, write https:// or leave the scheme out."
            )
        return UnexpectedAnswerError(message)


def _registry_words(body: bytes) -> str:
    """Return the registry's own error code and message, or the start of a body that is not JSON, on one line."""
    try:
        errors = json.loads(body)["errors"]
        words = "; ".join(
            " ".join(str(part) for part in (item.get("code"), item.get("message"), item.get("detail")) if part)
            for item in errors
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        words = "a web page" if body.lstrip()[:1] == b"<" else body.decode(errors="replace")
    return one_line(words).strip()[:200]


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """Return the pause that a registry asks for, in seconds; 0 if it names none.

    Source: RFC 9110 section 10.2.3 (seconds or an HTTP date).
    """
    text = headers.get("Retry-After", "").strip()
    if (seconds := number(text)) is not None:
        return float(seconds)
    if text:
        from email.utils import parsedate_to_datetime  # noqa: PLC0415 - rare

        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
        except (ValueError, OverflowError):
            return 0.0
    return 0.0
