"""OPLoRA: the leading singular triplets of a trained weight are those of the base, in memory and saved."""

import pytest
import torch
from peft import PeftModel
from tiny_models import inputs_for, make, train_steps, without_labels

from balora import BALoraConfig, BALoraError, BALoraModel, get_balora_model
from balora.adapters.teacher import lora_layers

K = 3
ADAPTER = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
OFF = {"consistency_weight": 0.0, "diversity_weight": 0.0, "spectral_weight": 0.0}
pytestmark = pytest.mark.filterwarnings("ignore:balora")


def adapted(name: str, **settings) -> BALoraModel:
    torch.manual_seed(0)
    base = make(name).double()
    return get_balora_model(base, BALoraConfig(method="oplora", **{"oplora_k": K, **ADAPTER, **OFF, **settings}))


def trained(name: str, **settings) -> BALoraModel:
    model = adapted(name, **settings)
    for seed in range(3):
        train_steps(model, inputs_for(name, seed=seed), steps=4)
    return model


def check_triplets(before: torch.Tensor, after: torch.Tensor) -> None:
    """Compare the K leading singular triplets of two weights `(out, in)`, from full decompositions."""
    assert (after - before).abs().max() > 1e-4
    u, s, vh = torch.linalg.svd(before)
    u, s, vh = u[:, :K], s[:K], vh[:K]
    torch.testing.assert_close(after @ vh.T, u * s, rtol=0, atol=1e-10)
    torch.testing.assert_close(u.T @ after, s[:, None] * vh, rtol=0, atol=1e-10)
    # Other directions may have grown past the K-th: the triplets are singular triplets still.
    assert (s[:, None] - torch.linalg.svdvals(after)).abs().min(1).values.max() < 1e-10


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_leading_triplets_survive_training_merging_and_saving(name, tmp_path):
    model, base = trained(name), dict(make(name).double().named_modules())
    layers = lora_layers(model)
    for key, layer in layers.items():
        before, delta = base[key].weight, layer.get_delta_weight("default")
        if layer.fan_in_fan_out:
            before, delta = before.T, delta.T
        check_triplets(before.detach(), (before + delta).detach())
    model.save_pretrained(tmp_path)
    inputs = without_labels(inputs_for(name))
    expected = model(**inputs).logits
    stock = PeftModel.from_pretrained(make(name).double(), tmp_path, autocast_adapter_dtype=False).eval()
    torch.testing.assert_close(stock(**inputs).logits, expected, rtol=0, atol=1e-7)
    merged = dict(stock.merge_and_unload().named_modules())
    for key, layer in layers.items():
        before, after = base[key].weight.detach(), merged[key].weight.detach()
        check_triplets(before.T, after.T) if layer.fan_in_fan_out else check_triplets(before, after)
    again = BALoraModel.from_pretrained(make(name).double(), tmp_path)
    torch.testing.assert_close(again(**inputs).logits, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(model.teacher_forward(**inputs).logits, again.teacher_forward(**inputs).logits)


def test_forward_and_gradients_are_those_of_projected_products():
    model, inputs = adapted("llama"), inputs_for("llama")
    train_steps(model, inputs, steps=2)
    model.train()
    stored = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    model(**inputs).loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    plain = get_balora_model(make("llama").double(), BALoraConfig(method="lora", **ADAPTER, **OFF)).train()
    leaves = {name: value.requires_grad_() for name, value in stored.items()}
    projected = {}
    for key, layer in lora_layers(plain).items():
        u, _, vh = torch.linalg.svd(layer.get_base_layer().weight.detach())
        left, right = (torch.eye(len(x)).double() - x[:, :K] @ x[:, :K].T for x in (u, vh.T))
        for side, project in (("A", lambda a, right=right: a @ right), ("B", lambda b, left=left: left @ b)):
            name = f"base_model.model.{key}.lora_{side}.default.weight"
            projected[name] = project(leaves[name])
    loss = torch.func.functional_call(plain, projected, kwargs=inputs).loss
    expected = torch.autograd.grad(loss, leaves.values())
    for name, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-7)


def test_training_resumes_from_a_saved_adapter(tmp_path):
    model, inputs = trained("llama"), inputs_for("llama")
    model.save_pretrained(tmp_path)
    again = BALoraModel.from_pretrained(make("llama").double(), tmp_path, is_trainable=True)
    train_steps(again, inputs, steps=4)
    for key, layer in lora_layers(again).items():
        before = dict(make("llama").double().named_modules())[key].weight.detach()
        check_triplets(before, before + layer.get_delta_weight("default").detach())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"oplora_k": 16}, r"oplora_k: 16 leaves nothing to learn in .*k_proj, whose weight has 16"),
        ({"use_dora": True}, "use_dora: DoRA rescales"),
        ({"target_modules": ["embed_tokens"]}, "oplora splits linear layers only"),
    ],
)
def test_what_would_break_the_guarantee_is_refused(settings, message):
    with pytest.raises(BALoraError, match=message):
        adapted("llama", **settings)
