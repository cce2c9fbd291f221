"""LoRA-FA: A is frozen, B learns with every trainer, and layers do not save inputs for A's gradient."""

import pytest
import torch
from peft.optimizers import create_lorafa_optimizer
from tiny_models import inputs_for, make, train_steps, with_reg
from transformers import TrainingArguments

from balora import BALoraConfig, BALoraError, BALoraModel, get_balora_model
from balora.adapters.fused_linear import FusedLinear
from balora.adapters.teacher import lora_layers
from balora.training import BALoraTrainer

pytestmark = pytest.mark.filterwarnings("ignore:balora")


def adapted(name: str = "llama", method: str = "lora-fa", **settings) -> BALoraModel:
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings}
    return get_balora_model(make(name), BALoraConfig(method=with_reg(method), **settings))


def factors(model: BALoraModel) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items() if "lora_" in key}


def assert_b_alone_moved(model: BALoraModel, before: dict[str, torch.Tensor]) -> None:
    assert before
    for key, value in factors(model).items():
        assert torch.equal(value, before[key]) == ("lora_A" in key), key


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5-untied"])
def test_a_is_frozen_and_b_learns(name):
    model = adapted(name)
    before = factors(model)
    train_steps(model, inputs_for(name), steps=3)
    assert_b_alone_moved(model, before)
    for layer in lora_layers(model).values():
        a, delta = layer.lora_A["default"].weight.detach(), layer.get_delta_weight("default").detach()
        delta = delta.T if layer.fan_in_fan_out else delta
        onto = torch.linalg.pinv(a) @ a  # (in, in), the projection onto A's row space
        torch.testing.assert_close(delta @ onto, delta, rtol=0, atol=1e-5)


def test_every_trainable_parameter_has_a_gradient():
    model = adapted().train()
    model(**inputs_for("llama")).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_B" in name for name in trained)
    assert all(p.grad is not None for p in trained.values())


def test_a_stays_frozen_after_saving_and_resuming(tmp_path):
    arguments = {"save_steps": 2, "learning_rate": 1e-2, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    row = {key: value[1] for key, value in inputs_for("llama").items()}
    trained = []
    for steps, checkpoint in ((2, None), (4, str(tmp_path / "checkpoint-2"))):
        torch.manual_seed(3)
        model = adapted()
        args = TrainingArguments(str(tmp_path), max_steps=steps, **arguments)
        BALoraTrainer(model=model, args=args, train_dataset=[row] * 8).train(resume_from_checkpoint=checkpoint)
        trained.append(factors(model))
        assert not any(p.requires_grad for name, p in model.named_parameters() if "lora_A" in name)
    for key, value in trained[0].items():
        assert torch.equal(value, trained[1][key]) == ("lora_A" in key), key
    model = BALoraModel.from_pretrained(make("llama"), tmp_path / "checkpoint-4", is_trainable=True)
    before = factors(model)
    assert all(torch.equal(before[key], value) for key, value in trained[1].items())
    train_steps(model, inputs_for("llama"))
    assert_b_alone_moved(model, before)


def test_works_with_pefts_lora_fa_optimizer():
    model = adapted()
    before = factors(model)
    optimizer = create_lorafa_optimizer(model, r=4, lora_alpha=8, lr=1e-2)
    model.train()(**inputs_for("llama")).loss.backward()
    optimizer.step()
    assert_b_alone_moved(model, before)


def test_layers_do_not_save_inputs_for_a_frozen_a():
    """LoRA saves a layer's 50 × 32 input for A's gradient, LoRA-FA only its 50 × 4 product."""
    kept = {}
    for method in ("lora", "lora-fa"):
        layer = next(iter(lora_layers(adapted(method=method)).values()))
        assert type(layer) is FusedLinear
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(tuple(t.shape)) or t, lambda t: t):
            layer(torch.randn(50, 32, requires_grad=True)).sum().backward()
        kept[method] = (50, 32) in sizes, (50, 4) in sizes
    assert kept == {"lora": (True, True), "lora-fa": (False, True)}


def test_embedding_target_raises():
    with pytest.raises(BALoraError, match=r"embed_tokens is a Embedding, whose A is zero at the start"):
        adapted(target_modules=["q_proj", "embed_tokens"])
