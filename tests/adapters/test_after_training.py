"""Changes of what was learned, after training: the merged weights by definition in float64, loaded by stock PEFT."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.intruders import reduce_intruder_dimension
from tiny_models import inputs_for, make, trained, without_labels

from balora import BALoraConfig, BALoraError, BALoraModel
from balora.adapters.after_training import change_after_training, check_after_training, reduce_intruders
from balora.adapters.teacher import lora_layers

pytestmark = pytest.mark.filterwarnings("ignore:balora")


def changes_of(model, name: str) -> dict[str, torch.Tensor]:
    """Return ΔW of each adapted weight as stored, from the merged model."""
    pretrained, merged = make(name).state_dict(), model.state_dict()
    return {key: merged[key].double() - value.double() for key, value in pretrained.items()}


@pytest.mark.parametrize("change", ["intruders", "trim", "dare"])
@pytest.mark.parametrize(
    ("name", "method"),
    [*(("llama", method) for method in ("lora", "rslora", "pissa", "oplora")), ("gpt2", "pissa")],
)
def test_stock_peft_loads_what_was_changed(name, method, change, tmp_path):
    own = {"oplora_k": 3} if method == "oplora" else {}
    inputs = without_labels(inputs_for(name))
    model = trained(name, method, consistency_weight=0.0, diversity_weight=0.0, spectral_weight=0.0, **own)
    model.save_pretrained(tmp_path / "trained")
    before = changes_of(PeftModel.from_pretrained(make(name), tmp_path / "trained").merge_and_unload(), name)
    change_after_training(model, change, 0.3, seed=5)
    model.save_pretrained(tmp_path / "changed")
    stock = PeftModel.from_pretrained(make(name), tmp_path / "changed").eval()
    torch.testing.assert_close(model.eval()(**inputs).logits, stock(**inputs).logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.teacher_forward(**inputs).logits, make(name)(**inputs).logits, rtol=0, atol=1e-5)
    again = BALoraModel.from_pretrained(make(name), tmp_path / "changed")
    torch.testing.assert_close(again(**inputs).logits, stock(**inputs).logits, rtol=0, atol=1e-5)
    after = changes_of(stock.merge_and_unload(), name)
    assert "After training by `" in (tmp_path / "changed" / "README.md").read_text()
    assert again.balora_config.method == ("rslora+reg" if method == "rslora" else "lora+reg")
    moved = [f"{key}.weight" for key in lora_layers(model)]
    for key in moved:
        scale = before[key].abs().max().item()
        assert scale > 1e-5
        if change == "intruders":
            base = dict(make(name).named_parameters())[key].detach().double()
            turned = (lambda x: x.T) if name == "gpt2" else (lambda x: x)
            expected = turned(naive_intruders(turned(base), turned(before[key]), 0.3))
        elif change == "trim":
            count = int(0.3 * before[key].numel())
            expected = torch.zeros_like(before[key]).flatten()
            for place in sorted(range(expected.numel()), key=lambda i: -abs(before[key].flatten()[i].item()))[:count]:
                expected[place] = before[key].flatten()[place]
            expected = expected.view_as(before[key])
            wrong = (after[key] - expected).abs() > 1e-5 * scale + 1e-6
            assert wrong.float().mean() < 0.01, key  # entries that are equal up to rounding may change places
            continue
        else:
            kept = after[key].abs() > 1e-6
            expected = torch.where(kept, before[key] / 0.3, 0.0)
            assert 0.2 < kept.double().mean() < 0.4
        torch.testing.assert_close(
            after[key], expected, rtol=0, atol=5e-5 if change == "intruders" else 2e-6 + 1e-4 * scale
        )


def naive_intruders(weight: torch.Tensor, change: torch.Tensor, share: float) -> torch.Tensor:
    u0 = torch.linalg.svd(weight)[0]
    u, s, vh = torch.linalg.svd(weight + change)
    result = change.clone()
    for i in range(min(10, len(s))):
        if max(abs(torch.dot(u[:, i], u0[:, j]).item()) for j in range(u0.shape[1])) < 0.5:
            result -= (1 - share) * s[i] * torch.outer(u[:, i], vh[i])
    return result


def test_a_planted_intruder_is_found_and_removed():
    generator = torch.Generator().manual_seed(0)
    weight = torch.diag(torch.arange(24.0, 0, -1).double())
    direction = torch.ones(24, 1, dtype=torch.float64) / 24**0.5
    other = torch.randn(24, 1, generator=generator, dtype=torch.float64)
    change = 200 * direction @ (other / other.norm()).T
    left = weight + reduce_intruders(weight, change, 0.0)
    assert torch.linalg.svdvals(left)[0] < 40 < torch.linalg.svdvals(weight + change)[0]
    assert torch.equal(reduce_intruders(weight, change, 1.0), change)
    small = 1e-3 * change
    torch.testing.assert_close(reduce_intruders(weight, small, 0.0), small)


def test_intruders_are_those_of_peft():
    """At full rank, since PEFT cuts the result down to the adapter's rank."""
    torch.manual_seed(0)
    config = LoraConfig(r=32, lora_alpha=32, target_modules=["q_proj"], init_lora_weights=False)
    theirs = get_peft_model(make("llama").double(), config)
    layer = theirs.base_model.model.model.layers[0].self_attn.q_proj
    delta = layer.get_delta_weight("default").detach()
    reduce_intruder_dimension(theirs, mitigation_lambda=0.25, logging_sink=None)
    found = reduce_intruders(layer.get_base_layer().weight.detach(), delta, 0.25)
    assert (found - delta).abs().max() > 1e-4
    torch.testing.assert_close(found, layer.get_delta_weight("intruder_reduced").detach())


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("lora", {"trim": 0.2, "dare": 0.2}, "does not name one change; use one of intruders, trim, dare"),
        ("lora", {"ties": 0.2}, "does not name one change"),
        ("lora", {"trim": 0.0}, "trim: 0.0 is not a share to keep"),
        ("lora", {"intruders": 1.0}, "intruders: 1.0 is not a share"),
        ("dora", {"trim": 0.2}, "after_training: method 'dora' cannot be averaged"),
    ],
)
def test_what_cannot_be_changed_is_refused(method, changes, message):
    with pytest.raises(BALoraError, match=message):
        check_after_training(BALoraConfig(method=method, task_type="CAUSAL_LM"), changes)
    check_after_training(BALoraConfig(method=method, task_type="CAUSAL_LM"), {})


def test_embeddings_and_merged_adapters_are_refused():
    model = trained("llama", "lora", target_modules=["embed_tokens"])
    with pytest.raises(BALoraError, match=r"after_training: model\.embed_tokens is a Embedding"):
        change_after_training(model, "trim", 0.5)
    model = trained("llama", "lora")
    model.merge_adapter()
    with pytest.raises(BALoraError, match="call unmerge_adapter"):
        change_after_training(model, "trim", 0.5)
