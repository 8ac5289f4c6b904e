"""What Harbor is asked before the first byte of a push, and why it refused one afterwards.

Invariants:

- Refused beforehand is only what is certain to fail; what is merely likely is a warning.
- Nothing is made that the user did not ask for: a typo in a prefix must not become a project.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from bundler.errors import (
    AirgapSyncError,
    AuthError,
    BadProjectError,
    DeniedError,
    HarborUnhealthyError,
    ImmutableTagError,
    ProjectMissingError,
    ProjectNeededError,
    ProxyCacheProjectError,
    QuotaExceededError,
    ReadOnlyError,
)
from bundler.progress import people_bytes
from bundler.registry.client import RegistryClient
from bundler.registry.harbor import Harbor, Project, Quota, is_project_name
from bundler.registry.token import Scope
from bundler.transfer.plan import Existing, PushImage, TransferPlan
from bundler.transfer.room import content_bytes, project_of, sizes_in

logger = logging.getLogger(__name__)

#: Uploads of one project update one row of Harbor's database: more at once only makes them wait and fail.
MOST_AT_ONCE = 6
FIRST_AT_ONCE = 4
_CLOCK_S = 60.0
#: What Harbor calls a quota in a refusal; only looked for where its state does not explain one.
_QUOTA_WORDS = "of storage resource"


class CreateProjects(StrEnum):
    """Whether missing projects are made, and who may pull from them."""

    NO = "no"
    PRIVATE = "private"
    PUBLIC = "public"


@dataclass(slots=True)
class HarborCheck:
    """Asks Harbor about one push.

    Args:
        client: The target's endpoint.
        create: Whether missing projects are made.
        quota_bytes: The quota of projects that are made; None for Harbor's default.
        dry_run: Make nothing.

    Attributes:
        warnings: What is likely to fail.
        notices: What was made, would be made, or could not be found out.
        to_create: Projects that a dry run would make.
    """

    client: RegistryClient
    create: CreateProjects = CreateProjects.NO
    quota_bytes: int | None = None
    dry_run: bool = False
    warnings: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    to_create: list[str] = field(default_factory=list)
    _projects: dict[str, Project] = field(default_factory=dict)
    _made: set[str] = field(default_factory=set)
    #: Bytes that were not known to be in a project when the push began.
    _missing: dict[str, int] = field(default_factory=dict)
    _full: dict[str, QuotaExceededError] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def api(self) -> Harbor:
        """Harbor's own API."""
        return Harbor(self.client)

    # --- beforehand -----------------------------------------------------------------------------------------

    def check_system(self) -> None:
        """Make sure that Harbor is well, takes writes and knows us.

        Raises:
            HarborUnhealthyError: A part that a push needs is down.
            ReadOnlyError: It takes no writes.
            UnauthorizedError: The user name or the password is wrong.
        """
        self.client.authorizer.check_credential()
        if ailing := self.api.ailing():
            raise HarborUnhealthyError(f"Harbor is not healthy: {'; '.join(ailing)}")
        system = self.api.system()
        if system.read_only:
            raise ReadOnlyError("Harbor is in read-only mode")
        if system.clock_ahead_s is not None and abs(system.clock_ahead_s) > _CLOCK_S:
            word = "ahead of" if system.clock_ahead_s > 0 else "behind"
            self.warnings.append(f"Harbor's clock is {abs(system.clock_ahead_s):.0f} s {word} this machine's")

    def check_projects(self, images: Collection[PushImage]) -> None:
        """Make sure that every project is there, takes pushes and takes them from us; make what is missing if told to.

        Raises:
            ProjectNeededError: A name has no project in it.
            BadProjectError: A name has a project in it that Harbor does not allow.
            ProjectMissingError: Projects are missing and none are to be made.
            ProxyCacheProjectError: A project caches another registry.
            DeniedError: We may not push, or may not make projects.
        """
        check_names(images)
        rights = {
            project_of(image.repository): self.client.allows(Scope(image.repository, "pull,push")) for image in images
        }
        missing = []
        for name, may_push in sorted(rights.items()):
            found = self.api.project(name)
            if found is None and may_push:
                # An account with nothing but the right to push cannot see the project that it pushes to.
                found = Project(name, 0)
            if found is None:
                missing.append(name)
            elif found.is_proxy_cache:
                raise ProxyCacheProjectError(f"project {name!r} is a proxy cache of another registry")
            elif may_push is False:
                raise self._denied(name)
            else:
                self._projects[name] = found
        if missing:
            self._make(missing, images)

    def _make(self, names: list[str], images: Collection[PushImage]) -> None:
        listed = ", ".join(repr(name) for name in names)
        if self.create is CreateProjects.NO:
            raise ProjectMissingError(
                f"{'projects' if len(names) > 1 else 'project'} {listed} "
                f"{'do' if len(names) > 1 else 'does'} not exist at Harbor, or may not be seen by this account",
                hint="Check TARGET: its path begins with the project, https://HOST/PROJECT. To make what is missing: "
                "--create-projects private (or public, so that nodes pull without credentials).",
            )
        for name in names:
            if not is_project_name(name):
                raise BadProjectError(f"{name!r} cannot be a Harbor project")
            needed = content_bytes(images, name)
            if self.quota_bytes is not None and needed > self.quota_bytes:
                raise QuotaExceededError(
                    f"{people_bytes(needed)} are to go into project {name!r}, whose quota would be "
                    f"{people_bytes(self.quota_bytes)}",
                    hint=f"Give --project-quota at least {needed} bytes, with room for what comes later.",
                )
        if self.dry_run:
            self.to_create += names
            self.notices.append(
                f"would create at Harbor, {self.create}: {listed} (whether this account may shows when it is tried)"
            )
            return
        for name in names:
            self.api.create_project(name, public=self.create is CreateProjects.PUBLIC, quota_bytes=self.quota_bytes)
            self.notices.append(f"created project {name!r} at Harbor, {self.create}")
            self._made.add(name)
            found = self.api.project(name)
            if found is not None:
                self._projects[name] = found
                self._compare_quota(found)
        # A token from before a project was made is refused in it.
        self.client.authorizer.forget_tokens()

    def _compare_quota(self, made: Project) -> None:
        """Say so if Harbor did not set the quota that was asked for: it heeds only administrators there."""
        quota = self.api.quota(made) if self.quota_bytes is not None else None
        if quota is not None and quota.hard != self.quota_bytes:
            has = "no quota" if quota.hard is None else f"a quota of {people_bytes(quota.hard)}"
            self.warnings.append(
                f"project {made.name!r} has {has}: Harbor sets the one of --project-quota only for its administrators"
            )

    def knows(self, repository: str) -> bool:
        """Tell whether the project of a repository was there before this run."""
        name = project_of(repository)
        return name in self._projects and name not in self._made

    def check_tags(self, images: Iterable[PushImage], existing: Existing) -> dict[PushImage, AirgapSyncError]:
        """Return the images whose tag stands for other content that may not be replaced."""
        refused: dict[PushImage, AirgapSyncError] = {}
        unknown: set[str] = set()
        for image in images:
            found = existing.tags.get((image.repository, image.tag))
            if found is None:
                continue
            artifact = self.api.artifact(image.repository, image.tag)
            if artifact is None:
                unknown.add(project_of(image.repository))
            elif artifact.tags.get(image.tag):
                refused[image] = ImmutableTagError(
                    f"{image.repository}:{image.tag} stands for {found} and is immutable; the bundle has "
                    f"{image.content.root.digest}"
                )
        self.notices += [
            f"whether tags of project {name!r} may be moved is not known: this account has no artifact: read"
            for name in sorted(unknown)
        ]
        return refused

    def check_room(self, plan: TransferPlan, existing: Existing) -> None:
        """Compare what is missing with the quota of each project.

        Raises:
            QuotaExceededError: It is certain not to fit.
        """
        for name, project in sorted(self._projects.items()):
            every, missing = sizes_in(plan, existing, name)
            self._missing[name] = missing
            if not missing:
                continue
            quota = self.api.quota(project)
            if quota is None:
                self.notices.append(
                    f"the quota of project {name!r} is not known: this account has no project: read and quota: read"
                )
            elif quota.hard is not None and quota.used + missing > quota.hard:
                self._little_room(project, quota, quota.hard, every, missing)

    def _little_room(self, project: Project, quota: Quota, hard: int, every: int, missing: int) -> None:
        """Raise if it is certain that the missing bytes do not fit, else warn.

        What the project holds in repositories that nobody asked for may be part of what is missing here, since a
        project stores each blob once. At most all that it holds can be.
        """
        left = max(0, hard - quota.used)
        text = (
            f"project {project.name!r} has {people_bytes(left)} left of its quota of {people_bytes(hard)}, and "
            f"{people_bytes(missing)} are missing there"
        )
        if every > hard or project.repositories == 0:
            raise QuotaExceededError(text, hint=_quota_hint(project.name, quota.used + missing))
        self.warnings.append(
            f"{text}: it fits only if {people_bytes(missing - left)} of that are in other repositories of the project"
        )

    # --- afterwards -----------------------------------------------------------------------------------------------

    def stop_if_full(self, repository: str) -> None:
        """Do not send what is bound to be refused.

        Raises:
            QuotaExceededError: The project was found to be full.
        """
        with self._lock:
            full = self._full.get(project_of(repository))
        if full is not None:
            raise full

    def explained(self, error: AirgapSyncError, repository: str, size: int) -> AirgapSyncError:
        """Return what a refusal means, found out from Harbor's state rather than from its words.

        Args:
            error: The refusal, or what broke the connection: Harbor refuses a blob without reading it.
            repository: Of what was refused.
            size: Its size in bytes.
        """
        name = project_of(repository)
        try:
            project = self._projects.get(name) or self.api.project(name)
            quota = self.api.quota(project) if project else None
            if quota and quota.hard is not None and quota.used + size > quota.hard:
                return self._found_full(error, name, quota, quota.used + size)
            if self.api.system().read_only:
                return ReadOnlyError(error.message, context=error.context)
            if project and project.is_proxy_cache:
                return ProxyCacheProjectError(error.message, context=error.context)
        except AirgapSyncError:
            return error
        if not isinstance(error, DeniedError):
            return error
        # Missing rights are a 401. What is left may be unknown to this account, or was reserved by other uploads; but
        # not where there is room for all of them.
        roomy = quota is not None and (quota.hard is None or quota.hard - quota.used >= self._missing.get(name, 0))
        if error.context.get("code") == "DENIED" and not roomy:
            return self._found_full(error, name, quota, None)
        if roomy and _QUOTA_WORDS in error.message:
            # Other uploads had reserved the room, and do so no longer: the next blob may fit.
            return QuotaExceededError(error.message, hint=_quota_hint(name, None), context=error.context)
        return DeniedError(error.message, hint=_grant_hint(name), context=error.context)

    def _found_full(
        self, error: AirgapSyncError, project: str, quota: Quota | None, needed: int | None
    ) -> QuotaExceededError:
        uses = f"uses {people_bytes(quota.used)} of {people_bytes(quota.hard or 0)}" if quota else "is full"
        full = QuotaExceededError(
            f"{error.message}; project {project!r} {uses}", hint=_quota_hint(project, needed), context=error.context
        )
        with self._lock:
            self._full[project] = full
        return full

    def _denied(self, project: str) -> AuthError:
        error = self.client.authorizer.refused(f"pushing to project {project!r}")
        return DeniedError(error.message, hint=_grant_hint(project)) if isinstance(error, DeniedError) else error


def check_names(images: Iterable[PushImage]) -> None:
    """Make sure that every name has a project in it.

    Raises:
        ProjectNeededError: One has none.
    """
    for image in images:
        if "/" not in image.repository:
            raise ProjectNeededError(
                f"{image.reference} would become {image.repository}:{image.tag}, which has no project for Harbor"
            )


def _quota_hint(project: str, needed: int | None) -> str:
    least = f" to at least {people_bytes(needed)} ({needed} bytes)" if needed is not None else ""
    return (
        f"Ask Harbor's administrator to raise the quota of project {project!r}{least}, or to run garbage collection: "
        "what was deleted counts until then."
    )


def _grant_hint(project: str) -> str:
    return (
        f"Grant repository: pull and repository: push on project {project!r} (a robot: Robot Accounts, Edit; a person: "
        f"role Developer). `airgap-sync harbor robot --project {project}` makes a robot with just these."
    )
