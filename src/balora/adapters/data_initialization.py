"""Starts that look at data first: LoRA-GA at the loss's gradient, CorDA at what each layer is given.

The factors are those PEFT has. As with the other residual starts, base weights are whole until the teacher is attached
(`balora.adapters.teacher`).
"""

import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraGAConfig, LoraLayer, preprocess_loraga
from torch import Tensor, nn
from transformers.utils import logging

from balora.adapters import initialization
from balora.adapters.matrices import adapted_matrices
from balora.adapters.teacher import STUDENT, lora_layers
from balora.errors import BALoraError
from balora.utils.modules import evaluation_mode

#: Inputs with a place for each token of `input_ids`.
BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def start_lora_ga(
    model: PeftModel, batches: Iterable[dict[str, Tensor]], *, settings: LoraGAConfig | None = None, seed: int = 0
) -> None:
    """Start the adapter along the gradient G of the loss in each weight (LoRA-GA, Wang et al. 2024), as PEFT does.

    With G = U·S·Vᵀ, averaged over the batches, A = V[:, :r]ᵀ and B = U[:, r:2r]·S[r:2r]·c, where c = out^¼/√γ: a first
    gradient step then moves W along G's leading directions. The authors' code scales both factors by c and leaves S
    out (`docs/decisions/data-initialization.md`).

    The gradients of all targeted weights stand in memory at once, in the weights' dtype.

    Args:
        model: With an adapter that adds nothing yet.
        batches: Model inputs with `labels`, as in training.
        settings: PEFT's; `None` for its defaults (`ArB2r`, `stable`, γ = 16).
        seed: Of the randomized SVD, and of dropout, which is on as PEFT has it. The global state is left alone.

    Raises:
        BALoraError: If the batches do not fit, a layer is not linear or narrower than 2r, or no finite gradient
            reaches it.
    """
    layers, settings = lora_layers(model), settings or LoraGAConfig()
    for name, layer in layers.items():
        narrow = min(initialization.linear_weight(name, layer, "lora-ga").shape)
        if 2 * layer.r[STUDENT] > narrow:
            raise BALoraError(
                f"r: lora-ga starts from 2r directions of a weight's gradient, and {name} has {narrow}; use at most "
                f"{narrow // 2} there"
            )
    batches = _checked(batches, model, "lora-ga", labelled=True)
    base = model.get_base_model()

    def accumulate() -> None:
        for batch in batches:
            base(**batch).loss.backward()

    modes = [(module, module.training) for module in base.modules()]
    wanted = LoraConfig(target_modules={f"{name}.base_layer" for name in layers}, lora_ga_config=settings)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), warnings.catch_warnings():
        # Of PEFT's hooks on layers right behind frozen embeddings, which have no gradient to hand on.
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        torch.manual_seed(seed)
        preprocess_loraga(base, wanted, accumulate)
        for module, training in modes:
            module.training = training
        for name, layer in _shown(layers, "lora-ga"):
            gradient = vars(layer.get_base_layer()).get("_peft_loraga_grad")  # where PEFT leaves it
            if gradient is None or not torch.isfinite(gradient).all():
                raise BALoraError(
                    f"start_batches: no finite gradient reaches {name}; give batches that use it, without bad rows, "
                    "or leave it out of target_modules"
                )
            (matrix,) = adapted_matrices(layer, STUDENT)
            matrix.write_factors(*_peft_factors(layer, settings))


def start_corda(
    model: PeftModel, batches: Iterable[dict[str, Tensor]], *, corda_method: Literal["ipm", "kpm"] = "ipm"
) -> None:
    """Initialize the adapter from a weight's components as the layer's inputs weigh them (`oriented_factors`).

    Takes an `(in, in)` float32 matrix for every targeted layer at once, and an exact SVD and an inverse of each in
    turn. Rows beyond the weight's own rank are as in `balora.adapters.initialization.start_residual`.

    Args:
        model: With an adapter that adds nothing yet.
        batches: Model inputs; `labels` too where a decoder reads them. The paper has 256 sequences of 2048 tokens.
        corda_method: `ipm` or `kpm`, see there.

    Raises:
        BALoraError: If the batches do not fit, a layer is not linear, or its inputs are not finite.
    """
    layers = lora_layers(model)
    weights = {name: initialization.linear_weight(name, layer, "corda") for name, layer in layers.items()}
    covariances = input_covariances(model, batches)
    for name, layer in _shown(layers, "corda"):
        settings = {"scaling": layer.scaling[STUDENT], "corda_method": corda_method}
        factors = initialization.oriented_factors(weights[name], covariances.pop(name), layer.r[STUDENT], **settings)
        (matrix,) = adapted_matrices(layer, STUDENT)
        matrix.write_factors(*factors)


@torch.no_grad()
def input_covariances(model: PeftModel, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """C `(in, in)` of each adapted layer: the mean, over sequences, of XᵀX with X `(tokens, in)` over its maximum.

    PEFT's own collection, but for padding, which it would count, and for inputs without a token axis (a pooler's),
    which it cannot take: each sequence runs by itself, cut to its tokens.

    Raises:
        BALoraError: If the batches do not fit, or a layer's inputs are absent or not finite.
    """
    base, layers = model.get_base_model(), lora_layers(model)
    has_decoder = base.config.is_encoder_decoder
    batches = _checked(batches, model, "corda", labelled=has_decoder)
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def add(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].reshape(-1, inputs[0].shape[-1]).float()  # (tokens, in)
        x = x / x.max().abs()
        sums[name] = sums.get(name, 0) + x.T @ x
        counts[name] += 1

    hooks = [layer.get_base_layer().register_forward_pre_hook(partial(add, name)) for name, layer in layers.items()]
    try:
        with evaluation_mode(base):
            for batch in batches:
                for sequence in _sequences(batch, has_decoder):
                    base(**sequence)
    finally:
        for hook in hooks:
            hook.remove()
    for name in layers:
        if not counts[name] or not torch.isfinite(sums[name]).all():
            raise BALoraError(
                f"start_batches: {name} has no finite inputs in them; give batches that use it, without bad rows, or "
                "leave it out of target_modules"
            )
    return {name: sums[name] / counts[name] for name in layers}


def _sequences(batch: dict[str, Tensor], has_decoder: bool) -> Iterator[dict[str, Tensor]]:
    """A batch's rows, one at a time and without padding; a decoder reads its labels."""
    masks = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()  # (B, S)
    for i, mask in enumerate(masks):
        row = {name: batch[name][i : i + 1, mask] for name in BY_TOKEN if name in batch}
        if has_decoder:
            labels = batch["labels"][i]
            row["labels"] = labels[labels != -100][None]
        yield row


@torch.no_grad()
def _peft_factors(layer: LoraLayer, settings: LoraGAConfig) -> tuple[Tensor, Tensor]:
    """A and B of PEFT's start of a layer, whose weight and adapter stay as they are."""
    parameters = (layer.lora_A[STUDENT].weight, layer.lora_B[STUDENT].weight, layer.get_base_layer().weight)
    before = [parameter.data for parameter in parameters]
    layer.lora_ga_init(STUDENT, settings)  # gives each parameter new data and leaves the old as it was
    a, b, _ = (parameter.data for parameter in parameters)
    for parameter, data in zip(parameters, before, strict=True):
        parameter.data = data
    return a, b


def _checked(
    batches: Iterable[dict[str, Any]], model: PeftModel, method: str, *, labelled: bool
) -> list[dict[str, Tensor]]:
    """Tensors alone, on the model's device."""
    kept = [{k: v.to(model.device) for k, v in batch.items() if isinstance(v, Tensor)} for batch in batches]
    if not kept:
        raise BALoraError(f"start_batches: {method} was given none; give at least one batch")
    if labelled and not all("labels" in batch for batch in kept):
        raise BALoraError(f"start_batches: a batch has no labels; give {method} batches as training has them")
    return kept


def _shown(layers: dict[str, LoraLayer], method: str) -> Iterable[tuple[str, LoraLayer]]:
    return logging.tqdm(layers.items(), desc=f"{method} start", unit="layer", delay=initialization.SHOWN_AFTER)
