"""Sampling from a causal model's plain distribution, regardless of its saved generation settings."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.utils.modules import evaluation_mode

#: Arguments of `generate` that override a checkpoint's generation settings, so that the distribution is the model's.
PLAIN_SAMPLING = {
    "max_length": None,
    "min_length": 0,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "use_cache": True,
}


def sample_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    starts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[list[int]]:
    """Sample a continuation of each prompt, up to and including the end-of-text token.

    Args:
        model: A causal model; its training mode is restored.
        tokenizer: The model's tokenizer.
        starts: Token ids of the prompts, all of one length, since padding would change the samples.
        max_new_tokens: Maximum number of tokens of each continuation.
        temperature: Divisor of the logits.
        top_p: Probability mass of nucleus sampling; 1 samples from all tokens.
    """
    ids = torch.tensor(starts, device=next(model.parameters()).device)  # (B, P)
    ends = end_token_ids(model, tokenizer)
    with evaluation_mode(model), torch.no_grad():
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=top_p,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,
            **PLAIN_SAMPLING,
        )[:, ids.shape[1] :]  # (B, T)
    rows = written.tolist()
    stops = [next((place for place, token in enumerate(row) if token in ends), len(row)) for row in rows]
    return [row[: stop + 1] for row, stop in zip(rows, stops, strict=True)]


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the end-of-text token ids: the generation settings', else the tokenizer's; may be empty."""
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


@contextmanager
def seeded(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Context manager: seed the random generators of the model's device, and restore the global ones on exit."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
