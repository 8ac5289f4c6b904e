"""``airgap-sync push``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bundler.cli import access, options, site

#: Less makes a request of every few packets.
SMALLEST_CHUNK_BYTES = 64 * 1024

if TYPE_CHECKING:
    from bundler.report import Report


@click.command(
    "push",
    epilog="Example: airgap-sync push /media/usb/k3s https://harbor.example/k3s --dry-run",
)
@click.argument("bundle", type=options.NamedPath())
@click.argument("target", metavar="[TARGET]", required=False)
@access.target
@options.jobs
@site.options
@click.option("--dry-run", is_flag=True, help="Print the plan and send nothing.")
@click.option(
    "--target-type", "kind", type=click.Choice(["auto", "harbor", "registry"]), default="auto", show_default=True,
    help="What the target is; Harbor is asked beforehand whether the push can succeed.",
)  # fmt: skip
@click.option(
    "--create-projects", "create", type=click.Choice(["no", "private", "public"]), default="no", show_default=True,
    help="Make Harbor projects that are missing.",
)  # fmt: skip
@click.option(
    "--project-quota", "quota_bytes", type=options.size, metavar="SIZE",
    help="Storage quota of projects that are made, for example 50GiB. Default: Harbor's own.",
)  # fmt: skip
@click.option(
    "--chunk-size", "chunk_bytes", type=options.size, metavar="SIZE",
    help="Send larger blobs in chunks of this size, so that a later run can continue them; 0 never. Default: 256MiB "
    "for blobs over 1GiB.",
)  # fmt: skip
@click.option(
    "--verify", type=click.Choice(["pushed", "all"]), default="pushed", show_default=True,
    help="Which images to look at again at the target: those that were pushed, or those that were there as well.",
)  # fmt: skip
@click.option("--no-verify", is_flag=True, help="Look at none.")
@access.max_wait
@click.option(
    "--state", type=options.NamedPath(file_okay=False), metavar="DIR", envvar="AIRGAP_SYNC_STATE", show_envvar=True,
    help="Where this machine keeps its locks, and how far large uploads have come. Default: "
    "$XDG_STATE_HOME/airgap-sync.",
)  # fmt: skip
@options.report
@options.progress
@options.output
def command(
    bundle: str,
    target: str | None,
    jobs: int,
    site_file: str | None,
    mode: str | None,
    routes: tuple[str, ...],
    keep_registry: bool | None,
    dry_run: bool,
    kind: str,
    create: str,
    quota_bytes: int | None,
    chunk_bytes: int | None,
    verify: str,
    no_verify: bool,
    max_wait_s: float,
    state: str | None,
    report_file: str | None,
    progress_kind: str,
    output: str,
    **given: Any,
) -> None:
    """Load a bundle into a registry.

    TARGET is [http://|https://]host[:port][/prefix]. Without a scheme it is https; plain HTTP is used only where
    http:// is written. At Harbor the prefix begins with the project. With --site it may be left out. BUNDLE is only
    read, so the medium may be write-protected.

    Credentials are looked for in this order, the first hit wins: --username; AIRGAP_SYNC_USERNAME and
    AIRGAP_SYNC_PASSWORD; AIRGAP_SYNC_USERNAME_<HOST> and AIRGAP_SYNC_PASSWORD_<HOST> (for example
    _HARBOR_EXAMPLE_8443); --registries; --authfile; docker's config.json; REGISTRY_AUTH_FILE or containers' auth.json.
    """
    from bundler.cli.session import progress_of, reported, state_directory  # noqa: PLC0415 - keeps --help fast
    from bundler.ops.push import PushOptions, TargetKind, Verify, push_bundle  # noqa: PLC0415
    from bundler.registry.host import Hosts  # noqa: PLC0415
    from bundler.registry.session import Chunking  # noqa: PLC0415
    from bundler.report import Report  # noqa: PLC0415
    from bundler.transfer.harbor import CreateProjects  # noqa: PLC0415

    if quota_bytes is not None and (create == "no" or not quota_bytes):
        raise click.UsageError("--project-quota is more than 0, and goes with --create-projects private or public")
    if chunk_bytes and chunk_bytes < SMALLEST_CHUNK_BYTES:
        raise click.UsageError(f"--chunk-size is 0, or at least {SMALLEST_CHUNK_BYTES} bytes (64KiB)")
    if no_verify and verify == "all":
        raise click.UsageError("--no-verify and --verify all exclude each other")
    progress = progress_of(progress_kind)
    report = Report("push", bundle)
    chosen = site.SiteOptions(site_file=site_file, target=target, mode=mode, routes=routes, keep_registry=keep_registry)
    with reported(report, report_file, progress, output, _text):
        place = chosen.site()
        parsed = site.needs_target(place)
        report.target = str(parsed)
        client = access.TargetAccess(**given).client(parsed, Hosts(most=jobs, max_wait_s=max_wait_s))
        push_options = PushOptions(
            Path(bundle),
            parsed,
            state_directory(state),
            site=place,
            jobs=jobs,
            dry_run=dry_run,
            kind=TargetKind(kind),
            create=CreateProjects(create),
            project_quota_bytes=quota_bytes,
            chunking=Chunking.of(chunk_bytes),
            verify=Verify.NONE if no_verify else Verify(verify),
        )
        push_bundle(push_options, client, progress, report)


def _text(report: Report) -> str:
    from bundler.cli.session import why_failed  # noqa: PLC0415 - keeps --help fast
    from bundler.ops.outcomes import plan_line  # noqa: PLC0415
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
        if found := report.facts.get("verified"):
            lines.append(f"verified at the target: {found['images']} images, {found['manifests']} manifests")
    lines += why_failed(report)
    return "".join(f"{line}\n" for line in lines)
