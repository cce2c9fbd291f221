"""What a causal language model writes after each of many prompts, by greedy decoding, for evaluations that read it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.utils.lengths import context_length
from balora.utils.modules import evaluation_mode
from balora.utils.sampling import PLAIN_SAMPLING


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
    """The greedy completion of each prompt, without the prompt and special tokens.

    Prompts are tokenized as the tokenizer does, batched by length and padded on the left. The model's own generation
    settings (sampling, beams, penalties) have no say, except for which tokens end a text.

    Args:
        model: A causal language model, adapted or not; left in the mode it was in.
        tokenizer: The model's; nothing in it is changed.
        prompts: `N` texts.
        max_new_tokens: Longest completion.
        batch_size: Prompts at a time.
        stop: Texts that end a completion and are no part of it, such as `"\\n\\nQuestion:"`.
        sentence_embeds: `(N, d)`, for SeLoRA.

    Returns:
        `N` completions in the prompts' order.

    Raises:
        BALoraError: If a prompt has no tokens, or with `max_new_tokens` more than the model's context.
    """
    rows = check_room(tokenizer, prompts, max_new_tokens, context_length(model.config, tokenizer))
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))  # so that little is padding
    completions = [""] * len(rows)
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        own = {} if sentence_embeds is None else {"sentence_embeds": sentence_embeds[chosen]}
        texts = _generate(model, tokenizer, [rows[row] for row in chosen], max_new_tokens, stop, **own)
        for row, text in zip(chosen, texts, strict=True):
            completions[row] = text
    return completions


def check_room(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int, context: int | None
) -> list[list[int]]:
    """The tokens of each prompt, behind which a completion fits.

    Args:
        tokenizer: The model's.
        prompts: `N` texts.
        max_new_tokens: Longest completion.
        context: From `context_length`.

    Raises:
        BALoraError: If a prompt has no tokens, or with `max_new_tokens` more than the context.
    """
    rows = [tokenizer(prompt, verbose=False)["input_ids"] for prompt in prompts]
    for number, ids in enumerate(rows, start=1):
        if not ids:
            raise BALoraError(f"prompt {number}: has no tokens; a model needs one to go on from")
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
    # Where there is no padding token, the end of text fills the rest of a completion and is not decoded either.
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
