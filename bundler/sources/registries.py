"""Reading the user's registries.yaml."""

from __future__ import annotations

from pathlib import Path

from bundler.errors import BadRegistriesFileError
from bundler.k3s.registries import RegistriesFile
from bundler.yamlfile import MAX_DOCUMENT_BYTES


def read_registries(name: str | None) -> RegistriesFile:
    """Return the model of a registries.yaml; an empty one if no file is named.

    Raises:
        BadRegistriesFileError: It cannot be read or is malformed.
    """
    if name is None:
        return RegistriesFile.empty()
    try:
        with Path(name).open("rb") as file:
            text = file.read(MAX_DOCUMENT_BYTES + 1).decode()
    except OSError as error:
        raise BadRegistriesFileError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadRegistriesFileError(f"{name} is not text in UTF-8") from error
    return RegistriesFile.parse(text, name)
