"""The exchanges of the oracle, sent to this server; the recorded answers of TorchServe are what is expected."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from oracle import golden, page
from oracle.answer import Answer, json_text
from oracle.catalogue import MISSING, NOT_ASKED, exchanges_of, items
from oracle.differences import RULES, Differs, Rule, decision
from oracle.exchange import Exchange, Scenario
from oracle.models import pack
from oracle.runner import play
from oracle.scenarios import SCENARIOS
from oracle.servers import StartFailed, started
from oracle.verdict import expected, problem

ROOT = Path(__file__).parents[2]
TORCHSERVE = Path(sys.executable).parent / "torchserve"  # the command, as this project installs it

Answers = dict[str, list[Answer]]

EXCHANGES = [
    pytest.param(
        scenario,
        exchange,
        id=f"{scenario.name}-{exchange.name.replace(' ', '_')}",
        marks=[pytest.mark.slow, *([pytest.mark.torch] if scenario.torch else [])],
    )
    for scenario in SCENARIOS
    for exchange in scenario.exchanges
]


recorded_of = cache(golden.read)


@pytest.fixture(scope="module")
def answers_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Scenario], Answers]:
    """The answers to a scenario; it is played once."""
    archives = tmp_path_factory.mktemp("archives")
    pack(archives)
    played: dict[str, Answers] = {}
    failed: dict[str, str] = {}

    def answers(scenario: Scenario) -> Answers:
        name = scenario.name
        if name in failed:
            pytest.fail(failed[name], pytrace=False)
        if name not in played:
            try:
                with started(TORCHSERVE, scenario, archives, tmp_path_factory.mktemp(name)) as target:
                    played[name] = {exchange.name: some for exchange, some in play(scenario, target)}
            except StartFailed as error:
                failed[name] = f"See the first failure of {name}."
                pytest.fail(str(error), pytrace=False)
        return played[name]

    return answers


@pytest.mark.parametrize(("scenario", "exchange"), EXCHANGES)
def test_the_answer_is_torchserves_but_for_what_is_declared(
    scenario: Scenario, exchange: Exchange, answers_of: Callable[[Scenario], Answers]
) -> None:
    found = problem(exchange, recorded_of(scenario.name)[exchange.name], answers_of(scenario)[exchange.name])
    assert not found, f"{exchange.request_line}\n{found}"


# -- the suite itself ------------------------------------------------------------------------------------------------


def test_every_item_has_an_exchange_or_a_reason() -> None:
    every = [item for item, _ in items()]
    assert every == [*range(1, 133), *(f"K{number}" for number in range(1, 65))]
    asked = [item for item in every if exchanges_of(item)]
    assert sorted([*asked, *MISSING, *NOT_ASKED], key=every.index) == every


def test_exchanges_name_only_items_that_exist() -> None:
    named = {item for scenario in SCENARIOS for exchange in scenario.exchanges for item in exchange.items}
    assert named - {item for item, _ in items()} == set()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_golden_file_has_each_exchange_once(scenario: Scenario) -> None:
    names = Counter(exchange.name for exchange in scenario.exchanges)
    assert [name for name, count in names.items() if count > 1] == []
    assert set(recorded_of(scenario.name)) == set(names)


def test_there_is_a_scenario_for_each_golden_file() -> None:
    assert {file.stem for file in golden.FOLDER.iterdir()} == {scenario.name for scenario in SCENARIOS}


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.changes], ids=lambda rule: rule.because.label)
def test_each_rule_that_changes_answers_meets_one(rule: Rule) -> None:
    recorded = [
        answer
        for scenario in SCENARIOS
        for exchange in scenario.exchanges
        if rule.concerns(exchange.path)
        for answer in recorded_of(scenario.name)[exchange.name]
    ]
    assert any(rule.change(answer) != answer for answer in recorded)


def test_the_page_is_what_the_suite_says() -> None:
    assert (ROOT / "docs/reference/compatibility.md").read_text() == page.render(), "Run `make docs`."


def test_the_page_counts_each_item_once() -> None:
    lines = [line for line in page.render().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    outcomes = {row[0]: row[2].partition(":")[0].strip("*") for row in rows if re.fullmatch(r"K?\d+", row[0])}
    assert list(outcomes) == [str(item) for item, _ in items()]
    counted = {label: [int(count) for count in counts] for label, *counts in rows if label in page.LABELS.values()}
    assert counted == {
        label: [
            sum(outcome == state.value and item.startswith("K") is kserve for item, outcome in outcomes.items())
            for kserve in (False, True)
        ]
        for state, label in page.LABELS.items()
    }
    assert [sum(column) for column in zip(*counted.values(), strict=True)] == [132, 64]


# -- what the comparison tells ---------------------------------------------------------------------------------------

OURS = {"request_id": "<uuid 1>"}
NOT_FOUND = {"code": 404, "type": "ResourceNotFoundException", "message": "Requested resource is not found"}
ASK = Exchange("ask", "GET", "/")
MORE_WORKERS = Differs(decision(1), texts={"1": "2"})


def answered(status: str, body: Any, *, connection: str = "open") -> Answer:
    headers = (("content-type", "application/json"), ("x-request-id", "<uuid 1>"))
    announced = "keep-alive" if connection == "open" else "close"
    return Answer(status, (*headers, ("connection", announced)), json_text(body), connection=connection)


ONE, TWO = answered("200 OK", {"workers": 1}), answered("200 OK", {"workers": 2})
ABSENT = answered("404 Not Found", NOT_FOUND | OURS)


@pytest.mark.parametrize(
    ("exchange", "recorded", "given", "says"),
    [
        (ASK, ONE, ONE, ""),
        (ASK, ONE, TWO, '-    "workers": 1'),
        (replace(ASK, differs=MORE_WORKERS), ONE, TWO, ""),
        (replace(ASK, differs=MORE_WORKERS), ONE, ONE, "is not there"),
        (replace(ASK, differs=Differs(decision(1), status="200 OK")), ONE, ONE, "changes nothing"),
        (replace(ASK, differs=Differs(decision(1), extra=lambda answer: answer)), ONE, ONE, "nothing in addition"),
    ],
)
def test_a_verdict_names_what_is_wrong(exchange: Exchange, recorded: Answer, given: Answer, says: str) -> None:
    found = problem(exchange, [recorded], [given])
    assert (says in found) if says else not found


def test_errors_are_expected_to_keep_the_connection_and_to_name_the_request() -> None:
    recorded = answered("404 Not Found", NOT_FOUND, connection="closed")
    assert expected(ASK, [recorded])[0].sorted() == ABSENT.sorted()


@pytest.mark.parametrize(("path", "says"), [("/v1/models/m", True), ("/v2/models/m/infer", True), ("/models/m", False)])
def test_errors_are_expected_to_be_readable_for_clients_of_kserve_below_its_paths(path: str, says: bool) -> None:
    recorded = answered("404 Not Found", NOT_FOUND, connection="closed")
    named = {"error": NOT_FOUND["message"]} if says else {}
    assert not problem(replace(ASK, path=path), [recorded], [answered("404 Not Found", NOT_FOUND | OURS | named)])


def test_advice_may_be_added_to_errors_and_nothing_else() -> None:
    recorded = answered("404 Not Found", NOT_FOUND, connection="closed")
    advised = answered("404 Not Found", NOT_FOUND | OURS | {"hint": "Ask elsewhere."})
    other = answered("404 Not Found", NOT_FOUND | OURS | {"path": "/"})
    assert not problem(ASK, [recorded], [advised])
    assert '"path"' in problem(ASK, [recorded], [other])
