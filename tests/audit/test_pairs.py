import random
from pathlib import Path

import pytest
import transformers as hf
from audit_models import TARGETS, adapted, assert_is, ends, load
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model

from balora.audit.benchmarks import measure_benchmark
from balora.audit.models import load_audited
from balora.evaluation import harness
from balora.evaluation.benchmarks import BENCHMARKS
from balora.evaluation.benchmarks.sentence_pairs import Pairs
from balora.evaluation.bias import (
    SentencePair,
    masked_pair_log_odds,
    pair_log_odds,
    read_crows_pairs,
    read_occupations,
    read_winobias,
    read_winogender,
    score_pairs,
    winogender_pairs,
)


def measure_pairs(audited, pairs, *, per_token, batch_size, seed=0):
    problems = Pairs(pairs, per_token)
    return measure_benchmark(audited, BENCHMARKS["crows_pairs"], problems, batch_size=batch_size, seed=seed)


NAMES = ("bias_score", "directed_bias", "stereotype_share")


def compared(stories, pairs, *, per_token):
    audited, *models, tokenizer = stories
    figures = measure_pairs(audited, pairs, per_token=per_token, batch_size=8, seed=4)
    assert tuple(f.name for f in figures) == NAMES
    for figure in figures:
        of_tokens = per_token and figure.name != "stereotype_share"
        odds = [pair_log_odds(model, tokenizer, pairs, per_token=of_tokens) for model in models]
        expected = [score_pairs(pairs, own, seed=4)["all"] for own in odds]
        assert_is(figure, expected, ends(figure.name), rel=1e-4)
        assert figure.units == len(pairs)


def test_crows_pairs(stories, data_dir):
    pairs = read_crows_pairs(data_dir / "crows_pairs/crows_pairs_anonymized.csv")
    compared(stories, random.Random(0).sample(pairs, 20), per_token=True)


def test_winobias(stories, data_dir):
    compared(stories, read_winobias(data_dir / "winobias", "dev")[:12], per_token=False)


def test_winogender(stories, data_dir):
    folder = data_dir / "winogender"
    occupations = read_occupations(folder / "occupations-stats.tsv")
    compared(
        stories, winogender_pairs(read_winogender(folder / "all_sentences.tsv"), occupations)[:12], per_token=False
    )


def test_masked_models_are_scored_token_by_token(folders, tmp_path, data_dir):
    kind = hf.AutoModelForMaskedLM
    config = LoraConfig(r=4, target_modules=["query", "value"])
    folder, tuned = adapted(folders["masked"], tmp_path, config, kind=kind, scale=0.3)
    audited = load_audited(folders["masked"], folder)
    pairs = read_crows_pairs(data_dir / "crows_pairs/crows_pairs_anonymized.csv")[:8]
    figures = measure_pairs(audited, pairs, per_token=True, batch_size=8)
    odds = [masked_pair_log_odds(m, audited.tokenizer, pairs) for m in (load(folders["masked"], kind), tuned)]
    assert figures
    for figure in figures:
        assert_is(figure, [score_pairs(pairs, own)["all"] for own in odds], ends(figure.name), rel=1e-4)


def test_an_untouched_adapter_changes_no_answer(folders, tmp_path):
    config = LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
    get_peft_model(load(folders["causal"]), config).save_pretrained(tmp_path)
    pairs = [SentencePair("the nurse said she was tired", "the nurse said he was tired"), SentencePair("he", "she")]
    audited = load_audited(folders["causal"], str(tmp_path))
    figures = measure_pairs(audited, pairs, per_token=False, batch_size=2)
    assert figures
    for figure in figures:
        assert (figure.change.value, figure.change.low, figure.change.high) == (0, 0, 0)


def test_crows_pairs_are_those_of_lm_evaluation_harness(stories, data_dir, monkeypatch):
    tasks = pytest.importorskip("lm_eval.tasks")
    audited, base, tuned, tokenizer = stories
    pairs = random.Random(1).sample(read_crows_pairs(data_dir / "crows_pairs/crows_pairs_anonymized.csv"), 25)
    rows = [{"sent_more": p.stereotypical, "sent_less": p.antistereotypical, "bias_type": p.groups[0]} for p in pairs]
    manager = tasks.TaskManager(include_path=Path(tasks.__file__).parent / "crows_pairs", include_defaults=False)
    monkeypatch.setattr(harness, "_tasks_of_the_harness", lambda: manager)
    published = DatasetDict(test=Dataset.from_list(rows))
    monkeypatch.setattr("datasets.load_dataset", lambda path, name: published if "crows_pairs" in path else None)
    *_, share = measure_pairs(audited, pairs, per_token=True, batch_size=8)
    for model, estimate in ((base, share.base), (tuned, share.tuned)):
        theirs = harness.evaluate_with_harness(model, tokenizer, ["crows_pairs_english"])["crows_pairs_english"]
        assert 0 < estimate.value < 1
        assert estimate.value == pytest.approx(theirs["pct_stereotype"], abs=1e-12)
