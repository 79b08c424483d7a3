"""A label of a metric."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Dimension"]


@dataclass
class Dimension:
    """One label and its value.

    Attributes:
        name: the label, for example ``ModelName``.
        value: its value; anything with a text form.
    """

    name: str
    value: object

    def __str__(self) -> str:
        return f"{self.name}:{self.value}"

    def to_dict(self) -> dict[str, object]:
        """The dimension as it appears in JSON."""
        return {"Name": self.name, "Value": self.value}
