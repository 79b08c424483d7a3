"""The page of the reference that tells what is compatible."""

from __future__ import annotations

from collections.abc import Iterable

from oracle.catalogue import KSERVE, REST, Finding, State, find
from oracle.differences import RULES
from oracle.scenarios import SCENARIOS

__all__ = ["render"]

_INTRODUCTION = """\
# Compatibility

<!-- Generated from tests/compat/oracle by `make docs`; changes made here are lost. -->

{exchanges} requests were sent to TorchServe 0.12.0 and its answers recorded: status lines, headers, bodies, chunks,
and what became of the connection. The tests send the same requests to this server and compare. What differs, differs on
purpose: the difference is declared beside the request, and the tests fail if it is not there.

| | items |
|---|--:|
| same | {same} |
| differs on purpose | {differs} |
| missing in this version | {missing} |
| not asked | {not_asked} |

{scenarios}

*Decision* marks a choice, *fixed* a defect that no client relies on, *more* something in addition.

## In every answer

"""


def render() -> str:
    """The whole page."""
    numbers = iter(range(1, 1000))
    parts = {part: [find(next(numbers), text) for text in texts] for part, texts in REST.items()}
    kserve = [find(item, text) for item, text in KSERVE.items()]
    counts = dict.fromkeys(State, 0)
    for finding in (*(finding for part in parts.values() for finding in part), *kserve):
        counts[finding.state] += 1
    text = _INTRODUCTION.format(
        exchanges=sum(len(scenario.exchanges) for scenario in SCENARIOS),
        scenarios=_scenarios(),
        **{state.name.lower(): count for state, count in counts.items()},
    )
    text += "".join(f"- {rule.because.text} ({rule.because.label})\n" for rule in RULES)
    for part, findings in parts.items():
        text += f"\n## {part}\n\n{_table(findings)}"
    text += f"\n## KServe\n\nThe items that TorchServe has an answer to.\n\n{_table(kserve)}"
    return text + _others()


def _scenarios() -> str:
    rows = ["| server | requests | differ | missing |", "|---|--:|--:|--:|"]
    for scenario in SCENARIOS:
        differ = sum(exchange.differs is not None for exchange in scenario.exchanges)
        missing = sum(bool(exchange.missing) for exchange in scenario.exchanges)
        rows.append(f"| {scenario.about.rstrip('.')} | {len(scenario.exchanges)} | {differ} | {missing} |")
    return "\n".join(rows)


def _table(findings: Iterable[Finding]) -> str:
    rows = ["| # | item | here |", "|--:|---|---|"]
    rows += [f"| {finding.item} | {finding.text} | {_outcome(finding)} |" for finding in findings]
    return "\n".join(rows) + "\n"


def _outcome(finding: Finding) -> str:
    details = [*finding.notes, *(f"{reason.text} ({reason.label})" for reason in finding.reasons)]
    if finding.state is State.MISSING:
        details = [f"{', '.join(finding.notes)}.", *details[len(finding.notes) :]]
    return f"**{finding.state.value}**: {' '.join(details)}" if details else finding.state.value


def _others() -> str:
    """What differs where the lists have no item."""
    rows = [
        f"| {exchange.name} | {exchange.differs.because.text} ({exchange.differs.because.label}) |"
        for scenario in SCENARIOS
        for exchange in scenario.exchanges
        if exchange.differs and not exchange.items
    ]
    head = "\n## Beyond the lists\n\n| request | here |\n|---|---|\n"
    return head + "\n".join(rows) + "\n"
