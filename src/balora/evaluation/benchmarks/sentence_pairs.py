"""CrowS-Pairs, WinoBias and Winogender as benchmarks: which of two sentences a model finds likelier.

Formulas are in `docs/measures.md`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from balora.data import expand_path
from balora.errors import BALoraError
from balora.evaluation.benchmarks.benchmark import CAUSAL, MASKED, Benchmark, PromptSettings, save_json
from balora.evaluation.bias import (
    SentencePair,
    Triple,
    both_log_odds,
    masked_pair_log_odds,
    preference,
    read_crows_pairs,
    read_occupations,
    read_winobias,
    read_winogender,
    score_pairs,
    winogender_pairs,
    winogender_scores,
)
from balora.evaluation.bias.winogender import leaning_by_occupation
from balora.evaluation.metric import Definition, Units, mean

WINOBIAS_SPLITS = {"dev": ("dev",), "test": ("test",), "both": ("dev", "test")}
#: Metrics of every benchmark of pairs, which an audit lists under these names.
SHARED = ("bias_score", "directed_bias", "stereotype_share")


@dataclass(frozen=True)
class Pairs:
    """Sentence pairs, and whether a causal model's log-likelihoods are divided by the sentences' tokens."""

    pairs: Sequence[SentencePair]
    per_token: bool


@dataclass(frozen=True)
class Triples(Pairs):
    """Winogender's pairs, with the triples that they are of and the percentages of women by occupation."""

    triples: Sequence[Triple]
    occupations: Mapping[str, Mapping[str, float]]

    def leanings(self, log_odds: np.ndarray) -> np.ndarray:
        """Return log P(she) − log P(he) of each triple, `(N,)`, from the log-odds of its stereotypical pronoun."""
        both = zip(self.pairs, self.triples, strict=True)
        return np.where(
            [pair.stereotypical == triple.sentences["female"] for pair, triple in both], log_odds, -log_odds
        )


def _read_crows_pairs(*, file: str, per_token: bool = True, max_samples: int | None = None) -> Pairs:
    """Read CrowS-Pairs, stereotypes about nine kinds of groups.

    Args:
        file: `crows_pairs_anonymized.csv`.
        per_token: Divide a sentence's log-likelihood by its tokens, in all but the share, which is of whole sentences
            as in lm-evaluation-harness. Pairs here differ in rare words, and so in many nats.
        max_samples: The first so many pairs.
    """
    return Pairs(read_crows_pairs(expand_path(file))[:max_samples], per_token)


def _read_winobias(
    *, folder: str, split: str = "dev", per_token: bool = False, max_samples: int | None = None
) -> Pairs:
    """Read WinoBias, pronouns that agree with an occupation's stereotype, and those that do not.

    Args:
        folder: With `pro_stereotyped_type1.txt.dev` and its like.
        split: `dev`, `test` or `both`.
        per_token: See `crows_pairs`.
        max_samples: The first so many pairs.
    """
    if split not in WINOBIAS_SPLITS:
        raise BALoraError(f"split: {split!r} is unknown; use one of {', '.join(WINOBIAS_SPLITS)}")
    pairs = [pair for own in WINOBIAS_SPLITS[split] for pair in read_winobias(expand_path(folder), own)]
    return Pairs(pairs[:max_samples], per_token)


def _read_winogender(*, folder: str, per_token: bool = False, max_samples: int | None = None) -> Triples:
    """Read Winogender, one sentence with he, she and they, and who works in the occupation.

    Args:
        folder: With `all_sentences.tsv` and `occupations-stats.tsv`.
        per_token: See `crows_pairs`.
        max_samples: The first so many sentences.
    """
    files = Path(expand_path(folder))
    triples = read_winogender(files / "all_sentences.tsv")[:max_samples]
    occupations = read_occupations(files / "occupations-stats.tsv")
    return Triples(winogender_pairs(triples, occupations), per_token, triples, occupations)


def _ask(model: PreTrainedModel, problems: Pairs, prompts: PromptSettings) -> np.ndarray:
    """Return log-odds of whole sentences and those that are scored, `(N, 2)`.

    A masked model's are pseudo-log-likelihoods of what the pair shares, as CrowS-Pairs has it.
    """
    if prompts.kind == MASKED:
        odds = masked_pair_log_odds(model, prompts.tokenizer, problems.pairs, **prompts.batching)
        return np.stack([odds, odds], 1)
    whole, each = both_log_odds(model, prompts.tokenizer, problems.pairs, **prompts.batching)
    return np.stack([whole, each if problems.per_token else whole], 1)


def _pair_metrics(name: str, log_odds: np.ndarray) -> dict[str, Units]:
    return {
        f"{name}_bias_score": mean(np.abs(preference(log_odds[:, 1]))),
        f"{name}_directed_bias": mean(preference(log_odds[:, 1])),
        f"{name}_stereotype_share": mean((1 + np.sign(log_odds[:, 0])) / 2),
    }


def _save_pairs(name: str, problems: Pairs, log_odds: np.ndarray, directory: Path) -> None:
    """Write all scores, by group and with their intervals."""
    scores = score_pairs(problems.pairs, log_odds[:, 1], share_of=log_odds[:, 0])
    save_json(directory / f"{name}.json", scores)


def _pair_definitions(name: str) -> dict[str, Definition]:
    return {
        f"{name}_bias_score": Definition(
            "lower",
            "How much the choice between two sentences about different people changes when they are exchanged: 0 is "
            "not at all, 1 is always.",
        )
    }


def _audit_name(name: str) -> str | None:
    """Return the name that all benchmarks of pairs share."""
    return next((shared for shared in SHARED if name.endswith(f"_{shared}")), None)


def _winogender_metrics(problems: Triples, log_odds: np.ndarray) -> dict[str, Units]:
    """Return the metrics of pairs, and the correlation of leanings with percentages of women, over occupations."""
    found = _pair_metrics("winogender", log_odds)
    leanings = problems.leanings(log_odds[:, 1])
    for referent in sorted({triple.referent for triple in problems.triples}):
        means = leaning_by_occupation(problems.triples, leanings, referent)
        women = np.array([problems.occupations[name]["bls"] for name in means])
        found[f"winogender_pearson_{referent}"] = _correlation(np.array([*means.values()]), women)
    return found


def _correlation(x: np.ndarray, y: np.ndarray) -> Units:
    """Return units whose metric is Pearson's correlation of x and y, `(N,)`, 0 where one of them is constant."""
    x, y = (_standardized(values) for values in (x, y))
    return Units(np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1), _pearson)


def _standardized(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() if np.ptp(values) else 1)


def _pearson(sums: np.ndarray) -> np.ndarray:
    n, x, y, xx, yy, xy = sums.T
    variances = (xx / n - (x / n) ** 2, yy / n - (y / n) ** 2)
    constant = np.minimum(*variances) < 1e-12  # of standardized values: rounding alone
    return np.where(constant, 0.0, (xy / n - x * y / n**2) / np.sqrt(np.where(constant, 1.0, np.prod(variances, 0))))


def _save_winogender(problems: Triples, log_odds: np.ndarray, directory: Path) -> None:
    _save_pairs("winogender", problems, log_odds, directory)
    scores = winogender_scores(problems.triples, problems.leanings(log_odds[:, 1]), problems.occupations)
    save_json(directory / "winogender_occupations.json", scores)


CROWS_PAIRS = Benchmark(
    name="crows_pairs",
    title="CrowS-Pairs",
    read=_read_crows_pairs,
    ask=_ask,
    metrics=lambda _, log_odds: _pair_metrics("crows_pairs", log_odds),
    save=partial(_save_pairs, "crows_pairs"),
    definitions=_pair_definitions("crows_pairs"),
    models=(CAUSAL, MASKED),
    measures_bias=True,
    unit="pairs",
    audit_name=_audit_name,
)

WINOBIAS = Benchmark(
    name="winobias",
    title="WinoBias",
    read=_read_winobias,
    ask=_ask,
    metrics=lambda _, log_odds: _pair_metrics("winobias", log_odds),
    save=partial(_save_pairs, "winobias"),
    definitions=_pair_definitions("winobias"),
    models=(CAUSAL, MASKED),
    measures_bias=True,
    unit="pairs",
    audit_name=_audit_name,
)

WINOGENDER = Benchmark(
    name="winogender",
    title="Winogender",
    read=_read_winogender,
    ask=_ask,
    metrics=_winogender_metrics,
    save=_save_winogender,
    definitions=_pair_definitions("winogender"),
    models=(CAUSAL, MASKED),
    measures_bias=True,
    unit="pairs",
    audit_name=_audit_name,
)
