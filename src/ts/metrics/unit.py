"""Units of metrics: short names that handlers write, long names that are published."""

from __future__ import annotations

from types import MappingProxyType

__all__ = ["UNITS", "Units", "unit_name"]

UNITS = MappingProxyType(
    {
        "ms": "Milliseconds",
        "s": "Seconds",
        "percent": "Percent",
        "count": "Count",
        "MB": "Megabytes",
        "GB": "Gigabytes",
        "kB": "Kilobytes",
        "B": "Bytes",
        "": "unit",
        None: "unit",
    }
)


def unit_name(unit: str | None) -> str:
    """The published name of a unit; names that are not in the table stay as they are."""
    return UNITS.get(unit) or str(unit)


class Units:
    """The table of units under the name that handlers import.

    Attributes:
        units: short name to published name.
    """

    def __init__(self) -> None:
        self.units: dict[str | None, str] = dict(UNITS)
