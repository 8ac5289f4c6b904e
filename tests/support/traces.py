"""Everything that a run of the command leaves behind: output, files, and its command line as others see it."""

import json
import subprocess
import threading
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, quote_plus

from tests.support.command import command_line, environment


@dataclass(frozen=True)
class Traces:
    """What a run left.

    Attributes:
        code: Its exit code.
        seen: All there is to see of it, by where it was seen.
    """

    code: int
    seen: Mapping[str, bytes]

    @property
    def err(self) -> str:
        """Standard error."""
        return self.seen["stderr"].decode()

    @property
    def out(self) -> str:
        """Standard output."""
        return self.seen["stdout"].decode()

    def places_of(self, secrets: Iterable[str]) -> list[str]:
        """Give the places that hold a secret in any form."""
        wanted = {form for secret in secrets for form in forms(secret)}
        return [place for place, text in self.seen.items() if any(form in text for form in wanted)]


def forms(secret: str) -> set[bytes]:
    """Give a secret as it may be written: as it is, in a URL, in JSON, as Python shows it, and in Base64."""
    texts = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1]}
    texts |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    return {text.encode() for text in texts} | {b64encode(secret.encode()).rstrip(b"=")}


def trace(
    home: Path,
    *args: str | Path,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    during: Callable[[subprocess.Popen[bytes]], None] | None = None,
) -> Traces:
    """Run the command with a directory of its own for all that it may write, and gather everything.

    Args:
        home: Gets `home`, `tmp`, `cwd` and whatever the arguments name below it; is made.
        args: Arguments of the command.
        env: Variables on top.
        stdin: What it reads.
        during: Called while it runs.
    """
    places = {name: home / name for name in ("home", "tmp", "cwd")}
    for place in places.values():
        place.mkdir(parents=True)
    variables = {"HOME": str(places["home"]), "TMPDIR": str(places["tmp"]), "DOCKER_CONFIG": ""}
    variables["XDG_STATE_HOME"] = str(places["home"] / "state")
    lines: set[bytes] = set()
    with subprocess.Popen(
        command_line(*args),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment({**variables, **(env or {})}),
        cwd=places["cwd"],
    ) as process:
        ended = threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, lines, ended))
        watcher.start()
        try:
            if during:
                during(process)
            out, err = process.communicate((stdin or "").encode(), timeout=60)
        finally:
            process.kill()
            ended.set()
            watcher.join()
    assert any(b"bundler" in line for line in lines), "the command line was never seen"
    seen = {"stdout": out, "stderr": err}
    seen |= {f"command line {number}": line for number, line in enumerate(sorted(lines))}
    seen |= {
        str(path.relative_to(home)): str(path).encode() + b"\n" + path.read_bytes()
        for path in home.rglob("*")
        if path.is_file()
    }
    return Traces(process.returncode, seen)


def _watch(pid: int, lines: set[bytes], ended: threading.Event) -> None:
    """Gather the command lines of a process, as anybody on the machine can read them."""
    while True:
        with suppress(OSError):
            lines.add(Path(f"/proc/{pid}/cmdline").read_bytes())
        if ended.wait(0.005):
            return
