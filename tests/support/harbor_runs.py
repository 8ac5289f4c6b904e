"""Runs of the real command against the Harbor double, each checked for what has to hold whatever happens.

- The bundle stays as it was.
- No tag stands for something of which a part is missing.
- No cookie is ever sent back, and nobody is asked in any other way than with the account given.
- The password and what Basic makes of it are in no output, report or state.
"""

import json
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit

from tests.support.command import Result, run
from tests.support.content import BlobStore, BuiltImage
from tests.support.handmade import built, multi, snapshot, uploads, write_bundle
from tests.support.harbor import HarborDouble
from tests.support.harbor_accounts import Robot, User
from tests.support.harbor_exchange import HarborRequest
from tests.support.harbor_projects import Artifact
from tests.support.publishing import publish

Case = TypeVar("Case")

BASE = b"a layer of both\n" * 500
APP, TOOL = "docker.io/rancher/app:1", "docker.io/rancher/tool:1"
APP_BIG = b"only app\n" * 9000


def images(store: BlobStore) -> dict[str, BuiltImage]:
    """Build two images that share a layer: an index of two platforms, and a manifest."""
    return {APP: multi(store, BASE, APP_BIG, title="app"), TOOL: built(store, BASE, b"only tool\n", title="tool")}


def size_of(images: Mapping[str, BuiltImage]) -> int:
    """Give what a project is charged for images: each blob and manifest once."""
    sizes = {blob.digest: blob.size for image in images.values() for blob in image.blobs}
    for image in images.values():
        sizes |= {digest: len(data) for digest, (_, data) in image.manifests.items()}
        sizes[image.root_digest] = len(image.root_bytes)
    return sum(sizes.values())


@dataclass(frozen=True)
class Done:
    """A run that has ended: how, what it reported, and what it asked."""

    result: Result
    report: Mapping[str, Any]
    requests: list[HarborRequest]

    @property
    def code(self) -> int:
        """Exit code."""
        return self.result.code

    @property
    def err(self) -> str:
        """Standard error."""
        return self.result.err

    @property
    def error(self) -> str:
        """Reference of what ended the run; empty where it ended well."""
        return str((self.report["error"] or {}).get("reference", ""))

    @property
    def message(self) -> str:
        """Message of that."""
        return str(self.report["error"]["message"])

    @property
    def hint(self) -> str:
        """Hint of that."""
        return str(self.report["error"].get("hint", ""))

    @property
    def outcomes(self) -> dict[str, str]:
        """Outcome of each image, with the reference of its error where it has one."""
        return {image["reference"]: (image["error"] or {}).get("reference", image["outcome"]) for image in self.images}

    @property
    def images(self) -> list[dict[str, Any]]:
        """What is reported of the images."""
        return list(self.report["images"])

    def failure(self, reference: str) -> dict[str, Any]:
        """Give the error of an image."""
        (found,) = [image["error"] for image in self.images if image["reference"] == reference]
        return dict(found)

    def asked(self, method: str, text: str, status: int | None = None) -> list[HarborRequest]:
        """Give the requests of a method with a text in their target, and the status where one is given."""
        return [
            request
            for request in self.requests
            if request.method == method and text in request.target and status in {None, request.status}
        ]

    @property
    def scopes(self) -> list[tuple[str, ...]]:
        """What tokens were asked for, each as its scopes."""
        asked = [urlsplit(request.target) for request in self.asked("GET", "/service/token")]
        return [tuple(parse_qs(target.query).get("scope", ())) for target in asked]

    @property
    def sent(self) -> set[str]:
        """Digests of the blobs that were uploaded, or of which an upload was tried."""
        return set(uploads(self.requests, None))

    @property
    def changes(self) -> list[HarborRequest]:
        """The requests that are not just questions."""
        return [request for request in self.requests if request.method not in {"HEAD", "GET"}]


class Site:
    """A Harbor, a bundle beside it, and whoever pushes.

    Attributes:
        images: What the bundle holds, by reference.
        bundle: The bundle.
    """

    def __init__(self, harbor: HarborDouble, directory: Path) -> None:
        """Write the bundle."""
        self.harbor = harbor
        self.directory = directory
        self.store = BlobStore(directory / "store")
        self.images = images(self.store)
        self.bundle = write_bundle(directory / "bundle", self.images)

    def write(self, made: Mapping[str, BuiltImage]) -> None:
        """Replace the bundle by one with other images."""
        self.images = dict(made)
        self.bundle = write_bundle(self.directory / f"bundle-{len(list(self.directory.iterdir()))}", made)

    def seed(self, prefix: str = "mirror") -> None:
        """Put what the bundle holds into Harbor by other means, as the admin."""
        for reference, image in self.images.items():
            name, _, tag = reference.partition("/")[2].rpartition(":")
            repository = f"{prefix}/{name}".lstrip("/")
            publish(image, self.harbor.url, repository, tag, auth=pair_of(self.harbor.users["admin"]))

    def push(
        self,
        account: User | Robot | tuple[str, str],
        *options: str | Path,
        prefix: str = "mirror",
        sound: bool = True,
        url: str = "",
    ) -> Done:
        """Push the bundle.

        Args:
            account: Who pushes.
            options: More of the command line.
            prefix: Of the target; may be empty.
            sound: Whether what tags stand for is complete afterwards.
            url: Of the server, where it is not the usual one.
        """
        target = f"{url or self.harbor.url}/{prefix}".rstrip("/")
        report, before = self.directory / "report.json", snapshot(self.bundle)
        report.unlink(missing_ok=True)
        done = self.run(account, ["push", self.bundle, target, "--report", report, "--progress", "none", *options])
        assert snapshot(self.bundle) == before
        if sound:
            assert unsound(self.harbor) == []
        return done

    def run(self, account: User | Robot | tuple[str, str], command: Iterable[str | Path]) -> Done:
        """Run a command as an account, and check what holds whatever happens."""
        name, password = pair_of(account)
        file, state = self.directory / "password", self.directory / "state"
        file.write_text(f"{password}\n")
        mark = self.harbor.mark()
        arguments = [*command, "--username", name, "--password-file", file]
        result = run(*arguments, env={"AIRGAP_SYNC_STATE": str(state)})
        requests = self.harbor.since(mark)
        assert all("cookie" not in request.headers for request in requests)
        assert {request.user for request in requests} <= {name, None}
        report = self.directory / "report.json"
        told = [path.read_text() for path in (report, *state.rglob("*")) if path.is_file()]
        used = {request.headers["authorization"] for request in requests if "authorization" in request.headers}
        secrets = {password, b64encode(f"{name}:{password}".encode()).decode(), *(word.split()[1] for word in used)}
        assert [secret for secret in secrets for text in (result.out, result.err, *told) if secret in text] == []
        return Done(result, json.loads(report.read_text()) if report.is_file() else {}, requests)


def each(directory: Path, cases: Mapping[str, Case], check: Callable[[Site, Case], None]) -> None:
    """Check some cases at the same time, each with a Harbor of its own that has the project mirror."""

    def one(name: str, case: Case) -> None:
        with HarborDouble() as harbor:
            harbor.add_project("mirror")
            (directory / name).mkdir()
            try:
                check(Site(harbor, directory / name), case)
            except BaseException as error:
                error.add_note(f"in the case of {name}")
                raise

    with ThreadPoolExecutor(4) as pool:
        for ended in [pool.submit(one, name, case) for name, case in cases.items()]:
            ended.result()


def pair_of(account: User | Robot | tuple[str, str]) -> tuple[str, str]:
    """Give name and password of an account."""
    if isinstance(account, Robot):
        return account.name, account.secret
    return (account.name, account.password) if isinstance(account, User) else account


def unsound(harbor: HarborDouble) -> list[str]:
    """Give all that is missing below the tags: artifacts in Harbor's list, manifests and blobs in the registry."""
    missing: list[str] = []
    with harbor.lock:
        repositories = [
            (f"{project.name}/{name}", repository)
            for project in harbor.projects.values()
            for name, repository in project.repositories.items()
        ]
    for name, repository in repositories:

        def look(artifact: Artifact | None, place: str, name: str = name, known: Any = repository) -> None:
            if artifact is None:
                missing.append(place)
                return
            has = partial(_has, f"{harbor.registry.url}/v2/{name}")
            if not has(f"manifests/{artifact.digest}", artifact.media_type):
                missing.append(place)
            for part in artifact.references:
                if "manifest" in part["mediaType"] or "index" in part["mediaType"]:
                    look(known.artifacts.get(part["digest"]), f"{place} {part['digest']}")
                elif not has(f"blobs/{part['digest']}", "*/*"):
                    missing.append(f"{place} {part['digest']}")

        for tag, digest in repository.tags.items():
            look(repository.artifacts.get(digest), f"{name}:{tag}")
    return missing


def _has(base: str, path: str, accept: str) -> bool:
    request = urllib.request.Request(f"{base}/{path}", headers={"Accept": accept}, method="HEAD")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - of a peer
            return bool(answer.status == 200)
    except HTTPError:
        return False
