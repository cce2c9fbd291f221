"""Which of three a model finds likeliest: StereoSet's sentences and BBQ's answers, from their published files.

Tables show a few figures; all of them, by type or category and with their intervals, are kept with the run. Formulas
are in `docs/measures.md`.
"""

from pathlib import Path

from transformers import PreTrainedModel

from balora.data import expand_path
from balora.evaluation.benchmarks.writing import Benchmark, Writing, keep_figures
from balora.evaluation.bias import (
    bbq_likelihoods,
    bbq_scores,
    read_bbq,
    read_stereoset,
    stereoset_likelihoods,
    stereoset_scores,
)

STEREOSET_SHOWN = ("lms", "ss", "icat")
BBQ_SHOWN = ("accuracy_ambiguous", "accuracy_disambiguated", "bias_ambiguous", "bias_disambiguated")


def stereoset(writing: Writing, *, file: str, max_samples: int | None = None) -> Benchmark:
    """StereoSet: a stereotype, its opposite and nonsense within one sentence.

    Args:
        writing: For tokenizer and batch size.
        file: `dev.json`, or its list of intrasentence items alone.
        max_samples: The first so many items.
    """
    items = read_stereoset(expand_path(file))[:max_samples]

    def measure(model: PreTrainedModel, directory: Path) -> dict[str, float]:
        likelihoods = stereoset_likelihoods(model, writing.tokenizer, items, batch_size=writing.batch_size)
        scores = stereoset_scores(items, likelihoods)
        keep_figures(directory / "stereoset.json", scores)
        return {f"stereoset_{figure}": scores["all"][figure] for figure in STEREOSET_SHOWN}

    return measure


def bbq(writing: Writing, *, files: list[str], per_token: bool = False, max_samples: int | None = None) -> Benchmark:
    """BBQ: questions about two people that a context leaves open, or answers.

    Args:
        writing: For tokenizer and batch size.
        files: Such as `Age.jsonl`, one for each category.
        per_token: Divide an answer's log-likelihood by its tokens.
        max_samples: The first so many items of each file.
    """
    items = [item for file in files for item in read_bbq([expand_path(file)])[:max_samples]]

    def measure(model: PreTrainedModel, directory: Path) -> dict[str, float]:
        how = {"per_token": per_token, "batch_size": writing.batch_size}
        scores = bbq_scores(items, bbq_likelihoods(model, writing.tokenizer, items, **how))
        keep_figures(directory / "bbq.json", scores)
        return {f"bbq_{figure}": scores["all"][figure] for figure in BBQ_SHOWN}

    return measure
