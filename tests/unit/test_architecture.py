"""The rules of the architecture that code can break without anybody noticing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "bundler"

#: From the top down: a part may import what stands below its row, never its own row's others, never upwards.
ROWS = (
    ("cli",),
    ("ops",),
    ("site", "transfer", "sources"),
    ("bundle",),
    ("k3s",),
    ("registry", "layout", "engine"),
    ("net", "files", "yamlfile", "progress", "schema"),
    ("url",),
    ("report",),
    ("oci",),
    ("errors",),
)
#: The package itself holds nothing but its version; `__main__` only starts `cli`; `logs` belongs to `cli`.
LEAVES = {"", "logs"}
LEVEL = {part: number for number, row in enumerate(ROWS) for part in row}

FENCES = {
    "click": {"cli"},
    "requests": {"net"},
    "urllib3": {"net"},
    "oras": {"registry.artifacts"},
    "docker": {"engine", "registry.authfile"},
    "tqdm": {"progress"},
    "yaml": {"yamlfile"},
    "filelock": {"files"},
    "packaging": {"k3s.version"},
    "jsonschema": {"schema"},
    "securesystemslib": {"bundle.sign"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            yield node.module
            if node.module == "bundler":
                yield from (f"bundler.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_go_downwards_only(path: Path) -> None:
    own = name_of(path).partition(".")[0]
    for name in imports_of(path):
        first, _, rest = name.partition(".")
        part = rest.partition(".")[0]
        if first != "bundler" or part in {own, "", "__version__"}:
            continue
        if own == "__main__":
            assert part == "cli", f"{path} imports {name}"
        elif part == "logs":
            assert own == "cli", f"{path} imports {name}"
        else:
            assert own not in LEAVES, f"{path} imports {name}"
            assert LEVEL[own] < LEVEL[part], f"{path} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_third_party_imports_stay_behind_their_fence(path: Path) -> None:
    own = name_of(path)
    standard = sys.stdlib_module_names | {"bundler"}
    for name in imports_of(path):
        first = name.partition(".")[0]
        if first in standard:
            continue
        assert first in FENCES, f"{path} imports {first}, which has no fence"
        allowed = FENCES[first]
        assert own in allowed or own.partition(".")[0] in allowed, f"{path} imports {first}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_environment_is_read_in_cli_only(path: Path) -> None:
    source = path.read_text()
    if name_of(path).partition(".")[0] != "cli":
        assert "os.environ" not in source
        assert "os.getenv" not in source


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_only_files_renames(path: Path) -> None:
    if name_of(path) == "files":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in {"rename", "replace", "renames", "link"}, path
        if isinstance(node, ast.Attribute):
            assert node.attr != "rename", path


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_nothing_below_cli_prints_or_exits(path: Path) -> None:
    if name_of(path).partition(".")[0] in {"cli", "__main__", "progress"}:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "exit", "quit"}, path
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"exit", "_exit"}, path


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, json\nfrom bundler.cli.main import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        "print(json.dumps([m for m in sys.modules]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stderr))
    assert not loaded & {"requests", "urllib3", "docker", "yaml", "tqdm", "jsonschema", "oras", "packaging"}
