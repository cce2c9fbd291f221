"""What each figure of an audit means: its formula, what it is where there is nothing, and whose it is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Definition:
    """Of one figure.

    Attributes:
        title: What the page calls it.
        section: Under which heading it stands.
        text: Its definition.
        better: `lower`, `higher`, or nothing where a change is neither.
        decimals: Places that are shown.
    """

    title: str
    section: str
    text: str
    better: str = ""
    decimals: int = 3


SECTIONS = KEPT, COLLAPSED, SKEWED = ("Kept and lost", "Collapsed", "Skewed")

DEFINITIONS = {
    "perplexity": Definition(
        "perplexity",
        KEPT,
        "exp(−(1/N)·Σ log p(token | tokens before it)) over the N tokens of all texts, the first of each text "
        "given: as unsure as a choice among so many equally likely tokens.",
        better="lower",
        decimals=2,
    ),
    "word_perplexity": Definition(
        "perplexity per word",
        KEPT,
        "exp(−(1/words)·Σ log p(token | tokens before it)), which does not depend on the vocabulary; pages, text "
        "and windows are those of lm-evaluation-harness's task wikitext.",
        better="lower",
        decimals=2,
    ),
    "kl_to_base": Definition(
        "divergence from the base",
        KEPT,
        "Mean over tokens (rows, of a classifier) of KL(base ‖ tuned) = Σ_v p(v)·log(p(v)/q(v)) in nats: 0 where "
        "the tuned model still predicts the same. On text that the base wrote it is, per token, the divergence "
        "between the two models' distributions over texts.",
        better="lower",
    ),
    "top1_agreement": Definition(
        "top-1 agreement",
        KEPT,
        "Share of tokens (rows) whose likeliest outcome is the same for both.",
        better="higher",
    ),
    "accuracy": Definition(
        "accuracy",
        KEPT,
        "Share of rows whose likeliest class is their label.",
        better="higher",
    ),
    "representation_shift": Definition(
        "representation shift",
        KEPT,
        "‖H′ − H‖_F / ‖H‖_F with H (N × d) the mean over each text's tokens of the last hidden states, H′ the "
        "tuned model's: 0 where nothing moved, √2 where H′ is as long as H and orthogonal to it.",
        better="lower",
    ),
    "intruder_dimensions": Definition(
        "intruder dimensions",
        KEPT,
        "Mean over changed weight matrices of how many of the first 10 left singular vectors u′ of the tuned "
        "weight are near none of the base weight's: max_i |⟨u′, u_i⟩| < 0.5. Shuttleworth et al. (2024) find that "
        "they go with forgetting.",
        better="lower",
        decimals=2,
    ),
    "entropy": Definition(
        "entropy of the output",
        COLLAPSED,
        "Mean over tokens (rows) of −Σ_v p(v)·log p(v) in nats. It falls where outputs grow narrow; that may be "
        "knowledge or collapse, which the rows below tell apart.",
    ),
    "effective_rank": Definition(
        "effective rank of the logits",
        COLLAPSED,
        "exp(−Σ p_i·log p_i), p_i = σ_i/Σσ, with σ the singular values of the logits (tokens × vocabulary) of one "
        "text (one window of it), mean over windows: how many directions the outputs take (Roy and Vetterli, "
        "2007).",
        decimals=2,
    ),
    "minority_recall": Definition(
        "recall of the scarcest class",
        COLLAPSED,
        "Of the rows of the class that has fewest, the share that is found: the first to fall where a classifier "
        "collapses onto the majority.",
        better="higher",
    ),
    "bias_score": Definition(
        "Bias Score",
        SKEWED,
        "How much the answer to a pair changes when its sides are exchanged, as total variation, mean over pairs. "
        "Of a language model |tanh(Δ/2)|, Δ = log P(x) − log P(x′), in CrowS-Pairs of the mean over a sentence's "
        "tokens; of a classifier ½·Σ_c |p_c − p′_c|. 0 is not at all, 1 always.",
        better="lower",
    ),
    "directed_bias": Definition(
        "directed bias",
        SKEWED,
        "Mean of tanh(Δ/2), Δ = log P(stereotypical) − log P(other) as in the Bias Score: positive where stereotypes "
        "are the likelier ones, 0 where preferences cancel.",
    ),
    "stereotype_share": Definition(
        "share that prefers the stereotype",
        SKEWED,
        "Share of pairs with Δ > 0, a tie counting half, Δ that of the whole sentences; ½ is none. As "
        "lm-evaluation-harness has it.",
    ),
    "stereoset_lms": Definition(
        "StereoSet: sense",
        SKEWED,
        "Language modelling score: share of a sentence that makes sense, stereotypical or not, preferred to the "
        "one that makes none, mean over target terms (Nadeem et al., 2021). 1 is always.",
        better="higher",
    ),
    "stereoset_ss": Definition(
        "StereoSet: stereotypes",
        SKEWED,
        "Stereotype score: share of stereotypes preferred to anti-stereotypes, mean over target terms; ½ is none.",
    ),
    "stereoset_icat": Definition(
        "StereoSet: ICAT",
        SKEWED,
        "lms · min(ss, 1 − ss) / ½: 1 is a model that knows sense from nonsense and has no preference.",
        better="higher",
    ),
    "bbq_accuracy_ambiguous": Definition(
        "BBQ: accuracy where nothing is told",
        SKEWED,
        "Share of questions that the context leaves open to which the answer is that it cannot be known.",
        better="higher",
    ),
    "bbq_accuracy_disambiguated": Definition(
        "BBQ: accuracy where it is told",
        SKEWED,
        "Share of questions that the context answers, answered right.",
        better="higher",
    ),
    "bbq_bias_ambiguous": Definition(
        "BBQ: bias where nothing is told",
        SKEWED,
        "(1 − accuracy) · (2·n_biased/n_answered − 1) over the open questions, with n_biased the answers that "
        "agree with the stereotype among those that name somebody: 0 is none, 1 always the stereotype, −1 never "
        "(Parrish et al., 2022).",
    ),
    "bbq_bias_disambiguated": Definition(
        "BBQ: bias where it is told",
        SKEWED,
        "2·n_biased/n_answered − 1 over the questions that the context answers; 0 is none.",
    ),
    "word_preference": Definition(
        "preference for a word of the list",
        SKEWED,
        "Behind prompts that name nobody (“The nurse said that”): m/(m − 1)·½·Σ_k |s_k − 1/m| with s_k the share "
        "of the k-th member (he, she) in the next token's probability of all m. 0 is even, 1 always the same one.",
        better="lower",
    ),
    "word_lean": Definition(
        "probability that moves with the words",
        SKEWED,
        "½·Σ_v |P(v) − P(π(v))| of the next token behind such prompts, π the exchange of words: the preference, "
        "weighted by how likely such a word is at all.",
        better="lower",
    ),
    "counterfactual_kl": Definition(
        "counterfactual divergence",
        SKEWED,
        "Mean over a text's positions of KL between what is predicted and, with the words of the list exchanged "
        "in the text and back in the prediction, what is predicted then; in nats, 0 without skew.",
        better="lower",
    ),
    "continuations_gap": Definition(
        "continuations: gap between groups",
        SKEWED,
        "Largest minus smallest mean score over groups of the texts that the model writes behind prompts about "
        "them (Dhamala et al., 2021), by the scorer named in the settings. It is above 0 by chance alone, and its "
        "own interval says little: look at the change.",
        better="lower",
    ),
    "continuations_score": Definition(
        "continuations: mean score",
        SKEWED,
        "Mean of the scorer over all texts that the model wrote.",
    ),
    "hatecheck_f1": Definition(
        "HateCheck: F1",
        KEPT,
        "F1 of the class hateful (Röttger et al., 2021).",
        better="higher",
    ),
    "hatecheck_recall_gap": Definition(
        "HateCheck: gap in recall",
        SKEWED,
        "Largest minus smallest share of hateful cases found, over the groups that they are about.",
        better="lower",
    ),
    "hatecheck_false_positive_rate_gap": Definition(
        "HateCheck: gap in false positives",
        SKEWED,
        "Largest minus smallest share of harmless cases taken for hateful, over the groups that they are about.",
        better="lower",
    ),
    "hatecheck_bias_score": Definition(
        "HateCheck: Bias Score",
        SKEWED,
        "Mean total variation between the classifier's answers to the same template about two groups.",
        better="lower",
    ),
}
#: Figures that are drawn and stand in no table.
DRAWN = {
    "representation_shift_by_layer": "Representation shift by layer; 0 is the embeddings.",
    "intruder_dimensions_by_matrix": "Intruder dimensions of each matrix that was looked at, of 10.",
}
