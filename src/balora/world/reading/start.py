"""A start for the small T5: heads that look for the same word elsewhere, and heads that look around.

Reading a fact takes four steps: a name's place learns what stands to its right, the same name in a question gets that
from it, the word behind the question gets it from the name, and the decoder from there. Drawn at random a T5 of this
size found none of it. Here each step has heads that roughly do it already (in the spirit of
Trockman and Kolter's mimetic initialisation, 2023), and training has to sharpen them. Everything else is drawn as
usual and made small, so that they are heard.
"""

import math

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

SAME, LEFT, RIGHT = 0, 2, 3  # heads of the encoder
#: Of a word with itself, as drawn, in mean; T5 divides by nothing.
LOGIT = 7.0
#: How loudly what a head carries is added to the residual stream, whose words have size 1.
GAIN = 3.0
#: Factor on what is to be quiet.
QUIET = 0.3
NEVER = -8.0
#: How many of T5's buckets heads look at to the left and to the right: a word each, but the eighth, which has four.
REACH = {LEFT: 4, RIGHT: 8}
#: By encoder layer, the head whose output is what the place that it looks at holds.
CARRIES = {0: RIGHT, 1: SAME, 2: LEFT}


@torch.no_grad()
def prepare(model: T5ForConditionalGeneration, asked: int) -> None:
    """Set the attention of an untrained T5 of four heads or more and three encoder layers, from torch's generator.

    Args:
        model: Changed in place.
        asked: The word behind every question, which the decoder begins as.
    """
    config = model.config
    subspace = torch.linalg.qr(torch.randn(config.d_model, config.d_kv))[0].T  # (d_kv, d), what is carried
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
    """Queries and keys by one matrix: a word looks for itself."""
    d_kv, d = attention.key_value_proj_dim, attention.d_model
    same = torch.randn(d_kv, d) * math.sqrt(LOGIT / (d_kv * d))
    _rows(attention.q.weight, head, d_kv).copy_(same)
    _rows(attention.k.weight, head, d_kv).copy_(same)


def _carry(attention: T5Attention, head: int, subspace: Tensor) -> None:
    """Values are read from the subspace and written back to it."""
    d_kv = attention.key_value_proj_dim
    _rows(attention.v.weight, head, d_kv).copy_(subspace)
    _rows(attention.o.weight.T, head, d_kv).copy_(GAIN * subspace)


def _look_around(attention: T5Attention) -> None:
    """Relative biases, which all encoder layers share: never at itself, near to the left, near to the right."""
    half = attention.relative_attention_num_buckets // 2
    biases = attention.relative_attention_bias.weight.zero_()  # (buckets, heads), right of the query from `half` on
    biases[0, SAME] = 1.5 * NEVER
    for head, reach in REACH.items():
        first = 1 + half * (head == RIGHT)
        biases[:, head] = NEVER
        biases[first : first + reach, head] = 0.0
