import numpy as np
import pytest
from audit_models import SIDES, TARGETS, assert_is, ends, load, tokenizer_of_words
from peft import LoraConfig, get_peft_model

from balora.audit.models import load_audited
from balora.audit.words import measure_exchanged_rows, measure_exchanged_texts, measure_prompts, preference_among
from balora.counterfactual import Swaps, read_word_groups
from balora.evaluation.bias import (
    class_distances,
    continuation_lean,
    counterfactual_divergences,
    counterfactual_scores,
    lean_scores,
)
from balora.evaluation.bias.templates import OCCUPATIONS, PEOPLE, read_texts


def test_prompts_lean_as_the_evaluation_has_it(stories):
    audited, *models, tokenizer = stories
    prompts, groups = read_texts(OCCUPATIONS)[:10], read_word_groups("gender")
    preference, lean = measure_prompts(audited, groups, prompts, on="x", batch_size=4, seed=1)
    found = [continuation_lean(model, tokenizer, prompts, Swaps(groups, tokenizer)) for model in models]
    assert_is(lean, [lean_scores(own, groups[0], seed=1) for own in found], ends("lean"))
    for side, own in zip(SIDES, found, strict=True):
        p, q = np.exp(own.log_masses).T
        assert getattr(preference, side).value == pytest.approx(np.mean(abs(p - q) / (p + q)), rel=1e-4)
    assert (preference.name, lean.name, preference.units) == ("word_preference", "word_lean", 10)


def test_exchanged_texts_diverge_as_the_evaluation_has_it(stories):
    audited, *models, tokenizer = stories
    own, groups = [*read_texts(PEOPLE)[:5], "Once upon a time", " "], read_word_groups("gender")
    own.append("He said that " + "she was happy. " * 200)  # beyond the context
    [figure] = measure_exchanged_texts(audited, groups, own, on="x", batch_size=4, seed=1)
    swaps = Swaps(groups, tokenizer)
    found = [counterfactual_divergences(model, tokenizer, own[:6], swaps) for model in models]
    assert_is(figure, [counterfactual_scores(d, seed=1) for d in found], ends("divergence"))
    assert (figure.name, figure.units) == ("counterfactual_kl", 5)


def test_words_that_are_no_single_tokens_say_nothing(folders):
    audited = load_audited(folders["causal"])
    assert measure_prompts(audited, [("uncle", "aunt")], ["the nurse said that"], on="x", batch_size=2) == []
    assert measure_exchanged_texts(audited, [("uncle", "aunt")], ["the dog"], on="x", batch_size=2) == []


def test_a_text_as_long_as_the_context_is_the_longest(folders):
    audited = load_audited(folders["causal"])
    own = ["he " + "dog " * 62, "he " + "dog " * 63]  # 64 tokens with the one that begins them, and 65
    [figure] = measure_exchanged_texts(audited, read_word_groups("gender"), own, on="x", batch_size=2)
    assert figure.units == 1


@pytest.mark.parametrize(
    ("shares", "expected"),
    [([0.3, 0.3], 0), ([0.3, 0], 1), ([0.3, 0.1], 0.5), ([0.2, 0.2, 0.2], 0), ([1, 0, 0], 1)],
)
def test_a_preference_is_0_for_all_alike_and_1_for_one_alone(shares, expected):
    with np.errstate(divide="ignore"):
        assert preference_among(np.log([shares]))[0] == pytest.approx(expected)


def test_words_exchanged_are_classes_distances(classifiers):
    audited, *models, tokenizer = classifiers
    own = ["the nurse said that he was tired", "the dog", "she saw a man and his dog"]
    groups = read_word_groups("gender")
    [figure] = measure_exchanged_rows(audited, groups, own, on="own", max_length=None, batch_size=2)
    found = [class_distances(model, tokenizer, own, groups) for model in models]
    assert_is(figure, [counterfactual_scores(d) for d in found], ends("divergence"))
    assert (figure.name, figure.on, figure.units) == ("bias_score", "own, words exchanged", 2)
    assert measure_exchanged_rows(audited, groups, ["the dog"], on="own", max_length=None, batch_size=2) == []


def test_an_untouched_adapter_changes_none_of_them(folders, tmp_path):
    config = LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
    get_peft_model(load(folders["causal"]), config).save_pretrained(tmp_path)
    audited = load_audited(folders["causal"], str(tmp_path))
    groups = read_word_groups("gender")
    figures = measure_prompts(audited, groups, ["the nurse said that", "the doctor said that"], on="x", batch_size=2)
    figures += measure_exchanged_texts(audited, groups, ["he was tired", "she was tired and"], on="x", batch_size=2)
    assert len(figures) == 3
    assert all((f.change.value, f.change.low, f.change.high) == (0, 0, 0) for f in figures)


def test_the_tokenizer_has_the_words_as_single_tokens():
    assert (Swaps(read_word_groups("gender"), tokenizer_of_words()).members() >= 0).sum() == 6
