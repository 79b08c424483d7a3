"""What a handler knows besides its data: the model it belongs to, and the headers and statuses of its requests.

Knows no sockets and no batches: :mod:`ts.service` fills a context before each call and reads it afterwards.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ts.wire import Request, unpack_headers

if TYPE_CHECKING:
    from ts.page import Page

__all__ = ["Context", "RequestProcessor", "send_pieces"]


class RequestProcessor:
    """Headers of one request, and status and headers of its response.

    Args:
        request_header: name to value. Parameters of the request are entries too: name to ``{"content-type": ...}``.
            A wire request is accepted as well and unpacked when somebody looks.
    """

    def __init__(self, request_header: dict[str, Any] | Request) -> None:
        self._request_header = request_header
        self._status_code: Any = 200
        self._reason_phrase: Any = None
        self._response_header: dict[str, Any] = {}

    def get_request_properties(self) -> dict[str, Any]:
        """All request headers, as a live dict."""
        headers = self._request_header
        if isinstance(headers, Request):
            unpacked: dict[str, Any] = {part.name: {"content-type": part.content_type} for part in headers.parts}
            unpacked.update(unpack_headers(headers.headers))
            self._request_header = headers = unpacked
        return headers

    def get_request_property(self, key: str) -> Any:
        """The value of one request header, None if it was not sent.

        The spelling of the client counts first; failing that, upper and lower case do not matter.
        """
        headers = self.get_request_properties()
        if key in headers or not isinstance(key, str):
            return headers.get(key)
        wanted = key.lower()
        found = None
        for name, value in headers.items():
            if name.lower() == wanted:
                found = value
        return found

    def report_status(self, code: int, reason_phrase: str | None = None) -> None:
        """Sets status and reason phrase of the response."""
        self._status_code = code
        self._reason_phrase = reason_phrase

    def get_response_status_code(self) -> Any:
        """The status of the response."""
        return self._status_code

    def get_response_status_phrase(self) -> Any:
        """The reason phrase of the response, None for the standard one."""
        return self._reason_phrase

    def add_response_property(self, key: str, value: str) -> None:
        """Sets a response header."""
        self._response_header[key] = value

    def get_response_headers(self) -> dict[str, Any]:
        """All response headers, as a live dict."""
        return self._response_header

    def get_response_header(self, key: str) -> Any:
        """The value of one response header, None if it is not set."""
        return self._response_header.get(key)

    def untouched(self) -> bool:
        """The response is a 200 without headers or phrase, as almost all are."""
        return self._status_code == 200 and not self._response_header and not self._reason_phrase


class Context:  # noqa: PLW1641  # it changes, so it has no hash
    """The second argument of every handler; one object for the life of a worker.

    Handlers may add attributes of their own; they stay.

    Args:
        model_name: name the model is registered under.
        model_dir: absolute path of the unpacked archive.
        manifest: content of its manifest, None without one.
        batch_size: configured maximum.
        gpu: index of the device, None on CPU.
        mms_version: version of the server.
        limit_max_image_pixels: False lifts Pillow's limit on the size of an image.
        metrics: cache that handlers emit metrics to.
        model_yaml_config: content of the model's configuration file.

    Attributes:
        request_ids: index in the batch to request id; None before the first request.
        stopping_criteria: set by handlers of continuous batches: index to a callable.
        cl_socket: takes the pieces of streamed answers; None outside a worker.
    """

    def __init__(
        self,
        model_name: str,
        model_dir: str,
        manifest: dict[str, Any] | None,
        batch_size: int,
        gpu: int | None,
        mms_version: str,
        limit_max_image_pixels: bool = True,
        metrics: Any = None,
        model_yaml_config: dict[str, Any] | None = None,
    ) -> None:
        self.model_name = model_name
        self.manifest = manifest
        self.metrics = metrics
        self.model_yaml_config = {} if model_yaml_config is None else model_yaml_config
        self.request_ids: dict[int, str] | None = None
        self._request_processor: list[RequestProcessor] | None = None
        self.stopping_criteria: Any = None
        self.cl_socket: Any = None
        self._jobs: Sequence[tuple[int, Request]] = ()
        self._page: Page | None = None
        self.header_key_sequence_id = os.environ.get("TS_REQUEST_SEQUENCE_ID", "ts_request_sequence_id")
        self.header_key_sequence_start = os.environ.get("TS_REQUEST_SEQUENCE_START", "ts_request_sequence_start")
        self.header_key_sequence_end = os.environ.get("TS_REQUEST_SEQUENCE_END", "ts_request_sequence_end")
        self._system_properties: dict[str, Any] = {
            "model_dir": model_dir,
            "gpu_id": gpu,
            "batch_size": batch_size,
            "server_name": "MMS",
            "server_version": mms_version,
            "limit_max_image_pixels": limit_max_image_pixels,
        }

    def attach(self, jobs: Sequence[tuple[int, Request]], page: Page) -> None:
        """Says which jobs the handler is called for, with their ids, and where to see whether somebody wants them."""
        self._jobs, self._page = jobs, page

    @property
    def system_properties(self) -> dict[str, Any]:
        """Where and for what the model was loaded."""
        return self._system_properties

    @property
    def request_processor(self) -> list[RequestProcessor] | None:
        """Headers and statuses, one entry per request of the batch; None before the first request."""
        return self._request_processor

    @request_processor.setter
    def request_processor(self, processors: list[RequestProcessor] | None) -> None:
        self._request_processor = processors

    def get_request_id(self, idx: int = 0) -> str | None:
        """The id of a request, None if there is no such request."""
        return None if self.request_ids is None else self.request_ids.get(idx)

    def get_request_header(self, idx: int, key: str) -> Any:
        """The value of a request header; for a parameter's name a dict with its content type; None if absent."""
        return None if self._request_processor is None else self._request_processor[idx].get_request_property(key)

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        """All headers of a request, as a live dict."""
        return {} if self._request_processor is None else self._request_processor[idx].get_request_properties()

    def remaining_time(self, idx: int = 0) -> float:
        """Seconds until nobody waits for an answer to a request any more; 0 if nobody does, infinity without a limit.

        Counted from the arrival in this process: what the request spent on its way here is not known.
        """
        if self._page is None:
            return math.inf
        job_id, request = self._jobs[idx]
        return 0.0 if self._page.given_up(job_id) else max(0.0, request.deadline - time.monotonic())

    def cancelled(self, idx: int = 0) -> bool:
        """Nobody waits for an answer to a request any more: its client has gone, or its deadline has passed.

        A look into memory: cheap enough for every step of a loop, and for any thread.
        """
        return not self.remaining_time(idx)

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Sets the content type of a response; without it none is sent."""
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx: int) -> Any:
        """The content type that was set for a response."""
        return self.get_response_headers(idx).get("content-type")

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Sets a header of a response; the last value wins."""
        if self._request_processor is not None:
            self._request_processor[idx].add_response_property(key, value)

    def get_response_headers(self, idx: int) -> dict[str, Any]:
        """The headers that were set for a response, as a live dict."""
        return {} if self._request_processor is None else self._request_processor[idx].get_response_headers()

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """Sets the status of one response of the batch; its body is what the handler returns for it all the same."""
        if self._request_processor is not None:
            self._request_processor[idx].report_status(code, phrase)

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        """Sets the status of every response of the batch."""
        for processor in self._request_processor or ():
            processor.report_status(code, phrase)

    def get_response_status(self, idx: int) -> tuple[Any, Any]:
        """Status and reason phrase of a response; ``(200, None)`` until they are set."""
        if self._request_processor is None:
            return 200, None
        processor = self._request_processor[idx]
        return processor.get_response_status_code(), processor.get_response_status_phrase()

    def get_sequence_id(self, idx: int) -> Any:
        """The id of the sequence that a request belongs to, None if it belongs to none."""
        return self.get_request_header(idx, self.header_key_sequence_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Context) and self.__dict__ == other.__dict__


def send_pieces(
    ret: Sequence[Any] | Mapping[int, Any], req_id_map: Mapping[int, str], message: str, code: int, context: Any
) -> None:
    """Sends one piece of the answer to each request of ``req_id_map``; what handlers call for it lives elsewhere.

    Outside a worker there is nobody to send to, and nothing happens; only the first of several ranks sends.

    Raises:
        ValueError: there is no context.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    if context is None:
        raise ValueError("A piece of an answer was not sent: pass the handler's context as the last argument.")
    stream = getattr(context, "cl_socket", None)  # a stand-in for tests may have none
    if stream is not None:
        stream.send_pieces(ret, req_id_map, message, code)
