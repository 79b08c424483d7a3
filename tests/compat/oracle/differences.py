"""Where Mariner differs on purpose, and why: the decisions, the rules that hold for every answer, single changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from oracle.answer import Answer, as_json, json_text

__all__ = [
    "CLOSES",
    "DECISIONS",
    "RULES",
    "USUAL_HEADERS",
    "Differs",
    "Reason",
    "Rule",
    "decision",
    "error",
    "fixed",
    "more",
]

DECISIONS = {
    1: "Calls from this machine need no key unless `token_authorization=on`.",
    2: "Callers on this machine may register and unregister models unless `enable_model_api=false`.",
    3: "Remote archives come from public addresses only, unless `allowed_urls` names others.",
    4: "`maxBatchDelay` is an upper bound: an idle worker takes what waits at once.",
    5: "One bad request never fails the others of its batch.",
    7: "A refused request is told why, and when to come back; a deadline that passed is answered 408 or 504.",
    9: "Errors carry `request_id` and, where they help, `reason`, `hint` and `death_id` beside TorchServe's members.",
    10: "The connection stays open after an error, unless nobody knows where the next request starts.",
    12: "Envelopes handle every request of a batch.",
    13: "Both KServe protocols are served in full, without a setting.",
    16: "Metrics are on by default, with histograms in addition.",
    22: "The version names the release of TorchServe that is compatible, and Mariner's own.",
    27: "Descriptions and readiness tell loading, ready, draining and broken apart.",
}
"""The decisions that answers show, by their number in the design."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an answer is not TorchServe's."""

    label: str
    text: str

    def __str__(self) -> str:
        """For people."""
        return f"{self.label}: {self.text}"


def decision(number: int) -> Reason:
    return Reason("decision", DECISIONS[number])


def fixed(text: str) -> Reason:
    """TorchServe's answer is a defect that no client relies on."""
    return Reason("fixed", text)


def more(text: str) -> Reason:
    """Mariner does something that TorchServe does not, and clients of TorchServe cannot tell."""
    return Reason("more", text)


# -- one exchange ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Differs:
    """How Mariner's answer to one exchange differs. What is not named is TorchServe's.

    Attributes:
        because: why.
        status: the other status.
        headers: other values by name; None where there is no such header.
        body: the other body: text, or a value that is sent as JSON.
        error: members of the error body, in place of ``body``.
        texts: parts of the body that read otherwise.
        chunks: other pieces.
        connection: what becomes of the connection.
        took: on which side of its limit the time is.
        only: the places of the answers that differ, if the exchange has several; empty for all.
        extra: takes away what Mariner's answer has in addition.
    """

    because: Reason
    status: str | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    body: Any = None
    error: tuple[int, str, str] | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    chunks: tuple[str, ...] | None = None
    connection: str | None = None
    took: str | None = None
    only: tuple[int, ...] = ()
    extra: Callable[[Answer], Answer] | None = None

    def apply(self, answer: Answer) -> Answer:
        """TorchServe's answer, changed."""
        headers: dict[str, str | None] = dict(self.headers)
        body = self.body
        if self.error is not None:
            members = dict(zip(("code", "type", "message"), self.error, strict=True))
            body = members | {"request_id": "<uuid 1>"}
            headers = {"content-type": "application/json", "content-length": "<length of the body>", **headers}
        if body is not None and not isinstance(body, (str, bytes)):
            body = json_text(body)
        if self.texts:
            body = str(answer.body)
            for old, new in self.texts.items():
                body = body.replace(old, new)
        changes = {"status": self.status, "body": body, "chunks": self.chunks}
        changes |= {"connection": self.connection, "took": self.took}
        changed = replace(answer, **{name: value for name, value in changes.items() if value is not None})
        return changed.with_headers(headers) if headers else changed


USUAL_HEADERS = {
    "x-request-id": "<uuid 1>",
    "Pragma": "no-cache",
    "Cache-Control": "no-cache; no-store, must-revalidate, private",
    "Expires": "Thu, 01 Jan 1970 00:00:00 UTC",
}
"""Of every answer that an application gave; TorchServe's transport answers without them."""

CLOSES: dict[str, Any] = {"headers": {"connection": "close"}, "connection": "closed"}
"""A change: the connection ends with the answer."""


def error(because: Reason, status: str, type_: str, message: str, **changes: Any) -> Differs:
    """Another error than TorchServe's."""
    return Differs(because, status=status, error=(int(status.split(maxsplit=1)[0]), type_, message), **changes)


# -- every answer ----------------------------------------------------------------------------------------------------


def _same(answer: Answer) -> Answer:
    return answer


@dataclass(frozen=True, slots=True)
class Rule:
    """A difference of all answers of a kind.

    Attributes:
        because: why.
        change: TorchServe's answer as Mariner gives it; the same one where the rule does not apply.
        without: Mariner's answer without what it has in addition and may change.
        paths: how the targets begin that it holds for; empty for all.
        items: what on the checklists it is the answer to.
    """

    because: Reason
    change: Callable[[Answer], Answer] = _same
    without: Callable[[Answer], Answer] = _same
    paths: tuple[str, ...] = ()
    items: tuple[int | str, ...] = ()

    def concerns(self, path: str) -> bool:
        """It holds for answers to this request target."""
        return not self.paths or path.startswith(self.paths)

    @property
    def changes(self) -> bool:
        """It concerns what TorchServe sends, too, not additions alone."""
        return self.change is not _same


def _stays_open(answer: Answer) -> Answer:
    if answer.code < 400 or answer.connection != "closed":
        return answer
    return replace(answer.with_headers({"connection": "keep-alive"}), connection="open")


def _names_the_request(answer: Answer) -> Answer:
    members = as_json(answer)
    if not isinstance(members, dict) or set(members) != {"code", "type", "message"}:
        return answer
    return replace(answer, body=json_text(members | {"request_id": answer.header("x-request-id")}))


_PHRASES = {200: "OK", 202: "Accepted", 404: "Not Found"}


def _has_a_phrase(answer: Answer) -> Answer:
    code = answer.status.strip()
    if not answer.status.endswith(" ") or int(code) not in _PHRASES:
        return answer
    return replace(answer, status=f"{code} {_PHRASES[int(code)]}")


def _tells_the_state(answer: Answer) -> Answer:
    models = as_json(answer)
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        return answer
    for worker in (worker for model in models for worker in _workers(model)):
        if worker.get("status") == "READY":
            worker["state"] = "ready"
    return replace(answer, body=json_text([_with_state(model) for model in models]))


def _with_state(model: dict[str, Any]) -> dict[str, Any]:
    """Behind what else is told of every version; a view may have left that out."""
    if "jobQueueStatus" not in model:
        return model
    states = {worker.get("state", "loading") for worker in _workers(model)}
    state = "ready" if "ready" in states else "loading" if states else "unloaded"
    last = {name: model[name] for name in ("customizedMetadata",) if name in model}
    return {**{name: value for name, value in model.items() if name not in last}, "state": state, **last}


def _workers(model: dict[str, Any]) -> list[dict[str, Any]]:
    workers = model.get("workers")
    return workers if isinstance(workers, list) else []


def _invents_no_length(answer: Answer) -> Answer:
    """Concerns what a model of the suite tells of the headers it sees."""
    if not isinstance(answer.body, str) or '"content-length": "0"' not in answer.body:
        return answer
    seen = json.loads(answer.body)
    del seen["headers"]["content-length"]
    return replace(answer, body=json.dumps(seen, indent=2))


def _repeats_the_message(answer: Answer) -> Answer:
    members = as_json(answer)
    if not isinstance(members, dict) or not {"code", "message"} <= set(members):
        return answer
    return replace(answer, body=json_text(members | {"error": members["message"]}))


def _announces_json(answer: Answer) -> Answer:
    body = answer.body
    if answer.header("content-type") or not isinstance(body, str) or body[:1] + body[-1:] not in {"{}", "[]"}:
        return answer
    return answer.with_headers({"content-type": "application/json"})


def _without_advice(answer: Answer) -> Answer:
    members = as_json(answer)
    if not isinstance(members, dict) or "code" not in members:
        return answer
    kept = {name: value for name, value in members.items() if name not in {"reason", "hint", "death_id"}}
    return replace(answer, body=json_text(kept))


_KSERVE = ("/v1/", "/v2/")


def _without_methods(answer: Answer) -> Answer:
    return answer.with_headers({"Allow": None}) if answer.code == 405 else answer


def _without_times(answer: Answer) -> Answer:
    return answer.with_headers({"server-timing": None})


RULES = (
    Rule(decision(10), _stays_open, items=(10,)),
    Rule(decision(9), _names_the_request, _without_advice, items=(12,)),
    Rule(more("An answer 405 tells the methods there are, as `Allow`."), without=_without_methods),
    Rule(more("Predictions tell where their time went, as `Server-Timing`."), without=_without_times),
    Rule(
        fixed("The status line of a handler's answer has the phrase of its status; TorchServe leaves it empty."),
        _has_a_phrase,
    ),
    Rule(decision(27), _tells_the_state, items=(111,)),
    Rule(
        fixed("Handlers see the headers that were sent; TorchServe adds `content-length: 0` where there is no body."),
        _invents_no_length,
    ),
    Rule(
        more("Errors below `/v1` and `/v2` tell the message as `error`, too, where KServe's clients look for it."),
        _repeats_the_message,
        paths=_KSERVE,
        items=("K42",),
    ),
    Rule(
        more("JSON that a handler answers below `/v1` and `/v2` has the content type of JSON."),
        _announces_json,
        paths=_KSERVE,
    ),
)
