"""The whole way of a model: train, package, start the server, send images, look at the metrics, stop.

``python examples/digits/demo.py`` does all of it; with ``--keep`` the server goes on running.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import torch
from client import Answer, UnexpectedAnswer, classify
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from train import EPOCHS, accuracy, load_parts, save_images, train

HERE = Path(__file__).parent
BUILD = Path("build/digits")
REQUIRED_ACCURACY = 0.97
CLIENTS = 8
ROWS = 12  # of the table of answers
STEP_SECONDS = 180  # for each command; a cold disk reads PyTorch slowly
METRICS = (
    "ts_inference_requests_total",
    "ts_inference_latency_microseconds",
    "ts_queue_latency_microseconds",
    "HandlerTime",
)


class DemoFailed(Exception):
    """A step did not do what it should; the message says what to do next."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080, help="inference port; the next two serve management, metrics")
    parser.add_argument("--keep", action="store_true", help="leave the server running")
    arguments = parser.parse_args()
    console = Console()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the server too
    try:
        check_ports(arguments.port)
        images = prepare(console)
        start_server(console, arguments.port)
        served = False
        try:
            measure(console, images, arguments.port)
            served = True
        finally:
            if not (served and arguments.keep):
                stop_server(console, arguments.port)
    except DemoFailed as failure:
        return complain(console, str(failure))
    except subprocess.TimeoutExpired as late:
        return complain(console, f"{Path(late.cmd[0]).name} took over {STEP_SECONDS} s; its output is in {BUILD}.")
    except KeyboardInterrupt:
        console.print("\nInterrupted.")
        return 130
    if arguments.keep:
        say_how_to_go_on(console, images[0], arguments.port)
    return 0


def complain(console: Console, message: str) -> int:
    """Prints what went wrong; returns the exit code."""
    console.print("\n[bold red]The demo failed:[/]", end=" ")
    console.print(message, markup=False, highlight=False, soft_wrap=True)
    return 1


def check_ports(first: int) -> None:
    """Looks before the work begins whether the server will be able to listen."""
    if not 1 <= first <= 65533:
        raise DemoFailed(f"PORT={first} leaves no room for three ports; choose one from 1024 to 65533.")
    for port in listeners(first):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closed connection may linger there
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise DemoFailed(
                    f"port {port} cannot be used ({error.strerror}). Stop the program that uses it "
                    f"(a server of ours: {command('torchserve')} --stop), or choose three other ports, "
                    "for instance PORT=9080."
                ) from error


def listeners(first: int) -> range:
    """The ports for inference, management and metrics."""
    return range(first, first + 3)


def prepare(console: Console) -> list[Path]:
    """Trains the network and packages it; returns the images that training has not seen."""
    shutil.rmtree(BUILD, ignore_errors=True)
    (BUILD / "model-store").mkdir(parents=True)
    seen, held_out = load_parts()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"Training on {len(seen.labels)} digits, epochs", total=EPOCHS)
        network = train(seen, on_epoch=lambda _: progress.advance(task))
    share = accuracy(network, held_out)
    console.print(f"Held-out accuracy before serving: {share:.2%} of {len(held_out.labels)} digits", highlight=False)
    if share < REQUIRED_ACCURACY:
        raise DemoFailed(f"training reached {share:.2%}, less than {REQUIRED_ACCURACY:.0%}.")
    torch.save(network.state_dict(), BUILD / "digits.pth")
    run_step(
        [
            command("torch-model-archiver"),
            *("--model-name", "digits", "--version", "1.0"),
            *("--model-file", str(HERE / "model.py")),
            *("--serialized-file", str(BUILD / "digits.pth")),
            *("--handler", str(HERE / "handler.py")),
            *("--extra-files", str(HERE / "index_to_name.json")),
            *("--config-file", str(HERE / "model-config.yaml")),
            *("--export-path", str(BUILD / "model-store")),
            "--force",
        ],
        cwd=Path.cwd(),
    )
    archive = BUILD / "model-store" / "digits.mar"
    console.print(f"Packaged {archive} ({archive.stat().st_size / 1024:.0f} KiB)", highlight=False)
    return save_images(held_out, BUILD / "images")


def start_server(console: Console, first: int) -> None:
    """Starts the server in the background and returns when the model is ready."""
    inference, management, metrics = listeners(first)
    (BUILD / "config.properties").write_text(
        f"inference_address=http://127.0.0.1:{inference}\n"
        f"management_address=http://127.0.0.1:{management}\n"
        f"metrics_address=http://127.0.0.1:{metrics}\n"
    )
    began = time.perf_counter()
    try:
        run_step(
            [
                *(command("torchserve"), "--start", "--wait", "--ncs"),
                *("--model-store", "model-store", "--models", "digits=digits.mar", "--ts-config", "config.properties"),
            ],
            cwd=BUILD,
            log=BUILD / "server.log",
        )
    except (KeyboardInterrupt, subprocess.TimeoutExpired):  # it may have come far enough to go on without us
        stop_server(console, first)
        raise
    seconds = time.perf_counter() - began
    console.print(f"Server and model ready after {seconds:.1f} s, log in {BUILD / 'server.log'}", highlight=False)


def measure(console: Console, images: Sequence[Path], first: int) -> None:
    """Sends every held-out image once and shows what came back."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(f"Sending PNG files from {CLIENTS} clients", total=len(images))
            began = time.perf_counter()
            answers = classify(images, first, CLIENTS, on_answer=lambda _: progress.advance(task))
            seconds = time.perf_counter() - began
    except (UnexpectedAnswer, OSError, HTTPException) as error:
        raise DemoFailed(f"{error}. The server's log is in {BUILD / 'server.log'}.") from error
    misses = [answer for answer in answers if answer.digit != true_digit(answer.path)]
    console.print(table_of(answers, misses))
    share = 1 - len(misses) / len(answers)
    median = statistics.median(answer.milliseconds for answer in answers)
    console.print(
        f"Held-out accuracy through the server: [bold]{share:.2%}[/] ({len(misses)} of {len(answers)} missed)\n"
        f"{len(answers) / seconds:.0f} requests per second with {CLIENTS} clients, median {median:.1f} ms; "
        "the clients share the processor with the server",
        highlight=False,
        soft_wrap=True,
    )
    show_metrics(console, first + 2)
    if share < REQUIRED_ACCURACY:
        raise DemoFailed(f"the server got {share:.2%} of the digits right, less than {REQUIRED_ACCURACY:.0%}.")


def table_of(answers: Sequence[Answer], misses: Sequence[Answer]) -> Table:
    """A dozen answers: the misses, then some of the others, evenly spaced."""
    others = [answer for answer in answers if answer not in misses]
    shown = [*misses, *others[:: len(others) // ROWS + 1]][:ROWS]
    table = Table(title=f"{len(shown)} of {len(answers)} answers, misses first")
    for heading in ("image", "true digit", "predicted", "probability", "ms"):
        table.add_column(heading, justify="right")
    for answer in shown:
        truth = true_digit(answer.path)
        table.add_row(
            answer.path.name,
            str(truth),
            str(answer.digit),
            f"{answer.probability:.4f}",
            f"{answer.milliseconds:.1f}",
            style="" if answer.digit == truth else "bold red",
        )
    return table


def true_digit(image: Path) -> int:
    """The digit that the name of the file tells: ``012-7.png`` is a 7."""
    return int(image.stem.rpartition("-")[2])


def show_metrics(console: Console, port: int) -> None:
    """Prints what ``/metrics`` says about the requests just sent."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        lines = response.read().decode().splitlines()
    except (OSError, HTTPException) as error:
        raise DemoFailed(f"/metrics on port {port} does not answer: {error}.") from error
    finally:
        connection.close()
    chosen = [line for line in lines if line.startswith(METRICS)]
    if response.status != 200 or not chosen:
        raise DemoFailed(f"/metrics on port {port} has status {response.status} and none of {', '.join(METRICS)}.")
    console.print(f"\nFrom http://127.0.0.1:{port}/metrics", highlight=False)
    for line in chosen:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def stop_server(console: Console, first: int) -> None:
    """Stops the server and makes sure that it is gone."""
    run_step([command("torchserve"), "--stop"], cwd=BUILD, log=BUILD / "server.log")
    for port in listeners(first):
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                raise DemoFailed(f"the server was told to stop, but something still listens on port {port}.")
    console.print("\nServer stopped", highlight=False)


def say_how_to_go_on(console: Console, image: Path, port: int) -> None:
    """Prints the commands to try next."""
    lines = (
        f"\nThe server goes on running. A handwritten {true_digit(image)} to send:",
        f"  curl http://127.0.0.1:{port}/predictions/digits -T {image}",
        f"  curl http://127.0.0.1:{port + 1}/models/digits",
        "Stop it:",
        f"  {command('torchserve')} --stop",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def command(name: str) -> str:
    """Path of a command installed beside this Python, as short as can be typed."""
    path = Path(sysconfig.get_path("scripts")) / name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def run_step(words: Sequence[str], *, cwd: Path, log: Path | None = None) -> None:
    """Runs a command; its output goes to ``log``, where a server it leaves behind may go on writing."""
    program = Path.cwd() / words[0]
    if not program.exists():
        raise DemoFailed(f"{words[0]} is not installed; run make setup.")
    output = log or BUILD / f"{program.name}.log"
    with output.open("ab") as file:
        done = subprocess.run(
            [str(program), *words[1:]],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=STEP_SECONDS,
            check=False,
        )
    if done.returncode:
        tail = "\n".join(output.read_text(errors="replace").splitlines()[-15:])
        raise DemoFailed(f"{program.name} ended with exit code {done.returncode}. The end of {output}:\n{tail}")


if __name__ == "__main__":
    sys.exit(main())
