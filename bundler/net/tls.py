"""TLS: how a server is trusted, and what its certificate says when it is not."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bundler.errors import BadTlsFileError
from bundler.net.proxy import authorization

#: Debian and SUSE, RHEL and Fedora, older SUSE.
_TRUST_STORES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
)
#: How long a look at a certificate may take that only makes a message better.
_LOOK_S = 5.0
#: X509_V_FLAG_NO_CHECK_TIME of OpenSSL's x509_vfy.h, which Python has no name for.
_NO_CHECK_TIME = 0x200000


@dataclass(frozen=True, slots=True)
class Tls:
    """How one server is trusted: paths as the user gave them.

    Attributes:
        ca_files: Trusted in addition to the machine's own trust store.
        cert_file: Our certificate, with its chain.
        key_file: Its key; None if it lies in ``cert_file``.
        skip_verify: Trust whatever answers.
    """

    ca_files: tuple[str, ...] = ()
    cert_file: str | None = None
    key_file: str | None = None
    skip_verify: bool = False

    def abroad(self) -> Tls:
        """Return what is left of it for another host, met through a redirect: who we are is not its business."""
        return Tls(self.ca_files)


@cache
def context_for(tls: Tls) -> ssl.SSLContext:
    """Return the context for a server; safe to share between threads.

    Raises:
        BadTlsFileError: A file cannot be read or is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        store = _system_trust()
        if store:
            context.load_verify_locations(cafile=store)
        else:
            context.load_default_certs()
    for path in tls.ca_files:
        _load_ca(context, path)
    if tls.cert_file:
        _load_pair(context, tls.cert_file, tls.key_file)
    return context


def _load_ca(context: ssl.SSLContext, path: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise BadTlsFileError(f"the CA file {path} holds no certificate in PEM form") from error
    except OSError as error:
        raise BadTlsFileError(f"the CA file {path} cannot be read: {error.strerror}") from error


def _load_pair(context: ssl.SSLContext, cert_file: str, key_file: str | None) -> None:
    def no_password() -> bytes:
        # Without this OpenSSL would ask on the terminal.
        raise BadTlsFileError(f"the key {key_file or cert_file} is encrypted")

    for path in (cert_file, key_file):
        if path and not Path(path).is_file():
            raise BadTlsFileError(f"the certificate or key file {path} cannot be read: no such file")
    try:
        context.load_cert_chain(cert_file, key_file, no_password)
    except ssl.SSLError as error:
        what = (
            f"and {key_file} are not a certificate and its key"
            if key_file
            else "does not hold a certificate and its key"
        )
        raise BadTlsFileError(f"{cert_file} {what}") from error
    except OSError as error:
        raise BadTlsFileError(f"{cert_file} or {key_file} cannot be read: {error.strerror}") from error


@cache
def _system_trust() -> str | None:
    """Return the machine's own trust store, where companies add their CAs; None to take OpenSSL's own."""
    return next((path for path in _TRUST_STORES if Path(path).is_file()), None)


def speaks_tls(host: str, port: int) -> bool:
    """Tell whether a port answers a TLS handshake; used to explain a failure, never to choose a scheme."""
    context = context_for(Tls(skip_verify=True))
    try:
        with socket.create_connection((host, port), _LOOK_S) as plain, context.wrap_socket(plain, server_hostname=host):
            return True
    except (OSError, ValueError):
        return False


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a server's certificate says of itself; nothing of it is proven."""

    issuer: str
    names: tuple[str, ...]
    not_before: str
    not_after: str


def look_at(host: str, port: int, proxy: str | None = None) -> Certificate | None:
    """Return what the certificate of a server says, to explain why it is not trusted; None if it cannot be had.

    Python shows a certificate's content only after it was verified. So its bytes are taken first, and then it is
    connected to again with that very certificate as the only one trusted, whatever the clock says.
    """
    with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
        unverified = context_for(Tls(skip_verify=True))
        with _connected(host, port, proxy) as plain, unverified.wrap_socket(plain, server_hostname=host) as secure:
            found = secure.getpeercert(binary_form=True) or b""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=found)
        context.verify_flags = ssl.VerifyFlags(ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME)
        with _connected(host, port, proxy) as plain, context.wrap_socket(plain, server_hostname=host) as secure:
            return _read(secure.getpeercert() or {})
    return None


def _connected(host: str, port: int, proxy: str | None) -> socket.socket:
    """Connect to a server, through the proxy if there is one."""
    if not proxy:
        return socket.create_connection((host, port), _LOOK_S)
    parts = urlsplit(proxy)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=_LOOK_S)
    connection.set_tunnel(host, port, authorization(proxy))
    connection.connect()
    return connection.sock


def _read(found: Mapping[str, Any]) -> Certificate:
    words = [value for part in found.get("issuer", ()) for key, value in part if key in _TELLING]
    names = tuple(value for _, value in found.get("subjectAltName", ()))
    return Certificate(", ".join(dict.fromkeys(words)), names, found.get("notBefore", ""), found.get("notAfter", ""))


_TELLING = ("commonName", "organizationName")
