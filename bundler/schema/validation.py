"""Checking documents against the schemas shipped here."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def schema(name: str) -> dict[str, Any]:
    """Return a shipped schema: ``bundle-lock`` or ``report``."""
    text = (files("bundler.schema") / f"{name}.schema.json").read_text()
    document: dict[str, Any] = json.loads(text)
    return document


def first_problem(name: str, document: Any) -> str | None:
    """Return the first thing wrong with a document, with its place, or None.

    Args:
        name: The schema's name.
        document: Parsed JSON.
    """
    import jsonschema  # noqa: PLC0415 - keeps start-up fast

    validator = jsonschema.Draft202012Validator(schema(name))
    for problem in validator.iter_errors(document):
        place = "/".join(str(part) for part in problem.absolute_path) or "the document"
        return f"{place}: {problem.message[:200]}"
    return None
