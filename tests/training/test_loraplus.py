"""LoRA+: B's rate is λ times A's from the first step to the last, with Transformers' trainer."""

import pytest
import torch
from tiny_models import inputs_for, make, with_reg
from transformers import TrainingArguments

from balora import BALoraConfig, BALoraError, BALoraModel, get_balora_model
from balora.training import BALoraTrainer
from balora.training.loraplus import loraplus_optimizer

pytestmark = pytest.mark.filterwarnings("ignore:balora")


def adapted(name: str, method: str = "lora") -> BALoraModel:
    torch.manual_seed(0)
    config = BALoraConfig(method=with_reg(method), r=4, lora_alpha=8, target_modules="all-linear")
    return get_balora_model(make(name), config)


def arguments(directory, **settings) -> TrainingArguments:
    settings = {"learning_rate": 1e-3, "report_to": "none", "use_cpu": True, "disable_tqdm": True, **settings}
    return TrainingArguments(str(directory), **settings)


@pytest.mark.parametrize("method", ["lora", "pissa", "dora", "lora-fa"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_every_trained_parameter_has_the_right_rate(name, method, tmp_path):
    model = adapted(name, method)
    optimizer = loraplus_optimizer(model, arguments(tmp_path, weight_decay=0.1), ratio=8.0)
    groups = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    of = {id(p): group for p, group in groups}
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert len(groups) == len(trained)
    for key, parameter in trained.items():
        fast = "lora_B" in key or parameter.ndim == 1
        assert of[id(parameter)]["lr"] == pytest.approx(8e-3 if fast else 1e-3), key
        assert of[id(parameter)]["weight_decay"] == (0.0 if "bias" in key else 0.1), key
    assert isinstance(optimizer, torch.optim.AdamW)


def test_one_step_moves_b_sixteen_times_as_far_as_a(tmp_path):
    """Uses plain SGD, where displacement is rate times gradient; PiSSA's A has a gradient from the start."""
    moved = []
    for ratio in (1.0, 16.0):
        model = adapted("llama", "pissa").train()
        optimizer = loraplus_optimizer(model, arguments(tmp_path, optim="sgd", learning_rate=1.0), ratio)
        model(**inputs_for("llama")).loss.backward()
        before = {key: p.detach().clone() for key, p in model.named_parameters() if p.requires_grad}
        optimizer.step()
        moved.append({key: p.detach() - before[key] for key, p in model.named_parameters() if p.requires_grad})
    assert any("lora_B" in key for key in moved[0])
    for key, plain in moved[0].items():
        expected = 16 * plain if "lora_B" in key else plain
        torch.testing.assert_close(moved[1][key], expected, rtol=1e-4, atol=1e-6)
        assert plain.abs().max() > 1e-4, f"{key} has hardly moved, so nothing was shown"


def test_the_method_of_that_name_has_the_optimizer(tmp_path):
    rates = {}
    for method in ("lora", "lora+"):
        model = get_balora_model(make("llama"), BALoraConfig(method=method, r=2))
        trainer = BALoraTrainer(model, arguments(tmp_path))
        rates[method] = {round(group["lr"], 9) for group in trainer.create_optimizer().param_groups if group["params"]}
    assert rates == {"lora": {1e-3}, "lora+": {1e-3, 16e-3}}


def test_trainer_keeps_the_ratio_under_schedules_and_on_resuming(tmp_path):
    row = {key: value[1] for key, value in inputs_for("llama").items()}
    weights = []
    for checkpoint in (None, str(tmp_path / "checkpoint-2")):
        model = adapted("llama")
        args = arguments(tmp_path, max_steps=4, save_steps=2, logging_steps=1, lr_scheduler_type="linear")
        trainer = BALoraTrainer(model=model, args=args, train_dataset=[row] * 8)
        trainer.optimizer = loraplus_optimizer(trainer.model, trainer.args)
        rates = []
        trainer.optimizer.register_step_pre_hook(
            lambda optimizer, *_, seen=rates: seen.append([group["lr"] for group in optimizer.param_groups])
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        assert [slow for slow, *_ in rates] == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3][-len(rates) :])
        assert all(fast == pytest.approx(16 * slow) for slow, _, fast, _ in rates)
        assert rates
        weights.append({key: p.detach().clone() for key, p in model.named_parameters() if p.requires_grad})
    assert len(rates) == 2, "the second run went on from step 2"
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.parametrize("ratio", [0.5, float("nan"), float("inf")])
def test_ratio_out_of_range_raises(ratio, tmp_path):
    with pytest.raises(BALoraError, match=r"loraplus_lr_ratio: .* use 1 or more"):
        loraplus_optimizer(adapted("llama"), arguments(tmp_path), ratio)
