"""Runs the command under strace: to read its system calls, or to end it, stop it or fail it at one of them."""

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.command import Result, command_line, environment, home
from tests.support.programs import find_program

#: Everything by which a file, a name or a length can change, and what makes such a change durable.
CHANGES = (
    *("open", "openat", "creat", "write", "writev", "pwrite64", "pwritev", "pwritev2", "copy_file_range", "sendfile"),
    *("truncate", "ftruncate", "fallocate", "fsync", "fdatasync", "sync_file_range", "syncfs", "rename", "renameat"),
    *("renameat2", "link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat"),
    "exit_group",
)
WRITES = frozenset(
    {"write", "writev", "pwrite64", "pwritev", "pwritev2", "copy_file_range", "sendfile", "truncate", "ftruncate"}
    | {"fallocate"}
)
SYNCS = frozenset({"fsync", "fdatasync"})
RENAMES = frozenset({"rename", "renameat", "renameat2"})
REMOVALS = frozenset({"unlink", "unlinkat", "rmdir"})
LINKS = frozenset({"link", "linkat", "symlink", "symlinkat"})

_LINE = re.compile(r"(?P<pid>\d+) +(?P<rest>.*)")
_RESUMED = re.compile(r"<\.\.\. (?P<name>\w+) resumed>(?P<tail>.*)")
_RESULT = re.compile(r"\) += (?P<result>-?\d+|\?)")


@dataclass(frozen=True)
class Call:
    """One system call.

    Attributes:
        began: Its place in the order of things.
        ended: The place of its return; the same as `began` where nothing came between.
        result: What it returned; None where it never did.
        names: The absolute paths given to it as names, in order.
        file: The path of the first open file given to it.
    """

    name: str
    began: int
    ended: int
    result: int | None
    names: tuple[str, ...]
    file: str | None
    text: str

    @property
    def worked(self) -> bool:
        """Whether it returned, and no error."""
        return self.result is not None and self.result >= 0


def parse(log: str) -> list[Call]:
    """Read what `strace -f -y` wrote, in the order in which the calls began."""
    calls: list[Call] = []
    open_calls: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(log.splitlines()):
        match = _LINE.fullmatch(line)
        if match is None or match["rest"].startswith(("---", "+++")):
            continue
        rest, began = match["rest"], number
        if rest.endswith("<unfinished ...>"):
            open_calls[match["pid"]] = (rest.removesuffix("<unfinished ...>"), number)
            continue
        if resumed := _RESUMED.fullmatch(rest):
            head, began = open_calls.pop(match["pid"])
            rest = head + resumed["tail"]
        calls.append(_call(rest, began, number))
    calls += [_call(head, began, 1 << 60) for head, began in open_calls.values()]
    return sorted(calls, key=lambda call: call.began)


def _call(text: str, began: int, ended: int) -> Call:
    result = _RESULT.search(text)
    arguments = text[: result.start()] if result else text
    returned = int(result["result"]) if result and result["result"] != "?" else None
    names = tuple(name for name in re.findall(r'"([^"]*)"', arguments) if name.startswith("/"))
    files = [file for file in re.findall(r"\d+<([^>]*)>", arguments) if file.startswith("/")]
    return Call(text.partition("(")[0], began, ended, returned, names, files[0] if files else None, text)


def traced(log: Path, *args: str | Path) -> tuple[Result, list[Call]]:
    """Run the command to its end and give its system calls that change files."""
    done = subprocess.run(
        [
            *(find_program("strace"), "-f", "-y", "-qq", "-s", "0", "--seccomp-bpf", "-o", log),
            *("-e", f"trace={','.join(f'?{name}' for name in CHANGES)}", "--", *command_line(*args)),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        cwd=home(),
        timeout=120,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr), parse(log.read_text())


def injecting(
    call: str,
    path: Path,
    what: str,
    args: Sequence[str | Path],
    *,
    when: str = "1",
    log: Path | None = None,
    apart: bool = False,
) -> list[str]:
    """Give the command line of a run to which something happens at one system call on one path.

    Args:
        call: Such as `rename`, or several with commas between.
        path: What it is done to, by name or as an open file.
        what: Such as `signal=KILL` or `error=ENOSPC`.
        args: Arguments of the command.
        when: At which of these calls, counted for each thread; `1+` for every.
        log: Gets strace's output.
        apart: Make the tracer a process apart: the pid that is started is that of the command then. Slower.
    """
    return [
        *(str(find_program("strace")), *(["-D"] if apart else [])),
        *("-f", "-qq", "-o", str(log or "/dev/null"), "-P", str(path)),
        *("-e", f"trace={call}", "-e", f"inject={call}:{what}:when={when}", "--", *command_line(*args)),
    ]


def run_injecting(call: str, path: Path, what: str, args: Sequence[str | Path], *, when: str = "1") -> Result:
    """Run such a command to its end; -9 is the code of one that was killed."""
    done = subprocess.run(
        injecting(call, path, what, args, when=when),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        cwd=home(),
        timeout=120,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@contextmanager
def stopped_at(call: str, path: Path, args: Sequence[str | Path], log: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the command, and give it to the block when it stands still after a system call on a path.

    A SIGCONT makes it go on; it is killed where the block leaves it running.
    """
    from tests.support.bundles import eventually  # noqa: PLC0415 - that module is the bigger one

    with subprocess.Popen(
        injecting(call, path, "signal=STOP", args, log=log, apart=True),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=home(),
    ) as process:
        try:
            eventually(
                lambda: process.poll() is not None or (log.exists() and "stopped by SIGSTOP" in log.read_text()),
                f"{call} of {path}",
            )
            yield process
        finally:
            process.kill()
