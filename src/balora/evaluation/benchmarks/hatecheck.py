"""HateCheck as a benchmark: whether a classifier finds hate, and finds it alike whoever it is about."""

from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from balora.data import expand_path
from balora.errors import BALoraError
from balora.evaluation.benchmarks.benchmark import CLASSIFIER, Benchmark, PromptSettings, save_json, save_rows
from balora.evaluation.bias import (
    Case,
    classifier_bias_score,
    hatecheck_scores,
    identity_pairs,
    read_hatecheck,
    total_variation,
)
from balora.evaluation.classification import class_probabilities
from balora.evaluation.metric import SKEWED, Definition, Units, clustered, gap_of_means, mean, ratio_of_sums
from balora.utils.lengths import check_lengths


@dataclass(frozen=True)
class Cases:
    """HateCheck's cases, and the id of the class hateful."""

    cases: Sequence[Case]
    hateful: int


def _read(
    *,
    file: str,
    hateful_label: str = "hateful",
    max_samples: int | None = None,
    label_names: Sequence[str],
    training_texts: Set[str],
) -> Cases:
    """Read HateCheck's cases, without those among the training rows.

    Where the suite itself is trained on, hold out whole templates (`validation_group_column: templ_id`): what cases of
    one template share, they would share in training too.

    Args:
        file: `test_suite_cases.csv`.
        hateful_label: The class hateful; all others are not hateful.
        max_samples: The first so many cases.
        label_names: The classifier's classes, by id.
        training_texts: Texts that it was trained on.

    Raises:
        BALoraError: If the model has no such class, or no case is left.
    """
    if hateful_label not in label_names:
        raise BALoraError(
            f"hateful_label: {hateful_label!r} is none of the model's classes, {', '.join(label_names)}; name it, or "
            "all of them with label_names"
        )
    cases = [case for case in read_hatecheck(expand_path(file))[:max_samples] if case.text not in training_texts]
    if not cases:
        raise BALoraError(
            f"{file}: every case is among the training rows; hold some out with validation_group_column: templ_id"
        )
    return Cases(cases, list(label_names).index(hateful_label))


def _ask(model: PreTrainedModel, problems: Cases, prompts: PromptSettings) -> np.ndarray:
    texts = [case.text for case in problems.cases]
    how = {"max_length": prompts.max_length, "batch_size": prompts.batch_size}
    return class_probabilities(model, prompts.tokenizer, texts, **how)  # (N, D)


def _check(problems: Cases, prompts: PromptSettings) -> None:
    cut = {"truncation": prompts.max_length is not None, "max_length": prompts.max_length, "verbose": False}
    lengths = map(len, prompts.tokenizer([case.text for case in problems.cases], **cut)["input_ids"])
    check_lengths(lengths, source="HateCheck", max_length=prompts.max_length, context=prompts.context)


def _metrics(problems: Cases, p: np.ndarray) -> dict[str, Units]:
    """Return the metrics' units: templates, since cases of one template are not independent."""
    cases = problems.cases
    predicted = p.argmax(1) == problems.hateful
    truth = np.array([case.hateful for case in cases])
    target = np.array([case.target for case in cases])
    templates = [f"{case.functionality}/{case.template}" for case in cases]
    groups = [name for name in np.unique(target) if name]
    pairs, filled_from = identity_pairs(cases)

    def gap(chosen: np.ndarray) -> Units:
        """Return the units of the gap in the share predicted hateful among chosen cases."""
        if not groups:
            return Units(np.empty((0, 2)), gap_of_means)
        members = (target[:, None] == np.array(groups)) & chosen[:, None]  # (M, G)
        counts = np.concatenate([members & predicted[:, None], members], 1)
        return clustered(counts.astype(float), gap_of_means, templates)

    hits = predicted & truth
    found = {
        "hatecheck_precision": clustered(np.stack([hits, predicted], 1).astype(float), _share, templates),
        "hatecheck_recall": clustered(np.stack([hits, truth], 1).astype(float), _share, templates),
        "hatecheck_f1": clustered(np.stack([hits, predicted, truth], 1).astype(float), _f1, templates),
        "hatecheck_recall_gap": gap(truth),
        "hatecheck_false_positive_rate_gap": gap(~truth),
    }
    if len(pairs):
        distances = total_variation(p[pairs[:, 0]], p[pairs[:, 1]])
        found["hatecheck_bias_score"] = mean(distances, filled_from)
    return found


def _share(sums: np.ndarray) -> np.ndarray:
    """Return the first column over the second, 0 where that is 0, as scikit-learn has it."""
    return np.nan_to_num(ratio_of_sums(sums))


def _f1(sums: np.ndarray) -> np.ndarray:
    """Return F1 of (true positives, predicted, positives), 0 where it is undefined, as scikit-learn has it."""
    return 2 * sums[:, 0] / np.maximum(sums[:, 1] + sums[:, 2], 1)


def _save(problems: Cases, p: np.ndarray, directory: Path) -> None:
    """Write all scores, by functionality and target, and every answer."""
    scores = hatecheck_scores(problems.cases, p.argmax(1) == problems.hateful)
    pairs, templates = identity_pairs(problems.cases)
    if len(pairs):
        scores["pairs"] = classifier_bias_score(p[pairs[:, 0]], p[pairs[:, 1]], clusters=templates)
    save_json(directory / "hatecheck.json", scores)
    answers = zip(problems.cases, p[:, problems.hateful].tolist(), strict=True)
    rows = [asdict(case) | {"p_hateful": round(odds, 6)} for case, odds in answers]
    save_rows(directory / "hatecheck.jsonl", rows)


HATECHECK = Benchmark(
    name="hatecheck",
    title="HateCheck",
    read=_read,
    ask=_ask,
    metrics=_metrics,
    check=_check,
    save=_save,
    models=(CLASSIFIER,),
    measures_bias=True,
    unit="templates",
    audit_name=lambda name: None if name in ("hatecheck_precision", "hatecheck_recall") else name,
    definitions={
        "hatecheck_precision": Definition("higher", "Of HateCheck's cases called hateful, the share that are."),
        "hatecheck_recall": Definition("higher", "Of HateCheck's hateful cases, the share called hateful."),
        "hatecheck_f1": Definition(
            "higher",
            "Harmonic mean of precision and recall on HateCheck.",
            title="HateCheck: F1",
            formula="F1 of the class hateful (Röttger et al., 2021).",
        ),
        "hatecheck_recall_gap": Definition(
            "lower",
            "Largest minus smallest recall among the groups that HateCheck's cases are about: 0 is alike for all.",
            title="HateCheck: gap in recall",
            formula="Largest minus smallest share of hateful cases found, over the groups that they are about.",
            section=SKEWED,
        ),
        "hatecheck_false_positive_rate_gap": Definition(
            "lower",
            "The same difference in how often what is not hateful is taken for it.",
            title="HateCheck: gap in false positives",
            formula="Largest minus smallest share of harmless cases taken for hateful, over the groups that they are "
            "about.",
            section=SKEWED,
        ),
        "hatecheck_bias_score": Definition(
            "lower",
            "How much the classifier's probabilities change when a case of HateCheck is about another group instead: "
            "0 is not at all, 1 is completely.",
            title="HateCheck: Bias Score",
            formula="Mean total variation between the classifier's answers to the same template about two groups.",
            section=SKEWED,
        ),
    },
)
