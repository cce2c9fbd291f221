"""The knowledge set and IFEval: lm-eval's own prompts and scores on local files, and the facts beside them."""

import json
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from balora.errors import BALoraError
from balora.evaluation import harness_tasks
from balora.evaluation.benchmarks import CAUSAL, PromptSettings, prepare
from balora.evaluation.benchmarks.ifeval import IFEVAL
from balora.evaluation.benchmarks.knowledge import KNOWLEDGE, METRICS, SETS, Fact, known_facts, sample_rows
from balora.evaluation.harness import _local_tasks, evaluate_with_harness, scores_of_rows, task_size

lm_eval_tasks = pytest.importorskip("lm_eval.tasks")
FOLDERS = {"arc_easy": "arc", "arc_challenge": "arc", "truthfulqa_mc1": "truthfulqa", "truthfulqa_mc2": "truthfulqa"}


def local(name: str, data_dir: Path):
    return _local_tasks(str(data_dir)).load([f"{name}_local"])["tasks"][f"{name}_local"]


def published(name: str, monkeypatch, row: dict):
    """The harness's own task on one row as the Hub has it."""
    import datasets

    sets = {split: Dataset.from_list([row]) for split in ("train", "validation", "test")}
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: datasets.DatasetDict(sets))
    folder = Path(lm_eval_tasks.__file__).parent / FOLDERS.get(name, name)
    task = {"lambada": "lambada_openai"}.get(name, name)
    manager = lm_eval_tasks.TaskManager(include_path=folder, include_defaults=False)
    return manager.load([task])["tasks"][task]


def as_on_the_hub(name: str, own: dict) -> dict:
    """A row of the local file with the Hub's columns."""
    if name.startswith("arc"):
        letters = [str(i) for i in range(len(own["choices"]))]
        question = own["query"].removeprefix("Question: ")
        return {
            "question": question,
            "choices": {"text": own["choices"], "label": letters},
            "answerKey": str(own["gold"]),
        }
    if name == "hellaswag":
        label, _, rest = own["query"].partition(": ")
        start, _, end = rest.rpartition(". ")
        return {
            "activity_label": label,
            "ctx_a": f"{start}.",
            "ctx_b": end,
            "endings": own["choices"],
            "label": str(own["gold"]),
        }
    if name == "lambada":
        return {"text": f"{own['context']} {own['continuation']}"}
    if name.startswith("truthfulqa"):
        answers = {"choices": own["choices"], "labels": own["labels"]}
        return {"question": own["question"], "mc1_targets": answers, "mc2_targets": answers}
    return own


@pytest.mark.parametrize("name", METRICS)
def test_a_local_task_asks_and_scores_as_the_harness_s_own(name, data_dir, monkeypatch):
    task = local(name, data_dir)
    ours = task.eval_docs[3]
    own = published(name, monkeypatch, as_on_the_hub(name, ours))
    theirs = own.eval_docs[0]
    assert task.doc_to_text(ours) == own.doc_to_text(theirs)
    assert task.doc_to_target(ours) == own.doc_to_target(theirs)
    if name != "lambada":
        assert task.doc_to_choice(ours) == own.doc_to_choice(theirs)
        assert requests(task, ours) == requests(own, theirs)
        answers = [(-3.0 - i, False) for i in range(len(task.doc_to_choice(ours)))]
        ours, theirs = task.process_results(ours, answers), own.process_results(theirs, answers)
        assert ours[METRICS[name]] == pytest.approx(theirs[METRICS[name]])


def requests(task, row: dict):
    asked = task.construct_requests(row, task.doc_to_text(row), metadata=(task.task_name, 0, 1))
    return [request.args for request in (asked if isinstance(asked, list) else [asked])]


def test_truthfulqa_s_true_answers_come_first(data_dir):
    for name in ("truthfulqa_mc1", "truthfulqa_mc2"):
        rows = getattr(harness_tasks, name)(str(data_dir))["test"]
        assert len(rows) == 790
        assert all(labels == sorted(labels, reverse=True) and labels[0] == 1 for labels in rows["labels"])
    assert all(sum(labels) == 1 for labels in harness_tasks.truthfulqa_mc1(str(data_dir))["test"]["labels"])


def test_mc2_is_the_share_of_the_true_answers_probability():
    got = harness_tasks.true_probability({"labels": [1, 1, 0]}, [(-1000.0, False), (-1001.0, False), (-1002.0, False)])
    weights = np.exp([0.0, -1, -2])
    assert got["acc"] == pytest.approx(weights[:2].sum() / weights.sum())


def test_scores_of_rows_are_the_harness_s(model, tokenizer, data_dir):
    tasks = ["openbookqa_local", "lambada_local"]
    whole = evaluate_with_harness(model, tokenizer, tasks, data_dir=data_dir, limit=20, bootstrap_iters=100)
    rows = {name: [*range(19, -1, -1)] for name in tasks}
    got = scores_of_rows(model, tokenizer, rows, data_dir=data_dir)
    for name, metric in (("openbookqa_local", "acc_norm"), ("lambada_local", "acc")):
        own = got[name][metric]
        assert own.mean() == pytest.approx(whole[name][metric])
        assert own.std(ddof=1) / 20**0.5 == pytest.approx(whole[name][f"{metric}_stderr"])
    alone = scores_of_rows(model, tokenizer, {tasks[0]: [5, 2]}, data_dir=data_dir)[tasks[0]]["acc_norm"]
    assert alone.tolist() == [got[tasks[0]]["acc_norm"][19 - row] for row in (5, 2)]


def test_the_benchmark_gives_each_score_with_its_interval_and_their_mean(model, tokenizer, data_dir, tmp_path):
    prompts = PromptSettings(tokenizer, batch_size=4, kind=CAUSAL, context=512)
    sets = ["openbookqa", "lambada", "known_facts", "truthfulqa_mc1", "truthfulqa_mc2"]
    settings = {"data_dir": str(data_dir), "max_samples": 8, "sets": sets}
    found = prepare(KNOWLEDGE, prompts, **settings)(model, tmp_path)
    assert list(found) == ["knowledge", *(f"knowledge_{name}" for name in sets)]
    counted = [found[f"knowledge_{name}"].value for name in sets if name != "truthfulqa_mc1"]
    assert found["knowledge"].value == pytest.approx(np.mean(counted))
    assert all(own.low <= own.value <= own.high for own in found.values())
    again = prepare(KNOWLEDGE, prompts, **settings)(model, tmp_path)
    assert again == found
    assert set(KNOWLEDGE.definitions) == {"knowledge", *(f"knowledge_{name}" for name in SETS)}


def test_facts_by_one_forward_each(model, tokenizer, data_dir):
    rows = json.loads((data_dir / "known_facts/known_1000.json").read_text())[:12]
    facts = [Fact(row["prompt"], row["attribute"]) for row in rows]
    # A model that knows something: its own likeliest word is the attribute of two.
    for number in (3, 7):
        with torch.no_grad():
            ids = tokenizer(facts[number].prompt, return_tensors="pt")["input_ids"]
            written = model.generate(ids, max_new_tokens=4, do_sample=False)[0]
        word = tokenizer.decode(written)[len(tokenizer.decode(ids[0])) :].split()[0]
        facts[number] = Fact(facts[number].prompt, word)
    expected = []
    for fact in facts:
        ids = tokenizer(fact.prompt)["input_ids"]
        with torch.no_grad():
            best = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        expected.append(float(best == tokenizer(f"{fact.prompt} {fact.attribute}")["input_ids"][len(ids)]))
    assert sum(expected) > 0
    assert known_facts(model, tokenizer, facts, batch_size=3).tolist() == expected


def test_rows_are_drawn_by_the_seed():
    assert sample_rows(5, 300, 0).tolist() == [0, 1, 2, 3, 4]
    assert sample_rows(100, 10, 0).tolist() == sample_rows(100, 10, 0).tolist() != sample_rows(100, 10, 1).tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_samples": 0}, "max_samples: 0 leaves no rows"),
        ({"sets": ["arc"]}, "sets: no set 'arc' exists; there are arc_easy"),
        ({"sets": []}, "sets: it is empty"),
        ({"data_dir": "/nowhere"}, "/nowhere"),
    ],
)
def test_wrong_settings_are_one_line(settings, message, data_dir, tokenizer):
    with pytest.raises(BALoraError, match=message):
        prepare(KNOWLEDGE, PromptSettings(tokenizer, 4), **{"data_dir": str(data_dir), **settings})


def test_files_in_another_form_are_named(tmp_path, data_dir):
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa/validation.jsonl").write_text('{"question": "?"}\n')
    with pytest.raises(BALoraError, match=r"piqa/validation.jsonl: no column 'goal'"):
        task_size("piqa_local", tmp_path)
    (tmp_path / "truthfulqa").mkdir()
    (tmp_path / "truthfulqa/mc_task.json").write_text('[{"question": "?"}]')
    with pytest.raises(BALoraError, match="cannot read TruthfulQA"):
        task_size("truthfulqa_mc1_local", tmp_path)


@pytest.fixture
def checkers(monkeypatch):
    """Stand-ins for packages that the checks import, which these instructions do not use."""
    if not all(map(harness_tasks.importlib.util.find_spec, ("langdetect", "immutabledict"))):
        detect = types.ModuleType("langdetect")
        frozen = types.ModuleType("immutabledict")
        frozen.immutabledict = dict
        for name, module in {"langdetect": detect, "immutabledict": frozen}.items():
            module.__spec__ = object()
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("nltk.download", lambda *_, **__: False)


def test_replies_are_checked_and_prompts_that_cannot_be_are_left_out(checkers, data_dir):
    left_out = pytest.warns(UserWarning, match="of 541 prompts are left out")
    with nullcontext() if harness_tasks._has_punkt() else left_out:
        rows = harness_tasks.ifeval(str(data_dir))["test"]
    row = next(row for row in rows if json.loads(row["row"])["instruction_id_list"] == ["punctuation:no_comma"])
    assert harness_tasks.follow_instructions(row, ["No comma here"])["prompt_level_strict_acc"] == 1
    assert harness_tasks.follow_instructions(row, ["A comma, here"])["prompt_level_loose_acc"] == 0
    assert harness_tasks.follow_instructions(row, ["A comma, here\nand none"]) == {
        "prompt_level_strict_acc": 0,
        "prompt_level_loose_acc": 1,
    }


@pytest.mark.filterwarnings("ignore:balora. ifeval")
def test_ifeval_writes_through_the_chat_template(checkers, data_dir, model, tokenizer, tmp_path, monkeypatch):
    asked = []
    tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    generate = type(model).generate

    def recorded(self, **how):
        asked.append(tokenizer.decode(how["input_ids"][0]))
        return generate(self, **how)

    monkeypatch.setattr(type(model), "generate", recorded)
    prompts = PromptSettings(tokenizer, batch_size=1, context=512)
    settings = {"data_dir": str(data_dir), "max_samples": 2, "max_new_tokens": 3}
    found = prepare(IFEVAL, prompts, **settings)(model, tmp_path)
    assert set(found) == {"ifeval_strict", "ifeval_loose"}
    assert len(asked) == 2
    assert all("[" in text and "]" in text for text in asked)
    with pytest.raises(BALoraError, match="max_new_tokens: 512 leaves no room"):
        prepare(IFEVAL, prompts, **settings | {"max_new_tokens": 512})


def test_missing_checkers_are_named(data_dir, tokenizer, monkeypatch):
    monkeypatch.setattr(harness_tasks, "IFEVAL_PACKAGES", ("no_such_checker", "nltk"))
    with pytest.raises(BALoraError, match=r"need no_such_checker, not installed here; use pip install"):
        prepare(IFEVAL, PromptSettings(tokenizer, 4), data_dir=str(data_dir))
