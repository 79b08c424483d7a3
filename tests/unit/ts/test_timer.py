from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ts.handler_utils.timer import timed
from ts.metrics.store import MetricsCache
from ts.wire import Sample


class Handler:
    def __init__(self, context: Any = None) -> None:
        self.context = context

    @timed
    def preprocess(self, data: list[int], *, factor: int = 1) -> list[int]:
        """Multiplies."""
        return [value * factor for value in data]


class Bare:
    @timed
    def initialize(self, context: Any) -> Any:
        return context


def context_with(config: Any) -> tuple[Any, list[Sample]]:
    samples: list[Sample] = []
    metrics = MetricsCache()
    metrics.sink = samples.append
    metrics.set_request_ids("a")
    return SimpleNamespace(model_yaml_config=config, metrics=metrics), samples


def test_a_profiled_method_emits_its_time() -> None:
    context, samples = context_with({"handler": {"profile": True}})
    assert Handler(context).preprocess([1, 2], factor=2) == [2, 4]
    (sample,) = samples
    assert (sample.name, sample.unit, sample.type) == ("ts_handler_preprocess", "Milliseconds", "gauge")
    assert 0 <= sample.value < 1000


@pytest.mark.parametrize("config", [None, {}, {"handler": None}, {"handler": {"profile": False}}])
def test_a_method_that_is_not_profiled_emits_nothing(config: Any) -> None:
    context, samples = context_with(config)
    assert Handler(context).preprocess([1]) == [1]
    assert samples == []


def test_a_handler_without_a_context_is_not_timed() -> None:
    assert Handler().preprocess([1]) == [1]
    assert Bare().initialize("context") == "context"


def test_a_timed_method_keeps_its_name() -> None:
    assert Handler.preprocess.__name__ == "preprocess"
    assert Handler.preprocess.__doc__ == "Multiplies."
