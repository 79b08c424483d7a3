"""The launcher of language models: what it writes, what it runs, what it leaves behind."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mariner.archive.manifest import read_manifest
from mariner.archive.model_config import read_model_config
from ts import llm_launcher

COMMAND = """#!/bin/sh
echo "$@" >> "{log}"
[ "$1" = --stop ] && exit 0
cat {store}/model/model-config.yaml >> "{log}.config"
echo 'Model server started.'
"""


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(llm_launcher, "_count_gpus", lambda: 1)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a command torchserve in the place of the real one, whose server ends at once; its calls are in the file."""
    command = tmp_path / "torchserve"
    command.write_text(COMMAND.format(log=tmp_path / "calls", store=tmp_path / "model_store"))
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    return tmp_path / "calls"


def config_of(*flags: str, snapshot: str | None = None) -> Any:
    return llm_launcher.model_config(llm_launcher._parse(flags), snapshot)


COMMON = {
    "minWorkers": 1,
    "maxWorkers": 1,
    "batchSize": 1,
    "maxBatchDelay": 100,
    "responseTimeout": 1200,
    "startupTimeout": 1200,
    "deviceType": "gpu",
    "asyncCommunication": True,
}


def test_the_configuration_for_vllm() -> None:
    engine = {"max_num_seqs": 256, "max_model_len": None, "download_dir": None, "tensor_parallel_size": 1}
    assert config_of() == {
        **COMMON,
        "parallelLevel": 1,
        "handler": {"model_path": "meta-llama/Meta-Llama-3.1-8B-Instruct", "vllm_engine_config": engine},
    }


def test_several_gpus_share_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_launcher, "_count_gpus", lambda: 4)
    config = config_of()
    assert (config["parallelType"], config["parallelLevel"]) == ("custom", 4)
    assert config["handler"]["vllm_engine_config"]["tensor_parallel_size"] == 4


def test_flags_of_vllm_reach_its_engine(tmp_path: Path) -> None:
    flags = ["--model_id", "org/model", "--startup_timeout", "60", "--vllm_engine.max_num_seqs", "8"]
    config = config_of(*flags, "--vllm_engine.max_model_len", "512", "--vllm_engine.download_dir", "cache")
    assert (config["startupTimeout"], config["handler"]["model_path"]) == (60, "org/model")
    assert config["handler"]["vllm_engine_config"] == {
        "max_num_seqs": 8,
        "max_model_len": 512,
        "download_dir": str(tmp_path / "cache"),
        "tensor_parallel_size": 1,
    }


def test_tensorrt_llm_loads_the_downloaded_model() -> None:
    flags = ["--engine", "trt_llm", "--trt_llm_engine.kv_cache_free_gpu_memory_fraction", "0.5"]
    assert config_of(*flags, snapshot="/cache/model") == {
        **COMMON,
        "handler": {
            "engine_dir": "/cache/model",
            "tokenizer_dir": "/cache/model",
            "kv_cache_config": {"free_gpu_memory_fraction": 0.5},
            "trt_llm_engine_config": {"dtype": "bfloat16", "max_batch_size": 4},
        },
    }


def test_tensorrt_llm_prefers_an_engine_that_was_built_ahead(tmp_path: Path) -> None:
    (tmp_path / "model_store" / "model" / "model-engine").mkdir(parents=True)
    handler = config_of("--engine", "trt_llm", snapshot="/cache/model")["handler"]
    assert handler == {
        "engine_dir": "model-engine",
        "tokenizer_dir": "/cache/model",
        "kv_cache_config": {"free_gpu_memory_fraction": 0.1},
    }


def test_what_is_written_is_a_model_of_the_server(tmp_path: Path) -> None:
    assert llm_launcher.write_model(llm_launcher._parse(["--model_name", "llm"]))
    manifest = read_manifest(tmp_path / "model_store" / "llm")
    assert manifest is not None
    assert (manifest.model_name, manifest.handler, manifest.model_version) == ("llm", "vllm_handler", "1.0")
    config, warnings = read_model_config(tmp_path / "model_store" / "llm" / (manifest.config_file or ""))
    assert (config.async_communication, config.startup_timeout, warnings) == (True, 1200, [])


def test_a_directory_of_its_own_is_written_again(tmp_path: Path) -> None:
    for model_id in ("one", "two"):
        assert llm_launcher.write_model(llm_launcher._parse(["--model_id", model_id]))
    written = yaml.safe_load((tmp_path / "model_store" / "model" / "model-config.yaml").read_text())
    assert written["handler"]["model_path"] == "two"


def test_the_directory_of_somebody_else_is_served_and_kept(
    tmp_path: Path, calls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "model_store" / "model"
    mine.mkdir(parents=True)
    (mine / "model-config.yaml").write_text("minWorkers: 1\n")
    llm_launcher.main([])
    assert [path.name for path in mine.iterdir()] == ["model-config.yaml"]
    assert (tmp_path / "calls.config").read_text() == "minWorkers: 1\n"
    assert "is there already and is served as it is" in capsys.readouterr().err


def test_a_server_is_started_with_the_model_and_stopped(tmp_path: Path, calls: Path) -> None:
    assert llm_launcher.main(["--disable_token_auth"]) == 1  # the server ended by itself
    first, start, last = calls.read_text().splitlines()
    assert first == last == "--stop --foreground"
    assert start.split()[:5] == ["--start", "--model-store", "model_store", "--models", "model"]
    assert set(start.split()[5:]) == {"--no-config-snapshots", "--disable-token-auth", "--enable-model-api"}
    assert yaml.safe_load((tmp_path / "calls.config").read_text())["asyncCommunication"] is True
    assert list((tmp_path / "model_store").iterdir()) == []


def test_a_request_to_stop_is_no_failure(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(llm_launcher.launcher, "start", interrupted)
    assert llm_launcher.main([]) == 0
    assert calls.read_text() == "--stop --foreground\n"


def test_a_failure_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert llm_launcher.main(["--engine", "trt_llm"]) == 1
    assert "pip install huggingface_hub" in capsys.readouterr().err


def test_an_unknown_engine_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        llm_launcher.main(["--engine", "onnx"])
    assert "Unsupported LLM Engine 'onnx': choose vllm or trt_llm" in capsys.readouterr().err


def test_the_manifest_says_whose_it_is(tmp_path: Path) -> None:
    llm_launcher.write_model(llm_launcher._parse([]))
    manifest = json.loads((tmp_path / "model_store" / "model" / "MAR-INF" / "MANIFEST.json").read_text())
    assert manifest["createdBy"] == "ts.llm_launcher"


@pytest.mark.slow
def test_the_launcher_is_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ts.llm_launcher", "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "--vllm_engine.max_num_seqs" in done.stdout
