"""The recipes that ship: each reads, plans, and says of the model what it prints."""

import math
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers as hf

from balora.recipe.parse import parse
from balora.study.plan import plan
from balora.study.prepare import prepare

FOLDER = Path(__file__).parents[2] / "recipes"
#: Those of `scale` are Accelerate's, and recipes for one method (`test_launched.py`).
RECIPES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yaml") if path.parent.name != "scale")
#: Those that read local files and a model from a package, so that they can be prepared here.
LOCAL_NAMES = ("minilm", "stories260k", "bias/", "structural/hatecheck", "structural/imbalance", "structural/mixture")
LOCAL = [name for name in RECIPES if any(part in name for part in LOCAL_NAMES)]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_reads_and_plans(name):
    recipe, _ = parse("compare", [str(FOLDER / name)])
    cells = plan(recipe)
    points = math.prod(map(len, recipe.sweep.values()))
    tasks = max(len(recipe.tasks), 1 + sum(map(len, recipe.worlds.values())))
    assert len(cells) == tasks * (1 + points * len(recipe.methods) * len(recipe.seeds))
    text = (FOLDER / name).read_text()
    assert text.startswith("# ")
    command = "sweep" if recipe.sweep or recipe.worlds else "compare"
    assert f"balora {command} recipes/{name} --output_dir" in text


@pytest.mark.parametrize("name", LOCAL)
def test_a_local_recipe_s_data_is_there(name, data_dir, models_dir, monkeypatch):
    monkeypatch.setenv("BALORA_DATA", str(data_dir))
    monkeypatch.setenv("BALORA_MODELS", str(models_dir))
    recipe, _ = parse("compare", [str(FOLDER / name)])
    for cell in plan(recipe)[: max(len(recipe.tasks), 1)]:
        prepared = prepare(cell.recipe)
        if "minilm" in name:
            assert len(prepared.train) == 2000 * (1 - (recipe.validation_share or 0))
        assert len(prepared.validation) > 0


@pytest.mark.parametrize(
    "name",
    [name for name in RECIPES if "model_name_or_path: microsoft/deberta-v3-base" in (FOLDER / name).read_text()],
)
def test_deberta_recipes_adapt_the_six_matrices_of_each_layer(name):
    recipe, _ = parse("compare", [str(FOLDER / name)])
    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072, "num_attention_heads": 12}
    config = hf.DebertaV2Config(
        **sizes, vocab_size=128100, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=256,
        norm_rel_ebd="layer_norm", share_att_key=True, position_biased_input=False, type_vocab_size=0,
    )  # fmt: skip
    with torch.device("meta"):
        model = hf.DebertaV2ForSequenceClassification(config)
        settings = {"r": recipe.r, "target_modules": recipe.target_modules, "modules_to_save": recipe.modules_to_save}
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", **settings))
    adapters = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert f"{adapters / 1e6:.2f}" == "1.33"
    assert not any("pooler" in name and "lora_" in name for name, _ in model.named_parameters())
    trained = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert trained == {"classifier", "pooler"}


def test_stamped_rows_are_thinned(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("BALORA_DATA", str(data_dir))
    source = data_dir / "hatecheck" / "test_suite_cases.csv"
    target = tmp_path / "new" / "stamped.csv"
    subprocess.run([sys.executable, FOLDER / "structural" / "stamp.py", source, target], check=True)
    recipe, _ = parse("compare", [str(FOLDER / "structural/sampling_hatecheck.yaml"), "--train_file", str(target)])
    sizes = [len(prepare(cell.recipe).train) for cell in plan(recipe)[1 : 1 + 2 * 4 : 2]]
    assert 2500 < sizes[0] < 2700  # an hour for each row, three templates in ten held out
    assert sizes[1:] == [156, 24, 6]  # 3,728 hours from Sunday, 2023-01-01
