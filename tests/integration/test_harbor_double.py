"""The Harbor double does what is known of Harbor, so that what passes against it has a chance with the original."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests

from tests.support.certificates import make_certificate
from tests.support.content import BlobStore, BuiltImage, digest_of
from tests.support.faults import Redirect, Reset, Stall
from tests.support.handmade import built, multi, write_bundle
from tests.support.harbor import HarborDouble
from tests.support.media_types import DOCKER_MANIFEST, INDEXES, OCI_INDEX, OCI_MANIFEST
from tests.support.programs import find_program, require
from tests.support.pulling import check_pulled

ADMIN = ("admin", "Harbor12345")
DEVELOPER, GUEST, OUTSIDER = ("dev", "Dev12345"), ("guest", "Guest12345"), ("outsider", "Out12345")
OIDC = ("olga", "cli-secret")
ROBOT, PULLER = ("robot$mirror+pusher", "Robot123"), ("robot$mirror+puller", "Robot123")
SYSTEM_ROBOT, PUSH_ONLY = ("robot$mover", "Robot123"), ("robot$blind", "Robot123")
WRONG = ("dev", "not-it")
API = "/api/v2.0"
LAYER = b"a layer\n" * 1000
REPOSITORY = "mirror/some/app"


class Client:
    """A client without cookies that tells what it gets."""

    def __init__(self, harbor: HarborDouble) -> None:
        self.harbor = harbor
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def __call__(self, method: str, path: str, auth: tuple[str, str] | str | None = None, **more: Any) -> Any:
        headers = {**({"Authorization": f"Bearer {auth}"} if isinstance(auth, str) else {}), **more.pop("headers", {})}
        basic = auth if isinstance(auth, tuple) else None
        url = path if path.startswith("http") else self.harbor.url + path
        return self.session.request(method, url, auth=basic, headers=headers, timeout=30, allow_redirects=False, **more)

    def token(self, auth: tuple[str, str], *repositories: str, actions: str = "pull,push") -> str:
        scopes = [f"repository:{repository}:{actions}" for repository in repositories]
        asked = {"service": "harbor-registry", "scope": scopes}
        return str(self("GET", "/service/token", auth, params=asked).json()["token"])

    def blob(self, data: bytes, repository: str = REPOSITORY, auth: tuple[str, str] = ADMIN) -> Any:
        """Upload a blob; gives the answer to the first request that is not welcome, or to the last."""
        opened = self("POST", f"/v2/{repository}/blobs/uploads/", auth)
        if opened.status_code != 202:
            return opened
        return self("PUT", closing(opened, data), auth, data=data)

    def manifest(
        self,
        data: bytes,
        media_type: str | None = OCI_MANIFEST,
        reference: str = "1",
        repository: str = REPOSITORY,
        auth: tuple[str, str] = ADMIN,
    ) -> Any:
        headers = {"Content-Type": media_type} if media_type else {}
        return self("PUT", f"/v2/{repository}/manifests/{reference}", auth, data=data, headers=headers)

    def push(self, image: BuiltImage, repository: str = REPOSITORY, tag: str = "1", auth: Any = ADMIN) -> Any:
        for blob in image.blobs:
            assert self.blob(blob.path.read_bytes(), repository, auth).status_code == 201
        for digest, (media_type, data) in image.manifests.items():
            assert self.manifest(data, media_type, digest, repository, auth).status_code == 201
        return self.manifest(image.root_bytes, image.root_media_type, tag, repository, auth)


@pytest.fixture
def harbor() -> Iterator[HarborDouble]:
    require("docker-registry")
    with HarborDouble(admin=ADMIN) as started:
        started.add_project("mirror")
        started.add_project("public", public=True)
        started.add_project("other")
        started.add_user(*DEVELOPER, {"mirror": "developer"})
        started.add_user(*GUEST, {"mirror": "guest"})
        started.add_user(*OUTSIDER)
        started.add_user(*OIDC, {"mirror": "developer"}, oidc=True)
        started.add_robot("pusher", "Robot123", "mirror", ["push"])
        started.add_robot("puller", "Robot123", "mirror", ["pull"])
        started.add_robot("mover", "Robot123", None, ["pull", "push"])
        started.add_robot("blind", "Robot123", None, ["push"])
        yield started


@pytest.fixture
def client(harbor: HarborDouble) -> Iterator[Client]:
    made = Client(harbor)
    yield made
    made.session.close()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "store")


def closing(opened: Any, data: bytes) -> str:
    return f"{opened.headers['Location']}&digest={digest_of(data)}"


def claims(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return decoded


def said(answer: Any) -> tuple[int, str, str]:
    """Give status, code and message of an error in Harbor's form."""
    assert answer.headers["Content-Type"].startswith("application/json")
    (error,) = answer.json()["errors"]
    assert set(error) == {"code", "message"}
    return answer.status_code, error["code"], error["message"]


# --- what can be found out -----------------------------------------------------------------------------------------


def test_anybody_learns_that_this_is_harbor_and_how_it_is(client: Client) -> None:
    assert client("GET", f"{API}/ping").text == "Pong"
    assert client("GET", "/api/version").json() == {"version": "v2.0"}
    assert client("GET", f"{API}/health").json()["status"] == "healthy"

    client.harbor.health["database"] = "unhealthy"
    health = client("GET", f"{API}/health")

    assert (health.status_code, health.json()["status"]) == (200, "unhealthy")
    assert [part["name"] for part in health.json()["components"] if part["status"] != "healthy"] == ["database"]


def test_systeminfo_says_more_to_those_it_knows(client: Client) -> None:
    stranger = client("GET", f"{API}/systeminfo").json()
    client.harbor.read_only, client.harbor.clock_offset = True, 3600
    known = client("GET", f"{API}/systeminfo", GUEST).json()

    assert set(known) - set(stranger) >= {"harbor_version", "read_only", "current_time", "project_creation_restriction"}
    assert known["read_only"] is True
    assert known["external_url"] == client.harbor.url
    assert datetime.fromisoformat(known["current_time"]).timestamp() == pytest.approx(time.time() + 3600, abs=20)
    assert client("GET", f"{API}/systeminfo", WRONG).json() == stranger


def test_answers_carry_a_request_id_and_a_cookie_that_is_better_not_sent_back(client: Client) -> None:
    given = client("GET", f"{API}/ping", headers={"X-Request-ID": "mine"})
    made = client("GET", "/v2/mirror/app/manifests/1", DEVELOPER)
    assert given.headers["X-Request-Id"] == "mine"
    assert re.fullmatch(r"[0-9a-f-]{36}", made.headers["X-Request-Id"])

    cookie = {"Cookie": given.headers["Set-Cookie"].partition(";")[0]}
    assert cookie["Cookie"].startswith("sid=")
    assert client("GET", f"{API}/projects", ADMIN, headers=cookie).status_code == 200
    for path in ("/v2/mirror/app/blobs/uploads/", f"{API}/projects"):
        status, code, message = said(client("POST", path, ADMIN, headers=cookie))
        assert (status, code) == (403, "FORBIDDEN")
        assert message.startswith("CSRF token")
    assert client.harbor.requests()[-1].headers["cookie"] == cookie["Cookie"]


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_the_token_server_checks_passwords_only_where_no_scope_is_asked_for(client: Client) -> None:
    asked = {"service": "harbor-registry"}
    assert client("POST", "/service/token", ADMIN).status_code == 405
    refused = client("GET", "/service/token", WRONG, params=asked)
    assert (refused.status_code, refused.content) == (401, b"")
    assert client("GET", "/service/token", DEVELOPER, params=asked).status_code == 200

    powerless = client("GET", "/service/token", WRONG, params={**asked, "scope": "repository:mirror/a:pull,push"})
    assert powerless.status_code == 200
    assert claims(powerless.json()["token"])["access"] == [{"type": "repository", "name": "mirror/a", "actions": []}]
    assert client("GET", "/v2/", powerless.json()["token"]).status_code == 401
    assert client.harbor.failed_logins == {"dev": 2}


@pytest.mark.parametrize(
    ("who", "mirror", "public", "missing"),
    [
        (ADMIN, "pull push delete scanner-pull", "pull push delete scanner-pull", ""),
        (DEVELOPER, "pull push", "pull", ""),
        (GUEST, "pull", "pull", ""),
        (OUTSIDER, "", "pull", ""),
        (OIDC, "pull push", "pull", ""),
        (ROBOT, "pull push", "pull", ""),
        (PUSH_ONLY, "push", "pull push", ""),
        (WRONG, "", "pull", ""),
    ],
)
def test_a_token_lists_all_that_an_account_may_do(
    client: Client, who: tuple[str, str], mirror: str, public: str, missing: str
) -> None:
    scopes = ["repository:mirror/a:pull repository:public/b:pull", "repository:missing/c:push"]
    answer = client("GET", "/service/token", who, params={"service": "harbor-registry", "scope": scopes}).json()

    assert (answer["access_token"], answer["expires_in"]) == ("", 1800)
    assert datetime.fromisoformat(answer["issued_at"]).timestamp() == pytest.approx(time.time(), abs=20)
    read = claims(answer["token"])
    assert read["nbf"] == read["iat"] == read["exp"] - 1800
    assert [entry["name"] for entry in read["access"]] == ["mirror/a", "public/b", "missing/c"]
    assert [entry["actions"] for entry in read["access"]] == [mirror.split(), public.split(), missing.split()]


def test_a_token_serves_its_whole_project_and_no_other(client: Client) -> None:
    token = client.token(SYSTEM_ROBOT, "mirror/a", actions="pull")

    assert client("POST", "/v2/mirror/quite/another/blobs/uploads/", token).status_code == 202
    assert client("GET", "/v2/", token).status_code == 200
    assert client("POST", "/v2/other/a/blobs/uploads/", token).status_code == 401


def test_a_token_expires_and_can_be_made_to(client: Client) -> None:
    client.harbor.token_leeway, client.harbor.token_lifetime = 0, 1000
    token = client.token(DEVELOPER, "mirror/a")
    assert client("HEAD", "/v2/mirror/a/manifests/1", token).status_code == 404

    client.harbor.clock_offset = 1002
    late = client("HEAD", "/v2/mirror/a/manifests/1", token)
    assert (late.status_code, late.headers["Www-Authenticate"]) == (401, 'Basic realm="harbor"')
    client.harbor.token_leeway = 60
    assert client("HEAD", "/v2/mirror/a/manifests/1", token).status_code == 404
    client.harbor.clock_offset = -61
    assert client("HEAD", "/v2/mirror/a/manifests/1", token).status_code == 401

    client.harbor.clock_offset = 0
    client.harbor.revoke_tokens()
    assert client("HEAD", "/v2/mirror/a/manifests/1", token).status_code == 401
    assert client("HEAD", "/v2/mirror/a/manifests/1", token[:-3]).status_code == 401


def test_a_token_older_than_a_project_is_worth_nothing_there(client: Client) -> None:
    before = client.token(ADMIN, "mirror/a", "new/a")
    client.harbor.add_project("new")
    assert client("POST", "/v2/new/a/blobs/uploads/", before).status_code == 401  # nothing was listed yet

    client.harbor.clock_offset = -100
    listed = client.token(ADMIN, "mirror/a", "new/a")
    client.harbor.clock_offset = 0
    assert client("POST", "/v2/new/a/blobs/uploads/", listed).status_code == 401
    assert client("POST", "/v2/new/a/blobs/uploads/", client.token(ADMIN, "new/a")).status_code == 202
    client.harbor.token_project_leeway = 200
    assert client("POST", "/v2/new/a/blobs/uploads/", listed).status_code == 202

    client.harbor.token_project_leeway = 0
    client.harbor.clock_offset = -5
    older = client.token(ADMIN, "mirror/a", "new/a")
    client.harbor.projects["mirror"].created -= 1000
    mount = {"mount": digest_of(LAYER), "from": "new/a"}
    assert client("POST", "/v2/mirror/a/blobs/uploads/", older, params=mount).status_code == 401
    client.harbor.token_project_leeway = 60
    assert client("POST", "/v2/mirror/a/blobs/uploads/", older, params=mount).status_code == 202


# --- who may do what --------------------------------------------------------------------------------------------------


def test_clients_without_credentials_are_sent_to_the_token_server(client: Client) -> None:
    for method, path, scope in [
        ("GET", "/v2/", ""),
        ("HEAD", "/v2/public/a/manifests/1", ',scope="repository:public/a:pull"'),
        ("GET", "/v2/public/a/tags/list", ',scope="repository:public/a:pull"'),
        ("POST", "/v2/public/a/blobs/uploads/", ',scope="repository:public/a:pull,push"'),
        ("DELETE", f"/v2/public/a/manifests/{digest_of(b'')}", ',scope="repository:public/a:delete"'),
    ]:
        answer = client(method, path, headers={"Host": "harbor.example:8443"})
        challenge = f'Bearer realm="http://harbor.example:8443/service/token",service="harbor-registry"{scope}'
        assert (answer.status_code, answer.headers["Www-Authenticate"]) == (401, challenge)


def test_bad_credentials_and_missing_rights_look_the_same(client: Client) -> None:
    for auth in (WRONG, OUTSIDER, client.token(WRONG, "mirror/a"), client.token(OUTSIDER, "mirror/a"), "not.a.token"):
        answer = client("POST", "/v2/mirror/a/blobs/uploads/", auth)
        assert answer.headers["Www-Authenticate"] == 'Basic realm="harbor"'
        status, code, message = said(answer)
        assert (status, code) == (401, "UNAUTHORIZED")
        assert message.startswith("unauthorized to access repository: mirror/a, action: push")


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_missing_project_is_a_401_without_challenge(client: Client, method: str) -> None:
    path = {"POST": "/v2/missing/a/blobs/uploads/", "GET": "/v2/missing/a/manifests/1"}[method]
    answer = client(method, path, ADMIN)

    assert said(answer) == (401, "UNAUTHORIZED", "project missing not found: project missing not found")
    assert answer.headers["Www-Authenticate"] == ""


@pytest.mark.parametrize(
    ("who", "pull", "push", "cancel"),
    [
        (ADMIN, True, True, True),
        (DEVELOPER, True, True, False),
        (GUEST, True, False, False),
        (OUTSIDER, False, False, False),
        (OIDC, True, True, False),
        (ROBOT, True, True, False),
        (PULLER, True, False, False),
        (SYSTEM_ROBOT, True, True, False),
        (PUSH_ONLY, False, True, False),
        (WRONG, False, False, False),
    ],
)
def test_each_account_can_do_what_it_may(
    client: Client, who: tuple[str, str], pull: bool, push: bool, cancel: bool
) -> None:
    session = urlsplit(client("POST", "/v2/mirror/a/blobs/uploads/", ADMIN).headers["Location"])
    for auth in (who, client.token(who, "mirror/b", "public/b")):
        assert client("HEAD", "/v2/mirror/a/manifests/1", auth).status_code == (404 if pull else 401)
        assert client("POST", "/v2/mirror/a/blobs/uploads/", auth).status_code == (202 if push else 401)
        assert client("HEAD", "/v2/public/a/manifests/1", auth).status_code == 404
    cancelled = client("DELETE", f"{session.path}?{session.query}", who)
    assert cancelled.status_code == (204 if cancel else 401)


def test_robots_that_are_disabled_or_expired_are_nobody(client: Client) -> None:
    assert client("GET", "/v2/", ROBOT).status_code == 200
    client.harbor.robots[ROBOT[0]].disabled = True
    client.harbor.robots[PULLER[0]].expires_at = time.time() - 1
    for robot in (ROBOT, PULLER):
        assert client("GET", "/v2/", robot).status_code == 401
        assert client("GET", f"{API}/projects/mirror", robot).status_code == 401
    assert client.harbor.failed_logins == {ROBOT[0]: 2, PULLER[0]: 2}


def test_a_failed_login_can_lock_the_name(client: Client) -> None:
    client.harbor.frozen_s = 0.5
    start = time.monotonic()
    assert client("GET", "/v2/", WRONG).status_code == 401
    assert time.monotonic() - start >= 0.5
    assert client("GET", "/v2/", DEVELOPER).status_code == 200

    client.harbor._locked_until["dev"] = time.monotonic() + 60
    client.harbor.frozen_s = 0
    assert client("GET", "/v2/", DEVELOPER).status_code == 401
    assert client("GET", "/v2/", GUEST).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/", 200),
        ("GET", "/service/token?service=harbor-registry", 200),
        ("GET", "/api/v2.0/projects", 200),
        ("POST", "/api/v2.0/projects", 400),
        ("GET", "/api/v2.0/projects/mirror/repositories/a/artifacts", 200),
        ("HEAD", "/api/v2.0/projects?project_name=mirror", 401),
        ("GET", "/api/v2.0/projects/mirror", 401),
        ("GET", "/api/v2.0/projects/mirror/summary", 401),
        ("GET", "/api/v2.0/projects/mirror/repositories/a/artifacts/1", 401),
        ("GET", "/api/v2.0/quotas", 401),
    ],
)
def test_the_cli_secret_of_an_oidc_user_opens_only_a_part(client: Client, method: str, path: str, status: int) -> None:
    assert client(method, path, OIDC).status_code == status
    assert "harbor_version" in client("GET", f"{API}/systeminfo", OIDC).json()


def test_only_users_have_a_current_user(client: Client) -> None:
    assert client("GET", f"{API}/users/current", DEVELOPER).json()["username"] == "dev"
    assert client("GET", f"{API}/users/current").status_code == 401
    assert said(client("GET", f"{API}/users/current", ROBOT))[:2] == (412, "PRECONDITION")


# --- projects ---------------------------------------------------------------------------------------------------------


def test_projects_can_be_looked_up(client: Client) -> None:
    client.harbor.add_project("42", proxy=True)
    for who, there, missing in [(ADMIN, 200, 404), (OUTSIDER, 200, 404), (ROBOT, 200, 404), (None, 401, 401)]:
        assert client("HEAD", f"{API}/projects?project_name=mirror", who).status_code == there
        assert client("HEAD", f"{API}/projects?project_name=missing", who).status_code == missing
    for who, there, missing in [(ADMIN, 200, 404), (GUEST, 200, 403), (OUTSIDER, 403, 403), (None, 401, 401)]:
        assert client("GET", f"{API}/projects/mirror", who).status_code == there
        assert client("GET", f"{API}/projects/missing", who).status_code == missing
    client.harbor.head_project_needs_read = True
    assert client("HEAD", f"{API}/projects?project_name=mirror", OUTSIDER).status_code == 403

    mirror = client("GET", f"{API}/projects/mirror", GUEST).json()
    assert client("GET", f"{API}/projects/{mirror['project_id']}", GUEST).json() == mirror
    assert "registry_id" not in mirror
    assert mirror["metadata"]["public"] == "false"
    named = client("GET", f"{API}/projects/42", ADMIN, headers={"X-Is-Resource-Name": "true"})
    assert (named.json()["name"], named.json()["registry_id"]) == ("42", 1)
    assert said(client("GET", f"{API}/projects/42", ADMIN))[:2] == (404, "NOT_FOUND")


def test_projects_are_listed_to_those_who_may_see_them(client: Client) -> None:
    def names(query: str, who: tuple[str, str] | None) -> list[str]:
        answer = client("GET", f"{API}/projects?page_size=100&{query}", who)
        assert answer.headers["X-Total-Count"] == str(len(answer.json()))
        return [project["name"] for project in answer.json()]

    client.harbor.add_project("mirror-two")
    assert names("", ADMIN) == ["mirror", "public", "other", "mirror-two"]
    assert names("name=mirror", ADMIN) == names("q=name%3D~mirror", ADMIN) == ["mirror", "mirror-two"]
    assert names("q=name%3Dmirror", ADMIN) == names("q=name%3Dmirror", OIDC) == ["mirror"]
    assert names("", ROBOT) == names("", GUEST) == ["mirror", "public"]
    assert names("", OUTSIDER) == names("", None) == ["public"]
    assert names("q=name%3Dother", GUEST) == []


@pytest.mark.parametrize(
    ("who", "asked", "status", "message"),
    [
        (ADMIN, {"project_name": "new", "metadata": {"public": "true"}}, 201, ""),
        (OUTSIDER, {"project_name": "new"}, 201, ""),
        (None, {"project_name": "new"}, 401, "unauthorized"),
        (WRONG, {"project_name": "new"}, 401, "unauthorized"),
        (ROBOT, {"project_name": "new"}, 403, "Only system level robot can create project"),
        (SYSTEM_ROBOT, {"project_name": "new"}, 403, "Only system admin can create project"),
        (OUTSIDER, {"project_name": "new", "registry_id": 1}, 403, "Only system admin can create proxy"),
        (ADMIN, {"project_name": "new", "registry_id": 1}, 201, ""),
        (ADMIN, {"project_name": "mirror"}, 409, "The project named mirror already exists"),
        (ADMIN, {"project_name": "a__b"}, 400, "project name a__b"),
        (ADMIN, {"project_name": "x" * 256}, 400, "project name"),
        (ADMIN, {"project_name": "new", "metadata": {"public": False}}, 400, "parsing body"),
        (ADMIN, {"project_name": "new", "metadata": {"public": "no"}}, 400, "metadata.public"),
        (ADMIN, {"project_name": "new", "storage_limit": -2}, 400, "invalid value"),
        (ADMIN, {"project_name": "new", "storage_limit": 2**51}, 400, "invalid value"),
        (ADMIN, ["new"], 400, "parsing body"),
    ],
)
def test_projects_can_be_created(
    client: Client, who: tuple[str, str] | None, asked: Any, status: int, message: str
) -> None:
    answer = client("POST", f"{API}/projects", who, json=asked)

    if status == 201:
        made = client.harbor.projects["new"]
        assert (answer.status_code, answer.headers["Location"]) == (201, f"{API}/projects/{made.id}")
        assert made.public == (asked.get("metadata", {}).get("public") == "true")
        assert client("POST", "/v2/new/a/blobs/uploads/", who).status_code == (403 if made.registry_id else 202)
    else:
        codes = {400: "BAD_REQUEST", 401: "UNAUTHORIZED", 403: "FORBIDDEN", 409: "CONFLICT"}
        assert said(answer)[:2] == (status, codes[status])
        assert said(answer)[2].startswith(message)
        assert "new" not in client.harbor.projects


def test_the_quota_of_a_new_project_is_the_administrators_to_say(client: Client) -> None:
    client.harbor.storage_per_project = 5000
    client.harbor.add_robot("maker", "Robot123", None, system_actions=["project:create"])
    maker = ("robot$maker", "Robot123")
    for who, limit, quota in [(ADMIN, 7000, 7000), (ADMIN, -1, -1), (ADMIN, 0, 5000), (OUTSIDER, 7000, 5000)]:
        name = f"p{len(client.harbor.projects)}"
        assert client("POST", f"{API}/projects", who, json={"project_name": name, "storage_limit": limit}).ok
        assert client.harbor.projects[name].quota_bytes == quota
    headers = {"X-Resource-Name-In-Location": "true"}
    made = client("POST", f"{API}/projects", maker, json={"project_name": "made"}, headers=headers)
    assert (made.status_code, made.headers["Location"]) == (201, f"{API}/projects/made")

    client.harbor.creation_restriction = "adminonly"
    refused = client("POST", f"{API}/projects", OUTSIDER, json={"project_name": "new"})
    assert said(refused) == (403, "FORBIDDEN", "Only system admin can create project")
    assert client("POST", f"{API}/projects", maker, json={"project_name": "new"}).status_code == 201
    assert client("GET", f"{API}/systeminfo", maker).json()["project_creation_restriction"] == "adminonly"


def test_a_proxy_project_takes_nothing(client: Client, store: BlobStore) -> None:
    client.harbor.add_project("cache", proxy=True)
    refusal = (403, "DENIED", "can not push artifact to a proxy project: cache")

    assert said(client("POST", "/v2/cache/a/blobs/uploads/", ADMIN)) == refusal
    assert said(client.manifest(built(store, LAYER).root_bytes, repository="cache/a")) == refusal


# --- quotas -----------------------------------------------------------------------------------------------------------


def test_quotas_are_told_to_those_who_may_know(client: Client) -> None:
    client.harbor.projects["mirror"].quota_bytes = 50_000
    client.blob(LAYER)
    told = {"hard": {"storage": 50_000}, "used": {"storage": len(LAYER)}}
    client.harbor.add_robot("asker", "Robot123", "mirror", ["push", "project:read", "quota:read"])
    client.harbor.add_robot("reader", "Robot123", "mirror", ["push", "project:read"])

    assert client("GET", f"{API}/projects/mirror/summary", GUEST).json()["quota"] == told
    assert client("GET", f"{API}/projects/mirror/summary", ("robot$mirror+asker", "Robot123")).json()["quota"] == told
    assert "quota" not in client("GET", f"{API}/projects/mirror/summary", ("robot$mirror+reader", "Robot123")).json()
    assert client("GET", f"{API}/projects/mirror/summary", ROBOT).status_code == 403

    query = f"reference=project&reference_id={client.harbor.projects['mirror'].id}"
    assert client("GET", f"{API}/quotas?{query}", GUEST).status_code == 403
    (entry,) = client("GET", f"{API}/quotas?{query}", ADMIN).json()
    assert (entry["ref"]["name"], {key: entry[key] for key in ("hard", "used")}) == ("mirror", told)
    changed = client("PUT", f"{API}/quotas/{entry['id']}", ADMIN, json={"hard": {"storage": 60_000}})
    assert changed.status_code == 200
    assert client("GET", f"{API}/quotas/{entry['id']}", ADMIN).json()["hard"] == {"storage": 60_000}
    client.harbor.add_robot("counter", "Robot123", None, system_actions=["quota:list"])
    assert client("GET", f"{API}/quotas?{query}", ("robot$counter", "Robot123")).status_code == 200


def test_a_project_is_charged_once_for_each_blob_and_manifest(client: Client, store: BlobStore) -> None:
    image, pair = built(store, LAYER, b"more", title="a"), multi(store, LAYER, title="b")
    expected = {blob.digest: blob.size for blob in [*image.blobs, *pair.blobs]}
    assert client.push(image).status_code == 201
    assert client.harbor.used_bytes("mirror") == image.size
    assert client.push(image, "mirror/elsewhere", "2").status_code == 201
    assert client.harbor.used_bytes("mirror") == image.size

    assert client.push(pair).status_code == 201
    manifests = {digest: len(data) for digest, (_, data) in pair.manifests.items()}
    manifests |= {pair.root_digest: len(pair.root_bytes), image.root_digest: len(image.root_bytes)}
    assert client.harbor.projects["mirror"].blobs == {**expected, **manifests}
    assert client.harbor.tags(REPOSITORY) == {"1": pair.root_digest}
    assert client.harbor.used_bytes("other") == 0


def test_layers_to_be_had_elsewhere_are_neither_needed_nor_charged(client: Client, store: BlobStore) -> None:
    document = json.loads(built(store, LAYER).root_bytes)
    foreign = {"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "urls": ["https://a/b"]}
    document["layers"].append({**foreign, "digest": digest_of(b"elsewhere"), "size": 10_000_000})
    for descriptor in [document["config"], document["layers"][0]]:
        client.blob(store.path(descriptor["digest"]).read_bytes())
    before, data = client.harbor.used_bytes("mirror"), json.dumps(document).encode()

    assert client.manifest(data).status_code == 201
    assert client.harbor.used_bytes("mirror") == before + len(data)


def over(client: Client, answer: Any, size: str, used: int, limit: str) -> None:
    status, code, message = said(answer)
    assert (status, code) == (403, "DENIED")
    assert message == (
        f"adding {size} of storage resource, which when updated to current usage of {used} B "
        f"will exceed the configured upper limit of {limit}."
    )
    assert client.harbor.used_bytes("mirror") == used
    assert client.harbor.projects["mirror"].reserved_bytes == 0


def test_a_full_project_refuses_where_sizes_are_known(client: Client, store: BlobStore) -> None:
    image = built(store, LAYER)
    config = image.blobs[0]
    project = client.harbor.projects["mirror"]
    project.quota_bytes = 4096
    client.blob(LAYER, "other/a")

    over(client, client.blob(LAYER), "7.8 KiB", 0, "4.0 KiB")
    mount = {"mount": digest_of(LAYER), "from": "other/a"}
    over(client, client("POST", "/v2/mirror/a/blobs/uploads/", ADMIN, params=mount), "7.8 KiB", 0, "4.0 KiB")

    client.blob(config.path.read_bytes())
    assert client.blob(config.path.read_bytes(), "mirror/b").status_code == 201
    project.quota_bytes = config.size + 100
    over(client, client.manifest(image.root_bytes), "8.2 KiB", config.size, f"{config.size + 100} B")

    project.quota_bytes = config.size - 1
    over(client, client("POST", "/v2/mirror/a/blobs/uploads/", ADMIN), "0 B", config.size, f"{config.size - 1} B")
    project.quota_bytes = config.size
    assert client("POST", "/v2/mirror/a/blobs/uploads/", ADMIN).status_code == 202


def test_a_refused_upload_is_answered_unread(client: Client) -> None:
    client.harbor.projects["mirror"].quota_bytes = 1000
    location = closing(client("POST", "/v2/mirror/a/blobs/uploads/", ADMIN), LAYER)
    with connected(client.harbor) as connection:
        connection.sendall(head(client.harbor, "PUT", location, ["Content-Length: 1000000000"]))
        answer = received(connection)  # not a byte of the body has been sent

    assert answer.startswith("HTTP/1.1 403 ")
    assert "\r\nConnection: close\r\n" in answer
    assert "DENIED" in answer
    assert client.harbor.requests()[-1].body_size == 0
    for _ in range(3):
        large = client.blob(bytes(30_000_000))  # what the client learns where it has begun to send
        assert said(large)[:2] == (403, "DENIED")


def test_uploads_at_the_same_time_share_the_room_there_is(client: Client) -> None:
    client.harbor.projects["mirror"].quota_bytes = 24_000
    blobs = [bytes([number]) * 1000 for number in range(25)]
    with ThreadPoolExecutor(8) as pool:
        statuses = Counter(answer.status_code for answer in pool.map(client.blob, blobs))

    assert statuses == {201: 24, 403: 1}
    assert client.harbor.used_bytes("mirror") == 24_000


@pytest.mark.parametrize(("last", "booked"), [(b"", 30_000), (b"tail", 4)])
def test_a_chunked_upload_is_charged_by_its_last_request_unless_that_is_empty(
    client: Client, last: bytes, booked: int
) -> None:
    chunks = [b"x" * 10_000, b"y" * 20_000]
    answer = client("POST", "/v2/mirror/a/blobs/uploads/", ADMIN)
    for chunk in chunks:
        answer = client("PATCH", answer.headers["Location"], ADMIN, data=chunk)
        assert answer.status_code == 202
    data = b"".join([*chunks, last])
    client.harbor.projects["mirror"].quota_bytes = booked - 1
    refused = client("PUT", closing(answer, data), ADMIN, data=last)
    assert said(refused)[:2] == (403, "DENIED")

    client.harbor.projects["mirror"].quota_bytes = booked
    assert client("PUT", closing(answer, data), ADMIN, data=last).status_code == 201
    assert client.harbor.projects["mirror"].blobs == {digest_of(data): booked}


# --- rules ------------------------------------------------------------------------------------------------------------


def test_in_read_only_mode_nothing_is_written(client: Client) -> None:
    client.harbor.read_only = True
    for method, path in [("POST", "/v2/mirror/a/blobs/uploads/"), ("POST", f"{API}/projects")]:
        message = "The system is in read only mode. Any modification is prohibited."
        assert said(client(method, path, ADMIN)) == (403, "DENIED", message)
    assert client("HEAD", "/v2/mirror/a/manifests/1", client.token(ADMIN, "mirror/a")).status_code == 404


def test_an_immutable_tag_can_be_put_once(client: Client, store: BlobStore) -> None:
    client.harbor.add_immutable_rule("mirror", "some/*", "v*")
    image = built(store, LAYER)
    assert client.push(image, tag="v1").status_code == 201

    again = client.manifest(image.root_bytes, reference="v1")
    message = "Failed to process request due to 'some/app:v1' configured as immutable."
    assert said(again) == (412, "PRECONDITION", message)
    assert client.manifest(image.root_bytes, reference=image.root_digest).status_code == 201
    for tag, repository in [("latest", REPOSITORY), ("v1", "mirror/app")]:
        for _ in range(2):
            assert client.push(image, repository, tag).status_code == 201

    (rule,) = client("GET", f"{API}/projects/mirror/immutabletagrules", ADMIN).json()
    assert rule["tag_selectors"][0]["pattern"] == "v*"
    assert rule["scope_selectors"]["repository"][0]["pattern"] == "some/*"
    assert client("GET", f"{API}/projects/mirror/immutabletagrules", DEVELOPER).status_code == 403


def test_a_policy_hides_what_is_there(client: Client, store: BlobStore) -> None:
    client.harbor.add_project("guarded", prevent_vul=True)
    image = built(store, LAYER)
    assert client.push(image, "guarded/a").status_code == 201

    assert client("HEAD", "/v2/guarded/a/manifests/1", ADMIN).status_code == 412
    assert said(client("GET", "/v2/guarded/a/manifests/1", ADMIN))[:2] == (412, "PROJECTPOLICYVIOLATION")
    assert client("GET", "/v2/guarded/a/manifests/2", ADMIN).status_code == 404
    there = client("GET", f"{API}/projects/guarded/repositories/a/artifacts/1", ADMIN).json()
    assert there["digest"] == image.root_digest


def test_a_mount_needs_the_right_to_pull_from_its_source(client: Client) -> None:
    client.blob(LAYER, "other/a")
    client.harbor.users["dev"].roles["other"] = "guest"

    def mount(source: str, who: tuple[str, str] = DEVELOPER, digest: str = digest_of(LAYER)) -> Any:
        return client("POST", "/v2/mirror/b/blobs/uploads/", who, params={"mount": digest, "from": source})

    assert said(mount("missing/a"))[2] == "project missing not found: project missing not found"
    assert mount("missing/a").headers["Www-Authenticate"] == ""
    unreadable = mount("other/a", ROBOT)
    assert said(unreadable)[2].startswith("unauthorized to access repository: other/a, action: pull")
    assert said(mount("nothing")) == (400, "BAD_REQUEST", "invalid repository name: nothing")
    assert mount("other/a", digest=digest_of(b"absent")).status_code == 202
    assert client.harbor.used_bytes("mirror") == 0
    assert mount("other/a").status_code == 201
    assert client.harbor.used_bytes("mirror") == len(LAYER)
    assert client("HEAD", f"/v2/mirror/b/blobs/{digest_of(LAYER)}", DEVELOPER).status_code == 200


@pytest.mark.parametrize("path", ["/v2/foo/manifests/1", "/v2/foo/blobs/uploads/", "/v2/foo/tags/list"])
def test_a_repository_needs_a_project(client: Client, path: str) -> None:
    method = "POST" if "uploads" in path else "GET"
    assert said(client(method, path)) == (400, "BAD_REQUEST", "invalid repository name: foo")


# --- content ----------------------------------------------------------------------------------------------------------


def test_blobs_are_looked_up_in_all_of_harbor_first(client: Client) -> None:
    client.blob(LAYER, "other/a")
    assert client("HEAD", f"/v2/other/a/blobs/{digest_of(LAYER)}", ADMIN).headers["Content-Length"] == str(len(LAYER))
    assert client("GET", f"/v2/other/a/blobs/{digest_of(LAYER)}", ADMIN).content == LAYER
    for digest in (digest_of(LAYER), digest_of(b"absent")):
        assert client("HEAD", f"/v2/mirror/a/blobs/{digest}", ADMIN).status_code == 404


def test_manifests_are_checked(client: Client, store: BlobStore) -> None:
    image, pair = built(store, LAYER), multi(store, LAYER)
    for media_type, data in [
        (None, image.root_bytes),
        ("application/json", image.root_bytes),
        (f"{OCI_MANIFEST}; charset=utf-8", image.root_bytes),
        (DOCKER_MANIFEST, image.root_bytes),
        (OCI_MANIFEST, b"{"),
        (OCI_MANIFEST, b"[]"),
    ]:
        assert said(client.manifest(data, media_type))[:2] == (400, "MANIFEST_INVALID")
    large = client.manifest(b" " * (4 * 1024 * 1024 + 1))
    assert said(large)[:2] == (413, "REQUEST_ENTITY_TOO_LARGE")

    (first, *_) = client.manifest(image.root_bytes).json()["errors"]
    assert first["code"] == "MANIFEST_BLOB_UNKNOWN"
    assert client.manifest(pair.root_bytes, OCI_INDEX).json()["errors"][0]["code"] == "MANIFEST_BLOB_UNKNOWN"
    assert client.manifest(image.root_bytes, reference=digest_of(b"other")).status_code in {400, 404}
    assert client.harbor.used_bytes("mirror") == 0
    assert client.harbor.tags(REPOSITORY) == {}

    put = client.push(image)
    assert (put.status_code, put.headers["Docker-Content-Digest"]) == (201, image.root_digest)
    got = client("GET", f"/v2/{REPOSITORY}/manifests/1", ADMIN, headers={"Accept": OCI_MANIFEST})
    assert (got.content, got.headers["Content-Type"]) == (image.root_bytes, OCI_MANIFEST)
    assert said(client("GET", f"/v2/{REPOSITORY}/manifests/2", ADMIN))[1:] == (
        *("NOT_FOUND", f"artifact {REPOSITORY}:2 not found"),
    )


def test_a_child_that_only_the_registry_knows_is_not_found(client: Client, store: BlobStore) -> None:
    pair = multi(store, LAYER)
    for blob in pair.blobs:
        client.blob(blob.path.read_bytes())
    for digest, (media_type, data) in pair.manifests.items():
        url = f"{client.harbor.registry.url}/v2/{REPOSITORY}/manifests/{digest}"
        assert client("PUT", url, data=data, headers={"Content-Type": media_type}).status_code == 201

    status, code, message = said(client.manifest(pair.root_bytes, OCI_INDEX))
    assert (status, code) == (404, "NOT_FOUND")
    assert message == f"artifact {REPOSITORY}@{next(iter(pair.manifests))} not found"


def test_artifacts_are_deleted_by_digest(client: Client, store: BlobStore) -> None:
    image = built(store, LAYER)
    client.push(image)
    by_tag = client("DELETE", f"/v2/{REPOSITORY}/manifests/1", ADMIN)
    assert said(by_tag)[:2] == (400, "UNSUPPORTED")
    path = f"/v2/{REPOSITORY}/manifests/{image.root_digest}"
    assert client("DELETE", path, DEVELOPER).status_code == 401
    assert client("DELETE", path, ADMIN).status_code == 202
    assert client("GET", path, ADMIN).status_code == 404
    assert client.harbor.tags(REPOSITORY) == {}


def test_tags_and_referrers_are_listed(client: Client, store: BlobStore) -> None:
    image = built(store, LAYER)
    for tag in ("a", "b", "c"):
        client.push(image, tag=tag)
    first = client("GET", f"/v2/{REPOSITORY}/tags/list?n=2", GUEST)
    assert first.json() == {"name": REPOSITORY, "tags": ["a", "b"]}
    rest = client("GET", first.links["next"]["url"], GUEST)
    assert (rest.json()["tags"], rest.links) == (["c"], {})
    assert said(client("GET", "/v2/mirror/none/tags/list", GUEST))[:2] == (404, "NOT_FOUND")

    subject = {"mediaType": OCI_MANIFEST, "digest": image.root_digest, "size": len(image.root_bytes)}
    signature = json.dumps({**json.loads(image.root_bytes), "subject": subject, "artifactType": "a/b"}).encode()
    put = client.manifest(signature, reference=digest_of(signature))
    assert put.headers["OCI-Subject"] == image.root_digest
    listed = client("GET", f"/v2/{REPOSITORY}/referrers/{image.root_digest}", GUEST).json()["manifests"]
    assert [(entry["digest"], entry["artifactType"]) for entry in listed] == [(digest_of(signature), "a/b")]
    other = client("GET", f"/v2/{REPOSITORY}/referrers/{image.root_digest}?artifactType=c/d", GUEST)
    assert (other.json()["manifests"], other.headers["OCI-Filters-Applied"]) == ([], "artifactType")


def artifacts(query: str = "", reference: str = "", repository: str = "some/app") -> str:
    name = quote(quote(repository, safe=""), safe="")
    return f"{API}/projects/mirror/repositories/{name}/artifacts{reference}?{query}"


def test_artifacts_are_listed(client: Client, store: BlobStore) -> None:
    pair, image = multi(store, LAYER, title="pair"), built(store, LAYER, title="one")
    client.harbor.add_immutable_rule("mirror", tag_pattern="pa*")
    client.push(pair, tag="pair")
    client.push(image, tag="one")
    client.manifest(image.root_bytes, reference="uno")

    def listed(query: str, who: tuple[str, str] = GUEST) -> list[str]:
        return [entry["digest"] for entry in client("GET", artifacts(query), who).json()]

    children = set(pair.manifests)
    assert listed("") == listed("with_accessory=false") == [image.root_digest, pair.root_digest]
    assert set(listed("q=base%3D*")) == {image.root_digest, pair.root_digest, *children}
    assert listed("q=tags%3Duno") == listed("q=tags%3D~n") == [image.root_digest]
    assert listed(f"q=digest%3D{pair.root_digest}") == [pair.root_digest]
    assert set(listed("q=base%3D*,tags%3Dnil")) == children
    assert listed("q=tags%3Dnone") == []
    assert client("GET", artifacts(repository="none"), GUEST).json() == []
    assert client("GET", artifacts("q=tags"), GUEST).status_code == 400

    one, two = client("GET", artifacts("with_tag=true&with_immutable_status=true"), GUEST).json()
    assert [tag["name"] for tag in one["tags"]] == ["one", "uno"]
    assert [tag["immutable"] for tag in [*one["tags"], *two["tags"]]] == [False, False, True]
    assert (one["type"], one["manifest_media_type"], one["size"]) == ("IMAGE", OCI_MANIFEST, image.size)
    assert one["references"] is None
    assert two["manifest_media_type"] in INDEXES
    assert [entry["child_digest"] for entry in two["references"]] == list(pair.manifests)
    assert client("GET", artifacts("with_tag=false"), GUEST).json()[0]["tags"] is None
    for reference in ("pair", pair.root_digest):
        found = client("GET", artifacts("with_immutable_status=true", f"/{reference}"), GUEST)
        assert found.json() == two
    child = client("GET", artifacts(reference=f"/{next(iter(children))}"), GUEST).json()
    assert child["tags"] is None
    message = "artifact mirror/some/app:none not found"
    assert said(client("GET", artifacts(reference="/none"), GUEST)) == (404, "NOT_FOUND", message)


def test_lists_come_in_pages(client: Client, store: BlobStore) -> None:
    for number in range(5):
        client.push(built(store, LAYER, title=str(number)), tag=f"t{number}")
    first = client("GET", artifacts("with_tag=true&page=1&page_size=2&q=tags%3D~t"), GUEST)
    middle = client("GET", artifacts("page=2&page_size=2"), GUEST)
    last = client("GET", artifacts("page=3&page_size=2"), GUEST)

    assert [len(page.json()) for page in (first, middle, last)] == [2, 2, 1]
    digests = {entry["digest"] for page in (first, middle, last) for entry in page.json()}
    assert digests == set(client.harbor.tags(REPOSITORY).values())
    path = artifacts().removesuffix("?")
    assert first.headers["X-Total-Count"] == "5"
    assert first.headers["Link"] == f'<{path}?page=2&page_size=2&q=tags=~t&with_tag=true>; rel="next"'
    assert set(middle.links) == {"prev", "next"}
    assert set(last.links) == {"prev"}
    assert client("GET", artifacts("page_size=100"), GUEST).ok
    for query in ("page_size=101", "page=0", "page=x"):
        assert said(client("GET", artifacts(query), GUEST))[:2] == (422, "UNPROCESSABLE_ENTITY")


def test_the_artifact_api_wants_names_encoded_twice_and_the_right_to_list(client: Client) -> None:
    path = f"{API}/projects/mirror/repositories/{quote('some/app', safe='')}/artifacts"
    message = f"path {API}/projects/mirror/repositories/some/app/artifacts was not found"
    assert said(client("GET", path, GUEST)) == (404, "NOT_FOUND", message)

    client.harbor.add_robot("lister", "Robot123", "mirror", ["push", "artifact:list"])
    lister = ("robot$mirror+lister", "Robot123")
    statuses = {
        who: tuple(client("GET", artifacts(reference=end), who).status_code for end in ("", "/none"))
        for who in (ROBOT, lister, OUTSIDER, WRONG)
    }
    assert statuses == {ROBOT: (403, 403), lister: (200, 403), OUTSIDER: (403, 403), WRONG: (401, 401)}


# --- robots -----------------------------------------------------------------------------------------------------------


def robot(level: str = "project", namespace: str = "mirror", **more: Any) -> dict[str, Any]:
    access = [{"resource": "repository", "action": action} for action in ("pull", "push")]
    permission = {"kind": "project", "namespace": namespace, "access": access + more.pop("access", [])}
    return {"name": "made", "level": level, "duration": -1, "permissions": [permission], **more}


@pytest.mark.parametrize(
    ("prefix", "level", "namespace", "login"),
    [
        ("robot$", "project", "mirror", "robot$mirror+made"),
        ("robot$", "system", "*", "robot$made"),
        ("bot-", "system", "mirror", "bot-made"),
    ],
)
def test_a_robot_can_be_made_and_logs_in(client: Client, prefix: str, level: str, namespace: str, login: str) -> None:
    client.harbor.robot_name_prefix = prefix
    asked = {"secret": "Wanted12345"}
    extra = [{"resource": "quota", "action": "read"}, {"resource": "project", "action": "read"}]
    answer = client("POST", f"{API}/robots", ADMIN, json=robot(level, namespace, access=extra, **asked))

    made = answer.json()
    assert (answer.status_code, answer.headers["Location"]) == (201, f"{API}/robots/{made['id']}")
    assert (made["name"], made["expires_at"]) == (login, -1)
    assert made["secret"] != asked["secret"]
    account = (made["name"], made["secret"])
    assert client("POST", "/v2/mirror/a/blobs/uploads/", client.token(account, "mirror/a")).status_code == 202
    assert client("GET", f"{API}/projects/mirror/summary", account).json()["quota"]["hard"] == {"storage": -1}
    assert client("POST", "/v2/other/a/blobs/uploads/", account).status_code == (202 if namespace == "*" else 401)
    again = client("POST", f"{API}/robots", ADMIN, json=robot(level, namespace))
    assert said(again)[:2] == (409, "CONFLICT")


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (robot(name="Made"), 400),
        (robot(name="a+b"), 400),
        (robot(level="user"), 400),
        (robot(duration="30"), 400),
        (robot(duration=-2), 400),
        (robot(permissions=[]), 400),
        (robot(permissions=[{"kind": "project", "namespace": "mirror", "access": []}]), 400),
        (robot(permissions=robot()["permissions"] * 2), 400),
        (robot(access=[{"resource": "repository", "action": "fly"}]), 400),
        (robot("system", permissions=[{**robot()["permissions"][0], "kind": "system"}]), 400),
        (robot("system", permissions=[{**robot()["permissions"][0], "kind": "planet"}]), 400),
        (robot(namespace="missing"), 404),
        (robot("system", "missing"), 404),
        (robot(duration=30), 201),
    ],
)
def test_what_a_robot_is_to_be_is_checked(client: Client, asked: dict[str, Any], status: int) -> None:
    answer = client("POST", f"{API}/robots", ADMIN, json=asked)

    if status == 201:
        assert answer.json()["expires_at"] == pytest.approx(time.time() + 30 * 86400, abs=20)
    else:
        assert said(answer)[0] == status
    assert len(client.harbor.robots) == (5 if status == 201 else 4)


def test_robots_are_made_by_those_who_may(client: Client) -> None:
    client.harbor.add_user("head", "Head12345", {"mirror": "projectAdmin"})
    head = ("head", "Head12345")
    for who, level, status in [
        *((head, "project", 201), (head, "system", 403), (DEVELOPER, "project", 403), (ROBOT, "project", 403)),
        *((OUTSIDER, "system", 403), (WRONG, "project", 401)),
    ]:
        assert client("POST", f"{API}/robots", who, json=robot(level)).status_code == status


@pytest.mark.parametrize("resource", ["quota", "artifact", "project"])
def test_old_versions_know_fewer_permissions(client: Client, resource: str) -> None:
    asked = robot(access=[{"resource": resource, "action": "read"}])
    client.harbor.old_robots = True
    assert said(client("POST", f"{API}/robots", ADMIN, json=asked)) == (
        *(400, "BAD_REQUEST", f"bad request permission: {resource}:read"),
    )
    assert client("POST", f"{API}/robots", ADMIN, json=robot()).status_code == 201


# --- the wire ---------------------------------------------------------------------------------------------------------


def connected(harbor: HarborDouble) -> socket.socket:
    host, _, port = harbor.host.partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def head(harbor: HarborDouble, method: str, location: str, lines: list[str]) -> bytes:
    target = location.removeprefix(harbor.url)
    pair = base64.b64encode(":".join(ADMIN).encode()).decode()
    fields = [f"{method} {target} HTTP/1.1", f"Host: {harbor.host}", f"Authorization: Basic {pair}", *lines]
    return "\r\n".join([*fields, "", ""]).encode()


def received(connection: socket.socket) -> str:
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data.decode()


@pytest.mark.parametrize("encoding", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
def test_an_upload_that_breaks_off_breaks_off_behind_too(client: Client, encoding: str) -> None:
    location = client("POST", "/v2/mirror/a/blobs/uploads/", ADMIN).headers["Location"]
    part = b"x" * 100_000
    framed = b"%x\r\n%s\r\n" % (len(part), part) if "chunked" in encoding else part
    with connected(client.harbor) as connection:
        connection.sendall(head(client.harbor, "PATCH", location, [encoding]) + framed)
    deadline = time.monotonic() + 10
    while client.harbor.requests()[-1].method != "PATCH" and time.monotonic() < deadline:
        time.sleep(0.02)

    broken = client.harbor.requests()[-1]
    assert (broken.method, broken.status, broken.body_size) == ("PATCH", 0, len(part))
    while client.harbor.registry.log.read_text().count("PATCH") == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    status = client("GET", location, ADMIN)
    assert (status.status_code, status.json()["errors"][0]["code"]) == (404, "BLOB_UPLOAD_INVALID")


def test_a_chunk_that_arrived_can_be_built_on(client: Client) -> None:
    opened = client("POST", "/v2/mirror/a/blobs/uploads/", ADMIN)
    patched = client("PATCH", opened.headers["Location"], ADMIN, data=iter([b"one", b"two"]))  # without length
    asked = client("GET", patched.headers["Location"], ADMIN)
    assert (asked.status_code, asked.headers["Range"]) == (204, "0-5")
    assert client("PUT", closing(asked, b"onetwo"), ADMIN).status_code == 201
    assert client.harbor.projects["mirror"].blobs == {digest_of(b"onetwo"): 6}


def test_locations_are_absolute_and_built_on_the_host_asked_for(client: Client) -> None:
    headers = {"Host": "harbor.example"}
    location = client("POST", "/v2/mirror/a/blobs/uploads/", ADMIN, headers=headers).headers["Location"]
    assert location.startswith("http://harbor.example/v2/mirror/a/blobs/uploads/")
    assert parse(location, client.harbor).status_code == 204

    client.harbor.location_base = "https://wrong.example:1"
    location = client("POST", "/v2/mirror/a/blobs/uploads/", ADMIN, headers=headers).headers["Location"]
    assert location.startswith("https://wrong.example:1/v2/")


def parse(location: str, harbor: HarborDouble) -> Any:
    parts = urlsplit(location)
    return requests.get(f"{harbor.url}{parts.path}?{parts.query}", auth=ADMIN, timeout=30)


def test_it_speaks_tls(tmp_path: Path, store: BlobStore) -> None:
    require("docker-registry", "openssl")
    certificate, image = make_certificate(tmp_path), built(store, LAYER)
    with HarborDouble(certificate=certificate) as harbor:
        harbor.add_project("mirror")
        client = Client(harbor)
        client.session.verify = str(certificate.cert)
        challenge = client("GET", "/v2/").headers["Www-Authenticate"]
        opened = client("POST", "/v2/mirror/a/blobs/uploads/", ADMIN)

        assert harbor.url == f"https://{harbor.host}"
        assert challenge.startswith(f'Bearer realm="{harbor.url}/service/token"')
        assert opened.headers["Location"].startswith(harbor.url)
        assert opened.headers["Set-Cookie"].endswith("Secure")
        assert client.push(image).status_code == 201
        assert harbor.tags(REPOSITORY) == {"1": image.root_digest}
        client.session.close()


def test_bodies_pass_through_in_pieces(client: Client) -> None:
    size, piece = 48_000_000, b"z" * 1_000_000
    opened, digest = client("POST", "/v2/mirror/a/blobs/uploads/", ADMIN), digest_of(piece * 48)
    tracemalloc.start()
    try:
        patched = client("PATCH", opened.headers["Location"], ADMIN, data=(piece for _ in range(48)))
        assert patched.headers["Range"] == f"0-{size - 1}"
        assert client("PUT", f"{patched.headers['Location']}&digest={digest}", ADMIN).status_code == 201
        read = 0
        with client("GET", f"/v2/mirror/a/blobs/{digest}", ADMIN, stream=True) as answer:
            for part in answer.iter_content(100_000):
                read += len(part)
        assert read == size
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_requests_are_recorded_and_can_be_made_to_fail(client: Client) -> None:
    token = client.token(ROBOT, "mirror/a")
    mark = client.harbor.mark()
    fault = client.harbor.fault("PUT", "/blobs/uploads/", 500, b"oops", {"Retry-After": "1"}, times=2, skip=1)
    assert client.blob(b"first").status_code == 201
    for _ in range(2):
        failed = client.blob(LAYER)
        assert (failed.status_code, failed.content, failed.headers["Retry-After"]) == (500, b"oops", "1")
    assert client.blob(LAYER).status_code == 201
    assert fault.hits == 2

    client("HEAD", "/v2/mirror/a/manifests/1?x=y", token, headers={"User-Agent": "me"})
    client("HEAD", "/v2/mirror/a/manifests/1", WRONG)
    *puts, named, unknown = client.harbor.since(mark)
    assert [entry.status for entry in puts if entry.method == "PUT"] == [201, 500, 500, 201]
    assert [entry.body_size for entry in puts if entry.method == "PUT"] == [5, 0, 0, len(LAYER)]
    assert (named.target, named.path, named.user) == (
        "/v2/mirror/a/manifests/1?x=y",
        "/v2/mirror/a/manifests/1",
        ROBOT[0],
    )
    assert (named.headers["user-agent"], named.status) == ("me", 404)
    assert (unknown.user, unknown.status) == (None, 401)
    assert client.harbor.requests("PUT")[-1].user == "admin"


def test_answers_can_be_late_or_send_elsewhere(client: Client) -> None:
    client.harbor.fault("GET", "/ping", Stall(0.3))
    client.harbor.fault("GET", "/ping", Redirect("http://elsewhere{target}"))
    start = time.monotonic()
    assert client("GET", f"{API}/ping").text == "Pong"
    assert time.monotonic() - start >= 0.3
    sent = client("GET", f"{API}/ping")
    assert (sent.status_code, sent.headers["Location"]) == (307, f"http://elsewhere{API}/ping")


def test_an_answer_can_get_lost_before_or_after_its_effect(client: Client) -> None:
    for after in (False, True):
        data = b"after" if after else b"before"
        client.harbor.fault("PUT", "/blobs/uploads/", Reset(after_effect=after))
        with pytest.raises(requests.ConnectionError):
            client.blob(data)
        assert client.harbor.requests()[-1].status == 0
        there = client("HEAD", f"/v2/{REPOSITORY}/blobs/{digest_of(data)}", ADMIN).status_code
        assert there == (200 if after else 404)
    assert client.harbor.used_bytes("mirror") == len(b"after")


def test_a_registry_that_is_gone_is_an_internal_error(client: Client) -> None:
    client.harbor.registry.stop()
    assert said(client("POST", "/v2/mirror/a/blobs/uploads/", ADMIN)) == (502, "UNKNOWN", "internal server error")
    assert client("GET", f"{API}/ping").text == "Pong"


def test_skopeo_copies_an_image_into_it(client: Client, store: BlobStore, tmp_path: Path) -> None:
    require("skopeo")
    image, skopeo = built(store, LAYER, b"more"), str(find_program("skopeo"))
    bundle = write_bundle(tmp_path / "bundle", {"docker.io/some/app:1": image})
    subprocess.run(
        [
            *(skopeo, "copy", "-q", "--preserve-digests", "--dest-tls-verify=false"),
            *(f"--dest-creds={':'.join(ROBOT)}", f"oci:{bundle}:docker.io/some/app:1"),
            f"docker://{client.harbor.host}/{REPOSITORY}:1",
        ],
        capture_output=True,
        check=True,
    )
    assert client.harbor.tags(REPOSITORY) == {"1": image.root_digest}
    assert client.harbor.used_bytes("mirror") == image.size
    assert {request.user for request in client.harbor.requests() if request.status < 400} == {ROBOT[0]}
    check_pulled(client.harbor.registry.url, REPOSITORY, "1", image)
