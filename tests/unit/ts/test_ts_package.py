from __future__ import annotations

import subprocess
import sys

import pytest

import ts
import ts.context
import ts.version


def test_the_version_starts_with_the_release_we_are_compatible_with() -> None:
    assert ts.__version__ == ts.version.__version__
    assert ts.__version__.startswith("0.12.0+")


def test_the_context_is_found_in_the_package() -> None:
    assert ts.Context is ts.context.Context


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ts.nonsense


@pytest.mark.slow
def test_the_worker_and_all_it_needs_import_without_torch() -> None:
    code = "import ts.worker, ts.metrics.store, ts.handler_utils.utils, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
