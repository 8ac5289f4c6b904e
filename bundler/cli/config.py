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
    from bundler.errors import DefinitionError
    from bundler.oci.target import Target
    from bundler.site.nodefiles import NodeAccess
    from bundler.site.plans import PlanSettings
    from bundler.site.routes import Site

_MAX_FILE_BYTES = 1024 * 1024
#: A part of a PEM file. What stands around it counts for nobody, and may be anything.
_PEM_BLOCK = re.compile(
    rb"^-----BEGIN (?P<label>[A-Z0-9 ]+)-----[ \t\r]*\n[A-Za-z0-9+/=\s]+^-----END (?P=label)-----", re.MULTILINE
)
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
    "--wildcard",
    is_flag=True,
    help="Nodes also look there for images of registries that the bundle has nothing of. Not with --keep-registry.",
)
@click.option(
    "--no-default-endpoint", is_flag=True,
    help="Nodes never ask a source registry itself: errors come at once, and name the right place.",
)  # fmt: skip
@click.option(
    "--with-credentials", is_flag=True,
    help="Write the credentials into registries.yaml, and the key of --client-cert into client.key (mode 0600).",
)  # fmt: skip
@access.identity
@click.option(
    "--node-dir", default="/etc/rancher/k3s", show_default=True, metavar="DIR",
    help="Where K3s's configuration, and the files of --ca-file and --client-cert, lie on nodes.",
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
@click.option(
    "--state", type=options.NamedPath(file_okay=False), metavar="DIR", envvar="AIRGAP_SYNC_STATE", show_envvar=True,
    help="Where this machine keeps its locks. Default: $XDG_STATE_HOME/airgap-sync.",
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
    state: str | None,
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
    from bundler.cli.session import emit, quiet, state_directory  # noqa: PLC0415
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
    node_access = _node_access(identity, place, node_dir, with_credentials=with_credentials)
    certificates, key = _client(identity)
    result = write_config(
        ConfigOptions(
            directory=Path(bundle),
            to=Path(to),
            force=force,
            site=place,
            access=node_access,
            plans=_plan_settings(concurrency, deadline_s, window),
            node_dir=node_dir,
            ca=_ca(identity.ca_files),
            client_cert=certificates,
            client_key=key if with_credentials else None,
            suc_manifest=(suc_manifest, _text(suc_manifest)) if suc_manifest else None,
            state=state_directory(state),
        )
    )
    logs.show(result.warnings, result.made.notices)
    emit(output, result.to_text(), result.to_dict())


def _node_access(identity: access.TargetAccess, site: Site, node_dir: str, *, with_credentials: bool) -> NodeAccess:
    from bundler.site.nodefiles import NodeAccess  # noqa: PLC0415 - keeps --help fast

    if not with_credentials and (idle := _credential_options(identity)):
        raise click.UsageError(f"{idle[0]} is only used with --with-credentials, which writes credentials into files")
    if identity.client_key and not identity.client_cert:
        raise click.UsageError("--client-key goes with --client-cert")
    if site.target is None:
        if with_credentials or identity.ca_files or identity.client_cert:
            raise click.UsageError("credentials and certificates are for a registry, and this mode has none")
        return NodeAccess()
    if site.target.plain_http and (identity.ca_files or identity.client_cert):
        raise click.UsageError("certificates are for https, and the target is http://")
    credential = _credential(identity, site.target) if with_credentials else None
    return NodeAccess(
        ca_file=f"{node_dir}/ca.pem" if identity.ca_files else None,
        cert_file=f"{node_dir}/client.pem" if identity.client_cert else None,
        key_file=f"{node_dir}/client.key" if identity.client_cert else None,
        skip_verify=identity.insecure_skip_tls_verify,
        credential=credential,
    )


def _credential_options(identity: access.TargetAccess) -> list[str]:
    """Return the options given that say where credentials are."""
    given = {
        "--username": identity.username is not None,
        "--password-stdin": identity.password_stdin,
        "--password-file": identity.password_file,
        "--authfile": identity.authfile,
        "--registries": identity.registries_file,
    }
    return [name for name, value in given.items() if value]


def _credential(identity: access.TargetAccess, target: Target) -> Any:
    from bundler.errors import NoCredentialsError  # noqa: PLC0415 - keeps --help fast
    from bundler.sources.registries import read_registries  # noqa: PLC0415

    found = identity.credential(target.host, target.prefix, read_registries(identity.registries_file))
    if found is None and not identity.client_cert:
        raise NoCredentialsError(
            f"no credentials for {target.host} were found to write",
            hint="Give --username NAME with --password-file FILE, those of an account that may only pull.",
        )
    return found


def _plan_settings(concurrency: int, deadline_s: int, window: str | None) -> PlanSettings:
    import zoneinfo  # noqa: PLC0415

    from bundler.site.plans import PlanSettings, Window  # noqa: PLC0415 - keeps --help fast

    try:
        chosen = Window.parse(window) if window else None
    except ValueError as error:
        raise click.UsageError(f"--window: {error}") from None
    # A machine without time zones cannot tell.
    known = zoneinfo.available_timezones()
    if chosen and chosen.time_zone and known and chosen.time_zone not in known:
        import difflib  # noqa: PLC0415 - only for a typo

        from bundler.k3s.suggest import did_you_mean  # noqa: PLC0415

        meant = did_you_mean(difflib.get_close_matches(chosen.time_zone, known, 1))
        raise click.UsageError(f"--window: {chosen.time_zone!r} is no time zone. {meant}".rstrip())
    return PlanSettings(concurrency, deadline_s, chosen)


def _ca(names: tuple[str, ...]) -> bytes | None:
    """Return the CAs of all files as one."""
    if not names:
        return None
    from bundler.net.tls import Tls, context_for  # noqa: PLC0415 - keeps --help fast

    # A file that is no certificate is found here, not on a node.
    context_for(Tls(names))
    return b"".join(_certificates(name) for name in names)


def _client(identity: access.TargetAccess) -> tuple[bytes | None, bytes | None]:
    """Return the certificates to show to the target, and their key."""
    if not identity.client_cert:
        return None, None
    from bundler.errors import BadTlsFileError  # noqa: PLC0415 - keeps --help fast
    from bundler.net.tls import Tls, context_for  # noqa: PLC0415

    context_for(Tls(cert_file=identity.client_cert, key_file=identity.client_key))
    name = identity.client_key or identity.client_cert
    # The first one is that which counts.
    keys = [block for label, block in _pem_blocks(name) if label.endswith("PRIVATE KEY")]
    if not keys:
        raise BadTlsFileError(f"{name} holds no private key in PEM form")
    return _certificates(identity.client_cert), keys[0]


def _certificates(name: str) -> bytes:
    """Return the certificates of a PEM file and nothing else: it may hold a key too, which is nobody's business."""
    from bundler.errors import BadTlsFileError  # noqa: PLC0415 - keeps --help fast

    found = [block for label, block in _pem_blocks(name) if label == "CERTIFICATE"]
    if not found:
        raise BadTlsFileError(f"{name} holds no certificate in PEM form (BEGIN CERTIFICATE)")
    return b"".join(found)


def _pem_blocks(name: str) -> list[tuple[str, bytes]]:
    """Return label and text of each part of a PEM file."""
    from bundler.errors import BadTlsFileError  # noqa: PLC0415 - keeps --help fast

    data = _read(name, BadTlsFileError).replace(b"\r\n", b"\n")
    return [(match["label"].decode(), match[0] + b"\n") for match in _PEM_BLOCK.finditer(data)]


def _text(name: str) -> str:
    from bundler.errors import DefinitionError  # noqa: PLC0415 - keeps --help fast

    try:
        return _read(name, DefinitionError).decode()
    except UnicodeDecodeError as error:
        raise DefinitionError(f"{name} is not text in UTF-8") from error


def _read(name: str, refused: type[DefinitionError]) -> bytes:
    try:
        with Path(name).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise refused(f"{name} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise refused(f"{name} is larger than {_MAX_FILE_BYTES} bytes", hint="Take only what is needed out of it.")
    return data
