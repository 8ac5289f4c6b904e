"""The rules of a preflight about upgrade jobs: how they pull, and whether the bundle has what Plans and they need.

Pure: facts in, findings out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bundler.errors import BadReferenceError
from bundler.k3s.images import upgrade_image
from bundler.k3s.version import K3sVersion
from bundler.oci.reference import Reference
from bundler.site.controller import CONFIG_MAP as ENVIRONMENT
from bundler.site.controller import NAMESPACE
from bundler.site.findings import ImageResult, Problem, Severity, Verdict, refused
from bundler.site.pulls import CheckedImage
from bundler.site.routes import Route

PULL_POLICY = "SYSTEM_UPGRADE_JOB_IMAGE_PULL_POLICY"
KUBECTL_IMAGE = "SYSTEM_UPGRADE_JOB_KUBECTL_IMAGE"
_SET_POLICY = (
    f"Set it to IfNotPresent: kubectl -n {NAMESPACE} patch configmap {ENVIRONMENT} --type merge -p "
    f'\'{{"data":{{"{PULL_POLICY}":"IfNotPresent"}}}}\' && kubectl -n {NAMESPACE} rollout restart '
    "deployment/system-upgrade-controller"
)


@dataclass(frozen=True, slots=True)
class Policy:
    """How upgrade jobs pull, as one place has it; ``ours``: `config` wrote it."""

    place: str
    environment: Mapping[str, str]
    ours: bool = True


@dataclass(frozen=True, slots=True)
class SeenPlan:
    """A Plan, where it is, and whether `config` wrote it."""

    place: str
    document: Mapping[str, object]
    ours: bool


def check_policy(
    images: Sequence[CheckedImage],
    results: Sequence[ImageResult],
    policies: Sequence[Policy],
    releases: Sequence[K3sVersion],
) -> list[ImageResult]:
    """Refuse the images of upgrade jobs where the jobs insist on a registry that has none of it, or on having it."""
    for policy in policies:
        pulls = policy.environment.get(PULL_POLICY)
        if pulls not in ("Always", "Never"):
            continue
        names = {str(upgrade_image(release)) for release in releases} | {_full(policy.environment.get(KUBECTL_IMAGE))}
        concerned = {
            str(image.reference)
            for image in images
            if str(image.reference) in names and (image.route is Route.EMBEDDED) == (pulls == "Always")
        }
        why = (
            "upgrade jobs then ask a registry for it, also on nodes that have it, and at this site it is in none"
            if pulls == "Always"
            else "upgrade jobs then never pull it, and at this site nodes are to pull it"
        )
        problem = Problem("job-pull-policy", f"{PULL_POLICY} is {pulls} in {policy.place}: {why}", _SET_POLICY)
        results = refused(results, concerned, problem)
    return list(results)


def check_live_policy(verdict: Verdict, policy: Policy) -> None:
    """Note that the controller in the cluster pulls otherwise than what `config` wrote for it."""
    pulls = policy.environment.get(PULL_POLICY, "")
    if pulls in ("Always", "Never"):
        verdict.add(
            "job-pull-policy-now",
            Severity.WARNING,
            policy.place,
            f"{PULL_POLICY} is {pulls} there now",
            "Apply what `config` wrote before the first plan, and restart the controller: RUNBOOK.md has the step.",
        )


def check_job_images(verdict: Verdict, policies: Sequence[Policy], images: Sequence[CheckedImage]) -> None:
    """Find jobs that need a kubectl image which is not in the bundle: a plan that cordons cannot do without it."""
    names = {str(image.reference.tagged() or image.reference) for image in images}
    for policy in policies:
        kubectl = _full(policy.environment.get(KUBECTL_IMAGE))
        if kubectl and kubectl not in names:
            verdict.add(
                "job-image-missing",
                Severity.ERROR if policy.ours else Severity.WARNING,
                policy.place,
                f"jobs cordon and drain with {kubectl}, and the bundle does not have it",
                f"Take it into the bundle (--image {kubectl}), or set {KUBECTL_IMAGE} to the one that is there.",
            )


def check_plans(verdict: Verdict, plans: Sequence[SeenPlan], images: Sequence[CheckedImage]) -> None:
    """Check that plans only lead to what the bundle has; one that `config` made must."""
    names = {str(image.reference.tagged() or image.reference) for image in images}
    for plan in plans:
        spec = plan.document.get("spec")
        if not isinstance(spec, dict):
            continue
        version, channel = spec.get("version"), spec.get("channel")
        if channel and not version:
            verdict.add(
                "plan-with-channel",
                Severity.WARNING,
                plan.place,
                f"it follows a channel ({channel!r:.80}), so it may start an upgrade to what is not here",
                "Give it a version, or delete it.",
            )
            continue
        for part in ("prepare", "upgrade"):
            container = spec.get(part)
            image = container.get("image") if isinstance(container, dict) else None
            wanted = _plan_image(image, version)
            if wanted and wanted not in names:
                verdict.add(
                    "plan-without-image",
                    Severity.ERROR if plan.ours else Severity.WARNING,
                    plan.place,
                    f"its {part} needs {wanted}, and the bundle does not have it",
                    "Write the files again with `config`." if plan.ours else "Delete it, or bring this image as well.",
                )


def _plan_image(image: object, version: object) -> str | None:
    """Return the full name of what a part of a plan runs.

    Source: rancher/system-upgrade-controller, ``pkg/upgrade/container``: the version is the tag of an image without.
    """
    if not isinstance(image, str) or not image:
        return None
    last = image.rpartition("/")[2]
    if ":" in last or "@" in last or not isinstance(version, str):
        return _full(image)
    return _full(f"{image}:{version.replace('+', '-')}")


def _full(text: object) -> str:
    """Return the full name of an image that may be written short; empty for none."""
    if not isinstance(text, str) or not text:
        return ""
    try:
        reference = Reference.parse(text)
    except BadReferenceError:
        return text
    # The bundle has one with a tag and a digest under both.
    return str(reference.pinned() or reference)
