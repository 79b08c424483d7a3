"""A Ray Serve application for one handler, chosen by environment as for the other peers."""

from __future__ import annotations

import os
import signal
from typing import Any

import ray  # type: ignore[import-not-found]  # only its own environment has it
from ray import serve  # type: ignore[import-not-found]
from starlette.requests import Request  # type: ignore[import-not-found]

import handlers

BATCH_SIZE = int(os.environ["BENCH_BATCH_SIZE"])
DELAY = int(os.environ["BENCH_BATCH_DELAY_MS"]) / 1000
WAITING = 256  # requests at once in the replica, so that its batches fill; by default 5


@serve.deployment(num_replicas=1, max_ongoing_requests=WAITING, ray_actor_options={"num_cpus": 1})  # type: ignore[misc]
class Handler:
    def __init__(self, model_dir: str, handler: str) -> None:
        self.handler = handlers.load(model_dir, handler)

    @serve.batch(max_batch_size=BATCH_SIZE, batch_wait_timeout_s=DELAY)  # type: ignore[misc]
    async def batch(self, bodies: list[Any]) -> list[Any]:
        return list(self.handler.handle([{"body": body} for body in bodies], None))

    async def __call__(self, request: Request) -> Any:
        body = await request.json()
        if BATCH_SIZE == 1:
            return self.handler.handle([{"body": body}], None)[0]
        return await self.batch(body)


if __name__ == "__main__":
    # A short path, because it puts Unix sockets below it.
    ray.init(include_dashboard=False, _temp_dir=os.environ["BENCH_TEMPORARY"], num_cpus=2)
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(os.environ["BENCH_PORT"])},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    serve.run(Handler.bind(os.environ["BENCH_MODEL_DIR"], os.environ["BENCH_HANDLER"]))
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
