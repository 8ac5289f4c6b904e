"""Runs the command and tells the most memory it ever held.

A child of the test runner would count the runner's own memory as its own, up to the moment when it becomes the
command. So a small process stands between them: `python -m tests.support.measured RESULT LIMIT COMMAND...`
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.support.command import Result, command_line, environment, home
from tests.support.programs import PROJECT


@dataclass(frozen=True)
class Measured:
    """How a run ended, and its highest resident set in KiB."""

    result: Result
    peak_kib: int


def measured(*args: str | Path, address_space: int = 0, timeout: float = 600) -> Measured:
    """Run the command to its end.

    Args:
        args: Its arguments.
        address_space: RLIMIT_AS in bytes; 0 for none.
        timeout: Seconds until it is killed.
    """
    with tempfile.TemporaryDirectory(prefix="measured-") as directory:
        result = Path(directory) / "result.json"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.support.measured", str(result), str(address_space)),
                *command_line(*args),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment({"PYTHONPATH": str(PROJECT)}),
            cwd=home(),
            timeout=timeout,
            check=False,
        )
        found = json.loads(result.read_text())
    return Measured(Result(found["code"], done.stdout, done.stderr), found["peak_kib"])


def main() -> None:
    """Run a command, and write its exit code and its peak."""
    result, limit, *command = sys.argv[1:]
    child = os.fork()
    if not child:
        if int(limit):
            resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
        os.execvp(command[0], command)  # noqa: S606 - the command of the test
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    Path(result).write_text(json.dumps({"code": code, "peak_kib": usage.ru_maxrss}))


if __name__ == "__main__":
    main()
