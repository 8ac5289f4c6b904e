"""How a signal travels from its handler to the end of the process."""

from __future__ import annotations


class TerminatedError(BaseException):
    """SIGTERM arrived; like KeyboardInterrupt it is no error that anything may handle."""
