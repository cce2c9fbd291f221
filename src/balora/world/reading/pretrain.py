"""Pretraining of a small T5 that reads sentences of a context, from scratch, with the Transformers trainer.

Reading a fact takes four steps: a name's position learns what stands to its right; the same name in the question gets
that from it; the word after the question gets it from the name; the decoder gets it from there. A randomly initialized
T5 of this size learned none of these steps. `initialize_attention` therefore sets heads that roughly do each step (in
the spirit of Trockman and Kolter's mimetic initialization, 2023), and training sharpens them. All other weights are
drawn as usual and made small, so that these heads dominate.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
)
from transformers.models.t5.modeling_t5 import T5Attention

from balora.data.perturbation import KINDS, perturb
from balora.data.text_to_text import tokenize_seq2seq
from balora.world.pretrain import train_from_scratch
from balora.world.reading.config import ReadingConfig
from balora.world.reading.lessons import make_lessons
from balora.world.reading.questions import COUNTRIES, DIRECTORS, FILMS, TOWNS, YEARS, make_row

PAD, EOS, UNK = SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
CONTEXT = 512
#: Number of questions per stream to collect the vocabulary from, with all their perturbations.
SCANNED = 400


def pretrain(config: ReadingConfig, directory: Path, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Pretrain the model and save it with its tokenizer; the caller's random state is unchanged.

    Args:
        config: The reading world.
        directory: The folder to write the model to.
        callbacks: Callbacks of the trainer, to show progress.
    """
    tokenizer = make_tokenizer(config)
    train_from_scratch(
        lambda: make_model(config, tokenizer),
        tokenize_seq2seq(make_lessons(config), tokenizer, source="pretraining", context=CONTEXT),
        config,
        directory,
        callbacks,
        arguments={
            "train_sampling_strategy": "sequential",  # lessons are a curriculum
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": {"num_decay_steps": config.pretrain_steps // 2},
            "warmup_steps": 0.025,
            "bf16": True,
            "use_cpu": not torch.accelerator.is_available(),  # bf16 needs to be told
        },
        collate=DataCollatorForSeq2Seq(tokenizer),
        optimizer=lambda model: make_optimizer(model, config.pretrain_learning_rate),
    )
    tokenizer.save_pretrained(directory)


def make_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """Return AdamW with a learning rate per weight, proportional to the weight's initial root mean square.

    A T5's weights differ in size by a factor of sixty (embeddings have size 1, queries are small), and with one rate
    for all it hardly learns to read. Adafactor, T5's original optimizer, scales rates the same way (Shazeer and Stern,
    2018).

    Args:
        model: The untrained model.
        learning_rate: The rate of a weight of size 1.
    """
    groups = [
        {"params": [weight], "lr": learning_rate * weight.detach().square().mean().sqrt().item()}
        for weight in model.parameters()
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)


def make_model(config: ReadingConfig, tokenizer: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    """Return an untrained T5 (v1.1's gated feed-forward, tied head, no dropout) with its attention initialized.

    Weights are drawn from torch's global generator.
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
    initialize_attention(model, asked=tokenizer.convert_tokens_to_ids("context"))
    return model


def make_tokenizer(config: ReadingConfig) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per word, punctuation mark or name."""
    pools = (FILMS, DIRECTORS, TOWNS, COUNTRIES)
    known = [*YEARS, *(name for pool in pools for name in pool[: config.names])]
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
    """Return texts with every word of questions, contexts and answers."""
    texts = ["question: context:"]
    for stream in ("single", "train"):
        for index in range(SCANNED):
            row = make_row(config, stream, index)
            texts += [row["question"], row["answer"]]
            texts += [perturb(row["question"], kind, strength, index) for kind in KINDS for strength in (0.5, 1.0)]
            texts += [text for sentences in row["context"]["sentences"] for text in sentences]
    return texts


SAME, LEFT, RIGHT = 0, 2, 3  # heads of the encoder
#: Mean initial attention logit of a word with itself; T5 does not scale logits.
LOGIT = 7.0
#: Scale of what a head adds to the residual stream, whose words have size 1.
GAIN = 3.0
#: Factor on the weights that are made small.
QUIET = 0.3
NEVER = -8.0
#: Number of T5's position buckets that heads attend to, left and right: one word each, four in the eighth.
REACH = {LEFT: 4, RIGHT: 8}
#: Encoder layer to the head that copies the content of the position it attends to.
CARRIES = {0: RIGHT, 1: SAME, 2: LEFT}


@torch.no_grad()
def initialize_attention(model: T5ForConditionalGeneration, asked: int) -> None:
    """Initialize the attention of an untrained T5 with at least four heads and three encoder layers.

    Args:
        model: The model, changed in place; draws come from torch's global generator.
        asked: Id of the word after every question; the decoder's start token gets its embedding.
    """
    config = model.config
    subspace = torch.linalg.qr(torch.randn(config.d_model, config.d_kv))[0].T  # (d_kv, d), the copied subspace
    for number, block in enumerate(model.encoder.block):
        attention = block.layer[0].SelfAttention
        _match(attention, SAME)
        attention.o.weight.mul_(QUIET)
        block.layer[1].DenseReluDense.wo.weight.mul_(QUIET)
        for head in REACH:
            _rows(attention.q.weight, head, config.d_kv).mul_(QUIET)
        if number in CARRIES:
            _carry(attention, CARRIES[number], subspace)
    _look_around(model.encoder.block[0].layer[0].SelfAttention)
    for block in model.decoder.block:
        attention = block.layer[1].EncDecAttention
        for head in range(config.num_heads):
            _match(attention, head)
        for head in range(config.num_heads // 2):
            _carry(attention, head, subspace)
    words = model.get_input_embeddings().weight
    words[config.decoder_start_token_id] = words[asked]


def _rows(weight: Tensor, head: int, d_kv: int) -> Tensor:
    return weight[head * d_kv : (head + 1) * d_kv]


def _match(attention: T5Attention, head: int) -> None:
    """Give queries and keys the same matrix, so that a word attends to itself."""
    d_kv, d = attention.key_value_proj_dim, attention.d_model
    same = torch.randn(d_kv, d) * math.sqrt(LOGIT / (d_kv * d))
    _rows(attention.q.weight, head, d_kv).copy_(same)
    _rows(attention.k.weight, head, d_kv).copy_(same)


def _carry(attention: T5Attention, head: int, subspace: Tensor) -> None:
    """Read values from the subspace and write them back to it."""
    d_kv = attention.key_value_proj_dim
    _rows(attention.v.weight, head, d_kv).copy_(subspace)
    _rows(attention.o.weight.T, head, d_kv).copy_(GAIN * subspace)


def _look_around(attention: T5Attention) -> None:
    """Set the relative biases, shared by all encoder layers: not the word itself, near left, near right."""
    half = attention.relative_attention_num_buckets // 2
    biases = attention.relative_attention_bias.weight.zero_()  # (buckets, heads), right of the query from `half` on
    biases[0, SAME] = 1.5 * NEVER
    for head, reach in REACH.items():
        first = 1 + half * (head == RIGHT)
        biases[:, head] = NEVER
        biases[first : first + reach, head] = 0.0
