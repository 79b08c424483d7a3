from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mariner.archive.model_config import MAX_CONFIG_SIZE, ModelConfig, Torchrun, parse_yaml, read_model_config

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = [field.metadata["row"].key for field in fields(ModelConfig)]


def one(key: str, value: Any) -> tuple[dict[str, Any], list[str]]:
    """What a single key sets, and the warnings."""
    config, warnings = ModelConfig.parse({key: value})
    return {
        field.name: getattr(config, field.name) for field in fields(config) if getattr(config, field.name) is not None
    }, warnings


def test_an_empty_config_says_nothing() -> None:
    config, warnings = ModelConfig.parse({})
    assert all(getattr(config, field.name) is None for field in fields(config))
    assert warnings == []


@pytest.mark.parametrize(
    ("key", "value", "field", "read"),
    [
        ("minWorkers", 2, "min_workers", 2),
        ("minWorkers", 0, "min_workers", 0),
        ("minWorkers", -1, "min_workers", 0),
        ("maxWorkers", 4, "max_workers", 4),
        ("batchSize", 8, "batch_size", 8),
        ("batchSize", -3, "batch_size", 1),
        ("maxBatchDelay", 4000, "max_batch_delay", 4000),
        ("responseTimeout", 5200, "response_timeout", 5200),
        ("startupTimeout", 30, "startup_timeout", 30),
        ("deviceType", "GPU", "device_type", "gpu"),
        ("deviceIds", [0, 1], "device_ids", (0, 1)),
        ("maxRetryTimeoutInSec", -1, "max_retry_timeout_in_sec", 0),
        ("clientTimeoutInMills", -5, "client_timeout_in_mills", 0),
        ("jobQueueSize", 2, "job_queue_size", 2),
        ("useJobTicket", True, "use_job_ticket", True),
        ("continuousBatching", False, "continuous_batching", False),
        ("sequenceBatching", True, "sequence_batching", True),
        ("sequenceMaxIdleMSec", -1, "sequence_max_idle_msec", 0),
        ("sequenceTimeoutMSec", 9, "sequence_timeout_msec", 9),
        ("maxSequenceJobQueueSize", 0, "max_sequence_job_queue_size", 1),
        ("maxNumSequence", 3, "max_num_sequence", 3),
        ("asyncCommunication", True, "async_communication", True),
        ("useVenv", True, "use_venv", True),
        ("parallelType", "PPTP", "parallel_type", "pptp"),
        ("batchingPolicy", "Fill", "batching_policy", "fill"),
        ("isolateBatchErrors", False, "isolate_batch_errors", False),
        ("workerIdleTimeoutSec", 1.5, "worker_idle_timeout_sec", 1.5),
        ("latencySloMs", 20, "latency_slo_ms", 20.0),
        ("autoscale", False, "autoscale", False),
        ("warmStart", False, "warm_start", False),
        ("maxRequestsPerWorker", 100, "max_requests_per_worker", 100),
        ("maxWorkerMemoryMB", 2048, "max_worker_memory_mb", 2048),
    ],
)
def test_a_key_is_read_and_brought_into_range(key: str, value: Any, field: str, read: Any) -> None:
    assert one(key, value) == ({field: read}, [])


@pytest.mark.parametrize(
    ("key", "value", "warning"),
    [
        ("batchSize", "4", "Invalid batchSize: 4, should be a whole number"),
        ("batchSize", True, "Invalid batchSize: True, should be a whole number"),
        ("batchSize", 2**31, "Invalid batchSize: 2147483648, should be a whole number"),
        ("batchSize", 4.0, "Invalid batchSize: 4.0, should be a whole number"),
        ("minWorkers", None, "Invalid minWorkers: None, should be a whole number"),
        ("maxWorkers", -1, "Invalid maxWorkers: -1, should be at least 0"),
        ("maxBatchDelay", -1, "Invalid maxBatchDelay: -1, should be at least 0"),
        ("responseTimeout", 0, "Invalid responseTimeout: 0, should be at least 1"),
        ("startupTimeout", -1, "Invalid startupTimeout: -1, should be at least 1"),
        ("deviceType", "neuron", "Invalid deviceType: neuron, should be one of cpu, gpu"),
        ("deviceIds", [0, "a"], "Invalid deviceIds: [0, 'a'], should be a list of device numbers from 0"),
        ("deviceIds", [-1], "Invalid deviceIds: [-1], should be a list of device numbers from 0"),
        ("deviceIds", 0, "Invalid deviceIds: 0, should be a list of device numbers from 0"),
        ("parallelType", "xpp", "Invalid parallelType: xpp, should be one of pp, tp, pptp, custom"),
        ("torchrun", 4, "Invalid torchrun: 4, should be a mapping"),
        ("useJobTicket", "true", "Invalid useJobTicket: true, should be true or false"),
        ("useVenv", 1, "Invalid useVenv: 1, should be true or false"),
        ("batchingPolicy", "greedy", "Invalid batchingPolicy: greedy, should be one of eager, fill, slo"),
        ("latencySloMs", 0, "Invalid latencySloMs: 0, should be a number above 0"),
    ],
)
def test_a_wrong_value_is_left_out_with_a_warning(key: str, value: Any, warning: str) -> None:
    assert one(key, value) == ({}, [warning])


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from([*KEYS, "handler", "micro_batching"]), values))
def test_no_value_makes_a_config_fail(mapping: dict[str, Any]) -> None:
    config, warnings = ModelConfig.parse(mapping)
    assert isinstance(config, ModelConfig)
    assert all(len(warning) < 200 for warning in warnings)


def test_keys_of_others_are_not_looked_at() -> None:
    assert ModelConfig.parse({"BatchSize": 4, "max_workers": 2, "handler": {"profile": True}, 7: 8}) == (
        ModelConfig(),
        [],
    )


def test_torchrun_sets_the_parallel_level() -> None:
    section = {"nproc-per-node": 4, "rdzv-endpoint": "localhost:29500", "OMP_NUMBER_THREADS": 2}
    config, warnings = ModelConfig.parse({"parallelType": "tp", "torchrun": section})
    assert config.parallel_level == 4
    assert config.torchrun == Torchrun(nproc_per_node=4, rdzv_endpoint="localhost:29500", omp_number_threads=2)
    assert warnings == []


def test_torchrun_warns_of_what_it_does_not_take() -> None:
    config, warnings = ModelConfig.parse(
        {"parallelType": "pp", "torchrun": {"nproc-per-node": "gpu", "rdzv-backend": 7, "master-addr": "localhost"}}
    )
    assert config.torchrun == Torchrun()
    assert warnings == [
        "Invalid nproc-per-node: gpu, should be a whole number",
        "Invalid rdzv-backend: 7, should be a text",
        "torchrun: unsupported parameter master-addr",
    ]


def test_of_torchrun_and_parallel_level_the_later_stands() -> None:
    torchrun, level = {"torchrun": {"nproc-per-node": 4}}, {"parallelLevel": 2}
    assert ModelConfig.parse({"parallelType": "tp", **torchrun, **level})[0].parallel_level == 2
    assert ModelConfig.parse({"parallelType": "tp", **level, **torchrun})[0].parallel_level == 4


def test_a_parallel_level_needs_a_parallel_type() -> None:
    assert ModelConfig.parse({"parallelLevel": 4})[0].parallel_level is None
    assert ModelConfig.parse({"torchrun": {"nproc-per-node": 4}})[0].parallel_level is None


def read(tmp_path: Path, text: str) -> tuple[ModelConfig | None, list[str]]:
    path = tmp_path / "model-config.yaml"
    path.write_text(text)
    return read_model_config(path)


def test_a_file_is_yaml_1_1(tmp_path: Path) -> None:
    config, warnings = read(tmp_path, "continuousBatching: yes\nbatchSize: 012\nmaxBatchDelay: 1_000\n")
    assert config == ModelConfig(continuous_batching=True, batch_size=10, max_batch_delay=1000)
    assert warnings == []


def test_an_empty_file_is_a_config_that_says_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "# nothing\n") == (ModelConfig(), [])


@pytest.mark.parametrize(
    "text",
    [
        "batchSize: [",
        "- a\n- b\n",
        "just text",
        "x: !!python/object/apply:os.system ['true']",
        "x: 2024-13-45",
        "x: " + "9" * 5000,
        "? [a, b]\n: {[c]: d}\n? {e: f}\n: g",
        "x: " + "[" * 1000,
        "a: &a [1]\nb: [" + "*a, " * 51 + "]",
        "\x00",
    ],
)
def test_a_file_that_cannot_be_read_is_one_warning(tmp_path: Path, text: str) -> None:
    config, warnings = read(tmp_path, text)
    assert config is None
    assert [warning.partition(":")[0] for warning in warnings] == [
        "Failed to parse model config file model-config.yaml"
    ]


def test_a_missing_file_is_one_warning(tmp_path: Path) -> None:
    assert read_model_config(tmp_path / "c.yaml") == (
        None,
        ["Failed to parse model config file c.yaml: No such file or directory."],
    )


def test_a_huge_file_is_not_parsed(tmp_path: Path) -> None:
    config, warnings = read(tmp_path, "#" * (MAX_CONFIG_SIZE + 1))
    assert config is None
    assert "it is larger than" in warnings[0]


def test_merge_keys_cannot_multiply_without_end() -> None:
    levels = ["a0: &a0 {" + ", ".join(f"k{number}: 0" for number in range(100)) + "}"]
    levels += [f"a{level}: &a{level} {{<<: [*a{level - 1}, *a{level - 1}]}}" for level in range(1, 24)]
    with pytest.raises(yaml.YAMLError, match="a mapping of more than 10000 keys"):
        parse_yaml("\n".join(levels))


def test_merge_keys_work_within_reason() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}")["b"] == {"x": 1, "y": 2}


def test_every_key_has_a_text_for_the_reference_page() -> None:
    rows = [field.metadata["row"] for section in (ModelConfig, Torchrun) for field in fields(section)]
    assert all(row.doc.endswith(".") for row in rows)
    assert len({row.key for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        (
            "parallelLevel: 2\ntorchrun: {}\n",
            ["Without parallelType there is no effect of parallelLevel and torchrun."],
        ),
        ("parallelLevel: 1\n", []),
        ("latencySloMs: 9\n", ["Without batchingPolicy: slo there is no effect of latencySloMs."]),
        ("latencySloMs: 9\nbatchingPolicy: slo\n", []),
        (
            "sequenceMaxIdleMSec: 5\nmaxNumSequence: 2\nsequenceBatching: false\n",
            ["Without sequenceBatching there is no effect of sequenceMaxIdleMSec and maxNumSequence."],
        ),
        ("sequenceMaxIdleMSec: 5\nmaxNumSequence: 2\nsequenceBatching: true\n", []),
        ("Batch-Size: 1\n", ["Unknown key Batch-Size is left to the handler. Did you mean batchSize?"]),
        ("maxNumSequences: 1\n", ["Unknown key maxNumSequences is left to the handler. Did you mean maxNumSequence?"]),
        ("handler: {batchsize: 1}\npt2: inductor\nmicro_batching: {}\nmax_length: 50\n7: 8\n", []),
    ],
)
def test_a_file_is_told_what_has_no_effect(tmp_path: Path, text: str, warnings: list[str]) -> None:
    assert read(tmp_path, text)[1] == warnings
