"""The faults of uploads that `push` meets: mounts, sessions, Locations."""

from tests.support.fault_proofs import (
    BIG,
    OPEN,
    PATCH,
    PUT_LAYER,
    accepted_in_chunks,
    elsewhere,
    never,
    no_byte_twice,
    no_password_elsewhere,
    redirected,
    session_reused,
    whole_after_all,
)
from tests.support.fault_row import CHUNK_BYTES, CHUNKED, LAYER_BYTES, Order, Row
from tests.support.faults import BreakBody, EditHeaders, LoseBlob, LoseSession, Redirect, Reset, Status

MOUNTS = (
    Row(
        name="mount 202",
        fault="202 to a mount: a session is opened instead",
        does="sends the blob to that session and opens no second one",
        quirks={"mounts": False},
        proof=session_reused,
    ),
    *(
        Row(
            name=f"mount {code}",
            fault=f"{code} to every mount",
            does="sends the blob",
            orders=(Order("POST", "mount=", Status(code), times=None),),
        )
        for code in (400, 403, 404, 405)
    ),
    Row(
        name="mount reset",
        fault="connection reset at a mount",
        does="sends the blob",
        orders=(Order("POST", "mount=", Reset(), times=None),),
    ),
    Row(
        name="mounted blob lost",
        fault="a mount is granted, and the blob is not there afterwards",
        does="finds it missing before the tag is written and sends it",
        orders=(Order("POST", "mount=", LoseBlob()),),
    ),
)

#: Answers to what a session does not take, because it is gone or holds other bytes.
NOT_OURS = (
    (400, "BLOB_UPLOAD_INVALID", b'{"errors":[{"code":"BLOB_UPLOAD_INVALID","message":"blob upload invalid"}]}'),
    (409, "the session is in use", b""),
    (410, "the session is over", b""),
)
SESSIONS = (
    Row(
        name="session lost before a PUT",
        fault="404 BLOB_UPLOAD_UNKNOWN to a PUT: the registry was restarted",
        does="opens another session and sends the blob",
        orders=(Order("PUT", PUT_LAYER, LoseSession()),),
    ),
    Row(
        name="session lost between chunks",
        fault="404 to the second PATCH: the registry was restarted",
        does="sends the blob anew in another session",
        orders=(Order("PATCH", PATCH, LoseSession(), skip=1),),
        options=CHUNKED,
    ),
    *(
        Row(
            name=f"{code} to the second chunk",
            fault=f"{code} to the second PATCH: {why}",
            does="sends the blob anew in another session",
            orders=(Order("PATCH", PATCH, Status(code, body=body), skip=1),),
            options=CHUNKED,
            statuses=(code,),
        )
        for code, why, body in NOT_OURS
    ),
    *(
        Row(
            name=f"{code} to a whole blob",
            fault=f"{code} to a PUT of a whole blob: {why}",
            does="sends the blob anew in another session",
            orders=(Order("PUT", PUT_LAYER, Status(code, body=body)),),
            statuses=(code,),
        )
        for code, why, body in NOT_OURS
    ),
    Row(
        name="session lost before the commit",
        fault="404 to the closing PUT",
        does="sends the blob anew in another session",
        orders=(Order("PUT", PUT_LAYER, LoseSession()),),
        options=CHUNKED,
    ),
    Row(
        name="sessions always lost",
        fault="404 to every PUT and PATCH of a repository",
        does="begins the blob anew twice, then fails the image",
        orders=(Order("PUT", PATCH, LoseSession(), times=None), Order("PATCH", PATCH, LoseSession(), times=None)),
        options=CHUNKED,
        code=10,
        error="server-error",
        fails=BIG,
    ),
    Row(
        name="old state of a session",
        fault="each Location holds a state, and only the newest is good (distribution)",
        does="uses the newest Location",
        quirks={"session_state": True},
        options=CHUNKED,
        proof=no_byte_twice,
    ),
    Row(
        name="broken chunk kept",
        fault="reset in the middle of a PATCH; the session keeps what arrived (distribution 3)",
        does="asks the session how far it has come and goes on at that byte",
        orders=(Order("PATCH", PATCH, BreakBody(100_000), skip=1),),
        quirks={"session_state": True, "broken_patch": "keep"},
        options=CHUNKED,
        proof=no_byte_twice,
    ),
    Row(
        name="broken chunk forgotten",
        fault="reset in the middle of a PATCH; the session is lost (distribution 2.8, Harbor)",
        does="asks the session, which is gone, and sends the blob anew",
        orders=(Order("PATCH", PATCH, BreakBody(100_000), skip=1),),
        quirks={"session_state": True, "broken_patch": "forget"},
        options=CHUNKED,
        statuses=(404,),
    ),
    Row(
        name="broken chunk deletes the session",
        fault="reset in the middle of a PATCH; the session is deleted (zot)",
        does="asks the session, which is gone, and sends the blob anew",
        orders=(Order("PATCH", PATCH, BreakBody(100_000), skip=1),),
        quirks={"broken_patch": "delete"},
        options=CHUNKED,
        statuses=(404,),
    ),
    Row(
        name="answer to a chunk lost",
        fault="reset after a PATCH was carried out",
        does="asks the session how far it has come; nothing is sent twice",
        orders=(Order("PATCH", PATCH, Reset(after_effect=True), skip=1),),
        options=CHUNKED,
        proof=lambda scene, _: accepted_in_chunks(scene, LAYER_BYTES - CHUNK_BYTES),
    ),
    Row(
        name="ECR",
        fault="201 to each PATCH, and Range stays at the end of the first chunk",
        does="takes 201 for success and goes by what was acknowledged",
        quirks={"patch_status": 201, "range_quirk": "sticks"},
        options=CHUNKED,
        proof=no_byte_twice,
    ),
    Row(
        name="ECR, broken chunk",
        fault="the same, and a reset in the middle of a PATCH",
        does="does not trust a session that says less than it acknowledged: sends the blob anew",
        orders=(Order("PATCH", PATCH, BreakBody(100_000), skip=2),),
        quirks={"patch_status": 201, "range_quirk": "sticks"},
        options=CHUNKED,
        proof=never(416),
    ),
    Row(
        name="Aliyun",
        fault="Range tells the last chunk alone",
        does="goes by what was acknowledged",
        quirks={"range_quirk": "chunk"},
        options=CHUNKED,
        proof=no_byte_twice,
    ),
    Row(
        name="Aliyun, broken chunk",
        fault="the same, and a reset in the middle of a PATCH",
        does="tries to go on where it knows of, is refused with 416, and sends the blob anew",
        orders=(Order("PATCH", PATCH, BreakBody(100_000), skip=2),),
        quirks={"range_quirk": "chunk"},
        options=CHUNKED,
        statuses=(416,),
    ),
)

LOCATIONS = (
    Row(
        name="relative Location",
        fault="Location is relative to the path asked for",
        does="resolves it",
        quirks={"location": "relative"},
        options=CHUNKED,
    ),
    Row(
        name="absolute Location",
        fault="Location has scheme and host",
        does="uses it as it is",
        quirks={"location": "absolute"},
        options=CHUNKED,
    ),
    Row(
        name="Location at another host",
        fault="the session lies at another host",
        does="sends the blob there, without our credential",
        orders=(Order("POST", OPEN, elsewhere),),
        auth=True,
        proof=no_password_elsewhere,
    ),
    Row(
        name="Location with a wrong scheme",
        fault="an https registry behind a proxy names http:// and its own host",
        does="stays with https",
        orders=(Order("POST", OPEN, EditHeaders({"Location": "http://{host}{value}"})),),
        tls=True,
    ),
    Row(
        name="Location leads from https to http",
        fault="an https registry wants the upload at http:// of another host",
        does="sends nothing there, and fails the image",
        orders=(Order("POST", OPEN, EditHeaders({"Location": "http://localhost:1{value}"}), times=None),),
        tls=True,
        code=10,
        error="unexpected-answer",
        fails=BIG,
    ),
    Row(
        name="no Location on POST",
        fault="202 without a Location",
        does="fails the image",
        orders=(Order("POST", OPEN, EditHeaders({"Location": None}), times=None),),
        code=10,
        error="unexpected-answer",
        fails=BIG,
    ),
    Row(
        name="no Location on PATCH",
        fault="the answers to chunks have no Location",
        does="goes on at the one that it knows",
        orders=(Order("PATCH", PATCH, EditHeaders({"Location": None}), times=None),),
        options=CHUNKED,
        proof=no_byte_twice,
    ),
    Row(
        name="no Location on PATCH, and the old one is no good",
        fault="the same, at a registry whose sessions have a state",
        does="begins the blob anew, and sends it in one PUT in the end",
        orders=(Order("PATCH", PATCH, EditHeaders({"Location": None}), times=None),),
        quirks={"session_state": True},
        options=CHUNKED,
        proof=whole_after_all,
    ),
    Row(
        name="upload redirected",
        fault="307 of a PUT to another host",
        does="follows with the whole body, and without our credential",
        orders=(Order("PUT", PUT_LAYER, redirected),),
        auth=True,
        proof=no_password_elsewhere,
    ),
    Row(
        name="redirect that drops the body",
        fault="302 of a PUT",
        does="does not follow, and fails the image",
        orders=(Order("PUT", PUT_LAYER, Redirect("{target}", 302), times=None),),
        code=10,
        error="unexpected-answer",
        fails=BIG,
    ),
)
