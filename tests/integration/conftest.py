"""Fixtures of many integration tests; a test file with other needs has its own of the same name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bundles import GatedRegistry
from tests.support.faulty import FaultyRegistry
from tests.support.images import BlobStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(tmp_path_factory.mktemp("store"))


@pytest.fixture
def registry() -> Iterator[GatedRegistry]:
    with GatedRegistry() as started:
        yield started


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


@pytest.fixture
def target() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        yield registry
