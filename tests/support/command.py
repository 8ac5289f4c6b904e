"""The real command, `python -m bundler`, as a subprocess in a clean environment."""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.programs import PROJECT


@dataclass(frozen=True)
class Result:
    """How a run of the command ended: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        """Lines of standard output."""
        return self.out.splitlines()


@cache
def home() -> Path:
    """Give the HOME of the runs of this test process; it holds nothing to begin with."""
    path = Path(tempfile.mkdtemp(prefix="home-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give the environment of a run: nothing of the machine's user, and `env` on top."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(PROJECT),
        "HOME": str(home()),
        "XDG_STATE_HOME": str(home() / "state"),
        "DOCKER_CONFIG": str(home() / "docker"),
        **(env or {}),
    }


def command_line(*args: str | Path) -> list[str]:
    """Give the command with its arguments.

    A test runner in the background has SIGINT ignored, and its children inherit that: env restores it. It
    replaces itself by the program, so the pid stays the same.
    """
    return ["env", "--default-signal=INT", sys.executable, "-m", "bundler", *map(str, args)]


def run(
    *args: str | Path, env: Mapping[str, str] | None = None, stdin: str | None = None, timeout: float = 60
) -> Result:
    """Run the command to its end.

    Args:
        args: Its arguments, such as `"images", "--k3s", "v1.32.3+k3s1"`.
        env: Variables on top of the clean environment.
        stdin: What it reads; nothing by default.
        timeout: Seconds until it is killed and the test fails.
    """
    done = subprocess.run(
        command_line(*args),
        input=stdin or "",
        capture_output=True,
        text=True,
        env=environment(env),
        cwd=home(),
        timeout=timeout,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def start(*args: str | Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start the command and return at once; use it in `with`, and end it there."""
    return subprocess.Popen(
        command_line(*args),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(env),
        cwd=home(),
    )
