from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import pytest

from ts.context import Context
from ts.errors import PredictionException
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.loader import wrap_in_envelope
from ts.service import Service
from ts.torch_handler.request_envelope.base import BaseEnvelope, MalformedRequest
from ts.torch_handler.request_envelope.body import BodyEnvelope
from ts.torch_handler.request_envelope.json import JSONEnvelope
from ts.torch_handler.request_envelope.kserve import KServeEnvelope
from ts.torch_handler.request_envelope.kservev2 import KServev2Envelope
from ts.wire import Batch, Part, Reply, Request, pack_headers

Handle = Callable[[Any, Any], Any]
MANIFEST = {"model": {"modelName": "packed", "modelVersion": "1.5"}}


class Metrics:
    def set_request_ids(self, ids: Any) -> None:
        pass


class Outcome(NamedTuple):
    status: int
    failed: bool
    body: Any


def echo(data: Any, context: Any) -> Any:
    return list(data)


def serve(
    envelope: str, handle: Handle, bodies: Sequence[Any], isolate_errors: bool = False, **headers: Sequence[int]
) -> list[Outcome]:
    """One batch through a service; ``headers`` name the requests that have the header set to True."""
    context = Context("net", "/", MANIFEST, 8, None, "0", metrics=Metrics())
    early: list[Reply] = []
    service = Service(context, wrap_in_envelope(handle, envelope), early.append, isolate_errors=isolate_errors)
    jobs = []
    for index, body in enumerate(bodies):
        packed = pack_headers([(name, str(index in true)) for name, true in headers.items()])
        raw, kind = (body, "") if isinstance(body, bytes) else (json.dumps(body).encode(), "application/json")
        jobs.append((index, Request(f"id-{index}", packed, [Part("body", kind, raw)])))
    answered = service.predict(Batch(1, jobs))
    service.close()
    replies = sorted([*answered, *early], key=lambda reply: reply.job_id)
    assert [reply.job_id for reply in replies] == list(range(len(bodies)))
    return [Outcome(reply.status, reply.failed, read(bytes(reply.body))) for reply in replies]


def read(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode()


def tensor(data: Any, shape: Any = None, datatype: str = "INT64", name: str = "in") -> dict[str, Any]:
    return {"name": name, "shape": [len(data)] if shape is None else shape, "datatype": datatype, "data": data}


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("base", "BaseEnvelope"),
        ("body", "BodyEnvelope"),
        ("json", "JSONEnvelope"),
        ("kserve", "KServeEnvelope"),
        ("kservev2", "KServev2Envelope"),
        ("kfserving", "KFservingEnvelope"),
        ("kfservingv2", "KFservingv2Envelope"),
    ],
)
def test_the_names_that_code_imports_are_there(module: str, name: str) -> None:
    found = getattr(import_module(f"ts.torch_handler.request_envelope.{module}"), name)
    assert issubclass(found, BaseEnvelope)


@pytest.mark.parametrize("name", ["body", "json", "kserve", "kservev2", "kfserving", "kfservingv2"])
def test_a_question_of_the_server_passes_every_envelope(name: str) -> None:
    (outcome,) = serve(name, lambda _data, _context: [{"a": 1}], [b""], describe=[0])
    assert outcome == (200, False, {"a": 1})


def test_an_envelope_of_a_user_needs_two_methods() -> None:
    class Doubling(BaseEnvelope):
        def parse_input(self, data: Any) -> Any:
            return [row["body"] * 2 for row in data]

        def format_output(self, data: Any) -> Any:
            return [f"<{item}>" for item in data]

    envelope = Doubling(echo)
    assert envelope.handle([{"body": "a"}], "context") == ["<aa>"]
    assert envelope.context == "context"
    assert Doubling(lambda _data, _context: []).handle([{"body": "a"}], None) == []


@pytest.mark.parametrize("envelope", ["kserve", "json"])
def test_an_asynchronous_handler_can_have_an_envelope(envelope: str) -> None:
    async def handle(data: Any, context: Any) -> Any:
        return list(data)

    assert serve(envelope, handle, [{"instances": [1]}, {"instances": [2, 3]}]) == [
        (200, False, {"predictions": [1]}),
        (200, False, {"predictions": [2, 3]}),
    ]


async def test_batches_that_overlap_are_not_mixed_up() -> None:
    """The first answer is made while the second batch is under way."""
    begun = asyncio.Event()

    async def handle(data: Any, context: Any) -> Any:
        if data[0]["data"] == 2:
            begun.set()
        await begun.wait()
        return [item["data"] for item in data]

    envelope = KServev2Envelope(handle)
    requests = [{"id": f"mine-{n}", "inputs": [tensor([n], [])]} for n in (1, 2)]
    contexts = [Context("net", "/", MANIFEST, 8, None, "0", metrics=Metrics()) for _ in requests]
    calls = [envelope.handle([row], context) for row, context in zip(requests, contexts, strict=True)]
    answers = await asyncio.gather(*calls)
    assert [answer[0]["id"] for answer in answers] == ["mine-1", "mine-2"]


# -- body ------------------------------------------------------------------------------------------------------------


def test_body_takes_the_dict_off_each_request() -> None:
    rows = [{"data": 1}, {"body": b"x"}, {"data": b"", "body": "text"}, {"data": 0}, {"other": 1}, "bare"]
    assert BodyEnvelope(echo).handle(rows, None) == [1, b"x", "text", 0, {"other": 1}, "bare"]


# -- json ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"instances": [[1, 2]]}], ['{"predictions": [[1, 2]]}']),
        ([{"instances": [[1, 2], [3, 4]]}], ['{"predictions": [[1, 2], [3, 4]]}']),
        (
            [{"body": {"instances": [1]}}, {"data": {"instances": [2, 3]}}],
            ['{"predictions": [1]}', '{"predictions": [2, 3]}'],
        ),
        ([{"body": bytearray(b'{"instances": [1]}')}], ['{"predictions": [1]}']),
    ],
)
def test_json_gives_each_request_its_predictions(rows: list[Any], expected: list[str]) -> None:
    assert JSONEnvelope(echo).handle(rows, None) == expected


def test_json_decodes_base64_in_instances_and_columns() -> None:
    text = base64.b64encode(b"\x00\xff").decode()
    seen: list[Any] = []

    def handle(data: Any, context: Any) -> Any:
        seen.extend(data)
        return [0 for _ in data]

    instances = [{"b64": text}, {"img": {"b64": text}, "n": 1}, {"b64": text, "more": 1}, text]
    JSONEnvelope(handle).handle([{"instances": instances}], None)
    assert seen == [b"\x00\xff", {"img": b"\x00\xff", "n": 1}, {"b64": text, "more": 1}, text]


def test_json_refuses_a_number_of_answers_that_is_not_that_of_the_instances() -> None:
    with pytest.raises(ValueError, match="2 answers to 1 instances"):
        JSONEnvelope(lambda _data, _context: [1, 2]).handle([{"instances": [1]}], None)


# -- kserve ----------------------------------------------------------------------------------------------------------


def test_kserve_gives_each_request_its_predictions() -> None:
    calls: list[Any] = []

    def handle(data: Any, context: Any) -> Any:
        calls.append(data)
        return [item["data"] + 1 for item in data]

    bodies = [{"instances": [{"data": 1}]}, b'{"instances": [{"data": 5}, {"data": 6}]}']
    assert serve("kserve", handle, bodies) == [
        (200, False, {"predictions": [2]}),
        (200, False, {"predictions": [6, 7]}),
    ]
    assert calls == [[{"data": 1}, {"data": 5}, {"data": 6}]]


def test_explanations_are_made_one_request_at_a_time() -> None:
    def handle(data: Any, context: Context) -> Any:
        return [[context.get_request_header(0, "explain"), context.get_request_id(), len(data)]]

    assert serve("kserve", handle, [{"instances": [1]}, {"instances": [2]}], explain=[1]) == [
        (200, False, {"predictions": [["False", "id-0", 1]]}),
        (200, False, {"explanations": [["True", "id-1", 1]]}),
    ]


MALFORMED = [b"{oops", b"\xff\xfe\xfd", b"[1]", {"inputs": 1}, {"instances": 1}, {"instances": []}]


@pytest.mark.parametrize("envelope", ["json", "kserve"])
@pytest.mark.parametrize("body", MALFORMED)
def test_a_malformed_body_fails_only_its_request(envelope: str, body: Any) -> None:
    def handle(data: Any, context: Context) -> Any:
        context.set_response_header(1, "x-second", context.get_request_id(1) or "")
        return [item * 2 for item in data]

    first, second, third = serve(envelope, handle, [{"instances": [1]}, body, {"instances": [2, 3]}])
    assert (first, third) == ((200, False, {"predictions": [2]}), (200, False, {"predictions": [4, 6]}))
    assert (second.status, second.failed) == (400, True)
    assert second.body.startswith("The request body")


def test_beside_a_malformed_body_a_request_that_breaks_the_handler_fails_alone_too() -> None:
    def handle(data: Any, context: Any) -> Any:
        return [1 / item for item in data]

    bodies = [{"instances": [1]}, b"{oops", {"instances": [0]}, {"instances": [2]}]
    outcomes = serve("kserve", handle, bodies, isolate_errors=True)
    assert [outcome.status for outcome in outcomes] == [200, 400, 503, 200]


def test_a_malformed_body_that_is_alone_fails_and_says_why() -> None:
    (outcome,) = serve("kserve", echo, [b"{oops"])
    assert (outcome.status, outcome.failed) == (400, True)
    assert "not valid JSON" in outcome.body


def test_a_batch_of_malformed_bodies_never_reaches_the_handler() -> None:
    def handle(data: Any, context: Any) -> Any:
        raise AssertionError

    assert [outcome.status for outcome in serve("kserve", handle, [b"", b"{"])] == [400, 400]


def test_without_a_worker_a_malformed_body_is_an_error() -> None:
    with pytest.raises(MalformedRequest):
        KServeEnvelope(echo).handle([{"body": b"{"}, {"body": {"instances": [1]}}], None)


def test_a_handler_that_does_not_answer_each_instance_gets_one_request_at_a_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sizes: list[int] = []

    def handle(data: Any, context: Any) -> Any:
        sizes.append(len(data))
        return [sum(data)]

    assert serve("kserve", handle, [{"instances": [1, 2]}, {"instances": [3]}]) == [
        (200, False, {"predictions": [3]}),
        (200, False, {"predictions": [3]}),
    ]
    assert sizes == [3, 2, 1]
    assert "1 answers to 3 instances" in caplog.text


def test_what_was_streamed_is_not_streamed_again() -> None:
    pieces: list[Reply] = []
    context = Context("net", "/", MANIFEST, 8, None, "0", metrics=Metrics())

    def handle(data: Any, context: Context) -> Any:
        send_intermediate_predict_response(["a", "b"], context.request_ids or {}, "", 200, context)
        return ["end"]

    body = Part("body", "", b'{"instances": [1]}')
    service = Service(context, wrap_in_envelope(handle, "kserve"), pieces.append)
    replies = service.predict(Batch(1, [(n, Request(f"id-{n}", b"", [body])) for n in range(2)]))
    assert [piece.body for piece in pieces] == [b"a", b"b"]
    assert [reply.status for reply in replies] == [503, 503]


def test_one_by_one_an_error_for_the_client_stays_with_its_request() -> None:
    def handle(data: Any, context: Any) -> Any:
        if data == [2]:
            raise PredictionException("no twos", 422)
        return list(data) if data == [1] else []

    outcomes = serve("kserve", handle, [{"instances": [n]} for n in (1, 2, 3)], explain=[0, 1, 2])
    assert [outcome.status for outcome in outcomes] == [200, 422, 503]
    assert outcomes[1].body == "no twos"


def test_after_a_batch_the_context_is_what_it_was() -> None:
    context = Context("net", "/", MANIFEST, 8, None, "0", metrics=Metrics())
    service = Service(context, wrap_in_envelope(echo, "kservev2"), lambda _reply: None)
    bodies = (b"{", json.dumps({"id": "mine", "inputs": [tensor([1])]}).encode())
    service.predict(Batch(1, [(n, Request(f"id-{n}", b"", [Part("body", "", body)])) for n, body in enumerate(bodies)]))
    assert context.request_ids == {0: "id-0", 1: "id-1"}
    assert len(context.request_processor or ()) == 2
    assert not any(name.startswith("input_") for name in vars(context))


# -- kservev2 --------------------------------------------------------------------------------------------------------


def infer(handle: Handle, *inputs: Any, **members: Any) -> Any:
    (outcome,) = serve("kservev2", handle, [{"inputs": list(inputs), **members}])
    assert outcome.status == 200, outcome
    return outcome.body


def test_kservev2_answers_with_the_names_of_the_inputs() -> None:
    body = infer(lambda data, _: [7, "x"], tensor([1], name="a"), tensor([2], name="b"), id="mine")
    assert body == {
        "id": "mine",
        "model_name": "net",
        "model_version": "1.5",
        "outputs": [
            {"name": "a", "datatype": "INT64", "data": [7], "shape": [1]},
            {"name": "b", "datatype": "BYTES", "data": ["x"], "shape": [1]},
        ],
    }


@pytest.mark.parametrize("members", [{}, {"id": ""}, {"id": "  "}, {"id": None}])
def test_without_an_id_of_the_client_the_id_is_that_of_the_request(members: dict[str, Any]) -> None:
    assert infer(echo, tensor([1]), **members)["id"] == "id-0"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (tensor([1, 2, 3, 4], [2, 2]), [[1, 2], [3, 4]]),
        (tensor([[1, 2], [3, 4]], [2, 2]), [[1, 2], [3, 4]]),
        (tensor([1, 2, 3, 4], [1, 2, 2]), [[[1, 2], [3, 4]]]),
        (tensor([1, 2, 3, 4], [-1, 2]), [[1, 2], [3, 4]]),
        (tensor([[1], [2]], [2]), [1, 2]),
        (tensor([5], []), 5),
        (tensor([], [0, 3]), []),
        (tensor([], [2, 0]), [[], []]),
        (tensor(["one"], -1, "BYTES"), "one"),
        (tensor(["one", "two"], [2], "BYTES"), ["one", "two"]),
        (tensor([], [0], "BYTES"), []),
    ],
)
def test_a_tensor_reaches_the_handler_in_its_shape(given: dict[str, Any], expected: Any) -> None:
    seen: list[Any] = []

    def handle(data: Any, context: Any) -> Any:
        seen.extend(data)
        return [0]

    infer(handle, given)
    assert seen == [{**given, "data": expected}]


@pytest.mark.parametrize(
    "inputs",
    [
        None,
        [],
        [1],
        [{"shape": [1], "data": [1]}],
        [{"name": "in", "shape": [1], "datatype": "FP32"}],
        [tensor([1, 2, 3], [2, 2])],
        [tensor([1], [-1, -1])],
        [tensor([1], [-1, 0])],
        [tensor([1], "1")],
        [tensor([1], 1)],
        [tensor([1], [1.0])],
    ],
)
def test_a_malformed_tensor_fails_only_its_request(inputs: Any) -> None:
    good = {"inputs": [tensor([1], name="in")]}
    outcomes = serve("kservev2", lambda data, _: [item["data"] for item in data], [good, {"inputs": inputs}, good])
    assert [(outcome.status, outcome.failed) for outcome in outcomes] == [(200, False), (400, True), (200, False)]
    assert outcomes[2].body["id"] == "id-2"


@pytest.mark.parametrize(
    ("answer", "datatype", "data"),
    [
        (1.5, "FP64", [1.5]),
        ([[1, 2], [3, 4]], "INT64", [1, 2, 3, 4]),
        (True, "BOOL", [True]),
        ([1, 2.5], "FP64", [1, 2.5]),
        ([True, 2], "INT64", [True, 2]),
        (1 << 63, "UINT64", [1 << 63]),
        ("text", "BYTES", ["text"]),
        ({"cat": 0.9}, "BYTES", [{"cat": 0.9}]),
        (b"\xff", "BYTES", ["/w=="]),
        ([], "FP64", []),
        (np.ones((1, 2), np.float32), "FP32", [1.0, 1.0]),
        (np.array([1], np.uint8), "UINT8", [1]),
        ([np.float16(0.5), np.float16(2)], "FP16", [0.5, 2.0]),
        (np.array(["a"]), "BYTES", ["a"]),
        (np.array([b"a"]), "BYTES", ["YQ=="]),
    ],
)
def test_an_answer_becomes_a_flat_tensor_of_its_type(answer: Any, datatype: str, data: list[Any]) -> None:
    (output,) = infer(lambda _data, _context: [answer], tensor([1]))["outputs"]
    assert list(output) == ["name", "datatype", "data", "shape"]
    assert output == {"name": "in", "datatype": datatype, "data": data, "shape": [len(data)]}


@pytest.mark.torch
@pytest.mark.slow
def test_a_tensor_of_torch_keeps_its_type() -> None:
    import torch  # noqa: PLC0415  # for this test alone

    answers = [torch.ones(2), torch.ones(1, dtype=torch.bfloat16)]
    outputs = infer(lambda _data, _context: answers, tensor([1]))["outputs"]
    assert [(output["name"], output["datatype"]) for output in outputs] == [("in", "FP32"), ("output-1", "FP32")]


@pytest.mark.parametrize("answer", ["text", {"a": 1}, 7])
def test_an_answer_that_is_no_list_is_refused(answer: Any) -> None:
    envelope = KServev2Envelope(lambda _data, _context: answer)
    with pytest.raises(ValueError, match="not a list"):
        envelope.handle([{"inputs": [tensor([1])]}], None)


def test_complex_numbers_are_refused() -> None:
    envelope = KServev2Envelope(lambda _data, _context: [np.ones(1, np.complex64)])
    with pytest.raises(ValueError, match="complex64"):
        envelope.handle([{"inputs": [tensor([1])]}], None)


def test_the_client_chooses_among_the_outputs() -> None:
    inputs = tensor([1], name="a"), tensor([2], name="b")
    body = infer(lambda _data, _context: [1, 2], *inputs, outputs=[{"name": "b"}])
    assert [output["name"] for output in body["outputs"]] == ["b"]
    body = infer(lambda _data, _context: [1, 2], *inputs, outputs=[{"name": "else"}])
    assert [output["name"] for output in body["outputs"]] == ["a", "b"]


def test_several_requests_get_their_own_outputs_and_ids() -> None:
    bodies = [
        {"id": "x", "inputs": [tensor([1], name="a")]},
        {"inputs": [tensor([2], name="b"), tensor([3], name="c")], "parameters": {"p": 1}},
    ]
    names: list[Any] = []

    def handle(data: Any, context: Any) -> Any:
        names.append((context.input_names, context.input_parameters, context.input_request_id))
        return [item["data"] for item in data]

    outcomes = serve("kservev2", handle, bodies)
    assert [outcome.body["id"] for outcome in outcomes] == ["x", "id-1"]
    assert [[(o["name"], o["data"]) for o in outcome.body["outputs"]] for outcome in outcomes] == [
        [("a", [1])],
        [("b", [2]), ("c", [3])],
    ]
    assert names == [(["a", "b", "c"], [{}, {"p": 1}], "x")]
