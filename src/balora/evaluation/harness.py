"""A bridge to lm-evaluation-harness (Gao et al., 2024): its tasks, and local ones, on a model that is in memory.

The harness is made for a process of its own. Here it meets a model that may be about to train on, so whatever it would
change is put back: training flags, tied weights, the tokenizer's padding token, random states.
"""

import copy
import difflib
import functools
import importlib.util
import logging
import random
from collections.abc import Iterator, Sequence
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
#: Tasks that read files in `data_dir`; each is named like its file.
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
    """Metrics of a language model on tasks of lm-evaluation-harness.

    Args:
        model: A causal or sequence-to-sequence language model, adapted or not, where it is; left as it was.
        tokenizer: Its tokenizer; left as it was.
        tasks: Names of the harness's tasks, groups or tags, whose data comes from the Hub or its cache, and of
            `LOCAL_TASKS`, which have no examples in their prompts: `wikitext2_local`, `gsm8k_local`, `math500_local`.
        data_dir: Folder of the local tasks' files: `wikitext2/test.txt`, `gsm8k/test.jsonl`, `math500/test.jsonl`.
        limit: The first so many documents of each task; below 1 a share of them.
        batch_size: Requests at a time.
        num_fewshot: Examples in a prompt, but where a task forbids them by a 0 of its own; `None` as the task says.
        max_length: Longest input in tokens; `None` for the model's context. A prompt beyond it loses its beginning,
            and the harness logs a warning.
        max_gen_toks: Longest generated text in tokens; `None` as the task says.
        bootstrap_iters: Resamples for standard errors, 100,000 in the harness; 0 leaves them all out, those that
            need no resampling too.

    Returns:
        By task (and group), its metrics, such as `word_perplexity`; where the harness filters texts in several ways,
        `exact_match,strict-match`. With standard errors, `accuracy_stderr` beside `accuracy`.

    Raises:
        BALoraError: If lm-eval is not installed; a task is unknown, runs generated code or cannot get its data; a
            limit or a length is not one; or `max_gen_toks` leaves no room for a prompt.
    """
    check_tasks(tasks, data_dir)
    import lm_eval

    if limit is not None and limit <= 0:
        raise BALoraError(f"limit: {limit} leaves no documents; use more, or leave it out for all")
    check_max_length(max_length, context_length(model.config, tokenizer))
    with evaluation_mode(model), _random_states_of_the_harness():
        loaded = _load(tasks, data_dir)
        lm = _wrap(model, tokenizer, batch_size, max_length)
        for task in loaded["tasks"].values():
            _configure(task, lm, num_fewshot, max_gen_toks)
        found = lm_eval.evaluate(lm, loaded, limit=limit, bootstrap_iters=bootstrap_iters, log_samples=False)
    return {name: _metrics(values) for name, values in found["results"].items()}


def check_tasks(names: Sequence[str], data_dir: str | Path | None) -> None:
    """See that there are such tasks, without reading their data.

    Raises:
        BALoraError: If not, or if lm-eval is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise BALoraError(
            "the harness's tasks need lm-eval, which is not installed; use pip install 'balora[evaluation]'"
        )
    if data_dir is None and (local := [name for name in names if name in LOCAL_TASKS]):
        raise BALoraError(f"data_dir: {local[0]} reads a file in it; give the folder")
    for name, manager in _managers(names, data_dir):
        if name not in manager.task_index:
            close = difflib.get_close_matches(name, [*LOCAL_TASKS, *manager.all_tasks], n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else f"; local ones are {', '.join(LOCAL_TASKS)}"
            raise BALoraError(f"tasks: there is no task {name!r}{hint}")


def _managers(names: Sequence[str], data_dir: str | Path | None) -> list[tuple[str, "TaskManager"]]:
    """Who knows each task."""
    return [(name, _local_tasks(str(data_dir)) if name in LOCAL_TASKS else _tasks_of_the_harness()) for name in names]


def _load(names: Sequence[str], data_dir: str | Path | None) -> dict[str, dict[str, Any]]:
    """The harness's `TaskDict` of all names."""
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name, manager in _managers(names, data_dir):
        try:
            with _quiet():
                parts = manager.load([name])
        except BALoraError:
            raise
        except Exception as error:  # whatever the network, a cache, or a task's own code raises
            raise BALoraError(f"tasks: {name} cannot be loaded: {type(error).__name__}: {error}") from error
        for kind, part in parts.items():
            loaded[kind] |= part
    return loaded


def _local_tasks(data_dir: str) -> "TaskManager":
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=FOLDER, include_defaults=False, metadata={"data_dir": data_dir})


@functools.cache  # it reads fourteen thousand files
def _tasks_of_the_harness() -> "TaskManager":
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _wrap(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, max_length: int | None
) -> "HFLM":
    from lm_eval.models.huggingface import HFLM

    # The harness ties weights again. On a model whose head or embedding is adapted or trained apart that fails, or
    # puts other weights in its place.
    model.tie_weights = lambda: None
    try:
        with _quiet():
            return HFLM(
                pretrained=model,
                tokenizer=copy.deepcopy(tokenizer),  # it may get a padding token
                batch_size=batch_size,
                max_length=max_length,
                softmax_dtype="float32",  # of a model in half precision too
            )
    finally:
        del model.tie_weights


def _configure(task: "Task", lm: "HFLM", num_fewshot: int | None, max_gen_toks: int | None) -> None:
    """Settings over a task's own, as the harness's command line does it."""
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
            f"max_gen_toks: {longest} tokens in {name} leave no room for a prompt in the {lm.max_length} that the "
            "model takes; use fewer"
        )


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """One task's numbers under short names; `N/A` stands where there is no standard error."""
    named = {key.removesuffix(",none"): value for key, value in values.items() if "," in key}
    return {name: value for name, value in named.items() if not isinstance(value, str)}


@contextmanager
def _random_states_of_the_harness() -> Iterator[None]:
    """Within, the seeds that the harness's command line sets; afterwards the caller's states."""
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
    """Without the harness's warnings that a model in memory, or a dataset of our own, is unusual."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
