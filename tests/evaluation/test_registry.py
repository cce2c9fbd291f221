"""The registry of benchmarks: entries are complete, and names are unique for each kind of model."""

import inspect
from collections import Counter

import pytest

from balora.evaluation.benchmarks import BENCHMARKS, BIAS, CAUSAL, CLASSIFIER, MASKED, REGISTRY, benchmarks_for
from balora.evaluation.benchmarks.benchmark import GIVEN
from balora.report.glossary import GLOSSARY


def test_a_name_is_one_benchmark_of_a_kind_of_model():
    for kind in (CAUSAL, CLASSIFIER, MASKED):
        names = Counter(benchmark.name for benchmark in REGISTRY if kind in benchmark.models)
        assert set(names.values()) == {1}
        assert set(benchmarks_for(kind)) == set(names)
    assert {*BENCHMARKS} >= {*BIAS} - {"hatecheck"}
    assert {*benchmarks_for(MASKED)} == {"crows_pairs", "winobias", "winogender"}


@pytest.mark.parametrize("benchmark", REGISTRY, ids=lambda own: f"{own.name} of a {own.models[0]}")
def test_settings_are_typed_keyword_arguments_and_metrics_are_in_the_glossary(benchmark):
    for name, parameter in inspect.signature(benchmark.read).parameters.items():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.annotation is not parameter.empty
        assert name in GIVEN or f"{name}:" in benchmark.read.__doc__ or benchmark.name == "harness"
    assert all(GLOSSARY[name] is definition for name, definition in benchmark.definitions.items())
