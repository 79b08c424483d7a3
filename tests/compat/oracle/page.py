"""The page of the reference that tells what is compatible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from oracle.catalogue import KSERVE, REST, Finding, State, find
from oracle.differences import RULES
from oracle.scenarios import SCENARIOS

__all__ = ["LABELS", "render"]

_INTRODUCTION = """\
# Compatibility

<!-- Generated from tests/compat/oracle by `make docs`; changes made here are lost. -->

What this server answers, compared with TorchServe 0.12.0, item by item. {exchanges} requests were sent to TorchServe
and its answers recorded: status lines, headers, bodies, chunks, and what became of the connection. The tests send the
same requests here and compare. What differs, differs on purpose: the difference is declared beside the request, with
the answer that is expected instead, and the tests fail if it is not there.

{counts}

*Same* means the same but for [what holds for every answer](#in-every-answer). Of what differs, a *decision* is a
choice, *fixed* a defect that no client relies on, *more* something in addition. Parts of TorchServe that are not on
these lists and not here are named in
[Migrate from TorchServe](../how-to/migrate-from-torchserve.md#4-know-what-is-missing-in-this-version).

## See for yourself

```bash
make test      # sends every request to this server; needs neither Java nor TorchServe
make oracle    # asks TorchServe again, installed on first use, and shows what changed; needs Java 17
```

Requests, and what is declared to differ, are in `tests/compat/oracle/scenarios`, TorchServe's answers in
`tests/compat/oracle/golden`.

{scenarios}

## In every answer

"""

LABELS = {
    State.SAME: "same",
    State.DIFFERS: "differs on purpose",
    State.MISSING: "missing in this version",
    State.NOT_ASKED: "not asked",
}


def render() -> str:
    """The whole page."""
    numbers = iter(range(1, 1000))
    parts = {part: [find(next(numbers), text) for text in texts] for part, texts in REST.items()}
    kserve = [find(item, text) for item, text in KSERVE.items()]
    lists = {"REST API": [finding for findings in parts.values() for finding in findings], "KServe": kserve}
    exchanges = sum(len(scenario.exchanges) for scenario in SCENARIOS)
    text = _INTRODUCTION.format(exchanges=exchanges, counts=_counts(lists), scenarios=_scenarios())
    text += "".join(f"- {rule.because.text} ({rule.because.label})\n" for rule in RULES)
    for part, findings in parts.items():
        text += f"\n## {part}\n\n{_table(findings)}"
    return text + f"\n## KServe\n\n{_table(kserve)}" + _others()


def _counts(lists: Mapping[str, Sequence[Finding]]) -> str:
    rows = [f"| | {' | '.join(lists)} |", f"|---|{'--:|' * len(lists)}"]
    for state, label in LABELS.items():
        counts = (sum(finding.state is state for finding in findings) for findings in lists.values())
        rows.append(f"| {label} | {' | '.join(map(str, counts))} |")
    rows.append(f"| all | {' | '.join(str(len(findings)) for findings in lists.values())} |")
    return "\n".join(rows)


def _scenarios() -> str:
    rows = ["| server | requests | differ |", "|---|--:|--:|"]
    for scenario in SCENARIOS:
        differ = sum(exchange.differs is not None for exchange in scenario.exchanges)
        rows.append(f"| {scenario.about.rstrip('.')} | {len(scenario.exchanges)} | {differ} |")
    return "\n".join(rows)


def _table(findings: Iterable[Finding]) -> str:
    rows = ["| # | item | here |", "|--:|---|---|"]
    rows += [f"| {finding.item} | {finding.text} | {_outcome(finding)} |" for finding in findings]
    return "\n".join(rows) + "\n"


def _outcome(finding: Finding) -> str:
    details = [f"{reason.text} ({reason.label})" for reason in finding.reasons]
    if finding.note:
        details.append(f"{finding.note}.")
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
