"""Our figures of CrowS-Pairs and those of lm-evaluation-harness's own task, of the same model on the same pairs."""

import random
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from balora.evaluation import harness
from balora.evaluation.bias import pair_log_odds, read_crows_pairs, score_pairs
from balora.evaluation.harness import evaluate_with_harness

lm_eval_tasks = pytest.importorskip("lm_eval.tasks")


def test_figures_are_those_of_the_harness_s_task(model, tokenizer, data_dir, monkeypatch):
    pairs = random.Random(0).sample(read_crows_pairs(data_dir / "crows_pairs/crows_pairs_anonymized.csv"), 40)
    rows = [
        {"sent_more": pair.stereotypical, "sent_less": pair.antistereotypical, "bias_type": pair.groups[0]}
        for pair in pairs
    ]
    folder = Path(lm_eval_tasks.__file__).parent / "crows_pairs"
    manager = lm_eval_tasks.TaskManager(include_path=folder, include_defaults=False)
    monkeypatch.setattr(harness, "_tasks_of_the_harness", lambda: manager)
    published = DatasetDict(test=Dataset.from_list(rows))
    monkeypatch.setattr("datasets.load_dataset", lambda path, name: published if "crows_pairs" in path else None)
    theirs = evaluate_with_harness(model, tokenizer, ["crows_pairs_english"])["crows_pairs_english"]
    ours = score_pairs(pairs, pair_log_odds(model, tokenizer, pairs))["all"]
    assert 0 < ours["stereotype_share"] < 1
    assert ours["stereotype_share"] == pytest.approx(theirs["pct_stereotype"], abs=1e-12)
    assert ours["mean_abs_log_odds"] == pytest.approx(theirs["likelihood_diff"], rel=1e-5)
