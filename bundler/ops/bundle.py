"""``bundle``: from an image set to an OCI image layout with a lock, on transfer media.

Invariants:

- A directory that is not absent, empty or a bundle of ours is never touched.
- index.json and the lock are replaced only when all blobs they name are durable; only then is anything removed.
- An interrupted run leaves what it sealed; the same command continues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bundler.bundle.imageset import ResolvedImage, names_in_layout
from bundler.bundle.lock import BundleLock, FailedImage, LockedImage
from bundler.bundle.selection import Wanted
from bundler.bundle.store import LOCK_NAME, is_bundle_lock, read_lock
from bundler.errors import (
    IntegrityError,
    NotABundleError,
    PartialError,
    RequestChangedError,
    StrictWarningError,
)
from bundler.files import exclusive_lock, make_directory, write_atomic
from bundler.layout.store import Layout, Root
from bundler.oci.digest import Digest
from bundler.oci.platform import Platform
from bundler.oci.reference import Reference
from bundler.ops.images import SelectedImages
from bundler.ops.notes import note, warn
from bundler.progress import Progress
from bundler.report import ImageOutcome, Report
from bundler.transfer.journal import Journal
from bundler.transfer.pull import PulledImage, Puller
from bundler.transfer.resolve import ImageSource

STATE_NAME = ".airgap-sync"
ALL_PLATFORMS = "all"


@dataclass(frozen=True, slots=True)
class BundleOptions:
    """How a bundle is made.

    Attributes:
        directory: Where it is written.
        platforms: The chosen platforms; None for all.
        jobs: Blobs in flight at once.
        strict: A warning ends the run, and the bundle that was there stands.
        fail_fast: Stop at the first failed image.
        replace: Turn a bundle of another request into this one.
    """

    directory: Path
    platforms: Wanted
    jobs: int = 4
    strict: bool = False
    fail_fast: bool = False
    replace: bool = False


def platform_names(platforms: Wanted) -> tuple[str, ...]:
    """Return the chosen platforms as they stand in a request."""
    return (ALL_PLATFORMS,) if platforms is None else tuple(str(platform) for platform in platforms)


def parse_platforms(texts: tuple[str, ...]) -> Wanted:
    """Parse the values of ``--platform``; ``all`` among them takes everything.

    Raises:
        BadPlatformError: A value is not a platform.
    """
    platforms = tuple(sorted({Platform.parse(text) for text in texts if text != ALL_PLATFORMS}))
    return None if ALL_PLATFORMS in texts else platforms


def make_bundle(
    options: BundleOptions,
    select: Callable[[], SelectedImages],
    open_source: Callable[[Reference], ImageSource],
    progress: Progress,
    report: Report,
) -> None:
    """Make or renew a bundle; what happened is in ``report``, also if this raises.

    Args:
        options: How and where.
        select: Returns the image set; called once the directory is ours.
        open_source: Returns the repository that a reference's content comes from.
        progress: Told of every byte.
        report: Filled in.

    Raises:
        NotABundleError: The directory holds something else; it was not touched.
        RequestChangedError: The directory holds another bundle and ``replace`` is off.
        LockedError: Another run is at work there.
        StrictWarningError: A warning under ``strict``; index and lock were not touched.
        PartialError: Some images failed; the rest is there and the lock says what is missing.
        CapacityError: The disk is full.
    """
    directory = options.directory
    with _owned(directory, select) as (selected, fresh):
        _tell(report, selected)
        if options.strict and report.warnings:
            raise StrictWarningError(report.warnings[0])
        old = _old_lock(options, selected)
        layout = Layout(directory)
        layout.create()
        journal = Journal(directory / STATE_NAME / "journal")
        pulled = [PulledImage(image) for image in selected.images]
        try:
            puller = Puller(
                layout=layout,
                journal=journal,
                open_source=open_source,
                wanted=options.platforms,
                jobs=options.jobs,
                progress=progress,
                ask_first=not fresh,
                fail_fast=options.fail_fast,
            )
            puller.pull(pulled)
        finally:
            journal.close()
            _record(report, pulled, old)
        if options.fail_fast and report.failed:
            raise PartialError(f"stopped at the first failed image; the bundle in {directory} was not changed")
        if options.strict and report.warnings:
            raise StrictWarningError(report.warnings[0])
        whole = [image.resolved for image in pulled if image.resolved and image.done]
        if old is not None and not whole:
            raise PartialError(f"all {len(pulled)} images failed; the bundle in {directory} stands as it was")
        lock = BundleLock(
            request=selected.request,
            releases=selected.releases,
            images=tuple(LockedImage.of(image) for image in whole),
            failed=tuple(FailedImage.of(image.wanted, image.error.reference) for image in pulled if image.error),
        )
        raw = lock.to_bytes()
        layout.sync()
        # The lock first: an index that no lock vouches for could pass for a complete bundle.
        write_atomic(directory / LOCK_NAME, raw)
        layout.write_index(_roots(whole))
        report.lock_digest = Digest.of(raw)
        _remove_unlisted(layout, pulled, report)
        _sum_up(report, whole)
        if lock.failed:
            raise PartialError(
                f"{len(lock.failed)} of {len(pulled)} images failed; the bundle in {directory} is incomplete"
            )


# --- the directory --------------------------------------------------------------------------------------------


@contextmanager
def _owned(directory: Path, select: Callable[[], SelectedImages]) -> Iterator[tuple[SelectedImages, bool]]:
    """Hold the directory's lock; it is only made when the request turned out to be sound.

    Yields:
        The image set, and whether the directory held nothing before.
    """
    state = directory / STATE_NAME
    fresh = _is_free(directory)
    with ExitStack() as stack:
        lock = exclusive_lock(state / "lock", str(directory))
        if not fresh and state.is_dir():
            stack.enter_context(lock)
            yield select(), fresh
            return
        selected = select()
        make_directory(state)
        stack.enter_context(lock)
        yield selected, fresh


def _is_free(directory: Path) -> bool:
    """Tell whether a directory is absent or empty; refuse one that holds anything but a bundle of ours."""
    try:
        names = {entry.name for entry in directory.iterdir()}
    except FileNotFoundError:
        return True
    except NotADirectoryError as error:
        raise NotABundleError(f"{directory} is not a directory") from error
    except OSError as error:
        raise NotABundleError(f"{directory} cannot be read: {error.strerror}") from error
    for path in (directory / STATE_NAME, directory / "blobs", *(directory / "blobs").glob("*")):
        if path.is_symlink():
            raise NotABundleError(f"{path} is a symbolic link; what it leads to may be somebody else's")
    if names and STATE_NAME not in names and not ("oci-layout" in names and is_bundle_lock(directory)):
        raise NotABundleError(f"{directory} is not empty and holds no bundle of airgap-sync; nothing was touched")
    return not names


def _old_lock(options: BundleOptions, selected: SelectedImages) -> BundleLock | None:
    """Return the lock that is there; refuse to change its request unless told to replace it."""
    try:
        found = read_lock(options.directory)
    except IntegrityError as error:
        if options.replace:
            return None
        error.hint = "Use --replace to write a new bundle over this one."
        raise
    if found is None:
        return None
    # A bundle without images protects nothing.
    free = options.replace or not found[0].images
    differences = [] if free else found[0].request.differences(selected.request)
    if differences:
        raise RequestChangedError(f"{options.directory} holds a bundle of another request: {'; '.join(differences)}")
    return found[0]


# --- what happened -------------------------------------------------------------------------------------------


def _tell(report: Report, selected: SelectedImages) -> None:
    for warning in selected.warnings:
        warn(report, warning)
    for notice in selected.notices:
        note(report, notice)


def _record(report: Report, pulled: list[PulledImage], old: BundleLock | None) -> None:
    """Put every image's outcome, and what its user should know, into the report."""
    before = {str(image.reference): image.upstream_digest for image in old.images} if old else {}
    for image in pulled:
        name = str(image.wanted.reference)
        outcome = ImageOutcome(image.wanted.reference, "unchanged", bytes_moved=image.bytes_fetched, error=image.error)
        report.images.append(outcome)
        if image.resolved is None or not image.done:
            outcome.outcome = "failed" if image.error else "not-done"
            continue
        resolved = image.resolved
        outcome.digest = resolved.content.root.digest
        if before.get(name) != resolved.upstream or image.bytes_fetched:
            outcome.outcome = "fetched"
        if before.get(name, resolved.upstream) != resolved.upstream:
            note(report, f"moved since the last run: {name} was {before[name]}, is {resolved.upstream}")
        if resolved.missing:
            missing = ", ".join(str(platform) for platform in resolved.missing)
            warn(report, f"{name} does not exist for {missing}")
        if resolved.complete_because_pinned:
            note(report, f"{name} is pinned to an index: all its platforms come along, or the pin would break")


def _sum_up(report: Report, whole: list[ResolvedImage]) -> None:
    blobs = {blob.digest: blob.size for image in whole for blob in image.content.blobs}
    report.facts["blobs"] = len(blobs)
    report.facts["blob_bytes"] = sum(blobs.values())


# --- index.json and what it does not name ------------------------------------------------------------------


def _roots(images: list[ResolvedImage]) -> list[Root]:
    return [
        Root(name, image.content.root.descriptor)
        for image in images
        for name in names_in_layout(image.wanted.reference)
    ]


def _remove_unlisted(layout: Layout, pulled: list[PulledImage], report: Report) -> None:
    """Remove what the new lock does not name, so that nothing unlisted crosses the gap.

    While an image is missing nothing is removed: what an earlier run fetched of it would have to be fetched again.
    """
    kept: set[Digest] = set()
    for image in pulled:
        if image.resolved is None or not image.done:
            return
        kept |= {image.resolved.upstream, *image.resolved.content.digests()}
    count, size = layout.remove_except(kept)
    report.facts["removed_files"] = count
    report.facts["removed_bytes"] = size
