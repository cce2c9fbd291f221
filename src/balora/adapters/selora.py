"""SeLoRA: LoRA adapters gated by each row's sentence embedding, ΔW(s) = scaling·A·f(s)·B.

The paper's names are swapped in PEFT: A `(out, r)` is PEFT's `lora_B` and B `(r, in)` its `lora_A`. Layers are PEFT's
own with a `LoraVariant`, PEFT's hook for what a layer computes between its factors. f is a `SentenceGate`, a module of
the model.

`sentence_gates` stores each layer's gates in its variant before the forward pass. In training they stay until the next
batch, since gradient checkpointing runs layers again in the backward pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from balora.adapters.teacher import STUDENT, lora_layers
from balora.config import BALoraConfig
from balora.errors import BALoraError
from balora.losses import semantic_loss
from balora.utils.batches import count_rows


class SentenceGate(nn.Module):
    """The gates M(s) = I + H·gelu(T·ŝ + t) + h of all adapted layers; H and h start at 0, so every M starts at I.

    ŝ = √d·s/‖s‖: as in the semantic loss's cosine, the length of an embedding has no effect.

    With L layers of rank r, embeddings of size d and hidden size w, the heads H have Σ_layers r²·(w + 1) parameters,
    and a shared trunk T has (d + 1)·w, or L·(d + 1)·w if each layer has its own. For T5-base (144 attention
    projections, r = 8, w = 64) and d = 384 that is 0.62 M and 4.15 M, beside 1.77 M of A and B.

    Args:
        ranks: r of each layer, in the model's order.
        sentence_dim: d.
        hidden: w.
        shared: Whether all layers share one trunk.
    """

    def __init__(self, ranks: Sequence[int], *, sentence_dim: int, hidden: int, shared: bool) -> None:
        super().__init__()
        self.ranks = tuple(ranks)
        self.trunks = nn.ModuleList(nn.Linear(sentence_dim, hidden) for _ in range(1 if shared else len(ranks)))
        self.heads = nn.ModuleList(nn.Linear(hidden, r * r) for r in ranks)
        for head in self.heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, s: Tensor) -> list[Tensor]:
        """Map sentence embeddings `(B, d)` to gates `(B, r, r)` of each layer, in the parameters' dtype."""
        weight = self.trunks[0].weight
        with torch.autocast(weight.device.type, enabled=False):  # half precision would round small changes of I away
            s = s.to(weight)
            direction = s.shape[1] ** 0.5 * F.normalize(s, dim=1)
            hidden = [F.gelu(trunk(direction)) for trunk in self.trunks]  # (B, w) each
            hidden = hidden * (len(self.heads) // len(hidden))
            changes = [head(h).view(-1, r, r) for head, h, r in zip(self.heads, hidden, self.ranks, strict=True)]
            return [torch.eye(r).to(weight) + change for r, change in zip(self.ranks, changes, strict=True)]


class GatedLora(LoraVariant):
    """LoRA with a gate between its factors, one for each row.

    Attributes:
        gate: f(s) `(B, r, r)` of the batch's rows; `None` between batches.
    """

    gate: Tensor | None = None

    def supports_lora_conversion(self) -> bool:
        """Return False: a plain LoRA has one product, SeLoRA one for each sentence."""
        return False

    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """Add the gated adapter's output to the base layer's.

        Args:
            module: The layer.
            active_adapter: Name of the adapter.
            x: `(n·B, ..., in)`; the n rows that generation makes of one (beams) are adjacent.
            result: Output of the base layer, `(n·B, ..., out)`.

        Raises:
            BALoraError: If there is no gate, not one for each row, or reentrant checkpointing cuts its gradient.
        """
        if self.gate is None:
            raise BALoraError(
                "sentence_embeds: missing, and selora's weights depend on each row's sentence embedding; pass them to "
                "forward and generate beside input_ids (balora.data.add_sentence_embeds makes them from texts)"
            )
        if self.gate.requires_grad and not torch.is_grad_enabled():
            raise BALoraError(
                "gradient checkpointing: with use_reentrant=True no gradient reaches selora's gates; use "
                "gradient_checkpointing_kwargs={'use_reentrant': False}"
            )
        inner = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))  # (n·B, ..., r)
        if len(inner) % len(self.gate):
            raise BALoraError(
                f"sentence_embeds: {len(self.gate)} embeddings for {len(inner)} rows; give one for each row"
            )
        rows = inner.reshape(len(self.gate), -1, inner.shape[-1])  # (B, n·..., r)
        gated = (rows @ self.gate.to(rows).mT).view(inner.shape)
        return result + module.lora_B[active_adapter](gated) * module.scaling[active_adapter]

    def merge_safe(self, *_: Any) -> NoReturn:
        """Raise an error, where PEFT's default would silently do nothing: each sentence has its own product.

        Raises:
            BALoraError: Always.
        """
        raise BALoraError(
            "merge: selora's weights depend on the sentence; give merge_and_unload(sentence_embeds=…) one embedding, "
            "or several for their mean gate, or call merge_at(…) first, which makes it a plain LoRA"
        )

    merge_unsafe = unmerge = merge_safe

    def __getstate__(self) -> dict[str, Any]:
        """Return no state: a copied model has no current batch, and a gate with a graph cannot be copied."""
        return {}


def add_sentence_gates(model: PeftModel, config: BALoraConfig) -> SentenceGate:
    """Make the student's layers gated, and build their gates on the first layer's device and in its dtype.

    Args:
        model: A model with plain LoRA layers.
        config: Configuration with method `selora`.

    Raises:
        BALoraError: If a layer is not linear, or is another variant of LoRA.
    """
    layers = lora_layers(model)
    for name, layer in layers.items():
        base = layer.get_base_layer()
        if isinstance(layer, ParamWrapper) or not isinstance(base, (nn.Linear, Conv1D)):
            raise BALoraError(
                f"target_modules: {name} is a {type(base).__name__}, and selora gates linear layers only; leave it out"
            )
        for variant in layer.lora_variant.values():
            raise BALoraError(
                f"method: selora gates plain LoRA, and {name} has PEFT's {type(variant).__name__}; leave that setting "
                "out"
            )
        layer.lora_variant[STUDENT] = GatedLora()
    gate = SentenceGate(
        [layer.r[STUDENT] for layer in layers.values()],
        sentence_dim=config.sentence_dim,
        hidden=config.gate_hidden,
        shared=config.gate == "shared",
    )
    gate.requires_grad_(not config.inference_mode)
    return gate.to(next(iter(layers.values())).lora_A[STUDENT].weight)


def check_sentence_embeds(s: Tensor, inputs: dict[str, Any], config: BALoraConfig) -> None:
    """Check that there is one embedding of the right size for each row.

    Args:
        s: `(B, d)`.
        inputs: The model's inputs, which give the number of rows (`balora.utils.batches.count_rows`).
        config: The model's configuration.

    Raises:
        BALoraError: If the shape is wrong, or the method is not SeLoRA.
    """
    if not config.gated:
        raise BALoraError(
            f"sentence_embeds: method {config.method} does not use them, only selora does; leave them out"
        )
    rows = count_rows(inputs) or len(s)
    if s.shape != (rows, config.sentence_dim):
        raise BALoraError(
            f"sentence_embeds: shape {tuple(s.shape)} for {rows} rows and sentence_dim {config.sentence_dim}; give "
            f"{(rows, config.sentence_dim)}"
        )


def gated_layers(model: PeftModel) -> list[LoraLayer]:
    """Return the layers whose student is gated, in the model's order."""
    return [layer for layer in lora_layers(model).values() if isinstance(layer.lora_variant.get(STUDENT), GatedLora)]


def set_gates(model: PeftModel, gates: list[Tensor] | None) -> None:
    """Set each layer's gates `(B, r, r)`, or remove them with `None`."""
    layers = gated_layers(model)
    for layer, gate in zip(layers, gates or [None] * len(layers), strict=True):
        layer.lora_variant[STUDENT].gate = gate


@contextmanager
def sentence_gates(
    model: PeftModel, s: Tensor | None, inputs: dict[str, Any], *, keep: bool = False
) -> Iterator[None]:
    """Context manager: set the sentence embeddings that SeLoRA's gates read; no effect for other methods.

    Args:
        model: A `BALoraModel` of any method.
        s: `(B, sentence_dim)`; with `None` a gated layer raises an error when it runs.
        inputs: The model's inputs of the B rows.
        keep: Whether the gates stay set on exit, until the next batch.

    Raises:
        BALoraError: If there is not one embedding for each row, or the method is not SeLoRA.
    """
    if s is not None:
        check_sentence_embeds(s, inputs, model.balora_config)
    if model.lora_gate is None:
        yield
        return
    set_gates(model, None if s is None else model.lora_gate(s))
    model.sentences = s
    try:
        yield
    finally:
        if not keep:
            set_gates(model, None)
            model.sentences = None


@contextmanager
def first_gate_only(model: PeftModel) -> Iterator[None]:
    """Context manager: keep only the gate of the batch's first row, detached, to run that row alone."""
    gates = [layer.lora_variant[STUDENT].gate for layer in gated_layers(model)]
    set_gates(model, [gate if gate is None else gate[:1].detach() for gate in gates])
    try:
        yield
    finally:
        set_gates(model, gates)


def semantic_term(model: PeftModel, s: Tensor, config: BALoraConfig) -> Tensor:
    """Return `balora.losses.semantic_loss` of the present gates, scaling included, as a mean over the layers.

    Args:
        model: A model whose gates are set.
        s: `(B, d)`, the sentence embeddings of those gates.
        config: Supplies `semantic_min_similarity` and `semantic_reduction`.
    """
    how = {"min_similarity": config.semantic_min_similarity, "reduction": config.semantic_reduction}
    terms = []
    for layer in gated_layers(model):
        a, b = layer.scaling[STUDENT] * layer.lora_B[STUDENT].weight, layer.lora_A[STUDENT].weight  # (out, r), (r, in)
        gate = layer.lora_variant[STUDENT].gate.to(b.device)  # (B, r, r)
        terms.append(semantic_loss(a, b, gate, s.to(b.device), **how).to(s.device))
    return torch.stack(terms).mean()


@torch.no_grad()
def fold_gates(model: PeftModel, gates: list[Tensor]) -> None:
    """Make the layers plain LoRA: `lora_B` becomes lora_B·M, with M the mean of each layer's gates `(N, r, r)`."""
    for layer, gate in zip(gated_layers(model), gates, strict=True):
        b = layer.lora_B[STUDENT].weight  # (out, r)
        b.copy_(b @ gate.mean(0).to(b))
        del layer.lora_variant[STUDENT]
