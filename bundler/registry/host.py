"""What all requests to one host share: how many may run at once, until when none may, whether it is down.

Invariants:

- A host that asks for a pause gets it from every thread. Short ones are waited for; at long ones the work is put off
  (:class:`ParkedError`), so that other hosts go on.
- A host that cannot be connected to is tried at most three times within five seconds, then never again in this run.
- Trouble (429, 5xx, a broken connection) halves what is sent to a host at once; success brings it back step by step.
"""

from __future__ import annotations

import datetime as dt
import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus

from bundler.errors import ConnectionFailedError, RegistryUnavailableError
from bundler.registry.answer import pulls_left, retry_after_s

logger = logging.getLogger(__name__)

CONNECT_TRIES = 3
CONNECT_WITHIN_S = 5.0
#: A pause up to this is slept through; at a longer one the work is put off.
SHORT_PAUSE_S = 2.0
FIRST_PAUSE_S = 0.5
#: A host that says nothing of how long it wants to be left alone gets at most the pause after so many failures.
_LONGEST_BACKOFF = 4
#: So many pauses for one thing, one after the other and over so long, are enough.
MOST_PAUSES = 10
PAUSES_WITHIN_S = 120.0
#: So many different things in a row that are to wait too long: all others would be answered the same.
MOST_REFUSALS = 3
#: What one burst of failures does is one reason to slow down, not many.
_ONE_BURST_S = 0.5
#: Chunks are not made smaller than what every proxy lets through. Source: nginx, ``client_max_body_size``.
SMALLEST_CHUNK_BYTES = 512 * 1024


class ParkedError(Exception):
    """A host asked for a pause that is not over: whoever can does something else until then. Not shown to users.

    Args:
        until: When to come back, on the clock of ``time.monotonic``.
    """

    def __init__(self, until: float) -> None:
        super().__init__()
        self.until = until


def backoff_s(attempt: int) -> float:
    """Return a pause that grows with the number of the failed attempt, counted from 1, with jitter."""
    pause_s: float = FIRST_PAUSE_S * 2 ** min(attempt - 1, 6) * random.uniform(0.5, 1.5)
    return pause_s


class Host:
    """The state of one host; safe to share between threads.

    Args:
        name: For messages.
        most: How many requests may run at once.
        max_wait_s: The longest pause that is waited for.
        put_off: Raise :class:`ParkedError` at long pauses; otherwise they are slept through.
    """

    def __init__(self, name: str, *, most: int = 4, max_wait_s: float = 3600.0, put_off: bool = False) -> None:
        self.name = name
        self._most = most
        self._max_wait_s = max_wait_s
        self._put_off = put_off
        self._changed = threading.Condition()
        self._holders = threading.local()
        self._running = 0
        self._limit = float(most)
        self._halved_at = -_ONE_BURST_S
        self._not_before = 0.0
        #: Whether the pause is one that the host asked for: only such work is put off.
        self._asked = False
        self._pauses = 0
        #: By what was asked for: how many pauses that cost since it last was answered otherwise, and since when.
        self._pauses_of: dict[str, tuple[int, float]] = {}
        self._failures = 0
        self._failed_at = self._failing_since = 0.0
        self._refusals: set[str] = set()
        self._too_long: RegistryUnavailableError | None = None
        #: Why it is not asked again in this run, if it is not.
        self.down: ConnectionFailedError | None = None
        #: The most bytes that a body may have here, as far as known.
        self.body_limit: int | None = None
        #: It refuses chunks, whatever their size (GHCR beyond a few MiB).
        self.refuses_chunks = False
        #: Pulls that are left, and of how many, if the host says so.
        self.pulls_left: tuple[int, int | None] | None = None

    # --- before a request -----------------------------------------------------------------------------------

    def ready(self) -> None:
        """Wait until the host may be asked.

        Raises:
            ConnectionFailedError: It is down.
            RegistryUnavailableError: It wants a longer pause than is waited for.
            ParkedError: It wants a long pause.
        """
        while True:
            with self._changed:
                if self.down is not None:
                    raise self.down
                until, too_long, asked = self._not_before, self._too_long, self._asked
            if too_long is not None:
                raise too_long
            left_s = until - time.monotonic()
            if left_s <= 0:
                self._holders.asked = time.monotonic()
                return
            if self._put_off and asked and left_s > SHORT_PAUSE_S:
                raise ParkedError(until)
            # A little later than asked for, and not all threads in one instant.
            time.sleep(left_s + random.uniform(0.0, min(0.2, left_s)))

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the places for requests at once; a thread that holds one needs no second."""
        if getattr(self._holders, "held", False):
            yield
            return
        with self._changed:
            while self._running >= max(1, int(self._limit)):
                self._changed.wait(1.0)
            self._running += 1
        self._holders.held = True
        try:
            yield
        finally:
            self._holders.held = False
            with self._changed:
                self._running -= 1
                self._changed.notify()

    def cap(self, most: int, begin: int) -> None:
        """Allow at most so many requests at once from now on, and begin with fewer."""
        with self._changed:
            self._most = min(self._most, most)
            self._limit = min(self._limit, self._most, begin)

    # --- after one ----------------------------------------------------------------------------------------------

    def answered(self, status: int, headers: Mapping[str, str], what: str) -> None:
        """Learn from an answer.

        Args:
            status: Its status.
            headers: Its headers.
            what: What the request was for.
        """
        trouble = status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR
        self.reached()
        with self._changed:
            left = pulls_left(headers)
            first = left is not None and self.pulls_left is None
            self.pulls_left = left or self.pulls_left
            if not trouble:
                self._pauses = 0
                self._refusals.clear()
                self._pauses_of.pop(what, None)
                self._limit = min(self._most, self._limit + 1 / max(1.0, self._limit))
                self._changed.notify()
        if first and left:
            of = f" of {left[1]}" if left[1] is not None else ""
            logger.info("%s grants %d%s more pulls for now", self.name, left[0], of)
        if trouble:
            self.troubled()
            if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE) and not retry_after_s(headers):
                self._pause(0.0)

    def reached(self) -> None:
        """Note that it could be connected to; what was asked before the last failure says nothing of that."""
        with self._changed:
            if getattr(self._holders, "asked", self._failed_at) >= self._failed_at:
                self._failures = 0

    def troubled(self) -> None:
        """Send less at once: the host had too much, or is not well."""
        with self._changed:
            now = time.monotonic()
            if now - self._halved_at >= _ONE_BURST_S:
                self._halved_at = now
                self._limit = max(1.0, self._limit / 2)

    def unreachable(self, error: ConnectionFailedError) -> None:
        """Note that it could not be connected to; after some tries it is down."""
        with self._changed:
            now = time.monotonic()
            if not self._failures:
                self._failing_since = now
            # Threads that fail at the same moment are one try.
            if not self._failures or now - self._failed_at >= FIRST_PAUSE_S / 2:
                self._failures += 1
                self._failed_at = now
            long = now - self._failing_since > CONNECT_WITHIN_S and self._failures > 1
            if self._failures >= CONNECT_TRIES or long:
                error.retryable = False
                self.down = error
                return
            self._not_before, self._asked = max(self._not_before, now + backoff_s(self._failures)), False
            # The next try is one request, not one of each thread that waits.
            self._limit = 1.0

    def judge(self, error: RegistryUnavailableError, what: str) -> None:
        """Keep the pause that an error asks for.

        A longer one than is waited for is final, and one that was asked for again and again. If every request is
        answered so, it is final for those to come as well.

        Args:
            error: What a request ended with.
            what: What the request was for.
        """
        asked_s = error.context.get("retry_after_s", 0.0)
        if not asked_s:
            return
        with self._changed:
            now = time.monotonic()
            count, since = self._pauses_of.get(what, (0, now))
            # What threads hear in the same burst is one pause, not many.
            if now >= self._not_before:
                count += 1
                self._pauses_of[what] = count, since
        if asked_s <= self._max_wait_s:
            self._pause(asked_s)
        with self._changed:
            if asked_s > self._max_wait_s:
                error.retryable = False
                error.hint = f"Run the same command again after {_clock(asked_s)}, or allow the wait with --max-wait."
                self._refusals.add(what)
                # One repository may be limited while others are not.
                self._too_long = error if len(self._refusals) >= MOST_REFUSALS else None
            elif count > MOST_PAUSES and now - since > PAUSES_WITHIN_S:
                error.retryable = False

    def shrink(self, refused_bytes: int) -> bool:
        """Note that a body of this size is too large here; False if smaller ones are not worth trying."""
        with self._changed:
            # Another thread may have learned of the limit while this body was under way.
            if self.body_limit is not None and self.body_limit < refused_bytes:
                return True
            if refused_bytes <= SMALLEST_CHUNK_BYTES:
                return False
            self.body_limit = max(SMALLEST_CHUNK_BYTES, refused_bytes // 4)
            return True

    def _pause(self, asked_s: float) -> None:
        with self._changed:
            now = time.monotonic()
            if self._not_before > now and not asked_s:
                return
            self._pauses += 1
            pause_s = asked_s or backoff_s(min(self._pauses, _LONGEST_BACKOFF))
            news = now + pause_s > self._not_before + 1.0
            if now + pause_s > self._not_before:
                self._not_before, self._asked = now + pause_s, bool(asked_s)
        if asked_s and news and pause_s > SHORT_PAUSE_S:
            others = "; other hosts go on" if self._put_off else ""
            logger.warning(
                "%s asks to wait: nothing more is asked of it until %s%s", self.name, _clock(pause_s), others
            )


def _clock(pause_s: float) -> str:
    """Return the moment in so many seconds for people, in UTC."""
    try:
        moment = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=pause_s)
    except OverflowError:
        return "a day that no calendar has"
    today = moment.date() == dt.datetime.now(dt.UTC).date()
    return moment.strftime("%H:%M:%S UTC" if today else "%Y-%m-%d %H:%M UTC")


class Hosts:
    """The hosts of one run, by origin, so that everybody who asks one shares its state.

    Args:
        most: How many requests may run at once at each.
        max_wait_s: The longest pause that is waited for.
        put_off: Whether work for a host that asks for a long pause is put off.
    """

    def __init__(self, *, most: int = 4, max_wait_s: float = 3600.0, put_off: bool = False) -> None:
        self._most = most
        self._max_wait_s = max_wait_s
        self._put_off = put_off
        self._known: dict[tuple[str, str, int], Host] = {}
        self._lock = threading.Lock()

    def at(self, place: tuple[str, str, int]) -> Host:
        """Return the host of an origin: scheme, host name, port."""
        with self._lock:
            if place not in self._known:
                scheme, name, port = place
                shown = name if port == (443 if scheme == "https" else 80) else f"{name}:{port}"
                self._known[place] = Host(shown, most=self._most, max_wait_s=self._max_wait_s, put_off=self._put_off)
            return self._known[place]

    def all(self) -> list[Host]:
        """Return the hosts that were asked so far, by name."""
        with self._lock:
            return sorted(self._known.values(), key=lambda host: host.name)
