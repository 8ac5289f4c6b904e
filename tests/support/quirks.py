"""What registries do differently from each other."""

from dataclasses import dataclass
from http import HTTPStatus

_CHOICES = {
    "location": {"path", "absolute", "relative"},
    "range_quirk": {"cumulative", "sticks", "chunk"},
    "broken_patch": {"keep", "forget", "delete"},
}


@dataclass(kw_only=True)
class Quirks:
    """The ways of one registry; may be changed while it serves.

    Attributes:
        ranges: Serve parts of blobs. Without it the `Range` header is ignored, as it may be.
        mounts: Mount blobs of other repositories. Without it asking for it opens an upload.
        strict: Refuse manifests whose content is not there.
        location: How upload sessions are named: "path" (`/v2/...`), "absolute" (with scheme and the host asked
            for) or "relative" (to the path asked for).
        session_state: The `_state` in a Location changes with the size of the upload. An old one is refused with
            404 BLOB_UPLOAD_INVALID and ends the session, as distribution 2.8 does. With `broken_patch="keep"`
            only asking for the status of an upload does without it, as in distribution 3.
        check_range: Refuse chunks that do not start where the upload ends (416), and those whose size is not what
            `Content-Range` says (400). Without it the header is ignored, as distribution 2.8 does.
        patch_status: Status of the answer to a PATCH; 201 at ECR.
        patch_limit: The most that the body of one PATCH may hold, in bytes; 4 MiB at GHCR.
        patch_limit_status: Status of the answer to a bigger one, which changes nothing; GHCR says 416, others 413.
        body_limit: The most that the body of any request may hold. A bigger one is answered before it is read, with
            413 and a page in HTML, and the connection is closed, as nginx does.
        chunk_min: The least that each chunk but the last has to hold. It is told when an upload is opened; what
            comes after a smaller chunk is refused with 416.
        range_quirk: What `Range` says of an upload: "cumulative" as is right, "sticks" to the end of the first chunk
            (ECR), or the last "chunk" alone (Aliyun).
        broken_patch: What becomes of an upload when a body breaks off: "keep" what arrived (distribution 3),
            "forget" (2.8: the next request gets 404 BLOB_UPLOAD_INVALID and ends the session) or "delete" it at once
            (zot).
        need_repository: Know only repositories that were made with `create`, or by `add` (ECR): 404 NAME_UNKNOWN.
        refuse_docker_types: Answer 415 to manifests of Docker's media types (zot).
    """

    ranges: bool = True
    mounts: bool = True
    strict: bool = True
    location: str = "path"
    session_state: bool = False
    check_range: bool = True
    patch_status: int = HTTPStatus.ACCEPTED
    patch_limit: int | None = None
    patch_limit_status: int = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
    body_limit: int | None = None
    chunk_min: int | None = None
    range_quirk: str = "cumulative"
    broken_patch: str = "keep"
    need_repository: bool = False
    refuse_docker_types: bool = False

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is none of {sorted(choices)}")
