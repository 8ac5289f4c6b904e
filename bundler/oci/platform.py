"""Platforms: parsing, normalisation and the choice among an index's children.

Source: image-spec image-index.md, "platform"; containerd platforms/compare.go and database.go for the order in
which variants stand in for each other. Unlike containerd we never let another architecture stand in (arm for
arm64, 386 for amd64): see docs/decisions/0002-platform-matching.md.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any, Self

from bundler.errors import BadPlatformError

_PART = re.compile(r"[A-Za-z0-9_.-]+")
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "i386": ("386", ""),
}


# Source: Go's list of GOOS and GOARCH values, which image-spec config.md refers to; those that images are made for.
_KNOWN_OS = frozenset({"linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "wasi", "wasip1"})
_KNOWN_ARCHITECTURES = frozenset(
    {"386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64"}
    | {"s390x", "wasm"}
)


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """An operating system, an architecture and, where it matters, a variant.

    Values are normalised: ``arm64`` has no variant ``v8``, ``arm`` without one is ``v7``, ``amd64`` has no ``v1``.
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""

    @classmethod
    def make(cls, os: str, architecture: str, variant: str = "", os_version: str = "") -> Self:
        """Return the normalised platform."""
        os, architecture, variant = os.lower(), architecture.lower(), variant.lower()
        if architecture in _ARCHITECTURES:
            architecture, default = _ARCHITECTURES[architecture]
            variant = variant or default
        if number := re.fullmatch(r"v?0*([0-9]{1,2})", variant):
            variant = f"v{number[1]}"
        match architecture, variant:
            case "arm", "":
                variant = "v7"
            case ("arm64", "v8") | ("amd64", "v1"):
                variant = ""
        return cls(os, architecture, variant, os_version)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``OS/ARCH[/VARIANT]``.

        Raises:
            BadPlatformError: The text has another form.
        """
        parts = text.split("/")
        if not 2 <= len(parts) <= 3 or not all(_PART.fullmatch(part) for part in parts):  # noqa: PLR2004
            raise BadPlatformError(f"{text[:80]!r} is not a platform")
        platform = cls.make(*parts)
        if platform.os not in _KNOWN_OS or platform.architecture not in _KNOWN_ARCHITECTURES:
            near = difflib.get_close_matches(platform.architecture, sorted(_KNOWN_ARCHITECTURES), 1)
            meant = f" Did you mean {platform.os}/{near[0]}?" if near and platform.os in _KNOWN_OS else ""
            raise BadPlatformError(
                f"{text[:80]!r} is no platform that images exist for", hint=f"{BadPlatformError.hint}{meant}"
            )
        return platform

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self | None:
        """Read a descriptor's or config's platform; None if it names none (``unknown`` or empty)."""
        os, architecture = data.get("os"), data.get("architecture")
        if not isinstance(os, str) or not isinstance(architecture, str):
            return None
        if not os or not architecture or "unknown" in (os, architecture):
            return None
        variant, os_version = data.get("variant"), data.get("os.version")
        return cls.make(
            os,
            architecture,
            variant if isinstance(variant, str) else "",
            os_version if isinstance(os_version, str) else "",
        )

    def acceptable_variants(self) -> tuple[str, ...]:
        """Return the variants that run on this platform, best first, itself included."""
        number = int(self.variant[1:]) if re.fullmatch(r"v[0-9]{1,2}", self.variant) else None
        if self.architecture == "arm" and number:
            return tuple(f"v{n}" for n in range(number, 4, -1)) or (self.variant,)
        if self.architecture == "amd64" and number:
            return (*(f"v{n}" for n in range(number, 1, -1)), "")
        return (self.variant,)

    def rank(self, candidate: Platform) -> int | None:
        """Return how well a candidate runs here: 0 is best, None is not at all.

        ``os_version`` of the candidate is not compared: every version of an operating system is taken.
        """
        if (candidate.os, candidate.architecture) != (self.os, self.architecture):
            return None
        variants = self.acceptable_variants()
        return variants.index(candidate.variant) if candidate.variant in variants else None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)
