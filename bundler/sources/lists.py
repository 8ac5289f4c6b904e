"""Lists of references that a user wrote: one a line, ``#`` starts a comment."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from bundler.bundle.imageset import WantedImage
from bundler.errors import BadImageListError, BadReferenceError
from bundler.oci.reference import Reference

MAX_LIST_BYTES = 16 * 1024 * 1024


def from_arguments(references: tuple[str, ...]) -> list[WantedImage]:
    """Return the images named on the command line.

    Raises:
        BadReferenceError: One is not a reference.
    """
    return [WantedImage(Reference.parse(text), ("asked for by --image",), ("--image",)) for text in references]


def from_file(name: str, stdin: TextIO) -> list[WantedImage]:
    """Return the images of one list file.

    Args:
        name: Its path; ``-`` is standard input.
        stdin: What ``-`` reads.

    Raises:
        BadImageListError: It cannot be read.
        BadReferenceError: A line is not a reference; the message names file and line.
    """
    shown = "standard input" if name == "-" else Path(name).name
    images = []
    for number, line in enumerate(_read(name, stdin).splitlines(), start=1):
        text = _without_comment(line)
        if not text:
            continue
        try:
            reference = Reference.parse(text)
        except BadReferenceError as error:
            raise BadReferenceError(f"{shown}, line {number}: {error.message}", hint=error.hint) from error
        images.append(WantedImage(reference, (f"listed in {shown}",), (shown,)))
    return images


def _read(name: str, stdin: TextIO) -> str:
    try:
        if name == "-":
            text = stdin.read(MAX_LIST_BYTES + 1)
            text.encode()
        else:
            with Path(name).open("rb") as file:
                text = file.read(MAX_LIST_BYTES + 1).decode()
    except OSError as error:
        raise BadImageListError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeError as error:
        raise BadImageListError(f"{name} is not text in UTF-8") from error
    if len(text) > MAX_LIST_BYTES:
        raise BadImageListError(f"{name} is larger than {MAX_LIST_BYTES} bytes")
    return text.removeprefix("\ufeff")


def _without_comment(line: str) -> str:
    return line.partition("#")[0].strip()
