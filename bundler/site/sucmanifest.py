"""The manifest that a release of system-upgrade-controller brings along, fitted to a site.

Only four values change: the image of the Deployment, and in the ConfigMap the kubectl image, the jobs' pull policy
and their deadline. Everything else stays as data what it was; comments are lost. Permissions and arguments belong to
one release, so a manifest of another than the bundle's is refused.

Source: rancher/system-upgrade-controller, ``manifests/system-upgrade-controller.yaml`` and its release asset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bundler import yamlfile
from bundler.errors import BadReferenceError, BadSucManifestError
from bundler.oci.reference import Reference
from bundler.site.controller import CONFIG_MAP, CONTROLLER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bundler.site.controller import ControllerSettings
    from bundler.yamlfile import Path, YamlDocument


@dataclass(frozen=True, slots=True)
class _Found:
    """An object and where it stands: a document of its own, or an item of a List."""

    document: YamlDocument
    path: Path
    data: dict[str, Any]

    def place(self, *steps: str | int) -> str:
        return self.document.place((*self.path, *steps))

    def mapping(self, *steps: str | int) -> dict[str, Any]:
        """Return a mapping within the object; the document's own, so that a change in it counts."""
        path = (*self.path, *steps)
        value = self.document.mapping(path)
        if not value:
            raise BadSucManifestError(f"{self.document.place(path)}: {_name(path)} is empty or missing")
        return value


def patch(text: str, name: str, settings: ControllerSettings) -> str:
    """Return a manifest with the settings of a site; the same input gives the same text.

    Args:
        text: The manifest, one or several YAML documents; objects in a ``List`` count too.
        name: What messages call it, usually the path as the user wrote it.
        settings: What to put in.

    Raises:
        BadSucManifestError: It is not YAML, or lacks the Deployment ``system-upgrade-controller`` or the ConfigMap
            ``default-controller-env``, or has one of them twice, or its container is of another release than the
            image in the settings, or sets a value by itself.
    """
    documents = yamlfile.load_all(text, name, error=BadSucManifestError)
    objects = [found for document in documents for found in _objects(document, ())]
    deployment = _the_one(objects, "Deployment", CONTROLLER, name)
    config_map = _the_one(objects, "ConfigMap", CONFIG_MAP, name)
    container = _container(deployment)
    _refuse_other_release(deployment, container, settings)
    _refuse_own_values(deployment, container, settings)
    deployment.mapping(*container)["image"] = settings.image_name
    config_map.mapping("data").update(settings.environment)
    return yamlfile.dump_all(document.data for document in documents)


def _objects(document: YamlDocument, path: Path) -> Iterator[_Found]:
    data = document.get(path)
    if not isinstance(data, dict):
        raise document.error_at(path, "an object must be a mapping (KEY: VALUE)")
    kind = data.get("kind")
    if isinstance(kind, str) and kind.endswith("List") and "items" in data:
        for at in range(len(document.sequence((*path, "items")))):
            yield from _objects(document, (*path, "items", at))
    else:
        yield _Found(document, path, data)


def _the_one(objects: Sequence[_Found], kind: str, name: str, file: str) -> _Found:
    found = [
        item
        for item in objects
        if item.data.get("kind") == kind and item.document.mapping((*item.path, "metadata")).get("name") == name
    ]
    if not found:
        raise BadSucManifestError(f"{file}:1: there is no {kind} {name} in it")
    if len(found) > 1:
        first, second = found[:2]
        raise BadSucManifestError(
            f"{second.place('kind')}: a second {kind} {name}; the first is at {first.place('kind')}"
        )
    return found[0]


def _container(deployment: _Found) -> Path:
    """Return the path of the controller's container: the one of its name, or the only one."""
    path: Path = ("spec", "template", "spec", "containers")
    containers = deployment.document.sequence((*deployment.path, *path))
    names = [deployment.mapping(*path, at).get("name") for at in range(len(containers))]
    if len(names) == 1:
        return (*path, 0)
    if names.count(CONTROLLER) != 1:
        raise BadSucManifestError(f"{deployment.place(*path)}: no single container {CONTROLLER} in the Deployment")
    return (*path, names.index(CONTROLLER))


def _refuse_other_release(deployment: _Found, container: Path, settings: ControllerSettings) -> None:
    """Refuse a manifest whose container does not have the tag of the bundle's controller, wherever it comes from."""
    written = deployment.mapping(*container).get("image")
    try:
        tag = Reference.parse(written).tag if isinstance(written, str) else None
    except BadReferenceError:
        tag = None
    if tag == settings.image.tag:
        return
    found = f"is of {CONTROLLER} {tag}" if tag else f"names no release of {CONTROLLER}"
    raise BadSucManifestError(
        f"{deployment.place(*container, 'image')}: the manifest {found}, and the bundle has {settings.image.tag}",
        hint=f"Take system-upgrade-controller.yaml from the assets of release {settings.image.tag}: in the project's "
        "git tree it names an older image.",
    )


def _refuse_own_values(deployment: _Found, container: Path, settings: ControllerSettings) -> None:
    """Refuse values in the container's own environment: they hide those of the ConfigMap."""
    path = (*container, "env")
    for at in range(len(deployment.document.sequence((*deployment.path, *path)))):
        key = deployment.mapping(*path, at).get("name")
        if key in settings.environment:
            raise BadSucManifestError(
                f"{deployment.place(*path, at)}: the container sets {key} itself, so the ConfigMap's does not count",
                hint=f"Take {key} out of the Deployment: it belongs into the ConfigMap {CONFIG_MAP}.",
            )


def _name(path: Path) -> str:
    return ".".join(str(step) for step in path)
