"""Binding addresses, and both event loops."""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop
from conftest import Running, Start
from http_peer import Client, FakeModelServer, post

from mariner.address import Address
from mariner.auth import Access, Listener
from mariner.bodies import Arena
from mariner.config import TokenMode
from mariner.errors import ConfigurationError
from mariner.http.app import App
from mariner.http.listener import HttpListener, bind
from mariner.model_server import ModelServer


def listener(address: str) -> HttpListener:
    app = App(cast("ModelServer", FakeModelServer()), Access(TokenMode.AUTO), [Listener.INFERENCE])
    return HttpListener(Address.parse(address), app)


async def test_the_system_chooses_the_port_if_it_is_0(running: Running) -> None:
    assert running.listener.address.port > 0
    assert str(running.listener.address) == f"http://127.0.0.1:{running.listener.address.port}"


async def test_a_port_in_use_is_named_with_its_user(running: Running) -> None:
    port = running.listener.address.port
    with pytest.raises(ConfigurationError) as caught:
        await listener(f"http://127.0.0.1:{port}").start()
    assert caught.value.message.startswith(f"Failed to bind to address: http://127.0.0.1:{port}")
    assert f"listens on port {port}" in caught.value.hint


async def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Failed to bind to address: http://192\.0\.2\.1:0"):
        await listener("http://192.0.2.1:0").start()


async def test_a_host_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Failed to bind to address: http://no-such-host\.invalid:0"):
        await listener("http://no-such-host.invalid:0").start()


@pytest.fixture
def umask() -> Iterator[Callable[[int], object]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o640), (0o007, 0o660), (0o077, 0o600), (0o000, 0o660)], ids=oct)
async def test_a_unix_socket_serves_its_owner_and_the_group_if_the_umask_says_so(
    tmp_path: Path, umask: Callable[[int], object], mask: int, mode: int
) -> None:
    path = tmp_path / "socket"
    served = listener(f"unix:{path}")
    umask(mask)
    await served.start()
    assert stat.S_IMODE(path.stat().st_mode) == mode  # connecting takes the permission to write
    client = Client(*await asyncio.open_unix_connection(path))
    assert (await client.ask(post(body=b"x"))).body == b"x"
    await client.close()
    await served.close()
    assert not path.exists()


async def test_a_socket_that_another_server_has_put_in_place_stays(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    first, second = listener(f"unix:{path}"), listener(f"unix:{path}")
    await first.start()
    path.unlink()
    await second.start()
    await first.close()
    client = Client(*await asyncio.open_unix_connection(path))
    assert (await client.ask(post(body=b"x"))).status == 200
    await client.close()
    await second.close()
    assert not path.exists()


def test_a_socket_of_a_server_that_is_about_to_serve_stays(tmp_path: Path) -> None:
    address = Address.parse(f"unix:{tmp_path / 'socket'}")
    first = bind(address)
    with pytest.raises(ConfigurationError) as caught:
        bind(address)
    assert "listens on this socket" in caught.value.hint
    first.release()
    assert not (tmp_path / "socket").exists()


def test_a_socket_whose_server_is_too_busy_to_accept_stays(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as busy, ExitStack() as waiting:
        busy.bind(str(path))
        busy.listen(0)
        for _ in range(2):
            client = waiting.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect_ex(str(path))
        with pytest.raises(ConfigurationError):
            bind(Address.parse(f"unix:{path}"))
        assert path.exists()


def test_an_address_may_be_given_back_twice(tmp_path: Path) -> None:
    bound = bind(Address.parse(f"unix:{tmp_path / 'socket'}"))
    bound.release()
    bound.release()
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Failed to bind to address: unix:") as caught:
        bind(Address.parse(f"unix:{tmp_path / ('x' * 120)}"))
    assert "107 bytes" in caught.value.hint


async def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    served = listener(f"unix:{path}")
    await served.start()
    await served.close()


async def test_a_socket_in_use_stays(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    served = listener(f"unix:{path}")
    await served.start()
    with pytest.raises(ConfigurationError):
        await listener(f"unix:{path}").start()
    client = Client(*await asyncio.open_unix_connection(path))
    assert (await client.ask(post(body=b"x"))).status == 200
    await client.close()
    await served.close()


async def test_an_ordinary_file_is_not_overwritten_by_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(ConfigurationError):
        await listener(f"unix:{path}").start()
    assert path.read_text() == "precious"


async def test_nobody_connects_to_a_listener_that_stopped(running: Running) -> None:
    running.listener.stop_accepting()
    with pytest.raises(ConnectionRefusedError):
        await running.connect()


async def test_a_listener_may_be_closed_twice(start: Start) -> None:
    running = await start()
    await running.listener.close()
    await running.listener.close()


LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])
def test_an_ordinary_client_is_served_on_either_event_loop(new_loop: Callable[[], Any]) -> None:
    sizes = [0, 1, 1000, 65_535, 65_536, 200_000, 3_000_000]

    def talk(port: int) -> list[bool]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        same = []
        for size in sizes:
            body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            connection.request("PUT", "/predictions/m", body=body, headers={"Content-Type": "image/png"})
            same.append(connection.getresponse().read() == body)
        chunks = [b"abc", b"x" * 100_000]
        connection.request("POST", "/predictions/m", body=iter(chunks))
        same.append(connection.getresponse().read() == b"".join(chunks))
        connection.close()
        return same

    async def serve() -> None:
        arena = Arena(1 << 22)
        app = App(cast("ModelServer", FakeModelServer()), Access(TokenMode.AUTO), [Listener.INFERENCE])
        served = HttpListener(Address.parse("http://127.0.0.1:0"), app, arena=arena)
        await served.start()
        assert await asyncio.to_thread(talk, served.address.port) == [True] * 8
        await served.close()
        assert arena.used == 0
        arena.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve())
