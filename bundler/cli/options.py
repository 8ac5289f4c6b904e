"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


class NamedPath(click.Path):
    """A path that is not empty: ``--to "$UNSET"`` must not mean the current directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse the empty path."""
        if not value:
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,3})?) ?([kmgt]i?)?b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def size(text: str) -> int:
    """Return a number of bytes written as ``1048576``, ``64MiB`` or ``10GB``."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size: write bytes, or a number with kB, MB, GB, KiB, MiB, GiB")
    unit = (match[2] or "").lower()
    return int(float(match[1]) * (1024 if unit.endswith("i") else 1000) ** _POWERS[unit.removesuffix("i")])


output = click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True,
    help="Form of the result on standard output.",
)  # fmt: skip

jobs = click.option("--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="Blobs in flight at once.")

progress = click.option(
    "--progress", "progress_kind", type=click.Choice(["auto", "bar", "plain", "none"]), default="auto",
    show_default=True, help="Progress on standard error; auto is a bar on a terminal, else plain lines.",
)  # fmt: skip

report = click.option(
    "--report", "report_file", type=NamedPath(dir_okay=False), metavar="FILE",
    help="Write what was done, image by image, as JSON; also when the run fails.",
)  # fmt: skip

_SELECTORS = (
    click.option(
        "--k3s", multiple=True, metavar="VERSION", help="K3s release, for example v1.32.3+k3s1. Repeatable."
    ),
    click.option("--image", "images", multiple=True, metavar="REF", help="A further image. Repeatable."),
    click.option(
        "--images", "lists", multiple=True, metavar="FILE",
        help="File of further images, one a line, # for comments; - is standard input. Repeatable.",
    ),
    click.option(
        "--disable", multiple=True, metavar="NAME[,NAME]",
        help="Leave out components that the site turns off: traefik, servicelb, metrics-server, local-storage, "
        "coredns, helm-controller.",
    ),
    click.option(
        "--suc-version", metavar="VERSION", help="system-upgrade-controller release. Default: the newest known."
    ),
    click.option(
        "--no-suc", is_flag=True, help="Leave out system-upgrade-controller and its kubectl image."
    ),
    click.option(
        "--release-url", metavar="URL|DIR|shipped", envvar="AIRGAP_SYNC_RELEASE_URL", show_envvar=True,
        default="https://github.com/k3s-io/k3s/releases/download", show_default=True,
        help="Where k3s-images.txt of a release lies; `shipped` uses the lists that came with airgap-sync.",
    ),
)  # fmt: skip


def selectors(command: Command) -> Command:
    """Add the options that choose images."""
    for option in reversed(_SELECTORS):
        command = option(command)
    return command


def home() -> Path | None:
    """Return the user's home directory; None where there is none, as in a container with a user of its own."""
    try:
        return Path.home()
    except RuntimeError:
        return None
