"""Weights that are the same wherever they are made, for networks of any size. Needs NumPy and torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seeded(state: Mapping[str, Any], *, last: str, gain: float) -> dict[str, Any]:
    """A state for a network, from its own for the shapes: what a network before training has, and a decided last layer.

    Args:
        state: name to tensor.
        last: name of the last layer's weights.
        gain: how much stronger those are, so that classes differ.
    """
    random = np.random.RandomState(20)  # its numbers will never change, unlike those of a Generator
    made = {}
    for name in sorted(state):
        shape = tuple(state[name].shape)
        if len(shape) < 2:  # biases, and what batch normalisation counts
            ones = name.endswith(("running_var", "weight"))
            values = np.ones(shape) if ones else np.zeros(shape)
        else:
            values = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:])) * (gain if name == last else 1)
        made[name] = torch.from_numpy(np.asarray(values)).to(state[name].dtype)
    return made
