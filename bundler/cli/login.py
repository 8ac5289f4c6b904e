"""``airgap-sync login``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bundler.cli import access, options


@click.command(
    "login",
    epilog="Example: airgap-sync login harbor.example --username 'robot$k3s+push' --password-file robot.secret "
    "--store auth.json",
)
@click.argument("host", metavar="HOST")
@access.target
@click.option(
    "--store", type=options.NamedPath(dir_okay=False), metavar="FILE",
    help="Keep the credentials in FILE (mode 0600), for --authfile. Nothing is kept without it.",
)  # fmt: skip
@options.output
def command(host: str, store: str | None, output: str, **given: Any) -> None:
    """Check a user name and password at a registry.

    HOST is [http://|https://]host[:port]. Credentials are looked for where `push` looks for them; nothing is written
    but FILE, if --store names one.
    """
    from bundler import logs  # noqa: PLC0415 - keeps --help fast
    from bundler.cli.session import emit, quiet  # noqa: PLC0415
    from bundler.errors import BadTargetError  # noqa: PLC0415
    from bundler.oci.target import Target  # noqa: PLC0415
    from bundler.ops.login import check_login  # noqa: PLC0415
    from bundler.registry.authfile import store as store_credential  # noqa: PLC0415
    from bundler.registry.host import Hosts  # noqa: PLC0415

    logs.send_to(quiet().write)
    target = Target.parse(host)
    if target.prefix:
        raise BadTargetError(f"{host} is more than a host", hint=f"Write {target.host}: a login is for a whole host.")
    credential, asked = check_login(access.TargetAccess(**given).client(target, Hosts(max_wait_s=access.PATIENCE_S)))
    text = f"{target.host} needs no login\n"
    if credential and asked:
        text = f"{target.host} accepts {credential.username or 'the identity token'} (from {credential.source})\n"
    elif credential:
        logs.show([f"{target.host} asks nobody for credentials, so it was not found out whether they are right"], ())
    if store and credential:
        store_credential(Path(store), target.host, credential)
        text += f"kept in {store}; use it with --authfile {store}\n"
    emit(
        output,
        text,
        {
            "host": target.host,
            "username": credential.username if credential else None,
            "source": credential.source if credential else None,
            "checked": asked,
            "stored": store if credential else None,
        },
    )
