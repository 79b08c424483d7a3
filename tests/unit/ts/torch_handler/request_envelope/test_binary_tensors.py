"""Tensors as bytes behind the JSON of a request and of a response."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from ts.context import Context
from ts.loader import wrap_in_envelope
from ts.service import Service
from ts.torch_handler.request_envelope.base import MalformedRequest
from ts.torch_handler.request_envelope.binary import BinaryBody, encode_tensor
from ts.wire import Batch, Part, Reply, Request, pack_headers, unpack_headers

HEADER = "Inference-Header-Content-Length"


class Metrics:
    def set_request_ids(self, ids: Any) -> None:
        pass


def frame(request: dict[str, Any], *raw: bytes) -> tuple[bytes, str]:
    head = json.dumps(request).encode()
    return head + b"".join(raw), str(len(head))


def binary_input(datatype: str, shape: list[int], size: Any, name: str = "x") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


def serve(handle: Callable[[Any, Any], Any], *bodies: tuple[bytes, str]) -> list[Reply]:
    """One batch; each body with the value of its header, "" for none."""
    context = Context("net", "/", {"model": {"modelVersion": "1.5"}}, 8, None, "0", metrics=Metrics())
    early: list[Reply] = []
    service = Service(context, wrap_in_envelope(handle, "kservev2"), early.append)
    jobs = []
    for index, (body, length) in enumerate(bodies):
        packed = pack_headers([(HEADER.lower(), length)] if length else [])
        jobs.append((index, Request(f"id-{index}", packed, [Part("body", "application/octet-stream", body)])))
    replies = [*service.predict(Batch(1, jobs)), *early]
    service.close()
    return sorted(replies, key=lambda reply: reply.job_id)


def seen(*bodies: tuple[bytes, str]) -> list[Any]:
    """The data of each tensor that the handler gets."""
    found: list[Any] = []

    def handle(data: Any, _context: Any) -> Any:
        found.extend(tensor["data"] for tensor in data)
        return [0 for _ in data]

    replies = serve(handle, *bodies)
    assert [reply.failed for reply in replies] == [False] * len(bodies), replies
    return found


def parse(reply: Reply) -> tuple[dict[str, Any], bytes]:
    headers = dict(unpack_headers(reply.headers))
    assert headers["content-type"] == "application/octet-stream"
    length = int(headers[HEADER])
    return json.loads(bytes(reply.body)[:length]), bytes(reply.body)[length:]


# -- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("datatype", "dtype"),
    [
        ("BOOL", "?"),
        *[(f"INT{bits}", f"<i{bits // 8}") for bits in (8, 16, 32, 64)],
        *[(f"UINT{bits}", f"<u{bits // 8}") for bits in (8, 16, 32, 64)],
        *[(f"FP{bits}", f"<f{bits // 8}") for bits in (16, 32, 64)],
    ],
)
def test_a_binary_tensor_is_what_its_json_would_be(datatype: str, dtype: str) -> None:
    array = np.array([[1, 0, 1], [0, 1, 1]]).astype(dtype)
    raw = array.tobytes()
    binary = frame({"inputs": [binary_input(datatype, [2, 3], len(raw))]}, raw)
    plain = json.dumps({"inputs": [{"name": "x", "datatype": datatype, "shape": [2, 3], "data": array.tolist()}]})
    assert seen(binary) == seen((plain.encode(), "")) == [array.tolist()]
    assert encode_tensor(datatype, array.ravel().tolist()) == raw


def test_a_bf16_tensor_is_the_upper_half_of_an_fp32() -> None:
    values = [1.0, -2.5, 0.15625, 3.3895313892515355e38]
    raw = b"".join(struct.pack("<f", value)[2:] for value in values)
    assert seen(frame({"inputs": [binary_input("BF16", [4], 8)]}, raw)) == [values]


def test_an_fp16_tensor_keeps_its_values() -> None:
    raw = struct.pack("<3e", 0.5, -65504.0, 5.960464477539063e-08)
    assert seen(frame({"inputs": [binary_input("FP16", [3], 6)]}, raw)) == [[0.5, -65504.0, 5.960464477539063e-08]]


def test_elements_of_bytes_may_be_empty_and_no_text() -> None:
    raw = b"\x02\0\0\0\xff\x00" + b"\0\0\0\0" + b"\x03\0\0\0abc"
    assert seen(frame({"inputs": [binary_input("BYTES", [3], len(raw))]}, raw)) == [[b"\xff\x00", b"", b"abc"]]
    assert encode_tensor("BYTES", [b"\xff\x00", "", "abc"]) == raw
    alone = b"\x01\0\0\0\x80"
    assert seen(frame({"inputs": [binary_input("BYTES", [1], 5)]}, alone)) == [b"\x80"]


def test_json_and_binary_tensors_may_be_mixed() -> None:
    inputs = [
        binary_input("INT8", [2], 2, "a"),
        {"name": "b", "datatype": "INT64", "shape": [1], "data": [7]},
        binary_input("INT8", [1], 1, "c"),
    ]
    assert seen(frame({"inputs": inputs}, b"\x01\xff", b"\x05")) == [[1, -1], [7], [5]]


def test_requests_of_both_kinds_share_a_batch() -> None:
    plain = json.dumps({"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [1]}]}).encode()
    assert seen((plain, ""), frame({"inputs": [binary_input("INT8", [1], 1)]}, b"\x02"), (plain, "")) == [[1], [2], [1]]


@pytest.mark.parametrize("length", ["", "-1", "0", "x", "1.5", "9" * 30, "1_0", "²", "1000"])
def test_a_header_that_is_no_length_is_malformed(length: str) -> None:
    with pytest.raises(MalformedRequest, match=HEADER):
        BinaryBody(b"{}", length).read()


@pytest.mark.parametrize(
    ("datatype", "size", "raw", "text"),
    [
        ("FP32", 8, b"\0" * 4, "ends before"),
        ("FP32", 4, b"\0" * 8, "4 bytes of the body belong to no input"),
        ("FP32", 5, b"\0" * 5, "no whole number"),
        ("FP32", -4, b"", "must be a number of bytes"),
        ("FP32", "4", b"\0" * 4, "must be a number of bytes"),
        ("FP32", True, b"\0", "must be a number of bytes"),
        ("FP8", 1, b"\0", "unknown"),
        (None, 1, b"\0", "unknown"),
        ("BYTES", 3, b"\0\0\0", "within its length"),
        ("BYTES", 5, b"\x02\0\0\0a", "longer than what is left"),
    ],
)
def test_lengths_that_contradict_each_other_are_malformed(datatype: str, size: Any, raw: bytes, text: str) -> None:
    body, length = frame({"inputs": [binary_input(datatype, [1], size)]}, raw)
    with pytest.raises(MalformedRequest, match=text):
        BinaryBody(body, length).read()


def test_data_come_from_one_place() -> None:
    body, length = frame({"inputs": [{**binary_input("INT8", [1], 1), "data": [1]}]}, b"\x01")
    with pytest.raises(MalformedRequest, match="both"):
        BinaryBody(body, length).read()


@pytest.mark.parametrize("inputs", [None, 5, "x", [5], [{"name": "x", "parameters": 5, "data": [1]}]])
def test_what_is_no_list_of_tensors_is_left_to_the_envelope(inputs: Any) -> None:
    body, length = frame({"inputs": inputs})
    assert BinaryBody(body, length).read() == {"inputs": inputs}


def test_a_malformed_body_fails_alone() -> None:
    good = frame({"inputs": [binary_input("INT8", [1], 1)]}, b"\x02")
    replies = serve(lambda data, _context: [1 for _ in data], good, (b"{}", "17"), good)
    assert [(reply.failed, reply.status) for reply in replies] == [(False, 200), (True, 400), (False, 200)]


# -- responses -------------------------------------------------------------------------------------------------------


def ask_for(outputs: Sequence[dict[str, Any]] = (), **parameters: Any) -> tuple[bytes, str]:
    inputs = [{"name": name, "datatype": "INT64", "shape": [1], "data": [1]} for name in ("a", "b")]
    request: dict[str, Any] = {"id": "mine", "inputs": inputs, "parameters": parameters}
    if outputs:
        request["outputs"] = outputs
    return json.dumps(request).encode(), ""


def answer(_data: Any, _context: Any) -> Any:
    return [np.array([1.5, -2.0], np.float32), ["é", b"\xff"]]


def test_all_outputs_follow_the_json_if_asked_for() -> None:
    (reply,) = serve(answer, ask_for(binary_data_output=True))
    response, rest = parse(reply)
    assert response == {
        "id": "mine",
        "model_name": "net",
        "model_version": "1.5",
        "outputs": [
            {"name": "a", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}},
            {"name": "b", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 11}},
        ],
    }
    assert rest == struct.pack("<2f", 1.5, -2.0) + b"\x02\0\0\0\xc3\xa9" + b"\x01\0\0\0\xff"


def test_what_is_said_of_an_output_counts_before_what_is_said_of_all() -> None:
    outputs = [{"name": "b", "parameters": {"binary_data": False}}, {"name": "a"}]
    (reply,) = serve(answer, ask_for(outputs, binary_data_output=True))
    response, rest = parse(reply)
    assert response["outputs"][0] == {"name": "b", "datatype": "BYTES", "data": ["é", "/w=="], "shape": [2]}
    assert rest == struct.pack("<2f", 1.5, -2.0)


def test_one_output_may_follow() -> None:
    (reply,) = serve(answer, ask_for([{"name": "a", "parameters": {"binary_data": True}}]))
    response, rest = parse(reply)
    assert [output["name"] for output in response["outputs"]] == ["a"]
    assert rest == struct.pack("<2f", 1.5, -2.0)


@pytest.mark.parametrize("outputs", [5, [5], [{"name": "a", "parameters": 5}], [{"name": "a"}, {"name": "a"}]])
def test_odd_wishes_are_answered_in_json(outputs: Any) -> None:
    (reply,) = serve(answer, ask_for(outputs))
    assert (reply.failed, reply.headers) == (False, b"")
    assert json.loads(bytes(reply.body))["outputs"][0]["data"] == [1.5, -2.0]


def test_only_the_request_that_asked_gets_bytes() -> None:
    replies = serve(lambda data, _context: [1.0 for _ in data], ask_for(), ask_for(binary_data_output=True))
    assert json.loads(bytes(replies[0].body))["outputs"][0]["data"] == [1.0]
    assert parse(replies[1])[1] == struct.pack("<2d", 1.0, 1.0)
