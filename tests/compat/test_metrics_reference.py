"""The checklist of the metrics contract: each test has the number of its item.

Servers that do the same in each mode are started once; the tests look at what they left behind. Of the REST contract,
item 127 is 1 and 3 here, 128 is 8, 129 is 7, 130 is 9 and 131 is 31.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from test_serving import ONE_WORKER, Answer, Client, put_model

from mariner.auth import Listener
from mariner.config import Address, Config, MetricsMode, Origin, Scheme, Source, TokenMode, load_config
from mariner.errors import ConfigurationError
from mariner.jobs import Part, Request
from mariner.metrics import Update, format_line
from mariner.serve import Server
from mariner.testing import running_server

pytestmark = pytest.mark.slow

THREE = ["ts_inference_requests_total", "ts_inference_latency_microseconds", "ts_queue_latency_microseconds"]
SERVER = ["Requests2XX", "Requests4XX", "Requests5XX", *THREE, "QueueTime", "WorkerThreadTime", "WorkerLoadTime"]
SYSTEM = ["CPUUtilization", "MemoryUsed", "MemoryAvailable", "MemoryUtilization"]
SYSTEM += ["DiskUsage", "DiskAvailable", "DiskUtilization"]
GPU = ["GPUMemoryUtilization", "GPUMemoryUsed", "GPUUtilization"]
MODEL = ["HandlerTime", "PredictionTime"]

EMITS = """
from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes

class Emits:
    def initialize(self, context):
        self.bare = context.metrics.add_metric_to_cache("Bare", "count", ["Colour"])

    def handle(self, data, context):
        metrics, problems = context.metrics, []
        metrics.add_time("HandlerTime", 1.5, None, "ms")
        metrics.add_counter("Calls", 1)
        metrics.add_counter("Calls", -1)
        metrics.add_metric("Size", 0.3, "kB", metric_type=MetricTypes.HISTOGRAM)
        metrics.add_counter("Coloured", 1, dimensions=[Dimension("Colour", "red")])
        metrics.add_counter("Mistaken", 1)
        self.bare.add_or_update(1, ["blue"])
        self.bare.add_or_update(1, ["blue", "green"])
        calls = [
            lambda: metrics.add_time("Other", 1, unit="min"),
            lambda: metrics.add_size("Other", 1, unit="TB"),
            lambda: metrics.get_metric("Other"),
        ]
        for call in calls:
            try:
                call()
            except Exception as error:
                problems.append(f"{type(error).__name__}: {error.args[0]}")
        print("[METRICS]Printed.count:1|#ModelName:emits,Level:Model|#type:COUNTER|#hostname:x,1")
        if data[0].get("body") == "memory":
            raise MemoryError
        return [problems for _ in data]
"""

DECLARED = """
dimensions: [&model ModelName, &level Level]
ts_metrics:
  counter: [{name: Requests2XX, unit: Count, dimensions: [*level, Hostname]}]
model_metrics:
  counter:
    - {name: Calls, unit: count, dimensions: [*model, *level]}
    - {name: Coloured, unit: count, dimensions: [Colour, *model, *level]}
    - {name: Bare, unit: count, dimensions: [Colour]}
    - {name: Mistaken, unit: count, dimensions: [Other]}
    - {name: Printed, unit: count, dimensions: [*model, *level]}
  histogram:
    - {name: Size, unit: kB, dimensions: [*model, *level]}
"""


@dataclass
class Seen:
    """What a server left behind.

    Attributes:
        page: the last answer of ``/metrics``.
        before, after: that answer before and after a prediction without HTTP.
        answers: of the handler, by what was asked.
        updates: what the metric logs get.
        log: the messages of the server's log.
    """

    page: Answer = field(default_factory=lambda: Answer(0, {}, b""))
    before: str = ""
    after: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)
    updates: list[Update] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.page.body.decode()

    @property
    def lines(self) -> list[str]:
        return [format_line(update) for update in self.updates]

    @property
    def families(self) -> list[str]:
        return re.findall(r"^# TYPE (\S+) ", self.text, re.MULTILINE)

    def samples(self, name: str) -> dict[str, float]:
        return samples(self.text, name)

    def logged(self, name: str) -> list[str]:
        return [line for line in self.lines if line.startswith(f"{name}.")]


def samples(text: str, name: str) -> dict[str, float]:
    """Labels without the host, and value, of each sample of that name."""
    found = re.findall(rf"^{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE)
    return {re.sub(r',?[Hh]ostname="[^"]*"', "", labels).rstrip(","): float(value) for labels, value in found}


class Capture(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def captured(messages: list[str]) -> Iterator[None]:
    """Takes what is logged at INFO and above."""
    root, capture = logging.getLogger(), Capture(messages)
    level = root.level
    root.addHandler(capture)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(capture)


async def read(server: Server, path: str = "/metrics") -> Answer:
    client = await Client.connect(server, Listener.METRICS)
    try:
        return await client.ask("GET", path)
    finally:
        await client.close()


async def read_until(server: Server, done: Callable[[str], bool]) -> Answer:
    """Metrics of handlers are a twentieth of a second late: reads the page until they are there."""
    async with asyncio.timeout(30):
        while not done((answer := await read(server)).body.decode()):
            pass
    return answer


async def observe(folder: Path, mode: MetricsMode, metrics_file: str | None) -> Seen:
    """Calls that succeed, name a version, run at once, name no model, find no worker, fail, and need no HTTP."""
    seen = Seen()
    store = folder / "store"
    put_model(store, "emits", EMITS, ONE_WORKER)
    put_model(store, "pair", "echo", "minWorkers: 2\nmaxWorkers: 2\nbatchSize: 2\nmaxBatchDelay: 30000\n")
    put_model(store, "idle", "echo")
    settings = {"model_store": store, "temp_dir": folder, "metrics_mode": mode, "load_models": ("emits", "pair")}
    settings["origins"] = {"metrics_mode": Origin(Source.FILE, "config.properties")}
    if metrics_file is None:
        settings["model_metrics_auto_detect"] = True
    else:
        settings["metrics_config"] = folder / "metrics.yaml"
        (folder / "metrics.yaml").write_text(metrics_file)
    starting = running_server(on_metric=seen.updates.append, disable_system_metrics=False, **settings)
    with captured(seen.log):
        async with starting as server:
            await server.models.wait_until_ready()
            client, second, management = [
                await Client.connect(server, kind)
                for kind in (Listener.INFERENCE, Listener.INFERENCE, Listener.MANAGEMENT)
            ]
            seen.answers["default"] = await client.ask("POST", "/predictions/emits", b"a")
            seen.answers["version"] = await client.ask("POST", "/predictions/emits/1.0", b"a")
            await asyncio.gather(*(asker.ask("POST", "/predictions/pair", b"a") for asker in (client, second)))
            await management.ask("POST", "/models?url=idle&initial_workers=0")
            seen.answers["absent"] = await client.ask("POST", "/predictions/absent", b"a")
            seen.answers["idle"] = await client.ask("POST", "/predictions/idle", b"a")
            seen.answers["memory"] = await client.ask(
                "POST", "/predictions/emits", b"memory", Content_Type="text/plain"
            )
            seen.before = (await read(server)).body.decode()
            await server.models.predict("emits", None, Request("id", b"", [Part("body", "", b"a")]))
            seen.after = (await read(server)).body.decode()
            seen.answers["unregister"] = await management.ask("DELETE", "/models/pair/1.0")
            seen.page = await read_until(server, lambda text: complete(seen, mode, text))
            seen.answers["describe"] = await management.ask("GET", "/models/emits")
            seen.answers["filter"] = await read(server, "/metrics?name[]=Requests2XX&name[]=Requests4XX")
            seen.answers["unknown"] = await read(server, "/metrics?name[]=Nothing")
            seen.answers["unused"] = await read(server, "/metrics?name[]=GPUUtilization")
            for asker in (client, second, management):
                await asker.close()
    return seen


def complete(seen: Seen, mode: MetricsMode, text: str) -> bool:
    """The four calls of the handler have told all they had to tell, and the machine was measured."""
    if mode is MetricsMode.PROMETHEUS:
        counts = [sum(samples(text, name).values()) for name in ("Calls", "Printed")]
        return counts == [4.0, 4.0] and ("CPUUtilization" not in text or bool(samples(text, "CPUUtilization")))
    times = [line for line in seen.logged("PredictionTime") if "ModelName:emits" in line]
    return (len(times), len(seen.logged("Printed"))) == (3, 4) and bool(seen.logged("CPUUtilization"))


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return asyncio.run(observe(tmp_path_factory.mktemp("prometheus"), MetricsMode.PROMETHEUS, None))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return asyncio.run(observe(tmp_path_factory.mktemp("log"), MetricsMode.LOG, None))


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return asyncio.run(observe(tmp_path_factory.mktemp("legacy"), MetricsMode.LEGACY, None))


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return asyncio.run(observe(tmp_path_factory.mktemp("declared"), MetricsMode.PROMETHEUS, DECLARED))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    put_model(tmp_path / "store", "echo", "echo", ONE_WORKER)
    return tmp_path / "store"


def configure(folder: Path, text: str, **environ: str) -> Config:
    (folder / "config.properties").write_text(text)
    return load_config({}, environ, folder)


# -- modes -----------------------------------------------------------------------------------------------------------


def test_01_log_mode_has_an_empty_page_and_lines_of_requests(log: Seen) -> None:
    assert (log.page.status, log.page.body) == (200, b"")
    for name in ("Requests2XX", *THREE):
        assert all(re.search(r"\|#hostname:[^,:|]+,timestamp:\d{10}$", line) for line in log.logged(name))
    assert log.logged("Requests2XX")[0].startswith("Requests2XX.Count:1.0|#Level:Host|#hostname:")
    assert log.logged(THREE[0])[0].startswith(
        f"{THREE[0]}.Count:1.0|#model_name:emits,model_version:default|#hostname:"
    )
    assert log.logged(THREE[1])[0].startswith(f"{THREE[1]}.Microseconds:")


def test_02_log_mode_has_lines_of_models_with_request_ids(log: Seen) -> None:
    request_id = log.answers["default"].headers["x-request-id"]
    for name in MODEL:
        pattern = (
            rf"{name}\.ms:\d+\.\d+\|#ModelName:emits,Level:Model\|#hostname:[^,]+,requestID:{request_id},timestamp:\d+"
        )
        assert re.fullmatch(pattern, log.logged(name)[0])
    assert [update.definition.section.value for update in log.updates if update.definition.name in MODEL] == (
        ["model_metrics"] * len(log.logged("HandlerTime") + log.logged("PredictionTime"))
    )


def test_03_prometheus_mode_has_no_lines_and_every_default_name_on_the_page(prometheus: Seen) -> None:
    assert prometheus.updates == []
    assert [name for name in (*SERVER, *SYSTEM, *GPU, *MODEL) if name not in prometheus.families] == []


def test_04_legacy_mode_has_three_families_on_the_page_and_lines_of_the_rest(legacy: Seen) -> None:
    assert legacy.families == THREE
    assert samples(legacy.text, THREE[0])['model_name="emits",model_version="1.0"'] == 1.0
    names = {line.partition(".")[0] for line in legacy.lines}
    assert not names & set(THREE)
    assert names >= {*SERVER, *SYSTEM, *MODEL} - set(THREE)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("Prometheus", MetricsMode.PROMETHEUS),
        (" LOG ", MetricsMode.LOG),
        ("legacy", MetricsMode.LEGACY),
        ("garbage", MetricsMode.PROMETHEUS),  # the default, which is not TorchServe's
    ],
)
def test_05_modes_are_read_in_any_case_and_another_word_leaves_the_default(
    tmp_path: Path, text: str, mode: MetricsMode
) -> None:
    assert configure(tmp_path, f"metrics_mode={text}").metrics_mode is mode


def test_06_the_variables_of_torchserve_count_where_they_are_enabled(tmp_path: Path) -> None:
    variables = {
        "TS_METRICS_MODE": "legacy",
        "TS_METRICS_CONFIG": str(tmp_path / "mine.yaml"),
        "TS_MODEL_METRICS_AUTO_DETECT": "true",
        "TS_DISABLE_SYSTEM_METRICS": "true",
    }
    config = configure(tmp_path, "enable_envvars_config=true", **variables)
    assert (config.metrics_mode, config.metrics_config) == (MetricsMode.LEGACY, tmp_path / "mine.yaml")
    assert (config.model_metrics_auto_detect, config.disable_system_metrics) == (True, True)


# -- the page --------------------------------------------------------------------------------------------------------


def test_07_heads_samples_and_content_type_are_to_the_letter(prometheus: Seen) -> None:
    assert prometheus.page.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    for name, kind, unit in (
        ("Requests2XX", "counter", "Count"),
        ("MemoryUsed", "gauge", "Megabytes"),
        ("PredictionTime", "gauge", "ms"),
        ("Size", "histogram", "Kilobytes"),
    ):
        head = f"# HELP {name} Torchserve prometheus {kind} metric with unit: {unit}\n# TYPE {name} {kind}\n{name}"
        assert head in prometheus.text
    assert re.search(r'^Requests2XX\{Level="Host",Hostname="[^"]+",\} \d+\.0$', prometheus.text, re.MULTILINE)
    assert "Requests2XX_total" not in prometheus.text
    assert "_created" not in prometheus.text


def test_08_names_pick_families_and_an_unknown_one_picks_nothing(prometheus: Seen) -> None:
    text = prometheus.answers["filter"].body.decode()
    assert re.findall(r"^# TYPE (\S+)", text, re.MULTILINE) == ["Requests2XX", "Requests4XX"]
    assert (prometheus.answers["unknown"].status, prometheus.answers["unknown"].body) == (200, b"")


def test_09_the_version_is_default_where_the_request_named_none(prometheus: Seen) -> None:
    counts = samples(prometheus.before, THREE[0])
    assert counts['model_name="emits",model_version="default"'] == 2.0
    assert counts['model_name="emits",model_version="1.0"'] == 1.0


def test_10_an_inference_that_is_refused_counts(prometheus: Seen) -> None:
    assert prometheus.answers["idle"].status == 503
    assert prometheus.samples(THREE[0])['model_name="idle",model_version="default"'] == 1.0
    assert 'model_name="idle",model_version="default"' not in prometheus.samples(THREE[1])


def test_11_statuses_count_in_their_class(prometheus: Seen) -> None:
    assert [prometheus.answers[name].status for name in ("absent", "idle", "memory")] == [404, 503, 507]
    assert prometheus.samples("Requests4XX") == {'Level="Host"': 1.0}
    assert prometheus.samples("Requests5XX") == {'Level="Host"': 2.0}


def test_12_a_family_without_samples_has_its_head_where_nothing_is_picked(prometheus: Seen) -> None:
    assert "# TYPE GPUUtilization gauge\n" in prometheus.text
    assert prometheus.samples("GPUUtilization") == {}
    assert prometheus.answers["unused"].body == b""


def test_13_an_inference_that_is_no_http_request_counts_as_inference_alone(prometheus: Seen) -> None:
    name = 'model_name="emits",model_version="default"'
    before, after = (samples(text, THREE[0])[name] for text in (prometheus.before, prometheus.after))
    assert after == before + 1
    before, after = (samples(text, "Requests2XX")['Level="Host"'] for text in (prometheus.before, prometheus.after))
    assert after == before + 1  # the page itself
    assert 'Level="Host"' in samples(prometheus.after, "QueueTime")


def test_14_each_worker_has_its_load_time(prometheus: Seen) -> None:
    workers = prometheus.samples("WorkerLoadTime")
    found = sorted(re.findall(r'WorkerName="W-(\d+)-(\w+)_1\.0",Level="Host"', "\n".join(workers)))
    assert [number for number, _ in found] == ["9000", "9001", "9002"]
    assert sorted(model for _, model in found) == ["emits", "pair", "pair"]
    assert all(0 < milliseconds < 60_000 for milliseconds in workers.values())


# -- metrics of handlers ---------------------------------------------------------------------------------------------

OF_MODEL = 'ModelName="emits",Level="Model"'


def test_15_the_increments_of_a_declared_counter_add_up(declared: Seen) -> None:
    assert declared.samples("Calls") == {OF_MODEL: 4.0}


def test_16_a_declared_histogram_has_the_default_buckets(declared: Seen) -> None:
    bounds = re.findall(r'^Size_bucket\{.*le="([^"]+)",\}', declared.text, re.MULTILINE)
    assert " ".join(bounds) == "0.005 0.01 0.025 0.05 0.075 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 +Inf"
    assert declared.samples("Size_count") == {OF_MODEL: 4.0}
    assert declared.samples("Size_sum") == {OF_MODEL: pytest.approx(1.2)}


def test_17_an_undeclared_metric_is_there_only_where_it_is_detected(declared: Seen, prometheus: Seen) -> None:
    assert "HandlerTime" not in declared.text
    assert "Requests4XX" not in declared.text
    assert "# TYPE Calls counter\n" in prometheus.text
    assert re.search(
        r'^Calls\{ModelName="emits",Level="Model",Hostname="[^"]+",\} 4\.0$', prometheus.text, re.MULTILINE
    )
    assert any(line.startswith("Registering auto detected backend metric: Calls") for line in prometheus.log)


def test_18_dimensions_of_the_handler_precede_those_that_are_added(declared: Seen, prometheus: Seen) -> None:
    for seen in (declared, prometheus):
        assert seen.samples("Coloured") == {f'Colour="red",{OF_MODEL}': 4.0}


def test_19_a_metric_of_ones_own_has_the_labels_it_was_given(declared: Seen) -> None:
    assert declared.samples("Bare") == {'Colour="blue"': 4.0}


def test_20_a_negative_update_of_a_counter_is_dropped_and_the_worker_goes_on(declared: Seen) -> None:
    assert declared.samples("Calls") == {OF_MODEL: 4.0}
    assert [declared.answers[name].status for name in ("default", "version")] == [200, 200]
    assert any("Failed to update metric with name:Calls and dimensions: " in line for line in declared.log)


def test_21_an_update_with_other_dimensions_is_dropped_and_logged(declared: Seen) -> None:
    assert declared.samples("Mistaken") == {}
    assert any(
        "Failed to update metric with name:Bare and dimensions: ['blue', 'green']" in line for line in declared.log
    )
    assert any("Failed to update metric with name:Mistaken and dimensions: " in line for line in declared.log)


def test_22_units_that_do_not_exist_raise_in_the_handler(prometheus: Seen) -> None:
    assert prometheus.answers["default"].json[:2] == [
        "MetricsCacheValueError: the unit for a timed metric should be one of ['ms', 's']",
        "ValueError: The unit for size based metric is one of ['MB','kB', 'GB', 'B']",
    ]


def test_23_a_metric_that_does_not_exist_raises_in_the_handler(prometheus: Seen) -> None:
    message = "MetricsCacheKeyError: Metric of type 'MetricTypes.COUNTER' and name 'Other' doesn't exist"
    assert prometheus.answers["default"].json[2] == message


async def test_24_a_batch_of_two_has_both_request_ids(tmp_path: Path) -> None:
    put_model(
        tmp_path / "store", "pair", "echo", f"{ONE_WORKER}batchSize: 2\nmaxBatchDelay: 30000\nbatchingPolicy: fill\n"
    )
    updates: asyncio.Queue[Update] = asyncio.Queue()

    def take(update: Update) -> None:
        if update.definition.name == "PredictionTime":
            updates.put_nowait(update)

    settings = {"model_store": tmp_path / "store", "load_models": ("pair",), "temp_dir": tmp_path}
    async with running_server(metrics_mode=MetricsMode.LOG, on_metric=take, **settings) as server:
        await server.models.wait_until_ready()
        clients = [await Client.connect(server) for _ in range(2)]
        answers = await asyncio.gather(*(client.ask("POST", "/predictions/pair", b"a") for client in clients))
        async with asyncio.timeout(30):
            line = format_line(await updates.get())
        for client in clients:
            await client.close()
    ids = re.search(r",requestID:([^,]+),([^,]+),timestamp:", line)
    assert ids is not None
    assert set(ids.groups()) == {answer.headers["x-request-id"] for answer in answers}


# -- the metrics file ------------------------------------------------------------------------------------------------


async def predict_with(store: Path, folder: Path, text: str) -> tuple[int, str]:
    """Status of a prediction, and the page, of a server with that metrics file."""
    (folder / "metrics.yaml").write_text(text)
    settings = {"model_store": store, "load_models": ("echo",), "temp_dir": folder}
    async with running_server(metrics_config=folder / "metrics.yaml", **settings) as server:
        await server.models.wait_until_ready()
        client = await Client.connect(server)
        answer = await client.ask("POST", "/predictions/echo", b"a")
        await client.close()
        return answer.status, (await read(server)).body.decode()


async def test_25_a_file_with_an_empty_name_costs_the_metrics_of_the_server(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "ts_metrics: {counter: [{name: '', unit: Count}]}\nmodel_metrics: {gauge: []}\n"
    status, page = await predict_with(store, tmp_path, text)
    assert status == 200
    assert [name for name in (*SERVER, *SYSTEM, *MODEL) if name in page] == []
    assert "Failed to load metrics configuration: " in caplog.text
    assert "Metric name cannot be empty." in caplog.text


async def test_26_a_file_without_metrics_of_models_lets_workers_start(store: Path, tmp_path: Path) -> None:
    """In TorchServe no worker starts; nothing is lost by starting them."""
    text = "ts_metrics: {counter: [{name: Requests2XX, unit: Count, dimensions: [Level, Hostname]}]}"
    status, page = await predict_with(store, tmp_path, text)
    assert status == 200
    assert 'Requests2XX{Level="Host",' in page


async def test_27_a_name_that_appears_twice_stops_a_server_that_is_to_have_prometheus(tmp_path: Path) -> None:
    row = "{name: Twice, unit: Count, dimensions: [Hostname]}"
    (tmp_path / "metrics.yaml").write_text(f"ts_metrics: {{counter: [{row}, {row}]}}")
    config = configure(tmp_path, f"metrics_mode=prometheus\nmetrics_config={tmp_path / 'metrics.yaml'}")
    with pytest.raises(ConfigurationError, match=r"Invalid configuration: .*Twice is declared twice"):
        await Server.start(config)


# -- the machine -----------------------------------------------------------------------------------------------------


def test_28_the_machine_is_measured_at_once(log: Seen, prometheus: Seen) -> None:
    assert [prometheus.samples(name)['Level="Host"'] >= 0 for name in SYSTEM] == [True] * len(SYSTEM)
    assert re.fullmatch(
        r"MemoryUsed\.Megabytes:\S+\|#Level:Host\|#hostname:[^,]+,timestamp:\d+", log.logged("MemoryUsed")[0]
    )


async def test_28_the_machine_is_not_measured_where_that_is_turned_off(tmp_path: Path) -> None:
    async with running_server(temp_dir=tmp_path, disable_system_metrics=True) as server:
        assert "system metrics" not in {task.get_name() for task in asyncio.all_tasks()}
        assert samples((await read(server)).body.decode(), "CPUUtilization") == {}
    async with running_server(temp_dir=tmp_path, disable_system_metrics=False):
        assert "system metrics" in {task.get_name() for task in asyncio.all_tasks()}


@pytest.mark.parametrize(
    ("tool", "output", "shown"),
    [
        ("nvidia-smi", "GPU 0: One (UUID: GPU-a)", {'Level="Host",DeviceId="0"': 80.0}),
        ("rocm-smi", '{"card0": {}}', {}),  # not for NVIDIA's library to measure
    ],
)
async def test_28_gpus_of_nvidia_are_measured_by_their_logical_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, output: str, shown: dict[str, float]
) -> None:
    (tmp_path / tool).write_text(f"#!/bin/sh\necho '{output}'\n")
    (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    nvml = ModuleType("pynvml")
    nvml.__dict__.update(
        NVMLError=OSError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=3 << 20),
        nvmlDeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=80, memory=30),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    async with running_server(temp_dir=tmp_path, disable_system_metrics=False) as server:
        page = await read_until(server, lambda text: bool(samples(text, "CPUUtilization")))
    assert samples(page.body.decode(), "GPUUtilization") == shown


async def test_29_a_command_measures_the_machine_instead(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text("print('CPUUtilization.Percent:42.5|#Level:Host|#hostname:box,1717105307\\n')")
    settings = {"temp_dir": tmp_path, "disable_system_metrics": False, "system_metrics_cmd": str(script)}
    async with running_server(**settings) as server:
        page = await read_until(server, lambda text: bool(samples(text, "CPUUtilization")))
    assert b'CPUUtilization{Level="Host",Hostname="box",} 42.5\n' in page.body
    assert samples(page.body.decode(), "MemoryUsed") == {}


def test_30_the_memory_of_a_worker_is_described(prometheus: Seen) -> None:
    (description,) = prometheus.answers["describe"].json
    assert description["workers"][0]["memoryUsage"] > 1 << 20


# -- listeners -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(MetricsMode))
async def test_31_without_its_interface_no_listener_has_metrics(tmp_path: Path, mode: MetricsMode) -> None:
    shared = Address(Scheme.UNIX, path=str(tmp_path / "both"))
    settings = {"inference_address": shared, "management_address": shared, "temp_dir": tmp_path}
    async with running_server(enable_metrics_api=False, metrics_mode=mode, **settings) as server:
        assert [kinds for kinds, _ in server.listeners] == [[Listener.INFERENCE, Listener.MANAGEMENT]]
        client = Client(*await asyncio.open_unix_connection(shared.path))
        assert (await client.ask("GET", "/metrics")).status == 404
        await client.close()


async def test_32_metrics_need_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the key file is written there
    async with running_server(temp_dir=tmp_path, token_authorization=TokenMode.ON) as server:
        client = await Client.connect(server)
        assert (await client.ask("POST", "/predictions/m")).json["type"] == "InvalidKeyException"
        await client.close()
        assert (await read(server)).status == 200


async def test_33_one_address_for_predictions_and_management_has_metrics_too(tmp_path: Path) -> None:
    shared = Address(Scheme.UNIX, path=str(tmp_path / "both"))
    settings = {"inference_address": shared, "management_address": shared, "temp_dir": tmp_path}
    async with running_server(**settings) as server:
        client = Client(*await asyncio.open_unix_connection(shared.path))
        assert (await client.ask("GET", "/metrics")).body.startswith(b"# HELP Requests2XX ")
        await client.close()
        assert len(server.listeners) == 2  # that of metrics alone stays


def test_34_the_series_of_a_model_that_is_gone_remain(prometheus: Seen) -> None:
    assert json.loads(prometheus.answers["unregister"].body) == {"status": 'Model "pair" unregistered'}
    assert prometheus.samples(THREE[0])['model_name="pair",model_version="default"'] == 2.0
    assert prometheus.samples("PredictionTime").keys() >= {'ModelName="pair",Level="Model"'}


def test_35_lines_that_a_handler_prints_count_where_they_are_declared(declared: Seen, log: Seen) -> None:
    assert declared.samples("Printed") == {OF_MODEL: 4.0}
    assert log.logged("Printed")[0].startswith("Printed.count:1.0|#ModelName:emits,Level:Model|#hostname:")
    assert not any(line.startswith("[METRICS]Printed") for line in declared.log)
