"""4-bit quantization of the base with bitsandbytes: the choice of layers, quantizing, and dequantizing.

A model that Transformers loaded in 4 bits is adapted as it is (QLoRA). A residual method must split the weight in full
precision first, and then only the residual is quantized (QPiSSA, Meng et al. 2024, section 4):

    W ≈ Q(W − s·B₀A₀) + s·B₀A₀

The rounding error is that of the residual, whose range is narrower than W's. The right-hand side is the student's
initial weight and therefore the teacher's.

bitsandbytes is an optional dependency, so it is imported inside functions.
"""

import re
from collections.abc import Iterable

import torch
from peft import PeftModel, TaskType
from peft.tuners.lora import Linear, LoraLayer
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils import is_bitsandbytes_available

from balora.adapters.fused_linear import use_fused_linear
from balora.config import BALoraConfig
from balora.errors import BALoraError
from balora.utils.progress import tracked


def layers_to_quantize(model: PreTrainedModel, config: BALoraConfig) -> list[str]:
    """Return the names of the linear layers to quantize; empty without a `quantization_config`.

    These are the layers that Transformers would choose, except fully trained modules and those outside the backbone: a
    head's weights are read by the objective, or trained.

    Args:
        model: The unmodified model.
        config: Configuration with task type filled in.

    Raises:
        BALoraError: If weights needed in full precision are already quantized, or bitsandbytes is missing.
    """
    wanted = config.quantization_config
    if getattr(model, "is_quantized", False) and (config.residual or wanted):
        why = f"method {config.method!r} splits weights" if config.residual else "quantization_config quantizes them"
        raise BALoraError(
            f"the model is already quantized, and {why} in full precision; load it without quantization_config and "
            "give that to BALoraConfig"
        )
    if not wanted:
        return []
    require_bitsandbytes()
    heads = SEQ_CLS_HEAD_NAMES if config.task_type == TaskType.SEQ_CLS else []  # PEFT trains these in full
    skipped = [
        *skip_module_patterns([*heads, *(config.modules_to_save or [])]),
        *(wanted["llm_int8_skip_modules"] or []),
    ]
    kept = _quantizer(wanted).get_modules_to_not_convert(
        model, skipped, model._keep_in_fp32_modules, add_default_skips=True
    )
    backbone = set(model.base_model.modules())
    return [
        name
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D) and module in backbone and should_convert_module(name, kept)
    ]


def skip_module_patterns(names: Iterable[str]) -> list[str]:
    """Return patterns for Transformers that exclude modules of these names, at any depth, from quantization.

    Transformers matches a plain name only at the beginning or end of a path, and would quantize parts of a pooler.

    Args:
        names: Module names as in PEFT's `modules_to_save`.
    """
    return [rf"(?:.*\.)?{re.escape(name)}" for name in names]


def require_bitsandbytes() -> None:
    """Check that bitsandbytes is installed.

    Raises:
        BALoraError: If it is missing or too old.
    """
    if not is_bitsandbytes_available():
        raise BALoraError("quantization_config: bitsandbytes is missing or too old; pip install 'balora[quantized]'")


@torch.no_grad()
def quantize(model: PeftModel, names: list[str]) -> None:
    """Quantize these layers of the adapted model's base in place, one after the other.

    The result equals a base that Transformers loaded in 4 bits and PEFT adapted.

    Args:
        model: The adapted model; for a residual method its base holds the residual.
        names: From `layers_to_quantize`.

    Raises:
        BALoraError: If bitsandbytes has repacked the weights on a CPU, or dequantizes them wrongly.
    """
    base = model.get_base_model()
    if names:
        settings = model.balora_config.quantization_config
        for name in tracked(names, "quantizing to 4 bits"):
            module = base.get_submodule(name)
            if isinstance(module, LoraLayer):
                module.base_layer = _in_four_bits(module.base_layer, settings, name)
                _change_class(module)
            else:
                base.set_submodule(name, _in_four_bits(module, settings, name))
        _declare(base, _quantizer(settings))
    if is_four_bit(model):
        _stay_trainable(base)


def is_four_bit(model: PeftModel) -> bool:
    """Return whether the base is in 4 bits, quantized by balora or by Transformers."""
    return getattr(model.get_base_model(), "is_loaded_in_4bit", False)


def require_full_precision(model: PeftModel, action: str) -> None:
    """Check that the base is not in 4 bits, where `action` would round it again and change teacher and student.

    Raises:
        BALoraError: If the base is in 4 bits.
    """
    if is_four_bit(model):
        raise BALoraError(f"{action}: the base is in 4 bits and would be rounded again; call dequantize() first")


@torch.no_grad()
def dequantize(model: PeftModel) -> None:
    """Undo `quantize`: replace 4-bit layers by full-precision ones with the same, rounded, values."""
    from peft.tuners.lora.bnb import Linear4bit

    base = model.get_base_model()
    base.dequantize()
    base.is_loaded_in_4bit = False
    for module in base.modules():
        if isinstance(module, Linear4bit):
            module.__class__ = Linear
            module.base_layer.requires_grad_(False)
    use_fused_linear(model)


def _quantizer(settings: dict) -> HfQuantizer:
    return AutoHfQuantizer.from_config(BitsAndBytesConfig(**settings), pre_quantized=False)


def _declare(base: PreTrainedModel, quantizer: HfQuantizer) -> None:
    """Mark the model as Transformers marks one that it loaded in 4 bits, for trainers and `dequantize`."""
    base.hf_quantizer = quantizer
    base.is_quantized = True
    base.quantization_method = quantizer.quantization_config.quant_method
    quantizer.postprocess_model(base)


def _in_four_bits(module: nn.Linear | Conv1D, settings: dict, name: str) -> nn.Module:
    """Return a 4-bit copy of a linear layer."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    wanted = BitsAndBytesConfig(**settings)
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight  # (out, in)
    how = {
        "compress_statistics": wanted.bnb_4bit_use_double_quant,
        "quant_type": wanted.bnb_4bit_quant_type,
        "quant_storage": wanted.bnb_4bit_quant_storage,
    }
    with torch.device("meta"):
        layer = Linear4bit(weight.shape[1], weight.shape[0], False, wanted.bnb_4bit_compute_dtype, **how)
    whole = Params4bit(weight.contiguous(), requires_grad=False, module=layer, **how)
    layer.weight = whole.to(weight.device)  # bitsandbytes quantizes on the first move
    _check_round_trip(layer.weight, weight, name)
    layer.bias = module.bias
    return layer.train(module.training)


def _check_round_trip(quantized: nn.Parameter, weight: Tensor, name: str) -> None:
    """Check that each block's largest value survives dequantizing.

    bitsandbytes' kernel for CPUs with AVX512 mixes up blocks in some widths that are not multiples of the block size.
    """
    from bitsandbytes.functional import dequantize_4bit

    state = quantized.quant_state
    whole = torch.stack([weight.float(), dequantize_4bit(quantized.data, state).float()]).abs().flatten(1)
    padded = nn.functional.pad(whole, (0, -whole.shape[1] % state.blocksize))
    before, after = padded.unflatten(1, (-1, state.blocksize)).amax(-1)  # (blocks,)
    if not torch.allclose(after, before, rtol=0.02, atol=0.05 * float(before.max())):
        size, device = f"{weight.shape[0]} × {weight.shape[1]}", weight.device.type
        raise BALoraError(
            f"quantization_config: bitsandbytes dequantizes {name} ({size}) wrongly on {device}, a known error for "
            f"widths that are not multiples of {state.blocksize}; quantize on another device, or name the layer in "
            "llm_int8_skip_modules"
        )


def _change_class(module: LoraLayer) -> None:
    """Change PEFT's LoRA layer to its class for 4-bit weights."""
    from peft.tuners.lora.bnb import Linear4bit

    module.__class__ = Linear4bit
    module.fan_in_fan_out = False
    for name, magnitude in module.lora_magnitude_vector.items():  # DoRA: recompute the norm of the quantized weight
        magnitude.fan_in_fan_out = False
        trained = magnitude.weight.requires_grad
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
        magnitude.update_layer(base_layer=module.base_layer, lora_A=a, lora_B=b, scaling=module.scaling[name])
        magnitude.weight.requires_grad_(trained)


def _stay_trainable(base: PreTrainedModel) -> None:
    """Prevent bitsandbytes from repacking weights in evaluation mode (teacher passes) on CPUs with AVX512-BF16.

    Repacked weights are rounded again and pass no gradient.
    """
    from bitsandbytes.nn import Linear4bit

    layers = {name: module for name, module in base.named_modules() if isinstance(module, Linear4bit)}
    for name, layer in layers.items():
        layer.support_avx512bf16_for_cpu = False
        if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            raise BALoraError(
                f"{name.removesuffix('.base_layer')} ran in evaluation mode on a CPU for which bitsandbytes "
                "repacks weights, and passes no gradient any more; load the model again and adapt it before running "
                "it"
            )
