"""The model config as the reference describes it, item by item.

A test carries the number of its item in its name. ELSEWHERE names tests of other files that prove one; LATER says why
an item is not proved yet. Where the answer is another than TorchServe's, the test says so.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from checklists import proved_in, require_tests
from served_models import ask
from test_serving import put_model

from mariner.auth import Listener
from mariner.config import Config
from mariner.devices import Accelerators, Vendor
from mariner.errors import InvalidArchive, NoWorker, QueueFull, TooManySequences
from mariner.jobs import Outcome, Part, Reply, Request, pack_headers
from mariner.metrics import Metrics
from mariner.model_server import ModelServer
from mariner.model_settings import RegisterOptions
from mariner.testing import FakeClock, FakeEngine, running_server, settle

TORCH = "unit/ts/torch_handler/"

ELSEWHERE = {
    29: (
        "unit/mariner/test_lifecycle.py::test_a_window_of_zero_never_restarts",
        "unit/mariner/test_model_server.py::test_a_model_without_workers_is_healthy_and_a_parked_one_is_not",
    ),
    30: ("integration/test_deadlines.py::test_nobody_waits_longer_than_he_said",),
    36: ("integration/test_async_handlers.py::test_five_requests_that_wait_for_each_other_are_answered_by_one_worker",),
    37: ("integration/test_model_dependencies.py::test_models_with_virtual_environments_run_in_their_own",),
    39: (
        f"{TORCH}test_compilation.py::test_a_configuration_asks_for_compilation",
        f"{TORCH}test_compilation.py::test_an_unknown_backend_is_logged_and_not_used",
    ),
    41: (f"{TORCH}test_base_handler.py::test_steps_are_timed_if_the_model_is_profiled",),
    42: ("compat/test_snapshots.py::test_the_next_start_restores_models_workers_and_settings",),
}

LATER = {
    20: "workers of several ranks do not exist yet",
    25: "workers do not share GPUs in groups yet",
    26: "workers of several ranks do not exist yet",
}


class Bench:
    """A server whose workers are fake and whose machine has as many GPUs as a test wants."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.engine = FakeEngine(lambda requests: [b"done" for _ in requests])
        self.clock = FakeClock()

    async def describe(
        self, config: str = "", options: RegisterOptions | None = None, *, gpus: int = 0, start: bool = False,
        **settings: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Registers a model with that model config and describes it."""
        self.server = self.make(config, gpus, **settings)
        if start:
            await self.server.load_initial_models(["m"])
        else:
            await self.server.register("m", options)
        (description,) = await self.server.describe("m", None)
        return description

    def make(self, config: str, gpus: int = 0, **settings: Any) -> ModelServer:
        store = self.place / "store"
        store.mkdir()
        put_model(store, "m", "echo", config)
        return ModelServer(
            Config(model_store=store, **settings),
            engine=self.engine,
            clock=self.clock,
            metrics=Metrics(),
            accelerators=Accelerators(Vendor.NVIDIA, tuple(map(str, range(gpus)))) if gpus else Accelerators(),
            temp_dir=self.place,
        )

    def gpus(self) -> list[int | None]:
        """Of the workers, in the order of their start."""
        return [worker.load.gpu_id for version in self.server.registry for worker in version.pool.workers]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def workers(description: dict[str, Any]) -> tuple[int, int]:
    return description["minWorkers"], description["maxWorkers"]


# -- the list --------------------------------------------------------------------------------------------------------


def test_every_item_is_proved_or_says_why_not() -> None:
    proved = proved_in(__file__) | set(ELSEWHERE)
    assert sorted(proved | set(LATER)) == list(range(1, 44))
    assert proved & set(LATER) == set()


@pytest.mark.parametrize("item", ELSEWHERE)
def test_the_tests_of_other_files_exist(item: int) -> None:
    require_tests(ELSEWHERE[item])


# -- batches, workers, timeouts --------------------------------------------------------------------------------------


async def test_01_the_batch_size_of_the_file_is_shown(bench: Bench) -> None:
    assert (await bench.describe("batchSize: 4\n"))["batchSize"] == 4


async def test_01_that_of_the_call_wins(bench: Bench) -> None:
    assert (await bench.describe("batchSize: 4\n", RegisterOptions(batch_size=2)))["batchSize"] == 2


async def test_02_a_delay_of_0_in_the_file_means_unset(bench: Bench) -> None:
    assert (await bench.describe("maxBatchDelay: 0\n"))["maxBatchDelay"] == 100


async def test_02_in_the_call_it_means_none(bench: Bench) -> None:
    description = await bench.describe("maxBatchDelay: 0\n", RegisterOptions(max_batch_delay=0.0))
    assert description["maxBatchDelay"] == 0


@pytest.mark.parametrize(
    ("config", "initial", "expected"),
    [
        pytest.param("minWorkers: 1\nmaxWorkers: 4\n", 2, (1, 4), id="03"),
        pytest.param("minWorkers: 2\n", 1, (1, 1), id="04"),
        pytest.param("minWorkers: 0\nmaxWorkers: 3\n", 2, (0, 3), id="05"),  # TorchServe: 1, 3
        pytest.param("minWorkers: 0\nmaxWorkers: 3\nautoscale: false\n", 2, (1, 3), id="05, off"),
    ],
)
async def test_03_04_05_only_a_pair_of_worker_counts_wins_over_the_call(
    bench: Bench, config: str, initial: int, expected: tuple[int, int]
) -> None:
    assert workers(await bench.describe(config, RegisterOptions(initial_workers=initial))) == expected


async def test_06_a_negative_number_of_workers_is_ignored(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    assert workers(await bench.describe("minWorkers: 1\nmaxWorkers: -1\n")) == (0, 0)
    assert warnings(caplog)[-1] == "Model m: Invalid maxWorkers: -1, should be at least 0"


async def test_07_the_timeout_of_the_call_counts_beside_a_file_without_one(bench: Bench) -> None:
    description = await bench.describe("batchSize: 1\n", RegisterOptions(response_timeout=5))  # TorchServe: 120
    assert description["responseTimeout"] == 5


@pytest.mark.parametrize(("asked", "expected"), [(None, 60), (5, 5)])  # TorchServe: 60 both times
async def test_08_the_timeout_of_the_call_counts_over_that_of_the_models_key(
    bench: Bench, asked: float | None, expected: int
) -> None:
    models = {"m": {"1.0": {"responseTimeout": 60}}}
    description = await bench.describe("", RegisterOptions(response_timeout=asked), models=models)
    assert description["responseTimeout"] == expected


SLOW = """
import time

def handle(data, context):
    if data and bytes(data[0]["body"]) == b"slow":
        time.sleep(5)
    return data and ["done"]
"""


@pytest.mark.slow
async def test_09_the_default_timeout_ends_a_worker_unless_the_file_allows_more(tmp_path: Path) -> None:
    put_model(tmp_path, "short", SLOW)
    put_model(tmp_path, "long", SLOW, "minWorkers: 1\nmaxWorkers: 1\nresponseTimeout: 60\n")
    async with running_server(
        model_store=tmp_path, load_models=("short", "long"), temp_dir=tmp_path, default_response_timeout=1.0
    ) as server:
        await server.models.wait_until_ready()
        assert (await ask(server, "POST", "/predictions/short", b"slow")).status == 500
        assert (await ask(server, "POST", "/predictions/short", b"fast")).body == b"done"
        assert (await ask(server, "POST", "/predictions/long", b"slow")).body == b"done"


LOADS_SLOWLY = """
import time

class Handler:
    def initialize(self, context):
        time.sleep(2)

    def handle(self, data, context):
        return ["done"]
"""


@pytest.mark.slow
async def test_10_loading_has_a_timeout_of_its_own(tmp_path: Path) -> None:
    put_model(tmp_path, "patient", LOADS_SLOWLY, "responseTimeout: 1\nstartupTimeout: 60\n")
    put_model(tmp_path, "hasty", LOADS_SLOWLY, "startupTimeout: 1\n")
    async with running_server(model_store=tmp_path, temp_dir=tmp_path) as server:
        answer = await ask(server, "POST", "/models?url=patient&initial_workers=1", kind=Listener.MANAGEMENT)
        assert answer.status == 200
        answer = await ask(server, "POST", "/models?url=hasty&initial_workers=1", kind=Listener.MANAGEMENT)
        late = "it did not load the model within 1 s (startupTimeout); it was at handler.py:6"
        assert (answer.status, answer.json["hint"]) == (500, late)


# -- how values are read ---------------------------------------------------------------------------------------------


async def test_11_a_text_is_no_number(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    assert (await bench.describe('batchSize: "4"\n'))["batchSize"] == 1
    assert "Model m: Invalid batchSize: 4, should be a whole number" in warnings(caplog)


async def test_12_a_text_is_no_switch(bench: Bench) -> None:
    assert (await bench.describe('useJobTicket: "true"\n'))["useJobTicket"] is False


@pytest.mark.slow
async def test_13_the_handler_sees_all_keys(tmp_path: Path) -> None:
    source = "import json\ndef handle(data, context):\n    return data and [json.dumps(context.model_yaml_config)]\n"
    config = "minWorkers: 1\nmaxWorkers: 1\nmine: {a: [1, 2]}\n"
    put_model(tmp_path, "m", source, config)
    async with running_server(model_store=tmp_path, load_models=("m",), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        answer = await ask(server, "POST", "/predictions/m")
    assert answer.json == {"minWorkers": 1, "maxWorkers": 1, "mine": {"a": [1, 2]}}


async def test_13_one_that_looks_misspelt_is_pointed_out(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    assert (await bench.describe("BatchSize: 4\nmax_workers: 2\nmine: 1\n"))["batchSize"] == 1
    assert [text for text in warnings(caplog) if "Unknown" in text] == [
        "Model m: Unknown key BatchSize is left to the handler. Did you mean batchSize?",
        "Model m: Unknown key max_workers is left to the handler. Did you mean maxWorkers?",
    ]


async def test_14_yes_is_true(bench: Bench) -> None:
    assert (await bench.describe("useJobTicket: yes\n"))["useJobTicket"] is True


@pytest.mark.slow
async def test_15_a_file_that_cannot_be_read_lets_the_model_be_registered_but_not_loaded(tmp_path: Path) -> None:
    put_model(tmp_path, "m", "echo", "batchSize: [\n")
    async with running_server(model_store=tmp_path, temp_dir=tmp_path) as server:
        assert (await ask(server, "POST", "/models?url=m", kind=Listener.MANAGEMENT)).status == 200
        (shown,) = (await ask(server, "GET", "/models/m", kind=Listener.MANAGEMENT)).json
        assert (shown["minWorkers"], shown["batchSize"]) == (0, 1)
        answer = await ask(server, "PUT", "/models/m?min_worker=1&synchronous=true", kind=Listener.MANAGEMENT)
        assert answer.status == 500


# -- devices ---------------------------------------------------------------------------------------------------------

TWO = "minWorkers: 2\nmaxWorkers: 2\n"


@pytest.mark.parametrize(
    ("config", "gpus", "shown", "used"),
    [
        ("deviceType: cpu\n", 2, "cpu", [None, None]),
        ("deviceType: gpu\n", 0, "cpu", [None, None]),
        ("deviceType: gpu\n", 2, "gpu", [0, 1]),
        ("", 2, "gpu", [0, 1]),
    ],
)
async def test_16_the_device_type_decides_where_workers_run(
    bench: Bench, config: str, gpus: int, shown: str, used: list[int | None]
) -> None:
    assert (await bench.describe(TWO + config, gpus=gpus))["deviceType"] == shown
    assert bench.gpus() == used


async def test_17_another_device_type_is_a_warning(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    assert (await bench.describe("deviceType: neuron\n", gpus=1))["deviceType"] == "gpu"
    assert "Model m: Invalid deviceType: neuron, should be one of cpu, gpu" in warnings(caplog)


@pytest.mark.parametrize(
    ("listed", "shown", "used"),
    [("[0, 9]", None, [0, 1]), ("[1]", [1], [1, 1]), ('[0, "a"]', None, [0, 1])],
    ids=["18-unknown", "18", "19"],
)
async def test_18_19_workers_use_the_listed_devices_if_all_of_them_exist(
    bench: Bench, listed: str, shown: list[int] | None, used: list[int]
) -> None:
    assert (await bench.describe(f"{TWO}deviceIds: {listed}\n", gpus=2)).get("deviceIds") == shown
    assert bench.gpus() == used


async def test_18_a_device_that_does_not_exist_is_pointed_out_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.describe(f"{TWO}deviceIds: [0, 9]\n", gpus=2)
    assert [text for text in warnings(caplog) if "deviceId" in text] == ["Invalid deviceId:9, ignore deviceIds list"]


async def test_21_torchrun_alone_makes_an_ordinary_worker(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    description = await bench.describe("torchrun: {nproc-per-node: 4}\n", RegisterOptions(initial_workers=1))
    assert (description["parallelType"], description["parallelLevel"], len(description["workers"])) == ("", 0, 1)
    assert "Model m: Without parallelType there is no effect of torchrun." in warnings(caplog)


async def test_22_a_word_that_is_no_parallel_type_is_none(bench: Bench) -> None:
    assert (await bench.describe("parallelType: xpp\n"))["parallelType"] == ""


async def test_22_a_model_that_needs_what_is_not_there_yet_is_refused(bench: Bench) -> None:
    with pytest.raises(
        InvalidArchive, match="m cannot be served by this version: its model config has parallelType: tp"
    ):
        await bench.describe("parallelType: TP\ntorchrun: {nproc-per-node: 4}\n")
    assert bench.server.list_models() == []


async def test_23_more_devices_per_worker_than_there_are_is_an_error(bench: Bench) -> None:
    with pytest.raises(InvalidArchive, match="No enough gpu devices for model:m parallelLevel:4"):
        await bench.describe("parallelType: custom\nparallelLevel: 4\n", gpus=2)


async def test_24_several_workers_on_several_gpus_each_are_refused(bench: Bench) -> None:  # TorchServe: 2 workers
    with pytest.raises(InvalidArchive, match="several workers on 2 GPUs each"):
        await bench.describe("parallelType: custom\nparallelLevel: 2\nminWorkers: 5\nmaxWorkers: 5\n", gpus=4)


async def test_24_one_worker_has_all_gpus_for_itself(bench: Bench) -> None:
    config = "parallelType: custom\nparallelLevel: 2\nminWorkers: 1\nmaxWorkers: 1\n"
    description = await bench.describe(config, gpus=2)
    assert (description["parallelType"], description["parallelLevel"]) == ("custom", 2)


async def test_27_a_key_that_torchrun_does_not_take_is_a_warning(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.describe("torchrun: {master-addr: localhost}\n")
    assert "Model m: torchrun: unsupported parameter master-addr" in warnings(caplog)


# -- queues ----------------------------------------------------------------------------------------------------------


async def test_28_the_queue_of_the_file_wins_over_the_servers(bench: Bench) -> None:
    description = await bench.describe("jobQueueSize: 2\n", job_queue_size=100)
    assert description["jobQueueStatus"]["remainingCapacity"] == 2


async def test_31_with_job_tickets_a_request_that_meets_no_idle_worker_is_refused(bench: Bench) -> None:
    bench.engine.handler = None
    await bench.describe("minWorkers: 1\nmaxWorkers: 1\nuseJobTicket: true\n")
    outcomes: list[Any] = []
    request = Request("id", b"", [Part("body", "", b"x")])
    bench.server.submit("m", None, request, outcomes.append)
    with pytest.raises(NoWorker, match='Model "m" has no worker to serve inference request') as refused:
        bench.server.submit("m", None, request, outcomes.append)  # though the first has not even been sent
    assert refused.value.hint == "Each of them is busy, and with useJobTicket no request waits."
    await settle()
    (process,) = bench.engine.processes
    with pytest.raises(NoWorker):
        bench.server.submit("m", None, request, outcomes.append)
    process.reply(process.batches[0], b"done")
    await settle()
    bench.server.submit("m", None, request, outcomes.append)
    await settle()
    assert len(process.batches) == 2


async def test_without_job_tickets_requests_wait(bench: Bench) -> None:
    bench.engine.handler = None
    await bench.describe("minWorkers: 1\nmaxWorkers: 1\n")
    for _ in range(3):
        bench.server.submit("m", None, Request("id", b"", [Part("body", "", b"x")]), lambda _: None)


# -- sequences -------------------------------------------------------------------------------------------------------

SEQUENCES = "minWorkers: 1\nmaxWorkers: 1\nsequenceBatching: true\nsequenceMaxIdleMSec: 5000\n"


def continue_(bench: Bench, sequence: str) -> list[Outcome]:
    """Sends a request of a sequence; what becomes of it."""
    outcomes: list[Outcome] = []
    request = Request("id", pack_headers([("ts_request_sequence_id", sequence)]), [Part("body", "", b"x")])
    bench.server.submit("m", None, request, outcomes.append)
    return outcomes


@pytest.mark.parametrize("idle", ["", "sequenceMaxIdleMSec: 0\n", "sequenceMaxIdleMSec: -1\n"])
async def test_32_sequences_that_would_never_end_are_refused(bench: Bench, idle: str) -> None:
    # In TorchServe each of their requests fails.
    with pytest.raises(InvalidArchive, match="Model m has sequenceBatching without sequenceMaxIdleMSec"):
        await bench.describe(f"sequenceBatching: true\n{idle}")
    assert bench.server.list_models() == []


async def test_33_a_second_sequence_is_one_too_many_unless_more_are_allowed(bench: Bench) -> None:
    description = await bench.describe(SEQUENCES)
    keys = ("stateful", "maxNumSequence", "maxSequenceJobQueueSize")
    assert [description[key] for key in keys] == [True, 1, 1]
    continue_(bench, "a")
    with pytest.raises(TooManySequences, match='Model "m" takes no further sequence'):
        continue_(bench, "b")


async def test_34_of_three_requests_of_a_sequence_one_runs_one_waits_one_is_refused(bench: Bench) -> None:
    bench.engine.handler = None
    await bench.describe(SEQUENCES + "maxSequenceJobQueueSize: 1\n")
    continue_(bench, "a")
    await settle()
    continue_(bench, "a")
    with pytest.raises(QueueFull, match="1 requests of sequence a wait, maxSequenceJobQueueSize is 1"):
        continue_(bench, "a")


async def test_35_a_sequence_that_idled_begins_anew(bench: Bench) -> None:
    await bench.describe(SEQUENCES)
    for moment in (4.9, 4.9, 5.0):
        outcomes = continue_(bench, "a")
        await settle()
        assert isinstance(outcomes[0], Reply)
        await bench.clock.advance(moment)
    continue_(bench, "b")
    with pytest.raises(TooManySequences):
        continue_(bench, "a")


async def test_a_sequence_has_no_longer_life_than_it_may(bench: Bench) -> None:
    await bench.describe(SEQUENCES + "sequenceTimeoutMSec: 9000\n")
    for _ in range(3):
        continue_(bench, "a")
        await bench.clock.advance(3)
    continue_(bench, "b")


@pytest.mark.parametrize(
    ("config", "together", "single"),
    [
        ("minWorkers: 1\nmaxWorkers: 1\nbatchSize: 3\ncontinuousBatching: yes\n", 3, True),
        (f"batchSize: 3\ncontinuousBatching: true\n{SEQUENCES}maxNumSequence: 9\n", 6, True),
        (f"batchSize: 3\n{SEQUENCES}maxNumSequence: 9\n", 3, False),
    ],
)
async def test_so_many_requests_run_together(bench: Bench, config: str, together: int, single: bool) -> None:
    bench.engine.handler = None
    await bench.describe(config)
    for name in "abcdefgh":
        continue_(bench, name)
    await settle()
    (process,) = bench.engine.processes
    assert sum(len(batch.jobs) for batch in process.batches) == together
    assert all(len(batch.jobs) == 1 for batch in process.batches) is single
    assert process.load is not None
    assert (process.load.batch_size, process.load.continuous_batching) == (3, single)


async def test_names_of_sequence_headers_are_the_servers_in_workers_too(bench: Bench) -> None:
    await bench.describe(SEQUENCES, ts_header_key_sequence_id="X-Session")
    continue_(bench, "a")
    with pytest.raises(TooManySequences):  # the header that it sends says nothing now, so that this is another one
        continue_(bench, "a")
    (version,) = bench.server.registry
    environment = version.pool.recipe.spec(1).environment
    assert environment["TS_REQUEST_SEQUENCE_ID"] == "X-Session"
    assert environment["TS_REQUEST_SEQUENCE_END"] == "ts_request_sequence_end"


# -- the rest --------------------------------------------------------------------------------------------------------


async def test_38_an_environment_of_its_own_is_for_every_python_runtime(bench: Bench) -> None:
    options = RegisterOptions(runtime="python3")  # TorchServe: false
    assert (await bench.describe("useVenv: true\n", options))["useVenv"] is True


@pytest.mark.torch
def test_40_without_enable_a_model_is_served_and_not_compiled() -> None:  # in TorchServe it does not load
    from ts.torch_handler.compilation import compile_options  # noqa: PLC0415 - imports PyTorch

    assert compile_options({"pt2": {"compile": {"backend": "inductor"}}}) is None


async def test_43_a_registration_by_json_leaves_the_delay_at_100(tmp_path: Path) -> None:  # TorchServe: -10000
    put_model(tmp_path, "m", "echo")
    async with running_server(model_store=tmp_path, temp_dir=tmp_path) as server:
        body = json.dumps({"url": "m", "batch_size": 4}).encode()
        answer = await ask(server, "POST", "/models", body, Listener.MANAGEMENT, Content_Type="application/json")
        assert answer.status == 200
        (shown,) = (await ask(server, "GET", "/models/m", kind=Listener.MANAGEMENT)).json
    assert (shown["batchSize"], shown["maxBatchDelay"]) == (4, 100)


@pytest.mark.parametrize(("server", "key", "warm"), [(True, "", True), (True, "false", False), (False, "true", True)])
async def test_the_models_own_warm_start_wins_over_the_servers(
    bench: Bench, server: bool, key: str, warm: bool
) -> None:
    config = f"minWorkers: 1\nmaxWorkers: 1\n{f'warmStart: {key}' if key else ''}\n"
    bench.server = bench.make(config, warm_start=server)
    handler = bench.place / "store" / "m" / "handler.py"
    handler.write_text("import torch\n" + handler.read_text())
    await bench.server.register("m")
    assert bench.engine.processes[0].spec.warm is warm


async def test_in_debug_mode_there_are_no_time_limits_and_one_worker(bench: Bench) -> None:
    description = await bench.describe("responseTimeout: 5\n", start=True, gpus=4, debug=True)
    assert (description["responseTimeout"], description["startupTimeout"]) == (2147483647, 2147483647)
    assert workers(description) == (1, 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("batchingPolicy: slo\n", "m has batchingPolicy: slo without latencySloMs"),
        (
            "batchingPolicy: slo\nlatencySloMs: 9\nsequenceBatching: true\nsequenceMaxIdleMSec: 9\n",
            "m has batchingPolicy: slo and sequenceBatching",
        ),
    ],
)
async def test_batches_for_a_target_need_one_and_no_sequences(bench: Bench, config: str, message: str) -> None:
    with pytest.raises(InvalidArchive, match=message):
        await bench.describe(config)
    assert bench.server.list_models() == []


async def test_a_target_that_nothing_aims_at_is_pointed_out(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await bench.describe("latencySloMs: 9\n")
    expected = "Model m: Without batchingPolicy: slo there is no effect of latencySloMs."
    assert expected in warnings(caplog)
