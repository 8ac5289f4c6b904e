"""``images``: from K3s versions and lists to the sorted, unique set of references with their reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TextIO

from bundler.bundle.imageset import WantedImage, merge
from bundler.bundle.lock import LockedRelease, Request
from bundler.errors import NothingSelectedError
from bundler.k3s import suc as controllers
from bundler.k3s.images import expand, parse_disabled
from bundler.k3s.releases import parse_version
from bundler.net import Http
from bundler.sources.lists import from_arguments, from_file
from bundler.sources.releases import ReleaseLocation


@dataclass(frozen=True, slots=True)
class Selectors:
    """What the user asked for, as on the command line.

    Attributes:
        k3s: K3s versions.
        images: References.
        lists: Files of references; ``-`` is standard input.
        disable: Components of K3s to leave out.
        suc_version: The system-upgrade-controller; None for the newest known.
        no_suc: Leave it out.
        release_url: URL, directory or ``shipped``.
    """

    k3s: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()
    suc_version: str | None = None
    no_suc: bool = False
    release_url: str = "shipped"


@dataclass(frozen=True, slots=True)
class SelectedImages:
    """The image set of a request."""

    images: tuple[WantedImage, ...]
    releases: tuple[LockedRelease, ...]
    request: Request
    warnings: tuple[str, ...]
    notices: tuple[str, ...]

    def to_text(self) -> str:
        """Return one normalised reference a line."""
        return "".join(f"{image.reference}\n" for image in self.images)

    def to_dict(self) -> dict[str, Any]:
        """Return the set as one JSON document."""
        return {
            "images": [
                {
                    "reference": str(image.reference),
                    "reasons": list(image.reasons),
                    "source": ", ".join(image.sources),
                }
                for image in self.images
            ],
            "releases": [release.to_dict() for release in self.releases],
            "warnings": list(self.warnings),
            "notices": list(self.notices),
        }


def select_images(
    selectors: Selectors, stdin: TextIO, platforms: tuple[str, ...] = (), http: Http | None = None
) -> SelectedImages:
    """Expand what was asked for.

    Args:
        selectors: What the user asked for.
        stdin: Read for the list ``-``.
        platforms: Only recorded in the request.
        http: What the release location is asked with.

    Raises:
        DefinitionError: Something that was asked for is malformed or unknown; nothing was asked of a network yet.
        RegistryUnavailableError: A release's list is not to be had.
    """
    if not (selectors.k3s or selectors.images or selectors.lists):
        raise NothingSelectedError("no images are selected")
    versions = sorted({parse_version(text) for text in selectors.k3s})
    disabled = parse_disabled(selectors.disable)
    controller = None
    if versions and not selectors.no_suc:
        controller = controllers.find(selectors.suc_version) if selectors.suc_version else controllers.newest()
    by_hand = from_arguments(selectors.images)
    for name in selectors.lists:
        by_hand += from_file(name, stdin)
    location = ReleaseLocation(selectors.release_url, http)
    wanted = list(by_hand)
    releases: list[LockedRelease] = []
    warnings: list[str] = []
    notices: list[str] = []
    for version in versions:
        release = location.release(version)
        expansion = expand(version, release.images, disabled, controller)
        source = f"{version} ({release.source} list)"
        wanted += [WantedImage(reference, (reason,), (source,)) for reference, reason in expansion.images]
        releases.append(release.locked())
        warnings += [*release.warnings, *expansion.warnings]
        notices += release.notices
    images = merge(wanted)
    if not images:
        raise NothingSelectedError("the lists given name no image")
    request = Request(
        k3s=tuple(str(version) for version in versions),
        disable=tuple(sorted(disabled)),
        system_upgrade_controller=controller.version if controller else None,
        images=tuple(sorted({str(image.reference) for image in by_hand})),
        platforms=platforms,
    )
    return SelectedImages(images, tuple(releases), request, tuple(warnings), tuple(notices))
