"""From what came over the socket to an answer without what changes from run to run."""

from __future__ import annotations

import re
from collections.abc import Mapping

from oracle.answer import Answer
from oracle.wire import Received

__all__ = ["Names", "normalise"]

_UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_MEMBERS = (
    (re.compile(r'("startTime": )"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"'), r'\1"<time>"'),
    (re.compile(r'("(?:pid|memoryUsage)": )\d+'), r'\1"<number>"'),
    (re.compile(r'("id": )"9\d\d\d"'), r'\1"<number of the worker>"'),
    (re.compile(r'(ostname=")[^"]*'), r"\1<host>"),
    (re.compile(r"(W-)9\d\d\d(-)"), r"\1<number>\2"),
)
# Predictions are the same in every run; what measures is not, nor how often was asked whether the server is up.
_MEASURED = re.compile(r"^((?!ts_inference_requests_total)\w+\{.*\} )\d+\.\d+(?:E-?\d+)?$", re.MULTILINE)


class Names:
    """The names that an exchange's own values get: the first id that appears is ``<uuid 1>``.

    Args:
        places: folders, addresses and the like, by what they are replaced with.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = sorted(((value, name) for name, value in places.items()), key=lambda pair: -len(pair[0]))
        self._ids: dict[str, str] = {}

    def replace(self, text: str) -> str:
        for value, name in self._places:
            text = text.replace(value, f"<{name}>")
        text = _UUID4.sub(lambda found: self._ids.setdefault(found[0], f"<uuid {len(self._ids) + 1}>"), text)
        for pattern, replacement in _MEMBERS:
            text = pattern.sub(replacement, text)
        return text


def normalise(received: Received, names: Names, limit: float | None) -> Answer:
    """The answer as it is compared."""
    headers = [
        (name, "<times>" if name.lower() == "server-timing" else names.replace(value))
        for name, value in received.headers
    ]
    body = _readable(received.body, names)
    metrics = any(value.startswith("text/plain; version=0.0.4") for _, value in headers)
    if metrics and isinstance(body, str):
        body = _sorted_metrics(_MEASURED.sub(r"\1<number>", body))
    length = str(len(received.body))
    return Answer(
        status=received.status,
        headers=tuple(
            (name, "<length of the body>" if name.lower() == "content-length" and value == length else value)
            for name, value in headers
        ),
        body=body,
        chunks=tuple(str(_readable(chunk, names)) for chunk in received.chunks or ()),
        connection=received.connection,
        interim=tuple(received.interim),
        took="" if limit is None else f"{'over' if received.seconds > limit else 'under'} {limit:g} s",
    )


def _readable(body: bytes, names: Names) -> str | bytes:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return body
    return names.replace(text)


def _sorted_metrics(text: str) -> str:
    """Families and samples by name: both servers list them in an order of their own."""
    families: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = line.split(" ")[2]
        families.setdefault(name, []).append(line)
    return "".join(f"{line}\n" for name in sorted(families) for line in sorted(families[name]))
