"""What a model that is unregistered leaves behind in the server's memory."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

import pytest
from test_serving import ONE_WORKER, put_model

from mariner import deployment, pool
from mariner.testing import running_server

pytestmark = pytest.mark.slow


async def register_and_unregister(place: Path) -> None:
    """Ends when the workers of the model are no objects any more."""
    async with running_server(model_store=place / "store", temp_dir=place) as server:
        gc.collect()
        gc.disable()  # it comes after so many objects that hundreds of models may have gone
        try:
            await server.models.register("m")
            freed = asyncio.Event()
            weakref.finalize(server.models.registry.get("m", None).pool.workers[0], freed.set)
            await server.models.unregister("m")
            await asyncio.wait_for(freed.wait(), 20)
        finally:
            gc.enable()


def test_nothing_lies_about_until_the_collector_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uvloop = pytest.importorskip("uvloop")  # whose transports refer to each other
    monkeypatch.setattr(pool, "FINISH_GRACE", 0.2)
    monkeypatch.setattr(deployment, "LAST_TIMERS", 2.0)
    put_model(tmp_path / "store", "m", "echo", ONE_WORKER)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(register_and_unregister(tmp_path))
