from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ts
from mariner.metrics.definitions import METRICS, load_definitions
from ts.metrics.definitions import DEFAULT_METRICS, read_definitions

FILE = Path(ts.__file__).parent / "configs" / "metrics.yaml"


def test_the_file_in_the_package_declares_what_is_built_into_the_server() -> None:
    declared = {row.name: row for row in load_definitions(FILE)}
    assert declared == {row.name: replace(row, doc=declared[row.name].doc) for row in METRICS}


def test_the_file_in_the_package_declares_what_is_built_into_the_worker() -> None:
    assert [row._replace(dimensions=tuple(row.dimensions)) for row in read_definitions(FILE)] == list(DEFAULT_METRICS)
