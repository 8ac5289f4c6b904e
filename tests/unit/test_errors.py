"""The error classes keep the promises of the exit-code table."""

from __future__ import annotations

import re

from bundler.errors import AirgapSyncError, BadReferenceError, exit_code_table, families
from tests.support.docs import PROJECT, stale


def every(cls: type[AirgapSyncError]) -> list[type[AirgapSyncError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in every(child))]


def test_references_are_unique_and_kebab_case() -> None:
    references = [cls.reference for cls in every(AirgapSyncError)]
    assert len(references) == len(set(references))
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", reference) for reference in references)


def test_a_condition_has_the_exit_code_of_its_family() -> None:
    codes = [family.exit_code for family in families()]
    assert codes == sorted(set(codes)) == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    for family in families():
        assert {cls.exit_code for cls in every(family)} == {family.exit_code}


def test_the_table_names_every_reference() -> None:
    table = exit_code_table()
    conditions = [cls for family in families() for cls in family.__subclasses__()]
    assert conditions
    assert all(f"`{cls.reference}`" in table for cls in conditions)


def test_generated_documentation_is_up_to_date() -> None:
    assert [str(path.relative_to(PROJECT)) for path in stale()] == []


def test_an_error_in_json_has_reference_message_hint_and_code() -> None:
    error = BadReferenceError("no", hint="do", context={"line": 3})
    assert error.to_dict() == {
        "reference": "bad-reference",
        "message": "no",
        "exit_code": 3,
        "hint": "do",
        "context": {"line": 3},
    }
