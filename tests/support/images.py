"""Real images as K3s releases have them, made of files of this machine; and small odd ones for tests.

This is the one generator that tests, demo and benchmarks share. The same name, tag, scale and platforms
give the same bytes on the same machine, as no time or random number goes into them.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.content import (
    AMD64,
    ARM,
    ARM64,
    UNKNOWN,
    Blob,
    BlobStore,
    BuiltImage,
    Manifest,
    Platform,
    digest_of,
    write_atomically,
)
from tests.support.layers import Layer, LayerFile, gzip_layer, write_layer
from tests.support.manifests import build_index, build_manifest, image_config, to_json
from tests.support.media_types import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    IN_TOTO,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
)
from tests.support.publishing import publish, publish_k3s

__all__ = [
    "AMD64",
    "ARM",
    "ARM64",
    "PLATFORMS",
    "Blob",
    "BlobStore",
    "BuiltImage",
    "Entry",
    "ImageFactory",
    "Layer",
    "Manifest",
    "Platform",
    "build_index",
    "build_manifest",
    "digest_of",
    "gzip_layer",
    "image_config",
    "image_of",
    "index_of",
    "publish",
    "publish_k3s",
    "single",
]

PLATFORMS = (AMD64, ARM64, ARM)

# Part of every cache key: to be counted up when the same arguments shall give other bytes.
_FORMAT = 1
_MB = 1_000_000
_SMALLEST_LAYER = 2048

# Compressed megabytes of the layers of one platform, as in the real images. `base` is the one layer
# that several images share.
_BASE = 3.4
_LAYERS: Mapping[str, Sequence[float]] = {
    "klipper-helm": (_BASE, 21.1, 45.0),
    "klipper-lb": (_BASE, 1.7),
    "k3s-upgrade": (_BASE, 9.6, 75.0),
    "library-traefik": (3.6, 2.0, 48.0),
    "coredns-coredns": (2.1, 20.5),
    "metrics-server": (1.1, 3.0, 18.0),
    "local-path-provisioner": (3.5, 10.6),
    "library-busybox": (1.5, 0.5),
    "pause": (0.29,),
    "system-upgrade-controller": (3.0, 15.0),
    "kubectl": (2.0, 48.0),
}
_UNKNOWN_LAYERS = (3.0, 5.0)
_WITH_BASE = frozenset({"klipper-helm", "klipper-lb", "k3s-upgrade"})
_DOCKER = frozenset({"library-traefik", "library-busybox"})
_ATTESTED = frozenset({"coredns-coredns", "k3s-upgrade", "system-upgrade-controller"})


@dataclass(frozen=True)
class Entry:
    """A child of an index: an image with what the index says about it."""

    image: BuiltImage
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)


def image_of(root: Manifest, blobs: Sequence[Blob], below: Sequence[BuiltImage] = ()) -> BuiltImage:
    """Put together an image from its root, its blobs and the images below it."""
    manifests: dict[str, tuple[str, bytes]] = {}
    unique: dict[str, Blob] = {}
    for image in below:
        manifests |= image.manifests
        manifests[image.root_digest] = (image.root_media_type, image.root_bytes)
        unique |= {blob.digest: blob for blob in image.blobs}
    unique |= {blob.digest: blob for blob in blobs}
    return BuiltImage(root.media_type, root.digest, root.data, manifests, list(unique.values()))


def index_of(
    *entries: Entry, media_type: str = OCI_INDEX, annotations: Mapping[str, str] | None = None, **fields: Any
) -> BuiltImage:
    """Build an index over images, which may be indexes themselves."""
    children = [
        entry.image.root.descriptor(
            entry.platform, **({"annotations": dict(entry.annotations)} if entry.annotations else {})
        )
        for entry in entries
    ]
    index = build_index(children, media_type=media_type, annotations=annotations, **fields)
    return image_of(index, [], [entry.image for entry in entries])


def single(
    store: BlobStore,
    platform: Platform = AMD64,
    files: Mapping[str, bytes] | None = None,
    *,
    docker: bool = False,
    annotations: Mapping[str, str] | None = None,
    **config_fields: Any,
) -> BuiltImage:
    """Build an image for one platform, with one layer of the given files and no index.

    Args:
        store: Gets the config and the layer.
        platform: What the config says that the image runs on.
        files: Content of the layer by relative path; one small file where not given.
        docker: Use Docker's media types instead of OCI's.
        annotations: Annotations of the manifest.
        config_fields: Top-level fields of the config to add or replace.
    """
    layer = gzip_layer(files or {"etc/image": f"{platform}\n".encode()})
    config = image_config(platform, [layer.diff_id], **config_fields)
    blobs = [
        store.add(config, DOCKER_CONFIG if docker else OCI_CONFIG),
        store.add(layer.data, DOCKER_LAYER if docker else OCI_LAYER),
    ]
    return _one_platform(blobs, docker=docker, annotations=annotations)


def _one_platform(blobs: Sequence[Blob], *, docker: bool, annotations: Mapping[str, str] | None = None) -> BuiltImage:
    config, *layers = blobs
    manifest = build_manifest(
        config.descriptor(),
        [layer.descriptor() for layer in layers],
        media_type=DOCKER_MANIFEST if docker else OCI_MANIFEST,
        annotations=annotations,
    )
    return image_of(manifest, blobs)


class ImageFactory:
    """Builds images the way K3s releases have them and keeps what it built in a directory.

    A second call with the same arguments, also from another process, only reads a small description.
    """

    def __init__(self, cache_dir: Path) -> None:
        self.store = BlobStore(cache_dir / "blobs")
        self._layers = cache_dir / "layers"
        self._images = cache_dir / "images"
        for directory in (self._layers, self._images):
            directory.mkdir(parents=True, exist_ok=True)
        # Images that share a layer may be built at the same time; the second waits for the first.
        self._locks: dict[str, threading.Lock] = {}

    def build(
        self,
        name: str,
        tag: str,
        scale: float = 1.0,
        platforms: Sequence[Platform] = PLATFORMS,
        *,
        docker: bool | None = None,
        attestations: bool | None = None,
    ) -> BuiltImage:
        """Build an image: an index with a manifest for each platform.

        Args:
            name: Last part of the repository, such as `klipper-helm`. It decides about sizes, layers,
                media types and attestations; `mirrored-` in front makes no difference.
            tag: Images of one name with different tags share only a base layer.
            scale: Factor for the sizes. No layer gets smaller than 2 KiB.
            platforms: What to build for.
            docker: Docker's media types instead of OCI's. By the name where not given.
            attestations: An attestation manifest for each platform. By the name where not given.
        """
        kind = name.removeprefix("mirrored-")
        docker = kind in _DOCKER if docker is None else docker
        attestations = kind in _ATTESTED if attestations is None else attestations
        parts = [_FORMAT, name, tag, scale, [str(platform) for platform in platforms], docker, attestations]
        key = digest_of(to_json(parts)).removeprefix("sha256:")
        description = self._images / f"{name}-{key[:16]}.json"
        with self._lock(key):
            if description.exists():
                return self._load(json.loads(description.read_bytes()))
            image = self._build(kind, tag, scale, platforms, docker=docker, attestations=attestations)
            write_atomically(description, to_json(self._describe(image)))
        return image

    def _build(
        self,
        kind: str,
        tag: str,
        scale: float,
        platforms: Sequence[Platform],
        *,
        docker: bool,
        attestations: bool,
    ) -> BuiltImage:
        entries = []
        for platform in platforms:
            layers = self._layers_of(kind, tag, scale, platform)
            config = image_config(
                platform,
                [layer.diff_id for layer in layers],
                entrypoint=[f"/usr/bin/{kind}"],
                labels={"org.opencontainers.image.title": kind, "org.opencontainers.image.version": tag},
            )
            media_type = DOCKER_LAYER if docker else OCI_LAYER
            blobs = [
                self.store.add(config, DOCKER_CONFIG if docker else OCI_CONFIG),
                *(Blob(layer.digest, layer.path, layer.size, media_type) for layer in layers),
            ]
            entries.append(Entry(_one_platform(blobs, docker=docker), platform))
        if attestations:
            entries += [self.attestation(entry.image.root_digest) for entry in entries]
        return index_of(*entries, media_type=DOCKER_LIST if docker else OCI_INDEX)

    def attestation(self, digest: str) -> Entry:
        """Build what BuildKit puts into an index beside the manifest of the given digest."""
        statement = {
            "_type": "https://in-toto.io/Statement/v0.1",
            "predicateType": "https://slsa.dev/provenance/v0.2",
            "subject": [{"name": "image", "digest": {"sha256": digest.removeprefix("sha256:")}}],
            "predicate": {"builder": {"id": ""}, "buildType": "https://mobyproject.org/buildkit@v1"},
        }
        layer = self.store.add(to_json(statement), IN_TOTO)
        config = self.store.add(image_config(UNKNOWN, [layer.digest], config={}), OCI_CONFIG)
        predicate = {"in-toto.io/predicate-type": "https://slsa.dev/provenance/v0.2"}
        manifest = build_manifest(config.descriptor(), [layer.descriptor(annotations=predicate)])
        annotations = {
            "vnd.docker.reference.digest": digest,
            "vnd.docker.reference.type": "attestation-manifest",
        }
        return Entry(image_of(manifest, [config, layer]), UNKNOWN, annotations)

    def _lock(self, key: str) -> threading.Lock:
        return self._locks.setdefault(key, threading.Lock())

    def _layers_of(self, kind: str, tag: str, scale: float, platform: Platform) -> list[LayerFile]:
        layers = []
        for number, megabytes in enumerate(_LAYERS.get(kind, _UNKNOWN_LAYERS)):
            shared = kind in _WITH_BASE and number == 0
            seed = f"base {platform}" if shared else f"{kind}:{tag} {platform} layer {number}"
            layers.append(self._layer(seed, max(round(megabytes * scale * _MB), _SMALLEST_LAYER)))
        return layers

    def _layer(self, seed: str, size: int) -> LayerFile:
        key = digest_of(to_json([_FORMAT, seed, size])).removeprefix("sha256:")
        description = self._layers / f"{key}.json"
        with self._lock(key):
            if description.exists():
                known = json.loads(description.read_bytes())
                return LayerFile(self.store.path(known["digest"]), **known)
            layer = write_layer(seed, size, self.store.directory)
            known = {"digest": layer.digest, "size": layer.size, "diff_id": layer.diff_id}
            write_atomically(description, to_json(known))
        return layer

    def _describe(self, image: BuiltImage) -> dict[str, Any]:
        # The manifests are files beside the blobs, which keeps the description small.
        for media_type, data in [(image.root_media_type, image.root_bytes), *image.manifests.values()]:
            self.store.add(data, media_type)
        return {
            "root": [image.root_digest, image.root_media_type],
            "manifests": [[digest, media_type] for digest, (media_type, _) in image.manifests.items()],
            "blobs": [[blob.digest, blob.size, blob.media_type] for blob in image.blobs],
        }

    def _load(self, described: dict[str, Any]) -> BuiltImage:
        root, media_type = described["root"]
        manifests = {digest: (kind, self.store.path(digest).read_bytes()) for digest, kind in described["manifests"]}
        blobs = [Blob(digest, self.store.path(digest), size, kind) for digest, size, kind in described["blobs"]]
        return BuiltImage(media_type, root, self.store.path(root).read_bytes(), manifests, blobs)
