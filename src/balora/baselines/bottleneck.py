"""Bottleneck adapters (Houlsby et al. 2019, Pfeiffer et al. 2021) for current Transformers models.

An adapter is the submodule `bottleneck` of an output projection and is called by a forward hook, so the base's
parameters keep their names: pretrained state dicts load before and after, and checkpointed layers recompute the
adapter with the layer.
"""

import re
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from balora.baselines.own_parameters import freeze_except, task_heads
from balora.errors import BALoraError

_BERT = (r"layer\.\d+\.attention\.output\.dense", r"layer\.\d+\.output\.dense")
_LLAMA = (r"self_attn\.o_proj", r"mlp\.down_proj")
_T5 = (r"(SelfAttention|EncDecAttention)\.o", r"DenseReluDense\.wo")

#: Patterns for the ends of the names of the attention's and the feed-forward's output projection, by model type.
OUTPUT_PROJECTIONS: dict[str, tuple[str, str]] = {
    "bert": _BERT,  # MiniLM too
    "roberta": _BERT,
    "deberta": _BERT,
    "deberta-v2": _BERT,  # v3 too
    "electra": _BERT,
    "modernbert": (r"attn\.Wo", r"mlp\.Wo"),
    "distilbert": (r"attention\.out_lin", r"ffn\.lin2"),
    "t5": _T5,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "gpt2": (r"attn\.c_proj", r"mlp\.c_proj"),
}

_ACTIVATIONS = {"houlsby": F.gelu, "pfeiffer": F.relu}


class BottleneckAdapter(nn.Module):
    """Bottleneck adapter h + up(f(down(h))), initialized as the identity (Houlsby et al. 2019, fig. 2).

    It has 2·d·m + d + m parameters.

    Attributes:
        down: Linear layer `(d → m)`, torch's default initialization from the global generator.
        up: Linear layer `(m → d)`, initialized to zero.
        kind: `houlsby`, where f is GELU, or `pfeiffer`, where it is ReLU.
    """

    def __init__(
        self,
        hidden_size: int,
        bottleneck_size: int,
        kind: Literal["houlsby", "pfeiffer"],
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.down = nn.Linear(hidden_size, bottleneck_size, device=device, dtype=dtype)
        self.up = nn.Linear(bottleneck_size, hidden_size, device=device, dtype=dtype)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor) -> Tensor:
        """Map `(..., d)` to `(..., d)` in the dtype of `h`, whatever the adapter's own."""
        inner = _ACTIVATIONS[self.kind](self.down(h.to(self.down.weight.dtype)))  # (..., m)
        return h + self.up(inner).to(h.dtype)  # (..., d)


def make_bottleneck(
    kind: Literal["houlsby", "pfeiffer"],
    model: PreTrainedModel,
    *,
    bottleneck_size: int = 16,
    modules_to_save: list[str] | None = None,
) -> PreTrainedModel:
    """Set up bottleneck adapters: freeze the model, add them, and train them with the task head.

    Args:
        kind: See `add_bottlenecks`.
        model: Changed in place.
        bottleneck_size: Width m of an adapter.
        modules_to_save: Last parts of the names of further modules to train in full, as in PEFT's `LoraConfig`.

    Raises:
        BALoraError: If a name in `modules_to_save` matches nothing, or as `add_bottlenecks` does.
    """
    freeze_except(model, task_heads(model, modules_to_save))
    add_bottlenecks(model, kind, bottleneck_size)
    return model


def add_bottlenecks(model: PreTrainedModel, kind: Literal["houlsby", "pfeiffer"], bottleneck_size: int) -> int:
    """Add trainable bottleneck adapters to the output projections of every layer, in place.

    `houlsby` has one after the attention's output projection and one after the feed-forward's, both before the
    residual addition (and before the dropout there); T5's decoder has a third, after cross-attention. `pfeiffer` has
    only the feed-forward's, at the same place: Pfeiffer et al. search over placements around the residual and the
    LayerNorm, which all have the same number of parameters. Neither trains LayerNorms, in agreement with the counts
    printed for GLUE (AdaLoRA, BA-LoRA).

    A half-precision base gets adapters in float32, as in PEFT.

    Args:
        model: Of an architecture in `OUTPUT_PROJECTIONS`.
        kind: `houlsby` or `pfeiffer`.
        bottleneck_size: Width m.

    Returns:
        Number of adapters.

    Raises:
        BALoraError: If the architecture is unknown, the width below 1, or the model has bottleneck adapters already.
    """
    model_type = model.config.model_type
    if model_type not in OUTPUT_PROJECTIONS:
        raise BALoraError(
            f"method: {kind} does not know the output projections of a {model_type!r} model; use one of "
            f"{', '.join(OUTPUT_PROJECTIONS)}"
        )
    if bottleneck_size < 1:
        raise BALoraError(f"bottleneck_size: {bottleneck_size} is too small; use at least 1")
    if any(isinstance(module, BottleneckAdapter) for module in model.modules()):
        raise BALoraError(f"method: {kind} cannot be added to a model with bottleneck adapters; reload the base model")
    attention, feed_forward = OUTPUT_PROJECTIONS[model_type]
    endings = f"{attention}|{feed_forward}" if kind == "houlsby" else feed_forward
    projections = [m for name, m in model.named_modules() if re.search(rf"(^|\.)({endings})$", name)]
    for projection in projections:
        weight = projection.weight
        projection.bottleneck = BottleneckAdapter(
            projection.nf if isinstance(projection, Conv1D) else projection.out_features,
            bottleneck_size,
            kind,
            device=weight.device,
            dtype=torch.promote_types(weight.dtype, torch.float32),
        )
        projection.register_forward_hook(_through_bottleneck)
    return len(projections)


def _through_bottleneck(projection: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
    # A plain function of the module, so that the hook of a deep copy finds the copy's adapter.
    return projection.bottleneck(output)
