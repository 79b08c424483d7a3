"""What handlers and scripts import from ``ts``: the twelve items of the reference for symbols.

Item 6, the import of TorchServe's own example handlers, cannot be checked here: they are not part of this project. All
that they import is in ``SYMBOLS``.
"""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import ts
from ts.context import Context, RequestProcessor
from ts.testing import MockContext, run_handler

# Priorities 0 and 1, and of priority 2 what this project has too. Names after the module, or none to import it alone.
SYMBOLS = """
ts: __version__
ts.version: __version__
ts.context: Context RequestProcessor
ts.service: emit_metrics Service
ts.utils.util: PredictionException map_class_to_label list_classes_from_module load_label_mapping CLEANUP_REGEX
ts.utils.util: check_valid_pt2_backend
ts.utils.hf_utils: download_model
ts.handler_utils.timer: timed
ts.handler_utils.utils: send_intermediate_predict_response import_class
ts.handler_utils.micro_batching: MicroBatching
ts.handler_utils.hf_batch_streamer: TextIteratorStreamerBatch
ts.handler_utils.text_utils: get_tokenizer ngrams_iterator
ts.handler_utils.preprocess.dali: get_dali_pipeline
ts.handler_utils.distributed.deepspeed: get_ds_engine
ts.handler_utils.distributed.pt_pippy: get_pipeline_driver get_pipline_driver initialize_rpc_workers
ts.protocol.otf_message_handler: send_intermediate_predict_response
ts.metrics.dimension: Dimension
ts.metrics.metric_type_enum: MetricTypes
ts.metrics.metrics_store: MetricsStore
ts.metrics.metric: Metric
ts.metrics.metric_encoder: MetricEncoder
ts.metrics.unit: Units
ts.metrics.caching_metric: CachingMetric
ts.metrics.metric_abstract: MetricAbstract
ts.metrics.metric_cache_abstract: MetricCacheAbstract
ts.metrics.metric_cache_yaml_impl: MetricsCacheYamlImpl
ts.metrics.metric_cache_errors: MetricsCacheKeyError MetricsCacheTypeError MetricsCacheValueError
ts.model_loader: ModelLoader TsModelLoader ModelLoaderFactory
ts.model_service.model_service: ModelService SingleNodeService
ts.launcher: start stop register_model register_model_with_params
ts.llm_launcher: main
"""
OF_TORCH = """
ts.torch_handler.base_handler: BaseHandler
ts.torch_handler.text_handler: TextHandler BaseHandler
ts.torch_handler.text_classifier: TextClassifier
ts.torch_handler.contractions: CONTRACTION_MAP
ts.torch_handler.request_envelope.base: BaseEnvelope
ts.torch_handler.request_envelope.body: BodyEnvelope
ts.torch_handler.request_envelope.json: JSONEnvelope
ts.torch_handler.request_envelope.kserve: KServeEnvelope
ts.torch_handler.request_envelope.kservev2: KServev2Envelope
ts.torch_handler.request_envelope.kfserving: KFservingEnvelope
ts.torch_handler.request_envelope.kfservingv2: KFservingv2Envelope
ts.torch_handler.vllm_handler: VLLMHandler
ts.torch_handler.trt_llm_handler: TRTLLMHandler
ts.torch_handler.densenet_handler: DenseNetHandler
ts.torch_handler.distributed.base_deepspeed_handler: BaseDeepSpeedHandler
ts.torch_handler.distributed.base_deepspeed: BaseDeepSpeedHandler
ts.torch_handler.distributed.base_pippy_handler: BasePippyHandler
ts.torch_handler.unit_tests.test_utils.mock_context: MockContext
ts.torch_handler.unit_tests.test_utils.model_dir: download_model copy_files
"""
OF_PILLOW = """
ts.torch_handler.vision_handler: VisionHandler
ts.torch_handler.image_classifier: ImageClassifier
ts.torch_handler.object_detector: ObjectDetector
ts.torch_handler.image_segmenter: ImageSegmenter
ts.torch_handler.dali_handler: DALIHandler
ts.torch_handler.dali_image_classifier: DALIImageClassifier
"""
# Packages of models, none of which may be needed to import a module.
VENDORS = "numpy captum torchvision torchtext transformers vllm tensorrt_llm nvidia deepspeed pippy huggingface_hub"
VENDORS += " safetensors onnxruntime sklearn matplotlib"


def imports_without(packages: str, symbols: str) -> None:
    """Imports everything in a new interpreter that lacks some packages."""
    lines = [line.partition(": ") for line in symbols.split("\n") if line]
    imports = "\n".join(f"from {module} import {', '.join(names.split())}" for module, _, names in lines)
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({packages.split()!r}))\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + imports], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_01_what_needs_no_torch_is_imported_without_it_and_without_any_package_of_models() -> None:
    imports_without(f"torch PIL {VENDORS}", SYMBOLS)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize(("packages", "symbols"), [(f"PIL {VENDORS}", OF_TORCH), (VENDORS, OF_PILLOW)])
def test_01_handlers_are_imported_with_torch_alone_or_with_pillow_too(packages: str, symbols: str) -> None:
    imports_without(packages, symbols)


LOADED = {
    "vllm": ("ts.torch_handler.vllm_handler:VLLMHandler", {"handler": {"model_path": "m"}}),
    "tensorrt_llm": ("ts.torch_handler.trt_llm_handler:TRTLLMHandler", {"handler": {"engine_dir": "m"}}),
    "deepspeed": (
        "ts.handler_utils.distributed.deepspeed:get_ds_engine",
        {"deepspeed": {}, "handler": {"model_path": ""}},
    ),
    "nvidia": (
        "ts.handler_utils.preprocess.dali:get_dali_pipeline",
        {"dali": {"batch_size": 1, "num_threads": 1, "device_id": 0, "seed": 1}},
    ),
}


@pytest.mark.torch
@pytest.mark.parametrize("package", LOADED)
def test_01_a_missing_package_is_named_with_the_command_that_installs_it(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    path, config = LOADED[package]
    context = Context("m", str(tmp_path), {}, 1, None, "0", model_yaml_config=config)
    found = named(path)
    load = partial(run_handler, found, [], context=context) if inspect.isclass(found) else partial(found, ctx=context)
    if package == "deepspeed":
        load = partial(load, None)
    with pytest.raises(ImportError, match=f"a package that is missing: pip install {package}"):
        load()


def named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def test_02_all_modules_of_metrics_are_imported_without_torch_and_psutil() -> None:
    names = sorted(path.stem for path in (Path(ts.__file__).parent / "metrics").glob("[!_]*.py"))
    assert "system_metrics" in names
    code = "import sys; sys.modules.update(torch=None, psutil=None)\nimport ts.context, ts.utils.util\n"
    code += "\n".join(f"import ts.metrics.{name}" for name in names)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class Sent:
    """Takes the pieces of a streamed answer."""

    def __init__(self) -> None:
        self.pieces: list[Any] = []

    def send_pieces(self, ret: Any, req_id_map: Any, message: str, code: int) -> None:
        self.pieces.append((ret, req_id_map, message, code))


def test_03_pieces_are_sent_under_both_paths_and_the_old_one_warns_each_time() -> None:
    from ts.handler_utils import utils  # noqa: PLC0415
    from ts.protocol import otf_message_handler  # noqa: PLC0415

    context = Context("m", ".", {}, 1, None, "0")
    context.cl_socket = sent = Sent()
    piece = (["piece"], {0: "id"}, "Result", 200)
    utils.send_intermediate_predict_response(*piece, context)
    for _ in range(2):
        with pytest.warns(PendingDeprecationWarning, match=r"ts\.handler_utils\.utils"):
            otf_message_handler.send_intermediate_predict_response(*piece, context)
    assert sent.pieces == [piece] * 3


SIGNATURES = {
    "get_request_id": ["idx=0"],
    "get_request_header": ["idx", "key"],
    "get_all_request_header": ["idx"],
    "set_response_content_type": ["idx", "value"],
    "get_response_content_type": ["idx"],
    "set_response_header": ["idx", "key", "value"],
    "get_response_headers": ["idx"],
    "set_response_status": ["code=200", "phrase=''", "idx=0"],
    "set_all_response_status": ["code=200", "phrase=''"],
    "get_response_status": ["idx"],
    "get_sequence_id": ["idx"],
}
ATTRIBUTES = """
system_properties model_yaml_config manifest request_ids model_name stopping_criteria metrics request_processor
_request_processor cl_socket header_key_sequence_id header_key_sequence_start header_key_sequence_end
"""


@pytest.mark.parametrize("method", SIGNATURES)
def test_04_a_method_of_the_context_takes_what_it_always_took(method: str) -> None:
    parameters = list(inspect.signature(getattr(Context, method)).parameters.values())[1:]
    empty = inspect.Parameter.empty
    found = [p.name if p.default is empty else f"{p.name}={p.default!r}" for p in parameters]
    assert found == SIGNATURES[method]


@pytest.mark.parametrize("attribute", ATTRIBUTES.split())
def test_04_the_context_has_the_attributes_that_handlers_read_and_takes_those_of_their_own(attribute: str) -> None:
    context = Context("m", ".", {}, 1, None, "0")
    assert hasattr(context, attribute)
    context.cache = {"mine": 1}  # type: ignore[attr-defined]
    assert vars(context)["cache"] == {"mine": 1}


MODEL = """
import torch


class Twice(torch.nn.Module):
    def forward(self, values):
        return 2 * values
"""


class Replaced(NamedTuple):
    """One method of the base replaced, and what shows that it was."""

    method: Callable[..., Any]
    answer: Any  # to [1.0]
    headers: tuple[tuple[str, str], ...] = ()
    serialized_file: str | None = None


def _explain(_self: Any, _tensor: Any, _raw: Any, target: Any) -> Any:
    return [f"because of {target}"]


REPLACED = {
    "__init__": Replaced(lambda self: vars(self).update(postprocess=lambda data: ["made"]), "made"),
    "initialize": Replaced(
        lambda self, _context: vars(self).update(device="cpu", model=lambda values: 5 * values), [5.0]
    ),
    "preprocess": Replaced(lambda _self, _data: importlib.import_module("torch").tensor([[7.0]]), [14.0]),
    "inference": Replaced(lambda _self, data: 3 * data, [3.0]),
    "postprocess": Replaced(lambda _self, data: [f"{data.tolist()}"], "[[2.0]]"),
    "handle": Replaced(lambda _self, _data, _context: ["all mine"], "all mine"),
    "get_insights": Replaced(_explain, "because of 0", (("explain", "True"),)),
    "_load_pickled_model": Replaced(lambda _self, *_paths: importlib.import_module("torch").nn.Identity(), [1.0]),
    "_load_torchscript_model": Replaced(
        lambda _self, _path: lambda values: 9 * values, [9.0], serialized_file="model.pt"
    ),
    "describe_handle": Replaced(lambda _self: "mine", "mine", (("describe", "True"),)),
    "_is_describe": Replaced(lambda _self: True, None),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", REPLACED)
def test_05_a_handler_that_replaces_one_method_of_the_base_answers(name: str, tmp_path: Path) -> None:
    from ts.torch_handler.base_handler import BaseHandler  # noqa: PLC0415

    method, answer, headers, serialized_file = REPLACED[name]
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "model.pt").write_bytes(b"for the handler to read")
    model_file = None if serialized_file else "model.py"
    context = MockContext(model_pt_file=serialized_file, model_file=model_file, model_dir=tmp_path)
    handler = type("Mine", (BaseHandler,), {name: method})
    assert run_handler(handler, [[1.0]], model_dir=tmp_path, context=context, headers=[dict(headers)]) == [answer]


@pytest.mark.torch
def test_07_a_mock_context_drives_the_base_handler_and_the_image_classifier(tmp_path: Path) -> None:
    import io  # noqa: PLC0415

    from PIL import Image  # noqa: PLC0415

    (tmp_path / "model.py").write_text(
        MODEL.replace("2 * values", "values.mean(dim=(2, 3)) if values.dim() == 4 else 2 * values")
    )
    context = MockContext(model_pt_file=None, model_file="model.py", model_dir=tmp_path)
    assert run_handler("base_handler", [[1.0]], model_dir=tmp_path, context=context) == [[2.0]]
    picture = io.BytesIO()
    Image.new("RGB", (9, 9), (0, 255, 0)).save(picture, "PNG")
    (answer,) = run_handler("image_classifier", [picture.getvalue()], model_dir=tmp_path, context=context)
    assert next(iter(answer)) == "1"


@pytest.mark.slow
def test_08_the_launcher_of_language_models_explains_itself() -> None:
    command = [sys.executable, "-m", "ts.llm_launcher", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    flags = "model_name model_store model_id disable_token_auth startup_timeout engine dtype vllm_engine.max_num_seqs"
    flags += " vllm_engine.max_model_len vllm_engine.download_dir trt_llm_engine.max_batch_size"
    flags += " trt_llm_engine.kv_cache_free_gpu_memory_fraction"
    assert [flag for flag in flags.split() if f"--{flag}" not in shown] == []


def test_09_the_version_is_text_and_that_of_the_context(tmp_path: Path) -> None:
    seen: list[Any] = []

    def handle(data: Any, context: Any) -> Any:
        seen.append(context.system_properties["server_version"])
        return data and ["done"]

    run_handler(handle, ["x"], model_dir=tmp_path)
    assert isinstance(ts.__version__, str)
    assert set(seen) == {ts.__version__}


@pytest.mark.torch
def test_10_older_and_misspelt_names_are_the_same_things() -> None:
    envelopes = "ts.torch_handler.request_envelope"
    pairs = [
        (f"{envelopes}.kfserving:KFservingEnvelope", f"{envelopes}.kserve:KServeEnvelope"),
        (f"{envelopes}.kfservingv2:KFservingv2Envelope", f"{envelopes}.kservev2:KServev2Envelope"),
        (
            "ts.handler_utils.distributed.pt_pippy:get_pipline_driver",
            "ts.handler_utils.distributed.pt_pippy:get_pipeline_driver",
        ),
    ]
    for old, new in pairs:
        assert named(old) is named(new)


def test_11_a_metric_is_a_caching_metric_and_a_missing_one_a_key_error() -> None:
    from ts.metrics.caching_metric import CachingMetric  # noqa: PLC0415
    from ts.metrics.metric_cache_errors import MetricsCacheKeyError  # noqa: PLC0415
    from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl  # noqa: PLC0415
    from ts.metrics.metric_type_enum import MetricTypes  # noqa: PLC0415

    context = Context("m", ".", {}, 1, None, "0", metrics=MetricsCacheYamlImpl())
    context.metrics.initialize_cache()
    assert isinstance(context.metrics.get_metric("HandlerTime", MetricTypes.GAUGE), CachingMetric)
    for error in (MetricsCacheKeyError, KeyError):
        with pytest.raises(error):
            context.metrics.get_metric("Absent", MetricTypes.COUNTER)


@pytest.mark.torch
def test_12_a_context_that_is_made_by_hand_serves_the_base_handler(tmp_path: Path) -> None:
    from ts.metrics.metrics_store import MetricsStore  # noqa: PLC0415
    from ts.torch_handler.base_handler import BaseHandler  # noqa: PLC0415

    (tmp_path / "model.py").write_text(MODEL)
    context = Context("mine", str(tmp_path), {"model": {"modelFile": "model.py"}}, None, None, None)  # type: ignore[arg-type]
    context.request_processor = [RequestProcessor({})]
    context.metrics = MetricsStore(str(uuid.uuid4()), "mine")
    handler = BaseHandler()
    handler.initialize(context)
    assert handler.handle([[1.0]], context) == [[2.0]]
    sys.modules.pop("model", None)
