from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from ts.utils.hf_utils import download_model


@pytest.mark.parametrize(("given", "token"), [(True, None), (False, False), ("hf_secret", "hf_secret")])
def test_a_model_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch, given: Any, token: Any) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(**options: Any) -> str:
        asked.update(options)
        return "/cache/snapshot"

    hub: Any = ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert download_model("org/model", revision="v2", model_path="cache", use_auth_token=given) == "/cache/snapshot"
    assert (asked["repo_id"], asked["revision"], asked["cache_dir"], asked["token"]) == (
        "org/model",
        "v2",
        "cache",
        token,
    )
    assert {"*.safetensors", "*.json"} <= set(asked["allow_patterns"])


def test_without_the_package_of_the_hub_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        download_model()
