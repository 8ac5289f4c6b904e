"""`push` when the registry, the network or the user gets in between; nothing is sent twice, no tag lies."""

import errno
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import parse_qs, urlsplit

import pytest

from bundler.errors import IntegrityError
from bundler.files import open_regular
from bundler.layout.check import read_image
from bundler.layout.store import Layout
from bundler.net import Http
from bundler.progress import NoProgress
from bundler.registry.client import RegistryClient
from bundler.registry.endpoint import Endpoint
from bundler.transfer.plan import PushImage, make_plan
from bundler.transfer.push import PushedImage, Pusher
from bundler.transfer.survey import Survey
from tests.support.certificates import make_certificate
from tests.support.command import run, start
from tests.support.content import BlobStore, BuiltImage, digest_of
from tests.support.faulty import (
    Action,
    Cut,
    Fault,
    FaultyRegistry,
    Redirect,
    Reset,
    Stall,
    Status,
    WrongDigestHeader,
)
from tests.support.handmade import built, complete, flip, multi, outcomes, uploads, write_bundle, writes
from tests.support.memory_registry import Request, Response
from tests.support.programs import free_port, require
from tests.support.registry import Registry

BASE = b"base layer\n" * 400
BIG, SMALL = "docker.io/rancher/big:1", "docker.io/rancher/small:1"
UPLOAD = r"/blobs/uploads/."
OPEN = r"/blobs/uploads/$"
STALL = Stall(60)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "store")


@pytest.fixture
def images(store: BlobStore) -> dict[str, BuiltImage]:
    """An index and a single manifest that share a layer."""
    return {BIG: multi(store, BASE, b"big" * 5000, title="big"), SMALL: built(store, BASE, b"small", title="small")}


@pytest.fixture
def bundle(tmp_path: Path, images: dict[str, BuiltImage]) -> Path:
    return write_bundle(tmp_path / "bundle", images)


def path_of(reference: str) -> str:
    return reference.removeprefix("docker.io/").partition(":")[0]


def all_there(target: FaultyRegistry, images: dict[str, BuiltImage]) -> bool:
    return all(complete(target, path_of(reference), "1", image) for reference, image in images.items())


def tags_never_lied(target: FaultyRegistry, images: dict[str, BuiltImage]) -> bool:
    """Tell that each tag, if it is there, stands for a complete image, and that none was tried too early."""
    tags = {reference: target.content.tags(path_of(reference)).get("1") for reference in images}
    return target.violations == [] and all(
        tag is None or (tag == images[name].root_digest and not target.content.missing(path_of(name), tag))
        for name, tag in tags.items()
    )


def wait_until(happened: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def end(fault: Fault) -> None:
    """Let a fault happen no more."""
    fault.times = 0


# --- what passes by itself --------------------------------------------------------------------------------------------

RETRY_NOW = {"Retry-After": "0"}
PASSING: list[tuple[str, str, Action]] = [
    ("HEAD", "/manifests/1", Status(503, {"Retry-After": "1"})),
    ("HEAD", "/manifests/1", Reset()),
    ("HEAD", "/blobs/", Status(429, RETRY_NOW)),
    ("POST", OPEN, Status(429, {"Retry-After": "1"}, b'{"errors":[{"code":"TOOMANYREQUESTS"}]}')),
    ("POST", OPEN, Reset(after_effect=True)),
    ("PUT", UPLOAD, Status(503, RETRY_NOW)),
    ("PUT", UPLOAD, Status(502, body=b"<html>Bad Gateway</html>")),
    ("PUT", UPLOAD, Reset()),
    ("PUT", UPLOAD, Reset(after_effect=True)),
    ("PUT", "/manifests/sha256:", Status(503, RETRY_NOW)),
    ("PUT", "/manifests/sha256:", Reset()),
    ("PUT", "/manifests/sha256:", Reset(after_effect=True)),
    ("PUT", "/manifests/1", Status(504)),
    ("PUT", "/manifests/1", Reset(after_effect=True)),
    ("PUT", UPLOAD, Cut(0)),
    ("*", "", Cut(0, reset=True)),
    ("PUT", UPLOAD, Redirect("{target}&again=1")),
]


@pytest.mark.parametrize(
    ("method", "where", "action"), PASSING, ids=[f"{method} {where} {action}"[:90] for method, where, action in PASSING]
)
def test_what_passes_is_tried_again(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage], method: str, where: str, action: Action
) -> None:
    fault = target.fault(method, where, action)

    done = run("push", bundle, target.url)

    assert done.code == 0, done.err
    assert fault.hits == 1
    assert all_there(target, images)
    assert target.violations == []
    digests = {blob.digest for image in images.values() for blob in image.blobs}
    assert set(uploads(target.requests())) <= digests
    for request in target.requests():
        assert "transfer-encoding" not in request.headers


def test_an_upload_whose_answer_was_lost_is_found_and_not_sent_again(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage]
) -> None:
    lost = target.fault("PUT", UPLOAD, Reset(after_effect=True), times=3)

    done = run("push", bundle, target.url, "-o", "json")

    assert done.code == 0, done.err
    assert lost.hits == 3
    assert all_there(target, images)
    sizes = {blob.digest: blob.size for image in images.values() for blob in image.blobs}
    assert uploads(target.requests(), None) == dict.fromkeys(sizes, 1)
    assert done.json["totals"]["bytes_moved"] == sum(sizes.values())


def test_an_upload_that_did_not_arrive_is_sent_again_in_a_new_session(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage]
) -> None:
    target.fault("PUT", f"{UPLOAD}.*{digest_of(b'big' * 5000)}", Reset(), times=2)

    done = run("push", bundle, target.url)

    assert done.code == 0, done.err
    assert all_there(target, images)
    tries = [request.path for request in target.requests("PUT") if digest_of(b"big" * 5000) in request.target]
    assert len(tries) == len(set(tries)) == 3


def test_a_registry_that_sends_no_digests_is_asked_for_them(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = target.content.handle

    def silent(request: Request) -> Response:
        response = handle(request)
        headers = {name: value for name, value in response.headers.items() if name != "Docker-Content-Digest"}
        return Response(response.status, response.body, headers)

    monkeypatch.setattr(target.content, "handle", silent)
    done = run("push", bundle, target.url)
    again = run("push", bundle, target.url, "-o", "json")

    assert (done.code, again.code) == (0, 0), done.err + again.err
    assert all_there(target, images)
    assert set(outcomes(again).values()) == {"up-to-date"}


# --- mounts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [Status(202), *(Status(code) for code in (200, 400, 403, 404, 405, 500)), Reset()],
    ids=str,
)
def test_a_mount_that_is_not_granted_becomes_an_upload(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage], answer: Action
) -> None:
    refused = target.fault("POST", "mount=", answer, times=None)

    done = run("push", bundle, target.url, "-o", "json")

    assert done.code == 0, done.err
    assert refused.hits >= 1
    assert all_there(target, images)
    assert uploads(target.requests(), None)[digest_of(BASE)] == len(images)
    assert done.json["totals"]["bytes_mounted"] == 0
    assert target.violations == []


def test_a_registry_that_opens_a_session_instead_of_mounting_is_given_the_blob(
    bundle: Path, images: dict[str, BuiltImage]
) -> None:
    with FaultyRegistry(mounts=False) as target:
        done = run("push", bundle, target.url)

        assert done.code == 0, done.err
        assert all_there(target, images)


def test_a_digest_is_still_sent_once_when_the_image_that_was_to_bring_it_fails(
    tmp_path: Path, store: BlobStore, target: FaultyRegistry
) -> None:
    wrong = b"wrong" * 5000
    images = {
        f"docker.io/rancher/{name}:1": built(store, *layers, BASE, title=name)
        for name, layers in {"bad": [wrong], "one": [b"1" * 900], "two": [b"2" * 800], "three": [b"3" * 700]}.items()
    }
    bundle = write_bundle(tmp_path / "bundle", images)
    flip(bundle / "blobs" / digest_of(wrong).replace(":", "/"))

    # With one job the layer of the failing image fails before its base would be sent.
    done = run("push", bundle, target.url, "--jobs", "1", "-o", "json")

    assert done.code == 10
    assert [name for name, outcome in outcomes(done).items() if outcome == "failed"] == ["docker.io/rancher/bad:1"]
    assert uploads(target.requests())[digest_of(BASE)] == 1
    assert target.violations == []


def test_a_mount_is_only_asked_of_a_repository_known_to_hold_the_blob(
    tmp_path: Path, store: BlobStore, target: FaultyRegistry
) -> None:
    wrong = b"wrong" * 5000
    images = {
        "docker.io/rancher/bad:1": built(store, wrong, BASE, title="bad"),
        "docker.io/rancher/one:1": built(store, BASE, title="one"),
    }
    bundle = write_bundle(tmp_path / "bundle", images)
    flip(bundle / "blobs" / digest_of(wrong).replace(":", "/"))
    run("push", bundle, target.url, "--jobs", "1")

    held: set[tuple[str, str]] = set()
    for request in target.requests():
        name = request.path.removeprefix("/v2/").partition("/blobs/")[0]
        held |= {(name, digest) for digest in uploads([request])}
        query = parse_qs(urlsplit(request.target).query)
        if "mount" in query:
            assert (query["from"][0], query["mount"][0]) in held


# --- what does not pass -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "where", "action", "reference"),
    [
        ("POST", OPEN, Status(202), "unexpected-answer"),
        ("POST", OPEN, Status(202, {"Location": "/v2/rancher/big/blobs/uploads/unknown"}), ""),
        ("POST", OPEN, Status(202, {"Location": "ftp://127.0.0.1/x"}), ""),
        ("POST", OPEN, Status(202, {"Location": "http://[::/"}), ""),
        ("POST", OPEN, Status(202, {"Location": "http://127.0.0.1:99999/x"}), ""),
        ("POST", OPEN, Status(202, {"Location": "http://localhost:99999/x"}), ""),
        ("POST", OPEN, Status(403, body=b'{"errors":[{"code":"DENIED","message":"no"}]}'), "denied"),
        ("POST", OPEN, Status(405), "unexpected-answer"),
        ("PUT", UPLOAD, Status(413, body=b"too large"), "body-too-large"),
        ("PUT", UPLOAD, Status(400, body=b'{"errors":[{"code":"X","message":"\\ud800"}]}'), "unexpected-answer"),
        ("PUT", UPLOAD, Status(400, body=b"\xff\xfe\x00\x1b[2J" * 9999), "unexpected-answer"),
        ("PUT", UPLOAD, Status(429, {"Retry-After": "9999"}), "too-many-requests"),
        ("PUT", UPLOAD, Redirect("{target}", 302), "unexpected-answer"),
        ("PUT", UPLOAD, Redirect("http://[::/"), ""),
        ("PUT", UPLOAD, WrongDigestHeader(), "digest-mismatch"),
        ("PUT", UPLOAD, WrongDigestHeader("nonsense"), "unexpected-answer"),
        ("PUT", "/manifests/sha256:", WrongDigestHeader(), "digest-mismatch"),
        ("PUT", "/manifests/1$", WrongDigestHeader(), "digest-mismatch"),
        ("PUT", "/manifests/1$", Status(400, body=b'{"errors":[{"code":"MANIFEST_INVALID"}]}'), "unexpected-answer"),
    ],
    ids=str,
)
def test_what_one_repository_refuses_fails_one_image_and_the_others_arrive(
    bundle: Path,
    target: FaultyRegistry,
    images: dict[str, BuiltImage],
    tmp_path: Path,
    method: str,
    where: str,
    action: Action,
    reference: str,
) -> None:
    fault = target.fault(method, f"/v2/rancher/big{where}", action, times=None)
    report = tmp_path / "report.json"

    done = run("push", bundle, target.url, "-o", "json", "--report", report)

    assert done.code == 10, done.err
    assert fault.hits >= 1
    assert outcomes(done) == {BIG: "failed", SMALL: "pushed"}
    failed = next(image for image in done.json["images"] if image["reference"] == BIG)
    assert failed["error"]["reference"] == reference or not reference
    assert complete(target, "rancher/small", "1", images[SMALL])
    assert target.violations == []
    if "manifests/1" not in where:
        assert "1" not in target.content.tags("rancher/big")
    assert json.loads(report.read_text())["images"] == done.json["images"]
    assert "\x1b" not in done.out + done.err


def test_a_repository_that_fails_for_ever_leaves_the_others_alone_and_a_later_run_completes(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage]
) -> None:
    broken = target.fault("*", "/v2/rancher/big/", Status(500), times=None)

    done = run("push", bundle, target.url, "-o", "json")

    assert done.code == 10
    assert outcomes(done) == {BIG: "failed", SMALL: "pushed"}
    failed = next(image for image in done.json["images"] if image["outcome"] == "failed")
    assert failed["error"]["reference"] == "server-error"
    assert BIG in done.err
    end(broken)
    mark = target.mark()
    again = run("push", bundle, target.url, "-o", "json")
    assert again.code == 0, again.err
    assert outcomes(again) == {BIG: "pushed", SMALL: "up-to-date"}
    assert digest_of(BASE) not in uploads(target.since(mark), None)
    assert all_there(target, images)


def test_the_report_of_a_partial_push_names_the_reason_of_each_failure(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage], tmp_path: Path
) -> None:
    target.fault("PUT", "/v2/rancher/big/manifests/1$", Status(400), times=None)
    report_file = tmp_path / "report.json"

    done = run("push", bundle, target.url, "--report", report_file)

    assert done.code == 10
    report = json.loads(report_file.read_text())
    assert report["error"]["reference"] == "images-failed"
    assert report["error"]["exit_code"] == 10
    assert {image["reference"]: image["outcome"] for image in report["images"]} == {BIG: "failed", SMALL: "pushed"}
    failed = next(image for image in report["images"] if image["outcome"] == "failed")
    assert failed["digest"] == images[BIG].root_digest
    assert "400" in failed["error"]["message"]
    # What it sent before it failed was sent.
    assert report["totals"]["bytes_moved"] == sum(
        {blob.digest: blob.size for image in images.values() for blob in image.blobs}.values()
    )
    assert {"failed": 1, "pushed": 1, "images": 2}.items() <= report["totals"].items()


def test_a_registry_that_is_down_from_the_start_is_unavailable(bundle: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"

    done = run("push", bundle, f"http://127.0.0.1:{free_port()}", "--report", report)

    assert done.code == 8
    assert "connection refused" in done.err
    assert json.loads(report.read_text())["error"]["exit_code"] == 8


def test_a_registry_that_always_fails_is_unavailable(bundle: Path, target: FaultyRegistry) -> None:
    target.fault("*", "", Status(503, {"Retry-After": "9999"}), times=None)

    done = run("push", bundle, target.url)

    assert done.code == 8
    assert "server-error" in done.err
    assert writes(target.requests()) == []


# --- nothing is downgraded --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["", "https://"])
def test_a_plain_registry_is_only_spoken_to_where_http_was_written(bundle: Path, scheme: str) -> None:
    require("docker-registry")
    with Registry() as registry:
        done = run("push", bundle, f"{scheme}{registry.host}")

        assert done.code == 8
        assert f"http://{registry.host}" in done.err.partition("hint:")[2]
        assert [entry for entry in registry.requests() if entry.path.startswith("/v2")] == []


def test_a_registry_whose_certificate_is_not_trusted_gets_nothing_and_the_hint_can_be_followed(
    bundle: Path, tmp_path: Path
) -> None:
    require("docker-registry", "openssl")
    options = run("push", "--help").out
    with Registry(certificate=make_certificate(tmp_path)) as registry:
        done = run("push", bundle, registry.host)

        assert done.code == 8
        assert "certificate" in done.err
        assert [entry for entry in registry.requests() if entry.path.startswith("/v2")] == []
    named = [word for word in done.err.partition("hint:")[2].split() if word.startswith("--")]
    assert [word for word in named if word not in options] == []


# --- Location ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    ["{path}?_state=a%2Fb%3D&x=", "{path}", "http://{host}{path}?_state=0", "https://127.0.0.1{path}", "{relative}"],
)
def test_every_form_of_location_is_followed(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    handle = target.content.handle

    def relocated(request: Request) -> Response:
        response = handle(request)
        if request.method != "POST" or response.status != 202:
            return response
        path = response.headers["Location"].partition("?")[0]
        relative = path.rpartition("/")[2]
        location = form.format(path=path, host=target.host, relative=relative)
        return Response(response.status, response.body, {**response.headers, "Location": location})

    monkeypatch.setattr(target.content, "handle", relocated)
    done = run("push", bundle, target.url)

    assert done.code == 0, done.err
    assert all_there(target, images)
    if "?" in form:
        query = form.partition("?")[2]
        assert all(
            f"?{query}&digest=" in request.target for request in target.requests("PUT") if "uploads" in request.path
        )


# --- interrupted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code", "progress"),
    [(signal.SIGINT, 130, "plain"), (signal.SIGINT, 130, "bar"), (signal.SIGTERM, 143, "plain")],
)
def test_a_signal_ends_a_stalled_push_at_once_and_the_next_run_completes_it(
    bundle: Path,
    target: FaultyRegistry,
    images: dict[str, BuiltImage],
    tmp_path: Path,
    number: signal.Signals,
    code: int,
    progress: str,
) -> None:
    stalled = target.fault("PUT", UPLOAD, STALL, times=None, skip=2)
    report = tmp_path / "report.json"
    with start("push", bundle, target.url, "--jobs", "2", "--progress", progress, "--report", report) as running:
        try:
            wait_until(lambda: stalled.hits >= 1 and len(uploads(target.requests())) == 2)
            asked = time.monotonic()
            running.send_signal(number)
            _, err = running.communicate(timeout=10)
            took = time.monotonic() - asked
        finally:
            running.kill()

    assert running.returncode == code
    assert took < 2
    assert "Traceback" not in err
    assert tags_never_lied(target, images)
    assert json.loads(report.read_text())["error"] is not None
    committed = set(uploads(target.requests()))
    assert len(committed) == 2
    end(stalled)
    mark = target.mark()
    again = run("push", bundle, target.url)
    assert again.code == 0, again.err
    assert all_there(target, images)
    assert committed & set(uploads(target.since(mark), None)) == set()
    assert target.violations == []


@pytest.mark.parametrize(
    ("method", "where", "skip"),
    [
        ("HEAD", "/manifests/", 1),
        ("HEAD", "/blobs/", 2),
        ("POST", OPEN, 3),
        ("PUT", UPLOAD, 0),
        ("PUT", UPLOAD, 4),
        ("POST", "mount=", 0),
        ("PUT", "/manifests/sha256:", 1),
        ("PUT", "/manifests/1", 0),
        ("PUT", "/manifests/1", 1),
    ],
)
def test_a_push_killed_anywhere_leaves_no_lying_tag_and_completes_when_run_again(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage], method: str, where: str, skip: int
) -> None:
    stalled = target.fault(method, where, STALL, times=None, skip=skip)
    with start("push", bundle, target.url, "--jobs", "2") as running:
        try:
            wait_until(lambda: stalled.hits >= 1)
        finally:
            running.kill()
    assert tags_never_lied(target, images)
    committed = set(uploads(target.requests()))

    end(stalled)
    mark = target.mark()
    again = run("push", bundle, target.url)

    assert again.code == 0, again.err
    assert all_there(target, images)
    assert target.violations == []
    assert committed & set(uploads(target.since(mark), None)) == set()


# --- two at once ------------------------------------------------------------------------------------------------------


def test_a_second_push_to_the_same_target_is_refused_at_once_and_to_others_not(
    bundle: Path, target: FaultyRegistry
) -> None:
    stalled = target.fault("PUT", "/v2/a/b/rancher.*/blobs/uploads/", STALL, times=None)
    # One job: while its upload stalls, the first push asks for nothing else.
    with start("push", bundle, f"{target.url}/a/b", "--jobs", "1") as running:
        try:
            wait_until(lambda: stalled.hits >= 1)
            mark = target.mark()
            asked = time.monotonic()
            refused = run("push", bundle, f"{target.url}/a/b/", "-o", "json")
            took = time.monotonic() - asked
            refused_requests = target.since(mark)
            others = {prefix: run("push", bundle, f"{target.url}{prefix}") for prefix in ("", "/c", "/a_b")}
        finally:
            running.kill()

    assert refused.code == 12
    assert "locked" in refused.err
    assert took < 10
    assert refused_requests == []
    assert {prefix: result.code for prefix, result in others.items()} == dict.fromkeys(others, 0)


# --- the medium fails -------------------------------------------------------------------------------------------------


class FailingFile:
    """A file on a medium that can be opened and not be read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def fileno(self) -> int:
        return self._file.fileno()

    def read(self, size: int) -> bytes:
        raise OSError(errno.EIO, f"Input/output error, {size} bytes wanted")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def test_a_medium_that_cannot_be_read_is_not_taken_for_a_broken_connection(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(bundle)
    wanted = [
        PushImage(root.reference, read_image(layout, root.descriptor), root.reference.repository, "1")
        for root in layout.roots()
    ]
    layer = digest_of(b"small")

    def failing(path: Path) -> object:
        file = open_regular(path)
        return FailingFile(file) if path.name in layer else file

    monkeypatch.setattr("bundler.layout.store.open_regular", failing)
    http = Http()
    try:
        client = RegistryClient(Endpoint(f"{target.url}/v2"), http)
        with open("/dev/null", "w", encoding="utf-8") as nowhere:
            survey = Survey(client)
            survey.ask_names(wanted, jobs=1)
            survey.ask_blobs(wanted, jobs=1)
            plan = make_plan(wanted, survey.existing)
            pushed = [PushedImage(image) for image in plan.images]
            Pusher(layout, client, jobs=1, progress=NoProgress(nowhere)).execute(plan, pushed)
    finally:
        http.close()

    errors = {str(image.plan.image.reference): image.error for image in pushed}
    assert errors[BIG] is None
    assert isinstance(errors[SMALL], IntegrityError), errors[SMALL]
    assert complete(target, "rancher/big", "1", images[BIG])
    assert target.content.tags("rancher/small") == {}
