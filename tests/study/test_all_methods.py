"""Every method that a recipe can name: trained, saved, evaluated to the same figures, and audited."""

import json

import pytest
import torch
import yaml
from tiny_folder import tiny
from tiny_models import SMALL
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from balora.baselines import BASELINES
from balora.cli import main
from balora.recipe.methods import RUN_METHODS

#: In 4 bits, tiny layers are dequantized wrongly on a CPU.
METHODS = [name for name, method in RUN_METHODS.items() if not method.four_bit and "+reg" not in name]
#: What single methods need beside the data.
OWN = {
    "oplora": {"oplora_k": 3},
    "lora-null": {"knowledge_file": "texts.txt"},
    "lora-null-v2": {"knowledge_file": "texts.txt"},
}
GENERATION = [{"prompt": f"who sat on {place} ?", "completion": "cat"} for place in ("mat", "hill", "dog", "no")]
CLASSES = [{"text": f"the {who} sat on a mat", "label": name} for who, name in (("cat", "yes"), ("dog", "no"))] * 2


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Save a tiny Llama, and a tiny BERT without a classification head."""
    folder = tmp_path_factory.mktemp("bases")
    tiny(folder / "llama")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder / "llama")
    tokenizer.add_special_tokens({"pad_token": "<unk>"})
    BertForMaskedLM(BertConfig(**SMALL | {"vocab_size": len(tokenizer)})).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    return folder


def recipe(bases, folder, method: str, *, classes: bool, **settings) -> dict:
    rows = CLASSES if classes else GENERATION
    rank = {"r": 4} if method not in BASELINES or "r" in BASELINES[method].settings else {}
    own = dict(OWN.get(method, {}))
    if "knowledge_file" in own:
        own["knowledge_file"] = str(folder / own["knowledge_file"])
        (folder / "texts.txt").write_text("the cat sat on a mat\nthe dog ran\n")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    return {
        "name": "tiny",
        "method": method,
        "model_name_or_path": str(bases / ("bert" if classes else "llama")),
        "train_file": str(folder / "rows.jsonl"),
        "validation_file": str(folder / "rows.jsonl"),
        "max_steps": 12,
        "learning_rate": 0.02,
        **rank,
        **own,
        "training_arguments": {"use_cpu": True},
        **({"label_column": "label"} if classes else {}),
        **settings,
    }


def run(command: str, settings: dict, folder, *arguments: str) -> int:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return main([command, str(folder / "recipe.yaml"), *arguments])


def metrics(folder) -> dict[str, float]:
    return json.loads((folder / "result.json").read_text())["metrics"]


@pytest.mark.parametrize("classes", [False, True], ids=["generation", "classification"])
@pytest.mark.parametrize("method", [*METHODS, *BASELINES])
def test_what_a_method_trains_is_evaluated_and_audited(method, classes, bases, tmp_path):
    if not classes and method in ("bitfit", "prompt-tuning"):
        pytest.skip("refused: Llama has no biases, and a prompt has no labels in a causal model")
    settings = recipe(bases, tmp_path, method, classes=classes)
    trained, evaluated = tmp_path / "trained", tmp_path / "evaluated"
    assert run("train", settings, tmp_path, "--output_dir", str(trained)) == 0
    outputs = ("--adapter", str(trained), "--output_dir", str(evaluated))
    assert run("evaluate", settings, tmp_path, *outputs) == 0
    assert metrics(evaluated) == pytest.approx(metrics(trained), rel=1e-4, abs=1e-6)
    base = settings["model_name_or_path"]
    audit = ["audit", "--model", base, "--adapter", str(trained), "--output_dir", str(tmp_path / "audit")]
    assert main(audit) == (2 if method == "selora" else 0)  # another weight for each sentence


@pytest.mark.filterwarnings("ignore:balora. the generation settings")
@pytest.mark.parametrize("method", ["full", "lora"])
def test_generation_settings_that_cannot_be_saved_lose_nothing(method, bases, tmp_path):
    tiny(tmp_path / "llama")
    file = tmp_path / "llama" / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"temperature": 0.6, "do_sample": False}))
    settings = recipe(bases, tmp_path, method, classes=False, model_name_or_path=str(tmp_path / "llama"))
    assert run("train", settings, tmp_path, "--output_dir", str(tmp_path / "out")) == 0
    name = "model" if method == "full" else "adapter_model"
    assert (tmp_path / "out" / f"{name}.safetensors").is_file()
