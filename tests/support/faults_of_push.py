"""The faults that `push` meets, row by row."""

from collections.abc import Callable
from http import HTTPStatus

from tests.support.command import Result
from tests.support.fault_row import (
    CHUNK_BYTES,
    CHUNKED,
    LAYER_BYTES,
    Order,
    Row,
    Scene,
    failing,
    in_seconds,
    unauthorized,
    unauthorized_early,
)
from tests.support.faults import (
    Action,
    BreakBody,
    EarlyStatus,
    EditHeaders,
    LoseBlob,
    LoseSession,
    Meanwhile,
    Redirect,
    Reset,
    Stall,
    StallBody,
    Status,
    WrongDigestHeader,
)
from tests.support.handmade import uploads

PUT_LAYER = "/v2/rancher/big/blobs/uploads/.*{layer}"
PATCH = "/v2/rancher/big/blobs/uploads/"
OPEN = r"/v2/rancher/big/blobs/uploads/$"
TAG = "/v2/rancher/big/manifests/1$"
CHILD = "/v2/rancher/big/manifests/sha256:"
PAGE = b"<html><head><title>Oops</title></head><body><h1>Oops</h1></body></html>"
HTML = {"Content-Type": "text/html"}
BIG = failing("big")
ALL = failing("big", "small")
QUOTA = b'{"errors":[{"code":"DENIED","message":"adding 1.2 MiB of storage resource would exceed the quota"}]}'
UNKNOWN = b'{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown to registry"}]}'
INVALID = b'{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match uploaded content"}]}'
DENIED = b'{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}'
LONG_S = 21_600
Proof = Callable[[Scene, Result], None]


# --- what else is to hold -----------------------------------------------------------------------------------


def sent_once(scene: Scene, result: Result) -> None:
    """No byte of the layer was sent twice."""
    del result
    assert uploads(scene.target.requests(), None)[scene.layer] == 1


def no_byte_twice(scene: Scene, result: Result) -> None:
    """What a session had accepted, also of a broken chunk, was not sent again."""
    del result
    assert scene.bytes_of("PATCH") == LAYER_BYTES


def once(method: str, where: str) -> Proof:
    """Make a proof that something was asked for once: what was refused for good is not tried again."""

    def proof(scene: Scene, result: Result) -> None:
        del result
        assert scene.count(method, where) == 1

    return proof


def session_reused(scene: Scene, result: Result) -> None:
    """A session that was opened in the place of a mount is the one that the blob went to."""
    del result
    opened = scene.count("POST", "/v2/rancher/small/") + scene.count("POST", "/v2/rancher/big/")
    assert opened == sum(len(image.blobs) for image in scene.images.values())


def chunks_of(size: int) -> Proof:
    """Make a proof that the layer went in chunks of a size."""

    def proof(scene: Scene, result: Result) -> None:
        del result
        sizes = [
            request.body_size for request in scene.target.requests("PATCH") if request.status == HTTPStatus.ACCEPTED
        ]
        assert sizes
        assert set(sizes[:-1]) <= {size}
        assert sizes[-1] <= size

    return proof


def never(status: int) -> Proof:
    """Make a proof that a status was never answered."""

    def proof(scene: Scene, result: Result) -> None:
        del result
        assert status not in {request.status for request in scene.target.requests()}

    return proof


def whole_after_all(scene: Scene, result: Result) -> None:
    """The layer went in one PUT."""
    del result
    last = [request for request in scene.target.requests("PUT") if scene.layer in request.target][-1]
    assert (last.status, last.body_size) == (HTTPStatus.CREATED, LAYER_BYTES)


def no_password_elsewhere(scene: Scene, result: Result) -> None:
    """The other host got the request, and no credential with it."""
    del result
    there = [request for request in scene.other.requests() if "/blobs/uploads/" in request.target]
    assert there
    assert [request for request in there if "authorization" in request.headers] == []


def proxy_asked_once(scene: Scene, result: Result) -> None:
    """A password that is wrong was not tried again."""
    del result
    assert len(scene.proxy.requests) == 1


def nothing_written(scene: Scene, result: Result) -> None:
    """Nothing was sent to the target."""
    del result
    assert [request for request in scene.target.requests() if request.method not in {"HEAD", "GET"}] == []


def hint(*words: str) -> Proof:
    """Make a proof that the message holds some words."""

    def proof(scene: Scene, result: Result) -> None:
        del scene
        for word in words:
            assert word in result.err + result.out, word

    return proof


def put_once(scene: Scene, result: Result) -> None:
    """What is refused for good was tried once."""
    del result
    assert uploads(scene.target.requests(), None)[scene.layer] == 1


def both(*proofs: Proof) -> Proof:
    """Make one proof of several."""

    def proof(scene: Scene, result: Result) -> None:
        for one in proofs:
            one(scene, result)

    return proof


# --- what else is to be done first ---------------------------------------------------------------------------


def all_there(scene: Scene) -> None:
    """Put everything in beforehand."""
    for repository, image in scene.images.items():
        scene.target.add(image, repository, "1")


def other_content(scene: Scene) -> None:
    """Let the tag stand for something else."""
    scene.target.add(scene.images["rancher/small"], "rancher/big", "1")


def gone_down(scene: Scene) -> Action:
    return Meanwhile(scene.target.refuse)


def elsewhere(scene: Scene) -> Action:
    # Another name: a registry behind a proxy that only gets its own port wrong is put right.
    return EditHeaders({"Location": f"{scene.other.url.replace('127.0.0.1', 'localhost')}{{value}}"})


def collected(scene: Scene) -> Action:
    return Meanwhile(lambda: scene.target.content.forget("rancher/big", scene.layer))


def redirected(scene: Scene) -> Action:
    return Redirect(f"{scene.other.url}{{target}}")


# --- the rows ------------------------------------------------------------------------------------------------

CREDENTIALS = (
    Row(
        name="token expires in the middle of an upload",
        fault="401 with a challenge after 200 kB of a PUT",
        does="asks for a new token, rewinds the blob and sends it once more",
        orders=(Order("PUT", PUT_LAYER, unauthorized_early),),
        auth=True,
        statuses=(401,),
    ),
    Row(
        name="token expires between two chunks",
        fault="401 with a challenge to the second PATCH",
        does="asks for a new token and sends that chunk once more",
        orders=(Order("PATCH", PATCH, unauthorized, skip=1),),
        options=CHUNKED,
        auth=True,
        statuses=(401,),
    ),
    Row(
        name="new tokens are refused",
        fault="401 to every PUT of a repository, also with a new token",
        does="tries one new token, then fails the image: the right to push is missing",
        orders=(Order("PUT", PATCH, unauthorized, times=None),),
        auth=True,
        code=10,
        error="denied",
        fails=BIG,
    ),
    Row(
        name="mount 401",
        fault="401 to every mount: no right to pull at its source",
        does="sends the blob",
        orders=(Order("POST", "mount=", unauthorized, times=None),),
        auth=True,
    ),
    Row(
        name="denied",
        fault="403 DENIED when an upload is opened",
        does="fails the image at once and names what the registry said; the others arrive",
        orders=(Order("POST", OPEN, Status(403, body=DENIED), times=None),),
        options=("--jobs", "1"),
        code=10,
        error="denied",
        fails=BIG,
        proof=both(hint("access to the resource is denied"), once("POST", "/v2/rancher/big/blobs/uploads/")),
    ),
    Row(
        name="proxy wants a password",
        fault="407 of the proxy",
        does="ends at once and names the proxy; nothing is tried again, which could lock an account",
        at="http://registry.example",
        env={"HTTP_PROXY": "{proxy}"},
        code=8,
        error="proxy-credentials",
        proof=both(hint("HTTP_PROXY", "407"), proxy_asked_once),
    ),
)

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
        proof=lambda scene, _: _bytes_accepted(scene, LAYER_BYTES - CHUNK_BYTES),
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


def _bytes_accepted(scene: Scene, size: int) -> None:
    """Check what went in chunks that were answered."""
    accepted = [request for request in scene.target.requests("PATCH") if request.status == HTTPStatus.ACCEPTED]
    assert sum(request.body_size for request in accepted) == size


SIZES = (
    Row(
        name="413 to a PUT",
        fault="a proxy takes no body over 600 kB (413, HTML page, connection closed)",
        does="sends that blob, and all large ones after it, in smaller chunks",
        quirks={"body_limit": 600_000},
        statuses=(413,),
        proof=chunks_of(512 * 1024),
    ),
    Row(
        name="413 to a PATCH",
        fault="413 to a PATCH over 600 kB",
        does="makes the chunks smaller by a factor of four, down to 512 KiB",
        quirks={"patch_limit": 600_000, "patch_limit_status": 413},
        options=("--chunk-size", "1MiB"),
        statuses=(413,),
        proof=chunks_of(512 * 1024),
    ),
    Row(
        name="413 to everything",
        fault="a proxy takes no body over 100 kB",
        does="fails the image when 512 KiB are refused; the hint names the proxy's settings and --chunk-size",
        quirks={"body_limit": 100_000},
        code=10,
        error="body-too-large",
        fails=BIG,
        statuses=(413,),
        proof=hint("client_max_body_size", "--chunk-size"),
    ),
    Row(
        name="413 and chunks switched off",
        fault="413 to a PUT over 600 kB, with --chunk-size 0",
        does="fails the image at once",
        quirks={"body_limit": 600_000},
        options=("--chunk-size", "0"),
        code=10,
        error="body-too-large",
        fails=BIG,
        proof=put_once,
    ),
    Row(
        name="416 to the first chunk",
        fault="416 to a PATCH over 100 kB (GHCR has such a limit at 4 MiB)",
        does="sends the blob in one PUT",
        quirks={"patch_limit": 100_000},
        options=CHUNKED,
        statuses=(416,),
        proof=both(whole_after_all, once("PATCH", "/v2/rancher/big/blobs/uploads/")),
    ),
    Row(
        name="416 to a later chunk",
        fault="416 to the second PATCH",
        does="sends the blob anew in another session",
        orders=(Order("PATCH", PATCH, Status(416), skip=1),),
        options=CHUNKED,
    ),
    Row(
        name="smallest chunk",
        fault="OCI-Chunk-Min-Length is more than --chunk-size",
        does="makes the chunks as large as that",
        quirks={"chunk_min": 400_000},
        options=CHUNKED,
        proof=chunks_of(400_000),
    ),
    Row(
        name="absurd smallest chunk",
        fault="OCI-Chunk-Min-Length is a terabyte, and small chunks are refused with 416",
        does="does not believe it, and sends the blob in one PUT in the end",
        quirks={"chunk_min": 1 << 40},
        options=CHUNKED,
        statuses=(416,),
        proof=whole_after_all,
    ),
    Row(
        name="quota, before the body",
        fault="403 with the words of a quota before any of the body is read",
        does="reads the answer although the body is not through, and fails the image with those words",
        orders=(Order("PUT", PUT_LAYER, EarlyStatus(403, body=QUOTA), times=None),),
        code=10,
        error="denied",
        fails=BIG,
        proof=both(hint("would exceed the quota"), put_once),
    ),
    Row(
        name="quota, at 95 % of the body",
        fault="403 with the words of a quota when 95 % of the body are there",
        does="fails the image with those words; nothing is tried again",
        orders=(
            Order("PUT", PUT_LAYER, EarlyStatus(403, body=QUOTA, after_bytes=LAYER_BYTES * 95 // 100), times=None),
        ),
        code=10,
        error="denied",
        fails=BIG,
        proof=both(hint("would exceed the quota"), put_once),
    ),
)

PAUSES = (
    Row(
        name="429 seconds",
        fault="429, Retry-After: 1",
        does="waits for as long as it is asked to, all threads together",
        orders=(Order("POST", OPEN, Status(429, {"Retry-After": "1"})),),
        statuses=(429,),
    ),
    Row(
        name="429 date",
        fault="429, Retry-After is a date",
        does="waits until then, by the clock of the answer",
        orders=(Order("POST", OPEN, in_seconds(2)),),
        statuses=(429,),
    ),
    Row(
        name="429 without Retry-After",
        fault="429 alone, three times",
        does="waits with growing pauses",
        orders=(Order("PUT", PUT_LAYER, Status(429), times=3),),
        statuses=(429,),
    ),
    Row(
        name="429 and a page",
        fault="429 with a page in HTML",
        does="waits and tries again",
        orders=(Order("HEAD", TAG, Status(429, HTML, PAGE)), Order("PUT", TAG, Status(429, HTML, PAGE))),
        statuses=(429,),
    ),
    Row(
        name="429 for six hours",
        fault="429, Retry-After: 21600 for one repository",
        does="fails the image at once and says when to come back, or to raise --max-wait",
        orders=(Order("PUT", PUT_LAYER, Status(429, {"Retry-After": str(LONG_S)}), times=None),),
        code=10,
        error="too-many-requests",
        fails=BIG,
        statuses=(429,),
        proof=hint("--max-wait", "UTC"),
    ),
    Row(
        name="429 longer than --max-wait",
        fault="429, Retry-After: 60 with --max-wait 30",
        does="fails the image at once and says when to come back",
        orders=(Order("POST", OPEN, Status(429, {"Retry-After": "60"}), times=None),),
        options=("--max-wait", "30"),
        code=10,
        error="too-many-requests",
        fails=BIG,
        proof=hint("--max-wait", "UTC"),
    ),
    Row(
        name="429 to everything for six hours",
        fault="429, Retry-After: 21600 to every request",
        does="ends when three different things were refused so",
        orders=(Order("*", "", Status(429, {"Retry-After": str(LONG_S)}), times=None),),
        code=8,
        error="too-many-requests",
        proof=nothing_written,
    ),
    Row(
        name="503 with Retry-After",
        fault="503, Retry-After: 1",
        does="waits for as long as it is asked to",
        orders=(Order("PUT", TAG, Status(503, {"Retry-After": "1"})),),
        statuses=(503,),
    ),
)

_VERBS = {
    "HEAD": (TAG, ()),
    "GET": (r"/v2/$", ()),
    "POST": (OPEN, ()),
    "PATCH": (PATCH, CHUNKED),
    "PUT": (PUT_LAYER, ()),
}
ERRORS = (
    *(
        Row(
            name=f"{code} to {verb}",
            fault=f"{code} to one {verb}, with a page in HTML",
            does="sends less at once, and tries again after a pause",
            orders=(Order(verb, where, Status(code, HTML, PAGE)),),
            options=options,
            statuses=(code,),
        )
        for verb, (where, options) in _VERBS.items()
        for code in (500, 502, 503, 504)
    ),
    Row(
        name="502 to PUT of a manifest",
        fault="502 to the PUT of the tag",
        does="asks whether the tag stands already, and puts it again if not",
        orders=(Order("PUT", TAG, Status(502, HTML, PAGE)),),
    ),
    Row(
        name="500 for ever",
        fault="500 to every request for one repository",
        does="tries four times, fails the image and goes on with the others",
        orders=(Order("*", "/v2/rancher/big/", Status(500, HTML, PAGE), times=None),),
        code=10,
        error="server-error",
        fails=BIG,
    ),
    Row(
        name="400 with a page",
        fault="400 with a page in HTML",
        does="fails the image at once; the page is not printed",
        orders=(Order("PUT", PUT_LAYER, Status(400, HTML, PAGE), times=None),),
        code=10,
        error="unexpected-answer",
        fails=BIG,
        proof=both(hint("a web page"), put_once),
    ),
    Row(
        name="a web page instead of a registry",
        fault="200 with a login page at /v2/",
        does="ends before anything is sent: this is not a registry",
        orders=(Order("GET", r"/v2/$", Status(200, HTML, PAGE), times=None),),
        code=8,
        error="unexpected-answer",
        proof=nothing_written,
    ),
    Row(
        name="read-only",
        fault="405 to every upload",
        does="fails every image at once; the hint says that the registry takes no pushes",
        orders=(Order("POST", "", Status(405, body=b'{"errors":[{"code":"UNSUPPORTED"}]}'), times=None),),
        code=10,
        error="unexpected-answer",
        fails=ALL,
        options=("--jobs", "1"),
        proof=both(hint("read-only"), once("POST", "/v2/rancher/big/blobs/uploads/")),
    ),
    Row(
        name="Docker's media types refused",
        fault="415 to manifests of Docker's media types (zot)",
        does="fails those images and names zot's setting; the others arrive",
        quirks={"refuse_docker_types": True},
        code=10,
        error="media-type-refused",
        fails=failing("small"),
        statuses=(415,),
        proof=both(hint("docker2s2"), once("PUT", "/v2/rancher/small/manifests/1")),
    ),
    Row(
        name="repository must exist",
        fault="404 NAME_UNKNOWN when an upload is opened (ECR)",
        does="fails every image at once; the hint says to make the repository first",
        quirks={"need_repository": True},
        code=10,
        error="repository-unknown",
        fails=ALL,
        statuses=(404,),
        proof=hint("create it there first"),
    ),
)

BREAKS = (
    Row(
        name="reset in a body",
        fault="reset after 500 kB of a PUT",
        does="asks whether the blob is there, and sends it anew",
        orders=(Order("PUT", PUT_LAYER, BreakBody(500_000)),),
    ),
    Row(
        name="end in a body",
        fault="the connection ends in good order after 500 kB of a PUT",
        does="asks whether the blob is there, and sends it anew",
        orders=(Order("PUT", PUT_LAYER, BreakBody(500_000, reset=False)),),
    ),
    Row(
        name="reset before an answer",
        fault="reset instead of the answer to a POST and to a HEAD",
        does="tries again",
        orders=(Order("POST", OPEN, Reset()), Order("HEAD", TAG, Reset())),
    ),
    Row(
        name="answer to a PUT of a blob lost",
        fault="reset after the PUT was carried out",
        does="asks for the blob first, finds it, and sends nothing twice",
        orders=(Order("PUT", PUT_LAYER, Reset(after_effect=True)),),
        proof=sent_once,
    ),
    Row(
        name="answer to a commit lost",
        fault="reset after the closing PUT was carried out",
        does="asks for the blob first, finds it, and sends nothing twice",
        orders=(Order("PUT", PUT_LAYER, Reset(after_effect=True)),),
        options=CHUNKED,
        proof=no_byte_twice,
    ),
    Row(
        name="answer to a PUT of a tag lost",
        fault="reset after the PUT was carried out",
        does="asks what the tag stands for first, and puts nothing twice",
        orders=(Order("PUT", TAG, Reset(after_effect=True)),),
        proof=once("PUT", "/v2/rancher/big/manifests/1"),
    ),
    Row(
        name="stall before an answer",
        fault="silence for longer than --timeout",
        does="gives up waiting and tries again",
        orders=(Order("POST", OPEN, Stall(60)),),
        options=("--timeout", "3"),
    ),
    Row(
        name="stall in a chunk",
        fault="the registry stops reading in the middle of a PATCH",
        does="gives up after --timeout, asks the session and goes on",
        orders=(Order("PATCH", PATCH, StallBody(100_000, 60), skip=1),),
        options=("--timeout", "3", *CHUNKED),
    ),
    Row(
        name="down in the middle",
        fault="connection refused from the first upload on",
        does="tries three times within five seconds, then fails everything that is left without asking again",
        orders=(Order("PUT", PUT_LAYER, gone_down),),
        code=10,
        error="connection-refused",
        fails=ALL,
        options=("--jobs", "1"),
    ),
    Row(
        name="down from the start",
        fault="connection refused",
        does="tries three times within five seconds, then ends",
        at="http://127.0.0.1:{free}",
        code=8,
        error="connection-refused",
        proof=nothing_written,
    ),
    Row(
        name="the name does not resolve",
        fault="DNS does not know the host",
        does="tries three times within five seconds, then ends; the hint says to look for a typo",
        at="http://registry.invalid",
        code=8,
        error="name-not-resolved",
        proof=nothing_written,
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

CONTENT = (
    Row(
        name="blob stored under another digest",
        fault="Docker-Content-Digest of a PUT is another one",
        does="fails the image; its tag is not written",
        orders=(Order("PUT", PUT_LAYER, WrongDigestHeader(), times=None),),
        code=10,
        error="digest-mismatch",
        fails=BIG,
    ),
    Row(
        name="manifest stored under another digest",
        fault="Docker-Content-Digest of a manifest is another one",
        does="fails the image",
        orders=(Order("PUT", CHILD, WrongDigestHeader(), times=None),),
        code=10,
        error="digest-mismatch",
        fails=BIG,
    ),
    Row(
        name="bytes spoilt on the way",
        fault="400 DIGEST_INVALID to a PUT, although what was read from the bundle was right",
        does="sends the blob anew in another session",
        orders=(Order("PUT", PUT_LAYER, Status(400, body=INVALID)),),
    ),
    Row(
        name="bytes of a session spoilt",
        fault="400 DIGEST_INVALID to the closing PUT",
        does="sends the blob anew in another session",
        orders=(Order("PUT", PUT_LAYER, Status(400, body=INVALID)),),
        options=CHUNKED,
    ),
    Row(
        name="bytes always spoilt",
        fault="400 DIGEST_INVALID to every PUT of a blob",
        does="begins anew twice, then fails the image with what the registry said",
        orders=(Order("PUT", PUT_LAYER, Status(400, body=INVALID), times=None),),
        code=10,
        error="unexpected-answer",
        fails=BIG,
        proof=hint("DIGEST_INVALID"),
    ),
    Row(
        name="blob lost after 201",
        fault="a blob is accepted, and is not there afterwards",
        does="finds it missing before the tag is written and sends it again",
        orders=(Order("PUT", PUT_LAYER, LoseBlob()),),
    ),
    Row(
        name="blob lost after every 201",
        fault="a blob is accepted again and again, and is never there",
        does="fails the image; its tag is not written",
        orders=(Order("PUT", PUT_LAYER, LoseBlob(), times=None),),
        code=10,
        error="not-verified",
        fails=BIG,
    ),
    Row(
        name="blob unknown",
        fault="400 MANIFEST_BLOB_UNKNOWN: a blob was lost after 201, and --no-verify",
        does="asks for the image's blobs, sends what is missing, and puts the manifest again",
        orders=(Order("PUT", PUT_LAYER, LoseBlob()),),
        options=("--no-verify",),
        statuses=(400,),
    ),
    Row(
        name="blob collected before the manifest",
        fault="400 MANIFEST_BLOB_UNKNOWN: the registry removed a blob after it was asked for",
        does="asks for the image's blobs, sends what is missing, and puts the manifest again",
        orders=(Order("PUT", CHILD, collected),),
        statuses=(400,),
    ),
    Row(
        name="blob unknown for ever",
        fault="400 MANIFEST_BLOB_UNKNOWN, and all blobs are said to be there",
        does="fails the image",
        orders=(Order("PUT", TAG, Status(400, body=UNKNOWN), times=None),),
        code=10,
        error="unexpected-answer",
        fails=BIG,
        proof=hint("MANIFEST_BLOB_UNKNOWN"),
    ),
    Row(
        name="tag hidden by a policy",
        fault="412 to HEAD of a tag",
        does="takes it for there and hidden: content and tag are sent, and what cannot be read is not called wrong",
        orders=(Order("HEAD", TAG, Status(412), times=None),),
    ),
    Row(
        name="immutable tag with our content",
        fault="412 to PUT of a tag that stands for our digest",
        does="asks what it stands for, and takes that for success",
        before=all_there,
        orders=(Order("HEAD", TAG, Status(404)), Order("PUT", TAG, Status(412), times=None)),
        proof=once("PUT", "/v2/rancher/big/manifests/1"),
    ),
    Row(
        name="immutable tag with other content",
        fault="412 to PUT of a tag that stands for something else",
        does="fails the image; the hint says where the rule is",
        before=other_content,
        orders=(Order("PUT", TAG, Status(412), times=None),),
        code=10,
        error="immutable-tag",
        fails=BIG,
        proof=hint("immutability"),
    ),
)

PUSH = (*CREDENTIALS, *MOUNTS, *SESSIONS, *SIZES, *PAUSES, *ERRORS, *BREAKS, *LOCATIONS, *CONTENT)
