"""What the reports know about each metric: which direction is better, how to print it, what it means in plain words.

A metric that is not listed is still shown; it just has no better direction, so nothing is marked best in it.
"""

import math
from dataclasses import dataclass
from typing import Literal

Direction = Literal["higher", "lower"]

ARROWS: dict[Direction | None, str] = {"higher": " ↑", "lower": " ↓", None: ""}


@dataclass(frozen=True)
class Metric:
    """One metric's entry: the better direction, `None` where between is best, and its definition in plain words."""

    better: Direction | None
    definition: str


GLOSSARY: dict[str, Metric] = {
    "accuracy": Metric("higher", "Share of examples answered correctly."),
    "accuracy_mismatched": Metric(
        "higher", "Accuracy on examples from sources that were absent in training, as in MNLI's second validation set."
    ),
    "f1": Metric(
        "higher",
        "Harmonic mean of precision (how many of the flagged examples are right) and recall (how many of the right "
        "examples are flagged). Of answers to questions: of the words that are shared with the right answer.",
    ),
    "em": Metric("higher", "Share of questions answered exactly, but for case, punctuation and articles."),
    "em_bridge": Metric("higher", "Exact answers to questions that lead from one sentence to another."),
    "em_comparison": Metric("higher", "Exact answers to questions that compare two things."),
    "f1_bridge": Metric("higher", "Shared words in answers to questions that lead from one sentence to another."),
    "f1_comparison": Metric("higher", "Shared words in answers to questions that compare two things."),
    "f1_perturbed": Metric(
        "higher", "F1 on the same questions asked otherwise, a mean over the ways and strengths of doing so."
    ),
    "semsim": Metric("higher", "Cosine of the sentence vectors of the answer given and the right one."),
    "task_distance": Metric(
        "lower",
        "How far the tasks' adapters lie apart, whatever their size: 0 where they are one, 1 where they have nothing "
        "in common.",
    ),
    "single_em": Metric(
        "higher", "Exact answers to the questions that the pretrained model could answer: from a single sentence."
    ),
    "matthews": Metric(
        "higher",
        "Matthews correlation between predicted and true classes: 1 is perfect, 0 is no better than chance. It is not "
        "fooled by unbalanced classes.",
    ),
    "pearson": Metric("higher", "Linear correlation between predicted and true scores: 1 is perfect, 0 is none."),
    "spearman": Metric("higher", "Correlation between the predicted and the true ranking: 1 is perfect, 0 is none."),
    "task_accuracy": Metric("higher", "Share of the fine-tuning task's held-out prompts answered correctly."),
    "minority_recall": Metric(
        "higher", "Share of the prompts with the task's rarest answer that are answered correctly."
    ),
    "fact_recall": Metric("higher", "Share of the facts learned in pretraining that are still completed correctly."),
    "rare_fact_recall": Metric(
        "higher",
        "Share of the quarter of the facts that pretraining said least often that are still completed correctly.",
    ),
    "fact_recall_gap": Metric(
        "lower",
        "Recall of the quarter of the facts that pretraining said most often, minus that of the rarest quarter: 0 is "
        "alike for both.",
    ),
    "noise_share": Metric(
        "lower",
        "Probability given to words that cannot stand there, such as anything but a colour after “the apple is”: what "
        "a model took over from noise in its pretraining text.",
    ),
    "attribute_recall": Metric(
        "higher", "Share of the attributes learned in pretraining that are still completed correctly."
    ),
    "perplexity": Metric(
        "lower",
        "How surprised the model is by held-out text: as unsure as if choosing among this many equally likely tokens.",
    ),
    "gsm8k_accuracy": Metric("higher", "Share of GSM8K's word problems solved."),
    "gsm8k_unanswered": Metric("lower", "Share of GSM8K's problems to which the text had no answer at all."),
    "math_accuracy": Metric("higher", "Share of MATH's competition problems solved."),
    "math_unanswered": Metric("lower", "Share of MATH's problems to which the text had no answer at all."),
    "humaneval_pass@1": Metric("higher", "Share of HumanEval's functions whose one completion passes the tests."),
    "mbpp_pass@1": Metric("higher", "Share of MBPP's test problems whose one completion passes the tests."),
    "mt_bench": Metric("higher", "Mean rating of both turns of MT-Bench by the judge, from 1 to 10."),
    "mt_bench_turn_1": Metric("higher", "Mean rating of MT-Bench's first turn by the judge, from 1 to 10."),
    "mt_bench_turn_2": Metric("higher", "Mean rating of MT-Bench's second turn by the judge, from 1 to 10."),
    "mt_bench_missing": Metric("lower", "Answers to MT-Bench that the judge gave no rating, left out of the means."),
    "wikitext2_word_perplexity": Metric(
        "lower", "Perplexity of WikiText-2 per word, which does not depend on the vocabulary."
    ),
    "wikitext2_byte_perplexity": Metric("lower", "Perplexity of WikiText-2 per byte of text."),
    **{
        f"{name}_bias_score": Metric(
            "lower",
            "How much the choice between two sentences about different people changes when they are exchanged: 0 is "
            "not at all, 1 is always.",
        )
        for name in ("crows_pairs", "winobias", "winogender")
    },
    "stereoset_lms": Metric(
        "higher", "How often StereoSet's meaningful sentences are likelier than the meaningless one: 1 is always."
    ),
    "stereoset_ss": Metric(
        None,
        "How often StereoSet's stereotype is likelier than its opposite: 0.5 is no preference, 1 is always.",
    ),
    "stereoset_icat": Metric(
        "higher",
        "Both in one: 1 is always the meaningful sentences and no stereotype preferred, 0 is the worst of either.",
    ),
    "bbq_accuracy_ambiguous": Metric(
        "higher", "Share of BBQ's open questions, about one of two people, that are answered with unknown."
    ),
    "bbq_accuracy_disambiguated": Metric(
        "higher", "Share of BBQ's questions answered correctly where the text tells of whom they are true."
    ),
    "bbq_bias_ambiguous": Metric(
        None,
        "How far answers to BBQ's open questions follow stereotypes: 0 is not at all, 1 is always, and below 0 they "
        "go against them. Answers of unknown draw it towards 0.",
    ),
    "bbq_bias_disambiguated": Metric(
        None,
        "How far answers to BBQ's other questions follow stereotypes, of those that are not unknown: 0 is not at all, "
        "1 is always, and below 0 they go against them.",
    ),
    "hatecheck_precision": Metric("higher", "Of HateCheck's cases called hateful, the share that are."),
    "hatecheck_recall": Metric("higher", "Of HateCheck's hateful cases, the share called hateful."),
    "hatecheck_f1": Metric("higher", "Harmonic mean of precision and recall on HateCheck."),
    "hatecheck_recall_gap": Metric(
        "lower", "Largest minus smallest recall among the groups that HateCheck's cases are about: 0 is alike for all."
    ),
    "hatecheck_false_positive_rate_gap": Metric(
        "lower", "The same difference in how often what is not hateful is taken for it."
    ),
    "hatecheck_bias_score": Metric(
        "lower",
        "How much the classifier's probabilities change when a case of HateCheck is about another group instead: 0 is "
        "not at all, 1 is completely.",
    ),
    "counterfactual_divergence": Metric(
        "lower",
        "How far apart, in nats, a model's predictions are for the same text about different people: 0 is not at all.",
    ),
    "counterfactual_lean": Metric(
        "lower",
        "How far the next word after a prompt that names nobody leans to one group (the nurse said that he, or she): "
        "0 is even, 1 is always the same one.",
    ),
    "counterfactual_bias_score": Metric(
        "lower",
        "How much the classifier's probabilities change when a text is about somebody else: 0 is not at all, 1 is "
        "completely.",
    ),
    "continuations_gap": Metric(
        "lower",
        "How differently what the model writes about several groups is rated, largest minus smallest mean score: 0 is "
        "alike for all. A mean over kinds of groups.",
    ),
    **{
        f"continuations_{domain}_gap": Metric(
            "lower",
            "Largest minus smallest mean score of what the model writes about these groups: 0 is alike for all.",
        )
        for domain in (
            "gender",
            "nationality",
            "religion",
            "race",
            "profession",
            "political_ideology",
            "religious_ideology",
        )
    },
    "stability": Metric("higher", "Share of predictions that noise in the input leaves as they were."),
    "stability_token": Metric(
        "higher", "Share of predictions that stay as they were when tokens are replaced at random, mean over levels."
    ),
    "stability_embedding": Metric(
        "higher", "Share of predictions that stay as they were when embeddings are shaken, mean over levels."
    ),
    "representation_shift": Metric(
        "lower", "How far the final representations moved from the untouched model's, relative to their length."
    ),
    "eval_loss": Metric("lower", "The training objective measured on held-out examples."),
    "skew": Metric(
        "lower",
        "How far the model's choice between two equal options (he or she) is from even: 0 is even, 0.5 is always the "
        "same one.",
    ),
    "kl_to_base": Metric(
        "lower",
        "Mean Kullback–Leibler divergence, in nats, from the untouched model's predictions to this one's: 0 means it "
        "still predicts exactly the same.",
    ),
    "top1_agreement": Metric(
        "higher", "Share of predictions whose likeliest outcome is still the one of the untouched model."
    ),
    "mse_to_base": Metric(
        "lower", "Mean squared difference between this model's scores and the untouched one's: 0 means none."
    ),
    "silhouette": Metric(
        "higher",
        "How well the classes lie apart in the model's features: 1 is tight groups far apart, 0 is touching groups, "
        "and below 0 examples lie nearer to another class than to their own.",
    ),
    "silhouette_minority": Metric(
        "higher",
        "The silhouette of the rarest class's examples alone: how well they lie apart from other classes.",
    ),
    "drift": Metric("lower", "Distance this model has moved from the untouched one: 0 means not at all."),
}


#: What a metric of an evaluation set beside the first ends in, and what that set is.
FURTHER_SETS = {"_mismatched": "the second evaluation set", "_auxiliary": "the auxiliary task"}


def known(metric: str) -> Metric | None:
    """The metric's entry, or that of the metric which it is on another evaluation set; `None` without either."""
    if metric in GLOSSARY:
        return GLOSSARY[metric]
    for suffix, place in FURTHER_SETS.items():
        entry = GLOSSARY.get(metric.removesuffix(suffix)) if metric.endswith(suffix) else None
        if entry is not None:
            return Metric(entry.better, f"On {place}: {entry.definition}")
    return None


def better_direction(metric: str) -> Direction | None:
    """Which direction of `metric` is better, or None when it is not a known one."""
    entry = known(metric)
    return None if entry is None else entry.better


def with_arrow(metric: str) -> str:
    """The metric's name followed by ↑ or ↓ where a better direction is known."""
    return metric + ARROWS[better_direction(metric)]


def format_value(metric: str, value: float, sd: float | None = None) -> str:
    """Print a metric's value, or its mean and standard deviation, the way that metric is read.

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
