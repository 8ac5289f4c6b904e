"""Putting images into a registry, by other means than those of the product."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self
from urllib.parse import urlencode, urljoin

import urllib3

from tests.support.content import Blob, BuiltImage, Manifest, Platform

if TYPE_CHECKING:
    from tests.support.images import ImageFactory

_CHUNK = 1 << 20


class PublishError(RuntimeError):
    """A registry did not take what it was given."""


class _Uploader:
    """One repository of a registry, to write to."""

    def __init__(self, registry_url: str, repository: str, auth: tuple[str, str] | None, ca_file: Path | None) -> None:
        self._base = f"{registry_url}/v2/{repository}"
        self._scope = f"repository:{repository}:pull,push"
        self._auth = auth
        self._authorization: dict[str, str] = {}
        self._pool = urllib3.PoolManager(
            retries=False, blocksize=_CHUNK, timeout=60, ca_certs=str(ca_file) if ca_file else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.clear()

    def blob(self, blob: Blob) -> None:
        if self._request("HEAD", f"{self._base}/blobs/{blob.digest}").status == HTTPStatus.OK:
            return
        opened = self._expect(HTTPStatus.ACCEPTED, "POST", f"{self._base}/blobs/uploads/")
        place = urljoin(self._base, opened.headers["Location"])
        place += ("&" if "?" in place else "?") + urlencode({"digest": blob.digest})
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        with blob.path.open("rb") as file:
            self._expect(HTTPStatus.CREATED, "PUT", place, file, headers)

    def manifest(self, manifest: Manifest, reference: str) -> None:
        url = f"{self._base}/manifests/{reference}"
        self._expect(HTTPStatus.CREATED, "PUT", url, manifest.data, {"Content-Type": manifest.media_type})

    def _expect(
        self,
        status: int,
        method: str,
        url: str,
        body: bytes | IO[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        response = self._request(method, url, body, headers)
        if response.status != status:
            raise PublishError(f"{method} {url}: {response.status} {response.data.decode(errors='replace')}")
        return response

    def _request(
        self,
        method: str,
        url: str,
        body: bytes | IO[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        sent = {**(headers or {}), **self._authorization}
        response = self._pool.request(method, url, body=body, headers=sent, redirect=False)
        if response.status == HTTPStatus.UNAUTHORIZED and not self._authorization:
            self._authorization = self._answer(response.headers["WWW-Authenticate"])
            if body is not None and not isinstance(body, bytes):
                body.seek(0)
            return self._request(method, url, body, headers)
        return response

    def _answer(self, challenge: str) -> dict[str, str]:
        basic = urllib3.make_headers(basic_auth=":".join(self._auth)) if self._auth else {}
        if challenge.lower().startswith("basic"):
            return basic
        asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        query = urlencode({"service": asked["service"], "scope": self._scope})
        response = self._pool.request("GET", f"{asked['realm']}?{query}", headers=basic)
        if response.status != HTTPStatus.OK:
            raise PublishError(f"token refused: {response.status}")
        return {"authorization": f"Bearer {response.json()['token']}"}


def publish(
    image: BuiltImage,
    registry_url: str,
    repository: str,
    tag: str | None = None,
    *,
    auth: tuple[str, str] | None = None,
    ca_file: Path | None = None,
) -> None:
    """Upload an image.

    Args:
        image: What to upload.
        registry_url: Address such as `http://127.0.0.1:5000`.
        repository: Repository to upload into.
        tag: Tag to give it; without one it can only be had by digest.
        auth: User and password, for basic and for token authentication.
        ca_file: Certificate to trust.
    """
    with _Uploader(registry_url, repository, auth, ca_file) as uploader:
        for blob in image.blobs:
            uploader.blob(blob)
        for digest, (media_type, data) in image.manifests.items():
            uploader.manifest(Manifest(media_type, data), digest)
        uploader.manifest(image.root, tag or image.root_digest)


def publish_k3s(
    registry_url: str,
    factory: "ImageFactory",
    references: Sequence[str],
    scale: float,
    platforms: Sequence[Platform],
    *,
    auth: tuple[str, str] | None = None,
) -> dict[str, BuiltImage]:
    """Build images and upload each to its path in one registry.

    Args:
        registry_url: Address such as `http://127.0.0.1:5000`.
        factory: Builds the images.
        references: Such as `docker.io/rancher/klipper-helm:v0.9.4`; `docker.io` is left out of the path.
        scale: Factor for the sizes.
        platforms: What to build for.
        auth: User and password.

    Returns:
        The images by reference.
    """

    def one(reference: str) -> BuiltImage:
        path, tag = reference.split("/", 1)[1].rsplit(":", 1)
        image = factory.build(path.rsplit("/", 1)[-1], tag, scale, platforms)
        publish(image, registry_url, path, tag, auth=auth)
        return image

    # Building and hashing leave Python's lock alone, so two threads do use two cores.
    with ThreadPoolExecutor(2) as threads:
        return dict(zip(references, threads.map(one, references), strict=True))
