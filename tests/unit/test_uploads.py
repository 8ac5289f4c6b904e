"""What is remembered of uploads, how they are cut into chunks, and the body that carries them."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.errors import DigestMismatchError
from bundler.layout.stream import VerifiedStream
from bundler.oci.content import BlobStream
from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest
from bundler.registry.body import UploadBody
from bundler.registry.session import Chunking, SavedUpload
from bundler.transfer.uploads import UploadJournal

TARGET = "https://registry.example:5000/v2"
LOCATION = "https://registry.example:5000/v2/a/blobs/uploads/1?_state=x%2Fy%3D"
DIGEST, OTHER = Digest.of(b"1"), Digest.of(b"2")
SAVED = SavedUpload(LOCATION, 1000)
MIB = 1024 * 1024


# --- the journal -----------------------------------------------------------------------------------------------


def file_of(directory: Path) -> Path:
    (found,) = directory.iterdir()
    return found


def test_an_upload_is_remembered_by_the_next_run_in_a_file_that_nobody_else_reads(tmp_path: Path) -> None:
    journal = UploadJournal(tmp_path / "uploads", TARGET)
    assert journal.recall("a", DIGEST) is None
    assert not (tmp_path / "uploads").exists()
    journal.keep("a", DIGEST, SavedUpload(LOCATION, 500))
    journal.keep("a", DIGEST, SAVED)

    again = UploadJournal(tmp_path / "uploads", TARGET)

    assert again.recall("a", DIGEST) == SAVED
    assert again.recall("b", DIGEST) is None
    assert again.recall("a", OTHER) is None
    assert file_of(tmp_path / "uploads").stat().st_mode & 0o777 == 0o600
    again.forget("a", DIGEST)
    again.forget("a", DIGEST)
    assert list((tmp_path / "uploads").iterdir()) == []
    assert UploadJournal(tmp_path / "uploads", TARGET).recall("a", DIGEST) is None


def test_a_location_elsewhere_is_remembered_for_the_run_and_never_written(tmp_path: Path) -> None:
    signed = SavedUpload("https://storage.example/x?X-Amz-Signature=s3cr3t", 5)
    journal = UploadJournal(tmp_path, TARGET)
    journal.keep("a", DIGEST, signed)
    assert journal.recall("a", DIGEST) == signed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "location", [LOCATION.replace("https", "http"), LOCATION.replace("5000", "5001"), "https://other.example/v2/"]
)
def test_what_another_origin_has_left_is_dropped(tmp_path: Path, location: str) -> None:
    UploadJournal(tmp_path, location).keep("a", DIGEST, SavedUpload(location, 5))
    assert file_of(tmp_path)
    assert UploadJournal(tmp_path, TARGET).recall("a", DIGEST) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("age_s", "kept"), [(0, True), (23.9 * 3600, True), (24.1 * 3600, False), (-9e9, True)])
def test_what_is_older_than_a_day_is_dropped_and_a_clock_set_back_makes_nothing_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_s: float, *, kept: bool
) -> None:
    UploadJournal(tmp_path, TARGET).keep("a", DIGEST, SAVED)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + age_s)
    found = UploadJournal(tmp_path, TARGET).recall("a", DIGEST)
    assert found == (SAVED if kept else None)
    assert bool(list(tmp_path.iterdir())) == kept


#: In the year 2100: what is dropped is not dropped for its age.
FAR_AWAY = 4_102_444_800
GARBAGE = [
    b"",
    b"\0" * 200,
    b"[]",
    b"null",
    b'"text"',
    b"{",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"location": "x"}',
    *(
        json.dumps({"location": LOCATION, "offset": 5, "time": FAR_AWAY} | odd).encode()
        for odd in (
            {"offset": -1},
            {"offset": "many"},
            {"offset": None},
            {"offset": float("inf")},
            {"offset": float("nan")},
            {"time": float("nan")},
            {"time": "now"},
            {"location": {"a": 1}},
            {"location": None},
            {"location": "https://[::/"},
            {"location": "https://registry.example:99999/"},
            {"location": "/relative"},
        )
    ),
    json.dumps({"location": LOCATION + "x" * 100_000, "offset": 5, "time": FAR_AWAY}).encode(),
]


@pytest.mark.parametrize("data", GARBAGE, ids=[repr(data[-60:]) for data in GARBAGE])
def test_garbage_is_dropped(tmp_path: Path, data: bytes) -> None:
    UploadJournal(tmp_path, TARGET).keep("a", DIGEST, SAVED)
    file_of(tmp_path).write_bytes(data)
    journal = UploadJournal(tmp_path, TARGET)
    assert journal.recall("a", DIGEST) is None
    assert list(tmp_path.iterdir()) == []
    journal.keep("a", DIGEST, SAVED)
    assert UploadJournal(tmp_path, TARGET).recall("a", DIGEST) == SAVED


def test_a_directory_in_the_place_of_a_file_does_no_harm(tmp_path: Path) -> None:
    UploadJournal(tmp_path, TARGET).keep("a", DIGEST, SAVED)
    path = file_of(tmp_path)
    path.unlink()
    path.mkdir()
    journal = UploadJournal(tmp_path, TARGET)
    assert journal.recall("a", DIGEST) is None
    # It cannot be written; then it is known for this run alone.
    journal.keep("a", DIGEST, SAVED)
    assert journal.recall("a", DIGEST) == SAVED
    journal.forget("a", DIGEST)


# --- chunks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "size", "limit", "chunk"),
    [
        (None, 1024 * MIB, None, None),
        (None, 1024 * MIB + 1, None, 256 * MIB),
        (None, 100 * MIB, 64 * MIB, 64 * MIB),
        (None, 64 * MIB, 64 * MIB, None),
        (None, 2048 * MIB, 512 * MIB, 256 * MIB),
        (64 * MIB, 64 * MIB, None, None),
        (64 * MIB, 64 * MIB + 1, None, 64 * MIB),
        (64 * MIB, 64 * MIB + 1, MIB, MIB),
        (1, 2, None, 1),
        (0, 9999 * MIB, None, None),
        (0, 9999 * MIB, MIB, None),
    ],
)
def test_the_chunk_for_a_blob(given: int | None, size: int, limit: int | None, chunk: int | None) -> None:
    assert Chunking.of(given).chunk_for(size, limit) == chunk


# --- the body --------------------------------------------------------------------------------------------------


class Source:
    """Opens some bytes as a blob that is verified while it is read."""

    def __init__(self, data: bytes, digest: Digest | None = None) -> None:
        self.data = data
        self.blob = Descriptor("x", digest or Digest.of(data), len(data))
        self.opened = self.closed = 0

    @contextmanager
    def open(self, offset: int) -> Iterator[BlobStream]:
        assert offset == 0
        self.opened += 1
        try:
            yield VerifiedStream(io.BytesIO(self.data), self.blob)
        finally:
            self.closed += 1


class Told:
    """Adds up what a body says that it sent."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, size: int) -> None:
        self.bytes += size


def drained(body: UploadBody, block: int = 7) -> bytes:
    """Read a body as http.client does."""
    return b"".join(iter(lambda: body.read(block), b""))


def read_all(body: UploadBody) -> None:
    """Read what there is of a part, and the rest."""
    if body.tell() < len(body):
        drained(body)
    body.read_to_end()


@given(
    data=st.binary(min_size=1, max_size=300),
    start=st.integers(0, 300),
    parts=st.lists(st.tuples(st.integers(1, 120), st.lists(st.integers(0, 120), max_size=3)), max_size=12),
    block=st.integers(1, 50),
)
def test_parts_follow_each_other_whatever_is_sent_again(
    data: bytes, start: int, parts: list[tuple[int, list[int]]], block: int
) -> None:
    """Any cut, any rewinds within the parts: the parts are the content from `start` on, and all of it is hashed."""
    start = min(start, len(data))
    source, told, sent = Source(data), Told(), bytearray()
    with UploadBody(source.open, told, start) as body:
        for size, rewinds in parts:
            wanted = min(size, len(data) - start - len(sent))
            if not wanted:
                break
            body.part(wanted)
            assert len(body) == wanted
            for part_of_it in rewinds:
                read = body.read(max(1, min(part_of_it, wanted)))
                assert body.tell() == len(read)
                assert data[start + len(sent) :].startswith(read)
                body.seek(0)
                assert body.tell() == 0
                assert told.bytes == len(sent)
            got = drained(body, block)
            assert len(got) == wanted == body.tell()
            sent += got
            assert told.bytes == len(sent)
        body.read_to_end()
    assert data[start:].startswith(bytes(sent))
    assert told.bytes == len(sent)
    assert source.opened == source.closed


@pytest.mark.parametrize("start", [0, 1, 50, 99, 100])
def test_a_wrong_byte_is_met_wherever_sending_begins(start: int) -> None:
    data = bytes(range(100))
    source = Source(data, Digest.of(data[:10] + b"?" + data[11:]))
    with UploadBody(source.open, Told(), start) as body:
        body.part(min(30, 100 - start))
        with pytest.raises(DigestMismatchError):
            read_all(body)
    assert source.opened == source.closed == 1


def test_what_was_read_and_not_accepted_is_taken_back_when_it_fails() -> None:
    source, told = Source(bytes(100)), Told()

    def send() -> None:
        with UploadBody(source.open, told) as body:
            body.part(40)
            drained(body)
            body.part(40)
            body.read(15)
            raise OSError("broke")

    with pytest.raises(OSError, match="broke"):
        send()
    assert told.bytes == 40
    assert source.closed == 1


@pytest.mark.parametrize("place", [(1, 0), (0, 1), (0, 2), (-1, 2)])
def test_a_body_can_only_go_back_to_the_start_of_its_part(place: tuple[int, int]) -> None:
    with UploadBody(Source(b"x").open, Told()) as body, pytest.raises(ValueError, match="rewound"):
        body.seek(*place)
