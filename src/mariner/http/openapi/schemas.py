"""Shapes of the server's JSON bodies, in the words that OpenAPI 3.0 and 3.1 share (no null, no const)."""

from __future__ import annotations

from typing import Any

from mariner.causes import Cause
from mariner.lifecycle import Phase, Readiness, State

__all__ = ["ANYTHING", "BINARY", "BOOLEAN", "SCHEMAS", "TEXT", "Schema", "array", "integer", "reference", "text"]

Schema = dict[str, Any]

ANYTHING: Schema = {}
TEXT: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
BINARY: Schema = {"type": "string", "format": "binary"}


def text(description: str, **keywords: Any) -> Schema:
    """A string."""
    return {**TEXT, "description": description, **keywords}


def flag(description: str) -> Schema:
    """A boolean."""
    return {**BOOLEAN, "description": description}


def integer(description: str, *, least: int | None = 0, **keywords: Any) -> Schema:
    """A whole number, not below ``least``."""
    bound = {} if least is None else {"minimum": least}
    return {"type": "integer", **bound, "description": description, **keywords}


def array(items: Schema, **keywords: Any) -> Schema:
    """A list."""
    return {"type": "array", "items": items, **keywords}


def record(properties: dict[str, Schema], *, optional: tuple[str, ...] = (), **keywords: Any) -> Schema:
    """An object whose members are all there but those named."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", **({"required": required} if required else {}), "properties": properties, **keywords}


def reference(name: str) -> Schema:
    """One of :data:`SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def _weight(description: str) -> Schema:
    return {"type": "number", "minimum": 0, "description": description}


_WEIGHTS = {
    "type": "object",
    "additionalProperties": _weight("Only proportions count."),
    "description": "Weights by version; empty if the default version gets all requests that name none.",
}

_SHADOW = {
    "version": text("The version that is asked, too."),
    "percentage": {
        "type": "number",
        "minimum": 0,
        "maximum": 100,
        "description": "Of 100 requests to the other versions it is asked so many.",
    },
}
_COUNTS = {
    "mirrored": integer("Requests that it was asked."),
    "refused": integer("Requests that it could not take."),
    "same": integer("Answers equal to those of the other version, byte by byte."),
    "different": integer("Answers that were something else."),
    "failed": integer("Failures where the other version answered."),
}

_READINESS = [readiness.value for readiness in Readiness]
_CONDITIONS = [Phase.STARTING.value, Readiness.LOADING.value, Readiness.DRAINING.value, Readiness.BROKEN.value]

_REGISTRATION = {
    "url": text("An archive or directory in the model store, or the address of an archive that may be fetched."),
    "model_name": text("Name to serve the model under; that of the archive if absent."),
    "handler": text("Handler to run instead of the archive's."),
    "runtime": text("Runtime of the handler.", enum=["python", "python3", "LSP"]),
    "batch_size": integer("Requests in a batch, at most.", least=1),
    "max_batch_delay": integer("Milliseconds a batch may wait to be filled, at most."),
    "initial_workers": integer("Workers to start."),
    "synchronous": flag("Answer when the workers have loaded the model."),
    "response_timeout": integer("Seconds a worker may take for a batch.", least=1),
    "startup_timeout": integer("Seconds a worker may take to load the model.", least=1),
    "sha256": text("Hexadecimal digest that the archive must have."),
    "s3_sse_kms": flag("The archive is encrypted in S3: sign the request for it."),
}
_SCALING = {
    "min_worker": integer("Workers that are kept running."),
    "max_worker": integer("Workers, at most; as many as min_worker if absent."),
    "synchronous": flag("Answer when the workers are as many as asked for."),
}

SCHEMAS: dict[str, Schema] = {
    "Status": record({"status": text("What was done, for people.")}),
    "Health": record({"status": text("Whether the models have the workers they need.", enum=["Healthy", "Unhealthy"])}),
    "Error": record(
        {
            "code": integer("The HTTP status.", least=200),
            "type": text("Kind of error; TorchServe's names."),
            "message": text("What happened, and to what."),
            "reason": text("The cause, for programs, where the type leaves it open."),
            "hint": text("What to do next."),
            "death_id": text("Certificate of the worker's death that is to blame; see /models/{model_name}/deaths."),
            "request_id": text("Id of the request, as in the header x-request-id.", format="uuid"),
            "error": text("The message once more, where clients of KServe look for it."),
        },
        optional=("reason", "hint", "death_id", "error"),
    ),
    "ModelList": record(
        {
            "nextPageToken": text("Value of next_page_token for the rest of the list."),
            "models": array(record({"modelName": TEXT, "modelUrl": text("What was given as url.")})),
        },
        optional=("nextPageToken",),
    ),
    "Registration": record(_REGISTRATION, optional=tuple(name for name in _REGISTRATION if name != "url")),
    "Scaling": record(_SCALING, optional=tuple(_SCALING)),
    "Traffic": record(
        {"modelName": TEXT, "defaultVersion": TEXT, "weights": _WEIGHTS, "shadow": record({**_SHADOW, **_COUNTS})},
        optional=("shadow",),
    ),
    "Sharing": record(
        {"weights": _WEIGHTS, "shadow": record(_SHADOW, additionalProperties=False)},
        optional=("weights", "shadow"),
        additionalProperties=False,
    ),
    "ModelDescriptions": array(reference("ModelDescription"), minItems=1),
    "ModelDescription": record(
        {
            "modelName": TEXT,
            "modelVersion": TEXT,
            "modelUrl": text("What was given as url."),
            "runtime": TEXT,
            "minWorkers": integer("Workers that are kept running."),
            "maxWorkers": integer("Workers, at most."),
            "batchSize": integer("Requests in a batch, at most.", least=1),
            "maxBatchDelay": integer("Milliseconds a batch may wait to be filled, at most."),
            "responseTimeout": integer("Seconds a worker may take for a batch."),
            "startupTimeout": integer("Seconds a worker may take to load the model."),
            "maxRetryTimeoutInSec": integer("Seconds of failed attempts to load after which the model is given up."),
            "clientTimeoutInMills": integer("Milliseconds a request may take; 0 for no limit."),
            "parallelType": text("How the model is spread over devices; empty if it is not."),
            "parallelLevel": integer("Devices of one worker; 0 if the model is not spread."),
            "deviceType": text("What the model runs on.", enum=["cpu", "gpu"]),
            "deviceIds": array({"type": "integer"}, description="Devices the model is kept to."),
            "continuousBatching": BOOLEAN,
            "useJobTicket": BOOLEAN,
            "useVenv": flag("The model has packages of its own."),
            "stateful": flag("Requests of one sequence go to one worker."),
            "sequenceMaxIdleMSec": integer("Milliseconds without a request after which a sequence ends."),
            "sequenceTimeoutMSec": integer("Milliseconds after which a sequence ends; 0 for never."),
            "maxNumSequence": integer("Open sequences, at most."),
            "maxSequenceJobQueueSize": integer("Waiting requests of one sequence, at most."),
            "loadedAtStartup": flag("The model came with the start of the server."),
            "workers": array(reference("Worker")),
            "jobQueueStatus": record(
                {
                    "remainingCapacity": integer("Requests that may still be queued."),
                    "pendingRequests": integer("Requests that wait."),
                }
            ),
            "state": text("Whether its workers, together, can answer.", enum=_READINESS),
            "brokenReason": text("Why its last worker failed, if none will come without help."),
            "deaths": array(reference("Death"), description="The latest, without standard error and memory."),
            "autoscaling": record(
                {
                    "enabled": flag("Workers come and go between the bounds by themselves."),
                    "workerIdleTimeoutSec": {
                        **NUMBER,
                        "description": "Seconds without work after which a worker above minWorkers stops.",
                    },
                    "lastDecision": record(
                        {
                            "time": text("When it was taken.", format="date-time"),
                            "decision": text("What was done, or could not be, for people."),
                            "reason": text("Why, for people."),
                        }
                    ),
                },
                optional=("lastDecision",),
                description="What a version with a range of workers does by itself.",
            ),
            "batching": record(
                {
                    "latencySloMs": {**NUMBER, "description": "The target."},
                    "batchSize": integer("Most requests in a batch at present."),
                    "measured": array(
                        record(
                            {
                                "batchSize": integer("Requests in a batch."),
                                "p50Ms": {**NUMBER, "description": "Half of the batches take no longer."},
                                "p90Ms": {**NUMBER, "description": "Nine of ten take no longer."},
                                "batches": integer("How many were measured."),
                            }
                        )
                    ),
                },
                description="What the policy slo has learnt of the model.",
            ),
            "trafficWeight": _weight("Its weight, where versions share the traffic of the model."),
            "customizedMetadata": {"type": "object", "description": "What the handler says of itself."},
            "settings": {
                "type": "object",
                "description": "What it runs with, by the keys of the model config.",
                "additionalProperties": record(
                    {"value": text("As the file has it."), "from": text("The place that decided.")}
                ),
            },
        },
        optional=(
            "deviceIds",
            "autoscaling",
            "batching",
            "brokenReason",
            "deaths",
            "trafficWeight",
            "customizedMetadata",
            "settings",
        ),
    ),
    "Deaths": record({"modelName": TEXT, "modelVersion": TEXT, "deaths": array(reference("Death"))}),
    "Death": record(
        {
            "id": text("Names the certificate in answers and in the log."),
            "time": text("Of the death.", format="date-time"),
            "workerId": TEXT,
            "pid": integer("Process id; 0 if there was no process."),
            "workerState": text("What the worker was doing.", enum=[state.value for state in State]),
            "uptimeSeconds": {"type": "number", "description": "How long it had lived."},
            "cause": text("What it died of, for programs.", enum=[cause.value for cause in Cause]),
            "summary": text("The same, for people."),
            "exitCode": integer("Of the process; absent if a signal ended it, or nobody knows."),
            "signal": text("Name of the signal that ended it."),
            "exception": record({"type": TEXT, "message": TEXT}),
            "location": record(
                {
                    "file": text("Relative to the archive, if it is part of it."),
                    "line": integer("From 1 on."),
                    "function": TEXT,
                }
            ),
            "gpu": integer("Index of its GPU."),
            "oomKills": integer("Kills for lack of memory that the kernel counted in the seconds before."),
            "requests": array(
                record({"id": TEXT, "size": integer("Bytes."), "running": flag("The handler had it; else it waited.")}),
                description="What the worker had.",
            ),
            "moreRequests": integer("How many it had besides."),
            "memory": array(
                record({"secondsBefore": {"type": "number"}, "bytes": integer("Resident memory.")}),
                description="Up to a minute before the death.",
            ),
            "stderr": array(TEXT, description="The last 50 lines."),
        },
        optional=(
            *("exitCode", "signal", "exception", "location", "gpu", "oomKills", "moreRequests", "memory", "stderr"),
        ),
    ),
    "Worker": record(
        {
            "id": TEXT,
            "startTime": text("When its process was started.", format="date-time"),
            "status": text("READY when the model is loaded; UNLOADING otherwise.", enum=["READY", "UNLOADING"]),
            "memoryUsage": integer("Resident memory in bytes; 0 if there is no process."),
            "pid": integer("Process id; 0 if there is no process."),
            "gpu": flag("It runs on an accelerator."),
            "gpuUsage": text("Which accelerator; N/A on the CPU."),
            "state": text("What it is doing.", enum=[state.value for state in State]),
        }
    ),
    "ModelNames": record({"models": array(TEXT)}),
    "ModelReady": record(
        {
            "name": TEXT,
            "ready": flag("It answers."),
            "state": text("What it is doing.", enum=_READINESS),
            "error": text("Why it does not answer."),
        },
        optional=("state", "error"),
    ),
    "Live": record({"live": flag("The server runs.")}),
    "Ready": record(
        {
            "ready": flag("Every model loaded at start is ready."),
            "state": text("Why it is not ready.", enum=_CONDITIONS),
        },
        optional=("state",),
    ),
    "ServerMetadata": record({"name": TEXT, "version": TEXT, "extensions": array(TEXT)}),
    "ModelMetadata": record(
        {
            "name": TEXT,
            "versions": array(TEXT),
            "platform": TEXT,
            "inputs": array(reference("TensorMetadata")),
            "outputs": array(reference("TensorMetadata")),
        }
    ),
    "TensorMetadata": record({"name": TEXT, "datatype": TEXT, "shape": array({"type": "integer"})}),
    "Instances": record({"instances": array(ANYTHING, description="One sample each.")}),
    "InferenceRequest": record(
        {"id": text("Comes back in the answer."), "inputs": array(reference("Tensor"))}, optional=("id",)
    ),
    "Tensor": record(
        {
            "name": TEXT,
            "shape": array(integer("Length of one dimension.")),
            "datatype": text("BOOL, INT64, FP32, BYTES and so on."),
            "data": array(ANYTHING, description="Elements, flat or nested as the shape says."),
            "parameters": {"type": "object"},
        },
        optional=("data", "parameters"),
    ),
}
