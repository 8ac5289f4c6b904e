"""Plans: the fields each controller knows, who is upgraded, and time windows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler import yamlfile
from bundler.errors import BadSucManifestError, FeatureMissingError
from bundler.k3s import suc
from bundler.k3s.version import K3sVersion
from bundler.site.plans import DAYS, PlanSettings, Window, plan_objects
from tests.support.plan_crd import NotAPlanError, check_plan

VERSION = K3sVersion.parse("v1.32.3+k3s1")
WINDOW = Window.parse("mon-fri 22:00-04:00 Europe/Berlin")


@pytest.mark.parametrize("release", suc.suc_versions(), ids=lambda release: release.version)
def test_plans_have_only_fields_that_the_release_knows(release: suc.SucRelease) -> None:
    window = WINDOW if release.order >= (0, 15, 0) else None
    plans = plan_objects(VERSION, PlanSettings(3, 1800, window), release)
    for plan in plans:
        check_plan(plan, release.order)
        assert ("jobActiveDeadlineSecs" in plan["spec"]) == (release.order >= (0, 12, 0))
        assert ("window" in plan["spec"]) == (window is not None)


def test_what_is_written_is_what_was_meant() -> None:
    plans = plan_objects(VERSION, PlanSettings(3, 0, WINDOW), None)
    text = yamlfile.dump_all(plans)
    read = [document.data for document in yamlfile.load_all(text, "plans.yaml", error=BadSucManifestError)]
    assert read == plans
    for plan in read:
        check_plan(plan, suc.newest().order)
    assert "startTime: '22:00'" in text


def test_the_servers_plan() -> None:
    servers, _ = plan_objects(VERSION, PlanSettings(5, 1800), suc.newest())
    assert servers["metadata"] == {"name": "server-plan", "namespace": "system-upgrade"}
    assert servers["spec"] == {
        "concurrency": 1,
        "cordon": True,
        "version": "v1.32.3+k3s1",
        "nodeSelector": {
            "matchExpressions": [{"key": "node-role.kubernetes.io/control-plane", "operator": "In", "values": ["true"]}]
        },
        "serviceAccountName": "system-upgrade",
        "tolerations": [{"operator": "Exists"}],
        "upgrade": {"image": "docker.io/rancher/k3s-upgrade"},
        "jobActiveDeadlineSecs": 1800,
    }


def test_the_agents_plan_waits_for_the_servers() -> None:
    servers, agents = plan_objects(VERSION, PlanSettings(5, 1800, WINDOW), suc.newest())
    assert agents["metadata"] == {"name": "agent-plan", "namespace": "system-upgrade"}
    spec = agents["spec"]
    assert spec["prepare"] == {"image": "docker.io/rancher/k3s-upgrade", "args": ["prepare", "server-plan"]}
    assert spec["prepare"]["args"][1] == servers["metadata"]["name"]
    assert spec["version"] == servers["spec"]["version"]
    assert spec["concurrency"] == 5
    assert spec["nodeSelector"]["matchExpressions"] == [
        {"key": "node-role.kubernetes.io/control-plane", "operator": "DoesNotExist"}
    ]
    same = {"cordon", "tolerations", "upgrade", "serviceAccountName", "jobActiveDeadlineSecs", "window"}
    assert {name: spec[name] for name in same} == {name: servers["spec"][name] for name in same}


def test_a_window_needs_a_controller_that_knows_it() -> None:
    with pytest.raises(FeatureMissingError, match=r"v0\.14\.2 knows no time window.*v0\.15\.0"):
        plan_objects(VERSION, PlanSettings(window=WINDOW), suc.find("v0.14.2"))
    assert plan_objects(VERSION, PlanSettings(window=WINDOW), None)[0]["spec"]["window"] == {
        "days": ["mon", "tue", "wed", "thu", "fri"],
        "startTime": "22:00",
        "endTime": "04:00",
        "timeZone": "Europe/Berlin",
    }


@pytest.mark.parametrize(("concurrency", "deadline_s"), [(0, 900), (-1, 900), (1, -1)])
def test_settings_out_of_range(concurrency: int, deadline_s: int) -> None:
    with pytest.raises(ValueError, match=r"at least one|negative"):
        PlanSettings(concurrency, deadline_s)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mon-fri 22:00-04:00 Europe/Berlin", Window(DAYS[:5], "22:00", "04:00", "Europe/Berlin")),
        ("  sun,mon  01:30-05:00  UTC ", Window(("mon", "sun"), "01:30", "05:00", "UTC")),
        ("daily 00:00-23:59", Window(DAYS, "00:00", "23:59", "UTC")),
        ("DAILY 00:00-01:00", Window(DAYS, "00:00", "01:00", "UTC")),
        ("fri-mon 02:00-03:00", Window(("mon", "fri", "sat", "sun"), "02:00", "03:00", "UTC")),
        ("Mon,wed-thu,mon 02:00-03:00", Window(("mon", "wed", "thu"), "02:00", "03:00", "UTC")),
        ("sat-sat 02:00-03:00 Etc/GMT+3", Window(("sat",), "02:00", "03:00", "Etc/GMT+3")),
        (
            "sun 02:00-03:00 America/Argentina/Buenos_Aires",
            Window(("sun",), "02:00", "03:00", "America/Argentina/Buenos_Aires"),
        ),
    ],
)
def test_windows(text: str, expected: Window) -> None:
    assert Window.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no time window: write DAYS"),
        ("mon-fri", "no time window: write DAYS"),
        ("22:00-04:00", "no time window: write DAYS"),
        ("mon 22:00 - 04:00", "no time window: write DAYS"),
        ("mon 9:00-10:00", "no time window: write DAYS"),
        ("mon 22:00-24:00", "no time window: write DAYS"),
        ("mon 22:60-23:00", "no time window: write DAYS"),
        ("mon 10pm-4am", "no time window: write DAYS"),
        ("mon 22:00-04:00 Europe / Berlin", "no time window: write DAYS"),
        ("mon 04:00-04:00", "ends as it starts; a whole day is 00:00-23:59"),
        ("monday 22:00-04:00", "'monday' is no day: write mon, tue"),
        ("mon, 22:00-04:00", "'' is no day"),
        ("mon- 22:00-04:00", "'' is no day"),
        ("mon-tue-wed 22:00-04:00", "'tue-wed' is no day"),
        ("mon,daily 22:00-04:00", "'daily' is no day"),
        ("mon 22:00-04:00 Local", "'Local' is no time zone"),
        ("mon 22:00-04:00 +02:00", r"'\+02:00' is no time zone"),
        ("mon 22:00-04:00 ../etc/passwd", "is no time zone"),
        ("mon 22:00-04:00 Europe//Berlin", "is no time zone"),
    ],
)
def test_windows_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Window.parse(text)


@given(st.sets(st.sampled_from(DAYS), min_size=1), st.times(), st.times())
def test_a_list_of_days_reads_back(days: set[str], start: Any, end: Any) -> None:
    first, last = f"{start:%H:%M}", f"{end:%H:%M}"
    if first == last:
        last = "00:00" if first != "00:00" else "00:01"
    window = Window.parse(f"{','.join(days)} {first}-{last}")
    assert set(window.days) == days
    assert sorted(window.days, key=DAYS.index) == list(window.days)
    for plan in plan_objects(VERSION, PlanSettings(window=window), None):
        check_plan(plan, suc.newest().order)


def _without(plan: dict[str, Any], field: str) -> dict[str, Any]:
    plan["spec"].pop(field)
    return plan


def _with(plan: dict[str, Any], **fields: Any) -> dict[str, Any]:
    plan["spec"].update(fields)
    return plan


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (lambda plan: _with(plan, jobActiveDeadlineSeconds=1), "unknown field"),
        (lambda plan: _with(plan, concurrency="1"), "not a whole number"),
        (lambda plan: _with(plan, cordon="true"), "not true or false"),
        (lambda plan: _without(plan, "upgrade"), "no upgrade"),
        (lambda plan: _without(plan, "version"), "neither version nor channel"),
        (lambda plan: _without(plan, "concurrency"), "nothing is ever started"),
        (lambda plan: _with(plan, window={"days": [], "startTime": "01:00", "endTime": "02:00"}), "fewer than 1"),
        (lambda plan: _with(plan, window={"days": ["daily"], "startTime": "01:00", "endTime": "02:00"}), "none of"),
        (lambda plan: _with(plan, window={"days": ["mon"], "startTime": 79200, "endTime": "02:00"}), "not text"),
        (lambda plan: _with(plan, tolerations=[{"operator": "Equal"}]), "only Exists"),
        (lambda plan: {**plan, "apiVersion": "upgrade.cattle.io/v2"}, "none of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "broken",
)
def test_the_check_of_plans_refuses(broken: Any, why: str) -> None:
    plan = plan_objects(VERSION, PlanSettings(), None)[0]
    check_plan(plan, suc.newest().order)
    with pytest.raises(NotAPlanError, match=why):
        check_plan(broken(copy.deepcopy(plan)), suc.newest().order)


def test_the_check_of_plans_knows_when_a_field_came() -> None:
    plan = plan_objects(VERSION, PlanSettings(window=WINDOW), None)[0]
    with pytest.raises(NotAPlanError, match="window: unknown field before"):
        check_plan(plan, (0, 14, 2))
