"""Safe YAML in and out, with line numbers; the only user of yaml.

Invariants:

- Only plain values come out (dict, list, str, int, float, bool, None). No tag builds an object.
- Mapping keys are the text as it is written, so ``on:`` stays ``on``. Equal keys in one mapping are refused.
- A document is bounded in bytes, and in nodes after its aliases are expanded: a small file cannot grow large.
- Messages read ``NAME:LINE:COLUMN: what`` and never quote a value: it may be a password.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bundler.errors import AirgapSyncError

_Composed = TypeVar("_Composed")
Path: TypeAlias = tuple[str | int, ...]

MAX_DOCUMENT_BYTES = 1024 * 1024
MAX_NODES = 50_000

_TAG = "tag:yaml.org,2002:"
_TYPED_TAGS = frozenset(_TAG + name for name in ("int", "float", "bool", "null"))
# A date stays the text it is: no file of ours holds dates, and a tag such as 2024-01-31 must survive.
_TEXT_TAGS = frozenset(_TAG + name for name in ("str", "timestamp", "value", "merge"))
_MERGE_TAG = _TAG + "merge"
# What another YAML reader may take for a number although PyYAML does not (1e3, 0o17, 12:30).
_NUMBER_LIKE = re.compile(r"[-+.]?[0-9][0-9A-Fa-fxob_.:eE+-]*")
# Line breaks that do not survive in YAML but as escapes.
_LINE_BREAKS = frozenset("\x85\u2028\u2029\ufeff")
# Patterns and what replaces them: allowed without quotes, and never written so.
_PATTERN_MARKS = frozenset("^$")
# In a parser's message, the start of a quoted name; a single character or a <token> tells nothing.
_QUOTED_NAME = re.compile(r"""[ ]['"](?!<|\\?.['"])""")


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a value and its key start (from 1), and a scalar's text as written."""

    value: tuple[int, int]
    key: tuple[int, int]
    text: str | None


@dataclass(frozen=True, slots=True, eq=False)
class YamlDocument:
    """One YAML document: its plain ``data``, and where each part of it stands.

    A path names a part: keys and list indexes from the top, ``("mirrors", "docker.io", "endpoint", 0)``.
    A path that does not exist stands where its longest existing parent does.
    """

    name: str
    data: Any = field(repr=False)
    _spots: dict[Path, _Spot] = field(repr=False)
    _error: type[AirgapSyncError] = field(repr=False)

    def where(self, path: Path) -> tuple[int, int]:
        """Return line and column (from 1) of the value at a path."""
        return self._spot(path).value

    def where_key(self, path: Path) -> tuple[int, int]:
        """Return line and column (from 1) of the key at a path; for a list item, of the item."""
        return self._spot(path).key

    def place(self, path: Path) -> str:
        """Return ``NAME:LINE`` of the key at a path, for warnings."""
        return f"{self.name}:{self.where_key(path)[0]}"

    def error_at(self, path: Path, what: str, *, hint: str | None = None) -> AirgapSyncError:
        """Return (not raise) the caller's error class, saying ``NAME:LINE:COLUMN: what``."""
        return _error(self._error, self.name, self.where(path), what, hint)

    def get(self, path: Path) -> Any:
        """Return the value at a path, or None if there is none."""
        value = self.data
        for step in path:
            if isinstance(step, str) and isinstance(value, dict):
                value = value.get(step)
            elif isinstance(step, int) and isinstance(value, list) and 0 <= step < len(value):
                value = value[step]
            else:
                return None
        return value

    def mapping(self, path: Path) -> dict[str, Any]:
        """Return the mapping at a path; empty if there is none or it is null.

        Raises:
            AirgapSyncError: As the class given to ``load``; the value is not a mapping.
        """
        value = self.get(path)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.error_at(path, f"{_label(path)} must be a mapping (KEY: VALUE), not {_kind(value)}")
        return value

    def sequence(self, path: Path) -> list[Any]:
        """Return the list at a path; empty if there is none or it is null.

        Raises:
            AirgapSyncError: As the class given to ``load``; the value is not a list.
        """
        value = self.get(path)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error_at(path, f"{_label(path)} must be a list (- ITEM), not {_kind(value)}")
        return value

    def text(self, path: Path) -> str | None:
        """Return the scalar at a path as it is written, whatever its YAML type; None if null or absent.

        For files whose reader takes any scalar as text: ``password: 0123`` is the text ``0123``.

        Raises:
            AirgapSyncError: As the class given to ``load``; the value is a mapping or a list.
        """
        value = self.get(path)
        if value is None:
            return None
        if isinstance(value, dict | list):
            raise self.error_at(path, f"{_label(path)} must be text, not {_kind(value)}")
        return self._spot(path).text

    def string(self, path: Path) -> str | None:
        """Return the string at a path; None if null or absent.

        Raises:
            AirgapSyncError: As the class given to ``load``; YAML sees something else: ``1.30``, ``on``.
        """
        value = self.get(path)
        if value is None or isinstance(value, str):
            return value
        hint = None if isinstance(value, dict | list) else "Put the value in quotes."
        raise self.error_at(path, f"{_label(path)} must be text, but YAML reads {_kind(value)} here", hint=hint)

    def boolean(self, path: Path) -> bool | None:
        """Return the boolean at a path; None if null or absent.

        Raises:
            AirgapSyncError: As the class given to ``load``; the value is not a boolean.
        """
        value = self.get(path)
        if value is None or isinstance(value, bool):
            return value
        raise self.error_at(path, f"{_label(path)} must be true or false (without quotes), not {_kind(value)}")

    def _spot(self, path: Path) -> _Spot:
        for length in range(len(path), 0, -1):
            if spot := self._spots.get(path[:length]):
                return spot
        return self._spots[()]


def load(text: str, name: str, *, error: type[AirgapSyncError]) -> YamlDocument:
    """Read one YAML document.

    Args:
        text: The document; an empty one has the data None.
        name: What messages call it, usually the path as the user wrote it.
        error: The class to raise.

    Raises:
        AirgapSyncError: As the class given; the text is not YAML, or is refused by the module's invariants.
    """
    _check_size(text, name, error)
    return _Reader(name, error).read(text)


def load_all(text: str, name: str, *, error: type[AirgapSyncError]) -> list[YamlDocument]:
    """Read a stream of YAML documents, as ``---`` separates them.

    Places are those in the whole text. Documents that are empty or null are left out.

    Args:
        text: The stream; bounded as one document is, in bytes and in nodes.
        name: What messages call it, usually the path as the user wrote it.
        error: The class to raise.

    Raises:
        AirgapSyncError: As the class given; the text is not YAML, or is refused by the module's invariants.
    """
    _check_size(text, name, error)
    documents = []
    loader, nodes = _Reader(name, error).compose_all(text)
    left = MAX_NODES
    for node in nodes:
        reader = _Reader(name, error, loader, left)
        document = reader.build(node)
        left = reader.left
        if document.data is not None:
            documents.append(document)
    return documents


def dump(data: Any) -> str:
    """Write plain data as a YAML document: block style, keys in their order, no aliases, no folded lines.

    The same data gives the same text; strings that any YAML version may take for something else are quoted.
    """
    return yaml.dump(
        data,
        Dumper=_PlainDumper,
        sort_keys=False,
        default_flow_style=False,
        allow_unicode=True,
        width=2**31,
    )


def dump_all(documents: Iterable[Any]) -> str:
    """Write several documents as one stream, each as ``dump`` writes it, with ``---`` between them."""
    return "---\n".join(dump(document) for document in documents)


def _check_size(text: str, name: str, error: type[AirgapSyncError]) -> None:
    if len(text) > MAX_DOCUMENT_BYTES or len(text.encode("utf-8", "replace")) > MAX_DOCUMENT_BYTES:
        raise error(f"{name}: larger than {MAX_DOCUMENT_BYTES} bytes")


class _PlainDumper(yaml.SafeDumper):
    """Safe dumper without aliases, which quotes whatever looks like a number."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the signature is yaml's
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        style = None
        if _NUMBER_LIKE.fullmatch(data):
            style = "'"
        elif _LINE_BREAKS & set(data) or _PATTERN_MARKS & set(data):
            style = '"'
        return self.represent_scalar(_TAG + "str", data, style=style)


_PlainDumper.add_representer(str, _PlainDumper.represent_text)


class _Reader:
    """Builds a YamlDocument from the node graph; used once."""

    def __init__(
        self,
        name: str,
        error: type[AirgapSyncError],
        loader: yaml.SafeLoader | None = None,
        left: int = MAX_NODES,
    ) -> None:
        self._name = name
        self._error = error
        self._spots: dict[Path, _Spot] = {(): _Spot((1, 1), (1, 1), None)}
        self._loader = loader
        #: How many nodes there may be; after reading, how many more there might have been.
        self.left = left

    def read(self, text: str) -> YamlDocument:
        root = self._compose(text, lambda loader: loader.get_single_node())
        return self.build(root)

    def build(self, root: yaml.Node | None) -> YamlDocument:
        data = None
        if root is not None:
            self.left -= self._count(root, {})
            if self.left < 0:
                self._refuse(root, _TOO_MANY)
            data = self._build(root, (), key=root)
        return YamlDocument(self._name, data, self._spots, self._error)

    def compose_all(self, text: str) -> tuple[yaml.SafeLoader | None, list[yaml.Node]]:
        def nodes(loader: yaml.SafeLoader) -> list[yaml.Node]:
            found = []
            while loader.check_node():
                node = loader.get_node()
                if node is not None:
                    found.append(node)
            return found

        found = self._compose(text, nodes)
        return self._loader, found

    def _compose(self, text: str, read: Callable[[yaml.SafeLoader], _Composed]) -> _Composed:
        # The loader in pure Python on purpose: deep nesting ends in RecursionError, not in a crash.
        try:
            self._loader = yaml.SafeLoader(text)
            return read(self._loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            raise _error(self._error, self._name, where, _words(error), _SYNTAX_HINT) from None
        except yaml.reader.ReaderError as error:
            before = text[: error.position]
            where = (before.count("\n") + 1, error.position - before.rfind("\n"))
            raise _error(self._error, self._name, where, "a character that YAML does not allow", None) from None
        except (yaml.YAMLError, ValueError) as error:
            raise _error(self._error, self._name, (1, 1), "not YAML", None) from error
        except RecursionError:
            raise _error(self._error, self._name, (1, 1), "nested too deeply", None) from None

    def _count(self, node: yaml.Node, done: dict[int, int | None]) -> int:
        """Count the nodes below one, aliases expanded, each shared node visited once."""
        known = done.get(id(node), 0)
        if known is None:
            self._refuse(node, "an alias that contains itself")
        if known:
            return known
        done[id(node)] = None
        total = 1
        for child in _children(node):
            total += self._count(child, done)
            if total > self.left:
                self._refuse(node, _TOO_MANY)
        done[id(node)] = total
        return total

    def _build(self, node: yaml.Node, path: Path, *, key: yaml.Node) -> Any:
        text = node.value if isinstance(node, yaml.ScalarNode) else None
        self._spots[path] = _Spot(_where(node), _where(key), text)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return {name: self._build(value, (*path, name), key=at) for name, at, value in self._pairs(node)}
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self._build(item, (*path, at), key=item) for at, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _TEXT_TAGS:
            return str(node.value)
        if isinstance(node, yaml.ScalarNode) and node.tag in _TYPED_TAGS and self._loader is not None:
            try:
                return self._loader.construct_object(node)
            except (yaml.YAMLError, ValueError):
                self._refuse(node, "a number that cannot be read")
        return self._refuse(node, "a tag (!) is not allowed here", _QUOTE_HINT)

    def _pairs(self, node: yaml.MappingNode) -> list[tuple[str, yaml.Node, yaml.Node]]:
        """Return (key, its node, its value's node); merged keys (``<<``) give way to the mapping's own."""
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if key.tag == _MERGE_TAG:
                for name, at, inner in self._merged(value):
                    merged.setdefault(name, (at, inner))
                continue
            if not isinstance(key, yaml.ScalarNode):
                self._refuse(key, "a key must be plain text")
            if key.value in own:
                self._refuse(key, f"the same key as in line {_where(own[key.value][0])[0]}")
            own[key.value] = (key, value)
        return [(name, *nodes) for name, nodes in {**merged, **own}.items()]

    def _merged(self, value: yaml.Node) -> list[tuple[str, yaml.Node, yaml.Node]]:
        sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
        pairs = []
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                self._refuse(source, "<< needs a mapping or a list of mappings")
            pairs += self._pairs(source)
        return pairs

    def _refuse(self, node: yaml.Node, what: str, hint: str | None = None) -> NoReturn:
        raise _error(self._error, self._name, _where(node), what, hint)


_TOO_MANY = f"more than {MAX_NODES} values"
_QUOTE_HINT = "Put values that start with one of * & ! @ % ` or contain `: ` or ` #` in quotes."
_SYNTAX_HINT = f"Indent with spaces, not tabs. {_QUOTE_HINT}"


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _where(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _error(
    kind: type[AirgapSyncError], name: str, where: tuple[int, int], what: str, hint: str | None
) -> AirgapSyncError:
    line, column = where
    return kind(f"{name}:{line}:{column}: {what}", hint=hint, context={"file": name, "line": line, "column": column})


def _words(error: yaml.MarkedYAMLError) -> str:
    """Return a parser's words, each sentence up to the first name it quotes, which may be part of a secret."""
    sentences = [text for text in (error.context, error.problem) if text]
    return ", ".join(_QUOTED_NAME.split(text, maxsplit=1)[0] for text in sentences) or "not YAML"


def _label(path: Path) -> str:
    return ".".join(str(step) for step in path)[:120] or "the document"


def _kind(value: Any) -> str:
    names = {
        dict: "a mapping",
        list: "a list",
        str: "text",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return names[type(value)]
