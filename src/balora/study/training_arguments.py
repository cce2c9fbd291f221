"""Validate a recipe's `training_arguments` before a model is loaded.

The trainers validate some of them too, but only after loading, and with errors of the libraries.
"""

from typing import Any

from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_utils import IntervalStrategy
from trl import SFTConfig

from balora.baselines import BASELINES
from balora.data.columns import shortened
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.recipe.recipe import refuse_unknown

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
    if given.get("label_smoothing_factor") and recipe.method not in BASELINES:
        raise BALoraError(
            "training_arguments: label_smoothing_factor replaces the loss that the method's terms are added to; leave "
            "it out"
        )
    _check_evaluation(recipe, evaluation_sets)


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
