"""Projects of the Harbor double: quotas, immutable tags, and the artifacts in them."""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

from tests.support.media_types import INDEXES

UNLIMITED = -1


class HarborError(Exception):
    """A request that is answered with an error, in Harbor's form."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.body = json.dumps({"errors": [{"code": code, "message": message}]}).encode() + b"\n"


@dataclass(frozen=True)
class ImmutableRule:
    """Tags that cannot be moved, by shell patterns for repository (without project) and tag."""

    id: int
    repository_pattern: str
    tag_pattern: str

    def covers(self, repository: str, tag: str) -> bool:
        """Tell whether it applies to a tag."""
        return fnmatchcase(repository, self.repository_pattern) and fnmatchcase(tag, self.tag_pattern)


@dataclass(frozen=True)
class Artifact:
    """A manifest or index, as it was put."""

    id: int
    digest: str
    media_type: str
    data: bytes
    pushed: float

    @cached_property
    def document(self) -> dict[str, Any]:
        """What it says."""
        parsed: dict[str, Any] = json.loads(self.data)
        return parsed

    @property
    def references(self) -> list[dict[str, Any]]:
        """Descriptors of its children, or of its config and layers."""
        if self.media_type in INDEXES:
            return list(self.document.get("manifests", []))
        return [self.document["config"], *self.document.get("layers", [])]


@dataclass
class Repository:
    """Artifacts by digest, and what the tags point to."""

    id: int
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def find(self, reference: str) -> Artifact | None:
        """Give what a tag or digest stands for."""
        return self.artifacts.get(self.tags.get(reference, reference))


@dataclass(eq=False)
class Project:
    """A project, with the sizes of all blobs and manifests it is charged for."""

    id: int
    name: str
    quota_bytes: int
    registry_id: int
    created: float
    owner: str
    metadata: dict[str, str]
    blobs: dict[str, int] = field(default_factory=dict)
    reserved_bytes: int = 0
    rules: list[ImmutableRule] = field(default_factory=list)
    repositories: dict[str, Repository] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def public(self) -> bool:
        """Whether everybody may pull."""
        return self.metadata.get("public") == "true"

    @property
    def used_bytes(self) -> int:
        """Bytes charged."""
        with self.lock:
            return sum(self.blobs.values())

    def check_quota(self, size_bytes: int) -> None:
        """Check that there is room for some more bytes.

        Raises:
            HarborError: There is not.
        """
        with self.lock:
            used = self.used_bytes + self.reserved_bytes
        if self.quota_bytes != UNLIMITED and used + size_bytes > self.quota_bytes:
            message = (
                f"adding {_size(size_bytes)} of storage resource, which when updated to current usage of "
                f"{_size(used)} will exceed the configured upper limit of {_size(self.quota_bytes)}."
            )
            raise HarborError(HTTPStatus.FORBIDDEN, "DENIED", message)

    def immutable(self, repository: str, tag: str) -> bool:
        """Tell whether a rule covers a tag."""
        return any(rule.covers(repository, tag) for rule in self.rules)


class Reservation:
    """Context manager: room in a project's quota, kept until it is booked or left.

    Raises:
        HarborError: There is not that much room.
    """

    def __init__(self, project: Project, size_bytes: int) -> None:
        self._project, self._bytes = project, size_bytes
        with project.lock:
            if size_bytes:
                project.check_quota(size_bytes)
            project.reserved_bytes += size_bytes

    def book(self, sizes: Mapping[str, int]) -> None:
        """Charge the project for blobs that it has not been charged for yet, in place of what was reserved."""
        with self._project.lock:
            self._release()
            for digest, size_bytes in sizes.items():
                self._project.blobs.setdefault(digest, size_bytes)

    def _release(self) -> None:
        self._project.reserved_bytes -= self._bytes
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._project.lock:
            self._release()


def _size(size_bytes: int) -> str:
    if size_bytes < 1024:
        return f"{size_bytes} B"
    value, units = size_bytes / 1024, iter("KMGTPE")
    unit = next(units)
    while value >= 1024:
        value, unit = value / 1024, next(units)
    return f"{value:.1f} {unit}iB"
