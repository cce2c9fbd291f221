"""Initialization from data: LoRA-GA reads the loss's gradient, CorDA and LoRA-Null each layer's input covariance.

LoRA-GA's and CorDA's factors equal PEFT's. As in the other residual methods, base weights are unchanged until the
teacher is attached (`balora.adapters.teacher`).
"""

import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
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
from balora.utils.progress import tracked

#: Inputs with one entry for each token of `input_ids`.
BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def initialize_lora_ga(
    model: PeftModel, batches: Iterable[dict[str, Tensor]], *, settings: LoraGAConfig | None = None, seed: int = 0
) -> None:
    """Initialize the adapter along each weight's loss gradient G, as PEFT does.

    LoRA-GA (Wang et al. 2024): with G = U·S·Vᵀ, averaged over the batches, A = V[:, :r]ᵀ and
    B = U[:, r:2r]·S[r:2r]·c, where c = out^¼/√γ: the first gradient step then moves W along G's leading directions.
    The authors' code scales both factors by c and leaves S out (`docs/decisions/data-initialization.md`).

    Memory holds the gradients of all targeted weights at once, in the weights' dtype.

    Args:
        model: A model whose adapter adds nothing yet.
        batches: Model inputs with `labels`, as in training.
        settings: PEFT's settings; `None` for its defaults (`ArB2r`, `stable`, γ = 16).
        seed: Seed of the randomized SVD and of dropout, which is on as in PEFT. The global generator is restored.

    Raises:
        BALoraError: If the batches do not fit, or a layer is not linear, narrower than 2r, or without finite gradient.
    """
    layers, settings = lora_layers(model), settings or LoraGAConfig()
    for name, layer in layers.items():
        narrow = min(initialization.linear_weight(name, layer, "lora-ga").shape)
        if 2 * layer.r[STUDENT] > narrow:
            raise BALoraError(
                f"r: lora-ga needs 2r directions of a weight's gradient, and {name} has {narrow}; use at most "
                f"{narrow // 2} there"
            )
    batches = _validated(batches, model, "lora-ga", labelled=True)
    base = model.get_base_model()

    def accumulate() -> None:
        for batch in tracked(batches, "gradients for lora-ga"):
            base(**batch).loss.backward()

    modes = [(module, module.training) for module in base.modules()]
    wanted = LoraConfig(target_modules={f"{name}.base_layer" for name in layers}, lora_ga_config=settings)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), warnings.catch_warnings():
        # PEFT's hooks on layers right after frozen embeddings, which need no gradient, raise this warning.
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        torch.manual_seed(seed)
        preprocess_loraga(base, wanted, accumulate)
        for module, training in modes:
            module.training = training
        for name, layer in _with_progress_bar(layers, "lora-ga"):
            gradient = vars(layer.get_base_layer()).get("_peft_loraga_grad")  # set by preprocess_loraga
            if gradient is None or not torch.isfinite(gradient).all():
                raise BALoraError(
                    f"start_batches: no finite gradient reaches {name}; give batches that use it and have no "
                    "invalid rows, or leave it out of target_modules"
                )
            (matrix,) = adapted_matrices(layer, STUDENT)
            matrix.write_factors(*_peft_factors(layer, settings))


def initialize_from_inputs(
    model: PeftModel, batches: Iterable[dict[str, Tensor]], method: str, *, corda_method: Literal["ipm", "kpm"] = "ipm"
) -> None:
    """Initialize the adapter by CorDA or LoRA-Null, from the covariance of each layer's inputs.

    Memory holds an `(in, in)` float32 matrix for every targeted layer at once; each then needs an exact SVD, and
    CorDA's an inverse. Rows beyond the weight's rank are as in `balora.adapters.initialization.initialize_residual`.

    Args:
        model: A model whose adapter adds nothing yet.
        batches: Model inputs, with `labels` if the model has a decoder. The papers use 256 sequences of 2048 tokens.
        method: `corda` (`corda_factors`), `lora-null` or `lora-null-v2` (`null_factors`).
        corda_method: `ipm` or `kpm`, see `corda_factors`.

    Raises:
        BALoraError: If the batches do not fit, a layer is not linear, or its inputs are not finite.
    """
    layers = lora_layers(model)
    weights = {name: initialization.linear_weight(name, layer, method) for name, layer in layers.items()}
    factors_of = initialization.null_factors
    if method == "corda":
        factors_of = partial(initialization.corda_factors, corda_method=corda_method)
    covariances = input_covariances(model, batches, method)
    for name, layer in _with_progress_bar(layers, method):
        factors = factors_of(weights[name], covariances.pop(name), layer.r[STUDENT], scaling=layer.scaling[STUDENT])
        (matrix,) = adapted_matrices(layer, STUDENT)
        matrix.write_factors(*factors)


@torch.no_grad()
def input_covariances(
    model: PeftModel, batches: Iterable[dict[str, Tensor]], method: str = "corda"
) -> dict[str, Tensor]:
    """Compute each adapted layer's C `(in, in)`: the mean over sequences of XᵀX, X `(tokens, in)` over its maximum.

    As in PEFT, except that each sequence runs alone and without padding: PEFT counts padding, and cannot take inputs
    without a token axis (a pooler's).

    Raises:
        BALoraError: If the batches do not fit, or a layer's inputs are absent or not finite.
    """
    base, layers = model.get_base_model(), lora_layers(model)
    has_decoder = base.config.is_encoder_decoder
    batches = _validated(batches, model, method, labelled=has_decoder)
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
            sequences = chain.from_iterable(_sequences(batch, has_decoder) for batch in batches)
            total = sum(len(batch["input_ids"]) for batch in batches)
            for sequence in tracked(sequences, "covariances for corda", total=total):
                base(**sequence)
    finally:
        for hook in hooks:
            hook.remove()
    for name in layers:
        if not counts[name] or not torch.isfinite(sums[name]).all():
            raise BALoraError(
                f"start_batches: {name} receives no finite inputs; give batches that use it and have no invalid rows, "
                "or leave it out of target_modules"
            )
    return {name: sums[name] / counts[name] for name in layers}


def _sequences(batch: dict[str, Tensor], has_decoder: bool) -> Iterator[dict[str, Tensor]]:
    """Yield a batch's rows one at a time, without padding; with labels if the model has a decoder."""
    masks = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()  # (B, S)
    for i, mask in enumerate(masks):
        row = {name: batch[name][i : i + 1, mask] for name in BY_TOKEN if name in batch}
        if has_decoder:
            labels = batch["labels"][i]
            row["labels"] = labels[labels != -100][None]
        yield row


@torch.no_grad()
def _peft_factors(layer: LoraLayer, settings: LoraGAConfig) -> tuple[Tensor, Tensor]:
    """Return A and B of PEFT's LoRA-GA initialization of a layer; the layer itself is unchanged."""
    parameters = (layer.lora_A[STUDENT].weight, layer.lora_B[STUDENT].weight, layer.get_base_layer().weight)
    before = [parameter.data for parameter in parameters]
    layer.lora_ga_init(STUDENT, settings)  # assigns new data to each parameter and does not write to the old
    a, b, _ = (parameter.data for parameter in parameters)
    for parameter, data in zip(parameters, before, strict=True):
        parameter.data = data
    return a, b


def _validated(
    batches: Iterable[dict[str, Any]], model: PeftModel, method: str, *, labelled: bool
) -> list[dict[str, Tensor]]:
    """Validate the batches, and return their tensors on the model's device."""
    kept = [{k: v.to(model.device) for k, v in batch.items() if isinstance(v, Tensor)} for batch in batches]
    if not kept:
        raise BALoraError(f"start_batches: {method} needs data, and there are no batches; give at least one")
    if labelled and not all("labels" in batch for batch in kept):
        raise BALoraError(f"start_batches: a batch has no labels; give {method} the batches of training")
    return kept


def _with_progress_bar(layers: dict[str, LoraLayer], method: str) -> Iterable[tuple[str, LoraLayer]]:
    bar = logging.tqdm(layers.items(), desc=f"{method} start", unit="layer", delay=initialization.PROGRESS_BAR_DELAY)
    return tracked(bar, f"initializing {method}", total=len(layers))
