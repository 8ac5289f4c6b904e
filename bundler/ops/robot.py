"""``harbor robot``: a robot account with just the rights that a push, or a node, needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from bundler.errors import (
    AirgapSyncError,
    AuthError,
    BadProjectError,
    BadRobotError,
    DeniedError,
    NoCredentialsError,
    NotHarborError,
    ProjectMissingError,
    ReadOnlyError,
    UnexpectedAnswerError,
)
from bundler.registry.client import RegistryClient
from bundler.registry.harbor import Harbor, Robot, is_project_name

PULL = (("repository", "pull"),)
PUSH = (("repository", "pull"), ("repository", "push"))
#: With these a push can be checked beforehand and afterwards; older Harbors do not know all of them.
CHECKS = (("project", "read"), ("quota", "read"), ("artifact", "list"), ("artifact", "read"))

_ROLE = "Use an account with the role Project Admin in it, or a system administrator."
#: Harbor knows the account and refuses it all the same. Source: HARBOR ``server/middleware/security/oidc_cli.go``.
_OIDC = (
    "The CLI secret of an OIDC user opens what a push needs, and no more: use a local administrator, or make the robot "
    "in Harbor's web interface."
)


@dataclass(frozen=True, slots=True)
class RobotRequest:
    """What is wanted.

    Attributes:
        project: The project that the robot may do something in.
        name: Without prefix.
        pull_only: For nodes.
        days: How long it lives; -1 for ever.
    """

    project: str
    name: str
    pull_only: bool
    days: int


@dataclass(frozen=True, slots=True)
class MadeRobot:
    """What was made.

    Attributes:
        name: Its full name, to log in with.
        rights: What it may do, as ``resource: action``.
    """

    name: str
    rights: tuple[str, ...]


def make_robot(client: RegistryClient, request: RobotRequest, keep: Callable[[str], None]) -> MadeRobot:
    """Make a robot account.

    Args:
        client: The Harbor, with an account that may make robots.
        request: What is wanted.
        keep: Called once, with the secret.

    Raises:
        NotHarborError: It is not Harbor.
        ProjectMissingError: The project does not exist.
        AuthError: The account may not.
        BadProjectError: Harbor allows no project of this name.
        BadRobotError: Harbor allows no robot of this name, or has one.
    """
    if client.endpoint.credential is None:
        raise NoCredentialsError(
            f"there are no credentials for {client.host.name}", hint=client.endpoint.credentials_hint
        )
    for name, error in ((request.project, BadProjectError), (request.name, BadRobotError)):
        if not is_project_name(name):
            raise error(f"{name!r} is no name that Harbor allows")
    harbor = Harbor(client)
    # First, and without the password: it has no business at anything else.
    if not harbor.is_there():
        raise NotHarborError(f"{client.host.name} does not answer as Harbor does at /api/version")
    client.check_api()
    client.authorizer.check_credential()
    if harbor.system().read_only:
        raise ReadOnlyError("Harbor is in read-only mode")
    if harbor.project(request.project) is None:
        raise ProjectMissingError(
            f"project {request.project!r} does not exist at Harbor, or may not be seen by this account",
            hint="Check the name, or create it in Harbor; `push --create-projects private` makes it as well, with an "
            "account that may.",
        )
    made, rights = _make(harbor, request)
    keep(made.secret)
    return MadeRobot(made.name, tuple(f"{resource}: {action}" for resource, action in rights))


def _make(harbor: Harbor, request: RobotRequest) -> tuple[Robot, list[tuple[str, str]]]:
    least = [*PULL] if request.pull_only else [*PUSH]
    wishes = [least] if request.pull_only else [[*least, *CHECKS], least]
    purpose = "nodes pull" if request.pull_only else "airgap-sync pushes"
    for rights in wishes:
        try:
            made = harbor.create_robot(
                request.project, request.name, rights, days=request.days, description=f"{purpose} with this account"
            )
        except UnexpectedAnswerError as error:
            # Rights that an older Harbor does not know.
            if error.context.get("status") == HTTPStatus.BAD_REQUEST and rights is not wishes[-1]:
                continue
            raise _explained(error, request) from error
        except AuthError as error:
            raise DeniedError(
                f"this account may not make robots in project {request.project!r}: {error.message}",
                hint=_OIDC if error.context.get("status") == HTTPStatus.UNAUTHORIZED else _ROLE,
                context=error.context,
            ) from error
        return made, rights
    raise AssertionError  # the last wish returns or raises


def _explained(error: UnexpectedAnswerError, request: RobotRequest) -> AirgapSyncError:
    if error.context.get("status") == HTTPStatus.CONFLICT:
        return BadRobotError(
            f"project {request.project!r} has a robot {request.name!r} already",
            hint="Choose another --name, or delete the old one in Harbor: its secret cannot be read again.",
            context=error.context,
        )
    return error
