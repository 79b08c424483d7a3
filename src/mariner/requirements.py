"""What an archive's requirements file asks for, installed before its workers start, for that model alone.

pip first says what the server's environment lacks (a dry run against it); only that is installed, into a directory of
the cache whose name is a hash of everything the answer depends on. A second start therefore installs nothing, and
PyTorch stays the one of the environment. The packages are then linked into the model's temporary directory, where
TorchServe puts them: workers look there already, and files of the archive win over packages of the same name. A model
with a virtual environment gets an interpreter of its own, which sees those packages and then the server's.

Blocking; the server calls it in a thread.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mariner.archive.read import Archive
from mariner.errors import DependenciesFailed
from mariner.package_cache import PackageCache, PackageSet, cache_directory

__all__ = ["install_requirements", "interpreter", "read_plan"]

log = logging.getLogger(__name__)

KEPT = ("torch", "torchvision", "torchaudio", "mariner-serve")
"""Distributions that every model shares with the server's environment, where they are installed."""

REPLACED = frozenset({"torchserve", "torch-model-archiver", "torch-workflow-archiver"})
"""Distributions whose modules are ours here; a second copy would hide them."""

CANCEL_INTERVAL = 0.25  # seconds; how long a server that stops waits for a pip that runs

_OPTION_OF_FILE = re.compile(r"(?:-r|--requirement|-c|--constraint|-e|--editable)\b")


def interpreter(archive: Archive) -> str:
    """The Python that runs the workers of an archive.

    Args:
        archive: says whether it wants an environment of its own.
    """
    return str(_venv(archive) / "bin" / "python") if archive.config.use_venv else sys.executable


def install_requirements(
    name: str,
    archive: Archive,
    *,
    enabled: bool,
    temp_dir: Path,
    cache_size: int,
    environment: Mapping[str, str],
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Prepares what :func:`interpreter` and the archive's requirements file promise.

    Args:
        name: of the model, for messages.
        archive: its files; the packages stay in the cache until it is removed.
        enabled: packages may be installed; without it only the virtual environment is made.
        temp_dir: where the cache is if the environment names no other place.
        cache_size: bytes that the cache may have, beside what is used.
        environment: of pip; what the workers get.
        cancelled: nobody wants the packages any more; asked now and then.

    Raises:
        DependenciesFailed: it cannot be done; the log has pip's output.
    """
    packages: Path | None = None
    file = archive.manifest.requirements_file
    if file and enabled:
        try:
            request = _Request(name, archive.model_dir.resolve(), file, environment, cancelled)
            constraints = [] if archive.config.use_venv else _kept()
            cache = PackageCache(cache_directory(environment, temp_dir), cache_size)
            packages = archive.held.enter_context(closing(_packages(request, constraints, cache))).path
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.exception("Packages of model %s could not be installed.", name)
            raise _failed(name, "The server's log has the reason.") from error
    elif file:
        log.info("Model %s has a requirements file; install_py_dep_per_model=true would install it.", name)
    if archive.config.use_venv:
        try:
            _make_venv(_venv(archive), packages)
        except (OSError, subprocess.SubprocessError) as error:
            log.exception("The virtual environment of model %s could not be created.", name)
            raise DependenciesFailed(
                f"Virtual environment creation failed for model {name}", hint="The server's log has the reason."
            ) from error
        log.info("Created virtual environment for model %s: %s", name, _venv(archive))
    elif packages is not None:
        _link(packages, archive.holder)


# -- packages ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Request:
    """What is to be installed, and how pip is to run."""

    model: str
    place: Path
    file: str
    environment: Mapping[str, str]
    cancelled: Callable[[], bool]


def _packages(request: _Request, constraints: list[str], cache: PackageCache) -> PackageSet:
    """What the server's environment lacks for this model."""
    installed = False

    def make(target: Path) -> None:
        nonlocal installed
        installed = True
        log.info("Installing the packages of model %s from %s ...", request.model, request.file)
        started = time.perf_counter()
        count = _install(request, constraints, target)
        seconds = time.perf_counter() - started
        log.info("Installed custom pip packages for model %s: %d in %.1f s", request.model, count, seconds)

    found = cache.acquire(_fingerprint(request.place, request.file, constraints), make)
    if not installed:
        log.info("Packages of model %s are in the cache already.", request.model)
    return found


def _install(request: _Request, constraints: list[str], target: Path) -> int:
    """Asks pip what is missing and has it install that into ``target``; returns how many distributions it was."""
    report, exact, kept = (target.with_name(name) for name in ("report.json", "exact.txt", "kept.txt"))
    kept.write_text("\n".join(constraints))
    lines = list(_lines(request.place, request.file))
    _pip(request, ["--dry-run", "--report", str(report), "-r", str(request.place / request.file), "-c", str(kept)])
    wanted = read_plan(json.loads(report.read_bytes()), hashes="--hash" in "".join(lines))
    if wanted:
        options = [line for line in lines if line.startswith("-") and not _OPTION_OF_FILE.match(line)]
        exact.write_text("\n".join([*options, *wanted]))
        _pip(request, ["--no-deps", "--target", str(target), "-r", str(exact)])
    return len(wanted)


def read_plan(report: Mapping[str, Any], *, hashes: bool = False) -> list[str]:
    """The lines of a requirements file that installs exactly what pip planned.

    Args:
        report: pip's installation report.
        hashes: carry over what the files must hash to.
    """
    lines = []
    for item in report["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        if re.sub(r"[-_.]+", "-", name).lower() in REPLACED:
            log.info("%s is not installed: this server has its modules.", name)
            continue
        info = item["download_info"]
        line = f"{name} @ {_direct_url(info)}" if item.get("is_direct") else f"{name}=={version}"
        digest = info.get("archive_info", {}).get("hashes", {}).get("sha256")
        lines.append(f"{line} --hash=sha256:{digest}" if hashes and digest else line)
    return lines


def _direct_url(info: Mapping[str, Any]) -> str:
    """What was named by its address: a file, a directory, or a commit."""
    url, source = str(info["url"]), info.get("vcs_info")
    if source:
        url = f"{source['vcs']}+{url}@{source['commit_id']}"
    return f"{url}#subdirectory={info['subdirectory']}" if info.get("subdirectory") else url


def _kept() -> list[str]:
    """Constraints that leave the shared distributions as they are."""
    found = [distribution for name in KEPT for distribution in metadata.distributions(name=name)]
    return list({item.name: f"{item.name}=={item.version}" for item in reversed(found)}.values())


def _pip(request: _Request, arguments: list[str]) -> None:
    """Runs ``pip install`` with the server's interpreter; relative paths are those of the archive."""
    command = [sys.executable, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", *arguments]
    # A user's own configuration of pip must not send the packages elsewhere.
    settings = {key: value for key, value in request.environment.items() if key not in {"PIP_TARGET", "PIP_PREFIX"}}
    with subprocess.Popen(  # noqa: S603  # installing is what the setting allows
        command,
        cwd=request.place,
        env={**settings, "PIP_USER": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # its build tools end with it
    ) as process:
        output = _output(process, request.cancelled)
    if process.returncode:
        log.error("pip failed for model %s with code %d:\n%s", request.model, process.returncode, output)
        raise _failed(request.model, _hint(output))


def _output(process: subprocess.Popen[str], cancelled: Callable[[], bool]) -> str:
    """Waits for the end of a process, which may be now."""
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=CANCEL_INTERVAL)[0]
        if cancelled():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _hint(output: str) -> str:
    """The part of pip's output that a client may see: no paths, no addresses."""
    if "No module named pip" in output:
        return "The server's environment has no pip: python -m ensurepip."
    errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR: ")]
    shown = next((line for line in reversed(errors) if "/" not in line), "")
    if "(constraint)" in output:
        shown = f"{shown} PyTorch stays that of the server; useVenv: true lets a model bring its own."
    return f"{shown} The server's log has pip's output.".lstrip()


def _failed(name: str, hint: str) -> DependenciesFailed:
    return DependenciesFailed(f"Custom pip package installation failed for model {name}", hint=hint)


# -- what decides ------------------------------------------------------------------------------------------------------


def _fingerprint(place: Path, file: str, constraints: list[str]) -> str:
    """A hash of all that decides what is installed: files, constraints, interpreter, and what is there already."""
    digest = hashlib.sha256()
    facts = [sys.version, sysconfig.get_platform(), sys.prefix, *constraints]
    facts += sorted({f"{found.name}=={found.version}" for found in metadata.distributions()})
    for line in _lines(place, file):
        facts.append(line)
        for word in _words(line):
            named = place / word
            if word and named.is_relative_to(place) and named.exists():
                facts += _contents(named)
    for fact in facts:
        digest.update(fact.encode() + b"\0")
    return digest.hexdigest()[:32]


def _words(line: str) -> list[str]:
    """What in a line may name a file."""
    try:
        words = shlex.split(line)
    except ValueError:  # an odd quote: pip will say so
        words = line.split()
    return [word.rpartition("=")[2].removeprefix("file:") for word in words]


def _contents(path: Path) -> Iterator[str]:
    for file in sorted(file for file in [path, *path.rglob("*")] if file.is_file()):
        with file.open("rb") as stream:
            yield f"{file.name}:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def _lines(place: Path, file: str, seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """The lines of a requirements file and of those it includes, without comments."""
    if file in seen or not (place / file).is_file():
        return  # a missing one: pip will say so
    text = (place / file).read_text(encoding="utf-8-sig")
    for raw in re.sub(r"\\\n", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*", "", raw).strip()
        if line:
            yield line
        if included := re.match(r"(?:-r|--requirement|-c|--constraint)[\s=]*(\S+)", line):
            yield from _lines(place, str(Path(file).parent / included[1]), seen | {file})


def _link(packages: Path, holder: Path) -> None:
    for entry in packages.iterdir():
        place = holder / entry.name
        if entry.name != "__pycache__" and not place.is_symlink() and not place.exists():
            place.symlink_to(entry)


# -- virtual environments ---------------------------------------------------------------------------------------------


def _venv(archive: Archive) -> Path:
    return archive.holder.absolute() / "venv"


def _make_venv(path: Path, packages: Path | None) -> None:
    """An environment that finds its own packages, then the model's, then the server's, pip among them."""
    venv.EnvBuilder(clear=True, symlinks=True, with_pip=False).create(path)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(path), "platbase": str(path)}))
    shared = [entry for entry in sys.path if Path(entry).name in {"site-packages", "dist-packages"}]
    # addsitedir and not the bare path: the .pth files of the other places (editable installations) count too.
    found = [str(packages)] if packages is not None else []
    lines = [f"import site; site.addsitedir({place!r})" for place in [*found, *shared]]
    (own / "mariner.pth").write_text("\n".join(lines) + "\n")
