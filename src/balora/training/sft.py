"""`BALoraSFTTrainer`: TRL's data machinery (chat templates, completion-only loss, packing) with our objective."""

from typing import Any

from torch import Tensor, nn
from transformers import Trainer
from trl import SFTTrainer

from balora.training.trainer import ObjectiveTrainerMixin


class BALoraSFTTrainer(ObjectiveTrainerMixin, SFTTrainer):
    """TRL's `SFTTrainer` for a `BALoraModel`; takes the same arguments, logs what `BALoraTrainer` logs."""

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As Transformers' does: TRL's would run the model a second time for logits it does not keep."""
        return Trainer.prediction_step(self, model, inputs, prediction_loss_only, ignore_keys)
