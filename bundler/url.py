"""URLs: what may be shown of one, whether it can be used, whether two have one origin. No I/O."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit, urlunsplit

from bundler.errors import UnexpectedAnswerError


def redact(url: str) -> str:
    """Return a URL without user info, query and fragment: signed queries are secrets."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def check_url(url: str) -> None:
    """Make sure that a URL has a host and a port that exist.

    Raises:
        UnexpectedAnswerError: It has not; it came from a server or from the user.
    """
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        scheme, separator, rest = url.partition("://")
        user, _, place = rest.rpartition("@")
        # A password may hold what begins a query, and a query is a secret as well.
        shown = f"{scheme}{separator}{'...' if '?' in user else place.partition('?')[0]}"
        raise UnexpectedAnswerError(f"{shown[:120]!r} is not a usable URL")


def resolve(base: str, location: str) -> str:
    """Return the absolute form of a Location that a server named.

    Raises:
        UnexpectedAnswerError: It is not a URL.
    """
    try:
        url = urljoin(base, location)
    except ValueError as error:
        raise UnexpectedAnswerError(f"{redact(base)} names a Location that is not a URL") from error
    check_url(url)
    return url


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def same_origin(one: str, other: str) -> bool:
    """Tell whether two URLs have the same scheme, host and port."""
    return origin(one) == origin(other)
