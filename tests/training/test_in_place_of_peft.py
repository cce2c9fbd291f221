"""PEFT's and TRL's own calls with a `BALoraConfig`: they train with the objective, or name the call that does."""

import json
import warnings

import peft
import pytest
import torch
from datasets import Dataset
from tiny_models import inputs_for, make, without_labels, word_tokenizer
from transformers import TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import balora
from balora.adapters.saving import SETTINGS_FILE
from balora.config import PUBLISHED, as_balora_config
from balora.training.sft import BALoraSFTTrainer

pytestmark = pytest.mark.filterwarnings("ignore")
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
CONFIGS = {"balora": balora.BALoraConfig(**LORA), "peft": peft.LoraConfig(**LORA, task_type="CAUSAL_LM")}
ARGUMENTS = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
}


def sft(trainer: type, tmp_path, model, **settings):
    rows = Dataset.from_list([{"text": "a b c a"}] * 8)
    arguments = SFTConfig(str(tmp_path), max_length=16, **ARGUMENTS)
    return trainer(model=model, args=arguments, processing_class=word_tokenizer(), train_dataset=rows, **settings)


@pytest.mark.parametrize(
    "call",
    [
        peft.get_peft_model,
        lambda model, config: peft.inject_adapter_in_model(config, model),
        lambda model, config: model.add_adapter(config),
    ],
)
def test_pefts_own_functions_refuse_the_configuration(call):
    with pytest.raises(balora.BALoraError, match=r"balora\.get_balora_model"):
        call(make("llama"), balora.BALoraConfig(**LORA))


@pytest.mark.parametrize("how", ["model", "peft_config"])
def test_an_adapter_on_the_head_is_refused(how, tmp_path):
    config = balora.BALoraConfig(r=4, target_modules=["lm_head", "q_proj"])
    given = {"peft_config": config} if how == "peft_config" else {}
    model = make("llama") if given else balora.get_balora_model(make("llama"), config)
    with pytest.raises(balora.BALoraError, match="TRL's trainers do not train an adapter on lm_head"):
        sft(BALoraSFTTrainer, tmp_path, model, **given)


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_stock_sft_trainer_refuses_the_configuration(task_type, tmp_path):
    with pytest.raises(balora.BALoraError, match="BALoraSFTTrainer"):
        sft(SFTTrainer, tmp_path, make("llama"), peft_config=balora.BALoraConfig(**LORA, task_type=task_type))


@pytest.mark.parametrize("given", ["name", "model"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_sft_trainer_builds_the_model(kind, given, tmp_path):
    model = make("llama")
    model.save_pretrained(tmp_path / "base")
    trainer = sft(
        BALoraSFTTrainer, tmp_path, str(tmp_path / "base") if given == "name" else model, peft_config=CONFIGS[kind]
    )
    assert trainer.model.balora_config.method == ("ba-lora" if kind == "balora" else "lora+reg")
    assert trainer.model.balora_config.task_type == "CAUSAL_LM"
    trainer.train()
    assert "loss_consistency" in trainer.state.log_history[0]
    assert trainer.state.log_history[0]["weight_consistency"] == PUBLISHED["CAUSAL_LM"]["consistency_weight"]
    trainer.save_model(str(tmp_path / "saved"))
    assert json.loads((tmp_path / "saved" / SETTINGS_FILE).read_text())["method"] == trainer.model.balora_config.method
    saved = peft.PeftModel.from_pretrained(make("llama"), tmp_path / "saved")
    inputs = without_labels(inputs_for("llama"))
    with torch.no_grad():
        torch.testing.assert_close(saved(**inputs).logits, trainer.model.eval()(**inputs).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_trainer_builds_the_model(kind, tmp_path):
    inputs = inputs_for("llama")
    rows = [{key: value[i] for key, value in inputs.items()} for i in range(4)]
    config = CONFIGS[kind]
    trainer = balora.BALoraTrainer(
        model=make("llama"), args=TrainingArguments(str(tmp_path), **ARGUMENTS), train_dataset=rows, peft_config=config
    )
    trainer.train()
    assert "loss_consistency" in trainer.state.log_history[0]


def test_a_model_without_the_objective_is_refused(tmp_path):
    with pytest.raises(balora.BALoraError, match="peft_config"):
        sft(BALoraSFTTrainer, tmp_path, make("llama"))
    with pytest.raises(balora.BALoraError, match="peft_config"):
        balora.BALoraTrainer(model=make("llama"), args=TrainingArguments(str(tmp_path), **ARGUMENTS))
    with pytest.raises(balora.BALoraError, match="is a name"):
        balora.BALoraTrainer(model="some/name", peft_config=CONFIGS["balora"])
    adapted = balora.get_balora_model(make("llama"), CONFIGS["balora"])
    with pytest.raises(balora.BALoraError, match="has an adapter already"):
        sft(BALoraSFTTrainer, tmp_path, adapted, peft_config=CONFIGS["balora"])


def test_lora_config_gets_published_regularizers():
    model = balora.get_balora_model(make("llama"), CONFIGS["peft"])
    assert model.balora_config.method == "lora+reg"
    assert model.balora_config.r == 4
    for name, value in PUBLISHED["CAUSAL_LM"].items():
        assert getattr(model.balora_config, name) == value


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"use_dora": True}, "dora+reg"),
        ({"use_rslora": True}, "rslora+reg"),
        ({"init_lora_weights": "pissa"}, "ba-lora"),
        ({"init_lora_weights": "pissa_niter_4"}, "ba-lora"),
        ({"init_lora_weights": "olora"}, "olora+reg"),
    ],
)
def test_lora_config_becomes_the_method_that_it_describes(settings, method):
    config = as_balora_config(peft.LoraConfig(**LORA, **settings))
    assert config.method == method
    assert config.pissa_niter == (4 if "niter" in str(settings) else None)


@pytest.mark.parametrize("config", [peft.IA3Config(), peft.AdaLoraConfig(total_step=3)])
def test_another_kind_of_configuration_is_refused(config):
    with pytest.raises(balora.BALoraError, match=r"use BALoraConfig or peft\.LoraConfig"):
        balora.get_balora_model(make("llama"), config)


def test_a_second_adapter_is_refused_with_the_reason():
    base = make("llama")
    model = balora.get_balora_model(base, CONFIGS["balora"])
    with pytest.raises(balora.BALoraError, match="has an adapter already"):
        balora.get_balora_model(model, CONFIGS["balora"])
    with pytest.raises(balora.BALoraError, match="from an earlier call"):
        balora.get_balora_model(base, CONFIGS["balora"])
    with pytest.raises(balora.BALoraError, match="has an adapter already"):
        balora.get_balora_model(peft.get_peft_model(make("llama"), peft.LoraConfig(**LORA)), CONFIGS["balora"])
    balora.get_balora_model(model.unload(), CONFIGS["balora"])


def test_stock_trainers_of_trl_refuse_a_model_with_regularizers(tmp_path):
    model = balora.get_balora_model(make("llama"), CONFIGS["balora"])
    with pytest.raises(balora.BALoraError, match="BALoraSFTTrainer"):
        sft(SFTTrainer, tmp_path, model).train()
    pairs = Dataset.from_list([{"prompt": "a b", "chosen": " c", "rejected": " a"}] * 8)
    trainer = DPOTrainer(
        model=model, args=DPOConfig(str(tmp_path), **ARGUMENTS), processing_class=word_tokenizer(), train_dataset=pairs
    )
    with pytest.raises(balora.BALoraError, match="set the weights of all regularizers to 0"):
        trainer.train()


def test_stock_trainers_of_trl_train_a_model_without_regularizers(tmp_path):
    off = dict.fromkeys(("consistency_weight", "diversity_weight", "spectral_weight"), 0.0)
    model = balora.get_balora_model(make("llama"), balora.BALoraConfig(**LORA, **off))
    trainer = sft(SFTTrainer, tmp_path, model)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0


def test_a_training_forward_without_labels_is_warned_of_once():
    model = balora.get_balora_model(make("llama"), CONFIGS["balora"]).train()
    inputs = without_labels(inputs_for("llama"))
    with pytest.warns(UserWarning, match="without labels computes no objective"):
        model(**inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**inputs)
