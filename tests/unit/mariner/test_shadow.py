"""A version that is asked what the others are asked, and answers nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from test_model_server import ONE, Scene

from mariner.bodies import Arena
from mariner.errors import BadRequest, PredictionFailed, VersionNotFound
from mariner.jobs import Job, Outcome, Part, Reply, Request, Shared
from mariner.shadow import Shadow
from mariner.testing import settle
from ts.wire import Batch


class Shadowed(Scene):
    """Versions 1.0, the default one, and 2.0; tests answer for their processes."""

    async def begin(self) -> None:
        self.engine.handler = None
        self.add("old", name="echo")
        self.add("new", name="echo", version="2.0")
        for url in ("old", "new"):
            await self.server.register(url, ONE)

    def shadow(self, percentage: float = 100, **weights: float) -> None:
        self.server.share_traffic("echo", weights, ("2.0", percentage))

    async def ask(self, body: bytes = b"x", version: str | None = None) -> asyncio.Task[bytes]:
        task = asyncio.create_task(self.predict(body, version=version))
        await settle()
        return task

    def batch(self, process: int, index: int = -1) -> Batch:
        return self.engine.processes[process].batches[index]

    async def reply(self, process: int, *pieces: bytes, failed: bool = False, status: int = 200) -> None:
        """Answers the latest batch of a process."""
        batch = self.batch(process)
        (job_id, _) = batch.jobs[0]
        *first, last = pieces
        running = self.engine.processes[process]
        running.say_replies([Reply(job_id, piece, more=True) for piece in first])
        running.say_replies([Reply(job_id, last, status=status, failed=failed, handler_seconds=0.001)])
        running._open.remove(batch)
        await settle()

    @property
    def counts(self) -> dict[str, int]:
        shadow = self.server.registry.shadow("echo")
        assert shadow is not None
        return {name: count for name, count in asdict(shadow.counts).items() if count}


@pytest.fixture
async def scene(tmp_path: Path) -> Shadowed:
    scene = Shadowed(tmp_path)
    await scene.begin()
    return scene


async def test_a_request_is_answered_by_its_version_and_its_copy_by_nobody(scene: Shadowed) -> None:
    scene.shadow()
    asked = await scene.ask(b"hello")
    (_, copy) = scene.batch(1).jobs[0]
    (_, request) = scene.batch(0).jobs[0]
    assert (bytes(copy.parts[0].value), copy.headers) == (b"hello", request.headers)  # type: ignore[arg-type]
    assert (request.id, copy.id) == ("id", "id.shadow")
    await scene.reply(1, b"from the shadow")
    assert not asked.done()
    await scene.reply(0, b"from the version")
    assert await asked == b"from the version"
    assert scene.counts == {"mirrored": 1, "different": 1}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_equal_answers_are_counted_in_whichever_order_they_come(scene: Shadowed, order: Sequence[int]) -> None:
    scene.shadow()
    asked = await scene.ask()
    for process in order:
        await scene.reply(process, b"the same")
    assert await asked == b"the same"
    assert scene.counts == {"mirrored": 1, "same": 1}


async def test_streamed_answers_are_compared_whole(scene: Shadowed) -> None:
    scene.shadow()
    asked = await scene.ask()
    await scene.reply(0, b"he", b"llo")
    assert scene.counts == {"mirrored": 1}
    await scene.reply(1, b"hell", b"o")
    assert await asked == b"hello"
    assert scene.counts == {"mirrored": 1, "same": 1}


@pytest.mark.parametrize(
    ("version", "shadow", "count"),
    [
        ({}, {"failed": True, "status": 503}, "failed"),
        ({"failed": True, "status": 503}, {"failed": True, "status": 503}, "same"),
        ({"failed": True, "status": 503}, {}, "different"),
        ({}, {"status": 201}, "different"),
    ],
)
async def test_failures_and_statuses_count(
    scene: Shadowed, version: dict[str, Any], shadow: dict[str, Any], count: str
) -> None:
    scene.shadow()
    asked = await scene.ask()
    await scene.reply(0, b"x", **version)
    await scene.reply(1, b"x", **shadow)
    await asyncio.gather(asked, return_exceptions=True)
    assert scene.counts == {"mirrored": 1, count: 1}


async def test_a_share_of_the_requests_is_mirrored(scene: Shadowed) -> None:
    scene.shadow(percentage=25)
    for _ in range(40):
        asked = await scene.ask()
        await scene.reply(0, b"x")
        assert await asked == b"x"
    assert len(scene.engine.processes[0].batches) == 40
    assert 9 <= scene.counts["mirrored"] <= 11


async def test_a_shadow_that_is_full_or_gone_costs_nobody_an_answer(scene: Shadowed) -> None:
    scene.shadow()
    scene.server.registry.get("echo", "2.0").pool.scale(0, 0)
    await settle()
    asked = await scene.ask()
    await scene.reply(0, b"x")
    assert await asked == b"x"
    assert scene.counts == {"refused": 1}


async def test_a_request_for_the_shadow_itself_is_answered_and_not_copied(scene: Shadowed) -> None:
    scene.shadow()
    asked = await scene.ask(version="2.0")
    await scene.reply(1, b"by name")
    assert await asked == b"by name"
    assert scene.counts == {}
    assert scene.engine.processes[0].batches == []


async def test_a_client_that_leaves_leaves_nothing_to_compare(scene: Shadowed) -> None:
    scene.shadow()
    asked = await scene.ask()
    asked.cancel()
    await settle()
    await scene.reply(0, b"x")
    await scene.reply(1, b"x")
    assert scene.counts == {"mirrored": 1}


@pytest.mark.parametrize("end", ["share", "default", "unregister"])
async def test_a_shadow_ends(scene: Shadowed, end: str) -> None:
    scene.shadow()
    if end == "share":
        scene.server.share_traffic("echo", {})
    elif end == "default":
        scene.server.set_default("echo", "2.0")
    else:
        await scene.server.unregister("echo", "2.0")
    assert scene.server.registry.shadow("echo") is None
    version = scene.server.registry.get("echo")
    assert version.put == version.pool.put


async def test_a_shadow_that_is_reloaded_goes_on_with_its_counts(scene: Shadowed) -> None:
    scene.shadow()
    asked = await scene.ask()
    for process in (0, 1):
        await scene.reply(process, b"x")
    await asked
    await scene.server.reload_version("echo", "2.0")
    asked = await scene.ask()
    for process in (0, 2):
        await scene.reply(process, b"x")
    await asked
    assert scene.counts == {"mirrored": 2, "same": 2}


async def test_a_version_that_is_reloaded_keeps_its_shadow(scene: Shadowed) -> None:
    scene.shadow()
    await scene.server.reload_version("echo", "1.0")
    asked = await scene.ask()
    for process in (1, 2):
        await scene.reply(process, b"x")
    assert await asked == b"x"
    assert scene.counts == {"mirrored": 1, "same": 1}


async def test_a_version_that_comes_later_has_the_shadow_too(scene: Shadowed) -> None:
    scene.shadow()
    scene.add("third", name="echo", version="3.0")
    await scene.server.register("third", ONE)
    asked = await scene.ask(version="3.0")
    for process in (1, 2):
        await scene.reply(process, b"x")
    assert await asked == b"x"
    assert scene.counts == {"mirrored": 1, "same": 1}


@pytest.mark.parametrize(
    ("weights", "shadow", "message"),
    [
        ({}, ("1.0", 10), r"Version 1\.0 answers requests of model echo, so it cannot be its shadow"),
        ({"1.0": 50, "2.0": 50}, ("2.0", 10), r"Version 2\.0 answers requests"),
        ({}, ("2.0", 101), "The percentage of the shadow is 101"),
        ({}, ("2.0", True), "The percentage of the shadow is True"),
    ],
)
async def test_what_cannot_be_a_shadow_is_refused(
    scene: Shadowed, weights: dict[str, float], shadow: tuple[str, float], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        scene.server.share_traffic("echo", weights, shadow)
    assert scene.server.registry.shadow("echo") is None
    assert scene.server.registry.weights("echo") == {}


async def test_a_shadow_needs_a_version_that_is_there(scene: Shadowed) -> None:
    with pytest.raises(VersionNotFound):
        scene.server.share_traffic("echo", {}, ("9.0", 10))


def test_a_body_in_shared_memory_is_copied_and_released_with_its_own_job() -> None:
    arena = Arena(1 << 16)
    slot = arena.allocate(5)
    assert slot is not None
    slot.view[:] = b"hello"
    queued: list[Job] = []
    copies: list[Job] = []
    heard: list[Outcome] = []
    shadow = Shadow("2.0", 100, copies.append)
    request = Request("id", b"", [Part("body", "", Shared(slot.offset, slot.size))])
    shadow.behind(queued.append)(Job(request, heard.append, slot=slot))
    (job,), (copy,) = queued, copies
    assert (copy.request.parts[0].value, copy.slot) == (b"hello", None)
    job.end(Reply(1, b"answer"))
    assert arena.used == 0
    copy.end(Reply(2, b"answer"))
    assert [outcome.body for outcome in heard if isinstance(outcome, Reply)] == [b"answer"]
    assert shadow.counts.same == 1
    arena.close()


def test_a_request_that_is_refused_is_not_mirrored() -> None:
    copies: list[Job] = []

    def refuse(_: Job) -> None:
        raise PredictionFailed(503, "no")

    with pytest.raises(PredictionFailed):
        Shadow("2.0", 100, copies.append).behind(refuse)(Job(Request("id", b"", []), lambda _: None))
    assert copies == []
