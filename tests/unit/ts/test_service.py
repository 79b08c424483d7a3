from __future__ import annotations

import asyncio
import enum
import json
import logging
import math
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts.context import Context
from ts.errors import PredictionException
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.service import Service, decode_value, emit_metrics, encode_output
from ts.wire import Batch, Part, Reply, Request, Shared, pack_headers, unpack_headers

Handle = Callable[[Any, Context], Any]


class Metrics:
    request_ids: Any = None

    def __init__(self) -> None:
        self.times: list[tuple[str, float, Any]] = []

    def set_request_ids(self, ids: Any) -> None:
        self.request_ids = ids

    def add_time(self, name: str, value: float) -> None:
        self.times.append((name, value, self.request_ids))


def serve(handle: Handle, sent: list[Reply] | None = None, **options: Any) -> Service:
    context = Context("net", "/", None, 8, None, "0", metrics=Metrics())
    pieces = [] if sent is None else sent
    return Service(context, handle, pieces.append, **options)


def batch(*bodies: bytes, content_type: str = "", headers: Sequence[tuple[str, str]] = ()) -> Batch:
    packed = pack_headers(headers)
    return Batch(
        1, [(10 + i, Request(f"id-{i}", packed, [Part("body", content_type, body)])) for i, body in enumerate(bodies)]
    )


def predict(handle: Handle, *bodies: bytes, **options: Any) -> list[Reply]:
    return serve(handle, **options).predict(batch(*(bodies or (b"x",))))


def returns(*items: Any) -> Handle:
    return lambda _data, _context: list(items)


def raises(error: BaseException) -> Handle:
    def handle(data: Any, context: Context) -> Any:
        raise error

    return handle


def outcome(replies: list[Reply]) -> list[tuple[int, bool, int, bytes]]:
    return [(reply.job_id, reply.failed, reply.status, bytes(reply.body)) for reply in replies]


# -- request bodies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("", b"abc", bytearray(b"abc")),
        ("", b"", bytearray(b"")),
        ("image/png", b"\x89P", bytearray(b"\x89P")),
        ("application/json", b'{"a": [1, null]}', {"a": [1, None]}),
        ("Application/JSON", b"1", 1),
        ("application/json; charset=utf-8", b"[]", []),
        ("application/json;", b'"t"', "t"),
        ("application/vnd.x+json", b"[]", bytearray(b"[]")),
        ("application/json", b"{oops", bytearray(b"{oops")),
        ("application/json", b"", bytearray(b"")),
        ("application/json", b"[" * 100_000, bytearray(b"[" * 100_000)),
        ("text/plain", "größe".encode(), "größe"),
        ("text/csv", b"\xff\xfe", bytearray(b"\xff\xfe")),
    ],
)
def test_a_body_is_decoded_by_its_content_type(content_type: str, body: bytes, expected: Any) -> None:
    decoded = decode_value(memoryview(body), content_type)
    assert (type(decoded), decoded) == (type(expected), expected)


def test_a_body_that_cannot_be_decoded_is_warned_about_without_its_content(caplog: pytest.LogCaptureFixture) -> None:
    decode_value(b"secret", "application/json")
    assert "not valid application/json" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "text",
    ["18446744073709551616", "-9223372036854775809", "[123456789012345678901234567890]", "1e400", '"\\ud800"', "-0.0"],
)
def test_json_is_read_as_the_standard_library_reads_it(text: str) -> None:
    expected = json.loads(text)
    decoded = decode_value(text.encode(), "application/json")
    assert (type(decoded), decoded) == (type(expected), expected)


def test_nan_is_accepted() -> None:
    assert math.isnan(decode_value(b"NaN", "application/json"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@given(JSON)
def test_any_json_is_read_and_written_as_the_standard_library_does(value: Any) -> None:
    text = json.dumps(value).encode()
    decoded = decode_value(text, "application/json")
    assert json.dumps(decoded) == json.dumps(json.loads(text))
    if not isinstance(value, str):
        assert encode_output(value) == json.dumps(value, indent=2).encode()


@pytest.mark.parametrize("size", [0, 5000])
def test_a_body_in_shared_memory_is_copied_out(size: int) -> None:
    memory = bytearray(b"-" * 4096 + b"x" * size)
    seen: list[Any] = []

    def handle(data: Any, context: Context) -> Any:
        seen.extend(data)
        return [""]

    service = serve(handle, bodies=memoryview(memory))
    service.predict(Batch(1, [(1, Request("a", b"", [Part("body", "image/png", Shared(4096, size))]))]))
    memory[:] = bytes(len(memory))
    assert seen == [{"body": bytearray(b"x" * size)}]


@pytest.mark.parametrize("bodies", [None, memoryview(bytes(10))])
def test_a_body_outside_the_shared_memory_fails_the_batch(bodies: memoryview | None) -> None:
    service = serve(returns(""), bodies=bodies)
    replies = service.predict(Batch(1, [(1, Request("a", b"", [Part("body", "", Shared(8, 4))]))]))
    assert outcome(replies) == [(1, True, 503, b"Prediction failed")]


def test_without_decoding_every_body_is_a_bytearray() -> None:
    service = serve(lambda data, _: [type(data[0]["body"]).__name__], decode_input_request=False)
    assert service.predict(batch(b"{}", content_type="application/json"))[0].body == b"bytearray"


def test_parameters_become_one_dict_and_the_last_of_a_name_wins() -> None:
    seen: list[Any] = []

    def handle(data: Any, context: Context) -> Any:
        seen.append(data)
        return [1, 2]

    parts = [Part("a", "", b"1"), Part("b", "text/plain", b"2"), Part("a", "", b"3")]
    serve(handle).predict(Batch(1, [(1, Request("r", b"", parts)), (2, Request("s", b"", []))]))
    assert seen == [[{"a": bytearray(b"3"), "b": "2"}, {}]]


# -- results ---------------------------------------------------------------------------------------------------------


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("item", "body"),
    [
        (b"\x00\xff", b"\x00\xff"),
        (bytearray(b"ab"), b"ab"),
        ("größe", "größe".encode()),
        (Text("sub"), b"sub"),
        (None, b"null"),
        (True, b"true"),
        (1.5, b"1.5"),
        ((1, 2), b"[\n  1,\n  2\n]"),
        ({1: "ä"}, b'{\n  "1": "\\u00e4"\n}'),
        ([], b"[]"),
        ({"a": {}}, b'{\n  "a": {}\n}'),
        ([float("nan"), None], b"[\n  NaN,\n  null\n]"),
        ([1e-5, 1e16], b"[\n  1e-05,\n  1e+16\n]"),
        (["\x7f"], b'[\n  "\\u007f"\n]'),
        ([2**70], b"[\n  1180591620717411303424\n]"),
        ([[Text("x")]], b'[\n  [\n    "x"\n  ]\n]'),
    ],
)
def test_a_result_becomes_the_body(item: Any, body: bytes) -> None:
    assert encode_output(item) == body


class Colour(enum.Enum):
    RED = 1


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)
DEEP: Any = None
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "item", [{1, 2}, object(), memoryview(b"x"), [b"x"], [uuid.UUID(int=1)], [Colour.RED], CIRCLE, DEEP, "\ud800"]
)
def test_a_result_that_no_response_can_carry_fails_the_batch(item: Any) -> None:
    replies = predict(returns(1, item), b"a", b"b")
    assert outcome(replies) == [(id_, True, 503, b"Unsupported model output data type.") for id_ in (10, 11)]


def test_replies_carry_the_ids_of_their_jobs_and_the_time_of_the_handler() -> None:
    replies = predict(returns("a", "b"), b"1", b"2")
    assert outcome(replies) == [(10, False, 200, b"a"), (11, False, 200, b"b")]
    assert replies[0].handler_seconds == replies[1].handler_seconds > 0


@pytest.mark.parametrize("result", [None, ("a",), "a", {"a": 1}])
def test_a_result_that_is_no_list_fails_the_batch(result: Any) -> None:
    assert outcome(predict(lambda _data, _context: result)) == [(10, True, 503, b"Invalid model predict output")]


def test_a_list_of_the_wrong_length_fails_the_batch() -> None:
    replies = predict(returns("a"), b"1", b"2")
    assert outcome(replies) == [(id_, True, 503, b"number of batch response mismatched") for id_ in (10, 11)]


def test_only_an_answer_over_the_limit_becomes_an_error_that_names_it() -> None:
    small, large = predict(returns("ok", "x" * 101), b"1", b"2", max_response_size=100)
    assert not small.failed
    assert (large.failed, large.status) == (True, 500)
    assert b"max_response_size" in large.body


# -- failures --------------------------------------------------------------------------------------------------------


class Odd(Exception):
    def __str__(self) -> str:
        raise RuntimeError("cannot be printed")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("boom"), 503, b"Prediction failed"),
        (AssertionError(), 503, b"Prediction failed"),
        (GeneratorExit(), 503, b"Prediction failed"),
        (Odd(), 503, b"Prediction failed"),
        (MemoryError(), 507, b"Out of resources"),
        (RuntimeError("CUDA error: device-side assert"), 507, b"Out of resources"),
        (ValueError("no CUDA"), 507, b"Out of resources"),
        (PredictionException("bad label"), 500, b"bad label"),
        (PredictionException("teapot", 418), 418, b"teapot"),
        (PredictionException("too large", 413), 507, b"too large"),
        (PredictionException("fine?", 200), 500, b"fine?"),
        (PredictionException({"a": 1}, "404"), 404, b"{'a': 1}"),  # type: ignore[arg-type]
        (PredictionException("x", "many"), 500, b"x"),  # type: ignore[arg-type]
        (PredictionException("\ud800", 70_000), 500, b"?"),
    ],
)
def test_an_exception_fails_every_job_of_the_batch(error: BaseException, status: int, message: bytes) -> None:
    assert outcome(predict(raises(error), b"1", b"2")) == [(id_, True, status, message) for id_ in (10, 11)]


def test_the_log_has_the_traceback(caplog: pytest.LogCaptureFixture) -> None:
    predict(raises(ValueError("boom")))
    assert "Invoking custom service failed." in caplog.text
    assert "Traceback" in caplog.text
    assert "ValueError: boom" in caplog.text


def test_the_log_names_the_requests_and_not_what_they_asked(caplog: pytest.LogCaptureFixture) -> None:
    predict(raises(ValueError("boom")), b"secret", b"private")
    (record,) = (record for record in caplog.records if record.exc_info)
    assert record.getMessage() == "Invoking custom service failed. [request id-0, id-1]"
    assert not {"secret", "private"} & set(caplog.text.replace("'", " ").split())


def test_an_answer_that_is_too_long_is_logged_with_its_request(caplog: pytest.LogCaptureFixture) -> None:
    predict(returns("short", "x" * 50), b"1", b"2", max_response_size=40)
    (line,) = caplog.messages
    assert line.endswith("[request id-1]")


def test_a_handler_may_end_the_process() -> None:
    with pytest.raises(SystemExit):
        predict(raises(SystemExit(3)))


def test_the_next_batch_does_not_notice_a_failure() -> None:
    service = serve(lambda data, _: [1 / int(row["body"]) for row in data])
    service.predict(batch(b"0"))
    assert outcome(service.predict(batch(b"2"))) == [(10, False, 200, b"0.5")]


# -- the time of a batch ---------------------------------------------------------------------------------------------


def times_of(service: Service) -> list[tuple[str, float, Any]]:
    times: list[tuple[str, float, Any]] = service.context.metrics.times
    return times


def test_each_batch_that_succeeds_emits_its_time_where_that_is_wanted() -> None:
    service = serve(lambda data, _: [1 / int(row["body"]) for row in data], emits_time=True)
    service.predict(batch(b"0"))
    service.predict(batch(b"1", b"2"))
    ((name, milliseconds, request_ids),) = times_of(service)
    assert (name, request_ids) == ("PredictionTime", {0: "id-0", 1: "id-1"})
    assert 0 <= milliseconds == round(milliseconds, 2) < 1000


def test_the_time_of_a_batch_is_not_emitted_where_replies_tell_it() -> None:
    service = serve(returns(1))
    service.predict(batch(b""))
    assert times_of(service) == []


# -- the context of a batch ------------------------------------------------------------------------------------------


def test_the_context_knows_the_requests_of_the_batch() -> None:
    def handle(data: Any, context: Context) -> Any:
        assert context.metrics.request_ids == context.request_ids == {0: "id-0", 1: "id-1"}
        return [context.get_request_header(index, "x-a") for index in range(2)]

    replies = serve(handle).predict(batch(b"", b"", headers=[("X-A", "1")]))
    assert [reply.body for reply in replies] == [b"1", b"1"]


def test_status_phrase_and_headers_go_with_their_own_reply() -> None:
    def handle(data: Any, context: Context) -> Any:
        context.set_response_status(404, "No Cat", 1)
        context.set_response_content_type(2, "text/plain")
        context.set_response_header(2, "X-A", "ü")
        return ["a", "b", "c"]

    first, second, third = predict(handle, b"1", b"2", b"3")
    assert first == Reply(10, b"a", handler_seconds=first.handler_seconds)
    assert (second.status, second.phrase, second.failed, second.body) == (404, "No Cat", False, b"b")
    assert unpack_headers(third.headers) == [("content-type", "text/plain"), ("X-A", "ü".encode().decode("latin-1"))]


@pytest.mark.parametrize("code", ["many", None, 0, 42, 100, 1000, object()])
def test_a_status_that_cannot_be_sent_fails_only_its_reply(code: Any) -> None:
    def handle(data: Any, context: Context) -> Any:
        context.set_response_status(code, "", 0)
        return ["a", "b"]

    first, second = predict(handle, b"1", b"2")
    assert (first.failed, first.status) == (True, 503)
    assert (second.failed, second.body) == (False, b"b")


def test_numbers_as_headers_and_texts_as_status_are_coerced() -> None:
    def handle(data: Any, context: Context) -> Any:
        context.set_response_status("201", 5)  # type: ignore[arg-type]
        context.set_response_header(0, "X-Count", 3)  # type: ignore[arg-type]
        return ["a"]

    (reply,) = predict(handle)
    assert (reply.status, reply.phrase, unpack_headers(reply.headers)) == (201, "5", [("X-Count", "3")])


def test_a_header_with_a_line_break_fails_only_its_reply() -> None:
    def handle(data: Any, context: Context) -> Any:
        context.set_response_header(0, "X-A", "1\r\nSet-Cookie: x")
        return ["a", "b"]

    first, second = predict(handle, b"1", b"2")
    assert (first.failed, first.status, second.failed) == (True, 503, False)


def test_a_phrase_cannot_break_the_status_line() -> None:
    def handle(data: Any, context: Context) -> Any:
        context.set_response_status(400, "a\r\nX: y" + "ü" * 100_000)
        return ["a"]

    (reply,) = predict(handle)
    assert reply.phrase.startswith("a X: yü")
    assert len(reply.phrase.encode()) < 2000


def test_attributes_of_the_context_stay_between_batches() -> None:
    def handle(data: Any, context: Context) -> Any:
        context.count = getattr(context, "count", 0) + 1  # type: ignore[attr-defined]
        return [context.count]  # type: ignore[attr-defined]

    service = serve(handle)
    assert [service.predict(batch(b""))[0].body for _ in range(2)] == [b"1", b"2"]


# -- streams ---------------------------------------------------------------------------------------------------------


def stream(context: Context, pieces: Any, ids: Any = None, message: str = "", code: int = 200) -> None:
    send_intermediate_predict_response(pieces, ids or context.request_ids or {}, message, code, context)


def test_pieces_are_sent_at_once_and_the_result_ends_the_stream() -> None:
    sent: list[Reply] = []

    def handle(data: Any, context: Context) -> Any:
        context.set_response_content_type(0, "text/plain")
        stream(context, ["one", {"two": 2}])
        assert len(sent) == 2
        return ["end", b"end"]

    final = serve(handle, sent).predict(batch(b"", b""))
    assert [(reply.job_id, reply.body, reply.more) for reply in sent] == [
        (10, b"one", True),
        (11, b'{\n  "two": 2\n}', True),
    ]
    assert unpack_headers(sent[0].headers) == [("content-type", "text/plain"), ("ts_stream_next", "true")]
    assert [(reply.job_id, reply.body, reply.more) for reply in final] == [(10, b"end", False), (11, b"end", False)]
    assert ("ts_stream_next", "false") in unpack_headers(final[1].headers)


def test_pieces_of_a_part_of_the_batch_find_their_jobs_by_request_id() -> None:
    sent: list[Reply] = []

    def handle(data: Any, context: Context) -> Any:
        stream(context, ["for the second"], {0: "id-1"})
        return ["a", "b"]

    final = serve(handle, sent).predict(batch(b"", b""))
    assert [(reply.job_id, reply.body) for reply in sent] == [(11, b"for the second")]
    assert final[0].headers == b""


def test_an_exception_after_a_piece_ends_the_stream_as_failed() -> None:
    sent: list[Reply] = []

    def handle(data: Any, context: Context) -> Any:
        stream(context, ["one"])
        raise ValueError

    assert outcome(serve(handle, sent).predict(batch(b""))) == [(10, True, 503, b"Prediction failed")]
    assert sent[0].more


def test_an_error_code_ends_only_the_answers_it_names() -> None:
    sent: list[Reply] = []

    def handle(data: Any, context: Context) -> Any:
        stream(context, ["", ""], {1: "id-1"}, "too long", 413)
        stream(context, ["a", "ignored"])
        return ["end", "ignored"]

    final = serve(handle, sent).predict(batch(b"", b""))
    assert [(reply.job_id, reply.failed, reply.status, reply.body, reply.more) for reply in sent] == [
        (11, True, 507, b"too long", False),
        (10, False, 200, b"a", True),
    ]
    assert [reply.job_id for reply in final] == [10]


def test_a_thread_that_streams_after_the_end_streams_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[Reply] = []
    service = serve(returns("end"), sent)
    service.predict(batch(b""))
    with caplog.at_level(logging.WARNING):
        stream(service.context, ["late"])
    assert sent == []
    assert "id-0 was dropped" in caplog.text


def test_a_piece_over_the_limit_ends_the_answer() -> None:
    sent: list[Reply] = []

    def handle(data: Any, context: Context) -> Any:
        stream(context, ["x" * 500])
        return ["end"]

    assert serve(handle, sent, max_response_size=400).predict(batch(b"")) == []
    assert (sent[0].failed, sent[0].more) == (True, False)


# -- asynchronous handlers -------------------------------------------------------------------------------------------


def test_a_coroutine_function_is_awaited() -> None:
    async def handle(data: Any, context: Context) -> Any:
        await asyncio.sleep(0)
        return [len(data)]

    service = serve(handle)
    try:
        assert [service.predict(batch(b"", b""))[0].failed, service.predict(batch(b""))[0].body] == [True, b"1"]
    finally:
        service.close()


def test_a_coroutine_that_a_function_returns_is_awaited() -> None:
    async def later() -> list[str]:
        return ["later"]

    service = serve(lambda _data, _context: later())
    try:
        assert service.predict(batch(b""))[0].body == b"later"
    finally:
        service.close()


def test_a_cancelled_coroutine_fails_its_batch() -> None:
    async def handle(data: Any, context: Context) -> Any:
        raise asyncio.CancelledError

    service = serve(handle)
    try:
        assert outcome(service.predict(batch(b""))) == [(10, True, 503, b"Prediction failed")]
    finally:
        service.close()


def test_old_metrics_are_written_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        emit_metrics(["a", 1])
        emit_metrics(None)
    assert [record.getMessage() for record in caplog.records] == ["[METRICS]a", "[METRICS]1"]


# -- one bad request -------------------------------------------------------------------------------------------------


def parse(data: Any, context: Context) -> Any:
    return [int(row["body"]) for row in data]


def isolated(handle: Handle, *bodies: bytes) -> tuple[list[Reply], list[Reply]]:
    """What was sent at once, and what came back at the end."""
    sent: list[Reply] = []
    return sent, serve(handle, sent, isolate_errors=True).predict(batch(*bodies))


def test_only_the_guilty_request_of_a_batch_fails() -> None:
    sent, final = isolated(parse, b"1", b"two", b"3", b"4", b"5")
    assert final == []
    assert sorted(outcome(sent)) == [
        (10, False, 200, b"1"),
        (11, True, 503, b"Prediction failed"),
        (12, False, 200, b"3"),
        (13, False, 200, b"4"),
        (14, False, 200, b"5"),
    ]


def test_the_log_has_one_line_on_the_batch_and_one_traceback_per_guilty_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    isolated(parse, *[b"1"] * 7, b"x", *[b"1"] * 8)
    assert "A batch of 16 requests failed (ValueError: invalid literal" in caplog.text
    assert "Run again in 8 parts, 1 of the requests failed." in caplog.text
    assert caplog.text.count("Traceback") == 1


def test_an_exception_for_the_whole_batch_is_given_only_to_who_gets_it_alone() -> None:
    def handle(data: Any, context: Context) -> Any:
        if any(row["body"] == b"x" for row in data):
            raise PredictionException("unknown label", 404)
        return ["ok" for _ in data]

    sent, _ = isolated(handle, b"a", b"x")
    assert outcome(sent) == [(10, False, 200, b"ok"), (11, True, 404, b"unknown label")]


def test_a_batch_too_large_for_the_memory_is_answered_in_parts() -> None:
    def handle(data: Any, context: Context) -> Any:
        if len(data) > 2:
            raise RuntimeError("CUDA out of memory")
        return ["ok" for _ in data]

    sent, _ = isolated(handle, *[b""] * 5)
    assert [reply.failed for reply in sent] == [False] * 5


@pytest.mark.parametrize("swallow", [lambda _data: None, lambda data: data[1:]], ids=["nothing", "too few"])
def test_a_handler_that_swallows_the_error_is_found_out_too(swallow: Callable[[Any], Any]) -> None:
    def handle(data: Any, context: Context) -> Any:
        return swallow(data) if any(row["body"] == b"x" for row in data) else ["ok" for _ in data]

    sent, _ = isolated(handle, b"x", b"a", b"b")
    assert [(reply.job_id, reply.failed) for reply in sent] == [(10, True), (11, False), (12, False)]


def test_one_result_that_cannot_be_sent_fails_alone_and_nothing_runs_again() -> None:
    calls: list[int] = []

    def handle(data: Any, context: Context) -> Any:
        calls.append(len(data))
        return ["a", {1, 2}, "c"]

    sent, final = isolated(handle, b"", b"", b"")
    assert (sent, calls) == ([], [3])
    assert outcome(final) == [
        (10, False, 200, b"a"),
        (11, True, 503, b"Unsupported model output data type."),
        (12, False, 200, b"c"),
    ]


def test_each_part_has_a_context_and_data_of_its_own() -> None:
    seen: list[dict[int, str]] = []

    def handle(data: Any, context: Context) -> Any:
        assert context.metrics.request_ids == context.request_ids
        assert [context.get_response_headers(index) for index in range(len(data))] == [{}] * len(data)
        seen.append(dict(context.request_ids or {}))
        context.set_all_response_status(418)
        context.set_response_header(0, "X-A", "1")
        values = [row.pop("body") for row in data]
        if b"x" in values:
            raise ValueError
        return values

    sent, _ = isolated(handle, b"a", b"b", b"x")
    assert seen[0] == {0: "id-0", 1: "id-1", 2: "id-2"}
    assert seen[1:] == [{0: "id-0"}, {0: "id-1", 1: "id-2"}, {0: "id-1"}, {0: "id-2"}]
    assert [(reply.status, reply.body) for reply in sent[:2]] == [(418, b"a"), (418, b"b")]


def test_a_batch_that_has_streamed_is_not_run_again() -> None:
    sent: list[Reply] = []

    def handle(data: Any, context: Context) -> Any:
        stream(context, ["piece"], {0: "id-0"})
        raise ValueError

    final = serve(handle, sent, isolate_errors=True).predict(batch(b"", b""))
    assert [(reply.job_id, reply.more) for reply in sent] == [(10, True)]
    assert outcome(final) == [(id_, True, 503, b"Prediction failed") for id_ in (10, 11)]


def test_what_the_failed_call_held_is_free_before_the_next() -> None:
    held: list[weakref.ref[Any]] = []

    class Tensor:
        pass

    def handle(data: Any, context: Context) -> Any:
        assert all(reference() is None for reference in held)
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        if len(data) > 1:
            raise MemoryError
        return ["ok"]

    sent, _ = isolated(handle, *[b""] * 4)
    assert [reply.failed for reply in sent] == [False] * 4
    assert len(held) == 7


def test_a_handler_may_end_the_process_in_a_part_too() -> None:
    def handle(data: Any, context: Context) -> Any:
        raise ValueError if len(data) > 1 else SystemExit(3)

    with pytest.raises(SystemExit):
        isolated(handle, b"", b"")
