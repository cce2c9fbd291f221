"""Benchmarks of pairs in an audit: which of two sentences base and tuned model find likelier."""

from collections.abc import Callable, Sequence

import numpy as np

from balora.audit.figures import Figure, Units, mean, measured
from balora.audit.kinds import MASKED
from balora.audit.models import Audited, Model
from balora.evaluation.bias import SentencePair, both_log_odds, preference
from balora.evaluation.bias.masked import masked_pair_log_odds


def on_both(audited: Audited, ask: Callable[[Model], np.ndarray]) -> tuple[np.ndarray | None, np.ndarray]:
    """What base and tuned model answer; of the base `None` where there is but one model."""
    after = ask(audited.tuned)
    if audited.alone:
        return None, after
    with audited.as_base() as base:
        return ask(base), after


def measured_on_both(
    name: str,
    answers: tuple[np.ndarray | None, np.ndarray],
    units: Callable[[np.ndarray], Units],
    *,
    on: str,
    unit: str,
    seed: int,
) -> Figure:
    """The figure of what `on_both` returned."""
    before, after = answers
    return measured(name, units(after), None if before is None else units(before), on=on, unit=unit, seed=seed)


def measure_pairs(
    audited: Audited, pairs: Sequence[SentencePair], *, per_token: bool, on: str, batch_size: int, seed: int = 0
) -> list[Figure]:
    """`bias_score`, `directed_bias` and `stereotype_share`; see `balora.evaluation.bias.preference_scores`.

    The share is always of whole sentences, which is the one that lm-evaluation-harness gives.

    Args:
        audited: A causal or masked language model and its base. Of a masked one a sentence's likelihood is the pseudo
            one of what the pair shares, as CrowS-Pairs has it.
        pairs: At least one.
        per_token: Of a causal model, whether the other two divide a sentence's log-likelihood by its tokens.
        on: What the pairs are called.
        batch_size: Sentences at a time.
        seed: Of the bootstrap.
    """

    def ask(model: Model) -> np.ndarray:
        if audited.kind == MASKED:
            odds = masked_pair_log_odds(model, audited.tokenizer, pairs, batch_size=batch_size)
            return np.stack([odds, odds], 1)
        whole, each = both_log_odds(model, audited.tokenizer, pairs, batch_size=batch_size)
        return np.stack([whole, each if per_token else whole], 1)  # (N, 2)

    answers = on_both(audited, ask)
    how = {
        "bias_score": lambda odds: mean(np.abs(preference(odds[:, 1]))),
        "directed_bias": lambda odds: mean(preference(odds[:, 1])),
        "stereotype_share": lambda odds: mean((1 + np.sign(odds[:, 0])) / 2),
    }
    return [measured_on_both(name, answers, of, on=on, unit="pairs", seed=seed) for name, of in how.items()]
