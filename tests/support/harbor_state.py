"""What the Harbor double knows: its settings, projects and accounts."""

import base64
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping

from tests.support.content import digest_of
from tests.support.harbor_accounts import Identity, Permission, Robot, TokenHolder, Tokens, User
from tests.support.harbor_projects import UNLIMITED, Artifact, ImmutableRule, Project, Repository


class HarborState:
    """Settings, which tests may change at any time, and content.

    Attributes:
        read_only: Refuse all writes.
        version: What systeminfo calls `harbor_version`.
        auth_mode: What systeminfo says of it.
        creation_restriction: Who may create projects: `everyone` or `adminonly`.
        storage_per_project: Quota, in bytes, of projects created without one.
        clock_offset: Seconds that this server's clock is ahead.
        token_lifetime: Seconds until a token expires.
        token_leeway: Seconds that a token is accepted before and after its time.
        token_project_leeway: Seconds that a token may be older than a project; 0 is strict.
        robot_name_prefix: Prefix of the login names of robots made from then on.
        old_robots: Know no permissions on projects, quotas and artifacts, as old versions do.
        head_project_needs_read: Answer `HEAD /projects` with 403 to accounts that may not read the project.
        frozen_s: Seconds that a failed login delays its answer and locks the user name (1.5 in Harbor).
        health: Status of each component.
        external_scheme: Scheme in the token realm and in `Location` headers.
        location_base: Start of `Location` headers, for a front proxy that gets it wrong; by the request where None.
        failed_logins: How many logins failed, by the name tried.
        blobs: Sizes of all blobs and manifests known, in bytes.
        uploads: Bytes that each upload session has received by PATCH.
    """

    def __init__(self, admin: tuple[str, str]) -> None:
        """Start empty, with an administrator's name and password."""
        self.read_only = False
        self.version = "v2.15.2-59b2d76d"
        self.auth_mode = "db_auth"
        self.creation_restriction = "everyone"
        self.storage_per_project = UNLIMITED
        self.clock_offset = 0.0
        self.token_lifetime = 1800.0
        self.token_leeway = 60.0
        self.token_project_leeway = 60.0
        self.robot_name_prefix = "robot$"
        self.old_robots = False
        self.head_project_needs_read = False
        self.frozen_s = 0.0
        names = ("core", "portal", "jobservice", "registry", "registryctl", "database", "redis")
        self.health = dict.fromkeys(names, "healthy")
        self.external_scheme = "http"
        self.location_base: str | None = None
        self.failed_logins: Counter[str] = Counter()
        self.blobs: dict[str, int] = {}
        self.uploads: dict[str, int] = {}
        self.lock = threading.RLock()
        self.tokens = Tokens()
        self.ids = itertools.count(1)
        self.projects: dict[str, Project] = {}
        self.users: dict[str, User] = {admin[0]: User(*admin, admin=True)}
        self.robots: dict[str, Robot] = {}
        self._locked_until: dict[str, float] = {}

    def now(self) -> float:
        """Give this server's time, in seconds since the epoch."""
        return time.time() + self.clock_offset

    def add_project(
        self,
        name: str,
        *,
        public: bool = False,
        quota_bytes: int = UNLIMITED,
        proxy: bool = False,
        prevent_vul: bool = False,
        owner: str = "admin",
        metadata: Mapping[str, str] | None = None,
    ) -> Project:
        """Make a project; one that is a `proxy` refuses pushes, one with `prevent_vul` hides what it has."""
        flags = {"public": str(public).lower(), "prevent_vul": str(prevent_vul).lower(), **(metadata or {})}
        with self.lock:
            made = Project(next(self.ids), name, quota_bytes, int(proxy), self.now(), owner, flags)
            self.projects[name] = made
        return made

    def add_user(self, name: str, password: str, roles: Mapping[str, str] | None = None, *, oidc: bool = False) -> User:
        """Make a user with a role in each of some projects; with `oidc` the password is the CLI secret."""
        self.users[name] = User(name, password, dict(roles or {}), oidc=oidc)
        return self.users[name]

    def add_robot(
        self,
        name: str,
        secret: str,
        project: str | None,
        actions: Iterable[str] = ("pull", "push"),
        *,
        namespaces: Iterable[str] = ("*",),
        system_actions: Iterable[str] = (),
    ) -> Robot:
        """Make a robot.

        Args:
            name: Name without prefix and project.
            secret: Its password.
            project: The project it belongs to; None for a robot of the system.
            actions: `resource:action` in the project or namespaces; without colon it is on `repository`.
            namespaces: Projects of a robot of the system, `*` for all.
            system_actions: `resource:action` in the system, such as `project:create`.

        Returns:
            The robot, whose `name` is what it logs in with.
        """
        access = frozenset(_right(action) for action in actions)
        held = [Permission("project", namespace, access) for namespace in ((project,) if project else namespaces)]
        if system := frozenset(_right(action) for action in system_actions):
            held.append(Permission("system", "/", system))
        return self.keep_robot(name, secret, project, tuple(held))

    def keep_robot(self, name: str, secret: str, project: str | None, permissions: tuple[Permission, ...]) -> Robot:
        """Make a robot with permissions as they are."""
        login = self.robot_login(name, project)
        self.robots[login] = Robot(login, secret, project, permissions)
        return self.robots[login]

    def robot_login(self, name: str, project: str | None) -> str:
        """Give what a robot logs in with."""
        return self.robot_name_prefix + (f"{project}+{name}" if project else name)

    def add_immutable_rule(self, project: str, repository_pattern: str = "**", tag_pattern: str = "**") -> None:
        """Make tags of a project immutable once they exist."""
        self.projects[project].rules.append(ImmutableRule(next(self.ids), repository_pattern, tag_pattern))

    def used_bytes(self, project: str) -> int:
        """Give what a project is charged for."""
        return self.projects[project].used_bytes

    def tags(self, repository: str) -> dict[str, str]:
        """Give the digests that the tags of a repository (with project) point to."""
        with self.lock:
            found = self.find_repository(repository)
            return dict(found.tags) if found else {}

    def revoke_tokens(self) -> None:
        """Make all tokens issued so far invalid."""
        self.tokens.revoke()

    def find_repository(self, repository: str) -> Repository | None:
        """Give a repository (with project) that something has been put into."""
        project, _, name = repository.partition("/")
        return self.projects[project].repositories.get(name) if project in self.projects else None

    def keep_artifact(self, repository: str, media_type: str, data: bytes, tag: str | None) -> None:
        """Index a manifest that the registry has taken."""
        project, _, name = repository.partition("/")
        digest = digest_of(data)
        with self.lock:
            repositories = self.projects[project].repositories
            kept = repositories.setdefault(name, Repository(next(self.ids)))
            kept.artifacts.setdefault(digest, Artifact(next(self.ids), digest, media_type, data, self.now()))
            if tag:
                kept.tags[tag] = digest

    def identify(self, authorization: str | None, *, bearer: bool, oidc: bool) -> Identity:
        """Find out who sends a request.

        Args:
            authorization: The header.
            bearer: Whether tokens are accepted there.
            oidc: Whether CLI secrets are accepted there.
        """
        kind, _, value = (authorization or "").partition(" ")
        if kind.lower() == "bearer" and bearer:
            return self._holder(value)
        if kind.lower() != "basic":
            return Identity()
        try:
            name, _, password = base64.b64decode(value).decode().partition(":")
        except ValueError:
            return Identity()
        return self._login(name, password, oidc=oidc)

    def _holder(self, token: str) -> Identity:
        read = self.tokens.read(token, self.now(), self.token_leeway)
        if read is None:
            return Identity()
        claims, issued = read
        access = {
            entry["name"].partition("/")[0]: entry["actions"]
            for entry in claims["access"]
            if entry["type"] == "repository"
        }
        return TokenHolder(claims["sub"], access, issued, self.token_project_leeway)

    def _login(self, name: str, password: str, *, oidc: bool) -> Identity:
        robot = self.robots.get(name)
        if robot and robot.secret == password and not robot.disabled and robot.expires_at > self.now():
            return robot
        user = self.users.get(name)
        if user and user.oidc and not oidc:
            return Identity()
        with self.lock:
            locked = self._locked_until.get(name, 0) > time.monotonic()
        if user and user.password == password and not locked:
            return user
        with self.lock:
            self.failed_logins[name] += 1
            self._locked_until[name] = time.monotonic() + self.frozen_s
        time.sleep(self.frozen_s)
        return Identity()


def _right(action: str) -> tuple[str, str]:
    resource, _, name = action.rpartition(":")
    return resource or "repository", name
