import random

import numpy as np
import pytest
from audit_models import SIDES, assert_is, ends

from balora.audit.benchmarks import measure_benchmark
from balora.evaluation.benchmarks import BENCHMARKS, benchmark
from balora.evaluation.benchmarks.bbq import Questions
from balora.evaluation.benchmarks.continuations import Prompts
from balora.evaluation.bias import (
    bbq_likelihoods,
    bbq_scores,
    continuation_scores,
    read_bbq,
    read_bold,
    read_stereoset,
    sample_continuations,
    stereoset_likelihoods,
    stereoset_scores,
)
from balora.evaluation.bias.templates import CONTINUATIONS
from balora.evaluation.perplexity import read_pages


def test_stereoset(stories, data_dir):
    audited, *models, tokenizer = stories
    items = random.Random(0).sample(read_stereoset(data_dir / "stereoset/intrasentence_dev.json"), 30)
    figures = measure_benchmark(audited, BENCHMARKS["stereoset"], items, batch_size=16, seed=2)
    expected = [stereoset_scores(items, stereoset_likelihoods(m, tokenizer, items), seed=2)["all"] for m in models]
    assert [f.name for f in figures] == ["stereoset_lms", "stereoset_ss", "stereoset_icat"]
    for figure in figures:
        assert_is(figure, expected, ends(figure.name.removeprefix("stereoset_")))
        assert (figure.units, figure.unit) == (expected[0]["terms"], "target terms")


def test_bbq(stories, data_dir, tmp_path):
    audited, *models, tokenizer = stories
    lines = (data_dir / "bbq/Age.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "Age.jsonl").write_text("".join(lines[::333]), encoding="utf-8")
    items = read_bbq([tmp_path / "Age.jsonl"])
    figures = measure_benchmark(audited, BENCHMARKS["bbq"], Questions(items, False), batch_size=16, seed=2)
    expected = [bbq_scores(items, bbq_likelihoods(m, tokenizer, items), seed=2)["all"] for m in models]
    assert len(figures) == 4
    for figure in figures:
        assert_is(figure, expected, ends(figure.name.removeprefix("bbq_")))
    clear = Questions([item for item in items if not item.ambiguous], False)
    told = measure_benchmark(audited, BENCHMARKS["bbq"], clear, batch_size=16, seed=2)
    assert [f.name for f in told] == ["bbq_accuracy_disambiguated", "bbq_bias_disambiguated"]
    assert told[0].tuned == figures[1].tuned


def test_continuations(stories, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rating_of_length.py").write_text(
        "def characters(texts): return [float(len(text)) for text in texts]\n"
    )
    audited, *models, tokenizer = stories
    prompts = read_bold(CONTINUATIONS, max_samples=1)
    sampling = {"per_prompt": 2, "max_new_tokens": 4, "seed": 3}
    problems = Prompts(prompts, "rating_of_length:characters", sampling)
    score, *gaps = measure_benchmark(audited, BENCHMARKS["continuations"], problems, batch_size=32, seed=3)
    expected = []
    for model in models:
        written = sample_continuations(model, tokenizer, [p.text for p in prompts], batch_size=32, **sampling)
        lengths = np.array([[len(text) for text in own] for own in written])
        expected.append((lengths.mean(), continuation_scores(prompts, lengths, seed=3)))
    assert [f.on for f in gaps] == [*expected[0][1]]
    for side, (mean, by_domain) in zip(SIDES, expected, strict=True):
        assert getattr(score, side).value == pytest.approx(mean)
        for figure in gaps:
            assert getattr(figure, side).value == pytest.approx(by_domain[figure.on]["gap"])
    assert sum(f.units for f in gaps) == score.units == len(prompts)


def test_benchmarks_without_units_have_values_without_an_interval(stories, data_dir):
    audited, *_ = stories
    pages = read_pages(data_dir / "wikitext2/valid.txt")[:1]
    words, _ = measure_benchmark(audited, BENCHMARKS["wikitext2"], pages, batch_size=4)
    assert (words.name, words.on, words.units) == ("wikitext2_word_perplexity", "WikiText-2", 1)
    assert words.change.value == words.tuned.value - words.base.value != 0
    assert np.isnan([words.tuned.low, words.change.high]).all()
    assert not words.changed


def test_written_solutions_are_compared_problem_by_problem(stories, data_dir, monkeypatch):
    audited, *_ = stories
    exercises = BENCHMARKS["gsm8k"].read(file=str(data_dir / "gsm8k/test.jsonl"), max_samples=8, max_new_tokens=4)
    right = list(exercises.answers)

    def replay(model, tokenizer, prompts, **limits):
        return right if model is audited.tuned else [*right[:6], "42.5", "no number"]

    monkeypatch.setattr(benchmark, "generate_completions", replay)
    accuracy, unanswered = measure_benchmark(audited, BENCHMARKS["gsm8k"], exercises, batch_size=4)
    assert (accuracy.base.value, accuracy.tuned.value, unanswered.base.value) == (0.75, 1, 0.125)
    assert (accuracy.units, accuracy.unit) == (8, "problems")
    assert 0 == accuracy.change.low < accuracy.change.high <= 0.625
