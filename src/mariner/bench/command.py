"""The command ``mariner bench``: its rounds and its output."""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mariner.bench.load import Load, Outcomes, Pace
from mariner.bench.report import show, show_comparison
from mariner.bench.summary import Summary, summarize
from mariner.bench.target import Target, make_target, read_body
from mariner.errors import ConfigurationError

__all__ = ["run"]

_MOST_TARGETS = 8


def run(options: argparse.Namespace) -> int:
    """Measures and shows; returns the exit status: 0 if every request was answered with a status below 400.

    Args:
        options: the flags, see :mod:`mariner.bench.arguments`.

    Raises:
        ConfigurationError: it cannot be measured.
    """
    body = read_body(options.data, options.file)
    urls = list(dict.fromkeys(options.urls))
    if len(urls) > _MOST_TARGETS:
        raise ConfigurationError(f"{len(urls)} URLs are too many to compare; the most is {_MOST_TARGETS}.")
    targets = [make_target(url, method=options.method, headers=options.header, body=body) for url in urls]
    console = Console(stderr=options.json == "-", highlight=False)
    limit = None if options.slo is None else options.slo / 1e3
    outcomes = _measure(targets, options, console)
    summaries = {url: summarize(outcome, limit) for url, outcome in outcomes.items()}
    if len(summaries) == 1:
        show(console, urls[0], summaries[urls[0]], limit)
    else:
        show_comparison(console, summaries, limit)
    if options.json:
        _write_json(options, summaries)
    return 0 if all(summary.flawless for summary in summaries.values()) else 1


def _measure(targets: list[Target], options: argparse.Namespace, console: Console) -> dict[str, Outcomes]:
    """Each target in turn; every second round backwards, so that a drift of the machine cancels out."""
    pace = Pace(options.connections, options.time, options.requests, options.rate, options.timeout)
    rounds = options.rounds or (1 if len(targets) == 1 else 2)
    outcomes = {target.url: Outcomes() for target in targets}
    tls = _tls(insecure=options.insecure)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[answers]:,} answers"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        for round_ in range(rounds):
            for target in targets if round_ % 2 == 0 else targets[::-1]:
                title = target.url if rounds == 1 else f"round {round_ + 1}: {target.url}"
                if options.warm_up:
                    warm_up = replace(pace, seconds=options.warm_up, requests=None)
                    _run_once(target, warm_up, tls, progress, f"warm-up: {target.url}")
                outcomes[target.url].add(_run_once(target, pace, tls, progress, title))
    return outcomes


def _run_once(target: Target, pace: Pace, tls: ssl.SSLContext, progress: Progress, title: str) -> Outcomes:
    task = progress.add_task(title, total=pace.requests or pace.seconds, answers=0)

    def on_progress(answers: int, failures: int) -> None:
        done = answers + failures if pace.requests else progress.tasks[-1].elapsed or 0.0
        progress.update(task, completed=done, answers=answers)

    async def send() -> Outcomes:
        return await Load(target, pace, tls=tls, on_progress=on_progress).run()

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(send())
    finally:
        progress.remove_task(task)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop  # noqa: PLC0415 - not every platform has it
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _tls(*, insecure: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _write_json(options: argparse.Namespace, summaries: dict[str, Summary]) -> None:
    names = ("connections", "time", "requests", "rate", "slo", "timeout")
    document = {
        "settings": {name: getattr(options, name) for name in names},
        "targets": {url: summary.as_dict() for url, summary in summaries.items()},
    }
    text = json.dumps(document, indent=2) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
        return
    try:
        Path(options.json).write_text(text)
    except OSError as error:
        raise ConfigurationError(f"The figures cannot be written to {options.json}: {error.strerror}.") from error
