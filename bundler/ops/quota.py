"""Has Harbor room for what is still to come? Asked by a preflight, which itself sends nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bundler.errors import AirgapSyncError
from bundler.oci.target import Target
from bundler.progress import people_bytes
from bundler.registry.client import RegistryClient
from bundler.registry.harbor import Harbor
from bundler.site.findings import Severity, Verdict
from bundler.transfer.plan import PushImage
from bundler.transfer.room import content_bytes, project_of


def check_quota(
    verdict: Verdict, target: Target, coming: Sequence[PushImage], make: Callable[[], RegistryClient]
) -> None:
    """Compare what is still to come to a target with the quota of its projects.

    Args:
        verdict: Where findings, and what cannot be known, go.
        target: The target.
        coming: The images that are not there as they should be.
        make: Makes the target's client.
    """
    if not coming:
        return
    try:
        api = Harbor(make())
        if not api.is_there():
            verdict.not_checked.append(
                f"whether {target.host} has room for what is still to come: only Harbor can be asked"
            )
            return
        for name in sorted({project_of(image.repository) for image in coming}):
            project = api.project(name)
            quota = api.quota(project) if project else None
            if quota is None:
                verdict.not_checked.append(f"the quota of project {name!r}: this account may not see it")
                continue
            missing = content_bytes(coming, name)
            if quota.hard is not None and quota.used + missing > quota.hard:
                verdict.add(
                    "quota-exceeded",
                    Severity.WARNING,
                    f"project {name} at {target.host}",
                    f"it uses {people_bytes(quota.used)} of {people_bytes(quota.hard)}, and up to "
                    f"{people_bytes(missing)} are still to come",
                    "Ask Harbor's administrator to raise the quota, before the next push.",
                )
    except AirgapSyncError as error:
        verdict.not_checked.append(f"whether {target.host} has room for what is still to come: {error.message}")
