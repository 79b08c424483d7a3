"""The faults: how each is done to a server, and the figure that comes of it. The same for every server."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
from fault_server import FAULTY, FaultServer, Reply

__all__ = ["FAULTS", "Fault", "Finding"]

ERROR_PAUSE = 0.1  # seconds after which a client that got an error tries again
GIVE_UP = 20.0  # seconds after which a model that has not come back is given up
LARGE_SIDE = 7072  # of a square matrix of 200 MB
NET = """\
import torch


class Handler:
    def initialize(self, context):
        torch.manual_seed(0)
        self.initialized, self.model = True, torch.nn.Linear({side}, {side}, bias=False)

    def handle(self, data, context):
        return [float(self.model.weight[0, 0])] * len(data)
"""
BATCHES = {"batchSize": 4, "maxBatchDelay": 20}


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of a fault: one figure for the page, and the numbers behind it."""

    figure: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault.

    Attributes:
        name: of the fault, for ``--only``.
        title: for the page.
        done: what is done, for the page.
        measure: does it to a server.
    """

    name: str
    title: str
    done: str
    measure: Callable[[FaultServer], Awaitable[Finding]]


@dataclass(slots=True)
class Load:
    """What clients got that ask again and again."""

    replies: list[Reply] = field(default_factory=list)

    @property
    def lost(self) -> list[Reply]:
        return [reply for reply in self.replies if not reply.right]

    def back_after(self, struck: float) -> float | None:
        """Seconds from then to the first good answer to a request that was sent later; None if there was none."""
        ends = [reply.ended for reply in self.replies if reply.right and reply.begun >= struck]
        return min(ends) - struck if ends else None

    async def until_back(self, struck: float) -> float | None:
        """Waits for such an answer, and a little longer."""
        while (seconds := self.back_after(struck)) is None and time.monotonic() < struck + GIVE_UP:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.0)
        return seconds


@asynccontextmanager
async def load(server: FaultServer, model: str, clients: int, *, seconds: float = 0.01) -> AsyncIterator[Load]:
    """Clients ask a model in the block, each its next question when it has an answer to the last."""
    found = Load()
    ending = asyncio.Event()

    async def ask_on() -> None:
        while not ending.is_set():
            reply = await server.predict(model, seconds=seconds)
            found.replies.append(reply)
            if not reply.right:
                await asyncio.sleep(ERROR_PAUSE)

    tasks = [asyncio.create_task(ask_on()) for _ in range(clients)]
    try:
        yield found
    finally:
        ending.set()
        await asyncio.gather(*tasks)


# -- deaths ----------------------------------------------------------------------------------------------------------


async def kill_worker(server: FaultServer) -> Finding:
    await server.serve("killed", **BATCHES)
    async with load(server, "killed", 4) as clients:
        await asyncio.sleep(1.0)
        struck = time.monotonic()
        for pid in await server.workers("killed"):
            os.kill(pid, signal.SIGKILL)
        back = await clients.until_back(struck)
    await server.unregister("killed")
    return _death(clients, back)


async def exit_in_handler(server: FaultServer) -> Finding:
    return await _fatal_request(server, "exit")


async def crash_in_handler(server: FaultServer) -> Finding:
    return await _fatal_request(server, "crash")


async def _fatal_request(server: FaultServer, fail: str) -> Finding:
    await server.serve(fail, **BATCHES)
    async with load(server, fail, 4) as clients:
        await asyncio.sleep(0.5)
        struck = time.monotonic()
        fatal = await server.predict(fail, fail=fail)
        back = await clients.until_back(struck)
    await server.unregister(fail)
    return _death(clients, back, fatal)


def _death(clients: Load, back: float | None, fatal: Reply | None = None) -> Finding:
    shown = fatal or next(iter(clients.lost), None)
    lost, asked = len(clients.lost), len(clients.replies)
    figure = f"{_requests(lost)} of others lost" if fatal else f"{_requests(lost)} lost"
    figure += f", back after {_seconds(back)}"
    if shown is not None:
        figure += f"; client reads: {_quoted(shown.reason)}"
    reason = shown.reason if shown else ""
    return Finding(figure, {"lost": lost, "asked": asked, "back_seconds": back, "reason": reason})


# -- loading ---------------------------------------------------------------------------------------------------------

IMPORTS_NOTHING = "import a_package_that_nobody_has\n\n\ndef handle(data, context):\n    return data\n"
FAILS_TO_INITIALIZE = """\
class Handler:
    def initialize(self, context):
        raise ValueError("the label file has 9 names, the model 10 outputs")

    def handle(self, data, context):
        return data
"""


async def import_error(server: FaultServer) -> Finding:
    return await _cannot_load(server, "imports", IMPORTS_NOTHING, "a_package_that_nobody_has")


async def initialize_error(server: FaultServer) -> Finding:
    return await _cannot_load(server, "initializes", FAILS_TO_INITIALIZE, "label file has 9 names")


async def _cannot_load(server: FaultServer, name: str, source: str, cause: str) -> Finding:
    reply = await server.register(name, source=source, limit=GIVE_UP)
    await server.unregister(name)
    named = cause in reply.reason
    says = "names the cause" if named else "does not name the cause"
    figure = f"answer after {reply.seconds:.1f} s {says}: {_quoted(reply.reason)}"
    return Finding(figure, {"seconds": reply.seconds, "names_the_cause": named, "reason": reply.reason})


# -- requests that do harm -------------------------------------------------------------------------------------------


async def hang(server: FaultServer) -> Finding:
    await server.serve("hangs", responseTimeout=2)
    struck = time.monotonic()
    hanging = asyncio.create_task(server.predict("hangs", seconds=60))
    await asyncio.sleep(0.2)
    async with load(server, "hangs", 1) as clients:
        hung = await hanging
        back = await clients.until_back(struck)
    await server.unregister("hangs")
    figure = f"answer after {hung.seconds:.1f} s, next good answer after {_seconds(back)}; "
    figure += f"{_requests(len(clients.lost))} of others lost; client reads: {_quoted(hung.reason)}"
    values = {"seconds": hung.seconds, "back_seconds": back, "lost": len(clients.lost), "reason": hung.reason}
    return Finding(figure, values)


async def bad_in_batch(server: FaultServer) -> Finding:
    await server.serve("batch", batchSize=8, maxBatchDelay=100)
    first = asyncio.create_task(server.predict("batch", seconds=0.6))
    await asyncio.sleep(0.4)  # it runs alone, and the others gather behind it
    bad = asyncio.create_task(server.predict("batch", fail="raise"))
    replies = await asyncio.gather(*(server.predict("batch") for _ in range(7)))
    await asyncio.gather(first, bad)
    await server.unregister("batch")
    right = sum(reply.right for reply in replies)
    wrong = next((reply.reason for reply in replies if not reply.right), "")
    figure = f"{right} of 7 innocent requests answered" + (f"; the others read: {_quoted(wrong)}" if wrong else "")
    return Finding(figure, {"right": right, "of": 7, "reason": wrong})


async def poison(server: FaultServer) -> Finding:
    await server.serve("poisoned", minWorkers=2, maxWorkers=2, batchSize=4, maxBatchDelay=10)
    poisons = []
    async with load(server, "poisoned", 16) as clients:
        for _ in range(10):
            poisons.append(asyncio.create_task(server.predict("poisoned", fail="exit")))
            await asyncio.sleep(1.0)
    await asyncio.gather(*poisons)
    await server.unregister("poisoned")
    asked, lost = len(clients.replies), len(clients.lost)
    share = (asked - lost) / asked
    figure = f"{100 * share:.2f} % of the innocent requests answered right: {asked - lost:,} of {asked:,}"
    return Finding(figure, {"share": share, "right": asked - lost, "asked": asked})


# -- load ------------------------------------------------------------------------------------------------------------


async def overload(server: FaultServer) -> Finding:
    seconds, handler_seconds, limit = 6.0, 0.02, 1.0
    await server.serve("overloaded")
    async with load(server, "overloaded", 4, seconds=handler_seconds) as clients:
        await asyncio.sleep(1.0)
        begun = time.monotonic()
        await asyncio.sleep(2.0)
        capacity = sum(reply.right and reply.ended > begun for reply in clients.replies) / (time.monotonic() - begun)
    asks = []
    begun = time.monotonic()
    while (at := len(asks) / (3 * capacity)) < seconds:
        await asyncio.sleep(max(0.0, begun + at - time.monotonic()))
        asks.append(asyncio.create_task(server.predict("overloaded", seconds=handler_seconds, limit=limit, says=True)))
    replies = await asyncio.gather(*asks)
    await server.unregister("overloaded")
    good = sum(reply.right for reply in replies)
    told = sum(reply.status > 0 and not reply.right for reply in replies)
    share = good / (capacity * (seconds + limit))  # the last clients still wait
    figure = f"{100 * share:.0f} % of its capacity of {capacity:.0f}/s answered in time; "
    figure += f"of {len(replies)} requests {good} in time, {told} told why not, {len(replies) - good - told} nothing"
    values = {"goodput": share, "capacity": capacity, "asked": len(replies), "right": good, "refused": told}
    return Finding(figure, values)


async def step_load(server: FaultServer) -> Finding:
    await server.serve("grows", source=f"{FAULTY}\nimport torch\n", minWorkers=1, maxWorkers=4)
    async with load(server, "grows", 1, seconds=0.05):
        await asyncio.sleep(1.0)
        struck, most, reached = time.monotonic(), 1, None
        async with load(server, "grows", 9, seconds=0.05):
            while reached is None and time.monotonic() < struck + 10.0:
                most = max(most, len(await server.workers("grows")))
                reached = time.monotonic() - struck if most >= 4 else None
                await asyncio.sleep(0.05)
    await server.unregister("grows")
    figure = f"4 workers after {reached:.1f} s" if reached else f"{most} of 4 workers after 10 s"
    return Finding(figure, {"seconds": reached, "workers": most})


async def client_leaves(server: FaultServer) -> Finding:
    await server.serve("left")
    first = asyncio.create_task(server.predict("left", seconds=1.5))
    await asyncio.sleep(0.3)
    traces = [server.folder / f"trace-{number}" for number in range(5)]
    await asyncio.gather(*(server.predict("left", trace=str(path), seconds=0.2, limit=0.5) for path in traces))
    await first
    begun = time.monotonic()
    await server.predict("left")
    waited = time.monotonic() - begun
    await server.unregister("left")
    ran = sum(path.exists() for path in traces)
    figure = f"{ran} of 5 abandoned requests ran; the next client waited {waited:.2f} s"
    return Finding(figure, {"ran": ran, "of": 5, "next_waited_seconds": waited})


async def share_weights(server: FaultServer) -> Finding:
    workers = 8
    memory = {}
    for name, side in (("small", 8), ("large", LARGE_SIDE)):
        await server.serve(
            name, source=NET.format(side=side), minWorkers=workers, maxWorkers=workers, sharedWeights="true"
        )
        while len(pids := await server.workers(name)) < workers:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        memory[name] = sum(psutil.Process(pid).memory_full_info().pss for pid in pids)
        await server.unregister(name)
    size = 4 * LARGE_SIDE**2
    copies = (memory["large"] - memory["small"]) / size
    figure = f"{copies:.2f} copies of the weights in memory; {memory['large'] / 1e6:,.0f} MB in all"
    return Finding(figure, {"copies": copies, "bytes": memory["large"], "weights": size, "workers": workers})


async def stop_under_load(server: FaultServer) -> Finding:
    await server.serve("stopped")
    asks = [asyncio.create_task(server.predict("stopped", seconds=0.2)) for _ in range(8)]
    await asyncio.sleep(0.3)
    begun = time.monotonic()
    command = server.stop()
    replies = await asyncio.gather(*asks)
    while server.process.running and time.monotonic() < begun + GIVE_UP:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    seconds = time.monotonic() - begun
    command.wait(GIVE_UP)
    lost = [reply for reply in replies if not reply.right]
    figure = f"{len(lost)} of 8 requests lost, ended after {seconds:.1f} s"
    figure += f"; client reads: {_quoted(lost[0].reason)}" if lost else ""
    return Finding(figure, {"lost": len(lost), "of": 8, "seconds": seconds, "reason": lost[0].reason if lost else ""})


def _requests(count: int) -> str:
    return f"{count} request" if count == 1 else f"{count} requests"


def _seconds(value: float | None) -> str:
    return f"more than {GIVE_UP:g} s" if value is None else f"{value:.1f} s"


def _quoted(text: str) -> str:
    words = " ".join(text.split())
    return f"“{words[:117]}…”" if len(words) > 118 else f"“{words}”"


FAULTS = (
    Fault("kill", "A worker is killed", "`kill -9` under 4 clients, batches of up to 4", kill_worker),
    Fault(
        "exit",
        "A request ends the process",
        "`os._exit` in the handler, 4 other clients, batches of up to 4",
        exit_in_handler,
    ),
    Fault(
        "crash",
        "A request crashes the process",
        "a segmentation fault, 4 other clients, batches of up to 4",
        crash_in_handler,
    ),
    Fault("import", "The handler cannot be imported", "registered, synchronously; a package is missing", import_error),
    Fault("initialize", "`initialize` raises", "registered, synchronously", initialize_error),
    Fault("hang", "A request hangs", "`responseTimeout` is 2 s, one client waits behind it", hang),
    Fault("batch", "One bad request in a batch of 8", "the handler raises for one of them", bad_in_batch),
    Fault("poison", "A poison request each second", "`os._exit` for 10 s, 16 clients, 2 workers, batches of 4", poison),
    Fault("overload", "Three times the load it can bear", "6 s, clients wait 1 s and leave", overload),
    Fault("step", "The load grows from 1 to 10 clients", "`minWorkers: 1`, `maxWorkers: 4`, with PyTorch", step_load),
    Fault("leave", "Clients leave", "5 that wait behind a slow request go away", client_leaves),
    Fault(
        "weights",
        "Eight workers on the CPU have one net of 200 MB",
        "`sharedWeights: true`, which TorchServe does not know; PSS beyond that of a tiny net",
        share_weights,
    ),
    Fault("stop", "The server is stopped", "`torchserve --stop`; 8 requests wait or run", stop_under_load),
)
