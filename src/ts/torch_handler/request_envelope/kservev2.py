"""Envelope ``kservev2``: the Open Inference Protocol, tensors in and tensors out."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

from ts.torch_handler.request_envelope.base import InstancesEnvelope, MalformedRequest, body_of, json_body
from ts.torch_handler.request_envelope.binary import LENGTH_HEADER, BinaryBody, encode_tensor, pack_response

__all__ = ["KServev2Envelope"]

# Types of arrays, as NumPy and PyTorch call them, to types of the protocol.
_DATATYPES = MappingProxyType(
    {
        "bool": "BOOL",
        **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
        **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
        **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
        "bfloat16": "FP32",  # JSON cannot say it, and FP32 holds every value
    }
)


class KServev2Envelope(InstancesEnvelope):
    """The handler gets the tensors of all requests, ``{"name", "shape", "datatype", "data"}`` each.

    While the handler runs, ``context.input_names`` holds the names of its tensors, ``context.input_parameters`` the
    parameters of each request, and ``context.input_request_id`` the id that the first client chose, if it did.
    Tensors that come as bytes behind the JSON are handed over like those within it.
    """

    def __init__(self, handle_fn: Callable[[Any, Any], Any]) -> None:
        super().__init__(handle_fn)
        self._requests: list[dict[str, Any]] = []

    def handle(self, data: Any, context: Any) -> Any:
        """Answers a batch, see :meth:`InstancesEnvelope.handle`.

        Args:
            data: one element for each request.
            context: the context of the batch.
        """
        if data and getattr(context, "request_processor", None) is not None:
            data = [_with_binary(row, context.get_request_header(at, LENGTH_HEADER)) for at, row in enumerate(data)]
        return super().handle(data, context)

    def parse_input(self, data: Any) -> list[Any]:
        """The tensors of all requests.

        Args:
            data: one element for each request.

        Raises:
            MalformedRequest: a body is no inference request.
        """
        self._requests = []
        tensors = super().parse_input(data)
        if self.context is not None:
            self._forget()
            self.context.input_names = [tensor["name"] for tensor in tensors]
            self.context.input_parameters = [_parameters(request) for request in self._requests]
            if _chosen_id(self._requests[0]):
                self.context.input_request_id = _chosen_id(self._requests[0])
        return tensors

    def open(self, row: Any) -> list[Any]:
        """The tensors of one request, their data in their shape.

        Args:
            row: the parameters of the request.

        Raises:
            MalformedRequest: the body is no inference request.
        """
        request = row.read() if isinstance(row, BinaryBody) else json_body(row)
        inputs = request.get("inputs")
        if not isinstance(inputs, list) or not inputs:
            raise MalformedRequest('The request body must be a JSON object with a list "inputs" of tensors.')
        self._requests.append(request)
        return [_read_tensor(tensor) for tensor in inputs]

    def format_output(self, data: Any) -> list[Any]:
        """The responses, one for each request.

        Args:
            data: the handler's answers, one for each tensor; a single request may have any number.
        """
        responses = super().format_output(data)
        self._forget()
        return responses

    def close(self, answers: Any, index: int) -> dict[str, Any] | bytes:
        """The response to one request; each answer becomes a tensor with the name of the input at its place.

        It is bytes if the client asked for tensors behind the JSON.

        Args:
            answers: what the handler returned for its tensors.
            index: of the request in the batch.
        """
        if not isinstance(answers, (list, tuple)):
            raise ValueError(f"The handler returned a {type(answers).__name__}, not a list with an answer per tensor.")  # noqa: TRY004  # not a defect
        request = self._requests[index]
        names = [tensor["name"] for tensor in request["inputs"]]
        outputs = [
            _write_tensor(names[place] if place < len(names) else f"output-{place}", answer)
            for place, answer in enumerate(answers)
        ]
        manifest = getattr(self.context, "manifest", None) or {}
        model = manifest.get("model") or {}
        request_id = self.context.get_request_id(index) if self.context is not None else None
        response = {
            "id": _chosen_id(request) or request_id,
            "model_name": getattr(self.context, "model_name", None) or model.get("modelName"),
            "model_version": model.get("modelVersion"),
            "outputs": _requested(outputs, request.get("outputs")),
        }
        return self._place_data(request, response, index)

    def _place_data(self, request: dict[str, Any], response: dict[str, Any], index: int) -> dict[str, Any] | bytes:
        """Puts the data of each output into the JSON or behind it."""
        binary: list[bytes | None] = []
        for output in response["outputs"]:
            if _wants_binary(request, output["name"]):
                binary.append(encode_tensor(output["datatype"], output.pop("data")))
            else:
                binary.append(None)
                if output["datatype"] == "BYTES":
                    output["data"] = [_json_element(value) for value in output["data"]]
        if all(raw is None for raw in binary):
            return response
        body, length = pack_response(response, binary)
        if self.context is not None:
            self.context.set_response_header(index, LENGTH_HEADER, str(length))
            self.context.set_response_content_type(index, "application/octet-stream")
        return body

    def _forget(self) -> None:
        if self.context is not None:
            for name in ("input_names", "input_parameters", "input_request_id"):
                vars(self.context).pop(name, None)


def _with_binary(row: Any, length: Any) -> Any:
    body = body_of(row)
    if isinstance(length, str) and isinstance(body, (bytes, bytearray, memoryview)):
        return BinaryBody(body, length)
    return row


def _wants_binary(request: dict[str, Any], name: str) -> bool:
    """The client wants that output behind the JSON; what it says of the output counts before what it says of all."""
    wanted = _parameters(request).get("binary_data_output")
    outputs = request.get("outputs")
    for output in outputs if isinstance(outputs, list) else ():
        if isinstance(output, dict) and output.get("name") == name:
            wanted = _parameters(output).get("binary_data", wanted)
    return wanted is True


def _parameters(of: dict[str, Any]) -> dict[str, Any]:
    parameters = of.get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def _chosen_id(request: dict[str, Any]) -> str:
    chosen = request.get("id")
    return "" if chosen is None or not str(chosen).strip() else str(chosen)


def _requested(outputs: list[dict[str, Any]], requested: Any) -> list[dict[str, Any]]:
    """The outputs that the client named. Whoever names one that does not exist gets all of them, as ever."""
    if not isinstance(requested, list) or not requested:
        return outputs
    by_name = {output["name"]: output for output in outputs}
    names = [wanted.get("name") if isinstance(wanted, dict) else None for wanted in requested]
    return [dict(by_name[name]) for name in names] if all(name in by_name for name in names) else outputs


# -- tensors of requests ---------------------------------------------------------------------------------------------


def _read_tensor(tensor: Any) -> dict[str, Any]:
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        raise MalformedRequest('Each of the "inputs" must be a JSON object with a "name".')
    name = tensor["name"]
    if "data" not in tensor:
        raise MalformedRequest(f'Input {name!r} has no "data".')
    data = tensor["data"]
    if tensor.get("datatype") == "BYTES":
        # Handlers of single images and texts expect the element itself.
        return {**tensor, "data": data[0] if isinstance(data, list) and len(data) == 1 else data}
    return {**tensor, "data": _reshape(name, list(_flatten(data)), tensor.get("shape"))}


def _flatten(data: Any) -> Iterator[Any]:
    if not isinstance(data, list):
        yield data
    elif any(type(item) is list for item in data):
        for item in data:
            yield from _flatten(item)
    else:
        yield from data


def _reshape(name: str, flat: list[Any], shape: Any) -> Any:
    if not isinstance(shape, list) or not all(type(size) is int and size >= -1 for size in shape):
        raise MalformedRequest(f'Input {name!r}: "shape" must be a list of sizes.')
    sizes = list(shape)
    if sizes.count(-1) == 1:  # the size that the others leave open
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = len(flat) // known if known else 0
    if -1 in sizes or math.prod(sizes) != len(flat):
        raise MalformedRequest(f'Input {name!r}: "data" has {len(flat)} elements, which is not the shape {shape}.')
    if not sizes:
        return flat[0]
    if 0 in sizes:
        nested: list[Any] = []
        for size in reversed(sizes[: sizes.index(0)]):
            nested = [list(nested) for _ in range(size)]
        return nested
    for size in reversed(sizes[1:]):
        flat = [flat[start : start + size] for start in range(0, len(flat), size)]
    return flat


# -- tensors of responses --------------------------------------------------------------------------------------------


def _write_tensor(name: str, answer: Any) -> dict[str, Any]:
    kinds: set[str] = set()
    data = list(_flatten_answer(answer, kinds))
    return {"name": name, "datatype": _join(kinds), "data": data, "shape": [len(data)]}


def _flatten_answer(value: Any, kinds: set[str]) -> Iterator[Any]:
    """The elements of an answer, flat, as JSON knows them; ``kinds`` gets their types."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flatten_answer(item, kinds)
    elif hasattr(value, "tolist") and hasattr(value, "dtype"):
        kind = str(value.dtype).removeprefix("torch.")
        plain = value.tolist()
        if kind in _DATATYPES:
            kinds.add(_DATATYPES[kind])
            yield from _flatten(plain)
        elif kind.startswith("complex"):
            raise ValueError(f"The handler returned {kind} numbers, which the Open Inference Protocol does not have.")
        else:  # text, bytes and objects
            yield from _flatten_answer(plain, kinds)
    elif isinstance(value, bool):
        kinds.add("BOOL")
        yield value
    elif isinstance(value, int):
        kinds.add("INT64" if value < 1 << 63 else "UINT64")
        yield value
    elif isinstance(value, float):
        kinds.add("FP64")
        yield value
    else:
        kinds.add("BYTES")
        yield value


def _json_element(value: Any) -> Any:
    """Text stays text; bytes go the way they come in, since JSON has none."""
    return base64.b64encode(value).decode() if isinstance(value, (bytes, bytearray)) else value


def _join(kinds: set[str]) -> str:
    """The type that holds elements of all of these types."""
    if len(kinds) == 1:
        return next(iter(kinds))
    if "BYTES" in kinds:
        return "BYTES"
    if not kinds or any(kind.startswith("FP") for kind in kinds):
        return "FP64"
    return "INT64"
