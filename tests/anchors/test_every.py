"""`anchor_every`: anchors in every n-th optimizer step, weighted by n."""

import pytest
import torch
from tiny_models import inputs_for, make, off_its_start
from transformers import Trainer, TrainingArguments

from balora import BALoraConfig, BALoraError, BALoraTrainer, ScheduleCallback, get_balora_model
from balora.anchors import Anchors

NAME = "gpt2"  # in float64 throughout, where a Llama's norms are in float32
CONSTANT = {f"{term}_schedule": "constant" for term in ("consistency", "diversity", "spectral")}
pytestmark = pytest.mark.filterwarnings("ignore:balora", "ignore:fan_in_fan_out")


def adapted(anchors: int = 1, **settings):
    torch.manual_seed(0)
    fixed = {"method": "ba-lora", "r": 4, "target_modules": "all-linear", "anchor_weight": 0.5, **CONSTANT}
    model = get_balora_model(make(NAME).double(), BALoraConfig(**{**fixed, **settings}))
    ids = torch.randint(5, 90, (anchors, 9), generator=torch.Generator().manual_seed(3))
    model.set_anchors(Anchors(ids, torch.ones_like(ids)))
    return off_its_start(model)


def summed_gradients(model, steps: int) -> dict[str, torch.Tensor]:
    """Return the gradients of several steps at the same weights, summed."""
    for step in range(steps):
        model.set_progress(0.5, step)
        model(**inputs_for(NAME)).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def passes(model) -> list[int]:
    """Record the tokens of each pass of the body, the teacher's and the student's."""
    seen, body = [], model.get_base_model().base_model
    body.register_forward_hook(lambda *given: seen.append(given[-1][0].shape[:-1].numel()))
    return seen


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("cache", [0, 512])
def test_gradients_over_n_steps_sum_to_those_with_anchors_in_each(every, fused, cache):
    """A single anchor leaves nothing to draw, so the sums are equal and not only equal on average."""
    settings = {"fused_lm_head": fused, "teacher_cache_mb": cache}
    expected = summed_gradients(adapted(**settings), 2 * every)
    found = summed_gradients(adapted(**settings, anchor_every=every), 2 * every)
    without = summed_gradients(adapted(anchor_weight=0.0, fused_lm_head=fused), 2 * every)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    assert any((gradient - without[name]).abs().max() > 1e-4 for name, gradient in expected.items())


@pytest.mark.parametrize("fused", [True, False])
def test_steps_between_neither_draw_nor_read_anchors(fused):
    model = adapted(anchors=5, anchor_every=3, fused_lm_head=fused)
    inputs = inputs_for(NAME)
    rows = inputs["input_ids"].numel()
    model.set_progress(0.5, 0)
    model(**inputs)  # the first forward tries on a short text whether the head can be fused
    seen = passes(model)
    for step in range(6):
        before = torch.get_rng_state()
        model.set_progress(0.5, step)
        output = model(**inputs)
        due = step in (2, 5)
        assert ("anchor" in output.components) == due
        assert torch.equal(torch.get_rng_state(), before) != due
        assert (set(seen) != {rows}) == due
        assert model.current_weights()["anchor"] == 0.5
        seen.clear()


def test_step_between_is_one_without_anchors_to_the_bit():
    model, without = adapted(anchor_every=2), adapted(anchor_weight=0.0)
    model.set_progress(0.5, 0)
    assert torch.equal(model(**inputs_for(NAME)).loss, without(**inputs_for(NAME)).loss)


def test_rows_leave_memory_to_anchors_that_come_later():
    model = adapted(anchor_every=2)
    model.set_progress(0.5, 0)
    model(**inputs_for(NAME))
    assert model.teacher_cache.reserved_mb > 0


class Drawn(Anchors):
    """Anchors that record the optimizer step of each draw."""

    def draw(self, count):
        """Record the step, then draw as `Anchors` does."""
        self.steps.append(self.trainer.state.global_step)
        return super().draw(count)


def trainer_for(folder, cls=BALoraTrainer, every: int = 2, **training):
    model = adapted(anchors=5, anchor_every=every)
    rows = inputs_for(NAME, rows=10)
    data = [{key: value[row] for key, value in rows.items()} for row in range(10)]
    fixed = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "report_to": "none", "use_cpu": True}
    args = TrainingArguments(str(folder), **{**fixed, "disable_tqdm": True, "max_steps": 7, **training})
    trainer = cls(model=model, args=args, train_dataset=data)
    model.anchors = Drawn(model.anchors.input_ids, model.anchors.attention_mask)
    vars(model.anchors).update(steps=[], trainer=trainer)
    return trainer


@pytest.mark.parametrize("cls", [BALoraTrainer, Trainer])
def test_all_micro_batches_of_a_step_read_anchors_or_none(cls, tmp_path):
    """Ten rows are two steps of two micro-batches and one of a single one, over and over."""
    trainer = trainer_for(tmp_path, cls)
    if cls is Trainer:
        trainer.add_callback(ScheduleCallback())
    trainer.train()
    assert trainer.model.anchors.steps == [1, 1, 3, 3, 5]


def test_unknown_step_raises():
    model = adapted(anchor_every=2)
    model.set_progress(0.5)
    with pytest.raises(BALoraError, match=r"anchor_every: 2 needs the number of the optimizer step.*set_progress"):
        model(**inputs_for(NAME))
    model.eval()(**inputs_for(NAME))  # needs none


def test_training_that_ends_before_the_first_anchors_raises(tmp_path):
    with pytest.raises(BALoraError, match="anchor_every: 8 is more than the 7 steps of training"):
        trainer_for(tmp_path, every=8).train()
    trainer_for(tmp_path, every=7).train()


def test_invalid_numbers_raise():
    with pytest.raises(BALoraError, match="anchor_every: 0 is out of range"):
        BALoraConfig(anchor_weight=1.0, anchor_every=0)
