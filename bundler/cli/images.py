"""``airgap-sync images``."""

from __future__ import annotations

import sys
from typing import Any

import click

from bundler.cli import access, options


@click.command(
    "images",
    epilog="Example: airgap-sync images --k3s v1.32.3+k3s1 --disable traefik --image ghcr.io/acme/app:1.4",
)
@options.selectors
@access.ca_file
@options.output
def command(output: str, ca_files: tuple[str, ...], **selected: Any) -> None:
    """List every image that a K3s release needs.

    That is the release's own list, the k3s-upgrade image, system-upgrade-controller and the kubectl image that it
    really uses, and whatever else is named: full references, sorted, each once.
    """
    from bundler import logs  # noqa: PLC0415 - keeps --help fast
    from bundler.cli.session import emit, quiet  # noqa: PLC0415
    from bundler.ops.images import Selectors, select_images  # noqa: PLC0415
    from bundler.sources.releases import PATIENCE_S  # noqa: PLC0415

    logs.send_to(quiet().write)
    http = access.SourceAccess(ca_files=ca_files).http(PATIENCE_S)
    found = select_images(Selectors(**selected), sys.stdin, http=http)
    logs.show(found.warnings, found.notices)
    emit(output, found.to_text(), found.to_dict())
