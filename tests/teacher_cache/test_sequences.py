"""Sequence cache: the teacher reads each anchor once, and losses and gradients are those without the cache."""

import pytest
import torch
import transformers as hf
from tiny_models import inputs_for, make, off_its_start
from tokenizers import Tokenizer, models, pre_tokenizers

from balora import BALoraConfig, get_balora_model
from balora.anchors import Anchors
from balora.counterfactual import Swaps
from balora.training import BALoraTrainer

ONLY_ANCHORS = {"consistency_weight": 0.0, "diversity_weight": 0.0, "spectral_weight": 0.0, "anchor_weight": 0.7}
IN_FILES = 1e-3  # MB: holds a few features and no logits
pytestmark = pytest.mark.filterwarnings("ignore:balora", "ignore:fan_in_fan_out", "ignore:Model has `tie_word")


def anchors(count: int = 5) -> Anchors:
    """Build anchors of several lengths, padded on the right."""
    ids = torch.randint(5, 90, (count, 9), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(9) < torch.tensor([9, 5, 8, 3, 7])[:count, None]).long()
    return Anchors(ids * mask, mask)


def swaps(groups: list[tuple[str, str]] | None = None) -> Swaps:
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    groups = groups or [(f"w{i}", f"w{i + 1}") for i in range(10, 90, 8)]
    return Swaps(groups, hf.PreTrainedTokenizerFast(tokenizer_object=words))


def adapted(name: str = "llama", dtype: torch.dtype = torch.float64, **settings):
    torch.manual_seed(0)
    fixed = {"method": "ba-lora", "r": 4, "lora_alpha": 8, "target_modules": "all-linear", **ONLY_ANCHORS}
    model = get_balora_model(make(name).to(dtype), BALoraConfig(**{**fixed, **settings}))
    model.set_anchors(anchors())
    if "counterfactual_words" in settings:
        model.set_swaps(swaps())
    return off_its_start(model)


def read_by_teacher(model) -> list[int]:
    """Record the numbers of sequences that the teacher runs on."""
    seen, real = [], model.teacher_forward

    def teacher_forward(**inputs):
        seen.append(len(inputs["input_ids"]))
        return real(**inputs)

    model.teacher_forward = teacher_forward
    return seen


def train(model, steps: int = 4, inputs: dict | None = None) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Return the loss of each step and the last step's gradients."""
    torch.manual_seed(4)
    inputs = inputs_for("llama") if inputs is None else inputs
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        losses.append(loss.detach())
        optimizer.step()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "cohere"])
@pytest.mark.parametrize("method", ["lora+reg", "ba-lora"])
@pytest.mark.parametrize("memory", [512, IN_FILES])
@pytest.mark.parametrize("swapped", [False, True])
def test_losses_and_gradients_are_those_without_the_cache(name, method, memory, swapped):
    settings = {"method": method} | ({"counterfactual_words": "mine"} if swapped else {})
    expected, gradients = train(adapted(name, **settings, teacher_cache_mb=0))
    cached = adapted(name, **settings, teacher_cache_mb=memory)
    found, others = train(cached)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    for key, gradient in gradients.items():
        torch.testing.assert_close(others[key], gradient, rtol=1e-9, atol=1e-12, msg=key)
    assert bool(cached.teacher_cache._logits) == (memory == 512 and not (swapped and name == "gemma2"))


@pytest.mark.parametrize("name", ["llama", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_agree_to_their_rounding(name, dtype):
    (expected, _), (found, _) = (train(adapted(name, dtype, teacher_cache_mb=memory)) for memory in (0, 512))
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 0}
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), **tolerance)


@pytest.mark.parametrize("memory", [512, IN_FILES])
def test_autocast_agrees_with_the_teacher_that_reads_every_time(memory):
    found = []
    for megabytes in (0, memory):
        model = adapted(dtype=torch.float32, teacher_cache_mb=megabytes)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(torch.stack(train(model)[0]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("swapped", [False, True])
def test_teacher_reads_each_anchor_once(swapped):
    model = adapted(**({"counterfactual_words": "mine"} if swapped else {}))
    seen = read_by_teacher(model)
    train(model, steps=20)
    assert sum(seen) == 5 * (1 + swapped)
    train(model, steps=2)
    assert sum(seen) == 5 * (1 + swapped)


def test_padding_and_order_do_not_change_what_is_kept():
    model = adapted()
    train(model, steps=20)
    seen = read_by_teacher(model)
    wider = anchors()
    model.set_anchors(Anchors(*(torch.nn.functional.pad(part, (0, 3)).flip(0) for part in vars(wider).values())))
    train(model, steps=5)
    assert seen == []
    model.set_anchors(Anchors(wider.input_ids + 1, wider.attention_mask))
    train(model, steps=2)
    assert seen, "other texts are read"


def test_changed_weights_and_other_swaps_empty_the_cache(tmp_path):
    model = adapted(counterfactual_words="mine")
    model.cache_teacher(tmp_path)
    train(model, steps=2)
    seen = read_by_teacher(model)
    with torch.no_grad():
        model.get_base_model().get_input_embeddings().weight.mul_(1.5)
    train(model, steps=2)
    assert seen
    model.set_swaps(swaps([("w20", "w21")]))
    seen.clear()
    train(model, steps=1)
    assert seen
    assert len(list(tmp_path.iterdir())) == 3  # a folder for each


def test_a_teacher_with_a_trained_head_keeps_its_own(tmp_path):
    settings = {"modules_to_save": ["lm_head"], "target_modules": ["q_proj", "v_proj"]}
    expected, gradients = train(adapted(**settings, teacher_cache_mb=0))
    found, others = train(adapted(**settings))
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-12, atol=0)
    for key, gradient in gradients.items():
        torch.testing.assert_close(others[key], gradient, rtol=1e-9, atol=1e-12, msg=key)


def test_another_process_reads_the_folder_after_a_kill(tmp_path):
    model = adapted()
    model.cache_teacher(tmp_path)
    expected, _ = train(model, steps=20)
    (file,) = tmp_path.glob("*/0.records")
    with open(file, "ab") as records:
        records.write(file.read_bytes()[:50])  # a record that the kill cut off
    again = adapted()
    again.cache_teacher(tmp_path)
    seen = read_by_teacher(again)
    found, _ = train(again, steps=20)
    assert seen == []
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-12, atol=0)


def test_processes_keep_anchors_of_their_own(tmp_path):
    """Otherwise what a process reads would depend on how far another one is."""
    for writer in ("0", "1"):
        model = adapted()
        model.cache_teacher(tmp_path, writer)
        seen = read_by_teacher(model)
        train(model, steps=20)
        assert sum(seen) == 5
    assert len(list(tmp_path.glob("*/*.records"))) == 2


def test_gradient_checkpointing_gives_equal_gradients():
    found = []
    for checkpointed in (False, True):
        model = adapted()
        if checkpointed:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        found.append(train(model)[1])
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-9, atol=1e-12, msg=key)


# ---------------------------------------------------------------------- the task's own rows

ROWS = {"anchor_weight": 0.0, "consistency_weight": 0.5, "consistency_schedule": "constant"}


def with_rows(memory: float = 512, **settings):
    model = adapted(**{**ROWS, **settings}, teacher_cache_mb=memory)
    model.cache_teacher(rows=True)
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sample_rate": 0.5},
        {"counterfactual_words": "mine"},
        {"anchor_weight": 1},
        {"anchor_weight": 1, "regularized_tokens": "labelled", "task_loss": "dft"},
    ],
)
@pytest.mark.parametrize("memory", [512, 4e-3])
def test_rows_that_come_again_are_read_once_as_far_as_they_fit(settings, memory):
    expected, gradients = train(adapted(**{**ROWS, **settings}, teacher_cache_mb=0), steps=8)
    model = with_rows(memory, **settings)
    seen = read_by_teacher(model)
    found, others = train(model, steps=8)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-12, atol=0)
    for key, gradient in gradients.items():
        torch.testing.assert_close(others[key], gradient, rtol=1e-9, atol=1e-12, msg=key)
    assert model.teacher_cache._store.memory_bytes <= memory * 2**20
    most = (4 + 5 * bool(settings.get("anchor_weight"))) * (1 + ("counterfactual_words" in settings))
    assert sum(seen) == most if memory == 512 else sum(seen) > most


def test_labelled_tokens_behind_padding_on_the_left_are_the_same_with_the_cache():
    rows = {name: value.flip(1) for name, value in inputs_for("llama").items()}
    rows["labels"] = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
    settings = {"regularized_tokens": "labelled", "task_loss": "dft"}
    expected, _ = train(adapted(**ROWS, **settings, teacher_cache_mb=0), inputs=rows)
    model = with_rows(**settings)
    seen = read_by_teacher(model)
    found, _ = train(model, inputs=rows)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-12, atol=0)
    assert sum(seen) == 4


def test_rows_are_read_every_time_unless_asked_for_or_packed():
    for rows, further in ((False, {}), (True, {"position_ids": torch.arange(12).repeat(4, 1)})):
        model = adapted(**ROWS)
        model.cache_teacher(rows=rows)
        seen = read_by_teacher(model)
        train(model, steps=3, inputs={**inputs_for("llama"), **further})
        assert seen == [4, 4, 4]


@pytest.mark.parametrize(("settings", "repeats"), [({"max_steps": 2}, False), ({"num_train_epochs": 2}, True)])
def test_trainer_keeps_rows_that_it_reads_again(tmp_path, settings, repeats):
    model = adapted(**ROWS, dtype=torch.float32)
    rows = [{name: value[row] for name, value in inputs_for("llama").items()} for row in range(4)]
    fixed = {"per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True, "save_strategy": "no"}
    trainer = BALoraTrainer(model, hf.TrainingArguments(str(tmp_path), **fixed, **settings), train_dataset=rows)
    trainer.drift_batches = 0
    seen = read_by_teacher(model)
    trainer.train()
    assert sum(seen) == 4
    assert not (tmp_path / "teacher_features").exists()
    assert model.teacher_cache.rows == repeats
