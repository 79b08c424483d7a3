"""Bars as SVG: groups below each other, each with its own scale. Colours follow the light or dark mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["STYLE", "Bar", "Group", "chart", "picture"]

WIDTH = 860
NAMES = 110  # from the left edge to the bars
LONGEST = 470  # the rest is for the figures beside the bars
TITLE_HEIGHT, ROW_HEIGHT, GAP = 24, 19, 12
BAR_HEIGHT = 13
SHORTEST = 1.5  # a bar that rounds to nothing is still seen

# Okabe and Ito's colours, which colour-blind readers tell apart, each bright enough in its mode.
_LIGHT = {
    "mariner": "#0072b2",
    "torchserve": "#d55e00",
    "mosec": "#009e73",
    "litserve": "#b0568c",
    "ray": "#a07800",
    "bare": "#8a8f98",
}
_DARK = {
    "mariner": "#56b4e9",
    "torchserve": "#f0803c",
    "mosec": "#2fc79a",
    "litserve": "#dd8fbe",
    "ray": "#e0b429",
    "bare": "#8a8f98",
}


def _rules(ink: str, faint: str, paper: str, colours: dict[str, str]) -> str:
    bars = "".join(f".bar.{name},.reach.{name}{{fill:{colour};stroke:{colour}}}" for name, colour in colours.items())
    return f".paper{{fill:{paper}}}text{{fill:{ink}}}text.faint{{fill:{faint}}}{bars}"


STYLE = (
    "text{font:13px system-ui,-apple-system,'Segoe UI',sans-serif}text.title{font-weight:600}.bar{stroke-width:0}"
    ".reach{stroke-width:2}text.ours{font-weight:600}"
    + _rules("#1f2328", "#59636e", "#ffffff", _LIGHT)
    + f"@media(prefers-color-scheme:dark){{{_rules('#e6edf3', '#9198a1', '#0d1117', _DARK)}}}"
)


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure of one server; a line goes on from the end of the bar to ``reach``, where there is one."""

    server: str
    value: float
    text: str
    reach: float | None = None


@dataclass(frozen=True, slots=True)
class Group:
    title: str
    bars: Sequence[Bar]


def chart(groups: Sequence[Group], label: str) -> str:
    """One ``<svg>`` element for a page that carries ``STYLE``; ``label`` is read to who does not see it."""
    body, height = _body(groups, 0)
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {height}" '
        f'xmlns="http://www.w3.org/2000/svg">{body}</svg>'
    )


def picture(groups: Sequence[Group], title: str) -> str:
    """A file of its own, with its colours and a ground to stand on."""
    body, height = _body(groups, 34)
    return (
        f'<svg role="img" aria-label="{escape(title)}" width="{WIDTH}" height="{height + 8}" '
        f'viewBox="-12 0 {WIDTH + 24} {height + 8}" xmlns="http://www.w3.org/2000/svg"><style>{STYLE}</style>'
        f'<rect class="paper" x="-12" width="{WIDTH + 24}" height="{height + 8}"/>'
        f'<text class="title" y="22">{escape(title)}</text>{body}</svg>\n'
    )


def _body(groups: Sequence[Group], top: int) -> tuple[str, int]:
    parts: list[str] = []
    for group in groups:
        parts.append(f'<text class="title" y="{top + 15}">{escape(group.title)}</text>')
        top += TITLE_HEIGHT
        longest = max(max(bar.value, bar.reach or 0) for bar in group.bars)
        for bar in group.bars:
            parts.append(_bar(bar, top, LONGEST / longest if longest else 0))
            top += ROW_HEIGHT
        top += GAP
    return "".join(parts), top


def _bar(bar: Bar, top: int, scale: float) -> str:
    colour = bar.server.split()[0]
    ours = " ours" if colour == "mariner" else ""
    base = top + BAR_HEIGHT - 2
    width = max(SHORTEST, bar.value * scale)
    end = max(width, (bar.reach or 0) * scale)
    line = ""
    if bar.reach is not None:
        middle = top + BAR_HEIGHT / 2
        line = (
            f'<path class="reach {colour}" d="M{NAMES + width:.1f} {middle}H{NAMES + end:.1f}m0 -4v8" '
            'style="fill:none"/>'
        )
    return (
        f'<text class="faint{ours}" x="{NAMES - 8}" y="{base}" text-anchor="end">{escape(bar.server)}</text>'
        f'<rect class="bar {colour}" x="{NAMES}" y="{top}" width="{width:.1f}" height="{BAR_HEIGHT}" rx="2"/>{line}'
        f'<text class="{ours.strip()}" x="{NAMES + end + 8:.1f}" y="{base}">{escape(bar.text)}</text>'
    )
