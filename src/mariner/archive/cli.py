"""The commands ``torch-model-archiver`` and ``torch-workflow-archiver``: flags, messages, exit codes, progress."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mariner.archive.write import (
    ARCHIVE_FORMATS,
    ArchiveError,
    ArchiveSpec,
    Progress,
    WorkflowSpec,
    write_model_archive,
    write_workflow_archive,
)

__all__ = ["model_archiver", "parse_model_arguments", "workflow_archiver"]

PROGRESS_FROM = 64 << 20  # bytes; less is packaged before anybody looks

_logger = logging.getLogger(__name__)


def model_archiver(argv: Sequence[str] | None = None) -> int:
    """``torch-model-archiver``."""
    spec = parse_model_arguments(argv)
    return _run(lambda progress: write_model_archive(spec, progress))


def workflow_archiver(argv: Sequence[str] | None = None) -> int:
    """``torch-workflow-archiver``."""
    spec = WorkflowSpec(**vars(_workflow_parser().parse_args(argv)))
    return _run(lambda progress: write_workflow_archive(spec, progress))


def parse_model_arguments(argv: Sequence[str] | None = None) -> ArchiveSpec:
    """The flags of ``torch-model-archiver``; wrong ones end the program with exit code 2."""
    return ArchiveSpec(**vars(_model_parser().parse_args(argv)))


def _run(write: Callable[[Progress | None], Path]) -> int:
    logging.basicConfig(format="%(levelname)s - %(message)s")
    try:
        with _progress() as progress:
            write(progress)
    except (ArchiveError, OSError) as error:
        _logger.error("%s", error)  # noqa: TRY400  (the packager's mistake, no defect: the text is enough)
        return 1
    except KeyboardInterrupt:
        return 130  # as a shell reports SIGINT; the temporary file is gone
    return 0


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """A bar on the terminal once the archive turns out to be large."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress as rich_progress  # noqa: PLC0415  (a quarter of the start-up time)
    from rich.console import Console  # noqa: PLC0415

    columns = (
        rich_progress.TextColumn("Packaging"),
        rich_progress.BarColumn(),
        rich_progress.DownloadColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    bar = rich_progress.Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("Packaging")
    started = False

    def show(done: int, total: int) -> None:
        nonlocal started
        if total < PROGRESS_FROM:
            return
        if not started:
            bar.start()
            started = True
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        bar.stop()


def _model_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torch-model-archiver", description="Package a model with its handler and files into an archive to serve."
    )
    parser.add_argument(
        "--model-name",
        required=True,
        help="name of the model; the archive is called <model-name>.mar",
    )
    parser.add_argument("--version", "-v", required=True, help="version of the model")
    parser.add_argument(
        "--handler",
        required=True,
        help="built-in handler, or path of a Python file, with :function if a function is the entry point",
    )
    parser.add_argument("--serialized-file", help="weights, TorchScript program or other serialized model")
    parser.add_argument("--model-file", help="Python file with the class of the model")
    parser.add_argument(
        "--extra-files",
        help="comma-separated files, wildcards and directories; of a directory the content is taken",
    )
    parser.add_argument(
        "--runtime", choices=("python", "python3", "LSP"), default="python", help="what runs the handler"
    )
    parser.add_argument("--export-path", help="directory for the archive, made if missing; default: the current one")
    parser.add_argument(
        "--model-path", help="directory that the other files are relative to, where they are not in the current one"
    )
    parser.add_argument(
        "--archive-format",
        choices=ARCHIVE_FORMATS,
        default="default",
        help="default: compressed .mar; zip-store: .mar without compression; tgz: .tar.gz; no-archive: a directory",
    )
    parser.add_argument("--force", "-f", action="store_true", help="replace an archive that exists")
    parser.add_argument("--requirements-file", "-r", help="requirements.txt with the packages the model needs")
    parser.add_argument("--config-file", "-c", help="YAML file with the model config")
    return parser


def _workflow_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torch-workflow-archiver", description="Package a workflow with its handler and files into an archive."
    )
    parser.add_argument(
        "--workflow-name", required=True, help="name of the workflow; the archive is called <workflow-name>.war"
    )
    parser.add_argument("--spec-file", required=True, help="YAML file with models and graph")
    parser.add_argument("--handler", help="Python file with the functions of the graph")
    parser.add_argument("--export-path", help="existing directory for the archive; default: the current one")
    parser.add_argument("--extra-files", help="comma-separated files")
    parser.add_argument("--force", "-f", action="store_true", help="replace an archive that exists")
    return parser
