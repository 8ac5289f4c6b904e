"""Harbor's own API: what a push must know beforehand, what may be made, and what the registry API hides.

Invariants:

- Asking needs as few rights as it can; what we may not know is None, never an error.
- Names in paths are encoded twice: proxies in front decode once.

Source: goharbor/harbor, ``api/v2.0/swagger.yaml`` and the handlers under ``src/server/v2.0/handler``.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

from bundler.errors import AuthError, DeniedError, UnexpectedAnswerError
from bundler.net import Response, number
from bundler.registry.client import RegistryClient

_API = "/api/v2.0"
_PROJECT = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_MAX_ANSWER_BYTES = 8 * 1024 * 1024
#: The largest page that Harbor gives.
_PAGE = 100
#: Parts of Harbor without which nothing can be pushed.
_NEEDED = ("core", "registry", "database", "redis")
#: What an account without enough rights is answered.
_NOT_FOR_US = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.PRECONDITION_FAILED)


@dataclass(frozen=True, slots=True)
class Project:
    """A project.

    Attributes:
        number: Its id.
        is_proxy_cache: It caches another registry, and takes no pushes.
        repositories: How many it has, if known.
    """

    name: str
    number: int
    is_proxy_cache: bool = False
    repositories: int | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """Storage of a project in bytes; ``hard`` is None where there is no limit."""

    hard: int | None
    used: int


@dataclass(frozen=True, slots=True)
class System:
    """What Harbor says of itself to an account.

    Attributes:
        read_only: Whether it takes no writes; None where it does not tell.
        clock_ahead_s: How far its clock is ahead of ours, in seconds; None where it does not tell.
    """

    read_only: bool | None
    clock_ahead_s: float | None


@dataclass(frozen=True, slots=True)
class Artifact:
    """A manifest that Harbor knows.

    Attributes:
        tags: Its tags, and whether each is immutable (None if that was not asked for).
    """

    digest: str
    tags: dict[str, bool | None]


@dataclass(frozen=True, slots=True)
class Robot:
    """A robot account that was made; its secret is told this once, and never shown by ``repr``."""

    name: str
    secret: str = field(repr=False)


class Harbor:
    """Harbor's API at the host of an endpoint.

    Args:
        client: That endpoint.
    """

    def __init__(self, client: RegistryClient) -> None:
        self._client = client

    # --- the whole of it ------------------------------------------------------------------------------------

    def is_there(self) -> bool:
        """Tell whether it is Harbor that answers."""
        response = self._client.call_api("GET", "/api/version", accept=_ANY, anonymous=True)
        found = _json(response) if response.status == HTTPStatus.OK else None
        if response.status != HTTPStatus.OK:
            response.close()
        return isinstance(found, dict) and str(found.get("version", "")).startswith("v")

    def ailing(self) -> list[str]:
        """Return the parts that a push needs and that are not well, each with its error."""
        found = self._get("/health")
        parts = found.get("components") if isinstance(found, dict) else None
        return [
            f"{part.get('name')}: {part.get('error') or part.get('status')}"
            for part in parts or ()
            if isinstance(part, dict) and part.get("name") in _NEEDED and part.get("status") != "healthy"
        ]

    def system(self) -> System:
        """Return what Harbor says of itself."""
        found = self._get("/systeminfo")
        found = found if isinstance(found, dict) else {}
        read_only = found.get("read_only")
        ahead_s = None
        try:
            moment = dt.datetime.fromisoformat(str(found.get("current_time", "")))
            ahead_s = (moment - dt.datetime.now(dt.UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):
            ahead_s = None
        return System(read_only if isinstance(read_only, bool) else None, ahead_s)

    # --- projects ---------------------------------------------------------------------------------------------

    def project(self, name: str) -> Project | None:
        """Return a project; None if there is none of this name, as far as this account may know.

        Raises:
            AuthError: The account may ask nothing at all.
        """
        query = urlencode({"q": f"name={name}", "page_size": str(_PAGE)})
        found = self._get(f"/projects?{query}")
        for item in found if isinstance(found, list) else ():
            if isinstance(item, dict) and item.get("name") == name:
                return _project(item)
        # Listed are the projects one is a member of; whether others exist may be asked as well.
        response = self._client.call_api("HEAD", f"{_API}/projects?{urlencode({'project_name': name})}", accept=_ANY)
        response.close()
        return Project(name, 0) if response.status == HTTPStatus.OK else None

    def create_project(self, name: str, *, public: bool, quota_bytes: int | None) -> None:
        """Make a project; one that is there already is fine.

        Raises:
            DeniedError: The account may not.
        """
        body: dict[str, Any] = {"project_name": name, "metadata": {"public": "true" if public else "false"}}
        if quota_bytes is not None:
            body["storage_limit"] = quota_bytes
        try:
            self._post("/projects", body, (201, 409))
        except AuthError as error:
            raise DeniedError(
                f"project {name!r} cannot be created: {error.message}",
                hint="Ask Harbor's administrator to create it, or use an account that may create projects: a system "
                "administrator, any user where Project Creation is set to Everyone, or a system robot with "
                "project: create.",
                context=error.context,
            ) from error

    def quota(self, project: Project) -> Quota | None:
        """Return what a project uses and may use; None if this account may not know."""
        found = self._get(f"/projects/{_once(project.name)}/summary")
        quota = found.get("quota") if isinstance(found, dict) else None
        if not isinstance(quota, dict) and project.number:
            query = urlencode({"reference": "project", "reference_id": str(project.number)})
            listed = self._get(f"/quotas?{query}")
            quota = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else None
        if quota is None:
            return None
        hard, used = (_storage(quota.get(word)) for word in ("hard", "used"))
        if hard is None or used is None:
            return None
        return Quota(hard if hard >= 0 else None, used)

    # --- artifacts ------------------------------------------------------------------------------------------

    def artifact(self, repository: str, reference: str) -> Artifact | None:
        """Return what a tag or digest stands for, also where a policy hides it; None if it is not told."""
        query = urlencode({"with_tag": "true", "with_immutable_status": "true"})
        found = self._get(f"{_artifacts(repository)}/{quote(reference, safe=':')}?{query}")
        return _artifact(found) if isinstance(found, dict) else None

    def artifacts(self, repository: str) -> Iterator[Artifact]:
        """Yield all artifacts of a repository, the children of indexes included.

        Raises:
            DeniedError: This account may not list them.
        """
        for page in range(1, 10_000):
            query = urlencode({"with_tag": "true", "q": "base=*", "page": str(page), "page_size": str(_PAGE)})
            found = self._get(f"{_artifacts(repository)}?{query}")
            if not isinstance(found, list):
                raise DeniedError(f"the artifacts of {repository} may not be listed by this account")
            yield from (artifact for item in found if (artifact := _artifact(item)) is not None)
            if len(found) < _PAGE:
                return

    # --- robots -----------------------------------------------------------------------------------------------

    def create_robot(
        self, project: str, name: str, access: list[tuple[str, str]], *, days: int, description: str
    ) -> Robot:
        """Make a robot account of one project.

        Args:
            project: The project.
            name: Of the robot, without prefix.
            access: Pairs of resource and action.
            days: How long it lives; -1 for ever.
            description: For whoever finds it in Harbor.

        Raises:
            AuthError: The account may not.
            UnexpectedAnswerError: A robot of this name is there, or Harbor does not know one of the rights.
        """
        grants = [{"resource": resource, "action": action} for resource, action in access]
        body = {
            "name": name,
            "level": "project",
            "duration": days,
            "disable": False,
            "description": description,
            "permissions": [{"kind": "project", "namespace": project, "access": grants}],
        }
        found = self._post("/robots", body, (201,))
        try:
            return Robot(str(found["name"]), str(found["secret"]))
        except (KeyError, TypeError) as error:
            raise UnexpectedAnswerError("Harbor made a robot account without telling its secret") from error

    # --- requests -----------------------------------------------------------------------------------------------

    def _get(self, path: str) -> Any:
        """Return the document at a path; None if there is none or it is not for us."""
        response = self._client.call_api("GET", f"{_API}{path}", accept=(200, *_NOT_FOR_US))
        if response.status != HTTPStatus.OK:
            response.close()
            return None
        return _json(response)

    def _post(self, path: str, body: dict[str, Any], accept: tuple[int, ...]) -> Any:
        response = self._client.call_api("POST", f"{_API}{path}", accept=accept, body=json.dumps(body).encode())
        return _json(response)


def is_project_name(name: str) -> bool:
    """Tell whether Harbor allows a project of this name, which is less than a repository may be called."""
    return len(name) <= 255 and bool(_PROJECT.fullmatch(name))  # noqa: PLR2004 - Harbor's limit


def _json(response: Response) -> Any:
    try:
        return json.loads(response.read_all(_MAX_ANSWER_BYTES) or b"null")
    except (ValueError, RecursionError):
        return None


def _artifacts(repository: str) -> str:
    project, _, rest = repository.partition("/")
    return f"/projects/{_once(project)}/repositories/{_once(_once(rest))}/artifacts"


def _once(text: str) -> str:
    return quote(text, safe="")


def _project(item: dict[str, Any]) -> Project:
    count = item.get("repo_count")
    return Project(
        str(item["name"]),
        number(str(item.get("project_id", ""))) or 0,
        bool(number(str(item.get("registry_id") or ""))),
        count if isinstance(count, int) else None,
    )


def _storage(value: Any) -> int | None:
    found = value.get("storage") if isinstance(value, dict) else None
    return found if isinstance(found, int) else None


def _artifact(item: Any) -> Artifact | None:
    if not isinstance(item, dict) or not isinstance(item.get("digest"), str):
        return None
    tags = item.get("tags")
    return Artifact(
        item["digest"],
        {
            tag["name"]: tag.get("immutable")
            for tag in (tags if isinstance(tags, list) else ())
            if isinstance(tag, dict) and isinstance(tag.get("name"), str)
        },
    )


#: Whatever is answered, its status says all.
_ANY = tuple(range(200, 500))
