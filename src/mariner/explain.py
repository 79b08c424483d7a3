"""What a model of the model store would run with, and which place decides about each value."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from mariner.archive.model_config import ModelConfig, plain, rows
from mariner.archive.read import Archive, derive_model_name, list_archives, open_archive
from mariner.config import Config, did_you_mean
from mariner.errors import ConfigurationError, MarinerError
from mariner.model_settings import MODEL_CONFIG, RegisterOptions, choose
from mariner.snapshot import parse_models

__all__ = ["Explained", "explain_model"]

# The fields of the settings that are keys of the model config under another name.
_FIELDS: Final = {
    "job_queue_size": "queue_size",
    "max_retry_timeout_in_sec": "retry_window",
    "client_timeout_in_mills": "client_timeout",
    "use_job_ticket": "job_ticket",
    "worker_idle_timeout_sec": "idle_timeout",
}
_MILLISECONDS: Final = frozenset({"max_batch_delay", "client_timeout_in_mills"})
_SNAPSHOT: Final = "snapshot"


class Explained(NamedTuple):
    """A key of the model config, its value as the file would have it, and the place that decided."""

    key: str
    value: str
    place: str
    doc: str


@dataclass(frozen=True, slots=True)
class _Model:
    url: str
    options: RegisterOptions
    asked_by: str = "load_models"


def explain_model(config: Config, name: str, *, gpus: int = 0) -> tuple[list[Explained], list[str]]:
    """The settings of one model as the next start would load it, and what is odd about its archive.

    Blocks while the archive is unpacked.

    Args:
        config: the server's settings.
        name: a name that ``load_models`` or the snapshot gives, or an archive of the model store, with or without its
            ending.
        gpus: how many there are; a model of the start has as many workers, if nobody says how many.

    Raises:
        ConfigurationError: there is no such model, or its archive cannot be used.
    """
    model = _find(config, name)
    with tempfile.TemporaryDirectory(prefix="mariner-", dir=config.temp_dir) as place:
        try:
            archive = open_archive(
                model.url,
                model_store=config.model_store,
                allowed_urls=config.allowed_urls if config.is_set("allowed_urls") else (),
                temp_dir=Path(place),
                download=_no_download,
                reuse_download=True,
            )
        except MarinerError as error:
            raise ConfigurationError(error.message, hint=error.hint) from error
        archive.remove()
    return _explain(config, model, archive, gpus), [*archive.warnings, *map(_refusal, archive.config.refused())]


def _explain(config: Config, model: _Model, archive: Archive, gpus: int) -> list[Explained]:
    manifest = archive.manifest
    registered_as = model.options.model_name or manifest.model_name or derive_model_name(model.url)
    chosen = choose(
        config,
        archive.config,
        model.options,
        preset=config.models.get(registered_as, {}).get(manifest.model_version, {}),
        automatic_workers=max(1, gpus),
        asked_by=model.asked_by,
    )
    explained = []
    for field, row in rows(ModelConfig).items():
        choice = chosen.get(_FIELDS.get(field, field))
        if choice is not None:
            value = round(choice.value * 1000) if field in _MILLISECONDS else choice.value
            explained.append(Explained(row.key, _text(value), choice.place, row.doc))
        else:
            value = getattr(archive.config, field)
            place = "default" if value is None else MODEL_CONFIG
            explained.append(
                Explained(row.key, _text(value) or row.default.replace("`", "") or "unset", place, row.doc)
            )
    return explained


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else plain(value)


def _refusal(what: str) -> str:
    return f"The model is refused: this version cannot do {what}."


# -- which archive ---------------------------------------------------------------------------------------------------


def _find(config: Config, name: str) -> _Model:
    known = {}
    for spec in config.load_models:
        registered_as, _, url = spec.rpartition("=") if "://" not in spec.partition("=")[0] else ("", "", spec)
        known[registered_as or derive_model_name(url)] = _Model(url, RegisterOptions(model_name=registered_as or None))
    for saved in parse_models(config.model_snapshot):
        known[saved.name] = _Model(saved.url, saved.options, _SNAPSHOT)
    if name in known:
        return known[name]
    for model in known.values():
        if model.url == name:
            return model
    store = config.model_store
    if store is None:
        raise ConfigurationError("Model store has not been configured.", hint="Name it: --model-store DIR.")
    entries = list_archives(store) if store.is_dir() else []
    for entry in entries:
        if name in (entry, derive_model_name(entry)):
            return _Model(entry, RegisterOptions())
    names = [*known, *entries]
    raise ConfigurationError(f"There is no model {name} in {store}.", hint=did_you_mean(name, names))


def _no_download(url: str, *_args: object, **_kwargs: object) -> NoReturn:
    raise ConfigurationError(f"{url} is not in the model store yet.", hint="It is fetched when it is loaded.")
