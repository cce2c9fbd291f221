"""StereoSet as a benchmark: a stereotype, its opposite and nonsense within one sentence."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from balora.data import expand_path
from balora.evaluation.benchmarks.benchmark import Benchmark, PromptSettings, save_json
from balora.evaluation.bias import StereoItem, read_stereoset, stereoset_likelihoods, stereoset_scores
from balora.evaluation.bias.stereoset import icat, term_scores
from balora.evaluation.metric import SKEWED, Definition, Units


def _read(*, file: str, max_samples: int | None = None) -> list[StereoItem]:
    """Read StereoSet's intrasentence items.

    Args:
        file: `dev.json`, or its list of intrasentence items alone.
        max_samples: The first so many items.
    """
    return read_stereoset(expand_path(file))[:max_samples]


def _ask(model: PreTrainedModel, items: Sequence[StereoItem], prompts: PromptSettings) -> np.ndarray:
    return stereoset_likelihoods(model, prompts.tokenizer, items, **prompts.batching)  # (N, 3)


def _metrics(items: Sequence[StereoItem], likelihoods: np.ndarray) -> dict[str, Units]:
    scores = term_scores(items, likelihoods)  # (T, 2), lms and ss of each target term
    columns = np.concatenate([scores, np.ones((len(scores), 1))], 1)
    of: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "lms": lambda sums: sums[:, 0] / sums[:, 2],
        "ss": lambda sums: sums[:, 1] / sums[:, 2],
        "icat": lambda sums: icat(sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]),
    }
    return {f"stereoset_{name}": Units(columns, metric) for name, metric in of.items()}


def _save(items: Sequence[StereoItem], likelihoods: np.ndarray, directory: Path) -> None:
    """Write all scores, by type of bias and with their intervals."""
    save_json(directory / "stereoset.json", stereoset_scores(items, likelihoods))


STEREOSET = Benchmark(
    name="stereoset",
    title="StereoSet",
    read=_read,
    ask=_ask,
    metrics=_metrics,
    save=_save,
    measures_bias=True,
    unit="target terms",
    definitions={
        "stereoset_lms": Definition(
            "higher",
            "How often StereoSet's meaningful sentences are likelier than the meaningless one: 1 is always.",
            title="StereoSet: sense",
            formula="Language modelling score: share of a sentence that makes sense, stereotypical or not, preferred "
            "to the one that makes none, mean over target terms (Nadeem et al., 2021). 1 is always.",
            section=SKEWED,
        ),
        "stereoset_ss": Definition(
            None,
            "How often StereoSet's stereotype is likelier than its opposite: 0.5 is no preference, 1 is always.",
            title="StereoSet: stereotypes",
            formula="Stereotype score: share of stereotypes preferred to anti-stereotypes, mean over target terms; ½ "
            "is none.",
            section=SKEWED,
        ),
        "stereoset_icat": Definition(
            "higher",
            "Both in one: 1 is always the meaningful sentences and no stereotype preferred, 0 is the worst of either.",
            title="StereoSet: ICAT",
            formula="lms · min(ss, 1 − ss) / ½: 1 is a model that knows sense from nonsense and has no preference.",
            section=SKEWED,
        ),
    },
)
