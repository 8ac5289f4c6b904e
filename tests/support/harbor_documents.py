"""What the API of the Harbor double reads and writes: checks of what is sent, descriptions of what there is."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from tests.support.harbor_accounts import Permission
from tests.support.harbor_projects import UNLIMITED, Artifact, HarborError, ImmutableRule, Project, Repository
from tests.support.media_types import DOCKER_CONFIG, INDEXES, OCI_CONFIG

_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_LARGEST_QUOTA = 1024 * 1024**4
_LONGEST_DURATION_DAYS = 2**31 - 1
# What newer versions let robots be granted in a project, as far as it is of use here.
_GRANTS: Mapping[str, frozenset[str]] = {
    "repository": frozenset({"read", "update", "delete", "list", "pull", "push"}),
    "artifact": frozenset({"read", "delete", "list", "create"}),
    "tag": frozenset({"create", "delete", "list"}),
    "project": frozenset({"read", "update", "delete"}),
    "quota": frozenset({"read"}),
    "immutable-tag": frozenset({"create", "delete", "list", "update"}),
    "robot": frozenset({"create", "read", "list", "delete"}),
}
_LATER_GRANTS = frozenset({"project", "quota", "artifact"})
_TYPES = {
    OCI_CONFIG: "IMAGE",
    DOCKER_CONFIG: "IMAGE",
    "application/vnd.cncf.helm.config.v1+json": "CHART",
}


def refusal(status: HTTPStatus, message: str, code: str = "") -> HarborError:
    """Give an error whose code, where not given, is the name of the status."""
    return HarborError(status, code or status.name, message)


def bad_request(message: str) -> HarborError:
    """Give the error for what makes no sense."""
    return refusal(HTTPStatus.BAD_REQUEST, message)


def date_time(seconds: float) -> str:
    """Write a time as the API does."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def check_project(asked: Mapping[str, Any]) -> tuple[str, dict[str, str], int]:
    """Check what a project is to be like.

    Returns:
        Its name, metadata and quota in bytes, which is 0 where the default is wanted.
    """
    name, metadata, limit = asked.get("project_name"), asked.get("metadata") or {}, asked.get("storage_limit") or 0
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 255:
        message = f"project name {name} is not in lower case or contains illegal characters"
        raise bad_request(message)
    if not all(isinstance(value, str) for value in metadata.values()):
        raise bad_request("parsing body failed: json: cannot unmarshal into field metadata of type string")
    if metadata.setdefault("public", "false") not in {"true", "false"}:
        raise bad_request(f"metadata.public should only be 'true' or 'false', but got: '{metadata['public']}'")
    check_storage(limit or UNLIMITED)
    if asked.get("registry_id") is not None and (not _is_int(asked["registry_id"]) or asked["registry_id"] <= 0):
        raise bad_request(f"{asked['registry_id']} is invalid value of registry_id, it should be geater than 0")
    return name, metadata, limit


def check_storage(limit: Any) -> int:
    """Check a quota in bytes."""
    if not _is_int(limit) or not (limit == UNLIMITED or 0 < limit <= _LARGEST_QUOTA):
        raise bad_request("invalid value for resource storage")
    return int(limit)


def check_robot(asked: Mapping[str, Any], *, old: bool) -> tuple[str, tuple[Permission, ...]]:
    """Check what a robot is to be like.

    Returns:
        Its bare name, and its permissions: exactly one where it is of a project.
    """
    name, level, duration = asked.get("name"), asked.get("level"), asked.get("duration")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise bad_request("robot name is not in lower case or contains illegal characters")
    if not _is_int(duration) or not -1 <= int(str(duration)) < _LONGEST_DURATION_DAYS:
        raise bad_request(f"bad request error duration input: {duration}")
    if level not in {"system", "project"}:
        raise bad_request(f"bad request error level input: {level}")
    permissions = tuple(_permission(entry, old=old) for entry in asked.get("permissions") or [])
    if not permissions:
        raise bad_request("bad request empty permission")
    if level == "project" and (len(permissions) > 1 or permissions[0].kind != "project"):
        raise bad_request("bad request permission")
    return name, permissions


def _permission(entry: Mapping[str, Any], *, old: bool) -> Permission:
    kind, namespace = str(entry.get("kind")), str(entry.get("namespace"))
    access = frozenset((str(right.get("resource")), str(right.get("action"))) for right in entry.get("access") or [])
    if not access:
        raise bad_request("bad request empty access")
    if kind not in {"system", "project"}:
        raise bad_request("unknown robot kind")
    if kind == "system" and namespace != "/":
        raise bad_request("unknown namespace")
    for resource, action in sorted(access) if kind == "project" else ():
        if action not in _GRANTS.get(resource, ()) or (old and resource in _LATER_GRANTS):
            raise bad_request(f"bad request permission: {resource}:{action}")
    return Permission(kind, namespace, access)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def describe_project(project: Project) -> dict[str, Any]:
    """Describe a project."""
    created = date_time(project.created)
    return {
        "project_id": project.id,
        "name": project.name,
        "owner_id": 1,
        "owner_name": project.owner,
        "creation_time": created,
        "update_time": created,
        "deleted": False,
        **({"registry_id": project.registry_id} if project.registry_id else {}),
        "metadata": project.metadata,
        "repo_count": len(project.repositories),
    }


def describe_quota(project: Project) -> dict[str, Any]:
    """Describe a quota and how much of it is used."""
    return {"hard": {"storage": project.quota_bytes}, "used": {"storage": project.used_bytes}}


def quota_id(project: Project) -> int:
    """Give the id of a project's quota, which is not the one of the project."""
    return 1000 + project.id


def describe_quota_entry(project: Project) -> dict[str, Any]:
    """Describe a quota in the list of all."""
    reference = {"id": project.id, "name": project.name, "owner_name": project.owner}
    return {"id": quota_id(project), "ref": reference, **describe_quota(project)}


def describe_rule(rule: ImmutableRule) -> dict[str, Any]:
    """Describe an immutability rule."""
    tags = {"kind": "doublestar", "decoration": "matches", "pattern": rule.tag_pattern}
    repositories = {"kind": "doublestar", "decoration": "repoMatches", "pattern": rule.repository_pattern}
    return {
        "id": rule.id,
        "priority": 0,
        "disabled": False,
        "action": "immutable",
        "template": "immutable_template",
        "tag_selectors": [tags],
        "scope_selectors": {"repository": [repositories]},
    }


def describe_artifact(
    artifact: Artifact, project: Project, name: str, *, with_tag: bool, with_immutable: bool
) -> dict[str, Any]:
    """Describe an artifact. What there is none of is null, not empty.

    Args:
        artifact: What to describe.
        project: Its project.
        name: Its repository, without project.
        with_tag: List the tags.
        with_immutable: Say of each tag whether it is immutable.
    """
    repository, pushed = project.repositories[name], date_time(artifact.pushed)
    is_index = artifact.media_type in INDEXES
    config = artifact.media_type if is_index else str(artifact.document["config"]["mediaType"])
    below = [] if is_index else artifact.references
    tags = [
        {
            "id": artifact.id,
            "artifact_id": artifact.id,
            "repository_id": repository.id,
            "name": tag,
            "push_time": pushed,
            "immutable": with_immutable and project.immutable(name, tag),
        }
        for tag in sorted(tag for tag, digest in repository.tags.items() if digest == artifact.digest)
    ]
    references = [
        {
            "parent_id": artifact.id,
            "child_id": repository.artifacts[child["digest"]].id,
            "child_digest": child["digest"],
            "platform": child.get("platform"),
            "urls": None,
            "annotations": child.get("annotations"),
        }
        for child in (artifact.references if is_index else [])
        if child["digest"] in repository.artifacts
    ]
    return {
        "id": artifact.id,
        "type": "IMAGE" if is_index else _TYPES.get(config, "UNKNOWN"),
        "media_type": config,
        "manifest_media_type": artifact.media_type,
        "digest": artifact.digest,
        "icon": "",
        "artifact_type": artifact.document.get("artifactType") or config,
        "size": len(artifact.data) + sum(part["size"] for part in below),
        "project_id": project.id,
        "repository_id": repository.id,
        "repository_name": f"{project.name}/{name}",
        "push_time": pushed,
        "pull_time": "0001-01-01T00:00:00.000Z",
        "references": references or None,
        "tags": (tags or None) if with_tag else None,
        "annotations": artifact.document.get("annotations"),
        "labels": None,
        "accessories": None,
    }


def choose(repository: Repository, wanted: Mapping[str, str]) -> list[Artifact]:
    """Give what a list with these keywords has, newest first.

    Untagged children of indexes are left out unless all (`base=*`) are asked for.
    """
    tags: dict[str, list[str]] = {digest: [] for digest in repository.artifacts}
    for tag, digest in repository.tags.items():
        tags[digest].append(tag)
    hidden = set[str]()
    if wanted.get("base") != "*":
        indexes = [artifact for artifact in repository.artifacts.values() if artifact.media_type in INDEXES]
        children = {child["digest"] for index in indexes for child in index.references}
        hidden = {digest for digest in children if not tags.get(digest)}
    return [
        artifact
        for digest, artifact in sorted(repository.artifacts.items(), key=lambda item: -item[1].id)
        if digest not in hidden
        and digest == wanted.get("digest", digest)
        and ("tags" not in wanted or _tagged(tags[digest], wanted["tags"]))
    ]


def _tagged(tags: list[str], wanted: str) -> bool:
    if wanted in {"nil", "*"}:
        return bool(tags) == (wanted == "*")
    return any(wanted[1:] in tag if wanted.startswith("~") else wanted == tag for tag in tags)
