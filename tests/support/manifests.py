"""Builders of image configs, manifests and indexes, ordinary ones and odd ones."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.support.content import Manifest, Platform
from tests.support.media_types import OCI_INDEX, OCI_MANIFEST


def to_json(content: Any) -> bytes:
    """Write JSON, the same bytes for the same content."""
    return json.dumps(content, separators=(",", ":")).encode()


def image_config(
    platform: Platform,
    diff_ids: Sequence[str],
    *,
    entrypoint: Sequence[str] = ("/usr/bin/true",),
    labels: Mapping[str, str] | None = None,
    **fields: Any,
) -> bytes:
    """Write an image config.

    Args:
        platform: What the image runs on.
        diff_ids: Digests of the uncompressed layers.
        entrypoint: What a container runs.
        labels: Labels of the image.
        fields: Top-level fields to add or replace.
    """
    config: dict[str, Any] = {"Entrypoint": list(entrypoint), "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}
    if labels:
        config["Labels"] = dict(labels)
    history = [{"created_by": f"COPY layer {number} /"} for number in range(1, len(diff_ids) + 1)]
    content = {
        **platform.json(),
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": history,
        **fields,
    }
    return to_json(content)


def build_manifest(
    config: Mapping[str, Any],
    layers: Sequence[Mapping[str, Any]],
    *,
    media_type: str = OCI_MANIFEST,
    annotations: Mapping[str, str] | None = None,
    **fields: Any,
) -> Manifest:
    """Build an image manifest from the descriptors of its config and layers.

    Args:
        config: Descriptor of the config.
        layers: Descriptors of the layers.
        media_type: Media type of the manifest itself.
        annotations: Annotations of the manifest.
        fields: Top-level fields to add or replace, such as `subject`.
    """
    content: dict[str, Any] = {"schemaVersion": 2, "mediaType": media_type}
    content |= {"config": config, "layers": list(layers)}
    if annotations:
        content["annotations"] = dict(annotations)
    return Manifest(media_type, to_json(content | fields))


def build_index(
    children: Sequence[Mapping[str, Any]],
    *,
    media_type: str = OCI_INDEX,
    annotations: Mapping[str, str] | None = None,
    **fields: Any,
) -> Manifest:
    """Build an index from the descriptors of its children.

    Args:
        children: Descriptors of manifests or further indexes.
        media_type: Media type of the index itself.
        annotations: Annotations of the index.
        fields: Top-level fields to add or replace.
    """
    content: dict[str, Any] = {"schemaVersion": 2, "mediaType": media_type, "manifests": list(children)}
    if annotations:
        content["annotations"] = dict(annotations)
    return Manifest(media_type, to_json(content | fields))
