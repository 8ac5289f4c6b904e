"""RUNBOOK.md: the ordered steps for exactly this bundle and site, each with its check, and the way back."""

from __future__ import annotations

from bundler.k3s.endpoint import Endpoint
from bundler.site.routes import Mode, Route
from bundler.site.runfacts import Facts, Step, shell
from bundler.site.runhops import upgrade_steps, way_back
from bundler.site.runsteps import image_steps, preparation_steps

#: Stands for registries that the bundle has nothing of; nobody can have this name.
_OTHER = "other.invalid"


def runbook(facts: Facts) -> str:
    """Return RUNBOOK.md."""
    steps = [*preparation_steps(facts), *image_steps(facts), *upgrade_steps(facts)]
    parts = [
        "# Runbook: " + (_path(facts) if facts.hops else "images of this bundle"),
        f"<!-- {facts.made_by} -->",
        _introduction(facts),
        _where_nodes_look(facts),
        "## Before you begin",
        "Every node, servers and agents, needs three things for the steps below: the program `airgap-sync` in its PATH, the "
        "bundle (a disk or a share that is mounted will do), and a copy of this directory. Work as root. Set these in every "
        "shell that you work in, on each node:",
        shell(
            [
                "BUNDLE=/media/usb/k3s    # where the bundle is mounted",
                "CONFIG=$PWD              # this directory",
                f"RESULTS=/root/airgap-sync-results-{facts.bundle_name}",
            ]
        ),
    ]
    for number, step in enumerate(steps, 1):
        parts += _rendered(number, step)
    parts += way_back(facts)
    return "\n\n".join(parts) + "\n"


def _rendered(number: int, step: Step) -> list[str]:
    parts = [f"## {number}. {step.title}", step.text]
    if step.do:
        parts.append(shell(step.do))
    if step.check:
        parts += ["Check:", shell(step.check)]
    if step.expect:
        parts.append(step.expect)
    return [part for part in parts if part]


def _path(facts: Facts) -> str:
    way = ", then ".join(str(version) for version in facts.hops)
    return f"{facts.site.running} to {way}" if facts.site.running else f"to {way}"


def _introduction(facts: Facts) -> str:
    site = facts.site
    counts = {route: facts.counts.get(route, 0) for route in Route}
    target = f"`{site.target}`" if site.target else "no registry"
    match site.mode:
        case Mode.REGISTRY:
            return f"All {counts[Route.REGISTRY]} images go into {target}, and every node pulls them from there."
        case Mode.EMBEDDED:
            return (
                f"All {counts[Route.EMBEDDED]} images are put on a few nodes (the seeds) as an archive. All other nodes "
                "pull them from these, through K3s's embedded registry. There is no registry to run."
            )
        case Mode.HYBRID:
            return (
                f"{counts[Route.REGISTRY]} images go into {target}, {counts[Route.EMBEDDED]} are put on a few nodes "
                "(the seeds) as an archive, from where K3s's embedded registry shares them."
            )


def _where_nodes_look(facts: Facts) -> str:
    """Say for each registry what K3s asks, and what that costs; registries of one order are said together."""
    orders: dict[tuple[str, ...], list[str]] = {}
    costs: dict[str, str] = {}
    names = {registry: f"`{registry}`" for registry in facts.registries}
    if facts.site.wildcard:
        names[_OTHER] = "any other"
    for registry, name in names.items():
        places = []
        for endpoint in facts.hosts.endpoints_for(registry):
            place, cost = _place(endpoint, facts)
            places.append(place)
            costs.setdefault(place, cost)
        orders.setdefault(tuple(places), []).append(name)
    listed = "\n".join(
        f"- {', '.join(asked)}: {', then '.join(places) or 'nowhere'}" for places, asked in orders.items()
    )
    misses = "\n".join(f"- {place}: {cost}" for place, cost in costs.items())
    return (
        "Where an image was *put* does not decide where nodes *look*. K3s asks, by the registry in an image's name, in this "
        f"order:\n\n{listed}\n\nThe first that has the image is taken. Image names stay as they are everywhere. What a miss "
        f"costs:\n\n{misses}"
    )


def _place(endpoint: Endpoint, facts: Facts) -> tuple[str, str]:
    """Return what an endpoint is called, and what a miss there costs."""
    if endpoint.is_embedded:
        return "the other nodes", "a miss costs up to some seconds (5 s a try, three tries)"
    target = facts.site.target
    if target and (not endpoint.is_default or endpoint.host == target.host):
        return f"the endpoint `{endpoint.base_url.removesuffix('/v2')}`", "a miss costs one request"
    return (
        "the registry of that name itself",
        "in an air gap a miss costs, at worst, minutes, and the kubelet shows only this last error (the others are in "
        "`/var/lib/rancher/k3s/agent/containerd/containerd.log`)",
    )
