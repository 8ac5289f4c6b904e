"""``airgap-sync config``."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bundler.cli import access, options
from bundler.cli import site as sites

if TYPE_CHECKING:
    from bundler.oci.target import Target
    from bundler.site.nodefiles import NodeAccess
    from bundler.site.plans import PlanSettings
    from bundler.site.routes import Site

_MAX_FILE_BYTES = 1024 * 1024
# It stands in commands of RUNBOOK.md, unquoted.
_NODE_PATH = re.compile(r"(?:/[A-Za-z0-9._+@=,:-]+)+/?")


@click.command(
    "config",
    epilog="Example: airgap-sync config /media/usb/k3s --target https://harbor.example/k3s --mode registry "
    "--from v1.31.7+k3s1 --ca-file ca.pem --to site",
)
@click.argument("bundle", type=options.NamedPath())
@click.option(
    "--to", required=True, type=options.NamedPath(file_okay=False), metavar="DIR",
    help="Directory for the files; it must be new or empty.",
)  # fmt: skip
@click.option(
    "--force", is_flag=True, help="Write DIR although it is not empty; what was there is kept beside it as DIR.old-N."
)
@sites.target_option
@sites.mapping
@click.option(
    "--from", "running", metavar="VERSION",
    help="The K3s version that nodes run now; the oldest, if they differ. With it, what it cannot do is refused.",
)  # fmt: skip
@click.option(
    "--wildcard", is_flag=True, help="Nodes also look there for images of registries that the bundle has nothing of."
)
@click.option(
    "--no-default-endpoint", is_flag=True,
    help="Nodes never ask a source registry itself: errors come at once, and name the right place.",
)  # fmt: skip
@click.option("--with-credentials", is_flag=True, help="Write the credentials into registries.yaml (mode 0600).")
@access.identity
@click.option(
    "--node-dir", default="/etc/rancher/k3s", show_default=True, metavar="DIR",
    help="Where K3s's configuration, and the CA of --ca-file, lie on nodes.",
)  # fmt: skip
@click.option(
    "--suc-manifest", type=options.NamedPath(exists=True, dir_okay=False), metavar="FILE",
    help="system-upgrade-controller.yaml of the release in the bundle: only images, pull policy and deadline are set "
    "in it. Default: objects of our own.",
)  # fmt: skip
@click.option(
    "--concurrency", type=click.IntRange(1, 1000), default=1, show_default=True,
    help="Agents that are upgraded at once; servers go one by one.",
)  # fmt: skip
@click.option(
    "--deadline", "deadline_s", type=click.IntRange(60, 7 * 86400), default=7200, show_default=True, metavar="SECONDS",
    help="How long an upgrade job may take. Those of agents also wait for all servers.",
)  # fmt: skip
@click.option(
    "--window", metavar="'DAYS START-END [ZONE]'",
    help="When upgrades may begin, for example 'mon-fri 22:00-04:00 Europe/Berlin'.",
)  # fmt: skip
@options.output
def command(
    bundle: str,
    to: str,
    force: bool,
    target: str | None,
    mode: str | None,
    routes: tuple[str, ...],
    keep_registry: bool | None,
    running: str | None,
    wildcard: bool,
    no_default_endpoint: bool,
    with_credentials: bool,
    node_dir: str,
    suc_manifest: str | None,
    concurrency: int,
    deadline_s: int,
    window: str | None,
    output: str,
    **given: Any,
) -> None:
    """Write what a site needs besides the images.

    That is registries.yaml and K3s's configuration for nodes, the objects of system-upgrade-controller, a pair of
    Plans for each upgrade on the way, a list for pulling beforehand, RUNBOOK.md with every step and its check, and
    site.json, which gives the same mapping to `push` and `preflight`. No network is used, and the same bundle and
    options always give the same bytes.
    """
    from bundler import logs  # noqa: PLC0415 - keeps --help fast
    from bundler.cli.session import emit, quiet  # noqa: PLC0415
    from bundler.k3s.version import K3sVersion  # noqa: PLC0415
    from bundler.ops.config import ConfigOptions, write_config  # noqa: PLC0415
    from bundler.site.routes import Mode  # noqa: PLC0415

    logs.send_to(quiet().write)
    chosen = sites.SiteOptions(target=target, mode=mode, routes=routes, keep_registry=keep_registry)
    place = replace(
        chosen.site(),
        wildcard=wildcard,
        default_endpoint=not no_default_endpoint,
        running=K3sVersion.parse(running) if running else None,
    )
    if problem := place.contradiction():
        raise click.UsageError(problem)
    if place.mode is Mode.REGISTRY:
        sites.needs_target(place)
    if not _NODE_PATH.fullmatch(node_dir):
        raise click.UsageError("--node-dir is an absolute path on nodes, of letters, digits and . _ - + @ = , :")
    node_dir = node_dir.rstrip("/")
    identity = access.TargetAccess(**given)
    result = write_config(
        ConfigOptions(
            directory=Path(bundle),
            to=Path(to),
            force=force,
            site=place,
            access=_node_access(identity, place, node_dir, with_credentials=with_credentials),
            plans=_plan_settings(concurrency, deadline_s, window),
            node_dir=node_dir,
            ca=_ca(identity.ca_files),
            suc_manifest=(suc_manifest, _text(suc_manifest)) if suc_manifest else None,
        )
    )
    logs.show(result.warnings, result.made.notices)
    emit(output, result.to_text(), result.to_dict())


def _node_access(identity: access.TargetAccess, site: Site, node_dir: str, *, with_credentials: bool) -> NodeAccess:
    from bundler.site.nodefiles import NodeAccess  # noqa: PLC0415 - keeps --help fast

    if site.target is None:
        if with_credentials or identity.ca_files or identity.client_cert:
            raise click.UsageError("credentials and certificates are for a registry, and this mode has none")
        return NodeAccess()
    credential = _credential(identity, site.target) if with_credentials else None
    if not with_credentials and identity.username:
        raise click.UsageError("--username is only used with --with-credentials, which writes the password into a file")
    return NodeAccess(
        ca_file=f"{node_dir}/ca.pem" if identity.ca_files else None,
        cert_file=f"{node_dir}/client.pem" if identity.client_cert else None,
        key_file=f"{node_dir}/client.key" if identity.client_cert else None,
        skip_verify=identity.insecure_skip_tls_verify,
        credential=credential,
    )


def _credential(identity: access.TargetAccess, target: Target) -> Any:
    from bundler.errors import NoCredentialsError  # noqa: PLC0415 - keeps --help fast
    from bundler.sources.registries import read_registries  # noqa: PLC0415

    found = identity.credential(target.host, target.prefix, read_registries(identity.registries_file))
    if found is None:
        raise NoCredentialsError(
            f"no credentials for {target.host} were found to write",
            hint="Give --username NAME with --password-file FILE, those of an account that may only pull.",
        )
    return found


def _plan_settings(concurrency: int, deadline_s: int, window: str | None) -> PlanSettings:
    from bundler.site.plans import PlanSettings, Window  # noqa: PLC0415 - keeps --help fast

    try:
        return PlanSettings(concurrency, deadline_s, Window.parse(window) if window else None)
    except ValueError as error:
        raise click.UsageError(f"--window: {error}") from None


def _ca(names: tuple[str, ...]) -> bytes | None:
    """Return the CAs of all files as one."""
    if not names:
        return None
    from bundler.net.tls import Tls, context_for  # noqa: PLC0415 - keeps --help fast

    # A file that is no certificate is found here, not on a node.
    context_for(Tls(names))
    return "".join(_text(name).rstrip("\n") + "\n" for name in names).encode()


def _text(name: str) -> str:
    from bundler.errors import DefinitionError  # noqa: PLC0415 - keeps --help fast

    try:
        with Path(name).open("rb") as file:
            return file.read(_MAX_FILE_BYTES).decode()
    except OSError as error:
        raise DefinitionError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DefinitionError(f"{name} is not text in UTF-8") from error
