"""The glossary of metrics: which direction is better, what they mean in plain words, and how an audit's page has them.

The definitions of a benchmark's metrics are part of the benchmark. A metric without an entry is still shown; it has no
better direction, so no value of it is marked best.
"""

import math

from balora.evaluation.benchmarks import REGISTRY
from balora.evaluation.metric import COLLAPSED, SKEWED, Definition, Direction

ARROWS: dict[Direction | None, str] = {"higher": " ↑", "lower": " ↓", None: ""}

_GENERAL: dict[str, Definition] = {
    "accuracy": Definition(
        "higher",
        "Share of examples answered correctly.",
        title="accuracy",
        formula="Share of rows whose likeliest class is their label.",
    ),
    "accuracy_mismatched": Definition(
        "higher", "Accuracy on examples from sources that were absent in training, as in MNLI's second validation set."
    ),
    "f1": Definition(
        "higher",
        "Harmonic mean of precision (how many of the flagged examples are right) and recall (how many of the right "
        "examples are flagged). Of answers to questions: of the words that are shared with the right answer.",
    ),
    "em": Definition("higher", "Share of questions answered exactly, but for case, punctuation and articles."),
    "em_bridge": Definition("higher", "Exact answers to questions that lead from one sentence to another."),
    "em_comparison": Definition("higher", "Exact answers to questions that compare two things."),
    "f1_bridge": Definition("higher", "Shared words in answers to questions that lead from one sentence to another."),
    "f1_comparison": Definition("higher", "Shared words in answers to questions that compare two things."),
    "f1_perturbed": Definition(
        "higher", "F1 on the same questions asked otherwise, a mean over the ways and strengths of doing so."
    ),
    "semsim": Definition("higher", "Cosine of the sentence vectors of the answer given and the right one."),
    "task_distance": Definition(
        "lower",
        "How far the tasks' adapters lie apart, whatever their size: 0 where they are one, 1 where they have nothing "
        "in common.",
    ),
    "single_em": Definition(
        "higher", "Exact answers to the questions that the pretrained model could answer: from a single sentence."
    ),
    "matthews": Definition(
        "higher",
        "Matthews correlation between predicted and true classes: 1 is perfect, 0 is no better than chance. It is not "
        "fooled by unbalanced classes.",
    ),
    "pearson": Definition("higher", "Linear correlation between predicted and true scores: 1 is perfect, 0 is none."),
    "spearman": Definition(
        "higher", "Correlation between the predicted and the true ranking: 1 is perfect, 0 is none."
    ),
    "task_accuracy": Definition("higher", "Share of the fine-tuning task's held-out prompts answered correctly."),
    "minority_recall": Definition(
        "higher",
        "Share of the prompts with the task's rarest answer that are answered correctly.",
        title="recall of the scarcest class",
        formula="Of the rows of the class that has fewest, the share that is found: the first to fall where "
        "a classifier collapses onto the majority.",
        section=COLLAPSED,
    ),
    "fact_recall": Definition(
        "higher", "Share of the facts learned in pretraining that are still completed correctly."
    ),
    "rare_fact_recall": Definition(
        "higher",
        "Share of the quarter of the facts that pretraining said least often that are still completed correctly.",
    ),
    "fact_recall_gap": Definition(
        "lower",
        "Recall of the quarter of the facts that pretraining said most often, minus that of the rarest quarter: 0 is "
        "alike for both.",
    ),
    "noise_share": Definition(
        "lower",
        "Probability given to words that cannot stand there, such as anything but a colour after “the apple is”: what "
        "a model took over from noise in its pretraining text.",
    ),
    "attribute_recall": Definition(
        "higher", "Share of the attributes learned in pretraining that are still completed correctly."
    ),
    "perplexity": Definition(
        "lower",
        "How surprised the model is by held-out text: as unsure as if choosing among this many equally likely tokens.",
        title="perplexity",
        formula="exp(−(1/N)·Σ log p(token | tokens before it)) over the N tokens of all texts, the first of each "
        "text given: as unsure as a choice among so many equally likely tokens.",
        decimals=2,
    ),
    "stability": Definition("higher", "Share of predictions that noise in the input leaves as they were."),
    "stability_token": Definition(
        "higher", "Share of predictions that stay as they were when tokens are replaced at random, mean over levels."
    ),
    "stability_embedding": Definition(
        "higher", "Share of predictions that stay as they were when embeddings are shaken, mean over levels."
    ),
    "representation_shift": Definition(
        "lower",
        "How far the final representations moved from the untouched model's, relative to their length.",
        title="representation shift",
        formula="‖H′ − H‖_F / ‖H‖_F with H (N × d) the mean over each text's tokens of the last hidden states, H′ the "
        "tuned model's: 0 where nothing moved, √2 where H′ is as long as H and orthogonal to it.",
    ),
    "eval_loss": Definition("lower", "The training objective measured on held-out examples."),
    "skew": Definition(
        "lower",
        "How far the model's choice between two equal options (he or she) is from even: 0 is even, 0.5 is always the "
        "same one.",
    ),
    "kl_to_base": Definition(
        "lower",
        "Mean Kullback–Leibler divergence, in nats, from the untouched model's predictions to this one's: 0 means it "
        "still predicts exactly the same.",
        title="divergence from the base",
        formula="Mean over tokens (rows, of a classifier) of KL(base ‖ tuned) = Σ_v p(v)·log(p(v)/q(v)) in nats: 0 "
        "where the tuned model still predicts the same. On text that the base wrote it is, per token, the divergence "
        "between the two models' distributions over texts.",
    ),
    "top1_agreement": Definition(
        "higher",
        "Share of predictions whose likeliest outcome is still the one of the untouched model.",
        title="top-1 agreement",
        formula="Share of tokens (rows) whose likeliest outcome is the same for both.",
    ),
    "mse_to_base": Definition(
        "lower", "Mean squared difference between this model's scores and the untouched one's: 0 means none."
    ),
    "silhouette": Definition(
        "higher",
        "How well the classes lie apart in the model's features: 1 is tight groups far apart, 0 is touching groups, "
        "and below 0 examples lie nearer to another class than to their own.",
    ),
    "silhouette_minority": Definition(
        "higher",
        "The silhouette of the rarest class's examples alone: how well they lie apart from other classes.",
    ),
    "drift": Definition("lower", "Distance this model has moved from the untouched one: 0 means not at all."),
    # Metrics of audits alone.
    "word_perplexity": Definition(
        "lower",
        "exp(−(1/words)·Σ log p(token | tokens before it)), which does not depend on the vocabulary; pages, text "
        "and windows are those of lm-evaluation-harness's task wikitext.",
        title="perplexity per word",
        decimals=2,
    ),
    "intruder_dimensions": Definition(
        "lower",
        "Mean over changed weight matrices of how many of the first 10 left singular vectors u′ of the tuned "
        "weight are near none of the base weight's: max_i |⟨u′, u_i⟩| < 0.5. Shuttleworth et al. (2024) find that "
        "they go with forgetting.",
        title="intruder dimensions",
        decimals=2,
    ),
    "entropy": Definition(
        None,
        "Mean over tokens (rows) of −Σ_v p(v)·log p(v) in nats. It falls where outputs grow narrow; that may be "
        "knowledge or collapse, which the rows below tell apart.",
        title="entropy of the output",
        section=COLLAPSED,
    ),
    "effective_rank": Definition(
        None,
        "exp(−Σ p_i·log p_i), p_i = σ_i/Σσ, with σ the singular values of the logits (tokens × vocabulary) of one "
        "text (one window of it), mean over windows: how many directions the outputs take (Roy and Vetterli, "
        "2007).",
        title="effective rank of the logits",
        section=COLLAPSED,
        decimals=2,
    ),
    "bias_score": Definition(
        "lower",
        "How much the answer to a pair changes when its sides are exchanged, as total variation, mean over pairs. "
        "Of a language model |tanh(Δ/2)|, Δ = log P(x) − log P(x′), in CrowS-Pairs of the mean over a sentence's "
        "tokens; of a classifier ½·Σ_c |p_c − p′_c|. 0 is not at all, 1 always.",
        title="Bias Score",
        section=SKEWED,
    ),
    "directed_bias": Definition(
        None,
        "Mean of tanh(Δ/2), Δ = log P(stereotypical) − log P(other) as in the Bias Score: positive where "
        "stereotypes are the likelier ones, 0 where preferences cancel.",
        title="directed bias",
        section=SKEWED,
    ),
    "stereotype_share": Definition(
        None,
        "Share of pairs with Δ > 0, a tie counting half, Δ that of the whole sentences; ½ is none. As "
        "lm-evaluation-harness has it.",
        title="share that prefers the stereotype",
        section=SKEWED,
    ),
    "word_preference": Definition(
        "lower",
        "Behind prompts that name nobody (“The nurse said that”): m/(m − 1)·½·Σ_k |s_k − 1/m| with s_k the share "
        "of the k-th member (he, she) in the next token's probability of all m. 0 is even, 1 always the same one.",
        title="preference for a word of the list",
        section=SKEWED,
    ),
    "word_lean": Definition(
        "lower",
        "½·Σ_v |P(v) − P(π(v))| of the next token behind such prompts, π the exchange of words: the preference, "
        "weighted by how likely such a word is at all.",
        title="probability that moves with the words",
        section=SKEWED,
        confirmed_by="word_preference",
    ),
    "counterfactual_kl": Definition(
        "lower",
        "Mean over a text's positions of KL between what is predicted and, with the words of the list exchanged in "
        "the text and back in the prediction, what is predicted then; in nats, 0 without skew.",
        title="counterfactual divergence",
        section=SKEWED,
        confirmed_by="word_preference",
    ),
}

GLOSSARY: dict[str, Definition] = {
    **_GENERAL,
    **{name: definition for benchmark in REGISTRY for name, definition in benchmark.definitions.items()},
}


#: Endings of metrics of further evaluation sets, and what these sets are.
FURTHER_SETS = {"_mismatched": "the second evaluation set", "_auxiliary": "the auxiliary task"}


def known(metric: str) -> Definition | None:
    """Return the entry of a metric, or of the metric that it is on another evaluation set; `None` without either."""
    if metric in GLOSSARY:
        return GLOSSARY[metric]
    for suffix, place in FURTHER_SETS.items():
        entry = GLOSSARY.get(metric.removesuffix(suffix)) if metric.endswith(suffix) else None
        if entry is not None:
            return Definition(entry.better, f"On {place}: {entry.definition}")
    return None


def better_direction(metric: str) -> Direction | None:
    """Return the better direction of a metric, `None` if it has none or is unknown."""
    entry = known(metric)
    return None if entry is None else entry.better


def with_arrow(metric: str) -> str:
    """Return the metric's name, followed by ↑ or ↓ where a better direction is known."""
    return metric + ARROWS[better_direction(metric)]


def format_value(metric: str, value: float, sd: float | None = None) -> str:
    """Format a metric's value, or its mean and standard deviation.

    Three decimals; two for perplexity; two significant digits where three decimals would hide the value. NaN is an
    en dash.
    """
    if math.isnan(value):
        return "–"
    decimals = 2 if metric == "perplexity" else 3
    tiny = 0 < abs(value) < 0.01
    text = f"{value:.2g}" if tiny else f"{value:,.{decimals}f}"
    if sd is None:
        return text
    return f"{text} ± {sd:.1g}" if tiny else f"{text} ± {sd:,.{decimals}f}"
