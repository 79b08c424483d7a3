"""Deployment: how versions come into service, take each other's place without losing a request, and go."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable

from mariner.archive.read import Archive
from mariner.clock import Clock
from mariner.errors import Draining, MarinerError, NotFound
from mariner.loading import ModelLoader
from mariner.model_settings import RegisterOptions
from mariner.registry import ModelVersion, Registry

__all__ = ["Deployment"]

log = logging.getLogger(__name__)

LAST_TIMERS = 10.0  # seconds after which no timer of a worker that has gone refers to it


class Deployment:
    """Moves versions between their archives and the registry.

    Args:
        loader: makes them.
        registry: those that are in service.
        clock: time and timers.
        drain_timeout: seconds within which one that goes answers what it has.
        stopping: whether the server takes nothing new.
        replaced: called when a version has taken the place of another, which may have much to answer still.

    Attributes:
        leaving: versions that are not registered any more, but still answer what waits.
        not_loaded: urls of models that should be there from the start and could not be loaded.
    """

    def __init__(
        self,
        loader: ModelLoader,
        registry: Registry,
        *,
        clock: Clock,
        drain_timeout: float,
        stopping: Callable[[], bool],
        replaced: Callable[[], object],
    ) -> None:
        self.registry = registry
        self.leaving: list[ModelVersion] = []
        self.not_loaded: set[str] = set()
        self._arriving: list[ModelVersion] = []  # not registered yet; their workers start
        self._replacing = asyncio.Lock()
        self._loader = loader
        self._clock = clock
        self._drain_timeout = drain_timeout
        self._stopping = stopping
        self._replaced = replaced

    def require_open(self) -> None:
        """Refuses what begins something new while the server stops.

        Raises:
            Draining: it does.
        """
        if self._stopping():
            raise Draining("The server is stopping.")

    # -- coming -------------------------------------------------------------------------------------------------------

    async def open(self, url: str, options: RegisterOptions, *, reuse: bool = False) -> Archive:
        """See :meth:`mariner.loading.ModelLoader.open`."""
        return await self._loader.open(url, options, reuse=reuse)

    async def enter(
        self, url: str, archive: Archive, options: RegisterOptions, *, at_startup: bool = False
    ) -> ModelVersion:
        """Registers a version of an open archive, which is removed if that fails; it has no workers yet.

        Raises:
            InvalidArchive, BadRequest: archive and options do not make a model.
            Conflict: the version is registered, and not broken.
        """
        try:
            version = self._loader.make(url, archive, options, at_startup=at_startup)
            old = self._broken(version.name, version.version)
            if old is None:
                self.registry.add(version)
            else:
                self.registry.replace(old, version)
                log.info("%s is registered anew in the place of one whose workers failed too often.", _title(old))
                await self._retire(old, keep_download=True)
            log.debug("Adding new version %s for model %s", version.version, version.name)
            if self.registry.is_default(version):
                log.debug("Setting default version to %s for model %s", version.version, version.name)
        except BaseException:
            await asyncio.to_thread(archive.remove)
            raise
        return version

    def _broken(self, name: str, number: str) -> ModelVersion | None:
        """The registered version of that number, if none of its workers will come without help."""
        try:
            found = self.registry.get(name, number)
        except NotFound:
            return None
        return found if found.pool.broken else None

    async def start(self, version: ModelVersion) -> None:
        """Gives a registered version its packages and starts its workers, or takes it out again.

        Raises:
            InvalidArchive: the packages cannot be installed.
            Draining: the server has begun to stop.
        """
        try:
            await self._loader.install(version, cancelled=self._stopping)
            self.require_open()  # pip may have taken minutes
        except BaseException:
            self.registry.remove(version)
            await asyncio.to_thread(version.archive.remove)
            raise
        self.not_loaded.discard(version.archive.url)
        log.info("Model %s loaded.", version.name)
        log.debug("updateModel: %s, count: %d", version.name, version.settings.min_workers)
        version.pool.scale(version.settings.min_workers, version.settings.max_workers)

    # -- giving way ---------------------------------------------------------------------------------------------------

    async def replace(self, name: str, version: str | None = None) -> ModelVersion:
        """Loads the archive of a version anew and puts the result into its place.

        Requests go to the old version until the workers of the new one are ready.

        Returns:
            What is in its place; the old version has answered what it had and is gone.

        Raises:
            MarinerError: the archive cannot be loaded; the old version goes on.
        """
        async with self._replacing:
            return await self._replace(self.registry.get(name, version))

    async def replace_changed(self) -> None:
        """Replaces each version whose archive has changed since it was opened, one after the other.

        An archive that cannot be loaded leaves the old version as it is. The log says what happened.
        """
        async with self._replacing:
            changed = [version for version in self.registry if await asyncio.to_thread(version.archive.changed)]
            if not changed:
                log.info("No archive has changed since it was loaded.")
            for old in changed:
                await self._replace_if_possible(old)

    async def _replace_if_possible(self, old: ModelVersion) -> None:
        try:
            await self._replace(old)
        except MarinerError as error:
            log.warning("%s could not be reloaded: %s %s", _title(old), error.message, error.hint)
        except Exception:
            log.exception("%s could not be reloaded.", _title(old))

    async def _replace(self, old: ModelVersion) -> ModelVersion:
        begun = self._clock.time()
        new = await self._loader.remake(old)
        self._arriving.append(new)
        try:
            await self._start_beside(old, new)
        except BaseException:
            await new.pool.drain(0.0)
            await asyncio.to_thread(new.archive.remove, keep_download=True)
            raise
        finally:
            self._arriving.remove(new)
        log.info("%s is replaced by version %s after %.2f s.", _title(old), new.version, self._clock.time() - begun)
        self._replaced()
        await self._retire(old, keep_download=True)
        return new

    async def _start_beside(self, old: ModelVersion, new: ModelVersion) -> None:
        """Starts the workers of a version, as many as the other was told to have, and gives it the other's place."""
        await self._loader.install(new, cancelled=self._stopping)
        self.require_open()
        told = old.pool.min_workers, old.pool.max_workers
        if told == (old.settings.min_workers, old.settings.max_workers):  # nobody has scaled it since
            new.pool.scale(new.settings.min_workers, new.settings.max_workers)
        else:
            new.pool.scale(*told)
            new.scaled = old.scaled
        new.pool.scaler.start_with(len(old.pool.workers))  # the load that made them so many goes on
        await new.pool.settle()
        self.require_open()
        self.registry.replace(old, new)
        if (old.pool.min_workers, old.pool.max_workers) != told:  # somebody has scaled it meanwhile
            new.pool.scale(old.pool.min_workers, old.pool.max_workers)
            new.scaled = old.scaled
        new.pool.take_over(old.pool)

    # -- going --------------------------------------------------------------------------------------------------------

    async def remove(self, version: ModelVersion) -> None:
        """Takes a version out of service, lets it answer what waits, and deletes its unpacked files."""
        self.registry.remove(version)
        log.info("Unregistering model %s version %s", version.name, version.version)
        await self._retire(version)
        log.info("Model %s version %s unregistered.", version.name, version.version)

    async def _retire(self, version: ModelVersion, *, keep_download: bool = False) -> None:
        """Lets a version that is not registered any more answer what it has, and removes it."""
        self.leaving.append(version)
        try:
            await version.pool.drain(self._drain_timeout)
            await asyncio.to_thread(version.archive.remove, keep_download=keep_download)
        finally:
            self.leaving.remove(version)
            # Pool, workers and processes refer to each other. Left to the collector, whose thresholds are those of a
            # server that makes no cycles, hundreds of such versions would lie about.
            self._clock.call_at(self._clock.time() + LAST_TIMERS, gc.collect)

    async def drain(self, timeout: float) -> bool:
        """Takes all versions out, when they have answered what they have; the server is stopping.

        Returns:
            Whether everything was answered within ``timeout`` seconds.
        """
        for version in self._arriving:
            version.pool.scale(0, 0)  # who waits for its workers sees to the rest
        versions = list(self.registry)
        in_time = await asyncio.gather(*(version.pool.drain(timeout) for version in [*versions, *self.leaving]))
        for version in versions:
            self.registry.remove(version)
            await asyncio.to_thread(version.archive.remove, keep_download=True)
        async with self._replacing:  # whoever was at it has cleared up
            return all(in_time)


def _title(version: ModelVersion) -> str:
    return f"Model {version.name} version {version.version}"
