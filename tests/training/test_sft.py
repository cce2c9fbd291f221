"""TRL's data machinery with our objective: chats, completions only, packing, and evaluation by either trainer."""

import pytest
import torch
from datasets import Dataset
from tiny_models import MODELS, inputs_for, make
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
def test_every_form_trains_with_the_objective_and_evaluates(form, tmp_path):
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


def test_only_the_completion_is_learned(tmp_path):
    trainer = trainer_for(tmp_path, "prompt–completion")
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["labels"] != -100).sum(1).tolist() == [3, 3]  # two words and the end
    assert batch["attention_mask"].sum(1).tolist() == [6, 6]


def test_packed_rows_count_every_token(tmp_path):
    trainer = trainer_for(tmp_path, "text", packing=True, packing_strategy="wrapped", max_length=8)
    trainer.train()
    assert trainer.state.log_history[-2]["loss_consistency"] > 0


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
