"""Tiny models on disk as anybody would save them, with a tokenizer of whole words, and tunes of them."""

import pytest
import torch
import transformers as hf
from audit_models import save_model
from tiny_models import make


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Bases by name, saved once: `causal`, `gpt2`, `bert` (a classifier of 3 classes), `masked`."""
    root = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    bert = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    masked = hf.BertForMaskedLM(hf.BertConfig(**bert, vocab_size=97, max_position_embeddings=64)).eval()
    models = {"causal": make("llama"), "gpt2": make("gpt2"), "bert": make("bert"), "masked": masked}
    for name, model in models.items():
        save_model(model, root / name)
    return {name: str(root / name) for name in models}
