"""``WWW-Authenticate`` challenges.

Source: RFC 9110 section 11.6.1; distribution docs/spec/auth/token.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.request import parse_http_list

_START = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:\s+(.*))?", re.DOTALL)
_PARAMETER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge: a lower-case scheme and its parameters with lower-case names."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """Parse a header value that may hold several challenges, quoted commas and any case.

    What cannot be understood is left out: the caller then knows no challenge and says so.
    """
    challenges: list[Challenge] = []
    for item in parse_http_list(header):
        parameter = _PARAMETER.fullmatch(item)
        if parameter is None:
            start = _START.fullmatch(item)
            if start is None:
                continue
            challenges.append(Challenge(start[1].lower(), {}))
            parameter = _PARAMETER.fullmatch(start[2] or "")
        if parameter and challenges:
            challenges[-1].parameters[parameter[1].lower()] = _unquote(parameter[2].strip())
    return challenges


def _unquote(value: str) -> str:
    # parse_http_list has undone the escapes already.
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
