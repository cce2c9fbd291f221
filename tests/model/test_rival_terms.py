"""EWC and replay: the penalty, its Fisher information and the cross-entropy against naive loops in float64."""

import pytest
import torch
from tiny_models import inputs_for, make, off_its_start, train_steps, without_labels

from balora import BALoraConfig, BALoraError, get_balora_model
from balora.adapters.ewc import fisher_diagonals
from balora.adapters.teacher import lora_layers
from balora.anchors import Anchors
from balora.config.published import PRESETS

ADAPTER = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


def texts(seed: int = 7) -> dict[str, torch.Tensor]:
    return without_labels(inputs_for("llama", seed=seed))


def adapted(name: str = "llama", preset: str = "ewc", **settings):
    torch.manual_seed(0)
    model = get_balora_model(make(name).double(), BALoraConfig(**{**PRESETS[preset], **ADAPTER, **settings}))
    return model


def naive_fisher(name: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Square the gradient of each text's log-probability, token by token, in the unmodified model."""
    model, tokens, sums = make(name).double(), 0, {}
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        ids = ids[mask.bool()]
        model.zero_grad()
        logits = model(input_ids=ids[None]).logits[0]
        sum(logits[t - 1].log_softmax(-1)[ids[t]] for t in range(1, len(ids))).backward()
        tokens += len(ids) - 1
        for key, p in model.named_parameters():
            sums[key] = sums.get(key, 0) + p.grad.square()
    return {key: value / tokens for key, value in sums.items()}


@pytest.mark.parametrize("method", ["lora+reg", "ba-lora"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_penalty_is_that_of_the_merged_weights(name, method):
    inputs = inputs_for(name)
    model = adapted(name, method=method)
    flags = {key: p.requires_grad for key, p in model.named_parameters()}
    model.fisher = fisher_diagonals(model, [texts(7), texts(8)])
    assert {key: p.requires_grad for key, p in model.named_parameters()} == flags
    both = {key: torch.cat([texts(7)[key], texts(8)[key]]) for key in texts()}
    expected, before = naive_fisher(name, both), make(name).double().state_dict()
    off_its_start(model)
    without = model(**inputs).components
    assert without["ewc"] > 0
    penalty = 0.0
    for key, layer in lora_layers(model).items():
        own = layer.get_base_layer().weight + layer.get_delta_weight("default")
        f = expected[f"{key}.weight"]
        torch.testing.assert_close(
            model.fisher[key].T if layer.fan_in_fan_out else model.fisher[key], f, rtol=1e-4, atol=1e-12
        )
        penalty = penalty + 0.5 * (f * (own - before[f"{key}.weight"]).square()).sum()
    torch.testing.assert_close(without["ewc"], penalty.detach(), rtol=1e-4, atol=0)
    # Its gradient is that of autograd on the merged weights.
    trained = [p for p in model.parameters() if p.requires_grad]
    whole = torch.autograd.grad(model(**inputs).loss, trained)
    model.balora_config.ewc_weight = 0.0
    task = torch.autograd.grad(model(**inputs).loss, trained)
    for total, rest, of_penalty in zip(whole, task, torch.autograd.grad(penalty, trained), strict=True):
        torch.testing.assert_close(total - rest, of_penalty, rtol=1e-3, atol=1e-6)


def test_fisher_of_a_model_that_was_trained_is_that_of_the_pretrained_one():
    """As a resumed run computes it again."""
    model = adapted(method="ba-lora")
    before = fisher_diagonals(model, [texts()])
    model.fisher = before
    train_steps(model, inputs_for("llama"))
    for key, value in fisher_diagonals(model, [texts()]).items():
        torch.testing.assert_close(value, before[key], rtol=1e-4, atol=1e-12)


def test_a_large_weight_keeps_what_the_texts_use():
    distances = {}
    for weight in (1e-9, 1e4):
        model = adapted(ewc_weight=weight)
        model.fisher = fisher_diagonals(model, [texts()])
        train_steps(model, inputs_for("llama"), steps=10)
        p, q = (f(**texts()).logits.log_softmax(-1) for f in (model.teacher_forward, model))
        distances[weight] = (p.exp() * (p - q)).sum(-1).mean().item()
    assert distances[1e4] < 0.1 * distances[1e-9]


@pytest.mark.parametrize("fused", [True, False])
def test_replay_is_cross_entropy_on_the_texts(fused, monkeypatch):
    model = off_its_start(adapted(preset="self-replay", fused_lm_head=fused, replay_weight=0.5))
    kept = Anchors(**texts())
    model.set_anchors(kept)
    monkeypatch.setattr(Anchors, "draw", lambda self, count: vars(self))
    monkeypatch.setattr(model, "teacher_forward", lambda **_: pytest.fail("the teacher ran"))
    inputs = inputs_for("llama")
    output = model(**inputs)
    logits, losses = model.get_base_model()(**texts()).logits, []
    for row, mask in enumerate(kept.attention_mask):
        for t in range(1, int(mask.sum())):
            losses.append(-logits[row, t - 1].log_softmax(-1)[kept.input_ids[row, t]])
    expected = sum(losses) / len(losses)
    torch.testing.assert_close(output.components["replay"].double(), expected.detach(), rtol=1e-6, atol=0)
    trained = [p for p in model.parameters() if p.requires_grad]
    total = torch.autograd.grad(output.loss, trained)
    task = torch.autograd.grad(model.get_base_model()(**inputs).loss, trained)
    for found, own, other in zip(total, task, torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(found, own + 0.5 * other, rtol=0, atol=1e-6)


def test_missing_texts_and_other_tasks_are_refused():
    with pytest.raises(BALoraError, match="ewc_weight: there is no Fisher information"):
        adapted().train()(**inputs_for("llama"))
    with pytest.raises(BALoraError, match="replay_weight: there are no texts"):
        adapted(preset="self-replay").train()(**inputs_for("llama"))
    for name in ("ewc", "self-replay"):
        with pytest.raises(BALoraError, match="_weight: only for causal language models"):
            adapted("bert", preset=name)
    with pytest.raises(BALoraError, match="ewc_weight: there are no texts"):
        fisher_diagonals(adapted(), [])
    with pytest.raises(BALoraError, match=r"ewc_weight: dora\+reg changes the weights by more"):
        fisher_diagonals(adapted(method="dora+reg"), [texts()])
