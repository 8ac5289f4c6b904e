"""The media types we carry, OCI and Docker.

Source: image-spec media-types.md; distribution manifest-v2-2.md.
"""

from __future__ import annotations

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
IMAGE_CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})

#: Asked for whenever a manifest is wanted: leaving one out makes some registries answer 404 or convert.
ACCEPT = (OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST)

_SCHEMA1 = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)


def is_index(media_type: str) -> bool:
    """Tell whether this is an index (manifest list)."""
    return media_type in INDEXES


def is_manifest(media_type: str) -> bool:
    """Tell whether this is an image manifest."""
    return media_type in MANIFESTS


def is_schema1(media_type: str) -> bool:
    """Tell whether this is Docker's retired schema 1, which has no content digests we could keep."""
    return media_type in _SCHEMA1


def is_foreign(media_type: str) -> bool:
    """Tell whether this is a layer that its registry need not have.

    Source: image-spec layer.md, "Non-Distributable Layers"; Docker's foreign layers of Windows images.
    """
    return ".foreign." in media_type or ".nondistributable." in media_type


def is_image_config(media_type: str) -> bool:
    """Tell whether this is the config of a runnable image, which states its platform."""
    return media_type in IMAGE_CONFIGS
