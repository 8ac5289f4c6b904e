"""A push as it stands in reports: its plan, and what became of each image."""

from __future__ import annotations

from typing import Any

from bundler.errors import AirgapSyncError
from bundler.oci.target import Target
from bundler.progress import people_bytes
from bundler.report import ImageOutcome
from bundler.transfer.plan import Action, ImagePlan, PushImage, TransferPlan
from bundler.transfer.push import PushedImage


def plan_to_dict(plan: TransferPlan, target: Target) -> list[dict[str, Any]]:
    """Return the plan as JSON: image by image, in the order of work."""
    return [
        {
            "reference": str(image.image.reference),
            "target": name_at(target, image.image),
            "up_to_date": image.up_to_date,
            "blobs": [
                {
                    "digest": str(step.blob.digest),
                    "size": step.blob.size,
                    "action": str(step.action),
                    "mount_from": step.source,
                }
                for step in image.steps
            ],
            "manifests": 0 if image.up_to_date else len(image.image.content.manifests),
        }
        for image in plan.images
    ]


def plan_line(image: dict[str, Any]) -> str:
    """Return one image of a plan for people."""
    if image["up_to_date"]:
        return f"up to date  {image['target']}"
    sums = {str(action): 0 for action in Action}
    for blob in image["blobs"]:
        sums[blob["action"]] += blob["size"]
    return (
        f"push        {image['target']}: send {people_bytes(sums['upload'])}, "
        f"mount {people_bytes(sums['mount'])}, there already {people_bytes(sums['present'])}, "
        f"{image['manifests']} manifests"
    )


def name_at(target: Target, image: PushImage) -> str:
    """Return the whole name of an image at a target."""
    return f"{target.host}/{image.repository}:{image.tag}"


def outcome_of(
    target: Target,
    image: PushImage,
    outcome: str,
    *,
    error: AirgapSyncError | None = None,
    sent: int = 0,
    mounted: int = 0,
) -> ImageOutcome:
    """Return an outcome with the image's name at the target."""
    return ImageOutcome(
        reference=image.reference,
        outcome=outcome,
        digest=image.content.root.digest,
        target=name_at(target, image),
        bytes_moved=sent,
        bytes_mounted=mounted,
        error=error,
    )


def planned(target: Target, plan: ImagePlan) -> ImageOutcome:
    """Return what a dry run says of an image."""
    return outcome_of(target, plan.image, "up-to-date" if plan.up_to_date else "planned")


def pushed_outcome(target: Target, image: PushedImage) -> ImageOutcome:
    """Return what became of an image."""
    done = "up-to-date" if image.plan.up_to_date else "pushed"
    outcome = "failed" if image.error else done if image.done else "not-done"
    return outcome_of(
        target,
        image.plan.image,
        outcome,
        error=image.error,
        sent=image.bytes_sent,
        mounted=image.bytes_mounted,
    )
