"""Push targets, and the one rule by which a source name becomes a name at the target.

The same function serves ``push`` and whatever tells nodes where to look, so the two cannot disagree.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from bundler.errors import BadTargetError
from bundler.oci.reference import MAX_REPOSITORY_LENGTH, Reference, is_registry, is_repository

_NOT_IN_PATH = re.compile(r"[^a-z0-9.-]")


@dataclass(frozen=True, slots=True)
class Target:
    """A registry and an optional repository prefix (for Harbor: the project).

    ``plain_http`` is true only if the user wrote ``http://``; nothing ever falls back to it.
    """

    host: str
    prefix: str = ""
    plain_http: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``[http://|https://]host[:port][/prefix]``.

        Raises:
            BadTargetError: The text has another form.
        """
        scheme, separator, rest = text.partition("://")
        if not separator:
            scheme, rest = "https", text
        if scheme not in ("http", "https"):
            raise BadTargetError(f"target scheme {scheme[:20]!r} is neither http nor https")
        if "@" in rest:
            raise BadTargetError(
                "a target holds no user name or password",
                hint="Give --username NAME with --password-file FILE, or use `docker login`: everybody can read this.",
            )
        host, _, prefix = rest.rstrip("/").partition("/")
        if not is_registry(host) or not _exists(host):
            raise BadTargetError(f"{host[:80]!r} is not a host or host:port")
        if prefix and not is_repository(prefix):
            raise BadTargetError(f"{prefix[:120]!r} is not a repository prefix: lower case, digits, . _ - and /")
        return cls(host, prefix, scheme == "http")

    @property
    def url(self) -> str:
        """The base URL, without the prefix."""
        return f"{'http' if self.plain_http else 'https'}://{self.host}"

    def prefix_for(self, registry: str, *, keep_registry: bool) -> str:
        """Return what stands before the repositories of a registry at the target; empty for nothing.

        Args:
            registry: The source registry.
            keep_registry: Put the source registry in front of the path, ``host:port`` as ``host-port``.
        """
        parts = [self.prefix] if self.prefix else []
        if keep_registry:
            parts.append(_NOT_IN_PATH.sub("-", registry.lower().replace("[", "").replace("]", "")).strip("-"))
        return "/".join(parts)

    def repository_for(self, reference: Reference, *, keep_registry: bool) -> str:
        """Return the repository at the target that a reference's content goes to.

        Args:
            reference: The source name.
            keep_registry: Put the source registry in front of the path, ``host:port`` as ``host-port``.

        Raises:
            BadTargetError: The name would be longer than a repository may be.
        """
        prefix = self.prefix_for(reference.registry, keep_registry=keep_registry)
        name = f"{prefix}/{reference.repository}" if prefix else reference.repository
        if not is_repository(name):
            raise BadTargetError(
                f"{reference} would become {name[:80]}..., which is not a repository name: "
                f"{len(name)} characters, at most {MAX_REPOSITORY_LENGTH} allowed",
                hint="Use a shorter prefix at the target.",
            )
        return name

    def __str__(self) -> str:
        return f"{self.url}/{self.prefix}" if self.prefix else self.url


def _exists(host: str) -> bool:
    """Tell whether a host of the right form can be one: ports end at 65535, IPv6 addresses have their own grammar."""
    try:
        parts = urlsplit(f"//{host}")
        port = parts.port
        if host.startswith("["):
            ipaddress.IPv6Address(parts.hostname or "")
    except ValueError:
        return False
    return port != 0


def tag_for(reference: Reference) -> str:
    """Return the tag that a reference's content gets at the target.

    A reference without a tag gets one made of its digest, so that a registry's clean-up of untagged manifests
    spares it.
    """
    if reference.tag:
        return reference.tag
    assert reference.digest is not None  # noqa: S101 - a Reference has a tag or a digest
    return f"digest-{reference.digest.short}"
