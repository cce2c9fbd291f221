"""Noise in a model's input tokens or embeddings, and the share of predictions that stay the same.

The noise of a row depends on the row and the seed only: student and teacher get the same noise, and so does the row in
another batch. A higher level changes everything that a lower level changes, and more.
"""

import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from balora.errors import BALoraError
from balora.evaluation.perplexity import IGNORED
from balora.fused import TokenScorer
from balora.utils.batches import with_decoder_inputs
from balora.utils.modules import evaluation_mode

NoiseKind = Literal["token", "embedding"]
NOISE_KINDS: tuple[NoiseKind, ...] = ("token", "embedding")


@contextmanager
def noisy_inputs(
    model: PreTrainedModel | PeftModel, kind: NoiseKind, level: float, *, spared: Collection[int] = (), seed: int = 0
) -> Iterator[None]:
    """Context manager: add noise to the inputs of a model and its teacher (of the encoder in an encoder-decoder).

    Args:
        model: Adapted or not, called with `input_ids`.
        kind: `token` replaces a share `level` of the tokens by tokens drawn uniformly from the vocabulary.
            `embedding` adds normal noise to each entry of a token's embedding, with a standard deviation of `level`
            times the root mean square of all embeddings' entries.
        level: From 0, which changes nothing; at most 1 for tokens.
        spared: Ids that are neither replaced nor drawn, and whose embeddings stay: the tokenizer's special tokens.
        seed: Seed of the noise.

    Raises:
        BALoraError: If the kind is unknown or the level out of range.
    """
    if kind not in NOISE_KINDS:
        raise BALoraError(f"noise: kind {kind!r} is unknown; use one of {', '.join(NOISE_KINDS)}")
    if not 0 <= level <= (1 if kind == "token" else np.inf):
        raise BALoraError(f"noise: level {level} is out of range; use 0 to 1 for tokens, from 0 for embeddings")
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    reader = base.get_encoder() if base.config.is_encoder_decoder else base
    embeddings = reader.get_input_embeddings()
    noise = _Noise(level, torch.tensor(sorted(spared), dtype=torch.long), embeddings.weight, seed)
    with ExitStack() as hooks:
        if reader is not base:  # the decoder may share the embeddings
            noise.on = False
            hooks.enter_context(_removed(reader.register_forward_pre_hook(lambda *_: noise.switch(True))))
            hooks.enter_context(_removed(reader.register_forward_hook(lambda *_: noise.switch(False))))
        hook = (
            embeddings.register_forward_pre_hook(noise.replace_tokens)
            if kind == "token"
            else embeddings.register_forward_hook(noise.shake)
        )
        hooks.enter_context(_removed(hook))
        yield


@torch.no_grad()
def predicted(model: PreTrainedModel | PeftModel, batches: Iterable[dict[str, Tensor]]) -> np.ndarray:
    """Return the most likely class of each example, or the most likely token at each labelled position, `(M,)`.

    Args:
        model: Its training mode is unchanged.
        batches: Model inputs as tensors, with `labels`.
    """
    score, found = TokenScorer(model), []
    for batch in batches:
        inputs = {name: value.to(model.device) for name, value in batch.items() if isinstance(value, Tensor)}
        labels = inputs.pop("labels")
        if labels.ndim == 1:
            with evaluation_mode(model):
                found.append(model(**inputs).logits.argmax(-1).cpu())
            continue
        if model.config.is_encoder_decoder:
            inputs = with_decoder_inputs(model, inputs, labels)
        else:
            labels = labels[:, 1:]
        found.append(score(inputs, labels, labels != IGNORED).top1.cpu())
    return torch.cat(found).numpy()


def stability(clean: np.ndarray, noisy: np.ndarray) -> float:
    """Return the share of predictions `(M,)`, from `predicted`, that are the same with noise."""
    return float((clean == noisy).mean())


class _Noise:
    """The forward hooks that add noise, and their shared state."""

    def __init__(self, level: float, spared: Tensor, weight: Tensor, seed: int) -> None:
        self.level, self.spared, self.seed, self.on = level, spared, seed, True
        known = torch.ones(len(weight), dtype=torch.bool)
        known[spared] = False
        self.drawn_from = known.nonzero().squeeze(1)
        self.size = weight.detach().float().square().mean().sqrt().item()
        self.ids: Tensor | None = None

    def switch(self, on: bool) -> None:
        """Turn noise on or off."""
        self.on = on

    def replace_tokens(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Return ids `(B, S)` with some of them replaced."""
        if not self.on:
            return None
        ids = args[0]
        draws = self._draws(ids, lambda draw: draw.random((ids.shape[1], 2)))  # (B, S, 2)
        others = self.drawn_from[(draws[..., 1] * len(self.drawn_from)).long()]
        hit = (draws[..., 0] < self.level) & ~torch.isin(ids.cpu(), self.spared)
        return (torch.where(hit.to(ids.device), others.to(ids), ids), *args[1:])

    def shake(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Return embeddings `(B, S, d)` with normal noise added."""
        if not self.on:
            return output
        draws = self._draws(args[0], lambda draw: draw.standard_normal(output.shape[1:]))  # (B, S, d)
        draws[torch.isin(args[0].cpu(), self.spared)] = 0.0
        return output + self.level * self.size * draws.to(output)

    def _draws(self, ids: Tensor, of: Callable[[np.random.Generator], np.ndarray]) -> Tensor:
        """Draw from a generator per row; a draw does not depend on the positions after it."""
        rows = [row[~torch.isin(row, self.spared)].numpy().tobytes() for row in ids.cpu()]
        return torch.from_numpy(np.stack([of(np.random.default_rng((self.seed, zlib.crc32(row)))) for row in rows]))


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
