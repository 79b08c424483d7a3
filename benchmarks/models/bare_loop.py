"""The handler in a plain loop: decode a body, call the handler, encode the answer. No server can be faster than this.

    bare_loop.py answers --model-dir DIR --handler MODULE:CLASS --body json SAMPLE...
    bare_loop.py rate    --model-dir DIR --handler MODULE:CLASS --body json --batch 16 --seconds 5 SAMPLE...

Prints one JSON document. ``answers`` has the right answer for every sample, ``rate`` the requests per second.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import handlers


def codec(name: str) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
    if name == "orjson":
        import orjson  # noqa: PLC0415 - only the variant that uses it needs it

        return orjson.loads, orjson.dumps
    return json.loads, lambda answer: json.dumps(answer).encode()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["answers", "rate"])
    parser.add_argument("--model-dir", required=True)
    parser.add_argument("--handler", required=True)
    parser.add_argument("--body", choices=["json", "raw"], required=True)
    parser.add_argument("--codec", choices=["json", "orjson"], default="json")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("samples", nargs="+")
    options = parser.parse_args()

    handler = handlers.load(options.model_dir, options.handler)
    loads, dumps = codec(options.codec)
    samples = [Path(sample).read_bytes() for sample in options.samples]

    def answer(bodies: list[bytes]) -> list[bytes]:
        rows = [{"body": loads(body) if options.body == "json" else body} for body in bodies]
        return [dumps(row) for row in handler.handle(rows, None)]

    if options.mode == "answers":
        print(json.dumps([json.loads(answer([sample])[0]) for sample in samples]))
        return

    batch = samples[:1] * options.batch
    latencies: list[float] = []
    for measured in (options.seconds / 4, options.seconds):  # the first round warms up
        latencies.clear()
        begun = now = time.perf_counter()
        while now - begun < measured:
            answer(batch)
            latencies.append(time.perf_counter() - now)
            now += latencies[-1]
    latencies.sort()
    print(
        json.dumps(
            {
                "requests": len(latencies) * options.batch,
                "seconds": now - begun,
                "p50_ms": 1e3 * latencies[len(latencies) // 2],
                "p99_ms": 1e3 * latencies[len(latencies) * 99 // 100],
            }
        )
    )


if __name__ == "__main__":
    main()
