"""Tiny random models of every architecture that bottleneck adapters know, and inputs for them."""

import torch
import transformers as hf
from tiny_models import GPT2, GROUPED, SMALL
from torch import Tensor

#: Settings that turn dropout off and use every parameter.
BERT = {**SMALL, "num_labels": 3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
HEADED = {**GROUPED, "head_dim": 8}

BASELINE_MODELS = {
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**BERT)),
    "roberta": lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**BERT)),
    "deberta": lambda: hf.DebertaForSequenceClassification(hf.DebertaConfig(**BERT, **RELATIVE)),
    "deberta-v2": lambda: hf.DebertaV2ForSequenceClassification(hf.DebertaV2Config(**BERT, **RELATIVE)),
    "electra": lambda: hf.ElectraForSequenceClassification(hf.ElectraConfig(**BERT, embedding_size=16)),
    "modernbert": lambda: hf.ModernBertForSequenceClassification(
        hf.ModernBertConfig(**SMALL, num_labels=3, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1)
    ),
    "distilbert": lambda: hf.DistilBertForSequenceClassification(
        hf.DistilBertConfig(
            dim=32, hidden_dim=64, n_layers=2, n_heads=4, vocab_size=97, num_labels=3, dropout=0.0,
            attention_dropout=0.0, seq_classif_dropout=0.0, max_position_embeddings=64,
        )
    ),
    "t5": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(
            d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=97, dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    ),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
    "mistral": lambda: hf.MistralForSequenceClassification(
        hf.MistralConfig(**GROUPED, num_labels=3, pad_token_id=0)
    ),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**HEADED)),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**HEADED)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**HEADED)),
    "gemma3_text": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**HEADED)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
}  # fmt: skip

#: Each has two layers; T5 two of the encoder's and two of the decoder's, which attend twice.
LAYERS = 2
BOTTLENECKS = {name: {"houlsby": 2 * LAYERS, "pfeiffer": LAYERS} for name in BASELINE_MODELS}
BOTTLENECKS["t5"] = {"houlsby": 2 * LAYERS + 3 * LAYERS, "pfeiffer": 2 * LAYERS}

#: Architectures without a single bias beside their head's.
WITHOUT_BIAS = {"modernbert", "t5", "llama", "mistral", "qwen3", "gemma", "gemma2", "gemma3_text"}


def make_base(name: str) -> hf.PreTrainedModel:
    """Build the model of that name with the same weights each time, in evaluation mode."""
    torch.manual_seed(0)
    return BASELINE_MODELS[name]().eval()


def batch_for(model: hf.PreTrainedModel, rows: int = 3, length: int = 8) -> dict[str, Tensor]:
    """Return ids, a mask with padding in the first row, and labels for the model."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 90, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    is_classifier = "SequenceClassification" in type(model).__name__
    labels = torch.arange(rows) % 3 if is_classifier else ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
