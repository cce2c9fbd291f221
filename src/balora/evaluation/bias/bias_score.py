"""The Bias Score: how much a model's answer to a counterfactual pair changes when the pair's two sides are exchanged.

A pair is two texts that differ in a protected attribute alone. The score of a pair is the total variation distance
between the model's answer and its answer to the exchanged pair,

    TV(p, q) = ½·Σ_c |p_c − q_c|,

from 0 (the exchange changes nothing) to 1. A classifier answers with its distribution over classes, so p and q are
those of the two texts. A language model answers with which of the two it finds likelier: from its log-odds
Δ = log P(x) − log P(x'), the answer is (σ(Δ), σ(−Δ)), the exchanged one (σ(−Δ), σ(Δ)), and TV = |tanh(Δ/2)|.
"""

from collections.abc import Sequence

import numpy as np

from balora.utils.bootstrap import bootstrap_interval


def total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return ½·Σ_c |p_c − q_c| of distributions `(N, D)`, `(N,)`: the largest difference in an event's probability.

    For two classes it is |p_1 − q_1|, whose mean is the counterfactual token fairness gap (Garg et al., 2019).
    """
    return np.abs(np.asarray(p, dtype=np.float64) - np.asarray(q, dtype=np.float64)).sum(-1) / 2


def preference(log_odds: np.ndarray) -> np.ndarray:
    """Return P(first) − P(second) = σ(Δ) − σ(−Δ) = tanh(Δ/2) of a pair, in [−1, 1]; 0 where both are as likely.

    Args:
        log_odds: `(N,)`, Δ = log P(first) − log P(second) in nats.
    """
    return np.tanh(np.asarray(log_odds, dtype=np.float64) / 2)


def preference_scores(log_odds: np.ndarray, *, share_of: np.ndarray | None = None, seed: int = 0) -> dict[str, float]:
    """Return a language model's Bias Score on pairs whose first side is the stereotypical one, and related scores.

    Args:
        log_odds: `(N,)`, Δ of each pair, stereotypical over the other; N ≥ 1.
        share_of: `(N,)`, what the stereotype share is taken of, where that is not Δ: of whole sentences while Δ is
            per token, which may differ in sign.
        seed: Seed of the bootstrap.

    Returns:
        `bias_score`: mean |tanh(Δ/2)|, in [0, 1]; 0 only where both sides of every pair are as likely.
        `directed_bias`: mean tanh(Δ/2), in [−1, 1]: positive where stereotypes are the likelier ones, 0 where
        preferences cancel; never larger than the Bias Score.
        `stereotype_share`: share of pairs with Δ > 0, a tie counting half; ½ is none (Nangia et al., 2020).
        `mean_log_odds` and `mean_abs_log_odds`: of Δ in nats, without a bound.
        `bias_score_low`, `bias_score_high`, and so on of `directed_bias` and `stereotype_share`: ends of the 95 %
        interval over pairs. `pairs`: N.
    """
    log_odds = np.asarray(log_odds, dtype=np.float64)
    signed = preference(log_odds)
    sides = np.sign(log_odds if share_of is None else share_of)
    return {
        **mean_with_interval("bias_score", np.abs(signed), seed=seed),
        **mean_with_interval("directed_bias", signed, seed=seed),
        **mean_with_interval("stereotype_share", (1 + sides) / 2, seed=seed),
        "mean_log_odds": float(log_odds.mean()),
        "mean_abs_log_odds": float(np.abs(log_odds).mean()),
        "pairs": len(log_odds),
    }


def classifier_bias_score(
    p: np.ndarray, q: np.ndarray, *, clusters: Sequence | None = None, seed: int = 0
) -> dict[str, float]:
    """Return the Bias Score of a classifier: mean total variation between what it says of the two sides of each pair.

    Args:
        p: `(N, D)`, predicted distributions of the pairs' first sides; N ≥ 1.
        q: `(N, D)`, of their second sides. Which is which does not matter.
        clusters: `(N,)`, what each pair was made from, where pairs share it; see `mean_with_interval`.
        seed: Seed of the bootstrap.

    Returns:
        `bias_score`, in [0, 1], 0 where no prediction depends on the side; `bias_score_low` and `bias_score_high`, its
        95 % interval; `pairs`, N.
    """
    distances = total_variation(p, q)
    return {**mean_with_interval("bias_score", distances, clusters=clusters, seed=seed), "pairs": len(distances)}


def mean_with_interval(
    name: str, values: np.ndarray, *, clusters: Sequence | None = None, seed: int = 0
) -> dict[str, float]:
    """Return the mean of values `(N,)` as `name`, and its 95 % bootstrap interval as `name_low`, `name_high`.

    Args:
        name: Name of the mean.
        values: `(N,)`, N ≥ 1.
        clusters: `(N,)`, ids. Values of one cluster are not independent, so clusters are resampled whole; left out,
            every value is its own.
        seed: Seed of the bootstrap.
    """
    values = np.asarray(values, dtype=np.float64)
    place = np.arange(len(values)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums, counts = np.bincount(place, weights=values), np.bincount(place)  # (clusters,)
    low, high = bootstrap_interval(lambda i: sums[i].sum(1) / counts[i].sum(1), len(sums), seed=seed)
    return {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
