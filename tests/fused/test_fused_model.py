"""The fused training forward against the plain one: the same numbers in every model, precision and setting."""

import warnings

import pytest
import torch
import transformers as hf
from tiny_models import CAUSAL, GROUPED, SEQ2SEQ, inputs_for, make, train_steps
from torch.utils._python_dispatch import TorchDispatchMode

import balora.fused.chunks
from balora import BALoraConfig, get_balora_model

WEIGHTS = {"consistency_weight": 0.7, "diversity_weight": 0.3, "spectral_weight": 0.2, "spectral_k": 3, "top_k": 7}
CONSTANT = {f"{term}_schedule": "constant" for term in ("consistency", "diversity", "spectral")}


def adapted(base, fused: bool, **settings):
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **WEIGHTS, **CONSTANT, **settings}
    torch.manual_seed(0)
    return get_balora_model(base, BALoraConfig(fused_lm_head=fused, **settings))


def pair(name: str, dtype: torch.dtype = torch.float32, **settings):
    """Fused and plain model of the same weights, a few steps from the start."""
    models = []
    for fused in (True, False):
        model = adapted(make(name).to(dtype), fused, **settings)
        if dtype == torch.float32:
            train_steps(model, inputs_for(name), steps=2)
        models.append(model.train())
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    fused, plain = models
    trained = {n: p.data for n, p in plain.named_parameters()}
    for n, p in fused.named_parameters():
        p.data.copy_(trained[n])
    return fused, plain


def assert_same(fused, plain, inputs, rtol=1e-4, **call):
    outputs = {}
    for model in (fused, plain):
        model.zero_grad()
        torch.manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning would be the fall-back
            outputs[model] = model(**inputs, **call)
        outputs[model].loss.backward()
    assert outputs[fused].logits is None
    torch.testing.assert_close(outputs[fused].loss, outputs[plain].loss.float(), rtol=rtol, atol=rtol)
    assert set(outputs[fused].components) == set(outputs[plain].components)
    for name, value in outputs[plain].components.items():
        torch.testing.assert_close(outputs[fused].components[name], value.float(), rtol=rtol, atol=rtol, msg=name)
    gradients = dict(fused.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            scale = parameter.grad.abs().max().item()
            torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=rtol, atol=rtol * scale + 1e-9)


@pytest.mark.parametrize("name", [*CAUSAL, *SEQ2SEQ])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_every_architecture(name, direction):
    fused, plain = pair(name, consistency_direction=direction)
    assert_same(fused, plain, inputs_for(name))


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi", "granite", "t5-untied", "bart"])
def test_a_trained_head_gets_its_own_gradient_and_the_teacher_keeps_the_old_one(name):
    fused, plain = pair(name, modules_to_save=["lm_head"])
    assert any("lm_head" in n and p.requires_grad for n, p in fused.named_parameters())
    assert_same(fused, plain, inputs_for(name))


@pytest.mark.parametrize("method", ["lora+reg", "dora+reg"])
def test_other_methods(method):
    assert_same(*pair("llama", method=method), inputs_for("llama"))


@pytest.mark.parametrize("temperature", [1.0, 3.5])
def test_other_temperatures(temperature):
    assert_same(*pair("llama", temperature=temperature), inputs_for("llama"))


def test_counts_of_an_accumulated_batch():
    inputs = inputs_for("llama")
    assert_same(*pair("llama"), inputs, num_items_in_batch=torch.tensor(100), num_tokens_in_batch=torch.tensor(130))


def test_without_an_attention_mask():
    inputs = inputs_for("llama")
    del inputs["attention_mask"]
    assert_same(*pair("llama"), inputs)


def test_embeddings_in_place_of_ids():
    inputs, (fused, plain) = inputs_for("llama"), pair("llama")
    inputs["inputs_embeds"] = plain.get_input_embeddings()(inputs.pop("input_ids")).detach()
    assert_same(fused, plain, inputs)


@pytest.mark.parametrize("rate", [0.25, 0.4])
def test_a_sampled_teacher(rate):
    assert_same(*pair("llama", sample_rate=rate), inputs_for("llama"))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_bfloat16(name):
    fused, plain = pair(name, torch.bfloat16)
    assert_same(fused, plain, inputs_for(name), rtol=4e-2)


def test_bfloat16_autocast():
    fused, plain = pair("llama")
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(fused, plain, inputs_for("llama"), rtol=4e-2)


def test_gradients_below_half_precision_s_smallest_number_survive():
    """A loss scaled on the way back, as with fp16 training, must find gradients that were not flushed to zero."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, 16, generator=generator)
    weight = torch.randn(40, 16, generator=generator) * 0.1
    share = torch.full((8,), 1e-8)
    rows = balora.fused.chunks.RowWeights(torch.arange(8), share, share * 0, share * 0)
    gradients = {}
    for dtype in (torch.float32, torch.float16):
        h = hidden.to(dtype, copy=True).requires_grad_()
        head = balora.fused.Head(weight.to(dtype))
        loss, _ = balora.fused.chunks.head_loss(h, head, None, None, rows, balora.fused.row_gradients.RowObjective())
        (loss * 2.0**24).backward()
        gradients[dtype] = h.grad.float()
    torch.testing.assert_close(gradients[torch.float16], gradients[torch.float32], rtol=2e-2, atol=1e-4)


class Widest(TorchDispatchMode):
    """Remembers the most rows of any tensor whose last axis is the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.ndim and tensor.shape[-1] == self.vocabulary:
                self.rows = max(self.rows, tensor.numel() // self.vocabulary)
        return result


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi", "t5", "bart", "t5gemma"])
def test_no_tensor_of_tokens_by_vocabulary_exists(name, monkeypatch):
    monkeypatch.setattr(balora.fused.chunks, "CHUNK_ELEMENTS", {"cpu": 0})
    monkeypatch.setattr(balora.fused.chunks, "FEWEST_ROWS", 8)
    monkeypatch.setattr(balora.fused.spectrum, "VOCABULARY_CHUNK", 10)
    inputs = inputs_for(name, rows=8)  # 96 tokens
    model = adapted(make(name), fused=True, modules_to_save=None if name == "t5gemma" else ["lm_head"]).train()
    model(**inputs).loss.backward()  # the start-up check looks at 12 tokens' logits
    with Widest(97) as seen:
        model(**inputs).loss.backward()
    assert 8 <= seen.rows <= 32  # a chunk's, or the head's transposed weight, (32, 97)


class Doubled(hf.LlamaForCausalLM):
    """Does to its logits what no head of ours does."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output


class OtherLoss(hf.LlamaForCausalLM):
    def loss_function(self, **kwargs):
        return super().loss_function(**kwargs) + 1.0


@pytest.mark.parametrize(
    ("base", "settings", "reason"),
    [
        (Doubled, {}, "its logits are not its head's"),
        (OtherLoss, {}, "its loss is not the cross-entropy of its logits"),
        (
            hf.LlamaForCausalLM,
            {"target_modules": ["q_proj", "lm_head"], "method": "lora+reg"},
            "its head is a .*Linear, not a plain",
        ),
    ],
)
def test_an_unknown_head_falls_back_to_logits_with_one_warning(base, settings, reason):
    def build(fused):
        torch.manual_seed(0)
        return adapted(base(hf.LlamaConfig(**GROUPED)), fused, **settings).train()

    inputs, fused, plain = inputs_for("llama"), build(True), build(False)
    with pytest.warns(UserWarning, match=reason):
        first = fused(**inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = fused(**inputs)
    expected = plain(**inputs)
    for output in (first, second):
        torch.testing.assert_close(output.loss, expected.loss)
        assert output.logits is not None


def test_the_start_up_check_changes_nothing():
    fused = adapted(make("gpt2"), True).train()
    fused.get_base_model().transformer.h[0].eval()
    modes = [module.training for module in fused.modules()]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert fused._can_fuse(inputs_for("gpt2"))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in fused.modules()] == modes


def test_the_teacher_sees_the_picked_sequences_alone(monkeypatch):
    model = adapted(make("llama"), True, sample_rate=0.25).train()
    seen = []
    real = model.teacher_forward
    monkeypatch.setattr(
        model, "teacher_forward", lambda **inputs: (seen.append(len(inputs["input_ids"])), real(**inputs))
    )
    for _ in range(5):
        model(**inputs_for("llama", rows=8))
    assert seen == [2] * 5


def test_a_sampled_teacher_s_loss_is_the_whole_one_on_average(monkeypatch):
    inputs, whole = inputs_for("llama"), adapted(make("llama"), True).train()
    train_steps(whole, inputs)
    sampled = adapted(make("llama"), True, sample_rate=0.25)
    sampled.load_state_dict(whole.state_dict())
    losses = []
    for row in range(4):
        picked = torch.arange(4) == row
        monkeypatch.setattr(sampled, "_pick_sequences", lambda _, picked=picked: picked)
        losses.append(sampled.train()(**inputs).loss)
    torch.testing.assert_close(torch.stack(losses).mean(), whole.train()(**inputs).loss)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.6])
def test_every_sequence_is_picked_as_often_as_the_rate_says(rate):
    model = adapted(make("llama"), True, sample_rate=rate)
    torch.manual_seed(0)
    picks = torch.stack([model._pick_sequences(4) for _ in range(4000)]).float()
    torch.testing.assert_close(picks.mean(0), torch.full((4,), rate), rtol=0, atol=0.03)
    assert set(picks.sum(1).tolist()) <= {float(int(rate * 4)), float(int(rate * 4) + 1)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_fifty_steps_fused_and_unfused_agree(name):
    inputs = [inputs_for(name, seed=seed) for seed in range(5)]
    curves, weights = [], []
    for fused in (True, False):
        model = adapted(make(name), fused).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        losses = []
        for step in range(50):
            loss = model(**inputs[step % 5]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        curves.append(torch.tensor(losses))
        weights.append({n: p for n, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-5, atol=0)
    assert curves[0][-1] < curves[0][0]
    for name, weight in weights[1].items():
        scale = weight.abs().max().item()
        torch.testing.assert_close(weights[0][name], weight, rtol=1e-5, atol=1e-5 * scale, msg=name)
