"""The bridge to lm-evaluation-harness: its figures and ours on the same pages, its texts and ours from one model."""

import json
import logging
import random
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import make, word_tokenizer

from balora import BALoraConfig, get_balora_model
from balora.errors import BALoraError
from balora.evaluation import harness, harness_tasks, perplexity
from balora.evaluation.generation import generate_completions
from balora.evaluation.harness import LOCAL_TASKS, evaluate_with_harness
from balora.evaluation.maths import grade_maths
from balora.evaluation.perplexity import read_pages, wikitext_perplexity

lm_eval_tasks = pytest.importorskip("lm_eval.tasks")
pytest.importorskip("math_verify")


@pytest.fixture
def small(data_dir, tmp_path) -> Path:
    """The local tasks' folder with a little of each real file."""
    pages = sorted(read_pages(data_dir / "wikitext2/test.txt"), key=len)[3:6]
    write(tmp_path / "wikitext2/test.txt", "\n".join([" ", *pages]))
    for name in ("gsm8k", "math500"):
        rows = (data_dir / name / "test.jsonl").read_text(encoding="utf-8").splitlines()
        write(tmp_path / name / "test.jsonl", "\n".join(sorted(rows, key=len)[:3]))
    return tmp_path


@pytest.fixture
def harness_s_own(monkeypatch):
    """Only one folder of the harness's tasks, since reading all of them is slow."""
    folder = Path(lm_eval_tasks.__file__).parent / "wikitext"
    manager = lm_eval_tasks.TaskManager(include_path=folder, include_defaults=False)
    monkeypatch.setattr(harness, "_tasks_of_the_harness", lambda: manager)


def write(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")


def local_task(name: str, data_dir: Path):
    return harness._local_tasks(str(data_dir)).load([name])["tasks"][name]


def perturbed(model):
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
                parameter.add_(noise, alpha=0.05 if "lora_" in name else 0.01)
    return model


def test_perplexities_of_lm_eval_s_task_of_the_local_one_and_ours_are_equal(
    model, tokenizer, small, harness_s_own, monkeypatch
):
    pages = read_pages(small / "wikitext2/test.txt")
    assert len(pages) == 3
    assert len(tokenizer(pages[0])["input_ids"]) > 1024
    published = DatasetDict({name: Dataset.from_dict({"page": pages}) for name in ("train", "validation", "test")})
    monkeypatch.setattr("datasets.load_dataset", lambda path, name: published if "wikitext" in path else None)
    got = evaluate_with_harness(model, tokenizer, ["wikitext", "wikitext2_local"], data_dir=small)
    assert list(got) == ["wikitext", "wikitext2_local"]
    assert got["wikitext"] == got["wikitext2_local"]
    ours = wikitext_perplexity(model, tokenizer, pages, context=512)
    del ours["token_perplexity"]
    assert got["wikitext"] == pytest.approx(ours, rel=1e-5)
    first = evaluate_with_harness(model, tokenizer, ["wikitext2_local"], data_dir=small, limit=1, max_length=100)
    ours = wikitext_perplexity(model, tokenizer, pages[:1], context=100)
    assert first["wikitext2_local"]["bits_per_byte"] == pytest.approx(ours["bits_per_byte"], rel=1e-5)


@pytest.mark.reliability
def test_perplexities_of_the_whole_test_set_are_lm_eval_s(model, tokenizer, data_dir):
    got = evaluate_with_harness(model, tokenizer, ["wikitext2_local"], data_dir=data_dir, batch_size=16)
    ours = wikitext_perplexity(model, tokenizer, read_pages(data_dir / "wikitext2/test.txt"), context=512)
    del ours["token_perplexity"]
    assert got["wikitext2_local"] == pytest.approx(ours, rel=1e-5)


def test_adapter_metrics_equal_those_of_the_saved_adapter(model, models_dir, tokenizer, small, tmp_path):
    tasks, settings = ["wikitext2_local"], {"data_dir": small, "limit": 1}
    base = evaluate_with_harness(model, tokenizer, tasks, **settings)
    config = BALoraConfig(method="ba-lora", r=4, lora_dropout=0.5, target_modules="all-linear")
    adapted = perturbed(get_balora_model(model, config)).train()
    adapted.base_model.model.model.norm.training = False  # a part that is kept in evaluation mode
    got = evaluate_with_harness(adapted, tokenizer, tasks, **settings)
    assert adapted.training
    assert not adapted.base_model.model.model.norm.training
    assert got["wikitext2_local"]["bits_per_byte"] != pytest.approx(base["wikitext2_local"]["bits_per_byte"], rel=1e-3)
    adapted.save_pretrained(tmp_path / "adapter")
    fresh = hf.AutoModelForCausalLM.from_pretrained(models_dir / "stories260k")
    plain = PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    again = evaluate_with_harness(plain, tokenizer, tasks, **settings)
    assert again["wikitext2_local"] == pytest.approx(got["wikitext2_local"], rel=1e-4)


@pytest.mark.parametrize("saved", ["lm_head", "embed_tokens"])
def test_weights_that_were_tied_stay_apart(model, tokenizer, small, saved):
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=[saved], task_type="CAUSAL_LM")
    adapted = perturbed(get_peft_model(model, config)).eval()
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    got = evaluate_with_harness(adapted, tokenizer, ["wikitext2_local"], data_dir=small, limit=1)["wikitext2_local"]
    after = adapted.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    ours = wikitext_perplexity(adapted, tokenizer, read_pages(small / "wikitext2/test.txt")[:1], context=512)
    assert got["bits_per_byte"] == pytest.approx(ours["bits_per_byte"], rel=1e-5)
    assert "tie_weights" not in vars(adapted)  # it is the model's own again


def test_an_adapter_writes_what_it_writes_without_the_harness(model, tokenizer, small, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    config = BALoraConfig(method="lora+reg", r=4, lora_dropout=0.5, target_modules="all-linear")
    adapted = perturbed(get_balora_model(model, config)).train()
    written = []
    generate = HFLM.generate_until
    monkeypatch.setattr(HFLM, "generate_until", lambda *args: written.extend(texts := generate(*args)) or texts)
    got = evaluate_with_harness(adapted, tokenizer, ["gsm8k_local"], data_dir=small, max_gen_toks=24, batch_size=2)
    rows = [json.loads(line) for line in (small / "gsm8k/test.jsonl").read_text().splitlines()]
    prompts = [f"Question: {row['question']}\nAnswer:" for row in rows]
    assert written == generate_completions(adapted, tokenizer, prompts, max_new_tokens=24, batch_size=3)
    assert len(set(written)) == 3
    references = [row["answer"].rpartition("#### ")[2] for row in rows]
    grades = grade_maths(written, references)
    shares = {"accuracy": grades.count(True) / len(grades), "unanswered": grades.count(None) / len(grades)}
    assert got == {"gsm8k_local": pytest.approx(shares)}
    assert adapted.training


@pytest.mark.parametrize("name", ["gsm8k_local", "math500_local"])
def test_reference_solutions_are_right_and_another_s_is_wrong(data_dir, name):
    task = local_task(name, data_dir)
    rows = list(task.test_docs().select(range(0, len(task.test_docs()), 25)))
    assert len(rows) >= 20
    for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
        assert task.process_results(row, [row["completion"]]) == {"accuracy": 1.0, "unanswered": 0.0}
        right = float(other["answer"] == row["answer"])
        assert task.process_results(row, [other["completion"]]) == {"accuracy": right, "unanswered": 0.0}
    assert task.process_results(rows[0], ["no idea"]) == {"accuracy": 0.0, "unanswered": 1.0}
    assert len({row["answer"] for row in rows}) > len(rows) / 2


def test_scores_are_means_with_standard_errors_on_request(model, tokenizer, data_dir, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    def replay(self, requests, **_):
        return ["no idea" if number == 0 else request.doc["completion"] for number, request in enumerate(requests)]

    monkeypatch.setattr(HFLM, "generate_until", replay)
    settings = {"data_dir": data_dir, "limit": 4, "max_gen_toks": 16}
    for name in ("gsm8k_local", "math500_local"):
        scores = evaluate_with_harness(model, tokenizer, [name], **settings)[name]
        assert scores == {"accuracy": 0.75, "unanswered": 0.25}
        scores = evaluate_with_harness(model, tokenizer, [name], **settings, bootstrap_iters=10)[name]
        error = pytest.approx(np.std([0, 1, 1, 1], ddof=1) / 2)
        assert scores == {"accuracy": 0.75, "accuracy_stderr": error, "unanswered": 0.25, "unanswered_stderr": error}


def test_local_tasks_ask_as_lm_eval_s_do(data_dir):
    assert set(LOCAL_TASKS) >= {"gsm8k_local", "math500_local", "wikitext2_local"}
    counts = {"gsm8k_local": 1319, "math500_local": 500, "wikitext2_local": 62}
    for name, count in counts.items():
        assert len(local_task(name, data_dir).test_docs()) == count
    gsm8k, math500 = local_task("gsm8k_local", data_dir), local_task("math500_local", data_dir)
    row = gsm8k.test_docs()[0]
    assert gsm8k.doc_to_text(row) == f"Question: {row['prompt']}\nAnswer:"
    row = math500.test_docs()[0]  # LaTeX, whose braces a template could take for its own
    assert math500.doc_to_text(row) == f"Problem:\n{row['prompt']}\n\nSolution:"
    assert math500.doc_to_target(row) == row["answer"]


def test_caller_s_tokenizer_logging_and_random_states_are_unchanged(small):
    tokenizer, model = word_tokenizer(closes=False), make("gpt2")
    tokenizer.pad_token = None
    seeds = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    level = logging.getLogger("lm_eval").level
    evaluate_with_harness(model, tokenizer, ["wikitext2_local"], data_dir=small, limit=1)
    assert tokenizer.pad_token is None
    assert [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()] == seeds
    assert logging.getLogger("lm_eval").level == level


def test_mistakes_are_named(model, tokenizer, small, harness_s_own, monkeypatch):
    def evaluate(*tasks, **settings):
        evaluate_with_harness(model, tokenizer, tasks, **{"data_dir": small} | settings)

    with pytest.raises(BALoraError, match="data_dir: gsm8k_local reads a file in it"):
        evaluate("gsm8k_local", data_dir=None)
    with pytest.raises(BALoraError, match="no task 'gsm8k_locl' exists; did you mean gsm8k_local"):
        evaluate("wikitext2_local", "gsm8k_locl")
    with pytest.raises(BALoraError, match="no task 'zzz' exists; local ones are arc_challenge_local, arc_easy_local"):
        evaluate("zzz")
    with pytest.raises(BALoraError, match=r"tasks: wikitext cannot be loaded: .*EleutherAI/wikitext_document_level"):
        evaluate("wikitext")  # nothing is in the Hub's cache
    for file in ("wikitext2/test.txt", "gsm8k/test.jsonl", "math500/test.jsonl"):
        with pytest.raises(BALoraError, match=f"{file}: no such file"):
            evaluate(f"{Path(file).parent}_local", data_dir=small / "elsewhere")
    with pytest.raises(BALoraError, match=r"max_gen_toks: 512 tokens in math500_local leave .* the model's 512"):
        evaluate("math500_local")
    with pytest.raises(BALoraError, match="limit: 0 leaves no documents"):
        evaluate("gsm8k_local", limit=0)
    with pytest.raises(BALoraError, match="max_length: 513 is beyond the model's context of 512"):
        evaluate("gsm8k_local", max_length=513)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(BALoraError, match=r"lm-eval, which is not installed; use pip install 'balora\[evaluation\]'"):
        evaluate("gsm8k_local")


def test_tasks_that_run_generated_code_are_refused(model, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "t.yaml").write_text(
        "task: coding\ncustom_dataset: !function balora.evaluation.harness_tasks.gsm8k\nunsafe_code: true\n"
        "test_split: test\ndoc_to_text: prompt\ndoc_to_target: answer\noutput_type: generate_until\n"
    )
    write(tmp_path / "gsm8k/test.jsonl", json.dumps({"question": "1 + 1?", "answer": "#### 2"}))
    settings = {"include_path": tmp_path, "include_defaults": False, "metadata": {"data_dir": str(tmp_path)}}
    manager = lm_eval_tasks.TaskManager(**settings)
    monkeypatch.setattr(harness, "_tasks_of_the_harness", lambda: manager)
    with pytest.raises(BALoraError, match="coding runs generated code"):
        evaluate_with_harness(model, tokenizer, ["coding"])


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere"])
@pytest.mark.parametrize("max_length", [64, 9])
def test_options_have_the_scores_of_the_harness_s_own_model(name, max_length):
    from lm_eval.models.huggingface import HFLM

    from balora.evaluation.harness_model import ChunkedLM

    model, generator = perturbed(make(name)).eval(), random.Random(0)

    def drawn(low: int, high: int) -> list[int]:
        return [generator.randrange(3, 97) for _ in range(generator.randint(low, high))]

    contexts = [drawn(1, 14) for _ in range(5)]
    requests = [(("", str(i)), own, drawn(1, 4)) for own in contexts for i in range(3)]
    requests += [((own[0], "again"), own[1], own[2][:1]) for own in requests[:3]]  # options of one token share a row
    with torch.no_grad():
        greedy = model(torch.tensor([contexts[0][-max_length:]])).logits[0, -1].argmax().item()
    requests.append((None, contexts[0], [greedy]))
    settings = {"pretrained": model, "tokenizer": word_tokenizer(), "batch_size": 4, "max_length": max_length}
    stock, ours = (kind(**settings, softmax_dtype="float32") for kind in (HFLM, ChunkedLM))
    expected, found = (lm._loglikelihood_tokens(requests, disable_tqdm=True) for lm in (stock, ours))
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]
    assert found[-1][1]
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], rel=1e-6)


def test_nothing_needs_lm_eval_before_it_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for module in (harness, harness_tasks, perplexity):
        runpy.run_path(module.__file__)
