"""What the rows of the table of faults share: where faults strike, how some are provoked, and what is to hold then."""

from collections.abc import Callable
from http import HTTPStatus

from tests.support.command import Result
from tests.support.fault_row import LAYER_BYTES, Scene, failing
from tests.support.faults import Action, EditHeaders, Meanwhile, Redirect
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


def accepted_in_chunks(scene: Scene, size: int) -> None:
    """Check what went in chunks that were answered."""
    accepted = [request for request in scene.target.requests("PATCH") if request.status == HTTPStatus.ACCEPTED]
    assert sum(request.body_size for request in accepted) == size
