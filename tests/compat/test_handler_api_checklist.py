"""The list of what handlers were promised, and where each item is proved.

Items are numbered; a test in a file ``test_handler_api_*.py`` beside this one carries the number of its item in its
name. ELSEWHERE names the tests of other folders that prove an item, alone or together with those here; LATER says why
an item is not proved yet.

====  =======================================================================================================
   1  a function ``handle`` is called with ``(None, context)`` to load, then with lists
   2  ``file:function`` with any name; it wins over a class of the same file
   3  a class without a base; ``initialize`` once per worker, before the first batch
   4  a subclass of ``BaseHandler`` that does not call its constructor
   5  ``self.handle = MicroBatching(self)`` in ``__init__`` is the entry point
   6  a class whose ``__module__`` was assigned
   7  imported classes do not count; several classes; none
   8  ``file:missing`` falls back to the class
   9  an import that fails inside the handler is reported as itself
  10  a file of the archive wins over the built-in handler of its name
  11  current directory, modules beside the handler, no modules of the worker
  12  the six system properties; what is printed and logged reaches the log
  13  the manifest is that of the archive
  14  the model configuration is the whole file, ``{}`` without one
  15  attributes of the context stay
  16  request ids in order, those of the answers
  17  ``request_processor``: headers as the client spelled them, statuses
  18  headers by name; parameters as headers
  19  ``url_path``
  20  ``explain`` says the route, not the client
  21  raw bodies without a content type
  22  JSON bodies
  23  text bodies
  24  multipart forms
  25  URL-encoded forms
  26  query parameters
  27  inputs of gRPC requests
  28  ``decode_input_request=false``
  29  what an item of the answer becomes
  30  wrong lengths, no lists
  31  exceptions
  32  missing memory
  33  ``PredictionException``
  34  a request of a batch that fails by its status
  35  headers, content type and status of the right request
  36  headers and statuses that cannot be sent
  37  streamed answers
  38  streamed answers over gRPC
  39  an exception after the first piece
  40  continuous batching
  41  sequence batching
  42  a batch that does not fill
  43  describing
  44  failing to load
  45  the device of a worker
  46  formats of weights
  47  ``pt2`` in the model configuration
  48  ``HandlerTime`` and ``PredictionTime``
  49  ``timed``
  50  the profiler
  51  explaining
  52  asynchronous handlers
  53  ``MockContext``
  54  labels and classes by name
  55  requirements of a model
  56  several ranks
  57  a context made by hand
====  =======================================================================================================
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
UNIT = "unit/ts/"
TORCH = "unit/ts/torch_handler/"

ELSEWHERE = {
    7: (f"{UNIT}test_loader.py::test_of_several_handlers_the_first_is_used_and_the_log_says_so",),
    37: ("integration/test_worker_process.py::test_pieces_of_a_stream_arrive_in_order",),
    45: (
        f"{TORCH}test_device.py::test_without_an_accelerator_it_is_the_cpu",
        f"{TORCH}test_device.py::test_with_cuda_it_is_the_gpu_of_the_worker",
        f"{TORCH}test_device.py::test_an_intel_gpu_is_used_if_it_is_enabled",
        f"{TORCH}test_device.py::test_an_apple_gpu_has_no_index",
        f"{TORCH}test_base_handler.py::test_initialize_sets_what_handlers_read",
    ),
    46: (
        f"{TORCH}test_weights.py::test_an_eager_model_gets_its_state_dict",
        f"{TORCH}test_weights.py::test_an_eager_model_works_without_weights",
        f"{TORCH}test_weights.py::test_torchscript_is_loaded",
        f"{TORCH}test_weights.py::test_a_file_of_no_known_format_is_refused",
        f"{TORCH}test_weights.py::test_two_classes_in_a_model_file_are_refused",
        f"{TORCH}test_export_formats.py::test_code_compiled_by_aotinductor_is_served_in_both_forms",
    ),
    47: (
        f"{TORCH}test_compilation.py::test_a_configuration_asks_for_compilation",
        f"{TORCH}test_compilation.py::test_an_unknown_backend_is_logged_and_not_used",
        f"{TORCH}test_compilation.py::test_the_log_names_backend_and_mode_and_the_configuration_stays",
    ),
    48: (
        f"{TORCH}test_base_handler.py::test_the_time_of_a_batch_is_emitted",
        f"{TORCH}test_base_handler.py::test_a_batch_that_fails_has_no_time",
    ),
    49: (
        f"{TORCH}test_base_handler.py::test_steps_are_timed_if_the_model_is_profiled",
        f"{UNIT}test_timer.py::test_a_method_that_is_not_profiled_emits_nothing",
    ),
    50: (
        f"{TORCH}test_base_handler.py::test_the_profiler_leaves_a_trace_in_the_directory_of_the_model",
        f"{TORCH}test_base_handler.py::test_the_arguments_of_the_profiler_can_be_chosen",
    ),
    52: (
        "integration/test_async_handlers.py::test_five_requests_that_wait_for_each_other_are_answered_by_one_worker",
        "integration/test_async_handlers.py::test_an_error_answers_only_its_own_request",
    ),
    54: (
        f"{UNIT}test_labels.py::test_a_mapping_has_three_forms",
        f"{UNIT}test_labels.py::test_probabilities_get_labels",
        f"{UNIT}test_importing.py::test_classes_are_listed_alphabetically_without_imported_ones",
        f"{UNIT}test_importing.py::test_a_class_is_imported_by_name",
        f"{UNIT}test_importing.py::test_a_name_that_is_no_class_is_an_import_error",
    ),
    55: (
        "integration/test_model_dependencies.py::test_two_models_have_different_versions_of_one_package_at_once",
        "integration/test_model_dependencies.py::test_models_with_virtual_environments_run_in_their_own",
        "integration/test_model_dependencies.py::test_without_the_setting_nothing_is_installed",
    ),
}

LATER = {
    27: "there is no gRPC listener yet",
    38: "there is no gRPC listener yet",
    56: "workers of several ranks do not exist yet",
}

ITEMS = re.findall(r"^ *(\d+)  ", __doc__ or "", flags=re.MULTILINE)


def names_in(path: Path) -> list[str]:
    return re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), flags=re.MULTILINE)


def proved_here() -> set[int]:
    names = [name for path in Path(__file__).parent.glob("test_handler_api_*.py") for name in names_in(path)]
    return {int(found[1]) for name in names if (found := re.match(r"test_(\d+)_", name))}


def test_the_list_has_57_items() -> None:
    assert [int(item) for item in ITEMS] == list(range(1, 58))


def test_every_item_is_proved_or_says_why_not() -> None:
    proved = proved_here() | set(ELSEWHERE)
    assert sorted(proved | set(LATER)) == list(range(1, 58))
    assert proved & set(LATER) == set()


@pytest.mark.parametrize("item", ELSEWHERE)
def test_the_tests_of_other_folders_exist(item: int) -> None:
    for reference in ELSEWHERE[item]:
        path, _, name = reference.partition("::")
        assert name in names_in(TESTS / path), reference
