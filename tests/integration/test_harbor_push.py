"""`push` into Harbor while it runs: quotas, immutable tags, policies, mounts, and a look at the end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.content import BuiltImage
from tests.support.faults import Meanwhile, Reset
from tests.support.handmade import built, multi, uploads
from tests.support.harbor import HarborDouble
from tests.support.harbor_accounts import Robot
from tests.support.harbor_runs import APP, BASE, TOOL, Done, Site, each, size_of
from tests.support.media_types import OCI_MANIFEST
from tests.support.programs import require
from tests.support.pulling import check_pulled

SECRET = "R0bot-secret-0f-tests"  # noqa: S105 - opens nothing but the doubles of these tests
MIB = 1024 * 1024
LEAST = ("pull", "push")
CHECKS = (*LEAST, "project:read", "quota:read", "artifact:list", "artifact:read")
APP_2, LOKI = "docker.io/rancher/app:2", "docker.io/grafana/loki:1"


@pytest.fixture
def harbor() -> Iterator[HarborDouble]:
    require("docker-registry")
    with HarborDouble() as started:
        started.add_project("mirror")
        yield started


@pytest.fixture
def site(harbor: HarborDouble, tmp_path: Path) -> Site:
    return Site(harbor, tmp_path)


@pytest.fixture
def robot(harbor: HarborDouble) -> Robot:
    return harbor.add_robot("pusher", SECRET, "mirror", CHECKS)


@pytest.fixture
def least(harbor: HarborDouble) -> Robot:
    return harbor.add_robot("least", SECRET, "mirror", LEAST)


def refusal(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


# --- quota ----------------------------------------------------------------------------------------------------------


def test_what_cannot_fit_is_not_begun(site: Site, harbor: HarborDouble, robot: Robot) -> None:
    harbor.projects["mirror"].quota_bytes = 90_000
    needed = size_of(site.images)
    assert needed > 90_000

    done = site.push(robot)

    assert (done.code, done.error) == (9, "quota-exceeded")
    assert "'mirror' has 90.0 kB left of its quota of 90.0 kB" in done.message
    assert f"({needed} bytes)" in done.hint
    assert done.changes == []
    harbor.projects["mirror"].quota_bytes = needed
    assert site.push(robot).code == 0


def test_what_may_fit_is_tried_with_a_warning(site: Site, harbor: HarborDouble, robot: Robot) -> None:
    wanted = site.images
    layers = [blob.path.read_bytes() for blob in wanted[APP].blobs if blob.size > len(BASE)]
    site.write({"docker.io/other/holder:1": built(site.store, BASE, *layers, title="holder")})
    site.seed()
    harbor.projects["mirror"].quota_bytes = harbor.used_bytes("mirror") + size_of(wanted) // 2
    site.write(wanted)

    done = site.push(robot)

    assert done.code == 0, done.err
    (warning,) = done.report["warnings"]
    assert "it fits only if" in warning
    assert "other repositories of the project" in warning


def test_what_another_repository_of_a_full_project_has_needs_no_room(
    site: Site, harbor: HarborDouble, robot: Robot
) -> None:
    wanted = site.images
    site.write({reference.replace("/rancher/", "/other/"): image for reference, image in wanted.items()})
    site.seed()
    harbor.projects["mirror"].quota_bytes = harbor.used_bytes("mirror")
    site.write(wanted)

    done = site.push(robot)

    assert done.code == 0, done.err
    assert set(done.outcomes.values()) == {"pushed"}
    assert all("it fits only if" in warning for warning in done.report["warnings"])
    assert harbor.used_bytes("mirror") == harbor.projects["mirror"].quota_bytes


def nearly_full(site: Site, harbor: HarborDouble) -> None:
    """Leave 1 MiB in the project rancher, for a bundle with more than that, and as much as one likes in grafana."""
    harbor.add_project("rancher")
    harbor.add_project("grafana")
    site.write({"docker.io/rancher/old:1": built(site.store, b"old" * 3 * MIB, title="old")})
    site.seed("")
    harbor.projects["rancher"].quota_bytes = harbor.used_bytes("rancher") + MIB
    site.write(
        {
            APP: multi(site.store, BASE, b"x" * 6 * MIB, title="app"),
            TOOL: built(site.store, b"tool" * 9, title="tool"),
            LOKI: built(site.store, BASE, b"loki", title="loki"),
        }
    )


def uploads_to(done: Done, project: str) -> int:
    return sum(uploads([request for request in done.requests if f"/v2/{project}/" in request.path], None).values())


def test_a_full_project_is_named_and_gets_nothing_more(tmp_path: Path) -> None:
    cases: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
        "seen": (CHECKS, ()),
        "not seen": (LEAST, ()),
        "chunks": (CHECKS, ("--chunk-size", "2MiB")),
        "resets": (CHECKS, ()),
    }
    each(tmp_path, cases, check_full)


def check_full(site: Site, case: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
    harbor, (rights, options) = site.harbor, case
    nearly_full(site, harbor)
    robot = harbor.add_robot("mover", SECRET, None, rights)
    # A body that is not read may cost the answer: then the connection breaks, each time.
    resets = site.directory.name == "resets"
    if resets:
        harbor.fault("PUT", "^/v2/rancher/app/blobs/uploads/", Reset(), times=None)

    done = site.push(robot, "--jobs", "1", *options, prefix="")

    assert (done.code, done.error) == (10, "images-failed"), done.err
    assert done.outcomes == {APP: "quota-exceeded", TOOL: "quota-exceeded", LOKI: "pushed"}
    failure = done.failure(APP)
    assert ("will exceed the configured upper limit" in failure["message"]) == (not resets)
    assert "'rancher'" in failure["hint"]
    assert uploads_to(done, "rancher") <= 4
    assert set(harbor.tags("rancher/app")) == set(harbor.tags("rancher/tool")) == set()
    if rights is CHECKS:
        (warning,) = done.report["warnings"]
        assert "'rancher' has 1.0 MB left" in warning
        assert str(harbor.used_bytes("rancher") + 6 * MIB) in failure["hint"]
    check_pulled(harbor.registry.url, "grafana/loki", "1", site.images[LOKI])


def test_a_refusal_that_harbor_words_as_one_of_quota_is_one(site: Site, harbor: HarborDouble, robot: Robot) -> None:
    """Room that uploads at the same time have reserved is free again when the quota is asked for."""
    harbor.projects["mirror"].quota_bytes = 9 * MIB
    words = refusal("DENIED", "adding 1 MiB of storage resource, which when updated to ... will exceed ...")
    harbor.fault("PUT", "^/v2/mirror/rancher/tool/blobs/uploads/", 403, words, times=None)

    done = site.push(robot)

    assert done.code == 10, done.err
    assert done.outcomes[TOOL] == "quota-exceeded"
    assert "DENIED adding 1 MiB" in done.failure(TOOL)["message"]


def test_a_refusal_of_something_before_harbor_is_not_one_of_quota(
    site: Site, harbor: HarborDouble, robot: Robot
) -> None:
    harbor.fault("PUT", "^/v2/mirror/rancher/tool/blobs/uploads/", 403, b"<html>WAF</html>", times=None)

    done = site.push(robot)

    assert done.outcomes == {APP: "pushed", TOOL: "denied"}
    assert "a web page" in done.failure(TOOL)["message"]


def test_a_denial_where_there_is_room_is_not_one_of_quota(site: Site, harbor: HarborDouble, robot: Robot) -> None:
    harbor.projects["mirror"].quota_bytes = 900 * MIB
    words = refusal("DENIED", "blocked by the policy of the firewall")
    harbor.fault("PUT", "^/v2/mirror/rancher/tool/blobs/uploads/", 403, words, times=None)

    done = site.push(robot)

    assert done.code == 10, done.err
    assert done.outcomes == {APP: "pushed", TOOL: "denied"}
    assert "blocked by the policy of the firewall" in done.failure(TOOL)["message"]
    assert "quota" not in done.failure(TOOL)["hint"]


# --- immutable tags -------------------------------------------------------------------------------------------------


def changed(site: Site) -> dict[str, BuiltImage]:
    return {**site.images, TOOL: built(site.store, BASE, b"another tool\n", title="tool")}


def test_an_immutable_tag_refuses_only_its_image_and_before_a_byte(
    site: Site, harbor: HarborDouble, robot: Robot
) -> None:
    site.seed()
    before = harbor.tags("mirror/rancher/tool")
    harbor.add_immutable_rule("mirror")
    site.write({**changed(site), LOKI: built(site.store, BASE, b"loki", title="loki")})

    done = site.push(robot)

    assert done.code == 10, done.err
    assert done.outcomes == {APP: "up-to-date", TOOL: "immutable-tag", LOKI: "pushed"}
    assert "mirror/rancher/tool:1" in done.failure(TOOL)["message"]
    assert "Tag Immutability" in done.failure(TOOL)["hint"]
    assert [request for request in done.changes if "/rancher/tool/" in request.path] == []
    assert harbor.tags("mirror/rancher/tool") == before


def test_who_cannot_see_the_rules_meets_them_at_the_tag(site: Site, harbor: HarborDouble, least: Robot) -> None:
    site.seed()
    before = harbor.tags("mirror/rancher/tool")
    harbor.add_immutable_rule("mirror", "rancher/tool")
    site.write(changed(site))

    done = site.push(least)

    assert done.code == 10, done.err
    assert done.outcomes == {APP: "up-to-date", TOOL: "immutable-tag"}
    assert len(done.asked("PUT", "/manifests/1")) == 1
    assert harbor.tags("mirror/rancher/tool") == before


def test_an_immutable_tag_with_our_digest_is_success(site: Site, harbor: HarborDouble, robot: Robot) -> None:
    site.seed()
    harbor.add_immutable_rule("mirror")
    # Another pusher was quicker: our question came before its tag.
    stale = harbor.fault("HEAD", "/manifests/1", 404, times=2)

    done = site.push(robot)

    assert done.code == 0, done.err
    assert (stale.hits, len(done.asked("PUT", "/manifests/1", 412))) == (2, 2)
    assert set(done.outcomes.values()) == {"pushed"}
    assert done.sent == set()


# --- policies -------------------------------------------------------------------------------------------------------


def test_what_a_policy_hides_is_there(site: Site, harbor: HarborDouble, robot: Robot) -> None:
    harbor.add_project("mirror", prevent_vul=True)

    first = site.push(robot)
    again = site.push(robot)

    assert first.code == 0, first.err
    assert first.report["facts"]["verified"] == {"images": 2, "manifests": 4}
    assert again.code == 0, again.err
    assert set(again.outcomes.values()) == {"up-to-date"}
    assert len(again.report["warnings"]) == 2
    assert all("keeps everybody from pulling it" in warning for warning in again.report["warnings"])
    assert again.changes == []


def test_what_a_policy_hides_is_replaced_by_what_is_newer(site: Site, harbor: HarborDouble, robot: Robot) -> None:
    harbor.add_project("mirror", prevent_vul=True)
    site.seed()
    site.write(changed(site))

    done = site.push(robot)

    assert done.code == 0, done.err
    assert done.outcomes == {APP: "up-to-date", TOOL: "pushed"}
    assert harbor.tags("mirror/rancher/tool") == {"1": site.images[TOOL].root_digest}


def test_what_a_policy_hides_is_pushed_again_by_who_cannot_look_behind_it(
    site: Site, harbor: HarborDouble, least: Robot
) -> None:
    harbor.add_project("mirror", prevent_vul=True)
    site.seed()

    done = site.push(least)

    assert done.code == 0, done.err
    assert set(done.outcomes.values()) == {"pushed"}
    assert done.sent == set()
    assert len(done.asked("PUT", "/manifests/1", 201)) == 2


def test_what_is_hidden_and_immutable_is_refused(tmp_path: Path) -> None:
    each(tmp_path, {"seen": CHECKS, "not seen": LEAST}, check_hidden)


def check_hidden(site: Site, rights: tuple[str, ...]) -> None:
    harbor = site.harbor
    robot = harbor.add_robot("pusher", SECRET, "mirror", rights)
    harbor.add_project("mirror", prevent_vul=True)
    site.seed()
    harbor.add_immutable_rule("mirror")
    site.write({TOOL: changed(site)[TOOL], LOKI: built(site.store, BASE, b"loki", title="loki")})

    done = site.push(robot)

    assert done.code == 10, done.err
    assert done.outcomes == {TOOL: "immutable-tag", LOKI: "pushed"}
    # Who cannot see that beforehand sends the blobs; what the tag stands for, nobody knows then.
    sent = [request for request in done.changes if "/rancher/tool/" in request.path]
    assert (sent == []) == (rights is CHECKS)
    assert ("as far as can be seen" in done.failure(TOOL)["message"]) == (rights is LEAST)


# --- mounts ---------------------------------------------------------------------------------------------------------


def test_mounts_that_are_refused_become_uploads(site: Site, harbor: HarborDouble, robot: Robot) -> None:
    headers = {"Www-Authenticate": 'Basic realm="harbor"'}
    refused = harbor.fault("POST", "mount=", 401, refusal("UNAUTHORIZED", "project x not found"), headers, times=None)

    done = site.push(robot)

    assert done.code == 0, done.err
    assert set(done.outcomes.values()) == {"pushed"}
    # Once, and once more with a new token.
    assert refused.hits == 2
    assert len(done.scopes) <= 3


def test_a_project_that_becomes_unreadable_is_not_needed_for_another(site: Site, harbor: HarborDouble) -> None:
    for name in ("rancher", "grafana"):
        harbor.add_project(name)
    user = harbor.add_user("dora", "D0ra-secret", dict.fromkeys(("rancher", "grafana"), "developer"))
    site.write({APP: site.images[APP], LOKI: built(site.store, BASE, b"loki", title="loki")})

    def lock_out() -> None:
        user.roles.pop("rancher", None)
        harbor.revoke_tokens()

    harbor.fault("POST", "^/v2/grafana/.*mount=", Meanwhile(lock_out))

    done = site.push(user, "--jobs", "1", "--no-verify", prefix="")

    assert done.code == 0, done.err
    assert [request.status for request in done.asked("POST", "mount=")] == [401, 401]
    assert set(harbor.tags("grafana/loki")) == set(harbor.tags("rancher/app")) == {"1"}
    assert done.requests[-1].method == "PUT"
    assert "verified" not in done.report["facts"]


# --- a look at the end ----------------------------------------------------------------------------------------------


def write_many(site: Site) -> None:
    """Make the bundle one with six manifests in one repository."""
    other = multi(site.store, BASE, b"newer", title="newer")
    site.write({APP: site.images[APP], APP_2: other})


def test_many_manifests_are_looked_for_in_lists(site: Site, harbor: HarborDouble, robot: Robot) -> None:
    write_many(site)

    def crowd() -> None:
        for number in range(150):
            data = json.dumps(
                {"schemaVersion": 2, "number": number, "config": {"mediaType": "x", "size": 1}, "layers": []}
            )
            harbor.keep_artifact("mirror/rancher/app", OCI_MANIFEST, data.encode(), None)

    # What others push comes first in the list.
    harbor.fault("GET", "/artifacts", Meanwhile(crowd))

    done = site.push(robot)

    assert done.code == 0, done.err
    assert done.report["facts"]["verified"] == {"images": 2, "manifests": 6}
    lists = [request for request in done.requests if "/artifacts?" in request.target]
    assert [re.findall("page=[0-9]+", request.target) for request in lists] == [["page=1"], ["page=2"]]
    assert all("/mirror/repositories/rancher%252Fapp/artifacts" in request.target for request in lists)
    # The two before the push.
    assert len(done.asked("HEAD", "/manifests/", 404)) == len(done.asked("HEAD", "/manifests/")) - 1 == 2


def test_without_a_list_each_manifest_is_looked_for(site: Site, harbor: HarborDouble, robot: Robot) -> None:
    write_many(site)
    harbor.fault("GET", "/artifacts\\?", 422, refusal("UNPROCESSABLE_ENTITY", "no such q"), times=None)

    done = site.push(robot)

    assert done.code == 0, done.err
    assert done.report["facts"]["verified"] == {"images": 2, "manifests": 6}
    assert len(done.asked("HEAD", "/manifests/", 200)) == 6


def test_what_vanishes_after_the_push_is_missed(tmp_path: Path) -> None:
    cases = {"tag": CHECKS, "child": CHECKS, "child, without the right to list": LEAST}
    each(tmp_path, cases, check_vanished)


def check_vanished(site: Site, rights: tuple[str, ...]) -> None:
    harbor, what = site.harbor, site.directory.name
    robot = harbor.add_robot("pusher", SECRET, "mirror", rights)
    write_many(site)

    def vanish() -> None:
        found = harbor.find_repository("mirror/rancher/app")
        assert found
        if what == "tag":
            found.tags["1"] = found.tags["2"]
        else:
            del found.artifacts[next(iter(site.images[APP].manifests))]

    harbor.fault("GET", "/artifacts\\?", Meanwhile(vanish))

    done = site.push(robot, sound=what == "tag")

    assert done.code == 10, done.err
    assert done.outcomes == {APP: "not-verified", APP_2: "pushed"}
    # Its tag is there and ours: the usual run would see nothing to do.
    assert "--verify all" in done.failure(APP)["hint"]


def test_what_vanished_before_is_missed_and_sent_again_if_all_is_to_be_verified(
    site: Site, harbor: HarborDouble, robot: Robot
) -> None:
    site.seed()
    lost = next(blob for blob in site.images[TOOL].blobs if blob.size == len(b"only tool\n"))
    del harbor.blobs[lost.digest]

    usual, thorough = site.push(robot), site.push(robot, "--verify", "all")

    assert usual.code == 0, usual.err
    assert thorough.code == 0, thorough.err
    assert thorough.outcomes == {APP: "up-to-date", TOOL: "pushed"}
    assert uploads(thorough.requests) == {lost.digest: 1}
    assert re.search(rf"warning: .*{lost.digest}.*pushed again", thorough.err)


def test_a_blob_that_was_accepted_and_is_not_there_is_sent_again(
    site: Site, harbor: HarborDouble, robot: Robot
) -> None:
    blob = next(blob for blob in site.images[TOOL].blobs if blob.size == len(b"only tool\n"))
    lost = harbor.fault("PUT", blob.digest, 201)

    done = site.push(robot)

    assert done.code == 0, done.err
    assert lost.hits == 1
    assert uploads(done.requests)[blob.digest] == 2


# --- errors, proxies and chunks -------------------------------------------------------------------------------------


def test_errors_have_what_harbors_administrator_needs(site: Site, harbor: HarborDouble, robot: Robot) -> None:
    harbor.fault("PUT", "/tool/manifests/1", 400, refusal("MANIFEST_INVALID", "no such luck"), times=None)

    done = site.push(robot)

    assert done.outcomes == {APP: "pushed", TOOL: "unexpected-answer"}
    failure = done.failure(TOOL)
    assert re.search(r"400: MANIFEST_INVALID no such luck \(X-Request-ID [0-9a-f-]{36}\)", failure["message"])
    assert failure["context"]["request_id"] in failure["message"]
    assert failure["context"]["code"] == "MANIFEST_INVALID"


def check_broken_location(base: str, *options: str) -> Callable[[Site], None]:
    def check(site: Site) -> None:
        site.harbor.location_base = base

        assert site.push(site.harbor.add_robot("pusher", SECRET, "mirror", LEAST), *options).code == 0

    return check


def check_lost_location(site: Site) -> None:
    harbor = site.harbor
    harbor.location_base = "http://harbor-core.invalid:8080"

    done = site.push(harbor.add_robot("pusher", SECRET, "mirror", LEAST))

    assert done.code == 10, done.err
    assert set(done.outcomes.values()) == {"name-not-resolved"}
    failure = done.failure(APP)
    assert "harbor-core.invalid:8080" in failure["message"]
    assert f"{harbor.host} leads there" in failure["hint"]
    assert "X-Forwarded-Proto" in failure["hint"]
    # That host is given up soon, for all blobs; Harbor is not.
    assert len(done.asked("POST", "/uploads/")) < 30


def check_internal_errors(site: Site) -> None:
    places = (("GET", "/systeminfo"), ("POST", "/uploads/"), ("PUT", "/uploads/"), ("PUT", "/manifests/1"))
    faults = [site.harbor.fault(*place, 500, refusal("UNKNOWN", "internal server error")) for place in places]

    done = site.push(site.harbor.add_robot("pusher", SECRET, "mirror", LEAST))

    assert done.code == 0, done.err
    assert [fault.hits for fault in faults] == [1] * len(faults)


def check_no_token(site: Site) -> None:
    """The third is the one after the project was made."""
    words = refusal("UNKNOWN", "internal server error")
    failed = [site.harbor.fault("GET", "/service/token", 500, words, skip=skip) for skip in (0, 2)]

    done = site.push(("admin", "Harbor12345"), "--create-projects", "private", prefix="k3s")

    assert done.code == 0, done.err
    assert [fault.hits for fault in failed] == [1, 1]
    assert len(done.asked("POST", "/api/v2.0/projects")) == 1


def test_what_harbor_and_the_proxies_before_it_do_wrong(tmp_path: Path) -> None:
    """They wait before they try again, so they all do at the same time."""
    checks = {
        "a Location with another scheme and port": check_broken_location("https://127.0.0.1"),
        "a Location with another port, and chunks": check_broken_location(
            "http://127.0.0.1:1", "--chunk-size", "64KiB"
        ),
        "a Location that leads nowhere": check_lost_location,
        "internal errors": check_internal_errors,
        "internal errors in the place of tokens": check_no_token,
    }
    each(tmp_path, checks, lambda site, check: check(site))


def test_chunks_are_charged_with_their_real_size(site: Site, harbor: HarborDouble, robot: Robot) -> None:
    done = site.push(robot, "--chunk-size", "64KiB")

    assert done.code == 0, done.err
    patches = done.asked("PATCH", "/uploads/", 202)
    assert [request.body_size for request in patches] == [64 * 1024, 81_000 - 64 * 1024]
    session = patches[0].path
    (closing,) = [request for request in done.asked("PUT", "/uploads/", 201) if request.path == session]
    assert closing.body_size == 0
    assert harbor.used_bytes("mirror") == size_of(site.images)
