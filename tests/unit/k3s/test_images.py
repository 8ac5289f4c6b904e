"""From an image list to the images of a release."""

from __future__ import annotations

import pytest

from bundler.errors import BadComponentError
from bundler.k3s import images, releases, suc
from bundler.k3s.version import K3sVersion
from bundler.oci.reference import Reference

V1_32 = K3sVersion.parse("v1.32.3+k3s1")
V1_17 = K3sVersion.parse("v1.17.4+k3s1")


def lines(version: K3sVersion) -> list[Reference]:
    shipped = releases.shipped_list(version)
    assert shipped is not None
    return [Reference.parse(line) for line in shipped.lines]


def left_out(version: K3sVersion, *disabled: str) -> set[str]:
    kept = images.expand(version, lines(version), images.parse_disabled(disabled), None).images
    return {line.repository for line in lines(version)} - {image.repository for image, _reason in kept}


def test_every_image_of_every_shipped_list_is_known() -> None:
    for version in releases.shipped_versions():
        components = [images.component_of(line) for line in lines(version)]
        assert components.count(None) == 1  # pause
        assert {name for name in components if name} == set(images.COMPONENTS)


@pytest.mark.parametrize(
    ("text", "component"),
    [
        ("coredns/coredns:1.6.3", "coredns"),
        ("traefik:1.7.19", "traefik"),
        ("registry.example:5000/k3s/rancher/mirrored-library-busybox:1", "local-storage"),
        ("rancher/mirrored-pause:3.6", None),
        ("rancher/something-new:1", None),
    ],
)
def test_component_of(text: str, component: str | None) -> None:
    assert images.component_of(Reference.parse(text)) == component


@pytest.mark.parametrize(
    ("name", "new", "old"),
    [
        ("coredns", {"rancher/mirrored-coredns-coredns"}, {"rancher/coredns-coredns"}),
        ("helm-controller", {"rancher/klipper-helm"}, {"rancher/klipper-helm"}),
        (
            "local-storage",
            {"rancher/local-path-provisioner", "rancher/mirrored-library-busybox"},
            {"rancher/local-path-provisioner"},
        ),
        ("metrics-server", {"rancher/mirrored-metrics-server"}, {"rancher/metrics-server"}),
        ("servicelb", {"rancher/klipper-lb"}, {"rancher/klipper-lb"}),
        ("traefik", {"rancher/mirrored-library-traefik"}, {"rancher/library-traefik"}),
    ],
)
def test_each_component_leaves_out_its_images_alone(name: str, new: set[str], old: set[str]) -> None:
    assert left_out(V1_32, name) == new
    assert left_out(V1_17, name) == old


def test_all_components_off_leaves_pause() -> None:
    kept = images.expand(V1_32, lines(V1_32), frozenset(images.COMPONENTS), None).images
    assert [(str(image), reason) for image, reason in kept] == [
        ("docker.io/rancher/mirrored-pause:3.6", "k3s-images.txt of v1.32.3+k3s1 (pause)"),
        ("docker.io/rancher/k3s-upgrade:v1.32.3-k3s1", "binary of v1.32.3+k3s1 for system-upgrade-controller"),
    ]


def test_reasons_and_order() -> None:
    unknown = Reference.parse("docker.io/rancher/something-new:1")
    given = [*lines(V1_32), unknown, unknown]
    expansion = images.expand(V1_32, given, frozenset(), suc.find("v0.20.1"))
    assert expansion.warnings == ()
    assert [image for image, _reason in expansion.images[:9]] == given[:9]
    reasons = {str(image): reason for image, reason in expansion.images}
    assert len(reasons) == 8 + 1 + 3
    assert reasons["docker.io/rancher/mirrored-coredns-coredns:1.12.0"] == "k3s-images.txt of v1.32.3+k3s1 (coredns)"
    assert reasons[str(unknown)] == "k3s-images.txt of v1.32.3+k3s1"
    assert list(reasons.items())[9:] == [
        ("docker.io/rancher/k3s-upgrade:v1.32.3-k3s1", "binary of v1.32.3+k3s1 for system-upgrade-controller"),
        ("docker.io/rancher/system-upgrade-controller:v0.20.1", "system-upgrade-controller v0.20.1"),
        (
            "docker.io/rancher/kubectl:v1.30.3",
            "kubectl that system-upgrade-controller v0.20.1 runs to cordon and drain",
        ),
    ]


def test_without_suc_only_controller_and_kubectl_stay_away() -> None:
    kept = [image for image, _reason in images.expand(V1_32, lines(V1_32), frozenset(), None).images]
    assert [str(image) for image in kept[8:]] == ["docker.io/rancher/k3s-upgrade:v1.32.3-k3s1"]


def test_warnings() -> None:
    def warnings(*disabled: str) -> tuple[str, ...]:
        return images.expand(V1_32, lines(V1_32), frozenset(disabled), None).warnings

    (warning,) = warnings("helm-controller")
    assert "HelmChart" in warning
    assert warnings("helm-controller", "traefik") == ()
    assert warnings("traefik") == ()
    only_pause = [Reference.parse("docker.io/rancher/mirrored-pause:3.6")]
    assert images.expand(V1_32, only_pause, frozenset({"coredns"}), None).warnings == (
        "coredns is left out, but the image list of v1.32.3+k3s1 has no image of it",
    )
    assert images.expand(V1_32, only_pause, frozenset({"helm-controller"}), None).warnings == (
        "helm-controller is left out, but the image list of v1.32.3+k3s1 has no image of it",
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((), set()),
        (("",), set()),
        (("traefik",), {"traefik"}),
        (("traefik,servicelb", " coredns ,traefik,"), {"traefik", "servicelb", "coredns"}),
    ],
)
def test_parse_disabled(values: tuple[str, ...], expected: set[str]) -> None:
    assert images.parse_disabled(values) == expected


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("traefic", "Did you mean traefik? Valid names: coredns, helm-controller, local-storage, "),
        ("Traefik", "Did you mean traefik? "),
        ("klipper-lb", "Did you mean servicelb? "),
        ("klipper-helm", "Did you mean helm-controller? "),
        ("local-path-provisioner", "Did you mean local-storage? "),
        ("xyz", "Valid names: "),
        ("pause", "Valid names: "),
    ],
)
def test_unknown_component(name: str, hint: str) -> None:
    with pytest.raises(BadComponentError) as caught:
        images.parse_disabled(["coredns", f"servicelb,{name}"])
    assert caught.value.hint.startswith(hint)


def test_pause_says_why() -> None:
    with pytest.raises(BadComponentError, match="every pod needs it"):
        images.parse_disabled(["mirrored-pause"])
