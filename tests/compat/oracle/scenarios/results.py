"""From what the handler returns, or how it fails, to the answer."""

from __future__ import annotations

from functools import partial

from oracle.differences import USUAL_HEADERS, Differs, decision, error, fixed
from oracle.exchange import Exchange, Listener
from oracle.views import without_sizes

__all__ = ["RESULTS"]

_ANSWERED = USUAL_HEADERS | {"connection": "keep-alive", "content-length": "<length of the body>"}

_answers = partial(Exchange, method="POST", path="/predictions/answers", content_type="text/plain")
_fails = partial(Exchange, method="POST", path="/predictions/fails", content_type="text/plain")
_counts = partial(Exchange, method="POST", path="/predictions/counts", content_type="text/plain")
_eager = partial(Exchange, method="POST", path="/predictions/counts-eagerly", content_type="text/plain")
_streams = partial(Exchange, method="POST", path="/predictions/streams", content_type="text/plain")

RESULTS = (
    _answers("a dictionary", body=b"dictionary", items=(55,)),
    _answers("a text", body=b"text", items=(56,)),
    _answers("all bytes", body=b"bytes", items=(56,)),
    _answers("an empty text", body=b"empty", items=(56,)),
    _answers("a header of the handler", body=b"header", items=(58,)),
    _answers("headers that are not the handler's", body=b"reserved"),
    _answers("a phrase of the handler", body=b"phrase"),
    _answers("a status of the handler", body=b"not found", items=(59,)),
    _answers("a status nobody knows", body=b"599", items=(60,)),
    _fails("an exception", body=b"value", items=(61,)),
    _fails(
        "an exception with a status",
        body=b"prediction",
        items=(62,),
        differs=Differs(fixed("A status without a phrase gets none."), status="513 "),
    ),
    _fails("an exception with the status 413", body=b"prediction 413"),
    _fails("no memory", body=b"memory", items=(63,)),
    _fails("an error of CUDA", body=b"CUDA", items=(64,)),
    _answers("no list", body=b"not a list", items=(65,)),
    _answers("too many results", body=b"too many", items=(66,)),
    _answers("a result without JSON", body=b"no JSON", items=(67,)),
    _fails("too slow", body=b"for ever", items=(68,)),
    _fails("after one that was too slow", body=b"fine", items=(68,)),
    _fails("the end of the worker", body=b"exit", items=(69,)),
    _fails("after the end of the worker", body=b"fine", items=(69,)),
    _counts("four at once", body=b"1", also=(b"2", b"3", b"4"), items=(73,)),
    _counts("three at once", body=b"1", also=(b"2", b"3"), items=(74,)),
    _counts("one alone", body=b"1", limit=1.0, items=(74,)),
    _eager(
        "one alone for an idle worker",
        body=b"1",
        limit=1.0,
        items=(73, 74),
        differs=Differs(decision(4), took="under 1 s"),
    ),
    _counts(
        "one that is bad",
        body=b"bad",
        also=(b"2", b"3", b"4"),
        items=(75,),
        view=without_sizes,
        differs=Differs(
            decision(5), status="200 OK", headers={"content-type": None}, body="batch of some", only=(1, 2, 3)
        ),
    ),
    _streams("a stream", body=b"x", items=(76, 77)),
    _streams("a stream that breaks", body=b"breaks", items=(78,)),
    Exchange(
        "a stream that ends at once",
        "POST",
        "/predictions/ends-at-once",
        (79,),
        body=b"x",
        patience=3.0,
        differs=Differs(
            fixed("A stream whose first piece is the last one is answered."),
            status="200 OK",
            headers=_ANSWERED | {"ts_stream_next": "false"},
            body="all of it",
            connection="open",
        ),
    ),
    Exchange(
        "an answer later than its client would wait",
        "POST",
        "/predictions/impatient",
        body=b"x",
        patience=3.0,
        differs=error(
            decision(7),
            "504 Gateway Timeout",
            "RequestTimeoutException",
            'Model "impatient": no answer within the 0.1 s the request had.',
            headers=_ANSWERED,
            connection="open",
        ),
    ),
    Exchange("what became of the worker", "GET", "/ping", (69,)),
    Exchange("the log mode of metrics", "GET", "/metrics", (127,), on=Listener.METRICS),
)
