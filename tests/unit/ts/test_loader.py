from __future__ import annotations

import itertools
import json
import logging
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ts.context import Context
from ts.loader import BUILTINS, find_handler, load_service, wrap_in_envelope
from ts.wire import Batch, Load, Part, Reply, Request, Sample

Write = Callable[..., str]

numbers = itertools.count()


@pytest.fixture
def context() -> Context:
    return Context("net", "/", None, 1, None, "0")


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a handler file into a fresh archive and returns its module name."""
    names: list[str] = []
    monkeypatch.syspath_prepend(tmp_path)

    def write_handler(code: str, name: str = "") -> str:
        name = name or f"handler_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
        names.append(name)
        return name

    yield write_handler
    for name in names:
        sys.modules.pop(name, None)


def drop(reply: Reply) -> None:
    raise AssertionError(reply)


def answer(spec: str, directory: Path, data: Any = "data") -> Any:
    return find_handler(spec, directory).handle(data, Context("net", "/", None, 1, None, "0"))


# -- entry points ----------------------------------------------------------------------------------------------------


def test_a_function_handle_is_the_entry_point_even_beside_a_class(write: Write, tmp_path: Path) -> None:
    name = write(
        "def handle(data, context): return ['function']\nclass Net:\n  def handle(self, d, c): return ['class']"
    )
    assert answer(name, tmp_path) == ["function"]


def test_a_function_is_initialised_by_a_call_without_data(write: Write, tmp_path: Path, context: Context) -> None:
    name = write("calls = []\ndef run(*arguments): calls.append(arguments)")
    find_handler(f"{name}.py:run", tmp_path).initialize(context)
    assert sys.modules[name].calls == [(None, context)]


def test_a_class_needs_no_base(write: Write, tmp_path: Path) -> None:
    name = write("class Net:\n  def initialize(self, c): pass\n  def handle(self, d, c): return [d]")
    assert answer(name, tmp_path, "x") == ["x"]


def test_a_missing_function_falls_back_to_the_class(write: Write, tmp_path: Path) -> None:
    name = write("class Net:\n  def initialize(self, c): pass\n  def handle(self, d, c): return ['class']")
    assert answer(f"{name}:missing", tmp_path) == ["class"]


def test_a_class_may_be_named(write: Write, tmp_path: Path) -> None:
    name = write(
        """
        class One:
            def initialize(self, c): pass
            def handle(self, d, c): return ["one"]
        class Two(One):
            def handle(self, d, c): return ["two"]
        """
    )
    assert answer(f"{name}:Two", tmp_path) == ["two"]


def test_a_class_that_claims_the_module_counts(write: Write, tmp_path: Path) -> None:
    factory = write(
        """
        class Made:
            def initialize(self, c): pass
            def handle(self, d, c): return ["made"]
        """
    )
    name = write(f"from {factory} import Made\nMade.__module__ = __name__\nanything = Made")
    assert answer(name, tmp_path) == ["made"]


def test_an_imported_class_does_not_count(write: Write, tmp_path: Path) -> None:
    other = write("class Other:\n  def initialize(self, c): pass\n  def handle(self, d, c): return ['other']")
    name = write(f"from {other} import Other\nclass Mine(Other):\n  def handle(self, d, c): return ['mine']")
    assert answer(name, tmp_path) == ["mine"]


def test_of_several_classes_the_one_with_handle_is_the_handler(write: Write, tmp_path: Path) -> None:
    name = write(
        "class Net: pass\nclass Mine:\n  def initialize(self, c): pass\n  def handle(self, d, c): return ['mine']"
    )
    assert answer(name, tmp_path) == ["mine"]


def test_of_several_handlers_the_first_is_used_and_the_log_says_so(
    write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = write(
        """
        class Zebra:
            def initialize(self, c): pass
            def handle(self, d, c): return ["zebra"]
        class Ape(Zebra):
            def handle(self, d, c): return ["ape"]
        """
    )
    assert answer(name, tmp_path) == ["zebra"]
    assert "the first, Zebra, is used" in caplog.text


@pytest.mark.slow
@pytest.mark.torch
def test_of_several_handlers_a_subclass_of_the_base_handler_is_preferred(write: Write, tmp_path: Path) -> None:
    name = write(
        """
        from ts.torch_handler.base_handler import BaseHandler
        class Wrapper:
            def handle(self, d, c): return ["wrapper"]
        class Mine(BaseHandler):
            def handle(self, d, c): return ["mine"]
        """
    )
    assert answer(name, tmp_path) == ["mine"]


def test_an_instance_called_handler_is_used(write: Write, tmp_path: Path) -> None:
    name = write(
        """
        class Net: pass
        class Mine:
            def __init__(self, text): self.text = text
            def initialize(self, c): pass
            def handle(self, d, c): return [self.text]
        handler = Mine("instance")
        """
    )
    assert answer(name, tmp_path) == ["instance"]


def test_a_handle_that_init_puts_on_the_instance_is_the_entry_point(write: Write, tmp_path: Path) -> None:
    name = write(
        """
        class Mine:
            def __init__(self): self.handle = lambda data, context: ["instance"]
            def initialize(self, c): pass
        """
    )
    assert answer(name, tmp_path) == ["instance"]


@pytest.mark.parametrize("code", ["", "X = 1", "class A: pass\nclass B: pass"])
def test_a_file_without_a_handler_is_refused(write: Write, tmp_path: Path, code: str) -> None:
    with pytest.raises(ValueError, match="Expected only one class in custom service code or a function entry point"):
        find_handler(write(code), tmp_path)


def test_a_single_class_without_handle_is_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Expect handle method in class Net"):
        find_handler(write("class Net: pass"), tmp_path)


def test_a_class_without_initialize_is_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="initialize"):
        find_handler(write("class Net:\n  def handle(self, d, c): pass"), tmp_path)


# -- finding the module ----------------------------------------------------------------------------------------------


def test_an_import_that_fails_inside_the_handler_is_reported_as_itself(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        find_handler(write("import no_such_package"), tmp_path)


def test_a_handler_that_does_not_exist_is_named_with_the_builtin_ones(tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No handler 'nowhere\.py'.*nowhere\.py.*image_classifier"):
        find_handler("nowhere.py", tmp_path)


def test_a_file_wins_over_the_builtin_handler_of_its_name(write: Write, tmp_path: Path) -> None:
    name = write("def handle(data, context): return ['mine']", "object_detector")
    assert answer(name, tmp_path) == ["mine"]


@pytest.mark.torch
def test_a_directory_does_not_hide_the_builtin_handler_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "densenet_handler").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert find_handler("densenet_handler", tmp_path).handle
    finally:
        sys.modules.pop("densenet_handler", None)


@pytest.mark.torch
def test_a_model_file_does_not_hide_the_builtin_handler_of_its_name(write: Write, tmp_path: Path) -> None:
    name = write("class Net: pass", "image_classifier")
    entry = find_handler(name, tmp_path, {"model": {"modelFile": "image_classifier.py"}})
    assert type(entry.handle.__self__).__module__ == BUILTINS[name]  # type: ignore[attr-defined]


def test_a_handler_with_the_name_of_a_loaded_module_is_refused(write: Write, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("def handle(data, context): pass")
    with pytest.raises(ImportError, match=r"json\.py has the name of a module that is in use"):
        find_handler("json.py", tmp_path)


def test_directories_of_the_spec_are_ignored(write: Write, tmp_path: Path) -> None:
    name = write("def handle(data, context): return ['found']")
    assert answer(f"some/where/{name}.py", tmp_path) == ["found"]


# -- envelopes -------------------------------------------------------------------------------------------------------


def test_without_an_envelope_the_handler_is_called_directly() -> None:
    def handle(data: Any, context: Context) -> Any:
        return data

    assert wrap_in_envelope(handle, "") is handle


def test_an_unknown_envelope_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match="No request envelope 'nonsense'"):
        wrap_in_envelope(lambda _data, _context: None, "nonsense")


@pytest.mark.parametrize(
    ("name", "module"), [("kserve", "kserve"), ("kfserving", "kserve"), ("kfservingv2", "kservev2")]
)
def test_an_envelope_wraps_the_handler_under_old_names_too(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = f"ts.torch_handler.request_envelope.{module}"
    made = ModuleType(full)
    exec(
        "class Wrap:\n  def __init__(self, inner): self.inner = inner\n"
        "  def handle(self, data, context): return [self.inner(data, context)]",
        vars(made),
    )
    monkeypatch.setitem(sys.modules, "ts.torch_handler.request_envelope", ModuleType("package"))
    monkeypatch.setitem(sys.modules, full, made)
    wrapped = wrap_in_envelope(lambda data, _: data, name)
    assert wrapped("x", Context("net", "/", None, 1, None, "0")) == ["x"]


# -- the whole -------------------------------------------------------------------------------------------------------

HANDLER = """
class Mine:
    def initialize(self, context):
        self.context = context
        context.metrics.add_time("Loading", 1.0)
    def handle(self, data, context):
        return [context is self.context for _ in data]
"""


def archive(directory: Path, model: dict[str, Any] | None, **files: str) -> None:
    if model is not None:
        (directory / "MAR-INF").mkdir()
        (directory / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"runtime": "python", "model": model}))
    for name, text in files.items():
        (directory / f"{name}.yaml").write_text(text)


def test_a_model_is_loaded_with_manifest_configuration_and_metrics(write: Write, tmp_path: Path) -> None:
    archive(tmp_path, {"modelName": "other", "configFile": "config.yaml"}, config="batchSize: 3\nhandler: {top: 5}")
    samples: list[Sample] = []
    load = Load("net", str(tmp_path), write(HANDLER), batch_size=3, gpu_id=1, limit_max_image_pixels=False)
    service = load_service(load, drop, sink=samples.append)

    context = service.context
    assert context.model_name == "net"
    assert context.manifest == {"runtime": "python", "model": {"modelName": "other", "configFile": "config.yaml"}}
    assert context.model_yaml_config == {"batchSize": 3, "handler": {"top": 5}}
    assert context.system_properties["model_dir"] == str(tmp_path)
    assert context.system_properties["gpu_id"] == 1
    assert context.system_properties["limit_max_image_pixels"] is False
    assert [(sample.name, dict(sample.dimensions)) for sample in samples] == [
        ("Loading", {"ModelName": "net", "Level": "Model"})
    ]
    assert service.predict(Batch(1, [(5, Request("r", b"", [Part("body", "", b"x")]))]))[0].body == b"true"


@pytest.mark.parametrize("model", [None, {}])
def test_manifest_and_configuration_are_optional(write: Write, tmp_path: Path, model: dict[str, Any] | None) -> None:
    archive(tmp_path, model)
    context = load_service(Load("net", str(tmp_path), write(HANDLER)), drop).context
    assert context.manifest == (None if model is None else {"runtime": "python", "model": {}})
    assert context.model_yaml_config == {}


def test_an_empty_configuration_is_an_empty_dict(write: Write, tmp_path: Path) -> None:
    archive(tmp_path, {"configFile": "config.yaml"}, config="# nothing\n")
    assert load_service(Load("net", str(tmp_path), write(HANDLER)), drop).context.model_yaml_config == {}


def test_a_configuration_that_is_no_mapping_is_refused(write: Write, tmp_path: Path) -> None:
    archive(tmp_path, {"configFile": "config.yaml"}, config="- 1\n")
    with pytest.raises(ValueError, match=r"config\.yaml must hold a mapping"):
        load_service(Load("net", str(tmp_path), write(HANDLER)), drop)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_manifest_is_named(write: Write, tmp_path: Path, text: str) -> None:
    archive(tmp_path, {})
    (tmp_path / "MAR-INF" / "MANIFEST.json").write_text(text)
    with pytest.raises(ValueError, match=r"MANIFEST\.json"):
        load_service(Load("net", str(tmp_path), write(HANDLER)), drop)


def test_what_a_handler_raises_while_loading_is_not_wrapped(write: Write, tmp_path: Path) -> None:
    name = write("def handle(data, context): raise KeyError('weights')")
    with pytest.raises(KeyError, match="weights"):
        load_service(Load("net", str(tmp_path), name), drop)


@pytest.mark.parametrize("text", ["ts_metrics: {}", "model_metrics:"])
def test_a_metrics_file_may_say_nothing_of_models(
    write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    (tmp_path / "metrics.yaml").write_text(text)
    samples: list[Sample] = []
    load = Load("net", str(tmp_path), write(HANDLER), metrics_config=str(tmp_path / "metrics.yaml"))
    load_service(load, drop, sink=samples.append)
    assert [sample.name for sample in samples] == ["Loading"]
    assert caplog.messages[0].startswith("No metrics of models are declared: ")


def test_a_worker_emits_the_time_of_its_batches_if_every_metric_is_wanted(write: Write, tmp_path: Path) -> None:
    samples: list[Sample] = []
    load = Load("net", str(tmp_path), write(HANDLER), every_metric=True)
    load_service(load, drop, sink=samples.append).predict(Batch(1, [(5, Request("r", b"", []))]))
    assert [(sample.name, sample.request_ids) for sample in samples[1:]] == [("PredictionTime", "r")]


@pytest.mark.torch
def test_torch_is_prepared_for_a_handler_that_loads_without_its_base(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ts.torch_handler import device  # noqa: PLC0415  # needs torch

    prepared: list[Any] = []
    monkeypatch.setattr(device, "prepare_torch", lambda gpu_id: prepared.append(("prepared", gpu_id)))
    handler = """
        from ts.torch_handler.base_handler import BaseHandler
        class Mine(BaseHandler):
            def initialize(self, context): context.order.append("initialized")
            def handle(self, data, context): return []
    """
    monkeypatch.setattr(Context, "order", prepared, raising=False)
    load_service(Load("net", str(tmp_path), write(handler), gpu_id=3), drop)
    assert prepared == [("prepared", 3), "initialized"]


def test_without_yaml_metrics_are_lost_but_the_model_serves(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "ts.metrics.store", None)
    with caplog.at_level(logging.WARNING):
        service = load_service(Load("net", str(tmp_path), write(HANDLER)), drop)
    assert "install PyYAML" in caplog.text
    assert service.predict(Batch(1, [(5, Request("r", b"", []))]))[0].body == b"true"
