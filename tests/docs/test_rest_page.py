"""The page of the REST API against the routes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mariner import errors
from mariner.http.routes import ROUTES

PAGE = (Path(__file__).parents[2] / "docs/reference/rest-api.md").read_text()


@pytest.mark.parametrize("path", sorted({route.path for route in ROUTES if not route.path.endswith("{rest*}")}))
def test_every_route_is_on_the_page(path: str) -> None:
    assert f"`{path}`" in PAGE


def test_every_type_of_error_is_on_the_page() -> None:
    names = {getattr(errors, name).wire_name for name in errors.__all__}
    assert [name for name in sorted(names) if f"`{name}`" not in PAGE] == []
