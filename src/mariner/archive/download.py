"""Fetching a remote archive without being made to fetch anything else.

Every address is checked before it is connected to, and the connection goes to the address that was checked: a name
that resolves differently the second time, or a redirect, leads nowhere new.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import BinaryIO, Protocol
from urllib.parse import SplitResult, urljoin, urlsplit

from mariner.errors import DownloadFailed

__all__ = ["DownloadLimits", "Downloader", "Resolver", "Signer", "download_failed", "fetch", "is_public", "url_allowed"]

CHUNK = 1 << 20
REDIRECTS = frozenset({301, 302, 303, 307, 308})

# Answered by machines that are no part of the internet, although the address ranges are public ones: the metadata
# services of Azure and of Oracle's older images, and what a NAT64 gateway translates into private IPv4.
_CLOUD_NETWORKS = (ipaddress.ip_network("168.63.129.16/32"), ipaddress.ip_network("192.0.0.0/24"))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Resolver = Callable[[str, int], Sequence[str]]
Signer = Callable[[SplitResult], Mapping[str, str]]


class Downloader(Protocol):
    """Writes what a URL names to a file."""

    def __call__(self, url: str, file: BinaryIO, *, allowed_urls: Sequence[re.Pattern[str]]) -> None: ...


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """When to give up.

    Attributes:
        size: bytes; large language models are the largest archives and stay below.
        total: seconds for everything; 100 GB at 30 MB/s.
        silence: seconds without a byte, connecting included.
        redirects: hops; object stores need one or two.
    """

    size: int = 1 << 40
    total: float = 3600.0
    silence: float = 30.0
    redirects: int = 5


def url_allowed(url: str, allowed_urls: Sequence[re.Pattern[str]]) -> bool:
    """A pattern matches the whole of the URL, in any case."""
    return any(re.compile(item.pattern, item.flags | re.IGNORECASE).fullmatch(url) for item in allowed_urls)


def is_public(address: str) -> bool:
    """The address belongs to the internet: not to this machine, its networks or its cloud's metadata service."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    if ip.is_multicast or ip.is_reserved:
        return False
    return ip.is_global and not any(ip in network for network in _CLOUD_NETWORKS)


def resolve_host(host: str, port: int) -> Sequence[str]:
    """The addresses of a host name."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def fetch(
    url: str,
    file: BinaryIO,
    *,
    allowed_urls: Sequence[re.Pattern[str]],
    limits: DownloadLimits | None = None,
    resolve: Resolver = resolve_host,
    sign: Signer | None = None,
) -> None:
    """Downloads over HTTP or HTTPS.

    Args:
        url: what to fetch.
        file: takes the content; after an error it may have some of it.
        allowed_urls: patterns of which one must match the URL and each redirect; such URLs may lead to any address.
            Without patterns any URL is allowed that leads to a public address.
        limits: when to give up.
        resolve: finds the addresses of a host.
        sign: makes headers that prove who asks; for the URL alone, not for what it redirects to.

    Raises:
        DownloadFailed: nothing or not all arrived, or it must not be fetched from there.
        OSError: the file cannot be written.
    """
    limits = limits or DownloadLimits()
    deadline = time.monotonic() + limits.total
    location = url
    for _ in range(limits.redirects + 1):
        if time.monotonic() > deadline:
            raise download_failed(url, "It took longer than a download may take.")
        parts = _check_url(url, location, allowed_urls)
        headers = sign(parts) if sign is not None and location == url else {}
        address = _check_addresses(url, parts, resolve, anywhere=bool(allowed_urls))
        with (
            closing(_connection(parts, address, limits)) as connection,
            # A response that ends with its connection outlives connection.close().
            closing(_request(url, connection, parts, headers, deadline)) as response,
        ):
            redirect = response.getheader("Location")
            if response.status in REDIRECTS and redirect:
                location = _follow(url, location, redirect)
                continue
            if response.status != 200:
                raise download_failed(url, f"{parts.hostname} answered {response.status} {response.reason}.")
            file.writelines(_body(url, response, limits, deadline))
            return
    raise download_failed(url, f"It redirects more than {limits.redirects} times.")


def download_failed(url: str, hint: str) -> DownloadFailed:
    return DownloadFailed(f"Failed to download archive from: {url}", hint=hint)


# -- checks ----------------------------------------------------------------------------------------------------------


def _check_url(url: str, location: str, allowed_urls: Sequence[re.Pattern[str]]) -> SplitResult:
    if allowed_urls and not url_allowed(location, allowed_urls):
        raise download_failed(url, f"It leads to {location}, which no pattern in allowed_urls matches.")
    try:
        parts = urlsplit(location)
        valid = bool(parts.hostname) and parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:
        valid = False
    # Programs differ in what they take for the host of http://a@b and http://a\@b: a pattern may have meant the other.
    if not valid or parts.username is not None or re.search(r"[\\\x00-\x20\x7f]", location):
        raise download_failed(url, f"{location!r} is no http or https URL of the form https://host[:port]/path.")
    return parts


def _check_addresses(url: str, parts: SplitResult, resolve: Resolver, *, anywhere: bool) -> str:
    host, port = _endpoint(parts)
    try:
        addresses = resolve(host, port)
    except (OSError, UnicodeError) as error:
        raise download_failed(url, f"The host {host} is unknown.") from error
    if not anywhere and not all(is_public(address) for address in addresses):
        raise download_failed(
            url, f"{host} is not on the public internet. If that is intended, add a pattern for it to allowed_urls."
        )
    if not addresses:
        raise download_failed(url, f"The host {host} has no address.")
    return addresses[0]


def _follow(url: str, location: str, redirect: str) -> str:
    try:
        target = urljoin(location, redirect)
    except ValueError:
        target = redirect  # malformed, as the check of the URL is going to say
    if location.lower().startswith("https:") and not target.lower().startswith("https:"):
        raise download_failed(url, "It redirects from https to something that is not encrypted.")
    return target


# -- connection ------------------------------------------------------------------------------------------------------


def _endpoint(parts: SplitResult) -> tuple[str, int]:
    host = parts.hostname
    assert host is not None
    return host, parts.port or (443 if parts.scheme == "https" else 80)


class _HTTPConnection(http.client.HTTPConnection):
    """Connects to the address that was checked; the name in the URL only goes into the Host header."""

    def __init__(self, host: str, port: int, address: str, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), self.timeout)


class _HTTPSConnection(_HTTPConnection):
    """The same with TLS; the certificate must be for the name in the URL."""

    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def _connection(parts: SplitResult, address: str, limits: DownloadLimits) -> _HTTPConnection:
    host, port = _endpoint(parts)
    kind = _HTTPSConnection if parts.scheme == "https" else _HTTPConnection
    return kind(host, port, address, limits.silence)


def _request(
    url: str, connection: _HTTPConnection, parts: SplitResult, headers: Mapping[str, str], deadline: float
) -> http.client.HTTPResponse:
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    # Header by header a slow server could stay below the time-out of a single read for years.
    watchdog = threading.Timer(max(0.0, deadline - time.monotonic()), lambda: _hang_up(connection))
    watchdog.daemon = True
    watchdog.start()
    try:
        connection.request("GET", path, headers={"User-Agent": "mariner", "Accept": "*/*", **headers})
        return connection.getresponse()
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        reason = error.reason if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None)
        raise download_failed(url, f"{parts.hostname}: {reason or type(error).__name__}.") from error
    finally:
        watchdog.cancel()


def _hang_up(connection: http.client.HTTPConnection) -> None:
    if isinstance(connection.sock, socket.socket):
        with suppress(OSError):  # it is closed already
            # Of the plain socket, under the TLS that the other thread reads from; it sees the end of the stream.
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)


def _body(url: str, response: http.client.HTTPResponse, limits: DownloadLimits, deadline: float) -> Iterator[bytes]:
    announced, received = response.length, 0
    while True:
        if max(announced or 0, received) > limits.size:
            raise download_failed(url, f"It is larger than {limits.size} bytes.")
        if time.monotonic() > deadline:
            raise download_failed(url, "It took longer than a download may take.")
        wanted = CHUNK if announced is None else min(CHUNK, announced - received)
        try:
            chunk = response.read1(wanted) if wanted else b""
        except (OSError, http.client.HTTPException) as error:
            raise download_failed(url, f"The connection broke after {received} bytes.") from error
        if not chunk:
            break
        received += len(chunk)
        yield chunk
    if announced is not None and received != announced:
        raise download_failed(url, f"The connection ended after {received} of {announced} bytes.")
