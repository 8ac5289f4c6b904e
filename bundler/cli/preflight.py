"""``airgap-sync preflight``."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bundler.cli import access, options
from bundler.cli import site as sites

if TYPE_CHECKING:
    from bundler.net import Http
    from bundler.site.cluster import Cluster
    from bundler.site.containerd import Containerd
    from bundler.site.findings import Verdict
    from bundler.site.node import LocalNode
    from bundler.site.pulls import Advice
    from bundler.site.routes import Site

_MAX_FILE_BYTES = 1024 * 1024
_MAX_RESULT_BYTES = 64 * 1024 * 1024


@click.command(
    "preflight",
    epilog="Example: airgap-sync preflight /media/usb/k3s --config site --kubeconfig /etc/rancher/k3s/k3s.yaml",
)
@click.argument("bundle", type=options.NamedPath())
@click.argument("results", nargs=-1, metavar="[FILE]...", type=options.NamedPath(exists=True, dir_okay=False))
@sites.options
@sites.target_option
@click.option(
    "--config", "config_dir", type=options.NamedPath(exists=True, file_okay=False), metavar="DIR",
    help="What `config` wrote: its site.json, registries.yaml, CA, the controller's settings and the plans.",
)  # fmt: skip
@click.option(
    "--registries", "registries_file", type=options.NamedPath(exists=True, dir_okay=False), metavar="FILE",
    help="The nodes' registries.yaml. Default: on a node its own, else that of --config, else as `config` would "
    "write it.",
)  # fmt: skip
@click.option(
    "--kubeconfig", type=options.NamedPath(exists=True, dir_okay=False), metavar="FILE",
    help="Ask the cluster for its nodes: versions, platforms, readiness, room; and for the controller's settings.",
)  # fmt: skip
@click.option(
    "--collect", is_flag=True,
    help="Put the results in the files named behind BUNDLE, one of each node, together to one verdict.",
)  # fmt: skip
@click.option(
    "--out", "out_file", type=options.NamedPath(dir_okay=False), metavar="FILE",
    help="Keep the result, as JSON, also if it is bad.",
)  # fmt: skip
@click.option("--node", metavar="NAME", help="This node's name in the cluster. Default: its host name.")
@click.option(
    "--root", type=options.NamedPath(exists=True, file_okay=False), default="/", show_default=True, metavar="DIR",
    help="Where the file system of the node begins that is looked at.",
)  # fmt: skip
@access.ca_file
@access.timeout
@options.jobs
@options.output
def command(
    bundle: str,
    results: tuple[str, ...],
    site_file: str | None,
    mode: str | None,
    routes: tuple[str, ...],
    keep_registry: bool | None,
    target: str | None,
    config_dir: str | None,
    registries_file: str | None,
    kubeconfig: str | None,
    collect: bool,
    out_file: str | None,
    node: str | None,
    root: str,
    ca_files: tuple[str, ...],
    timeout_s: float,
    jobs: int,
    output: str,
) -> None:
    """Prove that every node can pull every image, before an upgrade begins.

    For every image and every platform of the cluster, each manifest and blob is asked for as nodes will ask: through
    the mirrors, rewrites, certificates and credentials of registries.yaml; and compared with the bundle. On a node, its
    own registries.yaml, what K3s made of it, and its containerd are looked at, and other nodes are asked through the
    embedded registry. What cannot be checked from here is said, and does not pass. Nothing is changed.

    Exit code 0 only if every pull would succeed, else 13.
    """
    from bundler import logs  # noqa: PLC0415 - keeps --help fast
    from bundler.cli.session import check_writable, emit, quiet, write_result  # noqa: PLC0415
    from bundler.errors import PreflightFailedError  # noqa: PLC0415
    from bundler.ops.preflight import PreflightOptions, run_preflight  # noqa: PLC0415
    from bundler.registry.host import Hosts  # noqa: PLC0415
    from bundler.site.node import platform_of_machine, read_node  # noqa: PLC0415

    if collect != bool(results):
        raise click.UsageError("--collect goes with the files to collect, named behind BUNDLE")
    logs.send_to(quiet().write)
    if site_file and config_dir and _is_another(site_file, config_dir):
        raise click.UsageError(
            f"--site {site_file} is another site than that of --config {config_dir}; give one of them"
        )
    site_file = site_file or (str(Path(config_dir) / "site.json") if config_dir else None)
    if site_file is None and target is None and mode != "embedded":
        raise click.UsageError("where images are must be known: give --config DIR, --site FILE, or --target TARGET")
    place = sites.SiteOptions(
        site_file=site_file, target=target, mode=mode, routes=routes, keep_registry=keep_registry
    ).site()
    if out_file:
        check_writable(Path(out_file), Path(bundle))
        _check_replaceable(Path(out_file), results)
    local = None if collect else read_node(Path(root))
    if local is None and not collect and (node or root != "/"):
        raise click.UsageError(
            f"{root} is no node of K3s (there is no {Path(root) / 'var/lib/rancher/k3s/agent'}): run this on the node, "
            "or leave out --node and --root"
        )
    registries = _registries(registries_file, local, config_dir)
    http = access.http_of(timeout_s, os.environ, ca_files)

    def target_client() -> Any:
        file = registries[0] if registries and Path(registries[0]).is_file() else None
        chosen = access.TargetAccess(registries_file=file, ca_files=ca_files, timeout_s=timeout_s)
        return chosen.client(sites.needs_target(place), Hosts(max_wait_s=access.PATIENCE_S))

    checked = PreflightOptions(
        directory=Path(bundle),
        site=place,
        now_utc=dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        advice=_advice(bundle, place, site_file, registries, local),
        registries=registries,
        config=Path(config_dir) if config_dir else None,
        node=local,
        node_name=(node or socket.gethostname().lower()) if local or node else None,
        platform=platform_of_machine(os.uname().machine) if local else None,
        containerd=_containerd(local),
        cluster=_cluster(kubeconfig, http),
        k3s_version=_k3s_version(local),
        target=target_client if place.target else None,
        ca_files=ca_files,
        jobs=jobs,
    )
    collected = [(name, _result(name)) for name in results]
    found = run_preflight(checked, http, Hosts(most=jobs, max_wait_s=access.PATIENCE_S), collected)
    document = found.to_dict(bundle)
    if out_file:
        write_result(Path(out_file), json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n")
    emit(output, _text(found), document)
    if not found.passed:
        raise PreflightFailedError(_why(found), hint="Mend what is listed, and run it again.")


def _is_another(site_file: str, config_dir: str) -> bool:
    """Tell whether a site.json is another than that of a directory."""
    own = Path(config_dir) / "site.json"
    return own.exists() and sites.read_site(site_file) != sites.read_site(str(own))


def _check_replaceable(path: Path, results: tuple[str, ...]) -> None:
    """Refuse to replace anything but the result of an earlier run.

    Raises:
        BadOutputError: The file is something else, or one of those to collect.
    """
    from bundler.errors import BadOutputError, BadResultError  # noqa: PLC0415 - keeps --help fast

    if any(path.resolve() == Path(name).resolve() for name in results):
        raise BadOutputError(f"{path} is one of the results to collect", hint="Name another file.")
    if path.is_file() and path.stat().st_size:
        try:
            _result(str(path))
        except BadResultError as error:
            raise BadOutputError(
                f"{path} is there, and is not the result of a preflight", hint="Name a file that is not there yet."
            ) from error


def _registries(chosen: str | None, node: LocalNode | None, config_dir: str | None) -> tuple[str, str] | None:
    """Return place and text of the registries.yaml that nodes have."""
    if chosen:
        return chosen, _read(chosen)
    if node is not None:
        return node.registries or (f"{node.root}/etc/rancher/k3s/registries.yaml (absent)".replace("//", "/"), "")
    path = Path(config_dir) / "registries.yaml" if config_dir else None
    return (str(path), _read(str(path))) if path and path.exists() else None


def _read(name: str) -> str:
    from bundler.errors import BadRegistriesFileError  # noqa: PLC0415 - keeps --help fast

    try:
        with Path(name).open("rb") as file:
            return file.read(_MAX_FILE_BYTES + 1).decode()
    except OSError as error:
        raise BadRegistriesFileError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadRegistriesFileError(f"{name} is not text in UTF-8") from error


def _result(name: str) -> Verdict:
    from bundler.errors import BadResultError  # noqa: PLC0415 - keeps --help fast
    from bundler.site.findings import Verdict  # noqa: PLC0415

    try:
        with Path(name).open("rb") as file:
            return Verdict.parse(file.read(_MAX_RESULT_BYTES), name)
    except OSError as error:
        raise BadResultError(f"{name} cannot be read: {error.strerror}") from error


def _advice(
    bundle: str, site: Site, site_file: str | None, registries: tuple[str, str] | None, node: LocalNode | None
) -> Advice:
    from bundler.site.pulls import Advice  # noqa: PLC0415 - keeps --help fast

    flags = (f"--mode {site.mode}" if site.embedded else "") + (" --keep-registry" if site.keep_registry else "")
    flags += "".join(f" --route '{rule}'" for rule in site.rules)
    made = (
        flags + (" --wildcard" if site.wildcard else "") + ("" if site.default_endpoint else " --no-default-endpoint")
    )
    made += f" --from {site.running}" if site.running else ""
    where = f"--site {site_file}" if site_file else f"{site.target} {flags}"
    target = f"--target {site.target} " if site.target else ""
    return Advice(
        registries=registries[0] if registries else "registries.yaml",
        push=f"airgap-sync push {bundle} {where}".rstrip(),
        config=" ".join(
            part for part in (f"airgap-sync config {bundle}", target.strip(), made.strip(), "--to DIR") if part
        ),
        certs_d=str(node.certs_d) if node else None,
    )


def _cluster(kubeconfig: str | None, http: Http) -> Cluster | None:
    if kubeconfig is None:
        return None
    from bundler.site.cluster import Cluster  # noqa: PLC0415 - keeps --help fast
    from bundler.site.kubeconfig import Kubeconfig  # noqa: PLC0415

    return Cluster(Kubeconfig.load(Path(kubeconfig)), http)


def _containerd(node: LocalNode | None) -> Containerd | None:
    from bundler.site.containerd import Containerd, find_ctr  # noqa: PLC0415 - keeps --help fast

    if node is None or not node.socket.exists():
        return None
    program = find_ctr(os.environ.get("PATH"))
    return Containerd(node.socket, program) if program else None


def _k3s_version(node: LocalNode | None) -> str | None:
    """Return what the k3s in PATH says that it is, on the node itself."""
    if node is None or node.root != Path("/") or not (program := shutil.which("k3s")):
        return None
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False)  # noqa: S603 - found in PATH
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = said.stdout.split()
    return words[2] if words[:2] == ["k3s", "version"] and len(words) > 2 else None  # noqa: PLR2004 - k3s version V


def _why(found: Verdict) -> str:
    from bundler.site.findings import Severity  # noqa: PLC0415 - keeps --help fast

    bad = sum(image.ok is False for image in found.images)
    unknown = sum(image.ok is None for image in found.images)
    errors = sum(finding.severity is Severity.ERROR for finding in found.findings)
    parts = [
        f"{bad} of {len(found.images)} pulls would fail" if bad else "",
        f"{unknown} of {len(found.images)} could not be checked" if unknown else "",
        f"{errors} {'thing' if errors == 1 else 'things'} at the site must be mended" if errors else "",
        "" if found.images else "nothing was checked",
    ]
    return "; ".join(part for part in parts if part)


def _text(found: Verdict) -> str:
    """Return the result for people: what is wrong, image by image, then the site, then what is not known."""
    from bundler.errors import one_line  # noqa: PLC0415 - keeps --help fast

    lines: list[str] = []
    # What the platforms of an image have in common is said once, and so is what mends several images.
    by_fix: dict[tuple[bool | None, str, str], dict[tuple[str, str], list[str]]] = {}
    for image in found.images:
        if problem := image.problem:
            group = by_fix.setdefault((image.ok, problem.rule, problem.fix), {})
            group.setdefault((image.reference, problem.message), []).append(image.platform)
    for (ok, rule, fix), images in by_fix.items():
        word = "not checked" if ok is None else "FAIL"
        said = ""
        for (reference, message), platforms in images.items():
            lines.append(f"{word:<12}{reference} ({', '.join(platforms)})")
            if message != said:
                lines.append(f"            {message} [{rule}]")
            said = message
        if fix:
            lines.append(f"            do: {fix}")
    for finding in found.findings:
        lines += [
            f"{finding.severity:<12}{finding.place}: {finding.message} [{finding.rule}]",
            f"            do: {finding.fix}",
        ]
    lines += [f"not checked {text}" for text in found.not_checked]
    lines += [f"seeds       {platform}: {', '.join(names)}" for platform, names in found.seeds.items()]
    good = sum(image.ok is True for image in found.images)
    lines.append(f"verdict: {'pass' if found.passed else 'fail'}; {good} of {len(found.images)} pulls would succeed")
    return "".join(f"{one_line(line)}\n" for line in lines)
