"""Which of the places that may set something wins."""

from __future__ import annotations

from typing import Any

import pytest

from mariner.archive.model_config import ModelConfig
from mariner.config import Config
from mariner.model_settings import ModelSettings, RegisterOptions, resolve


def resolved(
    yaml: dict[str, Any] | None = None,
    options: RegisterOptions | None = None,
    preset: dict[str, Any] | None = None,
    *,
    automatic_workers: int | None = None,
    **settings: Any,
) -> ModelSettings:
    config, _ = ModelConfig.parse(yaml or {})
    return resolve(
        Config(**settings),
        config,
        options or RegisterOptions(),
        preset=preset or {},
        automatic_workers=automatic_workers,
    )


def test_nobody_says_anything() -> None:
    settings = resolved()
    assert (settings.min_workers, settings.max_workers) == (0, 0)
    assert (settings.batch_size, settings.max_batch_delay, settings.batching_policy) == (1, 0.1, "eager")
    assert (settings.queue_size, settings.response_timeout, settings.startup_timeout) == (100, 120, 120)
    assert (settings.retry_window, settings.client_timeout) == (300, 0)


def test_a_model_that_comes_with_the_start_gets_the_automatic_number() -> None:
    assert resolved(automatic_workers=3).min_workers == 3
    assert resolved(automatic_workers=3, default_workers_per_model=2).min_workers == 2


def test_a_valid_pair_in_the_model_config_wins_over_the_caller() -> None:
    settings = resolved({"minWorkers": 2, "maxWorkers": 4}, RegisterOptions(initial_workers=1))
    assert (settings.min_workers, settings.max_workers) == (2, 4)


@pytest.mark.parametrize("yaml", [{"minWorkers": 2}, {"maxWorkers": 3}, {"minWorkers": 4, "maxWorkers": 2}])
def test_half_a_pair_counts_for_nothing(yaml: dict[str, Any]) -> None:
    settings = resolved(yaml, RegisterOptions(initial_workers=1))
    assert (settings.min_workers, settings.max_workers) == (1, 1)


def test_the_caller_wins_over_the_model_config_for_batches_and_timeouts() -> None:
    yaml = {"batchSize": 8, "maxBatchDelay": 50, "responseTimeout": 7, "startupTimeout": 8}
    options = RegisterOptions(batch_size=4, max_batch_delay=0.0, response_timeout=5, startup_timeout=6)
    settings = resolved(yaml, options, {"batchSize": 2})
    assert (settings.batch_size, settings.max_batch_delay) == (4, 0.0)
    assert (settings.response_timeout, settings.startup_timeout) == (5, 6)


def test_the_model_config_wins_over_the_models_key_and_that_over_the_defaults() -> None:
    preset = {"batchSize": "2", "maxBatchDelay": 30, "responseTimeout": 9, "minWorkers": 5}
    settings = resolved({"batchSize": 8}, preset=preset, automatic_workers=1, default_response_timeout=99)
    assert (settings.batch_size, settings.max_batch_delay, settings.response_timeout) == (8, 0.03, 9)
    assert settings.min_workers == 5


@pytest.mark.parametrize("value", [0, -1, "many", None, [3]])
def test_what_is_no_positive_number_in_the_models_key_is_no_setting(value: object) -> None:
    assert resolved(preset={"batchSize": value}).batch_size == 1


def test_a_delay_of_zero_in_the_model_config_means_unset() -> None:
    assert resolved({"maxBatchDelay": 0}).max_batch_delay == 0.1


def test_the_models_own_queue_policy_and_deadline_win_over_the_servers() -> None:
    yaml = {"jobQueueSize": 7, "batchingPolicy": "fill", "clientTimeoutInMills": 1500, "maxRetryTimeoutInSec": 0}
    settings = resolved(yaml, job_queue_size=50)
    assert (settings.queue_size, settings.batching_policy, settings.client_timeout) == (7, "fill", 1.5)
    assert settings.retry_window == 0


@pytest.mark.parametrize(
    ("yaml", "server", "expected"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"isolateBatchErrors": False}, True, False),
        ({"isolateBatchErrors": True}, False, True),
        ({"isolateBatchErrors": True, "sequenceBatching": True}, True, False),
        ({"continuousBatching": True}, True, False),
    ],
)
def test_batches_are_isolated_unless_somebody_says_no_or_the_model_keeps_state(
    yaml: dict[str, Any], server: bool, expected: bool
) -> None:
    assert resolved(yaml, isolate_batch_errors=server).isolate_batch_errors is expected


def test_workers_come_and_go_as_the_model_config_says_or_else_the_server() -> None:
    assert (resolved().autoscale, resolved().idle_timeout) == (True, 60.0)
    settings = resolved(autoscale=False, worker_idle_timeout=7.0)
    assert (settings.autoscale, settings.idle_timeout) == (False, 7.0)
    settings = resolved({"autoscale": True, "workerIdleTimeoutSec": 9}, autoscale=False, worker_idle_timeout=7.0)
    assert (settings.autoscale, settings.idle_timeout) == (True, 9.0)


def test_a_minimum_of_0_is_1_where_nothing_else_would_start_a_worker() -> None:
    yaml = {"minWorkers": 0, "maxWorkers": 2}
    assert (resolved(yaml).min_workers, resolved(yaml).max_workers) == (0, 2)
    assert resolved(yaml, autoscale=False).min_workers == 1
    assert resolved({"minWorkers": 0, "maxWorkers": 0}).max_workers == 0


def test_workers_that_keep_sequences_do_not_come_and_go() -> None:
    assert not resolved({"sequenceBatching": True, "autoscale": True}).autoscale
