"""`push` into Harbor: what is found out before the first byte is sent, and what each account can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.faults import Meanwhile, Stall
from tests.support.faulty import FaultyRegistry
from tests.support.handmade import built, multi
from tests.support.harbor import HarborDouble
from tests.support.harbor_accounts import Robot, User
from tests.support.harbor_runs import APP, BASE, TOOL, Site, each, size_of
from tests.support.programs import require
from tests.support.pulling import check_pulled

ADMIN = ("admin", "Harbor12345")
SECRET = "R0bot-secret-0f-tests"  # noqa: S105 - opens nothing but the doubles of these tests
MIB = 1024 * 1024
LEAST = ("pull", "push")
CHECKS = (*LEAST, "project:read", "quota:read", "artifact:list", "artifact:read")
KINDS = ("least robot", "robot", "system robot", "developer", "admin", "oidc")
NAMES = {"least robot": "robot$mirror+pusher", "robot": "robot$mirror+pusher", "system robot": "robot$mover"}


@pytest.fixture
def harbor() -> Iterator[HarborDouble]:
    require("docker-registry")
    with HarborDouble(admin=ADMIN) as started:
        started.add_project("mirror")
        yield started


@pytest.fixture
def site(harbor: HarborDouble, tmp_path: Path) -> Site:
    return Site(harbor, tmp_path)


@pytest.fixture
def robot(harbor: HarborDouble) -> Robot:
    return harbor.add_robot("pusher", SECRET, "mirror", LEAST)


def account(harbor: HarborDouble, kind: str) -> User | Robot:
    """Make an account of a kind, with rights in the project mirror."""
    match kind:
        case "least robot":
            return harbor.add_robot("pusher", SECRET, "mirror", LEAST)
        case "robot":
            return harbor.add_robot("pusher", SECRET, "mirror", CHECKS)
        case "system robot":
            return harbor.add_robot("mover", SECRET, None, LEAST)
        case "admin":
            return harbor.users["admin"]
        case "oidc":
            return harbor.add_user("olga", "cli-s3cret", {"mirror": "developer"}, oidc=True)
        case role:
            return harbor.add_user("dora", "D0ra-secret", {"mirror": role})


# --- accounts -------------------------------------------------------------------------------------------------------


def test_whoever_may_push_can(tmp_path: Path) -> None:
    each(tmp_path, {kind: kind for kind in KINDS}, check_push)


def check_push(site: Site, kind: str) -> None:
    harbor, who = site.harbor, account(site.harbor, kind)
    assert who.name == NAMES.get(kind, who.name)

    done = site.push(who)

    assert done.code == 0, done.err
    assert {request.user for request in done.requests} == {None, who.name}
    assert done.outcomes == {APP: "pushed", TOOL: "pushed"}
    for name, image in site.images.items():
        check_pulled(harbor.registry.url, f"mirror/{name.removeprefix('docker.io/').removesuffix(':1')}", "1", image)
    assert done.sent == {blob.digest for image in site.images.values() for blob in image.blobs}
    assert harbor.used_bytes("mirror") == size_of(site.images)
    assert done.report["facts"]["verified"] == {"images": 2, "manifests": 4}
    assert done.report["warnings"] == []
    # Passwords go to the token service and the API; what costs Harbor most, the registry, sees tokens.
    by_password = [r for r in done.requests if r.headers.get("authorization", "").startswith("Basic ")]
    assert {r.path.split("/")[1] for r in by_password} == {"service", "api"}
    assert sorted(done.scopes) == [(), ("repository:mirror/rancher/app:pull,push",)]
    assert ("quota" in " ".join(done.report["notices"])) == (kind in {"least robot", "system robot", "oidc"})


def test_a_wrong_password_is_not_a_missing_right(site: Site, harbor: HarborDouble, robot: Robot) -> None:
    done = site.push((robot.name, "not-the-s3cret"))

    assert (done.code, done.error) == (7, "unauthorized")
    assert robot.name in done.message
    assert "--username" in done.hint
    assert done.changes == []
    # The name is locked for a while with each.
    assert 1 <= harbor.failed_logins[robot.name] <= 2


def test_a_wrong_password_is_found_in_a_project_that_everybody_may_pull_from(site: Site, harbor: HarborDouble) -> None:
    harbor.add_project("open", public=True)
    harbor.add_user("dora", "D0ra-secret", {"open": "developer"})

    done = site.push(("dora", "not-the-s3cret"), prefix="open")

    assert (done.code, done.error) == (7, "unauthorized")
    assert done.changes == []
    assert 1 <= harbor.failed_logins["dora"] <= 2


def test_a_project_that_the_account_cannot_see_is_pushed_to_all_the_same(
    site: Site, harbor: HarborDouble, robot: Robot
) -> None:
    harbor.head_project_needs_read = True
    # Not in the list either.
    harbor.fault("GET", "/projects\\?", 200, b"[]", times=None)

    done = site.push(robot)

    assert done.code == 0, done.err


# --- tokens ---------------------------------------------------------------------------------------------------------


def two_projects(site: Site) -> None:
    """Give the site a bundle that goes to the projects rancher and grafana, with a layer in both."""
    site.harbor.add_project("rancher")
    site.harbor.add_project("grafana")
    site.write(
        {
            APP: multi(site.store, BASE, b"app" * 9000, title="app"),
            TOOL: built(site.store, BASE, b"tool", title="tool"),
            "docker.io/grafana/loki:1": built(site.store, BASE, b"loki", title="loki"),
        }
    )


def test_one_token_serves_a_project_and_one_the_mounts_between_two(site: Site, harbor: HarborDouble) -> None:
    two_projects(site)

    done = site.push(
        harbor.add_user("dora", "D0ra-secret", dict.fromkeys(("rancher", "grafana"), "developer")), prefix=""
    )

    assert done.code == 0, done.err
    projects = sorted(sorted({scope.split(":")[1].split("/")[0] for scope in scopes}) for scopes in done.scopes)
    assert projects == [[], ["grafana"], ["grafana", "rancher"], ["rancher"]]
    assert len(done.asked("POST", "mount=", 201)) == 2
    assert done.report["totals"]["bytes_mounted"] == 2 * len(BASE)
    assert len(done.sent) == len({blob.digest for image in site.images.values() for blob in image.blobs})


def test_tokens_are_renewed_before_they_expire(site: Site, harbor: HarborDouble, robot: Robot) -> None:
    harbor.token_lifetime, harbor.token_leeway = 4.0, 0.0
    stall = harbor.fault("HEAD", "/blobs/", Stall(1.1))

    done = site.push(robot, "--jobs", "1")

    assert done.code == 0, done.err
    assert stall.hits == 1
    assert done.scopes.count(("repository:mirror/rancher/app:pull,push",)) >= 2
    assert [request.target for request in done.requests if request.status == 401][1:] == []


def test_tokens_that_harbor_forgets_are_replaced_once(tmp_path: Path) -> None:
    moments = {
        "survey": ("HEAD", "/blobs/"),
        "upload": ("PUT", "/uploads/"),
        "tag": ("PUT", "/manifests/1"),
        "mount": ("POST", "mount="),
    }
    each(tmp_path, moments, check_forgotten)


def check_forgotten(site: Site, moment: tuple[str, str]) -> None:
    forgotten = site.harbor.fault(*moment, Meanwhile(site.harbor.revoke_tokens))

    done = site.push(account(site.harbor, "least robot"), "--jobs", "1")

    assert done.code == 0, done.err
    assert forgotten.hits == 1
    # One is the first question of all, which nobody signs.
    refused = [request for request in done.requests if request.status == 401]
    assert [request.headers.get("authorization", "").split(" ")[0] for request in refused] == ["", "Bearer"]
    # `Basic realm="harbor"` is what the second said.
    registry = [request for request in done.requests if request.path.startswith("/v2/")]
    assert not any(request.headers.get("authorization", "").startswith("Basic") for request in registry)


def test_tokens_that_harbor_never_accepts_do_not_keep_a_push_busy(
    site: Site, harbor: HarborDouble, robot: Robot
) -> None:
    harbor.fault("PUT", "/uploads/", Meanwhile(harbor.revoke_tokens), times=None)

    done = site.push(robot)

    assert done.code in {7, 10}, done.err
    assert len(done.requests) < 150
    assert done.asked("PUT", "/manifests/") == []


def test_a_second_push_is_one_question_an_image(site: Site, robot: Robot) -> None:
    site.seed()

    done = site.push(robot)

    assert done.code == 0, done.err
    assert set(done.outcomes.values()) == {"up-to-date"}
    assert [(request.method, request.path, request.status) for request in done.requests[:2]] == [
        ("HEAD", "/v2/mirror/rancher/app/manifests/1", 401),
        ("GET", "/service/token", 200),
    ]
    assert sorted((request.method, request.path, request.status) for request in done.requests[2:]) == [
        ("HEAD", "/v2/mirror/rancher/app/manifests/1", 200),
        ("HEAD", "/v2/mirror/rancher/tool/manifests/1", 200),
    ]


# --- refused before anything is sent --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """A push that must not begin: what is the matter, and what is said."""

    prepare: Callable[[HarborDouble], User | Robot]
    code: int
    error: str
    message: str
    hint: str
    prefix: str = "mirror"


def push_only(harbor: HarborDouble) -> Robot:
    """Make a robot of the system: unlike one of a project it may not pull where it may push."""
    return harbor.add_robot("blind", SECRET, None, ["push"])


def unseen(harbor: HarborDouble) -> User:
    harbor.head_project_needs_read = True
    return harbor.add_user("nora", "N0ra-secret")


def proxy_cache(harbor: HarborDouble) -> Robot:
    harbor.add_project("mirror", proxy=True)
    return harbor.add_robot("pusher", SECRET, "mirror", LEAST)


def with_setting(name: str, value: object) -> Callable[[HarborDouble], Robot]:
    def prepare(harbor: HarborDouble) -> Robot:
        setattr(harbor, name, value)
        return harbor.add_robot("pusher", SECRET, "mirror", LEAST)

    return prepare


GRANT = "Grant repository: pull and repository: push on project 'mirror'"
REFUSALS = {
    "guest": Refusal(lambda harbor: account(harbor, "guest"), 7, "denied", "knows user 'dora'", GRANT),
    "push without pull": Refusal(push_only, 7, "denied", "pushing to project 'mirror'", GRANT),
    "unseen project": Refusal(
        unseen, 4, "project-missing", "'mirror' does not exist at Harbor, or may not be seen", "--create-projects"
    ),
    "impossible project": Refusal(
        lambda harbor: harbor.users["admin"], 3, "bad-project", "'k3s__mirror'", "lower case", prefix="k3s__mirror"
    ),
    "proxy cache": Refusal(proxy_cache, 11, "proxy-cache-project", "'mirror' is a proxy cache", "ordinary project"),
    "read-only": Refusal(with_setting("read_only", True), 8, "read-only", "read-only", "Repository Read Only"),
    "core": Refusal(
        with_setting("health", {"core": "unhealthy"}), 8, "harbor-unhealthy", "core: connection refused", "health"
    ),
    "redis": Refusal(
        with_setting("health", {"redis": "unhealthy"}), 8, "harbor-unhealthy", "redis: connection refused", "health"
    ),
    "wrong scheme": Refusal(
        with_setting("external_scheme", "https"), 8, "not-tls", "does not speak TLS", "external_url of Harbor"
    ),
}


def test_what_cannot_succeed_is_not_begun(tmp_path: Path) -> None:
    each(tmp_path, REFUSALS, check_refusal)


def check_refusal(site: Site, case: Refusal) -> None:
    who = case.prepare(site.harbor)

    done = site.push(who, "--create-projects", "private" if case.prefix != "mirror" else "no", prefix=case.prefix)

    assert (done.code, done.error) == (case.code, case.error)
    assert case.message in done.message
    assert case.hint in done.hint
    assert f"hint: {done.hint}" in done.err
    assert set(done.outcomes.values()) == {case.error}
    assert done.changes == []
    assert site.harbor.failed_logins == {}


# --- projects -------------------------------------------------------------------------------------------------------


def test_all_missing_projects_are_named_with_the_option_that_makes_them(site: Site, harbor: HarborDouble) -> None:
    two_projects(site)
    del harbor.projects["rancher"], harbor.projects["grafana"]

    done = site.push(ADMIN, prefix="")

    assert (done.code, done.error) == (4, "project-missing")
    assert "'grafana', 'rancher'" in done.message
    # Nor is a new token asked for with every image, though Harbor answers 401 to each.
    assert len(done.scopes) == 3
    assert "--create-projects private" in done.hint
    assert done.changes == []
    assert set(harbor.projects) == {"mirror"}


def test_missing_projects_are_made_if_asked_for(tmp_path: Path) -> None:
    each(tmp_path, {kind: kind for kind in ("private", "public")}, check_made)


def check_made(site: Site, kind: str) -> None:
    harbor = site.harbor
    # A token from before a project was made is refused in it.
    harbor.token_project_leeway = 0.0
    two_projects(site)
    del harbor.projects["rancher"]

    done = site.push(ADMIN, "--create-projects", kind, "--project-quota", "50MiB", prefix="")

    assert done.code == 0, done.err
    assert set(done.outcomes.values()) == {"pushed"}
    made = harbor.projects["rancher"]
    assert (made.public, made.quota_bytes) == (kind == "public", 50 * MIB)
    assert len(done.asked("POST", "/api/v2.0/projects", 201)) == 1
    assert f"created project 'rancher' at Harbor, {kind}" in done.report["notices"]
    assert done.report["warnings"] == []


def test_a_dry_run_says_which_projects_it_would_make(site: Site, harbor: HarborDouble) -> None:
    two_projects(site)
    del harbor.projects["rancher"]

    done = site.push(ADMIN, "--create-projects", "public", "--dry-run", prefix="")

    assert done.code == 0, done.err
    assert set(done.outcomes.values()) == {"planned"}
    assert done.report["facts"]["projects_to_create"] == ["rancher"]
    assert any(text.startswith("would create at Harbor, public: 'rancher'") for text in done.report["notices"])
    assert "would create" in done.err
    assert done.report["facts"]["bytes_to_send"] > 0
    assert done.changes == []
    assert "rancher" not in harbor.projects


@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=["push", "dry run"])
def test_a_quota_that_is_too_small_makes_no_project(site: Site, harbor: HarborDouble, options: tuple[str, ...]) -> None:
    done = site.push(ADMIN, "--create-projects", "private", "--project-quota", "10kB", *options, prefix="k3s")

    assert (done.code, done.error) == (9, "quota-exceeded"), done.err
    assert "'k3s'" in done.message
    assert f"at least {size_of(site.images)} bytes" in done.hint
    assert done.changes == []
    assert "k3s" not in harbor.projects


def test_a_quota_that_harbor_did_not_set_is_told(site: Site, harbor: HarborDouble) -> None:
    who = harbor.add_user("dora", "D0ra-secret")

    done = site.push(who, "--create-projects", "private", "--project-quota", "50MiB", prefix="k3s")

    assert done.code == 0, done.err
    assert harbor.projects["k3s"].quota_bytes == -1
    (warning,) = done.report["warnings"]
    assert "'k3s'" in warning
    assert "quota" in warning


def test_who_may_not_make_projects_is_told_who_may(tmp_path: Path) -> None:
    each(tmp_path, {kind: kind for kind in ("user", "least robot")}, check_not_made)


def check_not_made(site: Site, kind: str) -> None:
    harbor = site.harbor
    harbor.creation_restriction = "adminonly"
    who = harbor.add_user("dora", "D0ra-secret") if kind == "user" else account(harbor, kind)

    done = site.push(who, "--create-projects", "private", prefix="k3s")

    assert (done.code, done.error) == (7, "denied")
    assert "'k3s'" in done.message
    assert "Only system" in done.message
    assert "project: create" in done.hint
    assert "k3s" not in harbor.projects
    assert [request.path for request in done.changes] == ["/api/v2.0/projects"]


def test_a_robot_that_makes_a_project_without_any_right_in_it_is_told_what_it_lacks(
    site: Site, harbor: HarborDouble
) -> None:
    who = harbor.add_robot("maker", SECRET, None, LEAST, namespaces=["mirror"], system_actions=["project:create"])

    done = site.push(who, "--create-projects", "private", prefix="k3s")

    assert (done.code, done.error) == (7, "denied")
    assert "on project 'k3s'" in done.hint
    assert done.asked("POST", "/v2/") == []


def test_a_robot_of_the_system_makes_a_project_and_fills_it(site: Site, harbor: HarborDouble) -> None:
    harbor.creation_restriction, harbor.token_project_leeway = "adminonly", 0.0
    who = harbor.add_robot("maker", SECRET, None, LEAST, system_actions=["project:create"])

    done = site.push(who, "--create-projects", "private", prefix="k3s")

    assert done.code == 0, done.err
    assert set(harbor.tags("k3s/rancher/app")) == {"1"}


def test_a_project_that_somebody_else_makes_meanwhile_is_used(site: Site, harbor: HarborDouble) -> None:
    harbor.token_project_leeway = 0.0
    harbor.fault("POST", "/api/v2.0/projects", Meanwhile(lambda: harbor.add_project("k3s")))

    done = site.push(ADMIN, "--create-projects", "private", prefix="k3s")

    assert done.code == 0, done.err
    assert len(done.asked("POST", "/api/v2.0/projects", 409)) == 1


def test_a_name_without_a_project_needs_a_prefix(site: Site, robot: Robot) -> None:
    pause = "registry.k8s.io/pause:3.6"
    site.write({pause: built(site.store, BASE, title="pause"), **site.images})

    done = site.push(robot, prefix="")

    assert (done.code, done.error) == (3, "project-needed")
    assert pause in done.message
    assert "TARGET" in done.hint
    assert done.changes == []
    # Nor is anything said of the others.
    assert done.asked("HEAD", "/v2/") == []
    assert site.push(robot).outcomes[pause] == "pushed"


# --- the system -----------------------------------------------------------------------------------------------------


def test_read_only_mode_in_the_middle_is_named(site: Site, harbor: HarborDouble, robot: Robot) -> None:
    harbor.fault("PUT", "/manifests/1", Meanwhile(lambda: setattr(harbor, "read_only", True)))

    done = site.push(robot)

    assert (done.code, done.error) == (10, "images-failed")
    assert "read-only" in set(done.outcomes.values()) <= {"read-only", "pushed"}


def test_what_a_push_does_not_need_may_be_ill(site: Site, harbor: HarborDouble, robot: Robot) -> None:
    harbor.health |= {"trivy": "unhealthy", "jobservice": "unhealthy", "portal": "unhealthy"}

    assert site.push(robot).code == 0


def test_clocks_that_disagree_are_told_and_do_no_harm(tmp_path: Path) -> None:
    each(tmp_path, {"fast": (600.0, "ahead of"), "slow": (-600.0, "behind")}, check_clock)


def check_clock(site: Site, offset: tuple[float, str]) -> None:
    site.harbor.clock_offset, word = offset
    site.harbor.add_project("mirror")

    done = site.push(account(site.harbor, "least robot"))

    assert done.code == 0, done.err
    (warning,) = done.report["warnings"]
    assert f"s {word} this machine's" in warning
    assert abs(float(warning.split(" s ")[0].split()[-1]) - 600) < 10


# --- is it Harbor? --------------------------------------------------------------------------------------------------


def test_without_its_api_harbor_is_pushed_to_like_any_registry(tmp_path: Path) -> None:
    pages = {"missing": (404, b"<html>404 Not Found</html>"), "page": (200, b"<html>Harbor</html>")}
    each(tmp_path, pages, check_without_api)


def check_without_api(site: Site, page: tuple[int, bytes]) -> None:
    site.harbor.fault("*", "^/api/", *page, {"Content-Type": "text/html"}, times=None)

    done = site.push(account(site.harbor, "least robot"), "--no-verify")

    assert done.code == 0, done.err
    assert "its API does not answer" in " ".join(done.report["notices"])
    assert len([request for request in done.requests if request.path.startswith("/api/")]) == 1


def test_a_half_of_the_api_is_used_as_far_as_it_goes(site: Site, harbor: HarborDouble, robot: Robot) -> None:
    harbor.fault("*", "^/api/v2.0/", 404, b"<html>404 Not Found</html>", {"Content-Type": "text/html"}, times=None)

    done = site.push(robot)

    assert done.code == 0, done.err
    assert "quota" in " ".join(done.report["notices"])


def test_a_registry_that_is_to_be_harbor_is_refused(site: Site) -> None:
    with FaultyRegistry() as other:
        done = site.push(("any", "body-knows"), "--target-type", "harbor", url=other.url)

        assert (done.code, done.error) == (11, "not-harbor")
        assert "/api/version" in done.message
        assert [request.method for request in other.requests() if request.method not in {"GET", "HEAD"}] == []


def test_a_harbor_that_is_taken_for_any_registry_is_asked_nothing(
    site: Site, harbor: HarborDouble, robot: Robot
) -> None:
    harbor.health["database"] = "unhealthy"

    done = site.push(robot, "--target-type", "registry")

    assert done.code == 0, done.err
    assert [request.path for request in done.requests if request.path.startswith("/api/")] == []


def test_tls_from_a_private_authority(tmp_path: Path) -> None:
    require("docker-registry")
    authority = Authority(tmp_path / "ca")
    with HarborDouble(certificate=authority.issue("127.0.0.1")) as secure:
        secure.add_project("mirror")
        there = Site(secure, tmp_path / "secure")
        robot = secure.add_robot("pusher", SECRET, "mirror", CHECKS)

        refused = there.push(robot)
        done = there.push(robot, "--ca-file", authority.ca_file)

        assert (refused.code, refused.error) == (8, "unknown-ca")
        assert refused.requests == []
        assert done.code == 0, done.err
        assert set(secure.tags("mirror/rancher/app")) == {"1"}
