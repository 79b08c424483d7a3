"""Recycling: workers that have reached a limit are replaced, one of a pool at a time, without losing a request.

Limits bound what handlers leak. They are looked at now and then and not for each request, so a worker may go beyond.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from mariner.errors import WorkerStartFailed
from mariner.lifecycle import State
from mariner.memory import available_memory, resident_memory
from mariner.worker import Worker

__all__ = ["Limits", "Places", "Recycler"]

log = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds between two looks
RETRY = 60.0  # seconds until the next try after a worker whose replacement could not load
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """When a worker has served long enough; 0 for never.

    Attributes:
        requests: that it may get.
        memory: bytes that it may have.
    """

    requests: int = 0
    memory: int = 0

    def __bool__(self) -> bool:
        """There is one."""
        return bool(self.requests or self.memory)

    def reached(self, requests: int, memory: int) -> str:
        """Why a worker with so many requests and bytes is to be replaced; "" if it is not."""
        if self.requests and requests >= self.requests:
            return f"it has got {requests} requests (maxRequestsPerWorker: {self.requests})"
        if self.memory and memory > self.memory:
            return f"it has {memory // _MIB} MiB of memory (maxWorkerMemoryMB: {self.memory // _MIB})"
        return ""


class Places(NamedTuple):
    """The workers of a pool, as far as they can be replaced.

    Attributes:
        workers: those that are not going.
        add: starts one more, at once or when the given one has gone.
        remove: lets one finish what it has and go.
        fill: starts as many as the pool was told to have.
        settled: of each worker, done when it has loaded or failed to.
    """

    workers: Sequence[Worker]
    add: Callable[[Worker | None], Worker]
    remove: Callable[[Worker], None]
    fill: Callable[[], None]
    settled: Callable[[Worker], asyncio.Future[None]]

    async def replace(self, old: Worker, *, beside: bool) -> Worker:
        """Gives the place of a worker to a new one, which loads before the other goes or, without ``beside``, after.

        Returns:
            The new one, when it is ready.

        Raises:
            WorkerStartFailed: the new one cannot load; the old one stays if it has not gone.
        """
        new = self.add(None if beside else old)
        settled = self.settled(new)
        if beside:
            await asyncio.wait({settled})
            if settled.exception() is not None and new in self.workers:
                self.remove(new)
        if old in self.workers and new in self.workers:
            # It runs on the same device; what was assigned to it is given back by the other.
            gpu, spare = old.load.gpu_id, new.load.gpu_id
            old.load, new.load = replace(old.load, gpu_id=spare), replace(new.load, gpu_id=gpu)
            self.remove(old)
        self.fill()  # somebody may have scaled the pool meanwhile
        await asyncio.wait({settled})
        settled.result()
        return new


class Recycler:
    """Watches the workers of a pool.

    Args:
        places: theirs.
        limits: which of them to replace.
        sleep: waits so many seconds.
        memory: bytes of a process.
        room: bytes that another process could have.
    """

    def __init__(
        self,
        places: Places,
        limits: Limits,
        *,
        sleep: Callable[[float], Awaitable[None]],
        memory: Callable[[int], int] = resident_memory,
        room: Callable[[], int] = available_memory,
    ) -> None:
        self._places = places
        self._limits = limits
        self._sleep = sleep
        self._memory = memory
        self._room = room
        self._too_little = False  # the limit, for a model that has just been loaded

    async def run(self) -> None:
        """Replaces workers until it is cancelled."""
        while True:
            await self._sleep(INTERVAL)
            for worker in list(self._places.workers):
                if worker.state is State.READY and worker in self._places.workers and (why := self._why(worker)):
                    await self._replace(worker, why)

    def _why(self, worker: Worker) -> str:
        memory = 0 if self._too_little or not self._limits.memory else self._memory(worker.pid)
        return self._limits.reached(worker.served, memory)

    async def _replace(self, worker: Worker, why: str) -> None:
        # Two of them need memory twice. A GPU's is not looked at: few models leave room for themselves.
        beside = worker.load.gpu_id is None and self._memory(worker.pid) < self._room()
        log.info("%s is replaced%s: %s.", worker.spec.name, "" if beside else " once it has gone", why)
        try:
            new = await self._places.replace(worker, beside=beside)
        except WorkerStartFailed as error:
            goes_on = "it goes on" if beside else "it has gone; what waits is kept meanwhile"
            log.warning("%s: its replacement could not load, %s. %s", worker.spec.name, goes_on, error.hint)
            await self._sleep(RETRY)
            return
        memory = self._memory(new.pid)
        if self._limits.memory and memory > self._limits.memory and not self._too_little:
            self._too_little = True  # else workers would be replaced for ever
            log.warning(
                "%s has %d MiB of memory and has just begun: maxWorkerMemoryMB=%d is too little for its model and is "
                "ignored.",
                *(new.spec.name, memory // _MIB, self._limits.memory // _MIB),
            )
