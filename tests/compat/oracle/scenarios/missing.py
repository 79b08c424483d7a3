"""What Mariner does not have yet. An exchange that names one of these fails as soon as its answer changes."""

from __future__ import annotations

__all__ = ["DOCUMENTS", "INVOCATIONS", "KSERVE_1", "KSERVE_2", "OLD_PATHS", "SHARED_METRICS", "TOKEN"]

DOCUMENTS = "OpenAPI documents"
INVOCATIONS = "the paths of SageMaker"
OLD_PATHS = "the paths of the first releases"
KSERVE_1 = "the first KServe protocol"
KSERVE_2 = "the second KServe protocol"
SHARED_METRICS = "metrics on a shared listener"
TOKEN = "renewing keys by `/token`"
