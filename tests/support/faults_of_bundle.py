"""The faults that `bundle` meets, row by row."""

from collections.abc import Callable
from functools import partial

from tests.support.command import Result, run
from tests.support.fault_proofs import HTML, LONG_S, PAGE, hint
from tests.support.fault_row import LAYER_BYTES, Order, Row, Scene, failing, in_seconds, unauthorized
from tests.support.faults import (
    Action,
    Corrupt,
    Cut,
    Drip,
    EditHeaders,
    Redirect,
    Reset,
    ShortLength,
    Stall,
    Status,
    WrongDigestHeader,
)

LAYER = "/v2/rancher/big/blobs/{layer}"
ROOT = "/v2/rancher/big/manifests/1$"
BIG = failing("big")
ROW: Callable[..., Row] = partial(Row, command="bundle")


def ranges(scene: Scene) -> list[str | None]:
    """Give the Range of each request for the layer."""
    return [request.headers.get("range") for request in scene.target.requests("GET") if scene.layer in request.target]


def continued(scene: Scene, result: Result) -> None:
    """The layer was continued where it broke: no byte was fetched twice."""
    first, *others = ranges(scene)
    assert first is None
    assert others
    assert all(other and other.startswith("bytes=") and other != "bytes=0-" for other in others)
    assert result.json["totals"]["bytes_moved"] == sum(
        {blob.digest: blob.size for image in scene.images.values() for blob in image.blobs}.values()
    )


def no_password_elsewhere(scene: Scene, result: Result) -> None:
    """The other host was asked for the layer, also for the rest of it, and never shown our token."""
    del result
    asked = [request for request in scene.other.requests("GET") if scene.layer in request.target]
    assert [request.headers.get("range") for request in asked] == [None, "bytes=500000-"]
    assert [request for request in asked if "authorization" in request.headers] == []
    own = [request for request in scene.target.requests("GET") if scene.layer in request.target]
    assert [request for request in own if "authorization" not in request.headers] == []


def signed(scene: Scene) -> Action:
    scene.rules.append(scene.other.fault("GET", scene.layer, Cut(500_000)))
    return Redirect(f"{scene.other.url}{{target}}?X-Amz-Signature=s3cr3t")


def downgraded(scene: Scene) -> Action:
    return Redirect(f"http://{scene.other.host}{{target}}")


_VERBS = {"HEAD": ROOT, "GET": ROOT, "GET of a blob": LAYER}


def there_already(scene: Scene) -> None:
    """Make the bundle first: whoever renews one asks by HEAD."""
    images = [part for name in scene.images for part in ("--image", f"{scene.target.host}/{name}:1")]
    done = run("bundle", *images, "--platform", "all", "--to", scene.to)
    assert done.code == 0, done.err


BUNDLE = (
    ROW(
        name="token expires",
        fault="401 with a challenge when a layer is asked for",
        does="asks for a new token and tries once more",
        orders=(Order("GET", LAYER, unauthorized),),
        auth=True,
    ),
    ROW(
        name="credentials wanted",
        fault="401 without a challenge for one repository",
        does="fails the image at once; the others are complete",
        orders=(Order("*", "/v2/rancher/big/", Status(401), times=None),),
        code=10,
        error="unexpected-answer",
        fails=BIG,
    ),
    ROW(
        name="signed redirect, cut",
        fault="307 of a layer to a signed URL at another host, which breaks off",
        does="follows without our token and goes on by Range, from the registry again; the signature is shown nowhere",
        orders=(Order("GET", LAYER, signed, times=None),),
        auth=True,
        proof=no_password_elsewhere,
    ),
    ROW(
        name="redirect from https to http",
        fault="307 of a layer from https to http",
        does="does not follow, and fails the image",
        orders=(Order("GET", LAYER, downgraded, times=None),),
        tls=True,
        code=10,
        error="unexpected-answer",
        fails=BIG,
    ),
    ROW(
        name="429 seconds",
        fault="429, Retry-After: 3",
        does="does other things until then",
        orders=(Order("GET", LAYER, Status(429, {"Retry-After": "3"})),),
        proof=hint("nothing more is asked of it until"),
    ),
    ROW(
        name="429 date",
        fault="429, Retry-After is a date",
        does="does other things until then, by the clock of the answer",
        orders=(Order("GET", ROOT, in_seconds(4)),),
    ),
    ROW(
        name="429 without Retry-After",
        fault="429 alone, with a page in HTML",
        does="waits with growing pauses",
        orders=(Order("GET", LAYER, Status(429, HTML, PAGE), times=2),),
    ),
    ROW(
        name="429 for six hours",
        fault="429, Retry-After: 21600 for one repository",
        does="fails the image at once and says when to come back, or to raise --max-wait",
        orders=(Order("GET", ROOT, Status(429, {"Retry-After": str(LONG_S)}), times=None),),
        code=10,
        error="too-many-requests",
        fails=BIG,
        proof=hint("--max-wait", "UTC"),
    ),
    *(
        ROW(
            name=f"{code} to {verb}",
            fault=f"{code} to one {verb}, with a page in HTML",
            does="sends less at once, and tries again after a pause",
            orders=(Order(verb[:4].strip(), where, Status(code, HTML, PAGE)),),
            before=there_already if verb == "HEAD" else None,
            statuses=(code,),
        )
        for verb, where in _VERBS.items()
        for code in (500, 502, 503, 504)
    ),
    ROW(
        name="500 for ever",
        fault="500 to every request for one repository",
        does="tries four times, and once more at the end; the others are complete",
        orders=(Order("*", "/v2/rancher/big/", Status(500), times=None),),
        code=10,
        error="server-error",
        fails=BIG,
    ),
    ROW(
        name="connection ends in a layer",
        fault="the connection ends after 700 kB, with the right length announced",
        does="goes on by Range",
        orders=(Order("GET", LAYER, Cut(700_000)),),
        proof=continued,
    ),
    ROW(
        name="reset in a layer",
        fault="reset after 700 kB",
        does="goes on by Range",
        orders=(Order("GET", LAYER, Cut(700_000, reset=True)),),
        statuses=(206,),
    ),
    ROW(
        name="reset before an answer",
        fault="reset instead of an answer",
        does="tries again",
        orders=(Order("GET", ROOT, Reset()), Order("GET", LAYER, Reset())),
    ),
    ROW(
        name="416 with Range",
        fault="416 to the request for the rest",
        does="fetches the layer from its start",
        orders=(Order("GET", LAYER, Cut(700_000)), Order("GET", LAYER, Status(416), skip=0)),
        proof=lambda scene, _: _equal(ranges(scene), [None, "bytes=700000-", None]),
    ),
    ROW(
        name="Range is ignored",
        fault="200 to the request for the rest",
        does="fetches the layer from its start",
        orders=(Order("GET", LAYER, Cut(700_000)),),
        quirks={"ranges": False},
    ),
    ROW(
        name="short body of the right length",
        fault="a layer ends early, and its Content-Length says so too",
        does="fails the image: the size is not that of the manifest",
        orders=(Order("GET", LAYER, ShortLength(LAYER_BYTES - 1), times=None),),
        code=10,
        error="size-mismatch",
        fails=BIG,
    ),
    ROW(
        name="a wrong byte, once",
        fault="a layer has a wrong byte in it",
        does="keeps nothing of it and fetches it anew",
        orders=(Order("GET", LAYER, Corrupt()),),
    ),
    ROW(
        name="a wrong byte, always",
        fault="a layer always has a wrong byte in it",
        does="fails the image; nothing of it gets a name",
        orders=(Order("GET", LAYER, Corrupt(), times=None),),
        code=10,
        error="digest-mismatch",
        fails=BIG,
    ),
    ROW(
        name="wrong digest header",
        fault="Docker-Content-Digest is not that of the manifest",
        does="fails the image",
        orders=(Order("GET", ROOT, WrongDigestHeader(), times=None),),
        code=10,
        error="digest-mismatch",
        fails=BIG,
    ),
    ROW(
        name="a web page instead of a manifest",
        fault="200 with a login page",
        does="fails the image",
        orders=(Order("GET", ROOT, Status(200, HTML, PAGE), times=None),),
        code=10,
        error="bad-manifest",
        fails=BIG,
    ),
    ROW(
        name="hidden by a policy",
        fault="412 to GET of a manifest",
        does="fails the image, and says that a policy hides it",
        orders=(Order("GET", ROOT, Status(412), times=None),),
        code=10,
        error="hidden-by-policy",
        fails=BIG,
    ),
    ROW(
        name="blob gone",
        fault="404 to a layer",
        does="fails the image; the others are complete",
        orders=(Order("GET", LAYER, Status(404), times=None),),
        code=10,
        error="blob-unknown",
        fails=BIG,
    ),
    ROW(
        name="slow drip",
        fault="a layer comes in small pieces, with pauses",
        does="waits, as long as something comes",
        orders=(Order("GET", LAYER, Drip(100_000, 0.2)),),
        options=("--timeout", "3"),
        proof=lambda scene, _: _equal(ranges(scene), [None]),
    ),
    ROW(
        name="stall in a layer",
        fault="silence after 700 kB for longer than --timeout",
        does="gives up waiting and goes on by Range",
        orders=(Order("GET", LAYER, Stall(60, after_bytes=700_000)),),
        options=("--timeout", "3"),
        proof=continued,
    ),
    ROW(
        name="no length",
        fault="a layer comes without Content-Length",
        does="goes by size and digest of the manifest",
        orders=(Order("GET", LAYER, EditHeaders({"Content-Length": None})),),
    ),
)


def _equal(found: object, wanted: object) -> None:
    """Check that two things are the same."""
    assert found == wanted
