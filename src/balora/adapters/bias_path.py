"""The bias path's b: one vector, added to every input embedding.

b enters where the model looks its tokens up, as the output of its input embeddings: what a model scales inside that
layer (Gemma, BART) is scaled already, positions and norms come after it. In a sequence-to-sequence model the input is
the encoder's. `balora.adapters.bias_path` compares the passes with it and without.

Nothing here is needed for inference, so what is saved is the adapter that it would be without, and b beside it.
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

#: Rows of the embeddings that are looked up at a time.
CHUNK = 4096
FILE = "bias_path.safetensors"
PREFIX = "lora_bias_path."


class BiasEmbedding(nn.Module):
    """b, of the input embeddings' width: from a unit vector u, at length ε.

    `adversarial` is ε·u/‖u‖ with its gradient reversed, so that what minimises the loss in the adapter maximises it in
    b; `minimised` is ε·u, whose length is free; `counterfactual` is ε·u with a u that is given and fixed.

    Args:
        width: d.
        radius: ε.
        mode: One of those.
        seed: Of the random direction that u starts from.

    Attributes:
        direction: u, `(d,)`; `None` in `counterfactual` until it is set.
    """

    def __init__(self, width: int, *, radius: float, mode: str, seed: int) -> None:
        super().__init__()
        self.width, self.radius, self.mode = width, radius, mode
        if mode == "counterfactual":
            self.register_buffer("direction", None)
        else:
            # Of length 1, so that a step of Adam, of about √d times the rate, turns it soon.
            u = torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            self.direction = nn.Parameter(F.normalize(u, dim=0))

    def forward(self) -> Tensor:
        """b, `(d,)`.

        Raises:
            BALoraError: If its direction is to be given and was not.
        """
        if self.direction is None:
            raise BALoraError(
                "bias_path_mode: counterfactual has no direction yet; call model.set_bias_direction with "
                "balora.losses.counterfactual_direction of the pairs' embeddings"
            )
        if self.mode != "adversarial":
            return self.radius * self.direction
        b = self.radius * F.normalize(self.direction, dim=0)
        return 2 * b.detach() - b  # b to the bit, with the sign of its gradient turned

    def set_direction(self, direction: Tensor, *, like: Tensor) -> None:
        """Set u to a given vector `(d,)`, normalized.

        Args:
            direction: Of any length but 0.
            like: A weight of the embeddings, for device and precision.

        Raises:
            BALoraError: If the shape is wrong, or the entries are not finite or all 0.
        """
        if direction.shape != (self.width,) or not torch.isfinite(direction).all() or not direction.any():
            raise BALoraError(
                f"set_bias_direction: expected a finite vector of {self.width} entries, not all 0, as the input "
                f"embeddings have; this one has shape {tuple(direction.shape)}"
            )
        wide = torch.promote_types(like.dtype, torch.float32)
        self.direction = F.normalize(direction.detach().to(like.device, wide), dim=0)

    def save_direction(self, directory: Path, state: dict[str, Tensor] | None) -> None:
        """Write u, if it is set, to `bias_path.safetensors`.

        Args:
            directory: The adapter's folder.
            state: The whole model's state dict, where a sharded trainer gathered it.
        """
        directions = self.state_dict() if state is None else state
        direction = directions.get("direction" if state is None else f"{PREFIX}direction")
        if direction is not None:
            save_file({"direction": direction.detach().clone()}, directory / FILE)

    def load_direction(self, directory: str | os.PathLike, *, like: Tensor) -> None:
        """Read u back, to resume training; in `counterfactual` a missing file leaves it to be set again.

        Raises:
            BALoraError: If the file is missing, or of another model's width.
        """
        path = Path(directory) / FILE
        if not path.is_file():
            if self.mode == "counterfactual":
                return
            raise BALoraError(
                f"{path} is missing, and training resumes from its bias embedding; copy it there, or set "
                f"bias_path_weight to 0 in the {SETTINGS_FILE} beside it"
            )
        direction = load_file(path)["direction"]
        if direction.shape != (self.width,):
            raise BALoraError(
                f"{path} has shape {tuple(direction.shape)}, and this model's embeddings {self.width} entries"
            )
        if self.mode == "counterfactual":
            self.set_direction(direction, like=like)
        else:
            with torch.no_grad():
                self.direction.copy_(direction)


def input_embeddings(model: PreTrainedModel) -> nn.Module:
    """What the input's tokens are looked up in, the encoder's where there is one."""
    reader = model.get_encoder() if model.config.is_encoder_decoder else model
    return reader.get_input_embeddings()


@torch.no_grad()
def embedding_length(embeddings: nn.Module) -> float:
    """Root mean square length of what the layer gives for each token of the vocabulary, its own scaling included."""
    tokens = torch.arange(len(embeddings.weight), device=embeddings.weight.device)
    squares = sum(embeddings(ids).double().square().sum() for ids in tokens.split(CHUNK))
    return (squares / len(tokens)).sqrt().item()


def make_bias_embedding(model: PreTrainedModel, config: BALoraConfig) -> BiasEmbedding:
    """b at its start, where the model's embeddings are, in single precision or theirs if that is higher.

    Args:
        model: The base model, its embeddings as pretrained.
        config: `bias_path_mode`, `bias_path_radius`, `seed`.
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
    """Within, the model reads b `(d,)` into each of its input embeddings; gives the inputs to call it with.

    Raises:
        BALoraError: On leaving, if the model passed its embeddings by.
    """
    if inputs.get("inputs_embeds") is not None:
        x = inputs["inputs_embeds"]
        yield {**inputs, "inputs_embeds": x + b.to(x)}
        return
    calls = 0

    def add(module: nn.Module, args: tuple[Any, ...], x: Tensor) -> Tensor | None:
        nonlocal calls
        calls += 1
        # A decoder that shares the layer looks its own tokens up later.
        return x + b.to(x) if calls == 1 else None

    handle = input_embeddings(model).register_forward_hook(add)
    try:
        yield inputs
    finally:
        handle.remove()
    if not calls:
        raise BALoraError(
            f"bias_path_weight: {type(model).__name__} does not look its inputs up in get_input_embeddings(), so "
            "there is nothing to add a bias embedding to; use 0"
        )


def without_bias_path(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's state dict as stock PEFT knows it: PEFT takes what has `bias` in its name for the adapter's."""
    return {key: tensor for key, tensor in state.items() if not key.startswith(PREFIX)}


RandomState = list[Tensor]


def random_state() -> RandomState:
    """Of what dropout draws from: the CPU's generator and every GPU's."""
    return [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]


def _restore(state: RandomState) -> None:
    torch.set_rng_state(state[0])
    torch.cuda.set_rng_state_all(state[1:])


@contextmanager
def replayed(state: RandomState) -> Iterator[None]:
    """Within, random numbers are those that followed `state`; afterwards they go on as if nothing had been drawn."""
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
    """The unweighted bias path of a micro-batch whose ordinary pass is done, scalar.

    Both passes drop the same out. Masks are drawn for the whole batch, so of some of its rows there are none to draw
    again: where anything was drawn, these make an ordinary pass of their own too.

    Args:
        base: The base model, whose input embeddings b is added to.
        bias: b.
        represent: From the model's inputs for the rows picked, `(B,)` bool, to their f, `(n, d)`.
        inputs: Of the whole micro-batch.
        plain: f of the ordinary pass, `(B, d)`.
        weights: `(B,)`, the tokens of each row. A row weighs by them, so that with its micro-batch's share it has the
            same weight however a batch is split.
        before: The random state that the ordinary pass began with.
        config: `bias_path_sample_rate` and `bias_path_reduction`.
        sharded: Whether processes gather the weights together, so that all must run the same passes.
    """
    b = bias()
    drew = not all(torch.equal(was, now) for was, now in zip(before, random_state(), strict=True))
    picked = pick_examples(len(plain), config.bias_path_sample_rate).to(plain.device)
    part = select_examples(inputs, picked)
    if not picked.any():
        if not sharded:
            return 0.0 * b.sum()  # in the graph, as processes that train together want of every parameter
        # All run the same passes; this row counts for nothing.
        picked = torch.arange(len(picked), device=picked.device) == 0
        weights = torch.zeros_like(weights)
        part = select_examples(inputs, picked)
    plain = plain[picked]
    if drew and (not picked.all() or (sharded and config.bias_path_sample_rate < 1)):
        with replayed(before):
            plain = represent(part, picked)
    with replayed(before), bias_added(base, b, part) as shifted_inputs:
        shifted = represent(shifted_inputs, picked)
    loss = bias_path_loss(shifted, plain, weights=weights[picked], reduction=config.bias_path_reduction)
    chance = config.bias_path_sample_rate * weights.sum().clamp(min=1)
    return loss * weights[picked].sum() / chance
