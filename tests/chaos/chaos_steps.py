"""Which steps a seed gives: requests mostly, and what is done to the server. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chaos_troubles import TROUBLES, Trouble

__all__ = ["Ask", "Step", "Strike", "steps_of"]

TROUBLE_SHARE = 0.05  # of the steps; the others are requests
RAISING_SHARE, WAVE_SHARE = 0.03, 0.1  # of the requests; a wave is several at once
HANDLER_SECONDS = (0.0, 0.0, 0.002, 0.02)  # that a request may ask its handler to take


@dataclass(frozen=True)
class Ask:
    """Requests to one model, at once.

    Attributes:
        model: its name.
        version: that is asked for, "" for the default.
        count: how many.
        seconds: that each takes in the handler.
        raises: the first of them makes the handler raise.
    """

    model: str
    version: str
    count: int
    seconds: float
    raises: bool

    def __str__(self) -> str:
        times = f" {self.count} times" if self.count > 1 else ""
        raises = ", the first raises" if self.raises else ""
        return f"ask {self.model} {self.version}".rstrip() + f"{times}, {self.seconds:g} s{raises}"


@dataclass(frozen=True)
class Strike:
    """Something is done to the server.

    Attributes:
        trouble: what.
        seed: for what is left open.
    """

    trouble: Trouble
    seed: int

    def __str__(self) -> str:
        return type(self.trouble).__name__


Step = Ask | Strike


def steps_of(seed: int, models: Sequence[str], *, troubles: bool = True) -> Iterator[Step]:
    """The steps of a seed, without end; without ``troubles`` they are requests alone."""
    rng = random.Random(seed)
    weights = [trouble.weight for trouble in TROUBLES]
    while True:
        if rng.random() < TROUBLE_SHARE and troubles:
            (trouble,) = rng.choices(TROUBLES, weights)
            yield Strike(trouble, rng.getrandbits(32))
            continue
        model = rng.choice(models)
        yield Ask(
            model,
            rng.choice(["", "1.0", "2.0"]) if model == "versions" else "",
            rng.randrange(2, 16) if model != "slow" and rng.random() < WAVE_SHARE else 1,
            rng.choice(HANDLER_SECONDS),
            rng.random() < RAISING_SHARE,
        )
