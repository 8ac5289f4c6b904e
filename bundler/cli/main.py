"""The command ``airgap-sync``: its subcommands, signals, and the one place that turns errors into exit codes."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

import click

from bundler import __version__
from bundler.cli.signals import TerminatedError
from bundler.errors import AirgapSyncError, BadOutputError

#: Subcommand -> one line of help; the modules are imported when they are used, so `--help` stays fast.
COMMANDS = {
    "images": "List every image that a K3s release needs.",
    "bundle": "Write images into an OCI layout on transfer media.",
    "push": "Load a bundle into a registry.",
    "config": "Write what a site needs besides the images.",
    "preflight": "Prove that every node can pull every image, before an upgrade begins.",
    "login": "Check a user name and password at a registry.",
    "harbor": "Prepare a Harbor for pushes and pulls.",
}


_OUTPUT_ERRORS = frozenset({errno.ENOSPC, errno.EBADF, errno.EIO, errno.EDQUOT})


class LazyCommands(click.Group):
    """Imports a subcommand's module only when it is run or asked for its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the subcommands in the order of work."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a subcommand."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"bundler.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand, or suggest the one that was meant."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            import difflib  # noqa: PLC0415 - only for a typo

            near = difflib.get_close_matches(name, COMMANDS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Commands: {', '.join(COMMANDS)}."
            raise click.UsageError(f"No such command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyCommands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Connected side:  airgap-sync bundle --k3s v1.32.3+k3s1 --to /media/usb/k3s\n\n"
    "Isolated side:   airgap-sync push /media/usb/k3s https://harbor.example/k3s",
)
@click.version_option(__version__, prog_name="airgap-sync")
def cli() -> None:
    """Carry every image of a K3s release across an air gap."""


def run() -> NoReturn:
    """Run the command line; never returns.

    Threads may sit in a socket when a signal comes, so the process ends without waiting for them: everything that
    matters is on the disk already, and the same command continues.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = _run()
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
        _say("interrupted; the same command continues where this one stopped")
    except TerminatedError:
        code = 128 + signal.SIGTERM
        _say("terminated; the same command continues where this one stopped")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _run() -> int:
    try:
        result: Any = cli(standalone_mode=False)
        if sys.stdout:
            sys.stdout.flush()
    except click.exceptions.Abort as error:
        raise KeyboardInterrupt from error
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except AirgapSyncError as error:
        _say(f"error: {error.message} [{error.reference}]")
        if error.hint:
            _say(f"hint: {error.hint}")
        return error.exit_code
    except SystemExit:
        # click's own end when the reader of our output has seen enough; nothing is wrong with us.
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in _OUTPUT_ERRORS:
            raise
        _say(f"error: cannot write to standard output: {error.strerror} [{BadOutputError.reference}]")
        return BadOutputError.exit_code
    except Exception:  # noqa: BLE001 - the last resort: a defect of ours, shown whole
        traceback.print_exc()
        _say("error: this is a defect in airgap-sync, please report it with the lines above [unexpected]")
        return 1
    return result if isinstance(result, int) else 0


def _terminate(_number: int, _frame: object) -> NoReturn:
    # One is enough: a second must not break the clean-up of the first.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise TerminatedError


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        click.echo(line, err=True)
