"""`Baseline`: a fine-tuning method to compare with; and `add_adapter`, for those that are PEFT's."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel, TrainerCallback

from balora.adapters.new_modules import with_heads
from balora.adapters.targets import check_not_in_full, check_targets, narrow_all_linear
from balora.adapters.trained_in_full import train_in_float32
from balora.model.build import task_of


@dataclass(frozen=True)
class Baseline:
    """A fine-tuning method to compare with, trained by the libraries' own trainers.

    How the model is saved follows from its class: a `PeftModel` as an adapter, a fully trained model as Transformers
    saves it, otherwise the trained parameters.

    Attributes:
        build: Function of the pretrained model, which it may change in place, that returns the model to train. Its
            keyword-only arguments are the recipe's settings of the same name. It must also work on the meta device,
            where a study calls it before weights are loaded, so it raises `BALoraError` if a setting does not fit.
        callbacks: Classes of the callbacks that training needs.
    """

    build: Callable[..., PreTrainedModel | PeftModel]
    callbacks: tuple[type[TrainerCallback], ...] = ()

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the recipe's settings that the method reads."""
        arguments = inspect.signature(self.build).parameters.values()
        return tuple(argument.name for argument in arguments if argument.kind is argument.KEYWORD_ONLY)


def add_adapter(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Put an adapter of PEFT's on the layers of a pretrained model, for the model's task.

    Args:
        model: Changed in place.
        config: Any of PEFT's configurations with `target_modules`; `task_type` is filled in.

    Raises:
        BALoraError: If the model's task is not supported or a target module matches nothing.
    """
    config.task_type = task_of(model)
    if config.task_type == TaskType.SEQ_CLS:
        config.modules_to_save = with_heads(model, config.modules_to_save)
    check_targets(model, LoraConfig(target_modules=config.target_modules))
    check_not_in_full(model, config)
    narrow_all_linear(model, config)
    adapted = get_peft_model(model, config)
    train_in_float32(adapted)
    return adapted
