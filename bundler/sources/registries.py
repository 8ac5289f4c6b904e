"""Reading the user's registries.yaml."""

from __future__ import annotations

from pathlib import Path

from bundler.errors import BadRegistriesFileError
from bundler.k3s.registries import RegistriesFile


def read_registries(name: str | None) -> RegistriesFile:
    """Return the model of a registries.yaml; an empty one if no file is named.

    Raises:
        BadRegistriesFileError: It cannot be read or is malformed.
    """
    if name is None:
        return RegistriesFile.empty()
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRegistriesFileError(f"{name} cannot be read: {error}") from error
    return RegistriesFile.parse(text, name)
