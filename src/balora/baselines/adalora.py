"""AdaLoRA (Zhang et al. 2023): PEFT's adapter, and the callback that runs its rank schedule."""

from typing import Any

from peft import AdaLoraConfig, PeftModel
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from balora.baselines.base import add_adapter
from balora.errors import BALoraError

#: The initial rank over the final average rank, as in the paper's appendix.
INITIAL_RANK_RATIO = 1.5
#: Fractions of training (near the paper's for GLUE): before ranks begin to fall, after they have fallen, and between
#: two reductions.
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
    """Add AdaLoRA to a pretrained model. Train it with `AdaLoraCallback`, without which no rank falls.

    Args:
        model: Changed in place.
        r: Final rank, on average over the layers; the initial rank is 1.5 times that.
        lora_alpha: As in PEFT's `AdaLoraConfig`.
        lora_dropout: As in PEFT.
        target_modules: As in PEFT.
        target_parameters: Must be `None` or empty: PEFT's AdaLoRA does not adapt parameters.
        modules_to_save: As in PEFT.

    Raises:
        BALoraError: If the model's task is not supported, a target module matches nothing, or parameters are named.
    """
    if target_parameters:
        raise BALoraError(
            "target_parameters: PEFT's AdaLoRA adapts only linear layers; in a recipe, set "
            "`method_settings: {adalora: {target_parameters: null}}` to leave the experts unchanged"
        )
    config = AdaLoraConfig(
        target_r=r,
        init_r=round(INITIAL_RANK_RATIO * r),
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=target_modules,
        modules_to_save=modules_to_save,
        total_step=1,  # set by the callback
    )
    return add_adapter(model, config)


class AdaLoraCallback(TrainerCallback):
    """Trainer callback that sets AdaLoRA's schedule and reallocates its ranks after each optimizer step."""

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
        """Reallocate ranks after the optimizer's step and before gradients are cleared, as PEFT requires."""
        if any(parameter.grad is not None for parameter in model.parameters()):  # a skipped step has no gradients
            model.base_model.update_and_allocate(state.global_step + 1)
