"""What a model is judged on: a function for each benchmark, with its settings as keyword arguments.

It is called before anything is trained: it reads the problems, puts them as the training rows were put, and holds them
against the model's context. What it returns takes a model, keeps what that wrote, and returns figures.
"""

from collections.abc import Callable

from balora.evaluation.benchmarks.associations import bbq, stereoset
from balora.evaluation.benchmarks.classifiers import Classifying, hatecheck
from balora.evaluation.benchmarks.conversation import mt_bench
from balora.evaluation.benchmarks.language import harness, wikitext2
from balora.evaluation.benchmarks.leanings import continuations, counterfactual, counterfactual_classes
from balora.evaluation.benchmarks.programs import humaneval, mbpp
from balora.evaluation.benchmarks.solutions import gsm8k, math
from balora.evaluation.benchmarks.stereotypes import crows_pairs, winobias, winogender
from balora.evaluation.benchmarks.writing import Benchmark, Writing

__all__ = [
    "BENCHMARKS",
    "BIAS",
    "CLASSIFIER_BENCHMARKS",
    "Benchmark",
    "Classifying",
    "Writing",
    "bbq",
    "continuations",
    "counterfactual",
    "counterfactual_classes",
    "crows_pairs",
    "gsm8k",
    "harness",
    "hatecheck",
    "humaneval",
    "math",
    "mbpp",
    "mt_bench",
    "stereoset",
    "wikitext2",
    "winobias",
    "winogender",
]

#: Those that measure bias.
BIAS = (
    "crows_pairs",
    "winobias",
    "winogender",
    "stereoset",
    "bbq",
    "counterfactual",
    "continuations",
    "hatecheck",
)

#: Of causal language models.
BENCHMARKS: dict[str, Callable[..., Benchmark]] = {
    "gsm8k": gsm8k,
    "math": math,
    "humaneval": humaneval,
    "mbpp": mbpp,
    "mt_bench": mt_bench,
    "wikitext2": wikitext2,
    "crows_pairs": crows_pairs,
    "winobias": winobias,
    "winogender": winogender,
    "counterfactual": counterfactual,
    "continuations": continuations,
    "stereoset": stereoset,
    "bbq": bbq,
    "harness": harness,
}

#: Of classifiers.
CLASSIFIER_BENCHMARKS: dict[str, Callable[..., Benchmark]] = {
    "hatecheck": hatecheck,
    "counterfactual": counterfactual_classes,
}
