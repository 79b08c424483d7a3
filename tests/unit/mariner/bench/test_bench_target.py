"""The request that a load consists of."""

from __future__ import annotations

from pathlib import Path

import pytest

from mariner.bench.target import Body, make_target, read_body
from mariner.errors import ConfigurationError


def test_a_body_makes_it_a_post_with_its_type_and_length() -> None:
    target = make_target("http://127.0.0.1:8080/predictions/m?a=1", body=Body(b'{"x":1}', "application/json"))
    head, _, body = target.request.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /predictions/m?a=1 HTTP/1.1",
        b"Host: 127.0.0.1:8080",
        b"User-Agent: mariner-bench",
        b"Content-Type: application/json",
        b"Content-Length: 7",
    ]
    assert body == b'{"x":1}'
    assert (target.host, target.port, target.tls) == ("127.0.0.1", 8080, False)


def test_without_a_body_it_is_a_get_and_the_scheme_may_be_left_out() -> None:
    target = make_target("localhost:8080/ping")
    assert target.request.startswith(b"GET /ping HTTP/1.1\r\nHost: localhost:8080\r\n")
    assert target.request.endswith(b"\r\n\r\n")


def test_the_ports_of_the_schemes_are_known() -> None:
    assert make_target("http://a/").port == 80
    assert (make_target("https://a/").port, make_target("https://a/").tls) == (443, True)


def test_a_header_replaces_the_one_that_would_be_sent() -> None:
    request = make_target(
        "http://a/", headers=["HOST: b", "Authorization: Bearer t"], body=Body(b"x", "text/plain")
    ).request
    assert request.count(b"ost:") + request.count(b"OST:") == 1
    assert b"HOST: b\r\n" in request
    assert b"Authorization: Bearer t\r\n" in request


@pytest.mark.parametrize("url", ["ftp://a/", "http:///x", "http://a:port/", ""])
def test_what_cannot_be_measured_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        make_target(url)


@pytest.mark.parametrize("header", ["no colon", ": value", "a: b\r\nc: d"])
def test_a_line_that_is_no_header_is_refused(header: str) -> None:
    with pytest.raises(ConfigurationError, match="is no header"):
        make_target("http://a/", headers=[header])


@pytest.mark.parametrize("method", ["HEAD", "CONNECT", "GET /x"])
def test_a_method_without_an_answer_to_time_is_refused(method: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be measured"):
        make_target("http://a/", method=method)


def test_text_that_is_json_is_sent_as_json() -> None:
    assert read_body('{"a": 1}', None) == Body(b'{"a": 1}', "application/json")
    assert read_body("plain", None) == Body(b"plain", "text/plain; charset=utf-8")
    assert read_body(None, None) is None


def test_the_name_of_a_file_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "seven.png").write_bytes(b"\x89PNG")
    assert read_body(None, tmp_path / "seven.png") == Body(b"\x89PNG", "image/png")


def test_a_file_that_is_not_there_and_two_bodies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_body(None, tmp_path / "missing")
    with pytest.raises(ConfigurationError, match="not both"):
        read_body("a", tmp_path / "missing")
