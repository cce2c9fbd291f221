"""The bias path, compared with a naive second model, on every path of the objective."""

import itertools
import json

import pytest
import torch
import transformers as hf
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import CLASSIFIERS, SEQ2SEQ, inputs_for, make, off_its_start, without_labels
from torch import Tensor

from balora import BALoraConfig, BALoraError, BALoraModel, BALoraTrainer, get_balora_model
from balora.adapters import bias_path
from balora.adapters.bias_path import embedding_length, input_embeddings
from balora.config.published import PRESETS
from balora.losses import counterfactual_direction

OFF = {"consistency_weight": 0.0, "diversity_weight": 0.0, "spectral_weight": 0.0}
ON = {"consistency_weight": 0.7, "diversity_weight": 0.3, "spectral_weight": 0.2, "spectral_k": 3}
ON |= {f"{term}_schedule": "constant" for term in ("consistency", "diversity", "spectral")}
EXACT = {"rtol": 0, "atol": 1e-10}
pytestmark = pytest.mark.filterwarnings("ignore:balora", "ignore:fan_in_fan_out", "ignore:.*no current CUDA")
NAMES = ["llama", "llama-tied", "gemma2", "gpt2", "t5", "bart", "t5gemma", "bert", "roberta", "llama-classifier"]


def adapted(name: str = "llama", dtype: torch.dtype = torch.float64, dropout: float = 0.0, **settings) -> BALoraModel:
    """Build a model with a perturbed adapter, deterministic for given settings."""
    torch.manual_seed(0)
    fixed = {"method": "lora+reg", "r": 4, "lora_alpha": 8, "target_modules": "all-linear", "bias_path_weight": 0.5}
    model = get_balora_model(make(name).to(dtype), BALoraConfig(**{**fixed, **OFF, **settings}))
    return off_its_start(model, dropout)


def gradients(model: BALoraModel) -> dict[str, Tensor]:
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def backward(model: BALoraModel, inputs: dict, **counts) -> dict[str, Tensor]:
    model.zero_grad()
    model(**inputs, **counts).loss.backward()
    return gradients(model)


def term(model: BALoraModel, inputs: dict) -> float:
    return model(**inputs).components["bias_path"].item()


def b_of(model: BALoraModel) -> Tensor:
    return model.lora_bias_path().detach()


# ---------------------------------------------------------------------- value and gradient


def naive_f(name: str, model: BALoraModel, inputs: dict, b: Tensor) -> list[Tensor]:
    """Compute f of each row, with b added to the embedding matrix itself."""
    base = model.get_base_model()
    layer = input_embeddings(base)
    path = next(key for key, module in base.named_modules() if module is layer)
    scale = (layer(torch.tensor([5])).norm() / layer.weight[5].norm()).item()
    given = {**without_labels(inputs), "output_hidden_states": True}
    weight = {f"{path}.weight": layer.weight.detach() + b / scale}
    output = torch.func.functional_call(base, weight, (), given, tie_weights=False)
    last = (output.decoder_hidden_states if name in SEQ2SEQ else output.hidden_states)[-1]
    if name == "bert":
        return list(torch.tanh(base.bert.pooler.dense(last[:, 0])))
    if name == "t5":
        last = last / 32**0.5  # T5 scales hidden states before its tied head
    if name == "roberta":
        return list(last[:, 0])
    if name == "llama-classifier":  # no row ends in the padding id, and there is no right padding
        return list(last[:, -1])
    vectors = []
    for row in range(len(last)):
        kept = inputs["labels"][row] != -100 if name in SEQ2SEQ else inputs["attention_mask"][row] == 1
        tokens = [last[row, t] for t in range(last.shape[1]) if kept[t]]
        vectors.append(sum(tokens) / len(tokens))
    return vectors


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradients_equal_naive_computation(name):
    inputs = inputs_for(name)
    model = adapted(name, bias_path_mode="minimised", bias_path_radius=0.4, bias_path_reduction="sum")
    output = model(**inputs)
    b = b_of(model).requires_grad_()
    pairs = zip(naive_f(name, model, inputs, b), naive_f(name, model, inputs, 0 * b_of(model)), strict=True)
    squares = [(shifted - plain).square().sum() for shifted, plain in pairs]
    if name in CLASSIFIERS:
        counts = [1] * 4
    else:
        counts = (inputs["labels"] != -100 if name in SEQ2SEQ else inputs["attention_mask"] == 1).sum(1).tolist()
    naive = sum(c * square for c, square in zip(counts, squares, strict=True)) / sum(counts)
    torch.testing.assert_close(output.components["bias_path"], naive.detach(), rtol=1e-9, atol=0)
    assert naive > 1e-6

    task = adapted(name, bias_path_weight=0.0)
    without = backward(task, inputs)
    output.loss.backward()
    parameters = {key: p for key, p in model.named_parameters() if p.requires_grad and "lora_bias_path" not in key}
    expected = torch.autograd.grad(0.5 * naive, [*parameters.values(), b], allow_unused=True)
    for (key, parameter), gradient in zip(parameters.items(), expected, strict=False):
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        # Some models compute norms in float32.
        scale = max(gradient.abs().max().item(), without[key].abs().max().item())
        torch.testing.assert_close(parameter.grad - without[key], gradient, rtol=1e-6, atol=1e-6 * scale, msg=key)
    epsilon = model.lora_bias_path.radius
    torch.testing.assert_close(model.lora_bias_path.direction.grad, epsilon * expected[-1], rtol=1e-7, atol=1e-12)


def test_mean_reduction_is_sum_divided_by_width():
    inputs = inputs_for("llama")
    by_sum, by_mean = (term(adapted(bias_path_reduction=how), inputs) for how in ("sum", "mean"))
    assert by_mean == pytest.approx(by_sum / 32)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bart", "t5"])
def test_radius_is_relative_to_scaled_embedding_length(name):
    model = adapted(name, bias_path_radius=0.25)
    layer = input_embeddings(model.get_base_model())
    lengths = [layer(torch.tensor([i])).double().norm().item() ** 2 for i in range(97)]
    assert b_of(model).norm().item() == pytest.approx(0.25 * (sum(lengths) / 97) ** 0.5)
    assert embedding_length(layer) == pytest.approx((sum(lengths) / 97) ** 0.5)


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_inputs_embeds_are_shifted_like_embedded_ids(name):
    inputs, model = inputs_for(name), adapted(name)
    given = {key: value for key, value in inputs.items() if key != "input_ids"}
    given["inputs_embeds"] = input_embeddings(model.get_base_model())(inputs["input_ids"]).detach()
    assert term(model, given) == pytest.approx(term(model, inputs), rel=1e-12)


# ---------------------------------------------------------------------- paths of the objective


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_hidden_state_and_logit_paths_give_equal_objective(name, direction):
    inputs, results = inputs_for(name), {}
    for fused in (True, False):
        model = adapted(name, **ON, consistency_direction=direction, fused_lm_head=fused)
        output = model(**inputs)
        results[fused] = output.components, backward(model, inputs)
        assert list(output.components) == ["task", "consistency", "diversity", "spectral", "bias_path"]
        weighed = sum(
            0.5 * v if k == "bias_path" else ON.get(f"{k}_weight", 1) * v for k, v in output.components.items()
        )
        torch.testing.assert_close(output.loss.double(), weighed.double(), rtol=1e-6, atol=0)
    for key, value in results[False][0].items():
        torch.testing.assert_close(results[True][0][key].double(), value.double(), rtol=1e-6, atol=0, msg=key)
    assert "lora_bias_path.direction" in results[True][1]
    for key, gradient in results[False][1].items():
        torch.testing.assert_close(results[True][1][key], gradient, rtol=1e-5, atol=1e-7, msg=key)


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta", "llama-classifier"])
def test_teacher_cache_does_not_change_classification(name):
    inputs = inputs_for(name)
    cached, run = (backward(adapted(name, **ON, teacher_cache_mb=mb), inputs) for mb in (64, 0))
    assert cached.keys() == run.keys()
    for key, gradient in run.items():
        torch.testing.assert_close(cached[key], gradient, rtol=1e-9, atol=1e-12, msg=key)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_gradient_checkpointing_gives_equal_gradients(name):
    inputs, results = inputs_for(name), []
    for how in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        model = adapted(name, dropout=0.3, **ON)
        if how is not None:
            model.get_base_model().gradient_checkpointing_enable(how)
            model.enable_input_require_grads()
        torch.manual_seed(1)
        results.append(backward(model, inputs))
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        for key, gradient in results[0].items():
            torch.testing.assert_close(other[key], gradient, rtol=1e-9, atol=1e-12, msg=key)


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_accumulated_micro_batches_give_the_full_batch_gradient(name):
    """Rows of unequal lengths, split in different ways."""
    inputs, model = inputs_for(name), adapted(name, bias_path_weight=5.0)
    counts = model.counts_of(inputs, inputs["labels"])
    counted = {"num_items_in_batch": counts.items, "num_tokens_in_batch": counts.tokens}
    whole = backward(model, inputs, **counted)
    for parts in ([slice(0, 1), slice(1, 4)], [slice(i, i + 1) for i in range(4)]):
        model.zero_grad()
        for part in parts:
            model(**{key: value[part] for key, value in inputs.items()}, **counted).loss.backward()
        for key, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, whole[key], rtol=1e-5, atol=1e-6, msg=key)  # norms are in float32


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_autocast_is_close_to_float32(name):
    inputs, model = inputs_for(name), adapted(name, torch.float32, bias_path_radius=0.5)
    expected = term(model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs)
    output.loss.backward()
    assert output.components["bias_path"].item() == pytest.approx(expected, rel=0.1)
    assert model.lora_bias_path.direction.grad.abs().max() > 0


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_router_loss_of_a_mixture_is_counted_once(fused):
    settings = {"target_modules": ["q_proj", "v_proj"], "fused_lm_head": fused}
    inputs = inputs_for("mixtral")
    with_path, without = (
        adapted("mixtral", torch.float32, bias_path_weight=weight, **settings)(**inputs) for weight in (0.5, 0.0)
    )
    assert with_path.components["router"] == without.components["router"]
    torch.testing.assert_close(with_path.loss, without.loss + 0.5 * with_path.components["bias_path"])


def test_combines_with_other_methods():
    inputs = inputs_for("llama")
    for settings in ({"method": "ba-lora"}, {"method": "dora+reg"}, {"method": "lora-fa+reg"}):
        components = adapted(**settings, **ON)(**inputs).components
        assert components["bias_path"] > 0
        assert components["consistency"] > 0
    model = adapted(method="selora+reg", sentence_dim=6, target_modules=None)
    s = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    output = model(**inputs, sentence_embeds=s)
    output.loss.backward()
    assert set(output.components) == {"task", "semantic", "bias_path"}
    assert term(model, {**inputs, "sentence_embeds": s.roll(1, 0)}) != output.components["bias_path"].item()


# ---------------------------------------------------------------------- dropout and sampling


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_both_passes_use_the_same_dropout_masks(name, rate):
    """With b close to 0, only dropout could make the passes differ."""
    model = adapted(name, dropout=0.5, bias_path_radius=1e-9, bias_path_sample_rate=rate, lora_dropout=0.5)
    torch.manual_seed(1)
    assert term(model, inputs_for(name)) < 1e-12


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_random_state_is_as_without_bias_path(name):
    after = []
    for weight in (0.5, 0.0):
        model = adapted(name, dropout=0.5, bias_path_weight=weight)
        model(**inputs_for(name))  # finds out what the model is like
        torch.manual_seed(1)
        task = model(**inputs_for(name)).components["task"]
        after.append((task.item(), torch.rand(()).item()))
    assert after[0] == after[1]


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_sampled_rows_give_an_unbiased_estimate(name, monkeypatch):
    inputs, model, terms = inputs_for(name), adapted(name, bias_path_sample_rate=0.5), []
    whole = term(adapted(name), inputs)
    for pair in itertools.combinations(range(4), 2):
        picked = torch.tensor([row in pair for row in range(4)])
        monkeypatch.setattr(bias_path, "pick_examples", lambda count, rate, picked=picked: picked)
        terms.append(term(model, inputs))
    assert sum(terms) / 6 == pytest.approx(whole, rel=1e-6)
    assert min(terms) < 0.99 * whole


@pytest.mark.parametrize(("dropout", "rate", "sizes"), [(0.0, 0.5, [4, 2]), (0.4, 0.5, [4, 2, 2]), (0.4, 1.0, [4, 4])])
def test_only_sampled_rows_under_dropout_need_two_extra_passes(dropout, rate, sizes):
    """Their masks of the full batch's pass cannot be redrawn."""
    model, inputs, seen = adapted("bert", dropout=dropout, bias_path_sample_rate=rate), inputs_for("bert"), []
    model(**inputs)  # finds out what the model is like
    handle = model.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    model(**inputs)
    handle.remove()
    assert seen == sizes


def test_batch_without_picked_rows_gives_a_differentiable_zero():
    model = adapted(bias_path_sample_rate=0.01)
    output = model(**inputs_for("llama"))
    output.loss.backward()
    assert output.components["bias_path"] == 0
    assert not model.lora_bias_path.direction.grad.any()


# ---------------------------------------------------------------------- training of b


def only(model: BALoraModel, part: str) -> list[torch.nn.Parameter]:
    return [p for key, p in model.named_parameters() if p.requires_grad and part in key]


def run(model: BALoraModel, part: str, steps: int, lr: float) -> tuple[float, float]:
    """Return the term before and after optimizing it alone in the parameters whose name contains `part`."""
    inputs = inputs_for("llama")
    inputs["labels"][:] = -100  # no task
    optimizer, values = torch.optim.Adam(only(model, part), lr=lr, betas=(0.5, 0.9)), []
    for _ in range(steps):
        model.zero_grad()
        output = model(**inputs)
        values.append(output.components["bias_path"].item())
        output.loss.backward()
        optimizer.step()
    return values[0], values[-1]


def test_adversarial_b_stays_on_its_sphere_and_raises_the_loss():
    model = adapted()
    epsilon, start = model.lora_bias_path.radius, b_of(model)
    before, after = run(model, "lora_bias_path", steps=15, lr=0.05)
    assert after > 1.2 * before
    assert b_of(model).norm().item() == pytest.approx(epsilon)
    assert torch.cosine_similarity(start, b_of(model), dim=0) < 0.9


def test_adapter_lowers_the_term_that_b_raises():
    model = adapted()
    before, after = run(model, "lora_A", steps=12, lr=0.02)
    assert after < 0.8 * before
    both = adapted()
    run(both, "lora_", steps=5, lr=0.02)
    assert b_of(both).norm().item() == pytest.approx(both.lora_bias_path.radius)


def test_only_the_gradient_of_b_is_reversed():
    inputs = inputs_for("llama")
    against, along = (backward(adapted(bias_path_mode=mode), inputs) for mode in ("adversarial", "minimised"))
    key = "lora_bias_path.direction"
    u = adapted().lora_bias_path.direction.detach()
    on_sphere = along[key] - (along[key] @ u) * u
    torch.testing.assert_close(against[key], -on_sphere, rtol=1e-6, atol=1e-12)
    for other in against.keys() - {key}:
        torch.testing.assert_close(against[other], along[other], **EXACT)


def test_minimised_b_collapses_to_zero():
    model, inputs = adapted(bias_path_mode="minimised"), inputs_for("llama")
    inputs["labels"][:] = -100  # no task
    optimizer = torch.optim.LBFGS(only(model, "lora_bias_path"), lr=1, max_iter=25, line_search_fn="strong_wolfe")
    before = term(model, inputs)

    def closure() -> Tensor:
        model.zero_grad()
        loss = 1e4 * model(**inputs).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    assert b_of(model).norm() < 0.3 * model.lora_bias_path.radius
    assert term(model, inputs) < 1e-3 * before


def test_counterfactual_direction_is_set_and_fixed(tmp_path):
    inputs = inputs_for("llama")
    model = adapted(bias_path_mode="counterfactual")
    with pytest.raises(BALoraError, match=r"counterfactual has no direction yet; call model\.set_bias_direction"):
        model(**inputs)
    layer = model.get_input_embeddings()
    direction = counterfactual_direction(layer(torch.tensor([7, 8, 9])), layer(torch.tensor([17, 18, 19])))
    model.set_bias_direction(3 * direction)
    torch.testing.assert_close(b_of(model), model.lora_bias_path.radius * direction)
    backward(model, inputs)
    assert not [key for key in gradients(model) if "lora_bias_path" in key]
    assert "lora_bias_path.direction" not in dict(model.named_parameters())
    model.save_pretrained(tmp_path)
    again = BALoraModel.from_pretrained(make("llama").double(), tmp_path, is_trainable=True)
    assert torch.equal(b_of(again), b_of(model))
    with pytest.raises(BALoraError, match=r"a finite, nonzero vector of 32 entries.*shape \(31,\)"):
        model.set_bias_direction(direction[1:])
    with pytest.raises(BALoraError, match="learns its direction"):
        adapted().set_bias_direction(direction)


# ---------------------------------------------------------------------- saving and resuming


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("method", ["lora+reg", "ba-lora"])
def test_stock_peft_loads_the_saved_adapter(name, method, tmp_path):
    model, inputs = adapted(name, method=method).eval(), without_labels(inputs_for(name))
    model.save_pretrained(tmp_path)
    expected = model(**inputs).logits
    stock = PeftModel.from_pretrained(make(name).double(), tmp_path).eval()
    torch.testing.assert_close(stock(**inputs).logits, expected, **EXACT)
    frozen = BALoraModel.from_pretrained(make(name).double(), tmp_path)
    assert not any(p.requires_grad for p in frozen.parameters())
    torch.testing.assert_close(frozen(**inputs).logits, expected, **EXACT)
    torch.testing.assert_close(model.merge_and_unload()(**inputs).logits, expected, **EXACT)


def test_b_is_saved_in_a_separate_file(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path)
    assert not any("bias_path" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    assert torch.equal(load_file(tmp_path / "bias_path.safetensors")["direction"], model.lora_bias_path.direction)
    adapted(bias_path_weight=0.0).save_pretrained(tmp_path / "off")
    assert not (tmp_path / "off" / "bias_path.safetensors").exists()


def rows() -> Dataset:
    ids = torch.randint(5, 20, (8, 8), generator=torch.Generator().manual_seed(0)).tolist()
    return Dataset.from_list(
        [
            {"input_ids": x, "attention_mask": [1] * 8, "labels": x[: 4 + i % 4] + [-100] * (4 - i % 4)}
            for i, x in enumerate(ids)
        ]
    )


def trainer_for(directory, model: BALoraModel, **settings) -> BALoraTrainer:
    fixed = {"per_device_train_batch_size": 4, "logging_steps": 1, "report_to": "none", "disable_tqdm": True}
    fixed |= {"use_cpu": True, "lr_scheduler_type": "constant", "learning_rate": 1e-2, "save_strategy": "no"}
    args = hf.TrainingArguments(str(directory), **{**fixed, **settings})
    return BALoraTrainer(model=model, args=args, train_dataset=rows())


def test_resuming_is_exact(tmp_path):
    trained, saved = {}, {"save_strategy": "steps", "save_steps": 2}
    for name, steps, checkpoint in (("whole", 4, None), ("half", 2, None), ("half", 4, "checkpoint-2")):
        torch.manual_seed(3)
        model = adapted(dtype=torch.float32, bias_path_sample_rate=0.5, **ON)
        resumed = None if checkpoint is None else str(tmp_path / name / checkpoint)
        trainer = trainer_for(tmp_path / name, model, max_steps=steps, **saved)
        trainer.drift_batches = 0
        trainer.train(resume_from_checkpoint=resumed)
        trained[name] = {key: value.clone() for key, value in model.state_dict().items() if "lora_" in key}
    start = adapted(dtype=torch.float32).lora_bias_path.direction
    assert not torch.equal(trained["whole"]["lora_bias_path.direction"], start)
    for key, value in trained["whole"].items():
        assert torch.equal(value, trained["half"][key]), key


def test_term_and_weight_are_logged(tmp_path):
    trainer = trainer_for(tmp_path, adapted(), max_steps=1)
    trainer.train()
    log = next(row for row in trainer.state.log_history if "loss_task" in row)
    assert log["loss_bias_path"] > 0
    assert log["weight_bias_path"] == 0.5


def test_folder_without_b_loads_for_inference_only(tmp_path):
    adapted().save_pretrained(tmp_path)
    (tmp_path / "bias_path.safetensors").unlink()
    BALoraModel.from_pretrained(make("llama").double(), tmp_path)
    with pytest.raises(BALoraError, match=r"bias_path.safetensors is missing, .* set bias_path_weight to 0"):
        BALoraModel.from_pretrained(make("llama").double(), tmp_path, is_trainable=True)
    settings = json.loads((tmp_path / "balora_config.json").read_text())
    (tmp_path / "balora_config.json").write_text(json.dumps({**settings, "bias_path_weight": 0.0}))
    assert BALoraModel.from_pretrained(make("llama").double(), tmp_path, is_trainable=True).lora_bias_path is None


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bias_path_weight": -1.0}, "bias_path_weight: -1.0 is out of range"),
        ({"bias_path_mode": "free"}, "bias_path_mode: unknown 'free'; use adversarial, minimised or counterfactual"),
        ({"bias_path_radius": 0.0}, "bias_path_radius: 0.0 is out of range"),
        ({"bias_path_radius": float("inf")}, "bias_path_radius: inf is not a finite number"),
        ({"bias_path_sample_rate": 0.0}, "bias_path_sample_rate: 0.0 is out of range"),
        ({"bias_path_reduction": "max"}, "bias_path_reduction: unknown 'max'; use mean or sum"),
        (
            {"method": "selora+reg", "sentence_dim": 3, "bias_path_weight": 0.1, "bias_path_sample_rate": 0.5},
            "bias_path_sample_rate: 0.5 would leave rows out, but the layers hold a sentence embedding",
        ),
    ],
    ids=str,
)
def test_invalid_settings_raise(settings, message):
    with pytest.raises(BALoraError, match=message):
        BALoraConfig(**settings)


@pytest.mark.parametrize("name", ["ba-lora", "se-lora", "structural"])
def test_presets_train(name):
    torch.manual_seed(0)
    extra = {"sentence_dim": 6} if name == "se-lora" else {}
    model = get_balora_model(make("llama"), BALoraConfig(**PRESETS[name], r=4, **extra)).train()
    given = {"sentence_embeds": torch.randn(4, 6)} if extra else {}
    model.set_progress(0.5)
    components = model(**inputs_for("llama"), **given).components
    expected = {
        "ba-lora": {"task", "consistency", "diversity", "spectral"},
        "se-lora": {"task", "semantic"},
        "structural": {"task", "consistency", "bias_path"},
    }
    assert set(components) == expected[name]
