"""Sentence embeddings for SeLoRA, computed once per text and encoder and cached on disk.

The encoder is a frozen sentence-transformers model, or the input embeddings of the model to train, which needs no
second model. Both pool over tokens. The embeddings are computed from texts given by the caller and not in the model's
forward, because the input of a causal language model contains the answer.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from datasets import Dataset, Features, List, Value
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from balora.data.expand import expand_path
from balora.errors import BALoraError
from balora.utils.files import weights_digest, write_tensors
from balora.utils.loading import load
from balora.utils.modules import evaluation_mode

COLUMN = "sentence_embeds"
KEY_BYTES = 16
#: Files in which sentence-transformers saves the largest number of tokens, and the pooling.
LENGTH_FILE = "sentence_bert_config.json"
POOLING_FILE = "1_Pooling/config.json"
#: The supported poolings, by the old and new names of sentence-transformers.
POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first", "mean": "mean", "cls": "first"}


@dataclass(frozen=True)
class SentenceEncoder:
    """An encoder of texts as vectors.

    Attributes:
        module: The module that computes the token vectors; it is not changed.
        token_vectors: Maps ids and mask `(B, S)` to vectors `(B, S, d)`.
        tokenizer: Tokenizer of the texts.
        pooling: `mean` over a text's tokens, or its `first` token's vector.
        max_length: Number of tokens of a text that are read; `None` for all.
    """

    module: nn.Module
    token_vectors: Callable[[Tensor, Tensor], Tensor]
    tokenizer: PreTrainedTokenizerBase
    pooling: Literal["mean", "first"] = "mean"
    max_length: int | None = None

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Encode texts in one batch: `(N, d)` in float32, each of norm 1; a text without tokens gives zeros."""
        limit = {"truncation": self.max_length is not None, "max_length": self.max_length}
        rows = [self.tokenizer(text, verbose=False, **limit)["input_ids"] for text in texts]
        width = max(1, *map(len, rows))
        device = next(self.module.parameters()).device
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)  # (N, S)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        with evaluation_mode(self.module):
            vectors = self.token_vectors(ids, mask).float()  # (N, S, d)
        if self.pooling == "first":
            pooled = vectors[:, 0]
        else:
            pooled = (vectors * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return F.normalize(pooled, dim=1).cpu()

    def fingerprint(self) -> str:
        """Return a digest of the weights, the tokenizer and the pooling, by which vectors are cached."""
        texts = ("", "Sentence vectors, of 2 tokenizers?")
        ids = [self.tokenizer(text, verbose=False)["input_ids"] for text in texts]
        return weights_digest(self.module, self.pooling, self.max_length, ids)


def load_sentence_encoder(path: str, device: torch.device | str = "cpu") -> SentenceEncoder:
    """Load a sentence-transformers model of one Transformer and one pooling, with Transformers only.

    Args:
        path: Folder or Hub name; `package:` and variables are expanded as in recipes.
        device: Device of the encoder.

    Raises:
        BALoraError: If it cannot be loaded, or its pooling is neither a mean nor the first token's vector.
    """
    path = expand_path(path)
    model = load(AutoModel, path, "sentence_encoder", dtype=torch.float32, use_safetensors=True)
    model = model.requires_grad_(False).to(device)
    tokenizer = load(AutoTokenizer, path, "sentence_encoder")
    # sentence-transformers also takes the mean if a model names no pooling.
    modes = _settings(path, POOLING_FILE) or {"pooling_mode": "mean"}
    wanted = [name for name, value in modes.items() if name.startswith("pooling_mode_") and value is True]
    wanted += [str(modes["pooling_mode"])] if "pooling_mode" in modes else []
    if len(wanted) != 1 or wanted[0] not in POOLINGS:
        raise BALoraError(f"{path}: pools by {', '.join(wanted)}; use an encoder that pools by mean or cls only")
    return SentenceEncoder(
        module=model,
        token_vectors=lambda ids, mask: model(input_ids=ids, attention_mask=mask).last_hidden_state,
        tokenizer=tokenizer,
        pooling=POOLINGS[wanted[0]],
        max_length=_settings(path, LENGTH_FILE).get("max_seq_length")
        or min(tokenizer.model_max_length, model.config.max_position_embeddings),
    )


def _settings(path: str, name: str) -> dict[str, Any]:
    """Return a JSON file of the model, empty if it does not exist."""
    file = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    return {} if file is None else json.loads(Path(file).read_text())


def input_embedding_encoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> SentenceEncoder:
    """Encode a text as the mean of its input embeddings in the model to train, which ignores word order.

    Args:
        model: The model, before or after it is adapted; its embeddings are not trained.
        tokenizer: The model's tokenizer.
    """
    embeddings = model.get_input_embeddings()
    return SentenceEncoder(embeddings, lambda ids, mask: embeddings(ids), tokenizer)


def embed_texts(
    texts: Sequence[str], encoder: SentenceEncoder, *, cache_dir: str | os.PathLike | None = None, batch_size: int = 32
) -> Tensor:
    """Return sentence embeddings `(N, d)` in float32, of norm 1; each text is encoded once.

    Args:
        texts: N texts; equal texts get the same vector.
        encoder: From `load_sentence_encoder` or `input_embedding_encoder`.
        cache_dir: Folder with one file of vectors per encoder, extended by every call; `None` for no cache.
        batch_size: Texts per batch.

    Raises:
        BALoraError: If there are no texts.
    """
    if not texts:
        raise BALoraError("texts: there are none; give at least one")
    keys = [hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest() for text in texts]
    path = None if cache_dir is None else Path(cache_dir) / f"{encoder.fingerprint()}.safetensors"
    known = _read(path) if path is not None and path.is_file() else {}
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    by_length = sorted(missing, key=lambda key: len(missing[key]))  # to pad little
    _warn_of_long(list(missing.values()), encoder)
    for first in range(0, len(by_length), batch_size):
        chosen = by_length[first : first + batch_size]
        known.update(zip(chosen, encoder([missing[key] for key in chosen]), strict=True))
    if missing and path is not None:
        _write(path, known)
    return torch.stack([known[key] for key in keys])


def add_sentence_embeds(
    dataset: Dataset,
    texts: Sequence[str],
    encoder: SentenceEncoder,
    *,
    cache_dir: str | os.PathLike | None = None,
    batch_size: int = 32,
) -> Dataset:
    """Add a column `sentence_embeds` to the dataset, which `BALoraTrainer` passes to SeLoRA.

    Args:
        dataset: N rows, tokenized or not.
        texts: N texts, one per row, without the row's answer.
        encoder: From `load_sentence_encoder` or `input_embedding_encoder`.
        cache_dir: See `embed_texts`.
        batch_size: Texts per batch.

    Raises:
        BALoraError: If the number of texts is not the number of rows, or 0.
    """
    if len(texts) != len(dataset):
        raise BALoraError(f"texts: {len(texts)} for {len(dataset)} rows; give one per row")
    vectors = embed_texts(texts, encoder, cache_dir=cache_dir, batch_size=batch_size).numpy()
    feature = Features({COLUMN: List(Value("float32"))})[COLUMN]
    return dataset.add_column(COLUMN, list(vectors), feature=feature)


def _warn_of_long(texts: Sequence[str], encoder: SentenceEncoder) -> None:
    if encoder.max_length is None:
        return
    count = sum(len(encoder.tokenizer(text, verbose=False)["input_ids"]) > encoder.max_length for text in texts)
    if count:
        warnings.warn(
            f"balora: {count} of {len(texts)} texts are longer than the {encoder.max_length} tokens that the sentence "
            "encoder reads; only their beginnings are encoded"
        )


def _read(path: Path) -> dict[bytes, Tensor]:
    saved = load_file(path)
    return {bytes(key.tolist()): vector for key, vector in zip(saved["keys"], saved["vectors"], strict=True)}


def _write(path: Path, known: dict[bytes, Tensor]) -> None:
    keys = torch.tensor([list(key) for key in known], dtype=torch.uint8)  # (N, KEY_BYTES)
    write_tensors(path, {"keys": keys, "vectors": torch.stack(list(known.values()))})
