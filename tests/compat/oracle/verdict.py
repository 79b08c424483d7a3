"""Mariner's answers against TorchServe's."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from oracle import golden
from oracle.answer import Answer
from oracle.differences import RULES, Differs
from oracle.exchange import Exchange

__all__ = ["expected", "problem"]


def expected(exchange: Exchange, recorded: Sequence[Answer]) -> list[Answer]:
    """What Mariner is to answer where TorchServe gave ``recorded``."""
    answers = _by_the_rules(exchange, recorded)
    differs = exchange.differs
    if differs is None:
        return answers
    return [
        differs.apply(answer) if not differs.only or index in differs.only else answer
        for index, answer in enumerate(answers)
    ]


def problem(exchange: Exchange, recorded: Sequence[Answer], answers: Sequence[Answer]) -> str:
    """What is wrong with Mariner's answers; empty if nothing is."""
    wanted = expected(exchange, recorded)
    given = _without_additions(answers)
    if exchange.differs is not None:
        if found := _problem_of_declaration(exchange.differs, wanted, _by_the_rules(exchange, recorded), given):
            return found
        if exchange.differs.extra is not None:
            given = [exchange.differs.extra(answer) for answer in given]
    return "" if _same(given, wanted) else _compare(wanted, given)


def _problem_of_declaration(
    differs: Differs, wanted: Sequence[Answer], torchserve: Sequence[Answer], given: Sequence[Answer]
) -> str:
    """Why there is no such difference; empty if there is."""
    there = f"The declared difference ({differs.because})"
    if differs.extra is not None:
        if _same(given, [differs.extra(answer) for answer in given]):
            return f"{there} is not there: the answer has nothing in addition."
    elif _same(wanted, torchserve):
        return f"{there} changes nothing: TorchServe answers so, too."
    if _same(given, torchserve):
        return f"{there} is not there: the answer is TorchServe's."
    return ""


def _by_the_rules(exchange: Exchange, recorded: Sequence[Answer]) -> list[Answer]:
    answers = list(recorded)
    for rule in RULES:
        if rule.concerns(exchange.path):
            answers = [rule.change(answer) for answer in answers]
    return answers


def _without_additions(answers: Sequence[Answer]) -> list[Answer]:
    for rule in RULES:
        answers = [rule.without(answer) for answer in answers]
    return list(answers)


def _same(some: Sequence[Answer], others: Sequence[Answer]) -> bool:
    return [answer.sorted() for answer in some] == [answer.sorted() for answer in others]


def _compare(wanted: Sequence[Answer], given: Sequence[Answer]) -> str:
    before, after = (golden.describe([answer.sorted() for answer in some]).splitlines() for some in (wanted, given))
    names = "expected of Mariner", "answered by Mariner"
    return "\n".join(difflib.unified_diff(before, after, *names, n=99, lineterm=""))
