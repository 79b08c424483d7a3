from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch

from ts.service import encode_output

pytestmark = pytest.mark.torch


def test_a_tensor_is_answered_as_a_saved_tensor() -> None:
    loaded = torch.load(io.BytesIO(encode_output(torch.tensor([1.0, 2.0]))), weights_only=True)
    assert loaded.tolist() == [1.0, 2.0]


def test_a_float64_scalar_is_a_number() -> None:
    assert encode_output([np.float64(0.5)]) == b"[\n  0.5\n]"


@pytest.mark.parametrize("item", [np.zeros(2), [np.float32(1)], [torch.zeros(1)], np.int64(1)])
def test_other_numbers_and_arrays_are_no_results(item: Any) -> None:
    with pytest.raises(TypeError):
        encode_output(item)
