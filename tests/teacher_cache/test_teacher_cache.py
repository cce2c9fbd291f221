"""Teacher cache: logits from cached features equal the teacher's, and stale features are never used."""

import warnings

import pytest
import torch
import transformers as hf
from tiny_models import CLASSIFIERS, SMALL, inputs_for, make, train_steps, without_labels

from balora import BALoraConfig, BALoraError, get_balora_model
from balora.teacher_cache import TeacherCache
from balora.teacher_cache.features import example_keys

REGULARIZED = {"consistency_weight": 0.7, "diversity_weight": 0.0, "spectral_weight": 0.0}


def adapted(name_or_base, **settings):
    base = make(name_or_base) if isinstance(name_or_base, str) else name_or_base
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **REGULARIZED, **settings}
    return get_balora_model(base, BALoraConfig(**settings))


def counted(model) -> list[int]:
    """Record the sizes of the batches that the teacher runs on."""
    seen, real = [], model.teacher_forward

    def teacher_forward(**inputs):
        seen.append(len(inputs["input_ids"]))
        return real(**inputs)

    model.teacher_forward = teacher_forward
    return seen


#: Fully trained heads of several modules, and the linear layers of the backbones.
IN_PARTS = {
    "deberta": {"modules_to_save": ["pooler", "classifier"], "target_modules": ["query_proj", "value_proj"]},
    "modernbert": {"modules_to_save": ["head", "classifier"], "target_modules": ["Wqkv"]},
}


@pytest.mark.parametrize(
    ("name", "settings"), [*((name, {}) for name in CLASSIFIERS), *IN_PARTS.items()], ids=lambda value: str(value)[:16]
)
@pytest.mark.parametrize("method", ["lora+reg", "ba-lora"])
def test_cached_features_give_the_teachers_logits_through_the_live_head(name, settings, method):
    model, inputs = adapted(name, method=method, **settings), without_labels(inputs_for(name, rows=6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model._teacher_logits(inputs)
    train_steps(model, inputs_for(name, rows=6))  # moves the live head
    seen = counted(model)
    order = torch.tensor([3, 0, 5, 1])
    shuffled = {key: value[order] for key, value in inputs.items()}
    logits = model._teacher_logits(shuffled)
    assert seen == []
    torch.testing.assert_close(logits, model.teacher_forward(**shuffled).logits, rtol=1e-4, atol=1e-5)


def test_keys_do_not_depend_on_padding_and_order():
    model, inputs = adapted("bert"), without_labels(inputs_for("bert"))
    expected = model._teacher_logits(inputs)
    seen = counted(model)
    wider = {key: torch.nn.functional.pad(value, (0, 5)) for key, value in inputs.items()}
    wider = {key: value.flip(0) for key, value in wider.items()}
    torch.testing.assert_close(model._teacher_logits(wider), expected.flip(0), rtol=1e-4, atol=1e-5)
    assert seen == []


def test_inputs_without_a_batch_axis_are_part_of_every_key():
    inputs = without_labels(inputs_for("bert"))
    plain = example_keys(inputs)
    assert len(set(plain)) == 4
    assert example_keys(inputs | {"layer": torch.tensor(3)}) != plain
    assert example_keys(inputs | {"layer": torch.tensor(3), "note": "text"}) == example_keys(
        inputs | {"layer": torch.tensor(3)}
    )
    left = {key: value.roll(4, 1) for key, value in inputs.items()}  # the first row's padding comes first
    assert example_keys(left)[0] != plain[0]


def test_teacher_runs_on_new_examples_only():
    model, inputs = adapted("bert"), without_labels(inputs_for("bert"))
    model._teacher_logits(inputs)
    seen = counted(model)
    inputs["input_ids"][2, 3] += 1  # another text, or another tokenizer's ids
    logits = model._teacher_logits(inputs)
    assert seen == [1]
    torch.testing.assert_close(logits, model.teacher_forward(**inputs).logits, rtol=1e-4, atol=1e-5)
    with_types = inputs | {"token_type_ids": torch.ones_like(inputs["input_ids"])}
    seen.clear()
    torch.testing.assert_close(model._teacher_logits(with_types), model.teacher_forward(**with_types).logits)
    assert seen[0] == 4


def test_changed_model_empties_the_cache(tmp_path):
    model, inputs = adapted("bert"), without_labels(inputs_for("bert"))
    model.cache_teacher(tmp_path)
    before = model._teacher_logits(inputs)
    with torch.no_grad():
        model.get_base_model().bert.embeddings.word_embeddings.weight.mul_(1.5)
    after = model._teacher_logits(inputs)
    torch.testing.assert_close(after, model.teacher_forward(**inputs).logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, after, atol=1e-3)
    assert len(list(tmp_path.iterdir())) == 2  # a folder for each


def test_folder_is_used_for_the_same_model_only(tmp_path):
    inputs = without_labels(inputs_for("bert"))
    first = adapted("bert")
    first.cache_teacher(tmp_path)
    first._teacher_logits(inputs)
    for base, runs in (
        (make("bert"), [4]),
        (make("deberta"), [4, 4]),
    ):  # a pass to find the pooling, then missing rows
        model = adapted(base)
        model.cache_teacher(tmp_path, writer="1")
        seen = counted(model)
        model._teacher_logits(inputs)
        assert seen == runs


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_objective_is_equal_with_and_without_cache(name):
    inputs, losses = inputs_for(name), []
    for megabytes in (512, 0):
        model = adapted(name, teacher_cache_mb=megabytes)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        assert (model.teacher_cache is None) == (megabytes == 0)
        train_steps(model, inputs, steps=4)
        losses.append(model.train()(**inputs).loss)
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-6)


def test_uncacheable_head_warns_once_and_runs_the_teacher():
    torch.manual_seed(0)
    base = hf.DistilBertForSequenceClassification(
        hf.DistilBertConfig(dim=32, hidden_dim=64, n_layers=2, n_heads=4, vocab_size=97, num_labels=3)
    )
    model = adapted(base, target_modules=["q_lin", "v_lin"], modules_to_save=["pre_classifier"])
    inputs = without_labels(inputs_for("bert"))
    with pytest.warns(UserWarning, match="the teacher runs on every batch, since the head of DistilBert"):
        logits = model._teacher_logits(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(model._teacher_logits(inputs), logits)


def test_decoder_whose_texts_end_in_the_padding_id_is_pooled_correctly():
    model = adapted("llama-classifier")
    inputs = without_labels(inputs_for("llama-classifier"))
    inputs["input_ids"][1, -2:] = 0  # the padding's id, but attended to
    torch.testing.assert_close(
        model._teacher_logits(inputs), model.teacher_forward(**inputs).logits, rtol=1e-4, atol=1e-5
    )
    seen = counted(model)
    model._teacher_logits(inputs)
    assert seen == []


def test_bfloat16_features_are_exact():
    model = adapted(make("bert").to(torch.bfloat16), method="lora+reg")
    inputs = without_labels(inputs_for("bert"))
    first = model._teacher_logits(inputs)
    assert first.dtype == torch.bfloat16
    assert torch.equal(model._teacher_logits(inputs), first)


def test_negative_memory_limit_raises():
    with pytest.raises(BALoraError, match="teacher_cache_mb: -1 is out of range"):
        BALoraConfig(teacher_cache_mb=-1)
    with pytest.raises(BALoraError, match=r"sample_rate: 0\.5 is for generation"):
        get_balora_model(hf.BertForSequenceClassification(hf.BertConfig(**SMALL)), BALoraConfig(sample_rate=0.5))


def test_forget_deletes_the_folder(tmp_path):
    model, inputs = adapted("bert"), without_labels(inputs_for("bert"))
    model.teacher_cache = TeacherCache(1.0, tmp_path / "features")
    model._teacher_logits(inputs)
    assert (tmp_path / "features").exists()
    model.teacher_cache.forget()
    assert not (tmp_path / "features").exists()
