"""Self-signed certificates for servers on the loopback interface and for token issuers."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.programs import find_program


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key, both PEM files."""

    cert: Path
    key: Path


def make_certificate(directory: Path, name: str = "localhost") -> Certificate:
    """Make a key and a self-signed certificate valid for localhost and 127.0.0.1.

    Args:
        directory: Gets `<name>.crt` and `<name>.key`.
        name: Common name.
    """
    made = Certificate(directory / f"{name}.crt", directory / f"{name}.key")
    # Elliptic keys are much quicker to make, but the token protocol of registries is at home with RSA.
    subprocess.run(
        [
            *(find_program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", made.key, "-out", made.cert),
        ],
        check=True,
        capture_output=True,
    )
    return made
