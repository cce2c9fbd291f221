"""SeLoRA: adapters that each row's sentence gates, ΔW(s) = scaling·A·f(s)·B.

PEFT's names are the other way round: A `(out, r)` is its `lora_B` and B `(r, in)` its `lora_A`. The layers are PEFT's
own, with a `LoraVariant`, which is PEFT's word for what a layer does between its factors. f is
`balora.adapters.selora.SentenceGate`, a module of the model.

What f gives stands in the layers' variants before the forward pass and stays there until the next one: gradient
checkpointing runs a layer again in the backward pass.
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
from balora.config import SELORA, BALoraConfig
from balora.errors import BALoraError
from balora.losses import semantic_loss


class SentenceGate(nn.Module):
    """M(s) = I + H·gelu(T·ŝ + t) + h, for every adapted layer; H and h start at zero, so every M starts at I.

    ŝ = √d·s/‖s‖: as in the semantic loss's cosine, a sentence vector's length says nothing.

    With L layers of ranks r, vectors of length d and a hidden width w there are Σ_layers r²·(w + 1) parameters in the
    heads H, and (d + 1)·w in a shared trunk T, or L·(d + 1)·w where each layer has its own. For T5-base (144 attention
    projections, r = 8, w = 64) and d = 384 that is 0.62 M and 4.15 M, beside 1.77 M of A and B.

    Args:
        ranks: r of each layer, in the model's order.
        sentence_dim: d.
        hidden: w.
        shared: Whether all layers have one trunk.
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
        """Sentence vectors `(B, d)` to `(B, r, r)` for each layer, in the parameters' precision."""
        weight = self.trunks[0].weight
        with torch.autocast(weight.device.type, enabled=False):  # beside I, small changes would be rounded away
            s = s.to(weight)
            direction = s.shape[1] ** 0.5 * F.normalize(s, dim=1)
            hidden = [F.gelu(trunk(direction)) for trunk in self.trunks]  # (B, w) each
            hidden = hidden * (len(self.heads) // len(hidden))
            changes = [head(h).view(-1, r, r) for head, h, r in zip(self.heads, hidden, self.ranks, strict=True)]
            return [torch.eye(r).to(weight) + change for r, change in zip(self.ranks, changes, strict=True)]


#: Inputs with a row for each sentence.
ROWS = ("input_ids", "inputs", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds", "labels")


class Gated(LoraVariant):
    """What stands between one layer's factors.

    Attributes:
        gate: f(s) `(B, r, r)` of the batch's rows; `None` between batches.
    """

    gate: Tensor | None = None

    def supports_lora_conversion(self) -> bool:
        """A plain LoRA has one product, and this has one for each sentence."""
        return False

    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """`result`, the base layer's output, plus that of the gated adapter.

        Args:
            module: The layer.
            active_adapter: The adapter's name in it.
            x: `(n·B, ..., in)`; rows that generation made of one (its beams) stand together.
            result: `(n·B, ..., out)`.

        Raises:
            BALoraError: If there is no gate, or not one for each row, or no gradient would reach it.
        """
        if self.gate is None:
            raise BALoraError(
                "sentence_embeds: missing, and selora's weights depend on each row's sentence vector; give them to "
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
                f"sentence_embeds: {len(self.gate)} vectors for {len(inner)} rows; give one for each row"
            )
        rows = inner.reshape(len(self.gate), -1, inner.shape[-1])  # (B, n·..., r)
        gated = (rows @ self.gate.to(rows).mT).view(inner.shape)
        return result + module.lora_B[active_adapter](gated) * module.scaling[active_adapter]

    def merge_safe(self, *_: Any) -> NoReturn:
        """Refused, where PEFT's default would do nothing: there is one product for each sentence.

        Raises:
            BALoraError: Always.
        """
        raise BALoraError(
            "merge: selora's weights depend on the sentence; give merge_and_unload(sentence_embeds=…) one vector, or "
            "several for their mean gate, or call merge_at(…) first, which makes it a plain LoRA"
        )

    merge_unsafe = unmerge = merge_safe

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: a copy of the model is between batches, and a gate that has a graph cannot be copied."""
        return {}


def attach_gates(model: PeftModel, config: BALoraConfig) -> SentenceGate:
    """Let the student's layers be gated, and make the gates, on the first layer's device and in its precision.

    Args:
        model: With plain LoRA layers.
        config: Method `selora`.

    Raises:
        BALoraError: If a layer is not a linear one, or another variant of LoRA.
    """
    layers = lora_layers(model)
    for name, layer in layers.items():
        base = layer.get_base_layer()
        if isinstance(layer, ParamWrapper) or not isinstance(base, (nn.Linear, Conv1D)):
            raise BALoraError(
                f"target_modules: {name} is a {type(base).__name__}; selora gates linear layers only, leave it out"
            )
        for variant in layer.lora_variant.values():
            raise BALoraError(
                f"method: selora gates plain LoRA, and {name} has PEFT's {type(variant).__name__}; leave that setting "
                "out"
            )
        layer.lora_variant[STUDENT] = Gated()
    gate = SentenceGate(
        [layer.r[STUDENT] for layer in layers.values()],
        sentence_dim=config.sentence_dim,
        hidden=config.gate_hidden,
        shared=config.gate == "shared",
    )
    gate.requires_grad_(not config.inference_mode)
    return gate.to(next(iter(layers.values())).lora_A[STUDENT].weight)


def check_sentences(s: Tensor, inputs: dict[str, Any], config: BALoraConfig) -> None:
    """See that there is one vector of the right length for each row.

    Args:
        s: `(B, d)`.
        inputs: What the rows are; the first of `ROWS` that is among them says how many.
        config: The model's.

    Raises:
        BALoraError: If not, or if the method reads none.
    """
    if config.method != SELORA:
        raise BALoraError(f"sentence_embeds: {config.method} reads none, only selora does; leave them out")
    rows = rows_of(inputs) or len(s)
    if s.shape != (rows, config.sentence_dim):
        raise BALoraError(
            f"sentence_embeds: shape {tuple(s.shape)} for {rows} rows and sentence_dim {config.sentence_dim}; give "
            f"{(rows, config.sentence_dim)}"
        )


def rows_of(inputs: dict[str, Any]) -> int | None:
    """How many rows a model's inputs are; `None` where they do not say."""
    return next((len(inputs[name]) for name in ROWS if inputs.get(name) is not None), None)


def gated_layers(model: PeftModel) -> list[LoraLayer]:
    """The layers whose student is gated, in the model's order."""
    return [layer for layer in lora_layers(model).values() if isinstance(layer.lora_variant.get(STUDENT), Gated)]


def set_gates(model: PeftModel, gates: list[Tensor] | None) -> None:
    """Put `(B, r, r)` of each layer where the layers read it; `None` takes away what is there."""
    layers = gated_layers(model)
    for layer, gate in zip(layers, gates or [None] * len(layers), strict=True):
        layer.lora_variant[STUDENT].gate = gate


@contextmanager
def first_row_alone(model: PeftModel) -> Iterator[None]:
    """Within, the layers expect the batch's first row by itself, and pass no gradient to its gate."""
    gates = [layer.lora_variant[STUDENT].gate for layer in gated_layers(model)]
    set_gates(model, [gate if gate is None else gate[:1].detach() for gate in gates])
    try:
        yield
    finally:
        set_gates(model, gates)


def semantic_term(model: PeftModel, s: Tensor, config: BALoraConfig) -> Tensor:
    """`balora.losses.semantic_loss` of the gates that are set, scaling included, as a mean over the layers.

    Args:
        model: With its gates set.
        s: `(B, d)`, the vectors that they are of.
        config: `semantic_min_similarity` and `semantic_reduction`.
    """
    how = {"min_similarity": config.semantic_min_similarity, "reduction": config.semantic_reduction}
    terms = []
    for layer in gated_layers(model):
        a, b = layer.scaling[STUDENT] * layer.lora_B[STUDENT].weight, layer.lora_A[STUDENT].weight
        gate = layer.lora_variant[STUDENT].gate.to(b.device)
        terms.append(semantic_loss(a, b, gate, s.to(b.device), **how).to(s.device))
    return torch.stack(terms).mean()


@torch.no_grad()
def fold_gates(model: PeftModel, gates: list[Tensor]) -> None:
    """Make the layers plain LoRA: `lora_B` becomes lora_B·M, with M the mean of each layer's gates `(N, r, r)`."""
    for layer, gate in zip(gated_layers(model), gates, strict=True):
        b = layer.lora_B[STUDENT].weight  # (out, r)
        b.copy_(b @ gate.mean(0).to(b))
        del layer.lora_variant[STUDENT]
