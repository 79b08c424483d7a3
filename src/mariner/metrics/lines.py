"""Metrics as lines of text, in the forms TorchServe gives them.

Three forms: what its metric logs hold, what a handler prints, and what a command that measures the machine prints.
Pure; who writes or reads the lines is somewhere else.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mariner.metrics.definitions import Definition, Section
from mariner.metrics.exposition import LabelValues, format_value

__all__ = ["Update", "format_line", "parse_line", "parse_system_line"]


class Update(NamedTuple):
    """One update of a metric, for logs. ``definition.section`` says whose it is, and so in which log it belongs.

    Attributes:
        definition: the metric.
        labels: values that meet the labels of the definition by position.
        value: increment of a counter, level of a gauge, one observation of a histogram.
        seconds: when, in seconds since the epoch.
        request_ids: ids of the requests it belongs to, separated by commas; "" for a metric of the server.
    """

    definition: Definition
    labels: LabelValues
    value: float
    seconds: float
    request_ids: str = ""


def format_line(update: Update) -> str:
    """An update as TorchServe's metric logs have it, without the time in front; always one line.

    ``Requests2XX.Count:1.0|#Level:Host|#hostname:box,timestamp:1717105307``: the last label is the host. A metric of a
    model has ``requestID:a,b,`` before the timestamp.
    """
    definition, labels, value, seconds, request_ids = update
    *others, hostname = labels or ("Unknown",)
    dimensions = ",".join([f"{name}:{text}" for name, text in zip(definition.labels, others, strict=False)])
    requests = f"requestID:{request_ids or 'null'}," if definition.section is Section.MODEL else ""
    line = (
        f"{definition.name}.{definition.unit}:{format_value(value)}|#{dimensions}"
        f"|#hostname:{hostname},{requests}timestamp:{int(seconds)}"
    )
    return line if line.isprintable() else "".join(map(_visible, line))


def _visible(character: str) -> str:
    # Label values are a handler's, which may have them from a client: none of them may start a line of its own.
    return character if character.isprintable() else f"\\x{ord(character):02x}"


# name.unit:value|#dimension:value,...|#type:TYPE|#hostname:host,seconds[,request ids]; the type is optional.
_LINE = re.compile(
    r"(?:INFO > )?\[METRICS\](?P<name>[^:|]+)\.(?P<unit>[^.:|]*):(?P<value>[^|]+)"
    r"\|#(?P<dimensions>[^|]*)(?:\|#type:(?P<type>\w+))?\|#hostname:(?P<origin>.*)"
)


def parse_line(line: str) -> tuple[str, str, str, float, list[tuple[str, str]], str] | None:
    """A ``[METRICS]`` line of a worker; None if it is none.

    Returns:
        Name, unit, type ("" if not given), value, dimensions, and the ids of the requests ("" if not given).
    """
    match = _LINE.fullmatch(line.strip())
    value = None if match is None else _number(match["value"])
    if match is None or value is None:
        return None
    _, _, since = match["origin"].partition(",")
    _, _, request_ids = since.partition(",")
    return match["name"], match["unit"], match["type"] or "", value, _pairs(match["dimensions"]), request_ids


_SYSTEM_LINE = re.compile(
    r"(?P<name>[\w\s]+)\.(?P<unit>[\w\s]+):(?P<value>[^|]+)\|#(?P<dimensions>[^|]*)\|#hostname:(?P<host>[^,|]*),\d+"
)


def parse_system_line(line: str) -> tuple[str, LabelValues, float] | None:
    """A line of a command that measures the machine: name, all label values, value; None if it is none.

    ``CPUUtilization.Percent:5.0|#Level:Host|#hostname:box,1717105307``
    """
    match = _SYSTEM_LINE.fullmatch(line.strip())
    value = None if match is None else _number(match["value"])
    if match is None or value is None:
        return None
    return match["name"], (*(text for _, text in _pairs(match["dimensions"])), match["host"]), value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _pairs(text: str) -> list[tuple[str, str]]:
    """``name:value,...``; a value may have colons, and what has none is no dimension."""
    pairs = (element.partition(":") for element in text.split(","))
    return [(name, value) for name, colon, value in pairs if colon]
