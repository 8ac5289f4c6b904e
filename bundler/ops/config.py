"""``config``: the files that a site is configured with, from what is in a bundle. No network is used.

Invariants:

- The directory appears as a whole, or not at all; a former one is kept beside it.
- One run at a time writes it.
"""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundler.errors import BadOutputError, BadTargetError
from bundler.files import PRIVATE, disk_errors, exclusive_lock, make_directory, publish_directory, write_atomic
from bundler.oci.digest import Digest
from bundler.ops.loading import load_bundle
from bundler.site.config import ConfigRequest, MadeFiles, make_files
from bundler.site.nodefiles import NodeAccess
from bundler.site.plans import PlanSettings
from bundler.site.routes import Route, Site


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigOptions:
    """What is written where.

    Attributes:
        directory: The bundle.
        to: Where the files go.
        state: A directory of ours on this machine; it holds the lock of ``to``.
        force: Something may be there; it is kept beside.
        site: The site.
        access: How nodes reach its registry.
        plans: How upgrades go on.
        node_dir: K3s's configuration directory on nodes.
        ca: The CAs that nodes need, in PEM form.
        client_cert: The certificate that nodes show, in PEM form.
        client_key: Its key, if it is to be written.
        suc_manifest: Name and text of the controller's own manifest.
    """

    directory: Path
    to: Path
    state: Path
    force: bool
    site: Site
    access: NodeAccess
    plans: PlanSettings
    node_dir: str
    ca: bytes | None = None
    client_cert: bytes | None = None
    client_key: bytes | None = field(default=None, repr=False)
    suc_manifest: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class ConfigResult:
    """What was written.

    Attributes:
        to: The directory.
        kept: Where the former one is now, if there was one.
        made: The files, and what the user should know.
        modes: The mode of each; what is no secret has what the umask leaves of 0644.
        site: The site.
        counts: Images by route.
        warnings: All of them, those of the bundle included.
    """

    to: Path
    kept: Path | None
    made: MadeFiles
    modes: dict[str, int]
    site: Site
    counts: dict[Route, int]
    warnings: tuple[str, ...] = field(default=())

    def to_text(self) -> str:
        """Return what was written, for people."""
        lines = [
            f"{self.to / file.name}{'  (holds credentials: 0600)' if file.mode == PRIVATE else ''}"
            for file in self.made.files
        ]
        counts = ", ".join(f"{count} images {route}" for route, count in self.counts.items() if count)
        before = str(self.site.running) if self.site.running else "?"
        way = " -> ".join([before, *map(str, self.made.hops)]) if self.made.hops else "no upgrade"
        lines.append(f"mode {self.site.mode}: {counts}; {way}")
        if self.kept:
            lines.append(f"what was there before is in {self.kept}")
        lines.append(f"next: follow {self.to / 'RUNBOOK.md'}")
        return "".join(f"{line}\n" for line in lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as one JSON document."""
        return {
            "to": str(self.to),
            "kept": str(self.kept) if self.kept else None,
            "mode": str(self.site.mode),
            "images": {str(route): count for route, count in self.counts.items()},
            "hops": [str(hop) for hop in self.made.hops],
            "files": [
                {"path": file.name, "digest": str(Digest.of(file.data)), "mode": f"{self.modes[file.name]:04o}"}
                for file in self.made.files
            ],
            "warnings": list(self.warnings),
            "notices": list(self.made.notices),
        }


def write_config(options: ConfigOptions) -> ConfigResult:
    """Write everything.

    Raises:
        BadTargetError: Images are put into a registry, and none is named.
        BadOutputError: The directory is not empty, and is not to be replaced; or it cannot be written.
        LockedError: Another run is writing it.
        AirgapSyncError: From :func:`load_bundle` and :func:`make_files`; nothing was written.
    """
    to = check_place(options.to, options.directory, force=options.force)
    place = Digest.of(os.fsencode(to.resolve())).short
    with exclusive_lock(options.state / f"config-{place}.lock", str(to)):
        # Another run may have filled it since.
        check_place(to, options.directory, force=options.force)
        return _write_config(options, to)


def _write_config(options: ConfigOptions, to: Path) -> ConfigResult:
    bundle = load_bundle(options.directory, options.site)
    if options.site.target is None and (pushed := bundle.routed(Route.REGISTRY)):
        raise BadTargetError(
            f"{len(pushed)} images are put into a registry here ({pushed[0].reference} is one), and none is named",
            hint="Give --target TARGET, or route them elsewhere: --route k3s=embedded.",
        )
    made = make_files(
        ConfigRequest(
            site=options.site,
            images=[(image.reference, image.content) for image in bundle.images],
            lock=bundle.lock,
            lock_digest=bundle.lock_digest,
            router=bundle.router,
            access=options.access,
            plans=options.plans,
            node_dir=options.node_dir,
            ca=options.ca,
            client_cert=options.client_cert,
            client_key=options.client_key,
            suc_manifest=options.suc_manifest,
        )
    )
    if options.site.target:
        # Two images of one name must be found before anybody is told to push them.
        bundle.at(options.site.target)
    kept = _write(to, made)
    with disk_errors(str(to)):
        modes = {file.name: stat.S_IMODE((to / file.name).stat().st_mode) for file in made.files}
    counts = {route: len(bundle.routed(route)) for route in Route}
    warnings = (*bundle.lacks(), *bundle.idle_rules(), *made.warnings)
    return ConfigResult(to, kept, made, modes, options.site, counts, warnings)


def check_place(to: Path, bundle: Path, *, force: bool) -> Path:
    """Make sure that a directory may be written.

    Returns:
        The directory, by a path that ends in its name.

    Raises:
        BadOutputError: It may not; neither may what is the bundle itself, or in it, or has it in it. Nor may the
            directory that the user works in: it would be under another name afterwards.
    """
    with disk_errors(str(to)):
        ours, theirs = to.resolve(), bundle.resolve()
    if to.name in ("", ".."):
        to = ours
    if to.exists() and _holds_current(ours):
        raise BadOutputError(
            f"{to} is the current directory, or has it in it", hint="Name a directory below it: --to site."
        )
    if ours.is_relative_to(theirs) or (to.exists() and theirs.is_relative_to(ours)):
        raise BadOutputError(f"{to} and the bundle {bundle} are not apart", hint="Name a directory beside the bundle.")
    if to.is_symlink() or (to.exists() and not to.is_dir()):
        raise BadOutputError(f"{to} is not a directory", hint="Name a directory that is not there yet.")
    if not to.exists() or force:
        return to
    with disk_errors(str(to)):
        filled = any(to.iterdir())
    if filled:
        raise BadOutputError(
            f"{to} is not empty", hint="Name another directory, or use --force: what is there is then kept beside it."
        )
    return to


def _holds_current(path: Path) -> bool:
    try:
        return Path.cwd().is_relative_to(path)
    except FileNotFoundError:
        # It was removed; so it is nowhere.
        return False


def _write(to: Path, made: MadeFiles) -> Path | None:
    make_directory(to.parent)
    beside = to.with_name(f".{to.name}.new")
    with disk_errors(str(beside)):
        if beside.exists():
            # Of a run that was killed.
            shutil.rmtree(beside)
        beside.mkdir(mode=0o755)
    for file in made.files:
        path = beside / file.name
        make_directory(path.parent)
        write_atomic(path, file.data, mode=file.mode)
    return publish_directory(beside, to)
