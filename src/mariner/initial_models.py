"""The models that a server starts with: those its settings name, or those of a snapshot.

They are loaded side by side, and one that fails does not stop the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mariner.archive.read import list_archives
from mariner.deployment import Deployment
from mariner.errors import MarinerError
from mariner.model_settings import RegisterOptions
from mariner.registry import ModelVersion
from mariner.snapshot import SnapshotModel

__all__ = ["load_named", "restore"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A model to load."""

    url: str
    options: RegisterOptions
    failure: str  # how the line about one that fails begins
    at_startup: bool = False  # and not from a snapshot
    default: bool = False


async def load_named(deployment: Deployment, specs: Sequence[str], model_store: Path | None) -> None:
    """Loads the models that the setting ``load_models`` names.

    Args:
        deployment: brings them into service.
        specs: ``all``, or any number of ``url`` and ``name=url``. What is there already, from a snapshot, is left.
        model_store: where ``all`` looks.
    """
    if [spec.lower() for spec in specs] == ["all"]:
        specs = _store_entries(model_store)
    there = {(name, version.archive.url) for version in deployment.registry for name in ("", version.name)}
    wanted = [(name, url) for name, url in map(_split_spec, specs) if (name, url) not in there]
    for _, url in wanted:
        log.info("Loading initial models: %s", url)
    await _load_all(
        deployment,
        [
            _Wanted(
                url,
                RegisterOptions(model_name=name or None, asked_by="load_models"),
                f"Failed to load model: {url}",
                at_startup=True,
            )
            for name, url in wanted
        ],
    )


async def restore(deployment: Deployment, models: Sequence[SnapshotModel]) -> None:
    """Loads the models of a snapshot."""
    failure = "Error while registering model. Details: "
    await _load_all(
        deployment,
        [_Wanted(model.url, model.options, failure + model.name, default=model.default) for model in models],
    )


async def _load_all(deployment: Deployment, wanted: Sequence[_Wanted]) -> None:
    """Opens archives side by side, registers their versions in order, and lets the workers start side by side."""
    opening = [asyncio.create_task(deployment.open(want.url, want.options, reuse=True)) for want in wanted]
    entered = []
    for want, archive in zip(wanted, opening, strict=True):
        with _failing_alone(deployment, want):
            version = await deployment.enter(want.url, await archive, want.options, at_startup=want.at_startup)
            if want.default:
                deployment.registry.set_default(version.name, version.version)
            entered.append((want, version))
    await asyncio.gather(*(_start(deployment, want, version) for want, version in entered))


async def _start(deployment: Deployment, want: _Wanted, version: ModelVersion) -> None:
    with _failing_alone(deployment, want):
        await deployment.start(version)


@contextmanager
def _failing_alone(deployment: Deployment, want: _Wanted) -> Iterator[None]:
    """Logs what goes wrong with one of several models."""
    try:
        yield
    except MarinerError as error:
        deployment.not_loaded.add(want.url)
        log.warning("%s: %s %s", want.failure, error.message, error.hint)
    except Exception:
        deployment.not_loaded.add(want.url)
        log.exception("%s", want.failure)


def _store_entries(model_store: Path | None) -> list[str]:
    if model_store is None:
        log.warning("load_models=all has no effect: no model store is configured.")
        return []
    return list_archives(model_store)


def _split_spec(spec: str) -> tuple[str, str]:
    """Name, or "", and url of a model."""
    name, _, url = spec.rpartition("=") if "://" not in spec.partition("=")[0] else ("", "", spec)
    return name, url
