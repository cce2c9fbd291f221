"""DFT, ASFT and SFT with a divergence: loss and gradient of both paths against a naive loop in float64."""

import pytest
import torch
from tiny_models import inputs_for, make, off_its_start, without_labels

import balora.fused.chunks
from balora import BALoraConfig, BALoraError, get_balora_model
from balora.config.published import PRESETS
from balora.losses import dft_loss

ADAPTER = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


@pytest.fixture(autouse=True)
def many_chunks(monkeypatch):
    monkeypatch.setattr(balora.fused.chunks, "CHUNK_ELEMENTS", {"cpu": 0})
    monkeypatch.setattr(balora.fused.chunks, "FEWEST_ROWS", 5)


def adapted(name: str, method: str, fused: bool, **settings):
    torch.manual_seed(0)
    settings = {**PRESETS[method], **ADAPTER, "fused_lm_head": fused, **settings}
    return off_its_start(get_balora_model(make(name).double(), BALoraConfig(**settings)))


def naive(model, method: str, inputs) -> torch.Tensor:
    """The objective token by token, with the weight of each probability as a number."""
    model.eval()
    student = model(**without_labels(inputs)).logits
    teacher = model.teacher_forward(**without_labels(inputs)).logits
    model.train()
    total, count, shift = 0.0, 0, model.shift
    for row, labels in enumerate(inputs["labels"].tolist()):
        for position, label in enumerate(labels):
            if label == -100 or position < shift:
                continue
            log_q, log_p = (z[row, position - shift].log_softmax(-1) for z in (student, teacher))
            weight = 1.0 if method == "sft+kl" else log_q[label].exp().item()
            total = total - weight * log_q[label]
            if method != "dft":
                total = total + 0.05 * sum(log_p.exp() * (log_p - log_q))
            count += 1
    return total / count


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["llama", "gemma2", "t5-untied"])  # gemma2 has a softcap
@pytest.mark.parametrize("method", ["dft", "asft", "sft+kl"])
def test_objective_and_gradient(method, name, fused):
    inputs = inputs_for(name)
    model = adapted(name, method, fused)
    output, expected = model(**inputs), naive(model, method, inputs)
    assert (output.logits is None) == fused
    # Transformers' own cross-entropy, and Llama's norms, are in float32.
    torch.testing.assert_close(output.loss.double(), expected, rtol=1e-6, atol=1e-6)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(output.loss, trained.values())
    for gradient, other in zip(found, torch.autograd.grad(expected, trained.values()), strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-6 * other.abs().max().item())
    assert set(output.components) == ({"task"} if method == "dft" else {"task", "consistency"})


@pytest.mark.parametrize("fused", [True, False])
def test_micro_batches_add_up_to_the_batch(fused):
    inputs = inputs_for("llama")
    model = adapted("llama", "asft", fused)
    whole = model(**inputs).loss
    counts = model.counts_of(inputs, inputs["labels"])
    parts = [{key: value[rows] for key, value in inputs.items()} for rows in (slice(0, 1), slice(1, 4))]
    given = {"num_items_in_batch": counts.items, "num_tokens_in_batch": counts.tokens}
    assert counts.items == counts.tokens
    total = sum(model(**part, **given).loss for part in parts)
    torch.testing.assert_close(total, whole, rtol=1e-6, atol=1e-7)


def test_the_probability_has_no_gradient():
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(5)
    loss = dft_loss(logits, labels)
    p = logits.softmax(-1)
    label_p = p[labels, labels]
    torch.testing.assert_close(loss, -label_p * label_p.log())
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, label_p[:, None] * (p - torch.eye(7).double()[:5]))


def test_a_batch_without_labels_has_loss_0():
    inputs = inputs_for("llama")
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    for fused in (True, False):
        assert adapted("llama", "dft", fused)(**inputs).loss == 0


def test_classifiers_and_trainers_with_another_loss_are_refused():
    with pytest.raises(BALoraError, match="task_loss: 'dft' has no effect with method lora: it needs a gen"):
        get_balora_model(make("bert"), BALoraConfig(method="lora", task_loss="dft"))
    model = adapted("llama", "dft", True)
    with pytest.raises(BALoraError, match=r"this trainer of TRL computes a loss of its own"):
        model(**inputs_for("llama"), fused_lm_head=True)
