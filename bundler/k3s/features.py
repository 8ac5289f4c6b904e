"""What K3s can do from which version on, where a site's configuration depends on it.

A feature that came to several minors at once (a backport) is known by its first patch in each of them: it is there in
that patch and later ones, and in every later minor. A minor older than all of these never got it.

Source: docs.k3s.io (registry-mirror, private-registry, import-images); k3s-io/k3s, issues named beside each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bundler.k3s.version import K3sVersion


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that came with a version.

    Attributes:
        name: What it is called in messages.
        since: The first patch of each minor that got it, as (minor, patch), oldest minor first.
    """

    name: str
    since: tuple[tuple[int, int], ...]

    def in_version(self, version: K3sVersion) -> bool:
        """Tell whether a version has it."""
        minors = dict(self.since)
        if version.minor_number in minors:
            return version.patch >= minors[version.minor_number]
        return version.minor_number > self.since[-1][0]

    def in_all(self, versions: Iterable[K3sVersion]) -> bool:
        """Tell whether every one of these versions has it."""
        return all(self.in_version(version) for version in versions)

    def first(self, version: K3sVersion) -> str:
        """Say from where on it is there, as near to a version as possible: ``v1.30.8``."""
        minor, patch = next((found for found in self.since if found[0] >= version.minor_number), self.since[-1])
        return f"v1.{minor}.{patch}"


#: One hosts.toml a registry, instead of all mirrors in containerd's config.toml.
HOSTS_TOML = Feature("hosts.toml", ((26, 13), (27, 10), (28, 6), (29, 1)))
NO_DEFAULT_ENDPOINT = Feature("disable-default-registry-endpoint", HOSTS_TOML.since)
EMBEDDED = Feature("the embedded registry", HOSTS_TOML.since)
#: Out of its experimental stage.
EMBEDDED_STABLE = Feature("the embedded registry, no longer experimental", ((29, 12), (30, 8), (31, 4)))
#: ``"*"`` under ``mirrors`` enrols every registry in the embedded one.
WILDCARD = Feature('"*" in the embedded registry', ((26, 15), (27, 12), (28, 8), (29, 3)))
#: One endpoint listed twice no longer breaks the whole file (k3s-io/k3s#9693).
DUPLICATES_DROPPED = Feature("endpoints listed twice are dropped", ((26, 15), (27, 12), (28, 8), (29, 3)))
#: Files put into agent/images are read at once, not only when K3s starts.
IMAGES_WATCHED = Feature("watching agent/images", ((29, 13), (30, 9), (31, 5), (32, 0)))
#: Servers carry the label node-role.kubernetes.io/control-plane, by which Plans tell them from agents.
CONTROL_PLANE_LABEL = Feature("the label control-plane on servers", ((20, 0),))

#: What imports put on a node is not shared with other nodes: k3s-io/k3s#13222.
_IMPORTS_NOT_SHARED = frozenset({(34, 2), (33, 6), (32, 10)})
#: With ``"*"`` alone, nothing is tried after the listed endpoints: k3s-io/k3s#11857.
_WILDCARD_WITHOUT_DEFAULT = frozenset({(31, 6), (32, 2)})
#: An endpoint without a scheme is not understood: k3s-io/k3s#9333.
_BARE_ENDPOINTS_BROKEN = frozenset({(26, 13), (27, 10), (28, 6)})
#: A listed default endpoint breaks the others of its mirror: k3s-io/k3s#9626.
_LISTED_DEFAULT_BROKEN = frozenset({(28, 7)})


def shares_imports(version: K3sVersion) -> bool:
    """Tell whether images that were imported from agent/images are served to other nodes."""
    return (version.minor_number, version.patch) not in _IMPORTS_NOT_SHARED


def wildcard_falls_back(version: K3sVersion) -> bool:
    """Tell whether ``"*"`` leaves a registry's own endpoint as the last resort."""
    place = (version.minor_number, version.patch)
    # When wildcards came to hosts.toml, they had none (k3s-io/k3s#9728), which v1.30.0 still showed (#10351).
    early = HOSTS_TOML.in_version(version) and not WILDCARD.in_version(version)
    return place not in _WILDCARD_WITHOUT_DEFAULT and place != (30, 0) and not early


def takes_bare_endpoints(version: K3sVersion) -> bool:
    """Tell whether an endpoint may be written without a scheme."""
    return (version.minor_number, version.patch) not in _BARE_ENDPOINTS_BROKEN or version.build > 1


def takes_listed_default(version: K3sVersion) -> bool:
    """Tell whether a registry's own endpoint may be listed among its mirrors."""
    return (version.minor_number, version.patch) not in _LISTED_DEFAULT_BROKEN
