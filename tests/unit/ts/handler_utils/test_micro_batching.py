from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ts.context import Context, RequestProcessor
from ts.handler_utils.micro_batching import MicroBatching


class Metrics:
    def __init__(self) -> None:
        self.times: list[str] = []

    def add_time(self, name: str, *_: Any) -> None:
        self.times.append(name)


class Handler:
    """Adds one, doubles, and notes which slices it saw."""

    def __init__(self) -> None:
        self.context: Any = None
        self.explain = False
        self.indexes: set[int | None] = set()
        self.ids: dict[int | None, dict[int, str]] = {}
        self.handle = MicroBatching(self)

    def preprocess(self, data: list[int]) -> list[int]:
        self.indexes.add(self.handle.get_micro_batch_idx())
        return [item + 1 for item in data]

    def inference(self, data: list[int]) -> list[int]:
        if -1 in data:
            raise KeyError("minus one")
        return [item * 2 for item in data]

    def postprocess(self, data: Any) -> Any:
        self.ids[self.handle.get_micro_batch_idx()] = self.handle.get_micro_batch_request_ids()
        return data

    def describe_handle(self) -> str:
        return "about"

    def explain_handle(self, prepared: list[int], raw: list[int]) -> list[Any]:
        return [prepared, raw]

    def _infer_with_profiler(self, data: list[int]) -> tuple[Any, Any]:
        return ["profiled"], None


@pytest.fixture
def handler() -> Iterator[Handler]:
    handler = Handler()
    yield handler
    handler.handle.shutdown()


def context(count: int = 1, **headers: str) -> Context:
    made = Context("net", "/", None, 8, None, "0", metrics=Metrics())
    made.request_processor = [RequestProcessor(dict(headers)) for _ in range(count)]
    made.request_ids = {index: f"id-{index}" for index in range(count)}
    return made


def test_the_slices_of_a_batch_come_back_in_order(handler: Handler) -> None:
    handler.handle.micro_batch_size = 8
    handler.handle.parallelism = {"preprocess": 2, "inference": 3, "postprocess": 2}
    made = context(16)
    assert handler.handle(list(range(16)), made) == [(item + 1) * 2 for item in range(16)]
    assert handler.indexes == {0, 1}
    assert handler.context is made
    assert made.metrics.times == ["HandlerTime"]


def test_the_last_slice_may_be_smaller(handler: Handler) -> None:
    handler.handle.micro_batch_size = 4
    assert handler.handle.handle(list(range(5))) == [2, 4, 6, 8, 10]


def test_an_empty_batch_has_an_empty_answer(handler: Handler) -> None:
    assert handler.handle.handle([]) == []


def test_outside_of_the_steps_there_is_no_slice(handler: Handler) -> None:
    assert handler.handle.get_micro_batch_idx() is None
    assert handler.handle.get_micro_batch_request_ids() == {}


def test_a_step_knows_the_requests_of_its_slice(handler: Handler) -> None:
    handler.handle.micro_batch_size = 2
    handler.handle([1, 2, 3], context(3))
    assert handler.ids == {0: {0: "id-0", 1: "id-1"}, 1: {0: "id-2"}}


def test_an_exception_of_a_step_reaches_the_caller_and_the_threads_go_on(handler: Handler) -> None:
    before = handler.handle.thread_groups
    for _ in range(3):
        with pytest.raises(KeyError, match="minus one"):
            handler.handle.handle([1, -2, 3])
    assert handler.handle.handle([1, 2]) == [4, 6]
    assert handler.handle.thread_groups == before
    assert all(thread.is_alive() for group in before.values() for thread in group)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_step_can_ask_the_process_to_end(error: type[BaseException]) -> None:
    class Leaving(Handler):
        def inference(self, data: list[int]) -> list[int]:
            raise error

    handler = Leaving()
    with pytest.raises(error):
        handler.handle.handle([1])
    handler.handle.shutdown()


def test_an_answer_that_is_no_list_is_named(handler: Handler) -> None:
    class Silent(Handler):
        def postprocess(self, data: Any) -> Any:
            return None

    silent = Silent()
    with pytest.raises(TypeError, match=r"postprocess must return a list .* not NoneType"):
        silent.handle.handle([1])
    silent.handle.shutdown()


def test_two_steps_run_at_the_same_time() -> None:
    """The second slice is prepared while the first one is in the model: neither could go on alone."""
    both = threading.Barrier(2, timeout=10)

    class Meeting(Handler):
        def preprocess(self, data: list[int]) -> list[int]:
            if data == [2]:
                both.wait()
            return data

        def inference(self, data: list[int]) -> list[int]:
            if data == [1]:
                both.wait()
            return data

    handler = Meeting()
    assert handler.handle.handle([1, 2]) == [1, 2]
    handler.handle.shutdown()


def count(handler: Handler) -> dict[str, int]:
    return {step: len(threads) for step, threads in handler.handle.thread_groups.items()}


def test_the_number_of_threads_follows_the_setting(handler: Handler) -> None:
    assert count(handler) == {"preprocess": 1, "inference": 1, "postprocess": 1}
    handler.handle.parallelism = {"inference": 4}
    assert count(handler) == {"preprocess": 1, "inference": 4, "postprocess": 1}
    ending = handler.handle.thread_groups["inference"][2:]
    handler.handle.parallelism = {"inference": 2, "preprocess": 3}
    for thread in ending:
        thread.join(10)
        assert not thread.is_alive()
    assert count(handler) == {"preprocess": 3, "inference": 2, "postprocess": 1}
    assert handler.handle.handle(list(range(50))) == [(item + 1) * 2 for item in range(50)]


def test_the_setting_is_a_copy(handler: Handler) -> None:
    handler.handle.parallelism["inference"] = 9
    assert handler.handle.parallelism == {"preprocess": 1, "inference": 1, "postprocess": 1}


def test_wrong_settings_are_refused(handler: Handler) -> None:
    with pytest.raises(AssertionError, match="No such step: training"):
        handler.handle.parallelism = {"training": 1}
    with pytest.raises(ValueError, match="at least one thread"):
        handler.handle.parallelism = {"inference": 0}
    handler.handle.micro_batch_size = 0
    with pytest.raises(ValueError, match="micro_batch_size"):
        handler.handle.handle([1])


def test_size_and_threads_can_be_given_at_once() -> None:
    micro = MicroBatching(Handler(), 3, {"postprocess": 2})
    assert (micro.micro_batch_size, micro.parallelism["postprocess"]) == (3, 2)
    micro.shutdown()
    micro.handler.handle.shutdown()


def test_after_shutdown_a_batch_fails_instead_of_waiting() -> None:
    handler = Handler()
    threads = [thread for group in handler.handle.thread_groups.values() for thread in group]
    handler.handle.shutdown()
    assert handler.handle.terminate.is_set()
    assert not any(thread.is_alive() for thread in threads)
    with pytest.raises(RuntimeError, match="shut down"):
        handler.handle.handle([1])


def test_questions_and_explanations_are_not_sliced(handler: Handler, monkeypatch: pytest.MonkeyPatch) -> None:
    assert handler.handle([1], context(describe="True")) == ["about"]
    assert handler.handle([1], context(explain="True")) == [[2], [1]]
    assert handler.explain
    monkeypatch.setenv("ENABLE_TORCH_PROFILER", "true")
    assert handler.handle([1], context()) == ["profiled"]
