"""Certificates for servers on the loopback interface and for token issuers: self-signed, or of an authority."""

import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import trustme

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


class Authority:
    """A private authority, as companies have them, whose certificates nobody trusts by himself.

    Attributes:
        ca_file: Its own certificate, a PEM file.
    """

    def __init__(self, directory: Path, organisation: str = "Acme Internal CA") -> None:
        """Make its key and certificate.

        Args:
            directory: Gets all files; of its own, and made if it is not there.
            organisation: Organisation that its name holds.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.ca_file = directory / "ca.pem"
        self._directory = directory
        self._issued = 0
        self._authority = trustme.CA(organization_name=organisation)
        self._authority.cert_pem.write_to_path(str(self.ca_file))

    def issue(
        self,
        *names: str,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        client: bool = False,
    ) -> Certificate:
        """Issue a certificate.

        Args:
            names: DNS names, or addresses such as `127.0.0.1` and `::1`.
            not_before: When it starts to be valid; long ago by default.
            not_after: When that ends; in a long time by default.
            client: Make it one of a client: the first name, without spaces, becomes its common name and a mail
                address, and it is valid for no host.
        """
        # A certificate without any alternative name is none to programs in Go.
        identities = (f"{names[0]}@clients.example",) if client else names
        issued = self._authority.issue_cert(
            *identities, common_name=names[0] if client else None, not_before=not_before, not_after=not_after
        )
        self._issued += 1
        made = Certificate(self._directory / f"{self._issued}.crt", self._directory / f"{self._issued}.key")
        made.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(made.key))
        return made
