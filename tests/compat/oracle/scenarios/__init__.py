"""All scenarios, in the order in which they are played."""

from __future__ import annotations

from oracle.exchange import Scenario
from oracle.scenarios.access import EXPIRY, SHARED, TOKENS
from oracle.scenarios.envelopes import ENVELOPES
from oracle.scenarios.inference import INFERENCE
from oracle.scenarios.kserve import KSERVE
from oracle.scenarios.management import MANAGEMENT
from oracle.scenarios.sequences import SEQUENCES
from oracle.scenarios.settings import SETTINGS

__all__ = ["SCENARIOS"]

SCENARIOS: tuple[Scenario, ...] = (
    INFERENCE,
    SEQUENCES,
    MANAGEMENT,
    *SETTINGS,
    TOKENS,
    EXPIRY,
    SHARED,
    *ENVELOPES,
    *KSERVE,
)
