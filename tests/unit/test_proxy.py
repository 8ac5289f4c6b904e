"""Which proxy a URL is asked through: the rules of Go's programs, which docker and K3s are."""

from __future__ import annotations

import pytest

from bundler.errors import BadProxyError
from bundler.net import Proxies

PROXY = "http://proxy.example:3128"


def direct(no_proxy: str, url: str) -> bool:
    proxies = Proxies.from_environment({"HTTPS_PROXY": PROXY, "HTTP_PROXY": PROXY, "NO_PROXY": no_proxy})
    return proxies.proxy_for(url) is None


@pytest.mark.parametrize(
    ("no_proxy", "url"),
    [
        ("*", "https://a.example/x"),
        ("other,*", "https://10.0.0.1"),
        ("a.example", "https://a.example/x"),
        ("A.Example", "https://a.example"),
        ("a.example", "https://A.EXAMPLE/x"),
        ("a.example", "https://a.example./x"),
        ("example", "https://a.example"),
        ("a.example", "https://b.a.example"),
        (".example", "https://a.example"),
        (".a.example", "https://b.a.example:8443"),
        ("*.example", "https://a.example"),
        ("a.example:443", "https://a.example"),
        ("a.example:80", "http://a.example"),
        ("a.example:8443", "https://a.example:8443"),
        (".example:8443", "https://a.example:8443"),
        ("x , a.example ,, y", "https://a.example"),
        ("10.0.0.1", "https://10.0.0.1"),
        ("10.0.0.0/8", "https://10.20.30.40:5000"),
        ("10.1.2.3/8", "http://10.20.30.40:5000"),
        ("10.0.0.1:5000", "http://10.0.0.1:5000"),
        ("fd00::/8", "https://[fd00::1]:5000"),
        ("fd00::1", "https://[fd00::1]"),
        ("[fd00::1]", "https://[fd00::1]:5000"),
        ("[fd00::1]:5000", "https://[fd00::1]:5000"),
        ("fd00:0:0::1", "https://[fd00::1]"),
        # This machine is never asked through a proxy.
        ("", "https://localhost:5000"),
        ("", "http://127.0.0.1:5000"),
        ("", "https://127.1.2.3"),
        ("", "http://[::1]:5000"),
    ],
)
def test_what_is_asked_directly(no_proxy: str, url: str) -> None:
    assert direct(no_proxy, url)


@pytest.mark.parametrize(
    ("no_proxy", "url"),
    [
        ("", "https://a.example"),
        (",,", "https://a.example"),
        ("b.example", "https://a.example"),
        ("a.example", "https://xa.example"),
        ("a.example", "https://a.example.evil"),
        (".a.example", "https://a.example"),
        ("*.a.example", "https://a.example"),
        (".example", "https://aexample"),
        ("a.example:443", "https://a.example:8443"),
        ("a.example:443", "http://a.example"),
        ("10.0.0.0/8", "https://11.0.0.1"),
        ("10.0.0.0/8", "https://10.example"),
        ("10.0.0.0/8", "https://a.10.0.0.1.example"),
        ("10.0.0.1:443", "https://10.0.0.1:5000"),
        ("10.0.0.1", "https://110.0.0.1"),
        ("0.0.1", "https://10.0.0.1"),
        ("fd00::/8", "https://[fe80::1]"),
        ("fd00::/8", "https://10.0.0.1"),
        ("0.0.0.0/0", "https://[fd00::1]"),
        ("[fd00::1]:443", "https://[fd00::1]:5000"),
        ("localhost", "https://localhost.example"),
        ("999.0.0.1/8", "https://10.0.0.1"),
        ("https://a.example", "https://a.example"),
    ],
)
def test_what_is_asked_through_the_proxy(no_proxy: str, url: str) -> None:
    assert not direct(no_proxy, url)


@pytest.mark.parametrize(
    ("environ", "http", "https"),
    [
        ({}, None, None),
        ({"HTTP_PROXY": PROXY}, PROXY, None),
        ({"HTTPS_PROXY": PROXY}, None, PROXY),
        ({"http_proxy": PROXY, "https_proxy": "http://b.example"}, PROXY, "http://b.example"),
        ({"HTTPS_PROXY": PROXY, "https_proxy": "http://b.example"}, None, PROXY),
        ({"HTTPS_PROXY": "", "https_proxy": PROXY}, None, PROXY),
        ({"HTTPS_PROXY": "  "}, None, None),
        ({"HTTPS_PROXY": " proxy.example:3128 "}, None, PROXY),
        ({"HTTPS_PROXY": "http://[fd00::1]:3128/"}, None, "http://[fd00::1]:3128/"),
        ({"ALL_PROXY": PROXY, "all_proxy": PROXY, "FTP_PROXY": PROXY}, None, None),
    ],
)
def test_each_scheme_has_its_variable(environ: dict[str, str], http: str | None, https: str | None) -> None:
    proxies = Proxies.from_environment(environ)
    assert proxies.proxy_for("http://a.example/x") == http
    assert proxies.proxy_for("https://a.example/x") == https


@pytest.mark.parametrize(
    "text",
    [
        "socks5://u:s3cret@proxy.example",
        # The proxy itself is asked by http://, also for https.
        "https://u:s3cret@proxy.example",
        "ftp://u:s3cret@proxy.example",
        "http://",
        "http://u:s3cret@",
        "http://proxy.example:port",
        "http://proxy.example:70000",
        "http://proxy.example:0",
        "http://[::1",
        "u:s3cret@",
        # A password that holds what ends the host of a URL.
        "http://u:12#s3cret@proxy.example:3128",
        "http://u:12/s3cret@proxy.example:3128",
        "http://u:12?s3cret@proxy.example:3128",
        "http://proxy.example/path",
        "http://proxy exam.ple:3128",
    ],
)
@pytest.mark.parametrize("name", ["HTTP_PROXY", "HTTPS_PROXY", "https_proxy"])
def test_what_is_no_proxy_is_refused_and_not_quoted(name: str, text: str) -> None:
    with pytest.raises(BadProxyError) as caught:
        Proxies.from_environment({name: text})
    assert caught.value.exit_code == 3
    assert name.upper() in caught.value.message
    assert "s3cret" not in caught.value.message + caught.value.hint
    assert "12" not in caught.value.message


def test_no_password_of_a_proxy_is_shown() -> None:
    proxies = Proxies.from_environment({"HTTPS_PROXY": "http://u:s3cret@proxy.example", "NO_PROXY": "a.example"})
    assert "s3cret" not in repr(proxies)
    assert "a.example" in repr(proxies)
