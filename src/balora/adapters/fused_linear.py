"""Fused LoRA layer: y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ, accumulated in place by the matrix products.

PEFT's layer scales the adapter's output in one pass over memory and adds it in another, and its backward pass does the
same. In a single dtype and without dropout, DoRA or mixed adapters, matrix products can accumulate into their output
instead. In all other cases the layer runs PEFT's forward.
"""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class FusedLinear(Linear):
    """PEFT's LoRA layer with a fused forward wherever that is equivalent."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map `(..., in)` to `(..., out)`."""
        if args or kwargs or not self._is_plain(x):
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        base, a, b = self.get_base_layer(), self.lora_A[name], self.lora_B[name]
        return _LoraProduct.apply(x, base.weight, base.bias, a.weight, b.weight, self.scaling[name])

    def _is_plain(self, x: Tensor) -> bool:
        """Return whether the layer is a frozen weight with one plain adapter, all in the input's dtype."""
        active = self.active_adapters
        if self.disable_adapters or self.merged or len(active) != 1 or torch.is_autocast_enabled(x.device.type):
            return False
        (name,) = active
        base = self.get_base_layer()
        if name not in self.lora_A or name in self.lora_variant or base._forward_hooks or base._forward_pre_hooks:
            return False
        a, b, dropout = self.lora_A[name].weight, self.lora_B[name], self.lora_dropout[name]
        drops = self.training and isinstance(dropout, nn.Dropout)
        alike = x.dtype == base.weight.dtype == a.dtype and x.device == base.weight.device == a.device
        return alike and not drops and b.bias is None and not base.weight.requires_grad


def use_fused_linear(model: PeftModel) -> None:
    """Replace the class of every plain LoRA layer over a plain linear layer by `FusedLinear`.

    PEFT's hook for custom layer classes (`_register_custom_module`) would include quantized layers, which are
    subclasses of `nn.Linear`, so the classes of layers that PEFT built are changed instead.
    """
    for module in model.modules():
        if type(module) is Linear and type(module.get_base_layer()) is nn.Linear:
            module.__class__ = FusedLinear


class _LoraProduct(torch.autograd.Function):
    """x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ, with gradients of x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (M, in)
        inner = flat @ a.T  # (M, r)
        y = flat @ weight.T if bias is None else torch.addmm(bias, flat, weight.T)  # (M, out)
        y.addmm_(inner, b.T, alpha=scaling)
        # A frozen A (LoRA-FA) has no gradient, so the input need not be saved for it.
        ctx.save_for_backward(flat if ctx.needs_input_grad[3] else None, inner, weight, a, b)
        ctx.scaling = scaling
        # Not a view for autograd, which forbids changing one in place: OLMo clips queries, Longformer scales them.
        return torch.ops.aten._unsafe_view(y, [*x.shape[:-1], y.shape[-1]])

    @staticmethod
    @once_differentiable  # x·Aᵀ is saved as a value, so that a second derivative would be wrong
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        flat, inner, weight, a, b = ctx.saved_tensors
        shape = (*dy.shape[:-1], weight.shape[1])
        dy = dy.reshape(-1, dy.shape[-1])  # (M, out)
        d_inner = dy @ b  # (M, r), without the scaling
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight).addmm_(d_inner, a, alpha=ctx.scaling).view(shape)  # (..., in)
        da = (d_inner.T @ flat).mul_(ctx.scaling) if ctx.needs_input_grad[3] else None
        db = (dy.T @ inner).mul_(ctx.scaling) if ctx.needs_input_grad[4] else None
        return dx, None, None, da, db, None
