"""What is taken from a kubeconfig, and what is refused."""

from __future__ import annotations

import os
import ssl
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
import yaml

from bundler.errors import BadKubeconfigError
from bundler.net import Tls
from bundler.net.tls import context_for
from bundler.site.kubeconfig import Kubeconfig
from tests.support.certificates import Authority

SECRET = "c2VjcmV0"  # noqa: S105 - of nothing
TOKEN = "hunter2token"  # noqa: S105 - of nothing
NAME = "/etc/rancher/k3s/k3s.yaml"


def config(cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None, **top: Any) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "other", "cluster": {"server": "https://other:6443"}},
                {"name": "c", "cluster": {"server": "https://127.0.0.1:6443", **(cluster or {})}},
            ],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
            "users": [{"name": "u", "user": user or {}}],
            **top,
        },
        sort_keys=False,
    )


def pem(text: str) -> str:
    return b64encode(f"-----BEGIN {text}-----".encode()).decode()


def test_the_current_context_counts() -> None:
    found = Kubeconfig.parse(config(user={"token": TOKEN}), NAME)
    assert found.server == "https://127.0.0.1:6443"
    assert found.authorization() == f"Bearer {TOKEN}"
    assert found.has_credentials
    assert found.tls() == Tls()


def test_a_slash_at_the_end_of_the_server_is_dropped() -> None:
    assert Kubeconfig.parse(config({"server": "https://h/k8s/x/"}), NAME).server == "https://h/k8s/x"


def test_nobody_has_no_credentials() -> None:
    found = Kubeconfig.parse(config(), NAME)
    assert not found.has_credentials
    assert found.authorization() is None


def test_paths_are_relative_to_the_kubeconfig() -> None:
    user = {"client-certificate": "tls/a.crt", "client-key": "/keys/a.key", "tokenFile": "token"}
    found = Kubeconfig.parse(config({"certificate-authority": "ca.crt"}, user), NAME)
    assert found.tls() == Tls(("/etc/rancher/k3s/ca.crt",), "/etc/rancher/k3s/tls/a.crt", "/keys/a.key")


def test_verification_can_be_switched_off() -> None:
    assert Kubeconfig.parse(config({"insecure-skip-tls-verify": True}), NAME).tls().skip_verify


def test_a_token_file_comes_before_a_token_and_is_read_anew(tmp_path: Path) -> None:
    found = Kubeconfig.parse(config(user={"token": TOKEN, "tokenFile": "t"}), str(tmp_path / "config"))
    for text in ("one", "two"):
        (tmp_path / "t").write_text(f"{text}\n")
        assert found.authorization() == f"Bearer {text}"


@pytest.mark.parametrize("content", [b"", b"two words", b"a\nb", b"\xff\xfe"], ids=["empty", "words", "lines", "bytes"])
def test_a_file_that_holds_no_token(tmp_path: Path, content: bytes) -> None:
    found = Kubeconfig.parse(config(user={"tokenFile": "t"}), str(tmp_path / "config"))
    with pytest.raises(BadKubeconfigError, match="cannot be read: No such file"):
        found.authorization()
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(BadKubeconfigError, match=r"holds no token$"):
        found.authorization()


def test_certificates_in_the_kubeconfig_reach_openssl_without_touching_a_disk(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    pair = authority.issue("somebody", client=True)
    user = {
        "client-certificate-data": b64encode(pair.cert.read_bytes()).decode(),
        "client-key-data": b64encode(pair.key.read_bytes()).decode(),
    }
    ca, cert = authority.ca_file.read_bytes(), pair.cert.read_bytes()
    found = Kubeconfig.parse(config({"certificate-authority-data": b64encode(ca).decode()}, user), NAME)
    for file in (tmp_path / "ca").iterdir():
        file.unlink()
    tls = found.tls()
    assert tls.cert_file
    assert tls.key_file
    assert all(
        str(Path(path).readlink()).startswith("/memfd:") for path in (*tls.ca_files, tls.cert_file, tls.key_file)
    )
    # What OpenSSL took is the CA of ours, among those of the machine.
    der = ssl.PEM_cert_to_DER_cert(ca.decode())
    assert der in context_for(tls).get_ca_certs(binary_form=True)
    assert Path(tls.cert_file).read_bytes() == cert
    assert found.tls() == tls


def test_the_same_content_is_kept_once_and_other_content_elsewhere() -> None:
    one, same, other = (
        Kubeconfig.parse(config({"certificate-authority-data": pem(text)}), NAME).tls() for text in ("A", "A", "B")
    )
    assert one == same
    assert one.ca_files != other.ca_files
    assert Path(one.ca_files[0]).read_text() == "-----BEGIN A-----"


def test_without_files_in_memory_files_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    found = Kubeconfig.parse(config({"certificate-authority-data": pem("NOWHERE ELSE")}), NAME)
    with pytest.raises(BadKubeconfigError, match="on Linux only"):
        found.tls()


def test_repr_shows_no_secret() -> None:
    user = {"client-certificate-data": pem("CERT"), "client-key-data": pem("KEY"), "token": TOKEN}
    shown = repr(Kubeconfig.parse(config({"certificate-authority-data": pem("CA")}, user), NAME))
    assert TOKEN not in shown
    assert "BEGIN" not in shown
    assert "https://127.0.0.1:6443" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "k:1:1: current-context is not set"),
        ("- a", "k:1:1: the document must be a mapping"),
        ("a: [", "k:1:"),
        (
            config().replace("current-context: x", "current-context: y"),
            "current-context names what is not under contexts",
        ),
        (config(contexts=[{"name": "x", "context": {"user": "u"}}]), "the context names no cluster"),
        (config(contexts=[{"name": "x", "context": {"cluster": "n", "user": "u"}}]), "cluster names what is not under"),
        (config(contexts=[{"name": "x", "context": {"cluster": "c", "user": "n"}}]), "user names what is not under us"),
        (config({"server": ""}), "the cluster has no server"),
        (config({"server": "ftp://h"}), "server is not https://HOST:PORT"),
        (config({"server": f"https://u:{SECRET}@h"}), "server is not https://HOST:PORT"),
        (config({"server": "https://h:99999"}), "server is not https://HOST:PORT"),
        (config({"server": "http://h"}, {"token": TOKEN}), "where credentials would be readable"),
        (config({"tls-server-name": "h"}), "k:10:22: tls-server-name is not supported"),
        (config({"proxy-url": "http://h"}), "proxy-url is not supported"),
        (config({"certificate-authority": "f", "insecure-skip-tls-verify": True}), "exclude each other"),
        (config({"certificate-authority-data": f"*{SECRET}"}), "certificate-authority-data is not base64"),
        (config({"certificate-authority-data": SECRET}), "is not base64 of a PEM file"),
        (config(user={"client-key-data": SECRET, "client-certificate": "f"}), "is not base64 of a PEM file"),
        (config(user={"client-certificate": "f"}), "and its key are needed together"),
        (config(user={"token": f"{SECRET} {SECRET}"}), "token has characters that no token has"),
        (config(user={"exec": {"command": SECRET}}), "exec is not supported"),
        (config(user={"auth-provider": {"name": SECRET}}), "auth-provider is not supported"),
        (config(user={"username": "u", "password": SECRET}), "username is not supported"),
        (config(user={"password": SECRET}), "password is not supported"),
        (config(user={"as": "root"}), "as is not supported"),
    ],
    ids=lambda value: None if "\n" in value or len(value) < 5 else value[:40],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadKubeconfigError) as raised:
        Kubeconfig.parse(text, "k")
    assert message in raised.value.message
    assert raised.value.message.startswith("k:")
    assert SECRET not in str(raised.value.to_dict())
    assert raised.value.hint
    assert raised.value.exit_code == 3


def test_a_program_is_refused_with_what_to_use_instead() -> None:
    with pytest.raises(BadKubeconfigError) as raised:
        Kubeconfig.parse(config(user={"exec": {"command": "aws"}}), "k")
    assert "/etc/rancher/k3s/k3s.yaml" in raised.value.hint


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "config"
    with pytest.raises(BadKubeconfigError, match="cannot be read: No such file or directory"):
        Kubeconfig.load(path)
    path.write_bytes(b"\xff")
    with pytest.raises(BadKubeconfigError, match="is not text"):
        Kubeconfig.load(path)
    path.write_text(config({"certificate-authority": "ca"}))
    assert Kubeconfig.load(path).tls() == Tls((str(tmp_path / "ca"),))
