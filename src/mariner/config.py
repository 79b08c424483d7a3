"""How the settings of the server are found: file, environment, flags. The table itself is in :mod:`mariner.settings`.

The only module that reads environment variables.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from mariner.address import Address, Scheme
from mariner.errors import ConfigurationError
from mariner.properties import Property, decode_properties, parse_properties
from mariner.setting_values import Found, format_value, read_value
from mariner.settings import (
    SETTINGS,
    VERSION,
    AccessLogging,
    BatchingPolicy,
    Config,
    Flag,
    LogFormat,
    LogLevel,
    MetricsMode,
    Origin,
    Setting,
    Source,
    TokenMode,
)
from mariner.snapshot_files import newest_snapshot, snapshot_directory

__all__ = [
    "SETTINGS",
    "VERSION",
    "AccessLogging",
    "Address",
    "BatchingPolicy",
    "Config",
    "Flag",
    "LogFormat",
    "LogLevel",
    "MetricsMode",
    "Origin",
    "Scheme",
    "Setting",
    "Source",
    "TokenMode",
    "did_you_mean",
    "find_setting",
    "flag_names",
    "format_value",
    "load_config",
    "reference_page",
]

_PLACEHOLDER = re.compile(r"\$\$([^$]{2,})\$\$")
_DEFAULT_FILE = "config.properties"
_NEWEST_SNAPSHOT = Origin(Source.DEFAULT, "newest snapshot")
_CLOSE = 0.75  # likeness from which a name is taken for a misspelt one


def load_config(flags: Mapping[str, str], environ: Mapping[str, str], cwd: Path) -> Config:
    """Finds and reads the settings.

    Args:
        flags: values given on the command line, by key.
        environ: the environment.
        cwd: where relative paths start and ``config.properties`` is looked for.

    Raises:
        ConfigurationError: the file is missing or a value cannot be read.
    """
    warnings: list[str] = []
    path, path_origin = _find_file(flags, environ, cwd)
    written = _read_file(path) if path else {}
    properties = {key: _expand(key, value, path, environ) for key, value in written.items()} if path else {}
    found, unknown = _from_file(properties, path, warnings)
    found |= _from_environment(environ, warnings)
    for key, text in flags.items():
        found[key] = Found(text, Origin(Source.FLAG, flag_names(SETTINGS[key])[0]))
    found |= _from_torchserve_environment(environ, found)
    found.pop("tsConfigFile", None)  # no value like the others: it says where they are

    values: dict[str, Any] = {}
    for key, setting in SETTINGS.items():
        value = read_value(setting, found[key], cwd, warnings) if key in found else None
        if value is not None:
            values[key] = value
            continue
        found.pop(key, None)  # empty, or a bad value that is let pass: the default is nobody's choice
        if setting.type is Path and not setting.optional:
            values[key] = cwd / (setting.default() if callable(setting.default) else setting.default)
    if path is not None:
        values["tsConfigFile"] = path
        found["tsConfigFile"] = Found("", path_origin)
    for setting in SETTINGS.values():
        if setting.same_as in values and setting.key not in values:
            values[setting.key] = values[setting.same_as]
            found[setting.key] = Found("", Origin(Source.DEFAULT, f"same as {setting.same_as}"))
    _settle_tokens(values, found)
    _check_models(values, found)
    _check_temp_dir(values["temp_dir"], found.get("temp_dir"))
    if path_origin == _NEWEST_SNAPSHOT:
        warnings += _about_snapshot(path, cwd)
    as_written = _as_written(found, values, written)
    if values.get("config_snapshots", True):
        warnings += [
            f"{key} ({text.origin}) is left out of snapshots: a start from one makes a new key. {key}_file keeps it."
            for key, text in found.items()
            if SETTINGS[key].confidential and text.origin.source is Source.FILE and key not in as_written
        ]
    return Config(
        as_written=as_written | unknown,
        origins={key: text.origin for key, text in found.items()},
        warnings=(*warnings, *_without_effect(found)),
        unknown=unknown,
        **values,
    )


# -- sources ---------------------------------------------------------------------------------------------------------


def _find_file(flags: Mapping[str, str], environ: Mapping[str, str], cwd: Path) -> tuple[Path | None, Origin]:
    for name, origin in (
        (environ.get("TS_CONFIG_FILE"), Origin(Source.TORCHSERVE_ENVIRONMENT, "TS_CONFIG_FILE")),
        (flags.get("tsConfigFile"), Origin(Source.FLAG, "--ts-config")),
    ):
        if name:
            path = cwd / name
            if not path.is_file():
                raise ConfigurationError(
                    f"--ts-config file not found: {name}", hint=f"The name comes from {origin}; give an existing file."
                )
            return path.resolve(), origin
    if snapshot := _find_snapshot(flags, environ, cwd):
        return snapshot, _NEWEST_SNAPSHOT
    path = cwd / _DEFAULT_FILE
    return (path.resolve() if path.is_file() else None), Origin(Source.DEFAULT, "working directory")


def _find_snapshot(flags: Mapping[str, str], environ: Mapping[str, str], cwd: Path) -> Path | None:
    """What an earlier server saved, unless snapshots are off; where, only flags and variables can say."""

    def value(key: str, default: str) -> str:
        return flags.get(key) or environ.get(SETTINGS[key].variable) or default

    if value("config_snapshots", "true").strip().lower() != "true":
        return None
    location = environ.get("LOG_LOCATION") or value("log_location", "logs")
    return newest_snapshot(snapshot_directory(cwd / location))


def _about_snapshot(snapshot: Path | None, cwd: Path) -> list[str]:
    texts = [f"Settings and models are restored from {snapshot}; --ncs starts without."]
    if (cwd / _DEFAULT_FILE).is_file():
        texts.append(f"{_DEFAULT_FILE} is not read, as there is a snapshot; --ts-config names a file that is read.")
    return texts


def _as_written(
    found: Mapping[str, Found], values: Mapping[str, Any], written: Mapping[str, Property]
) -> dict[str, str]:
    """What the file and the command line say. The environment is left out: it speaks for itself at the next start."""
    texts = {}
    for key, text in found.items():
        setting = SETTINGS[key]
        if setting.derived or text.origin.source not in (Source.FILE, Source.FLAG):
            continue
        original = next((written[name].value for name in (key, *setting.aliases) if name in written), text.text)
        placeholder = text.origin.source is Source.FILE and _PLACEHOLDER.search(original)
        if setting.confidential and not placeholder:
            continue
        verbatim = setting.secret or placeholder
        texts[key] = original if verbatim or key not in values else format_value(setting, values[key])
    return texts


def _read_file(path: Path) -> dict[str, Property]:
    try:
        return parse_properties(decode_properties(path.read_bytes()))
    except OSError as error:
        raise ConfigurationError(f"Invalid configuration: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"Invalid configuration: {path}, {error}") from error


def _expand(key: str, found: Property, path: Path, environ: Mapping[str, str]) -> Property:
    def variable(match: re.Match[str]) -> str:
        try:
            return environ[match[1]]
        except KeyError:
            raise ConfigurationError(
                f"Invalid configuration: Invalid Environment Variable {match[1]}",
                hint=f"{key} in {path}, line {found.line}, takes its value from that variable: set it.",
            ) from None

    return found._replace(value=_PLACEHOLDER.sub(variable, found.value))


def _from_file(
    properties: Mapping[str, Property], path: Path | None, warnings: list[str]
) -> tuple[dict[str, Found], dict[str, str]]:
    found, unknown = {}, {}
    for name, (value, line) in properties.items():
        place = f"{path}, line {line}"
        setting = find_setting(name)
        if setting is None:
            unknown[name] = value
            warnings.append(f"Unknown setting {name} ({place}) is ignored. {did_you_mean(name)}".rstrip())
        elif not setting.derived:
            found[setting.key] = Found(value, Origin(Source.FILE, place))
    return found, unknown


def _from_environment(environ: Mapping[str, str], warnings: list[str]) -> dict[str, Found]:
    variables = {name.upper(): setting.key for name, setting in _by_name().items() if not setting.derived}
    found = {}
    for variable, value in environ.items():
        name = variable.removeprefix("MARINER_")
        if name == variable:
            continue
        if name in variables:
            found[variables[name]] = Found(value, Origin(Source.ENVIRONMENT, variable))
        # Kubernetes sets MARINER_PORT and the like for a service called "mariner": only what looks meant is reported.
        elif close := difflib.get_close_matches(name, variables, n=1, cutoff=_CLOSE):
            warnings.append(f"Unknown variable {variable} is ignored. Did you mean MARINER_{close[0]}?")
    return found


def _from_torchserve_environment(environ: Mapping[str, str], found: Mapping[str, Found]) -> dict[str, Found]:
    def on(key: str) -> bool:
        return key in found and found[key].text.strip().lower() == "true"

    enabled = on("enable_envvars_config")
    overrides = {}
    for key, setting in SETTINGS.items():
        if setting.always_env is not None and setting.always_env in environ:
            name, text = setting.always_env, environ[setting.always_env]
            if setting.always_env_true is not None:
                text = str(text == setting.always_env_true)
        elif enabled and setting.env is not None and setting.env in environ:
            if key == "allowed_urls" and not on("use_env_allowed_urls"):
                continue
            name, text = setting.env, environ[setting.env]
        else:
            continue
        overrides[key] = Found(text, Origin(Source.TORCHSERVE_ENVIRONMENT, name))
    return overrides


# -- rules that concern several settings -----------------------------------------------------------------------------


def _settle_tokens(values: dict[str, Any], found: dict[str, Found]) -> None:
    """Lets TorchServe's switch set our mode, unless the mode was set in a place that counts as much or more."""
    switch, mode = found.get("disable_token_authorization"), found.get("token_authorization")
    if switch is None or (mode is not None and mode.origin.source >= switch.origin.source):
        return
    disabled = values["disable_token_authorization"]
    values["token_authorization"] = TokenMode.OFF if disabled else TokenMode.ON
    found["token_authorization"] = switch


def _check_models(values: Mapping[str, Any], found: Mapping[str, Found]) -> None:
    for name, versions in values.get("models", {}).items():
        if not isinstance(versions, dict) or not all(isinstance(version, dict) for version in versions.values()):
            raise ConfigurationError(
                f"Invalid configuration: models ({found['models'].origin}): {name} is not written as "
                '{"<version>": {"<parameter>": <value>}}.'
            )


def _check_temp_dir(path: Path, found: Found | None) -> None:
    if not path.is_dir():
        name = found.text if found else path
        variable = found.origin if found else "TMPDIR"
        raise ConfigurationError(f"Invalid temp directory: {name}, please check {variable} environment variable.")


def _without_effect(found: Mapping[str, Found]) -> list[str]:
    chosen = [SETTINGS[key] for key, text in found.items() if text.origin.source is not Source.DEFAULT]
    java = sorted(setting.key for setting in chosen if setting.java_only)
    inert = sorted(setting.key for setting in chosen if setting.inert)
    texts = []
    options = found.get("vmargs")
    if "log_config" in java or (options is not None and "log4j" in options.text):
        java = [key for key in java if key != "log_config"]
        texts.append(
            "The Log4j configuration is not read. log_level and log_levels choose what is logged, log_format=json how, "
            "LOG_LOCATION and METRICS_LOCATION where."
        )
    if "cpu_launcher_enable" in found and found["cpu_launcher_enable"].text.strip().lower() == "true":
        texts.append(
            "cpu_launcher_enable: workers start without torch.backends.xeon.run_cpu and are not pinned to cores. "
            "Their threads share the processors evenly."
        )
    if java:
        texts.append(f"Settings of the Java server are accepted and ignored: {', '.join(java)}.")
    if inert:
        texts.append(f"Settings without effect in this version: {', '.join(inert)}.")
    return texts


# -- names -----------------------------------------------------------------------------------------------------------


def find_setting(name: str) -> Setting | None:
    """The setting of that key or alias."""
    return _by_name().get(name)


def did_you_mean(name: str, names: Iterable[str] = SETTINGS) -> str:
    """A question with the one of the names, by default of all settings, that is almost like that, or ""."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=_CLOSE)
    return f"Did you mean {close[0]}?" if close else ""


def _by_name() -> dict[str, Setting]:
    return {name: setting for setting in SETTINGS.values() for name in (setting.key, *setting.aliases)}


def flag_names(setting: Setting) -> tuple[str, ...]:
    """What sets it on the command line: its own flag, else one made of the key."""
    return setting.flag.names if setting.flag else (f"--{setting.key.lower().replace('_', '-')}",)


# -- showing ---------------------------------------------------------------------------------------------------------


def reference_page() -> str:
    """The reference of all settings, in Markdown."""
    lines = [_PAGE_INTRODUCTION.strip()]
    for setting in SETTINGS.values():
        if setting.heading:
            lines += [
                "",
                f"## {setting.heading}",
                "",
                "| Key | Type | Default | Flag, variable | Meaning |",
                "|---|---|---|---|---|",
            ]
        default = setting.shown or (
            "unset" if setting.default is None else _code(format_value(setting, setting.default))
        )
        cells = (f"`{setting.key}`", _type_name(setting), default, _ways(setting), _meaning(setting))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return f"`{text}`" if text else "empty"


def _type_name(setting: Setting) -> str:
    if isinstance(setting.type, type) and issubclass(setting.type, Enum):
        return " or ".join(f"`{member.value}`" for member in setting.type)
    names: dict[Any, str] = {
        bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path", Address: "address",
        tuple[str, ...]: "list", re.Pattern[str]: "pattern", tuple[re.Pattern[str], ...]: "list of patterns",
        dict[str, Any]: "JSON object",
    }  # fmt: skip
    name = names[setting.type]
    return f"{name}, {setting.unit}" if setting.unit else name


def _ways(setting: Setting) -> str:
    ways = [f"`{name}`" for name in (setting.flag.names if setting.flag else ())]
    ways += [f"`{name}` (always)" for name in (setting.always_env,) if name]
    ways += [f"`{name}`" for name in (setting.env,) if name]
    return ", ".join(ways)


def _meaning(setting: Setting) -> str:
    notes = [setting.doc]
    if setting.same_as:
        notes.append(f"Defaults to the value of `{setting.same_as}`.")
    if setting.aliases:
        notes.append(f"Also called {', '.join(f'`{name}`' for name in setting.aliases)}.")
    if setting.java_only:
        notes.append("Accepted and ignored.")
    if setting.inert:
        notes.append("Accepted; has no effect in this version.")
    if setting.derived and setting.key != "tsConfigFile":
        notes.append("A value in the file is ignored.")
    if setting.ours:
        notes.append("*Not in TorchServe.*")
    return " ".join(notes)


_PAGE_INTRODUCTION = """
# Configuration

<!-- Generated by `mariner config docs`. Change src/mariner/settings.py instead. -->

Settings are read from one file, from the environment and from the command line. `mariner config explain` prints every
value together with the place it comes from. What a single model runs with is in its [model config](model-config.md).

## Which value counts

From strongest to weakest:

1. `TS_<KEY>` variables, if `enable_envvars_config=true`, and those marked *always* below
2. command line flags
3. `MARINER_<KEY>` variables, for every key of this page (`MARINER_JOB_QUEUE_SIZE=10`)
4. the file: `TS_CONFIG_FILE`, else `--ts-config`, else `config.properties` in the working directory
5. the default

Exactly one file is read.

## How values are written

The file has the format of Java properties: `key=value`, `key: value` or `key value`, comments after `#` or `!`, a
backslash at the end of a line continues it, `\\uXXXX` is a character. It may be UTF-8 or ISO-8859-1.
`$$NAME$$` in a value of the file is replaced by the environment variable `NAME`, which must exist.

- Blanks around a value, and around the items of a list, do not count. Lists are separated by commas.
- TorchServe's switches are on with `true`, in any case, and off with anything else. Those it does not have also take
  `yes`, `on`, `1`, `no`, `off` and `0`, and refuse other words.
- An empty value leaves the default, except for text.
- Addresses are `http://HOST[:PORT]`, `https://HOST[:PORT]` or `unix:/PATH`; port 0 takes a free one. A host without
  port means 80 or 443 for predictions, 8081 or 8444 for management, 8082 or 8445 for metrics.
- Paths are relative to the working directory.
- A value that cannot be read stops the start, and the message names key, value and place. Unknown keys are reported
  and ignored.
"""
