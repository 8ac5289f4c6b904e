"""How commands reach registries: credentials, TLS, proxies, patience. The environment is read here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bundler.cli.options import NamedPath, home

if TYPE_CHECKING:
    from bundler.k3s.registries import RegistriesFile
    from bundler.net import Http, Tls
    from bundler.oci.target import Target
    from bundler.registry.client import RegistryClient
    from bundler.registry.credentials import CredentialChain, Credentials
    from bundler.registry.endpoint import Credential
    from bundler.registry.host import Hosts

Command = TypeVar("Command", bound=Callable[..., Any])

#: The variables for the one target of a command.
TARGET_VARIABLES = ("AIRGAP_SYNC_USERNAME", "AIRGAP_SYNC_PASSWORD")
_CONNECT_S = 10.0
#: How long somebody at a terminal waits for a registry that asks for a pause, in seconds.
PATIENCE_S = 30.0

_AUTHFILE = click.option(
    "--authfile", type=NamedPath(dir_okay=False), metavar="FILE",
    help="Credentials in the form of docker's config.json; asked before docker's own.",
)  # fmt: skip
_CA_FILE = click.option(
    "--ca-file", "ca_files", multiple=True, type=NamedPath(exists=True, dir_okay=False), metavar="FILE",
    help="CA to trust besides the machine's own, in PEM form. Repeatable.",
)  # fmt: skip
_TIMEOUT = click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0.1, 3600), default=60.0, show_default=True, metavar="SECONDS",
    help="How long a server may be silent.",
)  # fmt: skip
_MAX_WAIT = click.option(
    "--max-wait", "max_wait_s", type=click.FloatRange(0, 7 * 86400), default=3600.0, show_default=True,
    metavar="SECONDS", help="The longest pause that a registry may ask for (Retry-After).",
)  # fmt: skip
_IDENTITY = (
    click.option("--username", metavar="NAME", help="User name at the target; with one of the next two."),
    click.option(
        "--password-stdin", is_flag=True, help="Read its password from standard input (not shown on a terminal)."
    ),
    click.option(
        "--password-file", type=NamedPath(exists=True, dir_okay=False), metavar="FILE", help="Read it from a file."
    ),
    _AUTHFILE,
    click.option(
        "--registries", "registries_file", type=NamedPath(), metavar="FILE",
        help="K3s's registries.yaml: credentials and TLS settings under configs.HOST.",
    ),
    _CA_FILE,
    click.option(
        "--client-cert", type=NamedPath(exists=True, dir_okay=False), metavar="FILE",
        help="Certificate to show to the target, in PEM form.",
    ),
    click.option(
        "--client-key", type=NamedPath(exists=True, dir_okay=False), metavar="FILE",
        help="Its key, unencrypted, if it is not in the same file.",
    ),
    click.option(
        "--insecure-skip-tls-verify", is_flag=True, help="Do not verify the target's certificate. Not for production."
    ),
)  # fmt: skip


def _refuse(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is not None and value is not False:
        raise click.UsageError(
            f"{parameter.opts[0]} would go to every upstream registry; set AIRGAP_SYNC_USERNAME_<HOST> and "
            "AIRGAP_SYNC_PASSWORD_<HOST>, or use --registries or --authfile",
            context,
        )


_SOURCES = (
    *(
        click.option(name, hidden=True, expose_value=False, is_flag=flag, callback=_refuse)
        for name, flag in (("--username", False), ("--password-stdin", True), ("--password-file", False))
    ),
    _AUTHFILE,
    _CA_FILE,
    _TIMEOUT,
    _MAX_WAIT,
)


def _added(command: Command, options: tuple[Any, ...]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def target(command: Command) -> Command:
    """Add the options of commands that talk to one target."""
    return _added(command, (*_IDENTITY, _TIMEOUT))


def identity(command: Command) -> Command:
    """Add those of them that say who we are at the target and how it is trusted."""
    return _added(command, _IDENTITY)


def sources(command: Command) -> Command:
    """Add the options of commands that read from many registries."""
    return _added(command, _SOURCES)


ca_file = _CA_FILE
timeout = _TIMEOUT
max_wait = _MAX_WAIT


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetAccess:
    """The values of :func:`target`'s options."""

    username: str | None = None
    password_stdin: bool = False
    password_file: str | None = None
    authfile: str | None = None
    registries_file: str | None = None
    ca_files: tuple[str, ...] = ()
    client_cert: str | None = None
    client_key: str | None = None
    insecure_skip_tls_verify: bool = False
    timeout_s: float = 60.0
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    def client(self, target: Target, hosts: Hosts) -> RegistryClient:
        """Return the client of a target.

        Raises:
            click.UsageError: The options contradict each other.
            AirgapSyncError: A file of credentials or certificates cannot be used.
        """
        from bundler import logs  # noqa: PLC0415
        from bundler.k3s.endpoint import DOCKER_HUB_HOST  # noqa: PLC0415
        from bundler.oci.reference import DOCKER_HUB  # noqa: PLC0415
        from bundler.registry.client import RegistryClient  # noqa: PLC0415 - keeps --help fast
        from bundler.registry.endpoint import Endpoint  # noqa: PLC0415
        from bundler.sources.registries import read_registries  # noqa: PLC0415

        registries = read_registries(self.registries_file)
        logs.show(registries.warnings, ())
        credential = self.credential(target.host, target.prefix, registries)
        made = Endpoint(
            # Docker Hub's API lies at another host than its name.
            f"https://{DOCKER_HUB_HOST}/v2" if target.host == DOCKER_HUB else f"{target.url}/v2",
            tls=self._tls(target.host, registries),
            credential=credential,
            credentials_hint=self._hint(target, credential),
        )
        return RegistryClient(made, http_of(self.timeout_s, self.environ, self.ca_files), hosts)

    def credential(self, host: str, repository: str, registries: RegistriesFile) -> Credential | None:
        """Return the first credential for the target that is found."""
        from bundler.registry.credentials import (  # noqa: PLC0415 - keeps --help fast
            CredentialChain,
            EnvironmentCredentials,
            GivenCredential,
            from_pair,
        )
        from bundler.transfer.upstream import RegistriesCredentials  # noqa: PLC0415

        given = self._given() or from_pair(TARGET_VARIABLES, self.environ)
        places: list[Credentials] = [GivenCredential(host, given)] if given else []
        places += [EnvironmentCredentials(self.environ), RegistriesCredentials(registries)]
        places.append(files(self.authfile, self.environ))
        return CredentialChain(places).lookup(host, repository)

    def _given(self) -> Credential | None:
        from bundler.registry.endpoint import Credential  # noqa: PLC0415 - keeps --help fast

        if self.password_stdin and self.password_file:
            raise click.UsageError("--password-stdin and --password-file exclude each other")
        if self.username is None:
            if self.password_stdin or self.password_file:
                raise click.UsageError("a password without --username")
            return None
        if not self.username:
            raise click.UsageError("the value of --username is empty")
        if not (self.password_stdin or self.password_file):
            raise click.UsageError("--username goes with --password-stdin or --password-file FILE")
        password = self._password()
        if not password:
            where = self.password_file or "standard input"
            raise click.UsageError(f"{where} holds no password")
        return Credential(self.username, password, source="--username")

    def _password(self) -> str:
        """Read the password: one line, whatever it ends with."""
        if not self.password_file and sys.stdin is not None and sys.stdin.isatty():
            prompted: str = click.prompt("Password", hide_input=True, err=True, default="", show_default=False)
            return prompted
        where = self.password_file or "standard input"
        try:
            if self.password_file:
                data = Path(self.password_file).read_bytes()
            else:
                data = sys.stdin.buffer.read() if sys.stdin else b""
            # Editors of Windows put a mark before the text.
            password = data.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
        except OSError as error:
            raise click.UsageError(f"{where} cannot be read: {error.strerror}") from error
        except UnicodeError:
            # Not chained: it would quote the password.
            raise click.UsageError(f"{where} holds a password that is not UTF-8") from None
        if "\n" in password or "\r" in password:
            raise click.UsageError(f"{where} holds more than one line; a password is one")
        return password

    def _tls(self, host: str, registries: RegistriesFile) -> Tls:
        from bundler.k3s.access import tls_of  # noqa: PLC0415
        from bundler.net import Tls  # noqa: PLC0415 - keeps --help fast
        from bundler.registry.certsd import merged, tls_for  # noqa: PLC0415

        if self.client_key and not self.client_cert:
            raise click.UsageError("--client-key goes with --client-cert")
        ours = Tls(self.ca_files, self.client_cert, self.client_key, self.insecure_skip_tls_verify)
        return merged(ours, tls_of(registries.settings_of(host)[1]), tls_for(host))

    def _hint(self, target: Target, credential: Credential | None) -> str:
        where = target.url if target.plain_http else target.host
        if credential is None:
            return (
                f"Give --username NAME with --password-file FILE, or set {' and '.join(TARGET_VARIABLES)}, or run "
                f"`docker login {target.host}`."
            )
        return (
            f"The credentials came from {credential.source}. `airgap-sync login {where}` tries others without touching "
            "anything."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceAccess:
    """The values of :func:`sources`'s options."""

    authfile: str | None = None
    ca_files: tuple[str, ...] = ()
    timeout_s: float = 60.0
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    def check(self) -> None:
        """Refuse variables that hold the credentials of one target.

        Raises:
            click.UsageError: They are set.
        """
        for name in TARGET_VARIABLES:
            if self.environ.get(name):
                raise click.UsageError(
                    f"{name} is set, and would go to every upstream registry; set {name}_<HOST> instead, or use "
                    "--registries or --authfile"
                )

    def before(self) -> Credentials:
        """Return the place that is asked before the registries file."""
        from bundler.registry.credentials import EnvironmentCredentials  # noqa: PLC0415 - keeps --help fast

        return EnvironmentCredentials(self.environ)

    def after(self) -> Credentials:
        """Return the places that are asked after it."""
        return files(self.authfile, self.environ)

    def http(self, timeout_s: float | None = None) -> Http:
        """Return what requests are sent with.

        Args:
            timeout_s: How long servers may be silent, if not as long as the user allows.
        """
        return http_of(timeout_s or self.timeout_s, self.environ, self.ca_files)


def files(authfile: str | None, environ: Mapping[str, str]) -> CredentialChain:
    """Return the files of credentials in their order: the user's, docker's, those of podman and skopeo."""
    from bundler.registry.authfile import AuthFile  # noqa: PLC0415 - keeps --help fast
    from bundler.registry.credentials import CredentialChain  # noqa: PLC0415

    places = [AuthFile(Path(authfile), required=True)] if authfile else []
    if config := environ.get("DOCKER_CONFIG"):
        places.append(AuthFile(Path(config) / "config.json"))
    elif below := home():
        places.append(AuthFile(below / ".docker" / "config.json"))
    if named := environ.get("REGISTRY_AUTH_FILE"):
        places.append(AuthFile(Path(named)))
    elif runtime := environ.get("XDG_RUNTIME_DIR"):
        places.append(AuthFile(Path(runtime) / "containers" / "auth.json"))
    return CredentialChain(places)


def http_of(timeout_s: float, environ: Mapping[str, str], ca_files: tuple[str, ...]) -> Http:
    """Return what requests are sent with.

    Raises:
        BadProxyError: A proxy variable cannot be understood.
    """
    from bundler.net import Http, Proxies, Timeouts, Tls  # noqa: PLC0415 - keeps --help fast

    return Http(Timeouts(min(_CONNECT_S, timeout_s), timeout_s), Proxies.from_environment(environ), Tls(ca_files))
