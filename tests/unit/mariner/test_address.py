from __future__ import annotations

import pytest

from mariner.address import Address, Scheme
from mariner.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://127.0.0.1:8080", Address(Scheme.HTTP, "127.0.0.1", 8080)),
        ("HTTPS://example.org:443", Address(Scheme.HTTPS, "example.org", 443)),
        ("http://0.0.0.0", Address(Scheme.HTTP, "0.0.0.0", 80)),
        ("https://127.0.0.1", Address(Scheme.HTTPS, "127.0.0.1", 443)),
        ("http://[::1]:8080", Address(Scheme.HTTP, "::1", 8080)),
        ("http://127.0.0.1:0", Address(Scheme.HTTP, "127.0.0.1", 0)),
        ("unix:/tmp/server.sock", Address(Scheme.UNIX, path="/tmp/server.sock")),
    ],
)
def test_addresses_are_read(text: str, address: Address) -> None:
    assert Address.parse(text) == address


def test_a_listener_has_its_own_default_ports() -> None:
    assert Address.parse("http://h", http_port=8081, https_port=8444).port == 8081
    assert Address.parse("https://h", http_port=8081, https_port=8444).port == 8444


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://x",
        "127.0.0.1:8080",
        "http://",
        "http://h:",
        "http://h:80/path",
        "http://::1:80",
        "unix:relative",
        "unix:",
        "http://h:٣",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^Invalid binding address: "):
        Address.parse(text)


@pytest.mark.parametrize("port", [65535, 65536, 10**9])
def test_a_port_that_does_not_exist_is_refused(port: int) -> None:
    with pytest.raises(ConfigurationError, match=f"^Invalid port number: http://h:{port}$"):
        Address.parse(f"http://h:{port}")


@pytest.mark.parametrize("text", ["http://127.0.0.1:8080", "https://[::1]:8443", "unix:/run/s", "http://host:1"])
def test_an_address_is_written_as_it_was_read(text: str) -> None:
    assert str(Address.parse(text)) == text


def test_loopback_is_what_no_other_machine_reaches() -> None:
    assert all(
        Address.parse(t).loopback for t in ("http://127.1.2.3:1", "http://LocalHost:1", "http://[::1]:1", "unix:/s")
    )
    assert not any(
        Address.parse(text).loopback for text in ("http://0.0.0.0:1", "http://[::]:1", "http://example.org:1")
    )


def test_port_zero_is_chosen_by_the_system() -> None:
    assert Address.parse("http://127.0.0.1:0").ephemeral
    assert not Address.parse("unix:/s").ephemeral
