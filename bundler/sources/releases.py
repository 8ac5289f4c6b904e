"""The release location: where the image list of a K3s release is published.

A URL is asked for ``<base>/<version with + as %2B>/k3s-images.txt``, a directory holds ``<version>/k3s-images.txt``.
What is published wins over what is shipped; where the location cannot be reached or does not have the release, the
shipped list stands in.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from bundler.bundle.lock import LockedRelease
from bundler.errors import (
    AirgapSyncError,
    BadManifestError,
    BadReleaseListError,
    BadReleaseUrlError,
    BrokenConnectionError,
    ConnectionFailedError,
    ReleaseListUnavailableError,
    TimedOutError,
    TlsError,
    UnknownK3sVersionError,
)
from bundler.k3s.releases import ReleaseList, is_listed_tag, known_versions, parse_release_list, shipped_list
from bundler.k3s.suggest import did_you_mean
from bundler.k3s.version import K3sVersion, nearest
from bundler.net import Http, Timeouts
from bundler.oci.reference import Reference
from bundler.url import redact

SHIPPED = "shipped"
LIST_NAME = "k3s-images.txt"
#: How long a location may take to connect or to answer before the shipped list stands in.
PATIENCE_S = 5.0
_MAX_LIST_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Release:
    """The image list of one release, with where it comes from.

    Attributes:
        source: ``published`` or ``shipped``.
        warnings: What differs between the two.
        notices: Why the shipped list stands in.
    """

    version: K3sVersion
    images: tuple[Reference, ...]
    source: str
    warnings: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    def locked(self) -> LockedRelease:
        """Return the entry for the bundle's lock."""
        text = "".join(f"{line}\n" for line in sorted(str(image) for image in self.images))
        return LockedRelease(str(self.version), hashlib.sha256(text.encode()).hexdigest())


class ReleaseLocation:
    """Finds image lists.

    Args:
        location: A URL, a directory, or ``shipped`` to ask nobody.
        http: What a URL is asked with; it should not wait for long.
    """

    def __init__(self, location: str, http: Http | None = None) -> None:
        self._http = http or Http(Timeouts(PATIENCE_S, PATIENCE_S))
        self._location = location.rstrip("/") or location
        # Why it did not answer; it is not waited for again.
        self._silence = ""

    def release(self, version: K3sVersion) -> Release:
        """Return the image list of a release.

        Raises:
            BadReleaseListError: The location answers with something else.
            ReleaseListUnavailableError: A real release whose list is neither shipped nor to be had.
            UnknownK3sVersionError: A version that nobody knows.
            RegistryUnavailableError: The location fails in another way than not being reachable.
            BadReleaseUrlError: The location is a directory that does not exist.
        """
        shipped = shipped_list(version)
        data, why_not = self._published(version)
        if data is None:
            return self._shipped(version, shipped, why_not)
        images = parse_release_list(version, data)
        return Release(version, images, "published", warnings=_differences(version, images, shipped))

    def _shipped(self, version: K3sVersion, shipped: ReleaseList | None, why_not: str) -> Release:
        if shipped is None:
            raise self._unknown(version, why_not)
        notices = (f"{version}: {why_not}; using the image list shipped with airgap-sync",) if why_not else ()
        images = tuple(Reference.parse(line) for line in shipped.lines)
        return Release(version, images, "shipped", notices=notices)

    def _unknown(self, version: K3sVersion, why_not: str) -> AirgapSyncError:
        because = f" ({why_not})" if why_not else ""
        if is_listed_tag(version):
            return ReleaseListUnavailableError(
                f"{version} is a K3s release, but its image list is neither shipped nor published there{because}"
            )
        return UnknownK3sVersionError(
            f"no K3s release {version} is known here{because}",
            hint=f"{did_you_mean(nearest(str(version), known_versions()))} "
            "A newer release needs --release-url URL|DIR with its k3s-images.txt.".strip(),
        )

    def _published(self, version: K3sVersion) -> tuple[bytes | None, str]:
        """Return the published list, or None and why there is none."""
        if self._location == SHIPPED:
            return None, ""
        if "://" in self._location:
            return self._ask(f"{self._location}/{version.url_name}/{LIST_NAME}")
        folder = Path(self._location)
        if not folder.is_dir():
            raise BadReleaseUrlError(
                f"the release location {self._location} is neither a URL nor a directory",
            )
        path = folder / str(version) / LIST_NAME
        try:
            return path.read_bytes(), ""
        except FileNotFoundError:
            return None, f"{path} does not exist"
        except OSError as error:
            raise BadReleaseListError(f"{path} cannot be read: {error.strerror}") from error

    def _ask(self, url: str) -> tuple[bytes | None, str]:
        if not url.startswith(("http://", "https://")):
            raise BadReleaseUrlError(f"the release location {redact(url)} is neither http nor https")
        if self._silence:
            return None, self._silence
        try:
            response = self._http.request("GET", url)
            if response.status == HTTPStatus.OK:
                return response.read_all(_MAX_LIST_BYTES), ""
            response.close()
        except (ConnectionFailedError, BrokenConnectionError, TimedOutError) as error:
            self._silence = error.message
            return None, self._silence
        except BadManifestError as error:
            raise BadReleaseListError(error.message) from error
        except TlsError as error:
            error.hint = (
                f"{error.hint} Without that, `--release-url shipped` takes the lists that came with airgap-sync."
            )
            raise
        if response.status == HTTPStatus.NOT_FOUND:
            return None, f"{redact(url)} does not exist"
        raise BadReleaseListError(f"{redact(url)} answered {response.status} instead of an image list")


def _differences(version: K3sVersion, images: tuple[Reference, ...], shipped: ReleaseList | None) -> tuple[str, ...]:
    if shipped is None:
        return ()
    published = {str(image) for image in images}
    lines = [f"-{line}" for line in sorted(set(shipped.lines) - published)]
    lines += [f"+{line}" for line in sorted(published - set(shipped.lines))]
    if not lines:
        return ()
    return (
        f"{version}: the published image list differs from the one shipped (-shipped +published): {' '.join(lines)}",
    )
