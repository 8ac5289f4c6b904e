"""`push` into registries that ask who is there: what is asked of whom, and where a password never goes."""

import json
from base64 import b64encode
from pathlib import Path

import pytest

from tests.support.command import Result, run
from tests.support.content import BlobStore, BuiltImage, digest_of
from tests.support.faulty import FaultyRegistry, Redirect, Status
from tests.support.handmade import built, complete, multi, outcomes, uploads, write_bundle, writes
from tests.support.memory_registry import Request, Response
from tests.support.programs import require
from tests.support.registry import AccessEntry, Registry
from tests.support.tokens import TokenServer

BASE = b"base layer\n" * 400
BIG, SMALL = "docker.io/rancher/big:1", "docker.io/rancher/small:1"
PASSWORD = "s3cr3t-wonderland"  # noqa: S105 - opens nothing but the registries of these tests
USER = ("alice", PASSWORD)
PAIR = b64encode(f"alice:{PASSWORD}".encode()).decode()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "store")


@pytest.fixture
def images(store: BlobStore) -> dict[str, BuiltImage]:
    """Two images that share a layer, so that one is mounted from the other."""
    return {BIG: multi(store, BASE, b"big" * 5000, title="big"), SMALL: built(store, BASE, b"small", title="small")}


@pytest.fixture
def bundle(tmp_path: Path, images: dict[str, BuiltImage]) -> Path:
    return write_bundle(tmp_path / "bundle", images)


def login(directory: Path, host: str, password: str = PASSWORD, user: str = "alice") -> dict[str, str]:
    """Write what `docker login` writes, and give the variable that points to it."""
    directory.mkdir()
    pair = b64encode(f"{user}:{password}".encode()).decode()
    (directory / "config.json").write_text(json.dumps({"auths": {host: {"auth": pair}}}))
    return {"DOCKER_CONFIG": str(directory)}


def kept_secret(result: Result, *places: Path) -> bool:
    """Tell whether neither the output nor any file below some places holds the password in any form."""
    texts = [result.out, result.err]
    for place in places:
        files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
        texts += [file.read_text(errors="replace") for file in files]
    return not any(secret in text for secret in (PASSWORD, PAIR) for text in texts)


def written(entries: list[AccessEntry]) -> list[AccessEntry]:
    return [entry for entry in entries if entry.method not in {"HEAD", "GET"}]


# --- basic --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["{host}", "http://{host}", "https://{host}/v2/"])
def test_a_password_of_dockers_config_opens_a_registry_and_appears_nowhere(
    bundle: Path, tmp_path: Path, key: str
) -> None:
    require("docker-registry")
    with Registry(htpasswd=USER) as registry:
        env = login(tmp_path / "docker", key.replace("{host}", registry.host))
        state, report = tmp_path / "state", tmp_path / "report.json"

        done = run("push", bundle, registry.url, "--state", state, "--report", report, env=env)

        assert done.code == 0, done.err
        assert kept_secret(done, state, report)
        assert [
            entry.status for entry in registry.requests() if "/manifests/1" in entry.path and entry.method == "PUT"
        ] == [
            201,
            201,
        ]
        mark = registry.mark()
        again = run("push", bundle, registry.url, "-o", "json", env=env)
        assert again.code == 0
        assert set(outcomes(again).values()) == {"up-to-date"}
        assert {(entry.method, entry.status) for entry in registry.since(mark)} <= {("HEAD", 200), ("HEAD", 401)}


def test_the_config_below_the_home_directory_is_the_default(bundle: Path, tmp_path: Path) -> None:
    require("docker-registry")
    with Registry(htpasswd=USER) as registry:
        login(tmp_path / ".docker", registry.host)

        done = run("push", bundle, registry.url, env={"HOME": str(tmp_path), "DOCKER_CONFIG": ""})

        assert done.code == 0, done.err


def test_a_wrong_password_is_refused_before_anything_is_sent(bundle: Path, tmp_path: Path) -> None:
    require("docker-registry")
    with Registry(htpasswd=USER) as registry:
        env = login(tmp_path / "docker", registry.host, password="wr0ng-passw0rd")  # noqa: S106 - meant to be wrong
        report = tmp_path / "report.json"

        refused = run("push", bundle, registry.url, "--report", report, env=env)

        assert refused.code == 7
        assert "unauthorized" in refused.err
        assert "alice" in refused.err
        assert "wr0ng-passw0rd" not in refused.out + refused.err + report.read_text()
        assert written(registry.requests()) == []
        assert json.loads(report.read_text())["error"]["reference"] == "unauthorized"


def test_no_password_is_refused_with_a_hint_before_anything_is_sent(bundle: Path, tmp_path: Path) -> None:
    require("docker-registry")
    with Registry(htpasswd=USER) as registry:
        # Credentials for others are none for this one.
        env = login(tmp_path / "docker", "registry.example")

        refused = run("push", bundle, registry.url, env=env)

        assert refused.code == 7
        assert "no-credentials" in refused.err
        assert "docker login" in refused.err.partition("hint:")[2]
        assert written(registry.requests()) == []
        assert kept_secret(refused)


def test_hints_about_credentials_name_only_options_that_push_has(bundle: Path, tmp_path: Path) -> None:
    require("docker-registry")
    options = run("push", "--help").out
    with Registry(htpasswd=USER) as registry:
        refused = run("push", bundle, registry.url, env={"DOCKER_CONFIG": str(tmp_path)})

    named = [word for word in refused.err.partition("hint:")[2].split() if word.startswith("--")]
    assert [word for word in named if word not in options] == []


def test_a_broken_config_of_docker_is_named(bundle: Path, target: FaultyRegistry, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"auths": {"' + target.host + '": {"auth": "%%%"}}}')

    refused = run("push", bundle, target.url, env={"DOCKER_CONFIG": str(tmp_path)})

    assert refused.code == 7, refused.err
    assert "config.json" in refused.err
    assert writes(target.requests()) == []


# --- tokens -------------------------------------------------------------------------------------------------------


def test_tokens_are_asked_for_each_repository_and_for_the_source_of_a_mount(bundle: Path, tmp_path: Path) -> None:
    require("docker-registry", "openssl")
    with TokenServer(*USER) as tokens, Registry(token=tokens.auth) as registry:
        env = login(tmp_path / "docker", registry.host)
        state, report = tmp_path / "state", tmp_path / "report.json"

        done = run("push", bundle, registry.url, "--state", state, "--report", report, env=env)

        assert done.code == 0, done.err
        assert kept_secret(done, state, report)
        assert json.loads(report.read_text())["totals"]["bytes_mounted"] == len(BASE)
        assert {frozenset(asked.scopes) for asked in tokens.requests} == {
            frozenset(),  # for GET /v2/, which asks whether this is a registry
            frozenset({"repository:rancher/big:pull,push"}),
            frozenset({"repository:rancher/small:pull,push"}),
            frozenset({"repository:rancher/small:pull,push", "repository:rancher/big:pull"}),
        }
        assert len(tokens.requests) == 4
        assert {(asked.user, asked.service, asked.status) for asked in tokens.requests} == {
            ("alice", tokens.service, 200)
        }
        mark = registry.mark()
        again = run("push", bundle, registry.url, env=env)
        assert again.code == 0
        assert written(registry.since(mark)) == []


@pytest.mark.parametrize(("password", "reference"), [("wr0ng-passw0rd", "unauthorized"), (None, "no-credentials")])
def test_a_token_realm_that_refuses_ends_the_push_before_anything_is_sent(
    bundle: Path, tmp_path: Path, password: str | None, reference: str
) -> None:
    require("docker-registry", "openssl")
    with TokenServer(*USER) as tokens, Registry(token=tokens.auth) as registry:
        env = login(tmp_path / "docker", registry.host, password) if password else {}

        refused = run("push", bundle, registry.url, env=env)

        assert refused.code == 7
        assert reference in refused.err
        assert "hint:" in refused.err
        assert (password or PASSWORD) not in refused.out + refused.err
        assert written(registry.requests()) == []


def test_one_repository_without_the_right_to_push_fails_one_image(bundle: Path, tmp_path: Path) -> None:
    require("docker-registry", "openssl")
    with TokenServer(*USER, refused=["rancher/big"]) as tokens, Registry(token=tokens.auth) as registry:
        env = login(tmp_path / "docker", registry.host)

        done = run("push", bundle, registry.url, "-o", "json", env=env)

        assert done.code == 10, done.err
        assert outcomes(done) == {BIG: "failed", SMALL: "pushed"}
        failed = next(image for image in done.json["images"] if image["outcome"] == "failed")
        assert failed["error"]["exit_code"] == 7


def test_anonymous_readers_are_told_that_pushing_needs_credentials(bundle: Path) -> None:
    require("docker-registry", "openssl")
    with TokenServer(*USER, anonymous_pull=True) as tokens, Registry(token=tokens.auth) as registry:
        done = run("push", bundle, registry.url)

        assert done.code in {7, 10}
        assert "wants credentials" in done.err
        assert [entry for entry in written(registry.requests()) if entry.status != 401] == []


def test_a_token_that_expires_during_the_run_is_replaced_and_the_upload_sent_again_from_its_start(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage], tmp_path: Path
) -> None:
    require("openssl")
    with TokenServer(*USER) as tokens:
        challenge = Status(401, {"WWW-Authenticate": f'Bearer realm="{tokens.realm}",service="{tokens.service}"'})
        first = target.fault("HEAD", "/manifests/", challenge, times=1)
        expired = target.fault("PUT", f"/blobs/uploads/.*{digest_of(b'big' * 5000)}", challenge, times=1)
        env = login(tmp_path / "docker", target.host)

        done = run("push", bundle, target.url, "--jobs", "1", env=env)

        assert done.code == 0, done.err
        assert (first.hits, expired.hits) == (1, 1)
        assert all(
            complete(target, f"rancher/{name}", "1", images[f"docker.io/rancher/{name}:1"]) for name in ("big", "small")
        )
        assert [asked.scopes for asked in tokens.requests].count(("repository:rancher/big:pull,push",)) == 2
        tries = [request for request in target.requests("PUT") if digest_of(b"big" * 5000) in request.target]
        assert [(request.status, request.body_size) for request in tries] == [(401, 15000), (201, 15000)]
        assert all(request.headers["authorization"].startswith("Bearer ") for request in tries)
        assert tries[0].headers["authorization"] != tries[1].headers["authorization"]
        assert kept_secret(done)


def test_a_token_that_is_refused_when_it_is_new_is_not_tried_for_ever(
    bundle: Path, target: FaultyRegistry, images: dict[str, BuiltImage], tmp_path: Path
) -> None:
    require("openssl")
    with TokenServer(*USER) as tokens:
        challenge = Status(401, {"WWW-Authenticate": f'Bearer realm="{tokens.realm}",service="{tokens.service}"'})
        target.fault("PUT", "/v2/rancher/big/blobs/uploads/", challenge, times=None)
        env = login(tmp_path / "docker", target.host)

        done = run("push", bundle, target.url, "-o", "json", "--jobs", "1", env=env)

    assert done.code == 10, done.err
    assert outcomes(done) == {BIG: "failed", SMALL: "pushed"}
    failed = next(image for image in done.json["images"] if image["outcome"] == "failed")
    assert failed["error"]["reference"] == "denied"
    assert set(uploads(target.requests(), 401).values()) == {2}
    assert complete(target, "rancher/small", "1", images[SMALL])


@pytest.mark.parametrize(
    "challenge",
    [
        'Bearer {bearer}, Basic realm="x"',
        'Basic realm="x, y", bearer {bearer}',
        'Negotiate, BEARER {bearer},scope="repository:other:pull,push"',
        'Digest realm="a, b", nonce="c\\"d", Bearer   {bearer} , error="invalid_token"',
    ],
)
def test_bearer_is_found_among_several_challenges(
    bundle: Path, target: FaultyRegistry, tmp_path: Path, challenge: str
) -> None:
    require("openssl")
    with TokenServer(*USER) as tokens:
        bearer = f'realm="{tokens.realm}",service="{tokens.service}"'
        target.fault("*", "", Status(401, {"WWW-Authenticate": challenge.replace("{bearer}", bearer)}), times=1)
        env = login(tmp_path / "docker", target.host)

        done = run("push", bundle, target.url, "--jobs", "1", env=env)

        assert done.code == 0, done.err
        assert {scope for asked in tokens.requests for scope in asked.scopes} == {
            "repository:rancher/big:pull,push",
            "repository:rancher/small:pull,push",
            "repository:rancher/big:pull",
        }
    assert all(request.headers["authorization"].startswith("Bearer ") for request in target.requests()[1:])


@pytest.mark.parametrize("header", [None, "Negotiate", "", "Basic", "Bearer", 'Bearer realm="http://[::/"'])
def test_a_challenge_that_cannot_be_met_is_an_error_and_no_crash(
    bundle: Path, target: FaultyRegistry, header: str | None
) -> None:
    target.fault("*", "", Status(401, {} if header is None else {"WWW-Authenticate": header}), times=None)

    refused = run("push", bundle, target.url)

    assert refused.code in {7, 8}, refused.err
    assert writes(target.requests()) == []


# --- where credentials do not go ------------------------------------------------------------------------------------


def test_an_upload_location_on_another_host_gets_the_blob_but_not_the_password(
    bundle: Path,
    target: FaultyRegistry,
    images: dict[str, BuiltImage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handle = target.content.handle

    def elsewhere(request: Request) -> Response:
        response = handle(request)
        if request.method != "POST" or response.status != 202:
            return response
        location = f"http://{storage.host.replace('127.0.0.1', 'localhost')}{response.headers['Location']}"
        return Response(response.status, response.body, {**response.headers, "Location": location})

    monkeypatch.setattr(target.content, "handle", elsewhere)
    target.fault("*", "", Status(401, {"WWW-Authenticate": 'Basic realm="x"'}), times=1)
    with FaultyRegistry() as storage:
        # The other host writes into the same place, as the object storage of a registry does.
        monkeypatch.setattr(storage, "content", target.content)
        done = run("push", bundle, target.url, env=login(tmp_path / "docker", target.host))
        seen = storage.requests()

    assert done.code == 0, done.err
    assert len(seen) == len({blob.digest for image in images.values() for blob in image.blobs})
    assert all("authorization" not in request.headers for request in seen)
    assert any("authorization" in request.headers for request in target.requests())


def test_a_redirected_upload_takes_no_password_along(
    bundle: Path, target: FaultyRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.fault("*", "", Status(401, {"WWW-Authenticate": 'Basic realm="x"'}), times=1)
    with FaultyRegistry() as storage:
        monkeypatch.setattr(storage, "content", target.content)
        target.fault("PUT", "/blobs/uploads/", Redirect(f"{storage.url}{{target}}"), times=None)
        done = run("push", bundle, target.url, env=login(tmp_path / "docker", target.host))
        seen = storage.requests()

    assert done.code == 0, done.err
    assert seen != []
    assert all("authorization" not in request.headers for request in seen)


def test_the_environment_of_requests_is_not_used(bundle: Path, tmp_path: Path) -> None:
    require("docker-registry")
    with Registry(htpasswd=USER) as registry, FaultyRegistry() as proxy:
        (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login alice password {PASSWORD}\n")
        (tmp_path / ".netrc").chmod(0o600)
        env = {"HOME": str(tmp_path), "http_proxy": proxy.url, "HTTP_PROXY": proxy.url}

        refused = run("push", bundle, registry.url, env=env)

        assert refused.code == 7
        assert "no-credentials" in refused.err
        assert proxy.requests() == []
