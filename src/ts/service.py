"""One loaded model: runs batches through its handler and turns whatever happens into replies.

Knows no sockets: replies are returned, pieces of streamed answers go to a callable.
"""

from __future__ import annotations

import copy
import inspect
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from ts.content import decode_value, encode_output
from ts.context import Context, RequestProcessor
from ts.errors import PredictionException
from ts.faults import end_if_device_is_lost
from ts.isolation import isolate
from ts.page import Page
from ts.wire import Batch, Reply, Request, Shared, pack_headers

if TYPE_CHECKING:
    import asyncio

    from ts.wire import Buffer

__all__ = [
    "PREDICTION_METRIC",
    "PredictionException",
    "Service",
    "decode_value",
    "emit_metrics",
    "encode_output",
    "out_of_memory",
]

logger = logging.getLogger(__name__)

PREDICTION_METRIC = "PredictionTime"
LARGEST_REPLY = 1 << 30  # bytes; a frame's length has 32 bits, and a peer may refuse frames of 2 GiB
LONGEST_PHRASE = 512  # characters; a status line is no place for more
UNSUPPORTED_OUTPUT = "Unsupported model output data type."

Job = tuple[int, Request]


def emit_metrics(metrics: Iterable[Any] | None) -> None:
    """Writes metrics to the log, one line each. What handlers of 2022 did; ``context.metrics`` does it by itself."""
    for metric in metrics or ():
        logger.info("[METRICS]%s", metric)


def _header_text(value: Any) -> str:
    text = str(value)
    return text if text.isascii() else text.encode().decode("latin-1")  # UTF-8 goes out as the bytes it is


def out_of_memory(error: BaseException) -> bool:
    """The error means that memory, or memory of the device, ran out."""
    if isinstance(error, MemoryError):
        return True
    return "CUDA" in _printed(error)


def _printed(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001  # an exception of a user may do anything when it is printed
        return f"<{type(value).__name__}>"


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(_printed(error).split())[:LONGEST_PHRASE]}"


def _encode_or_log(item: Any, request_id: str) -> bytes | None:
    try:
        return encode_output(item)
    except Exception:
        logger.exception("%s [request %s]", UNSUPPORTED_OUTPUT, request_id)
        return None


def _leave_out(jobs: Sequence[Job], stale: AbstractSet[int]) -> tuple[list[Job], list[Reply]]:
    """The jobs that somebody wants, and what is said of the others: they never reach the handler."""
    return [job for job in jobs if job[0] not in stale], [Reply(job_id, b"", 0, failed=True) for job_id in stale]


class _BadOutput(Exception):
    """What the handler returned is no answer to its batch."""


# -- running batches -------------------------------------------------------------------------------------------------


class Service:
    """One loaded model.

    Args:
        context: passed to each call of the handler.
        entry_point: the handler: ``(list of dicts, context)`` to a list, or to an awaitable of one.
        send: takes the pieces of streamed answers, which leave at once; called in whatever thread the handler streams.
        bodies: shared memory that holds large bodies.
        page: says which jobs nobody wants any more; they are not run.
        decode_input_request: False hands every body over as bytes.
        max_response_size: bytes; a larger reply becomes an error.
        isolate_errors: a batch that fails is run again in parts, so that only the requests that fail alone do.
        emits_time: each successful batch emits what the handler took; else the server takes that from the replies.
    """

    def __init__(
        self,
        context: Context,
        entry_point: Callable[[Any, Context], Any],
        send: Callable[[Reply], None],
        *,
        bodies: memoryview | None = None,
        page: Page | None = None,
        decode_input_request: bool = True,
        max_response_size: int = 6_553_500,
        isolate_errors: bool = False,
        emits_time: bool = False,
    ) -> None:
        self.context = context
        self._entry_point = entry_point
        self._send = send
        self._bodies = bodies
        self._page = page or Page()
        self._decode = decode_input_request
        self._limit = min(max_response_size, LARGEST_REPLY)
        self._isolates = isolate_errors
        self._emits_time = emits_time
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seconds = 0.0  # how long the handler ran for the current batch
        self._jobs: Sequence[Job] = ()
        self._processors: Sequence[RequestProcessor] = ()
        self._streams: dict[str, tuple[int, RequestProcessor]] | None = None  # by request id, once a batch streams
        self._ended: set[int] = set()  # jobs of the current batch whose answer ended before the handler did
        context.cl_socket = self
        if inspect.iscoroutinefunction(entry_point):
            self.open_loop()

    def load(self, initialize: Callable[[Context], Any]) -> None:
        """Lets the handler load its model; whatever it raises goes to the caller."""
        result = initialize(self.context)
        if inspect.isawaitable(result):
            self._complete(result)

    def predict(self, batch: Batch) -> list[Reply]:
        """The final replies of a batch: one for each job that has none yet.

        Replies of a batch that is run again in parts are sent as soon as they are there.

        Raises:
            SystemExit: the handler wants the process to end.
        """
        jobs: Sequence[Job] = batch.jobs
        skipped: list[Reply] = []
        if stale := self._page.stale(jobs):
            jobs, skipped = _leave_out(jobs, stale)
            if not jobs:
                return skipped
        try:
            result = self._try(jobs)
            if not isinstance(result, str):
                return skipped + result if skipped else result
            self._isolate(jobs, result)
            return skipped
        finally:
            self._jobs = self._processors = ()
            self._streams = {}  # a thread that the handler left behind streams to nobody

    def step(self, jobs: Sequence[Job]) -> list[Reply]:
        """One step of a continuous batch: a reply for each of its jobs, with ``more`` for those that stay in it.

        Who stays is said by ``context.stopping_criteria``: at the job's index, a callable that is given the result and
        returns False. None, or no criteria at all, means that the result is the whole answer.

        Raises:
            SystemExit: the handler wants the process to end.
        """
        try:
            replies = self._answer(jobs, by_criteria=True)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001  # a worker survives whatever its handler does
            return self._fail(jobs, error)
        finally:
            self._streams = {}  # a thread that the handler left behind streams to nobody
        stays = {
            job_id
            for (job_id, _), processor in zip(jobs, self._processors, strict=True)
            if processor.get_response_header("ts_stream_next") == "true"
        }
        return [reply._replace(more=reply.job_id in stays and not reply.failed) for reply in replies]

    def beside(self) -> Service:
        """A service for one more batch while others run: what concerns its requests is new, all else is shared."""
        service = copy.copy(self)
        service.context = context = copy.copy(self.context)
        context.metrics = copy.copy(context.metrics)
        context.cl_socket = service
        return service

    async def predict_async(self, batch: Batch) -> list[Reply]:
        """Like :meth:`predict`, inside a running event loop, and without second runs.

        Raises:
            SystemExit: the handler wants the process to end.
        """
        jobs: Sequence[Job] = batch.jobs
        skipped: list[Reply] = []
        if stale := self._page.stale(jobs):
            jobs, skipped = _leave_out(jobs, stale)
            if not jobs:
                return skipped
        try:
            data = self._begin(jobs)
            started = time.perf_counter()
            try:
                results = self._entry_point(data, self.context)
                if not isinstance(results, list) and inspect.isawaitable(results):
                    results = await results
            finally:
                self._seconds = time.perf_counter() - started
            return skipped + self._finish(jobs, results)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001  # a worker survives whatever its handler does
            end_if_device_is_lost(error)
            return skipped + self._fail(jobs, error)
        finally:
            self._streams = {}  # a task that the handler left behind streams to nobody

    def close(self) -> None:
        """Frees the event loop of an asynchronous handler."""
        if self._loop is not None:
            self._loop.close()

    def send_pieces(
        self, ret: Sequence[Any] | Mapping[int, Any], req_id_map: Mapping[int, str], message: str, code: int
    ) -> None:
        """Sends one piece of the answer to each request of ``req_id_map``.

        Requests are found by id: the indexes of a part of a batch are not those of the batch.

        Raises:
            TypeError: a piece is of a type that no response can carry.
            ValueError: a piece or a header cannot be encoded.
        """
        streams = self._streams
        if streams is None:
            streams = self._streams = {
                request.id: (job_id, processor)
                for (job_id, request), processor in zip(self._jobs, self._processors, strict=False)
            }
        for index, request_id in req_id_map.items():
            job_id, processor = streams.get(request_id, (0, None))
            if processor is None or job_id in self._ended:
                logger.warning("A piece for request %s was dropped: its answer has ended.", request_id)
            elif int(code) >= 400:
                self._ended.add(job_id)
                self._send(self._failure(job_id, _status_of(code), message))
            else:
                if code != 200 and processor.untouched():
                    processor.report_status(code)
                processor.add_response_property("ts_stream_next", "true")
                reply = self._reply(job_id, encode_output(ret[index]), processor)
                if reply.failed:
                    self._ended.add(job_id)
                self._send(reply if reply.failed else reply._replace(more=True))

    def _try(self, jobs: Sequence[Job]) -> list[Reply] | str:
        """Runs some jobs: their replies, or why they failed if their parts are to be tried.

        The exception itself stays here: it holds what the handler had on its stack, and that may be the memory that
        was missing.
        """
        try:
            return self._answer(jobs)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001  # a worker survives whatever its handler does
            end_if_device_is_lost(error)
            if self._isolates and len(jobs) > 1 and self._streams is None:
                return _one_line(error)
            return self._fail(jobs, error)

    def _fail(self, jobs: Sequence[Job], error: BaseException) -> list[Reply]:
        status, message, text = _describe_failure(error)
        logger.error("%s [request %s]", text, ", ".join(request.id for _, request in jobs), exc_info=error)
        return [self._failure(job_id, status, message) for job_id, _ in jobs if job_id not in self._ended]

    def _isolate(self, jobs: Sequence[Job], cause: str) -> None:
        """Answers the jobs of a batch that failed: only those that fail alone get an error."""
        failed = 0

        def attempt(part: Sequence[Job]) -> bool:
            nonlocal failed
            result = self._try(part)
            if isinstance(result, str):
                return False
            for reply in result:
                failed += reply.failed
                self._send(reply)
            return True

        calls = isolate(jobs, attempt)
        logger.warning(
            "A batch of %d requests failed (%s). Run again in %d parts, %d of the requests failed.",
            *(len(jobs), cause, calls, failed),
        )

    def _begin(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Prepares the context for some jobs; their data as the handler gets it."""
        self._seconds = 0.0
        self._streams = None
        self._ended = set()
        self._jobs = jobs
        self._processors = processors = [RequestProcessor(request) for _, request in jobs]
        context = self.context
        context.attach(jobs, self._page)
        context.request_processor = processors
        context.request_ids = request_ids = {index: job[1].id for index, job in enumerate(jobs)}
        context.metrics.set_request_ids(request_ids)
        return [{part.name: self._value(part.value, part.content_type) for part in job[1].parts} for job in jobs]

    def _answer(self, jobs: Sequence[Job], *, by_criteria: bool = False) -> list[Reply]:
        data = self._begin(jobs)
        started = time.perf_counter()
        try:
            results = self._entry_point(data, self.context)
            if not isinstance(results, list) and inspect.isawaitable(results):
                results = self._complete(results)
        finally:
            self._seconds = time.perf_counter() - started
        return self._finish(jobs, results, by_criteria=by_criteria)

    def _finish(self, jobs: Sequence[Job], results: Any, *, by_criteria: bool = False) -> list[Reply]:
        """The replies that the result of a call stands for."""
        if not isinstance(results, list):
            raise _BadOutput("Invalid model predict output")
        if len(results) != len(jobs):
            raise _BadOutput("number of batch response mismatched")
        bodies: list[bytes | None]
        try:
            bodies = [encode_output(item) for item in results]
        except Exception as error:
            if not self._isolates:
                raise _BadOutput(UNSUPPORTED_OUTPUT) from error
            bodies = [_encode_or_log(item, job[1].id) for item, job in zip(results, jobs, strict=True)]
        if self._streams or by_criteria:
            self._end_streams()
        if by_criteria and self.context.stopping_criteria:
            self._apply_criteria(results)
        replies = [
            self._reply(job[0], body, processor)
            for job, body, processor in zip(jobs, bodies, self._processors, strict=True)
        ]
        if self._emits_time:
            self.context.metrics.add_time(PREDICTION_METRIC, round(self._seconds * 1000, 2))
        return [reply for reply in replies if reply.job_id not in self._ended] if self._ended else replies

    def _apply_criteria(self, results: list[Any]) -> None:
        """Asks the handler's criteria which answers are complete; the header says so as it does in any stream."""
        criteria = self.context.stopping_criteria
        for index, processor in enumerate(self._processors):
            complete = criteria[index](results[index])
            if complete is not None:
                processor.add_response_property("ts_stream_next", "false" if complete else "true")

    def _value(self, value: Buffer | Shared, content_type: str) -> Any:
        if isinstance(value, Shared):
            if self._bodies is None or value.offset + value.size > len(self._bodies):
                raise ValueError(f"A request body lies outside the shared memory of this worker: {value}.")
            value = self._bodies[value.offset : value.offset + value.size]
        return decode_value(value, content_type if self._decode else "")

    def _reply(self, job_id: int, body: bytes | None, processor: RequestProcessor) -> Reply:
        if body is None:
            return self._failure(job_id, 503, UNSUPPORTED_OUTPUT)
        if len(body) > self._limit:
            message = (
                f"The answer has {len(body)} bytes, more than max_response_size allows ({self._limit}). "
                "Return less or raise max_response_size."
            )
            logger.error("%s [request %s]", message, self._request_id(job_id))
            return self._failure(job_id, 500, message)
        if processor.untouched():
            return Reply(job_id, body, handler_seconds=self._seconds)
        try:
            status = int(processor.get_response_status_code())
            if not 200 <= status <= 999:
                raise ValueError(f"{status} is no status of a response")  # noqa: TRY301  # answered like the others
            phrase = " ".join(str(processor.get_response_status_phrase() or "").split())[:LONGEST_PHRASE]
            phrase = phrase.encode("utf-8", "replace").decode()
            headers = pack_headers(
                (_header_text(name), _header_text(value)) for name, value in processor.get_response_headers().items()
            )
        except Exception:
            request_id = self._request_id(job_id)
            logger.exception("The status or a header that the handler set cannot be sent. [request %s]", request_id)
            return self._failure(job_id, 503, "The handler set a response status or header that cannot be sent.")
        return Reply(job_id, body, status, phrase, headers, handler_seconds=self._seconds)

    def _failure(self, job_id: int, status: int, message: str) -> Reply:
        body = _printed(message).encode("utf-8", "replace")[: self._limit]
        return Reply(job_id, body, status, failed=True, handler_seconds=self._seconds)

    def _request_id(self, job_id: int) -> str:
        return next((request.id for id_, request in self._jobs if id_ == job_id), "")

    def _end_streams(self) -> None:
        for processor in self._processors:
            if processor.get_response_header("ts_stream_next") is not None:
                processor.add_response_property("ts_stream_next", "false")

    # -- asynchronous handlers ---------------------------------------------------------------------------------------

    def open_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that asynchronous handlers run on; made on first use."""
        if self._loop is None:
            import asyncio  # noqa: PLC0415  # only workers with asynchronous handlers need it

            # Current for this thread, so that what the handler makes in ``initialize`` belongs to the same loop.
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        return self._loop

    def _complete(self, awaitable: Any) -> Any:
        async def wait() -> Any:
            return await awaitable

        return self.open_loop().run_until_complete(wait())


def _describe_failure(error: BaseException) -> tuple[int, str, str]:
    """Status and message for the client, and what the log says above the traceback."""
    if isinstance(error, _BadOutput):
        return 503, str(error), str(error)
    if isinstance(error, MemoryError):
        return 507, "Out of resources", "System out of memory"
    if isinstance(error, PredictionException):
        return _status_of(error.error_code), _printed(error.message), "Prediction error"
    if out_of_memory(error):
        return 507, "Out of resources", "CUDA out of memory"
    return 503, "Prediction failed", "Invoking custom service failed."


def _status_of(code: Any) -> int:
    try:
        status = int(code)
    except (TypeError, ValueError):
        return 500
    if status == 413:
        return 507
    return status if 300 <= status <= 999 else 500
