"""Files with credentials in the form of docker's config.json, which containers' auth.json shares.

What they may hold and docker's own library leaves out is made up for here: entries with plain username and password,
and keys that name a namespace of a registry. Everything else, credential helpers above all, is docker's.

Source: docker/cli, ``cli/config/configfile``; containers-auth.json(5).
"""

from __future__ import annotations

import base64
import json
import shutil
import threading
from pathlib import Path
from typing import Any

from bundler.errors import BadOutputError, NoCredentialsError
from bundler.files import PRIVATE, write_atomic
from bundler.registry.endpoint import Credential

#: What docker's own files append to a host.
_API_PATHS = ("", "v1", "v2")
#: A helper that waits for somebody to type must not hold a scheduled run for ever.
_HELPER_S = 60.0
_HELPER_PREFIX = "docker-credential-"
_FAILED = "its credential helper {} failed"


class AuthFile:
    """Finds credentials in one file; safe to share between threads.

    Args:
        path: The file; it may be absent.
        required: It must not be absent.
    """

    def __init__(self, path: Path, *, required: bool = False) -> None:
        self._path = path
        self._required = required
        self._lock = threading.Lock()
        self._document: dict[str, Any] | None = None
        self._found: dict[tuple[str, str], Credential | NoCredentialsError | None] = {}

    def lookup(self, host: str, repository: str = "") -> Credential | None:
        """Return the credential for a registry host (``docker.io`` for Docker Hub), if there is one.

        Args:
            host: With its port, exactly.
            repository: Credentials for a namespace that holds it go before those of the whole host.

        Raises:
            NoCredentialsError: The file or a credential helper that it names is broken.
        """
        with self._lock:
            document = self._opened(host)
            # A helper knows hosts, no repositories. It is asked once, also if it fails: it may wait for a person.
            key = host, "" if _helper_for(document, host) else repository
            if key not in self._found:
                try:
                    self._found[key] = self._lookup(document, *key)
                except NoCredentialsError as error:
                    self._found[key] = error
            found = self._found[key]
        if isinstance(found, NoCredentialsError):
            raise found
        return found

    def _opened(self, host: str) -> dict[str, Any]:
        try:
            if self._document is None:
                self._document = self._open()
            # What is said of one host may be malformed where that of another is not.
            _helper_for(self._document, host)
        except OSError as error:
            raise self._broken(host, error.strerror or type(error).__name__) from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise self._broken(host, "it is not JSON in the form of docker's config.json") from error
        return self._document

    def _lookup(self, document: dict[str, Any], host: str, repository: str) -> Credential | None:
        helper = None
        try:
            helper = _helper_for(document, host)
            entries = _entries_for(_entries_of(document), host, repository)
            found = self._resolve(host, helper, entries) if helper or entries else None
            return _credential(found, str(self._path)) if found else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            # No more is told: the text of an error about a credential may quote it.
            what = _FAILED.format(helper) if helper else "what it holds for this host is malformed"
            raise self._broken(host, what) from error

    def _open(self) -> dict[str, Any]:
        try:
            return _read(self._path)
        except (FileNotFoundError, NotADirectoryError) as error:
            if not self._required:
                return {}
            raise NoCredentialsError(
                f"the authfile {self._path} does not exist", hint="Check the path of --authfile."
            ) from error

    def _resolve(self, host: str, helper: str | None, entries: dict[str, Any]) -> Any:
        import docker.auth  # noqa: PLC0415 - 100 ms that only a user with such a file pays
        import docker.errors  # noqa: PLC0415

        if not helper:
            try:
                return docker.auth.AuthConfig.load_config(None, {"auths": entries}).resolve_authconfig(host)
            except docker.errors.DockerException as error:
                raise ValueError from error
        if shutil.which(helper) is None:
            raise self._broken(host, f"its credential helper {helper} is not on PATH")
        answer: list[Any] = []

        def ask() -> None:
            settings = {"credsStore": helper.removeprefix(_HELPER_PREFIX)}
            try:
                config = docker.auth.AuthConfig.load_config(None, {"auths": entries, **settings})
                answer.append(config.resolve_authconfig(host))
            except Exception as error:  # noqa: BLE001 - raised below, in the thread that asks
                answer.append(error)

        # docker's library waits for a helper without end.
        thread = threading.Thread(target=ask, name="credential-helper", daemon=True)
        thread.start()
        thread.join(_HELPER_S)
        if not answer:
            raise self._broken(host, f"its credential helper {helper} did not answer within {_HELPER_S:.0f} s")
        if isinstance(answer[0], Exception):
            raise self._broken(host, _FAILED.format(helper)) from answer[0]
        return answer[0]

    def _broken(self, host: str, why: str) -> NoCredentialsError:
        return NoCredentialsError(
            f"the credentials for {host} in {self._path} cannot be read: {why}",
            hint="Repair the file or its credential helper, or log in again.",
        )


def _helper_for(document: dict[str, Any], host: str) -> str | None:
    """Return the program that holds the credential of a host, if one does."""
    # Docker keeps its own registry under an old name.
    key = "https://index.docker.io/v1/" if host == "docker.io" else host
    name = (document.get("credHelpers") or {}).get(key) or document.get("credsStore")
    if name and not isinstance(name, str):
        raise TypeError
    return f"{_HELPER_PREFIX}{name}" if name else None


def _entries_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return the entries by their keys; docker's first files held nothing else."""
    if "auths" in document:
        entries = document["auths"] if document["auths"] is not None else {}
        if not isinstance(entries, dict):
            raise TypeError
        return entries
    return {key: entry for key, entry in document.items() if isinstance(entry, dict) and "auth" in entry}


def _credential(found: dict[str, Any], source: str) -> Credential | None:
    # Lower case from the file, capitals from a helper.
    token = found.get("identitytoken") or found.get("IdentityToken") or ""
    username = found.get("username") or found.get("Username") or ""
    password = found.get("password") or found.get("Password") or ""
    return Credential(username, password, token, source) if token or username else None


def _read(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_bytes())
    if not isinstance(document, dict):
        raise TypeError
    return document


def _entries_for(auths: dict[str, Any], host: str, repository: str) -> dict[str, Any]:
    """Return the one entry for a host, under the host's own name and in a form that docker's library reads."""
    best, weight = None, -1
    for key, entry in auths.items():
        name, _, path = key.removeprefix("https://").removeprefix("http://").partition("/")
        path = path.strip("/")
        if name != host and not (host == "docker.io" and name in ("index.docker.io", "registry-1.docker.io")):
            continue
        if key == host:
            # What `login` writes goes before what an older file calls the host.
            found = 2
        elif path in _API_PATHS:
            found = 0 if path else 1
        elif repository == path or repository.startswith(f"{path}/"):
            found = 2 + len(path)
        else:
            continue
        if found > weight and entry:
            best, weight = entry, found
    if best is None:
        return {}
    if not best.get("auth") and best.get("username") and not best.get("identitytoken"):
        pair = f"{best['username']}:{best.get('password') or ''}".encode()
        best = {"auth": base64.b64encode(pair).decode()}
    if best.get("identitytoken") == "":
        best = {key: value for key, value in best.items() if key != "identitytoken"}
    return {host: best}


def store(path: Path, host: str, credential: Credential) -> None:
    """Put a credential into an authfile, which is made with mode 0600; other entries stay.

    Raises:
        BadOutputError: The file is there and is none, or cannot be written, or leaves this host to a helper.
    """
    path, document, helper = path.resolve(), {}, None
    try:
        if path.exists():
            document = _read(path)
            helper = _helper_for(document, host)
        document["auths"] = {**_entries_of(document), host: _entry(credential)}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadOutputError(
            f"{path} is there and is no authfile; it was not touched", hint="Name another file."
        ) from error
    if helper:
        raise BadOutputError(
            f"{path} leaves {host} to the credential helper {helper}, which goes before what the file holds",
            hint="Name another file, or use `docker login`.",
        )
    write_atomic(path, json.dumps(document, indent=1).encode() + b"\n", mode=PRIVATE)


def _entry(credential: Credential) -> dict[str, str]:
    if credential.identity_token:
        return {"identitytoken": credential.identity_token}
    return {"auth": base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()}
