"""What is asked: an exchange is one request, a scenario is a server's configuration and what is asked of it in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from oracle.answer import Answer
from oracle.differences import Differs
from oracle.until import Until

__all__ = ["Exchange", "Framing", "Item", "Listener", "Scenario", "View"]

Item = int | str
"""Number on the checklist of the REST API; with a K in front, on that of KServe."""

View = Callable[[Answer], Answer]
"""Leaves of an answer what an exchange is about."""


class Listener(Enum):
    """Who is asked."""

    INFERENCE = "inference"
    MANAGEMENT = "management"
    METRICS = "metrics"


class Framing(Enum):
    """How the body is sent."""

    LENGTH = "with its length"
    CHUNKED = "in chunks"
    EXPECT = "after 100 Continue"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request, and what its answer shows.

    In paths and headers ``{archives}`` is the folder of archives, ``{inference key}`` and the like a key of the server.

    Attributes:
        name: a phrase, unique in its scenario; the key in the golden file.
        method: as sent.
        path: the target, as sent.
        items: what it answers.
        on: the listener asked.
        body: sent as it is.
        content_type: header, if not empty.
        headers: further ones.
        framing: how the body is sent.
        version: of HTTP, as sent.
        times: how often it is sent, one after the other on one connection.
        also: bodies of further requests that are sent at the same moment, on connections of their own.
        until: asked again until the answer is like that; None takes the first one.
        distinct: of equal answers one is enough.
        view: leaves of the answer what matters.
        limit: seconds; the answer shows whether it took longer.
        patience: seconds to wait for bytes before the answer counts as silence.
        differs: how Mariner's answer differs, and why.
    """

    name: str
    method: str
    path: str
    items: tuple[Item, ...] = ()
    on: Listener = Listener.INFERENCE
    body: bytes = b""
    content_type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    framing: Framing = Framing.LENGTH
    version: str = "HTTP/1.1"
    times: int = 1
    also: tuple[bytes, ...] = ()
    until: Until | None = None
    distinct: bool = False
    view: View | None = None
    limit: float | None = None
    patience: float = 60.0
    differs: Differs | None = None

    @property
    def request_line(self) -> str:
        """What a reader of the golden file sees of the request."""
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A server and what is asked of it, in this order.

    Attributes:
        name: of the golden file.
        about: one line.
        exchanges: in order; later ones see what earlier ones did.
        models: archives that are loaded at start, by the names of their models.
        config: further lines of ``config.properties``.
        environment: further variables of the server.
        shared: inference and management are one listener.
        tokens: None leaves the setting out.
        model_api: None leaves the setting out.
        torch: a model needs PyTorch.
    """

    name: str
    about: str
    exchanges: Sequence[Exchange]
    models: tuple[str, ...] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    shared: bool = False
    tokens: bool | None = False
    model_api: bool | None = True
    torch: bool = False
