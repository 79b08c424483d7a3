"""Keeper: the life of one worker over all its processes. Starts it, and starts it again while recovery allows.

When that is, :mod:`mariner.lifecycle` decides.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol

from mariner.clock import Clock, sleep
from mariner.deaths import Death, blame
from mariner.errors import MarinerError, WorkerStartFailed
from mariner.lifecycle import Event, Recovery
from mariner.worker import Worker

__all__ = ["Keeper", "Owner", "log_defect"]

log = logging.getLogger(__name__)

RECOVERING = "Auto recovery start timestamp: "  # these two are what TorchServe writes and scripts look for
RECOVERED = " Auto recovery succeeded, reset recoveryStartTS"


class Owner(Protocol):
    """What a keeper tells the pool of its worker."""

    def loaded(self, worker: Worker, seconds: float) -> None:
        """It is ready, so many seconds after its process was started."""

    def lets_go(self, worker: Worker, death: Death) -> bool:
        """It could not load, or failed too often: whether it has been taken out because the others suffice."""

    def failed(self, worker: Worker) -> None:
        """It is waiting for its next start, or broken."""

    def restarted(self, worker: Worker) -> None:
        """It is about to start again."""

    def forget(self, worker: Worker) -> None:
        """It has stopped for good, as it was asked to."""


class Keeper:
    """Keeps a worker alive, from now on.

    Args:
        worker: new.
        owner: its pool.
        clock: time and timers.
        retry_window: seconds during which loading may fail.
        predecessor: the keeper of another worker that has to have gone before this one starts.

    Attributes:
        settled: done when the worker has loaded, failed to or gone, whichever was first.
        ended: done when the worker has gone, or is not started again.
    """

    def __init__(
        self, worker: Worker, owner: Owner, *, clock: Clock, retry_window: float, predecessor: Keeper | None = None
    ) -> None:
        self._worker = worker
        self._owner = owner
        self._clock = clock
        self._recovery = Recovery(retry_window)
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.settled.add_done_callback(lambda future: future.exception())  # nobody needs to ask
        self.ended = asyncio.create_task(self._keep(predecessor), name=worker.spec.name)
        self.ended.add_done_callback(log_defect)

    @property
    def failing(self) -> bool:
        """The worker failed and has not loaded since."""
        return self._recovery.failing

    def cancel(self) -> None:
        """Starts nothing any more."""
        self.ended.cancel()

    def settle(self, error: MarinerError | None = None) -> None:
        """Tells those who wait for the worker what came of it, if they have not been told."""
        if self.settled.done():
            return
        if error is None:
            self.settled.set_result(None)
        else:
            self.settled.set_exception(error)

    async def _keep(self, predecessor: Keeper | None) -> None:
        """Starts the worker, waits until it dies, and starts it again."""
        if predecessor is not None:
            await asyncio.wait({predecessor.ended})
        worker, recovery = self._worker, self._recovery
        while True:
            death = await self._live()
            if worker.stopping:
                worker.move(Event.GONE)
                self._owner.forget(worker)
                return
            if worker.answered:
                recovery.answered()
            again = "Auto recovery failed again" if recovery.failing else f"{RECOVERING}{time.time() * 1000:.0f}"
            delay = (
                recovery.died(suspected=worker.suspected) if death.loaded else recovery.load_failed(self._clock.time())
            )
            worker.move(Event.GAVE_UP if delay is None else Event.FAILED)
            if (delay is None or not death.loaded) and self._owner.lets_go(worker, death):
                return
            self.settle(_start_failed(worker, death))
            self._owner.failed(worker)
            if delay is None:
                log.error("%s ended: %s. It failed too often and is not started again.", worker.spec.name, death)
                return
            log.warning(
                "%s ended: %s. Worker disconnected. %s. Retry worker: %d in %g seconds.",
                *(worker.spec.name, death, again, worker.id, delay),
            )
            await sleep(self._clock, delay)
            worker.move(Event.RETRY)
            self._owner.restarted(worker)

    async def _live(self) -> Death:
        """The life of one process, to its end."""
        worker, recovery = self._worker, self._recovery
        try:
            await worker.start()
        except Death as death:
            worker.kill("it could not load")
            if worker.pid:
                await worker.ended()
            return death
        again = RECOVERED if recovery.failing else ""
        recovery.loaded()
        seconds = self._clock.time() - worker.started_at
        log.info("%s is ready after %.2f s.%s", worker.spec.name, seconds, again)
        self.settle()
        self._owner.loaded(worker, seconds)
        return await worker.ended()


def _start_failed(worker: Worker, death: Death) -> WorkerStartFailed:
    load = worker.load
    error = WorkerStartFailed(
        f"Failed to start workers for model {load.model_name} version: {load.model_version}",
        out_of_memory=death.out_of_memory,
        hint=death.message.replace(load.model_dir, "."),  # clients learn no paths of this machine
    )
    return blame(error, worker.certificate)


def log_defect(task: asyncio.Task[None]) -> None:
    """Logs what has ended a task that ends only when it is done or cancelled."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s is lost: a defect of the server.", task.get_name(), exc_info=error)
