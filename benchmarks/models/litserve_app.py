"""A LitServe server for one handler, chosen by environment as for the other peers."""

from __future__ import annotations

import os
from typing import Any

import litserve as ls  # type: ignore[import-not-found]  # only its own environment has it

import handlers

BATCH_SIZE = int(os.environ["BENCH_BATCH_SIZE"])


class HandlerAPI(ls.LitAPI):  # type: ignore[misc]
    def setup(self, device: Any) -> None:
        del device
        self.handler = handlers.load(os.environ["BENCH_MODEL_DIR"], os.environ["BENCH_HANDLER"])

    # Without a type: it would ask FastAPI for that type, whose names it does not look up here.
    def decode_request(self, request):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        return request

    def predict(self, bodies: Any) -> Any:
        answers = self.handler.handle([{"body": body} for body in (bodies if BATCH_SIZE > 1 else [bodies])], None)
        return answers if BATCH_SIZE > 1 else answers[0]

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    batching = {"max_batch_size": BATCH_SIZE, "batch_timeout": int(os.environ["BENCH_BATCH_DELAY_MS"]) / 1000}
    api = HandlerAPI(**(batching if BATCH_SIZE > 1 else {}))
    # fast_queue: its queue over ZeroMQ, which its own pages advise for high rates.
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=300, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
