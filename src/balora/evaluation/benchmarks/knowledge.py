"""What a language model knows: eight public sets and their mean, scored by lm-evaluation-harness on local files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.data import expand_path, load_table
from balora.errors import BALoraError
from balora.evaluation.benchmarks.benchmark import Benchmark, PromptSettings
from balora.evaluation.harness import scores_of_rows, task_size
from balora.evaluation.metric import Definition, Units, mean
from balora.utils.modules import evaluation_mode

#: The harness's metric that counts for each of its tasks. `acc_norm`, by bytes of the answer, where the field uses it.
METRICS = {
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "hellaswag": "acc_norm",
    "piqa": "acc",
    "openbookqa": "acc_norm",
    "lambada": "acc",
    "truthfulqa_mc1": "acc",
    "truthfulqa_mc2": "acc",
}
KNOWN_FACTS = "known_facts"
SETS = (*METRICS, KNOWN_FACTS)
#: The mean counts TruthfulQA once, by MC2.
LEFT_OUT_OF_MEAN = ("truthfulqa_mc1",)
TITLES = {
    "arc_easy": "Share of ARC-Easy's questions answered (accuracy).",
    "arc_challenge": "Share of ARC-Challenge's questions answered (accuracy by bytes).",
    "hellaswag": "Share of HellaSwag's endings chosen (accuracy by bytes).",
    "piqa": "Share of PIQA's solutions chosen (accuracy).",
    "openbookqa": "Share of OpenBookQA's questions answered (accuracy by bytes).",
    "lambada": "Share of LAMBADA's last words predicted.",
    "truthfulqa_mc1": "Share of TruthfulQA's questions where the true answer is likeliest (MC1).",
    "truthfulqa_mc2": "Probability of TruthfulQA's true answers among all given (MC2).",
    "known_facts": "Share of known facts whose first token is predicted after the prompt.",
}


@dataclass(frozen=True)
class Fact:
    """A text and the attribute that follows it."""

    prompt: str
    attribute: str


@dataclass(frozen=True)
class Sample:
    """Rows of each set.

    Attributes:
        data_dir: Folder of the files.
        rows: Set to the indices of its rows.
        facts: Known facts, sampled.
    """

    data_dir: str
    rows: Mapping[str, np.ndarray]
    facts: Sequence[Fact]


def _read(*, data_dir: str, max_samples: int = 300, seed: int = 0, sets: list[str] | None = None) -> Sample:
    """Read the sets' files and draw rows.

    Args:
        data_dir: Folder with `arc/easy_test.jsonl`, `piqa/validation.jsonl` and the others' files.
        max_samples: Rows of each set, drawn without replacement.
        seed: Seed of the draw.
        sets: Names of the sets; `None` for all.
    """
    if max_samples < 1:
        raise BALoraError(f"max_samples: {max_samples} leaves no rows; use at least 1")
    names = list(SETS) if sets is None else list(dict.fromkeys(sets))
    if unknown := [name for name in names if name not in SETS]:
        raise BALoraError(f"sets: no set {unknown[0]!r} exists; there are {', '.join(SETS)}")
    if not names:
        raise BALoraError("sets: it is empty; name at least one, or leave it out for all")
    folder = expand_path(data_dir)
    facts = _read_facts(Path(folder) / "known_facts" / "known_1000.json") if KNOWN_FACTS in names else []
    sizes = {name: len(facts) if name == KNOWN_FACTS else task_size(f"{name}_local", folder) for name in names}
    rows = {name: sample_rows(size, max_samples, seed) for name, size in sizes.items()}
    return Sample(folder, rows, [facts[row] for row in rows.get(KNOWN_FACTS, ())])


def sample_rows(size: int, count: int, seed: int) -> np.ndarray:
    """Draw at most `count` of `size` rows without replacement; return their sorted indices."""
    return np.sort(np.random.default_rng(seed).permutation(size)[:count])


def _read_facts(file: Path) -> list[Fact]:
    table = load_table(str(file))
    if missing := [name for name in ("prompt", "attribute") if name not in table.column_names]:
        raise BALoraError(f"{file}: no column {missing[0]!r}; there are {', '.join(table.column_names)}")
    return [Fact(*pair) for pair in zip(table["prompt"], table["attribute"], strict=True)]


def _ask(model: PreTrainedModel, sample: Sample, prompts: PromptSettings) -> dict[str, np.ndarray]:
    tasks = {f"{name}_local": rows for name, rows in sample.rows.items() if name in METRICS}
    how = {"data_dir": sample.data_dir, "batch_size": prompts.batch_size}
    found = scores_of_rows(model, prompts.tokenizer, tasks, **how) if tasks else {}
    scores = {name: found[f"{name}_local"][METRICS[name]] for name in sample.rows if name in METRICS}
    if sample.facts:
        scores[KNOWN_FACTS] = known_facts(model, prompts.tokenizer, sample.facts, batch_size=prompts.batch_size)
    return {name: scores[name] for name in sample.rows}


def known_facts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], *, batch_size: int
) -> np.ndarray:
    """Return whether the likeliest next token of each prompt begins its attribute, `(N,)` of 0 and 1."""
    ids = [tokenizer(fact.prompt)["input_ids"] for fact in facts]
    # Tokens of the whole text, since some tokenizers write a leading space differently at the beginning of a text.
    whole = [tokenizer(f"{fact.prompt} {fact.attribute}")["input_ids"] for fact in facts]
    first = [text[len(own)] for own, text in zip(ids, whole, strict=True)]
    right = np.zeros(len(facts))
    order = sorted(range(len(facts)), key=lambda i: len(ids[i]))
    with evaluation_mode(model), torch.no_grad():
        while order:  # prompts of one length at a time need no padding
            batch = [i for i in order[:batch_size] if len(ids[i]) == len(ids[order[0]])]
            order = order[len(batch) :]
            logits = model(input_ids=torch.tensor([ids[i] for i in batch], device=model.device)).logits[:, -1]
            right[batch] = (logits.argmax(-1).cpu() == torch.tensor([first[i] for i in batch])).numpy()
    return right


def _metrics(_: Sample, scores: Mapping[str, np.ndarray]) -> dict[str, Units]:
    found = {f"knowledge_{name}": mean(own) for name, own in scores.items()}
    counted = [own for name, own in scores.items() if name not in LEFT_OUT_OF_MEAN] or list(scores.values())
    return {"knowledge": _mean_of_means(counted), **found}


def _mean_of_means(scores: Sequence[np.ndarray]) -> Units:
    """Return units whose metric is the mean over sets of the mean of each set's scores."""
    sets = len(scores)
    owner = np.repeat(np.arange(sets), [len(own) for own in scores])
    columns = np.zeros((len(owner), 2 * sets))
    columns[np.arange(len(owner)), owner] = np.concatenate(scores)
    columns[np.arange(len(owner)), sets + owner] = 1

    def of(sums: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.nanmean(sums[:, :sets] / sums[:, sets:], axis=1)  # a small resample may lack a set

    return Units(columns, of)


KNOWLEDGE = Benchmark(
    name="knowledge",
    title="Knowledge",
    read=_read,
    ask=_ask,
    metrics=_metrics,
    unit="rows",
    definitions={
        "knowledge": Definition("higher", "Mean score of the knowledge sets, each with the same weight."),
        **{f"knowledge_{name}": Definition("higher", text) for name, text in TITLES.items()},
    },
)
