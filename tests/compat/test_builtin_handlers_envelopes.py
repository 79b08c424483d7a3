"""Built-in envelopes in a real server: items 22-27 of the reference for built-in handlers.

The bodies that are not JSON, malformed and split ones are in the unit tests of the envelopes.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from served_models import PAIRS, ask, ask_together, put_archive

from mariner.serve import Server
from mariner.testing import running_server
from ts.loader import wrap_in_envelope
from ts.torch_handler.request_envelope.base import BaseEnvelope
from ts.torch_handler.request_envelope.json import JSONEnvelope

pytestmark = pytest.mark.slow

# Answers with what it got: the length of bytes, the double of a number, and how many requests the batch had.
HANDLER = """
def handle(data, context):
    if data is None:
        return None
    print("GOT", [type(row).__name__ for row in data])
    return [answer(row["data"] if isinstance(row, dict) and "data" in row else row) for row in data]

def answer(value):
    if isinstance(value, list):
        return [answer(item) for item in value]
    if isinstance(value, dict):
        return {name: answer(item) for name, item in value.items()}
    return len(value) if isinstance(value, (bytes, bytearray)) else 2 * value
"""


@asynccontextmanager
async def serving(place: Path, envelope: str, config: str = "minWorkers: 1\nmaxWorkers: 1\n") -> AsyncIterator[Server]:
    put_archive(place / "store", "doubles", "handler.py", {"handler.py": HANDLER}, config, modelVersion="3.1")
    async with running_server(
        model_store=place / "store", load_models=("doubles",), temp_dir=place, service_envelope=envelope
    ) as server:
        await server.models.wait_until_ready()
        yield server


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


async def predict(server: Server, body: Any, verb: str = "predictions") -> Any:
    answer = await ask(server, "POST", f"/{verb}/doubles", as_json(body), Content_Type="application/json")
    assert answer.status == 200, answer.body
    return answer.json


async def test_22_json_gives_each_request_its_predictions(tmp_path: Path) -> None:
    encoded = {"b64": base64.b64encode(b"four").decode()}
    async with serving(tmp_path, "json", PAIRS) as server:
        bodies = [as_json({"instances": [1]}), as_json({"instances": [2, 3]})]
        answers = await ask_together(server, "/predictions/doubles", bodies, Content_Type="application/json")
        assert [answer.body for answer in answers] == [b'{"predictions": [2]}', b'{"predictions": [4, 6]}']
        bodies = [as_json({"instances": [encoded, 5]}), as_json({"instances": [{"picture": encoded, "n": 4}]})]
        answers = await ask_together(server, "/predictions/doubles", bodies, Content_Type="application/json")
        assert [answer.json for answer in answers] == [
            {"predictions": [4, 10]},
            {"predictions": [{"picture": 4, "n": 8}]},
        ]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((1,), ['{"predictions": [0]}']), ((1, 2), ['{"predictions": [0]}', '{"predictions": [1, 2]}'])],
)
def test_22_answers_are_dealt_out_by_the_number_of_instances(counts: tuple[int, ...], expected: list[str]) -> None:
    envelope = JSONEnvelope(lambda data, _context: list(range(len(data))))
    assert envelope.handle([{"body": {"instances": ["x"] * count}} for count in counts], None) == expected


async def test_23_body_takes_the_dictionary_off(tmp_path: Path) -> None:
    async with serving(tmp_path, "body") as server:
        assert await predict(server, [1, 2]) == [2, 4]
        raw = await ask(server, "POST", "/predictions/doubles", b"12345")
        assert raw.json == 5


@pytest.mark.parametrize("envelope", ["kserve", "kfserving"])
async def test_24_26_kserve_answers_both_requests_of_a_batch(tmp_path: Path, envelope: str) -> None:
    async with serving(tmp_path, envelope, PAIRS) as server:
        bodies = [as_json({"instances": [{"data": 1}]}), as_json({"instances": [{"data": 2}, {"data": [3, 4]}]})]
        answers = await ask_together(server, "/predictions/doubles", bodies, Content_Type="application/json")
        assert [answer.json for answer in answers] == [{"predictions": [2]}, {"predictions": [4, [6, 8]]}]
        answers = await ask_together(server, "/explanations/doubles", bodies, Content_Type="application/json")
        assert [answer.json for answer in answers] == [{"explanations": [2]}, {"explanations": [4, [6, 8]]}]


@pytest.mark.parametrize("envelope", ["kservev2", "kfservingv2"])
async def test_25_26_kservev2_answers_with_typed_tensors(tmp_path: Path, envelope: str) -> None:
    inputs = [
        {"name": "whole", "shape": [2, 2], "datatype": "INT64", "data": [1, 2, 3, 4]},
        {"name": "real", "shape": [2], "datatype": "FP32", "data": [0.5, 1.5]},
        {"name": "text", "shape": [-1], "datatype": "BYTES", "data": ["ab"]},
    ]
    async with serving(tmp_path, envelope) as server:
        answer = await predict(server, {"id": "mine", "inputs": inputs})
        assert answer == {
            "id": "mine",
            "model_name": "doubles",
            "model_version": "3.1",
            "outputs": [
                {"name": "whole", "datatype": "INT64", "data": [2, 4, 6, 8], "shape": [4]},
                {"name": "real", "datatype": "FP64", "data": [1.0, 3.0], "shape": [2]},
                {"name": "text", "datatype": "BYTES", "data": ["abab"], "shape": [1]},
            ],
        }
        assert len((await predict(server, {"inputs": inputs[:1]}))["id"]) == 36  # that of the request


def test_27_an_envelope_of_a_user_is_found_by_the_name_of_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shouting(BaseEnvelope):
        def parse_input(self, data: Any) -> Any:
            return [row["body"] for row in data]

        def format_output(self, data: Any) -> Any:
            return [text.upper() for text in data]

    name = "ts.torch_handler.request_envelope.shouting"
    module: Any = ModuleType(name)
    Shouting.__module__ = name
    module.Shouting, module.BaseEnvelope = Shouting, BaseEnvelope
    monkeypatch.setitem(sys.modules, name, module)
    assert wrap_in_envelope(lambda data, _context: data, "shouting")([{"body": "hello"}], None) == ["HELLO"]  # type: ignore[arg-type]
