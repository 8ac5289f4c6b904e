"""What surrounds a run of a command: progress, log lines, the report file, the exit."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import Signals
from typing import Any

import click

from bundler import logs
from bundler.cli.options import home
from bundler.cli.signals import TerminatedError
from bundler.errors import AirgapSyncError, BadOutputError
from bundler.files import disk_errors, write_atomic
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
        check_writable(Path(report_file), Path(report.bundle))
    report.started_utc = _now()
    try:
        yield
    except AirgapSyncError as error:
        report.fail(error)
        raise
    except click.UsageError as mistake:
        usage = AirgapSyncError(mistake.format_message())
        usage.reference, usage.exit_code = "usage", mistake.exit_code
        report.fail(usage)
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
        _deliver(report, report_file, output, to_text)


def _deliver(report: Report, report_file: str | None, output: str, to_text: Callable[[Report], str]) -> None:
    """Write result and report; a failure to do so is an error of its own only if the run itself was none."""
    try:
        if report.status != "interrupted":
            emit(output, to_text(report), report.to_dict())
    finally:
        if report_file:
            data = json.dumps(report.to_dict(), indent=1, ensure_ascii=False).encode() + b"\n"
            try:
                write_result(Path(report_file), data)
            except AirgapSyncError as error:
                if report.error is None:
                    raise
                logging.getLogger(__name__).warning(error.message)


def _some(references: list[str]) -> str:
    return references[0] if len(references) == 1 else f"{len(references)} images"


def progress_of(kind: str) -> Progress:
    """Return the progress that the user chose, on standard error."""
    return make(kind, sys.stderr)


def quiet() -> Progress:
    """Return a progress that only shows log lines."""
    return NoProgress(sys.stderr)


def emit(output: str, text: str, document: dict[str, Any]) -> None:
    """Write the result to standard output: the text, or one JSON document."""
    with disk_errors("the result to standard output"):
        click.echo(
            json.dumps(document, indent=1, ensure_ascii=False) if output == "json" else text, nl=output == "json"
        )
        if sys.stdout:
            sys.stdout.flush()


def why_failed(report: Report) -> list[str]:
    """Return a line for each failed image, and each thing that can be done about them once."""
    errors = [image.error for image in report.failed if image.error]
    blamed: dict[str, list[str]] = {}
    for image in report.failed:
        if image.error:
            blamed.setdefault(image.error.message, []).append(str(image.reference))
    hints = dict.fromkeys(error.hint for error in errors if error.hint)
    return [
        *(f"failed because: {_some(references)}: {message}" for message, references in blamed.items()),
        *(f"hint: {hint}" for hint in hints),
    ]


def state_directory(chosen: str | None) -> Path:
    """Return our state directory on this machine, made with mode 0700.

    Source: XDG Base Directory Specification, ``XDG_STATE_HOME``.

    Raises:
        BadOutputError: It cannot be made.
    """
    below = home()
    if chosen:
        path = Path(chosen)
    elif base := os.environ.get("XDG_STATE_HOME"):
        path = Path(base) / "airgap-sync"
    elif below:
        path = below / ".local" / "state" / "airgap-sync"
    else:
        raise BadOutputError("this user has no home directory to keep state in", hint="Give --state DIR, or set HOME.")
    with disk_errors(f"the state directory {path} (choose another with --state DIR)"):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def check_writable(path: Path, bundle: Path) -> None:
    """Fail before the work rather than after it.

    Raises:
        BadOutputError: The file cannot be written, or would lie in the bundle.
    """
    if not path.parent.is_dir() or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise BadOutputError(f"the result cannot be written to {path}", hint="Name a file in a directory that exists.")
    if bundle.resolve() in path.resolve().parents:
        raise BadOutputError(f"the result {path} would lie in the bundle", hint="Name a file beside the bundle.")


def write_result(path: Path, data: bytes) -> None:
    """Replace a regular file as a whole; write into anything else, such as a pipe or a device.

    Raises:
        BadOutputError: It cannot be written.
        DiskFullError: No space is left.
    """
    path = path.resolve()
    if path.is_file() or not path.exists():
        write_atomic(path, data)
        return
    with disk_errors(str(path)), path.open("wb") as stream:
        stream.write(data)


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
