"""The Plans of one upgrade: what system-upgrade-controller does to the servers, and then to the agents.

Invariants:

- Both Plans of a pair carry the same version: the agents' ``prepare`` waits until every server reports that one.
- The image has no tag. The controller completes it, in ``prepare`` too, from ``version`` with ``+`` written as ``-``.

Source: docs.k3s.io, automated upgrades; rancher/system-upgrade-controller, ``pkg/apis/upgrade.cattle.io/v1/types.go``;
k3s-io/k3s-upgrade, ``scripts/upgrade.sh``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from bundler.errors import FeatureMissingError
from bundler.oci.reference import DOCKER_HUB
from bundler.site.controller import NAMESPACE, SERVICE_ACCOUNT, KubernetesObject

if TYPE_CHECKING:
    from bundler.k3s.suc import SucRelease
    from bundler.k3s.version import K3sVersion

SERVER_PLAN = "server-plan"
AGENT_PLAN = "agent-plan"
UPGRADE_IMAGE = f"{DOCKER_HUB}/rancher/k3s-upgrade"
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_DEADLINE_SINCE = (0, 12, 0)
_WINDOW_SINCE = (0, 15, 0)
_TIME = r"((?:[01][0-9]|2[0-3]):[0-5][0-9])"
_WINDOW = re.compile(rf"(\S+) +{_TIME}-{_TIME}(?: +(\S+))?")
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9][A-Za-z0-9_+-]*)*")
_WINDOW_HINT = "write DAYS HH:MM-HH:MM [ZONE], for example `mon-fri 22:00-04:00 Europe/Berlin`"


@dataclass(frozen=True, slots=True)
class Window:
    """When jobs may be started; one that has started goes on after it.

    A window over midnight (``end`` before ``start``) is open before ``end`` and after ``start`` of each of its days,
    so ``fri 22:00-04:00`` is early Friday and late Friday, not early Saturday.

    Attributes:
        days: Some of ``mon`` to ``sun``, in this order.
        start: ``HH:MM``.
        end: ``HH:MM``, that minute's first second included.
        time_zone: A name of the IANA database.

    Source: kubereboot/kured, ``pkg/timewindow`` (issue 204, pull request 206), which the controller uses.
    """

    days: tuple[str, ...]
    start: str
    end: str
    time_zone: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``mon-fri 22:00-04:00 Europe/Berlin``.

        Days are a range, a list (``mon,wed,fri``, ranges in it too) or ``daily``; the zone is UTC if none is given.
        Whether a zone exists is not looked up: the tables of this machine are not those of the controller.

        Raises:
            ValueError: The text has another form; the message says what to write.
        """
        match = _WINDOW.fullmatch(text.strip())
        if not match:
            raise ValueError(f"{text!r} is no time window: {_WINDOW_HINT}")
        days, start, end, zone = match.groups()
        if start == end:
            raise ValueError(f"{text!r} is no time window: it ends as it starts; a whole day is 00:00-23:59")
        # "Local" would be the time of the controller's container.
        if zone is not None and (not _ZONE.fullmatch(zone) or zone.lower() == "local"):
            raise ValueError(f"{zone!r} is no time zone: write a name such as UTC or Europe/Berlin")
        return cls(_days(days.lower()), start, end, zone or "UTC")

    def to_dict(self) -> KubernetesObject:
        """Return the window as a Plan has it."""
        return {"days": list(self.days), "startTime": self.start, "endTime": self.end, "timeZone": self.time_zone}


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """What of a pair of Plans is up to the user.

    Attributes:
        concurrency: How many agents are upgraded at once, at least 1. Servers always go one by one.
        deadline_s: Seconds after which a job has failed, 0 for never. An agent's waits for all servers first.
        window: When jobs may be started; None for at any time.

    Raises:
        ValueError: A number is out of its range.
    """

    concurrency: int = 1
    deadline_s: int = 900
    window: Window | None = None

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError("at least one node at once")
        if self.deadline_s < 0:
            raise ValueError("a deadline cannot be negative")


def plan_objects(version: K3sVersion, settings: PlanSettings, suc: SucRelease | None) -> list[KubernetesObject]:
    """Return the Plans that bring every node to a version, the servers' first.

    Their names are the same for every version, so applying the next pair replaces the one before. Before v0.12.0
    a Plan cannot have a deadline of its own: the controller's ConfigMap has it then.

    Args:
        version: What to upgrade to.
        settings: What is up to the user.
        suc: The controller's release; None if not known, which counts as a new one.

    Raises:
        FeatureMissingError: A window is wanted, and the controller's release is older than v0.15.0.

    Source: docs.k3s.io, automated upgrades.
    """
    if settings.window and suc is not None and not _has(suc, _WINDOW_SINCE):
        raise FeatureMissingError(
            f"system-upgrade-controller {suc.version} knows no time window for Plans; v0.15.0 is the first that does",
            hint="Leave out the window, or take a newer controller into the bundle.",
        )
    servers = _plan(SERVER_PLAN, version, settings, suc, concurrency=1)
    agents = _plan(AGENT_PLAN, version, settings, suc, concurrency=settings.concurrency)
    agents["spec"]["prepare"] = {"image": UPGRADE_IMAGE, "args": ["prepare", SERVER_PLAN]}
    return [servers, agents]


def _plan(
    name: str, version: K3sVersion, settings: PlanSettings, suc: SucRelease | None, *, concurrency: int
) -> KubernetesObject:
    role = "node-role.kubernetes.io/control-plane"
    chosen: KubernetesObject = {"key": role, "operator": "DoesNotExist"}
    if name == SERVER_PLAN:
        chosen = {"key": role, "operator": "In", "values": ["true"]}
    spec: KubernetesObject = {
        "concurrency": concurrency,
        "cordon": True,
        "version": str(version),
        "nodeSelector": {"matchExpressions": [chosen]},
        "serviceAccountName": SERVICE_ACCOUNT,
        # A node that keeps pods away by a taint is to be upgraded like any other: left behind, it would soon be
        # older than its servers may be.
        "tolerations": [{"operator": "Exists"}],
        "upgrade": {"image": UPGRADE_IMAGE},
    }
    if _has(suc, _DEADLINE_SINCE):
        spec["jobActiveDeadlineSecs"] = settings.deadline_s
    if settings.window:
        spec["window"] = settings.window.to_dict()
    return {
        "apiVersion": "upgrade.cattle.io/v1",
        "kind": "Plan",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec,
    }


def _has(suc: SucRelease | None, since: tuple[int, ...]) -> bool:
    return suc is None or suc.order >= since


def _days(text: str) -> tuple[str, ...]:
    """Return the days of ``mon-fri``, ``mon,wed,sat-sun`` or ``daily``, in the order of a week."""
    if text == "daily":
        return DAYS
    chosen = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        for day in (first, last) if dash else (first,):
            if day not in DAYS:
                raise ValueError(f"{day!r} is no day: write {', '.join(DAYS)} or daily")
        start, end = DAYS.index(first), DAYS.index(last or first)
        # fri-mon goes over the end of the week.
        chosen |= {DAYS[at % len(DAYS)] for at in range(start, end + 1 if end >= start else end + len(DAYS) + 1)}
    return tuple(day for day in DAYS if day in chosen)
