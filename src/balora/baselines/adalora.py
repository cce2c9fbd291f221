"""AdaLoRA (Zhang et al. 2023): PEFT's own, and the schedule that it needs a trainer to keep."""

from typing import Any

from peft import AdaLoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from balora.adapters.targets import check_targets
from balora.errors import BALoraError
from balora.model.task_type import task_of

#: Ranks start at this multiple of the rank they end at on average, as in the paper's appendix.
START = 1.5
#: Shares of training before ranks begin to fall, and after they have fallen (near the paper's for GLUE); and how often
#: they fall between.
WARMUP, FINAL, INTERVAL = 0.1, 0.3, 0.01


def make_adalora(
    model: PreTrainedModel,
    *,
    r: int,
    lora_alpha: int,
    lora_dropout: float = 0.0,
    target_modules: list[str] | str | None = None,
    target_parameters: list[str] | None = None,
    modules_to_save: list[str] | None = None,
) -> PeftModel:
    """Put AdaLoRA on a pretrained model; train it with `AdaLoraCallback`, without which no rank ever falls.

    Args:
        model: Changed in place.
        r: Rank that the layers end at on average; they start at 1.5 times that.
        lora_alpha: As in PEFT's `AdaLoraConfig`.
        lora_dropout: As in PEFT.
        target_modules: As in PEFT.
        target_parameters: None: PEFT's AdaLoRA has no adapter of parameters.
        modules_to_save: As in PEFT.

    Raises:
        BALoraError: If the model's task is not supported, a target module matches nothing, or parameters are named.
    """
    refuse_parameters(target_parameters)
    task_type = task_of(model)
    config = AdaLoraConfig(
        target_r=r,
        init_r=round(START * r),
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=target_modules,
        modules_to_save=modules_to_save,
        task_type=TaskType(task_type),
        total_step=1,  # the callback knows
    )
    check_targets(model, config)
    return get_peft_model(model, config)


def refuse_parameters(target_parameters: list[str] | None) -> None:
    """Stop where AdaLoRA is to adapt parameters, a mixture's experts.

    Raises:
        BALoraError: If any are named.
    """
    if target_parameters:
        raise BALoraError(
            "target_parameters: PEFT's AdaLoRA adapts linear layers alone; in a recipe, "
            "`method_settings: {adalora: {target_parameters: null}}` leaves the experts as they are"
        )


class AdaLoraCallback(TrainerCallback):
    """Tells AdaLoRA how long training is, and lets it move its ranks after each optimizer step."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: PeftModel, **kwargs: Any
    ) -> None:
        """Set the schedule in steps."""
        config = model.active_peft_config
        config.total_step = state.max_steps
        config.tinit = int(WARMUP * state.max_steps)
        config.tfinal = int(FINAL * state.max_steps)
        config.deltaT = max(1, int(INTERVAL * state.max_steps))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: PeftModel, **kwargs: Any
    ) -> None:
        """After the optimizer's step and before gradients are cleared, as PEFT asks."""
        if any(parameter.grad is not None for parameter in model.parameters()):  # none in a step that was left out
            model.base_model.update_and_allocate(state.global_step + 1)
