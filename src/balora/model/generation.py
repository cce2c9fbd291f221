"""The generation objective, for models that write text: from hidden states where possible, else from logits.

A task's model says how labels and logits are aligned (`shift`), which tokens the regularizers see (`_counted`), and
which inputs it needs to give logits without labels (`_complete`).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from balora.adapters.bias_path import RandomState, bias_path_term
from balora.adapters.selora import first_gate_only, sentence_gates
from balora.adapters.task_adapters import TaskIds, first_task_only, task_routing
from balora.anchors import Anchors
from balora.counterfactual import Swaps
from balora.errors import BALoraError
from balora.fused import HeadSpectrum, fused_token_loss, head_aside, head_of, router_loss, why_not_fused
from balora.losses import dft_loss
from balora.losses.bias_path import mean_of_tokens
from balora.model.anchor_term import TaughtAnchors, anchor_term, teach_anchors
from balora.model.base import BALoraModel, BALoraOutput, BatchCounts
from balora.model.regularizers import generation_terms, needs_teacher, token_terms, weighted_sum
from balora.model.replay_term import replay_term
from balora.model.teacher_output import taught_hidden, taught_logits
from balora.teacher_cache import SequenceCache
from balora.utils.batches import pick_examples, select_examples
from balora.utils.distributed import gather_rows, is_sharded
from balora.utils.modules import recorded_inputs


@dataclass(frozen=True)
class _MicroBatch:
    """A micro-batch and its part in the accumulated batch.

    Attributes:
        inputs: The model's inputs without labels.
        labels: `(B, S)`.
        mask: `(B, S)`, tokens that the regularizers see; `None` for all.
        picked: `(B,)`, sequences that the teacher sees.
        items: Number of labelled tokens.
        total: Number that the task loss's sum is divided by.
        share: Factor on the regularizers, this micro-batch's share of the accumulated batch's tokens.
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
        anchors: Texts of the self-anchor term; `None` until set.
        teacher_cache: The teacher's hidden states on anchors; `None` for a teacher that reads them in every step.
    """

    shift: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fused: bool | None = None if self.balora_config.fused_lm_head else False
        self._spectrum = HeadSpectrum(seed=self.balora_config.seed)
        self.anchors: Anchors | None = None
        self.teacher_cache: SequenceCache | None = None
        # Ranks of a sharded model must all run the teacher or none, and a cache may make them differ. In distributed
        # runs the trainer, which knows whether weights are sharded, turns it on.
        if not torch.distributed.is_initialized():
            self.cache_teacher()

    def cache_teacher(self, directory: Path | None = None, writer: str = "0", *, rows: bool = False) -> None:
        """Cache the teacher's hidden states on the anchors, up to the configuration's `teacher_cache_mb` in memory.

        Args:
            directory: Folder to keep them in beyond this process.
            writer: Name of this process among those that train together.
            rows: Whether to keep those on the task's rows too, as far as they fit into memory: for rows that come
                again, in a causal language model, one text a row.
        """
        limit = self.balora_config.teacher_cache_mb
        self.teacher_cache = SequenceCache(limit, directory, writer, rows=rows) if limit else None

    def set_anchors(self, anchors: Anchors) -> None:
        """Set the texts of the self-anchor term; they are not saved with the model.

        Args:
            anchors: From `balora.anchors.sample_anchors` or `texts_as_anchors`.
        """
        self.anchors = anchors

    def teacher_forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run `BALoraModel.teacher_forward` without a key-value cache unless `use_cache` is given."""
        return super().teacher_forward(*args, **{"use_cache": False, **kwargs})

    def generate(
        self, *args: Any, sentence_embeds: Tensor | None = None, task_ids: TaskIds | None = None, **kwargs: Any
    ) -> Any:
        """Generate as PEFT and Transformers do, each row and its beams with the row's own gate or task adapter.

        Args:
            *args: As for Transformers' `generate`.
            sentence_embeds: `(B, sentence_dim)`, SeLoRA's, one for each row of the inputs.
            task_ids: As in `forward`.
            **kwargs: As for Transformers' `generate`.

        Raises:
            BALoraError: If SeLoRA does not get one sentence vector for each row, or another method gets any;
                likewise for tasks.
        """
        given = {"inputs": args[0], **kwargs} if args else kwargs
        with torch.no_grad(), sentence_gates(self, sentence_embeds, given), task_routing(self, task_ids, given):
            return super().generate(*args, **kwargs)

    def _complete(self, inputs: dict[str, Any], labels: Tensor) -> dict[str, Any]:
        """Return the inputs with everything that the model needs to give logits for these labels without them."""
        raise NotImplementedError

    def _counted(self, inputs: dict[str, Any], labels: Tensor) -> Tensor | None:
        """Return the mask of tokens that the regularizers see, `(B, S)`; `None` for all."""
        raise NotImplementedError

    def counts_of(self, inputs: dict[str, Any], labels: Tensor) -> BatchCounts:
        """Count labelled tokens and the tokens that the regularizers see."""
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
        picked = self._pick_sequences(len(labels)) if needs_teacher(weights) else torch.zeros(len(labels)).bool()
        mask = self._counted(inputs, labels)
        batch = _MicroBatch(inputs, labels, mask, picked.to(labels.device), here.items, total, share)
        return self._from_hidden_states(batch, weights) if self._fused else self._from_logits(batch, weights)

    def loss_is_of_tokens(self, inputs: dict[str, Any]) -> bool:
        """Return whether the loss in evaluation is the mean over labelled tokens of what their scores give.

        Args:
            inputs: The first batch, with all inputs of the decoder.
        """
        if getattr(self.get_base_model().config, "output_router_logits", False):
            return False  # the routers' loss is added
        if self._fused is not None:
            return self._fused
        with first_gate_only(self), first_task_only(self.task_rows):
            return why_not_fused(self.get_base_model(), inputs, shift=self.shift) is None

    def _from_hidden_states(self, batch: _MicroBatch, weights: dict[str, float]) -> BALoraOutput:
        base, config = self.get_base_model(), self.balora_config
        # First, because anchors reserve memory that rows may not take.
        anchors = teach_anchors(self, self.anchors, len(batch.labels), weights, fused=True)
        cache = self._cache_of_rows(batch.inputs)
        taught = self._teach(
            batch, weights, lambda seen: taught_hidden(self, seen, batch.picked, config.sample_rate, cache)
        )
        before = self._random_state()
        with head_aside(base) as received:
            output = self._student(**batch.inputs)
        hidden, head = received[0], head_of(base)
        loss, of_tokens = fused_token_loss(
            hidden,
            head,
            batch.labels,
            batch.mask,
            taught,
            config,
            token_terms(config, weights),
            shift=self.shift,
            total_items=batch.total,
            share=batch.share,
        )
        terms = {}
        if weights["spectral"]:
            rows = hidden.flatten(0, 1) if batch.mask is None else hidden[batch.mask.bool()]  # (M, d)
            rows = gather_rows(rows) if config.gather_batch_terms else rows
            terms["spectral"] = self._spectrum.loss(rows, head, k=config.spectral_k)
        router = router_loss(base, output)
        if router is not None:  # a mean over this micro-batch's tokens, so it is weighted as the regularizers are
            terms["router"], weights = router, {**weights, "router": 1.0}
        terms |= self._further_terms(batch, received, before, anchors)
        loss, components = weighted_sum(terms, batch.share, weights, start=loss)
        return BALoraOutput(loss=loss, components=of_tokens | components)

    def _from_logits(self, batch: _MicroBatch, weights: dict[str, float]) -> BALoraOutput:
        base, config = self.get_base_model(), self.balora_config
        teacher_logits = self._teach(batch, weights, lambda seen: taught_logits(self, seen, config.temperature))
        anchors = teach_anchors(self, self.anchors, len(batch.labels), weights, fused=False)
        before = self._random_state()
        with recorded_inputs(base.get_output_embeddings()) as received:
            output = self._student(**batch.inputs, labels=batch.labels)
        terms = generation_terms(output.logits, teacher_logits, batch.mask, batch.picked, config, weights)
        terms |= self._further_terms(batch, received, before, anchors)
        # The task loss is the model's own, so that what it adds stays. It is a mean over the labelled tokens here,
        # since not every model accepts their number in the whole batch.
        own, router = output.loss, router_loss(base, output)
        if router is not None:
            own = own - router
            terms, weights = {"router": router, **terms}, {"router": 1.0, **weights}
        task_loss = torch.where(batch.items > 0, own, 0.0) * (batch.items / batch.total)
        if config.task_loss == "dft":
            targets = F.pad(batch.labels[:, self.shift :], (0, self.shift), value=-100)  # (B, S)
            labelled = targets != -100
            task_loss = dft_loss(output.logits[labelled], targets[labelled]).sum() / batch.total
        regularizers, components = weighted_sum(terms, batch.share, weights)
        components = {"task": task_loss.detach(), **components}
        return BALoraOutput(loss=task_loss + regularizers, logits=output.logits, components=components)

    def _teach(
        self, batch: _MicroBatch, weights: dict[str, float], teacher: Callable[[dict[str, Any]], Any]
    ) -> Any | None:
        """Return the teacher's output on the sequences picked; `None` if there are none."""
        if batch.picked.any():
            return teacher(select_examples(batch.inputs, batch.picked))
        if needs_teacher(weights) and is_sharded(self):
            # FSDP gathers weights collectively, so every rank must run the teacher, even if it picked no sequence.
            teacher(select_examples(batch.inputs, _first(batch.picked)))
        return None

    def _cache_of_rows(self, inputs: dict[str, Any]) -> SequenceCache | None:
        """Return the cache of the teacher's states if it may keep those on these rows."""
        one_text_each = inputs.get("attention_mask") is not None and inputs.get("position_ids") is None
        if self.teacher_cache is None or not self.teacher_cache.rows or is_sharded(self) or not self.shift:
            return None
        return self.teacher_cache if one_text_each and inputs.get("input_ids") is not None else None

    def _further_terms(
        self, batch: _MicroBatch, received: list[Tensor], before: RandomState, anchors: TaughtAnchors | None
    ) -> dict[str, Tensor]:
        """Return the unweighted terms that need no logits of the batch: of the adapters, and of further passes."""
        terms = self._adapter_terms() | self._bias_terms(batch, received, before)
        if anchors is not None:
            terms["anchor"] = anchor_term(self, self._student, anchors, shift=self.shift, fused=self._fused)
        if self.balora_config.replay_weight:
            how = {"shift": self.shift, "fused": self._fused}
            terms["replay"] = replay_term(self, self._student, self.anchors, len(batch.labels), **how)
        return terms

    def _bias_terms(self, batch: _MicroBatch, received: list[Tensor], before: RandomState) -> dict[str, Tensor]:
        """Return the unweighted bias path; empty where it is off. f is the mean of a row's tokens before the head.

        Args:
            batch: The micro-batch; f is the mean over the tokens that the regularizers see.
            received: The head's inputs in the ordinary pass, `(B, S, d)`.
            before: The random state at the start of that pass.

        Raises:
            BALoraError: If the head did not get all hidden states in one call.
        """
        if not self.balora_config.bias_path_weight:
            return {}
        base, mask = self.get_base_model(), batch.mask
        if len(received) != 1:
            raise BALoraError(
                f"bias_path_weight: {type(base).__name__} does not pass all hidden states to its head in one call, "
                "and the bias path compares those; use 0"
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
        """Set the words that the teacher is averaged over, as `BALoraModel.set_swaps`.

        A fused softcapped head falls back to whole logits.
        """
        super().set_swaps(swaps)
        head = head_of(self.get_base_model(), pretrained=True)
        if self._fused is not False and head is not None and head.softcap is not None:
            self._fused = False
            self._warn_of_whole_logits("an average of capped logits is not one of capped logits")

    def _student(self, **inputs: Any) -> Any:
        """Run the forward of PEFT's class for the task, without the objective."""
        return super(BALoraModel, self).forward(**inputs)

    def _pick_sequences(self, count: int) -> Tensor:
        """Pick which of `count` sequences the teacher sees, `(count,)` bool."""
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
    """Return a mask `(B,)` of the first sequence only."""
    return torch.arange(len(picked), device=picked.device) == 0
