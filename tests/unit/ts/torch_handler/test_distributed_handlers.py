"""Base classes for several GPUs: DeepSpeed and PiPPy as stand-ins, the connection of ranks for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ts.context import Context
from ts.handler_utils.distributed.deepspeed import get_ds_engine
from ts.handler_utils.distributed.pt_pippy import get_pipeline_driver, get_pipline_driver
from ts.torch_handler.distributed import base_deepspeed, base_pippy_handler
from ts.torch_handler.distributed.base_deepspeed_handler import BaseDeepSpeedHandler
from ts.torch_handler.distributed.base_pippy_handler import BasePippyHandler

pytestmark = pytest.mark.torch

MakeContext = Callable[..., Context]

# -- DeepSpeed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "device"), [(None, 0), ("3", 3)])
def test_the_device_is_the_rank(monkeypatch: pytest.MonkeyPatch, rank: str | None, device: int) -> None:
    if rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", rank)
    handler = BaseDeepSpeedHandler()
    handler.initialize(None)
    assert handler.device == device


def test_the_old_path_has_the_same_class() -> None:
    assert base_deepspeed.BaseDeepSpeedHandler is BaseDeepSpeedHandler


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    directory = tmp_path / "weights" / "snapshot"
    directory.mkdir(parents=True)
    return directory


def test_the_engine_gets_its_settings_and_a_list_of_the_weights(
    make_context: MakeContext, put_stand_in: Callable[[str], None], tmp_path: Path, weights: Path
) -> None:
    put_stand_in("deepspeed_inference")
    for name in ("b.bin", "a.bin", "a.safetensors"):
        (weights / name).write_bytes(b"")
    (tmp_path / "ds.json").write_text('{"dtype": "fp16"}')
    section = {"config": "ds.json", "checkpoint": "list.json"}
    context = make_context(config={"handler": {"model_path": "weights"}, "deepspeed": section})
    model = torch.nn.ReLU()
    for _ in range(2):  # the second rank finds the list as the first has written it
        engine = get_ds_engine(model, context)
    assert engine.module is model
    assert engine.settings == {"dtype": "fp16", "checkpoint": str(tmp_path / "list.json")}
    assert json.loads((tmp_path / "list.json").read_text()) == {
        "type": "ds_model",
        "checkpoints": [str(weights / "a.bin"), str(weights / "b.bin")],
        "version": 1.0,
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ds.json", "list.json", "weights"]


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_weights_of_other_kinds_are_listed_if_there_are_no_others(
    make_context: MakeContext, put_stand_in: Callable[[str], None], tmp_path: Path, weights: Path, name: str
) -> None:
    put_stand_in("deepspeed_inference")
    (weights / name).write_bytes(b"")
    get_ds_engine(
        None, make_context(config={"handler": {"model_path": "weights"}, "deepspeed": {"checkpoint": "c.json"}})
    )
    assert json.loads((tmp_path / "c.json").read_text())["checkpoints"] == [str(weights / name)]


HANDLER = {"model_path": "weights"}


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"handler": HANDLER}, ValueError, "tiny has no section deepspeed"),
        ({"deepspeed": {}}, KeyError, "handler"),
        ({"deepspeed": {}, "handler": {}}, KeyError, "model_path"),
        ({"deepspeed": {"config": "a.json"}, "handler": HANDLER}, ValueError, r"no DeepSpeed config file a\.json"),
        ({"deepspeed": {"checkpoint": "a.json"}, "handler": HANDLER}, ValueError, "There are no weights below"),
    ],
)
def test_what_deepspeed_lacks_is_named(
    make_context: MakeContext, config: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        get_ds_engine(None, make_context(config=config))


def test_without_deepspeed_the_package_is_named(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ImportError, match="pip install deepspeed"):
        get_ds_engine(None, make_context(config={"deepspeed": {}, "handler": HANDLER}))


# -- PiPPy -----------------------------------------------------------------------------------------------------------

PIPPY = {"input_names": ["values"], "model_type": "plain"}


class Scale(torch.nn.Module):
    def forward(self, values: Any, factor: int = 2) -> Any:
        return values * factor


def test_a_model_is_cut_into_a_stage_for_each_rank(
    make_context: MakeContext, put_stand_in: Callable[[str], None]
) -> None:
    put_stand_in("pippy_0")
    context = make_context(config={"pippy": {**PIPPY, "chunks": 3}, "handler": HANDLER})
    driver = get_pipeline_driver(Scale(), 4, context)
    assert driver(torch.ones(1)).tolist() == [2.0]
    assert driver.options["split_policy"] == "4 equal parts"
    assert (driver.options["num_ranks"], driver.options["num_chunks"]) == (4, 3)
    assert (driver.options["concrete_args"], driver.options["tracer"]) == ({"factor": 2}, None)


def test_a_model_of_transformers_keeps_its_face(
    make_context: MakeContext, put_stand_in: Callable[[str], None], tmp_path: Path
) -> None:
    put_stand_in("pippy_0")
    (tmp_path / "index.json").write_text("{}")
    handler = {"model_path": str(tmp_path), "index_filename": "index.json"}
    context = make_context(config={"pippy": {**PIPPY, "model_type": "HF"}, "handler": handler})
    model = Scale()
    assert get_pipline_driver(model, 2, context) is model
    options = model.forward.options  # type: ignore[attr-defined]
    assert type(options["tracer"]).__name__ == "PiPPyHFTracer"
    assert (options["num_chunks"], options["index_filename"]) == (1, str(tmp_path / "index.json"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"handler": HANDLER}, "Missing 'pippy' key"),
        ({"pippy": PIPPY}, "Missing 'handler' key"),
        ({"pippy": {"model_type": "HF"}, "handler": HANDLER}, "Missing 'input_names' key"),
        ({"pippy": {"input_names": []}, "handler": HANDLER}, "Missing 'model_type' key"),
        ({"pippy": PIPPY, "handler": {"max_length": 1}}, "Missing 'model_path' key"),
        ({"pippy": PIPPY, "handler": {**HANDLER, "index_filename": "i.json"}}, "Index file 'weights/i.json' not found"),
    ],
)
def test_what_pippy_lacks_is_named(make_context: MakeContext, config: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        get_pipeline_driver(Scale(), 1, make_context(config=config))


def test_without_pippy_the_package_is_named(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pippy", None)
    with pytest.raises(ImportError, match="pip install torchpippy"):
        get_pipeline_driver(Scale(), 1, make_context(config={"pippy": PIPPY, "handler": HANDLER}))


def test_the_misspelt_name_is_the_same_function() -> None:
    assert get_pipline_driver is get_pipeline_driver


@pytest.mark.parametrize(("gpus", "device"), [(0, torch.device("cpu")), (2, 1)])
def test_a_rank_has_a_device_of_its_own(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch, gpus: int, device: Any
) -> None:
    connected: list[Any] = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(base_pippy_handler, "initialize_rpc_workers", lambda *arguments: connected.append(arguments))
    handler, context = BasePippyHandler(), make_context()
    handler.initialize(context)
    assert (handler.local_rank, handler.world_size, handler.device) == (3, 4, device)
    assert connected == [(3, 4, context)]


def test_a_rank_needs_its_number(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(KeyError, match="LOCAL_RANK"):
        BasePippyHandler().initialize(make_context())


RANK = """
import sys, torch
import torch.distributed.rpc as rpc
from ts.context import Context
from ts.torch_handler.distributed.base_pippy_handler import BasePippyHandler

config = {"pippy": {"rpc_timeout": 30, "num_worker_threads": 4}}
handler = BasePippyHandler()
handler.initialize(Context("tiny", ".", {}, 1, None, "0", model_yaml_config=config))
if handler.local_rank == 0:
    print(rpc.rpc_sync("worker1", torch.add, (torch.ones(2), 1)).tolist())
rpc.shutdown()
"""


@pytest.mark.slow
def test_two_ranks_reach_each_other(tmp_path: Path) -> None:
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK],
            env={
                **os.environ,
                **environment,
                "LOCAL_RANK": str(rank),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            },
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert outputs[0] == "[2.0, 2.0]\n"
