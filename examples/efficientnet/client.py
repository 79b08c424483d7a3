"""A client with eight threads: posts the images as they lie on the disk and counts the right answers."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from threading import local

DIGITS = (0, 1, 3, 4, 6, 8)  # what the six probabilities are of
THREADS = 8

connections = local()


def ask(path: Path) -> list[float]:
    """The probabilities of one image; each thread has a connection of its own."""
    if not hasattr(connections, "own"):
        connections.own = HTTPConnection("localhost", 8080, timeout=60)
    connections.own.request("POST", "/predictions/b4", path.read_bytes())  # no Content-Type: bytes stay bytes
    response = connections.own.getresponse()
    body = response.read()
    if response.status != 200:
        sys.exit(f"{path.name}: status {response.status}, {body.decode()}")
    shares: list[float] = json.loads(body)
    return shares


def main() -> None:
    paths = sorted(Path("images").glob("*.npy"))
    with ThreadPoolExecutor(THREADS) as threads:
        answers = list(threads.map(ask, paths))
    right = 0
    for path, shares in zip(paths, answers, strict=True):
        digit = DIGITS[shares.index(max(shares))]
        right += digit == int(path.stem.rpartition("-")[2])
    print(f"{len(paths)} images from {THREADS} threads, {right / len(paths):.1%} recognised.")


if __name__ == "__main__":
    main()
