"""Bias: how much a model's answers depend on who a text is about.

    pairs = read_crows_pairs("crows_pairs_anonymized.csv")
    score_pairs(pairs, pair_log_odds(model, tokenizer, pairs))["all"]["bias_score"]

`score` defines the Bias Score, of language models and classifiers alike; `pairs` applies it to pairs of sentences,
which `crows_pairs`, `winobias` and `winogender` read, and `masked` scores them as a masked language model does;
`leaning` has Winogender's own measure. `stereoset` and `bbq` choose among three: sentences, and answers. `hatecheck`
looks at classifiers. `counterfactual_kl`, `continuation_lean` and `counterfactual_classes` exchange words in any text;
`continuations` samples what is written about several groups, which `scorers` rate. `docs/measures.md` has every
formula.
"""

from balora.evaluation.bias.bbq import BBQItem, bbq_likelihoods, read_bbq
from balora.evaluation.bias.bbq_scores import bbq_scores
from balora.evaluation.bias.bold import Prompt, read_bold
from balora.evaluation.bias.continuation_lean import Lean, continuation_lean, lean_scores, named_members
from balora.evaluation.bias.continuations import check_sampling, continuation_scores, sample_continuations
from balora.evaluation.bias.counterfactual_classes import class_distances, counterfactual_texts
from balora.evaluation.bias.counterfactual_kl import counterfactual_divergences, counterfactual_scores
from balora.evaluation.bias.crows_pairs import read_crows_pairs
from balora.evaluation.bias.hatecheck import Case, hatecheck_scores, identity_pairs, read_hatecheck
from balora.evaluation.bias.leaning import winogender_cosines, winogender_log_odds, winogender_scores
from balora.evaluation.bias.likelihood import continuation_log_likelihoods, log_likelihoods
from balora.evaluation.bias.masked import masked_pair_log_odds
from balora.evaluation.bias.pairs import SentencePair, both_log_odds, pair_log_odds, score_pairs
from balora.evaluation.bias.score import classifier_bias_score, preference, preference_scores, total_variation
from balora.evaluation.bias.scorers import load_scorer
from balora.evaluation.bias.stereoset import StereoItem, read_stereoset, stereoset_likelihoods, stereoset_scores
from balora.evaluation.bias.winobias import is_counterfactual, read_winobias
from balora.evaluation.bias.winogender import Triple, read_occupations, read_winogender, winogender_pairs

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
