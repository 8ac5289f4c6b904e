"""Which images a K3s release needs: its list, less what is turned off, plus the upgrade images.

Pure: takes a parsed list, gives references with a reason each.

Source: k3s-io/k3s, ``manifests/``, ``pkg/cloudprovider/servicelb.go``, ``pkg/cli/cmds/agent.go`` (pause) and
the ``--disable`` flag. The repositories were renamed to ``rancher/mirrored-*`` in v1.22.2 and v1.21.9.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from bundler.errors import BadComponentError
from bundler.k3s.suggest import closest, did_you_mean, short
from bundler.oci.reference import DOCKER_HUB, Reference

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bundler.k3s.suc import SucRelease
    from bundler.k3s.version import K3sVersion

# A component's images by the last part of the repository: the same under docker.io/rancher, in the oldest
# lists (docker.io/coredns/coredns, docker.io/library/traefik) and in lists that name another registry.
COMPONENTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "coredns": frozenset({"coredns", "coredns-coredns", "mirrored-coredns-coredns"}),
        "helm-controller": frozenset({"klipper-helm"}),
        # busybox is the helper that makes and removes a volume's directory.
        "local-storage": frozenset(
            {"local-path-provisioner", "busybox", "library-busybox", "mirrored-library-busybox"},
        ),
        "metrics-server": frozenset({"metrics-server", "mirrored-metrics-server"}),
        "servicelb": frozenset({"klipper-lb"}),
        "traefik": frozenset({"traefik", "library-traefik", "mirrored-library-traefik"}),
    },
)

# How the reasons begin that K3s itself has for an image.
_LIST, _BINARY, _CONTROLLER = "k3s-images.txt of", "binary of", "system-upgrade-controller"
_KUBECTL = f"kubectl that {_CONTROLLER}"

# Needed by every pod, so no component of that name exists.
_PAUSE = frozenset({"pause", "mirrored-pause"})


@dataclass(frozen=True, slots=True)
class Expansion:
    """The images of a release, each with the reason it is there, and what the user should know."""

    images: tuple[tuple[Reference, str], ...]
    warnings: tuple[str, ...]


def parse_disabled(values: Iterable[str]) -> frozenset[str]:
    """Parse the names given to ``--disable``, comma separated and repeated as K3s takes them.

    Raises:
        BadComponentError: A name is not a component that can be left out; the hint names those that can.
    """
    names = {name.strip() for value in values for name in value.split(",")} - {""}
    for name in sorted(names):
        if name not in COMPONENTS:
            raise _bad_component(name)
    return frozenset(names)


def component_of(reference: Reference) -> str | None:
    """Return the component that an image of a K3s list belongs to; None for pause and for unknown images."""
    last = reference.repository.rpartition("/")[2]
    return next((name for name, repositories in COMPONENTS.items() if last in repositories), None)


def expand(
    version: K3sVersion,
    lines: Sequence[Reference],
    disabled: frozenset[str],
    suc: SucRelease | None,
) -> Expansion:
    """Return what a release needs: list images in their order, then the images of an automated upgrade.

    Args:
        version: The release.
        lines: Its image list.
        disabled: Components that the site turns off, from ``parse_disabled``.
        suc: The system-upgrade-controller release that comes along, if any.

    A list image of no known component is kept: one too many does no harm, one too few breaks a site.
    """
    images: dict[Reference, str] = {}
    present = set()
    for reference in lines:
        component = component_of(reference)
        present.add(component)
        if component in disabled:
            continue
        label = component or ("pause" if is_pause(reference) else None)
        images.setdefault(reference, f"{_LIST} {version}{f' ({label})' if label else ''}")
    # Also without a controller in the set: a site that runs one already still needs the new binary's image.
    images.setdefault(upgrade_image(version), f"{_BINARY} {version} for system-upgrade-controller")
    if suc is not None:
        images.setdefault(suc.image, f"{_CONTROLLER} {suc.version}")
        kubectl = f"{_KUBECTL} {suc.version} runs to cordon and drain"
        images.setdefault(suc.kubectl_image, kubectl)
    return Expansion(tuple(images.items()), tuple(_warnings(version, present, disabled)))


def needed_by_k3s(reasons: Iterable[str]) -> bool:
    """Tell from an image's reasons whether K3s or its upgrade needs it: whether it belongs to the K3s set."""
    return any(reason.startswith((f"{_LIST} ", f"{_BINARY} ", f"{_CONTROLLER} ", f"{_KUBECTL} ")) for reason in reasons)


def upgrade_image(version: K3sVersion) -> Reference:
    """Return the image that carries the binary of a release to the nodes."""
    return Reference(DOCKER_HUB, "rancher/k3s-upgrade", version.image_tag)


def is_pause(reference: Reference) -> bool:
    """Tell whether an image is the one that every pod needs."""
    return reference.repository.rpartition("/")[2] in _PAUSE


def _warnings(version: K3sVersion, present: set[str | None], disabled: frozenset[str]) -> list[str]:
    warnings = [
        f"{name} is left out, but the image list of {version} has no image of it" for name in sorted(disabled - present)
    ]
    if "helm-controller" in disabled and "traefik" in present - disabled:
        warnings.append(
            "helm-controller is left out but traefik is kept: K3s installs traefik by a HelmChart, whose job "
            "needs the klipper-helm image. Leave out traefik too, or keep helm-controller.",
        )
    return warnings


def _bad_component(name: str) -> BadComponentError:
    valid = f"Valid names: {', '.join(sorted(COMPONENTS))}."
    if name.lower() in _PAUSE:
        return BadComponentError("pause cannot be left out: every pod needs it", hint=valid)
    # The name of an image is as near as the name of its component.
    owner = next((component for component, images in COMPONENTS.items() if name.lower() in images), None)
    meant = did_you_mean([owner]) if owner else closest(name, COMPONENTS)
    return BadComponentError(
        f"{short(name)} is not a component of K3s that can be left out",
        hint=f"{meant} {valid}".strip(),
    )
