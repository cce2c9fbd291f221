"""TRL's data preparation with the objective: chats, completions, packing, and evaluation by both trainers."""

import pytest
import torch
from datasets import Dataset
from tiny_models import MODELS, inputs_for, make, train_steps
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainingArguments
from trl import SFTConfig

import balora
from balora.training.sft import BALoraSFTTrainer

pytestmark = pytest.mark.filterwarnings("ignore")
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<unk>", "<s>", "</s>", "user", "assistant", *(f"w{i}" for i in range(80))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="</s>", pad_token="<s>", chat_template=TEMPLATE
    )


FORMS = {
    "prompt–completion": {"prompt": "w1 w2 w3", "completion": " w4 w5"},
    "chat": {"messages": [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]},
    "text": {"text": "w1 w2 w3 w4"},
}


def trainer_for(tmp_path, form: str, **settings) -> BALoraSFTTrainer:
    arguments = SFTConfig(
        str(tmp_path),
        **{
            "max_steps": 3,
            "per_device_train_batch_size": 2,
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "bf16": False,
            "max_length": 16,
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            **settings,
        },
    )
    model = balora.get_balora_model(make("llama"), balora.BALoraConfig(r=4, target_modules="all-linear"))
    rows = Dataset.from_list([FORMS[form]] * 8)
    return BALoraSFTTrainer(
        model=model, args=arguments, processing_class=tokenizer(), train_dataset=rows, eval_dataset=rows
    )


@pytest.mark.parametrize("form", FORMS)
def test_every_data_format_trains_with_the_objective_and_evaluates(form, tmp_path):
    trainer = trainer_for(tmp_path, form)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 3
    for row in rows:
        assert row["loss_consistency"] > -1e-6, "rounding apart, a divergence is not negative"
        assert row["loss"] == pytest.approx(
            row["loss_task"]
            + sum(row[f"weight_{t}"] * row.get(f"loss_{t}", 0) for t in ("consistency", "diversity", "spectral")),
            rel=1e-4,
        )
    assert trainer.evaluate()["eval_loss"] < rows[0]["loss_task"]


def test_only_completions_have_labels(tmp_path):
    trainer = trainer_for(tmp_path, "prompt–completion")
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["labels"] != -100).sum(1).tolist() == [3, 3]  # two words and the end
    assert batch["attention_mask"].sum(1).tolist() == [6, 6]


def test_packed_rows_count_all_tokens(tmp_path):
    trainer = trainer_for(tmp_path, "text", packing=True, packing_strategy="wrapped", max_length=8)
    trainer.train()
    assert trainer.state.log_history[-2]["loss_consistency"] > 0


def test_packed_texts_have_the_terms_of_separate_rows():
    """Texts are joined in one row and separated by position ids, as in TRL's best-fit packing."""
    inputs = inputs_for("llama", rows=3)
    inputs["attention_mask"][:] = 1
    inputs["labels"][:, 0] = -100  # no text predicts the next one's first token
    length = inputs["input_ids"].shape[1]
    packed = {key: inputs[key].reshape(1, -1) for key in ("input_ids", "labels")}
    packed["position_ids"] = torch.arange(length).repeat(3).unsqueeze(0)
    schedules = dict.fromkeys(("consistency_schedule", "diversity_schedule", "spectral_schedule"), "constant")
    model = balora.get_balora_model(make("llama"), balora.BALoraConfig(r=4, target_modules="all-linear", **schedules))
    train_steps(model, inputs_for("llama"))
    model.train()
    apart, joined = model(**inputs), model(**packed)
    for name, value in apart.components.items():
        torch.testing.assert_close(joined.components[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_best_fit_packing_counts_all_tokens(tmp_path):
    trainer = trainer_for(tmp_path, "text", packing=True, max_length=8)
    batch = next(iter(trainer.get_train_dataloader()))
    assert "attention_mask" not in batch
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(first["loss_task"] + 0.025 * first["loss_consistency"], rel=1e-4)


def test_grouping_by_length_reduces_padding(tmp_path):
    padding = {}
    for strategy in ("random", "group_by_length"):
        trainer = trainer_for(tmp_path, "text", train_sampling_strategy=strategy)
        trainer.train_dataset = Dataset.from_list([{"input_ids": [5] * n} for n in [*range(2, 16)] * 16])
        padding[strategy] = sum((batch["attention_mask"] == 0).sum() for batch in trainer.get_train_dataloader())
    assert padding["group_by_length"] < padding["random"] / 4


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_loss_is_the_mean_for_every_architecture(name, tmp_path):
    inputs = inputs_for(name)
    rows = [{key: value[i] for key, value in inputs.items()} for i in range(4)]
    trainer = balora.BALoraTrainer(
        model=balora.get_balora_model(make(name), balora.BALoraConfig(r=4, target_modules="all-linear")),
        args=TrainingArguments(str(tmp_path), report_to="none", disable_tqdm=True, use_cpu=True),
        eval_dataset=rows,
    )
    with torch.no_grad():
        expected = make(name)(**inputs).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)
