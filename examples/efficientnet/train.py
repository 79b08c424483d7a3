"""Trains a small EfficientNet on six of the ten handwritten digits that come with scikit-learn.

Writes ``cache/b4.pt``, a TorchScript program, and the images that training has not seen to ``images``, as NumPy arrays.
The other digits are left out because 2 and 5 look alike in a mirror, and the handler looks at mirrored images too.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import geffnet
import numpy as np
import torch
from geffnet.activations import get_act_layer
from geffnet.efficientnet_builder import decode_arch_def
from geffnet.gen_efficientnet import GenEfficientNet
from handler import to_tensor
from sklearn.datasets import load_digits

DIGITS = (0, 1, 3, 4, 6, 8)
EPOCHS = 6
BATCH = 48
# Stages of EfficientNet with one block each: enough for a digit. A real one is geffnet.efficientnet_b4(num_classes=6).
STAGES = (
    ["ds_r1_k3_s1_e1_c16_se0.25"],
    ["ir_r1_k3_s2_e6_c24_se0.25"],
    ["ir_r1_k5_s2_e6_c40_se0.25"],
    ["ir_r1_k3_s1_e6_c80_se0.25"],
)


class Images(NamedTuple):
    """Images as clients send them, uint8 of 8x8x3, and the position of each one's digit in ``DIGITS``."""

    arrays: list[np.ndarray]
    labels: torch.Tensor


def load_parts() -> tuple[Images, Images]:
    """Two thirds to train with, one third held out."""
    data = load_digits()
    chosen = [index for index, digit in enumerate(data.target) if digit in DIGITS]
    order = [chosen[int(index)] for index in torch.randperm(len(chosen))]
    arrays = [np.repeat((data.images[index] * 255 / 16).astype(np.uint8)[..., None], 3, axis=2) for index in order]
    labels = torch.tensor([DIGITS.index(data.target[index]) for index in order])
    cut = len(order) * 2 // 3
    return Images(arrays[:cut], labels[:cut]), Images(arrays[cut:], labels[cut:])


def train(seen: Images) -> GenEfficientNet:
    """A network that has seen the images some times, every other time mirrored."""
    network = GenEfficientNet(
        decode_arch_def(STAGES),
        num_classes=len(DIGITS),
        stem_size=16,
        num_features=256,
        norm_kwargs={},
        act_layer=get_act_layer("swish"),
    )
    samples = torch.stack([to_tensor(array) for array in seen.arrays])
    optimizer = torch.optim.AdamW(network.parameters(), lr=6e-3)
    steps = EPOCHS * -(-len(samples) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(samples)).split(BATCH):
            mirrored = (torch.rand(len(batch)) < 0.5)[:, None, None, None]
            inputs = torch.where(mirrored, samples[batch].flip(3), samples[batch])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(inputs), seen.labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the matrices are small: threads would wait for each other
    seen, held_out = load_parts()
    geffnet.config.set_scriptable(True)  # before the network is made, or it cannot be compiled
    network = train(seen)
    for folder in ("cache", "images"):
        Path(folder).mkdir(exist_ok=True)
    torch.jit.script(network).save("cache/b4.pt")
    for number, (array, label) in enumerate(zip(held_out.arrays, held_out.labels, strict=True)):
        np.save(f"images/{number:03d}-{DIGITS[int(label)]}.npy", array)
    print(f"Trained on {len(seen.arrays)} images; {len(held_out.arrays)} others are in images.")


if __name__ == "__main__":
    main()
