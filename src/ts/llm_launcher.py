"""``python -m ts.llm_launcher``: a language model behind a server in one command, by the command of the server."""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ts import launcher
from ts.utils.hf_utils import download_model

__all__ = ["main", "model_config", "write_model"]

ENGINES = ("vllm", "trt_llm")
ARCHIVER_VERSION = "0.12.0"  # whose format of manifests it is
MARK = "ts.llm_launcher"  # in the manifests of directories that may be written again


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the model, starts a server with it and waits until one of them is to end; returns the exit status.

    Args:
        argv: the flags; those of this process by default.
    """
    arguments = _parse(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        written = write_model(arguments, _snapshot(arguments))
        try:
            return _serve(arguments)
        finally:
            if written and arguments.engine == "vllm":
                shutil.rmtree(Path(arguments.model_store, arguments.model_name), ignore_errors=True)
    except (OSError, ImportError, RuntimeError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _serve(arguments: argparse.Namespace) -> int:
    try:
        lines = launcher.start(
            model_store=arguments.model_store,
            no_config_snapshots=True,
            models=arguments.model_name,
            disable_token=arguments.disable_token_auth,
        )
        while lines.get() is not None:
            pass
    except KeyboardInterrupt:
        return 0
    else:
        return 1  # the server ended by itself
    finally:
        launcher.stop()


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _snapshot(arguments: argparse.Namespace) -> str | None:
    """TensorRT-LLM gets the files of the model; vLLM fetches them itself."""
    if arguments.engine != "trt_llm":
        return None
    return str(Path(download_model(arguments.model_id)).resolve())


# -- the model -------------------------------------------------------------------------------------------------------


def write_model(arguments: argparse.Namespace, snapshot: str | None = None) -> bool:
    """Writes the model's directory into the model store, unless somebody else's is there already; that one is served.

    Args:
        arguments: the flags.
        snapshot: directory with the files of the model, for TensorRT-LLM.

    Returns:
        Whether the directory is of this program.
    """
    directory = Path(arguments.model_store, arguments.model_name)
    manifest = directory / "MAR-INF" / "MANIFEST.json"
    if directory.exists() and not _is_ours(manifest):
        sys.stderr.write(f"{directory} is there already and is served as it is; of the flags only its name counts.\n")
        return False
    manifest.parent.mkdir(parents=True, exist_ok=True)
    # JSON is YAML, and needs no package to be written.
    config = json.dumps(model_config(arguments, snapshot), indent=2)
    (directory / "model-config.yaml").write_text(f"{config}\n", encoding="utf-8")
    model = {
        "modelName": arguments.model_name,
        "handler": f"{arguments.engine}_handler",
        "modelVersion": "1.0",
        "configFile": "model-config.yaml",
    }
    written = {
        "createdOn": time.strftime("%d/%m/%Y %H:%M:%S"),
        "runtime": "python",
        "model": model,
        "archiverVersion": ARCHIVER_VERSION,
        "createdBy": MARK,
    }
    manifest.write_text(json.dumps(written, indent=2), encoding="utf-8")
    return True


def _is_ours(manifest: Path) -> bool:
    try:
        content = json.loads(manifest.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("createdBy") == MARK


def model_config(arguments: argparse.Namespace, snapshot: str | None = None) -> dict[str, Any]:
    """The model configuration.

    Args:
        arguments: the flags.
        snapshot: directory with the files of the model, for TensorRT-LLM.
    """
    config: dict[str, Any] = {
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": 1,
        "maxBatchDelay": 100,
        "responseTimeout": 1200,
        "startupTimeout": arguments.startup_timeout,
        "deviceType": "gpu",
        "asyncCommunication": True,
    }
    if arguments.engine == "vllm":
        return config | _for_vllm(vars(arguments), _count_gpus())
    return config | {"handler": _for_tensorrt(vars(arguments), snapshot)}


def _for_vllm(flags: dict[str, Any], gpus: int) -> dict[str, Any]:
    download_dir = flags["vllm_engine.download_dir"]
    engine = {
        "max_num_seqs": flags["vllm_engine.max_num_seqs"],
        "max_model_len": flags["vllm_engine.max_model_len"],
        "download_dir": str(Path(download_dir).resolve()) if download_dir else None,
        "tensor_parallel_size": gpus,
    }
    config = {"parallelLevel": gpus, "handler": {"model_path": flags["model_id"], "vllm_engine_config": engine}}
    return {"parallelType": "custom", **config} if gpus > 1 else config


def _for_tensorrt(flags: dict[str, Any], snapshot: str | None) -> dict[str, Any]:
    """An engine that was built ahead lies in the model's directory; otherwise TensorRT-LLM loads the checkpoint."""
    share = flags["trt_llm_engine.kv_cache_free_gpu_memory_fraction"]
    section: dict[str, Any] = {"tokenizer_dir": snapshot, "kv_cache_config": {"free_gpu_memory_fraction": share}}
    engine = f"{flags['model_name']}-engine"
    if Path(flags["model_store"], flags["model_name"], engine).is_dir():
        return {"engine_dir": engine, **section}
    options = {"dtype": flags["dtype"], "max_batch_size": flags["trt_llm_engine.max_batch_size"]}
    return {"engine_dir": snapshot, **section, "trt_llm_engine_config": options}


def _count_gpus() -> int:
    """The GPUs that a model is spread over; 1 where they cannot be counted."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return 1
    return max(int(torch.cuda.device_count()), 1)


# -- flags -----------------------------------------------------------------------------------------------------------


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ts.llm_launcher",
        description="Serve a language model: writes its directory into the model store and starts torchserve with it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model_name", default="model", help="name to serve it under")
    add("--model_store", default="model_store", help="directory of the models; made if missing")
    add("--model_id", default="meta-llama/Meta-Llama-3.1-8B-Instruct", help="name on the Hugging Face Hub, or a path")
    add("--disable_token_auth", action="store_true", help="ask nobody for a token")
    add("--vllm_engine.max_num_seqs", type=int, default=256, help="most requests that vLLM runs at a time")
    add("--vllm_engine.max_model_len", type=int, help="most tokens of a request and its answer; the model's own limit")
    add("--vllm_engine.download_dir", help="directory that vLLM downloads to")
    add("--startup_timeout", type=int, default=1200, help="seconds for loading the model")
    add("--engine", default="vllm", help=f"what runs the model: {' or '.join(ENGINES)}")
    add("--dtype", default="bfloat16", help="numbers that TensorRT-LLM computes with")
    add("--trt_llm_engine.max_batch_size", type=int, default=4, help="most requests that TensorRT-LLM runs at a time")
    add(
        "--trt_llm_engine.kv_cache_free_gpu_memory_fraction",
        type=float,
        default=0.1,
        help="share of the free GPU memory for TensorRT-LLM's cache",
    )
    arguments = parser.parse_args(argv)
    if arguments.engine not in ENGINES:
        parser.error(f"Unsupported LLM Engine {arguments.engine!r}: choose {' or '.join(ENGINES)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
