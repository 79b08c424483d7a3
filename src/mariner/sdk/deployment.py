"""``Deployment``: a model that runs somewhere, whatever it runs on."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mariner.errors import DeploymentError

if TYPE_CHECKING:
    from mariner.sdk.model import Model

__all__ = ["Deployment", "Sample", "check_percentage", "parse_samples"]

_SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Sample(NamedTuple):
    """A value of a metric.

    Attributes:
        name: of the metric, ``ts_inference_requests_total``.
        labels: what tells it from the others of that name.
        value: the number.
    """

    name: str
    labels: dict[str, str]
    value: float


class Deployment(ABC):
    """A running model. Threads may share it.

    Attributes:
        name: the name it is served under.
        url: where predictions are made.
    """

    name: str
    url: str

    def __repr__(self) -> str:
        """Name and address."""
        return f"<{type(self).__name__} {self.name} at {self.url}>"

    @abstractmethod
    def predict(self, data: Any, *, version: str | None = None, timeout: float | None = None) -> Any:
        """Asks the model.

        Args:
            data: bytes or a file (``Path``) travel as they are, a text as text, anything else as JSON.
            version: which version is to answer; None leaves it to the service.
            timeout: seconds to wait for the answer.

        Returns:
            What the JSON of the answer says; else its text, or its bytes.

        Raises:
            DeploymentError: there is no answer, or it is an error.
        """

    @abstractmethod
    def explain(self, data: Any, *, version: str | None = None, timeout: float | None = None) -> Any:
        """Asks the model why it would answer what it would; as :meth:`predict`."""

    @abstractmethod
    def scale(self, min_workers: int, max_workers: int | None = None) -> None:
        """Changes how many processes serve the model, and waits until they do.

        Raises:
            DeploymentError: it cannot be done.
        """

    @abstractmethod
    def logs(self, lines: int = 100) -> str:
        """The last lines that the service has written."""

    @abstractmethod
    def metrics(self) -> Sequence[Sample]:
        """The metrics of the model."""

    @abstractmethod
    def deploy_canary(self, model: Model, *, canary_traffic_percentage: int = 30) -> None:
        """Starts another version beside the one that serves, and gives it a share of the requests.

        Called again with the same version it changes the share.

        Args:
            model: the other version.
            canary_traffic_percentage: of 100 requests that name no version, so many.

        Raises:
            DeploymentError: it does not start, or another canary runs.
        """

    def deploy_shadow(self, model: Model, *, shadow_traffic_percentage: int = 100) -> None:  # noqa: ARG002
        """Starts another version that is asked a share of what the one that serves is asked, and answers nobody.

        ``promote_canary()`` and ``rollback()`` end it as they end a canary; ``shadow()`` says how it does.

        Args:
            model: the other version.
            shadow_traffic_percentage: of 100 requests it is asked so many, too.

        Raises:
            DeploymentError: it does not start, another version runs beside, or the service cannot do it.
        """
        raise DeploymentError(f"{self.name} cannot have a shadow here.", hint="Deploy it with target='local'.")

    def shadow(self) -> dict[str, int]:
        """Requests ``mirrored`` and ``refused``, and how their answers compare: ``same``, ``different``, ``failed``.

        Raises:
            DeploymentError: there is no shadow.
        """
        raise DeploymentError(f"{self.name} has no shadow.", hint="Start one with deploy_shadow().")

    @abstractmethod
    def promote_canary(self) -> None:
        """Lets the canary answer everything, and ends the version before it.

        Raises:
            DeploymentError: there is no canary.
        """

    @abstractmethod
    def rollback(self) -> None:
        """Ends the canary; the version before it answers everything.

        Raises:
            DeploymentError: there is no canary.
        """

    @abstractmethod
    def undeploy(self) -> None:
        """Lets the model answer what it has, and ends it with all its versions."""


def check_percentage(percentage: object, name: str = "canary_traffic_percentage") -> int:
    """A share that a canary or a shadow can have.

    Raises:
        DeploymentError: it is none.
    """
    if isinstance(percentage, bool) or not isinstance(percentage, int) or not 0 <= percentage <= 100:
        raise DeploymentError(f"{name} is {percentage!r}.", hint="Write a whole number from 0 to 100, as in 30.")
    return percentage


def parse_samples(text: str, model: str) -> list[Sample]:
    """The values of one model in Prometheus' text."""
    samples = (
        Sample(name, dict(_LABEL.findall(labels)), float(value)) for name, labels, value in _SAMPLE.findall(text)
    )
    return [sample for sample in samples if sample.labels.get("model_name") == model]
