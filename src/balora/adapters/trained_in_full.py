"""Modules that are trained in full, kept in float32 on a base in half precision, as PEFT keeps the factors.

In bfloat16 a weight has 8 bits, so that a step of less than 1/512 of it is rounded away: at a learning rate of 1e-5
most weights of a head never move.
"""

import warnings
from functools import partial
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


def train_in_float32(model: nn.Module) -> None:
    """Convert the trained copies of `modules_to_save` and of a classification head to float32, in place.

    They take and return what the base's precision gives, so that the modules around them are unaffected.
    """
    for wrapper in model.modules():
        if not isinstance(wrapper, ModulesToSaveWrapper):
            continue
        for module in wrapper.modules_to_save.values():
            half = next((p.dtype for p in module.parameters() if p.dtype in HALF), None)
            if half is None:
                continue
            for parameter in module.parameters():
                if parameter.dtype in HALF:
                    parameter.data = parameter.data.float()
            module.register_forward_pre_hook(_widen_inputs, with_kwargs=True)
            module.register_forward_hook(partial(_narrow_output, half))


def warn_about_half_precision(model: nn.Module) -> None:
    """Warn of parameters that are trained in half precision."""
    half = {name: p for name, p in model.named_parameters() if p.requires_grad and p.dtype in HALF}
    if half:
        name, parameter = next(iter(half.items()))
        warnings.warn(
            f"balora: {sum(p.numel() for p in half.values()):,} weights ({name} …) are trained in {parameter.dtype}, "
            "where small steps are rounded away; load the model in float32 (dtype), and compute in bfloat16 (bf16)"
        )


def restore_base_precision(model: nn.Module) -> None:
    """Undo `train_in_float32` in a merged model, whose modules are the trained copies themselves."""
    for module in model.modules():
        narrow = [
            (key, hook)
            for key, hook in module._forward_hooks.items()
            if isinstance(hook, partial) and hook.func is _narrow_output
        ]
        for key, hook in narrow:
            module.to(hook.args[0])
            del module._forward_hooks[key]
        for key, hook in list(module._forward_pre_hooks.items()):
            if hook is _widen_inputs:
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)


def _convert(value: Any, dtypes: tuple[torch.dtype, ...], dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.dtype in dtypes else value
    if type(value) in (tuple, list):
        return type(value)(_convert(one, dtypes, dtype) for one in value)
    return value


def _widen_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    wide = {name: _convert(value, HALF, torch.float32) for name, value in kwargs.items()}
    return _convert(args, HALF, torch.float32), wide


def _narrow_output(dtype: torch.dtype, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    return _convert(output, (torch.float32,), dtype)
