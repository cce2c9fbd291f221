"""Run tasks of lm-evaluation-harness (Gao et al., 2024), and local ones, on a model in memory.

The harness expects a process of its own. Here the model may still be training, so everything the harness changes is
restored: training flags, tied weights, the tokenizer's padding token, random states.
"""

import copy
import difflib
import functools
import importlib.util
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.utils.lengths import check_max_length, context_length
from balora.utils.modules import evaluation_mode

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

FOLDER = Path(__file__).with_name("harness_tasks")
#: Tasks that read files in `data_dir`, named like their YAML files.
LOCAL_TASKS = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def evaluate_with_harness(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    data_dir: str | Path | None = None,
    limit: int | float | None = None,
    batch_size: int = 8,
    num_fewshot: int | None = None,
    max_length: int | None = None,
    max_gen_toks: int | None = None,
    bootstrap_iters: int = 0,
) -> dict[str, dict[str, float]]:
    """Evaluate a language model on tasks of lm-evaluation-harness.

    Args:
        model: A causal or sequence-to-sequence language model, adapted or not, on its device; unchanged.
        tokenizer: Its tokenizer; unchanged.
        tasks: Names of the harness's tasks, groups or tags, with data from the Hub or its cache, and of
            `LOCAL_TASKS`, which are zero-shot, such as `wikitext2_local`, `gsm8k_local`, `arc_easy_local`.
        data_dir: Folder of the local tasks' files, such as `wikitext2/test.txt`, `gsm8k/test.jsonl`.
        limit: Number of documents per task, from the first; below 1, a share of them.
        batch_size: Requests per batch.
        num_fewshot: Examples in a prompt, except for tasks that set 0 themselves; `None`: the task's own number.
        max_length: Maximum input in tokens; `None`: the model's context. A longer prompt is truncated on the left, and
            the harness logs a warning.
        max_gen_toks: Maximum generated text in tokens; `None`: the task's own limit.
        bootstrap_iters: Resamples for standard errors, 100,000 in the harness; 0 omits all standard errors.

    Returns:
        Task (or group) to its metrics, such as `word_perplexity`; if the harness filters texts in several ways, named
        like `exact_match,strict-match`. With standard errors, `accuracy_stderr` beside `accuracy`.

    Raises:
        BALoraError: If lm-eval is not installed; a task is unknown, runs generated code or cannot get its data; a
            limit or a length is out of range; or `max_gen_toks` leaves no room for a prompt.
    """
    if limit is not None and limit <= 0:
        raise BALoraError(f"limit: {limit} leaves no documents; use a number above 0, or omit it for all")
    how = {"limit": limit, "bootstrap_iters": bootstrap_iters, "log_samples": False}
    sizes = {"data_dir": data_dir, "batch_size": batch_size, "max_length": max_length}
    found = _evaluate(model, tokenizer, tasks, **sizes, num_fewshot=num_fewshot, max_gen_toks=max_gen_toks, **how)
    return {name: _metrics(values) for name, values in found["results"].items()}


def scores_of_rows(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Mapping[str, Sequence[int]],
    *,
    data_dir: str | Path | None,
    batch_size: int = 8,
    max_length: int | None = None,
    max_gen_toks: int | None = None,
    apply_chat_template: bool = False,
) -> dict[str, dict[str, np.ndarray]]:
    """Evaluate a language model on chosen rows of tasks, with the harness's score of each row.

    Args:
        model: As for `evaluate_with_harness`, as are the other arguments.
        tokenizer: Its tokenizer; unchanged.
        rows: Task to the indices of its rows, counted from 0.
        data_dir: Folder of the local tasks' files.
        batch_size: Requests per batch.
        max_length: Maximum input in tokens.
        max_gen_toks: Maximum generated text in tokens.
        apply_chat_template: Whether prompts are user turns of the tokenizer's chat template.

    Returns:
        Task to metric to the scores `(N,)` of its rows, in the order given.

    Raises:
        BALoraError: As `evaluate_with_harness`.
    """
    sizes = {"data_dir": data_dir, "batch_size": batch_size, "max_length": max_length, "max_gen_toks": max_gen_toks}
    chosen = {name: list(map(int, own)) for name, own in rows.items()}
    # Sorted, since the harness reads the rows in the order of the file, but numbers them in the order given.
    in_order = {name: sorted(set(own)) for name, own in chosen.items()}
    how = {"samples": in_order, "log_samples": True, "bootstrap_iters": 0, "apply_chat_template": apply_chat_template}
    found = _evaluate(model, tokenizer, list(rows), **sizes, num_fewshot=0, **how)["samples"]
    scores: dict[str, dict[str, np.ndarray]] = {}
    for name, own in chosen.items():
        by_row = {sample["doc_id"]: sample for sample in found[name]}
        metrics = by_row[own[0]]["metrics"]
        scores[name] = {metric: np.array([by_row[row][metric] for row in own], dtype=np.float64) for metric in metrics}
    return scores


def task_size(task: str, data_dir: str | Path | None) -> int:
    """Return the number of rows of a task.

    Raises:
        BALoraError: If it cannot be loaded.
    """
    return len(_load([task], data_dir)["tasks"][task].eval_docs)


def _evaluate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    data_dir: str | Path | None,
    batch_size: int,
    max_length: int | None,
    num_fewshot: int | None,
    max_gen_toks: int | None,
    **how: Any,
) -> dict[str, Any]:
    """Run tasks and return what the harness does."""
    check_tasks(tasks, data_dir)
    import lm_eval

    check_max_length(max_length, context_length(model.config, tokenizer))
    with evaluation_mode(model), _random_states_of_the_harness():
        loaded = _load(tasks, data_dir)
        lm = _wrap(model, tokenizer, batch_size, max_length)
        for task in loaded["tasks"].values():
            _configure(task, lm, num_fewshot, max_gen_toks)
        return lm_eval.evaluate(lm, loaded, **how)


def check_tasks(names: Sequence[str], data_dir: str | Path | None) -> None:
    """Validate that all tasks exist, without reading their data.

    Raises:
        BALoraError: If a task does not exist, or lm-eval is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise BALoraError(
            "the harness's tasks need lm-eval, which is not installed; use pip install 'balora[evaluation]'"
        )
    if data_dir is None and (local := [name for name in names if name in LOCAL_TASKS]):
        raise BALoraError(f"data_dir: {local[0]} reads a file in it; set data_dir")
    for name, manager in _managers(names, data_dir):
        if name not in manager.task_index:
            close = difflib.get_close_matches(name, [*LOCAL_TASKS, *manager.all_tasks], n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else f"; local ones are {', '.join(LOCAL_TASKS)}"
            raise BALoraError(f"tasks: no task {name!r} exists{hint}")


def _managers(names: Sequence[str], data_dir: str | Path | None) -> list[tuple[str, "TaskManager"]]:
    """Return the task manager that knows each task."""
    return [(name, _local_tasks(str(data_dir)) if name in LOCAL_TASKS else _tasks_of_the_harness()) for name in names]


def _load(names: Sequence[str], data_dir: str | Path | None) -> dict[str, dict[str, Any]]:
    """Load all tasks as the harness's `TaskDict`."""
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name, manager in _managers(names, data_dir):
        try:
            with _quiet():
                parts = manager.load([name])
        except BALoraError:
            raise
        except Exception as error:  # the network, a cache, or a task's own code can raise anything
            raise BALoraError(f"tasks: {name} cannot be loaded: {type(error).__name__}: {error}") from error
        for kind, part in parts.items():
            loaded[kind] |= part
    return loaded


def _local_tasks(data_dir: str) -> "TaskManager":
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=FOLDER, include_defaults=False, metadata={"data_dir": data_dir})


@functools.cache  # reads fourteen thousand files
def _tasks_of_the_harness() -> "TaskManager":
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _wrap(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, max_length: int | None
) -> "HFLM":
    from balora.evaluation.harness_model import ChunkedLM

    # The harness ties weights again. If the head or embedding is adapted or trained separately, that fails or replaces
    # its weights.
    model.tie_weights = lambda: None
    try:
        with _quiet():
            return ChunkedLM(
                pretrained=model,
                tokenizer=copy.deepcopy(tokenizer),  # the harness may add a padding token
                batch_size=batch_size,
                max_length=max_length,
                softmax_dtype="float32",  # also for a model in half precision
            )
    finally:
        del model.tie_weights


def _configure(task: "Task", lm: "HFLM", num_fewshot: int | None, max_gen_toks: int | None) -> None:
    """Override a task's settings, as the harness's command line does."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    name = task.task_name
    if task.get_config("unsafe_code"):
        raise BALoraError(f"tasks: {name} runs generated code, for which the harness has no sandbox; use balora's own")
    fixed = task.get_config("num_fewshot")
    if fixed is None or (fixed != 0 and num_fewshot is not None):
        task.set_config("num_fewshot", num_fewshot or 0)
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)
    if task.OUTPUT_TYPE != "generate_until":
        return
    if max_gen_toks is not None:
        task.set_config("generation_kwargs", {"max_gen_toks": max_gen_toks}, update=True)
    longest = task.get_config("generation_kwargs").get("max_gen_toks", lm.max_gen_toks)
    if lm.backend == "causal" and longest >= lm.max_length:
        raise BALoraError(
            f"max_gen_toks: {longest} tokens in {name} leave no room for a prompt in the model's "
            f"{lm.max_length}; use fewer"
        )


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """Return one task's numbers under short names, without `N/A`, which stands for a missing standard error."""
    named = {key.removesuffix(",none"): value for key, value in values.items() if "," in key}
    return {name: value for name, value in named.items() if not isinstance(value, str)}


@contextmanager
def _random_states_of_the_harness() -> Iterator[None]:
    """Context manager: set the seeds of the harness's command line, then restore the caller's random states."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        torch.manual_seed(DEFAULT_OTHER_SEED)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def _quiet() -> Iterator[None]:
    """Context manager: suppress the harness's warnings about models in memory and custom datasets."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
