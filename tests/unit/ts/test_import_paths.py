from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "import-paths.md"

# What handlers and scripts in the wild import most; none of it may vanish.
PROMISED = """
ts: __version__
ts.version: __version__
ts.context: Context RequestProcessor
ts.service: Service emit_metrics PREDICTION_METRIC PredictionException
ts.utils.util: PredictionException map_class_to_label list_classes_from_module load_label_mapping
ts.utils.util: get_yaml_config check_valid_pt2_backend CLEANUP_REGEX
ts.handler_utils.timer: timed
ts.handler_utils.utils: send_intermediate_predict_response import_class
ts.protocol.otf_message_handler: send_intermediate_predict_response
ts.torch_handler.base_handler: BaseHandler PROFILER_AVAILABLE PT2_AVAILABLE XLA_AVAILABLE IPEX_AVAILABLE ONNX_AVAILABLE
ts.torch_handler.vision_handler: VisionHandler
ts.torch_handler.image_classifier: ImageClassifier
ts.torch_handler.object_detector: ObjectDetector
ts.torch_handler.image_segmenter: ImageSegmenter
ts.torch_handler.text_handler: TextHandler BaseHandler
ts.torch_handler.text_classifier: TextClassifier
ts.torch_handler.densenet_handler: DenseNetHandler
ts.torch_handler.dali_handler: DALIHandler
ts.torch_handler.dali_image_classifier: DALIImageClassifier
ts.torch_handler.vllm_handler: VLLMHandler
ts.torch_handler.trt_llm_handler: TRTLLMHandler
ts.torch_handler.distributed.base_deepspeed_handler: BaseDeepSpeedHandler
ts.torch_handler.distributed.base_pippy_handler: BasePippyHandler
ts.torch_handler.request_envelope.base: BaseEnvelope
ts.torch_handler.request_envelope.body: BodyEnvelope
ts.torch_handler.request_envelope.json: JSONEnvelope
ts.torch_handler.request_envelope.kserve: KServeEnvelope
ts.torch_handler.request_envelope.kservev2: KServev2Envelope
ts.torch_handler.request_envelope.kfserving: KFservingEnvelope
ts.torch_handler.request_envelope.kfservingv2: KFservingv2Envelope
ts.handler_utils.preprocess.dali: get_dali_pipeline
ts.handler_utils.distributed.deepspeed: get_ds_engine
ts.handler_utils.distributed.pt_pippy: get_pipeline_driver get_pipline_driver initialize_rpc_workers
ts.llm_launcher: main
ts.handler_utils.micro_batching: MicroBatching
ts.handler_utils.hf_batch_streamer: TextIteratorStreamerBatch
ts.torch_handler.unit_tests.test_utils.mock_context: MockContext
ts.torch_handler.unit_tests.test_utils.model_dir: copy_files download_model
ts.metrics.dimension: Dimension
ts.metrics.metric_type_enum: MetricTypes
ts.metrics.metrics_store: MetricsStore
ts.metrics.metric: Metric
ts.metrics.unit: Units
ts.metrics.metric_encoder: MetricEncoder
ts.metrics.caching_metric: CachingMetric
ts.metrics.metric_abstract: MetricAbstract
ts.metrics.metric_cache_abstract: MetricCacheAbstract
ts.metrics.metric_cache_yaml_impl: MetricsCacheYamlImpl
ts.metrics.metric_cache_errors: GeneralMetricsCacheError MetricsCacheKeyError MetricsCacheTypeError
ts.metrics.system_metrics: collect_all
ts.metrics.process_memory_metric: check_process_mem_usage
ts.launcher: start stop register_model register_model_with_params
ts.model_loader: ModelLoader TsModelLoader ModelLoaderFactory
ts.model_service.model_service: ModelService SingleNodeService
"""


OF_TORCH = ("ts.torch_handler.", "ts.factory")


def promised() -> set[tuple[str, str]]:
    rows = [line.partition(": ") for line in PROMISED.strip().splitlines()]
    return {(module, name) for module, _, names in rows for name in names.split()}


def documented() -> set[tuple[str, str]]:
    rows = re.findall(r"^\| `(ts[\w.]*)` \| ([^|]+) \|", PAGE.read_text(), flags=re.MULTILINE)
    return {(module, name) for module, names in rows for name in re.findall(r"`(\w+)`", names)}


def test_the_page_has_all_that_is_promised() -> None:
    assert sorted(promised() - documented()) == []


@pytest.mark.torch
@pytest.mark.parametrize("module", sorted({module for module, _ in promised() | documented()}))
def test_a_module_has_the_names_of_the_page(module: str) -> None:
    names = sorted(name for of, name in documented() if of == module)
    found = importlib.import_module(module)
    assert [name for name in names if not hasattr(found, name)] == []


@pytest.mark.slow
def test_all_but_the_handlers_of_torch_import_without_torch_and_psutil() -> None:
    modules = sorted({module for module, _ in documented() if not module.startswith(OF_TORCH)})
    code = f"import sys; sys.modules.update(torch=None, psutil=None)\nimport {', '.join(modules)}"
    subprocess.run([sys.executable, "-c", code], check=True)
