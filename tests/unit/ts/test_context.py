from __future__ import annotations

import math
import time
from typing import Any

import pytest

from ts.context import Context, RequestProcessor, send_pieces
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.page import Page
from ts.protocol import otf_message_handler
from ts.wire import Part, Request, pack_headers


def request(*headers: tuple[str, str], parts: tuple[Part, ...] = ()) -> Request:
    return Request("id", pack_headers(headers), parts)


@pytest.fixture
def context() -> Context:
    return Context("net", "/models/net", {"model": {}}, 4, None, "0.12.0")


@pytest.fixture
def busy(context: Context) -> Context:
    context.request_ids = {0: "a", 1: "b"}
    context.request_processor = [
        RequestProcessor(
            request(("Content-Type", "text/plain"), ("X-One", "1"), parts=(Part("body", "text/plain", b""),))
        ),
        RequestProcessor({"Accept": "*/*"}),
    ]
    return context


def test_system_properties_are_six_in_order(context: Context) -> None:
    assert list(context.system_properties.items()) == [
        ("model_dir", "/models/net"),
        ("gpu_id", None),
        ("batch_size", 4),
        ("server_name", "MMS"),
        ("server_version", "0.12.0"),
        ("limit_max_image_pixels", True),
    ]


def test_the_model_configuration_is_never_none(context: Context) -> None:
    assert context.model_yaml_config == {}


def test_before_a_request_everything_is_empty_and_setters_do_nothing(context: Context) -> None:
    context.set_response_status(404, "gone", 0)
    context.set_all_response_status(404)
    context.set_response_header(0, "a", "b")
    assert context.request_ids is None
    assert context.request_processor is None
    assert context.get_request_id() is None
    assert context.get_request_header(0, "a") is None
    assert context.get_all_request_header(0) == {}
    assert context.get_response_headers(0) == {}
    assert context.get_response_status(0) == (200, None)


def test_request_ids_are_found_by_index(busy: Context) -> None:
    assert [busy.get_request_id(), busy.get_request_id(1), busy.get_request_id(2)] == ["a", "b", None]


@pytest.mark.parametrize("key", ["X-One", "x-one", "X-ONE"])
def test_headers_are_found_in_any_spelling(busy: Context, key: str) -> None:
    assert busy.get_request_header(0, key) == "1"


def test_an_unknown_header_is_none(busy: Context) -> None:
    assert busy.get_request_header(0, "X-Two") is None


def test_the_spelling_of_the_client_wins_over_other_spellings() -> None:
    processor = RequestProcessor(request(("x-a", "lower"), ("X-A", "upper")))
    assert [processor.get_request_property(key) for key in ("x-a", "X-A", "X-a")] == ["lower", "upper", "upper"]


def test_a_parameter_is_a_header_with_its_content_type(busy: Context) -> None:
    assert busy.get_request_header(0, "body") == {"content-type": "text/plain"}


def test_parameters_come_first_and_real_headers_win() -> None:
    parts = (Part("body", "image/png", b""), Part("Host", "", b""))
    headers = RequestProcessor(request(("Host", "here"), ("A", "1"), ("A", "2"), parts=parts)).get_request_properties()
    assert list(headers.items()) == [("body", {"content-type": "image/png"}), ("Host", "here"), ("A", "2")]


def test_all_headers_are_one_live_dict(busy: Context) -> None:
    busy.get_all_request_header(0)["X-New"] = "2"
    assert busy.get_request_header(0, "X-New") == "2"


def test_statuses_are_set_one_by_one_or_all_at_once(busy: Context) -> None:
    busy.set_all_response_status(202, "Later")
    busy.set_response_status(404, "Gone", 1)
    assert [busy.get_response_status(index) for index in (0, 1)] == [(202, "Later"), (404, "Gone")]


def test_the_last_value_of_a_response_header_wins(busy: Context) -> None:
    busy.set_response_content_type(1, "text/html")
    busy.set_response_content_type(1, "text/plain")
    assert busy.get_response_headers(1) == {"content-type": "text/plain"}
    assert busy.get_response_content_type(1) == "text/plain"
    assert busy.get_response_content_type(0) is None


def test_the_sequence_id_is_read_from_the_configured_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS_REQUEST_SEQUENCE_ID", "X-Session")
    context = Context("net", "/", None, 1, None, "0")
    context.request_processor = [RequestProcessor({"X-Session": "s1"})]
    assert context.get_sequence_id(0) == "s1"


def test_handlers_may_add_attributes(context: Context) -> None:
    context.cache = {}  # type: ignore[attr-defined]
    assert "cache" in vars(context)


def test_contexts_are_equal_by_content_and_not_hashable(context: Context) -> None:
    same = Context("net", "/models/net", {"model": {}}, 4, None, "0.12.0")
    assert context == same
    same.model_name = "other"
    assert context != same
    with pytest.raises(TypeError):
        hash(context)


def test_a_processor_reports_what_was_set() -> None:
    processor = RequestProcessor({"a": "1"})
    assert processor.untouched()
    processor.report_status(500, "Bad")
    processor.add_response_property("k", "v")
    assert not processor.untouched()
    assert (processor.get_response_status_code(), processor.get_response_status_phrase()) == (500, "Bad")
    assert (processor.get_response_header("k"), processor.get_response_header("x")) == ("v", None)
    assert processor.get_response_headers() == {"k": "v"}
    assert processor.get_request_property("b") is None


def test_outside_a_worker_pieces_go_nowhere(context: Context) -> None:
    send_pieces(["x"], {0: "a"}, "", 200, context)
    send_pieces(["x"], {0: "a"}, "", 200, object())


def test_a_piece_without_a_context_is_an_error() -> None:
    with pytest.raises(ValueError, match="context"):
        send_pieces(["x"], {0: "a"}, "", 200, None)


def test_only_the_first_rank_sends_pieces(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    class Stream:
        def send_pieces(self, *arguments: Any) -> None:
            sent.append(arguments)

    context.cl_socket = Stream()
    monkeypatch.setenv("LOCAL_RANK", "1")
    send_intermediate_predict_response(["x"], {0: "a"}, "m", 200, context)
    monkeypatch.setenv("LOCAL_RANK", "0")
    send_intermediate_predict_response(["y"], {0: "a"}, "m", 200, context)
    assert sent == [(["y"], {0: "a"}, "m", 200)]


def test_the_old_import_path_of_streaming_works_and_warns(context: Context) -> None:
    with pytest.warns(PendingDeprecationWarning, match=r"ts\.handler_utils\.utils"):
        otf_message_handler.send_intermediate_predict_response(["x"], {0: "a"}, "", 200, context)


# -- deadlines -------------------------------------------------------------------------------------------------------


def test_outside_a_worker_nobody_leaves_and_there_is_time() -> None:
    context = Context("m", "/", None, 1, None, "0")
    assert (context.remaining_time(), context.cancelled(3)) == (math.inf, False)


def test_each_request_has_its_own_deadline_and_its_own_client() -> None:
    context, page = Context("m", "/", None, 4, None, "0"), Page()
    now = time.monotonic()
    deadlines = [math.inf, now + 60.0, now - 1.0, math.inf]
    jobs = [(10 + index, Request(str(index), b"", [], deadline)) for index, deadline in enumerate(deadlines)]
    context.attach(jobs, page)
    page.give_up(13)
    assert [context.cancelled(index) for index in range(4)] == [False, False, True, True]
    assert context.remaining_time() == math.inf
    assert 59.0 < context.remaining_time(1) <= 60.0
    assert [context.remaining_time(index) for index in (2, 3)] == [0.0, 0.0]
