from __future__ import annotations

import importlib

import pytest


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("caching_metric", "CachingMetric"),
        ("dimension", "Dimension"),
        ("metric", "Metric"),
        ("metric_abstract", "MetricAbstract"),
        ("metric_cache_abstract", "MetricCacheAbstract"),
        ("metric_cache_errors", "GeneralMetricsCacheError"),
        ("metric_cache_errors", "MetricsCachePyYamlError"),
        ("metric_cache_yaml_impl", "MetricsCacheYamlImpl"),
        ("metric_encoder", "MetricEncoder"),
        ("metric_type_enum", "MetricTypes"),
        ("metrics_store", "MetricsStore"),
        ("unit", "Units"),
    ],
)
def test_names_of_handlers_are_where_they_were(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(f"ts.metrics.{module}"), name)
