"""Writes seeded random weights for a net: ``make_weights.py mlp weights.pt``."""

from __future__ import annotations

import sys

import nets
import torch

if __name__ == "__main__":
    torch.manual_seed(1)
    torch.save(nets.NETS[sys.argv[1]]().state_dict(), sys.argv[2])
