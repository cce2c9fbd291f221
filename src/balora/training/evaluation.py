"""`EvaluationMixin`: an evaluation on every row, whose loss does not depend on the batch size."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from balora.fused import Reader, TokenScorer
from balora.model.generation import BALoraModelForGeneration
from balora.utils.batches import with_decoder_inputs

IGNORED = -100
#: Loss, logits and labels of a batch.
Prediction = tuple[Tensor | None, Any, Any]


class EvaluationMixin:
    """Mixin for trainers of Transformers and TRL, which average `eval_loss` over rows or batches.

    A language model's `eval_loss` is the mean over all predicted tokens, as `balora.evaluation.perplexity` has it, and
    a `BALoraModel`'s is computed in chunks of tokens where no logits are asked for.
    `dataloader_drop_last` is for training: an evaluation reads the last rows too.
    """

    _evaluated: Tensor | None = None  # (2,): sum of losses and number of tokens
    _scorer: TokenScorer | Literal[False] | None = None  # False for a model that needs its own loss

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Return batches of all rows."""
        dropped, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = dropped

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate, and replace the loss by the mean over tokens."""
        self._evaluated, self._scorer = torch.zeros(2, dtype=torch.float64), None
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        own = self._evaluated.float().to(self.args.device) if self.args.world_size > 1 else self._evaluated
        total, count = self.accelerator.reduce(own, reduction="sum").tolist()
        name = f"{metric_key_prefix}_loss"
        if count and name in output.metrics:
            output.metrics[name] = total / count
        self._evaluated = None
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Prediction:
        """Predict one batch, and add its loss to the sum."""
        loss = self._loss_of_tokens(model, self._prepare_inputs(inputs)) if prediction_loss_only else None
        if loss is None:
            return self._tallied(self._predict(model, inputs, prediction_loss_only, ignore_keys), inputs)
        return self._tallied((loss, None, None), inputs)

    def _predict(self, *args: Any) -> Prediction:
        """Predict one batch as the parent class does."""
        return super().prediction_step(*args)

    def _loss_of_tokens(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
        """Return the mean loss of a batch of a `BALoraModel` that writes text, without logits; else `None`."""
        labels = inputs.get("labels")
        if labels is None or not isinstance(self.model, BALoraModelForGeneration):
            return None
        given = {name: value for name, value in inputs.items() if name not in ("labels", "num_items_in_batch")}
        if self.model.config.is_encoder_decoder:
            given = with_decoder_inputs(self.model, given, labels)
        if self._scorer is None:
            self._scorer = TokenScorer(Reader(model, self.model)) if self.model.loss_is_of_tokens(given) else False
        targets = labels[:, self.model.shift :]
        counted = targets != IGNORED
        if not self._scorer or not counted.any():
            return None
        return -self._scorer(given, targets, counted).log_p.mean().float()

    def _tallied(self, prediction: Prediction, inputs: dict[str, Any]) -> Prediction:
        """Add a batch's mean loss, times its number of predicted tokens, to the sum."""
        labels = inputs.get("labels")
        if self._evaluated is not None and prediction[0] is not None and labels is not None and labels.dim() == 2:
            shift = 0 if self.model.config.is_encoder_decoder else 1
            count = int((labels[:, shift:] != IGNORED).sum())
            if count:
                self._evaluated += torch.tensor([prediction[0].item() * count, count], dtype=torch.float64)
        return prediction
