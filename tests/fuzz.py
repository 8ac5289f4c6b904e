"""Fuzzing of every parser that reads what others wrote; `make soak` runs it for as long as it is told to.

With atheris installed each target is fuzzed by coverage, in a process of its own; without it the seeds are mutated
at random, by a seeded generator. Either way a parser may only understand its input or refuse it with one of our
errors: anything else is a crash and ends the run.
"""

import argparse
import importlib
import importlib.util
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bundler.bundle.lock import BundleLock
from bundler.errors import AirgapSyncError, BadManifestError
from bundler.k3s.hosts import NodeSettings, render
from bundler.k3s.registries import RegistriesFile
from bundler.k3s.releases import parse_release_list
from bundler.k3s.version import K3sVersion
from bundler.layout.store import Layout
from bundler.oci import mediatype
from bundler.oci.digest import Digest
from bundler.oci.manifest import Index, parse, parse_json
from bundler.oci.platform import Platform
from bundler.oci.reference import Reference
from bundler.oci.target import Target
from bundler.registry.answer import read_error, retry_after_s
from bundler.registry.challenge import parse_challenges
from bundler.registry.token import Token
from bundler.url import redact, resolve

PROJECT = Path(__file__).resolve().parents[1]
VERSION = K3sVersion.parse("v1.32.3+k3s1")
DIGEST = "sha256:" + "0" * 64
MAX_MESSAGE_LENGTH = 2000

#: Returns whether the input was understood.
Fuzzed = Callable[[bytes], bool]


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _header(data: bytes) -> str:
    """Give bytes as they come out of an HTTP header."""
    return data.decode("latin-1").replace("\r", "").replace("\n", "")


def _is_one_line(text: str) -> bool:
    """Tell whether any terminal and any JSON document can take a text."""
    text.encode()
    return not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", text)


def _refusing(parser: Callable[[bytes], object]) -> Fuzzed:
    """Make a target of a parser: our own errors are its right to refuse."""

    def target(data: bytes) -> bool:
        refusal = ""
        try:
            parser(data)
        except AirgapSyncError as error:
            refusal = error.message
        # A message is one line that any terminal can take, and no copy of the input.
        assert _is_one_line(refusal), refusal
        assert len(refusal) < MAX_MESSAGE_LENGTH
        return not refusal

    return target


def _reference(data: bytes) -> None:
    found = Reference.parse(_text(data))
    assert Reference.parse(str(found)) == found


def _digest(data: bytes) -> None:
    found = Digest.parse(_text(data))
    assert str(found) == _text(data)
    assert "/" not in found.algorithm + found.hex


def _manifest(data: bytes) -> None:
    kind = mediatype.ACCEPT[len(data) % len(mediatype.ACCEPT)]
    try:
        found = parse(data, kind)
    except BadManifestError:
        found = parse(data, "")
    assert found.raw == data
    if isinstance(found, Index):
        for child in found.manifests:
            str(child.platform)
        trimmed = found.trimmed(found.manifests[:1])
        # What we write ourselves must be as good as what we read.
        assert parse(trimmed.raw, trimmed.media_type).digest == trimmed.digest


def _platform(data: bytes) -> None:
    document = parse_json(data, "config")
    found = Platform.from_dict(document) if isinstance(document, dict) else None
    if found is not None:
        found.rank(found)
        str(found)


def _lock(data: bytes) -> None:
    found = BundleLock.parse(data, "bundle.lock.json")
    assert BundleLock.parse(found.to_bytes(), "bundle.lock.json") == found
    found.names()


def _index(data: bytes) -> None:
    with _scratch() as directory:
        (directory / "index.json").write_bytes(data)
        for root in Layout(directory).roots():
            str(root.reference)


def _registries(data: bytes) -> None:
    found = RegistriesFile.parse(data.decode(errors="surrogateescape") if len(data) % 2 else _text(data), "r.yaml")
    nodes = render(found, NodeSettings(embedded=len(data) % 3 == 0, default_endpoint=len(data) % 5 != 0))
    for registry in ("docker.io", "registry.example:5000"):
        for endpoint in nodes.endpoints_for(registry):
            endpoint.repository("rancher/mirrored-pause")


def _location(data: bytes) -> None:
    redact(resolve("https://registry.example/v2/", _header(data)))


def _token(data: bytes) -> None:
    Token.from_answer(data, "https://auth.example/token")


def _errors(data: bytes) -> None:
    assert _is_one_line(read_error(data).words)


def _retry_after(data: bytes) -> None:
    # What ends in a report must be JSON, which knows no infinity.
    json.dumps(retry_after_s({"Retry-After": _header(data)}), allow_nan=False)


_SCRATCH: list[Path] = []


@contextmanager
def _scratch() -> Iterator[Path]:
    """Give a directory with an oci-layout, made once in a process."""
    if not _SCRATCH:
        _SCRATCH.append(Path(tempfile.mkdtemp(prefix="fuzz-")))
        (_SCRATCH[0] / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    yield _SCRATCH[0]


TARGETS: Mapping[str, Fuzzed] = {
    name: _refusing(parser)
    for name, parser in {
        "reference": _reference,
        "digest": _digest,
        "target": lambda data: Target.parse(_text(data)),
        "manifest": _manifest,
        "platform": _platform,
        "lock": _lock,
        "index": _index,
        "registries": _registries,
        "challenge": lambda data: parse_challenges(_header(data)),
        "location": _location,
        "token": _token,
        "errors": _errors,
        "retry-after": _retry_after,
        "k3s-list": lambda data: parse_release_list(VERSION, data),
    }.items()
}

_DESCRIPTOR = {"mediaType": mediatype.OCI_MANIFEST, "digest": DIGEST, "size": 2}
_NAMED = {**_DESCRIPTOR, "annotations": {"io.containerd.image.name": "docker.io/rancher/x:1"}}
_IMAGE = {
    "reference": "docker.io/rancher/x:1",
    "registry": "docker.io",
    "reasons": ["asked for by --image"],
    "media_type": mediatype.OCI_MANIFEST,
    "digest": DIGEST,
    "size_bytes": 2,
    "upstream_digest": DIGEST,
    "differs": None,
    "platforms": ["linux/amd64"],
    "platforms_missing": [],
    "blobs": 1,
    "total_bytes": 3,
}
_LOCK = {
    "apiVersion": "airgap-sync/v1",
    "kind": "BundleLock",
    "tool": {"name": "airgap-sync", "version": "0"},
    "request": {"k3s": [], "disable": [], "system_upgrade_controller": None, "images": [], "platforms": ["all"]},
    "releases": [],
    "complete": False,
    "images": [_IMAGE],
    "failed": [{"reference": "docker.io/rancher/y:1", "reasons": [], "error": "manifest-unknown"}],
}
_REGISTRIES = """\
mirrors:
  docker.io:
    endpoint: ["https://mirror.example:5000/v2/x", http://10.0.0.1]
    rewrite: {"^rancher/(.*)$": "proj/$1"}
  "*":
    endpoint: [https://any.example]
configs:
  mirror.example:5000:
    auth: {username: u, password: p}
    tls: {ca_file: /x, insecure_skip_verify: true}
"""
_DOCUMENTS: Mapping[str, tuple[object, ...]] = {
    "manifest": (
        {"schemaVersion": 2, "config": _DESCRIPTOR, "layers": [_DESCRIPTOR]},
        {"schemaVersion": 2, "manifests": [{**_DESCRIPTOR, "platform": {"os": "linux", "architecture": "arm"}}]},
    ),
    "platform": ({"os": "linux", "architecture": "arm64", "variant": "v8", "os.version": "10"},),
    "lock": (_LOCK,),
    "index": ({"schemaVersion": 2, "manifests": [_NAMED]},),
    "token": ({"token": "x", "expires_in": 300}, {"access_token": "x", "issued_at": "2026-01-01T00:00:00Z"}),
    "errors": ({"errors": [{"code": "DENIED", "message": "no", "detail": {"a": [1]}}]},),
}
_SEEDS: Mapping[str, tuple[bytes, ...]] = {
    "reference": (b"docker.io/rancher/mirrored-pause:3.6", f"[::1]:5000/a/b:c@{DIGEST}".encode(), b"busybox"),
    "digest": (DIGEST.encode(), b"sha512:" + b"a" * 128),
    "target": (b"http://harbor.example:8443/k3s/x", b"[fd00::1]:5000"),
    "registries": (_REGISTRIES.encode(), b"{}"),
    "challenge": (
        b'Bearer realm="https://a.example/token",service="b",scope="repository:a/b:pull,push", Basic realm=x',
    ),
    "location": (b"/v2/a/blobs/uploads/1?_state=x%2B&y", b"https://u:p@[::1]:443/x#y"),
    "retry-after": (b"120", b"Wed, 21 Oct 2026 07:28:00 GMT", b"Mon, 01 Jan 0001 00:00:00 -0000"),
    "k3s-list": (b"docker.io/rancher/klipper-helm:v0.9.4-build20250113\ndocker.io/rancher/mirrored-pause:3.6\n",),
}


def seeds_of(name: str) -> tuple[bytes, ...]:
    """Give valid inputs of a target."""
    written = tuple(json.dumps(document).encode() for document in _DOCUMENTS.get(name, ()))
    return (*written, *_SEEDS.get(name, ()))


# --- running ------------------------------------------------------------------------------------------------


def main(seconds: float) -> int:
    """Fuzz every target, each for its share of the time.

    Returns:
        How many inputs were tried.

    Raises:
        RuntimeError: A target crashed; the message has the input.
    """
    share = max(1.0, seconds / len(TARGETS))
    guided = importlib.util.find_spec("atheris") is not None
    return sum(_guided(name, share) if guided else _mutated(name, share) for name in TARGETS)


def _guided(name: str, seconds: float) -> int:
    """Run one target under atheris, in a process of its own: libFuzzer ends the process it runs in."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        corpus = Path(directory) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(seeds_of(name)):
            (corpus / str(number)).write_bytes(seed)
        options = [f"-max_total_time={max(1, round(seconds))}", "-print_final_stats=1", "-max_len=8192", "-timeout=10"]
        options += ["-rss_limit_mb=1024", f"-artifact_prefix={directory}/", str(corpus)]
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", "--target", name, *options],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            crashes = [path.read_bytes() for path in Path(directory).iterdir() if path.is_file()]
            raise RuntimeError(f"{name} crashed on {crashes[:1]!r:.2000}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    found = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr + done.stdout)
    if found is None:
        raise RuntimeError(f"{name}: atheris told no figures:\n{done.stderr[-4000:]}")
    return int(found[1])


def _fuzz_one(name: str, options: list[str]) -> None:
    # Not among the dependencies: used where it is installed.
    atheris = importlib.import_module("atheris")
    # Only what is imported under its eyes can guide it: everything of ours once more.
    for module in [module for module in sys.modules if module.partition(".")[0] == "bundler"]:
        del sys.modules[module]
    with atheris.instrument_imports(include=["bundler"]):
        target = importlib.import_module("tests.fuzz").TARGETS[name]

    def once(data: bytes) -> None:
        target(data)

    atheris.Setup([sys.argv[0], *options], once)
    atheris.Fuzz()


def _mutated(name: str, seconds: float) -> int:
    """Run one target on mutations of its seeds."""
    generator = random.Random(name)
    seeds, target = seeds_of(name), TARGETS[name]
    deadline, count = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        data = _mutate(generator, seeds)
        count += 1
        try:
            target(data)
        except Exception as error:
            raise RuntimeError(f"{name} crashed on {data!r:.2000}") from error
    return count


def _mutate(generator: random.Random, seeds: tuple[bytes, ...]) -> bytes:
    data = bytearray(generator.choice(seeds))
    for _ in range(generator.randint(1, 8)):
        start = generator.randint(0, len(data))
        end = min(len(data), start + generator.choice((0, 1, 1, 4, 16)))
        other = generator.choice(seeds)
        at = generator.randint(0, len(other))
        data[start:end] = generator.choice(
            (
                generator.randbytes(generator.randint(0, 4)),
                other[at : at + 32],
                bytes(data[start:end]) * generator.choice((2, 50)),
                generator.choice((b"1e999", b"\\ud800", b"null", b"{", b"[", b'"', b":", b",", b"\xb2", b"9" * 4400)),
            )
        )
    return bytes(data[:16384])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=float, default=60)
    arguments, rest = parser.parse_known_args()
    if arguments.target:
        _fuzz_one(arguments.target, rest)
    else:
        print(f"{main(arguments.seconds)} inputs tried")
