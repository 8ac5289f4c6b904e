"""Trying again: how often, how long, and what never."""

from __future__ import annotations

import time

import pytest

from bundler.errors import (
    AirgapSyncError,
    BrokenConnectionError,
    DeniedError,
    ServerError,
    TooManyRequestsError,
)
from bundler.registry.retry import retrying


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


class Failing:
    """Fails some times, then succeeds; moves a little before each failure if told to."""

    def __init__(self, error: AirgapSyncError, times: int, step: int = 0) -> None:
        self.error, self.times, self.step = error, times, step
        self.calls = self.reached = 0

    def __call__(self) -> str:
        self.calls += 1
        self.reached += self.step
        if self.calls <= self.times:
            raise self.error
        return "done"


def test_what_may_pass_is_tried_four_times_with_growing_pauses(pauses: list[float]) -> None:
    assert retrying(Failing(ServerError("x"), 3)) == "done"
    assert len(pauses) == 3
    assert 0.25 <= pauses[0] <= 0.75
    assert 1.0 <= pauses[2] <= 3.0
    with pytest.raises(ServerError):
        retrying(Failing(ServerError("x"), 4))


def test_a_refusal_is_never_tried_again(pauses: list[float]) -> None:
    failing = Failing(DeniedError("x"), 9)
    with pytest.raises(DeniedError):
        retrying(failing)
    assert (failing.calls, pauses) == (1, [])


def test_a_pause_that_the_server_names_is_left_to_whoever_asks_it_next(pauses: list[float]) -> None:
    failing = Failing(TooManyRequestsError("x", context={"retry_after_s": 7.0}), 6)
    assert retrying(failing) == "done"
    # The host itself waits; here only a moment, should it not.
    assert max(pauses) <= 0.5


def test_tries_that_come_further_do_not_count_as_failures(pauses: list[float]) -> None:
    failing = Failing(BrokenConnectionError("x"), 20, step=1)
    assert retrying(failing, lambda: failing.reached) == "done"
    assert len(pauses) == 20
