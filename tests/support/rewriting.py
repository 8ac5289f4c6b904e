"""A loopback proxy that rewrites repositories on the way to a registry, as K3s's containerd does before it asks.

Debian's containerd knows no `rewrite`. A rule that puts a prefix before every path is the same as an endpoint with a
path; for all others, this proxy stands where the endpoint would be.

Source: k3s-io/containerd, `core/remotes/docker/resolver.go`: a rule sees the repository alone, neither tag nor
digest, and the first that changes it decides; the query (`?ns=`) stays.
"""

import http.client
import re
import ssl
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.servers import LoopbackServer, QuietHandler

_PATH = re.compile(r"/v2/(?P<repository>.+)/(?P<rest>(?:manifests|blobs|tags)/[^/]+)")
_GROUP = re.compile(r"\$(?:\{(?P<braced>[0-9]+)\}|(?P<plain>[0-9]+))")
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "host"})


def rewritten(repository: str, rules: Mapping[str, str]) -> str:
    """Give what rules make of a repository; only of patterns that Go and Python read alike."""
    for pattern, replacement in rules.items():
        changed = re.sub(pattern, partial(_filled, replacement), repository)
        if changed != repository:
            return changed
    return repository


def _filled(replacement: str, match: re.Match[str]) -> str:
    return _GROUP.sub(lambda group: match[int(group["braced"] or group["plain"])], replacement)


class RewritingProxy(LoopbackServer):
    """Passes requests on to a registry, their repositories rewritten.

    Attributes:
        asked: The path and query of each request, as it came and as it went on.
    """

    def __init__(self, registry_url: str, rules: Mapping[str, str], *, ca_file: Path | None = None) -> None:
        """Prepare the proxy.

        Args:
            registry_url: The registry, without a path.
            rules: Replacements by pattern, in order.
            ca_file: Certificate to trust.
        """
        self.asked: list[tuple[str, str]] = []
        place = urlsplit(registry_url)
        context = ssl.create_default_context(cafile=ca_file) if ca_file else None
        proxy = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:  # noqa: N802 - the name http.server wants
                path, question, query = self.path.partition("?")
                if match := _PATH.fullmatch(path):
                    path = f"/v2/{rewritten(match['repository'], rules)}/{match['rest']}"
                proxy.asked.append((self.path, path + question + query))
                headers = {key: value for key, value in self.headers.items() if key.lower() not in _HOP_BY_HOP}
                status, answered, body = _asked(place.netloc, context, self.command, path + question + query, headers)
                self.reply(status, body, answered)

            do_HEAD = do_GET  # noqa: N815

        super().__init__(Handler)


def _asked(
    host: str, context: ssl.SSLContext | None, method: str, target: str, headers: dict[str, str]
) -> tuple[int, dict[str, str], bytes]:
    options: dict[str, Any] = {"timeout": 30}
    connection = (
        http.client.HTTPSConnection(host, context=context, **options)
        if context
        else http.client.HTTPConnection(host, **options)
    )
    try:
        connection.request(method, target, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    return answer.status, {k: v for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP}, body
