"""HTTP: one requests session per thread, explicit TLS, timeouts, redirects and errors. The only user of requests.

Invariants:

- Nothing is taken from the environment behind our back: no ~/.netrc, no proxies, no cookies.
- Redirects are followed here, not by requests: a hop to another origin loses the Authorization header, a hop from
  https to anything else is refused, and their number is bounded.
- Bodies are never decoded: a blob's bytes are hashed as they were sent.
- Foreign exceptions end here, both those of requests and those that urllib3 raises while a body is read.
"""

from __future__ import annotations

import http.cookiejar
import ipaddress
import logging
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from bundler import __version__
from bundler.errors import (
    AirgapSyncError,
    BadManifestError,
    BrokenConnectionError,
    ConnectionFailedError,
    TimedOutError,
    TlsError,
    UnexpectedAnswerError,
)
from bundler.url import check_url, redact, resolve, same_origin

logger = logging.getLogger(__name__)

MAX_REDIRECTS = 5
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: Debian and SUSE, RHEL and Fedora, older SUSE.
_TRUST_STORES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
)
_SEND_BLOCK_BYTES = 256 * 1024
_SEND_BLOCK_S = 60.0
_WORTH_DRAINING_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Tls:
    """How one server is trusted: paths as the user gave them."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    skip_verify: bool = False


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

    def read(self, size: int) -> bytes:
        """Return up to ``size`` raw bytes of the body, as many as are there, empty at its end.

        What has arrived is never held back for more, so nothing is lost when the connection breaks.

        Raises:
            BrokenConnectionError: The body ended early or the connection broke.
            TimedOutError: Nothing came for the read timeout.
        """
        with _translated(self.url):
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
    """Sends requests; safe to share between threads."""

    def __init__(self, timeouts: Timeouts | None = None) -> None:
        self._timeouts = timeouts or Timeouts()
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
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
                # Another host is trusted as usual, and learns nothing of who we are.
                tls = Tls(ca_file=tls.ca_file) if tls else None
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
        tls = tls or Tls()
        if tls.skip_verify:
            self._say_unverified(url)
        verify: bool | str = False if tls.skip_verify else (tls.ca_file or _system_trust())
        cert = (tls.cert_file, tls.key_file) if tls.cert_file and tls.key_file else tls.cert_file
        with _translated(url):
            inner = self._session().request(
                method,
                url,
                headers={"Accept-Encoding": "identity", **headers},
                data=body,
                stream=True,
                allow_redirects=False,
                timeout=(self._timeouts.connect_s, read_s or self._timeouts.read_s),
                verify=verify,
                cert=cert,
            )
        return Response(inner.status_code, inner.headers, url, headers.get("Authorization"), inner.raw, inner)

    def _say_unverified(self, url: str) -> None:
        host = urlsplit(url).netloc
        with self._lock:
            if host in self._unverified:
                return
            self._unverified.add(host)
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        logger.warning("the certificate of %s is NOT verified, as its settings say", host)

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = _Session()
            session.trust_env = False
            session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
            session.headers.clear()
            session.headers["User-Agent"] = f"airgap-sync/{__version__}"
            adapter = _Adapter(max_retries=Retry(total=0, redirect=False, raise_on_status=False))
            session.mount("http://", adapter)
            session.mount("https://", adapter)
            self._local.session = session
            with self._lock:
                self._sessions.append(session)
        return session


class _Session(requests.Session):
    """A session that leaves redirects alone; requests itself would read their whole bodies and parse their targets."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        del resp


class _Adapter(HTTPAdapter):
    """Sends bodies in large blocks (http.client's 16 KiB make Python the bottleneck), however slowly they leave."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, blocksize=_SEND_BLOCK_BYTES)
        self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}


class _PatientHttp(urllib3.connection.HTTPConnection):
    """The time to connect is not the time that a block may take to leave, which urllib3 makes of it."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(_SEND_BLOCK_S)


class _PatientHttps(urllib3.connection.HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(_SEND_BLOCK_S)


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PatientHttp


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _PatientHttps


def number(text: str) -> int | None:
    """Return a header's non-negative number; None if it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None  # noqa: PLR2004 - 64 bits


@cache
def _system_trust() -> str | bool:
    """Return the machine's own trust store, where companies add their CAs; else the one that requests brings."""
    return next((path for path in _TRUST_STORES if Path(path).is_file()), True)


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


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turn the exceptions of requests and urllib3 into ours."""
    try:
        yield
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise _ours(error, url) from error


def _ours(error: Exception, url: str) -> AirgapSyncError:
    where = redact(url)
    chain = list(_causes(error))
    host = urlsplit(url).netloc.rpartition("@")[2]
    for cause in chain:
        if isinstance(cause, (requests.exceptions.SSLError, urllib3.exceptions.SSLError)):
            return _tls_error(cause, host)
    if any(isinstance(c, urllib3.exceptions.NameResolutionError) for c in chain):
        return ConnectionFailedError(f"the host name {host} does not resolve", context={"url": where})
    # urllib3's NewConnectionError is a ConnectTimeoutError to Python, so it comes first.
    if any(isinstance(c, urllib3.exceptions.NewConnectionError) for c in chain):
        reason = next((c.strerror for c in chain if isinstance(c, OSError) and c.strerror), "no route")
        return ConnectionFailedError(f"no connection to {host}: {reason.lower()}", context={"url": where})
    if any(isinstance(c, (requests.ConnectTimeout, urllib3.exceptions.ConnectTimeoutError)) for c in chain):
        return ConnectionFailedError(f"no connection to {host} in time", context={"url": where})
    if any(isinstance(c, (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)) for c in chain):
        return TimedOutError(f"{where} did not answer in time")
    if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)):
        return ConnectionFailedError(f"{where} is not a usable URL")
    if isinstance(error, OSError) and not isinstance(error, (requests.RequestException, ConnectionError)):
        # A CA or key file that is not there, for example: requests raises plain OSError for those.
        return TlsError(f"{host}: {error}")
    return BrokenConnectionError(f"the connection to {where} broke")


def _tls_error(cause: Exception, host: str) -> TlsError:
    text = str(cause)
    if "WRONG_VERSION_NUMBER" in text or "UNKNOWN_PROTOCOL" in text or "record layer" in text.lower():
        return TlsError(
            f"{host} does not speak TLS",
            hint=f"If it is a plain HTTP registry, write http://{host} on purpose.",
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return TlsError(
            f"the certificate of {host} is not trusted: {_after(text, 'certificate verify failed: ')}",
            hint=f"Add its CA to this machine's trust store; for pulling, configs.{host}.tls.ca_file in the registries "
            "file does it too.",
        )
    return TlsError(f"TLS with {host} failed")


def _after(text: str, marker: str) -> str:
    return text.rpartition(marker)[2].partition(" (_ssl")[0][:160]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and everything it was made from (urllib3 hides the cause in ``reason`` and args)."""
    seen: set[int] = set()
    stack: list[BaseException] = [error]
    while stack:
        current = stack.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        inner = [getattr(current, "reason", None), current.__cause__, current.__context__, *current.args]
        stack.extend(item for item in inner if isinstance(item, BaseException))
