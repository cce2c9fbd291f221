"""The bias path's b: one vector, added to every input embedding.

b enters where the model looks its tokens up, as the output of its input embeddings: what a model scales inside that
layer (Gemma, BART) is scaled already, positions and norms come after it. In a sequence-to-sequence model the input is
the encoder's. `balora.adapters.bias_pass` compares the passes with it and without.

Nothing here is needed for inference, so what is saved is the adapter that it would be without, and b beside it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from balora.adapters.saving import SETTINGS_FILE
from balora.config import BALoraConfig
from balora.errors import BALoraError

if TYPE_CHECKING:
    from balora.adapters.adapted import AdaptedModel

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


def set_direction(model: "AdaptedModel", direction: Tensor) -> None:
    """As `AdaptedModel.set_bias_direction`."""
    bias = model.lora_bias_path
    if bias is None or bias.mode != "counterfactual":
        raise BALoraError(
            f"bias_path_mode: {model.balora_config.bias_path_mode} finds its own direction, or there is no bias path; "
            "use bias_path_mode='counterfactual' and a bias_path_weight"
        )
    if direction.shape != (bias.width,) or not torch.isfinite(direction).all() or not direction.any():
        raise BALoraError(
            f"set_bias_direction: expected a finite vector of {bias.width} entries, not all 0, as the input "
            f"embeddings have; this one has shape {tuple(direction.shape)}"
        )
    weight = input_embeddings(model.get_base_model()).weight
    wide = torch.promote_types(weight.dtype, torch.float32)
    bias.direction = F.normalize(direction.detach().to(weight.device, wide), dim=0)


def without_bias_path(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's state dict as stock PEFT knows it: PEFT takes what has `bias` in its name for the adapter's."""
    return {key: tensor for key, tensor in state.items() if not key.startswith(PREFIX)}


def save_direction(model: "AdaptedModel", directory: Path, state: dict[str, Tensor] | None) -> None:
    """Write u, if there is one yet, to `bias_path.safetensors`.

    Args:
        model: With a bias path.
        directory: The adapter's folder.
        state: The whole model's state dict, where a sharded trainer gathered it.
    """
    directions = model.lora_bias_path.state_dict() if state is None else state
    direction = directions.get("direction" if state is None else f"{PREFIX}direction")
    if direction is not None:
        save_file({"direction": direction.detach().clone()}, directory / FILE)


def load_direction(model: "AdaptedModel", directory: str | os.PathLike) -> None:
    """Read it back, to go on training.

    Raises:
        BALoraError: If it is not there, or of another model's width.
    """
    path, bias = Path(directory) / FILE, model.lora_bias_path
    if not path.is_file():
        if bias.mode == "counterfactual":  # to be set again
            return
        raise BALoraError(
            f"{path} is missing, and training goes on from its bias embedding; copy it there, or set bias_path_weight "
            f"to 0 in the {SETTINGS_FILE} beside it"
        )
    direction = load_file(path)["direction"]
    if direction.shape != (bias.width,):
        raise BALoraError(
            f"{path} has shape {tuple(direction.shape)}, and this model's embeddings {bias.width} entries"
        )
    if bias.mode == "counterfactual":
        set_direction(model, direction)
    else:
        with torch.no_grad():
            bias.direction.copy_(direction)
