"""Tensors that move into a file which several processes map; here several networks of one process."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ts.torch_handler.shared_weights import find_modules, share_weights

pytestmark = pytest.mark.torch


class Tied(nn.Module):
    """Two layers with one weight, a slice of a larger tensor, and a buffer that each network has for itself."""

    def __init__(self, own: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("part", torch.arange(20.0)[3:9:2])
        self.register_buffer("own", torch.tensor(own))
        self.register_buffer("empty", torch.empty(0))

    def forward(self, numbers: Any) -> Any:
        return self.second(self.first(numbers)) * self.part.sum() + self.own


def addresses(module: nn.Module) -> list[int]:
    return [tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *module.buffers()]]


def mapped(place: Path) -> list[range]:
    """Where files of that place are mapped in this process."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(place) in line]
    return [range(*(int(text, 16) for text in line.split()[0].split("-"))) for line in lines]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "weights"


def test_what_is_the_same_is_shared_and_answers_stay(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first, second = Tied(own=1.0), Tied(own=2.0)
    expected = [net(torch.ones(4)).tolist() for net in (first, second)]
    share_weights([first], place)
    share_weights([second], place)
    assert [net(torch.ones(4)).tolist() for net in (first, second)] == expected
    assert first.second.weight is first.first.weight
    assert first.part.tolist() == [3.0, 5.0, 7.0]
    inside = [[any(address in part for part in mapped(place)) for address in addresses(net)] for net in (first, second)]
    assert inside[0] == [True, True, True, True, True, False]  # weight, two biases, part, own, and the empty one
    assert inside[1] == [True, True, True, True, False, False]
    assert [path.suffix for path in place.parent.iterdir() if path.suffix == ".part"] == []


def test_a_network_that_writes_into_its_weights_changes_no_other(place: Path) -> None:
    first, second = Tied(), Tied()
    share_weights([first], place)
    share_weights([second], place)
    with torch.no_grad():
        first.first.weight.zero_()
    assert second.first.weight.abs().sum() > 0
    third = Tied()
    share_weights([third], place)
    assert torch.equal(third.first.weight, second.first.weight)


def test_networks_of_another_layout_have_a_file_of_their_own(place: Path) -> None:
    first, second = nn.Linear(4, 4), nn.Linear(8, 8)
    share_weights([first], place)
    share_weights([second], place)
    assert len([path for path in place.parent.iterdir() if path.name.startswith("weights-")]) == 2


def test_torchscript_is_shared(place: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        net = torch.jit.trace(Tied(), torch.ones(4))
    expected = net(torch.ones(4))
    share_weights([net], place)
    assert any(address in part for part in mapped(place) for address in addresses(net))
    assert torch.equal(net(torch.ones(4)), expected)


def test_a_file_that_is_damaged_is_not_believed(place: Path) -> None:
    first = Tied()
    share_weights([first], place)
    (file,) = [path for path in place.parent.iterdir() if path.name.startswith("weights-")]
    file.write_bytes(bytes(file.stat().st_size))
    second = Tied()
    share_weights([second], place)
    assert second.first.weight.abs().sum() > 0


def test_where_there_is_no_room_nothing_is_shared_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = Tied()
    share_weights([net], tmp_path / "missing" / "weights")
    assert "weights cannot be written or mapped (No such file or directory); nothing is shared." in caplog.text
    assert net(torch.ones(4)).shape == (4,)


def test_what_cannot_be_shared_is_said(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(action="ignore"):
        frozen = torch.jit.freeze(torch.jit.script(nn.Linear(4, 4).eval()))
    share_weights([frozen], place)
    assert "no network with parameters on the CPU as an attribute; nothing is shared." in caplog.text
    assert list(place.parent.iterdir()) == []


class Pipeline:
    def __init__(self) -> None:
        self.model = nn.Linear(1, 1)


class Handler:
    def __init__(self) -> None:
        self.model = nn.Linear(1, 1)
        self.again = self.model
        self.pipeline = Pipeline()
        self.name = "m"

    def handle(self) -> None: ...


def test_networks_are_found_as_attributes_and_in_pipelines() -> None:
    handler = Handler()
    assert find_modules(handler.handle, handler.handle) == [handler.model, handler.pipeline.model]


NETWORK = nn.Linear(1, 1)


def test_networks_of_a_function_are_the_variables_of_its_file() -> None:
    assert find_modules(test_networks_of_a_function_are_the_variables_of_its_file) == [NETWORK]
