"""Tiny random models of many architectures, and inputs for them."""

import torch
import transformers as hf
from torch import Tensor

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 97,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CAUSAL = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
    "llama-tied": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, tie_word_embeddings=True)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**GROUPED, head_dim=8, final_logit_softcapping=3.0)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED)),
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**GROUPED, logit_scale=0.3)),
    "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**GROUPED, logits_scaling=3.0)),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**GROUPED)),
}
CLASSIFIERS = {
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**SMALL, num_labels=3)),
    "roberta": lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**SMALL, num_labels=3)),
    "deberta": lambda: hf.DebertaV2ForSequenceClassification(
        hf.DebertaV2Config(**SMALL, num_labels=3, relative_attention=True, pos_att_type=["c2p", "p2c"])
    ),
    "llama-classifier": lambda: hf.LlamaForSequenceClassification(
        hf.LlamaConfig(**GROUPED, num_labels=3, pad_token_id=0)
    ),
}
MODELS = CAUSAL | CLASSIFIERS


def make(name: str) -> hf.PreTrainedModel:
    """The model of that name, the same weights each time, in evaluation mode."""
    torch.manual_seed(0)
    return MODELS[name]().eval()


def inputs_for(name: str, rows: int = 4, length: int = 12, seed: int = 1) -> dict[str, Tensor]:
    """Ids with right padding in the first row, and labels that suit the task."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 90, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, length - 4 :] = 0
    if name in CLASSIFIERS:
        labels = torch.arange(rows) % 3
    else:
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :3] = -100  # a prompt
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def without_labels(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in inputs.items() if key != "labels"}


def train_steps(model: torch.nn.Module, inputs: dict[str, Tensor], steps: int = 3, lr: float = 1e-2) -> None:
    """A hand-written loop; leaves the model in evaluation mode."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for step in range(steps):
        model.set_progress(step / steps)
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
