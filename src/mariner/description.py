"""What is told of a version: by the describe call with TorchServe's keys in its order, and by the metadata call."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

from mariner.archive.manifest import Manifest
from mariner.clock import Clock
from mariner.deaths import DeathCertificate, describe_death
from mariner.errors import InternalError, MarinerError, NoWorker
from mariner.jobs import Job, Outcome, Request, pack_headers
from mariner.lifecycle import State
from mariner.memory import resident_memory
from mariner.registry import ModelVersion
from mariner.slo import SloQueue
from mariner.worker import Worker

__all__ = ["Metadata", "ask_for_metadata", "describe_version", "read_metadata"]

DEATHS_SHOWN = 3  # the rest is at the path of the deaths
DESCRIBE_TIMEOUT = 30.0  # seconds that a handler may take to describe itself before the description does without


def describe_version(
    version: ModelVersion,
    *,
    has_gpu: bool,
    clock: Clock,
    gpu_usage: Mapping[int, str] = MappingProxyType({}),
    deaths: Sequence[DeathCertificate] = (),
) -> dict[str, Any]:
    """One entry of the describe answer.

    Args:
        version: what is described.
        has_gpu: the machine has an accelerator.
        clock: the clock that the workers were started by.
        gpu_usage: how busy each GPU is, in words.
        deaths: of its workers, latest first.
    """
    settings, yaml, pool = version.settings, version.settings.config, version.pool
    stateful = bool(yaml.sequence_batching)
    return {
        "modelName": version.name,
        "modelVersion": version.version,
        "modelUrl": version.archive.url,
        "runtime": version.runtime,
        "minWorkers": pool.min_workers,
        "maxWorkers": pool.max_workers,
        "batchSize": settings.batch_size,
        "maxBatchDelay": round(settings.max_batch_delay * 1000),
        "responseTimeout": round(settings.response_timeout),
        "startupTimeout": round(settings.startup_timeout),
        "maxRetryTimeoutInSec": round(settings.retry_window),
        "clientTimeoutInMills": round(settings.client_timeout * 1000),
        "parallelType": yaml.parallel_type or "",
        "parallelLevel": yaml.parallel_level or 0,
        "deviceType": "gpu" if has_gpu and yaml.device_type != "cpu" else "cpu",
        **({"deviceIds": list(yaml.device_ids)} if yaml.device_ids else {}),
        "continuousBatching": bool(yaml.continuous_batching),
        "useJobTicket": bool(yaml.use_job_ticket),
        "useVenv": bool(yaml.use_venv),
        "stateful": stateful,
        "sequenceMaxIdleMSec": yaml.sequence_max_idle_msec or 0,
        "sequenceTimeoutMSec": yaml.sequence_timeout_msec or 0,
        "maxNumSequence": yaml.max_num_sequence or int(stateful),
        "maxSequenceJobQueueSize": yaml.max_sequence_job_queue_size or int(stateful),
        "loadedAtStartup": version.loaded_at_startup,
        "workers": [_describe_worker(worker, clock, gpu_usage) for worker in pool.workers],
        "jobQueueStatus": {
            "remainingCapacity": max(0, settings.queue_size - pool.waiting),
            "pendingRequests": pool.waiting,
        },
        "state": pool.readiness.value,  # ours, as below
        **({"brokenReason": pool.last_death.summary} if pool.broken and pool.last_death else {}),
        **({"deaths": [describe_death(death, brief=True) for death in deaths[:DEATHS_SHOWN]]} if deaths else {}),
        **({"autoscaling": _describe_scaling(version, clock)} if pool.min_workers < pool.max_workers else {}),
        **({"batching": pool.queue.describe()} if isinstance(pool.queue, SloQueue) else {}),
    }


def _describe_worker(worker: Worker, clock: Clock, gpu_usage: Mapping[int, str]) -> dict[str, Any]:
    gpu = worker.load.gpu_id
    return {
        "id": str(worker.id),
        "startTime": _moment(worker.started_at, clock),
        "status": "READY" if worker.state is State.READY else "UNLOADING",
        "memoryUsage": resident_memory(worker.pid),
        "pid": worker.pid,
        "gpu": gpu is not None,
        "gpuUsage": "N/A" if gpu is None else gpu_usage.get(gpu, f"gpuId::{gpu}"),
        "state": worker.state.value,  # ours: TorchServe's status knows only two
    }


def _describe_scaling(version: ModelVersion, clock: Clock) -> dict[str, Any]:
    scaler = version.pool.scaler
    latest = scaler.latest
    return {
        "enabled": scaler.enabled,
        "workerIdleTimeoutSec": version.settings.idle_timeout,
        **(
            {"lastDecision": {"time": _moment(latest.at, clock), "decision": latest.text, "reason": latest.reason}}
            if latest
            else {}
        ),
    }


def _moment(at: float, clock: Clock) -> str:
    # The clock counts from an unknown moment: its distance from now is what can be told.
    then = datetime.fromtimestamp(datetime.now(UTC).timestamp() - (clock.time() - at), UTC)
    return then.strftime("%Y-%m-%dT%H:%M:%S.") + f"{then.microsecond // 1000:03d}Z"


async def ask_for_metadata(version: ModelVersion, clock: Clock) -> dict[str, Any]:
    """What the handler says of itself; empty if it says nothing that can be shown.

    Raises:
        NoWorker: there is nobody to ask.
        InternalError: the handler takes too long.
    """
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    now = clock.time()
    job = Job(
        Request(str(uuid.uuid4()), pack_headers([("describe", "True")]), []),
        lambda outcome: None if future.done() else future.set_result(outcome),
        deadline=now + DESCRIBE_TIMEOUT,
        created=now,
        alone=True,
    )
    if not version.pool.workers:
        raise NoWorker(
            f'Model "{version.name}" has no worker to serve describe request. '
            "Please use scale workers API to add workers."
        )
    version.pool.put(job)
    try:
        outcome = await asyncio.wait_for(future, DESCRIBE_TIMEOUT)
    except TimeoutError:
        job.cancel()
        raise InternalError("Failed to get customized model matadata.") from None
    if isinstance(outcome, MarinerError):
        raise outcome
    try:
        metadata = json.loads(bytes(outcome.body))
    except ValueError:
        return {}
    return metadata if isinstance(metadata, dict) and not outcome.failed else {}


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a model is, in the words of the open inference protocol.

    Attributes:
        name: the name it is registered under.
        versions: all its versions, in the order of their registration.
        platform: project and format of its weights, ``pytorch_pt2``; ``python`` if it has none.
    """

    name: str
    versions: list[str]
    platform: str


def read_metadata(version: ModelVersion, versions: list[str]) -> Metadata:
    """The metadata of a version.

    Args:
        version: whose weights decide about the platform.
        versions: all versions of its model.
    """
    return Metadata(version.name, versions, _platform(version.archive.manifest))


def _platform(manifest: Manifest) -> str:
    suffix = PurePosixPath(manifest.serialized_file or "").suffix[1:].lower()
    if not suffix:
        return "python"
    return "onnx_onnxv1" if suffix == "onnx" else f"pytorch_{suffix}"
