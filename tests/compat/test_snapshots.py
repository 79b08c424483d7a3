"""Snapshots as TorchServe writes and reads them; items 42 to 47 of the life-cycle checklist, 6 and 40 to 42 of the
configuration's."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from test_serving import put_model

from mariner.config import Config, load_config
from mariner.errors import ConfigurationError
from mariner.model_settings import RegisterOptions
from mariner.properties import parse_properties
from mariner.testing import running_server

pytestmark = pytest.mark.slow

ENTRY = {
    "defaultVersion": True, "marName": "echo", "minWorkers": 1, "maxWorkers": 5, "batchSize": 2, "maxBatchDelay": 5000,
    "responseTimeout": 60,
}  # fmt: skip
SAVED = "logs/config"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("echo", "other"):
        put_model(tmp_path / "store", name, "echo")
    return tmp_path


def config(place: Path, *flags: str, **more: str) -> dict[str, Any]:
    """The settings of a server that is started in ``place``, as ``running_server`` takes them."""
    given = {"model_store": str(place / "store"), **dict(flag.split("=", 1) for flag in flags)}
    found: Config = load_config(given, more, place)
    kept = {key: getattr(found, key) for key in ("model_store", "load_models", "model_snapshot", "job_queue_size")}
    kept |= {"log_location": place / "logs", "temp_dir": place, "config_snapshots": found.config_snapshots}
    return {**kept, "origins": found.origins, "as_written": found.as_written, "warnings": found.warnings}


def snapshots(place: Path) -> list[str]:
    return [path.name.partition("-")[2] for path in sorted((place / SAVED).glob("*.cfg"))]


def newest(place: Path) -> dict[str, str]:
    path = max((place / SAVED).glob("*.cfg"))
    return {key: found.value for key, found in parse_properties(path.read_text()).items()}


def one_model(**changes: Any) -> str:
    return json.dumps({"modelCount": 1, "models": {"echo": {"1.0": {**ENTRY, **changes}}}})


async def test_a_start_and_a_stop_save_one_each(place: Path) -> None:
    async with running_server(**config(place)):
        pass
    assert snapshots(place) == ["startup.cfg", "shutdown.cfg"]


async def test_with_ncs_nothing_is_saved(place: Path) -> None:
    async with running_server(**config(place, "config_snapshots=false")) as server:
        await server.models.register("echo")
    assert not (place / "logs").exists()


async def test_each_change_of_the_models_is_saved_and_nothing_else(place: Path) -> None:
    async with running_server(**config(place)) as server:
        models = server.models
        await models.register("echo", RegisterOptions(initial_workers=1))
        await models.register("other")
        await models.scale("echo", None, 1, 2, synchronous=True)
        models.set_default("echo", "1.0")
        await models.unregister("other")
        models.list_models()
        await models.describe("echo", None)
        with pytest.raises(Exception, match="Model not found"):
            await models.scale("absent", None, 1, 1, synchronous=True)
    assert snapshots(place) == ["startup.cfg", *["snapshot.cfg"] * 5, "shutdown.cfg"]


async def test_what_is_saved_has_the_form_torchserve_reads(place: Path) -> None:
    async with running_server(**config(place, "load_models=echo", "job_queue_size=7")):
        pass
    text = max((place / SAVED).glob("*.cfg")).read_text()
    assert text.startswith("#Saving snapshot\n#")
    saved = newest(place)
    models = json.loads(saved.pop("model_snapshot"))
    assert saved == {"model_store": str(place / "store"), "job_queue_size": "7"}
    assert models["name"].endswith("-shutdown.cfg")
    assert models["modelCount"] == 1
    assert models["models"]["echo"]["1.0"] == {
        "defaultVersion": True, "marName": "echo", "minWorkers": 1, "maxWorkers": 1, "batchSize": 1,
        "maxBatchDelay": 100, "responseTimeout": 120, "startupTimeout": 120, "runtimeType": "python",
    }  # fmt: skip


async def test_the_next_start_restores_models_workers_and_settings(place: Path) -> None:
    async with running_server(**config(place, "job_queue_size=7")) as server:
        await server.models.register("echo", RegisterOptions(initial_workers=1, batch_size=4))
        await server.models.scale("echo", None, 2, 3, synchronous=True)
    settings = config(place)
    assert settings["job_queue_size"] == 7
    assert any("restored from" in warning for warning in settings["warnings"])
    async with running_server(**settings) as server:
        await server.models.wait_until_ready()
        (echo,) = await server.models.describe("echo", None)
    assert {key: echo[key] for key in ("minWorkers", "maxWorkers", "batchSize", "loadedAtStartup")} == {
        "minWorkers": 2, "maxWorkers": 3, "batchSize": 4, "loadedAtStartup": False,
    }  # fmt: skip
    assert len(echo["workers"]) == 2


async def test_models_named_on_the_command_line_come_beside_the_restored_ones(place: Path) -> None:
    async with running_server(**config(place)) as server:
        await server.models.register("echo")
    async with running_server(**config(place, "load_models=echo,mine=other")) as server:
        assert server.models.list_models() == [("echo", "echo"), ("mine", "other")]
        (echo,) = await server.models.describe("echo", None)
        assert echo["minWorkers"] == 0  # as it was saved, not as a model that is loaded at start


def test_the_newest_snapshot_outranks_the_file_in_the_working_directory_and_says_so(place: Path) -> None:
    (place / "config.properties").write_text("job_queue_size=1\n")
    (place / SAVED).mkdir(parents=True)
    (place / SAVED / "20260131120005123-startup.cfg").write_text("job_queue_size=2\n")
    (place / SAVED / "notes").write_text("no snapshot")
    assert (settings := config(place))["job_queue_size"] == 2
    assert any("config.properties is not read" in warning for warning in settings["warnings"])
    assert config(place, "config_snapshots=false")["job_queue_size"] == 1
    (place / "named.properties").write_text("job_queue_size=3\n")
    assert config(place, f"tsConfigFile={place / 'named.properties'}")["job_queue_size"] == 3


def test_a_flag_outranks_what_was_saved(place: Path) -> None:
    (place / SAVED).mkdir(parents=True)
    (place / SAVED / "20260131120005123-startup.cfg").write_text("job_queue_size=2\n")
    assert config(place, "job_queue_size=9")["job_queue_size"] == 9


def test_what_the_environment_says_is_not_saved_and_placeholders_stay(place: Path) -> None:
    (place / "config.properties").write_text("keystore_pass=$$SECRET$$\njob_queue_size=5\n")
    found = load_config({}, {"SECRET": "hush", "MARINER_LOG_LEVEL": "error"}, place)
    assert found.as_written == {"keystore_pass": "$$SECRET$$", "job_queue_size": "5"}


async def test_a_handwritten_snapshot_in_one_line_is_served_instead_of_load_models(place: Path) -> None:
    (place / "c.properties").write_text(f"load_models=other\nmodel_snapshot={one_model()}\n")
    async with running_server(**config(place, f"tsConfigFile={place / 'c.properties'}")) as server:
        await server.models.wait_until_ready()
        assert [name for name, _ in server.models.list_models()] == ["echo"]
        (echo,) = await server.models.describe("echo", None)
    wanted = {"minWorkers": 1, "maxWorkers": 5, "batchSize": 2, "maxBatchDelay": 5000, "responseTimeout": 60}
    assert {key: echo[key] for key in wanted} == wanted


async def test_a_snapshot_of_an_archive_that_is_gone_stops_the_start(place: Path) -> None:
    (place / "c.properties").write_text(f"model_snapshot={one_model(marName='gone.mar')}\n")
    with pytest.raises(ConfigurationError, match=r"Model archive file for model :echo, version :1\.0 not found"):
        async with running_server(**config(place, f"tsConfigFile={place / 'c.properties'}")):
            pass


async def test_junk_in_the_place_of_an_archive_does_not(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    (place / "store" / "junk.mar").write_bytes(b"no archive")
    both = {"echo": {"1.0": {**ENTRY, "marName": "junk.mar"}}, "other": {"1.0": {**ENTRY, "marName": "other"}}}
    text = json.dumps({"modelCount": 2, "models": both})
    (place / "c.properties").write_text(f"model_snapshot={text}\n")
    async with running_server(**config(place, f"tsConfigFile={place / 'c.properties'}")) as server:
        assert [name for name, _ in server.models.list_models()] == ["other"]
    assert "Error while registering model. Details: echo" in caplog.text


async def test_an_empty_snapshot_starts_an_empty_server(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    (place / "c.properties").write_text('load_models=echo\nmodel_snapshot={"modelCount": 0}\n')
    async with running_server(**config(place, f"tsConfigFile={place / 'c.properties'}")) as server:
        assert server.models.list_models() == []
    assert "Model snapshot is empty. Starting TorchServe without initial models." in caplog.text


async def test_a_full_disk_costs_a_warning(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    (place / "logs").mkdir()
    (place / "logs" / "config").write_text("in the way")
    async with running_server(**config(place)) as server:
        await server.models.register("echo")
        assert [name for name, _ in server.models.list_models()] == ["echo"]
    assert "could not be saved" in caplog.text
