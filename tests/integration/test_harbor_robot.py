"""`harbor robot`: an account with just the rights that are needed, and a secret that only its file has."""

from __future__ import annotations

import json
import stat
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import run
from tests.support.guarded import GuardedRegistry
from tests.support.harbor import HarborDouble
from tests.support.harbor_accounts import User
from tests.support.harbor_runs import Done, Site
from tests.support.programs import require

DAY_S = 24 * 60 * 60
PUSH = {("repository", "pull"), ("repository", "push")}
CHECKS = {("project", "read"), ("quota", "read"), ("artifact", "list"), ("artifact", "read")}


@pytest.fixture
def harbor() -> Iterator[HarborDouble]:
    require("docker-registry")
    with HarborDouble() as started:
        started.add_project("mirror")
        started.add_project("other")
        yield started


@pytest.fixture
def site(harbor: HarborDouble, tmp_path: Path) -> Site:
    return Site(harbor, tmp_path)


@pytest.fixture
def chief(harbor: HarborDouble) -> User:
    return harbor.add_user("carla", "C4rla-secret", {"mirror": "projectAdmin"})


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    return tmp_path / "robot.secret"


def make(
    site: Site, who: User | tuple[str, str], file: Path, *options: str, project: str = "mirror", url: str = ""
) -> Done:
    target = url or site.harbor.url
    done = site.run(who, ["harbor", "robot", "--target", target, "--project", project, "--secret-file", file, *options])
    for robot in site.harbor.robots.values():
        pair = b64encode(f"{robot.name}:{robot.secret}".encode()).decode()
        assert robot.secret not in done.result.out + done.err
        assert pair not in done.result.out + done.err
    return done


def refused(done: Done, code: int, reference: str, harbor: HarborDouble, file: Path) -> None:
    """Check that nothing was made, neither there nor here, and why."""
    assert (done.code, f"[{reference}]" in done.err) == (code, True), done.err
    assert done.result.out == ""
    assert harbor.robots == {}
    assert not file.exists()


def test_the_robot_for_pushes_can_push_and_check(
    site: Site, harbor: HarborDouble, chief: User, secret_file: Path
) -> None:
    done = make(site, chief, secret_file)

    assert done.code == 0, done.err
    (robot,) = harbor.robots.values()
    assert robot.name == "robot$mirror+airgap-sync-push"
    assert (robot.project, robot.expires_at) == ("mirror", float("inf"))
    (held,) = robot.permissions
    assert held.namespace == "mirror"
    assert held.access == PUSH | CHECKS
    assert secret_file.read_text() == f"{robot.secret}\n"
    assert stat.S_IMODE(secret_file.stat().st_mode) == 0o600
    # What it says to do is what works.
    assert f"--username '{robot.name}' --password-file {secret_file}" in done.result.out
    pushed = site.push((robot.name, secret_file.read_text().strip()))
    assert pushed.code == 0, pushed.err
    assert pushed.report["notices"] == []
    assert site.push(robot, prefix="other").error == "denied"


def test_the_robot_for_nodes_can_only_pull(site: Site, harbor: HarborDouble, chief: User, secret_file: Path) -> None:
    site.seed()

    done = make(site, chief, secret_file, "--pull-only", "-o", "json")

    assert done.code == 0, done.err
    (robot,) = harbor.robots.values()
    assert robot.permissions[0].access == {("repository", "pull")}
    assert done.result.json == {
        "name": "robot$mirror+airgap-sync-pull",
        "project": "mirror",
        "rights": ["repository: pull"],
        "secret_file": str(secret_file),
    }
    there = site.push(robot)
    assert there.code == 0, there.err
    assert set(there.outcomes.values()) == {"up-to-date"}
    harbor.add_project("mirror")
    elsewhere = site.push(robot)
    assert (elsewhere.code, elsewhere.error) == (7, "denied")
    assert elsewhere.changes == []


def test_name_and_days_are_as_asked(site: Site, harbor: HarborDouble, chief: User, secret_file: Path) -> None:
    done = make(site, chief, secret_file, "--name", "site-7", "--days", "30")

    assert done.code == 0, done.err
    (robot,) = harbor.robots.values()
    assert robot.name == "robot$mirror+site-7"
    assert abs(robot.expires_at - time.time() - 30 * DAY_S) < 60


def test_old_harbors_get_the_rights_that_they_know(
    site: Site, harbor: HarborDouble, chief: User, secret_file: Path
) -> None:
    harbor.old_robots = True

    done = make(site, chief, secret_file)

    assert done.code == 0, done.err
    (robot,) = harbor.robots.values()
    assert robot.permissions[0].access == PUSH
    assert site.push(robot).code == 0


def test_what_is_in_the_file_already_is_kept_and_no_robot_made(
    site: Site, harbor: HarborDouble, chief: User, secret_file: Path
) -> None:
    secret_file.write_text("of another robot")

    done = make(site, chief, secret_file)

    assert (done.code, "[bad-output]" in done.err) == (3, True), done.err
    assert f"{secret_file} exists already" in done.err
    assert secret_file.read_text() == "of another robot"
    assert harbor.robots == {}
    assert done.requests == []


def test_a_name_that_is_taken_is_told(site: Site, harbor: HarborDouble, chief: User, secret_file: Path) -> None:
    kept = harbor.add_robot("airgap-sync-push", "0ther-secret", "mirror")

    done = make(site, chief, secret_file)

    assert done.code == 3, done.err
    assert "'mirror' has a robot 'airgap-sync-push' already" in done.err
    assert "--name" in done.err.partition("hint:")[2]
    assert harbor.robots == {kept.name: kept}
    assert not secret_file.exists()


@pytest.mark.parametrize(
    ("project", "options", "reference"),
    [("Mirror", (), "bad-project"), ("a b", (), "bad-project"), ("mirror", ("--name", "Robot!"), "bad-robot")],
)
def test_a_name_that_harbor_does_not_allow_is_refused_without_asking(
    site: Site,
    harbor: HarborDouble,
    chief: User,
    secret_file: Path,
    project: str,
    options: tuple[str, ...],
    reference: str,
) -> None:
    done = make(site, chief, secret_file, *options, project=project)

    refused(done, 3, reference, harbor, secret_file)
    assert done.requests == []


def test_in_read_only_mode_no_robot_is_made(site: Site, harbor: HarborDouble, chief: User, secret_file: Path) -> None:
    harbor.read_only = True

    done = make(site, chief, secret_file)

    refused(done, 8, "read-only", harbor, secret_file)
    assert done.changes == []


@pytest.mark.parametrize("role", ["developer", "maintainer"])
def test_who_may_not_make_robots_is_told_who_may(
    site: Site, harbor: HarborDouble, secret_file: Path, role: str
) -> None:
    done = make(site, harbor.add_user("dora", "D0ra-secret", {"mirror": role}), secret_file)

    refused(done, 7, "denied", harbor, secret_file)
    assert "Project Admin" in done.err.partition("hint:")[2]


def test_the_cli_secret_of_oidc_makes_no_robots_and_that_is_told(
    site: Site, harbor: HarborDouble, secret_file: Path
) -> None:
    done = make(site, harbor.add_user("olga", "cli-s3cret", {"mirror": "projectAdmin"}, oidc=True), secret_file)

    refused(done, 7, "denied", harbor, secret_file)
    assert "OIDC" in done.err.partition("hint:")[2]


def test_a_wrong_password_is_tried_once(site: Site, harbor: HarborDouble, chief: User, secret_file: Path) -> None:
    done = make(site, (chief.name, "n0t-the-secret"), secret_file)

    refused(done, 7, "unauthorized", harbor, secret_file)
    assert harbor.failed_logins == {chief.name: 1}


@pytest.mark.parametrize("who", ["admin", "chief"])
def test_a_project_that_is_not_there_is_told(
    site: Site, harbor: HarborDouble, chief: User, secret_file: Path, who: str
) -> None:
    done = make(site, harbor.users["admin"] if who == "admin" else chief, secret_file, project="typo")

    refused(done, 4, "project-missing", harbor, secret_file)
    assert "'typo'" in done.err
    assert "--create-projects" in done.err.partition("hint:")[2]


@pytest.mark.parametrize("status", [500, 200])
def test_a_harbor_that_fails_leaves_no_empty_file(
    site: Site, harbor: HarborDouble, chief: User, secret_file: Path, status: int
) -> None:
    harbor.fault("POST", "/robots", status, json.dumps({"errors": [{"code": "UNKNOWN", "message": "x"}]}).encode())

    done = make(site, chief, secret_file)

    refused(done, 8, "server-error" if status == 500 else "unexpected-answer", harbor, secret_file)
    assert len(done.asked("POST", "/robots")) == 1


def test_a_registry_that_is_no_harbor_has_no_robots(site: Site, harbor: HarborDouble, secret_file: Path) -> None:
    with GuardedRegistry(basic=("any", "body-knows")) as other:
        done = make(site, ("any", "body-knows"), secret_file, url=other.url)

        # The password has no business at anything else.
        assert other.users() == {""}
    refused(done, 11, "not-harbor", harbor, secret_file)


def test_a_target_with_a_project_is_refused_with_the_right_form(
    site: Site, harbor: HarborDouble, chief: User, secret_file: Path
) -> None:
    done = make(site, chief, secret_file, url=f"{harbor.url}/mirror")

    refused(done, 3, "bad-target", harbor, secret_file)
    assert "--project NAME" in done.err.partition("hint:")[2]


def test_nobody_in_particular_makes_no_robots(harbor: HarborDouble, secret_file: Path) -> None:
    done = run("harbor", "robot", "--target", harbor.url, "--project", "mirror", "--secret-file", secret_file)

    assert (done.code, "[no-credentials]" in done.err) == (7, True), done.err
    assert not secret_file.exists()
