"""IFEval (Zhou et al., 2023): instructions whose following a program can check, as lm-evaluation-harness does."""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from balora.data import expand_path
from balora.errors import BALoraError
from balora.evaluation.benchmarks.benchmark import Benchmark, PromptSettings
from balora.evaluation.benchmarks.knowledge import sample_rows
from balora.evaluation.harness import scores_of_rows, task_size
from balora.evaluation.harness_tasks import check_ifeval_packages
from balora.evaluation.metric import Definition, Units, mean

TASK = "ifeval_local"


@dataclass(frozen=True)
class Prompts:
    """The sampled rows of IFEval's file, and the tokens of the longest reply."""

    data_dir: str
    rows: np.ndarray
    max_new_tokens: int


def _read(*, data_dir: str, max_samples: int = 100, seed: int = 0, max_new_tokens: int = 1280) -> Prompts:
    """Read IFEval's prompts and draw rows.

    Args:
        data_dir: Folder with `ifeval/input_data.jsonl`.
        max_samples: Prompts, drawn without replacement.
        seed: Seed of the draw.
        max_new_tokens: Longest reply.
    """
    if max_samples < 1:
        raise BALoraError(f"max_samples: {max_samples} leaves no rows; use at least 1")
    check_ifeval_packages()
    folder = expand_path(data_dir)
    return Prompts(folder, sample_rows(task_size(TASK, folder), max_samples, seed), max_new_tokens)


def _check(problems: Prompts, prompts: PromptSettings) -> None:
    if prompts.context is not None and problems.max_new_tokens >= prompts.context:
        raise BALoraError(
            f"max_new_tokens: {problems.max_new_tokens} leaves no room for a prompt in the model's {prompts.context} "
            "tokens; use fewer"
        )


def _ask(model: PreTrainedModel, problems: Prompts, prompts: PromptSettings) -> dict[str, np.ndarray]:
    how = {"data_dir": problems.data_dir, "batch_size": prompts.batch_size, "max_gen_toks": problems.max_new_tokens}
    # Prompts are requests to an assistant, whatever form the training rows have.
    chat = prompts.tokenizer.chat_template is not None
    return scores_of_rows(model, prompts.tokenizer, {TASK: problems.rows}, apply_chat_template=chat, **how)[TASK]


def _metrics(_: Prompts, scores: dict[str, np.ndarray]) -> dict[str, Units]:
    return {
        "ifeval_strict": mean(scores["prompt_level_strict_acc"]),
        "ifeval_loose": mean(scores["prompt_level_loose_acc"]),
    }


IFEVAL = Benchmark(
    name="ifeval",
    title="IFEval",
    read=_read,
    ask=_ask,
    metrics=_metrics,
    check=_check,
    unit="prompts",
    definitions={
        "ifeval_strict": Definition("higher", "Share of IFEval's prompts of which a reply follows every instruction."),
        "ifeval_loose": Definition(
            "higher", "The same, if the first or last line or emphasis may be removed from the reply first."
        ),
    },
)
