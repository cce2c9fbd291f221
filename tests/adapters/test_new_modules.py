"""A classifier's modules that its checkpoint lacks: trained, saved, and the same after a reload."""

import pytest
import torch
import transformers as hf
from peft import PeftModel
from tiny_models import GROUPED, SMALL, T5, off_its_start

from balora import BALoraConfig, BALoraError, BALoraModel, get_balora_model
from balora.adapters.new_modules import mark_new_modules
from balora.baselines import make_baseline
from balora.baselines.own_parameters import task_heads

DISTILBERT = {
    "dim": 32,
    "hidden_dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
#: Checkpoints without a classification head, and the modules that a classifier has beside them.
HEADLESS = {
    "distilbert": (lambda: hf.DistilBertModel(hf.DistilBertConfig(**DISTILBERT)), ["pre_classifier", "classifier"]),
    "bert": (lambda: hf.BertForMaskedLM(hf.BertConfig(**SMALL)), ["bert.pooler", "classifier"]),
    "modernbert": (lambda: hf.ModernBertModel(hf.ModernBertConfig(**SMALL, **ENDS)), ["head", "classifier"]),
    "roberta": (lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**SMALL)), ["classifier"]),
    "deberta": (lambda: hf.DebertaV2Model(hf.DebertaV2Config(**SMALL, **RELATIVE)), ["pooler", "classifier"]),
    "t5": (lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)), ["classification_head"]),
    "llama": (lambda: hf.LlamaModel(hf.LlamaConfig(**GROUPED, pad_token_id=0)), ["score"]),
}
IDS = torch.tensor([[5, 6, 7, 8, 9, 1], [10, 11, 12, 13, 14, 1]])
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


@pytest.fixture(params=HEADLESS)
def headless(request, tmp_path):
    """Return the folder of a checkpoint without a head, and the names of what a classifier has beside it."""
    torch.manual_seed(0)
    make, new = HEADLESS[request.param]
    make().save_pretrained(tmp_path / "base")
    return tmp_path / "base", new


def classifier(folder, seed: int) -> hf.PreTrainedModel:
    """Load a classifier as another process would, with random weights of its own."""
    torch.manual_seed(seed)
    return hf.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()


@torch.no_grad()
def logits(model):
    return model.eval()(**INPUTS).logits


def test_modules_that_the_checkpoint_lacks_are_found(headless):
    folder, new = headless
    assert mark_new_modules(classifier(folder, 0)) == new
    assert set(new) <= set(task_heads(classifier(folder, 0)))
    config = classifier(folder, 0).config
    assert mark_new_modules(hf.AutoModelForSequenceClassification.from_config(config)) == []


@pytest.mark.parametrize("method", ["lora", "pissa", "adalora"])
def test_a_reload_with_other_random_weights_gives_the_same_logits(method, headless, tmp_path):
    folder, _ = headless
    if method == "adalora":
        model = make_baseline(classifier(folder, 0), "adalora", r=2, lora_alpha=4, target_modules="all-linear")
    else:
        config = BALoraConfig(method=method, r=2, target_modules="all-linear", init_lora_weights=True)
        model = get_balora_model(classifier(folder, 0), config)
    expected = logits(off_its_start(model))
    model.save_pretrained(tmp_path / "saved")
    stock = PeftModel.from_pretrained(classifier(folder, 1), tmp_path / "saved")
    torch.testing.assert_close(logits(stock), expected, atol=1e-5, rtol=1e-4)
    if method != "adalora":
        ours = BALoraModel.from_pretrained(classifier(folder, 2), tmp_path / "saved")
        torch.testing.assert_close(logits(ours), expected, atol=1e-5, rtol=1e-4)


def test_the_teacher_has_the_head_in_training_with_and_without_its_cache(headless):
    folder, new = headless
    model = get_balora_model(classifier(folder, 0), BALoraConfig(method="lora", r=2, target_modules="all-linear"))
    plain = classifier(folder, 0)
    off_its_start(model)
    state = {}
    for name in new:
        wrapper = model.get_base_model().get_submodule(name)
        state |= {f"{name}.{key}": value for key, value in wrapper.modules_to_save["default"].state_dict().items()}
    assert not plain.load_state_dict(state, strict=False).unexpected_keys
    expected = logits(plain)
    torch.testing.assert_close(model.teacher_forward(**INPUTS).logits, expected)
    for _ in range(2):  # computed, then read from the cache
        torch.testing.assert_close(model._plain_teacher_logits(INPUTS), expected)


def test_an_adapter_without_a_random_module_s_weights_is_refused(tmp_path):
    hf.BertForMaskedLM(hf.BertConfig(**SMALL)).save_pretrained(tmp_path / "base")
    with_pooler = classifier(tmp_path / "base", 0)
    with_pooler.save_pretrained(tmp_path / "whole")
    whole = classifier(tmp_path / "whole", 0)
    get_balora_model(whole, BALoraConfig(method="lora", r=2)).save_pretrained(tmp_path / "saved")
    with pytest.raises(BALoraError, match=r"has no bert\.pooler\.dense\.weight, and neither has the base's"):
        BALoraModel.from_pretrained(classifier(tmp_path / "base", 0), tmp_path / "saved")
