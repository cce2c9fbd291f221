"""Pretraining: a small T5 that reads sentences of a context, from scratch, with the Transformers trainer."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
)

from balora.data.perturbation import KINDS, perturb
from balora.data.text_to_text import tokenize_seq2seq
from balora.world.pretrain import train_from_scratch
from balora.world.reading import names
from balora.world.reading.config import ReadingConfig
from balora.world.reading.lessons import make_lessons
from balora.world.reading.questions import make_row
from balora.world.reading.start import prepare

PAD, EOS, UNK = SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
CONTEXT = 512
#: Questions of each stream whose words, said in every way, make up the vocabulary beside the names.
SCANNED = 400


def pretrain(config: ReadingConfig, directory: Path, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Pretrain the model and save it with its tokenizer; the caller's random state is left as it was.

    Args:
        config: The reading world.
        directory: Where the model directory is written.
        callbacks: Given to the trainer, to show progress.
    """
    tokenizer = make_tokenizer(config)
    train_from_scratch(
        lambda: make_model(config, tokenizer),
        tokenize_seq2seq(make_lessons(config), tokenizer, source="pretraining", context=CONTEXT),
        config,
        directory,
        callbacks,
        arguments={
            "train_sampling_strategy": "sequential",  # lessons have an order
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": {"num_decay_steps": config.pretrain_steps // 2},
            "warmup_steps": 0.025,
            "bf16": True,
            "use_cpu": not torch.accelerator.is_available(),  # which bf16 has to be told
        },
        collate=DataCollatorForSeq2Seq(tokenizer),
        optimizer=lambda model: make_optimizer(model, config.pretrain_learning_rate),
    )
    tokenizer.save_pretrained(directory)


def make_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """AdamW whose rate for each weight is the given one times the weight's root mean square at the start.

    A T5's weights differ in size by a factor of sixty, its embeddings being of size 1 and its queries small, and with
    one rate for all it hardly begins to read. Adafactor, which T5 was made with, scales rates so (Shazeer and Stern,
    2018).

    Args:
        model: Untrained.
        learning_rate: Of a weight of size 1.
    """
    groups = [
        {"params": [weight], "lr": learning_rate * weight.detach().square().mean().sqrt().item()}
        for weight in model.parameters()
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)


def make_model(config: ReadingConfig, tokenizer: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    """An untrained T5 (v1.1's gated feed-forward, tied head, no dropout) that is ready to read, drawn from torch's
    global generator.
    """
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=config.hidden_size,
            d_kv=config.hidden_size // 2,
            d_ff=2 * config.hidden_size,
            num_layers=config.num_layers,
            num_decoder_layers=config.num_decoder_layers,
            num_heads=config.num_heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )
    prepare(model, asked=tokenizer.convert_tokens_to_ids("context"))
    return model


def make_tokenizer(config: ReadingConfig) -> PreTrainedTokenizerFast:
    """One token per word, mark or name."""
    pools = (names.FILMS, names.DIRECTORS, names.TOWNS, names.COUNTRIES)
    known = [*names.YEARS, *(name for pool in pools for name in pool[: config.names])]
    pre_tokenizer = Whitespace()
    words = {word for text in _texts(config) for word, _ in pre_tokenizer.pre_tokenize_str(text)}
    ids = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *known, *sorted(words - set(known))))}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.post_processor = TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, ids[EOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="right",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _texts(config: ReadingConfig) -> list[str]:
    """Texts with every word that questions, contexts and answers can have."""
    texts = ["question: context:"]
    for stream in ("single", "train"):
        for index in range(SCANNED):
            row = make_row(config, stream, index)
            texts += [row["question"], row["answer"]]
            texts += [perturb(row["question"], kind, strength, index) for kind in KINDS for strength in (0.5, 1.0)]
            texts += [text for sentences in row["context"]["sentences"] for text in sentences]
    return texts
