"""What a check of a site finds: about single images, and about the site as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from bundler import __version__
from bundler.errors import BadManifestError, BadResultError, one_line
from bundler.oci.manifest import parse_json
from bundler.schema.validation import first_problem

API_VERSION = "airgap-sync/v1"
KIND = "Preflight"


class Severity(StrEnum):
    """Whether an upgrade would fail, or may."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something at the site that must, or should, be mended.

    Attributes:
        rule: A stable word for its kind.
        severity: How bad it is.
        place: Where it is: a file, a node, an object.
        message: What is wrong.
        fix: What mends it, a command where there is one.
    """

    rule: str
    severity: Severity
    place: str
    message: str
    fix: str

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as it stands in results."""
        return {
            "rule": self.rule,
            "severity": str(self.severity),
            "place": self.place,
            "message": one_line(self.message),
            "fix": one_line(self.fix),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read a finding that passed the schema."""
        return cls(data["rule"], Severity(data["severity"]), data["place"], data["message"], data["fix"])


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an image cannot be pulled, or why that is not known."""

    rule: str
    message: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class ImageResult:
    """Whether nodes of one platform get one image.

    Attributes:
        ok: None if it could not be checked.
        problem: What is wrong, or what keeps it from being checked; None if it is fine.
    """

    reference: str
    platform: str
    ok: bool | None
    problem: Problem | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as it stands in results."""
        problem = self.problem
        return {
            "reference": self.reference,
            "platform": self.platform,
            "ok": self.ok,
            "problem": one_line(problem.message) if problem else None,
            "rule": problem.rule if problem else None,
            "fix": one_line(problem.fix) if problem else None,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read a result that passed the schema."""
        problem = Problem(data["rule"] or "", data["problem"], data["fix"] or "") if data["problem"] else None
        return cls(data["reference"], data["platform"], data["ok"], problem)


def refused(results: Sequence[ImageResult], references: set[str], problem: Problem) -> list[ImageResult]:
    """Return results with those of some images turned into failures, unless they have failed already."""
    return [
        ImageResult(result.reference, result.platform, ok=False, problem=problem)
        if result.reference in references and result.ok is not False
        else result
        for result in results
    ]


@dataclass(slots=True)
class Verdict:
    """All that a preflight found.

    Attributes:
        lock_digest: Of the bundle's lock, if it has one: what was checked.
        site_digest: Of site.json, as it was or as the flags make it: for which site.
        checked_utc: When (RFC 3339).
        node: The node that it was run on, if on one.
        images: By reference and platform.
        findings: About the site as a whole.
        not_checked: What could not be checked, and how it can be.
        seeds: For each platform, the nodes proposed for the archive.
        node_version: What the node's K3s said that it is, if it was asked.
    """

    lock_digest: str | None
    site_digest: str
    checked_utc: str
    node: str | None = None
    images: list[ImageResult] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    seeds: dict[str, list[str]] = field(default_factory=dict)
    node_version: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every pull would succeed, as far as can be told; what was not checked has not passed."""
        return (
            bool(self.images)
            and all(image.ok for image in self.images)
            and not any(finding.severity is Severity.ERROR for finding in self.findings)
        )

    def to_dict(self, bundle: str) -> dict[str, Any]:
        """Return the result as one JSON document."""
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "tool": {"name": "airgap-sync", "version": __version__},
            "bundle": bundle,
            "lock_digest": self.lock_digest,
            "site_digest": self.site_digest,
            "checked_utc": self.checked_utc,
            "node": self.node,
            "node_version": self.node_version,
            "verdict": "pass" if self.passed else "fail",
            "images": [image.to_dict() for image in self.images],
            "findings": [finding.to_dict() for finding in self.findings],
            "not_checked": list(self.not_checked),
            "seeds": dict(self.seeds),
        }

    @classmethod
    def parse(cls, raw: bytes, where: str) -> Self:
        """Read what a preflight wrote.

        Raises:
            BadResultError: It is not that.
        """
        try:
            document = parse_json(raw, where)
        except BadManifestError as error:
            raise BadResultError(error.message) from error
        if problem := first_problem("preflight", document):
            raise BadResultError(f"{where} is not the result of a preflight: {problem}")
        return cls(
            document["lock_digest"],
            document["site_digest"],
            document["checked_utc"],
            document["node"],
            [ImageResult.from_dict(item) for item in document["images"]],
            [Finding.from_dict(item) for item in document["findings"]],
            list(document["not_checked"]),
            dict(document["seeds"]),
            document["node_version"],
        )

    def add(self, rule: str, severity: Severity, place: str, message: str, fix: str) -> None:
        """Note a finding, once."""
        finding = Finding(rule, severity, place, message, fix)
        if finding not in self.findings:
            self.findings.append(finding)
