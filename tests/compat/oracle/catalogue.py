"""The checklists: what each item is, which exchanges answer it, and what came out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from oracle.differences import RULES, Reason
from oracle.exchange import Exchange, Item, Scenario
from oracle.scenarios import SCENARIOS

__all__ = ["KSERVE", "MISSING", "NOT_ASKED", "REST", "Finding", "State", "exchanges_of", "find"]

REST: dict[str, tuple[str, ...]] = {
    "Transport and what all answers share": (
        "GET `/` is 405 on every listener",
        "OPTIONS `/` describes the inference API",
        "OPTIONS `/` describes the management API",
        "OPTIONS `/` describes the metrics API",
        "GET `/api-description` is OPTIONS `/`",
        "an unknown path is 404, with its message",
        "each answer has a fresh UUID as `x-request-id`",
        "an `x-request-id` of the request is not echoed",
        "`Cache-Control`, `Pragma` and `Expires` on answers and errors",
        "an error closes the connection",
        "an answer keeps it open",
        "error JSON is `code`, `type`, `message`",
        "the server's JSON ends with a newline and is `application/json`",
        "a body over `max_request_size` is 413",
        "`Expect: 100-continue`",
        "request bodies in chunks",
        "a slash at the end of a path",
        "CORS headers; the handler's own win",
    ),
    "Health": (
        "no models: healthy",
        "a model without workers: healthy",
        "a worker that fails for longer than `maxRetryTimeoutInSec`: 500",
        "`/ping/x` and POST `/ping`",
    ),
    "Paths of inference": (
        "POST `/predictions/m`",
        "PUT `/predictions/m`",
        "GET `/predictions/m`",
        "a version in the path",
        "more path behind the version is `url_path`",
        "`explain` tells explanations from predictions",
        "`/predictions` alone is 404",
        "`/invocations?model_name=m`",
        "`/invocations` with one model loaded at start",
        "`/invocations` with a form field",
        "`/invocations` without a name is 400",
        "`/models/m/invoke`; `/models/m/foo` is 404",
        "`/m/predict?data=test`",
        "`/m/1.0/predict`",
        "`/v1/models/m:predict` and `:explain`",
        "`/v2/models/m/infer` and `/explain`",
        "OPTIONS `/predictions/m` describes the model",
        "OPTIONS of an unknown model is 404",
        "an unknown model is 404, with its message",
        "an unknown version is 404, with its message",
    ),
    "Request bodies": (
        "JSON is parsed",
        "`decode_input_request=false` hands over bytes",
        "broken JSON arrives as bytes",
        "text arrives as `str`",
        "other and missing content types arrive as bytes",
        "files of a multipart body, by their types",
        "fields of a multipart body are bytes",
        "urlencoded fields, all 256 byte values",
        "of equal names in a multipart body the last wins",
        "query parameters do not reach `/predictions` handlers",
        "query parameters reach `/models/m/invoke` handlers",
        "headers reach the handler",
    ),
    "Results and failures of handlers": (
        "a dictionary is JSON with an indent of 2",
        "texts and bytes are sent as they are",
        "a tensor is what `torch.load` reads",
        "headers and content type of the handler",
        "`set_response_status(404)`",
        "status 599",
        "an exception is 503 `Prediction failed`",
        "`PredictionException` with its status",
        "`MemoryError` is 507",
        "an error of CUDA is 507",
        "no list is 503, with its message",
        "a list of the wrong length is 503, with its message",
        "a result that is no JSON is 503, with its message",
        "a handler that is too slow is 500; the worker recovers",
        "a worker that ends is 500; the next request is answered",
        "an answer over `max_response_size` is 500",
        "a model without workers is 503",
        "a full queue is 503",
        "requests at one time are one batch",
        "a batch that is not full goes after `maxBatchDelay`",
        "an exception fails its batch",
    ),
    "Streams and sequences": (
        "pieces are chunks",
        "the chunks are the answer",
        "an error after the first piece cuts the connection",
        "a stream whose first piece is the last one",
        "a sequence without an id",
        "a sequence with an id",
        "more sequences than `maxNumSequence`",
        "a sequence that idles",
        "a sequence that lasts too long",
        "the end of a sequence by the handler",
    ),
    "Management": (
        "the list: order, limit, token",
        "the second page",
        "odd limits and tokens",
        "a token behind the end",
        "register without `url` is 400",
        "register an empty `url` is 404",
        "register an invalid runtime is 400",
        "register an unknown archive is 404",
        "register `../x.mar` is 404",
        "register from where nobody listens is 400",
        "register a missing `file://` is 400",
        "register a url that is not allowed is 404",
        "register twice is 409",
        "register a remote archive twice",
        "register and wait: 200, with its text",
        "register and do not wait: 202, with its text",
        "register waits by default",
        "`initial_workers=-1` is none",
        "parameters as JSON",
        "JSON without `max_batch_delay`",
        "a `batch_size` that is no number",
        "workers by the model config",
        "register what does not load: 500, and the model is gone",
        "register what needs too much memory: 507",
        "without model control: 405; scaling works",
        "describe: all keys and types",
        "describe all versions",
        "describe by the handler",
        "describe what is unknown: 404",
        "scale: 202, 200, texts",
        "scale: 400, 404, what is ignored",
        "scale to nothing and back",
        "scale what does not load: 500",
        "set-default, and its errors",
        "predictions follow the default version",
        "unregister: default with siblings, others, the last one",
        "unregister what is unknown: 404",
        "unregister deletes what was downloaded, and nothing else",
        "methods that are not allowed: 405",
        "GET `/v1/models/m`",
        "OPTIONS `/models/m` describes the API of the model",
    ),
    "Metrics and the shared listener": (
        "log, legacy and Prometheus mode",
        "`name[]` picks metrics",
        "the format of samples and names",
        "`ts_inference_requests_total` by version",
        "`enable_metrics_api=false` closes the port",
        "a version is described on a shared listener",
    ),
}
"""The checklist of the REST API, by part; items are numbered through."""

KSERVE: dict[str, str] = {
    "K1": "`:predict` through the envelope `kserve`",
    "K2": "`:explain` through the envelope",
    "K3": "`/predictions` through the envelope",
    "K4": "JSON without its content type",
    "K5": "several instances",
    "K6": "`:predict` of an unknown model is 404",
    "K7": "readiness of a model, with and without workers",
    "K8": "readiness of an unknown model is 404; POST is 405",
    "K9": "without an envelope the handler gets the body",
    "K10": "`explain` tells the handler which it was",
    "K11": "PUT and GET",
    "K12": "an escaped colon",
    "K13": "the list of models",
    "K14": "keys",
    "K15": "`/infer` of a flat tensor through the envelope `kservev2`",
    "K16": "a nested tensor",
    "K17": "without an id the answer has the request's",
    "K18": "a blank id is none",
    "K19": "a tensor of one text",
    "K20": "a tensor of several texts",
    "K21": "a shape that does not fit is an error",
    "K22": "datatypes of results",
    "K23": "several tensors",
    "K24": "more results than tensors",
    "K25": "`/explain`",
    "K26": "`/infer` of an unknown model is 404",
    "K27": "malformed JSON is an error",
    "K28": "a batch of requests",
    "K29": "the outputs that are wanted",
    "K30": "parameters are tolerated",
    "K31": "`/infer` without the flag of the protocol",
    "K32": "a model registered by another name",
    "K33": "describe under an envelope",
    "K34": "`/v2/health/live`",
    "K35": "`/v2/health/ready`",
    "K36": "readiness with a model that gave up",
    "K37": "`/v2`",
    "K38": "`/v2/models/m`",
    "K39": "`/v2/models/m/ready`",
    "K40": "versions in the path",
    "K41": "unknown versions in the path",
    "K42": "errors below `/v2`",
    "K43": "the flag of the protocol in a variable",
    "K44": "the envelope `body`",
    "K45": "the envelope `json`",
    "K46": "the envelope `json` and a batch of requests",
    "K47": "the envelope `json` decodes base64",
    "K48": "the envelope `json` and a body that is none",
    "K49": "an unknown envelope",
    "K50": "the envelope in a variable, with leave to read it and without",
    "K51": "an envelope of one's own",
    "K52": "a tensor behind the JSON",
    "K53": "tensors in the JSON and behind it",
    "K54": "a result behind the JSON",
    "K55": "results behind the JSON but for one",
    "K56": "texts and bytes behind the JSON",
    "K57": "half precision behind the JSON",
    "K58": "lengths that contradict each other",
    "K59": "a shared listener, as KServe's image has it",
    "K60": "describe by the handler on a shared listener",
    "K61": "models named by a snapshot in the configuration",
    "K62": "gRPC",
    "K63": "metrics for Prometheus",
    "K64": "an unprivileged user, and models that are only readable",
}
"""The checklist of KServe."""

MISSING: dict[Item, str] = {
    "K62": "gRPC is not served yet",
}
"""Items that Mariner has nothing for, and what is not there."""

NOT_ASKED: dict[Item, str] = {
    "K51": "it is a file among those of the installed package",
    "K64": "it is a matter of how a server is deployed, not of what it answers",
}
"""Items without an exchange, and why."""


class State(Enum):
    """What came out for an item."""

    SAME = "same"
    DIFFERS = "differs"
    MISSING = "missing"
    NOT_ASKED = "not asked"


@dataclass(frozen=True, slots=True)
class Finding:
    """An item and what came out.

    Attributes:
        item: its number.
        text: what it is.
        state: the worst of its exchanges.
        reasons: why it differs.
        note: what is missing, or why nobody asked.
    """

    item: Item
    text: str
    state: State
    reasons: tuple[Reason, ...] = ()
    note: str = ""


def items() -> Iterator[tuple[Item, str]]:
    """All items with their texts."""
    yield from enumerate((text for part in REST.values() for text in part), 1)
    yield from KSERVE.items()


def exchanges_of(item: Item, scenarios: Sequence[Scenario] = SCENARIOS) -> list[Exchange]:
    """The exchanges that answer an item."""
    return [exchange for scenario in scenarios for exchange in scenario.exchanges if item in exchange.items]


def find(item: Item, text: str) -> Finding:
    """What came out for an item, as far as the suite declares it; the tests see to it that it is true."""
    if item in MISSING:
        return Finding(item, text, State.MISSING, note=MISSING[item])
    if item in NOT_ASKED:
        return Finding(item, text, State.NOT_ASKED, note=NOT_ASKED[item])
    exchanges = exchanges_of(item)
    reasons = [rule.because for rule in RULES if item in rule.items]
    reasons += [exchange.differs.because for exchange in exchanges if exchange.differs]
    return Finding(item, text, State.DIFFERS if reasons else State.SAME, tuple(dict.fromkeys(reasons)))
