"""Breaks a real server in random ways for minutes, and checks what must hold all the while.

    make chaos                5 minutes, 10,000 steps
    make chaos SEED=4711      the same steps once more
    PYTHONPATH=tests:tests/integration:benchmarks .venv/bin/python tests/chaos/chaos.py --seconds 9 --steps 300

A step is a request or a trouble; ``chaos_troubles`` has the troubles and ``chaos_model`` the table of what a request
may come to. Besides: every request gets exactly one answer, its own; the server's counters agree with what clients saw;
``/ping`` answers within a second; every model is whole again soon after a fault; the server's memory stays, and its
log has no error of its own; after the stop no process and no temporary file is left.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
from pathlib import Path

from chaos_run import run_chaos
from chaos_server import ChaosServer, own_namespace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

STEPS, SECONDS = 10_000, 300.0


def main() -> int:
    """The command; 1 if something did not hold."""
    options = _options()
    own_namespace(sys.argv)
    console = Console()
    console.print(f"seed {options.seed}", highlight=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with tempfile.TemporaryDirectory(prefix="chaos-") as place:
        server = ChaosServer(Path(place))
        try:
            with Progress(*columns, console=console, transient=True) as progress:
                task = progress.add_task("steps", total=options.steps)
                tell = lambda step: progress.update(task, completed=step)  # noqa: E731
                report = asyncio.run(run_chaos(server, options.seed, options.steps, options.seconds, tell))
        finally:
            if options.log:
                options.log.write_text(server.process.log.read_text(errors="replace"))
            server.kill()
    report.show(console)
    return 1 if report.violations else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Break a real server in random ways and check what must hold.")
    parser.add_argument("--seed", type=int, help="of an earlier run, to take the same steps")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"requests and faults (default {STEPS})")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"over which they go (default {SECONDS:g})")
    parser.add_argument("--log", type=Path, help="file for what the server printed")
    options = parser.parse_args()
    if options.seed is None:
        # Written into the arguments, because the program may start itself again.
        options.seed = random.SystemRandom().randrange(1_000_000)
        sys.argv += ["--seed", str(options.seed)]
    return options


if __name__ == "__main__":
    raise SystemExit(main())
