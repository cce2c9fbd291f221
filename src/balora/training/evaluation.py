"""`EvaluationMixin`: an evaluation on every row, whose loss does not depend on the batch size."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

IGNORED = -100
#: Loss, logits and labels of a batch.
Prediction = tuple[Tensor | None, Any, Any]


class EvaluationMixin:
    """Mixin for trainers of Transformers and TRL, which average `eval_loss` over rows or batches.

    A language model's `eval_loss` is the mean over all predicted tokens, as `balora.evaluation.perplexity` has it.
    `dataloader_drop_last` is for training: an evaluation reads the last rows too.
    """

    _evaluated: Tensor | None = None  # (2,): sum of losses and number of tokens

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Return batches of all rows."""
        dropped, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = dropped

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate, and replace the loss by the mean over tokens."""
        self._evaluated = torch.zeros(2, dtype=torch.float64)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        own = self._evaluated.float().to(self.args.device) if self.args.world_size > 1 else self._evaluated
        total, count = self.accelerator.reduce(own, reduction="sum").tolist()
        name = f"{metric_key_prefix}_loss"
        if count and name in output.metrics:
            output.metrics[name] = total / count
        self._evaluated = None
        return output

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Prediction:
        """Predict one batch, and add its loss to the sum."""
        return self._tallied(super().prediction_step(model, inputs, *args, **kwargs), inputs)

    def _tallied(self, prediction: Prediction, inputs: dict[str, Any]) -> Prediction:
        """Add a batch's mean loss, times its number of predicted tokens, to the sum."""
        labels = inputs.get("labels")
        if self._evaluated is not None and prediction[0] is not None and labels is not None and labels.dim() == 2:
            shift = 0 if self.model.config.is_encoder_decoder else 1
            count = int((labels[:, shift:] != IGNORED).sum())
            if count:
                self._evaluated += torch.tensor([prediction[0].item() * count, count], dtype=torch.float64)
        return prediction
