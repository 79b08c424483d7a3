from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ts.context import Context
from ts.torch_handler.base_handler import BaseHandler
from ts.torch_handler.compilation import compile_model, compile_options

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("pt2", "expected"),
    [
        (None, None),
        ({}, None),
        ("inductor", {"backend": "inductor"}),
        ({"backend": "inductor", "mode": "default"}, {"backend": "inductor", "mode": "default"}),
        ({"compile": {"enable": True, "mode": "reduce-overhead"}}, {"mode": "reduce-overhead"}),
        ({"compile": {"enable": True}}, {}),
        ({"compile": {"enable": False, "backend": "inductor"}}, None),
        ({"compile": None}, None),
        ({"export": {"aot_compile": True}}, None),
    ],
)
def test_a_configuration_asks_for_compilation(pt2: Any, expected: dict[str, Any] | None) -> None:
    assert compile_options({"pt2": pt2}) == expected


def test_a_model_without_the_section_is_not_compiled() -> None:
    assert compile_options({}) is None


@pytest.mark.parametrize("pt2", [["inductor"], 1, {"compile": "inductor"}])
def test_a_section_of_another_type_is_refused(pt2: Any) -> None:
    with pytest.raises(ValueError, match="should be"):
        compile_options({"pt2": pt2})


def test_the_configuration_is_not_changed() -> None:
    config = {"pt2": {"compile": {"enable": True, "backend": "inductor"}}}
    compile_options(config)
    assert config == {"pt2": {"compile": {"enable": True, "backend": "inductor"}}}


@pytest.mark.slow
def test_an_unknown_backend_is_logged_and_not_used(caplog: pytest.LogCaptureFixture) -> None:
    assert compile_options({"pt2": "abacus"}) is None
    assert "abacus" in caplog.text


@pytest.mark.slow
def test_a_backend_that_only_torch_knows_is_used() -> None:
    assert compile_options({"pt2": {"compile": {"enable": True, "backend": "cudagraphs"}}}) == {"backend": "cudagraphs"}


def test_the_old_form_is_advised_against(caplog: pytest.LogCaptureFixture) -> None:
    compile_options({"pt2": "inductor"})
    assert "deprecated" in caplog.text


@pytest.mark.slow
def test_a_model_is_compiled_and_served(make_context: Callable[..., Context], caplog: pytest.LogCaptureFixture) -> None:
    config = {"pt2": {"compile": {"enable": True, "backend": "eager", "dynamic": False}}}
    handler = BaseHandler()
    with caplog.at_level("INFO"):
        handler.initialize(make_context(None, "model.py", config=config))
    assert type(handler.model).__name__ == "OptimizedModule"
    assert "Compiled model with backend eager, dynamic False" in caplog.text
    assert handler.handle([1.0], make_context()) == [1.0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of the compiler's own imports
@pytest.mark.parametrize(
    "pt2",
    [
        {"compile": {"enable": True, "backend": "inductor", "mode": "reduce-overhead"}},
        {"backend": "inductor", "mode": "reduce-overhead"},
    ],
)
def test_the_log_names_backend_and_mode_and_the_configuration_stays(
    make_context: Callable[..., Context], caplog: pytest.LogCaptureFixture, pt2: dict[str, Any]
) -> None:
    context = make_context(None, "model.py", config={"pt2": copy.deepcopy(pt2)})
    with caplog.at_level("INFO"):
        BaseHandler().initialize(context)
    assert "Compiled model with backend inductor, mode reduce-overhead" in caplog.messages
    assert context.model_yaml_config == {"pt2": pt2}


@pytest.mark.slow
def test_a_model_that_cannot_be_compiled_is_served_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    model = torch.nn.Identity()
    assert compile_model(model, {"mode": "impossible"}) is model
    assert "could not be compiled" in caplog.text
