"""Check that the model has an embedding for every token that the tokenizer makes of the rows."""

import json
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.errors import BALoraError

#: Characters of a text that an error shows.
LONGEST_SHOWN = 60


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, embeddings: int, rows: Mapping[str, Iterable[Any]], *, source: str
) -> None:
    """Check that no token of the rows has an id beyond the model's embeddings, as added tokens have.

    Added tokens that the rows do not use, as a text model's token for images, are no error.

    Args:
        tokenizer: The model's tokenizer.
        embeddings: Number of rows of the model's input embeddings.
        rows: Rows or texts by their name in errors.
        source: Name of the model, for errors.

    Raises:
        BALoraError: If a token has no embedding.
    """
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= embeddings}
    if not beyond:
        return
    added = {token for token in beyond if beyond[token] in tokenizer.added_tokens_decoder}
    special = {tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token}
    for token in sorted(beyond):
        if token not in added or token in special:
            raise _without_embedding(tokenizer, token, embeddings, source, "")
    for name, texts in rows.items():
        for number, row in enumerate(texts, start=1):
            text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=str)
            if token := next((token for token in sorted(added) if token in text), None):
                raise _without_embedding(tokenizer, token, embeddings, source, f" (row {number} of {name})")


def guard_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, source: str) -> None:
    """Make the model's embeddings refuse a token beyond them by its name, in texts that no check has read.

    Args:
        model: Its present input embeddings are guarded; call this again once they are resized.
        tokenizer: The tokenizer of the model's inputs.
        source: Name of the model, for errors.
    """
    embeddings = model.get_input_embeddings()
    if max(tokenizer.get_vocab().values(), default=0) >= embeddings.weight.shape[0]:
        embeddings.register_forward_pre_hook(partial(_check_ids, tokenizer, source))


def _check_ids(tokenizer: PreTrainedTokenizerBase, source: str, module: nn.Embedding, args: tuple[Tensor]) -> None:
    """Forward pre-hook: check that token ids `(B, S)` have embeddings."""
    count = module.weight.shape[0]
    if not args or not (beyond := (args[0] >= count).nonzero()).numel():
        return
    place = tuple(beyond[0].tolist())
    text = tokenizer.decode(args[0][place[:-1]])
    shown = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
    token = tokenizer.convert_ids_to_tokens(int(args[0][place]))
    raise _without_embedding(tokenizer, token, count, source, f" (in the text {shown!r})")


def _without_embedding(
    tokenizer: PreTrainedTokenizerBase, token: str, embeddings: int, source: str, where: str
) -> BALoraError:
    return BALoraError(
        f"{source}: the tokenizer has {len(tokenizer)} tokens and the model {embeddings} embeddings, so {token!r}"
        f"{where} has none; call model.resize_token_embeddings({len(tokenizer)}) and save the model, or use the "
        "tokenizer that it was trained with"
    )
