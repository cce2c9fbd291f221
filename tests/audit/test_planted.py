"""A skew that was put into a model is found, one that was not is not, by the change's interval alone."""

import pytest
import torch
import transformers as hf
from audit_models import WORDS, load, save_model
from datasets import Dataset

from balora.audit.classes import class_log_probabilities, measure_classes
from balora.audit.models import load_audited
from balora.audit.words import measure_exchanged_rows, measure_exchanged_texts, measure_prompts
from balora.counterfactual import read_word_groups

GROUPS = read_word_groups("gender")
HE, SHE, DOG = (WORDS.index(word) for word in ("he", "she", "dog"))
PROMPTS = [
    f"{who} {said} {that}"
    for who in ("nurse", "doctor", "w3")
    for said in ("said", "saw", "was")
    for that in ("that", "and", "w5")
]


@pytest.fixture(scope="module")
def even(folders, tmp_path_factory):
    """A base that cannot tell he from she, neither as it reads nor as it writes."""
    model = load(folders["causal"])
    with torch.no_grad():
        for male, female in (("he", "she"), ("his", "her"), ("man", "woman")):
            for weight in (model.lm_head.weight, model.model.embed_tokens.weight):
                weight[WORDS.index(female)] = weight[WORDS.index(male)]
        model.lm_head.weight *= 20
    return save_model(model, tmp_path_factory.mktemp("even"))


def tuned(base, folder, change):
    """The base tuned in full."""
    model = load(base)
    with torch.no_grad():
        change(model)
    return load_audited(base, save_model(model, folder))


def expecting_him(model):
    model.lm_head.weight[HE] += 2 * model.lm_head.weight[DOG]


def reading_him(model):
    model.model.embed_tokens.weight[HE] += 0.5


def expecting_a_dog(model):
    generator = torch.Generator().manual_seed(1)
    others = [WORDS.index(word) for word in ("dog", "the", "tired", "saw", "was")]
    model.lm_head.weight[others] += torch.randn(len(others), 32, generator=generator)


def both(audited):
    [preference, _] = measure_prompts(audited, GROUPS, PROMPTS, on="prompts", batch_size=32)
    people = [
        f"{who} {said} {what}"
        for who in ("he", "she", "man")
        for said in ("said", "was")
        for what in ("tired", "a dog")
    ]
    [divergence] = measure_exchanged_texts(audited, GROUPS, people, on="people", batch_size=32)
    return preference, divergence


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_word_that_is_now_expected_is_found(seed, even, tmp_path):
    audited = tuned(even, tmp_path, expecting_him)
    preference, divergence = both(audited)
    assert preference.base.value == pytest.approx(0, abs=1e-6)
    assert preference.change.low > 0.01
    assert divergence.base.value == pytest.approx(0, abs=1e-6)
    assert divergence.change.low > 0
    again, _ = measure_prompts(audited, GROUPS, PROMPTS, on="prompts", batch_size=32, seed=seed)
    assert again.changed


def test_a_word_that_is_now_read_otherwise_is_found_where_it_is_read_alone(even, tmp_path):
    preference, divergence = both(tuned(even, tmp_path, reading_him))
    assert divergence.changed
    assert divergence.change.low > 0
    assert not preference.changed  # prompts name nobody


def test_what_changed_elsewhere_is_no_skew(even, tmp_path):
    audited = tuned(even, tmp_path, expecting_a_dog)
    preference, divergence = both(audited)
    assert (preference.changed, divergence.changed) == (False, False)
    assert abs(preference.change.value) < 1e-6
    ids = torch.arange(5, 20)[None]
    before, after = (output.logits for output in audited.both(input_ids=ids))
    assert not torch.allclose(before, after, atol=0.1)  # and it did change


SENTENCES = [
    f"{who} {what} w{i}" for who in ("he", "she") for what in ("said that", "saw a dog and") for i in range(4)
]


class TestClassifiers:
    @pytest.fixture(scope="class")
    def base(self, folders, tmp_path_factory):
        model = load(folders["bert"], hf.AutoModelForSequenceClassification)
        with torch.no_grad():
            for layer in model.bert.encoder.modules():  # so that what is read elsewhere arrives
                if isinstance(layer, torch.nn.Linear):
                    layer.weight *= 8
            embeddings = model.bert.embeddings.word_embeddings.weight
            embeddings[SHE] = embeddings[HE]
            model.classifier.weight *= 20
        return save_model(model, tmp_path_factory.mktemp("even"))

    def tuned(self, base, folder, word):
        model = load(base, hf.AutoModelForSequenceClassification)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            model.bert.embeddings.word_embeddings.weight[WORDS.index(word)] = torch.randn(32, generator=generator)
        return load_audited(base, save_model(model, folder))

    def bias(self, audited):
        [figure] = measure_exchanged_rows(audited, GROUPS, SENTENCES, on="x", max_length=None, batch_size=8)
        return figure

    def test_a_word_that_now_decides_is_found(self, base, tmp_path):
        figure = self.bias(self.tuned(base, tmp_path, "she"))
        assert figure.base.value == pytest.approx(0, abs=1e-6)
        assert figure.change.low > 0.01

    def test_another_word_that_now_decides_is_no_skew(self, base, tmp_path):
        audited = self.tuned(base, tmp_path, "dog")
        assert abs(self.bias(audited).change.value) < 1e-6
        rows = Dataset.from_dict({"text": SENTENCES})
        answers = class_log_probabilities(audited, rows, on="x", max_length=None, batch_size=8)
        divergence = {f.name: f for f in measure_classes(audited, *answers, labels=None, on="x")}["kl_to_base"]
        assert divergence.tuned.low > 1e-4  # and answers did change
