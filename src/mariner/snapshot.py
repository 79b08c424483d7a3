"""Snapshots: the registered models and the settings as a file that a server can start from, in TorchServe's format."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from mariner.config import Config
from mariner.errors import ConfigurationError
from mariner.model_settings import RegisterOptions
from mariner.properties import format_properties
from mariner.registry import ModelVersion, Registry
from mariner.snapshot_files import remove_unfinished, save_snapshot, snapshot_directory, snapshot_name

__all__ = ["SnapshotModel", "Snapshots", "encode_snapshot", "parse_models", "require_archives"]

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = 120.0  # seconds; what a snapshot that names none stands for


@dataclass(frozen=True, slots=True)
class SnapshotModel:
    """One version as a snapshot has it.

    Attributes:
        name: of the model.
        version: of the archive when the snapshot was made.
        url: archive or directory of the model store, or a path.
        default: requests that name no version reach it.
        options: what to register it with.
    """

    name: str
    version: str
    url: str
    default: bool
    options: RegisterOptions


# -- writing ---------------------------------------------------------------------------------------------------------


class Snapshots:
    """Saves a server's state, a file each time. A disk that is full costs a warning.

    Args:
        config: the server's settings.
        registry: its models.
        clock: the moment, in local time.
    """

    def __init__(
        self, config: Config, registry: Registry, clock: Callable[[], datetime] = lambda: datetime.now().astimezone()
    ) -> None:
        self._config = config
        self._registry = registry
        self._clock = clock
        self._last: datetime | None = None
        remove_unfinished(snapshot_directory(config.log_location))
        self._saving: set[asyncio.Task[None]] = set()

    def save(self, kind: str) -> asyncio.Task[None]:
        """Takes the state as it is now, and writes it in a thread.

        Args:
            kind: ``startup``, ``snapshot`` or ``shutdown``.
        """
        # Names tell which is the latest, so no two may be of the same millisecond.
        now = self._clock()
        if self._last is not None:
            now = max(now, self._last + timedelta(milliseconds=1))
        self._last = now
        name = snapshot_name(kind, now)
        text = encode_snapshot(name, self._config, self._registry, now)
        task = asyncio.create_task(asyncio.to_thread(self._write, name, text), name=f"save {name}")
        self._saving.add(task)
        task.add_done_callback(self._saving.discard)
        return task

    async def close(self) -> None:
        """Waits until everything is written."""
        await asyncio.gather(*self._saving)

    def _write(self, name: str, text: str) -> None:
        try:
            save_snapshot(snapshot_directory(self._config.log_location), name, text)
        except OSError as error:
            logger.warning(
                "The snapshot %s could not be saved: %s. The next start will not know the latest changes.",
                *(name, error.strerror or error),
            )


def encode_snapshot(name: str, config: Config, registry: Registry, now: datetime) -> str:
    """The content of a snapshot file: the settings somebody chose, and the models.

    What came from the environment is left out: it is there at the next start as well, or was changed on purpose.

    Args:
        name: of the file.
        config: the server's settings.
        registry: its models.
        now: the moment.
    """
    models = {
        "name": name,
        "modelCount": sum(1 for _ in registry),
        "created": int(now.timestamp() * 1000),
        "models": _group((version, _describe(version, registry)) for version in registry),
    }
    properties = dict(config.as_written) | {"model_snapshot": json.dumps(models, indent=2)}
    properties.pop("load_models", None)
    heading = f"#Saving snapshot\n#{now:%a %b %d %H:%M:%S %Y}\n"
    return heading + format_properties(properties)


def _group(described: Iterable[tuple[ModelVersion, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    models: dict[str, dict[str, Any]] = {}
    for version, description in described:
        models.setdefault(version.name, {})[version.version] = description
    return models


def _describe(version: ModelVersion, registry: Registry) -> dict[str, Any]:
    settings = version.settings
    return {
        "defaultVersion": registry.is_default(version),
        "marName": version.archive.stored_name,
        "minWorkers": version.pool.min_workers,
        "maxWorkers": version.pool.max_workers,
        "batchSize": settings.batch_size,
        "maxBatchDelay": round(settings.max_batch_delay * 1000),
        "responseTimeout": round(settings.response_timeout),
        "startupTimeout": round(settings.startup_timeout),
        "runtimeType": version.runtime,
    }


# -- reading ---------------------------------------------------------------------------------------------------------


def parse_models(snapshot: Mapping[str, Any]) -> list[SnapshotModel]:
    """The models of a ``model_snapshot``; none if its count says so.

    Raises:
        ConfigurationError: it is not written as it must be.
    """
    if not _count(snapshot):
        return []
    models = []
    for name, versions in _objects(snapshot.get("models"), "models"):
        for version, entry in _objects(versions, f"models.{name}"):
            if not isinstance(entry, dict):
                raise _malformed(f"models.{name}.{version} is no object")
            models.append(_parse_model(name, version, entry))
    return models


def require_archives(models: Iterable[SnapshotModel], model_store: Path | None) -> None:
    """Makes sure that each archive is there, before anything is loaded.

    Raises:
        ConfigurationError: one is missing.
    """
    for model in models:
        path = Path(model.url) if model_store is None else model_store / model.url
        if not path.exists():
            raise ConfigurationError(
                f"Model archive file for model :{model.name}, version :{model.version} not found in model store",
                hint=f"Put {path} back, or start without the snapshot: --ncs.",
            )


def _count(snapshot: Mapping[str, Any]) -> int:
    try:
        return max(0, int(snapshot.get("modelCount", 0)))
    except (TypeError, ValueError):
        raise _malformed(f"modelCount is {snapshot['modelCount']!r}, which is no number") from None


def _objects(value: Any, where: str) -> Iterable[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise _malformed(f"{where} is no object")
    return value.items()


def _parse_model(name: str, version: str, entry: Mapping[str, Any]) -> SnapshotModel:
    where = f"models.{name}.{version}"

    def number(key: str, default: float | None = None) -> float:
        value = entry.get(key, default)
        try:
            if isinstance(value, bool) or value is None:
                raise TypeError  # noqa: TRY301 - one message for whatever is wrong with it
            return float(value)
        except (TypeError, ValueError):
            raise _malformed(f"{where} has no number as {key}") from None

    url = entry.get("marName")
    if not isinstance(url, str) or not url:
        raise _malformed(f"{where} has no marName")
    low, high = int(number("minWorkers")), int(number("maxWorkers"))
    options = RegisterOptions(
        model_name=name,
        runtime=str(entry.get("runtimeType") or "python"),
        batch_size=int(number("batchSize")),
        max_batch_delay=number("maxBatchDelay") / 1000,
        worker_bounds=(max(0, low), max(0, low, high)),
        response_timeout=number("responseTimeout", DEFAULT_TIMEOUT),
        startup_timeout=number("startupTimeout", DEFAULT_TIMEOUT),
        asked_by="snapshot",
    )
    return SnapshotModel(name, version, url, str(entry.get("defaultVersion")).lower() == "true", options)


def _malformed(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"Invalid configuration: model_snapshot: {what}.",
        hint='It is written {"modelCount": 1, "models": {"<name>": {"<version>": {"marName": ...}}}}.',
    )
