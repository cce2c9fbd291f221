"""A LoRA layer's product in as few passes as it takes: y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ, accumulated where it stands.

PEFT's layer scales the adapter's output in one pass and adds it in another, and autograd as many again on the way
back; where the precision is one and nothing stands between (no dropout, no DoRA, no mixed adapters), the matrix
products can add to their output themselves. Otherwise the layer is PEFT's.
"""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn


class FusedLinear(Linear):
    """PEFT's layer, with a leaner forward where that is the same."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`(..., in)` to `(..., out)`."""
        if args or kwargs or not self._is_plain(x):
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        base, a, b = self.get_base_layer(), self.lora_A[name], self.lora_B[name]
        return _Product.apply(x, base.weight, base.bias, a.weight, b.weight, self.scaling[name])

    def _is_plain(self, x: Tensor) -> bool:
        """Whether one adapter, and nothing else, stands beside a frozen weight of the input's precision."""
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
    """Give every plain LoRA layer over a plain linear one the leaner forward.

    PEFT's way to a layer class of one's own (`_register_custom_module`) would take quantized layers too, which are
    subclasses of `nn.Linear`; so layers that PEFT has made change their class.
    """
    for module in model.modules():
        if type(module) is Linear and type(module.get_base_layer()) is nn.Linear:
            module.__class__ = FusedLinear


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (M, in)
        inner = flat @ a.T  # (M, r)
        y = flat @ weight.T if bias is None else torch.addmm(bias, flat, weight.T)  # (M, out)
        y.addmm_(inner, b.T, alpha=scaling)
        # A frozen A (LoRA-FA) has no gradient to take from the input, which then need not be kept.
        ctx.save_for_backward(flat if ctx.needs_input_grad[3] else None, inner, weight, a, b)
        ctx.scaling = scaling
        return y.view(*x.shape[:-1], -1)

    @staticmethod
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
