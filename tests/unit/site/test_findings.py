"""The result of a preflight: what passes, and how it is written and read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bundler.errors import BadResultError
from bundler.schema.validation import first_problem
from bundler.site.findings import Finding, ImageResult, Problem, Severity, Verdict

GOOD = ImageResult("docker.io/rancher/app:1", "linux/amd64", ok=True)
PROBLEM = Problem("image-absent", "it is not there", "put it there")
BAD = ImageResult("docker.io/rancher/app:2", "linux/amd64", ok=False, problem=PROBLEM)
UNKNOWN = ImageResult("docker.io/rancher/app:3", "linux/arm64", ok=None, problem=Problem("no-result", "nobody asked"))
DIGEST, SITE = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
CHECKED = "2026-01-02T03:04:05Z"


def verdict(*images: ImageResult, severity: Severity | None = None) -> Verdict:
    seeds = {"linux/amd64": ["a", "b"]}
    made = Verdict(DIGEST, SITE, CHECKED, "node-1", list(images), not_checked=["the weather"], seeds=seeds)
    if severity:
        made.add("not-restarted", severity, "certs.d", "it was changed", "restart K3s")
    return made


def raw(made: Verdict, **changes: Any) -> bytes:
    return json.dumps({**made.to_dict("bundle"), **changes}).encode()


@pytest.mark.parametrize(
    ("made", "passed"),
    [
        (verdict(GOOD), True),
        (verdict(GOOD, severity=Severity.WARNING), True),
        (verdict(GOOD, severity=Severity.ERROR), False),
        (verdict(GOOD, BAD), False),
        (verdict(GOOD, UNKNOWN), False),
        (verdict(), False),
    ],
    ids=["good", "warning", "error", "bad", "unknown", "nothing"],
)
def test_only_what_was_checked_and_is_well_passes(made: Verdict, passed: bool) -> None:
    assert made.passed is passed
    assert made.to_dict("bundle")["verdict"] == ("pass" if passed else "fail")


def test_a_result_is_read_as_it_was_written() -> None:
    made = verdict(GOOD, BAD, UNKNOWN, severity=Severity.ERROR)
    document = made.to_dict("bundle")
    assert first_problem("preflight", document) is None
    assert (document["site_digest"], document["checked_utc"]) == (SITE, CHECKED)
    assert Verdict.parse(raw(made), "a.json") == made
    assert Verdict.parse(raw(made), "a.json").to_dict("bundle") == document


def test_a_finding_is_noted_once() -> None:
    made = verdict(severity=Severity.ERROR)
    made.add("not-restarted", Severity.ERROR, "certs.d", "it was changed", "restart K3s")
    made.add("not-restarted", Severity.ERROR, "elsewhere", "it was changed", "restart K3s")
    assert [finding.place for finding in made.findings] == ["certs.d", "elsewhere"]


def test_what_registries_say_cannot_write_to_a_terminal() -> None:
    problem = Problem("server-error", "it says \x1b[2J\nverdict: pass", "do\rthis")
    made = Verdict(None, SITE, CHECKED, images=[ImageResult("a/b:1", "linux/amd64", ok=False, problem=problem)])
    made.add("rule", Severity.ERROR, "place", "a\x00b", "c\x07d")
    text = json.dumps(made.to_dict("bundle"), ensure_ascii=False)
    assert not any(f"\\u00{code:02x}" in text for code in (*range(10), 0x1B))
    assert "\\n" not in text


@pytest.mark.parametrize(
    "changes",
    [
        {"apiVersion": "airgap-sync/v9"},
        {"kind": "Site"},
        {"verdict": "maybe"},
        {"images": [{**BAD.to_dict(), "ok": "yes"}]},
        {"images": [{"reference": "a"}]},
        {"findings": [{**Finding("r", Severity.ERROR, "p", "m", "f").to_dict(), "severity": "fatal"}]},
        {"seeds": []},
        {"node": 7},
        {"site_digest": None},
        {"checked_utc": "yesterday"},
        {"more": 1},
    ],
    ids=["version", "kind", "verdict", "ok", "image", "severity", "seeds", "node", "site", "time", "more"],
)
def test_other_documents_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadResultError, match=r"^a\.json is not the result of a preflight: "):
        Verdict.parse(raw(verdict(GOOD), **changes), "a.json")


@pytest.mark.parametrize("key", ["site_digest", "checked_utc", "lock_digest"])
def test_a_result_that_does_not_say_what_it_is_of_is_refused(key: str) -> None:
    document = verdict(GOOD).to_dict("bundle")
    del document[key]
    with pytest.raises(BadResultError, match=rf"^a\.json is not the result of a preflight: .*{key}"):
        Verdict.parse(json.dumps(document).encode(), "a.json")


@pytest.mark.parametrize("data", [b"", b"[", b"\xff", b"[]", b"[" * 100_000], ids=["no", "cut", "utf8", "list", "deep"])
def test_what_is_no_json_document_is_refused(data: bytes) -> None:
    with pytest.raises(BadResultError, match=r"a\.json"):
        Verdict.parse(data, "a.json")
