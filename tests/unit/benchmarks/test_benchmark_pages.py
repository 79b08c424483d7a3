"""The pages that the benchmark writes, from a few rows."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

from measure import Row
from results import Run, load, render, write

ROOT = Path(__file__).parents[3]
SVG = "{http://www.w3.org/2000/svg}"


def loaded(measure: str, peer: str, rate: float, p50: float, p99: float) -> Row:
    return Row(measure, peer, 1, rate, "req/s", p50, p99, 100, server_cores=1.0)


ROWS = [
    loaded("W1 c64", "mosec", 500.0, 8.0, 16.0),
    loaded("W1 c64", "mariner", 2000.0, 2.0, 4.0),
    loaded("W1 c1", "mariner", 90.0, 0.25, 0.5),
    Row("kill", "mariner", 1, 0.04, "s"),
    Row("kill", "mosec", 1, None, "s", note="none within 15 s"),
]
RUN = Run("2026-01-02", "bench.py <W1>", {"java": "17"}, ROWS, [], ["W1 c1", "W1 c64", "kill"], ["mariner", "mosec"])


def words(svg: ET.Element) -> list[str]:
    return ["".join(text.itertext()) for text in svg.iter(f"{SVG}text")]


def pages(folder: Path, run: Run = RUN) -> tuple[str, ET.Element]:
    write(folder, run)
    return (folder / "results.html").read_text(), ET.parse(folder / "results.svg").getroot()


def plot(page: str, title: str) -> ET.Element:
    found = re.search(rf"<h2>{title}</h2>.*?(<svg.*?</svg>)", page, re.DOTALL)
    assert found
    return ET.fromstring(found[1])


def test_the_picture_shows_the_busiest_cell_of_a_workload_with_mariner_first(tmp_path: Path) -> None:
    _, picture = pages(tmp_path)
    assert words(picture)[1:] == [
        "W1: no-op, JSON; 64 connections",
        *("mariner", "2,000/s", "mosec", "500/s  (4x)"),
    ]


def test_bars_are_as_long_as_their_figures(tmp_path: Path) -> None:
    _, picture = pages(tmp_path)
    ours, theirs = (float(bar.attrib["width"]) for bar in picture.iter(f"{SVG}rect") if "bar" in bar.attrib["class"])
    assert ours == 4 * theirs


def test_the_page_shows_latencies_and_a_server_that_never_recovered(tmp_path: Path) -> None:
    page, _ = pages(tmp_path)
    assert "8 ms, p99 16 ms" in words(plot(page, "Latency"))
    assert words(plot(page, "Start, memory, recovery"))[1:] == ["mariner", "0.04 s", "mosec", "no value"]


def test_the_page_says_which_targets_were_reached(tmp_path: Path) -> None:
    page, _ = pages(tmp_path)
    row = next(line for line in page.split("<tr>") if "W1 c64" in line)
    assert re.findall(r">([^<>]+)</td>", row) == ["W1 c64", "mosec", "4x", "≥ 3x", "ok", "≥ 7x", "miss"]
    assert "1 of 3 goals reached" in page


def test_the_page_loads_nothing_and_escapes_what_it_is_given(tmp_path: Path) -> None:
    page, _ = pages(tmp_path, replace(RUN, failures=["W1, mosec: <broken>"]))
    assert not re.search(r"<script|<link|<img|@import|url\(|src=|href=", page)
    assert "bench.py &lt;W1&gt;" in page
    assert "&lt;broken&gt;" in page


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path, RUN)
    assert load(tmp_path / "results.json") == RUN


def test_the_pages_of_the_repository_are_those_of_its_rows(tmp_path: Path) -> None:
    render(tmp_path, load(ROOT / "benchmarks" / "results.json"))
    for name in ("RESULTS.md", "results.html", "results.svg"):
        expected = (tmp_path / name).read_text()
        assert (ROOT / "benchmarks" / name).read_text() == expected, "run: python benchmarks/bench.py --render"
