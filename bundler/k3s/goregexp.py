r"""Go regular expressions on Python's ``re``: what a rewrite in registries.yaml means.

Invariants:

- A pattern that Go refuses is refused here. What Go takes is taken, but for two things that no repository needs:
  Unicode classes (``\p``), and repetitions of what may be empty, ``(.*)*``, whose groups Python fills otherwise.
  Groups may be nested 100 deep.
- Every piece of the Python pattern is made here from a parsed piece of the Go pattern, so nothing that only
  Python understands can slip through.
- Subjects are repository names: short, ASCII, without newlines. Unlike Go's, the time of a match is not
  bounded by their length; the patterns come from the operator's own file.

Source: Go, ``regexp/syntax`` (syntax; ``Perl`` flags) and ``regexp`` (``ReplaceAllString``, ``Expand``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_MAX_REPEAT = 1000
_MAX_DEPTH = 100
_REPEAT = re.compile(r"\{(0|[1-9][0-9]*)(?:(,)(0|[1-9][0-9]*)?)?\}")
_NAME = re.compile(r"[A-Za-z0-9_]+")
_FLAGS = re.compile(r"([imsU]*)(?:-([imsU]+))?([:)])")
_POSIX_CLASS = re.compile(r"\[:(\^?)([a-z]+):\]")
_HEX_ESCAPE = re.compile(r"x(?:([0-9A-Fa-f]{2})|\{([0-9A-Fa-f]{1,6})\})")
_OCTAL_ESCAPE = re.compile(r"0[0-7]{0,2}|[1-7][0-7]{1,2}")
_CONTROL_ESCAPES = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
# Python's \B does not match in an empty text, Go's does.
_ASSERTIONS = {"A": r"\A", "z": r"\Z", "b": r"\b", "B": r"(?!\b)"}
_CODE_POINTS = 0x110000
# What a flag changes: the flag, the meaning with it, the meaning without it.
_SPECIAL = {
    ".": ("s", "(?s:.)", r"[^\n]"),
    "^": ("m", "(?m:^)", r"\A"),
    "$": ("m", "(?m:$)", r"\Z"),
}

_PERL = {"d": "0-9", "w": "0-9A-Za-z_", "s": r"\t\n\f\r "}
_PERL_NOT = {"D": r"\D", "W": r"\W", "S": r"\x00-\x08\x0b\x0e-\x1f!-\U0010ffff"}
_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t-\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_POSIX_NOT = {
    "alnum": r"\x00-/:-@\[-`{-\U0010ffff",
    "alpha": r"\x00-@\[-`{-\U0010ffff",
    "ascii": r"\x80-\U0010ffff",
    "blank": r"\x00-\x08\n-\x1f!-\U0010ffff",
    "cntrl": r" -~\x80-\U0010ffff",
    "digit": r"\x00-/:-\U0010ffff",
    "graph": r"\x00- \x7f-\U0010ffff",
    "lower": r"\x00-`{-\U0010ffff",
    "print": r"\x00-\x1f\x7f-\U0010ffff",
    "punct": r"\x00- 0-9A-Za-z\x7f-\U0010ffff",
    "space": r"\x00-\x08\x0e-\x1f!-\U0010ffff",
    "upper": r"\x00-@\[-\U0010ffff",
    "word": r"\x00-/:-@\[-^`{-\U0010ffff",
    "xdigit": r"\x00-/:-@G-`g-\U0010ffff",
}


class GoRegexpError(ValueError):
    """A text is not a Go regular expression that we support; the message says why, in one phrase."""


@dataclass(frozen=True, slots=True)
class GoRegexp:
    """A compiled Go regular expression."""

    pattern: str
    _compiled: re.Pattern[str] = field(repr=False, compare=False)
    _names: dict[str, list[int]] = field(repr=False, compare=False)

    @classmethod
    def compile(cls, pattern: str) -> GoRegexp:
        """Parse a Go regular expression.

        Raises:
            GoRegexpError: Go, or this translation, does not take it.
        """
        parser = _Parser(pattern)
        translated = parser.parse()
        try:
            compiled = re.compile(translated, re.ASCII)
        except (re.error, RecursionError, OverflowError):
            raise GoRegexpError("it is too complicated") from None
        return cls(pattern, compiled, parser.names)

    def replace_all(self, text: str, template: str) -> str:
        """Replace every match, as Go's ``ReplaceAllString``.

        An empty match right after another match is left alone, so ``(.*)`` replaces once.

        Source: Go, ``regexp.go``, ``replaceAll``.
        """
        out = []
        copied = position = 0
        while position <= len(text):
            match = self._compiled.search(text, position)
            if match is None:
                break
            start, end = match.span()
            out.append(text[copied:start])
            if end > copied or start == 0:
                out.append(self._expand(template, match))
            copied = end
            position = max(end, position + 1)
        return "".join([*out, text[copied:]])

    def _expand(self, template: str, match: re.Match[str]) -> str:
        """Fill a template: ``$1``, ``${1}``, ``$name``, ``${name}``, ``$$``; any other ``$`` stays.

        A name is as long as it can be, so ``$1x`` is the group named ``1x``; a group that does not exist or
        did not match is empty.

        Source: Go, ``regexp.go``, ``expand`` and ``extract``.
        """

        def value(found: re.Match[str]) -> str:
            name = found["braced"] or found["plain"]
            if not name:
                return "$"
            groups = [int(name)] if _GROUP_NUMBER.fullmatch(name) else self._names.get(name, [])
            values = (match[group] for group in groups if group <= self._compiled.groups)
            return next((text for text in values if text is not None), "")

        return _TEMPLATE.sub(value, template)


# Go takes Unicode letters and digits into a name too, as does \w.
_GROUP_NUMBER = re.compile(r"0|[1-9][0-9]{0,7}")
_TEMPLATE = re.compile(r"\$(?:\{(?P<braced>\w+)\}|(?P<plain>\w+)|\$)|\$")


class _Parser:
    """Translates one pattern, left to right; used once.

    Flags are not handed on to Python's parser: each piece is written for the flags in force where it stands.
    """

    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._flags = frozenset[str]()
        self._depth = 0
        self.names: dict[str, list[int]] = {}
        self._groups = 0

    def parse(self) -> str:
        whole = self._alternatives()
        if self._at < len(self._text):
            raise GoRegexpError("there is a ) without (")
        return whole.text

    def _alternatives(self) -> _Piece:
        """Parse up to a closing parenthesis or the end, leaving it unread."""
        pieces: list[_Piece] = []
        branches: list[str] = []
        copies = 1
        may_be_empty = False
        while self._at < len(self._text) and self._text[self._at] != ")":
            char = self._text[self._at]
            if char == "|":
                self._at += 1
                branches.append("".join(piece.text for piece in pieces))
                copies = max([copies, *(piece.copies for piece in pieces)])
                may_be_empty = may_be_empty or all(piece.may_be_empty for piece in pieces)
                pieces = []
            elif char in "*+?" or (char == "{" and _REPEAT.match(self._text, self._at)):
                self._repeat(pieces)
            else:
                pieces += self._piece()
        branches.append("".join(piece.text for piece in pieces))
        copies = max([copies, *(piece.copies for piece in pieces)])
        may_be_empty = may_be_empty or all(piece.may_be_empty for piece in pieces)
        return _Piece("|".join(branches), copies=copies, may_be_empty=may_be_empty)

    def _repeat(self, pieces: list[_Piece]) -> None:
        operator, copies = self._operator()
        if not pieces:
            raise GoRegexpError(f"nothing stands before {operator}")
        last = pieces[-1]
        if last.end == self._at - len(operator):
            raise GoRegexpError(f"one repetition stands directly on another at {operator}")
        if last.copies * copies > _MAX_REPEAT:
            raise GoRegexpError(f"it repeats more than {_MAX_REPEAT} times")
        if last.may_be_empty and operator not in ("?", "{0}", "{0,1}", "{1}", "{1,1}"):
            raise GoRegexpError(f"what is repeated by {operator} may be empty, which is not supported here")
        lazy = self._text.startswith("?", self._at)
        self._at += lazy
        if "U" in self._flags:
            lazy = not lazy
        text = f"(?:{last.text}){operator}{'?' if lazy else ''}"
        may_be_empty = last.may_be_empty or operator[0] in "*?" or operator.startswith("{0")
        pieces[-1] = _Piece(text, end=self._at, copies=last.copies * copies, may_be_empty=may_be_empty)

    def _operator(self) -> tuple[str, int]:
        """Read a repetition; return it and how many copies of the piece it makes."""
        bounds = _REPEAT.match(self._text, self._at)
        if not bounds:
            operator = self._text[self._at]
            self._at += 1
            return operator, 1
        low = int(bounds[1][:5])
        high = int(bounds[3][:5]) if bounds[3] else low
        if max(low, high) > _MAX_REPEAT or (bounds[3] and low > high):
            raise GoRegexpError(f"{bounds[0]} is not a repeat count: 0 to {_MAX_REPEAT}, the smaller first")
        self._at = bounds.end()
        # {0} makes no copy at all, so what it repeats does not count; {0,} is as one.
        return bounds[0], max(low, high) if bounds[3] or not bounds[2] else max(low, 1)

    def _piece(self) -> list[_Piece]:
        char = self._text[self._at]
        if char == "(":
            return self._group()
        if char == "[":
            return [_Piece(self._fold(self._class()))]
        if char == "\\":
            return self._escape()
        self._at += 1
        if char in _SPECIAL:
            flag, on, off = _SPECIAL[char]
            return [_Piece(on if flag in self._flags else off, may_be_empty=char != ".")]
        return [self._literal(char)]

    def _group(self) -> list[_Piece]:
        outside = self._flags
        opening = self._open_group()
        if opening is None:
            return []
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise GoRegexpError("it is nested too deeply")
        inner = self._alternatives()
        if self._at >= len(self._text):
            raise GoRegexpError("a ) is missing")
        self._at += 1
        self._depth -= 1
        self._flags = outside
        return [_Piece(f"{opening}{inner.text})", copies=inner.copies, may_be_empty=inner.may_be_empty)]

    def _open_group(self) -> str | None:
        """Read what opens a group; None if it only set flags for the rest of the enclosing group."""
        if not self._text.startswith("(?", self._at):
            self._at += 1
            self._groups += 1
            return "("
        self._at += 2
        for prefix in ("P<", "<"):
            if self._text.startswith(prefix, self._at) and not self._text.startswith(("<=", "<!"), self._at):
                return self._open_named(self._at + len(prefix))
        match = _FLAGS.match(self._text, self._at)
        if not match:
            raise GoRegexpError(f"Go knows no (?{self._text[self._at : self._at + 2]}")
        self._at = match.end()
        self._flags = (self._flags | frozenset(match[1])) - frozenset(match[2] or "")
        return "(?:" if match[3] == ":" else None

    def _open_named(self, start: int) -> str:
        name, closed, _rest = self._text[start:].partition(">")
        if not closed or not _NAME.fullmatch(name):
            raise GoRegexpError("the name of a group is missing or malformed")
        self._at = start + len(name) + 1
        self._groups += 1
        # Go lets groups share a name: the first of them that took part in the match gives the value.
        self.names.setdefault(name, []).append(self._groups)
        return "("

    def _escape(self) -> list[_Piece]:
        letter = self._text[self._at + 1 : self._at + 2]
        if letter in _ASSERTIONS:
            self._at += 2
            return [_Piece(_ASSERTIONS[letter], may_be_empty=True)]
        if letter == "Q":
            quoted, closed, _rest = self._text[self._at + 2 :].partition(r"\E")
            self._at += 2 + len(quoted) + len(closed)
            return [self._literal(char) for char in quoted]
        if perl := self._perl_class():
            return [_Piece(self._fold(f"[{perl}]"))]
        return [self._literal(self._escaped_char())]

    def _perl_class(self) -> str | None:
        r"""Read ``\d`` and its like, if one stands here; return it as it is written inside brackets."""
        if not self._text.startswith("\\", self._at):
            return None
        letter = self._text[self._at + 1 : self._at + 2]
        if letter in ("p", "P"):
            raise GoRegexpError("Unicode classes (\\p) are not supported here")
        found = _PERL.get(letter) or _PERL_NOT.get(letter)
        self._at += 2 if found else 0
        return found

    def _escaped_char(self) -> str:
        """Read an escape that stands for one character."""
        body = self._at + 1
        letter = self._text[body : body + 1]
        if letter in _CONTROL_ESCAPES:
            self._at += 2
            return _CONTROL_ESCAPES[letter]
        if match := _HEX_ESCAPE.match(self._text, body):
            return self._code_point(match, int(match[1] or match[2], 16))
        if match := _OCTAL_ESCAPE.match(self._text, body):
            return self._code_point(match, int(match[0], 8))
        if not letter or not letter.isascii() or letter.isalnum():
            raise GoRegexpError(f"Go knows no escape \\{letter}" if letter else "it ends in a backslash")
        self._at += 2
        return letter

    def _code_point(self, match: re.Match[str], number: int) -> str:
        if number >= _CODE_POINTS:
            raise GoRegexpError(f"\\{match[0]} is not a character")
        self._at = match.end()
        return chr(number)

    def _class(self) -> str:
        self._at += 1
        negated = self._text.startswith("^", self._at)
        self._at += negated
        items: list[str] = []
        while not items or not self._text.startswith("]", self._at):
            if self._at >= len(self._text):
                raise GoRegexpError("a ] is missing")
            items.append(self._class_item())
        self._at += 1
        return f"[{'^' if negated else ''}{''.join(items)}]"

    def _class_item(self) -> str:
        if self._text.startswith("[:", self._at) and self._text.find(":]", self._at + 2) >= 0:
            match = _POSIX_CLASS.match(self._text, self._at)
            if not match or match[2] not in _POSIX:
                raise GoRegexpError("there is an unknown [:class:]")
            self._at = match.end()
            return (_POSIX_NOT if match[1] else _POSIX)[match[2]]
        if perl := self._perl_class():
            return perl
        low = self._class_char()
        if not self._text.startswith("-", self._at) or self._text.startswith("-]", self._at):
            return _in_class(low)
        self._at += 1
        high = self._class_char()
        if high < low:
            raise GoRegexpError("the ends of a range are the wrong way round")
        return f"{_in_class(low)}-{_in_class(high)}"

    def _class_char(self) -> str:
        if self._at >= len(self._text):
            raise GoRegexpError("a ] is missing")
        if self._text[self._at] == "\\":
            return self._escaped_char()
        self._at += 1
        return self._text[self._at - 1]

    def _literal(self, char: str) -> _Piece:
        return _Piece(self._fold(re.escape(char)))

    def _fold(self, text: str) -> str:
        return f"(?i:{text})" if "i" in self._flags else text


@dataclass(frozen=True, slots=True)
class _Piece:
    """One repeatable piece of a pattern, in Python's syntax.

    ``end`` is where its repetition ended in the Go pattern (-1: it has none); ``copies`` is how many times
    its innermost part is repeated; ``may_be_empty`` is whether it may match nothing.
    """

    text: str
    end: int = -1
    copies: int = 1
    may_be_empty: bool = False


def _in_class(char: str) -> str:
    return f"\\{char}" if char.isascii() and not char.isalnum() else char
