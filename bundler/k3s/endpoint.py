"""Endpoints: one place where a registry's images can be pulled, with all that is needed to ask there.

Pure values; who connects to them lives elsewhere.

Source: k3s-io/k3s, ``pkg/agent/containerd/config.go`` (``normalizeEndpointAddress``); k3s-io/containerd,
``core/remotes/docker/resolver.go`` (rewrites, ``ns``).
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from bundler.errors import BadRegistriesFileError
from bundler.oci.reference import DOCKER_HUB, is_registry, is_repository

if TYPE_CHECKING:
    from bundler.k3s.goregexp import GoRegexp

DOCKER_HUB_HOST = "registry-1.docker.io"
API_ROOT = "/v2"


@dataclass(frozen=True, slots=True)
class EndpointAuth:
    """Credentials: a user name with a password, or an identity token alone. ``repr()`` shows no secret."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str | None = field(default=None, repr=False)

    @classmethod
    def from_basic(cls, text: str) -> Self:
        """Parse base64 of ``user:password``, as in an Authorization header.

        Raises:
            ValueError: It is not that; the message quotes nothing.
        """
        try:
            decoded = base64.b64decode(text, validate=True).decode()
        except (binascii.Error, ValueError):
            raise ValueError("it is not base64 of USER:PASSWORD") from None
        username, colon, password = decoded.partition(":")
        if not colon:
            raise ValueError("it is not base64 of USER:PASSWORD")
        # Docker pads some of these with NUL, and containerd strips it.
        return cls(username, password.strip("\0"))


@dataclass(frozen=True, slots=True)
class EndpointTls:
    """TLS settings of a host; file paths are as the registries file has them."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    insecure_skip_verify: bool = False


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One rewrite rule: where the pattern matches in a repository, the replacement comes instead."""

    regexp: GoRegexp
    replacement: str

    @property
    def pattern(self) -> str:
        """The pattern as the registries file has it."""
        return self.regexp.pattern

    def apply(self, repository: str) -> str:
        """Return the repository with every match replaced."""
        return self.regexp.replace_all(repository, self.replacement)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint of a registry.

    ``base_url`` is what ``/<repository>/manifests/...`` is appended to; ``host`` is its host[:port];
    ``ns`` is the query parameter that tells a mirror which registry the image belongs to, None where none is sent.
    ``override_path``: the URL has a path of its own, to which no ``/v2`` is added. ``is_embedded``: it is the embedded
    registry of the node itself.
    """

    base_url: str
    host: str
    is_default: bool
    ns: str | None = None
    rewrites: tuple[Rewrite, ...] = ()
    auth: EndpointAuth | None = None
    tls: EndpointTls | None = None
    override_path: bool = False
    is_embedded: bool = False

    def repository(self, name: str) -> str:
        """Return the repository to ask for at this endpoint.

        The first rule, in the order of the file, that changes the name decides. (K3s tries its rules in no
        fixed order, so rules that overlap do not work reliably there.)

        Args:
            name: The repository alone, with ``library/`` on Docker Hub; no registry, no tag.

        Raises:
            BadRegistriesFileError: The rule makes something that is not a repository.

        Source: k3s-io/containerd, ``core/remotes/docker/resolver.go``.
        """
        for rule in self.rewrites:
            changed = rule.apply(name)
            if changed == name:
                continue
            if not is_repository(changed):
                raise BadRegistriesFileError(
                    f"the rewrite {rule.pattern!r} makes {changed!r} of {name!r}, which is not a repository",
                    hint="In a replacement $1 is the first group; write ${1} if a letter or digit follows.",
                )
            return changed
        return name


@dataclass(frozen=True, slots=True)
class Address:
    """A normalised endpoint address: the API's base URL and its host[:port].

    ``bare``: it had no scheme. ``slash``: its path ended in one, which to K3s is another address of the same place.
    """

    base_url: str
    host: str
    bare: bool = field(default=False, compare=False, repr=False)
    slash: bool = field(default=False, compare=False, repr=False)

    @property
    def is_https(self) -> bool:
        """Whether TLS is used."""
        return self.base_url.startswith("https://")

    @property
    def overrides_path(self) -> bool:
        """Whether it has a path other than the API's root, which is then taken as it is."""
        return urlsplit(self.base_url).path != API_ROOT

    @property
    def odd_path(self) -> str | None:
        """The path, if it leaves out the API's root: K3s takes a path as it is and adds no ``/v2``."""
        path = urlsplit(self.base_url).path
        return None if "v2" in path.split("/") else path

    @classmethod
    def parse(cls, text: str) -> Self:
        """Normalise ``[http://|https://]HOST[:PORT][PATH]`` as K3s does.

        Without a scheme it is https, but http for a loopback host with a port other than 443. Docker Hub's
        API is at another host than its name. No path, ``/`` and ``/v2`` mean ``/v2``; any other stays as it is.

        Raises:
            ValueError: It is not that; the message quotes nothing, as the text may hold credentials.

        Source: k3s-io/k3s, ``pkg/agent/containerd/config.go``, ``normalizeEndpointAddress``.
        """
        try:
            parts = urlsplit(text if "://" in text else f"//{text}")
            port = parts.port
        except ValueError:
            raise ValueError("it is not a URL") from None
        if "@" in parts.netloc:
            raise ValueError("credentials do not belong in a URL: put them under configs.HOST.auth")
        if parts.query or parts.fragment or not is_registry(parts.netloc):
            raise ValueError("it is not [http://|https://]HOST[:PORT][/v2/PATH]")
        if parts.scheme not in ("", "http", "https"):
            raise ValueError("the scheme must be http or https")
        plain = is_loopback(parts.hostname or "") and port not in (None, 443)
        scheme = parts.scheme or ("http" if plain else "https")
        host = DOCKER_HUB_HOST if parts.netloc == DOCKER_HUB else parts.netloc
        path = parts.path.rstrip("/") or API_ROOT
        return cls(f"{scheme}://{host}{path}", host, not parts.scheme, len(parts.path) > 1 and parts.path.endswith("/"))


def is_localhost(registry: str) -> bool:
    """Tell whether a registry (host[:port]) is on this machine itself."""
    try:
        return is_loopback(urlsplit(f"//{registry}").hostname or "")
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Tell whether a host without port is this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
