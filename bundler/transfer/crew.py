"""A crew of threads that works off tasks, the most urgent first; tasks may add tasks.

A task that raises :class:`~bundler.registry.host.ParkedError` is done anew when the host may be asked again; until then
its thread does other things.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from typing import Self

from bundler.registry.host import ParkedError


class Crew:
    """Runs tasks on daemon threads, so that an interrupt never waits for a socket.

    A task handles its own expected errors; whatever else it raises stops the crew and comes out of :meth:`wait`.

    Args:
        workers: How many tasks run at once.
    """

    def __init__(self, workers: int) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        #: Tasks that were put off, the one to come back first on top.
        self._later: list[tuple[float, int, tuple[float, Callable[[], None]]]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._running = 0
        self._closed = False
        self._error: BaseException | None = None
        for number in range(workers):
            threading.Thread(target=self._work, name=f"crew-{number}", daemon=True).start()

    def submit(self, task: Callable[[], None], urgency: float = 0.0) -> None:
        """Add a task; a higher urgency goes first, equals go in order."""
        with self._changed:
            heapq.heappush(self._heap, (-urgency, next(self._order), task))
            self._changed.notify_all()

    def stop(self) -> None:
        """Begin no more tasks, and wait for none: what is running is left to the end of the process."""
        with self._changed:
            self._closed = True
            self._clear()
            self._changed.notify_all()

    def wait(self, beside: Crew | None = None) -> None:
        """Wait until nothing is running or queued, or until :meth:`stop`; raise what a task raised.

        Args:
            beside: A crew that works at the same time; what its tasks raise ends this wait too.
        """
        with self._changed:
            while (self._heap or self._later or self._running) and self._error is None and not self._closed:
                if beside is not None and beside._error is not None:  # noqa: SLF001 - a Crew as well
                    raise beside._error  # noqa: SLF001
                self._changed.wait(0.2)
            if self._error is not None:
                raise self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._due() and not self._closed:
                    self._changed.wait(self._until_next())
                if self._closed:
                    return
                urgency, _, task = heapq.heappop(self._heap)
                self._running += 1
            error: BaseException | None = None
            later: ParkedError | None = None
            try:
                task()
            except ParkedError as parked:
                later = parked
            except BaseException as caught:  # noqa: BLE001 - handed to the thread that waits
                error = caught
            with self._changed:
                self._running -= 1
                if later is not None and not self._closed:
                    heapq.heappush(self._later, (later.until, next(self._order), (urgency, task)))
                if error is not None and self._error is None:
                    self._error = error
                    self._clear()
                self._changed.notify_all()

    def _due(self) -> bool:
        """Take back what was put off and is due; tell whether there is anything to do."""
        while self._later and self._later[0][0] <= time.monotonic():
            _, number, (urgency, task) = heapq.heappop(self._later)
            heapq.heappush(self._heap, (urgency, number, task))
        return bool(self._heap)

    def _until_next(self) -> float | None:
        return max(0.01, self._later[0][0] - time.monotonic()) if self._later else None

    def _clear(self) -> None:
        self._heap.clear()
        self._later.clear()
