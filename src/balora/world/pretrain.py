"""Pretraining of a small Llama on the language of a world, from scratch, with the Transformers trainer."""

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from balora.world import vocabulary
from balora.world.config import WorldConfig
from balora.world.language import PRETRAINING, Language, make_language, make_line, make_tokenizer

#: Tokens of the longest document (a story, with `<s>` and `</s>`); see `balora.world.language.make_line`.
LONGEST_DOCUMENT = 24


def pretrain(config: WorldConfig, directory: Path, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Pretrain the world's model and save it with its tokenizer; the caller's random state is unchanged.

    Args:
        config: The world.
        directory: The folder to write the model to.
        callbacks: Callbacks of the trainer, to show progress.
    """
    language = make_language(config)
    tokenizer = make_tokenizer(language)
    blocks = make_blocks(config, language, tokenizer)  # (steps · batch, block)
    rows = [{"input_ids": block, "labels": block} for block in blocks]
    train_from_scratch(lambda: make_model(config, tokenizer), rows, config, directory, callbacks)
    tokenizer.save_pretrained(directory)


def train_from_scratch(
    make: Callable[[], PreTrainedModel],
    rows: Sequence[dict[str, Tensor]] | Dataset,
    config: Any,
    directory: Path,
    callbacks: Sequence[TrainerCallback],
    *,
    arguments: Mapping[str, Any] | None = None,
    collate: Callable[..., dict[str, Tensor]] | None = None,
    optimizer: Callable[[PreTrainedModel], torch.optim.Optimizer] | None = None,
) -> None:
    """Make a model, train it for one pass over the rows and save it; the caller's random state is unchanged.

    Args:
        make: Makes the untrained model, drawn from torch's global generator.
        rows: `pretrain_steps` · `pretrain_batch_size` rows.
        config: A world's settings: `seed` and those that begin with `pretrain_`.
        directory: The folder to write the model to.
        callbacks: Callbacks of the trainer.
        arguments: Training arguments that override the defaults: a cosine schedule with warmup over a twentieth of the
            steps, rows in random order, float32.
        collate: From rows to a batch, for rows of different lengths.
        optimizer: Makes the optimizer of the model; default: the trainer's AdamW.
    """
    with own_random_state(), tempfile.TemporaryDirectory() as scratch:
        set_seed(config.seed)
        model = make()
        trainer = Trainer(
            model,
            TrainingArguments(
                **{
                    "output_dir": scratch,
                    "max_steps": config.pretrain_steps,
                    "per_device_train_batch_size": config.pretrain_batch_size,
                    "learning_rate": config.pretrain_learning_rate,
                    "lr_scheduler_type": "cosine",
                    "warmup_steps": 0.05,
                    "weight_decay": 0.01,
                    "seed": config.seed,
                    "logging_steps": max(1, config.pretrain_steps // 20),
                    "save_strategy": "no",
                    "report_to": "none",
                    "disable_tqdm": True,
                    "dataloader_pin_memory": False,
                    **(arguments or {}),
                }
            ),
            train_dataset=rows,
            data_collator=collate,
            callbacks=list(callbacks),
            optimizers=(None if optimizer is None else optimizer(model), None),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.config.use_cache = True  # the trainer turns it off
    model.save_pretrained(directory)


def make_model(config: WorldConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained Llama of the world's size, drawn from torch's global generator."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=-(-config.hidden_size * 8 // (3 * 32)) * 32,  # Llama's 8/3, rounded up
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            max_position_embeddings=512,
            initializer_range=0.03,  # at this width, facts are learned in fewer steps than with the usual 0.02
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def make_blocks(config: WorldConfig, language: Language, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Return the pretraining text, each line between `<s>` and `</s>`, with noise, cut into blocks.

    Returns:
        Token ids, `(pretrain_steps · pretrain_batch_size, pretrain_block_size)`.
    """
    ids = _noisy_ids(config, language, tokenizer, _token_count(config))
    return torch.from_numpy(ids.reshape(-1, config.pretrain_block_size))


def pretraining_texts(
    config: WorldConfig, language: Language, tokenizer: PreTrainedTokenizerFast, count: int
) -> list[str]:
    """Return the first documents of the pretraining text as the model saw them, including noise.

    Args:
        config: The world.
        language: Its language.
        tokenizer: The tokenizer of the language.
        count: Maximum number of documents.
    """
    ids = _noisy_ids(config, language, tokenizer, min(count * LONGEST_DOCUMENT, _token_count(config)))  # (tokens,)
    *whole, _ = np.split(ids, np.flatnonzero(ids == tokenizer.eos_token_id) + 1)  # the last is incomplete or empty
    return tokenizer.batch_decode(whole[:count], skip_special_tokens=True)


def _token_count(config: WorldConfig) -> int:
    return config.pretrain_steps * config.pretrain_batch_size * config.pretrain_block_size


def _noisy_ids(
    config: WorldConfig, language: Language, tokenizer: PreTrainedTokenizerFast, token_count: int
) -> np.ndarray:
    """Return the first tokens of the pretraining text. # (token_count,)"""
    ids = _packed_ids(language, tokenizer, token_count)
    # Both draws are made for every token, so that a larger share replaces the same tokens and additional ones.
    draw = np.random.default_rng([config.seed, *b"noise"])
    is_noise = draw.random(_token_count(config))[:token_count] < config.pretraining_noise
    first_word, word_count = len(vocabulary.SPECIAL_TOKENS), len(language.vocabulary)
    shift = draw.integers(1, word_count, _token_count(config))[:token_count]
    other_words = (ids - first_word + shift) % word_count + first_word
    return np.where(is_noise & (ids >= first_word), other_words, ids)


def _packed_ids(language: Language, tokenizer: PreTrainedTokenizerFast, token_count: int) -> np.ndarray:
    id_of = tokenizer.get_vocab()
    ids: list[int] = []
    for index in count():
        if len(ids) >= token_count:
            return np.array(ids[:token_count])
        line = make_line(language, PRETRAINING, index)
        ids += [id_of[word] for word in f"{vocabulary.BOS} {line} {vocabulary.EOS}".split()]


@contextmanager
def own_random_state() -> Iterator[None]:
    """Context manager: restore the random states, so that building a world leaves the caller's as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)
