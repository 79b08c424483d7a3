"""Requests with a memory: sequences, and continuous batches."""

from __future__ import annotations

from functools import partial

from oracle.answer import Answer
from oracle.differences import Differs, decision, error, more
from oracle.exchange import Exchange, Scenario
from oracle.until import status

__all__ = ["SEQUENCES"]

_ID = "ts_request_sequence_id"

_post = partial(Exchange, method="POST", content_type="text/plain", body=b"x")
_many = partial(_post, path="/predictions/remembers")
_one = partial(_post, path="/predictions/remembers-one")
_idles = partial(_post, path="/predictions/remembers-shortly")
_lasts = partial(_post, path="/predictions/remembers-briefly")
_ends = partial(_post, path="/predictions/remembers-by-steps")
_steps = partial(_post, path="/predictions/counts-down")


def _without_id(answer: Answer) -> Answer:
    return answer.with_headers({_ID: None})


def _full(model: str) -> Differs:
    return error(
        decision(7),
        "503 Service Unavailable",
        "ServiceUnavailableException",
        f'Model "{model}" takes no further sequence: as many are open as maxNumSequence allows (1).',
        headers={"Retry-After": "1"},
    )


SEQUENCES = Scenario(
    "sequences",
    "Models that keep something between requests, and continuous batches.",
    (
        _many(
            "a sequence without an id",
            items=(80,),
            differs=Differs(more("The answer tells an id that the server chose."), extra=_without_id),
        ),
        _many("three requests of a sequence", headers={_ID: "one"}, times=3, items=(81,)),
        _many("another sequence", headers={_ID: "other"}, items=(81,)),
        _many("the first sequence again", headers={_ID: "one"}, items=(81,)),
        _one("the only sequence", headers={_ID: "one"}, items=(82,)),
        _one("one sequence too many", headers={_ID: "other"}, items=(82,), differs=_full("remembers-one")),
        _one("the only sequence goes on", headers={_ID: "one"}, items=(82,)),
        _idles("a sequence that will idle", headers={_ID: "one"}, items=(83,)),
        _idles("another before it has", headers={_ID: "other"}, items=(83,), differs=_full("remembers-shortly")),
        _idles("another when it has idled", headers={_ID: "other"}, until=status(200), items=(83,)),
        _lasts("a sequence that will have lasted", headers={_ID: "one"}, items=(84,)),
        _lasts("another before that", headers={_ID: "other"}, items=(84,), differs=_full("remembers-briefly")),
        _lasts("another when it has lasted", headers={_ID: "other"}, until=status(200), items=(84,)),
        _ends("a sequence that the handler will end", headers={_ID: "one"}, items=(85,)),
        _ends("another while it lasts", headers={_ID: "other"}, items=(85,), differs=_full("remembers-by-steps")),
        _ends("the end of it by the handler", body=b"end", headers={_ID: "one"}, items=(85,)),
        _ends("another when it has ended", headers={_ID: "other"}, items=(85,)),
        _steps("three steps", body=b"3", items=(76,)),
        _steps("two requests side by side", body=b"3", also=(b"2",)),
    ),
    models=(
        "remembers",
        "remembers-one",
        "remembers-shortly",
        "remembers-briefly",
        "remembers-by-steps",
        "counts-down",
    ),
)
