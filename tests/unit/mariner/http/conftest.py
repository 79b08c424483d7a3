from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext
from typing import Any, Protocol, cast

import pytest
from http_peer import Client, FakeModelServer

import tls_files
from mariner.address import Address
from mariner.auth import Access, Listener
from mariner.bodies import Arena
from mariner.config import TokenMode
from mariner.http.app import App
from mariner.http.connections import Connections, Limits
from mariner.http.listener import HttpListener
from mariner.http.protocol import HttpProtocol
from mariner.model_server import ModelServer


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Running:
    """A listener with a fake model server behind it."""

    models: FakeModelServer
    listener: HttpListener
    arena: Arena
    clock: Clock
    stack: AsyncExitStack
    client_tls: SSLContext | None = None

    @property
    def connections(self) -> Connections:
        return self.listener._connections

    @property
    def connection(self) -> HttpProtocol:
        """The only one."""
        (connection,) = self.connections._open
        assert isinstance(connection, HttpProtocol)
        return connection

    async def connect(self) -> Client:
        name = None if self.client_tls is None else "localhost"
        port = self.listener.address.port
        streams = await asyncio.open_connection("127.0.0.1", port, ssl=self.client_tls, server_hostname=name)
        client = Client(*streams)
        self.stack.push_async_callback(client.close)
        return client

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.connections.sweep()


class Start(Protocol):
    async def __call__(
        self,
        *kinds: Listener,
        limits: Limits | None = None,
        access: Access | None = None,
        pair: tls_files.Pair | None = None,
        **settings: Any,
    ) -> Running: ...


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tls_files.Pair:
    """Key and certificate of a server called localhost."""
    return tls_files.make_pair(Path(tmp_path_factory.mktemp("tls")))


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(1 << 22)
    yield arena
    assert arena.used == 0, "a body was not released"
    arena.close()


@pytest.fixture
async def start(arena: Arena) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def start(
            *kinds: Listener,
            limits: Limits | None = None,
            access: Access | None = None,
            pair: tls_files.Pair | None = None,
            **settings: Any,
        ) -> Running:
            models = FakeModelServer()
            made = App(
                cast("ModelServer", models),
                access or Access(TokenMode.AUTO),
                kinds or (Listener.INFERENCE,),
                **settings,
            )
            clock = Clock()
            address = Address.parse("http://127.0.0.1:0" if pair is None else "https://127.0.0.1:0")
            tls = None if pair is None else pair.server_context()
            listener = HttpListener(address, made, limits=limits, arena=arena, tls=tls, clock=clock)
            await listener.start()
            stack.push_async_callback(listener.close)
            stack.callback(models.forget)
            return Running(models, listener, arena, clock, stack, pair and pair.client_context())

        yield start


@pytest.fixture
async def running(start: Start) -> Running:
    """An inference listener."""
    return await start()
