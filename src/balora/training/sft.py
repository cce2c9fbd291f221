"""`BALoraSFTTrainer`: TRL's data preparation (chat templates, completion-only loss, packing) with the objective."""

from typing import Any

from torch import Tensor, nn
from transformers import Trainer
from trl import SFTTrainer

from balora.config import SELORA
from balora.errors import BALoraError
from balora.training.collator import adapter_inputs
from balora.training.packing import PackingMixin
from balora.training.trainer import ObjectiveTrainerMixin
from balora.training.truncation import TruncationMixin


class BALoraSFTTrainer(PackingMixin, ObjectiveTrainerMixin, TruncationMixin, SFTTrainer):
    """TRL's `SFTTrainer` for a `BALoraModel`; takes the same arguments, logs what `BALoraTrainer` logs.

    As in TRL, a mixture of experts trains with its router loss, unless `router_aux_loss_coef` is 0.

    Raises:
        BALoraError: If `router_aux_loss_coef` is given for a model without router loss, or packing would join rows of
            different sentences (SeLoRA) or tasks.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if adapter_inputs(self.model.balora_config) and (self.args.packing or self.padding_free):
            one = (
                "selora has one sentence vector" if self.model.balora_config.method == SELORA else "there is one task"
            )
            raise BALoraError(
                f"packing: it joins several examples into one row, and {one} for each row; leave packing and "
                "padding_free out"
            )
        coefficient, base = self.args.router_aux_loss_coef, self.model.get_base_model()
        if coefficient is not None:
            if coefficient and not hasattr(base, "router_aux_loss_coef"):
                raise BALoraError(f"router_aux_loss_coef: {type(base).__name__} has no router loss; leave it out")
            # TRL only changes the configuration, which the model has already read.
            base.router_aux_loss_coef = coefficient

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Run Transformers' step: TRL's would run the model a second time for logits that it discards."""
        prediction = Trainer.prediction_step(self, model, inputs, prediction_loss_only, ignore_keys)
        return self._tallied(prediction, inputs)
