"""Requests and their answers: redirects by our own rules, bodies as they were sent. The package says what holds."""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import IO, Any, Self
from urllib.parse import urlsplit

import requests
import urllib3

from bundler.errors import AirgapSyncError, BadManifestError, ConnectionFailedError, UnexpectedAnswerError
from bundler.net.failure import translated, wants_login
from bundler.net.proxy import Proxies, through
from bundler.net.session import Session
from bundler.net.tls import Tls, context_for
from bundler.url import check_url, redact, resolve, same_origin

logger = logging.getLogger(__name__)

MAX_REDIRECTS = 5
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WORTH_DRAINING_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to wait for a connection, and for each next piece of an answer."""

    connect_s: float = 10.0
    read_s: float = 60.0


@dataclass(slots=True)
class Response:
    """An answer whose body has not been read yet; close it, or use it in ``with``."""

    status: int
    headers: Mapping[str, str]
    url: str
    #: The Authorization header that the answered request carried, if it carried one.
    authorization: str | None = field(repr=False)
    raw: Any = field(repr=False)
    _inner: requests.Response = field(repr=False)
    #: What a message says of the way it came, after the URL.
    through: str = ""

    def read(self, size: int) -> bytes:
        """Return up to ``size`` raw bytes of the body, as many as are there, empty at its end.

        What has arrived is never held back for more, so nothing is lost when the connection breaks.

        Raises:
            BrokenConnectionError: The body ended early or the connection broke.
            TimedOutError: Nothing came for the read timeout.
        """
        with translated(self.url):
            data: bytes = self.raw.read1(size, decode_content=False)
            return data

    def read_all(self, limit: int) -> bytes:
        """Return the whole body and close the answer.

        Raises:
            BadManifestError: It is longer than ``limit`` bytes.
        """
        with self:
            data = bytearray()
            while chunk := self.read(min(65536, limit + 1 - len(data))):
                data += chunk
                if len(data) > limit:
                    raise BadManifestError(f"{redact(self.url)} answered with more than {limit} bytes")
            return bytes(data)

    def excerpt(self, limit: int = 8192) -> bytes:
        """Return the start of an error body for a message, whatever happens, and close the answer."""
        with self:
            try:
                return self.read(limit)
            except AirgapSyncError:
                return b""

    def close(self) -> None:
        """Give the connection back if little or nothing of the body is left, else drop it."""
        length = number(self.headers.get("Content-Length", ""))
        small = length is not None and length <= _WORTH_DRAINING_BYTES
        if self._inner.request.method == "HEAD" or small:
            self.raw.drain_conn()
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Http:
    """Sends requests; safe to share between threads.

    Args:
        timeouts: How long to wait.
        proxies: Where not to ask directly.
        tls: How to trust servers for which nothing else is said.
    """

    def __init__(
        self, timeouts: Timeouts | None = None, proxies: Proxies | None = None, tls: Tls | None = None
    ) -> None:
        self._timeouts = timeouts or Timeouts()
        self._proxies = proxies or Proxies()
        self._tls = tls or Tls()
        self._local = threading.local()
        self._sessions: list[Session] = []
        self._unverified: set[str] = set()
        self._lock = threading.Lock()

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | IO[bytes] | None = None,
        tls: Tls | None = None,
        public_only: bool = False,
        read_s: float | None = None,
    ) -> Response:
        """Send one request and follow its redirects.

        Args:
            method: The HTTP method.
            url: An absolute http or https URL.
            headers: Sent as given; ``Authorization`` only to the URL's own origin.
            body: Bytes, or a seekable file object with a length, which is rewound for a redirect.
            tls: How to trust the server, also after a redirect to another host.
            public_only: Refuse every hop that is not https to a public address: for URLs that content names.
            read_s: Seconds to wait for the answer, where the usual are too few.

        Raises:
            ConnectionFailedError: No connection.
            BrokenConnectionError: The connection broke.
            TimedOutError: No answer in time.
            TlsError: TLS could not be set up.
            UnexpectedAnswerError: A redirect that must not be followed.
        """
        sent = dict(headers or {})
        check_url(url)
        for _ in range(MAX_REDIRECTS + 1):
            if public_only:
                _check_public(url)
            response = self._send(method, url, sent, body, tls, read_s)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return response
            response.close()
            target = resolve(url, location)
            _check_redirect(url, target)
            if not same_origin(url, target):
                if isinstance(body, bytes) and body:
                    # A form may hold a token, and a manifest has no business elsewhere.
                    raise UnexpectedAnswerError(f"{redact(url)} redirects a {method} to another host")
                sent.pop("Authorization", None)
                tls = tls.abroad() if tls else None
            if response.status in (301, 302, 303) and method not in ("GET", "HEAD"):
                raise UnexpectedAnswerError(f"{redact(url)} answered {method} with a redirect that drops the body")
            if body is not None and not isinstance(body, bytes):
                body.seek(0)
            url = target
        raise UnexpectedAnswerError(f"{redact(url)}: more than {MAX_REDIRECTS} redirects")

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for session in self._sessions:
                session.close()
            self._sessions.clear()

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | IO[bytes] | None,
        tls: Tls | None,
        read_s: float | None,
    ) -> Response:
        tls = tls or self._tls
        if tls.skip_verify and url.startswith("https:"):
            self._say_unverified(url)
        proxy = self._proxies.proxy_for(url)
        session = self._session()
        session.adapter.context = context_for(tls) if url.startswith("https:") else None
        with translated(url, proxy):
            inner = session.request(
                method,
                url,
                headers={"Accept-Encoding": "identity", **headers},
                data=body,
                stream=True,
                allow_redirects=False,
                timeout=(self._timeouts.connect_s, max(read_s or 0.0, self._timeouts.read_s)),
                proxies={"http": proxy, "https": proxy} if proxy else {},
            )
        if proxy and inner.status_code == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            inner.close()
            raise wants_login(url, proxy)
        used = headers.get("Authorization")
        return Response(inner.status_code, inner.headers, url, used, inner.raw, inner, through(proxy))

    def _say_unverified(self, url: str) -> None:
        host = urlsplit(url).netloc
        with self._lock:
            if host in self._unverified:
                return
            self._unverified.add(host)
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        logger.warning(
            "the certificate of %s is NOT verified: whoever is between here and there can read the password", host
        )

    def _session(self) -> Session:
        session: Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = Session(self._timeouts.read_s)
            with self._lock:
                self._sessions.append(session)
        return session


def number(text: str) -> int | None:
    """Return a header's non-negative number; None if it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None  # noqa: PLR2004 - 64 bits


def _check_public(url: str) -> None:
    """Refuse a URL that could make us ask a machine of the inner network something."""
    parts = urlsplit(url)
    if parts.scheme != "https":
        raise UnexpectedAnswerError(f"{redact(url)} is not https, so it is not asked")
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConnectionFailedError(f"the host name in {redact(url)} does not resolve") from error
    if not all(_is_public(str(address[4][0]).partition("%")[0]) for address in found):
        raise UnexpectedAnswerError(f"{redact(url)} lies at a private address, so it is not asked")


def _is_public(text: str) -> bool:
    """Tell whether an address lies in the public internet, also where one of IPv4 is wrapped in one of IPv6."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None
        teredo = address.teredo[1] if address.teredo else None
        inner = address.ipv4_mapped or address.sixtofour or teredo or nat64
        if inner is not None:
            return _is_public(str(inner))
    return address.is_global and not address.is_multicast


def _check_redirect(url: str, target: str) -> None:
    scheme = urlsplit(target).scheme
    if scheme not in ("http", "https"):
        raise UnexpectedAnswerError(f"{redact(url)} redirects to the scheme {scheme[:20]!r}, which is refused")
    if urlsplit(url).scheme == "https" and scheme == "http":
        raise UnexpectedAnswerError(
            f"{redact(url)} redirects from https to {redact(target)}, which is refused",
            hint="The server must redirect to https, or be addressed as http:// on purpose.",
        )
