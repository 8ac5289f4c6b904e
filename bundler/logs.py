"""Log set-up; imported by ``cli`` only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable


class _LineHandler(logging.Handler):
    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        word = record.levelname.lower() if record.levelno >= logging.WARNING else "note"
        self._write(f"{word}: {record.getMessage()}")


def send_to(write: Callable[[str], None]) -> None:
    """Send our log lines to a function, for example one that keeps a progress bar whole."""
    logger = logging.getLogger("bundler")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [_LineHandler(write)]


def show(warnings: Iterable[str], notices: Iterable[str]) -> None:
    """Log what a user should know."""
    logger = logging.getLogger("bundler")
    for text in warnings:
        logger.warning(text)
    for text in notices:
        logger.info(text)
