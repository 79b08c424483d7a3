"""Versions that share a model's traffic."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from test_model_server import ONE, Scene

from mariner.errors import BadRequest, ModelNotFound, VersionNotFound
from mariner.traffic import Shares


@pytest.mark.parametrize(
    "weights", [{"a": 70, "b": 30}, {"a": 1, "b": 99}, {"a": 0.5, "b": 0.25, "c": 0.25}, {"a": 1}, {"a": 7, "b": 0}]
)
def test_each_name_is_picked_as_often_as_its_weight_says(weights: dict[str, float]) -> None:
    shares = Shares(weights)
    picked = Counter(shares.pick() for _ in range(10_000))
    total = sum(weights.values())
    for name, weight in weights.items():
        assert abs(picked[name] - 10_000 * weight / total) <= 5


@pytest.mark.parametrize("period", [2, 3, 5, 8, 10])
def test_a_client_that_takes_turns_finds_every_version_for_each_kind_of_request(period: int) -> None:
    shares = Shares({"a": 50, "b": 50})
    picks = [shares.pick() for _ in range(1000 * period)]
    for kind in range(period):
        assert 450 < Counter(picks[kind::period])["a"] < 550


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), True, "30", None])
def test_what_is_no_weight_is_refused(weight: object) -> None:
    with pytest.raises(BadRequest, match="The weight of b is"):
        Shares({"a": 70, "b": weight})


def test_weights_of_nothing_are_refused() -> None:
    with pytest.raises(BadRequest, match="No weight is above 0"):
        Shares({"a": 0, "b": 0.0})


@pytest.fixture
async def scene(tmp_path: Path) -> Scene:
    """Versions 1.0, the default one, and 2.0."""
    scene = Scene(tmp_path)
    scene.add("old", name="echo")
    scene.add("new", name="echo", version="2.0")
    for url in ("old", "new"):
        await scene.server.register(url, ONE)
    return scene


async def served_by(scene: Scene, count: int, version: str | None = None) -> list[int]:
    """How many of so many requests each of the processes got."""
    before = [len(process.batches) for process in scene.engine.processes]
    for _ in range(count):
        await scene.predict(b"x", version=version)
    return [len(process.batches) - had for process, had in zip(scene.engine.processes, before, strict=True)]


async def test_requests_that_name_no_version_are_shared(scene: Scene) -> None:
    scene.server.share_traffic("echo", {"1.0": 70, "2.0": 30})
    old, new = await served_by(scene, 200)
    assert (old + new, 58 <= new <= 62) == (200, True)


@pytest.mark.parametrize(("version", "expected"), [("1.0", [20, 0]), ("2.0", [0, 20])])
async def test_a_request_that_names_a_version_gets_it(scene: Scene, version: str, expected: list[int]) -> None:
    scene.server.share_traffic("echo", {"1.0": 50, "2.0": 50})
    assert await served_by(scene, 20, version) == expected


async def test_other_models_are_not_touched(scene: Scene) -> None:
    scene.add("other")
    await scene.server.register("other", ONE)
    scene.server.share_traffic("echo", {"2.0": 1})
    assert await scene.predict(b"x", name="other") == b"x"
    assert [len(process.batches) for process in scene.engine.processes] == [0, 0, 1]


async def test_without_weights_the_registry_is_asked_directly(scene: Scene) -> None:
    registry = scene.server.registry
    assert registry.route == registry.get
    scene.server.share_traffic("echo", {"1.0": 50, "2.0": 50})
    assert registry.route != registry.get
    scene.server.share_traffic("echo", {})
    assert registry.route == registry.get


async def test_choosing_a_default_version_ends_the_sharing(scene: Scene) -> None:
    scene.server.share_traffic("echo", {"1.0": 50, "2.0": 50})
    scene.server.set_default("echo", "2.0")
    assert await served_by(scene, 20) == [0, 20]
    assert scene.server.registry.weights("echo") == {}


async def test_a_version_that_goes_leaves_its_share_to_the_others(scene: Scene) -> None:
    scene.server.share_traffic("echo", {"1.0": 50, "2.0": 50})
    await scene.server.unregister("echo", "2.0")
    assert await served_by(scene, 20) == [20, 0]
    assert scene.server.registry.weights("echo") == {}


async def test_of_three_versions_two_go_on_sharing(scene: Scene) -> None:
    scene.add("third", name="echo", version="3.0")
    await scene.server.register("third", ONE)
    scene.server.share_traffic("echo", {"1.0": 60, "2.0": 20, "3.0": 20})
    await scene.server.unregister("echo", "3.0")
    old, new, gone = await served_by(scene, 80)
    assert (gone, 18 <= new <= 22, old + new) == (0, True, 80)


async def test_a_version_put_in_the_place_of_another_has_its_share(scene: Scene) -> None:
    scene.server.share_traffic("echo", {"1.0": 50, "2.0": 50})
    manifest = scene.store / "new" / "MAR-INF" / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace('"2.0"', '"2.1"'))
    replaced = await scene.server.reload_version("echo", "2.0")
    assert replaced.version == "2.1"
    assert scene.server.registry.weights("echo") == {"1.0": 50, "2.1": 50}
    old, gone, new = await served_by(scene, 20)
    assert (old, gone, new) == (10, 0, 10)


async def test_describe_shows_the_weights_while_there_are_any(scene: Scene) -> None:
    scene.server.share_traffic("echo", {"1.0": 70, "2.0": 30})
    described = await scene.server.describe("echo", None, all_versions=True)
    assert [(each["modelVersion"], each["trafficWeight"]) for each in described] == [("1.0", 70), ("2.0", 30)]
    scene.server.share_traffic("echo", {})
    assert "trafficWeight" not in (await scene.server.describe("echo", None))[0]


async def test_metrics_count_a_shared_request_under_the_version_that_served_it(scene: Scene) -> None:
    await scene.predict(b"x")
    scene.server.share_traffic("echo", {"1.0": 50, "2.0": 50})
    for _ in range(10):
        await scene.predict(b"x")
    pattern = r'ts_inference_requests_total\{model_name="echo",model_version="(.+?)",.*\} (\S+)'
    found = re.findall(pattern, scene.server.metrics.expose())
    assert {label: float(count) for label, count in found} == {"default": 1, "1.0": 5, "2.0": 5}


async def test_weights_need_versions_that_are_there(scene: Scene) -> None:
    with pytest.raises(VersionNotFound):
        scene.server.share_traffic("echo", {"1.0": 50, "3.0": 50})
    with pytest.raises(ModelNotFound):
        scene.server.share_traffic("absent", {})
    assert scene.server.registry.weights("echo") == {}


async def test_a_refused_share_leaves_the_one_before(scene: Scene) -> None:
    scene.server.share_traffic("echo", {"1.0": 70, "2.0": 30})
    with pytest.raises(BadRequest):
        scene.server.share_traffic("echo", {"1.0": -1, "2.0": 30})
    assert scene.server.registry.weights("echo") == {"1.0": 70, "2.0": 30}
