"""The page on dependability against the results it shows and the faults there are."""

from __future__ import annotations

import json

from fault_measures import FAULTS
from faults import BEGIN, END, PAGE, RESULTS, section


def test_the_page_shows_the_results_that_are_kept() -> None:
    shown = PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip()
    assert shown == section(json.loads(RESULTS.read_text())), "run: python benchmarks/faults.py"


def test_every_fault_was_measured_on_both_servers() -> None:
    rows = json.loads(RESULTS.read_text())["faults"]
    assert {name: sorted(found) for name, found in rows.items()} == {
        fault.name: ["mariner", "torchserve"] for fault in FAULTS
    }
    assert [name for name, found in rows.items() for finding in found.values() if not finding["values"]] == []
