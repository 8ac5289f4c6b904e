"""The scripted registry, token server, proxy and certificates of the tests themselves: they do what they say."""

import contextlib
import json
import socket
import ssl
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import pytest
import requests

from tests.support.certificates import Authority
from tests.support.content import digest_of
from tests.support.faulty import (
    BreakBody,
    Cut,
    Drip,
    EarlyStatus,
    EditHeaders,
    FaultyRegistry,
    LoseBlob,
    LoseSession,
    Reset,
    StallBody,
)
from tests.support.media_types import DOCKER_MANIFEST, OCI_MANIFEST
from tests.support.programs import require
from tests.support.proxy import ForwardProxy
from tests.support.registry import Registry
from tests.support.tokens import TokenServer

BLOB = bytes(range(256)) * 4096  # 1 MiB
OPEN, UPLOAD = r"/blobs/uploads/$", r"/blobs/uploads/."


@pytest.fixture
def web() -> Iterator[requests.Session]:
    """A client that knows nothing of the machine's proxies."""
    with requests.Session() as session:
        session.trust_env = False
        yield session


class Upload:
    """An upload session, spoken to as a client does: always at the newest Location, or at another one."""

    def __init__(self, web: requests.Session, registry: FaultyRegistry, repository: str = "a/b") -> None:
        self.web = web
        self.opened = web.post(f"{registry.url}/v2/{repository}/blobs/uploads/")
        assert self.opened.status_code == 202, self.opened.text
        self.location = self._place(self.opened)

    def _place(self, answer: requests.Response) -> str:
        return urljoin(answer.url, answer.headers["Location"])

    def patch(self, data: Any, start: int | None = None, location: str = "", length: int = 0) -> requests.Response:
        headers = {} if start is None else {"Content-Range": f"{start}-{start + (length or len(data)) - 1}"}
        answer = self.web.patch(location or self.location, data=data, headers=headers)
        if answer.ok:
            self.location = self._place(answer)
        return answer

    def status(self, location: str = "") -> requests.Response:
        answer = self.web.get(location or self.location)
        if answer.ok:
            self.location = self._place(answer)
        return answer

    def close(self, whole: bytes, last: bytes = b"") -> requests.Response:
        joint = "&" if "?" in self.location else "?"
        return self.web.put(f"{self.location}{joint}digest={digest_of(whole)}", data=last)


def code_of(answer: requests.Response) -> str:
    return str(answer.json()["errors"][0]["code"])


def connect(registry: FaultyRegistry, method: str, location: str, length: int, headers: str = "") -> socket.socket:
    """Send the head of a request over a connection of its own."""
    host, _, port = registry.host.rpartition(":")
    connection = socket.create_connection((host.strip("[]"), int(port)), timeout=20)
    target = location.removeprefix(registry.url)
    head = f"{method} {target} HTTP/1.1\r\nHost: {registry.host}\r\nContent-Length: {length}\r\n{headers}\r\n"
    connection.sendall(head.encode())
    return connection


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def needs_ipv6() -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("there is no IPv6 on loopback here")


# --- bodies of requests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("reset", [True, False])
def test_a_body_breaks_after_so_many_bytes_and_the_upload_keeps_them(
    web: requests.Session, target: FaultyRegistry, reset: bool, chunked: bool
) -> None:
    upload = Upload(web, target)
    assert upload.opened.headers["Range"] == "0-0"
    target.fault("PATCH", UPLOAD, BreakBody(12_345, reset=reset))

    with pytest.raises(requests.ConnectionError):
        upload.patch(iter([BLOB[:9000], BLOB[9000:]]) if chunked else BLOB, 0, length=len(BLOB))

    (broken,) = target.requests("PATCH")
    assert (broken.body_size, broken.status) == (12_345, 0)
    status = upload.status()
    assert (status.status_code, status.headers["Range"]) == (204, "0-12344")
    assert upload.patch(BLOB, 0).status_code == 416
    assert upload.patch(BLOB[12_345:], 12_345).headers["Range"] == f"0-{len(BLOB) - 1}"
    assert upload.close(BLOB).status_code == 201
    assert web.get(f"{target.url}/v2/a/b/blobs/{digest_of(BLOB)}").content == BLOB


def test_a_body_that_breaks_in_good_order_or_not_is_told_apart(web: requests.Session, target: FaultyRegistry) -> None:
    for reset in (True, False):
        target.fault("PATCH", UPLOAD, BreakBody(10, reset=reset))
        with connect(target, "PATCH", Upload(web, target).location, 4_000_000) as connection:
            connection.sendall(bytes(1000))
            if reset:
                with pytest.raises(ConnectionResetError):
                    connection.recv(1)
            else:
                assert connection.recv(1) == b""


@pytest.mark.parametrize(
    ("broken_patch", "codes"),
    [("forget", ["BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN"]), ("delete", ["BLOB_UPLOAD_UNKNOWN"])],
)
@pytest.mark.parametrize("cause", ["fault", "client"])
def test_a_broken_body_ends_the_upload_elsewhere(
    web: requests.Session, broken_patch: str, codes: list[str], cause: str
) -> None:
    with FaultyRegistry(broken_patch=broken_patch) as registry:
        upload = Upload(web, registry)
        assert upload.patch(b"first").status_code == 202
        if cause == "fault":
            registry.fault("PATCH", UPLOAD, BreakBody(3))
        with connect(registry, "PATCH", upload.location, 1000) as connection:
            connection.sendall(b"second")
            if cause == "fault":
                with pytest.raises(ConnectionResetError):
                    connection.recv(1)
        wait_until(lambda: len(registry.requests("PATCH")) == 2)

        assert registry.requests("PATCH")[1].body_size == (3 if cause == "fault" else 6)
        answers = [upload.status() for _ in codes]

    assert [(answer.status_code, code_of(answer)) for answer in answers] == [(404, code) for code in codes]


def test_a_client_that_goes_away_commits_nothing_and_what_it_sent_is_kept(
    web: requests.Session, target: FaultyRegistry
) -> None:
    upload = Upload(web, target)
    with connect(target, "PUT", f"{upload.location}&digest={digest_of(b'whole')}", 1000) as connection:
        connection.sendall(b"whole")
    wait_until(lambda: len(target.requests("PUT")) == 1)

    assert target.requests("PUT")[0].status == 0
    assert target.content.digests("a/b") == set()
    assert upload.status().headers["Range"] == "0-4"


@pytest.mark.parametrize(("after_bytes", "kept"), [(0, "0-0"), (5000, "0-4999")])
def test_an_answer_comes_before_the_body_is_read(
    web: requests.Session, target: FaultyRegistry, after_bytes: int, kept: str
) -> None:
    upload = Upload(web, target)
    target.fault("PATCH", UPLOAD, EarlyStatus(403, {"X-Quota": "full"}, b'{"errors":[{"code":"DENIED"}]}', after_bytes))

    refused = upload.patch(BLOB * 8)

    assert (refused.status_code, code_of(refused), refused.headers["X-Quota"]) == (403, "DENIED", "full")
    assert refused.headers["Connection"] == "close"
    (recorded,) = target.requests("PATCH")
    assert (recorded.status, recorded.body_size) == (403, after_bytes)
    assert upload.status().headers["Range"] == kept


def test_an_early_answer_may_be_lost_in_a_reset(web: requests.Session, target: FaultyRegistry) -> None:
    target.fault("PATCH", UPLOAD, EarlyStatus(413, after_bytes=10, reset=True))
    with connect(target, "PATCH", Upload(web, target).location, 10**9) as connection:
        connection.sendall(b"x" * 1000)
        wait_until(lambda: len(target.requests("PATCH")) == 1)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(BLOB * 64)

    assert target.requests("PATCH")[0].status == 413


def test_a_body_that_is_not_read_for_some_time_holds_the_client_up(
    web: requests.Session, target: FaultyRegistry
) -> None:
    upload, whole = Upload(web, target), BLOB * 32
    target.fault("PATCH", UPLOAD, StallBody(1000, 1))
    started = time.monotonic()
    with connect(target, "PATCH", upload.location, len(whole)) as connection:
        # More than the buffers at both ends hold.
        connection.sendall(whole)
        held_up = time.monotonic() - started
        assert connection.recv(100).startswith(b"HTTP/1.1 202 ")

    assert held_up > 0.8
    assert upload.close(whole).status_code == 201


def test_what_arrived_before_a_stall_is_seen_and_the_stale_rest_of_it_is_refused(
    web: requests.Session, target: FaultyRegistry
) -> None:
    upload = Upload(web, target)
    first = upload.location
    target.fault("PATCH", UPLOAD, StallBody(1000, 2))
    with connect(target, "PATCH", first, 3000, "Content-Range: 0-2999\r\n") as stale:
        stale.sendall(BLOB[:3000])
        wait_until(lambda: upload.status(first).headers["Range"] == "0-999")
        assert upload.patch(BLOB[1000:2000], 1000).status_code == 202
        assert stale.recv(100).startswith(b"HTTP/1.1 416 ")

    assert upload.close(BLOB, BLOB[2000:]).status_code == 201


# --- answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_drips(web: requests.Session, target: FaultyRegistry) -> None:
    upload = Upload(web, target)
    assert upload.close(b"0123456789", b"0123456789").status_code == 201
    target.fault("GET", "/blobs/sha256:", Drip(3, 0.1))

    answer = web.get(f"{target.url}/v2/a/b/blobs/{digest_of(b'0123456789')}", stream=True)
    started = time.monotonic()
    pieces = [answer.raw.read1() for _ in range(4)]

    assert pieces == [b"012", b"345", b"678", b"9"]
    assert time.monotonic() - started > 0.25


@pytest.mark.parametrize(
    ("headers", "name", "expected"),
    [
        ({"location": None}, "Location", None),
        ({"Location": "http://other.example{value}"}, "Location", "http://other.example/v2/a/b/blobs/uploads/"),
        ({"Location": "http://{host}{value}&x={y}"}, "Location", "http://{host}/v2/a/b/blobs/uploads/"),
        ({"Range": "bytes=0-"}, "Range", "bytes=0-"),
        ({"OCI-Chunk-Min-Length": "5242880"}, "OCI-Chunk-Min-Length", "5242880"),
        ({"RateLimit-Remaining": "0;w=21600"}, "RateLimit-Remaining", "0;w=21600"),
        ({"Date": "Thu, 01 Jan 1970 00:00:00 GMT"}, "Date", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ({"X": "{value}"}, "X", ""),
    ],
    ids=str,
)
def test_headers_of_an_answer_are_changed(
    web: requests.Session, target: FaultyRegistry, headers: dict[str, str | None], name: str, expected: str | None
) -> None:
    target.fault("POST", OPEN, EditHeaders(headers))

    answer = web.post(f"{target.url}/v2/a/b/blobs/uploads/")

    assert answer.status_code == 202
    value = answer.headers.get(name)
    assert value == expected or str(value).startswith(str(expected).replace("{host}", target.host))
    assert web.post(f"{target.url}/v2/a/b/blobs/uploads/").headers["Range"] == "0-0"


def test_an_answer_without_a_length_ends_with_the_connection(web: requests.Session, target: FaultyRegistry) -> None:
    target.fault("GET", "/v2/$", EditHeaders({"Content-Length": None}))

    answer = web.get(f"{target.url}/v2/")

    assert "Content-Length" not in answer.headers
    assert answer.content == b"{}"


def test_a_blob_is_lost_after_its_upload_was_granted(web: requests.Session, target: FaultyRegistry) -> None:
    target.fault("PUT", UPLOAD, LoseBlob())
    blob = f"{target.url}/v2/a/b/blobs/{digest_of(BLOB)}"

    assert Upload(web, target).close(BLOB, BLOB).status_code == 201
    assert web.head(blob).status_code == 404
    assert Upload(web, target).close(BLOB, BLOB).status_code == 201
    assert web.head(blob).status_code == 200

    target.fault("POST", "mount=", LoseBlob())
    mount = f"{target.url}/v2/c/blobs/uploads/?mount={digest_of(BLOB)}&from=a/b"
    assert web.post(mount).status_code == 201
    assert web.head(blob.replace("/a/b/", "/c/")).status_code == 404
    assert web.head(blob).status_code == 200


def test_a_session_is_lost(web: requests.Session, target: FaultyRegistry) -> None:
    target.fault("PATCH", UPLOAD, LoseSession())
    upload = Upload(web, target)

    for answer in (upload.patch(b"x"), upload.patch(b"x"), upload.status()):
        assert (answer.status_code, code_of(answer)) == (404, "BLOB_UPLOAD_UNKNOWN")


# --- quirks -----------------------------------------------------------------------------------------------------------


def test_a_quirk_that_is_none_is_refused() -> None:
    for options in ({"patch_limits": 4}, {"broken_patch": "keeps"}):
        with pytest.raises((TypeError, ValueError)):
            FaultyRegistry(**options)


@pytest.mark.parametrize("status", [416, 413])
def test_patches_over_the_limit_are_refused_and_change_nothing(web: requests.Session, status: int) -> None:
    with FaultyRegistry(patch_limit=1000, patch_limit_status=status) as registry:
        upload = Upload(web, registry)
        assert upload.patch(BLOB[:1000], 0).status_code == 202
        assert upload.patch(BLOB[1000:2001], 1000).status_code == status
        assert upload.status().headers["Range"] == "0-999"
        assert upload.close(BLOB, BLOB[1000:]).status_code == 201
        registry.content.quirks.patch_limit = None
        assert Upload(web, registry).patch(BLOB).status_code == 202


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_over_the_limit_are_refused_as_web_servers_do(web: requests.Session, chunked: bool) -> None:
    with FaultyRegistry(body_limit=len(BLOB)) as registry:
        upload = Upload(web, registry)
        assert upload.patch(iter([BLOB]) if chunked else BLOB).status_code == 202
        refused = upload.patch(iter([BLOB, b"x"]) if chunked else BLOB + b"x")

        assert (refused.status_code, refused.headers["Content-Type"]) == (413, "text/html")
        assert b"<h1>413 Request Entity Too Large</h1>" in refused.content
        assert registry.requests("PATCH")[1].body_size == (len(BLOB) + 1 if chunked else 0)
        assert upload.status().headers["Range"] == f"0-{len(BLOB) - 1}"


def test_chunks_but_the_last_have_a_least_size(web: requests.Session) -> None:
    with FaultyRegistry(chunk_min=100) as registry:
        upload = Upload(web, registry)
        assert upload.opened.headers["OCI-Chunk-Min-Length"] == "100"
        assert upload.patch(BLOB[:100], 0).status_code == 202
        assert upload.patch(BLOB[100:150], 100).status_code == 202
        assert upload.close(BLOB[:150]).status_code == 201

        for last in ("PATCH", "PUT"):
            upload = Upload(web, registry)
            assert upload.patch(BLOB[:99], 0).status_code == 202
            refused = upload.patch(BLOB[99:200], 99) if last == "PATCH" else upload.close(BLOB, BLOB[99:])
            assert refused.status_code == 416


@pytest.mark.parametrize(
    ("quirk", "ranges"),
    [
        ("cumulative", ["0-9", "0-29", "0-34"]),
        ("sticks", ["0-9", "0-9", "0-9"]),
        ("chunk", ["0-9", "10-29", "30-34"]),
    ],
)
def test_what_range_says_of_an_upload(web: requests.Session, quirk: str, ranges: list[str]) -> None:
    with FaultyRegistry(range_quirk=quirk, patch_status=201) as registry:
        upload = Upload(web, registry)
        assert upload.opened.headers["Range"] == "0-0"
        answers = [upload.patch(BLOB[start:end], start) for start, end in ((0, 10), (10, 30), (30, 35))]

        assert [(answer.status_code, answer.headers["Range"]) for answer in answers] == [
            (201, value) for value in ranges
        ]
        assert upload.status().headers["Range"] == ranges[-1]
        assert upload.close(BLOB[:35]).status_code == 201


def test_chunks_must_be_what_they_claim_to_be_unless_nobody_looks(
    web: requests.Session, target: FaultyRegistry
) -> None:
    upload = Upload(web, target)
    assert upload.patch(b"0123", 1).status_code == 416
    assert code_of(upload.patch(b"0123", 0, length=5)) == "SIZE_INVALID"
    assert web.patch(upload.location, data=b"x", headers={"Content-Range": "nonsense"}).status_code == 416
    assert upload.status().headers["Range"] == "0-0"
    with FaultyRegistry(check_range=False) as registry:
        upload = Upload(web, registry)
        assert upload.patch(b"0123", 7, length=9).headers["Range"] == "0-3"


def test_a_repository_may_have_to_be_made_first(web: requests.Session) -> None:
    with FaultyRegistry(need_repository=True) as registry:
        place = f"{registry.url}/v2/a/b/blobs/uploads/"
        refused = web.post(place)
        assert (refused.status_code, code_of(refused)) == (404, "NAME_UNKNOWN")
        assert web.put(f"{registry.url}/v2/a/b/manifests/1", data=b"{}").status_code == 404
        registry.create("a/b")
        assert web.post(place).status_code == 202
        assert web.post(place.replace("/b/", "/c/")).status_code == 404


def test_dockers_media_types_may_be_refused(web: requests.Session) -> None:
    with FaultyRegistry(refuse_docker_types=True, strict=False) as registry:
        for media_type, status in ((DOCKER_MANIFEST, 415), (OCI_MANIFEST, 201)):
            document = {"mediaType": media_type, "config": {"digest": digest_of(b"")}, "layers": []}
            for headers in ({"Content-Type": media_type}, {}):
                put = web.put(f"{registry.url}/v2/a/manifests/1", data=json.dumps(document), headers=headers)
                assert put.status_code == status


def test_the_state_of_a_session_grows_old(web: requests.Session) -> None:
    with FaultyRegistry(session_state=True, broken_patch="forget") as registry:
        upload = Upload(web, registry)
        places = [upload.location]
        for start in (0, 10):
            assert upload.patch(BLOB[start : start + 10], start).status_code == 202
            places.append(upload.location)
        assert len(set(places)) == 3
        assert len({place.partition("?")[0] for place in places}) == 1
        assert upload.patch(b"x", location=places[2].partition("?")[0]).status_code == 404
        assert upload.close(BLOB, BLOB[20:]).status_code == 201

        upload = Upload(web, registry)
        old = upload.location
        assert upload.patch(b"x").status_code == 202
        assert code_of(upload.status(old)) == "BLOB_UPLOAD_INVALID"
        assert code_of(upload.status()) == "BLOB_UPLOAD_UNKNOWN"
    with FaultyRegistry(session_state=True) as registry:
        upload = Upload(web, registry)
        old = upload.location
        registry.fault("PATCH", UPLOAD, BreakBody(7))
        with pytest.raises(requests.ConnectionError):
            upload.patch(BLOB)
        # Whose answer was lost asks at the old place and gets the new one; sending there would end it.
        assert upload.status(old).headers["Range"] == "0-6"
        assert upload.location != old
        assert upload.close(BLOB, BLOB[7:]).status_code == 201


@pytest.mark.parametrize(
    ("form", "start"), [("path", "/v2/a/b/blobs/uploads/"), ("absolute", "http://{host}/v2/a/b/"), ("relative", "")]
)
def test_locations_have_three_forms(web: requests.Session, form: str, start: str) -> None:
    with FaultyRegistry(location=form) as registry:
        upload = Upload(web, registry)
        location = upload.opened.headers["Location"]
        assert location.startswith(start.replace("{host}", registry.host))
        assert ("/" in location) == (form != "relative")
        assert upload.patch(BLOB[:5]).status_code == 202
        assert upload.patch(BLOB[5:]).status_code == 202
        assert upload.close(BLOB).status_code == 201


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority") / "acme")


def test_a_registry_speaks_tls_with_a_certificate_of_an_own_authority(
    web: requests.Session, authority: Authority, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = Authority(tmp_path / "other", "Other")
    with FaultyRegistry(certificate=authority.issue("127.0.0.1", "localhost"), location="absolute") as registry:
        assert registry.url == f"https://{registry.host}"
        port = int(registry.host.rpartition(":")[2])
        web.verify = str(authority.ca_file)
        # One that never says hello holds up nobody; neither do those whose handshake fails.
        with socket.create_connection(("127.0.0.1", port)):
            with pytest.raises(requests.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
                requests.get(f"{registry.url}/v2/", verify=str(other.ca_file), timeout=20)
            with pytest.raises(requests.ConnectionError):
                web.get(f"http://{registry.host}/v2/")
            upload = Upload(web, registry)
            assert upload.opened.headers["Location"].startswith("https://127.0.0.1:")
            assert upload.patch(BLOB).status_code == 202
            assert upload.close(BLOB).status_code == 201
            assert web.get(f"{registry.url}/v2/a/b/blobs/{digest_of(BLOB)}").content == BLOB
            assert web.get(f"https://localhost:{port}/v2/").status_code == 200
        wait_until(lambda: len(registry.handshake_errors) >= 2)
        context = ssl.create_default_context(cafile=str(authority.ca_file))
        with (
            socket.create_connection(("127.0.0.1", port)) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as secured,
        ):
            found: Any = secured.getpeercert()
            assert (("organizationName", "Acme Internal CA"),) in found["issuer"]
            assert ("DNS", "localhost") in found["subjectAltName"]
        assert len(registry.requests("GET")) == 2
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


@pytest.mark.parametrize(("names", "begins", "ends"), [(["registry.example"], -1, 1), (["127.0.0.1"], -2, -1)])
def test_a_certificate_may_be_of_another_name_or_time(
    web: requests.Session, authority: Authority, names: list[str], begins: int, ends: int
) -> None:
    now = datetime.now(UTC)
    issued = authority.issue(*names, not_before=now + timedelta(days=begins), not_after=now + timedelta(days=ends))
    reason = "expired" if ends < 0 else "match"
    with FaultyRegistry(certificate=issued) as registry:
        with pytest.raises(requests.exceptions.SSLError, match=reason):
            web.get(f"{registry.url}/v2/", verify=str(authority.ca_file))
        assert registry.requests() == []


def test_faults_are_the_same_over_tls(web: requests.Session, authority: Authority) -> None:
    web.verify = str(authority.ca_file)
    with FaultyRegistry(certificate=authority.issue("127.0.0.1")) as registry:
        upload = Upload(web, registry)
        registry.fault("PATCH", UPLOAD, BreakBody(999))
        registry.fault("PATCH", UPLOAD, BreakBody(1, reset=False))
        registry.fault("PATCH", UPLOAD, EarlyStatus(413, {}, b"<html>"))
        for _ in range(2):
            with pytest.raises(requests.ConnectionError):
                upload.patch(BLOB * 4)
        refused = upload.patch(BLOB * 4)
        assert (refused.status_code, refused.content) == (413, b"<html>")
        assert upload.status().headers["Range"] == "0-999"
        registry.fault("PUT", UPLOAD, Reset())
        with pytest.raises(requests.ConnectionError):
            upload.close(BLOB[:1000])
        assert upload.close((BLOB[:1000])[:999] + BLOB[:1]).status_code == 201
        registry.fault("GET", "/v2/$", Cut(1))
        with pytest.raises(requests.RequestException):
            web.get(f"{registry.url}/v2/")


def test_a_registry_may_ask_for_certificates_of_clients(web: requests.Session, authority: Authority) -> None:
    mine = authority.issue("build-agent-7", client=True)
    web.verify = str(authority.ca_file)
    with FaultyRegistry(certificate=authority.issue("127.0.0.1"), client_ca=authority.ca_file) as registry:
        with pytest.raises(requests.ConnectionError):
            web.get(f"{registry.url}/v2/")
        assert registry.requests() == []
        assert web.get(f"{registry.url}/v2/", cert=(str(mine.cert), str(mine.key))).status_code == 200


def test_the_real_registry_asks_for_certificates_of_clients_too(web: requests.Session, authority: Authority) -> None:
    require("docker-registry")
    mine = authority.issue("build-agent-7", client=True)
    web.verify = str(authority.ca_file)
    with Registry(certificate=authority.issue("127.0.0.1"), client_ca=authority.ca_file) as registry:
        with pytest.raises(requests.ConnectionError):
            web.get(f"{registry.url}/v2/")
        assert web.get(f"{registry.url}/v2/", cert=(str(mine.cert), str(mine.key))).status_code == 200


@pytest.mark.parametrize("secure", [False, True])
def test_registries_listen_on_ipv6(web: requests.Session, authority: Authority, secure: bool) -> None:
    needs_ipv6()
    require("docker-registry")
    certificate = authority.issue("::1") if secure else None
    web.verify = str(authority.ca_file)
    with FaultyRegistry(certificate=certificate, address="::1") as registry:
        assert registry.host.startswith("[::1]:")
        assert Upload(web, registry).close(BLOB, BLOB).status_code == 201
    with Registry(certificate=certificate, address="::1") as real:
        assert real.host.startswith("[::1]:")
        assert web.get(f"{real.url}/v2/").status_code == 200


# --- proxy ------------------------------------------------------------------------------------------------------------


def test_a_proxy_forwards_and_tunnels_to_names_that_do_not_resolve(web: requests.Session, authority: Authority) -> None:
    web.verify = str(authority.ca_file)
    with (
        FaultyRegistry(location="absolute") as plain,
        FaultyRegistry(certificate=authority.issue("registry.example"), location="absolute") as secure,
        ForwardProxy({"registry.example:443": secure.host, "plain.example:80": plain.host}) as proxy,
    ):
        web.proxies = {"http": proxy.url, "https": proxy.url}
        for registry, url in ((plain, "http://plain.example"), (secure, "https://registry.example")):
            opened = web.post(f"{url}/v2/a/b/blobs/uploads/")
            location = opened.headers["Location"]
            assert location.startswith(f"{url}/v2/")
            assert web.patch(location, data=BLOB[:9]).status_code == 202
            assert web.patch(location, data=iter([BLOB[9:70_000], BLOB[70_000:]])).status_code == 202
            assert web.put(f"{location}&digest={digest_of(BLOB)}").status_code == 201
            blob = f"{url}/v2/a/b/blobs/{digest_of(BLOB)}"
            assert web.head(blob).headers["Content-Length"] == str(len(BLOB))
            assert web.get(blob).content == BLOB
            assert web.delete(f"{url}/v2/a/b/manifests/1").status_code == 404
            assert [request.body_size for request in registry.requests("PATCH")] == [9, len(BLOB) - 9]
            assert registry.requests("GET")[0].headers["host"] == url.partition("//")[2]

        assert proxy.targets("CONNECT") == ["registry.example:443"]
        assert proxy.targets("GET") == [f"http://plain.example/v2/a/b/blobs/{digest_of(BLOB)}"]
        assert [request.method for request in proxy.requests if request.method != "CONNECT"] == [
            *("POST", "PATCH", "PATCH", "PUT", "HEAD", "GET", "DELETE")
        ]
        assert {request.status for request in proxy.requests} == {200, 201, 202, 404}


def test_a_proxy_asks_who_is_there(web: requests.Session, authority: Authority) -> None:
    with (
        FaultyRegistry(certificate=authority.issue("127.0.0.1")) as secure,
        FaultyRegistry() as plain,
        ForwardProxy(credentials=("proxy user", "p:w/d")) as proxy,
    ):
        web.verify = str(authority.ca_file)
        web.proxies = {"http": proxy.url, "https": proxy.url}
        refused = web.put(f"{plain.url}/v2/a/blobs/uploads/x", data=BLOB * 4)
        assert refused.status_code == 407
        assert refused.headers["Proxy-Authenticate"] == 'Basic realm="proxy"'
        with pytest.raises(requests.exceptions.ProxyError, match="407"):
            web.get(f"{secure.url}/v2/")
        web.proxies = {"http": proxy.login_url, "https": proxy.login_url}
        assert web.get(f"{plain.url}/v2/").status_code == 200
        assert web.get(f"{secure.url}/v2/").status_code == 200

        assert [request.status for request in proxy.requests] == [407, 407, 200, 200]
        login = "Basic " + b64encode(b"proxy user:p:w/d").decode()
        assert [request.headers.get("proxy-authorization") for request in proxy.requests] == [None, None, login, login]
        assert all("proxy-authorization" not in request.headers for request in plain.requests() + secure.requests())


def test_a_proxy_refuses_targets(web: requests.Session, target: FaultyRegistry) -> None:
    gone = FaultyRegistry()
    gone.stop()
    with ForwardProxy({"gone.example:443": gone.host}, refused={target.host}) as proxy:
        web.proxies = {"http": proxy.url, "https": proxy.url}
        for url in (target.url, "http://unknown.example", gone.url):
            assert web.get(f"{url}/v2/").status_code == 502
        for url in (f"https://{target.host}", "https://unknown.example", "https://gone.example"):
            with pytest.raises(requests.exceptions.ProxyError, match="502"):
                web.get(f"{url}/v2/")
        proxy.refused.clear()
        assert web.get(f"{target.url}/v2/").status_code == 200

        assert [request.status for request in proxy.requests] == [502] * 6 + [200]
        assert len(target.requests()) == 1


def test_faults_pass_through_a_proxy(web: requests.Session, authority: Authority) -> None:
    web.verify = str(authority.ca_file)
    with (
        FaultyRegistry(certificate=authority.issue("registry.example"), location="absolute") as secure,
        FaultyRegistry(location="absolute") as plain,
        ForwardProxy({"registry.example:443": secure.host}) as proxy,
    ):
        web.proxies = {"http": proxy.url, "https": proxy.url}
        for registry, url in ((plain, plain.url), (secure, "https://registry.example")):
            registry.fault("PATCH", UPLOAD, BreakBody(1000))
            registry.fault("PATCH", UPLOAD, EarlyStatus(413, {}, b"<html>"))
            location = web.post(f"{url}/v2/a/b/blobs/uploads/").headers["Location"]
            if registry is plain:
                assert web.patch(location, data=BLOB * 4).status_code == 502
            else:
                with pytest.raises(requests.ConnectionError):
                    web.patch(location, data=BLOB * 4)
            assert web.patch(location, data=BLOB * 4).status_code == 413
            assert web.get(location).headers["Range"] == "0-999"
            registry.fault("GET", "/v2/$", Cut(1))
            with pytest.raises(requests.RequestException):
                web.get(f"{url}/v2/")


def test_a_proxy_and_its_tunnels_end_when_told_to(authority: Authority) -> None:
    with FaultyRegistry(certificate=authority.issue("127.0.0.1")) as registry, contextlib.ExitStack() as stack:
        proxy = stack.enter_context(ForwardProxy())
        host, _, port = proxy.host.rpartition(":")
        tunnel = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
        tunnel.sendall(f"CONNECT {registry.host} HTTP/1.1\r\n\r\n".encode())
        assert tunnel.recv(1000).startswith(b"HTTP/1.1 200 ")
        started = time.monotonic()
        proxy.stop()
        with contextlib.suppress(ConnectionResetError):
            assert tunnel.recv(1) == b""
    assert time.monotonic() - started < 5


# --- tokens -----------------------------------------------------------------------------------------------------------

ASKED = {"service": "test-registry", "scope": "repository:a/b:pull,push"}


def claims(token: str) -> Any:
    middle = token.split(".")[1]
    return json.loads(b64decode(middle + "=" * (-len(middle) % 4), altchars=b"-_"))


@pytest.mark.parametrize(
    ("fields", "full", "empty"),
    [
        ("both", {"token", "access_token"}, set()),
        ("token", {"token"}, set()),
        ("access_token", {"access_token"}, set()),
        ("empty-token", {"access_token"}, {"token"}),
        ("empty-access", {"token"}, {"access_token"}),
    ],
)
def test_tokens_come_in_the_fields_that_were_ordered(
    web: requests.Session, fields: str, full: set[str], empty: set[str]
) -> None:
    require("openssl")
    with TokenServer(fields=fields) as tokens:
        answer = web.get(tokens.realm, params=ASKED, auth=("alice", "wonderland")).json()

        assert web.post(tokens.realm, data={"grant_type": "refresh_token", **ASKED}).status_code == 405
    held = {name: value for name, value in answer.items() if name in {"token", "access_token"}}
    assert {name for name, value in held.items() if value} == full
    assert {name for name, value in held.items() if not value} == empty
    assert "issued_at" not in answer
    (granted,) = claims(answer[full.pop()])["access"]
    assert granted == {"type": "repository", "name": "a/b", "actions": ["pull", "push"]}


@pytest.mark.parametrize("offset", [0, 3600, -86400])
def test_the_clock_of_a_token_server_may_be_wrong(web: requests.Session, offset: int) -> None:
    require("openssl")
    now = time.time()
    with TokenServer(clock_offset_s=offset, lifetime=100) as tokens:
        answer = web.get(tokens.realm, params=ASKED, auth=("alice", "wonderland")).json()

    said = claims(answer["token"])
    for found, expected in (
        (said["exp"], 100),
        (said["iat"], -600),
        (said["nbf"], -600),
        (datetime.fromisoformat(answer["issued_at"]).timestamp(), 0),
    ):
        assert abs(found - now - offset - expected) < 20
    assert answer["expires_in"] == 100


def test_identity_tokens_are_taken_by_post(web: requests.Session, authority: Authority) -> None:
    require("openssl")
    certificate = authority.issue("127.0.0.1")
    web.verify = str(authority.ca_file)
    with TokenServer(identity_token="refresh-me", certificate=certificate) as tokens:  # noqa: S106 - of this server only
        assert tokens.realm.startswith("https://")
        password = {"grant_type": "password", "username": "alice", "password": "wonderland", **ASKED}
        refresh = {"grant_type": "refresh_token", "refresh_token": "refresh-me", **ASKED}
        for form in (password, refresh):
            answer = web.post(tokens.realm, data=form).json()
            assert "token" not in answer
            assert claims(answer["access_token"])["access"][0]["actions"] == ["pull", "push"]
            assert (answer["refresh_token"], answer["scope"]) == ("refresh-me", ASKED["scope"])
        assert web.post(tokens.realm, data={**password, "password": "x"}).status_code == 401
        assert web.post(tokens.realm, data={**refresh, "refresh_token": "x"}).status_code == 401
        assert web.post(tokens.realm, data={**refresh, "grant_type": "x"}).status_code == 400
        assert web.get(tokens.realm, params=ASKED, auth=("alice", "wonderland")).status_code == 200

        assert [(asked.grant, asked.user, asked.status) for asked in tokens.requests] == [
            *(("password", "alice", 200), ("refresh_token", "alice", 200)),
            *(("password", "alice", 401), ("refresh_token", None, 401), ("x", None, 400), (None, "alice", 200)),
        ]


def test_a_real_registry_takes_the_tokens_of_a_server_with_tls(web: requests.Session, authority: Authority) -> None:
    require("docker-registry", "openssl")
    web.verify = str(authority.ca_file)
    with TokenServer(certificate=authority.issue("127.0.0.1")) as tokens, Registry(token=tokens.auth) as registry:
        asked = web.get(f"{registry.url}/v2/").headers["WWW-Authenticate"]
        assert f'realm="{tokens.realm}"' in asked
        token = web.get(tokens.realm, params=ASKED, auth=("alice", "wonderland")).json()["token"]
        opened = web.post(f"{registry.url}/v2/a/b/blobs/uploads/", headers={"Authorization": f"Bearer {token}"})

    assert opened.status_code == 202
    assert "_state" in parse_qs(urlsplit(opened.headers["Location"]).query)
