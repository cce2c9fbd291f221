"""Task adapters on one base: row routing, alignment, saved folders and merging."""

import copy
import json
from itertools import combinations

import pytest
import torch
import transformers as hf
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import inputs_for, make, off_its_start, without_labels, word_tokenizer
from torch import Tensor
from trl import SFTConfig

from balora import BALoraConfig, BALoraError, BALoraModel, BALoraTrainer, get_balora_model
from balora.adapters.task_adapters import alignment_term, task_distance
from balora.adapters.teacher import lora_layers
from balora.training.sft import BALoraSFTTrainer

TASKS = ["qa", "sql", "code"]
IDS = torch.tensor([2, 0, 2, 1])
OFF = {"consistency_weight": 0.0, "diversity_weight": 0.0, "spectral_weight": 0.0}
ON = {"consistency_weight": 0.7, "diversity_weight": 0.3, "spectral_weight": 0.2, "spectral_k": 3}
ON |= {f"{term}_schedule": "constant" for term in ("consistency", "diversity", "spectral")}
EXACT = {"rtol": 0, "atol": 1e-10}
pytestmark = pytest.mark.filterwarnings("ignore:balora", "ignore:fan_in_fan_out")


def settings_of(**settings) -> BALoraConfig:
    fixed = {"method": "lora+reg", "r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_names": TASKS}
    return BALoraConfig(**{**fixed, **OFF, **settings})


def adapted(name: str = "llama", dtype: torch.dtype = torch.float64, **settings) -> BALoraModel:
    """Build a model whose task adapters are perturbed differently, deterministic for given settings."""
    torch.manual_seed(0)
    return off_its_start(get_balora_model(make(name).to(dtype), settings_of(**settings)))


def gradients(model: BALoraModel) -> dict[str, Tensor]:
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def alone(model: BALoraModel, name: str, task: str) -> hf.PreTrainedModel:
    """Return the base with one task's product added to its weights."""
    base = make(name).double()
    for path, layer in lora_layers(model).items():
        delta = layer.scaling[task] * layer.lora_B[task].weight @ layer.lora_A[task].weight
        with torch.no_grad():
            base.get_submodule(path).weight += delta.T if layer.fan_in_fan_out else delta
    return base


# ---------------------------------------------------------------------- rows


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bart"])
@torch.no_grad()
def test_each_row_uses_the_adapter_of_its_task(name):
    model, inputs = adapted(name).eval(), without_labels(inputs_for(name))
    logits = model(**inputs, task_ids=IDS).logits
    for row, task in enumerate(IDS.tolist()):
        expected = alone(model, name, TASKS[task])(**inputs).logits[row]
        torch.testing.assert_close(logits[row], expected, **EXACT)
    assert (logits - model(**inputs, task_ids=IDS.roll(1)).logits).abs().max() > 1e-3
    torch.testing.assert_close(model(**inputs, task_ids=["code", "qa", "code", "sql"]).logits, logits, rtol=0, atol=0)


def test_gradient_of_a_mixed_batch_equals_that_of_each_tasks_rows():
    model, inputs = adapted(), inputs_for("llama")
    model(**inputs, task_ids=IDS, num_items_in_batch=20).loss.backward()
    mixed = gradients(model)
    model.zero_grad()
    for task in range(3):
        part = {key: value[task == IDS] for key, value in inputs.items()}
        model(**part, task_ids=TASKS[task], num_items_in_batch=20).loss.backward()
    for key, gradient in gradients(model).items():
        torch.testing.assert_close(mixed[key], gradient, rtol=1e-6, atol=1e-8, msg=key)
        assert gradient.abs().max() > 0, key


def test_tasks_without_rows_have_zero_gradients():
    """DDP needs a gradient for every parameter."""
    model = adapted()
    model(**inputs_for("llama"), task_ids="sql").loss.backward()
    grads = gradients(model)
    assert len(grads) == 2 * 3 * len(lora_layers(model))
    assert all(bool(gradient.any()) == (".sql." in key) for key, gradient in grads.items())


@pytest.mark.parametrize("fused", [True, False])
def test_all_regularizers_of_a_mixed_batch_equal_those_of_its_rows(fused):
    model = adapted(**ON, bias_path_weight=0.5, alignment_weight=0.1, fused_lm_head=fused)
    output = model(**inputs_for("llama"), task_ids=IDS)
    weights = {**{f"{k}": ON[f"{k}_weight"] for k in ("consistency", "diversity", "spectral")}, "task": 1.0}
    weights |= {"bias_path": 0.5, "alignment": 0.1}
    assert set(output.components) == set(weights)
    weighed = sum(weights[key] * value for key, value in output.components.items())
    torch.testing.assert_close(output.loss.double(), weighed.double(), rtol=1e-6, atol=0)
    plain = model.get_base_model()
    with torch.no_grad(), model.disable_adapter():
        teacher = plain(**without_labels(inputs_for("llama"))).logits
    torch.testing.assert_close(teacher, make("llama").double()(**without_labels(inputs_for("llama"))).logits, **EXACT)
    torch.testing.assert_close(
        model.teacher_forward(**without_labels(inputs_for("llama")), task_ids=IDS).logits, teacher, **EXACT
    )


@pytest.mark.parametrize("how", [{"use_reentrant": False}, {"use_reentrant": True}], ids=str)
def test_gradient_checkpointing_gives_equal_gradients(how):
    results = []
    for checkpointing in (False, True):
        model = adapted(**ON, bias_path_weight=0.5)
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable(how)
            model.enable_input_require_grads()
        model(**inputs_for("llama"), task_ids=IDS).loss.backward()
        results.append(gradients(model))
    for key, gradient in results[0].items():
        torch.testing.assert_close(results[1][key], gradient, rtol=1e-9, atol=1e-12, msg=key)


def test_all_tasks_start_as_the_pretrained_model():
    torch.manual_seed(0)
    model, inputs = get_balora_model(make("llama"), settings_of(alignment_weight=1.0)), inputs_for("llama")
    for layer in lora_layers(model).values():
        for task in TASKS[1:]:
            assert torch.equal(layer.lora_A[task].weight, layer.lora_A["qa"].weight)
    assert model.train()(**inputs, task_ids=IDS).components["alignment"] == 0
    given = without_labels(inputs)
    assert torch.equal(model.eval()(**given, task_ids=IDS).logits, make("llama")(**given).logits)


def test_copied_model_has_its_own_routing():
    model, inputs = adapted().eval(), without_labels(inputs_for("llama"))
    copied = copy.deepcopy(model)
    assert copied.task_rows is not model.task_rows
    assert torch.equal(copied(**inputs, task_ids=IDS).logits, model(**inputs, task_ids=IDS).logits)


# ---------------------------------------------------------------------- alignment


def test_term_is_a_mean_over_layers_of_unequal_shapes():
    model = adapted(alignment_weight=0.1, rank_pattern={"q_proj": 2})
    deltas = [
        [layer.scaling[t] * layer.lora_B[t].weight @ layer.lora_A[t].weight for t in TASKS]
        for layer in lora_layers(model).values()
    ]
    pairs = [(0, 1), (0, 2), (1, 2)]
    naive = sum(sum((d[i] - d[j]).square().sum() for i, j in pairs) for d in deltas) / len(deltas)
    term = alignment_term(model, TASKS)
    torch.testing.assert_close(term, naive, rtol=1e-9, atol=0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for got, expected in zip(
        torch.autograd.grad(term, parameters), torch.autograd.grad(naive, parameters), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_task_distance_is_scale_invariant():
    model = adapted()
    assert task_distance(get_balora_model(make("llama"), settings_of()), TASKS) == 0  # at their start
    layers = lora_layers(model).values()
    weights = [
        [layer.scaling[task] * layer.lora_B[task].weight @ layer.lora_A[task].weight for task in TASKS]
        for layer in layers
    ]
    apart = sum((one - other).square().sum() for found in weights for one, other in combinations(found, 2))
    size = sum(weight.square().sum() for found in weights for weight in found)
    far = task_distance(model, TASKS)
    assert far == pytest.approx(float(apart / (2 * size)), rel=1e-12)
    for layer in layers:
        for task in TASKS:
            layer.lora_B[task].weight *= 3
    assert task_distance(model, TASKS) == pytest.approx(far, rel=1e-12)
    for layer in layers:
        for task in TASKS[1:]:
            layer.lora_A[task].weight.copy_(layer.lora_A[TASKS[0]].weight)
            layer.lora_B[task].weight.copy_(layer.lora_B[TASKS[0]].weight)
    assert task_distance(model, TASKS) == pytest.approx(0, abs=1e-12)


def test_alignment_reduces_task_distance():
    after = {}
    for weight in (0.0, 1.0):
        model = adapted(alignment_weight=weight)
        before = alignment_term(model, TASKS).item()
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(8):
            optimizer.zero_grad()
            model(**inputs_for("llama"), task_ids=IDS).loss.backward()
            optimizer.step()
        after[weight] = alignment_term(model, TASKS).item()
    assert after[1.0] < 0.5 * before
    assert after[1.0] < 0.5 * after[0.0]


def test_micro_batches_add_up_to_one_term():
    model, inputs = adapted(alignment_weight=0.1), inputs_for("llama")
    counts = model.counts_of(inputs, inputs["labels"])
    counted = {"num_items_in_batch": counts.items, "num_tokens_in_batch": counts.tokens}
    parts = [slice(0, 1), slice(1, 4)]
    total = sum(
        model(**{key: value[part] for key, value in inputs.items()}, task_ids=IDS[part], **counted).components[
            "alignment"
        ]
        for part in parts
    )
    torch.testing.assert_close(total, alignment_term(model, TASKS).detach())


# ---------------------------------------------------------------------- inference


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}], ids=str)
def test_generation_routes_each_row_to_its_task(name, how):
    model = adapted(name).eval()
    ids = torch.randint(5, 90, (4, 6), generator=torch.Generator().manual_seed(2))
    how = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0, **how}
    together = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), task_ids=IDS, **how)
    for row, task in enumerate(IDS.tolist()):
        expected = alone(model, name, TASKS[task]).generate(
            input_ids=ids[[row]], attention_mask=torch.ones_like(ids[[row]]), **how
        )
        each = len(expected)
        assert torch.equal(together[row * each : (row + 1) * each], expected)


@torch.no_grad()
def test_set_adapter_sets_the_task_of_whole_batches():
    model, inputs = adapted().eval(), without_labels(inputs_for("llama"))
    with pytest.raises(BALoraError, match=r"task_ids: missing, .* one of \['qa', 'sql', 'code'\]"):
        model(**inputs)
    model.set_adapter("sql")
    torch.testing.assert_close(model(**inputs).logits, model(**inputs, task_ids="sql").logits, rtol=0, atol=0)
    assert (model(**inputs, task_ids="qa").logits - model(**inputs).logits).abs().max() > 1e-3
    with pytest.raises(BALoraError, match="task_ids: missing"):
        model.train()(**inputs_for("llama"))
    assert all(p.requires_grad for key, p in model.named_parameters() if "lora_" in key)


# ---------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("method", ["lora+reg", "rslora+reg"])
@torch.no_grad()
def test_folder_of_each_task_is_a_plain_lora(method, tmp_path):
    model, inputs = adapted(method=method, bias_path_weight=0.5).eval(), without_labels(inputs_for("llama"))
    model.save_pretrained(tmp_path)
    for task in TASKS:
        expected = model(**inputs, task_ids=task).logits
        stock = PeftModel.from_pretrained(make("llama").double(), tmp_path / task).eval()
        torch.testing.assert_close(stock(**inputs).logits, expected, **EXACT)
        torch.testing.assert_close(stock.merge_and_unload()(**inputs).logits, expected, **EXACT)
        one = BALoraModel.from_pretrained(make("llama").double(), tmp_path / task, is_trainable=True)
        torch.testing.assert_close(one.eval()(**inputs).logits, expected, **EXACT)
        assert not any("bias_path" in key for key in load_file(tmp_path / task / "adapter_model.safetensors"))
    again = BALoraModel.from_pretrained(make("llama").double(), tmp_path, is_trainable=True)
    state = {key: value for key, value in model.state_dict().items() if "lora_" in key}
    assert all(torch.equal(again.state_dict()[key], value) for key, value in state.items())
    assert {key for key, p in again.named_parameters() if p.requires_grad} == {
        key for key, p in model.named_parameters() if p.requires_grad
    }
    frozen = BALoraModel.from_pretrained(make("llama").double(), tmp_path)
    assert not any(p.requires_grad for p in frozen.parameters())
    torch.testing.assert_close(
        frozen(**inputs, task_ids=IDS).logits, model(**inputs, task_ids=IDS).logits, rtol=0, atol=0
    )
    assert json.loads((tmp_path / "balora_config.json").read_text())["task_names"] == TASKS


@pytest.mark.parametrize(("method", "settings"), [("lora+reg", {"rank_pattern": {"q_proj": 2}}), ("rslora+reg", {})])
@torch.no_grad()
def test_merged_adapter_is_the_mean_of_the_tasks(method, settings, tmp_path):
    inputs = without_labels(inputs_for("llama"))
    for kept in (None, ["sql", "code"], ["code"]):
        model = adapted(method=method, **settings).eval()
        base = make("llama").double()
        for path, layer in lora_layers(model).items():
            names = kept or TASKS
            deltas = [layer.scaling[t] * layer.lora_B[t].weight @ layer.lora_A[t].weight for t in names]
            base.get_submodule(path).weight += sum(deltas) / len(names)
        expected = base(**inputs).logits
        model.merge_tasks(kept)
        torch.testing.assert_close(model(**inputs).logits, expected, **EXACT)
        assert [key for key, p in model.named_parameters() if p.requires_grad and ".default." not in key] == []
        model.save_pretrained(tmp_path / str(kept))
        for cls in (PeftModel, BALoraModel):
            loaded = cls.from_pretrained(make("llama").double(), tmp_path / str(kept)).eval()
            torch.testing.assert_close(loaded(**inputs).logits, expected, **EXACT)
        torch.testing.assert_close(model.merge_and_unload()(**inputs).logits, expected, **EXACT)


def test_merging_several_tasks_into_the_base_raises_and_changes_nothing():
    model, inputs = adapted().eval(), without_labels(inputs_for("llama"))
    before = model(**inputs, task_ids=IDS).logits
    for merge in (model.merge_adapter, model.merge_and_unload, lambda: model.merge_and_unload(safe_merge=True)):
        with pytest.raises(BALoraError, match=r"merge: each of .* has its own adapter; call merge_tasks\(\) first"):
            merge()
    with pytest.raises(BALoraError, match="task_ids: unknown 'maths'; there are qa, sql, code"):
        model.merge_tasks(["maths"])
    assert torch.equal(model(**inputs, task_ids=IDS).logits, before)
    with pytest.raises(BALoraError, match="merge_tasks: the model has no tasks"):
        get_balora_model(make("llama"), BALoraConfig(method="lora+reg")).merge_tasks()


# ---------------------------------------------------------------------- trainers


def rows() -> Dataset:
    ids = torch.randint(5, 20, (8, 8), generator=torch.Generator().manual_seed(0)).tolist()
    return Dataset.from_list(
        [{"input_ids": x, "attention_mask": [1] * 8, "labels": x, "task_ids": i % 3} for i, x in enumerate(ids)]
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
        model = adapted(dtype=torch.float32, alignment_weight=0.1, bias_path_weight=0.5)
        resumed = None if checkpoint is None else str(tmp_path / name / checkpoint)
        trainer = trainer_for(tmp_path / name, model, max_steps=steps, **saved)
        trainer.train(resume_from_checkpoint=resumed)
        trained[name] = {key: value.clone() for key, value in model.state_dict().items() if "lora_" in key}
    for key, value in trained["whole"].items():
        assert torch.equal(value, trained["half"][key]), key
    log = next(row for row in trainer.state.log_history if "loss_task" in row)
    assert log["loss_alignment"] > 0
    assert log["weight_alignment"] == 0.1


def test_row_without_a_task_raises(tmp_path):
    trainer = trainer_for(tmp_path, adapted())
    trainer.train_dataset = trainer.train_dataset.remove_columns("task_ids")
    with pytest.raises(BALoraError, match="task_ids: missing in a row; each row needs its task"):
        trainer.train()


def test_sft_trainer_passes_tasks_and_rejects_packing(tmp_path):
    table = {"prompt": ["a b", "c"] * 2, "completion": [" b a", " c a"] * 2, "task_ids": [0, 1, 2, 0]}
    args = {"max_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    given = {"processing_class": word_tokenizer(), "train_dataset": Dataset.from_dict(table)}
    model = adapted(dtype=torch.float32, alignment_weight=0.1)
    trainer = BALoraSFTTrainer(
        model=model, args=SFTConfig(str(tmp_path), per_device_train_batch_size=4, **args), **given
    )
    trainer.train()
    assert next(row for row in trainer.state.log_history if "loss_task" in row)["loss_alignment"] > 0
    with pytest.raises(BALoraError, match=r"packing: .* there is one task for each row"):
        BALoraSFTTrainer(model=model, args=SFTConfig(str(tmp_path), packing=True, **args), **given)


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("task_ids", "message"),
    [
        (torch.tensor([0, 1]), r"shape \(2,\) for 4 rows"),
        (torch.tensor([0, 1, 2, 3]), r"\[0, 1, 2, 3\] is out of range; use 0 to 2 for qa, sql, code"),
        (torch.tensor([0, 1, 2, -1]), "is out of range"),
        (torch.zeros(4), r"shape \(4,\) .* integer or name"),
        (["qa", "qa", "sql", "maths"], "unknown 'maths'; there are qa, sql, code"),
    ],
    ids=str,
)
def test_task_ids_that_do_not_fit_the_rows_raise(task_ids, message):
    with pytest.raises(BALoraError, match=f"task_ids: .*{message}"):
        adapted()(**inputs_for("llama"), task_ids=task_ids)


def test_task_ids_of_a_model_without_tasks_raise():
    model = get_balora_model(make("llama"), BALoraConfig(method="lora+reg"))
    with pytest.raises(BALoraError, match="task_ids: there is one adapter for all rows"):
        model(**inputs_for("llama"), task_ids=IDS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task_names": ["qa"]}, r"task_names: \['qa'\]; give at least two"),
        ({"task_names": ["qa", "qa"]}, "at least two different names"),
        ({"task_names": ["a.b", "qa"]}, "of letters, digits"),
        ({"task_names": ["mlp", "qa"]}, "task_names: 'mlp' is also part of this model's weight names"),
        ({"task_names": ["default", "qa"]}, "'default' and 'teacher' are balora's own"),
        ({"task_names": None, "alignment_weight": 0.1}, "alignment_weight: a single adapter"),
        ({"method": "ba-lora"}, "method: ba-lora has one adapter for all rows"),
        ({"method": "selora+reg", "sentence_dim": 3}, r"method: selora\+reg has one adapter"),
        ({"use_dora": True}, "use_dora: not supported with task_names"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: not supported with task_names"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "embed_tokens is a Embedding, and task_names adapts linear"),
        ({"bias_path_weight": 0.1, "bias_path_sample_rate": 0.5}, "bias_path_sample_rate: 0.5 would leave rows out"),
    ],
    ids=str,
)
def test_invalid_settings_raise(settings, message):
    with pytest.raises(BALoraError, match=message):
        adapted(**settings)


def test_tasks_for_classifiers_raise():
    with pytest.raises(BALoraError, match="task_names: in classification each task would need a head of its own"):
        adapted("bert")
