"""``airgap-sync bundle``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bundler.cli import access, options

if TYPE_CHECKING:
    from bundler.report import Report


@click.command(
    "bundle",
    epilog="Example: airgap-sync bundle --k3s v1.32.3+k3s1 --platform linux/amd64 --platform linux/arm64 "
    "--to /media/usb/k3s",
)
@options.selectors
@click.option(
    "--platform", "platforms", multiple=True, default=("linux/amd64",), show_default=True,
    metavar="OS/ARCH[/VARIANT]", help="Platform to carry; `all` takes everything. Repeatable.",
)  # fmt: skip
@click.option(
    "--to", "directory", required=True, type=options.NamedPath(), metavar="DIR", help="Where the bundle is written."
)
@click.option(
    "--registries", "registries_file", type=options.NamedPath(), metavar="FILE",
    help="K3s's registries.yaml: mirrors, rewrites, credentials and TLS to pull through.",
)  # fmt: skip
@access.sources
@options.jobs
@click.option("--strict", is_flag=True, help="A warning ends the run as a failure.")
@click.option("--fail-fast", is_flag=True, help="Stop at the first failed image.")
@click.option("--replace", is_flag=True, help="Turn the bundle of another request in DIR into this one.")
@options.report
@options.progress
@options.output
def command(
    directory: str,
    platforms: tuple[str, ...],
    registries_file: str | None,
    authfile: str | None,
    ca_files: tuple[str, ...],
    timeout_s: float,
    max_wait_s: float,
    jobs: int,
    strict: bool,
    fail_fast: bool,
    replace: bool,
    report_file: str | None,
    progress_kind: str,
    output: str,
    **selected: Any,
) -> None:
    """Write images into an OCI layout on transfer media.

    DIR must be absent, empty or a bundle of airgap-sync. Interrupt it whenever you like: the same command continues
    and fetches nothing twice.

    Credentials are looked for in this order, the first hit wins: AIRGAP_SYNC_USERNAME_<HOST> and
    AIRGAP_SYNC_PASSWORD_<HOST> (for example _REGISTRY_EXAMPLE_5000); --registries; --authfile; docker's config.json;
    REGISTRY_AUTH_FILE or containers' auth.json.
    """
    from bundler import logs  # noqa: PLC0415 - keeps --help fast
    from bundler.cli.session import progress_of, reported  # noqa: PLC0415 - keeps --help fast
    from bundler.ops.bundle import BundleOptions, make_bundle, parse_platforms, platform_names  # noqa: PLC0415
    from bundler.ops.images import Selectors, select_images  # noqa: PLC0415
    from bundler.registry.host import Hosts  # noqa: PLC0415
    from bundler.report import Report  # noqa: PLC0415
    from bundler.sources.registries import read_registries  # noqa: PLC0415
    from bundler.sources.releases import PATIENCE_S  # noqa: PLC0415
    from bundler.transfer.pull import MANIFEST_LANE  # noqa: PLC0415
    from bundler.transfer.upstream import Upstream  # noqa: PLC0415

    reach = access.SourceAccess(authfile=authfile, ca_files=ca_files, timeout_s=timeout_s)
    reach.check()
    selectors = Selectors(**selected)
    progress = progress_of(progress_kind)
    report = Report("bundle", directory)
    with reported(report, report_file, progress, output, _text):
        wanted = parse_platforms(platforms)
        registries = read_registries(registries_file)
        report.warnings += registries.warnings
        logs.show(registries.warnings, ())
        http = reach.http()
        hosts = Hosts(most=jobs + MANIFEST_LANE, max_wait_s=max_wait_s, put_off=True)
        upstream = Upstream(registries, reach.before(), reach.after(), http, hosts, ca_files)
        bundle_options = BundleOptions(Path(directory), wanted, jobs, strict, fail_fast, replace)
        try:
            make_bundle(
                bundle_options,
                lambda: select_images(selectors, sys.stdin, platform_names(wanted), reach.http(PATIENCE_S)),
                upstream.repository,
                progress,
                report,
            )
        finally:
            if left := {host.name: host.pulls_left[0] for host in hosts.all() if host.pulls_left}:
                report.facts["pulls_left"] = left


def _text(report: Report) -> str:
    from bundler.cli.session import why_failed  # noqa: PLC0415 - keeps --help fast
    from bundler.progress import people_bytes  # noqa: PLC0415

    totals, facts = report.totals(), report.facts
    lines = [f"{image.outcome:<10} {image.reference} {image.digest or ''}".rstrip() for image in report.images]
    lines += why_failed(report)
    if "blobs" in facts:
        removed = f"removed {facts['removed_files']} unlisted files" if "removed_files" in facts else "INCOMPLETE"
        lines.append(
            f"bundle {report.bundle}: {totals['images'] - totals.get('failed', 0)} images, "
            f"{facts['blobs']} configs and layers, {people_bytes(facts['blob_bytes'])}; "
            f"fetched {people_bytes(totals['bytes_moved'])}, {removed}"
        )
    lines += [f"{host} grants {left} more pulls for now" for host, left in facts.get("pulls_left", {}).items()]
    return "".join(f"{line}\n" for line in lines)
