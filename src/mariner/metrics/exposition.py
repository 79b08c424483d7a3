"""Series of a metric and how Prometheus' text format 0.0.4 shows them."""

from __future__ import annotations

import logging
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal

from mariner.metrics.definitions import Definition, Kind, Section

__all__ = ["Family", "Histogram", "LabelValues", "format_value"]

logger = logging.getLogger(__name__)

LabelValues = tuple[str, ...]


class Histogram:
    """Observations of one series."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # of each bucket alone; the exposition adds them up
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def observe_all(self, values: Iterable[float]) -> None:
        """Many observations, at a fifth of the cost of one after the other."""
        ordered = sorted(values)
        below = 0
        for position, bound in enumerate(self.bounds):
            reached = bisect_right(ordered, bound, below)
            self.counts[position] += reached - below
            below = reached
        self.counts[-1] += len(ordered) - below
        self.sum += math.fsum(ordered)


class Family:
    """All series of one metric."""

    __slots__ = ("definition", "histograms", "mismatched", "values")

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.mismatched = False  # logged already
        self.values: dict[LabelValues, float] = {}
        self.histograms: dict[LabelValues, Histogram] = {}

    def accepts(self, labels: LabelValues) -> bool:
        if len(labels) == len(self.definition.labels):
            return True
        if not self.mismatched:
            self.mismatched = True
            side = "backend" if self.definition.section is Section.MODEL else "frontend"
            names, values = ", ".join(self.definition.labels), ", ".join(labels)
            text = "Failed to update %s metric %s: it has the dimensions (%s) but was given (%s). Declare them alike."
            logger.error(text, side, self.definition.name, names, values)
        return False

    def record(self, labels: LabelValues, value: float) -> bool:
        """Takes an update; False if it is none that this metric can have."""
        kind = self.definition.kind
        # A counter never goes down, and NaN, which is not even less than 0, would stay for ever.
        if not self.accepts(labels) or (kind is not Kind.GAUGE and math.isnan(value)):
            return False
        if kind is Kind.GAUGE:
            self.values[labels] = value
        elif kind is Kind.COUNTER:
            if value < 0:
                return False
            self.values[labels] = self.values.get(labels, 0.0) + value
        else:
            histogram = self.histograms.get(labels)
            if histogram is None:
                histogram = self.histograms[labels] = Histogram(self.definition.buckets)
            histogram.observe(value)
        return True

    def samples(self) -> Iterator[tuple[str, str]]:
        """Sample name and its whole line."""
        name, names = self.definition.name, self.definition.labels
        for labels, value in self.values.items():
            yield name, f"{name}{_braces(names, labels)} {format_value(value)}"
        for labels, histogram in self.histograms.items():
            total = 0
            # Bounds are written plainly: queries name them (le="0.0005"), and Java's 5.0E-4 would not match.
            for bound, count in zip((*map(repr, histogram.bounds), "+Inf"), histogram.counts, strict=True):
                total += count
                braces = _braces((*names, "le"), (*labels, bound))
                yield f"{name}_bucket", f"{name}_bucket{braces} {format_value(total)}"
            braces = _braces(names, labels)
            yield f"{name}_count", f"{name}_count{braces} {format_value(total)}"
            yield f"{name}_sum", f"{name}_sum{braces} {format_value(histogram.sum)}"


def format_value(value: float) -> str:
    """A number as Java prints a double: ``1.0``, ``1.0E7``, ``5.0E-4``; infinities and NaN as Prometheus reads them."""
    value = float(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return repr(value)
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    text = "".join(map(str, digits))
    fraction = text[1:].rstrip("0") or "0"
    return f"{'-' if sign else ''}{text[0]}.{fraction}E{int(exponent) + len(text) - 1}"


def _braces(names: Sequence[str], values: Sequence[str]) -> str:
    # The comma before the closing brace is TorchServe's; scripts match it.
    pairs = [f'{name}="{_escape(value)}",' for name, value in zip(names, values, strict=True)]
    return f"{{{''.join(pairs)}}}" if pairs else ""


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
