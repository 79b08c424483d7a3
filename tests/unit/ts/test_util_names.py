from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ts.utils import util


@pytest.mark.parametrize(
    "name",
    [
        "CLEANUP_REGEX",
        "PT2Backend",
        "PredictionException",
        "check_valid_pt2_backend",
        "deprecated",
        "get_yaml_config",
        "list_classes_from_module",
        "load_label_mapping",
        "map_class_to_label",
    ],
)
def test_the_names_handlers_import_are_there(name: str) -> None:
    assert hasattr(util, name)


def test_a_backend_that_nobody_knows_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert util.check_valid_pt2_backend("inductor")
    assert caplog.messages == []
    assert not util.check_valid_pt2_backend("abacus")
    assert "abacus" in caplog.text


def test_a_deprecated_function_warns_and_works() -> None:
    @util.deprecated(version="1.0.0", replacement="new")
    def old(value: int) -> int:
        return value + 1

    with pytest.warns(PendingDeprecationWarning, match=r"old is deprecated since version 1\.0\.0\. Use new instead\."):
        assert old(1) == 2


def test_tags_and_entities_are_cleaned_up() -> None:
    assert re.sub(util.CLEANUP_REGEX, "", "<p class='a'>fish &amp; chips&#33;&#x21;</p>") == "fish  chips"


def test_yaml_is_read_without_running_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("handler: {profile: true}", encoding="utf-8")
    assert util.get_yaml_config(str(path)) == {"handler": {"profile": True}}


def test_the_names_come_without_torch() -> None:
    code = "import sys, ts.utils.util, ts.labels, ts.handler_utils.timer; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
