"""`bundle`: where content comes from: mirrors, rewrites, credentials, redirects; and that no secret gets out."""

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import (
    Bundle,
    GatedRegistry,
    bundle,
    many,
    one,
    registries,
    takes_less_than,
)
from tests.support.certificates import make_certificate
from tests.support.command import Result
from tests.support.faulty import Redirect, Status
from tests.support.images import BlobStore, BuiltImage, publish
from tests.support.programs import free_port, require
from tests.support.registry import Registry
from tests.support.tokens import TokenServer

# Never looked up: endpoints for it stand in a registries.yaml, and where they all fail the name does not resolve.
FAR = "registry.invalid"
USER, PASSWORD = "alice", "s3cret-Wonder!land"
BASE64 = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
BASIC = Status(401, {"WWW-Authenticate": 'Basic realm="test"'})


@pytest.fixture(scope="module")
def image(store: BlobStore) -> BuiltImage:
    return many(store, "image")


@pytest.fixture
def three() -> Iterator[tuple[GatedRegistry, GatedRegistry, GatedRegistry]]:
    with ExitStack() as stack:
        first, second, third = (stack.enter_context(GatedRegistry()) for _ in range(3))
        yield first, second, third


@pytest.fixture
def other() -> Iterator[GatedRegistry]:
    with GatedRegistry() as started:
        yield started


@pytest.fixture(scope="module")
def guarded(image: BuiltImage) -> Iterator[Registry]:
    require("docker-registry")
    with Registry(htpasswd=(USER, PASSWORD)) as started:
        publish(image, started.url, "some/image", "1", auth=(USER, PASSWORD))
        yield started


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "registries.yaml"


def docker_config(directory: Path, auths: Mapping[str, Any]) -> dict[str, str]:
    """Write docker's config.json and give the environment that points at it."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"auths": dict(auths)}))
    return {"DOCKER_CONFIG": str(directory)}


def check_no_secret(result: Result, directory: Path) -> None:
    """Check that neither the output nor any file below a directory has the password."""
    texts = {"stdout": result.out.encode(), "stderr": result.err.encode()}
    texts |= {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    for name, text in texts.items():
        assert PASSWORD.encode() not in text, name
        assert BASE64.encode() not in text, name


# --- mirrors -------------------------------------------------------------------------------------------------


def test_the_first_mirror_that_has_the_image_is_the_only_one_asked(
    three: tuple[GatedRegistry, GatedRegistry, GatedRegistry], image: BuiltImage, file: Path, to: Path
) -> None:
    for registry in three:
        registry.add(image, "some/image", "1")
    registries(file, {FAR: {"endpoint": [registry.url for registry in three]}})

    bundle([f"{FAR}/some/image:1"], to, "--registries", file)

    assert three[0].requests()
    assert three[1].requests() == three[2].requests() == []
    assert Bundle(to).check().image(f"{FAR}/some/image:1")["registry"] == FAR


@pytest.mark.parametrize(
    "answer",
    [Status(404), Status(403), Status(401), BASIC],
    ids=["not found", "denied", "unauthorized", "no credentials"],
)
def test_mirrors_are_tried_in_order_until_one_has_the_image(
    three: tuple[GatedRegistry, GatedRegistry, GatedRegistry],
    image: BuiltImage,
    file: Path,
    to: Path,
    answer: Status,
) -> None:
    first, second, third = three
    first.fault("*", "", answer, times=None)
    second.add(image, "some/image", "1")
    third.add(image, "some/image", "1")
    registries(file, {FAR: {"endpoint": [registry.url for registry in three]}})

    bundle([f"{FAR}/some/image:1"], to, "--registries", file)

    assert first.requests()
    assert third.requests() == []
    Bundle(to).check()


def test_a_mirror_that_stays_unavailable_is_passed_over(
    registry: GatedRegistry, other: GatedRegistry, store: BlobStore, file: Path, to: Path
) -> None:
    registry.fault("*", "", Status(503), times=None)
    other.add(one(store, "unavailable"), "some/image", "1")
    registries(file, {FAR: {"endpoint": [registry.url, other.url]}})

    bundle([f"{FAR}/some/image:1"], to, "--registries", file)

    assert len([path for _, path in registry.asked() if "/manifests/" in path]) > 1
    Bundle(to).check()


def test_a_mirror_that_is_down_is_passed_over_quickly(
    registry: GatedRegistry, store: BlobStore, file: Path, to: Path
) -> None:
    references = []
    for number in range(8):
        registry.add(many(store, f"down {number}"), f"some/image-{number}", "1")
        references.append(f"{FAR}/some/image-{number}:1")
    registries(file, {FAR: {"endpoint": [f"http://127.0.0.1:{free_port()}", registry.url]}})

    with takes_less_than(10):
        bundle(references, to, "--registries", file)

    Bundle(to).check()


def test_a_blob_that_one_mirror_lacks_comes_from_the_next(
    registry: GatedRegistry, other: GatedRegistry, image: BuiltImage, file: Path, to: Path
) -> None:
    registry.add(image, "some/image", "1")
    other.add(image, "some/image", "1")
    registry.fault("GET", "/blobs/", Status(404), times=None)
    registries(file, {FAR: {"endpoint": [registry.url, other.url]}})

    bundle([f"{FAR}/some/image:1"], to, "--registries", file)

    assert set(other.fetched()) <= Bundle(to).check().blobs
    assert len(other.fetched()) == 2


def test_the_registry_itself_is_asked_last(
    registry: GatedRegistry, other: GatedRegistry, store: BlobStore, file: Path, to: Path
) -> None:
    mirrored, only_here = many(store, "mirrored"), many(store, "only here")
    other.add(mirrored, "some/mirrored", "1")
    references = [registry.put(mirrored, "some/mirrored"), registry.put(only_here, "some/only")]
    registries(file, {registry.host: {"endpoint": [other.url]}})

    bundle(references, to, "--registries", file)

    assert {path for _, path in registry.asked() if "mirrored" in path} == set()
    assert ("GET", "/v2/some/only/manifests/1") in other.asked()
    Bundle(to).check()


def test_when_no_endpoint_has_the_image_the_error_names_them_all(
    registry: GatedRegistry, other: GatedRegistry, file: Path, to: Path
) -> None:
    registries(file, {registry.host: {"endpoint": [other.url]}})

    result = bundle([registry.ref("some/image")], to, "--registries", file, code=10)

    assert registry.host in result.err
    assert other.host in result.err


def test_a_mirror_is_told_the_registry_and_the_registry_is_not(
    registry: GatedRegistry, other: GatedRegistry, image: BuiltImage, file: Path, to: Path
) -> None:
    reference = registry.put(image, "some/image")
    registries(file, {registry.host: {"endpoint": [other.url]}})

    bundle([reference], to, "--registries", file)

    port = registry.host.partition(":")[2]
    assert {request.target.partition("?")[2] for request in other.requests()} == {f"ns=127.0.0.1%3A{port}"}
    assert {request.target.partition("?")[2] for request in registry.requests()} == {""}


def test_a_star_stands_for_every_registry_without_an_entry(
    registry: GatedRegistry, other: GatedRegistry, store: BlobStore, file: Path, to: Path
) -> None:
    other.add(one(store, "listed"), "some/listed", "1")
    registry.add(one(store, "any"), "some/any", "1")
    registry.add(one(store, "hub"), "library/hub", "1")
    registries(file, {"*": {"endpoint": [registry.url]}, FAR: {"endpoint": [other.url]}})
    references = [f"{FAR}/some/listed:1", "elsewhere.invalid/some/any:1", "hub:1"]

    bundle(references, to, "--registries", file)

    assert {request.target.partition("?")[2] for request in registry.requests()} == {
        *("ns=elsewhere.invalid", "ns=docker.io")
    }
    assert {request.target.partition("?")[2] for request in other.requests()} == {f"ns={FAR}"}
    Bundle(to).check()


def test_a_path_of_an_endpoint_is_taken_as_it_is(
    registry: GatedRegistry, image: BuiltImage, file: Path, to: Path
) -> None:
    registry.add(image, "proxy/hub/some/image", "1")
    registries(file, {FAR: {"endpoint": [f"{registry.url}/v2/proxy/hub"]}})

    bundle([f"{FAR}/some/image:1"], to, "--registries", file)

    assert Bundle(to).check().names.keys() == {f"{FAR}/some/image:1"}


def test_rewrites_change_the_repository_at_mirrors_and_never_the_name(
    registry: GatedRegistry, store: BlobStore, file: Path, to: Path
) -> None:
    registry.add(one(store, "system"), "proj/system/mirrored-pause", "3.6")
    registry.add(one(store, "hub"), "proj/library/busybox", "1")
    registry.add(one(store, "untouched"), "other/image", "1")
    rewrite = {"^rancher/(.*)$": "proj/system/$1", "^(library/[a-z]+)$": "proj/${1}"}
    registries(file, {"docker.io": {"endpoint": [registry.url], "rewrite": rewrite}})

    bundle(["rancher/mirrored-pause:3.6", "busybox:1", "other/image:1"], to, "--registries", file)

    assert Bundle(to).check().names.keys() == {
        *("docker.io/rancher/mirrored-pause:3.6", "docker.io/library/busybox:1", "docker.io/other/image:1")
    }


def test_rewrites_do_not_touch_the_registry_itself(
    registry: GatedRegistry, other: GatedRegistry, image: BuiltImage, file: Path, to: Path
) -> None:
    reference = registry.put(image, "some/image")
    registries(file, {registry.host: {"endpoint": [other.url], "rewrite": {"^(.*)$": "proj/$1"}}})

    bundle([reference], to, "--registries", file)

    assert [path for _, path in other.asked() if "manifests/1" in path] == ["/v2/proj/some/image/manifests/1"]
    assert all("proj" not in path for _, path in registry.asked())


def test_the_mirror_makes_no_difference_to_the_bundle(
    registry: GatedRegistry, other: GatedRegistry, image: BuiltImage, tmp_path: Path
) -> None:
    reference = registry.put(image, "some/image")
    other.add(image, "proj/some/image", "1")
    mirrored = registries(
        tmp_path / "registries.yaml", {registry.host: {"endpoint": [other.url], "rewrite": {"^(.*)$": "proj/$1"}}}
    )

    bundle([reference], tmp_path / "direct")
    bundle([reference], tmp_path / "mirrored", "--registries", mirrored)

    assert other.fetched()
    assert Bundle(tmp_path / "direct").check().tree() == Bundle(tmp_path / "mirrored").check().tree()


@pytest.mark.parametrize(
    "text",
    [
        "mirrors: [a, b",
        "mirrors:\n\t- x",
        "mirrors:\n  docker.io:\n    endpoint: ftp://x\n",
        f"configs:\n  a.example:\n    auth:\n      username: {USER}\n      password: [{PASSWORD}]\n",
        f"configs:\n  a.example:\n    auth:\n      username: {USER}\n      password: {PASSWORD}: x\n",
        f"mirrors:\n  a.example:\n    endpoint: ['https://{USER}:{PASSWORD}@b.example']\n",
    ],
    ids=["yaml", "tab", "endpoint is no list", "password is a list", "colon in the password", "password in a URL"],
)
def test_a_malformed_registries_file_is_refused_without_quoting_secrets(
    tmp_path: Path, file: Path, to: Path, text: str
) -> None:
    file.write_text(text)

    report = tmp_path / "report.json"
    result = bundle(["redis"], to, "--registries", file, "--report", report, code=3)

    assert "bad-registries-file" in result.err
    assert "registries.yaml" in result.err
    assert not to.exists()
    file.unlink()
    check_no_secret(result, tmp_path)


def test_a_registries_file_that_is_not_there_is_refused(tmp_path: Path, to: Path) -> None:
    bundle(["redis"], to, "--registries", tmp_path / "nowhere.yaml", code=3)


# --- credentials ---------------------------------------------------------------------------------------------


def test_basic_credentials_come_from_the_registries_file(guarded: Registry, file: Path, to: Path) -> None:
    registries(
        file,
        {FAR: {"endpoint": [guarded.url]}},
        {guarded.host: {"auth": {"username": USER, "password": PASSWORD}}},
    )

    result = bundle([f"{FAR}/some/image:1"], to, "--registries", file)

    Bundle(to).check()
    check_no_secret(result, to)


def test_basic_credentials_may_be_written_as_one_text(guarded: Registry, file: Path, to: Path) -> None:
    registries(file, {FAR: {"endpoint": [guarded.url]}}, {guarded.host: {"auth": {"auth": BASE64}}})

    bundle([f"{FAR}/some/image:1"], to, "--registries", file)

    Bundle(to).check()


def test_basic_credentials_come_from_dockers_config(guarded: Registry, tmp_path: Path, to: Path) -> None:
    env = docker_config(tmp_path / "docker", {guarded.host: {"auth": BASE64}})

    result = bundle([f"{guarded.host}/some/image:1"], to, env=env)

    Bundle(to).check()
    check_no_secret(result, to)


def test_the_registries_file_goes_before_dockers_config(
    guarded: Registry, tmp_path: Path, file: Path, to: Path
) -> None:
    env = docker_config(tmp_path / "docker", {guarded.host: {"username": USER, "password": "wrong"}})
    registries(file, {}, {guarded.host: {"auth": {"username": USER, "password": PASSWORD}}})

    bundle([f"{guarded.host}/some/image:1"], to, "--registries", file, env=env)


def test_dockers_config_is_looked_up_for_the_mirror_not_for_the_registry(
    registry: GatedRegistry, guarded: Registry, tmp_path: Path, file: Path, to: Path
) -> None:
    registry.fault("*", "", BASIC, times=None)
    env = docker_config(tmp_path / "docker", {guarded.host: {"auth": BASE64}})
    registries(file, {FAR: {"endpoint": [registry.url, guarded.url]}})

    bundle([f"{FAR}/some/image:1"], to, "--registries", file, env=env)

    assert all("authorization" not in request.headers for request in registry.requests())


def test_without_credentials_the_image_fails_and_the_hint_says_where_to_put_them(guarded: Registry, to: Path) -> None:
    result = bundle([f"{guarded.host}/some/image:1"], to, "-o", "json", code=10)

    (image,) = result.json["images"]
    assert image["error"]["reference"] == "no-credentials"
    assert "registries" in image["error"]["hint"]
    assert Bundle(to).lock["failed"][0]["error"] == "no-credentials"


def test_refused_credentials_fail_the_image_and_are_shown_nowhere(
    guarded: Registry, tmp_path: Path, file: Path, to: Path
) -> None:
    registries(file, {}, {guarded.host: {"auth": {"username": "mallory", "password": PASSWORD}}})
    mark = guarded.mark()

    options = ("-o", "json", "--report", tmp_path / "report.json", "--registries", file)
    result = bundle([f"{guarded.host}/some/image:1"], to, *options, code=10)

    assert result.json["images"][0]["error"]["reference"] == "unauthorized"
    # Refused credentials are never tried over and over: once, and once more with the failed images at the end.
    assert len([entry for entry in guarded.since(mark) if entry.status == 401]) <= 4
    file.unlink()
    check_no_secret(result, tmp_path)


def test_a_bearer_token_is_asked_for_with_the_scope_of_each_repository(
    store: BlobStore, tmp_path: Path, file: Path, to: Path
) -> None:
    require("docker-registry", "openssl")
    with TokenServer(USER, PASSWORD) as tokens, Registry(token=tokens.auth) as registry:
        for name in ("one", "two"):
            publish(many(store, name), registry.url, f"some/{name}", "1", auth=(USER, PASSWORD))
        del tokens.requests[:]
        registries(file, {}, {registry.host: {"auth": {"username": USER, "password": PASSWORD}}})
        references = [f"{registry.host}/some/{name}:1" for name in ("one", "two")]

        options = ("-o", "json", "--report", tmp_path / "report.json", "--registries", file)
        result = bundle(references, to, *options)

        assert sorted(request.scopes for request in tokens.requests) == [
            *(("repository:some/one:pull",), ("repository:some/two:pull",))
        ]
        assert {(request.user, request.service) for request in tokens.requests} == {(USER, tokens.service)}
        mark = registry.mark()
        bundle(references, to, "--registries", file)
        assert {(entry.method, entry.status) for entry in registry.since(mark)} <= {("HEAD", 200), ("HEAD", 401)}
    Bundle(to).check()
    file.unlink()
    check_no_secret(result, tmp_path)


def test_a_bearer_token_may_be_had_without_credentials(store: BlobStore, to: Path) -> None:
    require("docker-registry", "openssl")
    with TokenServer(USER, PASSWORD, anonymous_pull=True) as tokens, Registry(token=tokens.auth) as registry:
        publish(many(store, "public"), registry.url, "some/public", "1", auth=(USER, PASSWORD))
        del tokens.requests[:]

        bundle([f"{registry.host}/some/public:1"], to)

        assert [(request.user, request.scopes) for request in tokens.requests] == [
            (None, ("repository:some/public:pull",))
        ]
    Bundle(to).check()


def test_a_repository_that_the_token_server_refuses_fails_alone(store: BlobStore, file: Path, to: Path) -> None:
    require("docker-registry", "openssl")
    with (
        TokenServer(USER, PASSWORD, anonymous_pull=True, refused=["some/secret"]) as tokens,
        Registry(token=tokens.auth) as registry,
    ):
        publish(one(store, "public"), registry.url, "some/public", "1", auth=(USER, PASSWORD))
        registries(file, {}, {registry.host: {"auth": {"username": USER, "password": PASSWORD}}})

        bundle([f"{registry.host}/some/{name}:1" for name in ("public", "secret")], to, "--registries", file, code=10)

    made = Bundle(to).check()
    assert len(made.names) == 1
    assert made.lock["failed"][0]["error"] in {"unauthorized", "denied"}


def test_a_fresh_token_that_is_refused_is_not_asked_for_again_and_again(store: BlobStore, to: Path) -> None:
    require("docker-registry", "openssl")
    image = many(store, "expired", 3000)
    with TokenServer(USER, PASSWORD, anonymous_pull=True) as tokens, Registry(token=tokens.auth) as registry:
        publish(image, registry.url, "some/image", "1", auth=(USER, PASSWORD))
        del tokens.requests[:]
        # Refused by the registry from the start, though the token server says that it is good for a minute.
        tokens.lifetime = -120

        result = bundle([f"{registry.host}/some/image:1"], to, code=10)

        assert len(tokens.requests) <= 2
    assert "no-credentials" in json.dumps(Bundle(to).lock["failed"]) or "401" in result.err


# --- redirects -----------------------------------------------------------------------------------------------


def test_credentials_are_not_sent_to_where_a_registry_redirects_to(
    registry: GatedRegistry, other: GatedRegistry, image: BuiltImage, file: Path, to: Path
) -> None:
    reference = registry.put(image, "some/image")
    other.add(image, "some/image", "1")
    registry.fault("*", "", BASIC)
    registry.fault("GET", "/blobs/", Redirect(f"{other.url}{{target}}"), times=None)
    registries(file, {}, {registry.host: {"auth": {"username": USER, "password": PASSWORD}}})

    bundle([reference], to, "--registries", file)

    assert sum("authorization" in request.headers for request in registry.requests()) >= 3
    assert len(other.requests()) == 2
    assert all("authorization" not in request.headers for request in other.requests())
    Bundle(to).check()


def test_where_a_registry_redirects_to_cannot_ask_for_its_credentials(
    registry: GatedRegistry, other: GatedRegistry, image: BuiltImage, file: Path, to: Path
) -> None:
    reference = registry.put(image, "some/image")
    registry.fault("*", "", BASIC)
    registry.fault("GET", "/blobs/", Redirect(f"{other.url}{{target}}"), times=None)
    challenge = f'Bearer realm="{other.url}/token",service="other"'
    other.fault("*", "", Status(401, {"WWW-Authenticate": challenge}), times=None)
    registries(file, {}, {registry.host: {"auth": {"username": USER, "password": PASSWORD}}})

    bundle([reference], to, "--registries", file, code=10)

    assert other.requests()
    assert all("authorization" not in request.headers for request in other.requests())
    assert all(PASSWORD.encode() not in request.target.encode() for request in other.requests())


def test_a_signed_address_is_not_shown(
    registry: GatedRegistry, other: GatedRegistry, image: BuiltImage, tmp_path: Path, to: Path
) -> None:
    reference = registry.put(image, "some/image")
    registry.fault("GET", "/blobs/", Redirect(f"{other.url}{{target}}?X-Signature={PASSWORD}"), times=None)
    other.fault("*", "", Status(403), times=None)

    result = bundle([reference], to, "-o", "json", "--report", tmp_path / "report.json", code=10)

    assert "X-Signature" in other.requests()[0].target
    check_no_secret(result, tmp_path)


def test_a_redirect_without_end_fails_the_image(registry: GatedRegistry, image: BuiltImage, to: Path) -> None:
    reference = registry.put(image, "some/image")
    registry.fault("GET", "/blobs/", Redirect(f"{registry.url}{{target}}"), times=None)

    result = bundle([reference], to, code=10)

    assert "redirect" in result.err
    assert len(registry.requests()) < 40


# --- the machine ---------------------------------------------------------------------------------------------


def test_neither_proxy_variables_nor_netrc_are_used(
    registry: GatedRegistry, image: BuiltImage, tmp_path: Path, to: Path
) -> None:
    reference = registry.put(image, "some/image")
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
    (tmp_path / ".netrc").chmod(0o600)
    dead = f"http://127.0.0.1:{free_port()}"
    env = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"), dead)

    bundle([reference], to, env={**env, "HOME": str(tmp_path), "NETRC": str(tmp_path / ".netrc")})

    assert all("authorization" not in request.headers for request in registry.requests())


def test_a_ca_file_is_trusted_for_its_host_and_nothing_is_downgraded_without_it(
    image: BuiltImage, tmp_path: Path, file: Path, to: Path
) -> None:
    require("docker-registry", "openssl")
    certificate = make_certificate(tmp_path)
    with Registry(certificate=certificate) as registry:
        publish(image, registry.url, "some/image", "1", ca_file=certificate.cert)
        mirror = {FAR: {"endpoint": [registry.url]}}

        refused = bundle([f"{FAR}/some/image:1"], to, "--registries", registries(file, mirror), "--replace", code=10)
        registries(file, mirror, {registry.host: {"tls": {"ca_file": str(certificate.cert)}}})
        bundle([f"{FAR}/some/image:1"], to, "--registries", file)
        registries(file, mirror, {registry.host: {"tls": {"insecure_skip_verify": True}}})
        result = bundle([f"{FAR}/some/image:1"], to, "--registries", file)

    assert "certificate" in refused.err
    assert "InsecureRequestWarning" not in result.err
    Bundle(to).check()
