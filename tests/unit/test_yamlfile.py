"""Safe YAML: plain values, places, bounds, and messages without values."""

from __future__ import annotations

from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bundler import yamlfile
from bundler.errors import AirgapSyncError, BadImageListError, BadRegistriesFileError
from bundler.yamlfile import YamlDocument

TEXT = """\
# a comment
mirrors:
  docker.io:
    endpoint:
      - https://one
      -   https://two
  "*":
configs:
  host:5000: {auth: {username: on, password: 0123}}
"""


def load(text: str) -> YamlDocument:
    return yamlfile.load(text, "r.yaml", error=BadRegistriesFileError)


def refused(text: str) -> AirgapSyncError:
    with pytest.raises(BadRegistriesFileError) as caught:
        load(text)
    return caught.value


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ((), (2, 1), (2, 1)),
        (("mirrors",), (3, 3), (2, 1)),
        (("mirrors", "docker.io"), (4, 5), (3, 3)),
        (("mirrors", "docker.io", "endpoint", 0), (5, 9), (5, 9)),
        (("mirrors", "docker.io", "endpoint", 1), (6, 11), (6, 11)),
        (("mirrors", "*"), (7, 7), (7, 3)),
        (("configs", "host:5000", "auth", "password"), (9, 46), (9, 36)),
        (("configs", "nowhere", "auth"), (9, 3), (8, 1)),
        (("mirrors", "docker.io", "endpoint", 7), (5, 7), (4, 5)),
    ],
)
def test_places(path: yamlfile.Path, value: tuple[int, int], key: tuple[int, int]) -> None:
    document = load(TEXT)
    assert document.where(path) == value
    assert document.where_key(path) == key
    assert document.place(path) == f"r.yaml:{key[0]}"


def test_scalars_as_written_and_as_typed() -> None:
    document = load(TEXT)
    auth: yamlfile.Path = ("configs", "host:5000", "auth")
    assert document.get((*auth, "username")) is True
    assert document.text((*auth, "username")) == "on"
    assert document.get((*auth, "password")) == 0o123
    assert document.text((*auth, "password")) == "0123"
    assert document.text(("mirrors", "*")) is None
    assert document.mapping(("mirrors", "*")) == {}
    assert document.sequence(("mirrors", "nowhere")) == []
    assert document.get(("mirrors", 0)) is None
    assert document.get(("mirrors", "docker.io", "endpoint", 5)) is None


def test_keys_are_the_text_as_written() -> None:
    assert load("on: 1\n1.30: 2\n0x10: 3\n~: 4\n2024-01-31: 5\n").data == {
        "on": 1,
        "1.30": 2,
        "0x10": 3,
        "~": 4,
        "2024-01-31": 5,
    }


def test_dates_stay_text() -> None:
    assert load("tag: 2024-01-31\n").data == {"tag": "2024-01-31"}


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "~", "\ufeff"])
def test_empty_documents(text: str) -> None:
    document = load(text)
    assert document.data is None
    assert document.where(("a", 1)) == (document.where(()))
    assert document.mapping(()) == {}


def test_aliases_and_merge_keys() -> None:
    document = load("a: &x {one: 1, two: 2}\nb:\n  <<: *x\n  two: 3\nc: {<<: [*x, {four: 4}]}\nd: *x\n")
    assert document.data["b"] == {"one": 1, "two": 3}
    assert document.data["c"] == {"one": 1, "two": 2, "four": 4}
    assert document.data["d"] == document.data["a"]
    assert document.where(("b", "two")) == (4, 8)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("a: 1\nb: 2\na: 3\n", "3:1", "same key as in line 1"),
        ("a: {b: 1, b: 2}\n", "1:11", "same key"),
        ("a: !!python/object/apply:os.system [id]\n", "1:4", "tag"),
        ("a: !!binary aGk=\n", "1:4", "tag"),
        ("a: !!set {x}\n", "1:4", "tag"),
        ("a: !!int hunter2\n", "1:4", "number"),
        ("a: " + "9" * 5000 + "\n", "1:4", "number"),
        ("a: 0b_\n", "1:4", "number"),
        ("[a, b]: 1\n", "1:1", "key must be plain text"),
        ("a: [1, 2\nb: 3\n", "2:2", "expected"),
        ("a: b: c\n", "1:5", "mapping values are not allowed here"),
        ("a:\n\t- b\n", "2:1", "cannot start any token"),
        ("a: 1\n--- \nb: 2\n", "2:1", "expected a single document"),
        ("a: \x00\n", "1:4", "character"),
        ("a: 1\nb: \x07", "2:4", "character"),
        ("a: &x [*x]\n", "1:4", "contains itself"),
        ("a: {<<: 1}\n", "1:9", "<< needs"),
    ],
)
def test_refused_with_a_place(text: str, where: str, what: str) -> None:
    error = refused(text)
    assert error.message.startswith(f"r.yaml:{where}: ")
    assert what in error.message
    assert error.context["file"] == "r.yaml"
    assert f"{error.context['line']}:{error.context['column']}" == where


@pytest.mark.parametrize(
    "text",
    [
        "password: *hunter2",
        "password: !hunter2 x",
        "password: !hunter2!x y",
        "password: @hunter2",
        "password: %hunter2",
        "password: hunter2: x",
        'password: "hunter2\\q"',
        "password: 'hunter2",
        "password: [hunter2",
        "password: &hunter2 [*hunter2]",
        "password: !!int hunter2",
        "%TAG ! hunter2\n--- !a b",
    ],
)
def test_messages_quote_no_value(text: str) -> None:
    error = refused(text)
    assert "hunter2" not in f"{error.message} {error.hint} {error.context}"


def test_alias_bombs_and_depth_are_bounded() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "more than" in refused("\n".join(rows)).message
    assert "too deeply" in refused("[" * 5000).message
    assert "too deeply" in refused("[" * 5000 + "]" * 5000).message
    assert "larger than" in refused("x" * (yamlfile.MAX_DOCUMENT_BYTES + 1)).message
    assert "larger than" in refused("\u20ac" * (yamlfile.MAX_DOCUMENT_BYTES // 2)).message


def test_typed_access_refuses_the_wrong_type_with_a_place() -> None:
    document = load("version: 1.30\nlist: x\nmap: [1]\nflag: 'true'\non: off\ntext: {a: 1}\n")
    with pytest.raises(BadRegistriesFileError, match=r"^r.yaml:1:10: version must be text, but YAML reads a num") as e:
        document.string(("version",))
    assert "quotes" in e.value.hint
    with pytest.raises(BadRegistriesFileError, match=r"^r.yaml:2:7: list must be a list"):
        document.sequence(("list",))
    with pytest.raises(BadRegistriesFileError, match=r"^r.yaml:3:6: map must be a mapping"):
        document.mapping(("map",))
    with pytest.raises(BadRegistriesFileError, match=r"^r.yaml:4:7: flag must be true or false"):
        document.boolean(("flag",))
    with pytest.raises(BadRegistriesFileError, match=r"^r.yaml:6:7: text must be text, not a mapping"):
        document.text(("text",))
    assert document.boolean(("on",)) is False
    assert document.boolean(("nowhere",)) is None
    assert document.string(("flag",)) == "true"
    assert document.string(("list",)) == "x"


def test_the_caller_chooses_the_error() -> None:
    with pytest.raises(BadImageListError):
        yamlfile.load("a: [", "x", error=BadImageListError)


def test_dump_is_block_style_ordered_and_quotes_what_looks_like_something_else() -> None:
    shared = ["x"]
    data = {"b": "on", "a": "1e3", "c": "1.30", "d": "0o17", "e": shared, "f": shared, "g": "a: b " * 40, "h": "ü"}
    text = yamlfile.dump(data)
    assert text.startswith("b: 'on'\na: '1e3'\nc: '1.30'\nd: '0o17'\ne:\n- x\nf:\n- x\ng: 'a: b ")
    assert text.endswith("h: ü\n")
    assert yamlfile.dump(data) == text
    assert load(text).data == data


def load_all(text: str) -> list[YamlDocument]:
    return yamlfile.load_all(text, "r.yaml", error=BadRegistriesFileError)


def test_several_documents_with_places_in_the_whole_text() -> None:
    first, second = load_all("# one\na: &x 1\n---\n\n---\nb:\n  - c\n...\n---\n~\n")
    assert (first.data, second.data) == ({"a": 1}, {"b": ["c"]})
    assert first.place(("a",)) == "r.yaml:2"
    assert second.where(("b", 0)) == (7, 5)
    assert second.error_at(("b",), "no").message == "r.yaml:7:3: no"


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n---\n", "~\n--- ~\n"])
def test_no_documents(text: str) -> None:
    assert load_all(text) == []


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("a: 1\n---\na: 1\na: 2\n", "4:1", "same key as in line 3"),
        ("a: 1\n---\nb: [\n", "4:1", "expected"),
        ("a: &x 1\n---\nb: *x\n", "3:4", "undefined alias"),
        ("a: 1\n--- !x\nb: 1\n", "2:5", "tag"),
        ("a: 1\n---\nb: \x07", "3:4", "character"),
    ],
)
def test_one_bad_document_of_several(text: str, where: str, what: str) -> None:
    with pytest.raises(BadRegistriesFileError, match=what) as caught:
        load_all(text)
    assert caught.value.message.startswith(f"r.yaml:{where}: ")


def test_the_bound_is_that_of_all_documents_together() -> None:
    row = f"- [{', '.join(['x'] * 99)}]\n"
    text = row * 250
    assert len(load_all(f"{text}---\n{text}"[: -len(row)])) == 2
    for many in (f"{text}---\n{text}---\n[x]\n", "--- x\n" * (yamlfile.MAX_NODES + 1)):
        with pytest.raises(BadRegistriesFileError, match="more than 50000 values"):
            load_all(many)
    with pytest.raises(BadRegistriesFileError, match="larger than"):
        load_all("x" * (yamlfile.MAX_DOCUMENT_BYTES + 1))
    with pytest.raises(BadRegistriesFileError, match="too deeply"):
        load_all("a: 1\n---\n" + "[" * 5000)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(PLAIN)
def test_dump_then_load_gives_the_same(data: object) -> None:
    text = yamlfile.dump(data)
    assert yaml.safe_load(text) == data
    assert load(text).data == data


@given(st.lists(PLAIN, max_size=4))
def test_several_dumped_then_loaded_give_the_same(data: list[object]) -> None:
    text = yamlfile.dump_all(data)
    assert list(yaml.safe_load_all(text)) == data
    assert [document.data for document in load_all(text)] == [item for item in data if item is not None]


@given(st.text(alphabet="ab:-[]{}&*!<'\"\n ,#|>~1.", max_size=40))
def test_any_text_loads_or_is_refused(text: str) -> None:
    with suppress(BadRegistriesFileError):
        load(text)
    with suppress(BadRegistriesFileError):
        load_all(text)
