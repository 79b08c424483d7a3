"""Troubles: each does one thing to the server, tells the model from when to when, and leaves the server whole."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from chaos_clients import Clients
from chaos_model import Fault, Kind
from chaos_server import ChaosServer, workers_of

__all__ = ["TROUBLES", "Trouble", "World"]

READY_SECONDS = 30.0  # after a fault all workers are there again; deaths in a row wait 0, 1, 1, 2, 3, 5 … s
POLL_SECONDS = 0.02


class World:
    """What faults act on."""

    def __init__(self, server: ChaosServer, clients: Clients) -> None:
        self.server = server
        self.clients = clients
        self.slowest_recovery = 0.0  # seconds from a fault until its model was whole again
        self.model = clients.model
        self.exclusive: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # one fault at a time for each model

    async def workers(self, name: str) -> list[tuple[int, str]]:
        """Process ids and states of the workers of all versions."""
        seen = await self.clients.manage(Kind.LOOK, name, "GET", f"/models/{name}/all")
        return workers_of(seen.body) if seen.status == 200 else []

    async def signal(self, name: str, number: int, rng: random.Random) -> int:
        """Sends a signal to one of the workers; returns its process id, 0 if there is none."""
        pids = [pid for pid, _ in await self.workers(name) if pid]
        if not pids:
            return 0
        pid = rng.choice(pids)
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return pid

    async def until_ready(self, name: str) -> None:
        """Waits until all workers of a model are ready and one has answered."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not (states := await self.workers(name)) or {state for _, state in states} != {"READY"}:  # noqa: ASYNC110
                    await asyncio.sleep(POLL_SECONDS)  # the API has nothing to wait on
        except TimeoutError:
            self.model.violate(f"{name} is not ready {READY_SECONDS:g} s after the last fault: {states}")
        else:
            await self.clients.predict(name)

    @asynccontextmanager
    async def broken(self, fault: Fault, name: str) -> AsyncIterator[None]:
        """A fault is done to a model in the block; it lasts until the model is whole again."""
        async with self.exclusive[name]:
            window = self.model.begin(fault, self.clients.now(), name)
            try:
                yield
                done = self.clients.now()
                await self.until_ready(name)
                self.slowest_recovery = max(self.slowest_recovery, self.clients.now() - done)
            finally:
                self.model.end(window, self.clients.now())


class Trouble(ABC):
    """One thing that can be done.

    Attributes:
        weight: how often, among all.
    """

    weight: int

    @abstractmethod
    async def strike(self, world: World, rng: random.Random) -> None:
        """Does it, and returns when it is over; ``rng`` decides what is left open."""


class KillWorker(Trouble):
    weight = 4

    async def strike(self, world: World, rng: random.Random) -> None:
        name = rng.choice(world.server.models)
        async with world.broken(Fault.WORKER_KILLED, name):
            await world.signal(name, signal.SIGKILL, rng)


class KillTemplate(Trouble):
    weight = 1

    async def strike(self, world: World, rng: random.Random) -> None:
        if "warm" not in world.server.models:
            return
        async with world.broken(Fault.TEMPLATE_KILLED, "warm"):
            if template := await asyncio.to_thread(world.server.template):
                template.kill()


class StopWorker(Trouble):
    weight = 3

    async def strike(self, world: World, rng: random.Random) -> None:
        name = rng.choice(world.server.models)
        seconds = rng.uniform(0.05, 1.0)
        async with world.broken(Fault.WORKER_STOPPED, name):
            if pid := await world.signal(name, signal.SIGSTOP, rng):
                await asyncio.sleep(seconds)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


class Poison(Trouble):
    """A request among others that ends the process that runs it: it exits, crashes or cuts the process's socket."""

    weight = 3

    async def strike(self, world: World, rng: random.Random) -> None:
        name, fail = rng.choice(world.server.models), rng.choice(["exit", "crash", "cut"])
        async with world.broken(Fault.POISONED, name):
            deadly = world.clients.predict(name, Kind.DEADLY, fail=fail)
            await asyncio.gather(deadly, *(world.clients.predict(name) for _ in range(8)))


class FillDisk(Trouble):
    weight = 2

    async def strike(self, world: World, rng: random.Random) -> None:
        seconds = rng.uniform(0.2, 1.5)
        async with world.exclusive["passing"]:
            window = world.model.begin(Fault.DISK_FULL, world.clients.now())
            with world.server.full_disk():
                await register(world)
                await asyncio.sleep(seconds)
            world.model.end(window, world.clients.now())
            await unregister(world)


class JumpClock(Trouble):
    weight = 3

    async def strike(self, world: World, rng: random.Random) -> None:
        jump = rng.choice([-86_400.0, -3600.0, -30.0, 30.0, 3600.0, 86_400.0, 1e9])
        seconds = rng.uniform(0.1, 1.0)
        window = world.model.begin(Fault.CLOCK_JUMPED, world.clients.now())
        world.server.jump(jump)
        await asyncio.sleep(seconds)
        world.server.jump(0.0)
        world.model.end(window, world.clients.now())


class RudeClients(Trouble):
    weight = 8

    async def strike(self, world: World, rng: random.Random) -> None:
        clients, name = world.clients, rng.choice(["single", "batched"])
        window = world.model.begin(Fault.CLIENTS_LEFT, clients.now(), name)
        ways = [clients.trickle, clients.half_close, clients.leave_early, clients.leave]
        await asyncio.gather(*(rng.choice(ways)(name) for _ in range(8)))
        world.model.end(window, clients.now())


class Hurry(Trouble):
    """More requests than the queue takes, most of which cannot be answered in time."""

    weight = 4

    async def strike(self, world: World, rng: random.Random) -> None:
        window = world.model.begin(Fault.HURRY, world.clients.now(), "slow")
        headers = {"X_Request_Timeout_Ms": str(rng.randrange(20, 500))}
        asks = (world.clients.predict("slow", Kind.HURRIED, headers=headers, seconds=0.02) for _ in range(40))
        await asyncio.gather(*asks)
        world.model.end(window, world.clients.now())


class ComeAndGo(Trouble):
    """A model is registered, asked and unregistered, by several who know nothing of each other."""

    weight = 3

    async def strike(self, world: World, rng: random.Random) -> None:
        async with world.exclusive["passing"]:
            window = world.model.begin(Fault.COMING_AND_GOING, world.clients.now(), "passing")
            await asyncio.gather(*(self._visit(world) for _ in range(rng.randrange(1, 4))))
            await unregister(world)
            world.model.end(window, world.clients.now())

    async def _visit(self, world: World) -> None:
        await register(world)
        await asyncio.gather(*(world.clients.predict("passing", Kind.PASSING) for _ in range(4)))
        await unregister(world)


class Scale(Trouble):
    weight = 3

    async def strike(self, world: World, rng: random.Random) -> None:
        count = rng.randrange(1, 4)
        async with world.broken(Fault.SCALED, "single"):
            await scale(world, count)
            workers = await world.workers("single")
            if len(workers) != count:
                world.model.violate(f"single was scaled to {count} workers and has {workers}")


class ScaleToNone(Trouble):
    weight = 1

    async def strike(self, world: World, rng: random.Random) -> None:
        async with world.broken(Fault.WITHOUT_WORKERS, "single"):
            await scale(world, 0)
            await asyncio.sleep(rng.uniform(0.0, 0.3))
            await scale(world, 1)


class MoveDefault(Trouble):
    weight = 3

    async def strike(self, world: World, rng: random.Random) -> None:
        version = rng.choice(["1.0", "2.0"])
        async with world.broken(Fault.DEFAULT_MOVED, "versions"):
            path = f"/models/versions/{version}/set-default"
            await world.clients.manage(Kind.SET_DEFAULT, "versions", "PUT", path)
            seen = await world.clients.predict("versions")
            if seen.status == 200 and seen.value["version"] != version:
                world.model.violate(f"the default is {version}, and {seen.value['version']} answered")


async def register(world: World) -> None:
    path = "/models?url=passing.mar&model_name=passing&initial_workers=1&synchronous=true"
    await world.clients.manage(Kind.REGISTER, "passing", "POST", path)


async def unregister(world: World) -> None:
    await world.clients.manage(Kind.UNREGISTER, "passing", "DELETE", "/models/passing")


async def scale(world: World, count: int) -> None:
    path = f"/models/single?min_worker={count}&max_worker={count}&synchronous=true"
    await world.clients.manage(Kind.SCALE, "single", "PUT", path)


TROUBLES: tuple[Trouble, ...] = (
    KillWorker(),
    KillTemplate(),
    StopWorker(),
    Poison(),
    FillDisk(),
    JumpClock(),
    RudeClients(),
    Hurry(),
    ComeAndGo(),
    Scale(),
    ScaleToNone(),
    MoveDefault(),
)
