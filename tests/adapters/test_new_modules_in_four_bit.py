"""A classifier's new modules on a base in 4 bits: trained in full, saved, and the same after a reload elsewhere."""

import json

import pytest
import torch
import transformers as hf
import yaml
from peft import PeftModel
from tiny_folder import WORDS, tiny
from tiny_models import SMALL, off_its_start, widen

from balora import BALoraConfig, BALoraModel, get_balora_model
from balora.adapters.four_bit import skip_module_patterns
from balora.cli import main

bnb = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'balora[quantized]'")
pytestmark = pytest.mark.filterwarnings("ignore:balora", "ignore::FutureWarning")

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
DISTILBERT = {"dim": 64, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
IDS = torch.tensor([[5, 6, 7, 8, 9, 1], [10, 11, 12, 13, 14, 1]])
#: Checkpoints without a classification head, and the modules that a classifier has beside them.
WIDE = {
    "distilbert": (
        lambda: hf.DistilBertModel(hf.DistilBertConfig(**DISTILBERT, vocab_size=len(WORDS))),
        ["pre_classifier", "classifier"],
    ),
    "bert": (
        lambda: hf.BertForMaskedLM(hf.BertConfig(**SMALL | {"hidden_size": 64, "vocab_size": len(WORDS)})),
        ["pooler", "classifier"],
    ),
}


@pytest.fixture(params=WIDE)
def headless(request, tmp_path, monkeypatch):
    """Return the folder of a checkpoint without a head, and the names of what a classifier has beside it."""
    widen(monkeypatch)
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)  # as on any CPU
    make, new = WIDE[request.param]
    tiny(tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").unlink()
    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "base")
    return tmp_path / "base", new


def classifier(folder, seed: int) -> hf.PreTrainedModel:
    """Load a classifier as another process would, with random weights of its own."""
    torch.manual_seed(seed)
    return hf.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def in_four_bits(folder, new: list[str], seed: int) -> hf.PreTrainedModel:
    torch.manual_seed(seed)
    config = hf.BitsAndBytesConfig(**NF4, llm_int8_skip_modules=skip_module_patterns(new))
    return hf.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, quantization_config=config
    ).eval()


@pytest.mark.parametrize("method", ["qlora", "qba-lora"])
def test_a_base_quantized_here_reloads_to_the_same_logits(method, headless, tmp_path):
    folder, _ = headless
    config = BALoraConfig(method=method, r=2, target_modules="all-linear", quantization_config=NF4)
    model = off_its_start(get_balora_model(classifier(folder, 0), config))
    expected = logits(model)
    model.save_pretrained(tmp_path / "saved")
    again = BALoraModel.from_pretrained(classifier(folder, 1), tmp_path / "saved")
    assert torch.equal(logits(again), expected)


def test_a_base_loaded_in_four_bits_reloads_to_the_same_logits(headless, tmp_path):
    folder, new = headless
    config = BALoraConfig(method="qlora", r=2, target_modules="all-linear")
    model = off_its_start(get_balora_model(in_four_bits(folder, new, 0), config))
    expected = logits(model)
    model.save_pretrained(tmp_path / "saved")
    for cls in (PeftModel, BALoraModel):
        again = cls.from_pretrained(in_four_bits(folder, new, 1), tmp_path / "saved")
        torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["qlora", "qba-lora"])
def test_what_a_recipe_trained_is_evaluated_alike_with_another_seed(method, headless, tmp_path):
    folder, _ = headless
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<unk>"})
    tokenizer.save_pretrained(folder)
    rows = [{"text": f"the cat {verb} on a {place}", "label": verb} for verb in ("sat", "ran") for place in
            ("mat", "hill")]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    recipe = {"name": "t", "model_name_or_path": str(folder), "label_column": "label", "method": method, "r": 2}
    recipe |= dict.fromkeys(("train_file", "validation_file"), str(tmp_path / "rows.jsonl"))
    recipe |= {"max_steps": 4, "learning_rate": 0.01, "training_arguments": {"use_cpu": True}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "out"
    assert main(["train", str(tmp_path / "recipe.yaml"), "--output_dir", str(out)]) == 0
    assert main(["evaluate", str(tmp_path / "recipe.yaml"), "--adapter", str(out), "--seed", "7"]) == 0
    trained, again = (
        json.loads((place / "result.json").read_text())["metrics"] for place in (out, out / "evaluation")
    )
    assert again == pytest.approx(trained, abs=1e-6)
    assert any(name.startswith(("kl", "agreement")) for name in trained)


def test_new_modules_stay_whole(headless):
    folder, new = headless
    config = BALoraConfig(method="qba-lora", r=2, target_modules="all-linear", quantization_config=NF4)
    base = get_balora_model(classifier(folder, 0), config).get_base_model()
    names = [name for name, module in base.named_modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert names
    assert not [name for name in names if any(own in name.split(".") for own in new)]
