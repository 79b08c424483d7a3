"""What the describe call shows of a version: TorchServe's keys in its order, and each worker's true state."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import psutil

from mariner.lifecycle import State
from mariner.registry import ModelVersion
from mariner.worker import Clock, Worker

__all__ = ["describe_version"]


def describe_version(version: ModelVersion, *, has_gpu: bool, clock: Clock) -> dict[str, Any]:
    """One entry of the describe answer.

    Args:
        version: what is described.
        has_gpu: the machine has an accelerator.
        clock: the clock that the workers were started by.
    """
    settings, yaml, pool = version.settings, version.settings.config, version.pool
    stateful = bool(yaml.sequence_batching)
    waiting = len(pool.queue) + pool.queue.ahead
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
        "workers": [_describe_worker(worker, clock) for worker in pool.workers],
        "jobQueueStatus": {
            "remainingCapacity": max(0, settings.queue_size - waiting),
            "pendingRequests": waiting,
        },
    }


def _describe_worker(worker: Worker, clock: Clock) -> dict[str, Any]:
    gpu = worker.load.gpu_id
    # The clock counts from an unknown moment: its distance from now is what can be told.
    started = datetime.fromtimestamp(datetime.now(UTC).timestamp() - (clock.time() - worker.started_at), UTC)
    return {
        "id": str(worker.id),
        "startTime": started.strftime("%Y-%m-%dT%H:%M:%S.") + f"{started.microsecond // 1000:03d}Z",
        "status": "READY" if worker.state is State.READY else "UNLOADING",
        "memoryUsage": _resident_bytes(worker.pid),
        "pid": worker.pid,
        "gpu": gpu is not None,
        "gpuUsage": "N/A" if gpu is None else f"gpuId::{gpu}",
        "state": worker.state.value,  # ours: TorchServe's status knows only two
    }


def _resident_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss) if pid else 0
    except psutil.Error:
        return 0
