"""What a user is told while a command works: at once as a log line, and again in the report."""

from __future__ import annotations

import logging

from bundler.report import Report

logger = logging.getLogger(__name__)


def warn(report: Report, text: str) -> None:
    """Warn the user."""
    report.warnings.append(text)
    logger.warning(text)


def note(report: Report, text: str) -> None:
    """Tell the user."""
    report.notices.append(text)
    logger.info(text)
