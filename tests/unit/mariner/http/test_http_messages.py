"""Bodies, headers and paths as values: no sockets."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mariner.bodies import Arena
from mariner.errors import BadRequest, NoWorker, QueueFull, WorkerDied
from mariner.http.exchange import Exchange, HeaderPairs, encode_headers, new_request_id
from mariner.http.messages import (
    decode_path,
    query_values,
    read_parameters,
    read_query,
    read_request,
    write_error,
    write_outcome,
)
from mariner.jobs import Part, Reply, Request, Shared, pack_headers, unpack_headers


@dataclass
class Wire:
    """A connection that keeps what is written."""

    default_headers: HeaderPairs = ()
    statuses: list[int] = field(default_factory=list)
    written: bytes = b""
    aborted: bool = False

    @property
    def answered(self) -> Callable[[int], None]:
        return self.statuses.append

    def write(self, data: bytes) -> None:
        self.written += data

    def finished(self, exchange: Exchange) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True

    @property
    def status_line(self) -> str:
        return self.written.split(b"\r\n", 1)[0].decode("latin-1")

    @property
    def headers(self) -> dict[str, str]:
        head = self.written.split(b"\r\n\r\n", 1)[0].decode("latin-1").split("\r\n")[1:]
        assert len(head) == len({line.split(":")[0].lower() for line in head}), "a header came twice"
        return dict(line.split(": ", 1) for line in head)

    @property
    def body(self) -> bytes:
        return self.written.split(b"\r\n\r\n", 1)[1]

    @property
    def json(self) -> dict[str, object]:
        value: dict[str, object] = json.loads(self.body)
        return value


def make(
    *headers: tuple[str, str], body: bytes = b"", target: str = "/predictions/m", wire: Wire | None = None
) -> Exchange:
    raw = [text.encode("latin-1") for pair in headers for text in pair]
    fields = {name.encode("latin-1").lower(): value.encode("latin-1") for name, value in reversed(headers)}
    exchange = Exchange(wire or Wire(), "POST", target.encode(), raw, fields, "127.0.0.1")
    exchange.body = body
    return exchange


def parts(content_type: str, body: bytes) -> list[Part]:
    return list(read_request(make(("Content-Type", content_type), body=body))[0].parts)


def form(*fields: tuple[str, bytes], boundary: str = "XX", end: str = "--") -> bytes:
    lines = b"".join(b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary.encode(), head.encode(), value) for head, value in fields)
    return lines + f"--{boundary}{end}\r\n".encode()


# -- plain bodies ----------------------------------------------------------------------------------------------------


def test_an_ordinary_body_is_one_parameter() -> None:
    assert parts("application/json", b"{}") == [Part("body", "application/json", b"{}")]


def test_the_media_type_comes_without_parameters_and_in_the_client_s_spelling() -> None:
    assert parts("Application/JSON ; charset=utf-8", b"{}")[0].content_type == "Application/JSON"


def test_a_body_without_content_type_is_one_parameter() -> None:
    request, _ = read_request(make(body=b"x"))
    assert request.parts == [Part("body", "", b"x")]


@pytest.mark.parametrize("content_type", ["multipart/form-data; boundary=XX", "application/x-www-form-urlencoded"])
def test_an_empty_body_is_one_parameter_whatever_its_type(content_type: str) -> None:
    assert parts(content_type, b"") == [Part("body", content_type.partition(";")[0], b"")]


def test_multipart_without_boundary_is_an_ordinary_body() -> None:
    assert parts("multipart/form-data", b"x") == [Part("body", "multipart/form-data", b"x")]


def test_a_body_in_shared_memory_stays_there() -> None:
    arena = Arena(1 << 16)
    exchange = make(("Content-Type", "image/png"))
    slot = arena.allocate(5000)
    assert slot is not None
    exchange.body = slot
    request, taken = read_request(exchange)
    assert request.parts == [Part("body", "image/png", Shared(slot.offset, 5000))]
    assert taken is slot
    exchange.release()
    arena.close()


# -- forms -----------------------------------------------------------------------------------------------------------


def test_a_form_field_is_a_parameter() -> None:
    assert parts("application/x-www-form-urlencoded", b"a=1&b=x+y%20z&a=2") == [
        Part("a", "", b"1"),
        Part("b", "", b"x y z"),
        Part("a", "", b"2"),
    ]


def test_form_values_may_be_any_bytes() -> None:
    value = bytes(range(256))
    body = b"d=" + b"".join(b"%%%02X" % byte for byte in value)
    assert parts("application/x-www-form-urlencoded", body) == [Part("d", "", value)]


def test_a_last_name_without_equals_sign_is_dropped() -> None:
    assert parts("application/x-www-form-urlencoded", b'{"a":1}') == []


def test_an_earlier_name_without_equals_sign_has_an_empty_value() -> None:
    assert parts("application/x-www-form-urlencoded", b"a&b=1") == [Part("a", "", b""), Part("b", "", b"1")]


def test_a_name_followed_by_an_equals_sign_has_an_empty_value() -> None:
    assert parts("application/x-www-form-urlencoded", b'{"a":1}=') == [Part('{"a":1}', "", b"")]


def test_the_type_of_a_form_is_recognised_in_any_case() -> None:
    assert parts("Application/X-WWW-Form-Urlencoded; charset=utf-8", b"a=1") == [Part("a", "", b"1")]


def test_a_form_with_a_broken_escape_is_refused() -> None:
    with pytest.raises(BadRequest):
        parts("application/x-www-form-urlencoded", b"a=%zz")


def test_files_and_fields_of_a_multipart_form_are_parameters_in_order() -> None:
    body = form(
        (
            'Content-Disposition: form-data; name="data"; filename="a.txt"\r\nContent-Type: text/plain; charset=utf-8',
            b"hi",
        ),
        ('content-disposition: form-data; name="field"\r\nContent-Type: application/json', b'{"a": 1}'),
        ('Content-Disposition: form-data; name="raw"; filename="b"', b"\x00\r\n--X\xff"),
    )
    assert parts('Multipart/Form-Data; boundary="XX"', body) == [
        Part("data", "text/plain", b"hi"),
        Part("field", "", b'{"a": 1}'),
        Part("raw", "application/octet-stream", b"\x00\r\n--X\xff"),
    ]


def test_names_of_a_multipart_form_are_utf_8() -> None:
    body = form(('Content-Disposition: form-data; name="größe"', b"1"))
    assert parts("multipart/form-data; boundary=XX", body) == [Part("größe", "", b"1")]


@pytest.mark.parametrize(
    "body",
    [
        b"no boundary at all",
        form(('Content-Disposition: form-data; name="a"', b"1"), end=""),
        form(("Content-Type: text/plain", b"1")),
        form(("Content-Disposition: form-data", b"1")),
        form(('Content-Disposition: form-data; name="a"', b"1"))[:-20],
        form(*[('Content-Disposition: form-data; name="a"', b"1")] * 1025),
    ],
    ids=["rubbish", "no end", "no name", "no parameters", "cut", "too many"],
)
def test_a_malformed_multipart_body_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parts("multipart/form-data; boundary=XX", body)


@given(st.binary(max_size=300))
def test_no_multipart_body_breaks_the_reader(body: bytes) -> None:
    with suppress(BadRequest):
        parts("multipart/form-data; boundary=XX", b"--XX\r\n" + body)


@given(st.dictionaries(st.text(st.characters(categories=["L", "N"]), min_size=1), st.binary(), max_size=5))
def test_every_field_survives_a_multipart_form(fields: dict[str, bytes]) -> None:
    boundary = "-----------boundary-that-no-value-holds"
    body = form(
        *((f'Content-Disposition: form-data; name="{name}"', value) for name, value in fields.items()),
        boundary=boundary,
    )
    got = {part.name: part.value for part in parts(f"multipart/form-data; boundary={boundary}", body)} if fields else {}
    assert got == fields


# -- headers and queries ---------------------------------------------------------------------------------------------


def test_headers_reach_the_handler_as_they_were_sent() -> None:
    headers = [("X-Custom", "a"), ("x-custom", "b"), ("Empty", ""), ("Latin", "\xe9")]
    assert unpack_headers(read_request(make(*headers))[0].headers) == headers


def test_injected_headers_replace_the_client_s() -> None:
    exchange = make(("EXPLAIN", "True"), ("A", "1"))
    request, _ = read_request(exchange, (b"url_path", b"", b"explain", b"False"))
    assert unpack_headers(request.headers) == [("A", "1"), ("url_path", ""), ("explain", "False")]


def test_the_request_carries_the_id_of_the_exchange() -> None:
    exchange = make()
    assert read_request(exchange)[0] == Request(exchange.id, b"", [Part("body", "", b"")])


def test_query_parameters_come_first_where_they_are_wanted() -> None:
    exchange = make(target="/predictions/m?a=1&b=%C3%A9", body=b"x")
    assert read_request(exchange)[0].parts == [Part("body", "", b"x")]
    wanted, _ = read_request(exchange, with_query=True)
    assert wanted.parts == [Part("a", "", b"1"), Part("b", "", "é".encode()), Part("body", "", b"x")]


def test_the_first_of_equal_query_parameters_wins() -> None:
    assert read_query(b"a=1;b=x+y&a=2&c&=d&&") == {"a": "1", "b": "x y", "c": ""}


def test_all_values_of_a_query_parameter_are_found() -> None:
    assert query_values(b"name[]=a&name%5B%5D=b&other=c", "name[]") == ["a", "b"]


@pytest.mark.parametrize("raw", [b"a=%", b"a=%4", b"%zz=1", b"&".join([b"a=1"] * 1025)])
def test_a_broken_query_is_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        read_query(raw)


def test_paths_are_decoded() -> None:
    assert decode_path(b"/a%20b/c+d%2Fe/%C3%A9") == "/a b/c+d/e/é"


@pytest.mark.parametrize("raw", [b"/%", b"/%4", b"/%zz"])
def test_a_path_with_a_broken_escape_is_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        decode_path(raw)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a?b?c#d", b"/a", b"b?c"),
        ("/a#b?c", b"/a", b""),
        ("http://host:1/a/b?c=/d", b"/a/b", b"c=/d"),
        ("http://host", b"/", b""),
        ("*", b"*", b""),
        ("/x?u=http://y", b"/x", b"u=http://y"),
    ],
)
def test_targets_are_split(target: str, path: bytes, query: bytes) -> None:
    exchange = make(target=target)
    assert (exchange.raw_path, exchange.raw_query) == (path, query)


# -- parameters of management calls ----------------------------------------------------------------------------------

NAMES = {"url", "batch_size"}


def test_json_parameters_are_texts_and_hide_the_query() -> None:
    body = b'{"url": "m.mar", "initial_workers": 2, "synchronous": true, "batch_size": "4", "handler": null}'
    exchange = make(("Content-Type", "application/json"), body=body, target="/models?url=other&x=1")
    assert read_parameters(exchange, NAMES) == {
        "url": "m.mar",
        "initial_workers": "2",
        "synchronous": "true",
        "batch_size": "4",
    }


def test_form_parameters_add_to_the_query() -> None:
    exchange = make(
        ("Content-Type", "application/x-www-form-urlencoded"), body=b"url=b&x=1", target="/models?url=a&y=2"
    )
    assert read_parameters(exchange, NAMES) == {"url": "a", "y": "2", "x": "1"}


@pytest.mark.parametrize("body", [b"{'url': 1}", b"[]", b'{"url": []}', b"\xff"])
def test_json_that_holds_no_parameters_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        read_parameters(make(("Content-Type", "application/json"), body=body), NAMES)


def test_what_else_a_json_body_holds_may_be_anything() -> None:
    exchange = make(("Content-Type", "application/json"), body=b'{"url": "m.mar", "labels": {"a": [1]}, "x": []}')
    assert read_parameters(exchange, NAMES) == {"url": "m.mar"}


# -- answers ---------------------------------------------------------------------------------------------------------


def test_a_reply_has_no_content_type_unless_the_handler_set_one() -> None:
    wire = Wire()
    write_outcome(make(wire=wire), Reply(1, b"{}"))
    assert (wire.status_line, wire.body) == ("HTTP/1.1 200 OK", b"{}")
    assert "content-type" not in {name.lower() for name in wire.headers}


def test_a_reply_has_the_handler_s_status_phrase_and_headers() -> None:
    wire = Wire()
    headers = pack_headers([("Content-Type", "text/plain"), ("dummy", "0"), ("Dummy", "1")])
    write_outcome(make(wire=wire), Reply(1, b"no", 599, "Gone\r\nFishing", headers))
    assert wire.status_line == "HTTP/1.1 599 Gone  Fishing"
    assert wire.headers["Content-Type"] == "text/plain"
    assert wire.headers["Dummy"] == "1"
    assert wire.statuses == [599]


def test_the_handler_cannot_set_what_belongs_to_the_connection() -> None:
    wire = Wire()
    names = ["Content-Length", "Transfer-Encoding", "Connection", "X-Request-Id", "Expires", "Keep-Alive"]
    exchange = make(wire=wire)
    write_outcome(exchange, Reply(1, b"body", headers=pack_headers([(name, "7") for name in names])))
    assert "7" not in wire.headers.values()
    assert (wire.headers["content-length"], wire.headers["x-request-id"]) == ("4", exchange.id)


def test_configured_headers_yield_to_the_handler_s() -> None:
    wire = Wire(default_headers=(("Access-Control-Allow-Origin", "*"), ("Access-Control-Allow-Methods", "GET")))
    write_outcome(make(wire=wire), Reply(1, b"", headers=pack_headers([("access-control-allow-origin", "me")])))
    assert wire.headers["access-control-allow-origin"] == "me"
    assert wire.headers["Access-Control-Allow-Methods"] == "GET"


@pytest.mark.parametrize("headers", [b"na me\x00x", b"\x00x", b"a:\x00x", b"a\x00x\x01y"])
def test_a_header_that_http_does_not_allow_is_500(headers: bytes) -> None:
    wire = Wire()
    write_outcome(make(wire=wire), Reply(1, b"x", headers=headers))
    assert wire.json["code"] == 500
    assert wire.statuses == [500]


@pytest.mark.parametrize("status", [0, 100, 199, 1000, 65535])
def test_a_status_that_http_does_not_allow_is_500(status: int) -> None:
    for failed in (False, True):
        wire = Wire()
        write_outcome(make(wire=wire), Reply(1, b"x", status, failed=failed))
        assert wire.json["code"] == 500


@given(st.text(max_size=20), st.text(max_size=20))
def test_no_header_smuggles_a_line(name: str, value: str) -> None:
    try:
        lines = encode_headers(((name, value),))
    except ValueError:
        return
    assert lines.count(b"\r\n") == (1 if lines else 0)
    assert lines.count(b"\r") == lines.count(b"\n") == lines.count(b"\r\n")


def test_a_204_ends_with_its_head() -> None:
    wire = Wire()
    write_outcome(make(wire=wire), Reply(1, b"surprise", 204))
    assert wire.body == b""
    assert "content-length" not in wire.headers


def test_a_failed_reply_is_an_error() -> None:
    wire = Wire()
    exchange = make(wire=wire)
    write_outcome(exchange, Reply(1, b"Prediction failed", 503, failed=True))
    assert wire.json == {
        "code": 503,
        "type": "InternalServerException",
        "message": "Prediction failed",
        "reason": "prediction_failed",
        "request_id": exchange.id,
    }


def test_an_error_is_readable_json() -> None:
    wire = Wire()
    exchange = make(wire=wire)
    write_error(exchange, NoWorker("Größe", hint="Scale up."))
    assert wire.headers["content-type"] == "application/json"
    assert wire.body.decode().startswith(
        '{\n  "code": 503,\n  "type": "ServiceUnavailableException",\n  "message": "Größe",\n'
    )
    assert wire.body.endswith(b"}\n")
    assert wire.json["hint"] == "Scale up."


def test_a_retry_is_recommended_in_whole_seconds() -> None:
    wire = Wire()
    write_error(make(wire=wire), QueueFull("full", retry_after=0.2))
    assert wire.headers["Retry-After"] == "1"


@pytest.mark.parametrize(("death_id", "members"), [("d-1", {"death_id": "d-1"}), ("", {})])
def test_a_death_certificate_is_named_where_there_is_one(death_id: str, members: dict[str, str]) -> None:
    wire = Wire()
    error = WorkerDied("Worker died.")
    error.death_id = death_id
    write_error(make(wire=wire), error)
    body = json.loads(wire.body)
    assert {name: value for name, value in body.items() if name == "death_id"} == members


def test_an_error_within_a_stream_aborts() -> None:
    wire = Wire()
    exchange = make(wire=wire)
    write_outcome(exchange, Reply(1, b"a", more=True))
    write_outcome(exchange, WorkerDied("Worker died."))
    assert wire.aborted
    assert wire.written.endswith(b"1\r\na\r\n")


def test_a_stream_ends_once() -> None:
    wire = Wire()
    exchange = make(wire=wire)
    write_outcome(exchange, Reply(1, b"a", more=True))
    write_outcome(exchange, Reply(1, b"b"))
    write_outcome(exchange, Reply(1, b"c"))
    assert wire.body == b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n"


def test_request_ids_do_not_repeat() -> None:
    assert len({new_request_id() for _ in range(1000)}) == 1000
