"""The peers that other tests talk to do what they claim."""

import http.client
import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import make_certificate
from tests.support.containerd import Containerd, write_hosts
from tests.support.faulty import (
    Corrupt,
    Cut,
    FaultyRegistry,
    Redirect,
    Reset,
    ShortLength,
    Stall,
    Status,
    WrongDigestHeader,
)
from tests.support.images import (
    AMD64,
    ARM64,
    Entry,
    ImageFactory,
    digest_of,
    index_of,
    publish,
    publish_k3s,
    single,
)
from tests.support.programs import find_program, require
from tests.support.publishing import PublishError
from tests.support.registry import Registry
from tests.support.releases import ReleaseServer
from tests.support.tokens import TokenServer

COREDNS = "docker.io/rancher/mirrored-coredns-coredns:1.12.0"
TRAEFIK = "docker.io/rancher/mirrored-library-traefik:3.3.2"
PLATFORMS = (AMD64, ARM64)
USER = ("alice", "wonderland")


@pytest.fixture
def factory(tmp_path: Path) -> ImageFactory:
    return ImageFactory(tmp_path / "cache")


@pytest.fixture
def registry() -> Iterator[Registry]:
    require("docker-registry")
    with Registry() as started:
        yield started


def get(url: str, headers: dict[str, str] | None = None) -> Any:
    request = urllib.request.Request(url, headers=headers or {})  # noqa: S310 - of a peer
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        return response.read()


def status_of(url: str) -> int:
    try:
        get(url)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    return 200


def test_generated_images_are_the_same_every_time(tmp_path: Path) -> None:
    first, again = (ImageFactory(tmp_path / name) for name in ("first", "again"))

    image = first.build("mirrored-metrics-server", "v0.7.2", 0.01)

    assert image.root_bytes == again.build("mirrored-metrics-server", "v0.7.2", 0.01).root_bytes
    assert image == first.build("mirrored-metrics-server", "v0.7.2", 0.01)
    assert sum(blob.size for blob in image.blobs) == pytest.approx(3 * 221_000, rel=0.1)
    for blob in image.blobs:
        assert blob.digest == digest_of(blob.path.read_bytes())
        assert blob.size == blob.path.stat().st_size


def test_images_of_one_family_share_their_base_layer(factory: ImageFactory) -> None:
    helm, balancer = (factory.build(name, "v1", 0.01) for name in ("klipper-helm", "klipper-lb"))

    assert len(helm.digests & balancer.digests) == 3


def test_containerd_and_skopeo_take_generated_images(registry: Registry, factory: ImageFactory, tmp_path: Path) -> None:
    require("containerd", "ctr", "skopeo")
    images = publish_k3s(registry.url, factory, [COREDNS, TRAEFIK], 0.01, PLATFORMS)
    write_hosts(tmp_path / "hosts", target_url=registry.url)

    with Containerd() as containerd:
        for reference, image in images.items():
            for platform in PLATFORMS:
                containerd.pull(reference, platform, tmp_path / "hosts")
                assert image.needed_for(image.digest_for(platform)) <= containerd.content()
        assert containerd.images() == {name: image.root_digest for name, image in images.items()}

    seen = subprocess.run(
        [
            *(find_program("skopeo"), "inspect", "--tls-verify=false", "--override-arch=arm64"),
            *("--override-variant=v8", f"docker://{registry.host}/rancher/mirrored-coredns-coredns:1.12.0"),
        ],
        capture_output=True,
        check=True,
    )
    assert json.loads(seen.stdout)["Architecture"] == "arm64"


def test_containerd_asks_only_where_it_is_told_to(registry: Registry, factory: ImageFactory, tmp_path: Path) -> None:
    require("containerd", "ctr")
    image = factory.build("mirrored-pause", "3.6", 0.1, PLATFORMS)
    publish(image, registry.url, "mirror/k3s/rancher/mirrored-pause", "3.6")
    write_hosts(tmp_path / "hosts", target_url=registry.url, prefix="mirror/k3s")
    mark = registry.mark()

    with Containerd() as containerd:
        containerd.pull("docker.io/rancher/mirrored-pause:3.6", AMD64, tmp_path / "hosts")
        refused = containerd.pull("docker.io/rancher/nothing:1", AMD64, tmp_path / "hosts", check=False)

    assert "not found" in refused.stderr
    asked = registry.since(mark)
    assert {request.status for request in asked if "mirrored-pause" in request.path} == {200}
    assert {request.path for request in asked if request.status == 404} == {
        "/v2/mirror/k3s/rancher/nothing/manifests/1"
    }


def test_a_registry_keeps_its_content_over_a_restart(registry: Registry, factory: ImageFactory) -> None:
    publish(single(factory.store), registry.url, "some/image", "1")
    registry.stop()
    with pytest.raises(urllib.error.URLError):
        get(f"{registry.url}/v2/")

    registry.start()

    assert json.loads(get(f"{registry.url}/v2/some/image/tags/list"))["tags"] == ["1"]


def test_a_registry_may_ask_for_a_password(factory: ImageFactory) -> None:
    require("docker-registry")
    image = single(factory.store)
    with Registry(htpasswd=USER, relative_urls=True) as registry:
        publish(image, registry.url, "some/image", "1", auth=USER)
        with pytest.raises(PublishError):
            publish(image, registry.url, "some/image", "1", auth=("alice", "wrong"))

        assert status_of(f"{registry.url}/v2/") == 401
        assert registry.requests()[-1].path == "/v2/"


def test_a_registry_may_speak_tls(factory: ImageFactory, tmp_path: Path) -> None:
    require("docker-registry", "openssl", "containerd", "ctr")
    certificate = make_certificate(tmp_path)
    with Registry(certificate=certificate) as registry, Containerd() as containerd:
        publish(single(factory.store), registry.url, "some/image", "1", ca_file=certificate.cert)
        write_hosts(tmp_path / "hosts", target_url=registry.url, ca_file=certificate.cert)
        containerd.pull("docker.io/some/image:1", AMD64, tmp_path / "hosts")


def test_a_registry_trusts_the_tokens_of_its_server(factory: ImageFactory) -> None:
    require("docker-registry", "openssl")
    with TokenServer(*USER, anonymous_pull=True) as tokens, Registry(token=tokens.auth) as registry:
        publish(single(factory.store), registry.url, "some/image", "1", auth=USER)
        asked = tokens.requests[-1]
        assert (asked.user, asked.scopes) == ("alice", ("repository:some/image:pull,push",))

        query = urllib.parse.urlencode({"service": tokens.service, "scope": "repository:some/image:pull,push"})
        token = json.loads(get(f"{tokens.realm}?{query}"))["token"]
        assert tokens.requests[-1].granted[0]["actions"] == ["pull"]
        bearer = {"Authorization": f"Bearer {token}"}
        assert json.loads(get(f"{registry.url}/v2/some/image/tags/list", bearer))["tags"] == ["1"]
        assert status_of(f"{registry.url}/v2/some/image/tags/list") == 401

        wrong = {"Authorization": "Basic " + b64encode(b"alice:wrong").decode()}
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            get(f"{tokens.realm}?{query}", wrong)
        refused.value.close()


def test_a_faulty_registry_without_faults_is_a_registry(factory: ImageFactory, tmp_path: Path) -> None:
    require("containerd", "ctr")
    image = factory.build("mirrored-coredns-coredns", "1.12.0", 0.01, PLATFORMS)
    with FaultyRegistry() as registry, Containerd() as containerd:
        publish(image, registry.url, "rancher/mirrored-coredns-coredns", "1.12.0")
        assert registry.content.digests("rancher/mirrored-coredns-coredns") == image.digests
        assert registry.violations == []

        write_hosts(tmp_path / "hosts", target_url=registry.url)
        for platform in PLATFORMS:
            containerd.pull(COREDNS, platform, tmp_path / "hosts")
        assert containerd.images() == {COREDNS: image.root_digest}


def test_a_faulty_registry_refuses_what_is_not_complete(factory: ImageFactory) -> None:
    inner = single(factory.store)
    index = index_of(Entry(inner, AMD64))
    with FaultyRegistry() as registry:
        connection = http.client.HTTPConnection(registry.host, timeout=10)
        headers = {"Content-Type": index.root_media_type}
        connection.request("PUT", "/v2/some/image/manifests/1", index.root_bytes, headers)
        response = connection.getresponse()
        assert (response.status, b"MANIFEST_BLOB_UNKNOWN" in response.read()) == (400, True)
        connection.close()

        assert registry.violations == [f"some/image:1 lacks {inner.root_digest}"]


def test_a_faulty_registry_fails_as_ordered(factory: ImageFactory) -> None:
    image = single(factory.store, files={"data": bytes(range(256)) * 64})
    layer = image.blobs[1]
    data = layer.path.read_bytes()
    half = len(data) // 2
    with FaultyRegistry() as registry:
        registry.add(image, "some/image", "1")
        url = f"{registry.url}/v2/some/image/blobs/{layer.digest}"

        cut = registry.fault("GET", "/blobs/", Cut(half))
        with pytest.raises(http.client.IncompleteRead) as incomplete:
            get(url)
        assert incomplete.value.partial == data[:half]
        assert cut.hits == 1
        rest = get(url, {"Range": f"bytes={half}-"})
        assert data[:half] + rest == data
        assert registry.requests()[-1].headers["range"] == f"bytes={half}-"

        for reset in (Cut(half, reset=True), Reset()):
            registry.fault("GET", "/blobs/", reset)
            with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
                get(url)
        registry.fault("GET", "/blobs/", Corrupt())
        assert sum(a != b for a, b in zip(data, get(url), strict=True)) == 1
        registry.fault("GET", "/blobs/", ShortLength(half))
        assert get(url) == data[:half]
        registry.fault("GET", "/blobs/", Status(503, {"Retry-After": "1"}))
        assert status_of(url) == 503
        registry.fault("GET", "/blobs/", Redirect(registry.url + "{target}?again"))
        assert get(url) == data
        registry.fault("GET", "/blobs/", Stall(0.2, after_bytes=half))
        started = time.monotonic()
        assert get(url) == data
        assert time.monotonic() - started > 0.2
        registry.fault("GET", "/manifests/", WrongDigestHeader())
        connection = http.client.HTTPConnection(registry.host, timeout=10)
        connection.request("GET", "/v2/some/image/manifests/1")
        response = connection.getresponse()
        assert response.headers["Docker-Content-Digest"] == WrongDigestHeader().digest
        assert response.read() == image.root_bytes
        connection.close()

        assert [request.status for request in registry.requests("GET")] == [
            *(200, 206, 200, 0, 200, 200, 503, 307, 200, 200, 200)
        ]


def test_a_release_server_wants_versions_encoded() -> None:
    with ReleaseServer({"v1.32.2+k3s1": "docker.io/rancher/klipper-lb:v1\n"}) as server:
        assert get(f"{server.url}/v1.32.2%2Bk3s1/k3s-images.txt") == b"docker.io/rancher/klipper-lb:v1\n"
        assert status_of(f"{server.url}/v1.32.2+k3s1/k3s-images.txt") == 404
        assert server.paths[-1].endswith("/v1.32.2+k3s1/k3s-images.txt")


def test_a_release_server_may_be_a_portal_or_silent() -> None:
    with ReleaseServer({}, portal=True) as server:
        assert b"Sign in" in get(f"{server.url}/anything")
    with ReleaseServer({}, hang=True) as server:
        connection = http.client.HTTPConnection(server.host, timeout=0.2)
        connection.request("GET", "/anything")
        with pytest.raises(socket.timeout):
            connection.getresponse()
        connection.close()
