from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mariner.errors import ConfigurationError
from mariner.model_settings import RegisterOptions
from mariner.snapshot import SnapshotModel, parse_models, require_archives

ENTRY = {
    "defaultVersion": True,
    "marName": "mnist.mar",
    "minWorkers": 1,
    "maxWorkers": 5,
    "batchSize": 4,
    "maxBatchDelay": 5000,
    "responseTimeout": 60,
}


def snapshot(**changes: Any) -> dict[str, Any]:
    return {"name": "startup.cfg", "modelCount": 1, "models": {"mnist": {"1.0": {**ENTRY, **changes}}}}


def test_an_entry_says_what_to_register_and_how() -> None:
    assert parse_models(snapshot()) == [
        SnapshotModel(
            "mnist",
            "1.0",
            "mnist.mar",
            True,
            RegisterOptions(
                model_name="mnist",
                runtime="python",
                batch_size=4,
                max_batch_delay=5.0,
                worker_bounds=(1, 5),
                response_timeout=60.0,
                startup_timeout=120.0,
            ),
        )
    ]


def test_numbers_may_be_written_as_text() -> None:
    (model,) = parse_models(snapshot(minWorkers="2", batchSize="8"))
    assert (model.options.worker_bounds, model.options.batch_size) == ((2, 5), 8)


@pytest.mark.parametrize("count", [0, "0", -1])
def test_a_count_of_nothing_restores_nothing(count: object) -> None:
    assert parse_models({**snapshot(), "modelCount": count}) == []


def test_a_missing_count_restores_nothing() -> None:
    assert parse_models({"models": snapshot()["models"]}) == []


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"modelCount": 1}, "models is no object"),
        ({"modelCount": 1, "models": {"m": []}}, "models.m is no object"),
        ({"modelCount": 1, "models": {"m": {"1": 2}}}, "models.m.1 is no object"),
        ({"modelCount": "many"}, "modelCount is 'many'"),
        (snapshot(marName=""), "models.mnist.1.0 has no marName"),
        (snapshot(minWorkers=None), "models.mnist.1.0 has no number as minWorkers"),
        (snapshot(batchSize="x"), "models.mnist.1.0 has no number as batchSize"),
        (snapshot(maxWorkers=True), "models.mnist.1.0 has no number as maxWorkers"),
    ],
)
def test_what_is_wrong_is_named(broken: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match="model_snapshot") as caught:
        parse_models(broken)
    assert said in caught.value.message


def test_a_missing_archive_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    models = parse_models(snapshot())
    with pytest.raises(ConfigurationError, match=r"Model archive file for model :mnist, version :1\.0 not found"):
        require_archives(models, tmp_path)
    (tmp_path / "mnist.mar").touch()
    require_archives(models, tmp_path)
