"""Pictures to compare transforms with: the same pixels wherever they are made. Needs NumPy and Pillow."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

# Name to mode, width and height: sides below, at and above those of the transform, odd and even, in every mode.
PICTURES = {
    "landscape": ("RGB", 517, 389),
    "portrait": ("RGB", 301, 640),
    "small": ("RGB", 31, 47),
    "square": ("RGB", 256, 256),
    "panorama": ("RGB", 1201, 257),
    "gray": ("L", 333, 222),
    "transparent": ("RGBA", 280, 341),
    "palette": ("P", 199, 300),
    "print": ("CMYK", 240, 310),
}


def picture(name: str) -> Image.Image:
    """A photograph's worth of structure: gradients, hard edges, fine stripes and noise."""
    mode, width, height = PICTURES[name]
    random = np.random.RandomState(len(name) * 1000 + width)
    rows, columns = np.mgrid[0:height, 0:width]
    bands = len(Image.new(mode, (1, 1)).getbands())
    layers = []
    for band in range(bands):
        layer = (rows * (band + 2) * 255 // (height * (bands + 1)) + columns * 255 // width) % 256
        layer[height // 5 : height // 2, width // 3 : width // 2] = 40 + 60 * band
        disc = (rows - height * 2 // 3) ** 2 + (columns - width // 3) ** 2 < (min(width, height) // 5) ** 2
        layer[disc] = 255 - 50 * band
        layer[:, width * 3 // 4 :] = np.where((columns + rows * band)[:, width * 3 // 4 :] % 3 == 0, 250, 5)
        layers.append(np.clip(layer + random.randint(-25, 26, layer.shape), 0, 255).astype(np.uint8))
    pixels = layers[0] if bands == 1 else np.stack(layers, axis=-1)
    if mode == "P":
        image = Image.frombytes("P", (width, height), pixels.tobytes())
        image.putpalette(random.randint(0, 256, 768).astype(np.uint8).tobytes())
        return image
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def encoded(name: str) -> bytes:
    """The picture without loss: PNG, or TIFF where PNG has no such mode."""
    buffer = io.BytesIO()
    picture(name).save(buffer, "TIFF" if PICTURES[name][0] == "CMYK" else "PNG")
    return buffer.getvalue()


def samples(tensor: np.ndarray) -> np.ndarray:
    """A few hundred values of an array ``[channel, row, column]``: a grid of points."""
    _, height, width = tensor.shape
    return tensor[:, :: max(height // 9, 1), :: max(width // 11, 1)][:, :9, :11].copy()
