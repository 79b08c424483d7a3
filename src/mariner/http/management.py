"""Routes of the management listener: parameters in, status texts out; the use cases are the model server's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mariner.deaths import describe_death
from mariner.errors import BadRequest, ModelNotFound
from mariner.http.exchange import Exchange
from mariner.http.messages import JSON, Response, json_response, read_parameters, read_query, status_response
from mariner.model_settings import RegisterOptions

if TYPE_CHECKING:
    from mariner.auth import Access
    from mariner.model_server import ModelServer

__all__ = ["deaths", "describe", "list_models", "register", "renew_key", "scale", "set_default", "unregister"]

_INTEGER = re.compile(r"[+-]?[0-9]{1,10}")
_RUNTIMES = frozenset({"python", "python3", "LSP"})
_MAX_PAGE = 100
_TO_REGISTER = frozenset(
    {
        "batch_size",
        "handler",
        "initial_workers",
        "max_batch_delay",
        "model_name",
        "response_timeout",
        "runtime",
        "s3_sse_kms",
        "sha256",
        "startup_timeout",
        "synchronous",
        "url",
    }
)
_TO_SCALE = frozenset({"max_worker", "min_worker", "model_version", "synchronous"})

_ACCEPTED = "Processing worker updates..."
_UNFINISHED = "Workers scaling in progress..."


async def list_models(server: ModelServer, exchange: Exchange) -> Response:
    """One page of the registered models and the urls of their default versions."""
    parameters = read_query(exchange.raw_query)
    limit = _integer(parameters, "limit", _MAX_PAGE)
    if not 0 <= limit <= _MAX_PAGE:
        limit = _MAX_PAGE
    start = max(_integer(parameters, "next_page_token", 0), 0)
    models = server.list_models()
    page = models[start : start + limit]
    answer: dict[str, object] = {}
    if page and start + limit < len(models):
        answer["nextPageToken"] = str(start + limit)
    answer["models"] = [{"modelName": name, "modelUrl": url} for name, url in page]
    return json_response(answer)


async def register(server: ModelServer, exchange: Exchange) -> Response:
    """Loads an archive and starts its workers."""
    parameters = read_parameters(exchange, _TO_REGISTER)
    if "url" not in parameters:
        raise BadRequest("Parameter url is required.")
    if not parameters["url"]:
        raise ModelNotFound("empty url")
    runtime = parameters.get("runtime")
    if runtime is not None and runtime not in _RUNTIMES:
        raise BadRequest(f"Invalid RuntimeType value: {runtime}", hint="Use python, python3 or LSP.")
    delay = _unless(_integer(parameters, "max_batch_delay", -100), -100, "max_batch_delay", least=0)
    synchronous = _boolean(parameters, "synchronous", default=True)
    workers = _optional_integer(parameters, "initial_workers")
    if workers is None:
        workers = _optional_integer(parameters, "initial-workers")  # how the page on custom services spells it
    registered = await server.register(
        parameters["url"],
        RegisterOptions(
            model_name=_model_name(parameters),
            handler=parameters.get("handler") or None,
            runtime=runtime,
            batch_size=_unless(_integer(parameters, "batch_size", -1), -1, "batch_size", least=1),
            max_batch_delay=None if delay is None else delay / 1000,
            initial_workers=None if workers is None else max(workers, 0),
            response_timeout=_unless(_integer(parameters, "response_timeout", -1), -1, "response_timeout", least=1),
            startup_timeout=_unless(_integer(parameters, "startup_timeout", -1), -1, "startup_timeout", least=1),
            sha256=parameters.get("sha256") or None,
            s3_sse_kms=_boolean(parameters, "s3_sse_kms", default=False),
        ),
        synchronous=synchronous,
    )
    text = (
        f'Model "{registered.name}" Version: {registered.version} registered with {registered.workers} initial workers'
    )
    if registered.on_demand:
        return status_response(f"{text}. The first request starts one.")
    if not registered.workers:
        return status_response(f"{text}. Use scale workers API to add workers for the model.")
    if registered.ready:
        return status_response(text)
    return status_response(_UNFINISHED, 206) if synchronous else status_response(_ACCEPTED, 202)


async def describe(server: ModelServer, exchange: Exchange, model: str, version: str | None = None) -> Response:
    """Settings, workers and queue of a version, or of all with the version ``all``."""
    query = read_query(exchange.raw_query)
    customized = _boolean(query, "customized", default=False)
    if version == "all":
        described = await server.describe(model, None, all_versions=True)
    else:
        described = await server.describe(model, version, customized=customized)
    if _boolean(query, "settings", default=False):
        for entry in described:
            explained = server.explain(model, entry["modelVersion"])
            entry["settings"] = {row.key: {"value": row.value, "from": row.place} for row in explained}
    return json_response(described)


async def deaths(server: ModelServer, _exchange: Exchange, model: str, version: str | None = None) -> Response:
    """Death certificates of the workers of a version, latest first."""
    found, certificates = server.deaths(model, version)
    shown = [describe_death(certificate) for certificate in certificates]
    return json_response({"modelName": model, "modelVersion": found, "deaths": shown})


async def scale(server: ModelServer, exchange: Exchange, model: str, version: str | None = None) -> Response:
    """Changes the number of workers of a version."""
    parameters = read_parameters(exchange, _TO_SCALE)
    least = _integer(parameters, "min_worker", 1)
    most = _integer(parameters, "max_worker", least)
    synchronous = _boolean(parameters, "synchronous", default=False)
    version = version or parameters.get("model_version") or None
    if most < least:
        raise BadRequest("max_worker cannot be less than min_worker.")
    if least < 0:
        raise BadRequest("min_worker cannot be negative.")
    ready = await server.scale(model, version, least, most, synchronous=synchronous)
    if not synchronous:
        return status_response(_ACCEPTED, 202)
    if not ready:
        return status_response(_UNFINISHED, 206)
    return status_response(
        f"Workers scaled to {least} for model: {model}" + (f", version: {version}" if version else "")
    )


async def set_default(server: ModelServer, _exchange: Exchange, model: str, version: str) -> Response:
    """Makes a version answer the requests that name none."""
    server.set_default(model, version)
    return status_response(f'Default version successfully updated for model "{model}" to "{version}"')


async def unregister(server: ModelServer, _exchange: Exchange, model: str, version: str | None = None) -> Response:
    """Stops the workers of a version and forgets it."""
    await server.unregister(model, version)
    return status_response(f'Model "{model}" unregistered')


async def renew_key(access: Access, exchange: Exchange) -> Response:
    """Replaces the key that the query names; the answer does not show it, the key file does."""
    access.renew(read_query(exchange.raw_query).get("type", ""), exchange.headers)
    return Response(200, b"\n", JSON)


def _optional_integer(parameters: dict[str, str], name: str) -> int | None:
    """As TorchServe reads them: what is no integer counts as not given."""
    text = parameters.get(name, "")
    return int(text) if _INTEGER.fullmatch(text) else None


def _integer(parameters: dict[str, str], name: str, default: int) -> int:
    value = _optional_integer(parameters, name)
    return default if value is None else value


def _model_name(parameters: dict[str, str]) -> str | None:
    name = parameters.get("model_name") or None
    if name is not None and ("/" in name or name in {".", ".."} or not name.isprintable()):
        # No path could name the model afterwards, not even to unregister it.
        raise BadRequest(f"{name!r} cannot be a model_name.", hint="Use printable characters, and no slash.")
    return name


def _boolean(parameters: dict[str, str], name: str, *, default: bool) -> bool:
    return parameters[name].lower() == "true" if name in parameters else default


def _unless(value: int, unset: int, name: str, *, least: int) -> int | None:
    """None for the number that TorchServe's clients send for "not set"."""
    if value == unset:
        return None
    if value < least:
        raise BadRequest(f"{name} must be at least {least}, not {value}.")
    return value
