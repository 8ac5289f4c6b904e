"""What a run did, image by image: written as JSON for machines and officers, also when the run fails.

Times are UTC, RFC 3339; sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from signal import Signals
from typing import Any

from bundler import __version__
from bundler.errors import AirgapSyncError
from bundler.oci.digest import Digest
from bundler.oci.reference import Reference

REPORT_API_VERSION = "airgap-sync/v1"


@dataclass(slots=True)
class ImageOutcome:
    """What became of one image.

    Attributes:
        outcome: ``fetched``, ``unchanged`` (bundle); ``pushed``, ``up-to-date``, ``planned`` (push);
            ``not-done``, ``failed`` (both).
        digest: Of the image in the bundle, if known.
        target: Its name at the target (push).
        bytes_moved: Fetched from or sent to a registry.
        bytes_mounted: Linked inside the target instead of sent.
    """

    reference: Reference
    outcome: str
    digest: Digest | None = None
    target: str | None = None
    bytes_moved: int = 0
    bytes_mounted: int = 0
    error: AirgapSyncError | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as it stands in the report."""
        return {
            "reference": str(self.reference),
            "outcome": self.outcome,
            "digest": str(self.digest) if self.digest else None,
            "target": self.target,
            "bytes_moved": self.bytes_moved,
            "bytes_mounted": self.bytes_mounted,
            "error": self.error.to_dict() if self.error else None,
        }


@dataclass(slots=True)
class Report:
    """A whole run.

    Attributes:
        command: The verb.
        bundle: The bundle's directory, as the user wrote it.
        target: Where it was pushed, or None.
        lock_digest: Of bundle.lock.json, or None if there is none.
        images: In order of name.
        warnings: What the user was warned of.
        notices: What the user was told.
        facts: More results of this command: counts and sizes.
        error: What ended the run, if it did not end well.
        status: ``succeeded``, ``failed`` or ``interrupted``.
    """

    command: str
    bundle: str
    target: str | None = None
    started_utc: str = ""
    finished_utc: str = ""
    lock_digest: Digest | None = None
    images: list[ImageOutcome] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    error: AirgapSyncError | None = None
    status: str = "succeeded"

    def fail(self, error: AirgapSyncError) -> None:
        """Note what ended the run."""
        self.status, self.error = "failed", error

    def interrupt(self, signal: Signals) -> None:
        """Note that a signal ended the run."""
        error = AirgapSyncError(f"ended by {signal.name}; the same command continues")
        error.reference, error.exit_code = "interrupted", 128 + signal
        self.status, self.error = "interrupted", error

    @property
    def failed(self) -> list[ImageOutcome]:
        """The images that failed."""
        return [image for image in self.images if image.outcome == "failed"]

    def totals(self) -> dict[str, int]:
        """Return counts by outcome and the sums of bytes."""
        totals = {"images": len(self.images)}
        for image in self.images:
            totals[image.outcome] = totals.get(image.outcome, 0) + 1
        totals["bytes_moved"] = sum(image.bytes_moved for image in self.images)
        totals["bytes_mounted"] = sum(image.bytes_mounted for image in self.images)
        return totals

    def to_dict(self) -> dict[str, Any]:
        """Return the report as one JSON document."""
        return {
            "apiVersion": REPORT_API_VERSION,
            "kind": "Report",
            "tool": {"name": "airgap-sync", "version": __version__},
            "command": self.command,
            "status": self.status,
            "bundle": self.bundle,
            "target": self.target,
            "started_utc": self.started_utc,
            "finished_utc": self.finished_utc,
            "lock_digest": str(self.lock_digest) if self.lock_digest else None,
            "totals": self.totals(),
            "images": [image.to_dict() for image in self.images],
            "warnings": list(self.warnings),
            "notices": list(self.notices),
            "facts": dict(self.facts),
            "error": self.error.to_dict() if self.error else None,
        }
