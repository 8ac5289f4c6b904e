"""The generated parts of the documentation: the exit-code table in README.md, docs/commands.md and docs/faults.md.

``python -m tests.support.docs`` fails if they are not what the code says; ``--write`` writes them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from bundler.cli.main import COMMANDS, cli
from bundler.errors import exit_code_table
from tests.support.fault_table import markdown

PROJECT = Path(__file__).resolve().parents[2]
_TABLE = re.compile(r"(<!-- exit codes: generated -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def readme() -> str:
    """Return README.md as it should be."""
    text = (PROJECT / "README.md").read_text()
    if not _TABLE.search(text):
        sys.exit("README.md has lost the markers of its exit-code table")
    return _TABLE.sub(lambda match: f"{match[1]}\n{exit_code_table()}\n{match[3]}", text)


def commands() -> str:
    """Return docs/commands.md as it should be: the help of every command."""
    parts = ["# Commands\n\nGenerated from the program's own help by `make docs`.\n"]
    root = click.Context(cli, info_name="airgap-sync", terminal_width=100, help_option_names=["-h", "--help"])
    parts.append(f"```text\n{cli.get_help(root)}\n```\n")
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None
        parts += _help(command, name, root, name)
    return "\n".join(parts)


def _help(command: click.Command, name: str, parent: click.Context, title: str) -> list[str]:
    """Return the sections of a command, and of all below it."""
    context = click.Context(command, info_name=name, parent=parent, terminal_width=100)
    sections = [f"## {title}\n\n```text\n{command.get_help(context)}\n```\n"]
    if isinstance(command, click.Group):
        for word, inner in command.commands.items():
            sections += _help(inner, word, context, f"{title} {word}")
    return sections


def generated() -> dict[Path, str]:
    """Return all files with generated parts, as they should be."""
    docs = PROJECT / "docs"
    return {PROJECT / "README.md": readme(), docs / "commands.md": commands(), docs / "faults.md": markdown()}


def stale() -> list[Path]:
    """Return the files that are not what the code says."""
    return [path for path, text in generated().items() if not path.exists() or path.read_text() != text]


def main() -> None:
    """Check, or write."""
    if "--write" in sys.argv[1:]:
        for path, text in generated().items():
            path.write_text(text)
    elif found := stale():
        sys.exit(f"out of date: {', '.join(str(path.relative_to(PROJECT)) for path in found)}; run `make docs`")


if __name__ == "__main__":
    main()
