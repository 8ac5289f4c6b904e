"""Runs of the real `preflight`, each checked for what has to hold whatever it finds.

- Document and exit code agree, and the document is what its schema says.
- What is not fine has a rule, a message and a fix; what is fine has none.
- The text says all that the document says.
- The secrets given to a run are in nothing that it writes.
"""

import json
import re
import shlex
import shutil
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.support.command import Result, run
from tests.support.programs import PROJECT
from tests.support.registry import Registry

#: What is not on the loopback interface cannot be reached, as in an air gap.
AIR_GAP = {
    "HTTP_PROXY": "http://127.0.0.1:1",
    "HTTPS_PROXY": "http://127.0.0.1:1",
    "NO_PROXY": "127.0.0.1,localhost,::1",
}
_COMMAND = re.compile(r"airgap-sync ((?:push|config) .*)")


@dataclass(frozen=True)
class Preflight:
    """A run that has ended.

    Attributes:
        result: How.
        document: The result that it kept.
    """

    result: Result
    document: Any

    @property
    def passed(self) -> bool:
        """Whether it passed."""
        return bool(self.document["verdict"] == "pass")

    @property
    def bad(self) -> dict[str, set[str]]:
        """The platforms for which each image is not fine, or not known to be."""
        found: dict[str, set[str]] = {}
        for image in self.document["images"]:
            if image["ok"] is not True:
                found.setdefault(image["reference"], set()).add(image["platform"])
        return found

    @property
    def rules(self) -> set[str]:
        """The rules about images."""
        return {image["rule"] for image in self.document["images"] if image["rule"]}

    @property
    def findings(self) -> dict[str, Any]:
        """The findings by rule; the last of each."""
        return {finding["rule"]: finding for finding in self.document["findings"]}

    @property
    def found(self) -> list[tuple[str, str]]:
        """Rule and place of every finding, sorted."""
        return sorted((finding["rule"], finding["place"]) for finding in self.document["findings"])

    def problem(self, reference: str, platform: str = "linux/amd64") -> Any:
        """Give what is said of an image."""
        (image,) = [
            image
            for image in self.document["images"]
            if (image["reference"], image["platform"]) == (reference, platform)
        ]
        return image

    def not_checked(self, text: str) -> bool:
        """Tell whether something with this text in it was not checked."""
        return any(text in line for line in self.document["not_checked"])


@cache
def _schema() -> Any:
    return json.loads((PROJECT / "bundler/schema/preflight.schema.json").read_text())


def preflight(
    *arguments: str | Path, out: Path, secrets: Iterable[str] = (), env: Mapping[str, str] | None = None
) -> Preflight:
    """Run `preflight` to its end, and check what always holds.

    Args:
        arguments: Behind the name of the command.
        out: Where it keeps its result.
        secrets: What it must not show, neither so nor in base64.
        env: Variables on top of those of an air gap.
    """
    out.unlink(missing_ok=True)
    result = run("preflight", *arguments, "--out", out, env={**AIR_GAP, **(env or {})})
    assert out.exists(), result.err
    checked = Preflight(result, json.loads(out.read_text()))
    _check(checked)
    written = result.out + result.err + out.read_text()
    for secret in secrets:
        for form in (secret, b64encode(secret.encode()).decode()):
            assert form not in written
    return checked


def refused(*arguments: str | Path, code: int, env: Mapping[str, str] | None = None) -> str:
    """Run `preflight` where it cannot be done at all, check its exit code, and give what it says."""
    result = run("preflight", *arguments, env={**AIR_GAP, **(env or {})})
    assert (result.code, result.out) == (code, ""), result.err
    return result.err


def _check(checked: Preflight) -> None:
    document, text = checked.document, checked.result.out
    jsonschema.Draft202012Validator(_schema()).validate(document)
    images, findings = document["images"], document["findings"]
    keys = [(image["reference"], image["platform"]) for image in images]
    assert keys == sorted(set(keys))
    fine = all(image["ok"] for image in images) and not any(found["severity"] == "error" for found in findings)
    assert checked.passed == (bool(images) and fine)
    assert checked.result.code == (0 if checked.passed else 13), checked.result.err
    assert f"verdict: {document['verdict']}; {sum(image['ok'] is True for image in images)} of {len(images)} " in text
    for image in images:
        said = [image[key] for key in ("problem", "rule", "fix")]
        if image["ok"]:
            assert said == [None, None, None]
            continue
        assert all(said), image
        word = "not checked" if image["ok"] is None else "FAIL"
        shown = rf"^{word} +{re.escape(image['reference'])} \([^)]*{image['platform']}[^)]*\)$"
        assert re.search(shown, text, re.MULTILINE), image
        assert f"{image['problem']} [{image['rule']}]\n" in text
        assert f"do: {image['fix']}\n" in text
    for found in findings:
        assert f"{found['severity']:<12}{found['place']}: {found['message']} [{found['rule']}]\n" in text
        assert found["fix"]
        assert f"do: {found['fix']}\n" in text
    assert all(f"not checked {line}\n" in text for line in document["not_checked"])
    assert all(f"{platform}: {', '.join(names)}\n" in text for platform, names in document["seeds"].items())


def follow(fix: str, to: Path | None = None, *options: str | Path, env: Mapping[str, str] | None = None) -> None:
    """Run the command that a fix names.

    Args:
        fix: What is said.
        to: Stands for DIR in it.
        options: Further options, of the sort that only the user knows.
        env: Further variables.
    """
    match = _COMMAND.search(fix)
    assert match, fix
    words = shlex.split(match[1])
    result = run(*(str(to) if word == "DIR" else word for word in words), *options, env=env)
    assert result.code == 0, result.err


@contextmanager
def edited(path: Path) -> Iterator[Any]:
    """Give a YAML file as a document, and write it back as the block leaves it."""
    document = yaml.safe_load(path.read_text())
    yield document
    path.write_text(yaml.safe_dump(document, sort_keys=False))


class Storage:
    """What a real registry has stored, to be taken away piece by piece, and put back as a whole.

    Attributes:
        touched: Something was changed.
    """

    def __init__(self, registry: Registry, saved: Path) -> None:
        """Keep a copy of what a registry has."""
        self.registry = registry
        self.touched = False
        self._saved = saved
        shutil.copytree(registry.storage, saved)

    def restore(self) -> None:
        """Put everything back, if anything was taken away."""
        if self.touched:
            shutil.rmtree(self.registry.storage)
            self.fill(self.registry)
            self.touched = False

    def fill(self, registry: Registry) -> None:
        """Give another registry the same content."""
        shutil.copytree(self._saved, registry.storage, dirs_exist_ok=True)

    def _below(self, *parts: str) -> Path:
        self.touched = True
        return self.registry.storage.joinpath("docker/registry/v2", *parts)

    def lose_blob(self, digest: str) -> None:
        """Lose the bytes of a blob, for all repositories."""
        algorithm, _, encoded = digest.partition(":")
        shutil.rmtree(self._below("blobs", algorithm, encoded[:2], encoded))

    def lose_manifest(self, repository: str, digest: str) -> None:
        """Lose a manifest of a repository."""
        shutil.rmtree(self._below("repositories", repository, "_manifests/revisions", digest.replace(":", "/")))

    def lose_repository(self, repository: str) -> None:
        """Lose a repository."""
        shutil.rmtree(self._below("repositories", repository))
