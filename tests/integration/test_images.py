"""`images`: from a K3s release and lists to the sorted, unique references of everything it needs."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import run
from tests.support.programs import free_port
from tests.support.releases import ReleaseServer

VERSION = "v1.32.3+k3s1"
HELM = "docker.io/rancher/klipper-helm:v0.9.4-build20250113"
BALANCER = "docker.io/rancher/klipper-lb:v0.4.13"
STORAGE = "docker.io/rancher/local-path-provisioner:v0.0.31"
COREDNS = "docker.io/rancher/mirrored-coredns-coredns:1.12.0"
BUSYBOX = "docker.io/rancher/mirrored-library-busybox:1.36.1"
TRAEFIK = "docker.io/rancher/mirrored-library-traefik:3.3.2"
METRICS = "docker.io/rancher/mirrored-metrics-server:v0.7.2"
PAUSE = "docker.io/rancher/mirrored-pause:3.6"
LIST = (HELM, BALANCER, STORAGE, COREDNS, BUSYBOX, TRAEFIK, METRICS, PAUSE)
UPGRADE = "docker.io/rancher/k3s-upgrade:v1.32.3-k3s1"
KUBECTL = "docker.io/rancher/kubectl:v1.30.3"
SUC = "docker.io/rancher/system-upgrade-controller:v0.20.1"
EVERYTHING = sorted([*LIST, UPGRADE, KUBECTL, SUC])

# A real release of which only the k3s-upgrade image is known, and one that nobody knows.
UNSHIPPED = "v1.31.9+k3s1"
UNHEARD_OF = "v1.99.7+k3s1"


def text(*references: str) -> str:
    return "".join(f"{reference}\n" for reference in references)


@pytest.fixture
def release_server() -> Iterator[ReleaseServer]:
    with ReleaseServer({VERSION: text(*LIST)}) as server:
        yield server


# --- what a release needs -----------------------------------------------------------------------------------


def test_a_release_is_its_list_and_the_upgrade_images_sorted_and_nothing_else_on_stdout() -> None:
    result = run("images", "--k3s", VERSION, "--release-url", "shipped")

    assert result.code == 0
    assert result.out == text(*EVERYTHING)
    assert result.err == ""


def test_an_image_tag_of_a_version_means_the_same() -> None:
    result = run("images", "--k3s", "v1.32.3-k3s1", "--release-url", "shipped")

    assert result.lines == EVERYTHING


def test_two_versions_give_the_union_each_reference_once() -> None:
    result = run("images", "--k3s", VERSION, "--k3s", "v1.21.9+k3s1", "--release-url", "shipped")

    assert set(EVERYTHING) < set(result.lines)
    assert "docker.io/rancher/k3s-upgrade:v1.21.9-k3s1" in result.lines
    assert "docker.io/rancher/mirrored-pause:3.5" in result.lines
    assert result.lines == sorted(set(result.lines))
    assert len(result.lines) == 8 + 8 + 2 + 2


@pytest.mark.parametrize(
    ("disabled", "left_out"),
    [
        (["traefik"], {TRAEFIK}),
        (["servicelb"], {BALANCER}),
        (["metrics-server"], {METRICS}),
        (["local-storage"], {STORAGE, BUSYBOX}),
        (["coredns"], {COREDNS}),
        (["traefik,helm-controller"], {TRAEFIK, HELM}),
        (["traefik,servicelb", "coredns"], {TRAEFIK, BALANCER, COREDNS}),
        (
            ["traefik,servicelb,metrics-server,local-storage,coredns"],
            {TRAEFIK, BALANCER, METRICS, STORAGE, BUSYBOX, COREDNS},
        ),
    ],
)
def test_disabled_components_are_left_out_and_only_they(disabled: list[str], left_out: set[str]) -> None:
    options = [part for names in disabled for part in ("--disable", names)]

    result = run("images", "--k3s", VERSION, "--release-url", "shipped", *options)

    assert result.code == 0
    assert set(EVERYTHING) - set(result.lines) == left_out
    assert PAUSE in result.lines


@pytest.mark.parametrize("name", ["pause", "trafik", "traefik,nothing"])
def test_what_cannot_be_disabled_is_refused_naming_what_can(name: str) -> None:
    result = run("images", "--k3s", VERSION, "--release-url", "shipped", "--disable", name)

    assert (result.code, result.out) == (3, "")
    assert "metrics-server" in result.err


def test_the_upgrade_controller_may_be_left_out_with_its_kubectl() -> None:
    result = run("images", "--k3s", VERSION, "--release-url", "shipped", "--no-suc")

    assert set(LIST) <= set(result.lines)
    assert not {SUC, KUBECTL} & set(result.lines)


@pytest.mark.parametrize(("suc", "kubectl"), [("v0.11.0", "v1.21.9"), ("v0.13.4", "v1.25.4"), ("v0.14.0", "v1.30.3")])
def test_another_upgrade_controller_comes_with_the_kubectl_of_its_manifest(suc: str, kubectl: str) -> None:
    result = run("images", "--k3s", VERSION, "--release-url", "shipped", "--suc-version", suc)

    assert f"docker.io/rancher/system-upgrade-controller:{suc}" in result.lines
    assert [line for line in result.lines if "/kubectl:" in line] == [f"docker.io/rancher/kubectl:{kubectl}"]
    assert SUC not in result.lines


def test_an_unknown_upgrade_controller_is_refused() -> None:
    result = run("images", "--k3s", VERSION, "--release-url", "shipped", "--suc-version", "v0.99.0")

    assert (result.code, result.out) == (3, "")
    assert "unknown-suc-version" in result.err
    assert "v0.20.1" in result.err


# --- where the list comes from ------------------------------------------------------------------------------


def test_a_url_is_asked_with_the_plus_encoded(release_server: ReleaseServer) -> None:
    result = run("images", "--k3s", VERSION, "--release-url", release_server.url)

    assert (result.code, result.lines, result.err) == (0, EVERYTHING, "")
    assert release_server.paths == ["/k3s-io/k3s/releases/download/v1.32.3%2Bk3s1/k3s-images.txt"]


def test_a_slash_at_the_end_of_a_url_does_not_matter(release_server: ReleaseServer) -> None:
    run("images", "--k3s", VERSION, "--release-url", f"{release_server.url}/")

    assert release_server.paths == ["/k3s-io/k3s/releases/download/v1.32.3%2Bk3s1/k3s-images.txt"]


def test_the_release_location_may_come_from_the_environment(release_server: ReleaseServer) -> None:
    result = run("images", "--k3s", VERSION, env={"AIRGAP_SYNC_RELEASE_URL": release_server.url})

    assert (result.code, result.lines) == (0, EVERYTHING)
    assert len(release_server.paths) == 1


def test_shipped_asks_nobody(release_server: ReleaseServer) -> None:
    env = {"AIRGAP_SYNC_RELEASE_URL": release_server.url}

    result = run("images", "--k3s", VERSION, "--release-url", "shipped", env=env)

    assert (result.code, result.err) == (0, "")
    assert release_server.paths == []


def test_a_directory_is_read_with_a_raw_plus(tmp_path: Path) -> None:
    (tmp_path / UNHEARD_OF).mkdir()
    (tmp_path / UNHEARD_OF / "k3s-images.txt").write_text(text(PAUSE, COREDNS))

    result = run("images", "--k3s", UNHEARD_OF, "--release-url", tmp_path, "--no-suc")

    assert result.code == 0
    assert {PAUSE, COREDNS} <= set(result.lines)


def test_a_directory_without_the_release_falls_back_to_the_shipped_list_with_a_notice(tmp_path: Path) -> None:
    result = run("images", "--k3s", VERSION, "--release-url", tmp_path)

    assert (result.code, result.lines) == (0, EVERYTHING)
    assert "shipped" in result.err


def test_a_directory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    result = run("images", "--k3s", VERSION, "--release-url", tmp_path / "nowhere")

    assert (result.code, result.out) == (3, "")


def test_not_found_falls_back_to_the_shipped_list_with_a_notice() -> None:
    with ReleaseServer({}) as server:
        result = run("images", "--k3s", VERSION, "--release-url", server.url)

        assert len(server.paths) == 1
    assert (result.code, result.lines) == (0, EVERYTHING)
    assert "shipped" in result.err
    assert VERSION in result.err


def test_no_answer_falls_back_to_the_shipped_list_within_about_five_seconds() -> None:
    with ReleaseServer({VERSION: text(PAUSE)}, hang=True) as server:
        started = time.monotonic()
        result = run("images", "--k3s", VERSION, "--release-url", server.url)

        assert time.monotonic() - started < 8
    assert (result.code, result.lines) == (0, EVERYTHING)
    assert "shipped" in result.err


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "no-such-host.invalid"])
def test_no_connection_falls_back_to_the_shipped_list_with_a_notice(host: str) -> None:
    url = f"http://{host.format(port=free_port())}/releases"

    result = run("images", "--k3s", VERSION, "--release-url", url)

    assert (result.code, result.lines) == (0, EVERYTHING)
    assert "shipped" in result.err


def test_a_captive_portal_is_an_error() -> None:
    with ReleaseServer({VERSION: text(*LIST)}, portal=True) as server:
        result = run("images", "--k3s", VERSION, "--release-url", server.url)

    assert (result.code, result.out) == (8, "")
    assert "bad-release-list" in result.err


@pytest.mark.parametrize(
    "body",
    ["", "docker.io/rancher/mirrored-pause:3.6\nplease sign in\n", '{"error": "none"}', "<html>" + 2_000_000 * "x"],
    ids=["empty", "half a list", "json", "a page of 2 MB"],
)
def test_an_answer_that_is_not_a_list_of_references_is_an_error(body: str) -> None:
    with ReleaseServer({VERSION: body}) as server:
        result = run("images", "--k3s", VERSION, "--release-url", server.url)

    assert (result.code, result.out) == (8, "")
    assert "bad-release-list" in result.err
    assert len(result.err) < 2000


def test_a_published_list_that_differs_is_used_with_a_warning_naming_the_lines() -> None:
    newer = "docker.io/rancher/mirrored-coredns-coredns:1.12.9"
    with ReleaseServer({VERSION: text(*(newer if line == COREDNS else line for line in LIST))}) as server:
        result = run("images", "--k3s", VERSION, "--release-url", server.url)

    assert result.code == 0
    assert newer in result.lines
    assert COREDNS not in result.lines
    warnings = [line for line in result.err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    assert COREDNS in warnings[0]
    assert newer in warnings[0]
    assert PAUSE not in warnings[0]


def test_a_password_in_the_release_url_is_never_printed() -> None:
    with ReleaseServer({}) as server:
        url = server.url.replace("://", "://alice:s3cret-word@")
        result = run("images", "--k3s", VERSION, "--k3s", UNSHIPPED, "--release-url", url, "-o", "json")

    assert result.code == 8
    assert "s3cret-word" not in result.out + result.err


# --- versions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "meant"),
    [
        ("1.32.3", "v1.32.3+k3s1"),
        ("v1.32.3", "v1.32.3+k3s1"),
        ("v1.32.3+k3s", "v1.32.3+k3s1"),
        ("latest", "v1.37.1+k3s1"),
    ],
)
def test_a_malformed_version_is_refused_naming_the_nearest_real_ones(
    release_server: ReleaseServer, version: str, meant: str
) -> None:
    result = run("images", "--k3s", version, "--release-url", release_server.url)

    assert (result.code, result.out) == (3, "")
    assert "bad-k3s-version" in result.err
    assert meant in result.err
    assert release_server.paths == []


@pytest.mark.parametrize("where", ["shipped", "server", "directory"])
def test_a_real_release_without_any_list_is_unavailable(
    release_server: ReleaseServer, tmp_path: Path, where: str
) -> None:
    location = {"shipped": "shipped", "server": release_server.url, "directory": str(tmp_path)}[where]

    result = run("images", "--k3s", UNSHIPPED, "--release-url", location)

    assert (result.code, result.out) == (8, "")
    assert "release-list-unavailable" in result.err
    assert "--release-url" in result.err


@pytest.mark.parametrize("where", ["shipped", "server"])
def test_a_release_that_nobody_knows_is_refused(release_server: ReleaseServer, where: str) -> None:
    location = {"shipped": "shipped", "server": release_server.url}[where]

    result = run("images", "--k3s", UNHEARD_OF, "--release-url", location)

    assert (result.code, result.out) == (3, "")
    assert "unknown-k3s-version" in result.err


@pytest.mark.parametrize("version", [UNSHIPPED, UNHEARD_OF])
def test_a_release_is_accepted_if_the_location_has_its_list(version: str) -> None:
    with ReleaseServer({version: text(PAUSE, COREDNS)}) as server:
        result = run("images", "--k3s", version, "--release-url", server.url)

    tag = version.replace("+", "-")
    assert result.code == 0
    assert result.lines == sorted([COREDNS, PAUSE, SUC, KUBECTL, f"docker.io/rancher/k3s-upgrade:{tag}"])


# --- images by hand -----------------------------------------------------------------------------------------


def test_images_by_hand_are_normalised_sorted_and_unique() -> None:
    digest = "sha256:" + "a" * 64
    images = [
        "redis",
        "docker.io/library/redis:latest",
        "ghcr.io/acme/app:1",
        "rancher/tool",
        f"acme/pinned:1@{digest}",
    ]

    result = run("images", *(part for image in images for part in ("--image", image)))

    assert (result.code, result.err) == (0, "")
    assert result.lines == [
        f"docker.io/acme/pinned:1@{digest}",
        "docker.io/library/redis:latest",
        "docker.io/rancher/tool:latest",
        "ghcr.io/acme/app:1",
    ]


def test_a_file_has_one_reference_a_line_and_comments(tmp_path: Path) -> None:
    (tmp_path / "extra.txt").write_text(
        "# our applications\n\nghcr.io/acme/app:1\n  redis:7  \nghcr.io/acme/app:1\n#ghcr.io/acme/old:1\n"
    )

    result = run("images", "--images", tmp_path / "extra.txt", "--image", "ghcr.io/acme/app:2")

    assert (result.code, result.err) == (0, "")
    assert result.lines == ["docker.io/library/redis:7", "ghcr.io/acme/app:1", "ghcr.io/acme/app:2"]


def test_a_dash_is_standard_input() -> None:
    result = run("images", "--images", "-", stdin="# from a pipe\nbusybox:1\n")

    assert (result.code, result.out) == (0, "docker.io/library/busybox:1\n")


def test_a_release_and_images_by_hand_are_one_set() -> None:
    result = run(
        *(
            "images",
            "--k3s",
            VERSION,
            "--release-url",
            "shipped",
            "--images",
            "-",
            "--image",
            "rancher/mirrored-pause:3.6",
        ),
        stdin="rancher/mirrored-coredns-coredns:1.12.0\nghcr.io/acme/app:1\n",
    )

    assert result.lines == sorted([*EVERYTHING, "ghcr.io/acme/app:1"])


def test_a_bad_line_is_refused_naming_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "extra.txt").write_text("redis:7\n\nNot A Reference\n")

    result = run("images", "--images", tmp_path / "extra.txt")

    assert (result.code, result.out) == (3, "")
    assert "bad-reference" in result.err
    assert "extra.txt" in result.err
    assert "3" in result.err


@pytest.mark.parametrize("image", ["https://ghcr.io/acme/app", "acme/App", "a" * 64, "app@sha256:12", ""])
def test_what_is_not_a_reference_is_refused(image: str) -> None:
    result = run("images", "--image", image)

    assert (result.code, result.out) == (3, "")
    assert "bad-reference" in result.err


def test_a_missing_file_and_an_empty_request_are_refused(tmp_path: Path) -> None:
    assert run("images", "--images", tmp_path / "nowhere.txt").code == 3
    assert run("images").code == 3
    assert run("images", "--images", "-", stdin="# nothing\n").code == 3


# --- json ---------------------------------------------------------------------------------------------------


def test_json_is_one_document_with_reference_reasons_and_source() -> None:
    result = run(
        *("images", "--k3s", VERSION, "--release-url", "shipped", "-o", "json"),
        *("--image", "rancher/mirrored-pause:3.6", "--image", "ghcr.io/acme/app:1"),
    )

    images = {image["reference"]: image for image in result.json["images"]}
    assert list(images) == sorted([*EVERYTHING, "ghcr.io/acme/app:1"])
    for image in images.values():
        assert image["reasons"] == sorted(set(image["reasons"]))
        assert all(image["reasons"])
        assert image["source"]
    assert len(images[PAUSE]["reasons"]) == 2
    assert VERSION in images[COREDNS]["source"]
    assert "v0.20.1" in " ".join(images[KUBECTL]["reasons"])
    assert VERSION in " ".join(images[UPGRADE]["reasons"])
    assert "--image" in images["ghcr.io/acme/app:1"]["source"]


def test_json_keeps_notices_and_warnings_apart_from_the_document() -> None:
    with ReleaseServer({}) as server:
        result = run("images", "--k3s", VERSION, "--release-url", server.url, "-o", "json")

    assert "shipped" in result.err
    assert json.dumps(result.json["images"]).count("notice") == 0
    assert [image["reference"] for image in result.json["images"]] == EVERYTHING
