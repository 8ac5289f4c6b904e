"""Shipped release data and the parser of published lists."""

from __future__ import annotations

import hashlib

import pytest

from bundler.errors import BadK3sVersionError, BadReleaseListError
from bundler.k3s import releases
from bundler.k3s.version import K3sVersion
from bundler.oci.reference import Reference

V1_37_1 = "377307d4039ccd04f0e27d2906595a8c7b7d49a79f7553c311f6f960ff3efb58"


def version(text: str) -> K3sVersion:
    return K3sVersion.parse(text)


def test_every_shipped_list_has_the_bytes_of_its_digest() -> None:
    versions = releases.shipped_versions()
    assert len(versions) == 177
    for each in versions:
        shipped = releases.shipped_list(each)
        assert shipped is not None
        assert shipped.version == each
        assert hashlib.sha256(shipped.text.encode()).hexdigest() == shipped.sha256
        assert shipped.evidence in releases.EVIDENCE
        assert (shipped.commit is None) == (shipped.evidence in "EF")
        assert shipped.commit is None or len(shipped.commit) == 40


def test_every_shipped_list_parses_into_its_own_lines() -> None:
    for each in releases.shipped_versions():
        shipped = releases.shipped_list(each)
        assert shipped is not None
        assert len(shipped.lines) == (7 if each < version("v1.19.0+k3s1") else 8)
        references = releases.parse_release_list(each, shipped.text.encode())
        assert tuple(str(reference) for reference in references) == shipped.lines
        assert list(shipped.lines) == sorted(shipped.lines)


def test_pinned_lists() -> None:
    newest = releases.shipped_list(version("v1.37.1+k3s1"))
    assert newest is not None
    assert newest.sha256 == V1_37_1
    assert newest.evidence == "E"
    known = releases.shipped_list(version("v1.32.3-k3s1"))
    assert known is not None
    assert "docker.io/rancher/mirrored-coredns-coredns:1.12.0" in known.lines
    assert known.commit == "079ffa8d99fb859cb8c001455e47efa65535d832"


def test_a_release_without_list() -> None:
    assert releases.shipped_list(version("v1.31.9+k3s1")) is None
    assert releases.is_listed_tag(version("v1.31.9+k3s1"))
    assert not releases.is_listed_tag(version("v1.37.1+k3s1"))


def test_known_versions_are_tags_and_lists_in_order() -> None:
    known = releases.known_versions()
    assert known == tuple(sorted(set(known)))
    assert str(known[0]) == "v1.16.7+k3s1"
    assert str(known[-1]) == "v1.37.1+k3s1"
    assert set(releases.shipped_versions()) < set(known)
    assert len([v for v in known if releases.is_listed_tag(v)]) == 321


def test_parse_version_hints_at_known_ones() -> None:
    assert str(releases.parse_version("v1.99.0-k3s1")) == "v1.99.0+k3s1"
    with pytest.raises(BadK3sVersionError) as caught:
        releases.parse_version("1.32.3")
    assert caught.value.message == "'1.32.3' is not a K3s version"
    assert caught.value.hint.startswith("Did you mean v1.32.3+k3s1? Write ")
    with pytest.raises(BadK3sVersionError) as caught:
        releases.parse_version("latest")
    assert caught.value.hint.startswith("Did you mean v1.37.1+k3s1, v1.36.3+k3s1 or v1.35.7+k3s1? ")


def test_parse_release_list_tolerates_crlf_blank_lines_and_repeats() -> None:
    data = b"\r\n docker.io/rancher/a:1\r\n\r\nregistry.example:5000/b/c:2\r\ndocker.io/rancher/a:1"
    assert releases.parse_release_list(version("v1.32.3+k3s1"), data) == (
        Reference.parse("docker.io/rancher/a:1"),
        Reference.parse("registry.example:5000/b/c:2"),
    )
    assert releases.parse_release_list(version("v1.32.3+k3s1"), b"\xef\xbb\xbfdocker.io/rancher/a:1\n")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b" \r\n\n", "empty"),
        (b"<!DOCTYPE html>\n<html>", "HTML"),
        (b"\n\n  <html>", "HTML"),
        (b"\xff\xfe", "not text"),
        (b"docker.io/rancher/a:1\n" * 12_000, "larger than 262144 bytes"),
        (b"Not Found\n", "line 1 is not HOST/PATH:TAG: 'Not Found'"),
        (b"docker.io/rancher/a:1\n\nrancher/b:1\n", "line 3 is not HOST/PATH:TAG: 'rancher/b:1'"),
        (b"docker.io/busybox:1\n", "line 1"),
        (b"docker.io/rancher/a\n", "line 1"),
        (b"docker.io/rancher/a:1@sha256:" + b"0" * 64, "line 1"),
        (b"docker.io/rancher/a@sha256:" + b"0" * 64, "line 1"),
        (b"# comment\ndocker.io/rancher/a:1\n", "line 1"),
        (b"https://docker.io/rancher/a:1\n", "line 1"),
        (b"docker.io/rancher/a:1 docker.io/rancher/b:1\n", "line 1"),
        (b"docker.io/Rancher/a:1\n", "line 1"),
        (b"docker.io/rancher/a:1\x00\n", "line 1"),
        (b'{"message": "no"}', "line 1"),
    ],
)
def test_parse_release_list_refuses_anything_else(data: bytes, why: str) -> None:
    with pytest.raises(BadReleaseListError) as caught:
        releases.parse_release_list(version("v1.32.3+k3s1"), data)
    assert why in caught.value.message
    assert "v1.32.3+k3s1" in caught.value.message
    assert len(caught.value.message) < 200


def test_a_bad_line_is_shown_without_secrets() -> None:
    data = b"see https://user:hunter2@host/path?token=hunter2"
    with pytest.raises(BadReleaseListError) as caught:
        releases.parse_release_list(version("v1.32.3+k3s1"), data)
    assert "hunter2" not in caught.value.message
