"""What envelopes have in common: around the handler, and one body in and one response out for each request.

Needs no torch, and knows no format of a body.
"""

from __future__ import annotations

import copy
import inspect
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ts.context import send_pieces
from ts.errors import PredictionException

__all__ = [
    "BaseEnvelope",
    "InstancesEnvelope",
    "MalformedRequest",
    "body_of",
    "instances_of",
    "is_explain",
    "json_body",
]

logger = logging.getLogger(__name__)


class MalformedRequest(PredictionException):
    """The body of a request is not what the envelope takes; the client is told so."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 400)


class _Unsplittable(Exception):
    """The handler's answers to several requests cannot be told apart."""


class BaseEnvelope(ABC):
    """An envelope around a handler; the base class of those that users write.

    Args:
        handle_fn: the handler: ``(data, context)`` to a list with one element for each element of the data.

    Attributes:
        context: the context of the running batch.
    """

    def __init__(self, handle_fn: Callable[[Any, Any], Any]) -> None:
        self._handle_fn = handle_fn
        self.context: Any = None

    def handle(self, data: Any, context: Any) -> Any:
        """Answers a batch.

        Args:
            data: one element for each request.
            context: the context of the batch.

        Returns:
            One response for each request, or an awaitable of them around an asynchronous handler.
        """
        if inspect.iscoroutinefunction(self._handle_fn):
            # Others may begin before this one is done: what is remembered of a batch must not be theirs.
            return copy.copy(self)._answer(data, context)  # noqa: SLF001  # one of us
        return self._answer(data, context)

    def _answer(self, data: Any, context: Any) -> Any:
        self.context = context
        if data and _header(context, 0, "describe") == "True":
            return self._handle_fn(data, context)  # a question of the server to the handler, without a body
        if data:
            data = self.parse_input(data)
        results = self._handle_fn(data, context)
        if inspect.isawaitable(results):
            return self._finish(results)
        return self.format_output(results) if results else results

    async def _finish(self, awaitable: Any) -> Any:
        results = await awaitable
        return self.format_output(results) if results else results

    @abstractmethod
    def parse_input(self, data: Any) -> Any:
        """What the handler gets.

        Args:
            data: one element for each request.
        """

    @abstractmethod
    def format_output(self, data: Any) -> Any:
        """The responses, one for each request.

        Args:
            data: what the handler returned.
        """


class InstancesEnvelope(BaseEnvelope):
    """An envelope whose requests bring any number of instances; the handler gets those of all requests in one list.

    A request that cannot be opened fails alone. Requests for explanations, and requests to a handler that does not
    return one answer per instance, are given to the handler one by one. The context then shows the handler only the
    requests it was given. An asynchronous handler gets its batch whole, and it fails as a whole.
    """

    def __init__(self, handle_fn: Callable[[Any, Any], Any]) -> None:
        super().__init__(handle_fn)
        self._counts: list[int] = []  # of the instances of each request
        self._one_by_one = False

    def handle(self, data: Any, context: Any) -> Any:
        """Answers a batch.

        Args:
            data: one element for each request.
            context: the context of the batch.

        Returns:
            One response for each request.

        Raises:
            MalformedRequest: the body of the only request, or of one that cannot be failed alone, is malformed.
            ValueError: the number of answers is not that of the instances.
        """
        try:
            if not data or len(data) == 1 or not _can_fail_one(context) or inspect.iscoroutinefunction(self._handle_fn):
                return super().handle(data, context)
            if self._one_by_one or any(is_explain(context, index) for index in range(len(data))):
                return self._handle_each(data, context)
            try:
                return super().handle(data, context)
            except MalformedRequest:
                return self._handle_rest(data, context)
            except _Unsplittable as error:
                if _streams(context):
                    raise  # the pieces that were sent would be sent again
                logger.warning("%s From now on it gets one request at a time.", error)
                self._one_by_one = True
                return self._handle_each(data, context)
        except _Unsplittable as error:
            raise ValueError(str(error)) from None

    def parse_input(self, data: Any) -> list[Any]:
        """The instances of all requests.

        Args:
            data: one element for each request.

        Raises:
            MalformedRequest: a body is not what it must be.
        """
        instances = [self.open(row) for row in data]
        self._counts = [len(group) for group in instances]
        return [instance for group in instances for instance in group]

    def format_output(self, data: Any) -> list[Any]:
        """The responses, one for each request.

        Args:
            data: the handler's answers: one for each instance, or any for a single request.
        """
        return [self.close(answers, index) for index, answers in enumerate(self._split(data))]

    @abstractmethod
    def open(self, row: Any) -> list[Any]:
        """The instances of one request.

        Args:
            row: the parameters of the request.

        Raises:
            MalformedRequest: the body is not what it must be.
        """

    @abstractmethod
    def close(self, answers: Any, index: int) -> Any:
        """The response to one request.

        Args:
            answers: what the handler returned for its instances.
            index: of the request in the batch.
        """

    def _split(self, answers: Any) -> list[Any]:
        if len(self._counts) == 1:
            return [answers]
        self._check_count(answers)
        ends = [sum(self._counts[: index + 1]) for index in range(len(self._counts))]
        return [answers[end - count : end] for end, count in zip(ends, self._counts, strict=True)]

    def _check_count(self, answers: Any) -> None:
        expected = sum(self._counts)
        if not isinstance(answers, (list, tuple)):
            raise _Unsplittable(
                f"The handler returned a {type(answers).__name__} for {expected} instances, not a list."
            )
        if len(answers) != expected:
            raise _Unsplittable(f"The handler returned {len(answers)} answers to {expected} instances.")

    def _handle_rest(self, data: Sequence[Any], context: Any) -> Any:
        """Answers the requests that are not malformed together, then fails the others."""
        errors = {index: error for index, row in enumerate(data) if (error := self._refusal(row)) is not None}
        good = [index for index in range(len(data)) if index not in errors]
        responses = _blank(data)
        if good:
            with _only(context, good):
                results = self.handle([data[index] for index in good], context)
            if not isinstance(results, list) or len(results) != len(good):
                return results  # refused by the server
            for index, result in zip(good, results, strict=True):
                responses[index] = result
        _fail(context, errors)
        return responses

    def _refusal(self, row: Any) -> MalformedRequest | None:
        try:
            self.open(row)
        except MalformedRequest as error:
            return error
        return None

    def _handle_each(self, data: Sequence[Any], context: Any) -> list[Any]:
        responses = _blank(data)
        errors: dict[int, PredictionException] = {}
        for index, row in enumerate(data):
            with _only(context, [index]):
                try:
                    results = self.handle([row], context)
                except PredictionException as error:
                    errors[index] = error
                    continue
            if isinstance(results, list) and len(results) == 1:
                responses[index] = results[0]
            else:
                errors[index] = PredictionException("number of batch response mismatched", 503)
        _fail(context, errors)
        return responses


def _blank(data: Sequence[Any]) -> list[Any]:
    return [""] * len(data)  # what still stands here for a request that failed is never sent


# -- bodies ----------------------------------------------------------------------------------------------------------


def body_of(row: Any) -> Any:
    """The body of a request: its parameter ``data`` if there is something in it, else ``body``, else all of it."""
    if not isinstance(row, dict):
        return row
    data = row.get("data")
    if data:
        return data
    if "body" in row:
        return row["body"]
    return data if "data" in row else row


def json_body(row: Any) -> dict[str, Any]:
    """The body of a request as a JSON object, whether or not the client said that it is JSON.

    Raises:
        MalformedRequest: it is something else.
    """
    body = body_of(row)
    if isinstance(body, (bytes, bytearray, memoryview, str)):
        try:
            body = json.loads(body if isinstance(body, str) else bytes(body))
        except (ValueError, RecursionError) as error:
            raise MalformedRequest(f"The request body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise MalformedRequest("The request body must be a JSON object.")
    return body


def instances_of(row: Any) -> list[Any]:
    """The instances of a request of the form ``{"instances": [...]}``, at least one.

    Raises:
        MalformedRequest: the body has another form.
    """
    instances = json_body(row).get("instances")
    if not isinstance(instances, list) or not instances:
        raise MalformedRequest('The request body must be a JSON object with a list "instances" that is not empty.')
    return instances


# -- the context -----------------------------------------------------------------------------------------------------


def is_explain(context: Any, index: int = 0) -> bool:
    """The request asks for an explanation, not for a prediction."""
    return bool(_header(context, index, "explain") == "True")


def _header(context: Any, index: int, name: str) -> Any:
    # Local tests call envelopes without a context, or with one that knows no headers.
    if getattr(context, "request_processor", None) is None:
        return None
    return context.get_request_header(index, name)


def _can_fail_one(context: Any) -> bool:
    return getattr(context, "cl_socket", None) is not None and bool(getattr(context, "request_ids", None))


def _streams(context: Any) -> bool:
    return any(processor.get_response_header("ts_stream_next") for processor in context.request_processor)


def _fail(context: Any, errors: Mapping[int, PredictionException]) -> None:
    """Ends some requests of the batch. Comes last: a batch of which something was sent cannot be run again in parts."""
    for index, error in errors.items():
        request_id = context.request_ids[index]
        logger.error("Request %s failed: %s", request_id, error.message)
        send_pieces([""], {0: request_id}, error.message, error.error_code, context)


@contextmanager
def _only(context: Any, indexes: Sequence[int]) -> Iterator[None]:
    """Shows some requests of a batch as if they were the whole."""
    processors, request_ids = context.request_processor, context.request_ids
    context.request_processor = [processors[index] for index in indexes]
    context.request_ids = {place: request_ids[index] for place, index in enumerate(indexes)}
    try:
        yield
    finally:
        context.request_processor, context.request_ids = processors, request_ids
