"""`balora evaluate` on adapters that PEFT saved: divergence is from the pretrained model."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from audit_models import moved
from peft import IA3Config, LNTuningConfig, LoraConfig, PeftModel, get_peft_model
from tiny_folder import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from balora import BALoraConfig, BALoraError, BALoraModel, get_balora_model
from balora.baselines import make_baseline
from balora.cli import main

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
ADAPTERS = {
    "lora": LoraConfig(**LORA),
    "pissa": LoraConfig(**LORA, init_lora_weights="pissa"),
    "olora": LoraConfig(**LORA, init_lora_weights="olora"),
    "biases": LoraConfig(**LORA, bias="all"),
    "own biases": LoraConfig(**LORA, bias="lora_only"),
    "head": LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "tokens": LoraConfig(**LORA, trainable_token_indices=[3, 4]),
    "norms": LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM"),
    "ia3": IA3Config(target_modules=["v_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
}
ROWS = [
    {"prompt": f"who sat on the {place} ?", "completion": who} for place in ("mat", "hill") for who in ("cat", "a")
]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Save a tiny Llama with biases, which some adapters train."""
    folder = tmp_path_factory.mktemp("base")
    tiny(folder)
    config = LlamaConfig.from_pretrained(folder)
    config.attention_bias = config.mlp_bias = True
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def evaluated(base: Path, adapter: Path, folder: Path, **settings) -> dict[str, float]:
    """Evaluate an adapter as the program does, and return its metrics."""
    for name in ("train", "eval"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = {
        "name": "tiny",
        "method": "lora",
        "model_name_or_path": str(base),
        "train_file": str(folder / "train.jsonl"),
        "validation_file": str(folder / "eval.jsonl"),
        "output_dir": str(folder / "out"),
        "training_arguments": {"use_cpu": True},
        **settings,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    assert main(["evaluate", str(folder / "recipe.yaml"), "--adapter", str(adapter)]) == 0
    return json.loads((folder / "out" / "result.json").read_text())["metrics"]


@torch.no_grad()
def divergence(base: Path, adapter: Path, resized: int | None = None) -> float:
    """Return KL(base ‖ tuned) over the tokens of both, with the two models loaded separately."""
    tokenizer = AutoTokenizer.from_pretrained(adapter if (adapter / "tokenizer.json").exists() else base)
    before = AutoModelForCausalLM.from_pretrained(base).eval()
    second = AutoModelForCausalLM.from_pretrained(base)
    if resized is not None:
        second.resize_token_embeddings(resized, mean_resizing=False)
    after = PeftModel.from_pretrained(second, adapter).eval()
    common = min(before.config.vocab_size, after.config.vocab_size)
    found = []
    for row in ROWS:
        ids = tokenizer(f"{row['prompt']} {row['completion']} </s>", return_tensors="pt")["input_ids"]
        p, q = (model(ids).logits[0, :, :common].double().log_softmax(-1) for model in (before, after))
        found.append(F.kl_div(q, p, log_target=True, reduction="none").sum(-1))
    return torch.cat(found).mean().item()


@pytest.mark.parametrize("name", ADAPTERS)
def test_divergence_is_from_the_pretrained_model(name, base, tmp_path):
    torch.manual_seed(0)
    model = moved(get_peft_model(AutoModelForCausalLM.from_pretrained(base), ADAPTERS[name]), scale=0.2)
    model.save_pretrained(tmp_path / "adapter")
    expected = divergence(base, tmp_path / "adapter")
    assert expected > 1e-6
    assert evaluated(base, tmp_path / "adapter", tmp_path)["kl_to_base"] == pytest.approx(expected, rel=1e-3)


def test_an_adapter_is_no_base_to_train(base, tmp_path, capsys):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**LORA))
    model.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "adapter")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    adapter, data, out = (str(tmp_path / name) for name in ("adapter", "train.jsonl", "out"))
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump({"name": "tiny", "method": "lora", "model_name_or_path": adapter, "train_file": data})
    )
    assert main(["train", str(tmp_path / "recipe.yaml"), "--output_dir", out]) == 2
    assert "is a saved adapter, not a model; merge it into its base first" in capsys.readouterr().err
    assert main(["audit", "--model", adapter, "--output_dir", out]) == 2
    assert "is a saved adapter, not a model; merge it into its base first" in capsys.readouterr().err
    loaded = AutoModelForCausalLM.from_pretrained(adapter)
    for build in (
        lambda: get_balora_model(loaded, BALoraConfig(method="lora")),
        lambda: BALoraModel.from_pretrained(loaded, tmp_path / "adapter"),
        lambda: make_baseline(loaded, "full"),
    ):
        with pytest.raises(BALoraError, match=r"was loaded with an adapter|balora did not write it"):
            build()


@pytest.mark.parametrize("extra", [2, -7])
def test_an_adapter_with_resized_embeddings_is_compared_on_the_common_tokens(extra, tmp_path):
    base = tmp_path / "base"
    tiny(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = LlamaConfig.from_pretrained(base)
    config.vocab_size = own = len(tokenizer) + 7  # padded, as published models are
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(base)
    loaded = AutoModelForCausalLM.from_pretrained(base)
    loaded.resize_token_embeddings(own + extra, mean_resizing=False)
    model = get_peft_model(loaded, LoraConfig(**LORA))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "embed_tokens" in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    common = min(own, own + extra)
    with pytest.warns(UserWarning, match=f"the {common} tokens of both are compared"):
        found = evaluated(base, tmp_path / "adapter", tmp_path)["kl_to_base"]
    expected = divergence(base, tmp_path / "adapter", resized=own + extra)
    assert expected > 1e-6
    assert found == pytest.approx(expected, rel=1e-3)
    outputs = ["--own_texts", "2", "--own_length", "8", "--output_dir", str(tmp_path / "audit")]
    assert main(["audit", "--model", str(base), "--adapter", str(tmp_path / "adapter"), *outputs]) == 0
    notes = json.loads((tmp_path / "audit" / "audit.json").read_text())["notes"]
    assert any(f"the {common} tokens of both are compared" in note for note in notes)
