"""Which answers of a listener get a line in the access log, and what it says."""

from __future__ import annotations

import asyncio
from typing import Self

import pytest
from conftest import Clock
from http_peer import Client, FakeModelServer, get

from mariner.address import Address
from mariner.auth import Access, Listener
from mariner.config import TokenMode
from mariner.http.app import App
from mariner.http.connections import Limits
from mariner.http.listener import HttpListener
from mariner.logs import AccessLog


class Scene:
    def __init__(self, access_lines: int) -> None:
        self.chunks: list[bytes] = []
        self.clock = Clock()
        app = App(FakeModelServer(), Access(TokenMode.AUTO), (Listener.INFERENCE,))  # type: ignore[arg-type]
        self.listener = HttpListener(
            Address.parse("http://127.0.0.1:0"),
            app,
            limits=Limits(access_lines=access_lines),
            clock=self.clock,
            access_log=AccessLog(self.chunks.append, clock=lambda: 1_800_000_000.0),
        )

    async def __aenter__(self) -> Self:
        await self.listener.start()
        self.client = Client(*await asyncio.open_connection("127.0.0.1", self.listener.address.port))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await self.listener.close()

    def lines(self) -> list[str]:
        """What was written since the last call; a second has passed."""
        self.listener._connections.sweep()
        text = b"".join(self.chunks).decode()
        self.chunks.clear()
        return [line.split(" - ", 1)[1] for line in text.splitlines()]


async def test_a_line_says_who_asked_what_and_how_it_ended() -> None:
    async with Scene(10) as scene:
        for target in ("/ping?a=1", "/ping?a=1", "/absent"):  # the second has a head that is known
            await scene.client.ask(get(target))
        host, port = scene.client.writer.get_extra_info("sockname")
        assert scene.lines() == [
            f'/{host}:{port} "GET /ping?a=1 HTTP/1.1" 200 0',
            f'/{host}:{port} "GET /ping?a=1 HTTP/1.1" 200 0',
            f'/{host}:{port} "GET /absent HTTP/1.1" 404 0',
        ]


async def test_beyond_the_lines_of_a_second_only_errors_get_one(caplog: pytest.LogCaptureFixture) -> None:
    async with Scene(2) as scene:
        for target in ("/ping", "/ping", "/ping", "/absent"):
            await scene.client.ask(get(target))
        assert [line.split()[-2] for line in scene.lines()] == ["200", "200", "404"]
        assert caplog.text.count("access_log=all") == 1
        await scene.client.ask(get("/ping"))
        assert len(scene.lines()) == 1


async def test_no_lines_at_all_leave_the_errors(caplog: pytest.LogCaptureFixture) -> None:
    async with Scene(0) as scene:
        for target in ("/ping", "/absent"):
            await scene.client.ask(get(target))
        assert [line.split()[-2] for line in scene.lines()] == ["404"]
        assert "access_log=all" not in caplog.text
