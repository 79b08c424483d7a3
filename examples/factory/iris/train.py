"""Trains the network on the 150 flowers that come with scikit-learn and writes ``checkpoint.pth``."""

from __future__ import annotations

import torch
from network.layers import IrisNet
from sklearn.datasets import load_iris

torch.manual_seed(0)
torch.set_num_threads(1)
flowers = load_iris()
samples = torch.tensor(flowers.data, dtype=torch.float32)
species = torch.tensor(flowers.target)
network = IrisNet(hidden=16)
optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
for _ in range(200):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(network(samples), species).backward()
    optimizer.step()
right = (network(samples).argmax(dim=1) == species).float().mean().item()
torch.save(network.state_dict(), "checkpoint.pth")
print(f"{right:.0%} of the flowers are recognised.")
