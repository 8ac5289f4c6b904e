"""Push targets, and the names that images get there."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.errors import BadTargetError
from bundler.oci.digest import Digest
from bundler.oci.reference import Reference, is_repository
from bundler.oci.target import Target, tag_for

LABEL = st.from_regex(r"[a-z0-9]+([-.][a-z0-9]+){0,2}", fullmatch=True)
PATH = st.from_regex(
    r"[a-z0-9]+((\.|_|__|-{1,3})[a-z0-9]+){0,2}(/[a-z0-9]+((\.|_|__|-)[a-z0-9]+){0,2}){0,2}", fullmatch=True
)
HOST = st.one_of(
    LABEL.map(lambda label: f"{label}.example"),
    st.tuples(LABEL, st.integers(1, 65535)).map(lambda parts: f"{parts[0]}:{parts[1]}"),
    st.just("[::1]:5000"),
    st.just("localhost"),
)
DIGEST = Digest.of(b"content")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("harbor.example", Target("harbor.example")),
        ("https://harbor.example", Target("harbor.example")),
        ("http://harbor.example", Target("harbor.example", plain_http=True)),
        ("harbor.example/", Target("harbor.example")),
        ("localhost", Target("localhost")),
        ("harbor:5000/k3s", Target("harbor:5000", "k3s")),
        ("http://10.0.0.1:5000/a/b-c/d_e", Target("10.0.0.1:5000", "a/b-c/d_e", plain_http=True)),
        ("https://[fd00::1]:5000/k3s/", Target("[fd00::1]:5000", "k3s")),
        ("[::1]", Target("[::1]")),
    ],
)
def test_a_target_is_read(text: str, expected: Target) -> None:
    assert Target.parse(text) == expected


@pytest.mark.parametrize(
    ("target", "url"),
    [
        (Target.parse("harbor.example/k3s"), "https://harbor.example"),
        (Target.parse("https://harbor.example:8443"), "https://harbor.example:8443"),
        (Target.parse("http://harbor.example:80/k3s"), "http://harbor.example:80"),
    ],
)
def test_only_a_written_http_makes_it_plain(target: Target, url: str) -> None:
    assert target.url == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "/prefix",
        "http://",
        "https:///prefix",
        "ftp://harbor.example",
        "oci://harbor.example/x",
        "://harbor.example",
        "http//harbor.example",
        "http:/harbor.example",
        "http://http://harbor.example",
        "harbor.example:",
        "harbor.example:port",
        "harbor.example:99999",
        "harbor.example:65536",
        "harbor.example:5000:5000",
        "harbor..example",
        "-harbor.example",
        "harbor_example",
        "harbor.example /x",
        "harbor.example\n",
        "harbor.example/Upper",
        "harbor.example//x",
        "harbor.example/x//y",
        "harbor.example/../x",
        "harbor.example/x?y=z",
        "harbor.example?y=z",
        "harbor.example/x#y",
        "harbor.example/x:tag",
        "harbor.example/" + "a" * 256,
        "[::1",
        "[:::]",
        "[::1%eth0]",
        "[1:2]:5000",
        "fd00::1",
        "härbor.example",
    ],
)
def test_a_target_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(BadTargetError) as refused:
        Target.parse(text)

    assert refused.value.exit_code == 3
    assert "[http://|https://]host[:port][/prefix]" in refused.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "alice:s3cr3t@harbor.example",
        "http://alice:s3cr3t@harbor.example/x",
        "https://s3cr3t@harbor.example",
        "x/s3cr3t@y",
    ],
)
def test_credentials_are_refused_without_repeating_them(text: str) -> None:
    with pytest.raises(BadTargetError) as refused:
        Target.parse(text)

    assert "s3cr3t" not in refused.value.message + refused.value.hint
    assert "docker login" in refused.value.hint


@given(HOST, st.one_of(st.just(""), PATH), st.booleans())
def test_a_target_reads_back_from_what_it_prints(host: str, prefix: str, plain_http: bool) -> None:
    target = Target(host, prefix, plain_http)

    assert Target.parse(str(target)) == target
    assert str(target).startswith("http://" if plain_http else "https://")


@pytest.mark.parametrize(
    ("prefix", "reference", "plain", "kept"),
    [
        ("", "docker.io/rancher/x:t", "rancher/x", "docker.io/rancher/x"),
        ("", "busybox", "library/busybox", "docker.io/library/busybox"),
        ("k3s", "docker.io/rancher/x:t", "k3s/rancher/x", "k3s/docker.io/rancher/x"),
        ("a/b", "quay.io/team/x/y:1", "a/b/team/x/y", "a/b/quay.io/team/x/y"),
        ("", "registry.example:5000/x:1", "x", "registry.example-5000/x"),
        ("", "localhost:5000/x/y:1", "x/y", "localhost-5000/x/y"),
        ("", "localhost/x:1", "x", "localhost/x"),
        ("", "10.0.0.1:443/x:1", "x", "10.0.0.1-443/x"),
        ("", "Registry.Example/x:1", "x", "registry.example/x"),
        ("", "[::1]:5000/x:1", "x", "1-5000/x"),
        ("", "xn--bcher-kva.example/x:1", "x", "xn--bcher-kva.example/x"),
        ("", "my-registry.example/x:1", "x", "my-registry.example/x"),
    ],
)
def test_names_at_the_target(prefix: str, reference: str, plain: str, kept: str) -> None:
    target = Target("harbor.example", prefix)
    parsed = Reference.parse(reference)

    assert target.repository_for(parsed, keep_registry=False) == plain
    assert target.repository_for(parsed, keep_registry=True) == kept


@given(HOST, PATH, PATH, st.booleans())
def test_names_at_the_target_are_legal_and_end_with_the_repository(
    registry: str, repository: str, prefix: str, keep_registry: bool
) -> None:
    name = Target("harbor.example", prefix).repository_for(
        Reference(registry, repository, "1"), keep_registry=keep_registry
    )

    assert is_repository(name)
    assert name.startswith(f"{prefix}/")
    assert name.endswith(f"/{repository}")
    assert (name == f"{prefix}/{repository}") != keep_registry


def test_a_name_that_would_be_too_long_is_refused() -> None:
    target = Target("harbor.example", "p" * 200)

    with pytest.raises(BadTargetError, match="255") as refused:
        target.repository_for(Reference("docker.io", "r" * 60, "1"), keep_registry=False)
    assert "shorter prefix" in refused.value.hint
    assert target.repository_for(Reference("docker.io", "r" * 54, "1"), keep_registry=False).startswith("p")


@pytest.mark.parametrize(
    ("reference", "tag"),
    [
        (Reference("docker.io", "x", "v1"), "v1"),
        (Reference("docker.io", "x", "v1", DIGEST), "v1"),
        (Reference("docker.io", "x", None, DIGEST), f"digest-{DIGEST.hex[:12]}"),
        (Reference("docker.io", "x", None, Digest.of(b"", "sha512")), "digest-cf83e1357eef"),
    ],
)
def test_the_tag_at_the_target(reference: Reference, tag: str) -> None:
    assert tag_for(reference) == tag
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", tag)
