"""A site: where the images of a bundle are put, and under which names. What site.json holds.

One mapping serves every command: ``push`` and ``stage`` put images where their routes say, ``config`` tells the nodes,
``preflight`` checks. A route decides where content is put, not where nodes look: K3s asks the peers first (where the
embedded registry is on), then the endpoints, for each source registry as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Self

from bundler import __version__
from bundler.bundle.imageset import names_in_layout
from bundler.bundle.lock import BundleLock
from bundler.errors import (
    BadManifestError,
    BadSiteError,
    BundleFormatTooNewError,
    DefinitionError,
    NothingSelectedError,
)
from bundler.k3s.images import needed_by_k3s
from bundler.k3s.version import K3sVersion
from bundler.oci.manifest import parse_json
from bundler.oci.reference import Reference
from bundler.oci.target import Target
from bundler.schema.validation import first_problem

API_VERSION = "airgap-sync/v1"
KIND = "Site"
#: As the pattern of a route: every image that K3s or its upgrade needs. No name of an image reads so.
K3S_SET = "k3s"
NO_REGISTRY_HINT = "Nodes get them through agent/images and from each other; RUNBOOK.md of `config` has the steps."


class Mode(StrEnum):
    """How the nodes of a site come by their images."""

    REGISTRY = "registry"
    EMBEDDED = "embedded"
    HYBRID = "hybrid"


class Route(StrEnum):
    """Where an image is put."""

    REGISTRY = "registry"
    EMBEDDED = "embedded"


@dataclass(frozen=True, slots=True)
class RouteRule:
    """Where the images of a pattern are put.

    ``pattern`` is ``k3s`` for the K3s set, else a shell pattern over full names, whose ``*`` also matches ``/``.
    """

    pattern: str
    route: Route

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``PATTERN=registry`` or ``PATTERN=embedded``.

        Raises:
            ValueError: It has another form.
        """
        pattern, equals, route = text.rpartition("=")
        # What is not printable is in no name, and may be no text that a file can hold.
        if not equals or not pattern or not pattern.isprintable() or route not in list(Route):
            raise ValueError(f"{text[:80]!r} is not PATTERN=registry or PATTERN=embedded")
        return cls(pattern, Route(route))

    def matches(self, reference: Reference, *, in_k3s_set: bool) -> bool:
        """Tell whether a rule is for an image; tag and digest need not be in the pattern."""
        if self.pattern == K3S_SET:
            return in_k3s_set
        return fnmatchcase(reference.name, self.pattern) or fnmatchcase(str(reference), self.pattern)

    def __str__(self) -> str:
        return f"{self.pattern}={self.route}"


_DEFAULTS: dict[Mode, tuple[RouteRule, ...]] = {
    Mode.REGISTRY: (RouteRule("*", Route.REGISTRY),),
    Mode.EMBEDDED: (RouteRule("*", Route.EMBEDDED),),
    Mode.HYBRID: (RouteRule(K3S_SET, Route.REGISTRY), RouteRule("*", Route.EMBEDDED)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One site.

    Attributes:
        mode: How its nodes come by their images.
        target: Its registry; None where nothing is put into one.
        keep_registry: Source registries are part of the names at the target.
        rules: In hybrid mode, the user's; the first that matches decides, before those of the mode.
        wildcard: Nodes also look there for images of registries that the bundle has nothing of.
        default_endpoint: Nodes may ask a source registry itself at last.
        running: The K3s version that nodes run before the upgrade, if it is known.
    """

    mode: Mode = Mode.REGISTRY
    target: Target | None = None
    keep_registry: bool = False
    rules: tuple[RouteRule, ...] = ()
    wildcard: bool = False
    default_endpoint: bool = True
    running: K3sVersion | None = None

    @property
    def embedded(self) -> bool:
        """Whether nodes share images with each other."""
        return self.mode is not Mode.REGISTRY

    @property
    def needs_k3s_set(self) -> bool:
        """Whether a rule about the K3s set can decide anything."""
        patterns = [rule.pattern for rule in (*self.rules, *_DEFAULTS[self.mode])]
        return K3S_SET in patterns[: patterns.index("*")]

    def route_of(self, reference: Reference, *, in_k3s_set: bool) -> Route:
        """Return where an image is put."""
        rules = (*self.rules, *_DEFAULTS[self.mode])
        return next(rule.route for rule in rules if rule.matches(reference, in_k3s_set=in_k3s_set))

    def to_bytes(self) -> bytes:
        """Return the bytes of site.json; the same site always gives the same."""
        document = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "tool": {"name": "airgap-sync", "version": __version__},
            "mode": str(self.mode),
            "target": str(self.target) if self.target else None,
            "keep_registry": self.keep_registry,
            "routes": [{"pattern": rule.pattern, "route": str(rule.route)} for rule in self.rules],
            "wildcard": self.wildcard,
            "default_endpoint": self.default_endpoint,
            "running": str(self.running) if self.running else None,
        }
        return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def parse(cls, raw: bytes, where: str) -> Self:
        """Read a site.json.

        Raises:
            BadSiteError: It is not one.
            BundleFormatTooNewError: It is of another version.
        """
        try:
            document = parse_json(raw, where)
        except BadManifestError as error:
            raise BadSiteError(error.message) from error
        if isinstance(document, dict) and document.get("apiVersion", API_VERSION) != API_VERSION:
            raise BundleFormatTooNewError(f"{where} is of version {document['apiVersion']!r:.60}, not {API_VERSION}")
        if problem := first_problem("site", document):
            raise BadSiteError(f"{where} is not a site.json: {problem}")
        try:
            site = cls(
                mode=Mode(document["mode"]),
                target=Target.parse(document["target"]) if document["target"] else None,
                keep_registry=document["keep_registry"],
                rules=tuple(RouteRule(item["pattern"], Route(item["route"])) for item in document["routes"]),
                wildcard=document["wildcard"],
                default_endpoint=document["default_endpoint"],
                running=K3sVersion.parse(document["running"]) if document["running"] else None,
            )
        except DefinitionError as error:
            raise BadSiteError(f"{where} is not a site.json: {error.message}") from error
        if problem := site.contradiction():
            raise BadSiteError(f"{where} contradicts itself: {problem}")
        return site

    def contradiction(self) -> str | None:
        """Say what parts of it do not go together, if any."""
        if self.rules and self.mode is not Mode.HYBRID:
            return f"routes go with the mode hybrid, and the mode is {self.mode}"
        if self.mode is Mode.EMBEDDED and self.target:
            return "in the mode embedded nothing is put into a registry, and a target is given"
        if self.mode is Mode.EMBEDDED and self.keep_registry:
            return "keep-registry is about names at a target, and the mode embedded has none"
        if self.wildcard and self.keep_registry:
            return "a wildcard cannot put the name of a registry into the names at the target (keep-registry)"
        return None


class Router:
    """Tells where each image of one bundle is put.

    Args:
        site: The site.
        lock: The bundle's lock; None for a layout without one, whose K3s set is not known.

    Raises:
        NothingSelectedError: A route needs the K3s set, and there is no lock.
    """

    def __init__(self, site: Site, lock: BundleLock | None) -> None:
        self.site = site
        if lock is None and site.needs_k3s_set:
            raise NothingSelectedError(
                "there is no bundle.lock.json, so which images K3s needs is not known",
                hint="Give a --route '*=registry' or '*=embedded', or make the bundle with `airgap-sync bundle`.",
            )
        self._k3s = {
            str(name)
            for image in (lock.images if lock else ())
            if needed_by_k3s(image.reasons)
            for name in names_in_layout(image.reference)
        }

    def in_k3s_set(self, reference: Reference) -> bool:
        """Tell whether K3s or its upgrade needs an image."""
        return str(reference) in self._k3s

    def route(self, reference: Reference) -> Route:
        """Return where an image is put."""
        return self.site.route_of(reference, in_k3s_set=self.in_k3s_set(reference))

    def unmatched(self, references: Iterable[Reference]) -> list[RouteRule]:
        """Return the user's rules that decide nothing: mistyped, or behind one that takes all."""
        used: set[RouteRule] = set()
        for reference in references:
            known = self.in_k3s_set(reference)
            used |= {
                rule
                for rule in [next((r for r in self.site.rules if r.matches(reference, in_k3s_set=known)), None)]
                if rule
            }
        return [rule for rule in self.site.rules if rule not in used]
