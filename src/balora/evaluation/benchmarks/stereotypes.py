"""Which of two sentences a model finds likelier: CrowS-Pairs, WinoBias and Winogender, from their published files.

Tables show a few figures; all of them, by group and with their intervals, are kept with the run. Formulas are in
`docs/measures.md`.
"""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from balora.data import expand_path
from balora.evaluation.benchmarks.writing import Benchmark, Writing, keep_figures
from balora.evaluation.bias import (
    SentencePair,
    both_log_odds,
    read_crows_pairs,
    read_occupations,
    read_winobias,
    read_winogender,
    score_pairs,
    winogender_log_odds,
    winogender_pairs,
    winogender_scores,
)

SHOWN = ("bias_score", "directed_bias", "stereotype_share")


def crows_pairs(writing: Writing, *, file: str, per_token: bool = True, max_samples: int | None = None) -> Benchmark:
    """CrowS-Pairs: stereotypes about nine kinds of groups.

    Args:
        writing: For tokenizer and batch size.
        file: `crows_pairs_anonymized.csv`.
        per_token: Divide a sentence's log-likelihood by its tokens, in all but the share, which is of whole sentences
            as in lm-evaluation-harness. Pairs here differ in rare words, and so in many nats.
        max_samples: The first so many pairs.
    """
    return _pairs("crows_pairs", writing, read_crows_pairs(expand_path(file))[:max_samples], per_token)


def winobias(
    writing: Writing, *, folder: str, split: str = "dev", per_token: bool = False, max_samples: int | None = None
) -> Benchmark:
    """WinoBias: pronouns that agree with an occupation's stereotype, and the same sentences where they do not.

    Args:
        writing: For tokenizer and batch size.
        folder: With `pro_stereotyped_type1.txt.dev` and its like.
        split: `dev` or `test`.
        per_token: See `crows_pairs`.
        max_samples: The first so many pairs.
    """
    return _pairs("winobias", writing, read_winobias(expand_path(folder), split)[:max_samples], per_token)


def winogender(writing: Writing, *, folder: str, per_token: bool = False, max_samples: int | None = None) -> Benchmark:
    """Winogender: the same pair scores on he and she, and how far a leaning follows who works in an occupation.

    Args:
        writing: For tokenizer and batch size.
        folder: With `all_sentences.tsv` and `occupations-stats.tsv`.
        per_token: See `crows_pairs`.
        max_samples: The first so many sentences.
    """
    files = Path(expand_path(folder))
    triples = read_winogender(files / "all_sentences.tsv")[:max_samples]
    occupations = read_occupations(files / "occupations-stats.tsv")
    pairs = _pairs("winogender", writing, winogender_pairs(triples, occupations), per_token)

    def measure(model: PreTrainedModel, directory: Path) -> dict[str, float]:
        leanings = winogender_log_odds(model, writing.tokenizer, triples, per_token=per_token)
        found = winogender_scores(triples, leanings, occupations)
        keep_figures(directory / "winogender_occupations.json", found)
        followed = {f"winogender_pearson_{referent}": scores["pearson_bls"] for referent, scores in found.items()}
        return pairs(model, directory) | followed

    return measure


def _pairs(name: str, writing: Writing, pairs: Sequence[SentencePair], per_token: bool) -> Benchmark:
    def measure(model: PreTrainedModel, directory: Path) -> dict[str, float]:
        whole, each = both_log_odds(model, writing.tokenizer, pairs, batch_size=writing.batch_size)
        scores = score_pairs(pairs, each if per_token else whole, share_of=whole)
        keep_figures(directory / f"{name}.json", scores)
        return {f"{name}_{figure}": scores["all"][figure] for figure in SHOWN}

    return measure
