"""A small client that pulls an image with nothing but the specifications, to see what a registry really holds."""

import hashlib
import json
import urllib.request
from dataclasses import dataclass, field
from email.message import Message

from tests.support.content import BuiltImage
from tests.support.media_types import INDEXES, MANIFESTS

ACCEPT = ", ".join(sorted(INDEXES | MANIFESTS))


@dataclass
class Pulled:
    """What a tag stands for: media type and bytes of each manifest, bytes of each blob, by sha256 digest."""

    root: str = ""
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)


def sha256(data: bytes) -> str:
    """Give the sha256 digest of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def pull(registry_url: str, repository: str, reference: str) -> Pulled:
    """Pull an image by tag or digest, with everything below it."""
    pulled = Pulled()
    pulled.root = _manifest(f"{registry_url}/v2/{repository}", reference, None, pulled)
    return pulled


def check_pulled(registry_url: str, repository: str, tag: str, image: BuiltImage) -> None:
    """Pull an image and check that it is another one byte for byte, under the same media types."""
    pulled = pull(registry_url, repository, tag)
    assert pulled.manifests[pulled.root] == (image.root_media_type, image.root_bytes)
    expected = {sha256(data): (media_type, data) for media_type, data in image.manifests.values()}
    assert pulled.manifests == {**expected, sha256(image.root_bytes): (image.root_media_type, image.root_bytes)}
    assert pulled.blobs == {sha256(blob.path.read_bytes()): blob.path.read_bytes() for blob in image.blobs}


def _get(url: str, headers: dict[str, str]) -> tuple[bytes, Message]:
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - of a peer
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        return response.read(), response.headers


def _manifest(base: str, reference: str, media_type: str | None, pulled: Pulled) -> str:
    data, headers = _get(f"{base}/manifests/{reference}", {"Accept": ACCEPT})
    digest, served = sha256(data), headers["Content-Type"]
    if ":" in reference:
        assert hashlib.new(reference.partition(":")[0], data).hexdigest() == reference.partition(":")[2]
    assert media_type in {None, served}
    if digest in pulled.manifests:
        return digest
    pulled.manifests[digest] = (served, data)
    document = json.loads(data)
    if served in INDEXES:
        for child in document["manifests"]:
            _manifest(base, child["digest"], child["mediaType"], pulled)
    else:
        for part in (document["config"], *document.get("layers", [])):
            blob, _ = _get(f"{base}/blobs/{part['digest']}", {})
            assert hashlib.new(part["digest"].partition(":")[0], blob).hexdigest() == part["digest"].partition(":")[2]
            assert len(blob) == part["size"]
            pulled.blobs[sha256(blob)] = blob
    return digest
