"""Composition root: builds every part from the settings, starts them in order, stops them in order.

Nothing else constructs a part that others share; nothing imports this but the command line and tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mariner import logs
from mariner.archive.read import remove_partial_downloads
from mariner.auth import Access, open_access, read_given_keys
from mariner.auth import Listener as Kind
from mariner.bodies import Arena
from mariner.certificates import load_context
from mariner.config import AccessLogging, Address, Config, MetricsMode, Scheme, Source
from mariner.devices import Accelerators, CpuMeter, Vendor, read_system
from mariner.engines.local import LocalEngine
from mariner.errors import ConfigurationError
from mariner.http.app import App
from mariner.http.connections import Limits
from mariner.http.listener import HttpListener, bind
from mariner.lifecycle import Phase
from mariner.logs import MODEL_METRICS, SERVER_METRICS, AccessLog, LogFiles
from mariner.metrics import (
    METRICS,
    Definition,
    Metrics,
    Section,
    Update,
    collect,
    format_line,
    load_definitions,
)
from mariner.model_server import ModelServer
from mariner.registry import ModelVersion
from mariner.snapshot import SnapshotModel, Snapshots, parse_models, require_archives
from mariner.temporary import TemporaryDirectory, remove_abandoned

__all__ = ["Server", "run"]

log = logging.getLogger(__name__)

FAREWELL = 0.1  # seconds in which open connections hear that they end; closed at once, one may hold an unread request
ARRIVALS = 2.0  # seconds that requests which are arriving when the stop begins may take to be complete
LAST_ANSWERS = 5.0  # seconds for clients to take the answers that were ready when everything else had ended
FIRST_SAMPLE = 0.5  # seconds over which the first share of processor time is taken; the next have a whole interval
TIMED_ANSWERS = 2000  # per second and listener; at 4 µs each they take less than a hundredth of the time
ACCESS_LINES = {
    AccessLogging.AUTO: 10_000,  # per second and listener; at 2 µs each they take a fiftieth of the time
    AccessLogging.ALL: sys.maxsize,
    AccessLogging.ERRORS: 0,
    AccessLogging.OFF: 0,
}
COLLECTIONS = (50_000, 20, 50)
"""Thresholds of the garbage collector. A request leaves no cycles behind; looking for them every 700 objects, as Python
does by default, would cost a tenth of the throughput."""


class LoopClock:
    """Time and timers of an event loop, but exact: uvloop's own clock stands still within a millisecond."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.time = time.monotonic
        self.call_soon = loop.call_soon
        self._call_later = loop.call_later

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any) -> asyncio.TimerHandle:
        """Calls ``callback`` at that time of :attr:`time`."""
        return self._call_later(max(0.0, when - time.monotonic()), callback, *args)


@dataclass(slots=True)
class Server:
    """A running server.

    Attributes:
        config: its settings.
        models: its use cases.
        listeners: what is served where.
    """

    config: Config
    models: ModelServer
    listeners: Sequence[tuple[Sequence[Kind], HttpListener]]
    arena: Arena
    access: Access
    temp_dir: TemporaryDirectory
    _collector: asyncio.Task[None] | None = None
    _snapshots: Snapshots | None = None
    _stopped: bool = False

    def address(self, kind: Kind) -> Address:
        """Where requests of that kind are answered; their own listener rather than a shared one."""
        _, listener = min((entry for entry in self.listeners if kind in entry[0]), key=lambda entry: len(entry[0]))
        return listener.address

    @classmethod
    async def start(
        cls,
        config: Config,
        *,
        access_log: AccessLog | None = None,
        on_metric: Callable[[Update], None] | None = None,
    ) -> Server:
        """Binds the listeners, registers the initial models and starts to answer; workers load meanwhile.

        Args:
            config: its settings.
            access_log: told of each answer.
            on_metric: takes the updates of metrics that belong into logs, see :class:`Metrics`.

        Raises:
            ConfigurationError: it cannot start as it is configured.
        """
        restored = _read_snapshot(config)
        async with contextlib.AsyncExitStack() as undo:
            await asyncio.to_thread(_remove_leftovers, config)
            temp_dir = TemporaryDirectory(config.temp_dir)
            undo.callback(temp_dir.remove)
            arena = Arena(config.shared_memory_size)
            undo.callback(arena.close)
            accelerators = await asyncio.to_thread(Accelerators.detect, os.environ, config.number_of_gpu)
            metrics = _make_metrics(config, on_metric)
            models = ModelServer(
                config,
                engine=LocalEngine(_relay_to(metrics), arena.fd),
                clock=LoopClock(asyncio.get_running_loop()),
                metrics=metrics,
                accelerators=accelerators,
                temp_dir=temp_dir.path,
            )
            undo.push_async_callback(models.drain, 0.0)
            # Before any worker is started and any key is written: a port that is taken must have no consequences.
            tls = _make_tls(config)
            bindings = []
            for address, kinds in _bindings(config):
                bound = bind(address)
                undo.callback(bound.release)
                bindings.append((bound, kinds))
            access = _make_access(config)
            if access.keys is not None:
                undo.callback(access.keys.remove_file)
            listeners = []
            for bound, kinds in bindings:
                app = _make_app(config, models, access, kinds)
                context = tls if bound.address.scheme is Scheme.HTTPS else None
                listener = HttpListener(
                    bound.address,
                    app,
                    bound=bound,
                    limits=_limits(config),
                    arena=arena,
                    tls=context,
                    access_log=access_log,
                )
                undo.push_async_callback(listener.close)
                listeners.append((kinds, listener))
            models.phase = Phase.STARTING  # who asks for the health of the server need not wait for archives
            for _, listener in listeners:
                await listener.start()
            await _load_models(config, models, restored)
            models.phase = Phase.SERVING
            undo.pop_all()
        server = cls(config, models, listeners, arena, access, temp_dir)
        if config.config_snapshots:
            server._snapshots = snapshots = Snapshots(config, models.registry)
            snapshots.save("startup")
            models.changed = lambda: snapshots.save("snapshot")
        if not config.disable_system_metrics:
            gpus = accelerators.ids if accelerators.vendor is Vendor.NVIDIA else ()
            server._collector = asyncio.create_task(server._collect_system_metrics(gpus), name="system metrics")
        return server

    async def stop(self) -> bool:
        """Takes no new requests, answers those it has, stops the workers and frees everything. May be called twice.

        Returns:
            Whether everything was answered in time.
        """
        if self._stopped:
            return True
        self._stopped = True
        if self._collector is not None:
            self._collector.cancel()
        self.models.phase = Phase.STOPPING
        deadline = time.monotonic() + self.config.drain_timeout
        for _, listener in self.listeners:
            listener.stop_listening()
        await asyncio.sleep(FAREWELL)
        for _, listener in self.listeners:
            listener.stop_accepting()
        # Requests that are still arriving count as accepted, but a slow sender must not hold up the end for long.
        await self._drain_listeners(ARRIVALS)
        if self._snapshots is not None:
            self.models.changed = lambda: None
            self._snapshots.save("shutdown")
            await self._snapshots.close()
        in_time = await self.models.drain(max(0.0, deadline - time.monotonic()))
        await self._drain_listeners(LAST_ANSWERS)
        for _, listener in self.listeners:
            await listener.close()
        if self.access.keys is not None:
            self.access.keys.remove_file()
        self.arena.close()
        await asyncio.to_thread(self.temp_dir.remove)
        return in_time

    async def _drain_listeners(self, timeout: float) -> None:
        await asyncio.gather(*(listener.drain(timeout) for _, listener in self.listeners))

    async def _collect_system_metrics(self, gpus: Sequence[str]) -> None:
        config, metrics = self.config, self.models.metrics
        meter = CpuMeter()
        await asyncio.sleep(FIRST_SAMPLE)
        while True:
            try:
                if config.system_metrics_cmd:
                    pids, limit = self.models.worker_pids(), config.metric_time_interval
                    rows = await collect(config.system_metrics_cmd, python=config.python, pids=pids, timeout=limit)
                    for row in rows:
                        metrics.record(*row)
                else:
                    metrics.sample_system(await asyncio.to_thread(read_system, cpu_percent=meter.percent, gpus=gpus))
            except Exception:
                log.exception("The state of the machine could not be read.")
            await asyncio.sleep(config.metric_time_interval)


def _remove_leftovers(config: Config) -> None:
    """Frees the space that servers which were killed could not free themselves."""
    remove_abandoned(config.temp_dir)
    if config.model_store is not None:
        with contextlib.suppress(OSError):  # no such store: who asks for an archive is told
            for name in remove_partial_downloads(config.model_store):
                log.info("Removed %s from the model store, left by a server that was killed.", name)


def _read_snapshot(config: Config) -> list[SnapshotModel] | None:
    """The models to restore; None where there is no snapshot."""
    if not config.is_set("model_snapshot"):
        return None
    models = parse_models(config.model_snapshot)
    name = config.model_snapshot.get("name", "")
    if not models:
        log.warning("Model snapshot is empty. Starting TorchServe without initial models.")
        return models
    log.info("Started restoring models from snapshot %s", name)
    require_archives(models, config.model_store)
    log.info("Snapshot %s validated successfully", name)
    return models


async def _load_models(config: Config, models: ModelServer, restored: list[SnapshotModel] | None) -> None:
    if restored is None:
        await models.load_initial_models(config.load_models)
        return
    await models.restore(restored)
    if config.origin("load_models").source > Source.FILE:  # a snapshot outranks what a file lists, but no flag
        await models.load_initial_models(config.load_models)


def _bindings(config: Config) -> list[tuple[Address, list[Kind]]]:
    """What is served where: equal addresses share one listener; predictions and management on one have metrics too."""
    wanted = [(config.inference_address, Kind.INFERENCE), (config.management_address, Kind.MANAGEMENT)]
    if config.enable_metrics_api:
        wanted.append((config.metrics_address, Kind.METRICS))
    bindings: list[tuple[Address, list[Kind]]] = []
    for address, kind in wanted:
        shared = next((kinds for other, kinds in bindings if other == address and not address.ephemeral), None)
        if shared is None:
            bindings.append((address, [kind]))
        else:
            shared.append(kind)
    for _, kinds in bindings:  # TorchServe's shared listener has the metrics too, whatever their own address
        if {Kind.INFERENCE, Kind.MANAGEMENT} <= {*kinds} and config.enable_metrics_api and Kind.METRICS not in kinds:
            kinds.append(Kind.METRICS)
    return bindings


def _make_app(config: Config, models: ModelServer, access: Access, kinds: Sequence[Kind]) -> App:
    cors = (
        ("access-control-allow-origin", config.cors_allowed_origin),
        ("access-control-allow-methods", config.cors_allowed_methods),
        ("access-control-allow-headers", config.cors_allowed_headers),
    )
    headers = tuple((name, value) for name, value in cors if value)
    return App(models, access, kinds, cors=headers, pass_query_parameters=config.pass_query_parameters)


def _limits(config: Config) -> Limits:
    return Limits(
        max_request_size=config.max_request_size,
        max_header_size=config.max_header_size,
        max_connections=config.max_connections,
        shared_body_threshold=config.shared_body_threshold,
        header_timeout=config.client_header_timeout,
        body_timeout=config.client_body_timeout,
        keep_alive_timeout=config.keep_alive_timeout,
        timed_answers=TIMED_ANSWERS if config.server_timing else 0,
        access_lines=ACCESS_LINES[config.access_log],
    )


def _make_tls(config: Config) -> ssl.SSLContext | None:
    """Key and certificate of the ``https`` listeners, if there are any."""
    if all(address.scheme is not Scheme.HTTPS for address, _ in _bindings(config)):
        return None
    return load_context(
        keystore=config.keystore,
        keystore_pass=config.keystore_pass,
        keystore_type=config.keystore_type,
        private_key_file=config.private_key_file,
        certificate_file=config.certificate_file,
    )


def _relay_to(metrics: Metrics) -> Callable[[str, str, str], None]:
    """Worker output: metrics that a handler printed are counted, everything else is logged."""

    def relay(worker_name: str, stream: str, line: str) -> None:
        if not ("[METRICS]" in line and stream == "stdout" and metrics.worker_line(line)):
            logs.relay(worker_name, stream, line)

    return relay


def _make_metrics(config: Config, on_metric: Callable[[Update], None] | None) -> Metrics:
    mode = config.metrics_mode
    definitions: Iterable[Definition] = METRICS
    if config.metrics_config is not None:
        # TorchServe stops for names that Prometheus does not allow only when asked for Prometheus; it is our default.
        strict = mode is MetricsMode.PROMETHEUS and config.is_set("metrics_mode")
        definitions = load_definitions(config.metrics_config, strict=strict)
    # Who asks for Prometheus gets what TorchServe does then: nothing in logs. By default logs have what costs little.
    if mode is MetricsMode.PROMETHEUS and config.is_set("metrics_mode"):
        on_metric = None
    return Metrics(definitions, mode=mode, auto_detect=config.model_metrics_auto_detect, on_update=on_metric)


def _make_access(config: Config) -> Access:
    address = config.management_address
    return open_access(
        config.token_authorization,
        management_host="unix" if address.scheme is Scheme.UNIX else address.host,
        key_file=_key_directory(config) / "key_file.json",
        lifetime=None if config.token_expiration_min is None else config.token_expiration_min * 60,
        given=read_given_keys(config),
        names=[config.inference_address.host, config.metrics_address.host],
        origins=[config.cors_allowed_origin] if config.cors_allowed_origin else [],
        model_api=config.enable_model_api,
    )


def _key_directory(config: Config) -> Path:
    """The working directory, as in TorchServe, unless it is read-only, as in many containers."""
    here = Path.cwd()
    return here if os.access(here, os.W_OK) else config.temp_dir


def run(
    config: Config,
    *,
    on_ready: Callable[[Sequence[str]], None],
    on_models_ready: Callable[[], None] = lambda: None,
    log_files: LogFiles | None = None,
) -> int:
    """Serves until SIGTERM or SIGINT; SIGHUP reloads changed archives. Returns the exit code of the process.

    Args:
        config: the settings.
        on_ready: called as soon as the listeners answer, with the line for each that scripts wait for.
        on_models_ready: called when every initial model has its workers, or has failed to get them.
        log_files: get a line for each answer, and the metrics; the caller's to close.

    Raises:
        ConfigurationError: it cannot start as it is configured.
    """
    with asyncio.Runner(loop_factory=_event_loop_factory()) as runner:
        return runner.run(_serve(config, on_ready, on_models_ready, log_files))


async def _serve(
    config: Config,
    on_ready: Callable[[Sequence[str]], None],
    on_models_ready: Callable[[], None],
    log_files: LogFiles | None,
) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    # Until there is something to reload, a hang-up has no effect; without a terminal to lose it is a request.
    stops_with_terminal = signal.getsignal(signal.SIGHUP) is signal.SIG_DFL and _has_terminal()
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    try:
        if log_files is None:
            server = await Server.start(config)
        else:
            access_log = log_files.access if config.access_log is not AccessLogging.OFF else None
            server = await Server.start(config, access_log=access_log, on_metric=partial(_log_metric, log_files))
    except OSError as error:
        raise ConfigurationError(f"The server cannot start: {error}") from error
    gc.collect()
    gc.freeze()  # what exists now stays: collections need not look at it again
    gc.set_threshold(*COLLECTIONS)
    on_ready([f"{kinds[0].value.capitalize()} API bind to: {listener.address}" for kinds, listener in server.listeners])
    waiter = asyncio.create_task(_tell_when_ready(server.models, on_models_ready), name="initial models")
    reloads: set[asyncio.Task[None]] = set()

    def hang_up() -> None:
        if stops_with_terminal and not _has_terminal():
            stop.set()  # somebody closed the window this server ran in
            return
        task = asyncio.create_task(server.models.reload(), name="reload")
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, hang_up)
    await stop.wait()
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    log.info("Stopping: running requests are answered first.")
    for name in (signal.SIGTERM, signal.SIGINT):  # a second signal ends at once
        loop.remove_signal_handler(name)
        signal.signal(name, signal.SIG_DFL)
    in_time = await server.stop()
    waiter.cancel()
    await asyncio.gather(*reloads)
    if not in_time:
        log.warning("Some requests were not answered within %g s.", config.drain_timeout)
    log.info("Torchserve stopped.")
    return 0


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _log_metric(log_files: LogFiles, update: Update) -> None:
    file = SERVER_METRICS if update.definition.section is Section.SERVER else MODEL_METRICS
    log_files.metric(file, format_line(update))


async def _tell_when_ready(models: ModelServer, on_models_ready: Callable[[], None]) -> None:
    total, ready = len([*models.registry]) + models.not_loaded(), 0

    def progress(version: ModelVersion, succeeded: bool) -> None:
        nonlocal ready
        ready += succeeded
        if succeeded:
            log.info("Model %s version %s is ready: %d of %d.", version.name, version.version, ready, total)
        else:
            log.warning("Model %s version %s is not ready: %d of %d.", version.name, version.version, ready, total)

    await models.wait_until_ready(progress)
    if ready < total:
        log.warning("%d of %d models are ready; the lines above say why others are not.", ready, total)
    on_models_ready()


def _event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - an optimisation that not every platform has
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
