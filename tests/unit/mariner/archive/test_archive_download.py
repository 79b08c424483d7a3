from __future__ import annotations

import http.client
import re
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mariner.archive import download
from mariner.archive.download import DownloadLimits, _hang_up, is_public, url_allowed
from mariner.errors import DownloadFailed
from remote import OK, Remote

ANY = [re.compile("https?://.*")]


def fetch(url: str, target: Path, **options: Any) -> None:
    with target.open("wb") as file:
        download.fetch(url, file, **options)


@pytest.fixture
def remote() -> Iterator[Callable[..., Remote]]:
    remotes: list[Remote] = []

    def start(*script: bytes, tls: ssl.SSLContext | None = None) -> Remote:
        remotes.append(Remote(*script, tls=tls))
        return remotes[-1]

    yield start
    for one in remotes:
        one.close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "m.mar"


@contextmanager
def failing(hint: str) -> Iterator[None]:
    with pytest.raises(DownloadFailed) as caught:
        yield
    assert caught.value.message.startswith("Failed to download archive from: http")
    assert caught.value.wire_name == "DownloadArchiveException"
    assert re.search(hint, caught.value.hint), caught.value.hint


def redirect(location: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


def test_the_url_is_signed_and_what_it_redirects_to_is_not(remote: Callable[..., Remote], target: Path) -> None:
    elsewhere = remote(OK)
    server = remote(redirect(elsewhere.url()))
    fetch(server.url("/a?b=c"), target, allowed_urls=ANY, sign=lambda parts: {"Authorization": f"by {parts.path}"})
    assert b"\r\nAuthorization: by /a\r\n" in server.requests[0]
    assert b"Authorization" not in elsewhere.requests[0]
    assert target.read_bytes() == b"archive"


def test_a_file_is_fetched_with_its_query(remote: Callable[..., Remote], target: Path) -> None:
    server = remote(OK)
    fetch(server.url("/dir/m.mar?signature=a%2Fb#part"), target, allowed_urls=ANY)
    assert target.read_bytes() == b"archive"
    assert server.requests[0].startswith(b"GET /dir/m.mar?signature=a%2Fb HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{server.port}".encode() in server.requests[0]


def test_a_connection_that_stays_open_ends_with_the_announced_length(
    remote: Callable[..., Remote], target: Path
) -> None:
    fetch(remote(OK + b"...").url(), target, allowed_urls=ANY)
    assert target.read_bytes() == b"archive"


def test_a_chunked_answer_is_put_together(remote: Callable[..., Remote], target: Path) -> None:
    server = remote(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\narc\r\n4\r\nhive\r\n0\r\n\r\n...")
    fetch(server.url(), target, allowed_urls=ANY)
    assert target.read_bytes() == b"archive"


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "127.0.0.1 answered 404 Not Found"),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", "answered 304"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "answered 302"),
        (b"", "RemoteDisconnected"),
        (b"220 smtp.example.org ESMTP\r\n", "BadStatusLine"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 70\r\n\r\narchive", "ended after 7 of 70 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\narc", "broke after"),
    ],
)
def test_an_answer_that_is_no_whole_file_is_a_failure(
    remote: Callable[..., Remote], target: Path, answer: bytes, hint: str
) -> None:
    with failing(hint):
        fetch(remote(answer).url(), target, allowed_urls=ANY)


def test_a_host_that_does_not_listen_is_a_failure(target: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with failing("127.0.0.1: Connection refused"):
        fetch(f"http://127.0.0.1:{port}/m.mar", target, allowed_urls=ANY)
    assert target.read_bytes() == b""


def test_an_unknown_host_is_a_failure(target: Path) -> None:
    def resolve(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with failing("The host nowhere.example is unknown"):
        fetch("https://nowhere.example/m.mar", target, allowed_urls=ANY, resolve=resolve)


@pytest.mark.parametrize("answer", [b"...", OK[:-3] + b"..."])
def test_a_silent_host_is_given_up(remote: Callable[..., Remote], target: Path, answer: bytes) -> None:
    with failing("TimeoutError|timed out|broke after"):
        fetch(remote(answer).url(), target, allowed_urls=ANY, limits=DownloadLimits(silence=0.05))


def test_a_host_that_never_finishes_its_headers_is_given_up(remote: Callable[..., Remote], target: Path) -> None:
    server = remote(b"HTTP/1.1 200 OK\r\nX-Slow: ...")
    with failing("longer than a download may take|RemoteDisconnected"):
        fetch(server.url(), target, allowed_urls=ANY, limits=DownloadLimits(total=0.05, silence=30))


def test_a_download_whose_time_is_over_does_not_begin(remote: Callable[..., Remote], target: Path) -> None:
    server = remote()
    with failing("longer than a download may take"):
        fetch(server.url(), target, allowed_urls=ANY, limits=DownloadLimits(total=-1))


def test_hanging_up_before_there_is_a_connection_is_harmless() -> None:
    _hang_up(http.client.HTTPConnection("localhost"))


@pytest.mark.parametrize("answer", [OK, b"HTTP/1.1 200 OK\r\n\r\narchive"])
def test_a_file_beyond_the_limit_is_given_up(remote: Callable[..., Remote], target: Path, answer: bytes) -> None:
    with failing("It is larger than 6 bytes"):
        fetch(remote(answer).url(), target, allowed_urls=ANY, limits=DownloadLimits(size=6))


# -- where it may lead -----------------------------------------------------------------------------------------------


def test_a_redirect_is_followed(remote: Callable[..., Remote], target: Path) -> None:
    second = remote(OK)
    fetch(remote(redirect(second.url("/other.mar"))).url(), target, allowed_urls=ANY)
    assert target.read_bytes() == b"archive"
    assert second.requests[0].startswith(b"GET /other.mar ")


def test_a_redirect_to_what_no_pattern_matches_is_refused(remote: Callable[..., Remote], target: Path) -> None:
    second = remote(OK)
    first = remote(redirect(second.url("/other.mar")))
    with failing(f"It leads to {re.escape(second.url('/other.mar'))}, which no pattern in allowed_urls matches"):
        fetch(first.url(), target, allowed_urls=[re.compile(re.escape(first.url()))])
    assert second.requests == []


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://host/x", "http://[::1", "http://a:0/"])
def test_a_redirect_to_anything_but_http_is_refused(remote: Callable[..., Remote], target: Path, location: str) -> None:
    with failing("is no http or https URL"):
        fetch(remote(redirect(location)).url(), target, allowed_urls=[re.compile(".*")])


def test_redirects_in_a_circle_end(remote: Callable[..., Remote], target: Path) -> None:
    server = remote(*[redirect("/m.mar")] * 3)
    with failing("It redirects more than 2 times"):
        fetch(server.url(), target, allowed_urls=ANY, limits=DownloadLimits(redirects=2))
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "url",
    [
        "http://allowed.example@127.0.0.1/m.mar",
        "http://a\\@b/m.mar",
        "http://a b/m.mar",
        "http://a/\tm.mar",
        "http:///m",
    ],
)
def test_a_url_that_programs_read_differently_is_refused(target: Path, url: str) -> None:
    with failing("is no http or https URL"):
        fetch(url, target, allowed_urls=[re.compile(".*", re.DOTALL)])


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{}/m.mar", "http://localhost:{}/m.mar", "http://2130706433:{}/m.mar"]
)
def test_without_patterns_this_machine_is_out_of_reach(remote: Callable[..., Remote], target: Path, url: str) -> None:
    server = remote()
    with failing("is not on the public internet"):
        fetch(url.format(server.port), target, allowed_urls=[])
    assert server.requests == []


def test_a_name_with_one_private_address_is_refused(target: Path) -> None:
    with failing("models.example is not on the public internet"):
        fetch(
            "https://models.example/m.mar", target, allowed_urls=[], resolve=lambda host, port: ["1.1.1.1", "10.0.0.1"]
        )


def test_a_name_without_any_address_is_refused(target: Path) -> None:
    with failing("models.example has no address"):
        fetch("https://models.example/m.mar", target, allowed_urls=[], resolve=lambda host, port: [])


def test_the_connection_goes_to_the_address_that_was_checked(remote: Callable[..., Remote], target: Path) -> None:
    server, asked = remote(OK), []

    def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"]

    fetch(f"http://models.example:{server.port}/m.mar", target, allowed_urls=ANY, resolve=resolve)
    assert asked == ["models.example"]
    assert f"Host: models.example:{server.port}".encode() in server.requests[0]


def self_signed(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """A context for a server at 127.0.0.1, and the certificate that vouches for it."""
    key, certificate = directory / "key.pem", directory / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=test"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context, certificate


def test_a_certificate_nobody_vouches_for_is_refused(
    remote: Callable[..., Remote], target: Path, tmp_path: Path
) -> None:
    context, _ = self_signed(tmp_path)
    server = remote(OK, tls=context)
    with failing("CERTIFICATE_VERIFY_FAILED"):
        fetch(f"https://127.0.0.1:{server.port}/m.mar", target, allowed_urls=ANY)


def test_https_is_spoken_and_not_left_for_http(
    remote: Callable[..., Remote], target: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context, certificate = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server = remote(redirect("http://127.0.0.1/m.mar"), OK, tls=context)
    with failing("It redirects from https to something that is not encrypted"):
        fetch(f"https://127.0.0.1:{server.port}/m.mar", target, allowed_urls=ANY)
    fetch(f"https://127.0.0.1:{server.port}/m.mar", target, allowed_urls=ANY)
    assert target.read_bytes() == b"archive"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "2001:db8::1",
    ],
)
def test_addresses_that_are_not_the_internets(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_addresses_of_the_internet(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://example.org/x.mar", True),
        ("HTTPS://Example.ORG/x.mar", True),
        ("https://example.org.evil/x.mar", False),
        ("see https://example.org/x.mar", False),
        ("https://example.org/x.mar\n", False),
    ],
)
def test_a_pattern_matches_the_whole_url_in_any_case(url: str, allowed: bool) -> None:
    assert url_allowed(url, [re.compile(r"https://example\.org/.*")]) is allowed
