"""The reference for built-in handlers, item by item: which tests check it.

Not checked anywhere, because it cannot be here: the labels of photographs under trained weights (item 1; the
probabilities are compared with torchvision's under seeded weights instead); DALI on a GPU against Pillow (item 15; the
stand-in for DALI computes on the CPU); vLLM and TensorRT-LLM themselves (items 16, 17; stand-ins); ModelInfer over gRPC
(item 25; there is no gRPC yet).
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from mariner.archive.collect import BUILTIN_HANDLERS
from ts.loader import BUILTINS, find_handler

TESTS = Path(__file__).parents[1]
VISION, TEXT = "compat/test_builtin_handlers_vision.py", "compat/test_builtin_handlers_text.py"
ENVELOPES, LANGUAGE = "compat/test_builtin_handlers_envelopes.py", "compat/test_builtin_handlers_language_models.py"
GOLDEN, HANDLERS = "compat/test_builtin_handlers_golden.py", "unit/ts/torch_handler"
MICRO = "unit/ts/handler_utils/test_micro_batching.py"
STREAMER = "unit/ts/handler_utils/test_hf_batch_streamer.py"

CHECKED = {
    1: [f"{VISION}::test_01_", f"{GOLDEN}::test_a_resnet_gives_the_classes_and_probabilities_of_torchvision"],
    2: [f"{VISION}::test_02_"],
    3: [f"{VISION}::test_03_"],
    4: [f"{VISION}::test_04_", f"{ENVELOPES}::test_23_", f"{ENVELOPES}::test_24_26_"],
    5: [f"{VISION}::test_05_in_a_batch", f"{VISION}::test_05_without_isolation"],
    6: [f"{VISION}::test_06_", f"{GOLDEN}::test_the_transform_of_classifiers_is_that_of_torchvision"],
    7: [f"{HANDLERS}/test_image_classifier.py::test_the_limit_of_pixels_can_be_lifted"],
    8: [f"{VISION}::test_08_", f"{GOLDEN}::test_a_detector_answers_with_the_objects_above_its_threshold"],
    9: [f"{VISION}::test_09_", f"{GOLDEN}::test_a_segmenter_gives_the_pixels_of_torchvision"],
    10: [f"{TEXT}::test_10_"],
    11: [
        f"{HANDLERS}/test_text_handler.py::test_contractions_are_expanded",
        f"{HANDLERS}/test_text_handler.py::test_tags_accents_and_punctuation_go",
        f"{HANDLERS}/test_text_classifier.py::test_words_come_before_pairs",
    ],
    12: [f"{VISION}::test_12_", f"{TEXT}::test_12_an_explanation"],
    13: [f"{VISION}::test_13_", f"{TEXT}::test_13_"],
    14: [f"{TEXT}::test_14_a_saved_tensor", f"{TEXT}::test_14_a_tensor_that_would_run_code"],
    15: [
        f"{HANDLERS}/test_dali_handler.py::test_each_number_is_needed",
        f"{HANDLERS}/test_dali_handler.py::test_the_section_is_needed",
        f"{HANDLERS}/test_dali_handler.py::test_a_missing_pipeline_file_is_a_failure",
        f"{HANDLERS}/test_dali_handler.py::test_dali_prepares_what_pillow_does",
    ],
    16: [
        f"{LANGUAGE}::test_16_the_three_routes",
        f"{LANGUAGE}::test_16_another_route_is_not_found",
        f"{LANGUAGE}::test_16_a_stream",
        f"{HANDLERS}/test_vllm_handler.py::test_an_error_of_the_client_has_its_status_and_the_form_of_openai",
    ],
    17: [f"{LANGUAGE}::test_17_", f"{HANDLERS}/test_trt_llm_handler.py::test_a_streamed_answer_comes_as_json_texts"],
    18: [
        f"{HANDLERS}/test_distributed_handlers.py::test_what_deepspeed_lacks_is_named",
        f"{HANDLERS}/test_distributed_handlers.py::test_what_pippy_lacks_is_named",
        f"{HANDLERS}/test_distributed_handlers.py::test_the_misspelt_name_is_the_same_function",
    ],
    19: [
        f"{MICRO}::test_the_slices_of_a_batch_come_back_in_order",
        f"{MICRO}::test_the_number_of_threads_follows_the_setting",
        f"{MICRO}::test_an_exception_of_a_step_reaches_the_caller_and_the_threads_go_on",
        "integration/test_envelopes.py::test_micro_batches_answer_and_an_exception_in_a_thread_is_answered_too",
    ],
    20: [
        f"{STREAMER}::test_words_come_out_in_step_once_they_are_whole",
        f"{STREAMER}::test_another_number_of_sequences_is_refused",
    ],
    21: [
        "unit/ts/test_text_utils.py::test_basic_english_makes_words_of_punctuation",
        "unit/ts/test_text_utils.py::test_words_come_before_pairs_before_triples",
    ],
    22: [f"{ENVELOPES}::test_22_json", f"{ENVELOPES}::test_22_answers"],
    23: [f"{ENVELOPES}::test_23_"],
    24: [f"{ENVELOPES}::test_24_26_"],
    25: [f"{ENVELOPES}::test_25_26_"],
    26: [f"{ENVELOPES}::test_24_26_", f"{ENVELOPES}::test_25_26_"],
    27: [f"{ENVELOPES}::test_27_"],
    28: [f"{VISION}::test_28_"],
    29: [f"{VISION}::test_29_"],
}


@cache
def names_of(file: str) -> list[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


@pytest.mark.parametrize("item", range(1, 30))
def test_each_item_has_tests_that_exist(item: int) -> None:
    for place in CHECKED[item]:
        file, _, beginning = place.partition("::")
        assert [name for name in names_of(file) if name.startswith(beginning)], place


@pytest.mark.torch
@pytest.mark.parametrize("name", sorted(BUILTIN_HANDLERS | set(BUILTINS)))
def test_what_the_archiver_and_the_worker_know_by_name_is_a_handler(name: str, tmp_path: Path) -> None:
    entry = find_handler(name, tmp_path)
    assert type(entry.handle.__self__).__module__ == f"ts.torch_handler.{name}"  # type: ignore[attr-defined]
