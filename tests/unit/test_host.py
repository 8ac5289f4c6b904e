"""What requests to one host share, by a clock that only moves when somebody waits."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import pytest

from bundler.errors import ConnectRefusedError, ServerError, TooManyRequestsError
from bundler.registry.host import (
    CONNECT_TRIES,
    CONNECT_WITHIN_S,
    MOST_PAUSES,
    MOST_REFUSALS,
    PAUSES_WITHIN_S,
    SHORT_PAUSE_S,
    SMALLEST_CHUNK_BYTES,
    Host,
    Hosts,
    ParkedError,
    backoff_s,
)


class Clock:
    """Stands still, but for those who sleep."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    monkeypatch.setattr(time, "sleep", made.sleep)
    return made


def limited(seconds: float) -> TooManyRequestsError:
    return TooManyRequestsError("no", context={"retry_after_s": seconds})


def in_flight(host: Host) -> int:
    """Give how many requests a host takes at once, by asking for places until there are none."""
    return max(1, int(host._limit))


# --- pauses ---------------------------------------------------------------------------------------------------


def test_a_pause_is_kept_and_not_much_more(clock: Clock) -> None:
    host = Host("h")
    host.judge(limited(7), "a")
    host.ready()
    assert 7 <= sum(clock.slept) <= 7.3
    clock.slept.clear()
    host.ready()
    assert clock.slept == []


def test_the_longer_of_two_pauses_counts(clock: Clock) -> None:
    host = Host("h")
    host.judge(limited(9), "a")
    host.judge(limited(2), "b")
    host.ready()
    assert 9 <= sum(clock.slept) <= 9.3


def test_a_host_that_names_no_pause_gets_growing_ones_up_to_a_bound(clock: Clock) -> None:
    host, pauses = Host("h"), []
    for _ in range(8):
        host.answered(429, {}, "a")
        host.ready()
        pauses.append(sum(clock.slept))
        clock.slept.clear()
    assert 0.25 <= pauses[0] <= 1.0
    assert pauses[3] > pauses[0]
    assert max(pauses) <= 6.3
    host.answered(200, {}, "a")
    host.answered(503, {}, "a")
    host.ready()
    assert sum(clock.slept) <= 1.0


def test_500_alone_is_no_reason_for_all_to_pause(clock: Clock) -> None:
    host = Host("h")
    host.answered(500, {}, "a")
    host.ready()
    assert clock.slept == []


def test_work_is_put_off_at_a_long_pause_that_was_asked_for_and_at_no_other(clock: Clock) -> None:
    host = Host("h", put_off=True)
    host.judge(limited(SHORT_PAUSE_S - 0.5), "a")
    host.ready()
    assert clock.slept
    host.judge(limited(60), "a")
    with pytest.raises(ParkedError) as parked:
        host.ready()
    assert parked.value.until == pytest.approx(clock.now + 60)
    clock.now = parked.value.until
    host.ready()
    # Nobody asked for this one: it is ours, and short.
    host.unreachable(ConnectRefusedError("x"))
    host.unreachable(ConnectRefusedError("x"))
    host.ready()


def test_the_pause_is_told_once_with_the_time(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    host = Host("registry.example", put_off=True)
    with caplog.at_level("WARNING"):
        host.judge(limited(60), "a")
        host.judge(limited(60), "b")
    (told,) = caplog.messages
    assert told.startswith("registry.example asks to wait: nothing more is asked of it until ")
    assert "UTC" in told
    assert told.endswith("other hosts go on")
    assert clock.slept == []


# --- too long ---------------------------------------------------------------------------------------------------


def test_a_pause_over_the_limit_is_final_and_says_when_to_come_back(clock: Clock) -> None:
    host, error = Host("h", max_wait_s=30), limited(31)
    assert error.retryable
    host.judge(error, "a")
    assert not error.retryable
    assert error.hint is not None
    assert "UTC" in error.hint
    assert "--max-wait" in error.hint
    host.ready()
    assert clock.slept == []


@pytest.mark.parametrize("seconds", [1e12, 10**19])
def test_a_pause_beyond_the_calendar_is_too_long_as_well(seconds: float) -> None:
    error = limited(seconds)
    Host("h").judge(error, "a")
    assert not error.retryable


@pytest.mark.usefixtures("clock")
def test_when_so_many_things_are_to_wait_too_long_all_others_are_refused_here() -> None:
    host = Host("h", max_wait_s=30)
    for number in range(MOST_REFUSALS):
        host.ready()
        host.judge(limited(31), f"thing {number}")
    with pytest.raises(TooManyRequestsError):
        host.ready()


@pytest.mark.usefixtures("clock")
def test_one_thing_refused_again_and_again_is_not_many() -> None:
    host = Host("h", max_wait_s=30)
    for _ in range(3 * MOST_REFUSALS):
        host.judge(limited(31), "the same")
    host.ready()


@pytest.mark.usefixtures("clock")
def test_an_answer_in_between_takes_refusals_back() -> None:
    host = Host("h", max_wait_s=30)
    for number in range(3 * MOST_REFUSALS):
        host.judge(limited(31), f"thing {number}")
        host.answered(200, {}, "another")
    host.ready()


@pytest.mark.usefixtures("clock")
def test_a_thing_that_is_put_off_too_often_and_for_too_long_fails(clock: Clock) -> None:
    host, tries = Host("h"), int(PAUSES_WITHIN_S / 5) + 3
    kept = []
    for _ in range(tries):
        error = limited(5)
        host.judge(error, "a")
        host.answered(200, {}, "b")
        kept.append(error.retryable)
        clock.now += 5.01
    assert tries > MOST_PAUSES
    assert kept == [True] * (tries - 3) + [False] * 3


def test_what_many_threads_hear_at_once_is_one_pause(clock: Clock) -> None:
    host = Host("h")
    clock.now += 1000
    for _ in range(MOST_PAUSES * 3):
        error = limited(PAUSES_WITHIN_S)
        host.judge(error, "a")
        assert error.retryable
    clock.now += PAUSES_WITHIN_S + 1
    host.judge(error := limited(1), "a")
    assert error.retryable


def test_another_host_that_answers_now_and_then_is_not_down(clock: Clock) -> None:
    host = Host("h")
    for _ in range(CONNECT_TRIES * 2):
        host.unreachable(ConnectRefusedError("x"))
        clock.now += 60
        host.reached()
    assert host.down is None


# --- down ---------------------------------------------------------------------------------------------------------


def test_a_host_that_cannot_be_connected_to_is_tried_three_times_and_never_again(clock: Clock) -> None:
    host, started = Host("h"), clock.now
    for _ in range(CONNECT_TRIES):
        host.ready()
        error = ConnectRefusedError("x")
        host.unreachable(error)
    assert clock.now - started <= CONNECT_WITHIN_S
    assert host.down is error
    assert not error.retryable
    clock.now += 10_000
    with pytest.raises(ConnectRefusedError):
        host.ready()


def test_threads_that_fail_in_the_same_moment_are_one_try(clock: Clock) -> None:
    host = Host("h")
    for _ in range(16):
        host.unreachable(ConnectRefusedError("x"))
    assert host.down is None
    host.ready()
    assert clock.slept


def test_tries_that_take_long_are_two(clock: Clock) -> None:
    host = Host("h")
    host.unreachable(ConnectRefusedError("x"))
    assert host.down is None
    clock.now += 10
    host.unreachable(ConnectRefusedError("x"))
    assert host.down is not None


def test_an_answer_in_between_begins_the_count_anew(clock: Clock) -> None:
    host = Host("h")
    for _ in range(10):
        host.unreachable(ConnectRefusedError("x"))
        clock.now += 1
        host.answered(200, {}, "a")
    assert host.down is None


# --- how many at once ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("clock")
def test_a_thread_that_holds_a_place_needs_no_second() -> None:
    host = Host("h", most=1)
    with host.slot(), host.slot(), host.slot():
        assert host._running == 1
    assert host._running == 0


def test_no_more_than_so_many_hold_a_place_and_an_error_gives_it_back() -> None:
    host, guard = Host("h", most=3), threading.Lock()
    now, most = 0, 0

    def hold(*, fail: bool) -> None:
        nonlocal now, most
        with host.slot():
            with guard:
                now += 1
                most = max(most, now)
            with guard:
                now -= 1
            if fail:
                raise ServerError("x")

    def work() -> None:
        for number in range(20):
            with suppress(ServerError):
                hold(fail=number % 3 == 0)

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert most <= 3
    assert host._running == 0


def test_one_burst_of_trouble_halves_once_and_another_one_again(clock: Clock) -> None:
    host = Host("h", most=8)
    for _ in range(8):
        host.answered(500, {}, "a")
    assert in_flight(host) == 4
    clock.now += 1
    host.troubled()
    assert in_flight(host) == 2
    for _ in range(10):
        clock.now += 1
        host.troubled()
    assert in_flight(host) == 1


def test_each_full_round_of_successes_brings_one_back_and_never_too_many(clock: Clock) -> None:
    host = Host("h", most=4)
    host.troubled()
    clock.now += 1
    host.troubled()
    assert in_flight(host) == 1
    rounds = []
    for _ in range(20):
        host.answered(200, {}, "a")
        rounds.append(in_flight(host))
    assert rounds == sorted(rounds)
    assert rounds[0] == 2
    assert rounds[-1] == 4
    assert max(rounds) == 4


def test_a_cap_is_begun_below_and_reached(clock: Clock) -> None:
    del clock
    host = Host("h", most=16)
    host.cap(6, 4)
    assert in_flight(host) == 4
    for _ in range(50):
        host.answered(200, {}, "a")
    assert in_flight(host) == 6


# --- bodies -----------------------------------------------------------------------------------------------------


def test_bodies_get_smaller_by_four_down_to_the_smallest() -> None:
    host, size, seen = Host("h"), 256 * 1024**2, []
    while host.shrink(size):
        assert host.body_limit is not None
        size = host.body_limit
        seen.append(size // 1024)
    assert seen == [65536, 16384, 4096, 1024, 512]
    assert size == SMALLEST_CHUNK_BYTES


def test_many_threads_that_are_refused_at_once_learn_one_thing() -> None:
    host = Host("h")
    assert host.shrink(2 * 1024**2)
    assert host.body_limit == SMALLEST_CHUNK_BYTES
    # They were under way when the first was refused, and smaller ones are worth trying for them too.
    assert all(host.shrink(size) for size in (2 * 1024**2, 1024**2, 600_000))
    assert host.body_limit == SMALLEST_CHUNK_BYTES
    assert not host.shrink(SMALLEST_CHUNK_BYTES)


# --- what is left, and who is who ----------------------------------------------------------------------------------


def test_pulls_that_are_left_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    host = Host("registry.example")
    with caplog.at_level("INFO"):
        for left in (76, 75, 74):
            headers = {"RateLimit-Remaining": f"{left};w=21600", "RateLimit-Limit": "100;w=21600"}
            host.answered(200, headers, "a")
        host.answered(200, {}, "a")
    assert caplog.messages == ["registry.example grants 76 of 100 more pulls for now"]
    assert host.pulls_left == (74, 100)


def test_everybody_who_asks_one_origin_shares_its_state_and_no_other() -> None:
    hosts = Hosts(most=3, max_wait_s=5, put_off=True)
    one = hosts.at(("https", "registry.example", 443))
    assert hosts.at(("https", "registry.example", 443)) is one
    others = [hosts.at(("http", "registry.example", 443)), hosts.at(("https", "registry.example", 8443))]
    assert len({id(host) for host in (one, *others)}) == 3
    assert [host.name for host in hosts.all()] == ["registry.example", "registry.example:443", "registry.example:8443"]


def test_backoff_grows_and_is_bounded() -> None:
    for attempt, least, most in ((1, 0.25, 0.75), (2, 0.5, 1.5), (3, 1.0, 3.0), (50, 16.0, 48.0)):
        assert all(least <= backoff_s(attempt) <= most for _ in range(50))
