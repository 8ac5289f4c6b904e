"""What surrounds a run of a command: progress, log lines, the report file, the exit."""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import Signals
from typing import Any

import click

from bundler import logs
from bundler.cli.signals import TerminatedError
from bundler.errors import AirgapSyncError, BadOutputError
from bundler.files import write_atomic
from bundler.progress import NoProgress, Progress, make
from bundler.report import Report


@contextmanager
def reported(
    report: Report, report_file: str | None, progress: Progress, output: str, to_text: Callable[[Report], str]
) -> Iterator[None]:
    """Run a command's work: log lines go past the progress, report and result are written whatever happens.

    Args:
        report: What the work fills in.
        report_file: Where the user wants it, if anywhere.
        progress: Closed at the end.
        output: Form of the result on standard output.
        to_text: Makes the text form.
    """
    logs.send_to(progress.write)
    if report_file:
        _check_writable(Path(report_file))
    report.started_utc = _now()
    try:
        yield
    except AirgapSyncError as error:
        report.fail(error)
        raise
    except (KeyboardInterrupt, TerminatedError) as stop:
        report.interrupt(Signals.SIGTERM if isinstance(stop, TerminatedError) else Signals.SIGINT)
        raise
    except Exception as defect:
        report.fail(AirgapSyncError(f"a defect in airgap-sync: {type(defect).__name__}: {defect}"))
        raise
    finally:
        report.finished_utc = _now()
        progress.close()
        if report_file:
            write_atomic(Path(report_file), json.dumps(report.to_dict(), indent=1, ensure_ascii=False).encode() + b"\n")
        if report.status != "interrupted":
            emit(output, to_text(report), report.to_dict())


def progress_of(kind: str) -> Progress:
    """Return the progress that the user chose, on standard error."""
    return make(kind, sys.stderr)


def quiet() -> Progress:
    """Return a progress that only shows log lines."""
    return NoProgress(sys.stderr)


def emit(output: str, text: str, document: dict[str, Any]) -> None:
    """Write the result to standard output: the text, or one JSON document."""
    click.echo(json.dumps(document, indent=1, ensure_ascii=False) if output == "json" else text, nl=output == "json")


def state_directory(chosen: str | None) -> Path:
    """Return our state directory on this machine, made with mode 0700.

    Source: XDG Base Directory Specification, ``XDG_STATE_HOME``.

    Raises:
        BadOutputError: It cannot be made.
    """
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    path = Path(chosen) if chosen else Path(home).expanduser() / "airgap-sync"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BadOutputError(
            f"the state directory {path} cannot be made: {error.strerror}",
            hint="Choose another with --state DIR.",
        ) from error
    return path


def _check_writable(path: Path) -> None:
    """Fail before the work rather than after it."""
    if not path.parent.is_dir() or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise BadOutputError(f"the report cannot be written to {path}", hint="Name a file in a directory that exists.")


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
