"""Options about the site that several commands share, and how they and site.json become one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bundler.cli.options import NamedPath

if TYPE_CHECKING:
    from bundler.oci.target import Target
    from bundler.site.routes import Site

Command = TypeVar("Command", bound=Callable[..., Any])
_MAX_SITE_BYTES = 1024 * 1024

_SITE = click.option(
    "--site", "site_file", type=NamedPath(exists=True, dir_okay=False), metavar="FILE",
    help="The site.json that `config` wrote: mode, target, names and routes in one.",
)  # fmt: skip
_MAPPING = (
    click.option(
        "--mode", type=click.Choice(["registry", "embedded", "hybrid"]),
        help="How nodes come by images: from the registry (default), from each other (K3s's embedded registry), or "
        "the K3s set from the registry and the rest from each other.",
    ),
    click.option(
        "--route", "routes", multiple=True, metavar="PATTERN=registry|embedded",
        help="With --mode hybrid: where the images of a pattern are put. PATTERN is `k3s` for the K3s set, or a shell "
        "pattern over full names such as 'docker.io/grafana/*'. Repeatable; the first match decides.",
    ),
    click.option(
        "--keep-registry", is_flag=True, default=None,
        help="Put the source registry into the name: TARGET/docker.io/rancher/... instead of TARGET/rancher/...",
    ),
)  # fmt: skip

target_option = click.option(
    "--target", metavar="TARGET",
    help="The site's registry: [http://|https://]host[:port][/prefix]. Needed where images are put into one.",
)  # fmt: skip


def mapping(command: Command) -> Command:
    """Add the options that make a mapping."""
    for option in reversed(_MAPPING):
        command = option(command)
    return command


def options(command: Command) -> Command:
    """Add them, and --site, which stands for all of them."""
    return _SITE(mapping(command))


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteOptions:
    """The values of these options; None where one was not given."""

    site_file: str | None = None
    target: str | None = None
    mode: str | None = None
    routes: tuple[str, ...] = ()
    keep_registry: bool | None = None

    def site(self) -> Site:
        """Return the site that file and flags describe together.

        Raises:
            click.UsageError: They contradict each other.
            DefinitionError: The file or the target cannot be understood.
        """
        from bundler.oci.target import Target  # noqa: PLC0415 - keeps --help fast
        from bundler.site.routes import Mode, RouteRule, Site  # noqa: PLC0415

        try:
            rules = tuple(RouteRule.parse(text) for text in self.routes)
        except ValueError as error:
            raise click.UsageError(f"--route: {error}") from None
        target = Target.parse(self.target) if self.target is not None else None
        if self.site_file is None:
            site = Site(
                mode=Mode(self.mode or Mode.REGISTRY),
                target=target,
                keep_registry=bool(self.keep_registry),
                rules=rules,
            )
        else:
            site = self._from_file(target)
            if rules and rules != site.rules:
                raise self._contradiction("--route", "other routes" if site.rules else "no routes")
        if problem := site.contradiction():
            raise click.UsageError(problem)
        return site

    def _from_file(self, target: Target | None) -> Site:
        from bundler.site.routes import Site  # noqa: PLC0415 - keeps --help fast

        site = Site.parse(read_site(self.site_file or ""), self.site_file or "")
        if self.mode and self.mode != site.mode:
            raise self._contradiction("--mode", f"mode {site.mode}")
        if self.keep_registry and not site.keep_registry:
            raise self._contradiction("--keep-registry", "names without the source registry")
        if target is not None and site.target is None:
            site = replace(site, target=target)
        elif target is not None and target != site.target:
            raise self._contradiction(f"the target {target}", f"target {site.target}")
        return site

    def _contradiction(self, flag: str, has: str) -> click.UsageError:
        return click.UsageError(f"{flag} contradicts --site {self.site_file}, which has {has}. Leave one of them out.")


def read_site(name: str) -> bytes:
    """Return the bytes of a site.json.

    Raises:
        BadSiteError: It cannot be read.
    """
    from bundler.errors import BadSiteError  # noqa: PLC0415 - keeps --help fast

    try:
        with Path(name).open("rb") as file:
            raw = file.read(_MAX_SITE_BYTES + 1)
    except OSError as error:
        raise BadSiteError(f"{name} cannot be read: {error.strerror}") from error
    if len(raw) > _MAX_SITE_BYTES:
        raise BadSiteError(f"{name} is larger than {_MAX_SITE_BYTES} bytes")
    return raw


def needs_target(site: Site) -> Target:
    """Return the site's target.

    Raises:
        click.UsageError: There is none.
        NothingSelectedError: It needs none, as nothing is put into a registry there.
    """
    from bundler.errors import NothingSelectedError  # noqa: PLC0415 - keeps --help fast
    from bundler.site.routes import NO_REGISTRY_HINT, Mode  # noqa: PLC0415

    if site.mode is Mode.EMBEDDED:
        raise NothingSelectedError(
            "no image is put into a registry at this site: its mode is embedded", hint=NO_REGISTRY_HINT
        )
    if site.target is None:
        raise click.UsageError("images are put into the registry here, so a target is needed: TARGET, or --target")
    return site.target
