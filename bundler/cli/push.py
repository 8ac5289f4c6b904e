"""``airgap-sync push``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bundler.cli import options

if TYPE_CHECKING:
    from bundler.report import Report


@click.command(
    "push",
    epilog="Example: airgap-sync push /media/usb/k3s https://harbor.example/k3s --dry-run",
)
@click.argument("bundle", type=options.NamedPath())
@click.argument("target", metavar="TARGET")
@options.jobs
@click.option(
    "--keep-registry", is_flag=True,
    help="Put the source registry into the name: TARGET/docker.io/rancher/... instead of TARGET/rancher/...",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the plan and send nothing.")
@click.option(
    "--state", type=options.NamedPath(file_okay=False), metavar="DIR", envvar="AIRGAP_SYNC_STATE", show_envvar=True,
    help="Where this machine keeps its locks. Default: $XDG_STATE_HOME/airgap-sync.",
)  # fmt: skip
@options.report
@options.progress
@options.output
def command(
    bundle: str,
    target: str,
    jobs: int,
    keep_registry: bool,
    dry_run: bool,
    state: str | None,
    report_file: str | None,
    progress_kind: str,
    output: str,
) -> None:
    """Load a bundle into a registry.

    TARGET is [http://|https://]host[:port][/prefix]. Without a scheme it is https; plain HTTP is used only where
    http:// is written. BUNDLE is only read, so the medium may be write-protected.
    """
    from bundler.cli.session import progress_of, reported, state_directory  # noqa: PLC0415 - keeps --help fast
    from bundler.net import Http  # noqa: PLC0415
    from bundler.oci.target import Target  # noqa: PLC0415
    from bundler.ops.push import PushOptions, push_bundle  # noqa: PLC0415
    from bundler.registry.auth import DockerConfig  # noqa: PLC0415
    from bundler.registry.client import RegistryClient  # noqa: PLC0415
    from bundler.registry.endpoint import Endpoint  # noqa: PLC0415
    from bundler.report import Report  # noqa: PLC0415

    progress = progress_of(progress_kind)
    report = Report("push", bundle)
    with reported(report, report_file, progress, output, _text):
        parsed = Target.parse(target)
        report.target = str(parsed)
        docker_home = os.environ.get("DOCKER_CONFIG") or "~/.docker"
        credential = DockerConfig(Path(docker_home).expanduser() / "config.json").lookup(parsed.host)
        client = RegistryClient(Endpoint(f"{parsed.url}/v2", credential=credential), Http())
        push_options = PushOptions(Path(bundle), parsed, state_directory(state), keep_registry, jobs, dry_run)
        push_bundle(push_options, client, progress, report)


def _text(report: Report) -> str:
    from bundler.ops.push import plan_line  # noqa: PLC0415 - keeps --help fast
    from bundler.progress import people_bytes  # noqa: PLC0415

    totals = report.totals()
    if not report.images:
        return ""
    if "plan" in report.facts:
        lines = [plan_line(image) for image in report.facts["plan"]]
        lines.append(
            f"plan for {report.target}: send {people_bytes(report.facts['bytes_to_send'])}, "
            f"mount {people_bytes(report.facts['bytes_to_mount'])}; nothing was sent"
        )
    else:
        lines = [f"{image.outcome:<10} {image.target} {image.digest}" for image in report.images]
        counts = ", ".join(f"{totals[word]} {word}" for word in ("pushed", "up-to-date", "failed") if word in totals)
        lines.append(
            f"target {report.target}: {counts}; sent {people_bytes(totals['bytes_moved'])}, "
            f"mounted {people_bytes(totals['bytes_mounted'])}"
        )
    lines += [f"failed because: {image.reference}: {image.error.message}" for image in report.failed if image.error]
    return "".join(f"{line}\n" for line in lines)
