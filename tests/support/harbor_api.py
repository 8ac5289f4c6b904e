"""The API of the Harbor double, below `/api/`."""

import json
import math
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.support.harbor_accounts import Identity, Robot, User
from tests.support.harbor_documents import (
    bad_request,
    check_project,
    check_robot,
    check_storage,
    choose,
    date_time,
    describe_artifact,
    describe_project,
    describe_quota,
    describe_quota_entry,
    describe_rule,
    quota_id,
    refusal,
)
from tests.support.harbor_exchange import Exchange
from tests.support.harbor_gate import identify
from tests.support.harbor_projects import Artifact, HarborError, Project

_BASE = "/api/v2.0"
_PROJECT = rf"{_BASE}/projects/(?P<project>[^/]+)"
_ARTIFACTS = rf"{_PROJECT}/repositories/(?P<repository>[^/]+)/artifacts"
_LARGEST_PAGE = 100
_DAY_S = 24 * 60 * 60
_ROBOT_DAYS = 30
# Where the CLI secret of an OIDC user is honoured.
_OIDC = re.compile(
    rf"POST {_BASE}/projects|GET (/api/version|{_BASE}/(systeminfo|projects)|{_BASE}/.*/(repositories|artifacts))"
)


class Api:
    """A request below `/api/`."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._state = exchange.state
        self._parts: Mapping[str, str] = {}

    @property
    def _identity(self) -> Identity:
        return self._exchange.identity

    def answer(self) -> None:
        """Answer the request."""
        exchange, path = self._exchange, self._exchange.path_only
        identify(exchange, bearer=False, oidc=bool(_OIDC.fullmatch(f"{exchange.command} {path}")))
        routes: dict[str, dict[str, Callable[[], None]]] = {
            "/api/version": {"GET": lambda: self._json({"version": "v2.0"})},
            f"{_BASE}/ping": {"GET": lambda: exchange.reply(HTTPStatus.OK, b"Pong", {"Content-Type": "text/plain"})},
            f"{_BASE}/health": {"GET": self._health},
            f"{_BASE}/systeminfo": {"GET": self._system_info},
            f"{_BASE}/users/current": {"GET": self._current_user},
            f"{_BASE}/projects": {"HEAD": self._head_project, "GET": self._list_projects, "POST": self._create_project},
            _PROJECT: {"GET": lambda: self._json(describe_project(self._project("project", "read")))},
            rf"{_PROJECT}/summary": {"GET": self._summary},
            rf"{_PROJECT}/immutabletagrules": {"GET": self._list_rules},
            rf"{_BASE}/quotas": {"GET": self._list_quotas},
            rf"{_BASE}/quotas/(?P<quota>\d+)": {"GET": self._get_quota, "PUT": self._put_quota},
            rf"{_BASE}/robots": {"POST": self._create_robot},
            _ARTIFACTS: {"GET": self._list_artifacts},
            rf"{_ARTIFACTS}/(?P<reference>[^/]+)": {"GET": self._get_artifact},
        }
        for pattern, methods in routes.items():
            if match := re.fullmatch(pattern, path):
                if exchange.command not in methods:
                    message = f"method {exchange.command} is not allowed, but [{','.join(methods)}] are"
                    raise refusal(HTTPStatus.METHOD_NOT_ALLOWED, message)
                self._parts = match.groupdict()
                methods[exchange.command]()
                return
        raise refusal(HTTPStatus.NOT_FOUND, f"path {path} was not found")

    # --- questions and answers ------------------------------------------------------------------------------------

    def _json(
        self, document: Any, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
    ) -> None:
        body = json.dumps(document).encode() + b"\n"
        self._exchange.reply(status, body, {"Content-Type": "application/json", **(headers or {})})

    def _json_page(self, items: Sequence[Any], describe: Callable[[Any], dict[str, Any]]) -> None:
        """Answer with a page of a list, and with links whose query is not escaped."""
        page, size = self._number("page", 1), self._number("page_size", 10)
        if size > _LARGEST_PAGE:
            message = f"validation failure list:\npage_size in query should be less than or equal to {_LARGEST_PAGE}"
            raise refusal(HTTPStatus.UNPROCESSABLE_ENTITY, message)
        links = []
        for other, relation, there in (
            (page - 1, "prev", page > 1 and (page - 1) * size < len(items)),
            (page + 1, "next", page * size < len(items)),
        ):
            if there:
                asked = urlsplit(self._exchange.path)
                query = {**dict(parse_qsl(asked.query)), "page": str(other), "page_size": str(size)}
                text = "&".join(f"{name}={value}" for name, value in sorted(query.items()))
                links.append(f'<{asked.path}?{text}>; rel="{relation}"')
        headers = {"X-Total-Count": str(len(items)), **({"Link": " , ".join(links)} if links else {})}
        self._json([describe(item) for item in items[(page - 1) * size : page * size]], headers=headers)

    def _number(self, name: str, default: int) -> int:
        text = self._exchange.query(name) or str(default)
        if not text.isdecimal() or text == "0":
            raise refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"validation failure list:\n{name} in query is {text}")
        return int(text)

    def _keywords(self) -> dict[str, str]:
        """Give what `q` asks for; its value may be escaped once more."""
        words = [word.partition("=") for word in unquote(self._exchange.query("q")).split(",") if word]
        if not all(name and value for name, _, value in words):
            raise bad_request('the query string must contain "=" and the key/value cannot be empty')
        return {name: value for name, _, value in words}

    def _posted(self) -> dict[str, Any]:
        try:
            document = json.loads(self._exchange.body())
        except ValueError as error:
            raise bad_request(f"parsing body failed: {error}") from error
        if not isinstance(document, dict):
            raise bad_request("parsing body failed: not an object")
        return document

    # --- rights ---------------------------------------------------------------------------------------------------

    def _require_login(self) -> None:
        if not self._identity.authenticated:
            raise self._forbidden()

    def _forbidden(self) -> HarborError:
        if not self._identity.authenticated:
            return refusal(HTTPStatus.UNAUTHORIZED, "unauthorized")
        return refusal(HTTPStatus.FORBIDDEN, "forbidden")

    def _require_in_system(self, resource: str, action: str) -> None:
        if not self._identity.may_in_system(resource, action):
            raise self._forbidden()

    def _project(self, resource: str, action: str) -> Project:
        """Give the project of the path; those who may not know of it do not learn whether there is one."""
        text = self._parts["project"]
        if text.isdecimal() and self._exchange.headers.get("X-Is-Resource-Name", "").lower() != "true":
            names = [project.name for project in self._state.projects.values() if project.id == int(text)]
            text = names[0] if names else ""
        return self._permitted(text, resource, action)

    def _permitted(self, name: str, resource: str, action: str) -> Project:
        project = self._state.projects.get(name)
        if project and self._identity.may(project, resource, action):
            return project
        if project is None and isinstance(self._identity, User) and self._identity.admin:
            raise refusal(HTTPStatus.NOT_FOUND, f"project {name} not found")
        raise self._forbidden()

    # --- system ---------------------------------------------------------------------------------------------------

    def _health(self) -> None:
        components = [
            {"name": name, "status": status, **({} if status == "healthy" else {"error": "connection refused"})}
            for name, status in self._state.health.items()
        ]
        healthy = set(self._state.health.values()) <= {"healthy"}
        self._json({"status": "healthy" if healthy else "unhealthy", "components": components})

    def _system_info(self) -> None:
        state = self._state
        info: dict[str, Any] = {
            "auth_mode": state.auth_mode,
            "primary_auth_mode": False,
            "self_registration": False,
            "banner_message": "",
            "oidc_provider_name": "",
        }
        if self._identity.authenticated:
            info |= {
                "harbor_version": state.version,
                "external_url": f"{state.external_scheme}://{self._exchange.host}",
                "registry_url": self._exchange.host,
                "read_only": state.read_only,
                "project_creation_restriction": state.creation_restriction,
                "registry_storage_provider_name": "filesystem",
                "has_ca_root": False,
                "current_time": date_time(state.now()),
            }
        self._json(info)

    def _current_user(self) -> None:
        self._require_login()
        if not isinstance(self._identity, User):
            message = "get current user not available for security context: robot"
            raise refusal(HTTPStatus.PRECONDITION_FAILED, message, "PRECONDITION")
        self._json({"username": self._identity.name, "sysadmin_flag": self._identity.admin})

    # --- projects and quotas --------------------------------------------------------------------------------------

    def _head_project(self) -> None:
        self._require_login()
        name = self._exchange.query("project_name")
        if self._state.head_project_needs_read:
            self._permitted(name, "project", "read")
        self._exchange.reply(HTTPStatus.OK if name in self._state.projects else HTTPStatus.NOT_FOUND)

    def _list_projects(self) -> None:
        exact, fuzzy = self._keywords().get("name", ""), self._exchange.query("name")
        if exact.startswith("~"):
            exact, fuzzy = "", exact[1:]
        listed = [
            project
            for project in sorted(self._state.projects.values(), key=lambda project: project.id)
            if self._sees(project) and exact in {"", project.name} and fuzzy in project.name
        ]
        self._json_page(listed, describe_project)

    def _sees(self, project: Project) -> bool:
        """Tell whether a project is listed; robots see all they have any permission in."""
        held = self._identity.permissions if isinstance(self._identity, Robot) else ()
        named = any(entry.kind == "project" and entry.namespace in {"*", project.name} for entry in held)
        return named or self._identity.may(project, "project", "read")

    def _create_project(self) -> None:
        self._require_login()
        state, identity, asked = self._state, self._identity, self._posted()
        privileged, robot = identity.may_in_system("project", "create"), isinstance(identity, Robot)
        if isinstance(identity, Robot) and identity.project:
            raise refusal(HTTPStatus.FORBIDDEN, "Only system level robot can create project")
        if not privileged and (robot or state.creation_restriction == "adminonly"):
            raise refusal(HTTPStatus.FORBIDDEN, "Only system admin can create project")
        if not privileged and asked.get("registry_id") is not None:
            raise refusal(HTTPStatus.FORBIDDEN, "Only system admin can create proxy cache project")
        name, metadata, limit = check_project(asked)
        with state.lock:
            if name in state.projects:
                raise refusal(HTTPStatus.CONFLICT, f"The project named {name} already exists")
            made = state.add_project(
                name,
                quota_bytes=limit if limit and privileged else state.storage_per_project,
                proxy=bool(asked.get("registry_id")),
                owner=identity.name,
                metadata=metadata,
            )
        if isinstance(identity, User):
            identity.roles[name] = "projectAdmin"
        by_name = self._exchange.headers.get("X-Resource-Name-In-Location", "").lower() == "true"
        location = f"{_BASE}/projects/{name if by_name else made.id}"
        self._exchange.reply(HTTPStatus.CREATED, headers={"Location": location})

    def _summary(self) -> None:
        project = self._project("project", "read")
        summary: dict[str, Any] = {"repo_count": len(project.repositories)}
        if self._identity.may(project, "quota", "read"):
            summary["quota"] = describe_quota(project)
        if project.registry_id:
            summary["registry"] = {"id": project.registry_id, "type": "docker-hub", "status": "healthy"}
        self._json(summary)

    def _list_rules(self) -> None:
        self._json_page(self._project("immutable-tag", "list").rules, describe_rule)

    def _list_quotas(self) -> None:
        self._require_in_system("quota", "list")
        wanted = self._exchange.query("reference_id")
        projects = [project for project in self._state.projects.values() if wanted in {"", str(project.id)}]
        self._json_page(projects, describe_quota_entry)

    def _quota_project(self, action: str) -> Project:
        self._require_in_system("quota", action)
        for project in self._state.projects.values():
            if str(quota_id(project)) == self._parts["quota"]:
                return project
        raise refusal(HTTPStatus.NOT_FOUND, f"quota {self._parts['quota']} not found")

    def _get_quota(self) -> None:
        self._json(describe_quota_entry(self._quota_project("read")))

    def _put_quota(self) -> None:
        project = self._quota_project("update")
        project.quota_bytes = check_storage(self._posted().get("hard", {}).get("storage"))
        self._exchange.reply(HTTPStatus.OK)

    # --- robots and artifacts -------------------------------------------------------------------------------------

    def _create_robot(self) -> None:
        state, asked = self._state, self._posted()
        name, permissions = check_robot(asked, old=state.old_robots)
        project = None
        if asked["level"] == "project":
            project = self._permitted(permissions[0].namespace, "robot", "create").name
        else:
            self._require_in_system("robot", "create")
        for held in permissions:
            if held.kind == "project" and held.namespace != "*" and held.namespace not in state.projects:
                raise refusal(HTTPStatus.NOT_FOUND, f"project {held.namespace} not found")
        with state.lock:
            if state.robot_login(name, project) in state.robots:
                raise refusal(HTTPStatus.CONFLICT, f"robot account {name} already exists")
            robot = state.keep_robot(name, secrets.token_urlsafe(24), project, permissions)
        robot.disabled = asked.get("disable") is True
        if asked["duration"] >= 0:
            robot.expires_at = state.now() + (asked["duration"] or _ROBOT_DAYS) * _DAY_S
        number = next(state.ids)
        answer = {
            "id": number,
            "name": robot.name,
            "secret": robot.secret,
            "creation_time": date_time(state.now()),
            "expires_at": -1 if math.isinf(robot.expires_at) else int(robot.expires_at),
        }
        self._json(answer, HTTPStatus.CREATED, {"Location": f"{_BASE}/robots/{number}"})

    def _list_artifacts(self) -> None:
        project, name = self._project("artifact", "list"), unquote(self._parts["repository"])
        wanted, repository = self._keywords(), project.repositories.get(name)
        with self._state.lock:
            chosen = choose(repository, wanted) if repository else []
        self._json_page(chosen, lambda artifact: self._described(artifact, project, name))

    def _get_artifact(self) -> None:
        project, name = self._project("artifact", "read"), unquote(self._parts["repository"])
        reference, repository = self._parts["reference"], project.repositories.get(name)
        artifact = repository.find(reference) if repository else None
        if not artifact:
            separator = "@" if ":" in reference else ":"
            message = f"artifact {project.name}/{name}{separator}{reference} not found"
            raise refusal(HTTPStatus.NOT_FOUND, message)
        self._json(self._described(artifact, project, name))

    def _described(self, artifact: Artifact, project: Project, name: str) -> dict[str, Any]:
        with_tag = self._exchange.query("with_tag") != "false"
        with_immutable = self._exchange.query("with_immutable_status") == "true"
        return describe_artifact(artifact, project, name, with_tag=with_tag, with_immutable=with_immutable)
