"""An answer as the suite sees it: free of whatever changes from run to run, and readable."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Answer", "as_json", "json_text"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one request.

    Attributes:
        status: the status line without the version; empty if there was none.
        headers: in the order they came, in the server's own casing.
        body: text, or bytes if it is none.
        chunks: of a chunked answer, one each; the body is empty then.
        connection: ``open`` or ``closed`` after the answer; ``cut`` before its end; ``silent`` if nothing more came;
            ``refused`` if nobody listens.
        interim: status lines that came before.
        took: on which side of the exchange's limit the time was.
    """

    status: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: str | bytes = ""
    chunks: tuple[str, ...] = ()
    connection: str = "open"
    interim: tuple[str, ...] = ()
    took: str = ""

    @property
    def code(self) -> int:
        """The status as a number; 0 if there was none."""
        return int(self.status.split(" ")[0] or 0)

    def header(self, name: str) -> str | None:
        """A header, whatever its casing."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def with_headers(self, changes: dict[str, str | None]) -> Answer:
        """The answer with other headers; None leaves one out."""
        names = {name.lower() for name in changes}
        kept = [(name, value) for name, value in self.headers if name.lower() not in names]
        added = [(name, value) for name, value in changes.items() if value is not None]
        return replace(self, headers=(*kept, *added))

    def sorted(self) -> Answer:
        """The same answer as one that compares equal: HTTP gives the order of headers no meaning."""
        return replace(self, headers=tuple(sorted(self.headers)))

    def dump(self) -> dict[str, Any]:
        """As it is written to a golden file, without what is usual."""
        headers: dict[str, Any] = {}
        for name, value in self.headers:
            headers[name] = [*([headers[name]] if name in headers else []), value] if name in headers else value
        row = {
            "interim": list(self.interim),
            "status": self.status,
            "headers": headers,
            "body": self.body,
            "chunks": list(self.chunks),
            "took": self.took,
        }
        return {key: value for key, value in row.items() if value} | {"connection": self.connection}

    @classmethod
    def load(cls, row: dict[str, Any]) -> Answer:
        """What :meth:`dump` gave."""
        headers = []
        for name, value in row.get("headers", {}).items():
            headers += [(name, one) for one in (value if isinstance(value, list) else [value])]
        return cls(
            row.get("status", ""),
            tuple(headers),
            row.get("body", ""),
            tuple(row.get("chunks", ())),
            row["connection"],
            tuple(row.get("interim", ())),
            row.get("took", ""),
        )


def as_json(answer: Answer) -> Any:
    """The value of a JSON body; None if the body is something else."""
    if answer.header("content-type") != "application/json" or not isinstance(answer.body, str):
        return None
    try:
        return json.loads(answer.body)
    except ValueError:
        return None


def json_text(value: Any) -> str:
    """JSON as both servers write their own."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
