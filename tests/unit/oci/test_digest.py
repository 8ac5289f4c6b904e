"""Digests."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.errors import BadDigestError
from bundler.oci.digest import Digest


@given(st.binary(max_size=64), st.sampled_from(["sha256", "sha512"]))
def test_a_digest_round_trips_and_matches_its_bytes_only(data: bytes, algorithm: str) -> None:
    digest = Digest.of(data, algorithm)
    assert Digest.parse(str(digest)) == digest
    assert digest.hex == hashlib.new(algorithm, data).hexdigest()
    assert digest.matches(data)
    assert not digest.matches(data + b"x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "A" * 64,
        "sha256:" + "g" * 64,
        "sha512:" + "a" * 64,
        "md5:" + "a" * 32,
        "sha256:../../../../etc/passwd",
        "sha256:" + "a" * 63 + "\n",
        "sha256:" + "\u0661" * 64,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadDigestError):
        Digest.parse(text)
