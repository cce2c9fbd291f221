"""Sequence-to-sequence models: the objective on the decoder's tokens, its teacher, its trainer and what it saves."""

import warnings

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from peft import PeftModel, TaskType
from tiny_models import GROUPED, SEQ2SEQ, T5, inputs_for, make, train_steps, with_reg
from torch import Tensor

from balora import BALoraConfig, BALoraError, BALoraModel, BALoraTrainer, get_balora_model
from balora.adapters.teacher import lora_layers
from balora.evaluation.perplexity import held_out_loss
from balora.fused import head_aside, head_of
from balora.losses import consistency_loss, spectral_loss, topk_entropy_loss
from balora.model.drift import measure_drift
from balora.utils.batches import with_decoder_inputs

SETTINGS = {"consistency_weight": 0.7, "diversity_weight": 0.3, "spectral_weight": 0.2, "spectral_k": 3, "top_k": 7}
SETTINGS |= {f"{term}_schedule": "constant" for term in ("consistency", "diversity", "spectral")}
FAMILIES = ["t5", "t5-untied", "bart"]
START = {"bart": 1, "pegasus": 1, "m2m100": 1, "t5gemma": 2}  # T5's is 0
EXACT = {"rtol": 0, "atol": 1e-10}

pytestmark = pytest.mark.filterwarnings("ignore:balora")


def batch_for(name: str, rows: int = 4, seed: int = 1) -> dict[str, Tensor]:
    """What a collator without the model gives: no decoder inputs."""
    return {k: v for k, v in inputs_for(name, rows=rows, seed=seed).items() if k != "decoder_input_ids"}


def adapted(name: str, method: str = "pissa", **settings) -> BALoraModel:
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **SETTINGS, **settings}
    torch.manual_seed(0)
    return get_balora_model(make(name).double(), BALoraConfig(method=with_reg(method), **settings))


def moved(model: BALoraModel) -> BALoraModel:
    """Every trained weight a little off its start, the same for every model of these settings; no dropout."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data += 0.05 * noise
    for module in model.modules():
        for rate in ("p", "dropout", "activation_dropout", "dropout_rate"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    return model


def gradients(model: BALoraModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def shifted(labels: Tensor, start: int) -> Tensor:
    """What the decoder reads, by the rule in the models' documentation."""
    return torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1].where(labels[:, :-1] != -100, 0)], 1)


@pytest.mark.parametrize(("name", "direction"), [*((name, "forward") for name in SEQ2SEQ), ("t5", "reverse")])
def test_fused_unfused_and_naive_objective_are_one(name, direction):
    batch = batch_for(name)
    labels, mask = batch["labels"], batch["labels"] != -100
    outputs, grads = {}, {}
    for fused in (True, False):
        model = moved(adapted(name, consistency_direction=direction, fused_lm_head=fused)).train()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning would be the fall-back
            outputs[fused] = model(**batch)
        outputs[fused].loss.backward()
        grads[fused] = gradients(model)
    # T5Gemma takes its loss in float32, whatever its weights are.
    exact, of_gradient = ({"rtol": 1e-6, "atol": 0}, 1e-4) if name == "t5gemma" else ({"rtol": 1e-9, "atol": 0}, 1e-9)
    assert outputs[True].logits is None
    assert outputs[False].logits is not None
    torch.testing.assert_close(outputs[True].loss, outputs[False].loss.double(), **exact)
    for term, value in outputs[False].components.items():
        torch.testing.assert_close(outputs[True].components[term], value.double(), **exact, msg=term)
    assert grads[True].keys() == grads[False].keys()
    for key, gradient in grads[False].items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(grads[True][key], gradient, rtol=0, atol=of_gradient * scale + 1e-13, msg=key)

    reads = shifted(labels, START.get(name, 0))
    given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "decoder_input_ids": reads}
    logits = model.eval()(**given, use_cache=False).logits[mask]  # (M, V)
    teacher = make(name).double()(**given, use_cache=False).logits[mask]
    expected = (
        F.cross_entropy(logits, labels[mask])
        + 0.7 * consistency_loss(logits, teacher, temperature=2.0, direction=direction)
        + 0.3 * topk_entropy_loss(logits, top_k=7)
        + 0.2 * spectral_loss(logits, k=3, normalization="frobenius")
    )
    torch.testing.assert_close(outputs[True].loss, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_is_given_what_the_logits_are_made_of(name):
    """After T5's scaling where there is one, and before BART's bias, which the head we read off has."""
    model = make(name)
    inputs = with_decoder_inputs(model, batch_for(name), batch_for(name)["labels"])
    with head_aside(model) as received:
        assert model(**{**inputs, "labels": None}).logits.shape[-1] == 1
    logits = model(**inputs).logits
    assert logits.shape[-1] == 97
    torch.testing.assert_close(head_of(model).logits(received[0]), logits, rtol=1e-5, atol=1e-6)
    if name != "bart":
        with torch.no_grad():
            hidden = model(**inputs, output_hidden_states=True).decoder_hidden_states[-1]
        scale = 32**-0.5 if name == "t5" else 1.0
        torch.testing.assert_close(received[0], hidden * scale, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["t5", "bart", "m2m100"])
def test_decoder_inputs_are_the_labels_shifted_and_given_ones_stay(name):
    model, batch = make(name), batch_for(name)
    labels = batch.pop("labels")
    inputs = with_decoder_inputs(model, batch, labels)
    assert torch.equal(inputs["decoder_input_ids"], shifted(labels, START.get(name, 0)))
    torch.testing.assert_close(model(**inputs).logits, model(**batch, labels=labels).logits, **EXACT)
    own = {**batch, "decoder_input_ids": labels.clamp(min=3)}
    assert with_decoder_inputs(model, own, labels) is own


@pytest.mark.parametrize("method", ["lora", "pissa", "dora"])
def test_teacher_and_saved_adapter_are_exact(method, tmp_path):
    name = "t5"
    batch = batch_for(name)
    model = adapted(name, method)
    base = make(name).double()
    train_steps(model, batch)
    expected, trained = base(**batch).logits, model(**batch).logits
    assert (trained - expected).abs().max() > 1e-3, "the student has not moved, so nothing was shown"
    torch.testing.assert_close(model.teacher_forward(**batch).logits, expected, rtol=0, atol=1e-10)
    model.save_pretrained(tmp_path)
    stock = PeftModel.from_pretrained(make(name).double(), tmp_path).eval()
    assert stock.peft_config["default"].task_type == TaskType.SEQ_2_SEQ_LM
    torch.testing.assert_close(stock(**batch).logits, trained, rtol=0, atol=1e-6)
    reloaded = BALoraModel.from_pretrained(make(name).double(), tmp_path)
    torch.testing.assert_close(reloaded(**batch).logits, trained, rtol=0, atol=0)
    torch.testing.assert_close(reloaded.teacher_forward(**batch).logits, expected, rtol=0, atol=1e-10)
    written = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "max_new_tokens": 5}
    assert torch.equal(model.generate(**written), stock.generate(**written))
    with model.disable_adapter():
        assert torch.equal(model.generate(**written), base.generate(**written))


@pytest.mark.parametrize("name", FAMILIES)
def test_all_linear_leaves_embeddings_and_head_alone(name):
    model = adapted(name, "pissa")
    layers = lora_layers(model)
    kinds = {layer.rsplit(".", 1)[-1] for layer in layers}
    expected = {
        "t5": {"q", "k", "v", "o", "wi", "wo"},
        "t5-untied": {"q", "k", "v", "o", "wi_0", "wi_1", "wo"},
        "bart": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
    }[name]
    assert kinds == expected
    linear = [m for m in make(name).modules() if isinstance(m, torch.nn.Linear)]
    assert len(layers) == len(linear) - 1


@pytest.mark.parametrize("rate", [0.25, 0.6])
def test_a_sampled_teacher_is_the_same_fused_and_not_and_sees_that_share(rate, monkeypatch):
    losses, seen = [], []
    for fused in (True, False):
        model = moved(adapted("t5", sample_rate=rate, fused_lm_head=fused)).train()
        real = model.teacher_forward
        monkeypatch.setattr(
            model,
            "teacher_forward",
            lambda real=real, **inputs: (seen.append(len(inputs["decoder_input_ids"])), real(**inputs))[1],
        )
        torch.manual_seed(3)
        losses.append(model(**batch_for("t5", rows=20)).loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-7, atol=0)  # 1/rate is rounded to float32
    assert seen == [20 * rate] * 2


@pytest.mark.parametrize("fused", [True, False])
def test_a_micro_batch_without_labels_to_learn_is_zero_not_nan(fused):
    batch = batch_for("t5")
    batch["labels"][:] = -100
    model = adapted("t5", fused_lm_head=fused).train()
    output = model(**batch)
    output.loss.backward()
    assert output.components["task"] == 0
    assert output.loss == 0
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


def rows(count: int = 8) -> list[dict[str, list[int]]]:
    """A task of its own, the input's second half backwards, and inputs and targets of all lengths."""
    generator = torch.Generator().manual_seed(0)
    dataset = []
    for i in range(count):
        ids = torch.randint(5, 20, (4 + 2 * (i % 5),), generator=generator).tolist()
        dataset.append({"input_ids": [*ids, 1], "labels": [*ids[len(ids) // 2 :][::-1], 1]})
    return dataset


class Padding:
    """Enough of a tokenizer for `DataCollatorForSeq2Seq`."""

    padding_side = "right"

    def pad(self, features: list[dict], return_tensors: str, **_) -> dict[str, Tensor]:
        ids = [torch.tensor(f["input_ids"]) for f in features]
        pad = torch.nn.utils.rnn.pad_sequence
        padded = {
            "input_ids": pad(ids, batch_first=True, padding_value=0),
            "attention_mask": pad([torch.ones_like(x) for x in ids], batch_first=True),
        }
        return padded


def trainer_for(directory, size: int, accumulation: int, model: BALoraModel, **settings) -> BALoraTrainer:
    arguments = {"max_steps": 1, "learning_rate": 5.0, "optim": "sgd", "max_grad_norm": 1e9, "logging_steps": 1}
    return BALoraTrainer(
        model=model,
        args=hf.TrainingArguments(
            str(directory),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            save_strategy="no",
            **{**arguments, **settings},
        ),
        train_dataset=rows(size * accumulation),
        data_collator=hf.DataCollatorForSeq2Seq(Padding(), return_tensors="pt"),
    )


@pytest.mark.parametrize(("name", "fused"), [("t5", True), ("t5", False), ("bart", True)])
def test_accumulation_does_not_change_the_step(name, fused, tmp_path):
    """Without the spectral term, which is a micro-batch's own."""
    after, logs = [], []
    for size, accumulation in ((8, 1), (4, 2), (1, 8)):
        model = moved(adapted(name, spectral_weight=0.0, fused_lm_head=fused))
        trainer = trainer_for(tmp_path, size, accumulation, model, lr_scheduler_type="constant")
        trainer.train()
        after.append({n: p.detach() for n, p in model.named_parameters() if p.requires_grad})
        logs.append(next(row for row in trainer.state.log_history if "loss_consistency" in row))
    whole = moved(adapted(name, spectral_weight=0.0)).train()
    start = {n: p.detach().clone() for n, p in whole.named_parameters()}
    components = whole(**trainer.data_collator(rows(8))).components
    for term, value in components.items():
        assert logs[0][f"loss_{term}"] == pytest.approx(value.item(), rel=1e-4), "counts are of the decoder's tokens"
    assert max((after[0][n] - start[n]).abs().max() for n in after[0]) > 1e-2, "nothing was trained"
    for other, log in zip(after[1:], logs[1:], strict=True):
        for n, parameter in after[0].items():
            torch.testing.assert_close(other[n], parameter, rtol=1e-6, atol=1e-7, msg=n)  # shares are float32
        for key in ("loss", "loss_task", "loss_consistency", "loss_diversity"):
            assert log[key] == pytest.approx(logs[0][key], rel=1e-4)  # the trainer's own loss is rounded


def test_training_learns_and_measures_its_drift(tmp_path):
    model = get_balora_model(make("t5"), BALoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    trainer = trainer_for(
        tmp_path, 16, 1, model, max_steps=25, learning_rate=2e-2, optim="adamw_torch", lr_scheduler_type="constant"
    )
    batches = list(trainer.get_eval_dataloader(trainer.train_dataset))
    before = held_out_loss(model, batches)
    trainer.train()
    assert held_out_loss(model, batches) < before - 0.5
    assert model.drift["kl_to_base"] > 0.01


def test_drift_and_held_out_loss_are_those_of_the_labelled_tokens():
    model, batches = moved(adapted("t5-untied")).eval(), [batch_for("t5-untied", seed=s) for s in (1, 2)]
    base = make("t5-untied").double()
    nll, divergence, agreements = [], [], []
    for batch in batches:
        student, teacher = model(**batch).logits.log_softmax(-1), base(**batch).logits.log_softmax(-1)
        for i, j in (batch["labels"] != -100).nonzero().tolist():
            nll.append(-student[i, j, batch["labels"][i, j]])
            divergence.append((teacher[i, j].exp() * (teacher[i, j] - student[i, j])).sum())
            agreements.append(student[i, j].argmax() == teacher[i, j].argmax())
    assert held_out_loss(model, batches) == pytest.approx(torch.stack(nll).mean().item(), rel=1e-5)
    drift = measure_drift(model, batches)
    assert drift["kl_to_base"] == pytest.approx(torch.stack(divergence).mean().item(), rel=1e-9)
    assert drift["top1_agreement"] == pytest.approx(torch.stack(agreements).double().mean().item())


def test_gradient_checkpointing_changes_nothing():
    """The student's activations are recomputed in its backward, after the teacher's pass."""
    results = []
    for checkpointing in (True, False):
        model = moved(adapted("t5")).train()
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model(**batch_for("t5")).loss.backward()
        results.append(gradients(model))
    for key, gradient in results[1].items():
        torch.testing.assert_close(results[0][key], gradient, rtol=1e-9, atol=1e-12, msg=key)


def test_a_head_within_a_module_trained_in_full_falls_back():
    model = adapted("t5gemma", modules_to_save=["lm_head"]).train()
    with pytest.warns(UserWarning, match="its head is part of a larger module that is trained in full"):
        output = model(**batch_for("t5gemma"))
    assert output.logits is not None


def test_published_values_and_task_are_those_of_generation():
    config = get_balora_model(make("t5"), BALoraConfig()).balora_config
    assert config.task_type == TaskType.SEQ_2_SEQ_LM
    assert (config.consistency_weight, config.spectral_k, config.spectral_schedule) == (0.025, 10, "two_phase")


def test_encoders_and_decoders_alone_are_no_sequence_to_sequence_models():
    with pytest.raises(BALoraError, match=r"T5EncoderModel is neither .* nor a sequence-to-sequence model"):
        get_balora_model(hf.T5EncoderModel(hf.T5Config(**T5)), BALoraConfig())
    listening = hf.Qwen2AudioConfig(
        text_config={**GROUPED, "model_type": "qwen2"},
        audio_config={"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16},
    )
    with pytest.raises(BALoraError, match="neither a causal"):
        get_balora_model(hf.Qwen2AudioForConditionalGeneration(listening), BALoraConfig())
