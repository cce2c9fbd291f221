"""Self-anchors: sampling, the term in loss and gradient, and its effect on drift."""

import json

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
import yaml
from tiny_models import inputs_for, make, off_its_start, word_tokenizer

from balora import BALoraConfig, BALoraError, BALoraModel, get_balora_model
from balora.anchors import Anchors, sample_anchors, texts_as_anchors
from balora.cli import main
from balora.report import read_results

OFF = {"consistency_weight": 0.0, "diversity_weight": 0.0, "spectral_weight": 0.0}
pytestmark = pytest.mark.filterwarnings("ignore:balora", "ignore:fan_in_fan_out")


def small(seed: int = 0) -> hf.LlamaForCausalLM:
    """Build a model over twelve tokens with a peaked distribution."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = hf.LlamaForCausalLM(
        hf.LlamaConfig(**sizes, vocab_size=12, max_position_embeddings=32, bos_token_id=1, eos_token_id=2)
    )
    model.lm_head.weight.data *= 15
    return model.eval()


def tokenizer():
    made = word_tokenizer()
    made.bos_token_id, made.eos_token_id, made.model_max_length = 1, 2, 32
    return made


# ---------------------------------------------------------------------- sampling


def test_first_tokens_follow_the_models_distribution():
    model, count = small(), 4000
    anchors = sample_anchors(model, tokenizer(), count=count, length=3, batch_size=500)
    p = model(torch.tensor([[1]])).logits[0, -1].softmax(-1)
    assert p.max() < 0.9
    drawn = torch.bincount(anchors.input_ids[:, 1], minlength=12) / count
    assert ((drawn - p).abs() < 5 * (p * (1 - p) / count).sqrt() + 1e-3).all()


def test_samples_depend_on_the_seed_only(tmp_path):
    model, how = small(), {"count": 9, "length": 8, "batch_size": 4}
    torch.manual_seed(3)
    first = sample_anchors(model, tokenizer(), **how)
    after = torch.rand(())
    torch.manual_seed(3)
    assert torch.rand(()) == after
    again = sample_anchors(model, tokenizer(), **how, cache_dir=tmp_path)
    other = sample_anchors(model, tokenizer(), **how, seed=1, cache_dir=tmp_path)
    assert torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.input_ids, other.input_ids)
    assert len(list(tmp_path.iterdir())) == 2
    model.generate = None  # the cached file is read
    kept = sample_anchors(model, tokenizer(), **how, cache_dir=tmp_path)
    assert torch.equal(kept.input_ids, first.input_ids)
    sample_anchors(small(seed=1), tokenizer(), **how, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3  # another model, another file


def test_an_interrupted_call_keeps_its_batches_and_resumes_to_the_same_samples(tmp_path, monkeypatch):
    model, how = small(), {"count": 13, "length": 12, "batch_size": 4, "prompts": ["a", "b c"]}
    whole = sample_anchors(model, tokenizer(), **how)
    generate, sampled = model.generate, []

    def stop_in_the_third(**inputs):
        if len(sampled) == 2:
            raise KeyboardInterrupt
        sampled.append(len(inputs["input_ids"]))
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", stop_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        sample_anchors(model, tokenizer(), **how, cache_dir=tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    rest = []
    monkeypatch.setattr(
        model, "generate", lambda **inputs: rest.append(len(inputs["input_ids"])) or generate(**inputs)
    )
    resumed = sample_anchors(model, tokenizer(), **how, cache_dir=tmp_path)
    assert sum(sampled) + sum(rest) == 13
    assert torch.equal(resumed.input_ids, whole.input_ids)
    assert torch.equal(resumed.attention_mask, whole.attention_mask)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_text_that_ends_early_is_padded():
    anchors = sample_anchors(small(), tokenizer(), count=200, length=12, batch_size=50)
    lengths = anchors.attention_mask.sum(1)
    assert lengths.min() < 12 == lengths.max()
    for ids, mask, length in zip(anchors.input_ids, anchors.attention_mask, lengths, strict=True):
        assert ids[0] == 1
        assert mask[:length].all()
        assert not mask[length:].any()
        assert 2 not in ids[1 : length - 1]
        assert ids[length - 1] == 2 or length == 12


def test_prompts_are_continued_in_turn():
    words = word_tokenizer()
    model = make("llama")
    prompts = ["a b c", "d", "a"]
    anchors = sample_anchors(model, words, count=7, length=10, prompts=prompts)
    starts = [words(prompt)["input_ids"][:-1] for prompt in prompts]  # without the end-of-text token
    found = sorted(tuple(row) for row in anchors.input_ids[:, :1].tolist())
    assert found == sorted([(starts[i % 3][0],) for i in range(7)])
    assert sum(row[:3].tolist() == starts[0] for row in anchors.input_ids) >= 3


def test_anchors_of_your_own_texts():
    words = word_tokenizer()
    anchors = texts_as_anchors(["a b c d", "a"], words, length=3)
    assert anchors.input_ids.tolist() == [words("a b c d", truncation=True, max_length=3)["input_ids"], [3, 1, 0]]
    assert anchors.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]


# ---------------------------------------------------------------------- the term


def adapted(name: str, **settings) -> BALoraModel:
    torch.manual_seed(0)
    fixed = {"method": "ba-lora", "r": 4, "lora_alpha": 8, "target_modules": "all-linear", "anchor_weight": 0.7}
    model = get_balora_model(make(name).double(), BALoraConfig(**{**fixed, **OFF, **settings}))
    model.set_anchors(anchors_for(name))
    return off_its_start(model)


def anchors_for(name: str) -> Anchors:
    given = inputs_for(name)
    return Anchors(given["input_ids"].flip(0), given["attention_mask"].flip(0))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "llama-tied"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("method", ["lora+reg", "ba-lora"])
def test_term_is_the_divergence_on_the_drawn_anchors(name, fused, method):
    model, inputs = adapted(name, fused_lm_head=fused, method=method), inputs_for(name)
    torch.manual_seed(4)
    output = model(**inputs)
    output.loss.backward()
    found = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}

    torch.manual_seed(4)
    drawn = anchors_for(name).draw(2)  # of four sequences
    mask = drawn["attention_mask"].bool()
    with torch.no_grad():
        p = make(name).double().eval()(**drawn).logits[mask].log_softmax(-1)
    q = model(**drawn).logits[mask].log_softmax(-1)
    naive = F.kl_div(q, p, log_target=True, reduction="sum") / mask.sum()
    torch.testing.assert_close(output.components["anchor"], naive.detach().to(output.components["anchor"]))
    assert naive > 1e-4
    model.zero_grad()
    (0.7 * naive).backward()
    by_hand = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    task = adapted(name, fused_lm_head=fused, method=method, anchor_weight=0.0)
    task(**inputs).loss.backward()
    for key, parameter in task.named_parameters():
        if parameter.grad is not None:
            expected = parameter.grad + by_hand[key]
            torch.testing.assert_close(found[key], expected, rtol=1e-5, atol=1e-6 * expected.abs().max(), msg=key)


@pytest.mark.parametrize("fused", [True, False])
def test_micro_batches_are_weighted_by_their_share(fused):
    model, inputs = adapted("llama", fused_lm_head=fused), inputs_for("llama")
    model.set_anchors(Anchors(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long)))
    counts = model.counts_of(inputs, inputs["labels"])
    whole = model(**inputs).components["anchor"]
    parts = [{key: value[rows] for key, value in inputs.items()} for rows in (slice(0, 1), slice(1, 4))]
    given = {"num_items_in_batch": counts.items, "num_tokens_in_batch": counts.tokens}
    added = sum(model(**part, **given).components["anchor"] for part in parts)
    torch.testing.assert_close(added, whole)


def test_term_of_an_untrained_adapter_is_zero_and_adds_to_the_loss():
    model = get_balora_model(make("llama"), BALoraConfig(r=4, target_modules="all-linear", anchor_weight=0.3))
    model.set_anchors(anchors_for("llama"))
    output = model.train()(**inputs_for("llama"))
    assert output.components["anchor"].abs() < 1e-6
    assert set(output.components) == {"task", "consistency", "diversity", "spectral", "anchor"}
    assert model.current_weights()["anchor"] == 0.3


def test_gradient_checkpointing_gives_equal_gradients():
    gradients = []
    for how in (None, {"use_reentrant": False}):
        model = adapted("llama")
        if how:
            model.get_base_model().gradient_checkpointing_enable(how)
            model.enable_input_require_grads()
        torch.manual_seed(4)
        model(**inputs_for("llama")).loss.backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-9, atol=1e-12, msg=key)


def test_anchors_reduce_divergence_on_unseen_samples():
    """Measured on samples that were not anchors, after sixty steps on one sentence."""
    drift = {}
    fresh = sample_anchors(small(), tokenizer(), count=64, length=12, seed=9)
    for weight in (0.0, 2.0):
        base = small()
        anchors = sample_anchors(base, tokenizer(), count=128, length=12)
        torch.manual_seed(0)
        model = get_balora_model(
            base, BALoraConfig(method="lora+reg", r=4, target_modules="all-linear", anchor_weight=weight, **OFF)
        ).train()
        model.set_anchors(anchors)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        ids = torch.tensor([[1, 9, 8, 7, 6, 5, 4]] * 4)
        for _ in range(60):
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        mask = fresh.attention_mask.bool()
        given = {"input_ids": fresh.input_ids, "attention_mask": fresh.attention_mask}
        with torch.no_grad():
            q, p = (of(**given).logits[mask].log_softmax(-1) for of in (model.eval(), small()))
        drift[weight] = F.kl_div(q, p, log_target=True, reduction="batchmean").item()
        assert loss < 8
    assert drift[2.0] < 0.5 * drift[0.0]


# ---------------------------------------------------------------------- recipes and errors


@pytest.mark.slow
def test_recipe_samples_anchors_once_and_they_reduce_drift(tmp_path, data_dir, models_dir, monkeypatch, capsys):
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path / "cache"))
    settings = {
        "output_dir": str(tmp_path / "out"),
        "methods": ["lora", "lora+anchors", "ba-lora+anchors+swaps", "own texts"],
        "method_settings": {
            "own texts": {
                "method": "lora+reg",
                "consistency_weight": 0,
                "anchor_weight": 1.0,
                "anchor_file": str(data_dir / "tinystories" / "tinystories_1000.json"),
            },
        },
        "model_name_or_path": str(models_dir / "stories260k"),
        "train_file": str(data_dir / "gsm8k" / "train.jsonl"),
        "validation_file": str(data_dir / "gsm8k" / "test.jsonl"),
        "prompt_column": "question",
        "completion_column": "answer",
        "perplexity_file": str(data_dir / "tinystories" / "tinystories_1000.json"),
        "max_perplexity_samples": 10,
        "max_train_samples": 64,
        "max_eval_samples": 4,
        "max_length": 128,
        "anchor_samples": 32,
        "anchor_length": 48,
        "r": 4,
        "max_steps": 12,
        "learning_rate": 5e-3,
        "seeds": [1],
        "logging_steps": 1,
        "training_arguments": {"use_cpu": True},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    assert main(["compare", str(tmp_path / "recipe.yaml")]) == 0
    runs = {run.method: run.metrics for run in read_results(tmp_path / "out/results.json")}
    assert len(list((tmp_path / "cache" / "anchors").iterdir())) == 1
    saved = json.loads((tmp_path / "out/runs/ba-lora+anchors+swaps-seed1/balora_config.json").read_text())
    assert (saved["method"], saved["anchor_weight"]) == ("ba-lora+anchors+swaps", 1.0)
    assert (saved["counterfactual_words"], saved["consistency_weight"]) == ("gender", 0.025)
    settings["method_settings"]["ba-lora+anchors+swaps"] = {"counterfactual_words": "sex"}
    settings["output_dir"] = str(tmp_path / "other")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    assert main(["compare", str(tmp_path / "recipe.yaml")]) == 2
    assert "sex: neither a built-in list (gender, religion, nationality)" in capsys.readouterr().err
    for name in ("lora+anchors", "own texts"):
        assert runs[name]["perplexity"] < runs["lora"]["perplexity"]
        history = json.loads((tmp_path / f"out/runs/{name}-seed1/history.json").read_text())
        assert any("loss_anchor" in row for row in history)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"anchor_weight": -1.0}, "anchor_weight: -1.0 is out of range"),
        ({"anchor_share": 0.0}, "anchor_share: 0.0 is out of range"),
        ({"anchor_weight": 1.0, "method": "selora+reg", "sentence_dim": 3}, "each row needs a sentence embedding"),
        ({"anchor_weight": 1.0, "method": "lora+reg", "task_names": ["a", "b"]}, "each row needs a task"),
    ],
    ids=str,
)
def test_invalid_settings_raise(settings, message):
    with pytest.raises(BALoraError, match=message):
        BALoraConfig(**settings)


def test_models_that_are_not_causal_raise():
    with pytest.raises(BALoraError, match="only causal language models"):
        get_balora_model(make("bert"), BALoraConfig(anchor_weight=0.1))


def test_training_without_anchors_raises():
    model = get_balora_model(make("llama"), BALoraConfig(anchor_weight=0.1, target_modules="all-linear"))
    with pytest.raises(BALoraError, match="there are no anchors"):
        model.train()(**inputs_for("llama"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count is 0"),
        ({"length": 1}, "length is 1"),
        ({"length": 400}, "anchors: length"),
        ({"prompts": [], "length": 8}, "prompts is empty"),
        ({"prompts": ["a b c d"], "length": 4}, "prompt 1 has 4 tokens"),
    ],
    ids=str,
)
def test_invalid_sampling_arguments_raise(settings, message):
    with pytest.raises(BALoraError, match=message):
        sample_anchors(make("llama"), word_tokenizer(), **settings)
