"""Image layers: gzipped tars of files, tiny made-up ones and big ones of this machine's files."""

import functools
import hashlib
import io
import os
import stat
import tarfile
import tempfile
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, count
from pathlib import Path, PurePosixPath
from typing import IO

_CHUNK = 1 << 20
# Only so much of what has been written may still sit in the compressor, unseen, when sizes are compared.
_UNSEEN = 256 << 10
# About what the header of a tar entry compresses to, at most.
_ENTRY = 150
# How much of a layer may be missing to the wanted size.
_TOLERANCE = 0.03
SOURCES = (Path("/usr/bin"), Path("/usr/lib"), Path("/usr/share"))


@dataclass(frozen=True)
class Layer:
    """A gzipped tar in memory, with the digest that an image config knows it by."""

    data: bytes
    diff_id: str


@dataclass(frozen=True)
class LayerFile:
    """A gzipped tar in a file."""

    path: Path
    digest: str
    size: int
    diff_id: str


class _LayerWriter:
    """Writes a gzipped tar, the same bytes for the same entries, and takes its digests on the way."""

    def __init__(self, output: IO[bytes]) -> None:
        self.size = 0
        self._output = output
        self._content = hashlib.sha256()
        self._compressed = hashlib.sha256()
        # 15 bits of window plus 16 for the gzip container, which then carries neither name nor time.
        self._compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
        self._directories: set[PurePosixPath] = set()

    @property
    def digest(self) -> str:
        return "sha256:" + self._compressed.hexdigest()

    @property
    def diff_id(self) -> str:
        return "sha256:" + self._content.hexdigest()

    def add(self, name: str, size: int, chunks: Iterable[bytes], *, mode: int = 0o644) -> None:
        """Add a file, and the directories above it before it."""
        for directory in reversed(PurePosixPath(name).parents[:-1]):
            if directory not in self._directories:
                self._directories.add(directory)
                self._header(f"{directory}/", tarfile.DIRTYPE, 0o755)
        self._header(name, tarfile.REGTYPE, mode, size)
        written = 0
        for chunk in chunks:
            self._write(chunk)
            written += len(chunk)
        # A file may have shrunk since it was listed; the header has promised the size already.
        self._write(bytes(size - written) + bytes(-size % tarfile.BLOCKSIZE))

    def flush(self) -> None:
        """Push all that was added through the compressor, for `size` to be exact."""
        self._emit(self._compressor.flush(zlib.Z_SYNC_FLUSH))

    def finish(self) -> None:
        """Write the end of the archive."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._emit(self._compressor.flush())

    def _header(self, name: str, kind: bytes, mode: int, size: int = 0) -> None:
        entry = tarfile.TarInfo(name)  # its owner is 0:0 and its time 0 already
        entry.type, entry.mode, entry.size = kind, mode, size
        self._write(entry.tobuf(tarfile.GNU_FORMAT))

    def _write(self, data: bytes) -> None:
        self._content.update(data)
        self._emit(self._compressor.compress(data))

    def _emit(self, data: bytes) -> None:
        self._compressed.update(data)
        self._output.write(data)
        self.size += len(data)


def gzip_layer(files: Mapping[str, bytes]) -> Layer:
    """Make a layer of the given files by relative path."""
    output = io.BytesIO()
    writer = _LayerWriter(output)
    for name, data in sorted(files.items()):
        writer.add(name, len(data), [data])
    writer.finish()
    return Layer(output.getvalue(), writer.diff_id)


def write_layer(seed: str, size: int, directory: Path) -> LayerFile:
    """Make a layer of files of this machine that has about the wanted compressed size.

    Args:
        seed: Decides which files are taken. Layers of different seeds are always different.
        size: Wanted size in bytes, missed by a few per cent at most from about 10 KB on.
        directory: Gets the layer, as a file named by its digest.
    """
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".new-", delete=False) as output:
        writer = _LayerWriter(output)
        label = f"{seed}\n".encode()
        writer.add("etc/layer-release", len(label), [label])
        for source in _slices(seed):
            if size - writer.size < _UNSEEN:
                writer.flush()
            # Taking no more bytes than may come out at the other end never overshoots, and as they
            # compress to less than half of that, a few rounds are enough to get near the end.
            missing = size - writer.size - _ENTRY
            if missing <= max(0, size * _TOLERANCE - _ENTRY):
                break
            length = min(source.size - source.start, missing)
            writer.add(source.name, length, _read(source, length), mode=source.mode)
        writer.finish()
    path = directory / writer.digest.removeprefix("sha256:")
    Path(output.name).replace(path)
    return LayerFile(path, writer.digest, writer.size, writer.diff_id)


@dataclass(frozen=True)
class _Source:
    path: str
    name: str
    size: int
    mode: int
    start: int = 0


def _slices(seed: str) -> Iterator[_Source]:
    """Give this machine's files from a place that the seed decides, around and around."""
    files, ends = _files()
    offset = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]) % ends[-1]
    first = bisect_right(ends, offset)
    start = offset - (ends[first - 1] if first else 0)
    for number in count():
        turn, index = divmod(first + number, len(files))
        path, size, mode = files[index]
        name = path.lstrip("/")
        # Names must be unique within a layer, also when it is bigger than all files together.
        yield _Source(path, f"again-{turn}/{name}" if turn else name, size, mode, 0 if number else start)


@functools.cache
def _files() -> tuple[list[tuple[str, int, int]], list[int]]:
    """List path, size and mode of this machine's files, and where each ends if laid end to end."""
    found = []
    for source in SOURCES:
        for directory, below, names in os.walk(source):
            # Python's compiled files come and go as programs run.
            below[:] = sorted(name for name in below if name != "__pycache__")
            for name in sorted(names):
                # ".wh." would delete files of lower layers.
                if not name.isascii() or not name.isprintable() or name.startswith(".wh."):
                    continue
                path = os.path.join(directory, name)  # noqa: PTH118 - Path is slow for 100,000 files
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode) and status.st_size:
                    found.append((path, status.st_size, 0o755 if status.st_mode & 0o100 else 0o644))
    return found, list(accumulate(size for _, size, _ in found))


def _read(source: _Source, length: int) -> Iterator[bytes]:
    try:
        with open(source.path, "rb") as file:
            file.seek(source.start)
            while length and (chunk := file.read(min(length, _CHUNK))):
                length -= len(chunk)
                yield chunk
    except OSError:
        return  # removed since it was listed, or not for this user: reads as zeros
