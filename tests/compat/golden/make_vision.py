"""Writes ``vision.npz``: what torchvision makes of the pictures, with the steps of TorchServe's image handlers.

In an environment of its own, because torchvision wants a PyTorch of its own:

    python -m venv scratch
    scratch/bin/pip install torch==2.14.1 torchvision==0.29.1 numpy pillow
    scratch/bin/python tests/compat/golden/make_vision.py
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pictures import PICTURES, encoded, picture, samples
from PIL import Image
from torchvision import transforms
from torchvision.models import resnet18
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.models.segmentation.fcn import FCN, FCNHead
from weights import seeded

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
COLOURED = [name for name, (mode, _, _) in PICTURES.items() if mode == "RGB"]
DETECTED = ["small", "square"]


def classifier_steps(bands: int) -> Any:
    normalise = transforms.Normalize((MEAN * 2)[:bands], (STD * 2)[:bands])
    return transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalise])


def classify(images: Any) -> tuple[Any, Any]:
    model = resnet18(weights=None)
    model.load_state_dict(seeded(model.state_dict(), last="fc.weight", gain=0.3))
    return torch.topk(torch.softmax(model.eval()(images), dim=1), 5, dim=1)


def segment(images: Any) -> Any:
    backbone = IntermediateLayerGetter(resnet18(weights=None), {"layer4": "out"})
    model = FCN(backbone, FCNHead(512, 21))
    model.load_state_dict(seeded(model.state_dict(), last="classifier.4.weight", gain=0.4))
    probabilities, classes = torch.softmax(model.eval()(images)["out"], dim=1).max(dim=1)
    return torch.stack([classes.float(), probabilities], dim=-1)


def detect(images: list[Any]) -> list[dict[str, Any]]:
    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 5, 4, 2), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 3, 2, 1))
    backbone.out_channels = 32
    anchors = AnchorGenerator(sizes=((32, 64),), aspect_ratios=((0.5, 1.0, 2.0),))
    model = FasterRCNN(backbone, 4, rpn_anchor_generator=anchors, min_size=128, max_size=256, box_detections_per_img=40)
    model.load_state_dict(seeded(model.state_dict(), last="roi_heads.box_predictor.cls_score.weight", gain=0.2))
    return model.eval()(images)


def main() -> None:
    made: dict[str, Any] = {}
    for name, (mode, _, _) in PICTURES.items():
        decoded = Image.open(io.BytesIO(encoded(name)))
        assert decoded.mode == mode
        bands = len(decoded.getbands())
        made[f"classifier/{name}"] = samples(classifier_steps(bands)(decoded).numpy())
        made[f"detector/{name}"] = samples(transforms.ToTensor()(decoded).numpy())
    buffer = io.BytesIO()
    picture("landscape").resize((130, 97)).save(buffer, "JPEG", quality=85)
    made["jpeg"] = np.frombuffer(buffer.getvalue(), np.uint8)
    made["classifier/jpeg"] = samples(classifier_steps(3)(Image.open(buffer)).numpy())
    with torch.inference_mode():
        images = torch.stack([classifier_steps(3)(picture(name)) for name in COLOURED])
        made["probabilities"], made["classes"] = (values.numpy() for values in classify(images))
        made["pixels"] = segment(images)[:, ::16, ::16].numpy()
        found = detect([transforms.ToTensor()(picture(name)) for name in DETECTED])
        for name, objects in zip(DETECTED, found, strict=True):
            for key, values in objects.items():
                made[f"objects/{name}/{key}"] = values.numpy()
    names = {"coloured": COLOURED, "detected": DETECTED, "torchvision": __import__("torchvision").__version__}
    made["names"] = np.frombuffer(json.dumps(names).encode(), np.uint8)
    np.savez_compressed(Path(__file__).with_name("vision.npz"), **made)


if __name__ == "__main__":
    main()
