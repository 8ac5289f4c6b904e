"""Go's regular expressions: the expected values were taken from Go's own regexp package (1.26)."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.k3s.goregexp import GoRegexp, GoRegexpError

SEGMENT = st.from_regex(r"[a-z0-9]{1,8}(?:[._-][a-z0-9]{1,8}){0,2}", fullmatch=True)
REPOSITORIES = st.lists(SEGMENT, min_size=1, max_size=4).map("/".join)


@pytest.mark.parametrize(
    ("pattern", "template", "text", "expected"),
    [
        # Harbor projects, the usual case.
        ("^(.*)$", "proj/$1", "rancher/pause", "proj/rancher/pause"),
        ("(.*)", "proj/$1", "rancher/pause", "proj/rancher/pause"),
        ("(.*)", "$1/", "", "/"),
        ("^rancher/(.*)", "mirror/rancher-images/$1", "rancher/mirrored-pause", "mirror/rancher-images/mirrored-pause"),
        ("^rancher/(.*)", "x/$1", "library/nginx", "library/nginx"),
        ("", "proj/", "rancher", "proj/rproj/aproj/nproj/cproj/hproj/eproj/rproj/"),
        ("^", "proj/", "rancher/pause", "proj/rancher/pause"),
        ("a*", "x", "baac", "xbxcx"),
        ("a|", "x", "ab", "xbx"),
        # Templates.
        ("(a)(b)", "$2$1", "ab", "ba"),
        ("(a)", "$1x", "a", ""),
        ("(a)", "${1}x", "a", "ax"),
        ("(a)", "$1-x", "a", "a-x"),
        ("(a)", "$$1", "a", "$1"),
        ("(a)", "$", "a", "$"),
        ("(a)", "x${", "a", "x${"),
        ("(a)", "${}", "a", "${}"),
        ("(a)", "${1", "a", "${1"),
        ("(a)", "$-", "a", "$-"),
        ("(a)", "$0$2$01", "a", "a"),
        ("(a)|(b)", "[$2]", "a", "[]"),
        ("(?P<one>a)", "<$one>", "a", "<a>"),
        ("(?<one>a)", "<${one}>", "a", "<a>"),
        ("(?<one>a)", "<$ones>", "a", "<>"),
        ("(?P<x>a)?(?P<x>b)", "[$x]", "b", "[b]"),
        # Syntax that Python writes otherwise or not at all.
        (r"pause\z", "x", "rancher/pause", "rancher/x"),
        (r"pause$", "x", "rancher/pause", "rancher/x"),
        (r"[[:alpha:]]+", "x", "ab1c", "x1x"),
        (r"[[:^alpha:]]", "x", "ab1c", "abxc"),
        (r"[^[:alpha:]/]", "x", "ab1/c", "abx/c"),
        (r"\Qa.c\E", "x", "abca.c", "abcx"),
        (r"\Qa.", "x", "a.ab", "xab"),
        (r"a{,2}", "x", "aaa{,2}", "aax"),
        (r"a{2}", "x", "aaa", "xa"),
        (r"a{02}", "x", "aaa{02}", "aax"),
        (r"(?U)a+", "x", "aaa", "xxx"),
        (r"(?i)RANCHER", "x", "rancher/r", "x/r"),
        (r"a(?i)B|C", "x", "ab/c/abc", "x/x/xx"),
        (r"(?i:A)B", "x", "ab/aB", "ab/x"),
        (r"(?i)(?-i:A)b", "x", "AB/ab", "x/ab"),
        (r"(?s).(?-s:.)", "x", "abc", "xc"),
        (r"(?m)^a$", "x", "a", "x"),
        (r"[]a]", "x", "a]b", "xxb"),
        (r"[^]a]", "x", "a]b", "a]x"),
        (r"[a-]", "x", "a-b", "xxb"),
        (r"[a\-z]", "x", "a-bz", "xxbx"),
        (r"[\d/]", "x", "a1/b", "axxb"),
        (r"[&&a]", "x", "a&", "xx"),
        (r"[\Sx]", "x", "a b", "x x"),
        (r"\x61\x{62}\143\/\_", "x", "abc/_", "x"),
        (r"^?a", "x", "aa", "xx"),
        (r"\B", ".", "", "."),
        (r"(a|)(b*)", "<$1$2>", "abb/", "<abb>/<>"),
        (r"}]", "x", "a}]", "ax"),
        (r"(?)a", "x", "a", "x"),
        (r"(?:a{2}){500}|b", "x", "b", "x"),
    ],
)
def test_replace_all(pattern: str, template: str, text: str, expected: str) -> None:
    assert GoRegexp.compile(pattern).replace_all(text, template) == expected


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=a)",
        "(?!a)",
        "(?<=a)",
        "(?<!a)",
        r"(a)\1",
        "(?P<n>a)(?P=n)",
        "(?>a)",
        "(?#c)",
        "(?x)a",
        "(?a)a",
        "(?(1)a|b)",
        "a*+",
        "a**",
        "a{2}{3}",
        "a{2}+",
        "a{1001}",
        "(a{100}){11}",
        "a{3,2}",
        "*a",
        "a|*",
        "(?i)*",
        "{2}",
        "(a",
        "a)",
        "(?",
        "(?P<",
        "(?<",
        "(?P<n",
        "(?P<>a)",
        "(?P<a-b>a)",
        "(?-)a",
        "(?i-)a",
        "[a",
        "[]",
        "[z-a]",
        r"[a-\d]",
        r"[\b]",
        "[[:foo:]]",
        "\\",
        r"\Z",
        r"\C",
        r"\8",
        r"\pN",
        r"\p{Greek}",
        r"[\PL]",
        r"\x",
        r"\x{110000}",
        r"\é",
        r"\E",
        "(.*)*",
        "(a|)+",
        "(a?){2}",
        "^*",
        "(" * 200 + ")" * 200,
    ],
)
def test_refused(pattern: str) -> None:
    with pytest.raises(GoRegexpError) as caught:
        GoRegexp.compile(pattern)
    assert str(caught.value)


@given(REPOSITORIES, SEGMENT)
def test_an_anchored_rule_is_a_prefix(name: str, project: str) -> None:
    assert GoRegexp.compile("^(.*)$").replace_all(name, f"{project}/$1") == f"{project}/{name}"
    assert GoRegexp.compile("(.*)").replace_all(name, f"{project}/${{1}}") == f"{project}/{name}"
    assert GoRegexp.compile("^").replace_all(name, f"{project}/") == f"{project}/{name}"


@given(REPOSITORIES)
def test_quoted_text_matches_itself_alone(name: str) -> None:
    assert GoRegexp.compile(rf"\Q{name}\E").replace_all(f"{name}!", "$0$0") == f"{name}{name}!"


@given(st.text(alphabet="ab()[]{}?*+|^$\\.-:<>=!P1,Qi", max_size=12))
def test_any_text_compiles_or_is_refused(pattern: str) -> None:
    with suppress(GoRegexpError):
        GoRegexp.compile(pattern)
