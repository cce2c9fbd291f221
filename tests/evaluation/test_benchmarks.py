"""Benchmarks as recipes name them: reference answers score 1, wrong ones 0, and questions are put as in training."""

import json

import pytest

from balora.evaluation.benchmarks import BENCHMARKS, PromptSettings, benchmark, prepare
from balora.evaluation.bias import pair_log_odds, read_crows_pairs, score_pairs
from balora.evaluation.code import load_humaneval, load_mbpp

FILES = {
    "gsm8k": "gsm8k/test.jsonl",
    "math": "math500/test.jsonl",
    "humaneval": "humaneval/HumanEval.jsonl.gz",
    "mbpp": "mbpp/mbpp.jsonl",
}
RUN = {"confirm_run_unsafe_code": True}


@pytest.fixture
def writing(tokenizer):
    return PromptSettings(tokenizer, batch_size=4, format_prompt=lambda q: f"Q: {q}\nA:", instructed=True)


def references(name: str, file: str, rows: int) -> list[str]:
    if name == "humaneval":
        return [problem.solution for problem in load_humaneval(file)[:rows]]
    if name == "mbpp":
        return [problem.solution for problem in load_mbpp(file)[10 : 10 + rows]]
    with open(file, encoding="utf-8") as lines:
        solutions = [json.loads(line) for line in lines][:rows]
    return [row.get("solution") or row["answer"] for row in solutions]


@pytest.mark.parametrize(
    ("name", "figure", "own"),
    [
        ("gsm8k", "gsm8k_accuracy", {}),
        ("math", "math_accuracy", {}),
        ("humaneval", "humaneval_pass@1", RUN),
        ("mbpp", "mbpp_pass@1", RUN),
    ],
)
def test_references_score_one_and_wrong_answers_nothing(data_dir, tmp_path, monkeypatch, writing, name, figure, own):
    file = str(data_dir / FILES[name])
    measure = prepare(BENCHMARKS[name], writing, file=file, max_samples=6, **own)
    for written, expected in ((references(name, file, 6), 1.0), (["return -12345.5"] * 6, 0.0)):
        asked = []

        def replay(model, tokenizer, prompts, written=written, asked=asked, **limits):
            asked.extend(prompts)
            return written

        monkeypatch.setattr(benchmark, "generate_completions", replay)
        assert measure(None, tmp_path)[figure].value == expected
        assert len(asked) == 6
        assert all(prompt.startswith("Q: ") and prompt.endswith("\nA:") for prompt in asked)
        kept = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [row["completion"] for row in kept] == written
        assert [row["prompt"] for row in kept] == asked


def test_without_a_template_code_is_continued(data_dir, monkeypatch, tmp_path, tokenizer):
    plain = PromptSettings(tokenizer, batch_size=4)
    asked = []
    monkeypatch.setattr(
        benchmark,
        "generate_completions",
        lambda m, t, prompts, **_: asked.extend(prompts) or ["pass"] * len(prompts),
    )
    for name in ("humaneval", "mbpp"):
        file = str(data_dir / FILES[name])
        prepare(BENCHMARKS[name], plain, file=file, max_samples=1, **RUN)(None, tmp_path)
    assert asked[0].startswith("from typing import List\n\n\ndef has_close_elements")
    assert asked[1].endswith("\n[BEGIN]\n")
    assert "Write a python function to remove first and last occurrence" in asked[1]  # task 11 opens the test set


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("crows_pairs", {"file": "crows_pairs/crows_pairs_anonymized.csv"}),
        ("winobias", {"folder": "winobias", "split": "test"}),
        ("winogender", {"folder": "winogender"}),
    ],
)
def test_stereotypes_are_scored_with_what_is_measured_kept(data_dir, tmp_path, model, writing, name, settings):
    settings = {key: value if key == "split" else str(data_dir / value) for key, value in settings.items()}
    estimates = prepare(BENCHMARKS[name], writing, **settings, max_samples=12)(model, tmp_path)
    figures = {name: found.value for name, found in estimates.items()}
    kept = json.loads((tmp_path / f"{name}.json").read_text())
    assert kept["all"]["pairs"] == 12
    for figure in ("bias_score", "directed_bias", "stereotype_share"):
        assert figures[f"{name}_{figure}"] == kept["all"][figure]
    assert abs(figures[f"{name}_directed_bias"]) <= figures[f"{name}_bias_score"] < 1
    if name == "winogender":
        assert -1 <= figures["winogender_pearson_occupation"] <= 1


def test_shares_of_crows_pairs_are_of_whole_sentences_while_scores_are_per_token(data_dir, tmp_path, model, writing):
    file = str(data_dir / "crows_pairs/crows_pairs_anonymized.csv")
    estimates = prepare(BENCHMARKS["crows_pairs"], writing, file=file, max_samples=300)(model, tmp_path)
    figures = {name: found.value for name, found in estimates.items()}
    pairs = read_crows_pairs(file)[:300]
    whole, each = (
        score_pairs(pairs, pair_log_odds(model, writing.tokenizer, pairs, per_token=per_token))["all"]
        for per_token in (False, True)
    )
    assert whole["stereotype_share"] != each["stereotype_share"]
    assert figures["crows_pairs_stereotype_share"] == whole["stereotype_share"]
    for figure in ("bias_score", "directed_bias"):
        assert figures[f"crows_pairs_{figure}"] == pytest.approx(each[figure], rel=1e-5)
