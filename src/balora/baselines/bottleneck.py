"""Bottleneck adapters: Houlsby et al. 2019 and Pfeiffer et al. 2021, for today's Transformers.

An adapter hangs on an output projection as its submodule `bottleneck` and works through a forward hook, so no weight
of the base changes its name: pretrained state dicts load before and after, and checkpointed layers recompute the
adapter along with the layer.
"""

import re
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from balora.errors import BALoraError

_BERT = (r"layer\.\d+\.attention\.output\.dense", r"layer\.\d+\.output\.dense")
_LLAMA = (r"self_attn\.o_proj", r"mlp\.down_proj")
_T5 = (r"(SelfAttention|EncDecAttention)\.o", r"DenseReluDense\.wo")

#: How the names of attention's and of the feed-forward's output projection end, by `config.model_type`.
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
    """h + up(f(down(h))), with `up` at zero, so that it starts as exactly the identity (Houlsby et al. 2019, fig. 2).

    It holds 2·d·m + d + m parameters.

    Attributes:
        down: `(d → m)`, torch's default start from the global generator.
        up: `(m → d)`, weight and bias zero.
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
        """`(..., d)` to `(..., d)`, in the dtype of `h` whatever the adapter's own."""
        inner = _ACTIVATIONS[self.kind](self.down(h.to(self.down.weight.dtype)))  # (..., m)
        return h + self.up(inner).to(h.dtype)


def add_bottlenecks(model: PreTrainedModel, kind: Literal["houlsby", "pfeiffer"], bottleneck_size: int) -> int:
    """Put bottleneck adapters behind the output projections of every layer, in place. They train; the rest is as set.

    `houlsby` has one behind attention's output projection and one behind the feed-forward's, both before the residual
    addition (and before the dropout there); T5's decoder has a third, behind cross-attention. `pfeiffer` has the
    feed-forward's alone, at that same place: Pfeiffer et al. search over the placement around the residual and the
    LayerNorm, the parameters are the same wherever it is. Neither trains LayerNorms, as the counts printed for GLUE
    (AdaLoRA, BA-LoRA) have it.

    A half-precision base gets adapters in float32, as PEFT gives it.

    Args:
        model: Of an architecture in `OUTPUT_PROJECTIONS`.
        kind: `houlsby` or `pfeiffer`.
        bottleneck_size: Width m.

    Returns:
        How many adapters there are.

    Raises:
        BALoraError: If the architecture is unknown, the width below 1, or the model has bottlenecks already.
    """
    model_type = model.config.model_type
    if model_type not in OUTPUT_PROJECTIONS:
        raise BALoraError(
            f"method: {kind} knows no output projections of a {model_type!r} model; there are "
            f"{', '.join(OUTPUT_PROJECTIONS)}"
        )
    if bottleneck_size < 1:
        raise BALoraError(f"bottleneck_size: {bottleneck_size} is too small; use at least 1")
    if any(isinstance(module, BottleneckAdapter) for module in model.modules()):
        raise BALoraError(f"method: {kind} was asked of a model that has bottleneck adapters; load the base anew")
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
    # A function of the module, bound to nothing: a deep copy's hook finds the copy's own adapter.
    return projection.bottleneck(output)
