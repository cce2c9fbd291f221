"""Text that a causal model writes: sampled from its own distribution, whatever its generation settings say."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.utils.modules import evaluation_mode

#: Of `generate`: nothing of what a checkpoint's generation settings may ask for beside the model's own distribution.
AS_IT_IS = {
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
    """What the model writes behind each start, up to the token that ends its text, that one included.

    Args:
        model: Left in the mode it was in.
        tokenizer: Its own.
        starts: Token ids, all of one length: what is padded would have other samples.
        max_new_tokens: Most tokens of each.
        temperature: That logits are divided by.
        top_p: Sample from the likeliest tokens whose probabilities reach this; 1 is from all.
    """
    ids = torch.tensor(starts, device=next(model.parameters()).device)  # (B, P)
    ends = text_ends(model, tokenizer)
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
            **AS_IT_IS,
        )[:, ids.shape[1] :]  # (B, T)
    rows = written.tolist()
    stops = [next((place for place, token in enumerate(row) if token in ends), len(row)) for row in rows]
    return [row[: stop + 1] for row, stop in zip(rows, stops, strict=True)]


def text_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a text: those of the model's generation settings, else the tokenizer's, if it has one."""
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


@contextmanager
def seeded(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Within, what is drawn for the model follows from the seed; afterwards the global generators are as they were."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
