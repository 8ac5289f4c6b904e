"""Trying again: only what may pass, and a bounded number of times.

How long to wait for a host that asked for a pause, or that cannot be connected to, is the business of
:mod:`bundler.registry.host`: every request asks there first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from bundler.errors import AirgapSyncError
from bundler.registry.host import FIRST_PAUSE_S, backoff_s

Result = TypeVar("Result")

ATTEMPTS = 4


def retrying(operation: Callable[[], Result], moved: Callable[[], int] | None = None) -> Result:
    """Run an operation that may be repeated as a whole, again after failures that may pass.

    Args:
        operation: What to do; it is idempotent.
        moved: Returns how far the operation has come, in bytes. Tries that come further do not count as failures.

    Raises:
        AirgapSyncError: The last failure.
        ParkedError: A host wants a long pause, and this can be done later.
    """
    attempt, reached = 1, moved() if moved else 0
    while True:
        try:
            return operation()
        except AirgapSyncError as error:
            if not error.retryable:
                raise
            now = moved() if moved else 0
            if now > reached:
                attempt, reached = 1, now
            if attempt >= ATTEMPTS:
                raise
            asked_s = error.context.get("retry_after_s", 0.0)
            # A pause that the host asked for is kept by whoever asks it next, in whatever thread; its own state knows
            # when that was too often.
            time.sleep(min(asked_s, FIRST_PAUSE_S) or backoff_s(attempt))
            attempt += 0 if asked_s else 1
