"""A real registry (docker-registry) of its own for a test, demo or benchmark."""

import ctypes
import re
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.support.certificates import Certificate
from tests.support.programs import Process, find_program, free_port

# Combined log format. With basic authentication the third field is the user.
_ACCESS = re.compile(r'^\S+ \S+ \S+ \[[^\]]+\] "(?P<method>[A-Z]+) (?P<target>\S+) HTTP/\S+" (?P<status>\d{3}) ')


@dataclass(frozen=True)
class TokenAuth:
    """The token server that a registry sends its clients to, and whose signature it trusts."""

    realm: str
    service: str
    issuer: str
    root_certificate: Path


@dataclass(frozen=True)
class AccessEntry:
    """A request that the registry has answered."""

    method: str
    path: str
    status: int
    query: str


class Registry:
    """Context manager around docker-registry on the loopback interface with its own storage.

    `stop()` and `start()` also work inside of it: the storage and the port stay the same.
    """

    def __init__(
        self,
        *,
        htpasswd: tuple[str, str] | None = None,
        token: TokenAuth | None = None,
        certificate: Certificate | None = None,
        client_ca: Path | None = None,
        address: str = "127.0.0.1",
        relative_urls: bool = False,
        read_only: bool = False,
    ) -> None:
        """Prepare the registry.

        Args:
            htpasswd: User and password to ask for with basic authentication.
            token: Token server to ask for bearer tokens of.
            certificate: Serve https with this certificate.
            client_ca: Certificates of those whose clients may come, where it serves https; others fail.
            address: Where to listen; `::1` for IPv6.
            relative_urls: Answer with relative `Location` headers.
            read_only: Refuse all writes.
        """
        self.port = free_port()
        self._address = address
        self.host = f"[{address}]:{self.port}" if ":" in address else f"{address}:{self.port}"
        self.url = f"{'https' if certificate else 'http'}://{self.host}"
        self._directory = Path(tempfile.mkdtemp(prefix="registry-"))
        self.storage = self._directory / "storage"
        self.log = self._directory / "log"
        self._config = self._directory / "config.yml"
        self._process: Process | None = None

        http: dict[str, Any] = {
            "addr": self.host,
            "relativeurls": relative_urls,
            "secret": "only-for-tests",  # one is made up, with a warning, where there is none
        }
        if certificate:
            http["tls"] = {"certificate": str(certificate.cert), "key": str(certificate.key)}
            if client_ca:
                http["tls"]["clientcas"] = [str(client_ca)]
        config: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": False}},
            # No blob descriptor cache: a test may tamper with the storage and must see the effect.
            "storage": {
                "filesystem": {"rootdirectory": str(self.storage)},
                "delete": {"enabled": True},
                "maintenance": {"readonly": {"enabled": read_only}},
            },
            "http": http,
        }
        if htpasswd:
            passwords = self._directory / "htpasswd"
            passwords.write_text(f"{htpasswd[0]}:{_bcrypt(htpasswd[1])}\n")
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(passwords)}}
        elif token:
            config["auth"] = {
                "token": {
                    "realm": token.realm,
                    "service": token.service,
                    "issuer": token.issuer,
                    "rootcertbundle": str(token.root_certificate),
                }
            }
        self._config.write_text(yaml.safe_dump(config))

    def start(self) -> Self:
        """Start serving what is in the storage."""
        self.storage.mkdir(exist_ok=True)
        self._process = Process([find_program("docker-registry"), "serve", self._config], self.log)
        self._process.wait_for(self._listens, f"port {self.port}")
        return self

    def _listens(self) -> bool:
        with socket.socket(socket.AF_INET6 if ":" in self._address else socket.AF_INET) as client:
            client.settimeout(1)
            return client.connect_ex((self._address, self.port)) == 0

    def stop(self) -> None:
        """Stop serving; the storage stays."""
        if self._process:
            self._process.stop()

    def close(self) -> None:
        """Stop serving and remove everything."""
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def requests(self) -> list[AccessEntry]:
        """Give all requests answered so far.

        An entry is written after its answer was sent, so the client may be ahead of the log: this waits
        until the log has been quiet for a moment.
        """
        size, quiet_since = -1, time.monotonic()
        while time.monotonic() - quiet_since < 0.1:
            if (now := self.log.stat().st_size) != size:
                size, quiet_since = now, time.monotonic()
            time.sleep(0.02)
        entries = []
        for line in self.log.read_text(errors="replace").splitlines():
            if match := _ACCESS.match(line):
                path, _, query = match["target"].partition("?")
                entries.append(AccessEntry(match["method"], path, int(match["status"]), query))
        return entries

    def mark(self) -> int:
        """Give a point in the list of requests to look `since`."""
        return len(self.requests())

    def since(self, mark: int) -> list[AccessEntry]:
        """Give the requests answered after a `mark`."""
        return self.requests()[mark:]


def _bcrypt(password: str) -> str:
    """Hash a password as htpasswd files for docker-registry need it.

    The C library's crypt can do this; Python's module around it is gone from newer versions.
    """
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    hashed: bytes | None = crypt(password.encode(), b"$2b$04$" + b"abcdefghijklmnopqrstuu")
    if not hashed or not hashed.startswith(b"$2b$"):
        raise RuntimeError("this machine's libcrypt has no bcrypt")
    return hashed.decode()
