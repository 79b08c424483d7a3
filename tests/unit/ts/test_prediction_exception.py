from __future__ import annotations

import pickle

import ts.service
import ts.utils.util
from ts.errors import PredictionException


def test_its_text_holds_message_and_code() -> None:
    error = PredictionException("no such label", 513)
    assert (str(error), error.message, error.error_code) == ("no such label : 513", "no such label", 513)


def test_the_code_is_500_unless_given() -> None:
    assert PredictionException("x").error_code == 500


def test_it_survives_pickling_between_processes_of_a_handler() -> None:
    error = pickle.loads(pickle.dumps(PredictionException("x", 404)))
    assert (error.message, error.error_code) == ("x", 404)


def test_it_can_be_imported_from_all_its_homes() -> None:
    assert ts.service.PredictionException is ts.utils.util.PredictionException is PredictionException
