"""What a classifier is judged on beside its evaluation set: HateCheck, from its published file.

The table shows a few figures; all of them, by functionality and target, and every answer are kept with the run.
"""

from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.data import expand_path
from balora.errors import BALoraError
from balora.evaluation.benchmarks.writing import Benchmark, keep, keep_figures
from balora.evaluation.bias import classifier_bias_score, hatecheck_scores, identity_pairs, read_hatecheck
from balora.evaluation.classification import class_probabilities


@dataclass(frozen=True)
class Classifying:
    """How a classifier is asked.

    Attributes:
        tokenizer: The model's.
        label_names: Of its classes, by id.
        spent: Texts that judge nothing, since it was trained on them or on others of their file.
        max_length: Tokens that a text is cut to; `None` cuts nothing.
        batch_size: Texts at a time.
    """

    tokenizer: PreTrainedTokenizerBase
    label_names: Sequence[str]
    spent: Set[str]
    max_length: int | None
    batch_size: int


def hatecheck(classifying: Classifying, *, file: str, hateful_label: str = "hateful") -> Benchmark:
    """HateCheck: whether hate is found, and whether it is found alike whoever it is about.

    Where the suite itself is trained on, the cases held out judge alone. Hold out whole templates
    (`validation_group_column: templ_id`): what cases of one template share, they would share in training too.

    Args:
        classifying: How the model is asked.
        file: `test_suite_cases.csv`.
        hateful_label: The class that says hateful; all others say it is not.

    Raises:
        BALoraError: If the model has no such class, or no case is left.
    """
    if hateful_label not in classifying.label_names:
        raise BALoraError(
            f"hateful_label: {hateful_label!r} is none of the classes {', '.join(classifying.label_names)}"
        )
    hateful = classifying.label_names.index(hateful_label)
    cases = [case for case in read_hatecheck(expand_path(file)) if case.text not in classifying.spent]
    if not cases:
        raise BALoraError(
            f"{file}: every case is among the training rows; hold some out with validation_group_column: templ_id"
        )
    pairs, templates = identity_pairs(cases)
    how = {"max_length": classifying.max_length, "batch_size": classifying.batch_size}

    def measure(model: PreTrainedModel, directory: Path) -> dict[str, float]:
        p = class_probabilities(model, classifying.tokenizer, [case.text for case in cases], **how)  # (N, D)
        said = p.argmax(1) == hateful
        scores = hatecheck_scores(cases, said)
        figures = {name: scores["overall"][name] for name in ("precision", "recall", "f1")}
        figures |= {f"{rate}_gap": scores["gap"][rate] for rate in ("recall", "false_positive_rate")}
        if len(pairs):
            scores["pairs"] = classifier_bias_score(p[pairs[:, 0]], p[pairs[:, 1]], clusters=templates)
            figures["bias_score"] = scores["pairs"]["bias_score"]
        keep_figures(directory / "hatecheck.json", scores)
        answers = zip(cases, p[:, hateful].tolist(), strict=True)
        keep(directory / "hatecheck.jsonl", [asdict(case) | {"p_hateful": round(odds, 6)} for case, odds in answers])
        return {f"hatecheck_{name}": value for name, value in figures.items()}

    return measure
