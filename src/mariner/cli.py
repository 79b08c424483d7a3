"""The commands ``torchserve`` and ``mariner``. Flags come from the table of settings; the server is imported late."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mariner import __version__
from mariner.bench.arguments import add_arguments as add_bench_arguments
from mariner.config import (
    SETTINGS,
    VERSION,
    Config,
    Setting,
    Source,
    did_you_mean,
    find_setting,
    flag_names,
    format_value,
    load_config,
    reference_page,
)
from mariner.errors import ConfigurationError

if TYPE_CHECKING:
    from mariner.launch import PidFile, StartReport
    from mariner.logs import LogFiles

__all__ = ["main", "torchserve"]

_STOP_WAIT = 60.0  # seconds; what `--stop --foreground` has always waited
_STOP_SLACK = 10.0  # seconds beyond the drain timeout for workers to end


def torchserve(argv: Sequence[str] | None = None) -> int:  # noqa: PLR0911 - one return per outcome
    """The ``torchserve`` command: starts and stops a server as TorchServe's command does. Returns the exit status."""
    options = _torchserve_parser().parse_args(_split_words(sys.argv[1:] if argv is None else argv))
    flags = _flags(options)
    rival = _rival()
    if rival:
        _complain(rival)
    from mariner.launch import ALREADY_RUNNING, PidFile, stop  # noqa: PLC0415 - psutil is not needed for --help

    pid_file = PidFile()
    if pid_file.remove_orphan():
        _say("Removing orphan pid file.")
    if options.version:
        _say(f"TorchServe Version is {VERSION}")
        return 0
    if options.stop:
        timeout = _STOP_WAIT if options.foreground else _drain_timeout(flags) + _STOP_SLACK
        return stop(pid_file, timeout=timeout, quiet=options.foreground, say=_say, complain=_complain)
    if pid_file.server() is not None:
        _say(ALREADY_RUNNING)
        return 1
    if rival:
        return 1
    try:
        return _start(options, flags, pid_file)
    except ConfigurationError as error:
        _say(_text(error))
        return 1
    except KeyboardInterrupt:
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    """The ``mariner`` command. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["_serve"]:  # what `torchserve --start` runs
        return _serve_in_background(words[1:])
    options = _mariner_parser().parse_args(words)
    try:
        status: int = options.run(options)
    except ConfigurationError as error:
        _complain(_text(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return status


# -- starting --------------------------------------------------------------------------------------------------------


def _start(options: argparse.Namespace, flags: dict[str, str], pid_file: PidFile) -> int:
    config = _checked_config(flags)
    if not options.foreground:
        from mariner.launch import start_background  # noqa: PLC0415 - as above

        return start_background(_words(flags), pid_file, wait_for_models=options.wait, say=_say)

    def run() -> int:
        with pid_file.claim():
            pid_file.write(os.getpid())
        try:
            return _run(config, with_files=True)
        finally:
            pid_file.remove(os.getpid())

    return _as_child_of_init(run)


def _as_child_of_init(run: Callable[[], int]) -> int:
    """Runs the server; below an init process where this is the first one of a container."""
    if os.getpid() != 1:
        return run()
    from mariner.init import run_below  # noqa: PLC0415 - only here

    return run_below(run)


def _checked_config(flags: dict[str, str]) -> Config:
    """The configuration, once every file and directory that TorchServe's command asks for is there."""
    _require_file("--log-config", flags.get("log_config"))
    config = load_config(flags, os.environ, Path.cwd())
    if config.model_store is None:
        raise ConfigurationError(
            "Missing mandatory parameter --model-store", hint="Name the directory that holds the archives."
        )
    for flag, key, path in (
        ("--model-store", "model_store", config.model_store),
        ("--workflow-store", "workflow_store", config.workflow_store),
    ):
        if path is not None and not path.is_dir():
            raise ConfigurationError(f"{flag} directory not found: {flags.get(key, path)}")
    _require_file("--cpp-log-config", flags.get("cpp_log_config"))
    return config


def _require_file(flag: str, name: str | None) -> None:
    if name is not None and not Path(name).is_file():
        raise ConfigurationError(f"{flag} file not found: {Path(name).absolute()}")


def _serve_in_background(words: list[str]) -> int:
    from mariner.launch import PidFile, StartReport  # noqa: PLC0415 - only here

    parser = argparse.ArgumentParser(prog="mariner _serve", allow_abbrev=False)
    parser.add_argument("--ready-fd", type=int, required=True)
    _add_flags(parser, SETTINGS.values())
    options = parser.parse_args(words)
    report = StartReport(options.ready_fd)
    try:
        return _run(load_config(_flags(options), os.environ, Path.cwd()), report, with_files=True)
    except ConfigurationError as error:
        report.failed(_text(error))
        return 1
    finally:
        report.close()
        PidFile().remove(os.getpid())


def _run(config: Config, report: StartReport | None = None, *, with_files: bool) -> int:
    """Runs the server in this process until it is told to stop.

    Args:
        config: the settings.
        report: tells the command that started this process.
        with_files: write TorchServe's log files.

    Raises:
        ConfigurationError: it cannot start as it is configured.
    """
    from mariner import logs  # noqa: PLC0415 - commands that do not serve do not log

    logs.configure(config)
    files = _open_log_files(config) if with_files else None
    try:
        return _run_logged(config, report, files)
    finally:
        if files is not None:
            files.close()


def _run_logged(config: Config, report: StartReport | None, files: LogFiles | None) -> int:
    from mariner import logs  # noqa: PLC0415 - as above
    from mariner.serve import run  # noqa: PLC0415 - nor do they import the server

    log = logging.getLogger("mariner.serve")
    for warning in config.warnings:
        log.warning("%s", warning)

    def on_ready(lines: Sequence[str]) -> None:
        for line in lines:
            log.info("%s", line)
        logs.announce(logs.STARTED)
        if report is not None:
            report.ready()

    def on_models_ready() -> None:
        if report is not None:
            report.models_ready()

    try:
        return run(config, on_ready=on_ready, on_models_ready=on_models_ready, log_files=files)
    except ConfigurationError:
        raise
    except Exception as error:
        log.exception("The server has failed.")
        if report is not None:
            report.failed(f"The server has failed: {error!r}. The log has the details.")
        return 1


def _open_log_files(config: Config) -> LogFiles | None:
    """The files; None where they cannot be written, say in a read-only container: the console has it all, too.

    Raises:
        ConfigurationError: they cannot be written where somebody wants them.
    """
    from mariner.logs import LogFiles  # noqa: PLC0415 - as above

    try:
        return LogFiles(config.log_location, config.metrics_location)
    except ConfigurationError as error:
        if config.is_set("log_location") or config.is_set("metrics_location"):
            raise
        logging.getLogger("mariner.logs").warning("%s", error)
        return None


def _drain_timeout(flags: dict[str, str]) -> float:
    try:
        return load_config(flags, os.environ, Path.cwd()).drain_timeout
    except ConfigurationError:  # whatever is wrong with the settings, stopping must be possible
        return Config().drain_timeout


def _rival() -> str:
    """A line about the TorchServe that is installed beside us, or ""."""
    try:
        version = metadata.version("torchserve")
    except metadata.PackageNotFoundError:
        return ""
    return (
        f"torchserve {version} is installed in this environment too, and both have the package 'ts': run "
        "'pip uninstall -y torchserve' and then 'pip install --force-reinstall --no-deps mariner-serve'."
    )


# -- verbs of mariner ------------------------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    if rival := _rival():
        raise ConfigurationError(rival)
    flags = _flags(options)
    flags.setdefault("config_snapshots", "false")  # this command leaves no files behind
    config = load_config(flags, os.environ, Path.cwd())
    return _as_child_of_init(lambda: _run(config, with_files=config.is_set("log_location")))


def _bench(options: argparse.Namespace) -> int:
    from mariner.bench.command import run  # noqa: PLC0415 - slow to import

    return run(options)


def _config_docs(options: argparse.Namespace) -> int:
    from mariner.archive import model_config_page  # noqa: PLC0415 - of no use to the other commands

    sys.stdout.write(model_config_page.reference_page() if options.model else reference_page())
    return 0


def _metrics_docs(_options: argparse.Namespace) -> int:
    from mariner import metrics  # noqa: PLC0415 - of no use to the other commands

    sys.stdout.write(metrics.reference_page())
    return 0


def _config_explain(options: argparse.Namespace) -> int:
    config = load_config(_flags(options), os.environ, Path.cwd())
    if options.model is not None:
        return _explain_model(config, options.model, options.key, running=options.running)
    if options.running:
        raise ConfigurationError("--running goes with --model.", hint="The server's own settings change by no call.")
    if options.key is not None:
        setting = find_setting(options.key)
        if setting is None:
            raise ConfigurationError(f"There is no setting {options.key}.", hint=did_you_mean(options.key))
        _explain(config, setting)
    else:
        _explain_all(config)
    for warning in config.warnings:
        _complain(warning)
    return 0


def _explain_model(config: Config, name: str, key: str | None, *, running: bool) -> int:
    from mariner.archive.model_config import ModelConfig, rows  # noqa: PLC0415 - of no use to the other commands
    from mariner.devices import Accelerators  # noqa: PLC0415 - as above
    from mariner.explain import explain_model, explain_running  # noqa: PLC0415 - as above

    warnings: list[str] = []
    if running:
        explained = explain_running(config, name, key_file=Path("key_file.json"))
    else:
        gpus = Accelerators.detect(os.environ, config.number_of_gpu).count
        explained, warnings = explain_model(config, name, gpus=gpus)
    if key is None:
        _print_table([(row.key, row.value, row.place, row.place == "default") for row in explained])
    else:
        row = next((row for row in explained if row.key == key), None)
        if row is None:
            hint = did_you_mean(key, [row.key for row in explained])
            raise ConfigurationError(f"There is no key {key} in the model config.", hint=hint)
        doc = next(each.doc for each in rows(ModelConfig).values() if each.key == key)
        _say(f"{row.key} = {row.value}\n{doc}\n  from: {row.place}".replace("`", ""))
    for warning in warnings:
        _complain(warning)
    return 0


def _explain_all(config: Config) -> None:
    rows = []
    for setting in SETTINGS.values():
        origin = config.origin(setting.key)
        rows.append((setting.key, _value(config, setting), str(origin), origin.source is Source.DEFAULT))
    _print_table(rows)


def _print_table(rows: Iterable[tuple[str, str, str, bool]]) -> None:
    """Prints keys, values and places; a line is dim where nobody has chosen the value."""
    from rich.console import Console  # noqa: PLC0415 - slow to import
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("Key", no_wrap=True)
    table.add_column("Value")
    table.add_column("From")
    for *cells, default in rows:
        table.add_row(*(Text(cell, style="dim" if default else "", overflow="fold") for cell in cells))
    Console().print(table)


def _explain(config: Config, setting: Setting) -> None:
    default = setting.shown or format_value(setting, setting.default) or "unset"
    flag = ", ".join(setting.flag.names) if setting.flag else f"{flag_names(setting)[0]} (mariner serve)"
    rows = [
        ("from", str(config.origin(setting.key))),
        ("default", default.replace("`", "")),
        ("flag", "" if setting.confidential else flag),
        ("variable", setting.variable),
        ("with enable_envvars_config", setting.env or ""),
        ("always", setting.always_env or ""),
    ]
    if setting.derived:
        rows = [row for row in rows if row[0] != "variable"]
    _say(f"{setting.key} = {_value(config, setting)}")
    _say(setting.doc.replace("`", ""))
    for name, text in rows:
        if text:
            _say(f"  {name}: {text}")


def _value(config: Config, setting: Setting) -> str:
    return format_value(setting, getattr(config, setting.key)) or setting.shown.replace("`", "") or "unset"


# -- command lines ---------------------------------------------------------------------------------------------------


def _torchserve_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torchserve", description="Serves models packaged as archives.")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("-v", "--version", action="store_true", help="Print the version.")
    action.add_argument("--start", action="store_true", help="Start a server; this is what happens without a flag too.")
    action.add_argument("--stop", action="store_true", help="Stop the server.")
    parser.add_argument("--foreground", action="store_true", help="Run in this process; with --stop, wait quietly.")
    parser.add_argument("--wait", action="store_true", help="Return only when the models loaded at start answer too.")
    _add_flags(parser, (setting for setting in SETTINGS.values() if setting.flag))
    return parser


def _mariner_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mariner", description="Serves models packaged as archives.")
    parser.add_argument("--version", action="version", version=f"mariner {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    serve = verbs.add_parser("serve", help="Run a server in this process.", allow_abbrev=False)
    serve.set_defaults(run=_serve)
    _add_flags(serve, SETTINGS.values())
    config = verbs.add_parser("config", help="Look at the settings.").add_subparsers(metavar="VERB", required=True)
    explain = config.add_parser("explain", help="Print values and where they come from.", allow_abbrev=False)
    explain.add_argument("key", nargs="?", help="Explain this setting only, or this key of the model config.")
    explain.add_argument("--model", metavar="NAME", help="Explain what this model of the model store runs with.")
    explain.add_argument("--running", action="store_true", help="With --model: ask the server that runs.")
    explain.set_defaults(run=_config_explain)
    _add_flags(explain, SETTINGS.values())
    docs = config.add_parser("docs", help="Print the reference page in Markdown.")
    docs.add_argument("--model", action="store_true", help="The page on the model config instead.")
    docs.set_defaults(run=_config_docs)
    bench = verbs.add_parser("bench", help="Measure how fast a URL answers, or compare several.", allow_abbrev=False)
    bench.set_defaults(run=_bench)
    add_bench_arguments(bench)
    metrics = verbs.add_parser("metrics", help="Look at the metrics.").add_subparsers(metavar="VERB", required=True)
    docs = metrics.add_parser("docs", help="Print the reference page in Markdown.")
    docs.set_defaults(run=_metrics_docs)
    return parser


def _add_flags(parser: argparse.ArgumentParser, settings: Iterable[Setting]) -> None:
    """A flag per setting; the key is where :func:`_flags` looks for it."""
    for setting in settings:
        flag = setting.flag
        if setting.confidential:
            continue
        if flag is None and (setting.java_only or setting.derived or setting.type == dict[str, Any]):
            continue  # JSON belongs into a file
        text = (flag.help if flag is not None and flag.help else setting.doc).replace("%", "%%").replace("`", "")
        names = flag_names(setting)
        if flag is not None and flag.value:
            parser.add_argument(*names, dest=setting.key, action="store_const", const=flag.value, help=text)
        else:
            metavar = flag.metavar if flag is not None else "VALUE"
            nargs = "+" if flag is not None and flag.many else None
            parser.add_argument(*names, dest=setting.key, metavar=metavar, nargs=nargs, help=text)


def _flags(options: argparse.Namespace) -> dict[str, str]:
    """The settings of a command line, by key."""
    values = {key: getattr(options, key, None) for key in SETTINGS}
    return {
        key: ",".join(value) if isinstance(value, list) else str(value)
        for key, value in values.items()
        if value is not None and key != "version"
    }


def _words(flags: dict[str, str]) -> list[str]:
    """The command line of those settings."""
    words = []
    for key, text in flags.items():
        setting = SETTINGS[key]
        name = flag_names(setting)[0]
        if setting.flag is not None and setting.flag.value:
            words.append(name)
        elif setting.flag is not None and setting.flag.many:
            words += [name, *text.split(",")]
        else:
            words.append(f"{name}={text}")
    return words


def _split_words(words: Sequence[str]) -> list[str]:
    """Takes apart ``"--models m=a.mar"``: container files often have a flag and its values in one word."""
    split: list[str] = []
    for word in words:
        flag = word.split(maxsplit=1)[0] if word.startswith("--") else ""
        split += word.split() if flag != word and flag and "=" not in flag else [word]
    return split


def _text(error: ConfigurationError) -> str:
    return f"{error.message}\n{error.hint}" if error.hint else error.message


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _complain(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
