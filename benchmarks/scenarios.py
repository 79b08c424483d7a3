"""What is measured and what must come out: workloads, lifecycle measures and targets. Tables only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = [
    "BARE",
    "LIFECYCLE",
    "LITSERVE",
    "MARINER",
    "MOSEC",
    "RAY",
    "TARGETS",
    "TORCHSERVE",
    "WORKLOADS",
    "Body",
    "Target",
    "Workload",
]

MARINER, TORCHSERVE, MOSEC, BARE = "mariner", "torchserve", "mosec", "bare"
LITSERVE, RAY = "litserve", "ray"


class Body(Enum):
    """How a request body is encoded; the value is what the model programs call it."""

    JSON = "json"
    RAW = "raw"

    @property
    def content_type(self) -> str:
        return "application/json" if self is Body.JSON else "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Workload:
    """One model with one batching setting, measured at several numbers of connections.

    ``net`` names the network whose weights the archive carries; ``codecs`` are the JSON libraries with which the bare
    loop runs, none where a bare loop says nothing. A workload that answers some twenty requests a second is measured
    ``times`` as long as others: in five seconds one request more or less would be 1 %, as much as its target allows.
    """

    name: str
    title: str
    handler: str
    body: Body
    connections: tuple[int, ...]
    net: str | None = None
    batch_size: int = 1
    batch_delay_ms: int = 5
    codecs: tuple[str, ...] = ()
    times: int = 1

    def measure(self, connections: int) -> str:
        return f"{self.name} c{connections}"


WORKLOADS = (
    Workload("W1", "no-op, JSON", "noop:NoOp", Body.JSON, (1, 64)),
    Workload("W1b", "no-op, JSON, batch 32, delay 5 ms", "noop:NoOp", Body.JSON, (1, 64), batch_size=32),
    Workload("W2", "MLP, 784 numbers as JSON", "mlp:MLPClassifier", Body.JSON, (64,), "mlp", codecs=("json", "orjson")),
    Workload(
        "W2b",
        "MLP, 784 numbers as JSON, batch 16, delay 5 ms",
        "mlp:MLPClassifier",
        Body.JSON,
        (64,),
        "mlp",
        batch_size=16,
        codecs=("json", "orjson"),
    ),
    Workload("W3n", "no-op on 602,112 raw bytes", "raw:Raw", Body.RAW, (1, 8)),
    Workload(
        "W3",
        "ResNet-18 shape, 3x224x224 float32",
        "resnet:ResNetClassifier",
        Body.RAW,
        (4,),
        "resnet",
        codecs=("json",),
        times=3,
    ),
)

LIFECYCLE = {
    "cold": "cold start to first answer",
    "memory": "idle memory (PSS)",
    "kill": "worker killed to next answer",
}
LIFECYCLE_WORKLOAD = Workload("life", "small PyTorch model", "mlp:MLPClassifier", Body.JSON, (), "mlp")


@dataclass(frozen=True, slots=True)
class Target:
    """A bound for Mariner's figure, or for its ratio to ``against``; ``None`` where nothing is demanded.

    Rates must reach the bound; times and memory, which ``at_most`` marks, must stay below it.
    """

    measure: str
    against: str | None
    spine: float | None
    goal: float | None = None
    at_most: bool = False

    def met(self, value: float, bound: float) -> bool:
        return value <= bound if self.at_most else value >= bound


TARGETS = (
    Target("W1 c1", TORCHSERVE, 3.5, 5),
    Target("W1 c1", MOSEC, 1, 1.25),
    Target("W1 c64", TORCHSERVE, 15, 30),
    Target("W1 c64", MOSEC, 3, 7),
    Target("W1b c1", TORCHSERVE, 25, 45),
    Target("W1b c1", MOSEC, 25, 45),
    Target("W1b c64", TORCHSERVE, 6, 11),
    Target("W1b c64", MOSEC, 1.2, 2.2),
    Target("W2 c64", TORCHSERVE, 2.5, 5),
    Target("W2 c64", f"{BARE} orjson", None, 0.97),
    Target("W2b c64", TORCHSERVE, 1.8, 4),
    Target("W2b c64", f"{BARE} orjson", None, 0.97),
    Target("W3n c1", TORCHSERVE, 3, 7),
    Target("W3n c8", TORCHSERVE, 4, 13),
    Target("W3n c8", MOSEC, None, 4),
    Target("W3 c4", BARE, 0.97, 0.99),
    Target("cold", None, 1.6, 1.2, at_most=True),
    Target("kill", None, 1.2, 0.3, at_most=True),
    Target("memory", None, 260, 235, at_most=True),
)
