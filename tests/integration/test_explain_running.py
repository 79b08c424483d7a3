"""``mariner config explain --model NAME --running``: what a server that runs says of its models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from test_serving import Client, put_model

from mariner import cli
from mariner.address import Address, Scheme
from mariner.auth import Listener
from mariner.config import TokenMode
from mariner.model_settings import RegisterOptions
from mariner.serve import Server
from mariner.testing import running_server
from tls_files import make_pair

pytestmark = pytest.mark.slow

Explain = Callable[..., Coroutine[Any, Any, list[str]]]
FREE_TLS = Address(Scheme.HTTPS, "127.0.0.1", 0)


@pytest.fixture
def explain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Explain:
    """The lines of the command for the model of a server: the output, or what is wrong."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    put_model(tmp_path / "store", "m", "echo", "maxBatchDelay: 50\n")

    async def explain(where: Server | str, *words: str, model: str = "m", status: int = 0) -> list[str]:
        address = where if isinstance(where, str) else str(where.address(Listener.MANAGEMENT))
        command = ["config", "explain", "--running", "--model", model, "--management-address", address, *words]
        assert await asyncio.to_thread(cli.main, command) == status
        captured = capsys.readouterr()
        return captured.err.splitlines() if status else captured.out.splitlines()

    return explain


async def test_values_come_from_the_api_the_archive_the_configuration_or_nowhere(
    tmp_path: Path, explain: Explain
) -> None:
    models = {"m": {"1.0": {"startupTimeout": 70}}}
    async with running_server(model_store=tmp_path / "store", temp_dir=tmp_path, models=models) as server:
        client = await Client.connect(server, Listener.MANAGEMENT)
        assert (await client.ask("POST", "/models?url=m&batch_size=4")).status == 200
        await client.close()
        lines = await explain(server)
    rows = {line.split()[0]: line.rstrip().split(maxsplit=2)[1:] for line in lines}
    assert rows["batchSize"] == ["4", "API"]
    assert rows["maxBatchDelay"] == ["50", "model config"]
    assert rows["startupTimeout"] == ["70", "models, default"]
    assert rows["minWorkers"] == ["0", "default"]


async def test_a_call_that_scales_decides_even_if_it_changes_nothing(tmp_path: Path, explain: Explain) -> None:
    async with running_server(model_store=tmp_path / "store", temp_dir=tmp_path) as server:
        await server.models.register("m", RegisterOptions(initial_workers=1))
        before = await explain(server, "minWorkers")
        await server.models.scale("m", None, 1, 1, synchronous=True)
        after = await explain(server, "minWorkers", model="m/1.0")
    assert (before[0], before[-1]) == ("minWorkers = 1", "  from: API")
    assert (after[0], after[-1]) == ("minWorkers = 1", "  from: API, scaled")


async def test_models_of_the_start_are_not_from_the_api(tmp_path: Path, explain: Explain) -> None:
    async with running_server(model_store=tmp_path / "store", temp_dir=tmp_path, load_models=("m",)) as server:
        assert (await explain(server, "minWorkers"))[-1] == "  from: default"


async def test_a_server_on_a_unix_socket_is_asked(tmp_path: Path, explain: Explain) -> None:
    place = Address(Scheme.UNIX, path=str(tmp_path / "socket"))
    async with running_server(
        model_store=tmp_path / "store", temp_dir=tmp_path, load_models=("m",), management_address=place
    ) as server:
        assert (await explain(server, "batchSize"))[0] == "batchSize = 1"


async def test_a_server_with_tls_and_tokens_is_asked(tmp_path: Path, explain: Explain) -> None:
    pair = make_pair(tmp_path / "tls")
    settings = {"private_key_file": pair.key_file, "certificate_file": pair.certificate_file}
    async with running_server(
        model_store=tmp_path / "store",
        temp_dir=tmp_path,
        load_models=("m",),
        management_address=FREE_TLS,
        token_authorization=TokenMode.ON,
        **settings,
    ) as server:
        with_key = await explain(server, "batchSize", "--certificate-file", str(pair.certificate_file))
        (tmp_path / "key_file.json").unlink()
        without = await explain(server, "batchSize", "--certificate-file", str(pair.certificate_file), status=1)
        stranger = make_pair(tmp_path / "other").certificate_file
        of_another = await explain(server, "batchSize", "--certificate-file", str(stranger), status=1)
    assert with_key[0] == "batchSize = 1"
    assert "refuses: Token Authorization failed." in without[0]
    assert "certificate verify failed" in of_another[0]


async def test_without_a_server_or_a_model_it_says_so(tmp_path: Path, explain: Explain) -> None:
    async with running_server(model_store=tmp_path / "store", temp_dir=tmp_path) as server:
        address = server.address(Listener.MANAGEMENT)
        assert await explain(server, status=1) == [f"The server on {address} refuses: Model not found: m"]
    first, hint = await explain(str(address), status=1)
    assert first.startswith(f"No server answers on {address}, the management address of these settings: ")
    assert hint == "Leave out --running to see what the next start would use."
