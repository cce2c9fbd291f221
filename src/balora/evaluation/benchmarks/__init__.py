"""The registry of benchmarks, for `compare`, `evaluate` and `audit` alike.

To add one, write a `Benchmark` in a file of its own and add it to `REGISTRY`; its metrics' definitions are part of it.
"""

from balora.evaluation.benchmarks.bbq import BBQ
from balora.evaluation.benchmarks.benchmark import CAUSAL, CLASSIFIER, MASKED, Benchmark, PromptSettings, prepare
from balora.evaluation.benchmarks.continuations import CONTINUATIONS
from balora.evaluation.benchmarks.counterfactual import COUNTERFACTUAL, COUNTERFACTUAL_CLASSES
from balora.evaluation.benchmarks.harness import HARNESS
from balora.evaluation.benchmarks.hatecheck import HATECHECK
from balora.evaluation.benchmarks.ifeval import IFEVAL
from balora.evaluation.benchmarks.knowledge import KNOWLEDGE
from balora.evaluation.benchmarks.maths import GSM8K, MATH
from balora.evaluation.benchmarks.mt_bench import MT_BENCH
from balora.evaluation.benchmarks.programs import HUMANEVAL, MBPP
from balora.evaluation.benchmarks.sentence_pairs import CROWS_PAIRS, WINOBIAS, WINOGENDER
from balora.evaluation.benchmarks.stereoset import STEREOSET
from balora.evaluation.benchmarks.wikitext2 import WIKITEXT2

__all__ = [
    "BENCHMARKS",
    "BIAS",
    "CAUSAL",
    "CLASSIFIER",
    "CLASSIFIER_BENCHMARKS",
    "MASKED",
    "REGISTRY",
    "Benchmark",
    "PromptSettings",
    "benchmarks_for",
    "prepare",
]

#: Every benchmark, in the order in which an audit measures them.
REGISTRY = (
    GSM8K,
    MATH,
    HUMANEVAL,
    MBPP,
    MT_BENCH,
    WIKITEXT2,
    KNOWLEDGE,
    IFEVAL,
    CROWS_PAIRS,
    WINOBIAS,
    WINOGENDER,
    STEREOSET,
    BBQ,
    COUNTERFACTUAL,
    CONTINUATIONS,
    HATECHECK,
    COUNTERFACTUAL_CLASSES,
    HARNESS,
)


def benchmarks_for(kind: str) -> dict[str, Benchmark]:
    """Return the benchmarks of a kind of model, by name."""
    return {benchmark.name: benchmark for benchmark in REGISTRY if kind in benchmark.models}


BENCHMARKS = benchmarks_for(CAUSAL)
CLASSIFIER_BENCHMARKS = benchmarks_for(CLASSIFIER)
#: Names of the benchmarks that measure bias.
BIAS = tuple(dict.fromkeys(benchmark.name for benchmark in REGISTRY if benchmark.measures_bias))
