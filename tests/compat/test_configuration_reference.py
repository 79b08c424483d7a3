"""``config.properties`` as the reference describes it, item by item.

A test carries the number of its item in its name. ELSEWHERE names tests of other files that prove one; OTHERWISE says
why one is not proved. Where the answer is another than TorchServe's on purpose, the test says so.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checklists import proved_in, require_tests
from served_models import ask
from test_serving import Client, put_model

from mariner.auth import Listener
from mariner.config import Address, Config, MetricsMode, Scheme, load_config
from mariner.errors import ConfigurationError
from mariner.serve import Server

CLI, CONFIG = "unit/mariner/test_cli.py", "unit/mariner/test_config.py"
DEVICES, SNAPSHOTS, METRICS = (
    "unit/mariner/test_devices.py",
    "compat/test_snapshots.py",
    "compat/test_metrics_reference.py",
)

CERTIFICATES = "unit/mariner/test_certificates.py"
ELSEWHERE = {
    2: (f"{CLI}::test_what_is_missing_is_named",),
    3: (f"{CLI}::test_a_store_named_in_a_file_will_do",),
    4: (f"{CLI}::test_what_is_missing_is_named", f"{CONFIG}::test_a_file_that_does_not_exist_is_an_error"),
    5: (f"{CONFIG}::test_the_file_of_the_variable_wins_over_that_of_the_flag",),
    6: (f"{SNAPSHOTS}::test_the_newest_snapshot_outranks_the_file_in_the_working_directory_and_says_so",),
    9: (f"{CONFIG}::test_torchserve_variables_win_over_flags_where_they_are_enabled",),
    12: (f"{CONFIG}::test_allowed_urls_of_the_environment_need_a_second_permission",),
    22: (
        "unit/mariner/test_certificates.py::test_without_key_and_certificate_the_message_has_the_command_that_makes_them",
    ),
    23: (
        "docs/test_tls_page.py::test_the_page_about_https_does_what_it_says",
        f"{CERTIFICATES}::test_a_keystore_loads_with_its_chain_in_order",
    ),
    24: ("unit/mariner/http/test_http_tls.py::test_plain_http_is_refused_as_torchserve_does",),
    28: ("unit/mariner/test_pool.py::test_one_runs_n_wait_and_the_next_is_refused",),
    32: (f"{DEVICES}::test_the_visible_devices_are_those_the_driver_would_show",),
    40: (f"{SNAPSHOTS}::test_a_handwritten_snapshot_in_one_line_is_served_instead_of_load_models",),
    41: (f"{SNAPSHOTS}::test_a_snapshot_of_an_archive_that_is_gone_stops_the_start",),
    42: (f"{SNAPSHOTS}::test_an_empty_snapshot_starts_an_empty_server",),
    48: (
        "unit/mariner/test_auth.py::test_mode_off_asks_nobody_for_a_key",
        "unit/mariner/test_auth.py::test_no_key_file_is_written_where_nobody_needs_it",
    ),
}

OTHERWISE = {
    49: "the dump at the start is replaced by `mariner config explain`, which names the places, too",
}

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Reads a configuration from the text of a file, flags and environment."""

    def load(text: str = "", flags: Mapping[str, str] | None = None, **environ: str) -> Config:
        (tmp_path / "my.properties").write_text(text, encoding="utf-8")
        environ.setdefault("MARINER_CONFIG_SNAPSHOTS", "false")
        return load_config({"tsConfigFile": "my.properties", **(flags or {})}, environ, tmp_path)

    return load


@pytest.fixture
def store(tmp_path: Path) -> Path:
    place = tmp_path / "store"
    place.mkdir()
    return place


@asynccontextmanager
async def serving(config: Config, **changes: Any) -> AsyncIterator[Server]:
    """A server with those settings, but on free ports."""
    free = Address(Scheme.HTTP, "127.0.0.1", 0)
    addresses = {"inference_address": free, "management_address": free, "metrics_address": free}
    config = replace(config, **{**addresses, "disable_system_metrics": True, **changes})
    server = await Server.start(config)
    try:
        await server.models.wait_until_ready()
        yield server
    finally:
        await server.stop()


async def describe(server: Server, name: str) -> dict[str, Any]:
    (shown,) = (await ask(server, "GET", f"/models/{name}", kind=Listener.MANAGEMENT)).json
    return dict(shown)


async def register(server: Server, query: str) -> int:
    return (await ask(server, "POST", f"/models?{query}", kind=Listener.MANAGEMENT)).status


# -- the list --------------------------------------------------------------------------------------------------------


def test_every_item_is_proved_or_says_why_not() -> None:
    proved = proved_in(__file__) | set(ELSEWHERE)
    assert sorted(proved | set(OTHERWISE)) == list(range(1, 56))
    assert not proved & set(OTHERWISE)


@pytest.mark.parametrize("item", ELSEWHERE)
def test_the_tests_of_other_files_exist(item: int) -> None:
    require_tests(ELSEWHERE[item])


# -- where values come from ------------------------------------------------------------------------------------------


def test_01_listeners_are_on_this_machine_and_the_ports_of_torchserve(load: Load) -> None:
    config = load("model_store=store")
    addresses = [config.inference_address, config.management_address, config.metrics_address]
    assert [str(address) for address in addresses] == [f"http://127.0.0.1:{port}" for port in (8080, 8081, 8082)]
    assert (config.grpc_inference_address, config.grpc_inference_port) == ("127.0.0.1", 7070)
    assert (config.grpc_management_address, config.grpc_management_port) == ("127.0.0.1", 7071)


@pytest.mark.parametrize(("text", "capacity"), [("enable_envvars_config=true", 7), ("", 100)])
async def test_07_variables_of_torchserve_count_where_they_are_enabled(
    load: Load, store: Path, text: str, capacity: int
) -> None:
    put_model(store, "m", "echo")
    async with serving(load(f"model_store={store}\n{text}", TS_JOB_QUEUE_SIZE="7")) as server:
        await register(server, "url=m")
        assert (await describe(server, "m"))["jobQueueStatus"]["remainingCapacity"] == capacity


@pytest.mark.parametrize(("enabled", "port"), [("true", 2), ("false", 1)])
def test_08_an_address_of_the_environment_wins_where_it_is_enabled(load: Load, enabled: str, port: int) -> None:
    text = f"enable_envvars_config={enabled}\ninference_address=http://127.0.0.1:1"
    assert load(text, TS_INFERENCE_ADDRESS="http://127.0.0.1:2").inference_address.port == port


def test_10_the_model_api_can_be_enabled_by_the_environment(load: Load) -> None:
    text = "enable_envvars_config=true\nenable_model_api=false"
    assert load(text, TS_ENABLE_MODEL_API="true").enable_model_api is True


def test_11_the_flag_turns_the_model_api_on_and_its_absence_does_not_turn_it_off(load: Load) -> None:
    assert load("enable_model_api=false", {"enable_model_api": "true"}).enable_model_api is True
    assert load("enable_model_api=true").enable_model_api is True
    assert load("enable_model_api=false").enable_model_api is False


def test_13_the_life_of_a_key_has_a_variable_of_another_name(load: Load) -> None:
    assert load("enable_envvars_config=true", TS_TOKEN_EXPIRATION_TIME_MIN="2.5").token_expiration_min == 2.5
    assert load("enable_envvars_config=true", TS_TOKEN_EXPIRATION_MIN="2.5").token_expiration_min is None


# -- the file --------------------------------------------------------------------------------------------------------


def test_14_variables_in_values_are_replaced_and_must_exist(load: Load) -> None:
    assert load("model_store=$$HOME$$/a/$$HOME$$", HOME="/h").model_store == Path("/h/a/h")
    with pytest.raises(ConfigurationError, match="Invalid Environment Variable NOWHERE"):
        load("model_store=$$NOWHERE$$")


def test_15_the_file_has_the_format_of_java(load: Load) -> None:
    config = load(
        "# a comment\n! another\njob_queue_size: 5\nmax_request_size 6\n"
        'models={\\\n  "m": {\\\n    "1.0": {"batchSize": 2}\\\n}}\n'
    )
    assert (config.job_queue_size, config.max_request_size) == (5, 6)
    assert config.models == {"m": {"1.0": {"batchSize": 2}}}


def test_16_a_switch_is_on_with_true_in_any_case_and_off_with_the_rest(load: Load) -> None:
    config = load("async_logging=2\ndisable_system_metrics=TRUE")
    assert (config.async_logging, config.disable_system_metrics) == (False, True)


def test_17_blanks_at_the_end_do_not_count(load: Load) -> None:  # in TorchServe "true " is not true
    config = load("disable_system_metrics=true  \njob_queue_size=5 ")
    assert (config.disable_system_metrics, config.job_queue_size) == (True, 5)


def test_50_keys_of_the_java_server_are_accepted_with_one_warning(load: Load) -> None:
    keys = ("io_ratio=9", "netty_client_threads=9", "number_of_netty_threads=9", "prefer_direct_buffer=true")
    (warning,) = load("\n".join([*keys, "vmargs=-Xmx1g"])).warnings
    names = "io_ratio, netty_client_threads, number_of_netty_threads, prefer_direct_buffer, vmargs"
    assert warning == f"Settings of the Java server are accepted and ignored: {names}."


def test_51_unknown_keys_are_accepted(load: Load) -> None:
    config = load("mine=5\njob_queue_siz=7")
    assert (config.unknown, config.job_queue_size) == ({"mine": "5", "job_queue_siz": "7"}, 100)
    assert config.warnings[-1].endswith("is ignored. Did you mean job_queue_size?")


# -- addresses -------------------------------------------------------------------------------------------------------


def test_18_a_host_alone_has_the_port_of_its_listener(load: Load) -> None:
    config = load("inference_address=http://127.0.0.1\nmanagement_address=https://127.0.0.1")
    assert (config.inference_address.port, config.management_address.port) == (80, 8444)


@pytest.mark.parametrize(
    ("address", "message"),
    [("ftp://x", "Invalid binding address"), ("http://127.0.0.1:65535", "Invalid port number"),
     ("http://127.0.0.1:65536", "Invalid port number")],
)  # fmt: skip
def test_19_what_is_no_address_is_named(load: Load, address: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load(f"inference_address={address}")


async def test_20_management_may_be_a_socket_in_the_file_system(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX) as stale:  # of a server that was killed
        stale.bind(str(path))
    config = load(f"management_address=unix:{path}")
    async with serving(config, management_address=config.management_address):
        client = Client(*await asyncio.open_unix_connection(str(path)))
        answer = await client.ask("GET", "/models")
        await client.close()
    assert (answer.status, answer.json) == (200, {"models": []})
    assert not path.exists()


async def test_21_one_address_serves_predictions_and_management(
    load: Load, unused_tcp_port: int, tmp_path: Path
) -> None:
    address = f"http://127.0.0.1:{unused_tcp_port}"
    config = load(f"inference_address={address}\nmanagement_address={address}")
    async with serving(
        config, inference_address=config.inference_address, management_address=config.management_address
    ) as server:
        assert len(server.listeners) == 2  # and that of the metrics
        assert (await ask(server, "GET", "/ping")).status == 200
        assert (await ask(server, "GET", "/models")).json == {"models": []}


# -- HTTP ------------------------------------------------------------------------------------------------------------


async def test_25_cors_headers_come_with_every_answer(load: Load) -> None:
    text = "cors_allowed_origin=*\ncors_allowed_methods=GET, PUT\ncors_allowed_headers=X-A"
    async with serving(load(text)) as server:
        answers = [
            await ask(server, "GET", "/ping"),
            await ask(server, "GET", "/nowhere"),
            await ask(server, "GET", "/metrics", kind=Listener.METRICS),
        ]
    assert [answer.status for answer in answers] == [200, 404, 200]
    for answer in answers:
        cors = {name: value for name, value in answer.headers.items() if name.startswith("access-control-allow-")}
        assert cors == {
            "access-control-allow-origin": "*",
            "access-control-allow-methods": "GET, PUT",
            "access-control-allow-headers": "X-A",
        }


@pytest.mark.slow
@pytest.mark.parametrize(("text", "status"), [("", 413), ("max_request_size=6553501", 200)])
async def test_26_bodies_may_be_as_long_as_the_setting_says(load: Load, store: Path, text: str, status: int) -> None:
    put_model(store, "m", "def handle(data, context):\n    return data and ['fine']\n")
    async with serving(load(f"model_store={store}\nload_models=m\n{text}")) as server:
        assert (await ask(server, "POST", "/predictions/m", bytes(6_553_501))).status == status
        assert (await ask(server, "POST", "/predictions/m", bytes(6_553_500))).status == 200


@pytest.mark.slow
async def test_27_a_longer_response_fails_and_the_next_request_succeeds(load: Load, store: Path) -> None:
    put_model(store, "m", "echo")
    async with serving(load(f"model_store={store}\nload_models=m\nmax_response_size=1000")) as server:
        assert (await ask(server, "POST", "/predictions/m", bytes(1001))).status == 500
        assert (await ask(server, "POST", "/predictions/m", bytes(1000))).body == bytes(1000)


# -- workers ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "at_start", "by_call"),
    [pytest.param("default_workers_per_model=2", 2, 2, id="29"), pytest.param("", 1, 0, id="30")],
)  # without the setting TorchServe starts one worker per processor
async def test_29_30_a_model_has_the_default_number_of_workers(
    load: Load, store: Path, text: str, at_start: int, by_call: int
) -> None:
    put_model(store, "a", "echo")
    put_model(store, "b", "echo")
    async with serving(load(f"model_store={store}\nload_models=a\nnumber_of_gpu=0\n{text}")) as server:
        await register(server, "url=b")
        shown = [await describe(server, name) for name in "ab"]
    assert [len(each["workers"]) for each in shown] == [at_start, by_call]


@pytest.mark.slow
async def test_31_without_gpus_workers_are_on_the_cpu(
    load: Load, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: GPU-1)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    put_model(store, "m", "echo")
    for text, device in (("", "gpu"), ("number_of_gpu=0", "cpu")):
        async with serving(load(f"model_store={store}\n{text}")) as server:
            await register(server, "url=m&initial_workers=1")
            shown = await describe(server, "m")
        assert (shown["deviceType"], shown["workers"][0]["gpu"]) == (device, device == "gpu")


LOOKS = """
import os

def handle(data, context):
    names = [name for name in ("MY_SECRET", "PATH") if name in os.environ]
    limit = context.system_properties["limit_max_image_pixels"]
    return data and [{"names": names, "body": type(row["body"]).__name__, "limit": limit} for row in data]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"names": ["MY_SECRET", "PATH"], "body": "dict", "limit": True}),
        (
            "blacklist_env_vars=.*SECRET.*\ndecode_input_request=false\nlimit_max_image_pixels=false",
            {"names": ["PATH"], "body": "bytearray", "limit": False},
        ),
    ],
)
async def test_33_35_36_settings_reach_the_handler(
    load: Load, store: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: dict[str, Any]
) -> None:
    monkeypatch.setenv("MY_SECRET", "x")
    put_model(store, "m", LOOKS)
    async with serving(load(f"model_store={store}\nload_models=m\n{text}")) as server:
        answer = await ask(server, "POST", "/predictions/m", b"{}", Content_Type="application/json")
    assert answer.json == expected


def test_34_a_pattern_that_is_none_stops_the_start(load: Load) -> None:
    with pytest.raises(ConfigurationError, match=r"^Invalid configuration: blacklist_env_vars=\("):
        load("blacklist_env_vars=(")


@pytest.mark.slow
async def test_37_an_archive_without_handler_gets_the_default_one(load: Load, store: Path) -> None:
    put_model(store, "m", "echo")
    manifest = store / "m" / "MAR-INF" / "MANIFEST.json"
    said = json.loads(manifest.read_text())
    del said["model"]["handler"]
    manifest.write_text(json.dumps(said))
    text = f"model_store={store}\nload_models=m\n"
    async with serving(load(text)) as server:
        assert (await ask(server, "GET", "/models", kind=Listener.MANAGEMENT)).json == {"models": []}
    async with serving(load(f"{text}default_service_handler=handler.py")) as server:
        assert (await ask(server, "POST", "/predictions/m", b"x")).body == b"x"


@pytest.mark.slow
async def test_38_the_envelope_is_that_of_the_setting_for_every_model(load: Load, store: Path) -> None:
    put_model(store, "m", "def handle(data, context):\n    return data and [str(row) for row in data]\n")
    manifest = store / "m" / "MAR-INF" / "MANIFEST.json"
    said = json.loads(manifest.read_text())
    said["model"]["envelope"] = "body"
    manifest.write_text(json.dumps(said))
    async with serving(load(f"model_store={store}\nload_models=m\nservice_envelope=kserve")) as server:
        body = b'{"instances": ["a"]}'
        answer = await ask(server, "POST", "/predictions/m", body, Content_Type="application/json")
    assert answer.json == {"predictions": ["a"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("listed", "names"), [("ALL", ["a", "b", "c"]), ("a, b", ["a", "b"]), ("x=a", ["x"])]
)  # TorchServe keeps the blank
async def test_39_models_of_the_start(load: Load, store: Path, listed: str, names: list[str]) -> None:
    for name in "abc":
        put_model(store, name, "echo")
    async with serving(load(f"model_store={store}\nload_models={listed}")) as server:
        models = (await ask(server, "GET", "/models", kind=Listener.MANAGEMENT)).json["models"]
    assert [model["modelName"] for model in models] == names


@pytest.mark.slow
async def test_43_44_the_models_key_gives_batches_to_all_and_workers_to_those_of_the_start(
    load: Load, store: Path
) -> None:
    put_model(store, "a", "echo")
    put_model(store, "b", "echo")
    said = {"1.0": {"batchSize": 4, "maxBatchDelay": 50, "minWorkers": 2, "maxWorkers": 3, "runtimeType": "python3"}}
    models = json.dumps({"a": said, "b": said})
    async with serving(load(f"model_store={store}\nload_models=a\nmodels={models}")) as server:
        await register(server, "url=b")
        shown = [await describe(server, name) for name in "ab"]
        await ask(server, "DELETE", "/models/b", kind=Listener.MANAGEMENT)
        await register(server, "url=b&batch_size=2&max_batch_delay=9&runtime=python")
        asked = await describe(server, "b")
    assert [(each["batchSize"], each["maxBatchDelay"], each["runtime"]) for each in shown] == [(4, 50, "python3")] * 2
    assert [(each["minWorkers"], each["maxWorkers"]) for each in shown] == [(2, 3), (0, 0)]
    assert (asked["batchSize"], asked["maxBatchDelay"], asked["runtime"]) == (2, 9, "python")


@pytest.mark.slow
async def test_52_the_first_worker_has_the_number_of_the_setting(load: Load, store: Path) -> None:
    put_model(store, "m", "echo")
    text = f"model_store={store}\nload_models=m\ndefault_workers_per_model=2\ninitial_worker_port=9500"
    async with serving(load(text)) as server:
        assert [worker["id"] for worker in (await describe(server, "m"))["workers"]] == ["9500", "9501"]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 120])  # with 0 TorchServe answers 408, whatever the worker does
async def test_53_an_idle_model_can_be_unregistered_at_once(load: Load, store: Path, seconds: int) -> None:
    put_model(store, "m", "echo")
    text = f"model_store={store}\nload_models=m\nunregister_model_timeout={seconds}"
    async with serving(load(text)) as server:
        assert (await ask(server, "DELETE", "/models/m", kind=Listener.MANAGEMENT)).status == 200
        assert server.models.worker_pids() == []


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["oip", "v2"])  # in TorchServe another word turns the protocol off
async def test_54_the_second_kserve_protocol_is_always_served(load: Load, variable: str) -> None:
    async with serving(load("", TS_OPEN_INFERENCE_PROTOCOL=variable)) as server:
        assert (await ask(server, "GET", "/v2/health/live")).json == {"live": True}


@pytest.mark.slow
async def test_55_with_the_cpu_launcher_models_are_served_without_it_and_a_warning_says_so(
    load: Load, store: Path
) -> None:
    put_model(store, "m", "echo")
    config = load(f"model_store={store}\nload_models=m\ncpu_launcher_enable=true\ncpu_launcher_args=--use_logical_core")
    assert config.warnings[0].startswith("cpu_launcher_enable: workers start without torch.backends.xeon.run_cpu")
    async with serving(config) as server:
        assert (await ask(server, "POST", "/predictions/m", b"x")).body == b"x"


# -- metrics and access ----------------------------------------------------------------------------------------------


async def test_45_without_the_metrics_api_there_is_no_listener_for_it(load: Load) -> None:
    async with serving(load("enable_metrics_api=false")) as server:
        assert [kinds for kinds, _ in server.listeners] == [[Listener.INFERENCE], [Listener.MANAGEMENT]]


def test_46_an_unknown_metrics_mode_leaves_the_default(load: Load) -> None:  # in TorchServe that is log
    config = load("metrics_mode=bogus")
    assert config.metrics_mode is MetricsMode.PROMETHEUS
    assert "metrics_mode=bogus" in config.warnings[0]


def test_47_a_life_that_is_no_number_leaves_the_default(load: Load) -> None:
    config = load("token_expiration_min=abc")
    assert config.token_expiration_min is None
    assert "token_expiration_min=abc" in config.warnings[0]
