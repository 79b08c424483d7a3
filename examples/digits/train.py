"""Training: the handwritten digits that come with scikit-learn, split into two parts, learnt from one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from model import DigitNet
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

EPOCHS = 25
BATCH = 32
SEED = 7


class Digits(NamedTuple):
    """Images of shape (n, 8, 8), light on dark, with their true digits."""

    images: Pixels
    labels: Labels


def load_parts() -> tuple[Digits, Digits]:
    """Two thirds to learn from and a third that training never sees, with the same share of each digit."""
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # as a PNG file will hold them
    seen, held_out, seen_labels, held_out_labels = train_test_split(
        images, digits.target, test_size=1 / 3, stratify=digits.target, random_state=SEED
    )
    return Digits(seen, seen_labels), Digits(held_out, held_out_labels)


def train(digits: Digits, on_epoch: Callable[[float], None], epochs: int = EPOCHS) -> DigitNet:
    """A network that has learnt the digits; ``on_epoch`` gets the mean loss of each epoch."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # the network is too small to gain from more, and loses where others want the processor
    images = to_batch(digits.images)
    labels = torch.from_numpy(digits.labels)
    network = DigitNet()
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        losses = []
        for indices in torch.randperm(len(labels)).split(BATCH):
            loss = torch.nn.functional.cross_entropy(network(images[indices]), labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        schedule.step()
        on_epoch(sum(losses) / len(losses))
    network.eval()
    return network


def accuracy(network: DigitNet, digits: Digits) -> float:
    """The share of digits that the network gets right."""
    with torch.inference_mode():
        predicted = network(to_batch(digits.images)).argmax(dim=1)
    return float((predicted == torch.from_numpy(digits.labels)).float().mean())


def to_batch(images: Pixels) -> torch.Tensor:
    """Bytes → the network's input, as the handler makes it."""
    return torch.from_numpy(images).unsqueeze(1).float() / 255


def save_images(digits: Digits, folder: Path) -> list[Path]:
    """One PNG file per digit, named after its place and its true digit: ``012-7.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, (image, label) in enumerate(zip(digits.images, digits.labels, strict=True)):
        path = folder / f"{index:03d}-{label}.png"
        Image.fromarray(image).save(path)
        paths.append(path)
    return paths
