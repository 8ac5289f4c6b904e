"""What a registry's answers say beside their status: error codes and words, pauses, what is left of a quota.

Source: distribution-spec, "Error Codes".
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from bundler.errors import one_line
from bundler.net import number


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """The body of an error: the code of its first entry, or "", and all of it in words."""

    code: str
    words: str


def read_error(body: bytes) -> ErrorBody:
    """Read the body of an error; one that is not JSON gives no code and the start of its text."""
    try:
        errors = json.loads(body)["errors"]
        words = "; ".join(
            " ".join(str(part) for part in (item.get("code"), item.get("message"), item.get("detail")) if part)
            for item in errors
        )
        code = str(errors[0].get("code") or "") if errors else ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError):
        code, words = "", "a web page" if body.lstrip()[:1] == b"<" else body.decode(errors="replace")
    return ErrorBody(one_line(code)[:60], one_line(words).strip()[:200])


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Return the pause that a registry asks for, in seconds; 0 if it names none.

    A date is taken against the answer's own Date, so that a clock that is wrong here changes nothing.

    Source: RFC 9110 section 10.2.3 (seconds or an HTTP date).
    """
    text = headers.get("Retry-After", "").strip()
    if (seconds := number(text)) is not None:
        return float(seconds)
    until = _timestamp(text)
    if until is None:
        return 0.0
    now = _timestamp(headers.get("Date", "").strip())
    return max(0.0, until - (time.time() if now is None else now))


def _timestamp(text: str) -> float | None:
    if not text:
        return None
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def pulls_left(headers: Mapping[str, str]) -> tuple[int, int | None] | None:
    """Return how many pulls the registry grants for now and of how many, if it says so.

    Source: Docker Hub's documentation of its limit: ``RateLimit-Remaining: 76;w=21600``.
    """
    left = number(headers.get("RateLimit-Remaining", "").partition(";")[0].strip())
    if left is None:
        return None
    return left, number(headers.get("RateLimit-Limit", "").partition(";")[0].strip())
