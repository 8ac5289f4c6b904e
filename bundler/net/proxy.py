"""Forward proxies: which one a URL is asked through. Pure values; the environment is read by ``cli``.

The rules are those of Go's net/http, which docker, containerd and K3s follow, so that one set of variables means the
same to all of them.

Source: golang.org/x/net/http/httpproxy, ``Config`` and ``useProxy``.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import unquote, urlsplit

from bundler.errors import BadProxyError


@dataclass(frozen=True, slots=True)
class Proxies:
    """Proxies by scheme of the URL, and the hosts asked directly. ``repr()`` shows no proxy: it may hold a password.

    Attributes:
        http: Proxy URL for http, or "".
        https: Proxy URL for https, or "".
        direct: The entries of NO_PROXY.
    """

    http: str = field(default="", repr=False)
    https: str = field(default="", repr=False)
    direct: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read HTTP_PROXY, HTTPS_PROXY and NO_PROXY, or their lower-case forms.

        Raises:
            BadProxyError: A proxy is not a URL of a kind that we can use.
        """

        def value(name: str) -> str:
            return (environ.get(name) or environ.get(name.lower()) or "").strip()

        entries = (entry.strip().lower() for entry in value("NO_PROXY").split(","))
        return cls(
            _checked(value("HTTP_PROXY"), "HTTP_PROXY"),
            _checked(value("HTTPS_PROXY"), "HTTPS_PROXY"),
            tuple(entry for entry in entries if entry),
        )

    def proxy_for(self, url: str) -> str | None:
        """Return the proxy for a URL; None if its host is asked directly.

        This machine itself is never asked through a proxy.
        """
        parts = urlsplit(url)
        proxy = self.https if parts.scheme == "https" else self.http
        host = (parts.hostname or "").rstrip(".")
        if not proxy or host == "localhost":
            return None
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            address = None
        if address is not None and address.is_loopback:
            return None
        port = str(parts.port or (443 if parts.scheme == "https" else 80))
        if any(_matches(entry, host, address, port) for entry in self.direct):
            return None
        return proxy


def shown(proxy: str) -> str:
    """Return host and port of a proxy, for messages."""
    return urlsplit(proxy).netloc.rpartition("@")[2]


def through(proxy: str | None) -> str:
    """Return what a message says of the way to a server, after its URL."""
    return f" (through the proxy {shown(proxy)})" if proxy else ""


def authorization(proxy: str) -> dict[str, str]:
    """Return the header that a proxy with user and password wants, in UTF-8 as curl and Go send it."""
    parts = urlsplit(proxy)
    if not parts.username:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def _checked(text: str, name: str) -> str:
    if not text:
        return ""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0
        # Behind the host there is nothing, unless a password ends it early.
        usable = usable and " " not in url and not (parts.path.strip("/") or parts.query or parts.fragment)
    except ValueError:
        usable = False
    if not usable:
        # Not quoted: it may hold a password.
        raise BadProxyError(f"the proxy in {name} is not of the form http://[user:password@]host:port")
    return url


def _matches(entry: str, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: str) -> bool:
    """Tell whether an entry names a host: ``*``, an address, a network or a domain; with its port, if it has one."""
    if entry == "*":
        return True
    name, entry_port = _split_port(entry)
    if entry_port and entry_port != port:
        return False
    try:
        network = ipaddress.ip_network(name.strip("[]"), strict=False)
    except ValueError:
        suffix = name.removeprefix("*")
        if address is not None:
            return False
        return host.endswith(suffix) if suffix.startswith(".") else host == suffix or host.endswith(f".{suffix}")
    return address is not None and address.version == network.version and address in network


def _split_port(entry: str) -> tuple[str, str]:
    if entry.startswith("["):
        name, _, port = entry.partition("]")
        return name[1:], port.removeprefix(":")
    # More than one colon: an address of IPv6 without a port.
    if entry.count(":") == 1:
        name, _, port = entry.partition(":")
        return name, port
    return entry, ""
