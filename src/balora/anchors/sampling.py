"""Anchor sequences: sampled from the pretrained model, or made from your own texts."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.utils.distributed import broadcast_from_main
from balora.utils.files import cache_folder, weights_digest, write_tensors
from balora.utils.lengths import check_max_length, context_length
from balora.utils.progress import tracked
from balora.utils.sampling import sample_tokens, seeded

#: Number of sequences, and their length in tokens, unless others are asked for.
COUNT, LENGTH = 512, 128


@dataclass(frozen=True)
class Anchors:
    """N anchor sequences, padded on the right.

    Attributes:
        input_ids: `(N, S)`.
        attention_mask: `(N, S)`, 0 for padding.
    """

    input_ids: Tensor
    attention_mask: Tensor

    def draw(self, count: int) -> dict[str, Tensor]:
        """Draw `count` sequences with replacement from the global generator, as model inputs `(count, S')`.

        In a distributed run every process draws for all processes and takes its own part.
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
    count: int = COUNT,
    length: int = LENGTH,
    seed: int = 0,
    prompts: Sequence[str] | None = None,
    batch_size: int = 32,
    cache_dir: str | os.PathLike | None = None,
) -> Anchors:
    """Sample sequences from a causal language model at temperature 1, without truncating the distribution.

    Args:
        model: The pretrained model before training; its training mode is restored.
        tokenizer: The model's tokenizer.
        count: N, number of sequences.
        length: Tokens of each, its prompt included; fewer if the model ends the text.
        seed: Equal seeds give equal sequences on one machine. The global generators are not used.
        prompts: Texts to continue, used in turn; by default the beginning-of-text token, or else the end-of-text one.
        batch_size: Sequences sampled at a time; it affects the samples.
        cache_dir: Folder with one file for each model and settings, read if present. Each batch is kept there, so that
            an interrupted call resumes with the same samples. `None` caches nothing.

    Raises:
        BALoraError: If a number is out of range, the tokenizer has no token to begin with, or a prompt is too long.
    """
    for name, value, least in (("count", count, 1), ("length", length, 2), ("batch_size", batch_size, 1)):
        if value < least:
            raise BALoraError(f"anchors: {name} is {value}; use at least {least}")
    check_max_length(length, context_length(model.config, tokenizer), setting="anchors: length")
    starts = _prompt_ids(tokenizer, prompts, length)
    path = None
    if cache_dir is not None:
        path = Path(cache_dir) / f"{weights_digest(model, starts, count, length, seed, batch_size)}.safetensors"
        if path.is_file():
            return Anchors(**load_file(path))
    part = None if path is None else path.with_suffix(".part")
    # Prompts of equal length are batched together, since left padding would change the samples.
    in_turn = sorted((starts[i % len(starts)] for i in range(count)), key=len)
    with seeded(model, seed):
        rows = [] if part is None or not part.is_file() else _restore(part, model)
        batches = _batches_of_one_length(in_turn[len(rows) :], batch_size)
        for alike in tracked(batches, "sampling anchors"):
            written = sample_tokens(model, tokenizer, alike, max_new_tokens=length - len(alike[0]))
            rows += [start + new for start, new in zip(alike, written, strict=True)]
            if part is not None:
                write_tensors(part, {**vars(_padded(rows)), "random_state": _random_state(model)})
    anchors = _padded(rows)
    if path is not None:
        write_tensors(path, vars(anchors))
        part.unlink(missing_ok=True)
    return anchors


def cached_anchors(
    load: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int = COUNT,
    length: int | None = None,
) -> Anchors:
    """Sample anchors in the main process, for all processes, or read them from balora's cache.

    Args:
        load: Returns the pretrained model; called in the main process alone.
        tokenizer: The model's tokenizer.
        count: As for `sample_anchors`.
        length: As for `sample_anchors`; `None` for `LENGTH`, or the model's context if that is shorter.
    """

    def sample() -> Anchors:
        model = load()
        wanted = length or min(LENGTH, context_length(model.config, tokenizer) or LENGTH)
        folder = cache_folder() / "anchors"
        return sample_anchors(model, tokenizer, count=count, length=wanted, cache_dir=folder)

    return broadcast_from_main(sample)


def _batches_of_one_length(starts: list[list[int]], batch_size: int) -> list[list[list[int]]]:
    batches = []
    while starts:
        alike = [start for start in starts[:batch_size] if len(start) == len(starts[0])]
        batches.append(alike)
        starts = starts[len(alike) :]
    return batches


def _random_state(model: PreTrainedModel) -> Tensor:
    """Return the state of the generator that samples from the model draw from."""
    return torch.cuda.get_rng_state(model.device) if model.device.type == "cuda" else torch.get_rng_state()


def _restore(part: Path, model: PreTrainedModel) -> list[list[int]]:
    """Return the rows that an interrupted call sampled, and set the generator to its state after them."""
    held = load_file(part)
    if model.device.type == "cuda":
        torch.cuda.set_rng_state(held["random_state"], model.device)
    else:
        torch.set_rng_state(held["random_state"])
    return [ids[mask.bool()].tolist() for ids, mask in zip(held["input_ids"], held["attention_mask"], strict=True)]


def texts_as_anchors(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, length: int = LENGTH) -> Anchors:
    """Make anchors of your own texts, such as a corpus that the model should not forget.

    Args:
        texts: N texts; each is truncated to `length` tokens.
        tokenizer: The model's tokenizer.
        length: Maximum length in tokens.

    Raises:
        BALoraError: If there are no texts, or one has fewer than two tokens.
    """
    if not texts:
        raise BALoraError("anchors: texts is empty; give at least one")
    rows = [tokenizer(text, truncation=True, max_length=length)["input_ids"] for text in texts]
    short = next((number for number, ids in enumerate(rows, start=1) if len(ids) < 2), None)
    if short is not None:
        raise BALoraError(f"anchors: text {short} has fewer than two tokens; leave it out")
    return _padded(rows)


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str] | None, length: int) -> list[list[int]]:
    """Return token ids of the prompts, validated, without an end-of-text token."""
    if prompts is None:
        first = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
        if first is None:
            raise BALoraError("anchors: the tokenizer has no beginning-of-text or end-of-text token; give prompts")
        return [[first]]
    starts = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    # Some tokenizers append an end-of-text token.
    starts = [ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids for ids in starts]
    if not starts:
        raise BALoraError("anchors: prompts is empty; give at least one, or leave it out")
    for number, ids in enumerate(starts, start=1):
        if not 0 < len(ids) < length:
            raise BALoraError(f"anchors: prompt {number} has {len(ids)} tokens; it needs from 1 to {length - 1}")
    return starts


def _padded(rows: list[list[int]]) -> Anchors:
    """Pad token ids on the right."""
    ids = [torch.tensor(row) for row in rows]
    padded = (pad_sequence(own, batch_first=True) for own in (ids, [torch.ones_like(row) for row in ids]))
    return Anchors(*padded)  # (N, S) each
