"""A strict reader of Plans: what the API server would refuse, or drop without a word, fails here.

Written from what is known of the fields, each with the release of the controller that brought it; it is no copy of
the CustomResourceDefinition, and knows only the part of it that a Plan of ours could use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Check: TypeAlias = Callable[[Any, str], None]
Fields: TypeAlias = Mapping[str, tuple[Check, tuple[int, ...]]]

FIRST = (0, 1, 0)
DAY_NAMES = (
    ("0", "su", "sun", "sunday"),
    ("1", "mo", "mon", "monday"),
    ("2", "tu", "tue", "tuesday"),
    ("3", "we", "wed", "wednesday"),
    ("4", "th", "thu", "thursday"),
    ("5", "fr", "fri", "friday"),
    ("6", "sa", "sat", "saturday"),
)


class NotAPlanError(AssertionError):
    """The object is no Plan that this release of the controller takes."""


def check_plan(plan: Any, release: tuple[int, ...]) -> None:
    """Check a whole Plan.

    Args:
        plan: The object, as it was read from YAML.
        release: The controller's release, as three numbers.

    Raises:
        NotAPlanError: A field is unknown to that release, has the wrong type, or a required one is missing.
    """
    _object(
        plan,
        "plan",
        {
            "apiVersion": (_one_of("upgrade.cattle.io/v1"), FIRST),
            "kind": (_one_of("Plan"), FIRST),
            "metadata": (_metadata, FIRST),
            "spec": (lambda spec, at: _spec(spec, at, release), FIRST),
        },
        release,
        required=("apiVersion", "kind", "metadata", "spec"),
    )


def _spec(spec: Any, at: str, release: tuple[int, ...]) -> None:
    fields: Fields = {
        "concurrency": (_integer, FIRST),
        "version": (_text, FIRST),
        "channel": (_text, FIRST),
        "upgrade": (_container, FIRST),
        "prepare": (_container, FIRST),
        "nodeSelector": (_selector, FIRST),
        "serviceAccountName": (_text, FIRST),
        "cordon": (_boolean, FIRST),
        "drain": (_drain, FIRST),
        "tolerations": (_list_of(_toleration), FIRST),
        "secrets": (_list_of(_secret), FIRST),
        "jobActiveDeadlineSecs": (_integer, (0, 12, 0)),
        "imagePullSecrets": (_list_of(_local_reference), (0, 13, 2)),
        "exclusive": (_boolean, (0, 13, 2)),
        "window": (_window, (0, 15, 0)),
        "postCompleteDelay": (_text, (0, 15, 0)),
        "priorityClassName": (_text, (0, 16, 1)),
        "postCompleteLabels": (_text_map, (0, 19, 2)),
    }
    _object(spec, at, fields, release, required=("upgrade",))
    if not spec.get("version") and not spec.get("channel"):
        raise NotAPlanError(f"{at}: neither version nor channel")
    if spec.get("concurrency", 0) < 1:
        raise NotAPlanError(f"{at}.concurrency: without it nothing is ever started")


def _object(
    value: Any, at: str, fields: Fields, release: tuple[int, ...] = FIRST, required: tuple[str, ...] = ()
) -> None:
    if not isinstance(value, dict):
        raise NotAPlanError(f"{at}: not an object")
    for name in required:
        if name not in value:
            raise NotAPlanError(f"{at}: no {name}")
    for name, part in value.items():
        if name not in fields:
            raise NotAPlanError(f"{at}.{name}: unknown field")
        check, since = fields[name]
        if release < since:
            raise NotAPlanError(f"{at}.{name}: unknown field before {since}")
        check(part, f"{at}.{name}")


def _fields(**checks: Check) -> Fields:
    return {name: (check, FIRST) for name, check in checks.items()}


def _typed(kind: type, what: str) -> Check:
    def check(value: Any, at: str) -> None:
        # A boolean is an int to Python alone.
        if type(value) is not kind:
            raise NotAPlanError(f"{at}: {value!r} is not {what}")

    return check


_text = _typed(str, "text")
_integer = _typed(int, "a whole number")
_boolean = _typed(bool, "true or false")


def _list_of(inner: Check, at_least: int = 0) -> Check:
    def check(value: Any, at: str) -> None:
        if not isinstance(value, list):
            raise NotAPlanError(f"{at}: not a list")
        if len(value) < at_least:
            raise NotAPlanError(f"{at}: fewer than {at_least}")
        for number, item in enumerate(value):
            inner(item, f"{at}[{number}]")

    return check


def _one_of(*allowed: str) -> Check:
    def check(value: Any, at: str) -> None:
        if value not in allowed or not isinstance(value, str):
            raise NotAPlanError(f"{at}: {value!r} is none of {allowed}")

    return check


def _matching(pattern: str) -> Check:
    def check(value: Any, at: str) -> None:
        _text(value, at)
        if not re.fullmatch(pattern, value):
            raise NotAPlanError(f"{at}: {value!r} does not match {pattern}")

    return check


def _text_map(value: Any, at: str) -> None:
    if not isinstance(value, dict):
        raise NotAPlanError(f"{at}: not an object")
    for name, part in value.items():
        _text(part, f"{at}.{name}")


def _text_list(value: Any, at: str) -> None:
    _list_of(_text)(value, at)


def _metadata(value: Any, at: str) -> None:
    fields = _fields(
        name=_matching(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?"),
        namespace=_one_of("system-upgrade"),
        labels=_text_map,
        annotations=_text_map,
    )
    _object(value, at, fields, required=("name", "namespace"))


def _container(value: Any, at: str) -> None:
    volume = _fields(name=_text, source=_text, destination=_text)
    fields = _fields(
        image=_text,
        command=_text_list,
        args=_text_list,
        envs=_list_of(lambda item, where: _object(item, where, _fields(name=_text, value=_text), required=("name",))),
        volumes=_list_of(lambda item, where: _object(item, where, volume, required=tuple(volume))),
    )
    _object(value, at, fields, required=("image",))


def _selector(value: Any, at: str) -> None:
    _object(value, at, _fields(matchLabels=_text_map, matchExpressions=_list_of(_requirement)))


def _requirement(value: Any, at: str) -> None:
    fields = _fields(key=_text, operator=_one_of("In", "NotIn", "Exists", "DoesNotExist"), values=_text_list)
    _object(value, at, fields, required=("key", "operator"))
    if value["operator"].endswith("In") != bool(value.get("values")):
        raise NotAPlanError(f"{at}: In and NotIn have values, the others have none")


def _toleration(value: Any, at: str) -> None:
    fields = _fields(
        key=_text,
        operator=_one_of("Exists", "Equal"),
        value=_text,
        effect=_one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
        tolerationSeconds=_integer,
    )
    _object(value, at, fields)
    if not value.get("key") and value.get("operator") != "Exists":
        raise NotAPlanError(f"{at}: without a key only Exists has a meaning")


def _secret(value: Any, at: str) -> None:
    fields = _fields(name=_text, path=_text, ignoreUpdates=_boolean, defaultMode=_integer)
    _object(value, at, fields, required=("name", "path"))


def _local_reference(value: Any, at: str) -> None:
    _object(value, at, _fields(name=_text))


def _drain(value: Any, at: str) -> None:
    fields = _fields(
        gracePeriod=_integer,
        deleteLocalData=_boolean,
        deleteEmptydirData=_boolean,
        ignoreDaemonSets=_boolean,
        force=_boolean,
        disableEviction=_boolean,
        skipWaitForDeleteTimeout=_integer,
        podSelector=_selector,
    )
    _object(value, at, fields)


def _window(value: Any, at: str) -> None:
    day = _one_of(*(name for names in DAY_NAMES for name in names))
    # The controller takes more forms; these two are ours.
    time = _matching(r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?")
    fields = _fields(days=_list_of(day, at_least=1), startTime=time, endTime=time, timeZone=_text)
    _object(value, at, fields, required=("days", "startTime", "endTime"))
