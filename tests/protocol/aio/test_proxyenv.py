"""Proxy variables as Go and curl read them."""

from __future__ import annotations

import pytest

from protocol.aio.proxyenv import BadProxy, excepted, parse_proxy, proxy_from_environment


@pytest.mark.parametrize(
    ("host", "port", "no_proxy", "direct"),
    [
        ("tower.example.com", 8443, "", False),
        ("tower.example.com", 8443, "*", True),
        ("tower.example.com", 8443, "example.com", True),
        ("tower.example.com", 8443, " Example.COM ", True),
        ("example.com", 8443, "example.com", True),
        ("example.com", 8443, ".example.com", False),
        ("tower.example.com", 8443, ".example.com", True),
        ("tower.example.com", 8443, "*.example.com", True),
        ("notexample.com", 8443, "example.com", False),
        ("tower.example.com.", 8443, "other, tower.example.com", True),
        ("tower.example.com", 8443, "example.com:8443", True),
        ("tower.example.com", 8443, "example.com:443", False),
        ("10.1.2.3", 8443, "10.0.0.0/8", True),
        ("11.1.2.3", 8443, "10.0.0.0/8", False),
        ("tower.example.com", 8443, "10.0.0.0/8", False),
        ("10.1.2.3", 8443, "10.1.2.3", True),
        ("10.1.2.3", 8443, "10.1.2.3:443", False),
        ("fd00::1", 8443, "fd00::/8", True),
        ("fd00::1", 8443, "[fd00::1]:8443", True),
        ("fd00::1", 8443, "[fd00::1]:443", False),
        ("10.1.2.3", 8443, "10.0.0.0/99", False),
        ("localhost", 8443, "", True),
        ("127.0.0.9", 8443, "", True),
        ("::1", 8443, "", True),
    ],
)
def test_exceptions(host: str, port: int, no_proxy: str, direct: bool) -> None:
    assert excepted(host, port, no_proxy) is direct


def test_the_environment_is_read_in_order() -> None:
    every = {
        "https_proxy": "http://small:1",
        "HTTPS_PROXY": "http://big:2",
        "HTTP_PROXY": "plain:3",
        "ALL_PROXY": "all:4",
    }

    def chosen(environ: dict[str, str], *, tls: bool = True) -> str:
        return str(proxy_from_environment("tower.example.com", 8443, tls=tls, environ=environ))

    assert chosen(every) == "http://big:2"
    assert chosen({k: v for k, v in every.items() if k != "HTTPS_PROXY"}) == "http://small:1"
    assert chosen(every, tls=False) == "http://plain:3"
    assert chosen({"ALL_PROXY": "all:4"}) == "http://all:4"
    assert chosen({"HTTP_PROXY": "plain:3"}) == "None"
    assert chosen({**every, "no_proxy": "example.com"}) == "None"


def test_credentials_are_kept_out_of_every_text() -> None:
    proxy = parse_proxy("https://user:p%40ss@proxy.example.com")
    assert (proxy.scheme, proxy.host, proxy.port, proxy.credentials) == (
        "https",
        "proxy.example.com",
        443,
        "dXNlcjpwQHNz",
    )
    assert "ss" not in str(proxy)
    assert "dXNl" not in repr(proxy)


@pytest.mark.parametrize("setting", ["socks5://user:hidden@p:1080", "http://user:hidden@", "http://user:hidden@p:port"])
def test_an_unusable_setting_is_refused_without_its_password(setting: str) -> None:
    with pytest.raises(BadProxy) as caught:
        parse_proxy(setting)
    assert "hidden" not in str(caught.value)
    assert "http" in str(caught.value)
