"""The rows of a run as one HTML file with plots, without scripts and without anything from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import median

from charts import STYLE, Bar, Group, chart, picture
from measure import Row
from report import INTRODUCTION, Verdict, figure, limits, medians, verdict_cells
from scenarios import LIFECYCLE, MARINER, WORKLOADS

__all__ = ["html_page", "summary_picture"]

UNITS = {"cold": " s", "kill": " s", "memory": " MB"}
PAGE_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;max-width:900px;margin:2rem auto;padding:0 1rem;
color:#1f2328;background:#fff}
svg{width:100%;height:auto}
table{border-collapse:collapse;width:100%}
th,td{padding:.25rem .6rem;border-bottom:1px solid #d1d9e0;text-align:left}
td.number{text-align:right;font-variant-numeric:tabular-nums}
td.ok{color:#116329;font-weight:600}td.miss{color:#b3212c;font-weight:600}
dt{float:left;clear:left;min-width:14rem;color:#59636e}dd{margin:0 0 .2rem 14rem;overflow-wrap:anywhere}
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}th,td{border-color:#3d444d}dt{color:#9198a1}
td.ok{color:#4ac26b}td.miss{color:#ff8182}}
"""


def html_page(rows: Sequence[Row], judged: Sequence[Verdict], failures: Sequence[str], facts: Mapping[str, str]) -> str:
    """The whole page."""
    sections = [
        f"<h1>Benchmark results</h1><p>{escape(INTRODUCTION.partition(' The columns')[0].replace('`', ''))}</p>",
        _section("Targets", _targets(judged)),
        _plot(
            "Throughput", "Requests per second, more is better; behind a figure Mariner's ratio to it.", _rates(rows)
        ),
        _plot(
            "Latency",
            "Bars end at the median and lines at the 99th percentile, in milliseconds; less is better.",
            _latencies(rows),
        ),
        _plot(
            "Start, memory, recovery",
            "Medians, less is better. After SIGKILL, the time to the next answer.",
            _lifecycle(rows),
        ),
    ]
    if bounded := [*failures, *limits(rows)]:
        sections.append(_section("Limits of this run", _listed(bounded)))
    described = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value.strip('`'))}</dd>" for name, value in facts.items())
    sections.append(_section("Machine and versions", f"<dl>{described}</dl>"))
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Benchmark results</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{PAGE_STYLE}{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def summary_picture(rows: Sequence[Row]) -> str:
    """Of every workload the largest number of connections."""
    busiest = {w.measure(w.connections[-1]) for w in WORKLOADS}
    return picture(_rates([row for row in rows if row.measure in busiest]), "Requests per second, more is better")


def _plot(title: str, text: str, groups: Sequence[Group]) -> str:
    return _section(title, f"<p>{escape(text)}</p>{chart(groups, title)}") if groups else ""


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{content}" if content else ""


def _listed(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _targets(judged: Sequence[Verdict]) -> str:
    if not judged:
        return ""
    reached = sum(verdict.says(verdict.target.goal) == "ok" for verdict in judged)
    head = "".join(f"<th>{name}</th>" for name in ("measure", "against", "reached", "spine", "", "goal", ""))
    lines = []
    for verdict in judged:
        cells = []
        for index, cell in enumerate(verdict_cells(verdict)):
            kind = "number" if index in {2, 3, 5} else cell if index > 2 else ""
            cells.append(f'<td class="{kind}">{escape(cell)}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<p>{reached} of {len(judged)} goals reached.</p><table><tr>{head}</tr>{''.join(lines)}</table>"


def _rates(rows: Sequence[Row]) -> list[Group]:
    return _figures([row for row in rows if row.measure not in LIFECYCLE])


def _lifecycle(rows: Sequence[Row]) -> list[Group]:
    return _figures([row for row in rows if row.measure in LIFECYCLE])


def _figures(rows: Sequence[Row]) -> list[Group]:
    found = medians(rows)
    groups = []
    for measure in dict.fromkeys(row.measure for row in rows):
        ours = found.get((measure, MARINER))
        bars = []
        for server in _servers(rows, measure):
            value = found.get((measure, server))
            if value is None:
                bars.append(Bar(server, 0, "no value"))
                continue
            ratio = f"  ({ours / value:.3g}x)" if ours is not None and server != MARINER else ""
            bars.append(Bar(server, value, f"{figure(value)}{UNITS.get(measure, '/s')}{ratio}"))
        groups.append(Group(_title(measure), bars))
    return groups


def _latencies(rows: Sequence[Row]) -> list[Group]:
    """Without the bare loop: it has no queue, so that its times mean something else."""
    timed = [row for row in rows if row.p50_ms is not None and row.server_cores is not None]
    groups = []
    for measure in dict.fromkeys(row.measure for row in timed):
        bars = []
        for server in _servers(timed, measure):
            ours = [row for row in timed if (row.measure, row.peer) == (measure, server)]
            half = median(row.p50_ms for row in ours if row.p50_ms is not None)
            most = median(row.p99_ms for row in ours if row.p99_ms is not None)
            bars.append(Bar(server, half, f"{half:.3g} ms, p99 {most:.3g} ms", reach=most))
        groups.append(Group(_title(measure), bars))
    return groups


def _servers(rows: Sequence[Row], measure: str) -> list[str]:
    """Mariner first, the others as the first round had them."""
    return sorted(dict.fromkeys(row.peer for row in rows if row.measure == measure), key=lambda name: name != MARINER)


def _title(measure: str) -> str:
    name, _, connections = measure.partition(" c")
    titles = {workload.name: workload.title for workload in WORKLOADS}
    if name not in titles:
        return LIFECYCLE.get(measure, measure)
    return f"{name}: {titles[name]}; {connections} connection{'s' if connections != '1' else ''}"
