"""Shows figures on a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mariner.bench.summary import Summary

__all__ = ["show", "show_comparison"]

_BAR = 40  # columns of the longest bar
_EIGHTHS = " ▏▎▍▌▋▊▉"


def show(console: Console, title: str, summary: Summary, limit: float | None = None) -> None:
    """The figures of one target: a table, and how the times are spread.

    Args:
        console: where to.
        title: of the target.
        summary: its figures.
        limit: seconds within which an answer is of use.
    """
    console.print(Text(title, style="bold"))
    table = _table("", "")
    for name, value in _rows(summary, limit):
        table.add_row(name, value)
    console.print(table)
    if summary.good:
        console.print()
        console.print(_spread(summary))
    _show_trouble(console, summary)


def show_comparison(console: Console, summaries: Mapping[str, Summary], limit: float | None = None) -> None:
    """The figures of several targets side by side, each after the first with its ratio to it."""
    titles = list(summaries)
    first = summaries[titles[0]]
    table = _table("", *(f"[{letter}]" for letter, _ in zip("ABCDEFGH", titles, strict=False)))
    for letter, title in zip("ABCDEFGH", titles, strict=False):
        console.print(Text(f"[{letter}] {title}", style="bold"))
    names = [name for name, _ in _rows(first, limit)]
    columns = {title: dict(_rows(summary, limit)) for title, summary in summaries.items()}
    for name in names:
        cells = [columns[titles[0]].get(name, "-")]
        for title in titles[1:]:
            ratio = _ratio(name, summaries[title], first)
            cells.append(columns[title].get(name, "-") + (f" ({ratio})" if ratio else ""))
        table.add_row(name, *cells)
    console.print(table)
    for letter, (title, summary) in zip("ABCDEFGH", summaries.items(), strict=False):
        _show_trouble(console, summary, f"[{letter}] " if title else "")


def _rows(summary: Summary, limit: float | None) -> list[tuple[str, str]]:
    rows = [("answers", f"{summary.answers:,} in {_time(summary.seconds)}"), ("throughput", f"{_rate(summary.rate)}/s")]
    if limit is not None and summary.goodput is not None and summary.within is not None:
        share = summary.within / max(1, _asked(summary))
        rows.append((f"goodput ≤ {_time(limit)}", f"{_rate(summary.goodput)}/s, {share:.1%} of the requests"))
    rows.append(("mean", _time(summary.mean)))
    rows += [(f"p{percent:g}", _time(value)) for percent, value in summary.percentiles.items()]
    rows.append(("slowest", _time(summary.slowest)))
    return rows


def _ratio(name: str, summary: Summary, first: Summary) -> str:
    if name == "throughput":
        ours, theirs = summary.rate, first.rate
    elif name.startswith("goodput"):
        ours, theirs = summary.goodput or 0.0, first.goodput or 0.0
    elif name == "mean":
        ours, theirs = summary.mean, first.mean
    elif name == "slowest":
        ours, theirs = summary.slowest, first.slowest
    elif name.startswith("p"):
        percent = float(name[1:])
        ours, theirs = summary.percentiles[percent], first.percentiles[percent]
    else:
        return ""
    if not theirs or math.isnan(ours) or math.isnan(theirs):
        return ""
    return f"{ours / theirs:.3g}x"


def _spread(summary: Summary) -> Table:
    most = max(bucket.count for bucket in summary.buckets)
    table = _table("up to", "", "answers", "")
    table.columns[0].justify = table.columns[2].justify = table.columns[3].justify = "right"
    for bucket in summary.buckets:
        bar = Text(_bar(bucket.count / most), style="cyan")
        table.add_row(_time(bucket.high), bar, f"{bucket.count:,}", f"{bucket.count / summary.good:.1%}")
    return table


def _bar(share: float) -> str:
    eighths = round(share * _BAR * 8)
    if not eighths and share:
        eighths = 1
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _show_trouble(console: Console, summary: Summary, prefix: str = "") -> None:
    """What did not go well, in red."""
    lines = [
        f"{count:,} answers with status {status}" for status, count in sorted(summary.statuses.items()) if status >= 400
    ]
    lines += [f"{count:,} requests: {why}" for why, count in sorted(summary.failures.items())]
    if summary.unsent:
        lines.append(
            f"{summary.unsent:,} requests never sent: every connection was busy until the end (raise --connections)"
        )
    for line in lines:
        console.print(Text(f"! {prefix}{line}", style="red"))


def _table(*titles: str) -> Table:
    table = Table(box=None, show_header=any(titles), header_style="bold", pad_edge=False)
    for title in titles:
        table.add_column(Text(title), no_wrap=True)
    return table


def _asked(summary: Summary) -> int:
    return summary.answers + sum(summary.failures.values()) + summary.unsent


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _time(seconds: float) -> str:
    """With three digits, in the unit people say it in."""
    if math.isnan(seconds):
        return "-"
    for bound, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if seconds < bound:
            return f"{_three_digits(seconds * factor)} {unit}"
    return f"{_three_digits(seconds)} s"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
