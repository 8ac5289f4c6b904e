"""What a failed request means, in our errors and in words that say what to change."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import requests
import urllib3

from bundler.errors import (
    AirgapSyncError,
    BrokenConnectionError,
    CertificateExpiredError,
    ClientCertificateError,
    ConnectionFailedError,
    ConnectRefusedError,
    ConnectTimeoutError,
    NameNotResolvedError,
    NotTlsError,
    ProxyCredentialsError,
    ProxyFailedError,
    TimedOutError,
    TlsError,
    TlsWantedError,
    UnknownCaError,
    WrongHostNameError,
)
from bundler.net.proxy import shown, through
from bundler.net.tls import Certificate, look_at, speaks_tls
from bundler.url import origin, redact

#: TLS alerts with which a server asks for a certificate, or refuses one.
_WANTS_CERTIFICATE = ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "ALERT_UNKNOWN_CA", "HANDSHAKE_FAILURE")
#: X509_V_ERR_CERT_NOT_YET_VALID, _HAS_EXPIRED, _HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH of OpenSSL's x509_vfy.h.
_NOT_YET, _EXPIRED, _OTHER_HOST, _OTHER_ADDRESS = 9, 10, 62, 64

#: What http.client says; others quote it.
_TUNNEL_REFUSED = re.compile(r"Tunnel connection failed: (\d{3}[^'\")]*)")


@contextmanager
def translated(url: str, proxy: str | None = None) -> Iterator[None]:
    """Turn the exceptions of requests and urllib3 into ours.

    Args:
        url: What is asked.
        proxy: Through which proxy, if through one.
    """
    try:
        yield
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise _ours(error, url, proxy) from error


def _ours(error: Exception, url: str, proxy: str | None) -> AirgapSyncError:
    where = redact(url)
    chain = list(_causes(error))
    host = urlsplit(url).netloc.rpartition("@")[2]

    def met(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in chain)

    if met(urllib3.exceptions.ProxyError, requests.exceptions.ProxyError):
        return _proxy_failed(chain, host, proxy or "", url)
    if met(requests.exceptions.SSLError, urllib3.exceptions.SSLError, ssl.SSLError):
        return _tls_failed(chain, url, proxy)
    context = {"url": where}
    if met(urllib3.exceptions.NameResolutionError):
        return NameNotResolvedError(f"the host name {host} does not resolve", context=context)
    # urllib3's NewConnectionError is a ConnectTimeoutError to Python, so it comes first.
    if met(urllib3.exceptions.NewConnectionError):
        if met(ConnectionRefusedError):
            return ConnectRefusedError(f"no connection to {host}: connection refused", context=context)
        reason = next((c.strerror for c in chain if isinstance(c, OSError) and c.strerror), "no route")
        return ConnectionFailedError(f"no connection to {host}: {reason.lower()}", context=context)
    if met(requests.ConnectTimeout, urllib3.exceptions.ConnectTimeoutError):
        return ConnectTimeoutError(f"no connection to {host} in time", context=context)
    if met(requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError):
        return TimedOutError(f"{where}{through(proxy)} did not answer in time")
    if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)):
        return ConnectionFailedError(f"{where} is not a usable URL")
    # Some servers answer plain HTTP on a port of TLS with 400, others with nothing.
    scheme, name, port = origin(url)
    if scheme == "http" and not proxy and isinstance(error, requests.ConnectionError) and speaks_tls(name, port):
        return TlsWantedError(f"{host} speaks TLS, and was asked by plain HTTP")
    return BrokenConnectionError(f"the connection to {where}{through(proxy)} broke")


def wants_login(url: str, proxy: str) -> ProxyCredentialsError:
    """Return the error for a proxy that answered 407."""
    host = urlsplit(url).netloc.rpartition("@")[2]
    return ProxyCredentialsError(
        f"the proxy {shown(proxy)} answered 407 when asked for {host}", context={"url": redact(url)}
    )


def _proxy_failed(chain: list[BaseException], host: str, proxy: str, url: str) -> ProxyFailedError:
    refused = next((found[1] for cause in chain if (found := _TUNNEL_REFUSED.search(str(cause)))), "")
    if refused.startswith("407"):
        return wants_login(url, proxy)
    what = f"refuses to connect to {host}: {refused[:80].strip()}" if refused else "does not answer"
    return ProxyFailedError(
        f"the proxy {shown(proxy)} {what}",
        hint=f"Check HTTPS_PROXY and HTTP_PROXY and the proxy's rules; if {host} is reached without a proxy, add it to "
        "NO_PROXY.",
        context={"url": redact(url)},
    )


def _tls_failed(chain: list[BaseException], url: str, proxy: str | None) -> AirgapSyncError:
    _, name, port = origin(url)
    host = urlsplit(url).netloc.rpartition("@")[2]
    verification = next((c for c in chain if isinstance(c, ssl.SSLCertVerificationError)), None)
    if verification is not None:
        return _not_trusted(verification, host, look_at(name, port, proxy))
    text = " ".join(str(cause) for cause in chain).upper()
    if any(isinstance(c, (ssl.SSLEOFError, ssl.SSLZeroReturnError)) for c in chain) or "BAD_RECORD_MAC" in text:
        return BrokenConnectionError(f"the connection to {redact(url)} broke")
    if any(word in text for word in ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "RECORD LAYER", "HTTP_REQUEST")):
        return NotTlsError(
            f"{host} does not speak TLS",
            hint=f"If it is a plain HTTP registry, write http://{host} on purpose.",
        )
    if any(word in text for word in _WANTS_CERTIFICATE):
        return ClientCertificateError(f"{host} ended the TLS handshake: it may want a client certificate, or another")
    return TlsError(f"TLS with {host} failed")


def _not_trusted(cause: ssl.SSLCertVerificationError, host: str, certificate: Certificate | None) -> TlsError:
    code = cause.verify_code
    if code == _EXPIRED:
        since = f" on {certificate.not_after}" if certificate else ""
        return CertificateExpiredError(
            f"the certificate of {host} expired{since}",
            hint="The registry's administrator must renew it. Check also this machine's clock (`date -u`).",
        )
    if code == _NOT_YET:
        since = f" before {certificate.not_before}" if certificate else ""
        return CertificateExpiredError(
            f"the certificate of {host} is not valid{since}",
            hint="Check that this machine's clock is right (`date -u`), and the registry's.",
        )
    if code in (_OTHER_HOST, _OTHER_ADDRESS):
        names = f", but for {', '.join(certificate.names[:5])}" if certificate and certificate.names else ""
        return WrongHostNameError(
            f"the certificate of {host} is not for this name{names}",
            hint="Address the registry by a name of its certificate, or have one issued for this name.",
        )
    issuer = f", issued by {certificate.issuer!r}," if certificate and certificate.issuer else ""
    return UnknownCaError(
        f"the certificate of {host}{issuer} is not trusted: {cause.verify_message}",
        hint=f"Give the CA that issued it with --ca-file FILE, or put it into /etc/docker/certs.d/{host}/ca.crt or "
        "this machine's trust store.",
    )


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
