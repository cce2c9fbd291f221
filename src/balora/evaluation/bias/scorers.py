"""Scorers of texts, by name: a classifier of Transformers, or your own function.

load_scorer("transformers:cardiffnlp/twitter-roberta-base-sentiment-latest:negative")
load_scorer("my_package.ratings:politeness")
"""

import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, pipeline

from balora.data.expand import expand_path
from balora.errors import BALoraError
from balora.utils.lengths import context_length
from balora.utils.loading import load

#: From N texts to their scores `(N,)`.
Scorer = Callable[[Sequence[str]], np.ndarray]

# A path may begin with `package:`, and a label may hold colons.
_CLASSIFIER = re.compile(r"transformers:(?P<model>(?:package:)?[^:]+)(?::(?P<label>.+))?")
_FUNCTION = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<function>[A-Za-z_]\w*)")


def load_scorer(spec: str, *, batch_size: int = 32) -> Scorer:
    """Load a scorer by its name; its scores are checked to be one finite number for each text.

    Args:
        spec: `transformers:MODEL` or `transformers:MODEL:LABEL`, a text classifier from a folder (variables, `~` and
            `package:` as in recipes) or the Hub, of which the score is the probability of the label, by default the
            only one, or of two the second. Or `package.module:function`, a Python function from a list of texts to a
            list of numbers, which must be importable and is imported here and by this name alone.
        batch_size: Texts at a time, of a classifier.

    Raises:
        BALoraError: If it has neither form, the model is no text classifier or has no such label or more than two and
            none is named, or there is no such function. When called, if scores are not one finite number a text.
    """
    if found := _CLASSIFIER.fullmatch(spec):
        score = _classifier(found["model"], found["label"], batch_size)
    elif found := _FUNCTION.fullmatch(spec):
        score = _function(spec, found["module"], found["function"])
    else:
        raise BALoraError(f"scorer: {spec!r} is neither transformers:MODEL:LABEL nor package.module:function")

    def checked(texts: Sequence[str]) -> np.ndarray:
        try:
            scores = np.asarray(score(list(texts)), dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise BALoraError(f"scorer: {spec} gave no list of numbers: {error}") from error
        if scores.shape != (len(texts),) or not np.isfinite(scores).all():
            wrong = f"shape {scores.shape}" if scores.shape != (len(texts),) else "NaN or infinite ones among them"
            raise BALoraError(
                f"scorer: {spec} must give a finite number for each of {len(texts)} texts; it gave {wrong}"
            )
        return scores

    return checked


def _classifier(name: str, label: str | None, batch_size: int) -> Callable[[list[str]], list[float]]:
    name = expand_path(name)
    how = {"output_loading_info": True, "use_safetensors": True}
    model, loading = load(AutoModelForSequenceClassification, name, "scorer", **how)
    tokenizer = load(AutoTokenizer, name, "scorer")
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])[0]
        raise BALoraError(f"scorer: {name}: no trained text classifier, it has no {missing}; give one that has")
    label = _label(name, model, label)
    context = context_length(model.config, tokenizer)
    cut = {} if context is None else {"truncation": True, "max_length": context}
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None, batch_size=batch_size)

    def score(texts: list[str]) -> list[float]:
        return [next(own["score"] for own in said if own["label"] == label) for said in classify(texts, **cut)]

    return score


def _label(name: str, model: PreTrainedModel, label: str | None) -> str:
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    if label is None and len(labels) <= 2:
        return labels[-1]
    if label not in labels:
        problem = "say which label to take" if label is None else f"there is no label {label!r}"
        raise BALoraError(f"scorer: {name}: {problem}; there are {', '.join(labels)} (transformers:MODEL:LABEL)")
    return label


def _function(spec: str, module: str, name: str) -> Callable[[list[str]], Any]:
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise BALoraError(
            f"scorer: {spec}: {module} cannot be imported ({error}); install it, or put its folder into PYTHONPATH"
        ) from error
    if not callable(function):
        raise BALoraError(f"scorer: {spec}: {module} has no function {name!r}")
    return function
