"""Where a listener is bound: the ``http://HOST:PORT`` and ``unix:/PATH`` of the settings. No sockets here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from mariner.errors import ConfigurationError

__all__ = ["Address", "Scheme"]

_BINDING = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.%]+\]|[^:^/\[\]\s]+)(?::(?P<port>[0-9]+))?", re.IGNORECASE
)
_UNIX_BINDING = re.compile(r"unix:(?P<path>/.+)", re.IGNORECASE)


class Scheme(Enum):
    """What a listener speaks, and on what."""

    HTTP = "http"
    HTTPS = "https"
    UNIX = "unix"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener is bound.

    Attributes:
        scheme: ``http``, ``https`` or ``unix``.
        host: name or address, an IPv6 one without brackets; "" for a unix socket.
        port: 0 lets the system choose; 0 for a unix socket too.
        path: of the unix socket, else "".
    """

    scheme: Scheme
    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str, *, http_port: int = 80, https_port: int = 443) -> Address:
        """Reads ``http://HOST[:PORT]``, ``https://HOST[:PORT]`` or ``unix:/PATH``.

        Args:
            text: the address; schemes may be in any case.
            http_port: port of an ``http`` address that names none.
            https_port: port of an ``https`` address that names none.

        Raises:
            ConfigurationError: the text is no such address.
        """
        if unix := _UNIX_BINDING.fullmatch(text):
            return cls(Scheme.UNIX, path=unix["path"])
        binding = _BINDING.fullmatch(text)
        if binding is None:
            raise ConfigurationError(
                f"Invalid binding address: {text}", hint="Write http://HOST:PORT, https://HOST:PORT or unix:/PATH."
            )
        scheme = Scheme(binding["scheme"].lower())
        port = int(binding["port"] or (https_port if scheme is Scheme.HTTPS else http_port))
        if port >= 65535:
            raise ConfigurationError(
                f"Invalid port number: {text}", hint="Ports go from 1 to 65534; 0 picks a free one."
            )
        return cls(scheme, binding["host"].strip("[]"), port)

    @property
    def loopback(self) -> bool:
        """Nobody outside this machine can connect."""
        return self.scheme is Scheme.UNIX or self.host.lower() in {"localhost", "::1"} or self.host.startswith("127.")

    @property
    def ephemeral(self) -> bool:
        """The system chooses the port, so that no two listeners share it."""
        return self.scheme is not Scheme.UNIX and self.port == 0

    def __str__(self) -> str:
        if self.scheme is Scheme.UNIX:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme.value}://{host}:{self.port}"
