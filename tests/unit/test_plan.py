"""The plan of a push, as properties over any images and any state of the target."""

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.oci.content import ImageContent
from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest
from bundler.oci.manifest import Manifest
from bundler.oci.mediatype import OCI_MANIFEST
from bundler.oci.reference import Reference
from bundler.transfer.plan import Action, BlobStep, Existing, ImagePlan, PushImage, TransferPlan, make_plan

REPOSITORIES = ("a", "b", "c/d")
#: Some of one size, one empty: neither may make a difference.
BLOBS = tuple(
    Descriptor("application/octet-stream", Digest.of(f"blob {number}".encode()), size)
    for number, size in enumerate((0, 5, 5, 10, 100, 1000))
)
Key = tuple[str, Digest]


def image(repository: str, tag: str, blobs: tuple[Descriptor, ...]) -> PushImage:
    raw = f"{repository}:{tag} {[str(blob.digest) for blob in blobs]}".encode()
    manifest = Manifest(raw, OCI_MANIFEST, Digest.of(raw), blobs[0], blobs[1:])
    return PushImage(Reference("docker.io", f"x/{repository}", tag), ImageContent((manifest,), blobs), repository, tag)


@dataclass(frozen=True)
class Case:
    """What is to be pushed, and what is there."""

    images: tuple[PushImage, ...]
    existing: Existing


@st.composite
def cases(draw: st.DrawFn) -> Case:
    names = draw(
        st.lists(st.tuples(st.sampled_from(REPOSITORIES), st.sampled_from("123")), min_size=1, max_size=7, unique=True)
    )
    images = tuple(
        image(repository, tag, tuple(draw(st.lists(st.sampled_from(BLOBS), min_size=1, max_size=5, unique=True))))
        for repository, tag in names
    )
    tags: dict[tuple[str, str], Digest] = {}
    blobs: dict[str, set[Digest]] = {}
    for one in images:
        state = draw(st.sampled_from(["absent", "other", "there"]))
        if state == "other":
            tags[one.repository, one.tag] = Digest.of(b"another image")
        if state == "there":
            tags[one.repository, one.tag] = one.content.root.digest
            # A registry that has an image has its blobs, also when another image of the repository asks for them.
            blobs.setdefault(one.repository, set()).update(blob.digest for blob in one.content.blobs)
        for blob in draw(st.lists(st.sampled_from(one.content.blobs), max_size=2)):
            blobs.setdefault(one.repository, set()).add(blob.digest)
    # The survey asks only for the images that differ.
    asked = {
        (one.repository, blob.digest)
        for one in images
        if tags.get((one.repository, one.tag)) != one.content.root.digest
        for blob in one.content.blobs
    }
    found = {name: frozenset(d for d in digests if (name, d) in asked) for name, digests in blobs.items()}
    return Case(images, Existing(tags, found))


def steps_in_order(plan: TransferPlan) -> list[tuple[Key, BlobStep]]:
    return [((one.image.repository, step.blob.digest), step) for one in plan.images for step in one.steps]


def held(case: Case) -> set[Key]:
    """Give what the target is known to hold."""
    return {
        *((name, digest) for name, digests in case.existing.blobs.items() for digest in digests),
        *(
            (one.repository, blob.digest)
            for one in case.images
            if case.existing.has_image(one)
            for blob in one.content.blobs
        ),
    }


@given(cases())
def test_every_image_is_planned_once_and_the_ones_that_are_there_need_nothing(case: Case) -> None:
    plan = make_plan(case.images, case.existing)

    assert Counter(one.image for one in plan.images) == Counter(case.images)
    for one in plan.images:
        assert one.up_to_date == case.existing.has_image(one.image)
        wanted = () if one.up_to_date else one.image.content.blobs
        assert Counter(step.blob.digest for step in one.steps) == Counter(blob.digest for blob in wanted)


@given(cases())
def test_a_blob_is_brought_into_a_repository_by_exactly_one_step_or_is_there(case: Case) -> None:
    steps = steps_in_order(make_plan(case.images, case.existing))

    bringing = Counter(key for key, step in steps if step.action is not Action.PRESENT)
    for key, step in steps:
        there = key[1] in case.existing.blobs.get(key[0], frozenset())
        assert bringing[key] == (0 if there else 1)
        if step.action is Action.PRESENT:
            assert step.source is None
            assert step.after == (None if there else key)


@given(cases())
def test_a_digest_is_uploaded_once_if_the_target_has_it_nowhere_and_never_else(case: Case) -> None:
    plan = make_plan(case.images, case.existing)

    uploaded = Counter(key[1] for key, step in steps_in_order(plan) if step.action is Action.UPLOAD)
    somewhere = {digest for _, digest in held(case)}
    needed = {blob.digest for one in case.images if not case.existing.has_image(one) for blob in one.content.blobs}
    assert uploaded == Counter(needed - somewhere)


@given(cases())
def test_a_mount_is_from_where_the_blob_is_or_waits_for_the_step_that_brings_it(case: Case) -> None:
    steps = steps_in_order(make_plan(case.images, case.existing))

    bringing = {key for key, step in steps if step.action is not Action.PRESENT}
    for key, step in steps:
        if step.action is not Action.MOUNT:
            assert step.source is None
            continue
        assert step.source is not None
        assert step.source != key[0]
        source = (step.source, key[1])
        if step.after is None:
            assert source in held(case)
        else:
            assert step.after == source
            assert source in bringing


@given(cases())
def test_a_step_only_waits_for_one_that_comes_before_it(case: Case) -> None:
    seen: set[Key] = set()
    for key, step in steps_in_order(make_plan(case.images, case.existing)):
        assert step.after is None or step.after in seen
        if step.action is not Action.PRESENT:
            seen.add(key)


@given(cases())
def test_images_with_most_missing_bytes_and_the_biggest_blobs_go_first(case: Case) -> None:
    plan = make_plan(case.images, case.existing)

    def missing(one: ImagePlan) -> int:
        there = case.existing.blobs.get(one.image.repository, frozenset())
        return sum(blob.size for blob in one.image.content.blobs if blob.digest not in there)

    todo = [one for one in plan.images if not one.up_to_date]
    assert list(plan.images[: len(todo)]) == todo
    assert [missing(one) for one in todo] == sorted((missing(one) for one in todo), reverse=True)
    for one in todo:
        sizes = [step.blob.size for step in one.steps]
        assert sizes == sorted(sizes, reverse=True)


@given(cases())
def test_the_same_question_has_the_same_answer_in_any_order(case: Case) -> None:
    plan = make_plan(case.images, case.existing)

    assert make_plan(case.images, case.existing) == plan
    other = make_plan(case.images[::-1], case.existing)
    todo = [one.image for one in plan.images if not one.up_to_date]
    assert [one.image for one in other.images if not one.up_to_date] == todo
    assert other.bytes_of(Action.UPLOAD) == plan.bytes_of(Action.UPLOAD)


@given(cases())
def test_the_bytes_of_a_plan_are_those_of_its_steps(case: Case) -> None:
    plan = make_plan(case.images, case.existing)

    for action in Action:
        assert plan.bytes_of(action) == sum(step.blob.size for _, step in steps_in_order(plan) if step.action is action)


@given(cases())
def test_doing_the_plan_brings_everything_and_the_next_plan_has_nothing_to_do(case: Case) -> None:
    blobs = {name: set(digests) for name, digests in case.existing.blobs.items()}
    for (name, digest), step in steps_in_order(make_plan(case.images, case.existing)):
        if step.action is not Action.PRESENT:
            blobs.setdefault(name, set()).add(digest)

    for one in case.images:
        if not case.existing.has_image(one):
            assert {blob.digest for blob in one.content.blobs} <= blobs[one.repository]
    tags = {(one.repository, one.tag): one.content.root.digest for one in case.images}
    after = Existing(tags, {name: frozenset(found) for name, found in blobs.items()})
    assert all(one.up_to_date and one.steps == () for one in make_plan(case.images, after).images)


def test_three_repositories_share_a_layer() -> None:
    layer, *own = BLOBS[:1:-1]
    images = [image(name, "1", (layer, own[number])) for number, name in enumerate(REPOSITORIES)]

    plan = make_plan(images, Existing({}, {}))

    first, second, third = plan.images
    assert [step.action for step in first.steps] == [Action.UPLOAD, Action.UPLOAD]
    for other in (second, third):
        assert other.steps[0] == BlobStep(
            layer, Action.MOUNT, first.image.repository, (first.image.repository, layer.digest)
        )
        assert other.steps[1].action is Action.UPLOAD
    assert plan.bytes_of(Action.MOUNT) == 2 * layer.size


def test_what_an_up_to_date_image_holds_is_mounted_at_once() -> None:
    there, new = image("a", "1", BLOBS), image("b", "1", BLOBS)

    plan = make_plan([new, there], Existing({("a", "1"): there.content.root.digest}, {}))

    assert [one.image for one in plan.images] == [new, there]
    assert {(step.action, step.source, step.after) for step in plan.images[0].steps} == {(Action.MOUNT, "a", None)}


@pytest.mark.parametrize("images", [[], [image("a", "1", BLOBS)]])
def test_a_plan_without_work_is_empty(images: list[PushImage]) -> None:
    plan = make_plan(images, Existing({(one.repository, one.tag): one.content.root.digest for one in images}, {}))

    assert [one.steps for one in plan.images] == [()] * len(images)
    assert all(plan.bytes_of(action) == 0 for action in Action)
