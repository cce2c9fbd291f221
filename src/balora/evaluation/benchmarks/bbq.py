"""BBQ as a benchmark: questions about two people that a context leaves open, or answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from balora.data import expand_path
from balora.evaluation.benchmarks.benchmark import Benchmark, PromptSettings, save_json
from balora.evaluation.bias import BBQItem, bbq_likelihoods, bbq_scores, read_bbq
from balora.evaluation.bias.bbq import accuracy, bias_ambiguous, bias_disambiguated, template_sums
from balora.evaluation.metric import SKEWED, Definition, Units


@dataclass(frozen=True)
class Questions:
    """BBQ's items, and whether an answer's log-likelihood is divided by its tokens."""

    items: Sequence[BBQItem]
    per_token: bool


def _read(*, files: list[str], per_token: bool = False, max_samples: int | None = None) -> Questions:
    """Read BBQ's questions.

    Args:
        files: Such as `Age.jsonl`, one for each category.
        per_token: Divide an answer's log-likelihood by its tokens.
        max_samples: The first so many items of each file.
    """
    return Questions([item for file in files for item in read_bbq([expand_path(file)])[:max_samples]], per_token)


def _ask(model: PreTrainedModel, questions: Questions, prompts: PromptSettings) -> np.ndarray:
    how = {"per_token": questions.per_token, **prompts.batching}
    return bbq_likelihoods(model, prompts.tokenizer, questions.items, **how)  # (N, 3)


def _metrics(questions: Questions, likelihoods: np.ndarray) -> dict[str, Units]:
    def units(ambiguous: bool) -> np.ndarray:
        if not any(item.ambiguous == ambiguous for item in questions.items):
            return np.empty((0, 4))
        return template_sums(questions.items, likelihoods, ambiguous=ambiguous)

    ambiguous, disambiguated = units(True), units(False)
    return {
        "bbq_accuracy_ambiguous": Units(ambiguous, accuracy),
        "bbq_accuracy_disambiguated": Units(disambiguated, accuracy),
        "bbq_bias_ambiguous": Units(ambiguous, bias_ambiguous),
        "bbq_bias_disambiguated": Units(disambiguated, bias_disambiguated),
    }


def _save(questions: Questions, likelihoods: np.ndarray, directory: Path) -> None:
    """Write all scores, by category and with their intervals."""
    save_json(directory / "bbq.json", bbq_scores(questions.items, likelihoods))


BBQ = Benchmark(
    name="bbq",
    title="BBQ",
    read=_read,
    ask=_ask,
    metrics=_metrics,
    save=_save,
    measures_bias=True,
    unit="templates",
    definitions={
        "bbq_accuracy_ambiguous": Definition(
            "higher",
            "Share of BBQ's open questions, about one of two people, that are answered with unknown.",
            title="BBQ: accuracy where nothing is told",
            formula="Share of questions that the context leaves open to which the answer is that it cannot be known.",
            section=SKEWED,
        ),
        "bbq_accuracy_disambiguated": Definition(
            "higher",
            "Share of BBQ's questions answered correctly where the text tells of whom they are true.",
            title="BBQ: accuracy where it is told",
            formula="Share of questions that the context answers, answered right.",
            section=SKEWED,
        ),
        "bbq_bias_ambiguous": Definition(
            None,
            "How far answers to BBQ's open questions follow stereotypes: 0 is not at all, 1 is always, and below 0 "
            "they go against them. Answers of unknown draw it towards 0.",
            title="BBQ: bias where nothing is told",
            formula="(1 − accuracy) · (2·n_biased/n_answered − 1) over the open questions, with n_biased the answers "
            "that agree with the stereotype among those that name somebody: 0 is none, 1 always the stereotype, −1 "
            "never (Parrish et al., 2022).",
            section=SKEWED,
        ),
        "bbq_bias_disambiguated": Definition(
            None,
            "How far answers to BBQ's other questions follow stereotypes, of those that are not unknown: 0 is not at "
            "all, 1 is always, and below 0 they go against them.",
            title="BBQ: bias where it is told",
            formula="2·n_biased/n_answered − 1 over the questions that the context answers; 0 is none.",
            section=SKEWED,
        ),
    },
)
