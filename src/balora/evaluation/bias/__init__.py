"""Bias: how much a model's answers depend on who a text is about.

    pairs = read_crows_pairs("crows_pairs_anonymized.csv")
    score_pairs(pairs, pair_log_odds(model, tokenizer, pairs))["all"]["bias_score"]

`bias_score` defines the Bias Score, of language models and classifiers alike; `sentence_pairs` applies it to
CrowS-Pairs and other pairs, which `winobias` and `winogender` read. `stereoset` and `bbq` choose among three sentences
or answers. `hatecheck` scores classifiers. `counterfactual` and `counterfactual_classes` exchange words in any text.
`continuations` samples what is written about several groups, which `scorers` rate. `docs/measures.md` has every
formula.
"""

from balora.evaluation.bias.bbq import BBQItem, bbq_likelihoods, bbq_scores, read_bbq
from balora.evaluation.bias.bias_score import classifier_bias_score, preference, preference_scores, total_variation
from balora.evaluation.bias.continuations import (
    Prompt,
    check_sampling,
    continuation_scores,
    read_bold,
    sample_continuations,
)
from balora.evaluation.bias.counterfactual import (
    Lean,
    continuation_lean,
    counterfactual_divergences,
    counterfactual_scores,
    lean_scores,
    named_members,
)
from balora.evaluation.bias.counterfactual_classes import class_distances, counterfactual_texts
from balora.evaluation.bias.hatecheck import Case, hatecheck_scores, identity_pairs, read_hatecheck
from balora.evaluation.bias.likelihood import continuation_log_likelihoods, log_likelihoods
from balora.evaluation.bias.scorers import load_scorer
from balora.evaluation.bias.sentence_pairs import (
    SentencePair,
    both_log_odds,
    masked_pair_log_odds,
    pair_log_odds,
    read_crows_pairs,
    score_pairs,
)
from balora.evaluation.bias.stereoset import StereoItem, read_stereoset, stereoset_likelihoods, stereoset_scores
from balora.evaluation.bias.winobias import is_counterfactual, read_winobias
from balora.evaluation.bias.winogender import (
    Triple,
    read_occupations,
    read_winogender,
    winogender_cosines,
    winogender_log_odds,
    winogender_pairs,
    winogender_scores,
)

__all__ = [
    "BBQItem",
    "Case",
    "Lean",
    "Prompt",
    "SentencePair",
    "StereoItem",
    "Triple",
    "bbq_likelihoods",
    "bbq_scores",
    "both_log_odds",
    "check_sampling",
    "class_distances",
    "classifier_bias_score",
    "continuation_lean",
    "continuation_log_likelihoods",
    "continuation_scores",
    "counterfactual_divergences",
    "counterfactual_scores",
    "counterfactual_texts",
    "hatecheck_scores",
    "identity_pairs",
    "is_counterfactual",
    "lean_scores",
    "load_scorer",
    "log_likelihoods",
    "masked_pair_log_odds",
    "named_members",
    "pair_log_odds",
    "preference",
    "preference_scores",
    "read_bbq",
    "read_bold",
    "read_crows_pairs",
    "read_hatecheck",
    "read_occupations",
    "read_stereoset",
    "read_winobias",
    "read_winogender",
    "sample_continuations",
    "score_pairs",
    "stereoset_likelihoods",
    "stereoset_scores",
    "total_variation",
    "winogender_cosines",
    "winogender_log_odds",
    "winogender_pairs",
    "winogender_scores",
]
