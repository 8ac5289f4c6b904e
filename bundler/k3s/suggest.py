"""Suggestions for mistyped names, worded one way everywhere."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def did_you_mean(names: Iterable[object]) -> str:
    """Return ``Did you mean A, B or C?``; empty text for no names."""
    words = [str(name) for name in names]
    if not words:
        return ""
    *firsts, last = words
    return f"Did you mean {', '.join(firsts)} or {last}?" if firsts else f"Did you mean {last}?"


def closest(text: str, names: Iterable[str]) -> str:
    """Return ``Did you mean NAME?`` for the one name that a text most resembles; empty text if none does."""
    return did_you_mean(get_close_matches(text.lower(), list(names), n=1, cutoff=0.6))


def short(text: str, limit: int = 60) -> str:
    """Return a text in quotes and at most ``limit`` characters, fit for one line of a message."""
    shown = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return ascii(shown)
