"""The list of what commands, workers and logs were promised, and where each item is proved.

Items are numbered as in the life-cycle checklist; a test of this file carries the numbers of its items in its name.
ELSEWHERE names the tests of other files that prove an item, alone or together with those here; LATER says why an item
is not proved yet. Item 50 lacks the lines of gRPC calls, and item 41 was seen on machines without GPUs only.

====  =======================================================================================================
   1  version; contradicting flags
   2  starting returns at once, output goes on, ``Model server started.`` stands alone
   3  the pid file; a second start
   4  a stale pid file, one of an unrelated process
   5  stopping, twice
   6  ``--stop --foreground`` waits for the end
   7  stopping deletes ``key_file.json``
   8  ``--foreground`` blocks until the end
   9  missing directories and files
  10  two temporary directories, two servers
  11  the lines of the listeners
  12  a port that is taken
  13  ``--models``: files, names, ``all``
  14  a broken archive does not stop the start
  15  workers of a model without settings
  16  worker ids
  17  process ids of workers
  18  what handlers print
  19  a handler that takes too long
  20  a handler that ends its process
  21  a model that never loads
  22  errors while loading
  23  registering such a model without waiting
  24  a process that never says that it started
  25  ``/ping`` while models load
  26  scaling up and down
  27  scaling to none and back
  28  when a batch is dispatched
  29  two workers run side by side
  30  order, and whose answer is whose
  31  a result of the wrong length
  32  ``PredictionException``
  33  describing shares no batch
  34  the bound of the queue
  35  continuous batching
  36  a client that leaves continuous batching
  37  sequence batching
  38  sequences in continuous batches
  39  asynchronous handlers
  40  tensor parallel ranks
  41  devices of workers
  42  snapshots of start and stop
  43  snapshots of changes
  44  restoring the newest
  45  restoring a given one
  46  archives that are gone, or junk
  47  snapshots without the newer keys
  48  where log files are
  49  the five log files
  50  access lines
  51  what SIGTERM leaves behind
  52  gRPC calls during a stop
  53  workers without their server
  54  the environment of workers
  55  ``ts.launcher``
====  =======================================================================================================
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_serving import Client, put_model

from mariner.auth import Listener
from mariner.batching import make_queue
from mariner.config import VERSION
from mariner.engines import Buffer, Receiver, WorkerSpec
from mariner.errors import WorkerStartFailed
from mariner.pool import WorkerPool
from mariner.recipe import Recipe
from mariner.serve import Server
from mariner.testing import FakeClock, FakeEngine, FakeProcess, running_server, settle
from terminal import Terminal
from ts.wire import Load

TESTS = Path(__file__).parents[1]
CLI, LAUNCH, POOL = "unit/mariner/test_cli.py::", "unit/mariner/test_launch.py::", "unit/mariner/test_pool.py::"
BATCHING, SERVER = "unit/mariner/test_batching.py::", "unit/mariner/test_model_server.py::"
DEVICES, LIFE = "unit/mariner/test_devices.py::", "unit/mariner/test_lifecycle.py::"
LOGS, SNAPSHOTS = "compat/test_log_layout.py::", "compat/test_snapshots.py::"
SERVING, API = "integration/test_serving.py::", "compat/test_handler_api_"

ELSEWHERE = {
    1: (f"{CLI}test_a_wrong_command_line_exits_with_2",),
    2: (f"{CLI}test_start_returns_when_the_listeners_answer_and_the_server_goes_on",),
    3: (f"{CLI}test_a_second_server_is_refused", f"{CLI}test_of_two_starts_at_the_same_instant_one_is_refused"),
    4: (
        f"{CLI}test_a_stale_pid_file_is_removed",
        f"{LAUNCH}test_another_program_with_that_number_is_no_server_and_no_orphan",
    ),
    5: (f"{CLI}test_stop_ends_the_server_and_a_second_stop_finds_none",),
    6: (f"{LAUNCH}test_stop_does_not_claim_what_is_not_true",),
    7: (f"{LAUNCH}test_stop_waits_until_the_server_is_gone",),
    8: (f"{CLI}test_foreground_runs_in_the_same_process",),
    9: (f"{CLI}test_what_is_missing_is_named",),
    14: (f"{SERVER}test_start_up_loads_everything_in_the_store_and_survives_what_is_broken",),
    18: (f"{LOGS}test_prints_logs_and_tracebacks_of_the_handler_are_in_the_log",),
    20: (
        f"{SERVING}test_failing_handlers_give_their_documented_answers",
        f"{API}errors.py::test_a_handler_that_ends_the_process_answers_worker_died_and_the_next_request_is_served",
    ),
    21: (
        f"{POOL}test_a_model_that_cannot_load_is_retried_then_parked_and_says_so",
        f"{LIFE}test_loading_is_retried_on_the_documented_schedule",
        f"{SERVER}test_a_model_without_workers_is_healthy_and_a_parked_one_is_not",
    ),
    22: (
        f"{API}errors.py::test_44_a_failing_load_is_explained_to_who_registers_and_in_the_log",
        f"{SERVING}test_a_model_that_cannot_be_imported_is_refused_with_the_cause",
        f"{SERVER}test_a_model_that_cannot_load_is_not_left_behind",
    ),
    26: (f"{POOL}test_scaling_down_lets_the_youngest_finish_what_it_has",),
    28: (
        f"{BATCHING}test_a_full_batch_goes_at_once_and_in_order",
        f"{BATCHING}test_fill_waits_for_the_delay_of_the_oldest",
        f"{POOL}test_an_idle_worker_takes_a_partial_batch_at_once",
        f"{API}data.py::test_42_a_batch_that_does_not_fill_is_delivered_after_its_delay",
    ),
    29: (f"{POOL}test_two_idle_workers_each_get_a_batch_before_one_gets_two",),
    30: (
        f"{POOL}test_answers_are_matched_by_id_whatever_their_order",
        f"{API}context.py::test_16_request_ids_are_in_order_and_those_of_the_answers",
    ),
    31: (f"{API}answers.py::test_30_another_number_of_items_is_an_error",),
    32: (
        "unit/ts/test_service.py::test_an_exception_fails_every_job_of_the_batch",
        f"{API}errors.py::test_33_a_prediction_exception_chooses_status_and_message",
    ),
    33: (f"{BATCHING}test_a_job_that_wants_to_be_alone_shares_no_batch",),
    34: (f"{POOL}test_one_runs_n_wait_and_the_next_is_refused",),
    39: ("integration/test_async_handlers.py::test_five_requests_that_wait_for_each_other_are_answered_by_one_worker",),
    41: (
        f"{DEVICES}test_workers_go_round_all_devices_from_0",
        f"{DEVICES}test_a_model_goes_round_its_own_devices_from_the_first",
    ),
    42: (f"{SNAPSHOTS}test_a_start_and_a_stop_save_one_each", f"{SNAPSHOTS}test_with_ncs_nothing_is_saved"),
    43: (f"{SNAPSHOTS}test_each_change_of_the_models_is_saved_and_nothing_else",),
    44: (f"{SNAPSHOTS}test_the_next_start_restores_models_workers_and_settings",),
    45: (f"{SNAPSHOTS}test_a_handwritten_snapshot_in_one_line_is_served_instead_of_load_models",),
    46: (
        f"{SNAPSHOTS}test_a_snapshot_of_an_archive_that_is_gone_stops_the_start",
        f"{SNAPSHOTS}test_junk_in_the_place_of_an_archive_does_not",
    ),
    47: (f"{SNAPSHOTS}test_a_handwritten_snapshot_in_one_line_is_served_instead_of_load_models",),
    48: (f"{LOGS}test_the_five_files_are_where_the_variables_say",),
    49: (f"{LOGS}test_the_five_files_are_where_the_variables_say",),
    50: (f"{LOGS}test_the_access_log_has_a_line_for_each_answer",),
    51: (f"{SERVING}test_the_server_leaves_nothing_behind",),
    53: (
        "integration/test_orphans.py::test_a_worker_in_the_midst_of_a_call_dies_with_its_server",
        "integration/test_warm_start.py::test_a_server_that_is_killed_takes_all_of_them_with_it",
    ),
    54: (f"{API}context.py::test_the_environment_is_that_of_the_server_and_what_handlers_look_for",),
    55: (
        "unit/ts/test_launcher.py::test_a_real_server_is_started_and_stopped",
        "unit/ts/test_launcher.py::test_a_model_is_registered_with_one_worker",
    ),
}

LATER = {
    35: "continuous batching is a batching policy that does not exist yet",
    36: "continuous batching is a batching policy that does not exist yet",
    37: "sequence batching is a batching policy that does not exist yet",
    38: "sequence batching is a batching policy that does not exist yet",
    40: "workers of several ranks do not exist yet",
    52: "there is no gRPC listener yet",
}

PID = "import os\ndef handle(data, context):\n    return data and [str(os.getpid()) for _ in data]\n"
FAILS = "def handle(data, context):\n    raise OSError('no such disk')\n"
NO_SETTINGS = ""


# -- the commands, with one server from its start to its end --------------------------------------------------------


class Observed:
    """What one server showed from its start to its end."""

    def __init__(self, place: Path) -> None:
        for name in ("plain", "other"):
            put_model(place / "store", name, PID, NO_SETTINGS)
        (place / "store" / "broken.mar").write_bytes(b"no archive")
        (place / "all").mkdir()
        put_model(place / "all", "alone", PID, NO_SETTINGS)
        with Terminal(place) as terminal:
            (place / "config.properties").write_text(f"{terminal.addresses}log_level=debug\nwarm_start=false\n")
            self.version = terminal.run("torchserve --version")
            terminal.run("torchserve --start --wait --model-store store --models plain b=other broken.mar")
            self.started = terminal.output
            pid_file = place / "tmp" / ".model_server.pid"
            server = psutil.Process(int(pid_file.read_text()))
            self.models = {row["modelName"] for row in terminal.ask("GET", "/models", port="8081").json["models"]}
            self.descriptions = {
                name: terminal.ask("GET", f"/models/{name}", port="8081").json[0] for name in sorted(self.models)
            }
            self.pids = {name: int(terminal.ask("GET", f"/predictions/{name}").body) for name in sorted(self.models)}
            self.second = self.start_second(terminal, place)
            self.conflict = self.start_on_taken_port(terminal, place)
            self.scaled = [self.scale(terminal, name, *bounds) for name, bounds in SCALING]
            self.refused = terminal.ask("GET", "/predictions/b")
            self.scale(terminal, "b", 1, 1)
            self.served_again = terminal.ask("GET", "/predictions/b").status
            workers = server.children(recursive=True)
            self.workers_before = len(workers)
            terminal.run("torchserve --stop --foreground")
            self.left_running = [process for process in [server, *workers] if is_running(process)]
            self.left_behind = sorted(path.name for path in (place / "tmp").iterdir())
            self.snapshots = [path.name.partition("-")[2] for path in sorted((place / "logs" / "config").glob("*.cfg"))]
            self.log = (place / "logs" / "ts_log.log").read_text()

    def start_second(self, terminal: Terminal, place: Path) -> list[str]:
        """Models of a server that is started beside the first with a temporary directory of its own."""
        (place / "second").mkdir()
        (place / "second.properties").write_text(
            "".join(f"{kind}_address=http://127.0.0.1:0\n" for kind in ("inference", "management", "metrics"))
        )
        output = terminal.run(
            "export TMPDIR=$PWD/second LOG_LOCATION=$PWD/second/logs METRICS_LOCATION=$PWD/second/logs\n"
            "torchserve --start --wait --ncs --ts-config second.properties --model-store all --models ALL\n"
            "torchserve --stop"
        )
        return re.findall(r"Model (\w+) loaded\.|(TorchServe has stopped\.)", output)

    def start_on_taken_port(self, terminal: Terminal, place: Path) -> tuple[int, str]:
        (place / "third").mkdir()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            (place / "third.properties").write_text(f"inference_address=http://127.0.0.1:{port}\n")
            done = subprocess.run(
                ["torchserve", "--start", "--ncs", "--ts-config", "third.properties", "--model-store", "store"],
                cwd=place,
                env={**terminal.environment, "TMPDIR": str(place / "third"), "LOG_LOCATION": str(place / "third")},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        return done.returncode, done.stdout

    def scale(self, terminal: Terminal, name: str, least: int, most: int) -> list[int]:
        """Ids of the workers after scaling, in the order of the description."""
        path = f"/models/{name}?min_worker={least}&max_worker={most}&synchronous=true"
        assert terminal.ask("PUT", path, port="8081").status == 200
        (description,) = terminal.ask("GET", f"/models/{name}", port="8081").json
        return [int(worker["id"]) for worker in description["workers"]]


SCALING = (("plain", (3, 3)), ("plain", (1, 3)), ("plain", (1, 1)), ("plain", (2, 2)), ("b", (0, 0)))


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Observed:
    return Observed(tmp_path_factory.mktemp("life"))


pytestmark = pytest.mark.slow


def in_order(text: str, *expected: str) -> bool:
    """Whether lines that match the patterns follow each other in a text."""
    lines = iter(text.splitlines())
    return all(any(re.search(pattern, line) for line in lines) for pattern in expected)


def test_1_the_version_is_that_of_torchserve_and_ours(observed: Observed) -> None:
    assert observed.version == f"TorchServe Version is {VERSION}\n"
    assert VERSION.startswith("0.12.0")


def test_11_the_listeners_are_named_in_order_before_the_server_has_started(observed: Observed) -> None:
    address = r" API bind to: http://127\.0\.0\.1:\d+$"
    kinds = [f"{kind}{address}" for kind in ("Inference", "Management", "Metrics")]
    assert in_order(observed.started, *kinds, r"^Model server started\.$")


def test_the_lines_about_models_are_those_that_scripts_wait_for(observed: Observed) -> None:
    assert in_order(
        observed.started,
        "Loading initial models: plain$",
        "Adding new version 1.0 for model plain$",
        "Setting default version to 1.0 for model plain$",
        r"Model plain loaded\.$",
        "updateModel: plain, count: 1$",
        r"W-9000-plain_1\.0: Torch worker started\.$",
        "State change loading -> ready$",
    )


def test_10_another_temporary_directory_allows_another_server(observed: Observed) -> None:
    assert observed.second[-1] == ("", "TorchServe has stopped.")


def test_12_a_port_that_is_taken_is_named_and_nothing_runs(observed: Observed) -> None:
    status, output = observed.conflict
    assert status == 1
    assert "Failed to bind to address: http://127.0.0.1:" in output
    assert "Model server started." not in output


def test_13_models_are_loaded_by_file_by_name_and_all_of_them(observed: Observed) -> None:
    assert observed.models == {"plain", "b"}
    assert observed.second[0] == ("alone", "")


def test_14_a_broken_archive_is_reported_and_the_server_starts(observed: Observed) -> None:
    assert "Failed to load model: broken.mar" in observed.started
    assert "\nModel server started.\n" in observed.started


def test_15_a_model_without_settings_gets_one_worker_where_there_is_no_gpu(observed: Observed) -> None:
    counts = [len(description["workers"]) for description in observed.descriptions.values()]
    assert counts == [1, 1]


def test_16_worker_ids_start_at_9000_and_are_used_once(observed: Observed) -> None:
    ids = [int(row["workers"][0]["id"]) for row in observed.descriptions.values()]
    assert sorted(ids) == [9000, 9001]
    (plain,) = (int(worker["id"]) for worker in observed.descriptions["plain"]["workers"])
    assert observed.scaled[0] == [plain, 9002, 9003]
    assert observed.scaled[3] == [plain, 9004]


def test_17_the_pid_that_is_described_is_the_one_the_handler_sees(observed: Observed) -> None:
    described = {name: int(row["workers"][0]["pid"]) for name, row in observed.descriptions.items()}
    assert described == observed.pids


def test_26_scaling_adds_what_is_missing_and_removes_the_newest(observed: Observed) -> None:
    three, still_three, one, *_ = observed.scaled
    assert len(three) == 3
    assert still_three == three
    assert one == three[:1]


def test_27_without_workers_requests_are_refused_and_with_new_ones_served(observed: Observed) -> None:
    assert observed.scaled[-1] == []
    assert (observed.refused.status, observed.refused.json["type"]) == (503, "ServiceUnavailableException")
    assert 'Model "b" has no worker to serve inference request.' in observed.refused.json["message"]
    assert observed.served_again == 200


def test_6_51_after_stopping_in_the_foreground_nothing_is_left(observed: Observed) -> None:
    assert observed.workers_before == 3
    assert observed.left_running == []
    assert observed.left_behind == ["terminal.log"]
    assert (observed.snapshots[0], observed.snapshots[-1]) == ("startup.cfg", "shutdown.cfg")
    assert observed.log.endswith("Torchserve stopped.\n")


# -- workers that fail ----------------------------------------------------------------------------------------------

STUCK = """
import signal
def handle(data, context):
    if data is None:
        return None
    if data[0]["body"] == "wait":
        signal.pause()
    return ["fine"]
"""
WAITS_TO_LOAD = """
from pathlib import Path
def handle(data, context):
    return Path("gate").read_text() and None if data is None else ["open"]
"""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    put_model(tmp_path / "store", "stuck", STUCK, "minWorkers: 1\nmaxWorkers: 1\nresponseTimeout: 1\n")
    put_model(tmp_path / "store", "fails", FAILS)
    put_model(tmp_path / "store", "gated", WAITS_TO_LOAD, "minWorkers: 1\nmaxWorkers: 1\n")
    os.mkfifo(tmp_path / "store" / "gated" / "gate")
    settings: dict[str, Any] = {"model_store": tmp_path / "store", "temp_dir": tmp_path, "warm_start": False}
    async with running_server(**settings) as server:
        yield server


async def ask(
    server: Server, method: str, path: str, body: bytes = b"", kind: Listener = Listener.MANAGEMENT, **headers: str
) -> tuple[int, Any]:
    client = await Client.connect(server, kind)
    try:
        answer = await client.ask(method, path, body, **headers)
    finally:
        await client.close()
    return answer.status, answer.body if kind is Listener.INFERENCE and answer.status == 200 else answer.json


async def test_19_a_handler_that_takes_too_long_is_told_and_the_next_request_works(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await server.models.register("stuck")
    caplog.clear()
    text = {"kind": Listener.INFERENCE, "Content_Type": "text/plain"}
    status, body = await ask(server, "POST", "/predictions/stuck", b"wait", **text)
    assert (status, body["message"]) == (500, "Worker died.")
    assert await ask(server, "POST", "/predictions/stuck", b"go on", **text) == (200, b"fine")
    log = "\n".join(caplog.messages)
    assert in_order(
        log,
        r"gave no answer within 1 s \(responseTimeout\)\. Number or consecutive unsuccessful inference 1$",
        f"died while it ran request {body['request_id']}",
        r"Worker disconnected\. Auto recovery start timestamp: \d+\. Retry worker: 9000 in 0 seconds\.$",
        "Torch worker started",
        "Auto recovery succeeded, reset recoveryStartTS$",
    ), log


async def test_23_a_model_that_cannot_load_stays_where_nobody_waited(server: Server) -> None:
    answer = await ask(server, "POST", "/models?url=fails&initial_workers=1&synchronous=false")
    assert answer[0] == 202
    _, listed = await ask(server, "GET", "/models")
    assert [row["modelName"] for row in listed["models"]] == ["fails"]


async def test_25_ping_is_healthy_while_a_model_loads(server: Server, tmp_path: Path) -> None:
    await server.models.register("gated", synchronous=False)
    status, body = await ask(server, "GET", "/ping", kind=Listener.INFERENCE)
    assert (status, json.loads(body)) == (200, {"status": "Healthy"})
    (version,) = server.models.registry
    assert not version.pool.ready
    await asyncio.to_thread((tmp_path / "store" / "gated" / "gate").write_text, "open")
    await version.pool.settle()
    assert await ask(server, "GET", "/predictions/gated", kind=Listener.INFERENCE) == (200, b"open")


class SilentProcess(FakeProcess):
    """Takes what it is sent and never says a word."""

    def send(self, buffers: Sequence[Buffer]) -> None:
        self.frames += 1


class SilentEngine(FakeEngine):
    async def start(self, spec: WorkerSpec, receiver: Receiver) -> FakeProcess:
        self.processes.append(SilentProcess(self, spec, receiver, 1 + len(self.processes)))
        return self.processes[-1]


async def test_24_a_process_that_says_nothing_for_two_minutes_is_ended() -> None:
    clock, engine = FakeClock(), SilentEngine()
    recipe = Recipe(
        model="m",
        version="1.0",
        spec=lambda id_: WorkerSpec(f"W-{id_}-m_1.0", "python", {}),
        load=lambda _: Load("m", "/models/m", "handler.py"),
        next_id=iter(range(9000, 9001)).__next__,
        response_timeout=10.0,
        startup_timeout=20.0,
        retry_window=300.0,
    )
    queue = make_queue("eager", 'Model "m"', batch_size=1, max_delay=0.1, capacity=1, clock=clock.time)
    pool = WorkerPool(recipe, engine=engine, queue=queue, clock=clock)
    pool.scale(1, 1)
    await clock.advance(119.9)
    assert engine.processes[0].alive
    await clock.advance(0.2)
    assert engine.processes[0].killed
    await settle()
    with pytest.raises(WorkerStartFailed) as failed:
        await pool.settle()
    assert failed.value.hint == "its process said nothing for 120 s"
    await pool.drain(0.0)


# -- the list itself ------------------------------------------------------------------------------------------------

ITEMS = re.findall(r"^ *(\d+)  ", __doc__ or "", flags=re.MULTILINE)


def names_in(path: Path) -> list[str]:
    return re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), flags=re.MULTILINE)


def proved_here() -> Iterator[int]:
    for name in names_in(Path(__file__)):
        if found := re.match(r"test_((?:\d+_)+)", name):
            yield from map(int, found[1].strip("_").split("_"))


def test_every_item_is_proved_or_says_why_not() -> None:
    assert [int(item) for item in ITEMS] == list(range(1, 56))
    proved = {*proved_here(), *ELSEWHERE}
    assert sorted({*proved, *LATER}) == list(range(1, 56))
    assert proved & set(LATER) == set()


@pytest.mark.parametrize("item", ELSEWHERE)
def test_the_tests_of_other_files_exist(item: int) -> None:
    for reference in ELSEWHERE[item]:
        path, _, name = reference.partition("::")
        assert name in names_in(TESTS / path), reference


def test_the_log_in_json_is_complete(tmp_path: Path) -> None:
    put_model(tmp_path / "store", "fails", FAILS)
    with Terminal(tmp_path) as terminal:
        (tmp_path / "config.properties").write_text(f"{terminal.addresses}log_format=json\nwarm_start=false\n")
        output = terminal.run(
            "torchserve --start --wait --ncs --model-store store --models fails || true\n"
            "torchserve --stop --foreground\n"
        )
    lines = [line for line in output.splitlines() if not line.startswith("Waiting for")]
    events = [json.loads(line) for line in lines]
    assert all({"time", "level", "logger", "message"} <= set(event) for event in events)
    assert "Model server started." in [event["message"] for event in events]
    printed = [event for event in events if event["logger"] == "MODEL_LOG"]
    assert {event["worker"] for event in printed} == {"W-9000-fails_1.0"}
    assert any("OSError: no such disk" in event["message"] for event in printed)
