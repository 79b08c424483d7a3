"""What ``mariner config explain --model`` says of the models in a store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_serving import put_model

from mariner import cli
from mariner.archive import model_config_page
from mariner.archive.model_config import ModelConfig, rows


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    for name in ("TS_CONFIG_FILE", "TEMP", "LOG_LOCATION", "METRICS_LOCATION"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "store").mkdir()
    return tmp_path


@pytest.fixture
def explained(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The lines that explain a model of the store: the output, or what is wrong."""
    put_model(here / "store", "m", "echo", "minWorkers: 2\nmaxWorkers: 3\nBatchSize: 4\nmaxBatchDelay: 50\n")
    models = json.dumps({"renamed": {"1.0": {"batchSize": 8}}, "m": {"1.0": {"batchSize": 6, "minWorkers": 9}}})
    (here / "my.properties").write_text(f"model_store=store\nload_models=renamed=m\nmodels={models}\n")

    def explain(*words: str, status: int = 0) -> list[str]:
        words = ("config", "explain", "--ts-config", "my.properties", "--number-of-gpu", "0", *words)
        assert cli.main(words) == status
        captured = capsys.readouterr()
        return captured.err.splitlines() if status else captured.out.splitlines()

    return explain


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("minWorkers", "2", "model config"),
        ("maxBatchDelay", "50", "model config"),
        ("batchSize", "8", "models, {here}/my.properties, line 3"),
        ("jobQueueSize", "7", "job_queue_size, --job-queue-size"),
        ("startupTimeout", "120", "default"),
        ("deviceType", "gpu", "default"),
    ],
)
def test_explain_says_which_place_decides_about_a_key_of_a_model(
    here: Path, explained: Callable[..., list[str]], key: str, value: str, place: str
) -> None:
    first, *_, last = explained("--model", "renamed", "--job-queue-size", "7", key)
    assert (first, last) == (f"{key} = {value}", f"  from: {place.format(here=here.resolve())}")


def test_explain_finds_a_model_by_its_archive(explained: Callable[..., list[str]]) -> None:
    assert explained("--model", "m", "batchSize")[0] == "batchSize = 8"  # it is loaded under another name


def test_explain_lists_all_keys_of_a_model(explained: Callable[..., list[str]]) -> None:
    keys = [line.split()[0] for line in explained("--model", "renamed")]
    assert keys == ["Key", *(row.key for row in rows(ModelConfig).values())]


def test_explain_shows_what_a_snapshot_says(here: Path, explained: Callable[..., list[str]]) -> None:
    entry = {"defaultVersion": True, "marName": "m", "minWorkers": 5, "maxWorkers": 5, "batchSize": 1,
             "maxBatchDelay": 100, "responseTimeout": 120}  # fmt: skip
    saved = json.dumps({"modelCount": 1, "models": {"saved": {"1.0": entry}}})
    with (here / "my.properties").open("a") as file:
        file.write(f"model_snapshot={saved}\n")
    first, *_, last = explained("--model", "saved", "minWorkers")
    assert (first, last) == ("minWorkers = 5", "  from: snapshot")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--model", "renamd"], ["There is no model renamd in {here}/store.", "Did you mean renamed?"]),
        (["--model", "m", "batchsize"], ["There is no key batchsize in the model config.", "Did you mean batchSize?"]),
    ],
)
def test_explain_helps_with_a_misspelt_model_or_key(
    here: Path, explained: Callable[..., list[str]], words: list[str], error: list[str]
) -> None:
    assert explained(*words, status=1) == [line.format(here=here.resolve()) for line in error]


def test_explain_leaves_no_files_behind(here: Path, explained: Callable[..., list[str]]) -> None:
    (here / "temp").mkdir()
    explained("--model", "m", "--temp-dir", "temp")
    assert list((here / "temp").iterdir()) == []


def test_docs_prints_the_reference_of_the_model_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "docs", "--model"]) == 0
    assert capsys.readouterr().out == model_config_page.reference_page()
