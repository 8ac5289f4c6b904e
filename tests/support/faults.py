"""Ways in which a registry, or the network before it, may fail."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Status:
    """Answer with this status instead."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Redirect:
    """Answer with a redirect. `{target}` in the location stands for the path and query asked for."""

    location: str
    code: int = 307


@dataclass(frozen=True)
class Cut:
    """Send the true head, but close the connection after so many bytes of the body."""

    after_bytes: int
    reset: bool = False


@dataclass(frozen=True)
class Corrupt:
    """Send the body with one byte flipped, the middle one where no offset is given."""

    offset: int | None = None


@dataclass(frozen=True)
class ShortLength:
    """Send only the first bytes of the body, and a `Content-Length` that fits them."""

    keep_bytes: int


@dataclass(frozen=True)
class Reset:
    """Reset the connection instead of answering.

    With `after_effect` the request has been carried out by then: only the answer gets lost.
    """

    after_effect: bool = False


@dataclass(frozen=True)
class Stall:
    """Wait before going on; before the answer, or after so many bytes of the body."""

    seconds: float
    after_bytes: int | None = None


@dataclass(frozen=True)
class WrongDigestHeader:
    """Send another digest in the `Docker-Content-Digest` header."""

    digest: str = "sha256:" + "0" * 64


Action = Status | Redirect | Cut | Corrupt | ShortLength | Reset | Stall | WrongDigestHeader


@dataclass
class Fault:
    """A rule: what is to happen to which requests.

    Attributes:
        hits: How many requests it has happened to.
    """

    method: str
    path_regex: str
    action: Action
    times: int | None = 1
    skip: int = 0
    hits: int = 0

    def strikes(self, method: str, target: str) -> bool:
        """Tell whether it happens to a request, and count that."""
        if self.method not in {"*", method} or not re.search(self.path_regex, target):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self.hits += 1
        return True
