"""The requests session that everything is sent with: one a thread, with settings of our own."""

from __future__ import annotations

import http.cookiejar
import ssl
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from bundler import __version__

_SEND_BLOCK_BYTES = 256 * 1024
_SEND_BLOCK_S = 60.0


class Session(requests.Session):
    """Takes nothing from the environment, keeps no cookies, and leaves redirects alone.

    requests itself would read the whole body of a redirect and parse its target.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        self.headers.clear()
        self.headers["User-Agent"] = f"airgap-sync/{__version__}"
        self.adapter = _Adapter(max_retries=Retry(total=0, redirect=False, raise_on_status=False))
        self.mount("http://", self.adapter)
        self.mount("https://", self.adapter)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """See no redirect in any answer."""
        del resp


class _Adapter(HTTPAdapter):
    """Sends bodies in large blocks (http.client's 16 KiB make Python the bottleneck), however slowly they leave.

    Attributes:
        context: The TLS context of the next request.
    """

    context: ssl.SSLContext | None = None

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, blocksize=_SEND_BLOCK_BYTES)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> urllib3.ProxyManager:
        kwargs.setdefault("blocksize", _SEND_BLOCK_BYTES)
        manager: urllib3.ProxyManager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {"ssl_context": self.context} if self.context else {}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """The context has it all."""


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


_POOLS: dict[str, Any] = {"http": _HttpPool, "https": _HttpsPool}
