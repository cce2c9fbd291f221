"""`BALoraSFTTrainer`: TRL's data machinery (chat templates, completion-only loss, packing) with our objective."""

from typing import Any

from torch import Tensor, nn
from transformers import Trainer
from trl import SFTTrainer

from balora.config import SELORA
from balora.errors import BALoraError
from balora.training.trainer import ObjectiveTrainerMixin, row_inputs


class BALoraSFTTrainer(ObjectiveTrainerMixin, SFTTrainer):
    """TRL's `SFTTrainer` for a `BALoraModel`; takes the same arguments, logs what `BALoraTrainer` logs.

    As TRL's it has a mixture of experts balance its routers, unless `router_aux_loss_coef` is 0.

    Raises:
        BALoraError: If `router_aux_loss_coef` is given for a model that computes no such loss, or rows that have a
            sentence (SeLoRA) or a task of their own are to be put together into one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if row_inputs(self.model.balora_config) and (self.args.packing or self.padding_free):
            one = (
                "selora has one sentence vector" if self.model.balora_config.method == SELORA else "there is one task"
            )
            raise BALoraError(
                f"packing: it puts several examples into one row, and {one} for each row; leave packing and "
                "padding_free out"
            )
        coefficient, base = self.args.router_aux_loss_coef, self.model.get_base_model()
        if coefficient is not None:
            if coefficient and not hasattr(base, "router_aux_loss_coef"):
                raise BALoraError(
                    f"router_aux_loss_coef: {type(base).__name__} computes no loss of its routers; leave it out"
                )
            # TRL writes the configuration, from which a model has taken its own already.
            base.router_aux_loss_coef = coefficient

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As Transformers' does: TRL's would run the model a second time for logits it does not keep."""
        return Trainer.prediction_step(self, model, inputs, prediction_loss_only, ignore_keys)
