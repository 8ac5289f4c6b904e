"""Challenges of registries, as they are and as they should not be."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.registry.challenge import Challenge, parse_challenges

TOKEN = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,8}", fullmatch=True)
VALUE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", []),
        ('Basic realm="x"', [("basic", {"realm": "x"})]),
        ('BASIC realm="Sonatype Nexus"', [("basic", {"realm": "Sonatype Nexus"})]),
        ("Basic realm=x", [("basic", {"realm": "x"})]),
        ("Negotiate", [("negotiate", {})]),
        (
            'Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push"',
            [
                (
                    "bearer",
                    {
                        "realm": "https://auth.example/token",
                        "service": "registry.example",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        (
            'bearer REALM = "https://a.example/t" , Service="s", Error="insufficient_scope"',
            [("bearer", {"realm": "https://a.example/t", "service": "s", "error": "insufficient_scope"})],
        ),
        (
            'Bearer realm="https://a.example/t?x=1,2",service="s", Basic realm="b, c"',
            [("bearer", {"realm": "https://a.example/t?x=1,2", "service": "s"}), ("basic", {"realm": "b, c"})],
        ),
        (
            'Negotiate, Basic realm="b", Bearer realm="t"',
            [("negotiate", {}), ("basic", {"realm": "b"}), ("bearer", {"realm": "t"})],
        ),
        (r'Basic realm="a \"quoted\", b"', [("basic", {"realm": 'a "quoted", b'})]),
        (r'Basic realm="back\\slash"', [("basic", {"realm": "back\\slash"})]),
        ('Basic realm=""', [("basic", {"realm": ""})]),
        ('Basic realm="', [("basic", {"realm": '"'})]),
        ('realm="nobody asked"', []),
        ('Bearer   realm="x"', [("bearer", {"realm": "x"})]),
        ('Bearer\trealm="x"', [("bearer", {"realm": "x"})]),
        ('Bearer realm="Basic realm=\\"x\\", Digest"', [("bearer", {"realm": 'Basic realm="x", Digest'})]),
    ],
)
def test_challenges_are_read(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    assert parse_challenges(header) == [Challenge(scheme, parameters) for scheme, parameters in expected]


@given(
    st.lists(
        st.tuples(TOKEN, st.dictionaries(TOKEN.map(str.lower), VALUE, max_size=4)),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([",", ", ", " , "]),
    st.sampled_from([str.lower, str.upper, str.title]),
)
def test_what_was_written_by_the_rules_is_read_back(
    challenges: list[tuple[str, dict[str, str]]], comma: str, case: Callable[[str], str]
) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    header = comma.join(
        f"{case(scheme)} " + comma.join(f"{case(name)}={quoted(value)}" for name, value in parameters.items())
        if parameters
        else case(scheme)
        for scheme, parameters in challenges
    )

    assert parse_challenges(header) == [Challenge(scheme.lower(), parameters) for scheme, parameters in challenges]


@given(st.text(max_size=200))
def test_no_text_is_a_crash(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme == challenge.scheme.lower()
        assert all(name == name.lower() for name in challenge.parameters)
