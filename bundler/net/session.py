"""The requests session that everything is sent with: one a thread, with settings of our own."""

from __future__ import annotations

import http.cookiejar
import ssl
from functools import cache
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from bundler import __version__
from bundler.net.proxy import authorization

_SEND_BLOCK_BYTES = 256 * 1024


class Session(requests.Session):
    """Takes nothing from the environment, keeps no cookies, and leaves redirects alone.

    requests itself would read the whole body of a redirect and parse its target.

    Args:
        send_s: How long a block of a body may take to leave, in seconds.
    """

    def __init__(self, send_s: float) -> None:
        super().__init__()
        self.trust_env = False
        self.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        self.headers.clear()
        self.headers["User-Agent"] = f"airgap-sync/{__version__}"
        self.adapter = _Adapter(send_s, max_retries=Retry(total=0, redirect=False, raise_on_status=False))
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

    def __init__(self, send_s: float, **settings: Any) -> None:
        self._pools = _pools(send_s)
        super().__init__(**settings)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, blocksize=_SEND_BLOCK_BYTES)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> urllib3.ProxyManager:
        kwargs.setdefault("blocksize", _SEND_BLOCK_BYTES)
        manager: urllib3.ProxyManager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = self._pools
        return manager

    def proxy_headers(self, proxy: str) -> dict[str, str]:
        return authorization(proxy)

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {"ssl_context": self.context} if self.context else {}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """The context has it all."""


@cache
def _pools(send_s: float) -> dict[str, Any]:
    """Return pools by scheme whose connections give a block of a body its own time to leave.

    urllib3 would make that the time in which a connection has to come about.
    """

    class PlainConnection(urllib3.connection.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            self.sock.settimeout(send_s)

    class SecureConnection(urllib3.connection.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            self.sock.settimeout(send_s)

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = PlainConnection

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = SecureConnection

    return {"http": PlainPool, "https": SecurePool}
