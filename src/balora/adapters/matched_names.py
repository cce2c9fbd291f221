"""Check that each name in a LoRA configuration, targets apart, matches something in the model.

PEFT ignores a name that matches nothing, so that a misspelt one would change nothing and say nothing.
"""

import re
from collections.abc import Iterable

from peft import LoraConfig, TaskType
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from balora.errors import BALoraError


def check_matched_names(model: PreTrainedModel, config: LoraConfig) -> None:
    """Check `modules_to_save`, `exclude_modules`, the rank and alpha patterns, and the trained tokens.

    Args:
        model: The base model.
        config: With its `target_modules` as given: names, a regular expression, `all-linear` or `None`.

    Raises:
        BALoraError: Naming the setting and the name that matches nothing.
    """
    names = [name for name, _ in model.named_modules() if name]
    # PEFT adds all names that heads of classifiers have.
    heads = SEQ_CLS_HEAD_NAMES if config.task_type == TaskType.SEQ_CLS else ()
    for saved in set(config.modules_to_save or ()) - set(heads):
        if not any(name.endswith(saved) for name in names):
            _refuse("modules_to_save", saved, (name.rsplit(".", 1)[-1] for name, _ in model.named_children()))
    _check_excluded(names, config)
    targets = [*_targeted(model, config), *(config.target_parameters or ())]
    for setting in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, setting) or ():
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in targets):
                _refuse(setting, pattern, (name.rsplit(".", 1)[-1] for name in targets))
    _check_tokens(model, config)


def _check_excluded(names: list[str], config: LoraConfig) -> None:
    excluded = config.exclude_modules or ()
    for one in [excluded] if isinstance(excluded, str) else sorted(excluded):
        match = re.compile(one if isinstance(excluded, str) else rf"(.*\.)?{re.escape(one)}")
        if not any(match.fullmatch(name) for name in names):
            _refuse("exclude_modules", one, (name.rsplit(".", 1)[-1] for name in names))


def _targeted(model: PreTrainedModel, config: LoraConfig) -> list[str]:
    """Return the names of the modules that get an adapter; for PEFT's default targets, all linear layers."""
    if config.target_modules is None or config.target_modules == "all-linear":
        return [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    return [name for name, _ in model.named_modules() if check_target_module_exists(config, name)]


def _check_tokens(model: PreTrainedModel, config: LoraConfig) -> None:
    """Check that the trained tokens are rows of the embeddings: a list, or a dict from embedding names to lists."""
    tokens = config.trainable_token_indices or []
    rows = model.get_input_embeddings().weight.shape[0]
    for index in tokens if isinstance(tokens, list) else []:
        if not 0 <= index < rows:
            raise BALoraError(
                f"trainable_token_indices: {index} is no token of the model, whose embeddings have {rows:,} rows; "
                "resize them first, or leave it out"
            )


def _refuse(setting: str, name: str, known: Iterable[str]) -> None:
    there = ", ".join(sorted({one for one in known if not one.isdigit()}))
    raise BALoraError(f"{setting}: {name!r} matches nothing; there are {there}")
