"""The flags of ``mariner bench``. Apart, because every command of ``mariner`` needs them for its help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("urls", nargs="+", metavar="URL", help="What to measure; several are compared.")
    parser.add_argument("-d", "--data", metavar="TEXT", help="The body; JSON is sent as JSON.")
    parser.add_argument("-f", "--file", metavar="PATH", type=Path, help="A file that holds the body.")
    parser.add_argument(
        "-H", "--header", metavar="LINE", action="append", default=[], help='A header, "Name: value"; may be repeated.'
    )
    parser.add_argument("-X", "--method", metavar="NAME", help="POST if there is a body, else GET.")
    parser.add_argument(
        "-c", "--connections", metavar="N", type=_positive(int), default=16, help="Open at a time (16)."
    )
    parser.add_argument("-t", "--time", metavar="S", type=_positive(float), default=10.0, help="Seconds to send (10).")
    parser.add_argument("-n", "--requests", metavar="N", type=_positive(int), help="Requests to send at most.")
    parser.add_argument(
        "-r",
        "--rate",
        metavar="N",
        type=_positive(float),
        help="Requests per second that fall due, whatever comes back.",
    )
    parser.add_argument("--slo", metavar="MS", type=_positive(float), help="Count answers within these milliseconds.")
    parser.add_argument("--timeout", metavar="S", type=_positive(float), default=30.0, help="For an answer (30).")
    parser.add_argument("--warm-up", metavar="S", type=_not_negative, default=1.0, help="Not counted (1).")
    parser.add_argument(
        "--rounds", metavar="N", type=_positive(int), help="Turns of each URL (1; 2 if there are several)."
    )
    parser.add_argument("--json", metavar="PATH", help="Write the figures there too; - for the standard output alone.")
    parser.add_argument("--insecure", action="store_true", help="Accept any certificate.")


def _positive(kind: type[int | float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = kind.__name__  # argparse says "invalid int value"
    return parse


def _not_negative(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


_not_negative.__name__ = "float"
