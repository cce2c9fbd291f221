"""Who is timed in `step_cost.py`: each contender is a function from a shape to a training step on a fixed batch."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from balora import BALoraConfig, get_balora_model

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
#: Published for generation, every term on from the first step.
LAMBDA = {"consistency": 0.025, "diversity": 0.005, "spectral": 0.005}
TEMPERATURE, TOP_K, K = 2.0, 20, 10


@dataclass(frozen=True)
class Shape:
    """A Llama with random weights, and a batch of random tokens, all of them labelled."""

    d: int
    layers: int
    vocabulary: int
    batch: int
    length: int
    r: int
    intermediate: int
    heads: int = 8
    device: str = "cpu"
    dtype: torch.dtype = torch.float32


SHAPES = {
    "small": Shape(512, 8, 32000, 4, 256, 32, 1376),
    "vocab": Shape(512, 4, 151936, 2, 512, 32, 1376),
    "llama2-7b": Shape(4096, 32, 32000, 4, 512, 128, 11008, 32, "cuda", torch.bfloat16),
    "152k": Shape(3584, 28, 151936, 4, 512, 128, 18944, 28, "cuda", torch.bfloat16),
}


def base_model(shape: Shape) -> LlamaForCausalLM:
    """The model that every contender starts from; the same weights each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.d,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=max(512, shape.length),
    )
    with torch.device(shape.device):
        torch.set_default_dtype(shape.dtype)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    return model


def batch_of(shape: Shape) -> dict[str, Tensor]:
    """Random tokens without padding, `(B, S)`; all are labels."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(shape.vocabulary, (shape.batch, shape.length), generator=generator).to(shape.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


Loss = Callable[[dict[str, Tensor]], Tensor]


def pissa(shape: Shape) -> tuple[nn.Module, Loss]:
    """Stock PEFT PiSSA under Transformers' own loss."""
    model = get_peft_model(base_model(shape), stock_config(shape)).train()
    return model, lambda batch: model(**batch).loss


def stock_config(shape: Shape) -> LoraConfig:
    """PiSSA as PEFT has it: exact where that takes seconds, else its fast start."""
    start = "pissa" if shape.d < 1024 else "pissa_niter_4"
    return LoraConfig(r=shape.r, lora_alpha=shape.r, target_modules=TARGETS, init_lora_weights=start)


def balora(shape: Shape, **settings: object) -> tuple[nn.Module, Loss]:
    """Ours as it ships."""
    schedules = dict.fromkeys(("consistency_schedule", "diversity_schedule", "spectral_schedule"), "constant")
    config = BALoraConfig(
        method="ba-lora",
        r=shape.r,
        lora_alpha=shape.r,
        target_modules=TARGETS,
        pissa_niter=None if shape.d < 1024 else 4,
        **{f"{term}_weight": weight for term, weight in LAMBDA.items()},
        temperature=TEMPERATURE,
        top_k=TOP_K,
        spectral_k=K,
        **schedules,
        **settings,
    )
    model = get_balora_model(base_model(shape), config).train()
    return model, lambda batch: model(**batch).loss


def balora_q25(shape: Shape) -> tuple[nn.Module, Loss]:
    """Ours with the teacher on a quarter of the sequences."""
    return balora(shape, sample_rate=0.25)


def reference(shape: Shape) -> tuple[nn.Module, Loss]:
    """The same objective from whole logits, on PEFT's layers and autograd: what the fast path is tested against."""
    return balora(shape, fused_lm_head=False)


def two_model(shape: Shape) -> tuple[nn.Module, Loss]:
    """As it is often written: a second copy for the teacher, entropy over the whole vocabulary, a library's SVD."""
    base = base_model(shape)
    teacher = copy.deepcopy(base).eval().requires_grad_(False)
    model = get_peft_model(base, stock_config(shape)).train()

    def loss(batch: dict[str, Tensor]) -> Tensor:
        output = model(**batch)
        with torch.no_grad():
            known = teacher(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        z, known = output.logits.flatten(0, 1).float(), known.flatten(0, 1).float()
        kl = F.kl_div(F.log_softmax(z / TEMPERATURE, -1), F.softmax(known / TEMPERATURE, -1), reduction="batchmean")
        log_p = F.log_softmax(z, -1)
        entropy = (log_p.exp() * log_p).sum(-1).mean()
        spectral = -torch.svd_lowrank(z, q=K)[1].sum() / torch.linalg.matrix_norm(z)
        consistency = TEMPERATURE**2 * kl
        return (
            output.loss
            + LAMBDA["consistency"] * consistency
            + LAMBDA["diversity"] * entropy
            + LAMBDA["spectral"] * spectral
        )

    return model, loss


def trl(shape: Shape) -> tuple[nn.Module, Loss]:
    """What one can compose from TRL's fused parts: its chunked divergence, so that the teacher has no logits.

    Neither TRL nor Liger has a top-K entropy or a spectral term; both need the student's logits, and with those at
    hand the task loss is cheapest from them too. Liger's own kernels want a GPU. The teacher is the adapter's start in
    a second, frozen adapter, as in ours.
    """
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    from balora.losses import spectral_loss, topk_entropy_loss

    model, _ = balora(shape, fused_lm_head=False)
    base = model.get_base_model()

    def loss(batch: dict[str, Tensor]) -> Tensor:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        with model.disable_adapter(), torch.no_grad():
            known = base.model(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        hidden = base.model(**inputs, use_cache=False).last_hidden_state
        logits = base.lm_head(hidden)
        head = base.lm_head.weight
        divergence, _ = ChunkedDivergenceFunction.apply(
            hidden.flatten(0, 1), head, None, known, head, None, 0.0, TEMPERATURE, 1.0, None, 1.0, None
        )
        return (
            base.loss_function(logits, batch["labels"], vocab_size=shape.vocabulary)
            + LAMBDA["consistency"] * TEMPERATURE**2 * divergence.mean()
            + LAMBDA["diversity"] * topk_entropy_loss(logits, top_k=TOP_K)
            + LAMBDA["spectral"] * spectral_loss(logits, k=K, normalization="frobenius")
        )

    return model, loss


CONTENDERS = {
    "pissa": pissa,
    "reference": reference,
    "trl": trl,
    "two-model": two_model,
    "balora": balora,
    "balora-q25": balora_q25,
}
