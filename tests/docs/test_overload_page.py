"""The page on overload against the code: each reason, and the handler as it stands there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_serving import ONE_WORKER, Client, put_model

from mariner import errors
from mariner.overload import LONGEST_RETRY, MARGIN
from mariner.testing import running_server

PAGE = (Path(__file__).parents[2] / "docs/explanation/overload.md").read_text()


def refusals(kind: type[errors.MarinerError] = errors.ServiceUnavailable) -> Iterator[tuple[int, str]]:
    if kind.reason:
        yield kind.status, kind.reason
    for below in kind.__subclasses__():
        yield from refusals(below)


def test_every_reason_is_on_the_page() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", PAGE, flags=re.MULTILINE)
    timeouts = {(status, errors.RequestTimeout.reason) for status in (408, 504)}
    assert {(int(status), reason) for status, reason in rows} == {*refusals(), *timeouts}


def test_the_numbers_are_those_of_the_code() -> None:
    assert f"between 1 and {LONGEST_RETRY:g}" in PAGE
    assert MARGIN == 1.5
    assert "one\n   and a half batches" in PAGE


@pytest.mark.slow
async def test_the_handler_of_the_page_stops_when_its_client_leaves(tmp_path: Path) -> None:
    (handler,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    put_model(tmp_path / "store", "m", handler, ONE_WORKER)
    async with running_server(model_store=tmp_path / "store", load_models=("m",), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        leaving, staying = await Client.connect(server), await Client.connect(server)
        body = {"Content_Type": "application/json"}
        await leaving.send("POST", "/predictions/m", b'{"steps": 100000}', **body)
        while not server.models.registry.get("m", None).pool.in_flight:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.001)
        await leaving.close()
        async with asyncio.timeout(20):
            answer = await staying.ask("POST", "/predictions/m", b'{"steps": 2}', **body)
        assert answer.json == {"steps": 2}
        await staying.close()
