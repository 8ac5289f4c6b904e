"""The journal: what it believes, and what it does with a line that a crash cut off."""

from __future__ import annotations

from pathlib import Path

from bundler.layout.store import BlobStat
from bundler.oci.digest import Digest
from bundler.transfer.journal import Journal

DIGEST, OTHER = Digest.of(b"1"), Digest.of(b"2")
SEEN = BlobStat(size=5, mtime_ns=1_000_000_001)


def test_a_sealed_blob_is_believed_while_size_and_time_stay(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.seal(DIGEST, SEEN)
    journal.close()
    again = Journal(tmp_path / "journal")
    assert again.is_sealed(DIGEST, SEEN)
    assert not again.is_sealed(DIGEST, BlobStat(6, SEEN.mtime_ns))
    assert not again.is_sealed(DIGEST, BlobStat(5, SEEN.mtime_ns + 1))
    assert not again.is_sealed(OTHER, SEEN)
    again.close()


def test_lines_that_a_crash_tore_are_ignored_and_the_next_line_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.seal(DIGEST, SEEN)
    journal.close()
    path.write_bytes(path.read_bytes() + b'\0\0\xff{"sealed": "sha256:ab')
    torn = Journal(path)
    torn.seal(OTHER, SEEN)
    torn.close()
    again = Journal(path)
    assert again.is_sealed(DIGEST, SEEN)
    assert again.is_sealed(OTHER, SEEN)
    again.close()


def test_nothing_is_written_once_it_is_closed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.close()
    with (tmp_path / "other").open("wb") as other:
        journal.seal(DIGEST, SEEN)
        assert other.tell() == 0
    assert (tmp_path / "other").read_bytes() == b""
    assert (tmp_path / "journal").read_bytes() == b""
