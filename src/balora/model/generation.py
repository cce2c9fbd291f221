"""What models that write text share: the generation objective, from hidden states where possible, else from logits.

A task says how its labels stand to its logits (`shift`), which tokens the regularizers see (`_counted`), and what the
model must be given besides (`_complete`).
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from balora.adapters.bias_path import RandomState, bias_path_term
from balora.adapters.selora import first_gate_only, sentence_gates
from balora.adapters.task_adapters import TaskIds, first_task_only, task_routing
from balora.anchors import Anchors
from balora.counterfactual import Swaps
from balora.errors import BALoraError
from balora.fused import (
    HeadSpectrum,
    fused_generation_loss,
    head_aside,
    head_of,
    router_loss,
    why_not_fused,
)
from balora.losses.bias_path import mean_of_tokens
from balora.model.anchor_term import TaughtAnchors, anchor_term, teach
from balora.model.base import BALoraModel, BALoraOutput, BatchCounts, combined
from balora.model.teacher_output import taught_hidden, taught_logits
from balora.model.terms import generation_terms
from balora.utils.batches import pick_examples, select_examples
from balora.utils.distributed import is_sharded
from balora.utils.modules import recorded_inputs


@dataclass(frozen=True)
class _MicroBatch:
    """A micro-batch, and how much of it counts.

    Attributes:
        inputs: What the model takes, labels aside.
        labels: `(B, S)`.
        mask: `(B, S)`, tokens that the regularizers see; `None` for all.
        picked: `(B,)`, sequences that the teacher sees.
        items: Labelled tokens here.
        total: What the task loss's sum is divided by.
        share: What the regularizers are multiplied by.
    """

    inputs: dict[str, Any]
    labels: Tensor
    mask: Tensor | None
    picked: Tensor
    items: Tensor
    total: Tensor | int
    share: Tensor | float


class BALoraModelForGeneration(BALoraModel):
    """A language model with an adapter and the generation objective.

    Attributes:
        shift: The logits at position t predict `labels[t + shift]`.
        anchors: What `anchor_weight` holds the model to; `None` until set.
    """

    shift: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fused: bool | None = None if self.balora_config.fused_lm_head else False
        self._spectrum = HeadSpectrum(seed=self.balora_config.seed)
        self.anchors: Anchors | None = None

    def set_anchors(self, anchors: Anchors) -> None:
        """Give the texts that `anchor_weight` holds the model to; they are not saved with it.

        Args:
            anchors: From `balora.anchors.sample_anchors` or `texts_as_anchors`.
        """
        self.anchors = anchors

    def teacher_forward(self, *args: Any, **kwargs: Any) -> Any:
        """As `BALoraModel.teacher_forward`; nothing is generated, so no cache is filled unless asked for."""
        return super().teacher_forward(*args, **{"use_cache": False, **kwargs})

    def generate(
        self, *args: Any, sentence_embeds: Tensor | None = None, task_ids: TaskIds | None = None, **kwargs: Any
    ) -> Any:
        """As PEFT's and Transformers'; each row, its beams and what it returns have its own sentence's gate or task.

        Args:
            *args: Theirs.
            sentence_embeds: `(B, sentence_dim)`, SeLoRA's, one for each row of the inputs.
            task_ids: As in `forward`.
            **kwargs: Theirs.

        Raises:
            BALoraError: If SeLoRA has not one sentence vector for each row, or another method has any; the same of
                tasks.
        """
        given = {"inputs": args[0], **kwargs} if args else kwargs
        with torch.no_grad(), sentence_gates(self, sentence_embeds, given), task_routing(self, task_ids, given):
            return super().generate(*args, **kwargs)

    def _complete(self, inputs: dict[str, Any], labels: Tensor) -> dict[str, Any]:
        """The inputs with all that the model needs to give logits for these labels without being given them."""
        raise NotImplementedError

    def _counted(self, inputs: dict[str, Any], labels: Tensor) -> Tensor | None:
        """Which tokens the regularizers see, `(B, S)`; `None` for all."""
        raise NotImplementedError

    def counts_of(self, inputs: dict[str, Any], labels: Tensor) -> BatchCounts:
        """As `BALoraModel.counts_of`."""
        mask = self._counted(inputs, labels)
        items = (labels[..., self.shift :] != -100).sum()
        return BatchCounts(items, labels.numel() if mask is None else mask.sum())

    def _objective(
        self, inputs: dict[str, Any], labels: Tensor, weights: dict[str, float], counts: BatchCounts
    ) -> BALoraOutput:
        inputs = self._complete({"use_cache": False, **inputs}, labels)
        if self._fused is None:
            self._fused = self._can_fuse(inputs)
        here = self.counts_of(inputs, labels)
        # Dividing by at least one keeps a micro-batch without labelled tokens at 0 instead of NaN.
        total = here.items.clamp(min=1) if counts.items is None else counts.items
        if counts.tokens is not None:
            share = here.tokens / counts.tokens
        else:
            share = 1.0 if counts.items is None else here.items / total
        picked = self._pick_sequences(len(labels)) if weights["consistency"] else torch.zeros(len(labels)).bool()
        mask = self._counted(inputs, labels)
        batch = _MicroBatch(inputs, labels, mask, picked.to(labels.device), here.items, total, share)
        return self._from_hidden_states(batch, weights) if self._fused else self._from_logits(batch, weights)

    def _from_hidden_states(self, batch: _MicroBatch, weights: dict[str, float]) -> BALoraOutput:
        base = self.get_base_model()
        taught = None
        if batch.picked.any():
            seen = select_examples(batch.inputs, batch.picked)
            taught = taught_hidden(self, seen, batch.picked, self.balora_config.sample_rate)
        elif weights["consistency"] and is_sharded(self):
            # Others' weights are gathered with ours: the teacher runs here too, for nobody.
            taught_hidden(self, select_examples(batch.inputs, _first(batch.picked)), batch.picked, 1.0)
        anchors = self._taught_anchors(batch, fused=True)
        before = self._random_state()
        with head_aside(base) as received:
            output = self._student(**batch.inputs)
        loss, components = fused_generation_loss(
            received[0],
            head_of(base),
            batch.labels,
            batch.mask,
            taught,
            self.balora_config,
            weights,
            self._spectrum,
            shift=self.shift,
            total_items=batch.total,
            share=batch.share,
        )
        router = router_loss(base, output)
        if router is not None:
            # Of this micro-batch's tokens, so it weighs as the regularizers do.
            loss = loss + batch.share * router
            components["router"] = batch.share * router.detach()
        terms = self._adapter_terms() | self._bias_terms(batch, received, before)
        if anchors is not None:
            terms["anchor"] = anchor_term(self, self._student, anchors, self._spectrum, shift=self.shift, fused=True)
        for name, term in terms.items():
            loss = loss + batch.share * weights[name] * term
            components[name] = batch.share * term.detach()
        return BALoraOutput(loss=loss, components=components)

    def _from_logits(self, batch: _MicroBatch, weights: dict[str, float]) -> BALoraOutput:
        teacher_logits = None
        if batch.picked.any():
            seen = select_examples(batch.inputs, batch.picked)
            teacher_logits = taught_logits(self, seen, self.balora_config.temperature)
        elif weights["consistency"] and is_sharded(self):
            taught_logits(self, select_examples(batch.inputs, _first(batch.picked)), 1.0)
        anchors = self._taught_anchors(batch, fused=False)
        # The model's own loss, so that what it adds stays. It is a mean over the labelled tokens here: not every model
        # would take their number in the whole batch.
        before = self._random_state()
        with recorded_inputs(self.get_base_model().get_output_embeddings()) as received:
            output = self._student(**batch.inputs, labels=batch.labels)
        terms = generation_terms(output.logits, teacher_logits, batch.mask, batch.picked, self.balora_config, weights)
        terms |= self._adapter_terms() | self._bias_terms(batch, received, before)
        if anchors is not None:
            terms["anchor"] = anchor_term(self, self._student, anchors, self._spectrum, shift=self.shift, fused=False)
        own = output.loss
        router = router_loss(self.get_base_model(), output)
        if router is not None:
            own = own - router
            terms, weights = {"router": router, **terms}, {"router": 1.0, **weights}
        task_loss = torch.where(batch.items > 0, own, 0.0) * (batch.items / batch.total)
        return combined(output, task_loss, terms, batch.share, weights)

    def _bias_terms(self, batch: _MicroBatch, received: list[Tensor], before: RandomState) -> dict[str, Tensor]:
        """The bias path, unweighted; empty where it is off. f is the mean over a row's tokens before the head.

        Args:
            batch: The micro-batch; its tokens are those that the regularizers see.
            received: What the head was given in the ordinary pass, `(B, S, d)`.
            before: The random state that the pass began with.

        Raises:
            BALoraError: If the head was not given all hidden states at once.
        """
        if not self.balora_config.bias_path_weight:
            return {}
        base, mask = self.get_base_model(), batch.mask
        if len(received) != 1:
            raise BALoraError(
                f"bias_path_weight: {type(base).__name__} does not give its head all hidden states at once, and they "
                "are what the bias path compares; use 0"
            )

        def represent(inputs: dict[str, Any], picked: Tensor) -> Tensor:
            with head_aside(base) as hidden:
                self._student(**inputs)
            return mean_of_tokens(hidden[0], None if mask is None else mask[picked])

        tokens = torch.full_like(batch.labels[:, 0], batch.labels.shape[1]) if mask is None else mask.sum(1)
        plain = mean_of_tokens(received[0], mask)
        return {
            "bias_path": bias_path_term(
                base,
                self.lora_bias_path,
                represent,
                batch.inputs,
                plain,
                tokens,
                before,
                config=self.balora_config,
                sharded=is_sharded(self),
            )
        }

    def set_swaps(self, swaps: Swaps) -> None:
        """As `BALoraModel.set_swaps`."""
        super().set_swaps(swaps)
        head = head_of(self.get_base_model(), pretrained=True)
        if self._fused is not False and head is not None and head.softcap is not None:
            self._fused = False
            self._warn_of_whole_logits("an average of capped logits is not one of capped logits")

    def _taught_anchors(self, batch: _MicroBatch, *, fused: bool) -> TaughtAnchors | None:
        """This step's anchors with the teacher's part; `None` where they are off.

        Raises:
            BALoraError: If there are none to draw from.
        """
        config = self.balora_config
        if not config.anchor_weight:
            return None
        if self.anchors is None:
            raise BALoraError(
                "anchor_weight: there are no anchors; before training call model.set_anchors with what "
                "balora.anchors.sample_anchors made of the pretrained model, or use 0"
            )
        return teach(self, self.anchors, max(1, round(config.anchor_share * len(batch.labels))), fused=fused)

    def _student(self, **inputs: Any) -> Any:
        """The forward of PEFT's class for the task."""
        return super(BALoraModel, self).forward(**inputs)

    def _pick_sequences(self, count: int) -> Tensor:
        """Which of `count` sequences the teacher sees, `(count,)`."""
        return pick_examples(count, self.balora_config.sample_rate)

    def _can_fuse(self, inputs: dict[str, Any]) -> bool:
        with first_gate_only(self), first_task_only(self.task_rows):
            reason = why_not_fused(self.get_base_model(), inputs, shift=self.shift)
        if reason is not None:
            self._warn_of_whole_logits(reason)
        return reason is None

    def _warn_of_whole_logits(self, reason: str) -> None:
        warnings.warn(
            f"balora: {type(self.get_base_model()).__name__} trains on whole logits, which takes more time and "
            f"memory: {reason}"
        )


def _first(picked: Tensor) -> Tensor:
    """The first of them alone."""
    return torch.arange(len(picked), device=picked.device) == 0
