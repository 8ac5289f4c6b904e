"""From a name to the manifests behind it: fetched, verified, platforms selected, stored in the layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from bundler.bundle.imageset import ResolvedImage, WantedImage
from bundler.bundle.selection import ATTESTED_DIGEST, Wanted, select
from bundler.errors import BadManifestError, IntegrityError, WrongPlatformError
from bundler.layout.check import MAX_DEPTH
from bundler.layout.store import Layout
from bundler.oci import mediatype
from bundler.oci.content import BlobSource, ContentBuilder
from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest
from bundler.oci.manifest import (
    MAX_MANIFEST_BYTES,
    Index,
    Manifest,
    parse,
    parse_json,
)
from bundler.oci.platform import Platform


class ImageSource(BlobSource, Protocol):
    """A repository that also knows tags."""

    def head_manifest(self, reference: str) -> tuple[Digest, str] | None:
        """Return digest and media type of what a tag or digest stands for."""

    def get_manifest_by(self, reference: str) -> tuple[bytes, str, Digest]:
        """Return bytes, media type and digest of what a tag or digest stands for."""

    def skip_endpoint(self, blob: Descriptor) -> bool:
        """Do not ask the place that a blob came from last for it again; False if there is no other."""


class Resolver:
    """Resolves one image.

    Manifests that the layout already has are not fetched again.

    Args:
        layout: Where manifests go.
        source: Where they come from.
        fetch_blob: Brings one blob into the layout; used for configs, which state a single manifest's platform.
        wanted: The chosen platforms.
        ask_first: Ask for the digest before the manifest: worth a request if the layout may have it.
    """

    def __init__(
        self,
        layout: Layout,
        source: ImageSource,
        fetch_blob: Callable[[Descriptor], None],
        wanted: Wanted,
        *,
        ask_first: bool,
    ) -> None:
        self._layout = layout
        self._source = source
        self._fetch_blob = fetch_blob
        self._wanted = wanted
        self._ask_first = ask_first
        self._found = ContentBuilder()
        self._platforms: dict[Digest, tuple[Platform, ...]] = {}

    def resolve(self, image: WantedImage) -> ResolvedImage:
        """Fetch what is missing and decide what comes along.

        Raises:
            WrongPlatformError: The image has none of the chosen platforms.
            BadManifestError: A manifest is malformed, nested too deep or lists too much.
            AirgapSyncError: Whatever the source raises.
        """
        root = self._root(image)
        if isinstance(root, Manifest):
            self._found.count_in(root)
            platform = self._platform_of(root)
            self._take(root)
            if platform is None:
                return self._resolved(image, root.digest, ())
            missing = tuple(wanted for wanted in self._wanted or () if wanted.rank(platform) is None)
            if missing and len(missing) == len(self._wanted or ()):
                raise self._wrong(image, (platform,))
            return self._resolved(image, root.digest, (platform,), missing)
        self._found.count_in(root)
        pinned = image.reference.digest is not None
        inside = {
            child.digest: self._everything(child, 1)
            for child in root.manifests
            if child.platform is None and ATTESTED_DIGEST not in child.annotations and child.is_document
        }
        selection = select(root, self._wanted, inside)
        if selection.available and self._wanted and len(selection.missing) == len(self._wanted):
            raise self._wrong(image, selection.available)
        trimmed = len(selection.kept) < len(root.manifests) and not pinned
        kept = selection.kept if trimmed else root.manifests
        for child in kept:
            self._everything(child, 1)
        self._take(root.trimmed(kept) if trimmed else root)
        return self._resolved(
            image,
            root.digest,
            selection.present if trimmed else selection.available,
            selection.missing,
            complete_because_pinned=pinned and len(selection.kept) < len(root.manifests),
        )

    def _resolved(
        self,
        image: WantedImage,
        upstream: Digest,
        platforms: tuple[Platform, ...],
        missing: tuple[Platform, ...] = (),
        *,
        complete_because_pinned: bool = False,
    ) -> ResolvedImage:
        return ResolvedImage(image, self._found.content(), upstream, platforms, missing, complete_because_pinned)

    def _root(self, image: WantedImage) -> Manifest | Index:
        """Return the manifest that the name stands for; its bytes are in the layout afterwards."""
        reference = image.reference.api_reference
        if self._ask_first:
            answer = self._source.head_manifest(reference)
            # Not known: the GET that follows says it in the registry's own words.
            if answer is not None:
                digest, media_type = answer
                found = self._layout.stat_blob(digest)
                if found is not None and found.size <= MAX_MANIFEST_BYTES:
                    held = Descriptor(media_type, digest, found.size)
                    if self._layout.verify_blob(held):
                        return parse(self._layout.read_manifest(held), media_type, digest=digest)
                reference = str(digest)
        raw, media_type, digest = self._source.get_manifest_by(reference)
        document = parse(raw, media_type, digest=digest)
        self._layout.put_bytes(raw, digest)
        return document

    def _document(self, descriptor: Descriptor) -> Manifest | Index:
        if descriptor.size > MAX_MANIFEST_BYTES:
            raise BadManifestError(f"{descriptor.digest} is a manifest of more than {MAX_MANIFEST_BYTES} bytes")
        try:
            raw = self._layout.read_manifest(descriptor)
        except IntegrityError:
            raw = self._source.get_manifest(descriptor)
        else:
            return parse(raw, descriptor.media_type, digest=descriptor.digest)
        document = parse(raw, descriptor.media_type, digest=descriptor.digest)
        self._layout.put_bytes(raw, descriptor.digest)
        return document

    def _everything(self, child: Descriptor, depth: int) -> tuple[Platform, ...]:
        """Take a child with all below it, each digest once; return the platforms found."""
        if not child.is_document:
            self._found.add_blob(child)
            return ()
        if child.digest in self._platforms:
            return self._platforms[child.digest]
        if depth > MAX_DEPTH:
            raise BadManifestError(f"{child.digest} is nested deeper than {MAX_DEPTH} indexes")
        document = self._document(child)
        self._found.count_in(document)
        platforms: tuple[Platform, ...] = ()
        if isinstance(document, Index):
            for grandchild in document.manifests:
                inner = self._everything(grandchild, depth + 1)
                platforms += (grandchild.platform,) if grandchild.platform else inner
        else:
            # Most children state their platform; only for the others is the config worth an early request.
            platform = child.platform or self._platform_of(document)
            platforms = (platform,) if platform else ()
        self._take(document)
        self._platforms[child.digest] = tuple(sorted(set(platforms)))
        return self._platforms[child.digest]

    def _take(self, document: Manifest | Index) -> None:
        if isinstance(document, Index) and not self._layout.verify_blob(document.descriptor):
            self._layout.put_bytes(document.raw, document.digest)
        self._found.add(document)

    def _platform_of(self, manifest: Manifest) -> Platform | None:
        """Return the platform that the image config states; None for artifacts."""
        config = manifest.config
        if not mediatype.is_image_config(config.media_type):
            return None
        if config.size > MAX_MANIFEST_BYTES:
            raise BadManifestError(f"the config of {manifest.digest} has more than {MAX_MANIFEST_BYTES} bytes")
        self._fetch_blob(config)
        document: Any = parse_json(self._layout.read_manifest(config), f"config {config.digest}")
        return Platform.from_dict(document) if isinstance(document, dict) else None

    def _wrong(self, image: WantedImage, available: tuple[Platform, ...]) -> WrongPlatformError:
        wanted = ", ".join(str(platform) for platform in self._wanted or ())
        exists = ", ".join(sorted({str(platform) for platform in available}))
        return WrongPlatformError(f"{image.reference} exists for {exists}, not for {wanted}")
