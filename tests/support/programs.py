"""Programs the tests talk to: finding them, and running the ones that serve."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PROJECT = Path(__file__).resolve().parents[2]
TOOL_DIRECTORIES = (PROJECT / ".tools/usr/bin", PROJECT / ".tools/usr/sbin")


class MissingProgramError(RuntimeError):
    """A program that the tests need is neither in .tools nor on PATH."""


def find_program(name: str) -> Path:
    """Find a program: first where `make setup` unpacks programs, then on PATH.

    Raises:
        MissingProgramError: It is in neither.
    """
    for directory in TOOL_DIRECTORIES:
        if os.access(directory / name, os.X_OK):
            return directory / name
    found = shutil.which(name)
    if found is None:
        raise MissingProgramError(f"{name} is not installed; run `make setup` (as root, on Debian)")
    return Path(found)


def require(*names: str) -> None:
    """Skip the running test where a program is missing; in CI (`CI=true`) fail it instead.

    A test that silently skips in CI would claim something that was never tried.
    """
    import pytest  # noqa: PLC0415 - the demo and the benchmarks use this module without pytest

    for name in names:
        try:
            find_program(name)
        except MissingProgramError as error:
            if os.environ.get("CI") == "true":
                pytest.fail(str(error))
            pytest.skip(str(error))


def free_port() -> int:
    """Pick a TCP port on the loopback interface that nothing listens on right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


class Process:
    """A server subprocess, with its output in a log file.

    It runs in its own session, so that an interrupt typed at the terminal reaches only the test runner.
    The kernel kills it when the thread that started it ends, so a killed test runner leaves nothing
    behind: start it from a thread that outlives it, such as the main one.
    """

    def __init__(
        self, arguments: Sequence[str | Path], log: Path, *, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start the program.

        Args:
            arguments: The program and its arguments.
            log: File that gets stdout and stderr, appended.
            environment: Variables on top of the ones of this process.
        """
        self.name = Path(arguments[0]).name
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                # setpriv replaces itself by the program, so the pid stays the same.
                [find_program("setpriv"), "--pdeathsig", "KILL", "--", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def log_tail(self, lines: int = 30) -> str:
        """Give the last lines of its output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait_for(self, answers: Callable[[], bool], what: str, timeout: float = 20) -> None:
        """Wait until the server answers; stop it where it does not.

        Raises:
            RuntimeError: It ended, or did not answer in time. The message carries the log's tail.
        """
        deadline = time.monotonic() + timeout
        while True:
            answered = answers()
            # Checked after the answer: another server's answer must not pass for that of a dead one.
            if not self.running:
                raise RuntimeError(f"{self.name} ended, {what} never answered:\n{self.log_tail()}")
            if answered:
                return
            if time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{self.name}: {what} did not answer in {timeout:g} s:\n{self.log_tail()}")
            time.sleep(0.02)

    def wait_for_port(self, port: int, timeout: float = 20) -> None:
        """Wait until a TCP port on the loopback interface accepts connections."""
        self.wait_for(lambda: _accepts(socket.AF_INET, ("127.0.0.1", port)), f"port {port}", timeout)

    def wait_for_socket(self, path: Path, timeout: float = 20) -> None:
        """Wait until a unix socket accepts connections."""
        self.wait_for(lambda: _accepts(socket.AF_UNIX, str(path)), f"socket {path}", timeout)

    def stop(self, timeout: float = 10) -> None:
        """End it, politely at first. Does nothing when it has ended already."""
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process.wait()

    def kill(self) -> None:
        """End it without notice, like a crash."""
        if self.running:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()


def _accepts(family: socket.AddressFamily, address: tuple[str, int] | str) -> bool:
    with socket.socket(family) as client:
        client.settimeout(1)
        return client.connect_ex(address) == 0
