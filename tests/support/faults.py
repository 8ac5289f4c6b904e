"""Ways in which a registry, or the network before it, may fail."""

import re
from collections.abc import Callable, Mapping
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


@dataclass(frozen=True)
class BreakBody:
    """Read only so many bytes of the request's body, then end the connection without an answer.

    What arrived is treated the way the registry's `broken_patch` says. Without `reset` the connection ends in good
    order, and what the client still sends is dropped.
    """

    after_bytes: int
    reset: bool = True


@dataclass(frozen=True)
class EarlyStatus:
    """Answer when so many bytes of the request's body are there, and close the connection.

    With `after_bytes=0` the registry has never seen the request, as with a limit of the web server before it. Else
    its body has broken off there. What the client still sends is dropped for a moment, so that it can see the
    answer; with `reset` it is not, and the client that is still sending sees a broken connection first.
    """

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    after_bytes: int = 0
    reset: bool = False


@dataclass(frozen=True)
class StallBody:
    """Read no more of the request's body for some time after so many bytes of it.

    The operating systems at both ends take some more from the client meanwhile, about 5 MiB at the most.
    """

    after_bytes: int
    seconds: float


@dataclass(frozen=True)
class Drip:
    """Send the body in small pieces, with a pause after each."""

    bytes_per_piece: int
    pause_s: float


@dataclass(frozen=True)
class EditHeaders:
    """Change headers of the true answer; None takes one away.

    In a value `{value}` stands for what the header was, and `{host}` for host and port of the registry.
    """

    headers: Mapping[str, str | None]


@dataclass(frozen=True)
class LoseBlob:
    """Carry the request out, but forget the blob that it put or mounted right after."""


@dataclass(frozen=True)
class LoseSession:
    """Lose the upload session that the request is for, and answer that it is unknown."""


@dataclass(frozen=True)
class Meanwhile:
    """Do something, such as changing what the server knows, before the request is looked at."""

    do: Callable[[], object]


Action = (
    Status
    | Redirect
    | Cut
    | Corrupt
    | ShortLength
    | Reset
    | Stall
    | WrongDigestHeader
    | BreakBody
    | EarlyStatus
    | StallBody
    | Drip
    | EditHeaders
    | LoseBlob
    | LoseSession
    | Meanwhile
)


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
