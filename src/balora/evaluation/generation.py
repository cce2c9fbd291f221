"""Greedy generation for evaluations: completions of a causal model, texts of a sequence-to-sequence model."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.utils.lengths import context_length
from balora.utils.modules import evaluation_mode
from balora.utils.progress import tracked
from balora.utils.sampling import PLAIN_SAMPLING

#: The inputs of `generate` in a batch.
GENERATION_INPUTS = ("input_ids", "attention_mask", "sentence_embeds")


@torch.no_grad()
def generate_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    stop: Sequence[str] = (),
    sentence_embeds: Tensor | None = None,
) -> list[str]:
    """Generate the greedy completion of each prompt, without the prompt and special tokens.

    Prompts are batched by length and padded on the left. The model's own generation settings (sampling, beams,
    penalties) are ignored, except for the tokens that end a text.

    Args:
        model: A causal language model, adapted or not; its training mode is unchanged.
        tokenizer: The model's; unchanged.
        prompts: `N` texts.
        max_new_tokens: Maximum length of a completion.
        batch_size: Prompts per batch.
        stop: Texts that end a completion and are removed from it, such as `"\\n\\nQuestion:"`.
        sentence_embeds: `(N, d)`, for SeLoRA.

    Returns:
        `N` completions in the prompts' order.

    Raises:
        BALoraError: If a prompt has no tokens, or exceeds the model's context together with `max_new_tokens`.
    """
    rows = check_room(tokenizer, prompts, max_new_tokens, context_length(model.config, tokenizer))
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))  # to pad little
    completions = [""] * len(rows)
    for first in tracked(range(0, len(order), batch_size), "writing answers"):
        chosen = order[first : first + batch_size]
        own = {} if sentence_embeds is None else {"sentence_embeds": sentence_embeds[chosen]}
        texts = _generate(model, tokenizer, [rows[row] for row in chosen], max_new_tokens, stop, **own)
        for row, text in zip(chosen, texts, strict=True):
            completions[row] = text
    return completions


@torch.no_grad()
def write_texts(
    model: PreTrainedModel,
    batches: Iterable[dict[str, Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
) -> list[str]:
    """Generate a text per row with a sequence-to-sequence model, by greedy decoding, without special tokens.

    Args:
        model: Adapted or not; its training mode is unchanged.
        batches: Inputs with `input_ids` and `attention_mask`, each `(B, S)`, and SeLoRA's `sentence_embeds`; others
            are ignored.
        tokenizer: The model's.
        max_new_tokens: Maximum length of a text.
    """
    device = next(model.parameters()).device
    texts: list[str] = []
    for batch in tracked(batches, "writing answers"):
        inputs = {name: batch[name].to(device) for name in GENERATION_INPUTS if name in batch}
        with evaluation_mode(model):
            # Reset the limits of the model's own generation settings, which would apply too.
            written = model.generate(
                **inputs, max_new_tokens=max_new_tokens, max_length=None, min_length=0, do_sample=False, num_beams=1
            )  # (B, T)
        texts += tokenizer.batch_decode(written, skip_special_tokens=True)
    return texts


def check_room(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int, context: int | None
) -> list[list[int]]:
    """Tokenize the prompts, and validate that prompt and completion fit in the context.

    Args:
        tokenizer: The model's.
        prompts: `N` texts.
        max_new_tokens: Maximum length of a completion.
        context: From `context_length`.

    Raises:
        BALoraError: If a prompt has no tokens, or exceeds the context together with `max_new_tokens`.
    """
    rows = [tokenizer(prompt, verbose=False)["input_ids"] for prompt in prompts]
    for number, ids in enumerate(rows, start=1):
        if not ids:
            raise BALoraError(f"prompt {number}: has no tokens; give a text of at least one token")
        if context is not None and len(ids) + max_new_tokens > context:
            raise BALoraError(
                f"prompt {number}: {len(ids)} tokens and max_new_tokens {max_new_tokens} are beyond the model's "
                f"context of {context}; use at most {context} together"
            )
    return rows


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[list[int]],
    max_new_tokens: int,
    stop: Sequence[str],
    **inputs: Tensor,
) -> list[str]:
    device = next(model.parameters()).device
    width = max(map(len, rows))
    # Without a padding token, pad with the end of text, which is not decoded either.
    padding = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    with evaluation_mode(model):
        written = model.generate(
            input_ids=torch.tensor([[padding] * (width - len(ids)) + ids for ids in rows], device=device),  # (B, S)
            attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in rows], device=device),
            **{name: tensor.to(device) for name, tensor in inputs.items()},
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=padding,
            stop_strings=list(stop) or None,
            tokenizer=tokenizer,
            **PLAIN_SAMPLING,
        )  # (B, S + T)
    texts = tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)
    return [_before(text, stop) for text in texts]


def _before(text: str, stop: Sequence[str]) -> str:
    for end in stop:
        text = text.split(end, maxsplit=1)[0]
    return text
