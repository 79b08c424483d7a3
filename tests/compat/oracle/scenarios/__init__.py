"""All scenarios, in the order in which they are played."""

from __future__ import annotations

from oracle.exchange import Scenario
from oracle.scenarios.access import SHARED, TOKENS
from oracle.scenarios.inference import INFERENCE
from oracle.scenarios.kserve import BODY, JSON, KSERVE_1, KSERVE_2
from oracle.scenarios.management import MANAGEMENT
from oracle.scenarios.settings import SETTINGS

__all__ = ["SCENARIOS"]

SCENARIOS: tuple[Scenario, ...] = (INFERENCE, MANAGEMENT, *SETTINGS, TOKENS, SHARED, BODY, JSON, KSERVE_1, KSERVE_2)
