"""The commands of the oracle.

python -m oracle record [SCENARIO ...]   ask TorchServe and write the golden answers
python -m oracle replay [SCENARIO ...]   ask Mariner and show what differs from what is expected
python -m oracle ask SCENARIO URL ...    ask a server that runs already: inference, management, metrics
python -m oracle page                    print the page of docs/reference
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from oracle import golden, page
from oracle.answer import Answer
from oracle.exchange import Scenario
from oracle.models import pack
from oracle.runner import listeners, play
from oracle.scenarios import SCENARIOS
from oracle.servers import StartFailed, Target, started
from oracle.verdict import problem

TORCHSERVE = "torchserve"
LOG_WIDTH = 140  # columns of tables that go to a file or a pipe


def main() -> int:
    options = _options()
    # So that servers are stopped also when the run is ended from outside.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    if options.command == "page":
        sys.stdout.write(page.render())
        return 0
    scenarios = [scenario for scenario in SCENARIOS if not options.scenarios or scenario.name in options.scenarios]
    try:
        if options.command == "record":
            return _record(scenarios, console)
        if options.command == "ask":
            return _ask(scenarios[0], options.urls, console)
        return _replay(scenarios, console)
    except StartFailed as error:
        console.print(str(error), style="red", markup=False)
        return 1


def _record(scenarios: Sequence[Scenario], console: Console) -> int:
    from environments import environment_bin, installed_version, make_environment  # noqa: PLC0415 - benchmarks/

    java = f"{home}/bin/java" if (home := os.environ.get("JAVA_HOME")) else "java"
    if shutil.which(java) is None:
        console.print(
            f"TorchServe needs Java 17, and there is no {java}. On Debian and Ubuntu: apt install "
            "openjdk-17-jre-headless. The tests need neither: they replay the answers in tests/compat/oracle/golden."
        )
        return 1
    make_environment(TORCHSERVE, console)
    command = environment_bin(TORCHSERVE) / "torchserve"
    version = installed_version(command.parent / "python", TORCHSERVE)
    table = Table("scenario", "exchange", "was", "is", title=f"What changed in TorchServe {version}'s answers")
    for scenario, answers in _play(scenarios, command, console):
        for row in golden.changes(golden.read(scenario.name), answers):
            table.add_row(scenario.name, *row)
        golden.write(scenario, answers, version)
    console.print(table if table.row_count else "Nothing changed.")
    return 0


def _replay(scenarios: Sequence[Scenario], console: Console) -> int:
    problems = 0
    for scenario, answers in _play(scenarios, Path(sys.executable).parent / "torchserve", console):
        problems += _show(scenario, answers, console)
    return int(problems > 0)


def _ask(scenario: Scenario, urls: Sequence[str], console: Console) -> int:
    with tempfile.TemporaryDirectory(prefix="oracle-") as temporary:
        pack(Path(temporary))
        hosts = listeners(*urls)
        places = {f"{listener.value} address": host for listener, host in hosts.items()}
        target = Target(hosts, Path(temporary), places=places | {"archives": temporary})
        answers = {exchange.name: some for exchange, some in play(scenario, target)}
    return int(_show(scenario, answers, console) > 0)


def _play(
    scenarios: Sequence[Scenario], command: Path, console: Console
) -> Iterator[tuple[Scenario, dict[str, list[Answer]]]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # A short path, because servers put Unix sockets below it.
    with tempfile.TemporaryDirectory(prefix="oracle-") as temporary, Progress(*columns, console=console) as progress:
        archives = Path(temporary) / "archives"
        archives.mkdir()
        pack(archives)
        for scenario in scenarios:
            task = progress.add_task(f"{scenario.name}: starting", total=len(scenario.exchanges))
            folder = Path(temporary) / scenario.name
            folder.mkdir()
            answers = {}
            with started(command, scenario, archives, folder) as target:
                for exchange, some in play(scenario, target):
                    answers[exchange.name] = some
                    progress.update(task, advance=1, description=f"{scenario.name}: {exchange.name}"[:50])
            progress.update(task, description=scenario.name)
            yield scenario, answers


def _show(scenario: Scenario, answers: golden.Answers, console: Console) -> int:
    recorded = golden.read(scenario.name)
    count = 0
    for exchange in scenario.exchanges:
        found = problem(exchange, recorded[exchange.name], answers[exchange.name])
        if found:
            count += 1
            console.print(f"\n{scenario.name}: {exchange.name}  [{exchange.request_line}]", style="bold", markup=False)
            console.print(found, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{scenario.name}: {len(scenario.exchanges)} exchanges, {count} not as expected")
    return count


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="oracle", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    names = [scenario.name for scenario in SCENARIOS]
    for command in ("record", "replay"):
        commands.add_parser(command).add_argument("scenarios", nargs="*", metavar="SCENARIO")
    ask = commands.add_parser("ask")
    ask.add_argument("scenarios", nargs=1, metavar="SCENARIO")
    ask.add_argument("urls", nargs=3, metavar="URL")
    commands.add_parser("page")
    options = parser.parse_args()
    if unknown := [name for name in getattr(options, "scenarios", ()) if name not in names]:
        parser.error(f"there is no scenario {', '.join(unknown)}; there are {', '.join(names)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
