"""A kubeconfig: where a cluster's API server is, how it is trusted, and who we are there.

Invariants:

- Parsing reads no other file. The files that a kubeconfig names are read when they are needed.
- Secrets written into a kubeconfig never touch a disk: certificates and keys go to OpenSSL through files in memory.
- No message and no ``repr()`` shows a secret.
- No program is run: what would need one (``exec``, ``auth-provider``) is refused.

Source: kubernetes/client-go, ``tools/clientcmd/api/v1/types.go``, ``tools/clientcmd/validation.go``.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from bundler import yamlfile
from bundler.errors import AirgapSyncError, BadKubeconfigError
from bundler.net import Tls
from bundler.yamlfile import YamlDocument

#: Where K3s writes its own.
K3S_KUBECONFIG = "/etc/rancher/k3s/k3s.yaml"
MAX_TOKEN_BYTES = 64 * 1024
_TOKEN = re.compile(r"[\x21-\x7e]+")
_OWN = f"Use K3s's own kubeconfig, {K3S_KUBECONFIG} of a server, or one with a client certificate or a token."
#: Keys of a user that want a program, a password, or that somebody else is played.
_REFUSED_OF_USER = ("exec", "auth-provider", "username", "password", "as", "as-uid", "as-groups", "as-user-extra")


@dataclass(frozen=True, slots=True)
class _Pem:
    """A PEM file, or what would stand in it."""

    path: str | None = None
    data: bytes | None = field(default=None, repr=False)

    @property
    def file(self) -> str:
        return _in_memory(self.data) if self.data is not None else self.path or ""


@dataclass(frozen=True, slots=True)
class Kubeconfig:
    """The current context of a kubeconfig.

    Attributes:
        name: What messages call it, usually the path as the user wrote it.
        server: URL of the API server, without a slash at its end.
        skip_verify: Trust whatever answers.
    """

    name: str
    server: str
    skip_verify: bool = False
    _ca: _Pem | None = None
    _cert: _Pem | None = None
    _key: _Pem | None = None
    _token: str | None = field(default=None, repr=False)
    _token_file: str | None = None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a kubeconfig.

        Raises:
            BadKubeconfigError: It cannot be read, or not be used.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise BadKubeconfigError(f"{path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise BadKubeconfigError(f"{path} is not text") from None
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, name: str) -> Self:
        """Parse a kubeconfig.

        Args:
            text: The file.
            name: Its path, which paths in it are relative to; messages begin with it.

        Raises:
            BadKubeconfigError: It is no kubeconfig, or wants what is not done here.
        """
        document = yamlfile.load(text, name, error=BadKubeconfigError)
        document.mapping(())
        current = document.string(("current-context",))
        if not current:
            raise document.error_at(("current-context",), "current-context is not set")
        context = _named(document, "contexts", "context", current, ("current-context",))
        cluster = _referred(document, context, "cluster", "clusters")
        user = _referred(document, context, "user", "users")
        skip = bool(document.boolean((*cluster, "insecure-skip-tls-verify")))
        ca = _pem(document, cluster, "certificate-authority")
        if ca and skip:
            raise document.error_at(
                (*cluster, "insecure-skip-tls-verify"),
                "a CA and insecure-skip-tls-verify exclude each other",
                hint="Leave insecure-skip-tls-verify out, or set it to false.",
            )
        cert, key = _pem(document, user, "client-certificate"), _pem(document, user, "client-key")
        if bool(cert) != bool(key):
            raise document.error_at(user, "a client certificate and its key are needed together")
        token, token_file = _token(document, user)
        server = _server(document, cluster, secrets=bool(cert or token or token_file))
        _check_user(document, user)
        return cls(name, server, skip, ca, cert, key, token, token_file)

    @property
    def has_credentials(self) -> bool:
        """Whether it says who we are at all."""
        return bool(self._cert or self._token or self._token_file)

    def tls(self) -> Tls:
        """Return how to trust the server, and our certificate.

        Raises:
            BadKubeconfigError: This system has no files in memory for what is written into the kubeconfig.
        """
        if self.server.startswith("http:"):
            return Tls()
        return Tls(
            ca_files=(self._ca.file,) if self._ca else (),
            cert_file=self._cert.file if self._cert else None,
            key_file=self._key.file if self._key else None,
            skip_verify=self.skip_verify,
        )

    def authorization(self) -> str | None:
        """Return the Authorization header; None if there is no token. A token's file is read anew each time.

        Raises:
            BadKubeconfigError: The file of the token cannot be read.
        """
        token = self._token
        if self._token_file:
            try:
                with Path(self._token_file).open("rb") as file:
                    token = file.read(MAX_TOKEN_BYTES).decode("ascii", "replace").strip()
            except OSError as error:
                raise BadKubeconfigError(
                    f"{self.name}: the token file {self._token_file} cannot be read: {error.strerror}"
                ) from error
            if not _TOKEN.fullmatch(token):
                raise BadKubeconfigError(f"{self.name}: the file {self._token_file} holds no token")
        return f"Bearer {token}" if token else None


@cache
def _in_memory(data: bytes) -> str:
    """Return the path of a file in memory with these bytes, for what only takes paths.

    It stays for as long as the process lives. The TLS contexts do so too, and are found by path: if a descriptor's
    number were used again, a context would be found that was made from another file.
    """
    if not hasattr(os, "memfd_create"):
        raise BadKubeconfigError(
            "certificates written into a kubeconfig can be used on Linux only",
            hint="Put them into files, and name these under certificate-authority, client-certificate and client-key.",
        )
    descriptor = os.memfd_create("kubeconfig")
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
    return f"/proc/self/fd/{descriptor}"


def _named(document: YamlDocument, listed: str, part: str, name: str, by: yamlfile.Path) -> yamlfile.Path:
    """Return where the entry of a name stands in one of the lists; the first counts."""
    for number in range(len(document.sequence((listed,)))):
        document.mapping((listed, number))
        if document.string((listed, number, "name")) == name:
            document.mapping((listed, number, part))
            return (listed, number, part)
    raise document.error_at(by, f"{by[-1]} names what is not under {listed}")


def _referred(document: YamlDocument, context: yamlfile.Path, part: str, listed: str) -> yamlfile.Path:
    name = document.string((*context, part))
    if not name:
        raise document.error_at(context, f"the context names no {part}")
    return _named(document, listed, part, name, (*context, part))


def _server(document: YamlDocument, cluster: yamlfile.Path, *, secrets: bool) -> str:
    path = (*cluster, "server")
    text = document.string(path)
    if not text:
        raise document.error_at(cluster, "the cluster has no server")
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc or parts.query or parts.fragment:
        raise document.error_at(path, "server is not https://HOST:PORT")
    if parts.scheme == "http" and secrets:
        raise document.error_at(path, "server is http://, where credentials would be readable", hint="Write https://.")
    for key, hint in (
        (
            "tls-server-name",
            "Write a name or an address of the API server's certificate under server (K3s: --tls-san).",
        ),
        ("proxy-url", "Remove it, and set HTTPS_PROXY and NO_PROXY instead."),
    ):
        if document.get((*cluster, key)):
            raise document.error_at((*cluster, key), f"{key} is not supported", hint=hint)
    return text.rstrip("/")


def _check_user(document: YamlDocument, user: yamlfile.Path) -> None:
    for key in _REFUSED_OF_USER:
        if document.get((*user, key)):
            raise document.error_at((*user, key), f"{key} is not supported", hint=_OWN)


def _token(document: YamlDocument, user: yamlfile.Path) -> tuple[str | None, str | None]:
    """Return the token, or its file, which comes first."""
    token = document.text((*user, "token")) or None
    if token and not _TOKEN.fullmatch(token):
        raise document.error_at((*user, "token"), "token has characters that no token has")
    file = document.string((*user, "tokenFile"))
    return (None, _beside(document, file)) if file else (token, None)


def _pem(document: YamlDocument, path: yamlfile.Path, key: str) -> _Pem | None:
    """Return a PEM file; what is written into the kubeconfig comes first."""
    at = (*path, f"{key}-data")
    if text := document.string(at):
        return _Pem(data=_decoded(document, at, text))
    file = document.string((*path, key))
    return _Pem(path=_beside(document, file)) if file else None


def _decoded(document: YamlDocument, at: yamlfile.Path, text: str) -> bytes:
    error: AirgapSyncError | None = None
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        error = document.error_at(at, f"{at[-1]} is not base64")
    if error is None and b"-----BEGIN" not in data:
        error = document.error_at(at, f"{at[-1]} is not base64 of a PEM file")
    if error is not None:
        # The text is a secret, and the exception of base64 may quote it.
        raise error from None
    return data


def _beside(document: YamlDocument, file: str) -> str:
    return str(Path(document.name).parent / file)
