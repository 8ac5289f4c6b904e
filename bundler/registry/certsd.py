"""certs.d: a directory for each host, with the CAs it is trusted by and the certificates we show it.

Source: docs.docker.com, "Verify repository client with certificates"; containers-certs.d(5): ``*.crt`` is a CA,
``*.cert`` a client certificate, ``*.key`` its key under the same name.
"""

from __future__ import annotations

from pathlib import Path

from bundler.errors import BadTlsFileError
from bundler.net import Tls

DIRECTORIES = (Path("/etc/docker/certs.d"), Path("/etc/containers/certs.d"))


def tls_for(host: str, directories: tuple[Path, ...] = DIRECTORIES) -> Tls:
    """Return what the directories say of a host and port.

    Raises:
        BadTlsFileError: A client certificate has no key, or a directory cannot be read.
    """
    ca_files: list[str] = []
    pair: tuple[str, str] | None = None
    for directory in directories:
        try:
            names = sorted(path for path in (directory / host).iterdir() if path.is_file())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise BadTlsFileError(f"{directory / host} cannot be read: {error.strerror}") from error
        for path in names:
            if path.suffix == ".crt":
                ca_files.append(str(path))
            elif path.suffix == ".cert" and pair is None:
                key = path.with_suffix(".key")
                if key not in names:
                    raise BadTlsFileError(f"{path} has no key beside it", hint=f"Put its key into {key}.")
                pair = (str(path), str(key))
    return Tls(tuple(ca_files), *(pair or (None, None)))


def merged(*settings: Tls) -> Tls:
    """Return several settings as one: all CAs, the first client certificate, unverified if one says so."""
    ours = next((tls for tls in settings if tls.cert_file), Tls())
    return Tls(
        tuple(dict.fromkeys(path for tls in settings for path in tls.ca_files)),
        ours.cert_file,
        ours.key_file,
        any(tls.skip_verify for tls in settings),
    )
