"""The command line: help for everything, usage errors with code 2, nothing on the wrong stream."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bundler import __version__
from bundler.cli.main import COMMANDS, cli

PROJECT = Path(__file__).resolve().parents[2]


def command_of(name: str) -> click.Command:
    """Give a command by its words."""
    found: click.Command = cli
    for word in name.split():
        assert isinstance(found, click.Group)
        inner = found.get_command(click.Context(found), word)
        assert inner is not None
        found = inner
    return found


def leaves(name: str) -> list[str]:
    """Give the words of a command, or of all that a group has."""
    found = command_of(name)
    return (
        [leaf for inner in found.commands for leaf in leaves(f"{name} {inner}")]
        if isinstance(found, click.Group)
        else [name]
    )


LEAVES = [leaf for name in COMMANDS for leaf in leaves(name)]


def test_the_root_lists_every_command() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    assert all(f"  {name} " in result.output for name in COMMANDS)


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_has_help_with_an_example_and_every_option_explained(name: str) -> None:
    result = CliRunner().invoke(cli, [*name.split(), "-h"])
    assert result.exit_code == 0
    assert f"Example: airgap-sync {name} " in result.output
    options = [parameter for parameter in command_of(name).params if isinstance(parameter, click.Option)]
    options = [option for option in options if not option.hidden]
    assert options
    assert all(option.help for option in options)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_short_help_of_the_list_is_the_command_s_own(name: str) -> None:
    assert command_of(name).get_short_help_str(200) == COMMANDS[name]


@pytest.mark.parametrize(
    "arguments",
    [["imags"], ["bundle"], ["push", "x"], ["images", "--nope"], ["bundle", "--to", "x", "--jobs", "0"], ["--nope"]],
)
def test_wrong_usage_exits_2_and_says_so_on_standard_error(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "bundler", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_typo_in_a_command_is_answered_with_the_right_one() -> None:
    result = CliRunner().invoke(cli, ["bundel"])
    assert result.exit_code == 2
    assert "Did you mean 'bundle'?" in result.stderr


def test_the_version_is_told() -> None:
    assert __version__ in CliRunner().invoke(cli, ["--version"]).output


def test_the_example_list_in_manifests_is_valid() -> None:
    result = CliRunner().invoke(cli, ["images", "--images", str(PROJECT / "manifests" / "apps.example.txt")])
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [
        "docker.io/library/redis:7.4",
        "ghcr.io/acme/shop/frontend:2.1.0",
        "registry.example:5000/acme/backend:1.8.3",
    ]
