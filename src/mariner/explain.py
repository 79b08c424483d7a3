"""What a model would run with, or runs with, and which place decides about each value."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from mariner.address import Address, Scheme
from mariner.archive.read import Archive, derive_model_name, list_archives, open_archive
from mariner.auth import KeyType, read_given_keys
from mariner.config import Config, did_you_mean
from mariner.errors import ConfigurationError, MarinerError
from mariner.model_settings import Explained, RegisterOptions, choose, explain
from mariner.snapshot import parse_models

__all__ = ["explain_model", "explain_running"]

_PATIENCE = 10.0  # seconds for a server to answer


@dataclass(frozen=True, slots=True)
class _Model:
    url: str
    options: RegisterOptions


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
    )
    return explain(archive.config, chosen)


def _refusal(what: str) -> str:
    return f"The model is refused: this version cannot do {what}."


# -- which archive ---------------------------------------------------------------------------------------------------


def _find(config: Config, name: str) -> _Model:
    known = {}
    for spec in config.load_models:
        registered_as, _, url = spec.rpartition("=") if "://" not in spec.partition("=")[0] else ("", "", spec)
        known[registered_as or derive_model_name(url)] = _Model(
            url, RegisterOptions(model_name=registered_as or None, asked_by="load_models")
        )
    for saved in parse_models(config.model_snapshot):
        known[saved.name] = _Model(saved.url, saved.options)
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


# -- a server that runs ----------------------------------------------------------------------------------------------


def explain_running(config: Config, name: str, *, key_file: Path) -> list[Explained]:
    """The settings that a model has now: the server that listens on the management address is asked.

    Args:
        config: says where that is, and maybe the key.
        name: of the model; ``name/version`` for one that is not the default.
        key_file: has the key if the settings do not.

    Raises:
        ConfigurationError: nobody answers there, or there is no such model.
    """
    address = config.management_address
    path = "/".join(quote(part, safe="") for part in name.split("/"))
    key = _key(config, key_file)
    try:
        with closing(_connect(address, config.certificate_file)) as connection:
            connection.request(
                "GET", f"/models/{path}?settings=true", headers={"Authorization": f"Bearer {key}"} if key else {}
            )
            status, answer = (response := connection.getresponse()).status, json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ConfigurationError(
            f"No server answers on {address}, the management address of these settings: {error}.",
            hint="Leave out --running to see what the next start would use.",
        ) from error
    if status != 200:
        raise ConfigurationError(f"The server on {address} refuses: {answer.get('message', status)}")
    settings = answer[0].get("settings")
    if settings is None:
        raise ConfigurationError(f"The server on {address} does not say where settings come from.")
    return [Explained(key, row["value"], row["from"]) for key, row in settings.items()]


def _key(config: Config, key_file: Path) -> str:
    given = read_given_keys(config).get(KeyType.MANAGEMENT, "")
    if given:
        return given
    try:
        return str(json.loads(key_file.read_bytes())["management"]["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # most callers on this machine need none


def _connect(address: Address, certificate: Path | None) -> http.client.HTTPConnection:
    if address.scheme is Scheme.UNIX:
        connection = http.client.HTTPConnection("localhost", timeout=_PATIENCE)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(_PATIENCE)
        connection.sock.connect(address.path)
        return connection
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104 - not bound, replaced
    if address.scheme is Scheme.HTTP:
        return http.client.HTTPConnection(host, address.port, timeout=_PATIENCE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # this very certificate is expected, under whatever name the server is called by
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if certificate is not None:
        context.load_verify_locations(certificate)
    return http.client.HTTPSConnection(host, address.port, timeout=_PATIENCE, context=context)
