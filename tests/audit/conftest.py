"""Tiny models on disk as anybody would save them, with a tokenizer of whole words, and tunes of them."""

import pytest
import torch
import transformers as hf
from audit_models import TARGETS, adapted, load, save_model
from peft import LoraConfig
from tiny_models import make

from balora.audit.models import load_audited

HEAD = hf.AutoModelForSequenceClassification


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


@pytest.fixture(scope="session")
def stories(models_dir, tmp_path_factory):
    """A real model and a tune of it: `(audited, base, tuned, tokenizer)`, the latter two by hand."""
    folder = str(models_dir / "stories260k")
    config = LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
    adapter, tuned = adapted(folder, tmp_path_factory.mktemp("lora"), config, scale=0.1)
    audited = load_audited(folder, adapter)
    return audited, load(folder), tuned, audited.tokenizer


@pytest.fixture(scope="session")
def classifiers(folders, tmp_path_factory):
    """A tiny classifier and a tune of it, whose answers are no even ones."""
    torch.manual_seed(0)
    base = load(folders["bert"], HEAD)
    with torch.no_grad():
        base.classifier.weight *= 40
    folder = save_model(base, tmp_path_factory.mktemp("base"))
    config = LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS")
    adapter, tuned = adapted(folder, tmp_path_factory.mktemp("lora"), config, kind=HEAD, scale=0.3)
    audited = load_audited(folder, adapter)
    return audited, load(folder, HEAD), tuned, audited.tokenizer
