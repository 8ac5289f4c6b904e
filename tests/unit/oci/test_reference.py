"""References: the grammar, Docker Hub's rules, and what must be refused."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bundler.errors import BadReferenceError
from bundler.oci.digest import Digest
from bundler.oci.reference import Reference

HEX = "a" * 64

NORMALISED = {
    "busybox": "docker.io/library/busybox:latest",
    "busybox:1.36": "docker.io/library/busybox:1.36",
    "rancher/mirrored-pause:3.6": "docker.io/rancher/mirrored-pause:3.6",
    "docker.io/busybox": "docker.io/library/busybox:latest",
    "index.docker.io/rancher/x:1": "docker.io/rancher/x:1",
    "docker.io/library/busybox:1": "docker.io/library/busybox:1",
    "localhost/x:1": "localhost/x:1",
    "localhost:5000/x": "localhost:5000/x:latest",
    "ghcr.io/k3s-io/k3s-upgrade:v1.32.3-k3s1": "ghcr.io/k3s-io/k3s-upgrade:v1.32.3-k3s1",
    "registry:5000/a/b/c:T_1.2-x": "registry:5000/a/b/c:T_1.2-x",
    "[::1]:5000/x:1": "[::1]:5000/x:1",
    "[2001:db8::1]/x:1": "[2001:db8::1]/x:1",
    "UPPER/x:1": "UPPER/x:1",
    f"x@sha256:{HEX}": f"docker.io/library/x@sha256:{HEX}",
    f"x:1@sha256:{HEX}": f"docker.io/library/x:1@sha256:{HEX}",
    f"quay.io/a/b@sha512:{HEX}{HEX}": f"quay.io/a/b@sha512:{HEX}{HEX}",
    "a__b/c--d.e_f:1": "docker.io/a__b/c--d.e_f:1",
    "x:" + "t" * 128: "docker.io/library/x:" + "t" * 128,
    "quay.io/" + "r" * 255: "quay.io/" + "r" * 255 + ":latest",
}

REFUSED = {
    "": "empty",
    HEX: "image ID",
    "https://quay.io/x:1": "scheme",
    "quay.io/Upper/x:1": "lower case",
    "Busybox": "lower case",
    "a//b:1": "not a repository",
    "a/../b:1": "not a repository",
    "a b:1": "not a repository",
    "a..b:1": "not a repository",
    "a___b:1": "not a repository",
    "-a:1": "not a repository",
    "quay.io/": "not a repository",
    "/x:1": "not a repository",
    "x:": "not a tag",
    "x:-1": "not a tag",
    "x:" + "t" * 129: "not a tag",
    "x:a:b": "not a tag",
    "x@": "no algorithm",
    "x@sha256:zz": "64 lower-case hex",
    f"x@sha256:{HEX.upper()}": "64 lower-case hex",
    f"x@md5:{'a' * 32}": "not sha256 or sha512",
    f"x@sha256:{HEX}@sha256:{HEX}": "64 lower-case hex",
    "quay.io/" + "r" * 256: "longer than 255",
    "ex ample.com/x:1": "not a registry",
    "host:port/x:1": "not a registry",
    "host:123456/x:1": "not a registry",
    "[::1/x:1": "not a registry",
    "-host.example/x:1": "not a registry",
    "x:1\n": "not a tag",
    "x\u200b:1": "not a repository",
}


@pytest.mark.parametrize(("text", "expected"), NORMALISED.items())
def test_a_legal_reference_is_normalised(text: str, expected: str) -> None:
    reference = Reference.parse(text)
    assert str(reference) == expected
    assert reference.text == text
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(("text", "why"), REFUSED.items())
def test_an_illegal_reference_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(BadReferenceError) as caught:
        Reference.parse(text)
    assert why in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_the_digest_decides_and_the_tag_is_kept() -> None:
    reference = Reference.parse(f"quay.io/a/b:1@sha256:{HEX}")
    assert reference.api_reference == f"sha256:{HEX}"
    assert str(reference.tagged()) == "quay.io/a/b:1"
    assert str(reference.pinned()) == f"quay.io/a/b@sha256:{HEX}"
    assert Reference.parse("quay.io/a/b:1").pinned() is None
    assert Reference.parse(f"quay.io/a/b@sha256:{HEX}").tagged() is None


component = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,6}){0,2}", fullmatch=True)
host = st.one_of(
    st.from_regex(r"[a-z0-9]{1,6}(\.[a-z0-9]{1,6}){1,2}(:[0-9]{1,5})?", fullmatch=True),
    st.just("localhost"),
    st.from_regex(r"[a-z]{1,6}:[0-9]{1,5}", fullmatch=True),
    st.just("[fe80::1]:443"),
)
tag = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
digest = st.builds(Digest.of, st.binary(max_size=4), st.sampled_from(["sha256", "sha512"]))


@given(host, st.lists(component, min_size=1, max_size=4), st.none() | tag, st.none() | digest)
def test_every_reference_built_by_the_grammar_round_trips(
    registry: str, path: list[str], label: str | None, pin: Digest | None
) -> None:
    text = f"{registry}/{'/'.join(path)}" + (f":{label}" if label else "") + (f"@{pin}" if pin else "")
    reference = Reference.parse(text)
    assert (reference.registry, reference.repository) == (registry, "/".join(path))
    assert reference.digest == pin
    assert reference.tag == (label or (None if pin else "latest"))
    assert Reference.parse(str(reference)) == reference


@given(st.text(max_size=60))
def test_any_text_is_either_refused_or_normalised_once_and_for_all(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except BadReferenceError:
        return
    assert Reference.parse(str(reference)) == reference


@given(component, component)
def test_two_components_without_a_host_lie_on_docker_hub(first: str, second: str) -> None:
    assume("." not in first and first != "localhost")
    assert Reference.parse(f"{first}/{second}").registry == "docker.io"
