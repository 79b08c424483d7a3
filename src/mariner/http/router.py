"""From a path to the operations on it. Pure: knows no exchange and no access rules."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from mariner.http.routes import Route

__all__ = ["Operation", "Resource", "Router"]

_CAPTURE = re.compile(r"\\\{\w+(\\\*)?\\\}(:?)")  # in a template that went through re.escape()


@dataclass(frozen=True, slots=True)
class Operation:
    """A route, ready to be called."""

    route: Route
    call: Callable[..., Any]
    is_callback: bool


@dataclass(frozen=True, slots=True)
class Resource:
    """The operations on one path.

    Attributes:
        pattern: what its paths look like; its groups are the captured segments.
        route: its first; the access rules are the same for all of them.
        operations: by method, ``*`` for all that have no entry.
    """

    pattern: re.Pattern[str]
    route: Route
    operations: dict[str, Operation] = field(default_factory=dict)


class Router:
    """Finds resources by the first segment of the path, so that a prediction does not look at all of them.

    Args:
        routes: in the order in which they are tried; those whose first segment varies come after all others.
        bind: gives the function of a route its first arguments.
    """

    def __init__(self, routes: Iterable[Route], bind: Callable[[Route], Callable[..., Any]]) -> None:
        self._families: dict[str, list[Resource]] = {}
        self._variable: list[Resource] = []
        resources: dict[str, Resource] = {}
        for route in routes:
            resource = resources.get(route.path)
            if resource is None:
                resource = resources[route.path] = Resource(_pattern(route.path), route)
                first = route.path.split("/")[1]
                family = self._variable if "{" in first else self._families.setdefault(first, [])
                family.append(resource)
            operation = Operation(route, bind(route), not inspect.iscoroutinefunction(route.function))
            for method in route.methods:
                resource.operations.setdefault(method, operation)

    def find(self, path: str) -> tuple[Resource | None, tuple[str, ...]]:
        """The resource of a path and the segments it captures; None if there is no such path.

        Args:
            path: decoded, without slashes at the end.
        """
        first = path[1:].partition("/")[0]
        for resource in chain(self._families.get(first, ()), self._variable):
            match = resource.pattern.fullmatch(path)
            if match is not None:
                return resource, match.groups()
        return None, ()


def _pattern(template: str) -> re.Pattern[str]:
    def group(match: re.Match[str]) -> str:
        rest, colon = match.groups()
        if rest:
            return "(.+)"
        return "([^/:]+):" if colon else "([^/]+)"

    return re.compile(_CAPTURE.sub(group, re.escape(template)), re.DOTALL)
