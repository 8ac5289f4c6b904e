"""Every rule of a preflight stands in a table of docs/site.md, and everything that stands there is a rule."""

from __future__ import annotations

import ast
import re

from bundler.errors import TlsError, UnsupportedSkewError
from tests.support.docs import PROJECT
from tests.unit.test_errors import every

_SOURCES = (
    "bundler/site/*.py",
    *(f"bundler/ops/{name}.py" for name in ("preflight", "collect", "lookup", "quota")),
    "bundler/cli/preflight.py",
)
_RULE = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)+")
#: Rules that are the references of errors: the tables name one of them, and say so of the others.
_REFERENCES = {"unknown-ca", "bad-tls-file", UnsupportedSkewError.reference}


def table(heading: str) -> list[list[str]]:
    """Give the cells of the rows of the table behind some words."""
    text = (PROJECT / "docs/site.md").read_text().partition(heading)[2]
    rows = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert rows
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows[0].splitlines()[2:]]


def documented(heading: str) -> set[str]:
    return {word for row in table(heading) for word in re.findall(r"`([^`]+)`", row[0])}


IMAGES, SITE = documented("About single images:"), documented("About the site:")


def used() -> tuple[set[str], set[str]]:
    """Give the rules that the code has about images, and about the site."""
    images: set[str] = set()
    site: set[str] = set()
    for pattern in _SOURCES:
        for path in PROJECT.glob(pattern):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Call(func=ast.Name(id="Problem"), args=[first, *_]):
                        images |= words(first)
                    case ast.Call(func=ast.Attribute(attr="add"), args=[first, _, _, _, _]):
                        site |= words(first)
                    case ast.FunctionDef(name="_blame"):
                        for inner in ast.walk(node):
                            if isinstance(inner, ast.Return) and inner.value:
                                images |= {word for word in words(inner.value) if _RULE.fullmatch(word)}
    return images, site


def words(node: ast.expr) -> set[str]:
    """Give the texts in an expression that read like a rule."""
    texts = (part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str))
    return {text for text in texts if _RULE.fullmatch(text)}


def test_the_tables_are_read() -> None:
    assert len(IMAGES) > 12
    assert len(SITE) > 20


def test_every_rule_is_documented() -> None:
    images, site = used()
    assert images - IMAGES == set()
    assert site - SITE == set()
    assert len(images) > 10


def test_every_documented_rule_is_one() -> None:
    images, site = used()
    assert IMAGES - images - _REFERENCES == set()
    assert SITE - site - _REFERENCES == set()


def test_the_references_are_those_of_errors() -> None:
    assert "unknown-ca" in {cls.reference for cls in every(TlsError)}
    assert UnsupportedSkewError.reference in SITE
    assert {"unknown-ca", "bad-tls-file"} <= IMAGES


def levels(node: ast.expr) -> set[str]:
    """Give the severities in an expression."""
    return {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)} & {"ERROR", "WARNING"}


def test_severities_are_documented() -> None:
    """The site's rules are errors, warnings or one of both, and the table says which."""
    stated = {word: row[1] for row in table("About the site:") for word in re.findall(r"`([^`]+)`", row[0])}
    found: dict[str, set[str]] = {}
    for pattern in _SOURCES:
        for path in PROJECT.glob(pattern):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Call(func=ast.Attribute(attr="add"), args=[rule, severity, _, _, _]):
                        for word in words(rule):
                            found.setdefault(word, set()).update(levels(severity))
                    case ast.If(test=ast.Compare(comparators=[rule])) if words(rule):
                        # A finding that is made milder later.
                        for inner in (part for line in node.body for part in ast.walk(line)):
                            if isinstance(inner, ast.keyword) and inner.arg == "severity":
                                for word in words(rule):
                                    found.setdefault(word, set()).update(levels(inner.value))
    # One call has two rules: the first with the one, the second with the other.
    assert found.pop("disk-full") == found.pop("disk-tight") == {"ERROR", "WARNING"}
    assert found["imports-not-shared"] == {"ERROR", "WARNING"}
    assert {word: set(stated[word].upper().split(", ")) for word in found} == found
