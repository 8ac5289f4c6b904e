"""Requests and answers of the registry in memory."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Request:
    """What a client sent. Header names are in lower case.

    Attributes:
        stored: How much of the body the upload it is for holds already; more than nothing where it came haltingly.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""
    scheme: str = "http"
    stored: int = 0

    @property
    def path(self) -> str:
        """Path without the query."""
        return unquote(urlsplit(self.target).path)

    def query(self, name: str) -> str | None:
        """Give a parameter of the query."""
        return parse_qs(urlsplit(self.target).query).get(name, [None])[0]


@dataclass(frozen=True)
class Response:
    """What the registry answers. To a HEAD only the head is sent."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def error(status: int, code: str, detail: str = "", message: str = "") -> Response:
    """Answer with an error as registries do."""
    entry = {"code": code, "message": message or code.lower(), "detail": detail}
    return Response(status, json.dumps({"errors": [entry]}).encode(), JSON)
