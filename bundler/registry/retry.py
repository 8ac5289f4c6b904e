"""Trying again: only what may pass, a bounded number of times, with growing random pauses."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from bundler.errors import AirgapSyncError, ConnectionFailedError

Result = TypeVar("Result")

ATTEMPTS = 4
#: A server that cannot be connected to at all rarely comes back within seconds.
CONNECT_ATTEMPTS = 2
FIRST_PAUSE_S = 0.5
#: A registry that wants us to wait longer is reported instead of waited for.
LONGEST_PAUSE_S = 60.0


def retrying(operation: Callable[[], Result], moved: Callable[[], int] | None = None) -> Result:
    """Run an operation that may be repeated as a whole, again after failures that may pass.

    Args:
        operation: What to do; it is idempotent.
        moved: Returns how far the operation has come, in bytes. Tries that come further do not count as failures.

    Raises:
        AirgapSyncError: The last failure.
    """
    attempt, reached = 1, moved() if moved else 0
    while True:
        try:
            return operation()
        except AirgapSyncError as error:
            now = moved() if moved else 0
            if now > reached:
                attempt, reached = 1, now
            allowed = CONNECT_ATTEMPTS if isinstance(error, ConnectionFailedError) else ATTEMPTS
            pause_s = max(error.context.get("retry_after_s", 0.0), _backoff_s(attempt))
            if not error.retryable or attempt >= allowed or pause_s > LONGEST_PAUSE_S:
                raise
        time.sleep(pause_s)
        attempt += 1


def _backoff_s(attempt: int) -> float:
    pause_s: float = FIRST_PAUSE_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
    return pause_s
