"""The wheel holds all that the program needs, and nothing of the tests."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def test_the_wheel_holds_code_data_and_schemas(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path,
         PROJECT],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    shipped = {str(path.relative_to(PROJECT)) for path in (PROJECT / "bundler").rglob("*")
               if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip
    assert shipped <= names
    assert not any(name.startswith(("tests", "docs", "manifests")) for name in names)
    assert {"bundler/k3s/data/image-lists.json", "bundler/schema/bundle-lock.schema.json"} <= shipped
