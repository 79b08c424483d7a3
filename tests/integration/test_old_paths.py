"""The prediction paths of SageMaker and of TorchServe's predecessors, with a real model."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_serving import FIELDS, ONE_WORKER, Client, put_model

from mariner.testing import running_server

pytestmark = pytest.mark.slow


async def test_every_old_path_reaches_the_handler_with_its_query(tmp_path: Path) -> None:
    put_model(tmp_path / "store", "fields", FIELDS, ONE_WORKER)
    async with running_server(model_store=tmp_path / "store", load_models=("fields",), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        client = await Client.connect(server)
        empty = {"data": "bytearray(b'test')", "body": "bytearray(b'')"}
        for path in ("/fields/predict", "/fields/1.0/predict", "/models/fields/invoke", "/invocations"):
            answer = await client.ask("GET", f"{path}?data=test")
            assert (answer.status, answer.json) == (200, empty), path
        answer = await client.ask("PUT", "/invocations?model_name=fields", b"hello", Content_Type="text/plain")
        assert answer.json == {"model_name": "bytearray(b'fields')", "body": "hello"}
        assert (await client.ask("POST", "/invocations?model_name=absent")).json["message"] == "Model not found: absent"
        await client.close()
