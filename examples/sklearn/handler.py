"""A handler without PyTorch: a forest of scikit-learn names the wine of thirteen measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib

from ts.utils.util import PredictionException


class WineHandler:
    """One row of numbers per request; the forest sees the whole batch at once."""

    def initialize(self, context: Any) -> None:
        """Loads the forest.

        joblib runs what is in the file; it is trusted as this file is, both come in the archive.
        """
        model_dir = Path(context.system_properties["model_dir"])
        self.forest = joblib.load(model_dir / context.manifest["model"]["serializedFile"])

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:  # noqa: ARG002
        """Answers a batch."""
        rows = [to_row(row.get("data") or row.get("body"), self.forest.n_features_in_) for row in data]
        shares = self.forest.predict_proba(rows)
        return [{"wine": int(share.argmax()), "share": round(float(share.max()), 3)} for share in shares]


def to_row(body: Any, count: int) -> list[float]:
    """The numbers of a request.

    Raises:
        PredictionException: it has others; the client gets status 400 and this text.
    """
    if isinstance(body, list) and len(body) == count and all(isinstance(number, (int, float)) for number in body):
        return body
    raise PredictionException(f"Send a JSON list of {count} numbers.", 400)
