"""`+anchors` and `+swaps` in a method's name: the same as their settings, with texts made by the tokenizer."""

from functools import partial

import peft
import pytest
import torch
from datasets import Dataset
from tiny_models import inputs_for, make, off_its_start, word_tokenizer
from transformers import TrainingArguments
from trl import SFTConfig

from balora import BALoraConfig, BALoraError, BALoraModel, BALoraTrainer, get_balora_model
from balora.anchors import COUNT, LENGTH, cached_anchors, sample_anchors
from balora.config import PRESETS
from balora.model import build
from balora.recipe import Recipe
from balora.study.method_config import balora_config
from balora.study.unused import refuse_unused
from balora.training.sft import BALoraSFTTrainer

pytestmark = pytest.mark.filterwarnings("ignore")
TOKENIZER = word_tokenizer(closes=False)
FEW = {"count": 6, "length": 12}
CONSTANT = {f"{term}_schedule": "constant" for term in ("consistency", "diversity", "spectral")}
ARGUMENTS = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
}


@pytest.fixture(autouse=True)
def few_anchors(tmp_path, monkeypatch):
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "cached_anchors", partial(cached_anchors, **FEW))


@pytest.fixture
def words(tmp_path) -> str:
    (tmp_path / "words.txt").write_text("a, b\n")
    return str(tmp_path / "words.txt")


def built(method: str, name: str = "llama", **settings) -> BALoraModel:
    schedules = CONSTANT if "reg" in method or "ba-lora" in method else {}
    config = BALoraConfig(method=method, r=2, **schedules, **settings)
    return off_its_start(get_balora_model(make(name), config, tokenizer=TOKENIZER))


def losses(model: BALoraModel) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    output = model.train()(**inputs_for("llama"))
    return {"loss": output.loss.detach(), **output.components}


def test_anchors_are_sampled_and_kept(tmp_path):
    model = built("lora+anchors")
    expected = sample_anchors(make("llama"), TOKENIZER, **FEW)
    assert torch.equal(model.anchors.input_ids, expected.input_ids)
    assert len(list((tmp_path / "cache/anchors").iterdir())) == 1
    assert losses(model).keys() == {"loss", "task", "anchor"}
    again = get_balora_model(make("llama"), BALoraConfig(method="lora+anchors"), anchors=expected)
    assert again.anchors is expected


def test_replay_reads_the_texts_that_anchors_would_be():
    model = built(**PRESETS["self-replay"])
    assert torch.equal(model.anchors.input_ids, sample_anchors(make("llama"), TOKENIZER, **FEW).input_ids)
    assert losses(model).keys() == {"loss", "task", "replay"}


def test_the_defaults_are_those_of_a_recipe():
    recipe = Recipe(model_name_or_path="m", train_file="a.jsonl", method="lora+anchors")
    assert (recipe.anchor_samples, recipe.anchor_length) == (COUNT, LENGTH)
    long = make("llama")
    long.config.max_position_embeddings = 40
    assert cached_anchors(lambda: long, TOKENIZER, count=2).input_ids.shape[1] <= 40  # its context is shorter


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lora+anchors", {"method": "lora+reg", "anchor_weight": 1.0, "consistency_weight": 0.0,
                          "diversity_weight": 0.0, "spectral_weight": 0.0}),
        ("ba-lora+anchors", {"method": "ba-lora", "anchor_weight": 1.0}),
        ("pissa+reg+anchors", {"method": "ba-lora", "anchor_weight": 1.0}),
        ("ba-lora+swaps", {"method": "ba-lora", "words": True}),
        ("lora+anchors+swaps", {"method": "lora+anchors", "words": True}),
        ("lora+reg+anchors+swaps", {"method": "lora+reg", "anchor_weight": 1.0, "words": True}),
    ],
)  # fmt: skip
def test_a_name_and_its_settings_train_the_same(name, settings, words):
    settings = dict(settings)
    more = {"counterfactual_words": words} if settings.pop("words", False) else {}
    named, set_ = losses(built(name, **more)), losses(built(**settings, **more))
    assert named.keys() == set_.keys()
    assert all(torch.equal(named[key], set_[key]) for key in named)


def test_swaps_change_the_teacher(words):
    plain, swapped = losses(built("ba-lora")), losses(built("ba-lora+swaps", counterfactual_words=words))
    assert plain["task"] == swapped["task"]
    assert plain["consistency"] != swapped["consistency"]
    assert built("ba-lora+swaps").balora_config.counterfactual_words == "gender"


def test_settings_refine_a_name():
    config = built("lora+anchors", anchor_weight=0.25, anchor_share=1.0).balora_config
    assert (config.anchor_weight, config.anchor_share) == (0.25, 1.0)
    assert built("lora+anchors").balora_config.anchor_weight == 1.0
    assert built("ba-lora", anchor_weight=0.25).anchors is not None
    off = get_balora_model(make("llama"), BALoraConfig(method="lora+anchors", anchor_weight=0.0))
    assert losses(off).keys() == {"loss", "task"}


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("lora+anchors", {}, r"lora\+anchors samples texts .* tokenizer=…, or anchors=…"),
        ("ba-lora+swaps", {}, r"ba-lora\+swaps exchanges words, .* tokenizer=…"),
        ("ba-lora+swaps", {"consistency_weight": 0.0}, r"ba-lora\+swaps has no term left that reads the teacher"),
        ("lora+anchors", {"consistency_weight": 0.1}, r"consistency_weight: .* such as lora\+reg\+anchors"),
        ("selora+anchors", {"sentence_dim": 3}, "each row needs a sentence embedding"),
        ("lora+anchors", {"task_names": ["a", "b"]}, "each row needs a task"),
    ],
)
def test_what_is_missing_is_named(method, settings, message):
    with pytest.raises(BALoraError, match=message):
        get_balora_model(make("llama"), BALoraConfig(method=method, **settings))


def test_other_tasks():
    for name in ("bert", "t5"):
        with pytest.raises(BALoraError, match="only causal language models"):
            built("lora+anchors", name)
    with pytest.raises(BALoraError, match="counterfactual_words: only for causal"):
        built("lora+reg+swaps", "t5")
    assert built("ba-lora+swaps", "bert").swaps is not None


@pytest.mark.parametrize("given", [True, False])
def test_sft_trainer_gives_its_tokenizer(given, tmp_path):
    model = make("llama")
    model.save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    more = {"processing_class": TOKENIZER} if given else {}
    trainer = BALoraSFTTrainer(
        model=str(tmp_path / "base"),
        args=SFTConfig(str(tmp_path / "out"), max_length=16, bf16=False, **ARGUMENTS),
        train_dataset=Dataset.from_list([{"text": "a b c a"}] * 8),
        peft_config=BALoraConfig(method="lora+anchors+swaps", r=2),
        **more,
    )
    trainer.train()
    assert "loss_anchor" in trainer.state.log_history[0]
    assert trainer.model.swaps is not None


def test_trainer_gives_its_tokenizer(tmp_path):
    rows = [{key: value[i] for key, value in inputs_for("llama").items()} for i in range(4)]
    trainer = BALoraTrainer(
        make("llama"),
        TrainingArguments(str(tmp_path), **ARGUMENTS),
        train_dataset=rows,
        processing_class=TOKENIZER,
        peft_config=BALoraConfig(method="ba-lora+anchors", r=2),
    )
    trainer.train()
    assert {"loss_anchor", "loss_consistency"} <= trainer.state.log_history[0].keys()


@pytest.mark.parametrize("method", ["lora+anchors", "ba-lora+anchors+swaps", "qpissa+reg+anchors", "lora++anchors"])
def test_a_recipe_takes_the_names_and_their_settings(method):
    recipe = Recipe(model_name_or_path="m", train_file="a.jsonl", method=method, anchor_samples=9, anchor_share=0.2)
    refuse_unused([recipe])
    config = balora_config(recipe, 0)
    config.resolve("CAUSAL_LM")
    assert (config.method, config.anchor_weight, config.anchor_share) == (method, 1.0, 0.2)
    assert config.counterfactual_words == ("gender" if "swaps" in method else None)


def test_pefts_configuration_has_no_anchors():
    assert get_balora_model(make("llama"), peft.LoraConfig(r=2), tokenizer=TOKENIZER).anchors is None
