"""A mosec server for one handler. The handler is chosen by environment, because mosec reads the command line itself."""

from __future__ import annotations

import json
import os
from typing import Any

from mosec import Server, Worker  # type: ignore[import-not-found]  # only its own environment has it

import handlers

BATCH_SIZE = int(os.environ["BENCH_BATCH_SIZE"])
JSON_BODY = os.environ["BENCH_BODY"] == "json"


class HandlerWorker(Worker):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.handler = handlers.load(os.environ["BENCH_MODEL_DIR"], os.environ["BENCH_HANDLER"])

    def deserialize(self, data: bytes) -> Any:
        return json.loads(data) if JSON_BODY else data

    def forward(self, data: Any) -> Any:
        bodies = data if BATCH_SIZE > 1 else [data]
        answers = self.handler.handle([{"body": body} for body in bodies], None)
        return answers if BATCH_SIZE > 1 else answers[0]


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        HandlerWorker, num=1, max_batch_size=BATCH_SIZE, max_wait_time=int(os.environ["BENCH_BATCH_DELAY_MS"])
    )
    server.run()
