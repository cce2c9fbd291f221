"""The bias path: a bias vector b added to every input embedding, and the term that compares passes with and without b.

b is added to the output of the model's input embeddings: after any scaling inside that layer (Gemma, BART), before
positions and norms. In a sequence-to-sequence model these are the encoder's.

Inference does not need b. It is saved beside the adapter, whose own files are those of an adapter without bias path.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from balora.adapters.saving import SETTINGS_FILE
from balora.config import BALoraConfig
from balora.errors import BALoraError
from balora.losses import bias_path_loss
from balora.utils.batches import pick_examples, select_examples

#: Memory limit: number of embedding rows read at a time when their mean length is measured.
EMBEDDING_CHUNK_ROWS = 4096
DIRECTION_FILE = "bias_path.safetensors"
KEY_PREFIX = "lora_bias_path."


class BiasEmbedding(nn.Module):
    """The bias vector b `(d,)`, made of a direction u and a radius ε.

    Modes: `adversarial` is ε·u/‖u‖ with a reversed gradient, so that the optimizer minimizes the loss in the adapter
    and maximizes it in b; `minimised` is ε·u with a free length; `counterfactual` is ε·u with a given, fixed u.

    Args:
        width: d, the size of the input embeddings.
        radius: ε.
        mode: One of the modes above.
        seed: Seed of the random initial u.

    Attributes:
        direction: u `(d,)`; in mode `counterfactual` `None` until it is set.
    """

    def __init__(self, width: int, *, radius: float, mode: str, seed: int) -> None:
        super().__init__()
        self.width, self.radius, self.mode = width, radius, mode
        if mode == "counterfactual":
            self.register_buffer("direction", None)
        else:
            # Of length 1, so that Adam steps, of length about √d times the learning rate, change its direction soon.
            u = torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            self.direction = nn.Parameter(F.normalize(u, dim=0))

    def forward(self) -> Tensor:
        """Return b `(d,)`.

        Raises:
            BALoraError: If mode `counterfactual` has no direction yet.
        """
        if self.direction is None:
            raise BALoraError(
                "bias_path_mode: counterfactual has no direction yet; call model.set_bias_direction with "
                "balora.losses.counterfactual_direction of the pairs' embeddings"
            )
        if self.mode != "adversarial":
            return self.radius * self.direction
        b = self.radius * F.normalize(self.direction, dim=0)
        return 2 * b.detach() - b  # exactly b, with its gradient negated

    def set_direction(self, direction: Tensor, *, like: Tensor) -> None:
        """Set u to a given vector `(d,)`, normalized.

        Args:
            direction: Vector of any length but 0.
            like: The embedding weight, for device and dtype.

        Raises:
            BALoraError: If the shape is wrong, or the entries are not finite or all 0.
        """
        if direction.shape != (self.width,) or not torch.isfinite(direction).all() or not direction.any():
            raise BALoraError(
                f"set_bias_direction: expected a finite, nonzero vector of {self.width} entries, the size of the "
                f"input embeddings; this one has shape {tuple(direction.shape)}"
            )
        wide = torch.promote_types(like.dtype, torch.float32)
        self.direction = F.normalize(direction.detach().to(like.device, wide), dim=0)

    def save_direction(self, directory: Path, state: dict[str, Tensor] | None) -> None:
        """Write u to `bias_path.safetensors`, if it is set.

        Args:
            directory: The adapter's folder.
            state: The model's state dict if a sharded trainer gathered it, else `None`.
        """
        directions = self.state_dict() if state is None else state
        direction = directions.get("direction" if state is None else f"{KEY_PREFIX}direction")
        if direction is not None:
            save_file({"direction": direction.detach().clone()}, directory / DIRECTION_FILE)

    def load_direction(self, directory: str | os.PathLike, *, like: Tensor) -> None:
        """Read u to resume training; in mode `counterfactual` a missing file leaves it unset.

        Raises:
            BALoraError: If the file is missing, or its vector has the wrong size.
        """
        path = Path(directory) / DIRECTION_FILE
        if not path.is_file():
            if self.mode == "counterfactual":
                return
            raise BALoraError(
                f"{path} is missing, and resuming needs its bias vector; copy it there, or set bias_path_weight to 0 "
                f"in the {SETTINGS_FILE} beside it"
            )
        direction = load_file(path)["direction"]
        if direction.shape != (self.width,):
            raise BALoraError(
                f"{path} has shape {tuple(direction.shape)}, but this model's embeddings have {self.width} entries; "
                "use the model that it was saved from"
            )
        if self.mode == "counterfactual":
            self.set_direction(direction, like=like)
        else:
            with torch.no_grad():
                self.direction.copy_(direction)


def input_embeddings(model: PreTrainedModel) -> nn.Module:
    """Return the input embedding layer, the encoder's in a sequence-to-sequence model."""
    reader = model.get_encoder() if model.config.is_encoder_decoder else model
    return reader.get_input_embeddings()


@torch.no_grad()
def embedding_length(embeddings: nn.Module) -> float:
    """Return the root mean square length of the layer's outputs over the vocabulary, its own scaling included."""
    tokens = torch.arange(len(embeddings.weight), device=embeddings.weight.device)
    squares = sum(embeddings(ids).double().square().sum() for ids in tokens.split(EMBEDDING_CHUNK_ROWS))
    return (squares / len(tokens)).sqrt().item()


def make_bias_embedding(model: PreTrainedModel, config: BALoraConfig) -> BiasEmbedding:
    """Build the initial b on the embeddings' device, in float32 or their dtype if that is wider.

    Args:
        model: The base model with pretrained embeddings.
        config: Supplies `bias_path_mode`, `bias_path_radius` and `seed`.
    """
    embeddings = input_embeddings(model)
    length = embedding_length(embeddings)
    width = embeddings(torch.zeros(1, dtype=torch.long, device=embeddings.weight.device)).shape[-1]
    bias = BiasEmbedding(width, radius=config.bias_path_radius * length, mode=config.bias_path_mode, seed=config.seed)
    weight = embeddings.weight
    bias.requires_grad_(not config.inference_mode)
    return bias.to(weight.device, torch.promote_types(weight.dtype, torch.float32))


@contextmanager
def bias_added(model: PreTrainedModel, b: Tensor, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Context manager: add b `(d,)` to every input embedding; yields the inputs to call the model with.

    Raises:
        BALoraError: On exit, if the model did not use its input embedding layer.
    """
    if inputs.get("inputs_embeds") is not None:
        x = inputs["inputs_embeds"]
        yield {**inputs, "inputs_embeds": x + b.to(x)}
        return
    calls = 0

    def add(module: nn.Module, args: tuple[Any, ...], x: Tensor) -> Tensor | None:
        nonlocal calls
        calls += 1
        # Later calls are a decoder's that shares the layer.
        return x + b.to(x) if calls == 1 else None

    handle = input_embeddings(model).register_forward_hook(add)
    try:
        yield inputs
    finally:
        handle.remove()
    if not calls:
        raise BALoraError(
            f"bias_path_weight: {type(model).__name__} does not call get_input_embeddings() on its inputs, so there "
            "is no layer to add the bias vector to; use 0"
        )


def drop_bias_path_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the bias path from a state dict: PEFT takes every key with `bias` in it for the adapter's."""
    return {key: tensor for key, tensor in state.items() if not key.startswith(KEY_PREFIX)}


RandomState = list[Tensor]


def random_state() -> RandomState:
    """Return the states of the generators that dropout uses: the CPU's and every GPU's."""
    return [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]


def _restore(state: RandomState) -> None:
    torch.set_rng_state(state[0])
    torch.cuda.set_rng_state_all(state[1:])


@contextmanager
def replay_random_state(state: RandomState) -> Iterator[None]:
    """Context manager: draw the random numbers that follow `state`, and restore the present state on exit."""
    present = random_state()
    _restore(state)
    try:
        yield
    finally:
        _restore(present)


def bias_path_term(
    base: PreTrainedModel,
    bias: BiasEmbedding,
    represent: Callable[[dict[str, Any], Tensor], Tensor],
    inputs: dict[str, Any],
    plain: Tensor,
    weights: Tensor,
    before: RandomState,
    *,
    config: BALoraConfig,
    sharded: bool,
) -> Tensor:
    """Compute the unweighted bias path term of a micro-batch after its ordinary pass, a scalar.

    Both passes use the same dropout masks. Masks are drawn for the whole batch and cannot be redrawn for a subset of
    its rows: if dropout is active and rows are sampled, they run an ordinary pass of their own too.

    Args:
        base: The base model, whose input embeddings b is added to.
        bias: The bias vector's module.
        represent: Maps the model's inputs for the rows picked, and their mask `(B,)`, to representations f `(n, d)`.
        inputs: Inputs of the whole micro-batch.
        plain: f of the ordinary pass, `(B, d)`.
        weights: Number of tokens of each row `(B,)`, its weight: with the micro-batch's share a row then has the same
            weight however a batch is split.
        before: The random state before the ordinary pass.
        config: Supplies `bias_path_sample_rate` and `bias_path_reduction`.
        sharded: Whether weights are gathered collectively, so that all processes must run the same passes.
    """
    b = bias()
    drew = not all(torch.equal(was, now) for was, now in zip(before, random_state(), strict=True))
    picked = pick_examples(len(plain), config.bias_path_sample_rate).to(plain.device)
    part = select_examples(inputs, picked)
    if not picked.any():
        if not sharded:
            return 0.0 * b.sum()  # keeps b in the graph, since DDP needs a gradient for every parameter
        # All processes must run the same passes: run one row with weight 0.
        picked = torch.arange(len(picked), device=picked.device) == 0
        weights = torch.zeros_like(weights)
        part = select_examples(inputs, picked)
    plain = plain[picked]
    if drew and (not picked.all() or (sharded and config.bias_path_sample_rate < 1)):
        with replay_random_state(before):
            plain = represent(part, picked)
    with replay_random_state(before), bias_added(base, b, part) as shifted_inputs:
        shifted = represent(shifted_inputs, picked)
    loss = bias_path_loss(shifted, plain, weights=weights[picked], reduction=config.bias_path_reduction)
    chance = config.bias_path_sample_rate * weights.sum().clamp(min=1)
    return loss * weights[picked].sum() / chance
