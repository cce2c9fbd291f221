"""Sequences to hold a model to: sampled from the model itself before it is trained, or texts of one's own."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.utils.files import digest_of, write_tensors
from balora.utils.lengths import check_max_length, context_length
from balora.utils.sampling import sample_tokens, seeded


@dataclass(frozen=True)
class Anchors:
    """N sequences, padded on the right.

    Attributes:
        input_ids: `(N, S)`.
        attention_mask: `(N, S)`, 0 for padding.
    """

    input_ids: Tensor
    attention_mask: Tensor

    def draw(self, count: int) -> dict[str, Tensor]:
        """Inputs of `count` of them, drawn with replacement from the global generator, `(count, S')`.

        Processes that train together draw for all of them and take their own.
        """
        world, rank = 1, 0
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        rows = torch.randint(len(self.input_ids), (world, count))[rank]
        mask = self.attention_mask[rows]
        width = int(mask.sum(1).max())
        return {"input_ids": self.input_ids[rows, :width], "attention_mask": mask[:, :width]}


def sample_anchors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int = 512,
    length: int = 128,
    seed: int = 0,
    prompts: Sequence[str] | None = None,
    batch_size: int = 32,
    cache_dir: str | os.PathLike | None = None,
) -> Anchors:
    """Let a causal language model write, at temperature 1 and from its whole distribution.

    Args:
        model: The pretrained model, before it is trained; left in the mode it was in.
        tokenizer: Its own.
        count: N, sequences to write.
        length: Tokens of each, with what it begins with; fewer where the model ends its text.
        seed: Equal seeds give equal sequences, on one machine. The global generators play no part.
        prompts: Texts to go on from, taken in turn; default the token that begins a text, or that ends one where
            there is none.
        batch_size: Sequences at a time. It takes part in what is drawn.
        cache_dir: Folder of a file for each model and setting, read where it is there. `None` keeps none.

    Raises:
        BALoraError: If a number is out of range, the tokenizer has no token to begin with, or a prompt leaves no room.
    """
    for name, value, least in (("count", count, 1), ("length", length, 2), ("batch_size", batch_size, 1)):
        if value < least:
            raise BALoraError(f"anchors: {name} is {value}; use at least {least}")
    check_max_length(length, context_length(model.config, tokenizer), setting="anchors: length")
    starts = _starts(tokenizer, prompts, length)
    path = None
    if cache_dir is not None:
        path = Path(cache_dir) / f"{digest_of(model, starts, count, length, seed, batch_size)}.safetensors"
        if path.is_file():
            return Anchors(**load_file(path))
    rows: list[list[int]] = []
    # Those of one length together: no sequence is then padded on the left, which samples would depend on.
    in_turn = sorted((starts[i % len(starts)] for i in range(count)), key=len)
    with seeded(model, seed):
        while in_turn:
            size = len(in_turn[0])
            alike = [start for start in in_turn[:batch_size] if len(start) == size]
            in_turn = in_turn[len(alike) :]
            written = sample_tokens(model, tokenizer, alike, max_new_tokens=length - size)
            rows += [start + new for start, new in zip(alike, written, strict=True)]
    anchors = _padded(rows)
    if path is not None:
        write_tensors(path, vars(anchors))
    return anchors


def texts_as_anchors(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, length: int = 128) -> Anchors:
    """Texts of one's own, such as a corpus that the model should not forget, as anchors.

    Args:
        texts: N texts; each is cut to `length` tokens.
        tokenizer: The model's.
        length: In tokens.

    Raises:
        BALoraError: If there are no texts, or one has fewer than two tokens.
    """
    if not texts:
        raise BALoraError("anchors: no texts; give at least one")
    rows = [tokenizer(text, truncation=True, max_length=length)["input_ids"] for text in texts]
    short = next((number for number, ids in enumerate(rows, start=1) if len(ids) < 2), None)
    if short is not None:
        raise BALoraError(f"anchors: text {short} has fewer than two tokens; leave it out")
    return _padded(rows)


def _starts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str] | None, length: int) -> list[list[int]]:
    if prompts is None:
        first = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
        if first is None:
            raise BALoraError("anchors: the tokenizer has no token that begins or ends a text; give prompts")
        return [[first]]
    starts = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    # Some tokenizers end every text.
    starts = [ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids for ids in starts]
    if not starts:
        raise BALoraError("anchors: prompts is empty; give at least one, or leave it out")
    for number, ids in enumerate(starts, start=1):
        if not 0 < len(ids) < length:
            raise BALoraError(f"anchors: prompt {number} has {len(ids)} tokens; it needs from 1 to {length - 1}")
    return starts


def _padded(rows: list[list[int]]) -> Anchors:
    ids = [torch.tensor(row) for row in rows]
    padded = (pad_sequence(own, batch_first=True) for own in (ids, [torch.ones_like(row) for row in ids]))
    return Anchors(*padded)  # (N, S) each
