"""``airgap-sync harbor``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bundler.cli import access, options


@click.group("harbor")
def command() -> None:
    """Prepare a Harbor for pushes and pulls."""


@command.command(
    "robot",
    epilog="Example: airgap-sync harbor robot --target harbor.example --project k3s --username admin "
    "--password-stdin --secret-file robot.secret",
)
@click.option("--target", required=True, metavar="HOST", help="The Harbor: [https://]host[:port].")
@click.option("--project", required=True, metavar="NAME", help="The project that the robot may push to or pull from.")
@click.option("--pull-only", is_flag=True, help="For nodes: it may pull, and nothing else.")
@click.option("--name", metavar="NAME", help="Name of the robot. Default: airgap-sync-push, or airgap-sync-pull.")
@click.option(
    "--days", type=click.IntRange(1, 3650), metavar="N", help="Days until it expires. Default: it does not expire."
)
@click.option(
    "--secret-file", required=True, type=options.NamedPath(dir_okay=False), metavar="FILE",
    help="New file (mode 0600) for its secret, which Harbor tells only this once.",
)  # fmt: skip
@access.target
@options.output
def robot(
    target: str,
    project: str,
    pull_only: bool,
    name: str | None,
    days: int | None,
    secret_file: str,
    output: str,
    **given: Any,
) -> None:
    """Make a robot account with just the rights that a push, or a node, needs.

    The account that makes it is given as for `push`; it needs the role Project Admin in the project.
    """
    from bundler import logs  # noqa: PLC0415 - keeps --help fast
    from bundler.cli.session import emit, quiet  # noqa: PLC0415
    from bundler.errors import BadTargetError  # noqa: PLC0415
    from bundler.files import disk_errors, new_private_file  # noqa: PLC0415
    from bundler.oci.target import Target  # noqa: PLC0415
    from bundler.ops.robot import RobotRequest, make_robot  # noqa: PLC0415
    from bundler.registry.host import Hosts  # noqa: PLC0415

    logs.send_to(quiet().write)
    parsed = Target.parse(target)
    if parsed.prefix:
        raise BadTargetError(f"{target} is more than a host", hint=f"Write --target {parsed.host} --project NAME.")
    client = access.TargetAccess(**given).client(parsed, Hosts(max_wait_s=access.PATIENCE_S))
    wanted = RobotRequest(
        project, name or ("airgap-sync-pull" if pull_only else "airgap-sync-push"), pull_only, days or -1
    )
    path = Path(secret_file)
    with new_private_file(path) as file:

        def keep(secret: str) -> None:
            with disk_errors(str(path)):
                file.write(secret.encode() + b"\n")

        made = make_robot(client, wanted, keep)
    # Single quotes: a shell would take what follows the $ for a variable.
    use = f"--username '{made.name}' --password-file {secret_file}"
    emit(
        output,
        f"made {made.name} in project {project}: {', '.join(made.rights)}\nits secret is in {secret_file}; use it with "
        f"{use}\n",
        {"name": made.name, "project": project, "rights": list(made.rights), "secret_file": secret_file},
    )
