"""Validate a recipe's `training_arguments` before a model is loaded.

The trainers validate some of them too, but only after loading, and with errors of the libraries.
"""

from importlib.util import find_spec
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_utils import IntervalStrategy
from trl import SFTConfig

from balora.baselines import BASELINES
from balora.data.columns import shortened
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.recipe.recipe import refuse_unknown

#: Arguments that act while TRL loads a model or tokenizes rows, which balora does itself; and what acts instead.
LOADED_HERE = {
    "model_init_kwargs": "set dtype, attn_implementation and use_safetensors in the recipe",
    "trust_remote_code": "a model's own code is never run",
    "dataset_text_field": "set text_column",
    "dataset_kwargs": "name the columns in the recipe",
    "eos_token": "set the tokenizer's own, or chat_template_path",
    "pad_token": "set the tokenizer's own",
    "padding_free": "set packing",
}
#: Arguments that replace the loss, to which balora's methods add their terms.
OF_THE_LOSS = {"label_smoothing_factor": 0.0, "loss_type": "nll", "use_liger_kernel": False}
#: Arguments of the evaluation during training.
OF_EVALUATION = ("eval_steps", "eval_delay", "eval_on_start")
#: Arguments that need a package, and its name.
PACKAGES = {"deepspeed": "deepspeed", "use_liger_kernel": "liger_kernel"}

#: Metrics that TRL's trainer adds to those of the loss; balora's own trainers do not.
OF_TRL = ("mean_token_accuracy", "entropy", "num_tokens")


def check_training_arguments(recipe: Recipe, evaluation_sets: list[str] | None = None) -> None:
    """Validate `training_arguments`, whose keys are not the recipe's own.

    Args:
        recipe: The recipe.
        evaluation_sets: Names of the evaluation sets; `None` before they are read.

    Raises:
        BALoraError: If a key is unknown, a tracker is not installed, or evaluation during training lacks rows or a
            metric.
    """
    given = recipe.training_arguments
    schema = SFTConfig if _is_causal(recipe) else TrainingArguments
    refuse_unknown("training_arguments", given, schema)
    _check_trackers(given.get("report_to"))
    for key in given:
        if key in LOADED_HERE:
            raise BALoraError(f"training_arguments: {key} has no effect here; {LOADED_HERE[key]}")
    for key, default in OF_THE_LOSS.items():
        if given.get(key, default) != default and recipe.method not in BASELINES:
            raise BALoraError(
                f"training_arguments: {key} replaces the loss that the method's terms are added to; leave it out"
            )
    for key in ("packing_strategy", "eval_packing"):
        if key in given and not recipe.packing:
            raise BALoraError(f"training_arguments: {key} has no effect without packing: true; leave it out")
    if given.get("activation_offloading") and not torch.accelerator.is_available():
        raise BALoraError("training_arguments: activation_offloading moves activations off a GPU; leave it out")
    if given.get("torch_compile") and recipe.fused_lm_head and recipe.method not in BASELINES:
        raise BALoraError(
            "training_arguments: torch_compile cannot trace the pass over the head that saves the logits; set "
            "fused_lm_head: false too, or leave it out"
        )
    for key, package in PACKAGES.items():
        if given.get(key) and find_spec(package) is None:
            raise BALoraError(f"training_arguments: {key} needs {package}, which is not installed; leave it out")
    _check_schedule(recipe)
    _check_evaluation(recipe, evaluation_sets)


def _check_schedule(recipe: Recipe) -> None:
    """Build the learning rate's schedule once, which validates its name and arguments."""
    given = recipe.training_arguments
    kind, own = recipe.lr_scheduler_type, given.get("lr_scheduler_kwargs")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    steps = {"num_warmup_steps": 1, "num_training_steps": 2}
    try:
        get_scheduler(kind, optimizer, **steps, scheduler_specific_kwargs=dict(own or {}))
    except (TypeError, ValueError) as error:
        key = "lr_scheduler_type" if not own else "training_arguments: lr_scheduler_kwargs"
        raise BALoraError(f"{key}: {kind} does not fit: {error}") from error
    if kind == "reduce_lr_on_plateau" and _value(given.get("eval_strategy") or "no") == "no":
        raise BALoraError(
            "lr_scheduler_type: reduce_lr_on_plateau needs evaluation during training; set training_arguments: "
            "{eval_strategy: steps}"
        )


def _check_evaluation(recipe: Recipe, evaluation_sets: list[str] | None) -> None:
    """Validate the evaluation during training, and the metric that picks the best checkpoint by it."""
    given = recipe.training_arguments
    strategy, metric = _value(given.get("eval_strategy") or "no"), given.get("metric_for_best_model")
    strategies = [one.value for one in IntervalStrategy]
    if strategy not in strategies:
        raise BALoraError(
            f"training_arguments: eval_strategy: {shortened(strategy)} is unknown; use one of {', '.join(strategies)}"
        )
    if strategy == "no":
        for key in OF_EVALUATION:
            if given.get(key):
                raise BALoraError(f"training_arguments: {key} has no effect without eval_strategy; set that too")
        best = _value(given.get("save_strategy") or "no") == "best" or given.get("load_best_model_at_end")
        for key, used in (("metric_for_best_model", metric), ("save_strategy or load_best_model_at_end", best)):
            if used:
                raise BALoraError(
                    f"training_arguments: {key}: the best checkpoint is found by evaluation during training; set "
                    "eval_strategy: steps too"
                )
        return
    if evaluation_sets is None:
        return
    if not evaluation_sets:
        raise BALoraError(
            f"training_arguments: eval_strategy: {strategy} needs rows to evaluate on; name a validation_file or set "
            "validation_share"
        )
    if metric is not None:
        measured = ["loss", *(OF_TRL if _is_causal(recipe) and recipe.method in BASELINES else ())]
        if evaluation_sets != ["validation"]:
            measured = [f"{name}_{own}" for name in evaluation_sets for own in measured]
        if str(metric).removeprefix("eval_") not in measured:
            raise BALoraError(
                f"training_arguments: metric_for_best_model: {shortened(metric)} is not measured during training; use "
                f"{' or '.join(f'eval_{name}' for name in measured)}"
            )


def _check_trackers(report_to: Any) -> None:
    trackers = [report_to] if isinstance(report_to, str) else report_to or []
    for tracker in trackers if isinstance(trackers, list) else [trackers]:
        if tracker in ("none", "all"):
            continue
        if tracker not in INTEGRATION_TO_CALLBACK:
            raise BALoraError(
                f"training_arguments: report_to: unknown {shortened(tracker)}; there are none, "
                f"{', '.join(INTEGRATION_TO_CALLBACK)}"
            )
        if tracker in get_available_reporting_integrations():
            continue
        try:
            INTEGRATION_TO_CALLBACK[tracker]()  # the list above lacks some; an integration checks its own packages
        except (RuntimeError, ImportError, AssertionError) as error:
            raise BALoraError(
                f"training_arguments: report_to: {tracker} is not installed; install it, or leave it out"
            ) from error


def _is_causal(recipe: Recipe) -> bool:
    return not (recipe.is_classification or recipe.is_seq2seq)


def _value(strategy: Any) -> Any:
    """Return a strategy's name; YAML reads an unquoted `no` as false."""
    return "no" if strategy is False else getattr(strategy, "value", strategy)
