"""docs/troubleshooting.md says what is really printed."""

from tests.support.programs import require
from tests.support.troubleshooting import SCENARIOS, SECTIONS, difference


def test_the_page_says_what_is_printed() -> None:
    require("docker-registry", "openssl")
    assert difference() == "", "run `python -m tests.support.troubleshooting --write`"


def test_every_failure_has_a_section_and_a_name_of_its_own() -> None:
    assert {one.section for one in SCENARIOS} == set(SECTIONS)
    assert len({one.situation for one in SCENARIOS}) == len(SCENARIOS)
