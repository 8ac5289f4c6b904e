"""Who may do what in the Harbor double: member roles, robots, and the tokens that stand for them.

A right is a resource and an action, as Harbor names them: `("repository", "push")`.
"""

import base64
import hashlib
import hmac
import json
import math
import secrets
import threading
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

Right = tuple[str, str]

ISSUER = "harbor-token-issuer"
SERVICE = "harbor-registry"

# What anybody may do in a public project.
PUBLIC: frozenset[Right] = frozenset(
    {
        ("project", "read"),
        ("repository", "list"),
        ("repository", "pull"),
        ("artifact", "list"),
        ("artifact", "read"),
        ("tag", "list"),
    }
)
_LIMITED_GUEST = PUBLIC | {("quota", "read")}
_GUEST = _LIMITED_GUEST | {("repository", "read")}
_DEVELOPER = _GUEST | {("repository", "push"), ("artifact", "create"), ("tag", "create")}
_MAINTAINER = _DEVELOPER | {
    *(("repository", "delete"), ("artifact", "delete"), ("tag", "delete")),
    ("immutable-tag", "list"),
}
_PROJECT_ADMIN = _MAINTAINER | {("robot", "create"), ("project", "update"), ("project", "delete")}
ROLES: Mapping[str, frozenset[Right]] = {
    "projectAdmin": _PROJECT_ADMIN,
    "developer": _DEVELOPER,
    "guest": _GUEST,
    "maintainer": _MAINTAINER,
    "limitedGuest": _LIMITED_GUEST,
}
_TOKEN_ACTIONS = ("pull", "push", "delete", "scanner-pull")


class Guarded(Protocol):
    """What has to be known of a project to decide who may do what in it."""

    name: str
    created: float

    @property
    def public(self) -> bool:
        """Whether everybody may pull."""


class Identity:
    """Whoever sends a request. This one is nobody: credentials that are absent or wrong."""

    name: str

    def __init__(self) -> None:
        self.name = ""

    @property
    def authenticated(self) -> bool:
        """Whether it is somebody."""
        return bool(self.name)

    def may(self, project: Guarded, resource: str, action: str) -> bool:
        """Tell whether it has a right in a project."""
        return project.public and (resource, action) in PUBLIC

    def may_in_system(self, resource: str, action: str) -> bool:  # noqa: ARG002 - nobody has any such right
        """Tell whether it has a right beyond projects."""
        return False

    def repository_actions(self, project: Guarded) -> list[str]:
        """Give all that it may do with repositories of a project, as a token lists it."""
        return [action for action in _TOKEN_ACTIONS if self.may(project, "repository", action)]


@dataclass(eq=False)
class User(Identity):
    """A person. The password of an `oidc` one is the CLI secret, which opens only a part of the API."""

    name: str
    password: str
    roles: dict[str, str] = field(default_factory=dict)
    admin: bool = False
    oidc: bool = False

    def may(self, project: Guarded, resource: str, action: str) -> bool:
        """Tell whether a role gives a right; the system's administrator has all."""
        role = self.roles.get(project.name)
        granted = ROLES[role] if role else frozenset()
        return self.admin or (resource, action) in granted or super().may(project, resource, action)

    def may_in_system(self, resource: str, action: str) -> bool:  # noqa: ARG002 - all rights or none
        """Tell whether it is the system's administrator."""
        return self.admin


@dataclass(frozen=True)
class Permission:
    """Rights of a robot: in one project, in all (`*`), or in the system (kind `system`, namespace `/`)."""

    kind: str
    namespace: str
    access: frozenset[Right]


@dataclass(eq=False)
class Robot(Identity):
    """A robot account; of one project where it has a `project`, of the system otherwise."""

    name: str
    secret: str
    project: str | None
    permissions: tuple[Permission, ...]
    disabled: bool = False
    expires_at: float = math.inf

    def may(self, project: Guarded, resource: str, action: str) -> bool:
        """Tell whether a permission gives a right; only for robots of a project does push imply pull."""
        for permission in self.permissions:
            if permission.kind != "project" or permission.namespace not in {"*", project.name}:
                continue
            implied = self.project and action == "pull" and (resource, "push") in permission.access
            if (resource, action) in permission.access or implied:
                return True
        return super().may(project, resource, action)

    def may_in_system(self, resource: str, action: str) -> bool:
        """Tell whether a permission of the system gives a right."""
        return any(held.kind == "system" and (resource, action) in held.access for held in self.permissions)


@dataclass(eq=False)
class TokenHolder(Identity):
    """Whoever sends a token: it can do what the token lists, in projects that the token is not too old for."""

    name: str
    access: Mapping[str, Iterable[str]]
    issued: float
    project_leeway_s: float

    def may(self, project: Guarded, resource: str, action: str) -> bool:
        """Tell whether the token lists an action on repositories of a project."""
        if resource != "repository" or self.issued < project.created - self.project_leeway_s:
            return False
        return action in self.access.get(project.name, ())


class Tokens:
    """Issues and reads the tokens. They are told apart by id, so that they can be revoked."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._issued: dict[str, float] = {}
        self._lock = threading.Lock()

    def issue(self, user: str, access: list[dict[str, Any]], now: float, lifetime_s: float) -> str:
        """Sign a token."""
        token_id, start = uuid.uuid4().hex, int(now)
        claims = {
            "iss": ISSUER,
            "sub": user,
            "aud": SERVICE,
            "jti": token_id,
            "iat": start,
            "nbf": start,
            "exp": int(start + lifetime_s),
            "access": access,
        }
        with self._lock:
            self._issued[token_id] = now
        signed = ".".join(_encode(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "HS256"}, claims))
        return f"{signed}.{self._signature(signed)}"

    def read(self, token: str, now: float, leeway_s: float) -> tuple[dict[str, Any], float] | None:
        """Give the claims of a token and when exactly it was issued; None where it is not valid."""
        signed, _, signature = token.rpartition(".")
        if signed.count(".") != 1 or not hmac.compare_digest(signature.encode(), self._signature(signed).encode()):
            return None
        claims: dict[str, Any] = json.loads(_decode(signed.partition(".")[2]))
        with self._lock:
            issued = self._issued.get(claims["jti"])
        if issued is None or now > claims["exp"] + leeway_s or now < claims["nbf"] - leeway_s:
            return None
        return claims, issued

    def revoke(self) -> None:
        """Make all tokens issued so far invalid."""
        with self._lock:
            self._issued.clear()

    def _signature(self, signed: str) -> str:
        return _encode(hmac.digest(self._key, signed.encode(), hashlib.sha256))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
