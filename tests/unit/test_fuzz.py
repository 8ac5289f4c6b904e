"""Whatever a parser is given, it either understands it or refuses it with one of our errors."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz import TARGETS, seeds_of

TEXTS = st.text(max_size=300)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**70), max_value=2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["sha256:" + "0" * 64, "application/vnd.oci.image.manifest.v1+json", "airgap-sync/v1", "BundleLock"]
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=5) | st.sampled_from(["manifests", "config", "layers", "digest", "size"]), inner
        )
    ),
    max_leaves=20,
)


@st.composite
def mutations(draw: st.DrawFn, name: str) -> bytes:
    """Draw a valid document of a target with some of its bytes replaced, removed or repeated."""
    data = bytearray(draw(st.sampled_from(seeds_of(name))))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 20)))
        piece = draw(st.binary(max_size=8) | st.just(bytes(data[start:end]) * 3) | st.sampled_from(PIECES))
        data[start:end] = piece
    return bytes(data)


PIECES = (
    *(b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\u", b"\\ud800", b"1e999", b"-0", b"NaN", b"null", b"\x00", b"\xff"),
    *(
        b"[" * 2000,
        b'{"a":' * 2000,
        b"9" * 5000,
        "\u00b2\u0661".encode(),
        "\u00b2".encode("latin-1"),
        b"../",
        b"@",
        b"\n",
        b"\t",
    ),
)


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_understood_or_refused(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(st.binary(max_size=200) | TEXTS.map(lambda text: text.encode(errors="surrogatepass")))
    @example(b"")
    @example(b"[" * 200_000)
    @example(b'{"a":' * 200_000)
    @example(b"9" * 5000)
    @example("\u00b2".encode("latin-1"))
    @example(b"Mon, 01 Jan 0001 00:" + b"9" * 400)
    def check(data: bytes) -> None:
        target(data)

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_anything_like_a_valid_document_is_understood_or_refused(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(mutations(name))
    def check(data: bytes) -> None:
        target(data)

    check()


@pytest.mark.parametrize("name", [name for name in TARGETS if seeds_of(name)[0][:1] == b"{"])
def test_any_json_is_understood_or_refused(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(JSON)
    def check(document: object) -> None:
        target(json.dumps(document).encode())

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_is_understood(name: str) -> None:
    for seed in seeds_of(name):
        assert TARGETS[name](seed), seed[:80]


@pytest.mark.parametrize("depth", [10, 300, 500, 700, 800, 900, 930, 950, 960, 970, 980, 990, 1000])
@pytest.mark.parametrize("name", [name for name in TARGETS if seeds_of(name)[0][:1] == b"{"])
def test_nesting_of_any_depth_is_understood_or_refused(name: str, depth: int) -> None:
    """Just below the parser's own limit what comes after it must not fail either."""
    for start, end in ((b"[", b"]"), (b'{"a":', b"}")):
        deep = start * depth + b"1" + end * depth
        TARGETS[name](deep)
        for seed in seeds_of(name):
            TARGETS[name](seed.replace(b"{", b'{"x-deep":' + deep + b",", 1))
