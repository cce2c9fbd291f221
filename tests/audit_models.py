"""Helpers of the audit's tests: save tiny models and adapters, and compare figures."""

from pathlib import Path

import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors

TARGETS = ["q_proj", "v_proj"]
IDS = torch.arange(5, 21)[None]
WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<mask>",
    "he",
    "she",
    "his",
    "her",
    "man",
    "woman",
    "the",
    "nurse",
    "doctor",
]
WORDS += ["said", "that", "was", "tired", "and", "saw", "a", "dog", "."]
WORDS += [f"w{i}" for i in range(97 - len(WORDS))]


def tokenizer_of_words(*, segments: bool = False) -> hf.PreTrainedTokenizerFast:
    """One token a word, 97 of them; with `segments` pairs as BERT has them."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if segments:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        names |= {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    return hf.PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="<mask>", model_max_length=64, **names)


def save_model(model: hf.PreTrainedModel, folder: Path, *, tokenizer: bool = True) -> str:
    model.save_pretrained(folder)
    if tokenizer:
        tokenizer_of_words(segments="bert" in model.config.model_type).save_pretrained(folder)
    return str(folder)


def load(folder: str, kind: type = hf.AutoModelForCausalLM) -> hf.PreTrainedModel:
    return kind.from_pretrained(folder).eval()


@torch.no_grad()
def moved(model: torch.nn.Module, seed: int = 1, scale: float = 0.05) -> torch.nn.Module:
    """Add noise to every trainable parameter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def adapted(base: str, folder: Path, config=None, *, kind: type = hf.AutoModelForCausalLM, scale: float = 0.05):
    """Save a deterministic PEFT adapter with noise for a saved base; return its folder and the model."""
    config = config or LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
    torch.manual_seed(0)  # of adapters' start
    model: PeftModel = moved(get_peft_model(load(base, kind), config), scale=scale)
    model.save_pretrained(folder)
    return str(folder), model


def texts(count: int, seed: int = 0, longest: int = 20) -> list[str]:
    """Return texts of two or more of the tokenizer's words."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, longest + 1, (count,), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(5, 97, (n,), generator=generator).tolist()) for n in sizes]


SIDES = ("base", "tuned")


def assert_is(figure, expected, names, *, rel=1e-5):
    """Assert that a figure has the dictionaries' values and intervals; a NaN interval comes from a single value."""
    for side, scores in zip(SIDES, expected, strict=True):
        estimate = getattr(figure, side)
        for key, value in zip(("value", "low", "high"), names, strict=False):
            assert getattr(estimate, key) == pytest.approx(scores[value], rel=rel, abs=1e-6), (figure.name, side, key)


def ends(name):
    return name, f"{name}_low", f"{name}_high"
