"""SDFT's data step: which rewritten answers are trained on, and that they are kept and resumed."""

import json

import pytest
import torch
from datasets import Dataset
from tiny_folder import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from balora.errors import BALoraError
from balora.study import rewriting
from balora.study.rewriting import check_rewritable, keeps_answer, rewrite


@pytest.mark.parametrize(
    ("written", "answer", "kept"),
    [
        ("First 3 + 4, which makes 7.", "3 + 4 = 7\n#### 7", True),
        ("So it is 1,200 dollars.", "It is so.\n#### 1200", True),
        ("It makes 8.", "3 + 4 = 7\n#### 7", False),
        ("No idea.", "3 + 4 = 7\n#### 7", False),
        ("This is about card arrival.", "Card  arrival", True),
        ("This is about card arrivals.", "Card arrival", False),
        ("As good in other terms.", "An answer of more than eight words, which has no end.", True),
        ("My answer: the dog", "dog", False),
        ("As the reference answer says, the dog", "dog", False),
        ("  \n", "An answer of more than eight words, which has no final one.", False),
    ],
)
def test_a_rewritten_answer_is_used_if_it_says_the_same(written, answer, kept):
    assert keeps_answer(written, answer) == kept


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path / "cache"))
    tiny(tmp_path / "model")
    # Room for the request, whose words the tiny vocabulary does not have.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", max_position_embeddings=200)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model", model_max_length=200)
    return model, tokenizer


PAIRS = [([], f"who sat on {where} ?", who) for where in ("mat", "hill") for who in ("cat", "dog")] * 5


def test_an_interrupted_call_resumes_to_the_same_answers(model, monkeypatch):
    whole = rewrite(*model, PAIRS, chat=False)
    assert len(whole) == len(PAIRS)
    assert {"instruction", "answer", "written", "used"} == whole[0].keys()
    (file,) = (rewriting.cache_folder() / "rewritten").glob("*.jsonl")
    kept = file.read_text()
    file.write_text("".join(kept.splitlines(keepends=True)[: rewriting.BATCH_SIZE]))  # as after one batch
    calls = []
    write = rewriting._write
    monkeypatch.setattr(rewriting, "_write", lambda *args: calls.append(len(args[2])) or write(*args))
    assert rewrite(*model, PAIRS, chat=False) == whole
    assert calls == [len(PAIRS) - rewriting.BATCH_SIZE]
    assert file.read_text() == kept
    assert rewrite(*model, PAIRS, chat=False) == whole
    assert len(calls) == 1
    with torch.no_grad():
        model[0].lm_head.weight[0] += 1  # another model writes anew
    rewrite(*model, PAIRS, chat=False)
    assert len(calls) == 3


def test_answers_without_room_or_end_are_not_used(model):
    base, tokenizer = model
    tokenizer.model_max_length = 40
    assert [row["written"] for row in rewrite(base, tokenizer, PAIRS[:2], chat=False)] == [None, None]
    assert not any(row["used"] for row in rewrite(base, tokenizer, PAIRS[:2], chat=False))


def test_rows_without_answers_are_refused():
    for row in ({"text": "a"}, {"messages": [{"role": "user", "content": "a"}]}):
        with pytest.raises(BALoraError, match="rewrite_answers: only prompts with completions"):
            check_rewritable(Dataset.from_list([row]))
    check_rewritable(Dataset.from_list([{"prompt": "a", "completion": "b"}]))


@pytest.mark.parametrize("chat", [True, False])
def test_used_answers_replace_the_original_ones(chat, tmp_path, monkeypatch):
    messages = [{"role": "user", "content": "who ?"}, {"role": "assistant", "content": "cat"}]
    rows = [{"messages": messages}] * 2 if chat else [{"prompt": "who ?", "completion": " cat"}] * 2
    records = [{"written": "the cat", "used": True}, {"written": "dog", "used": False}]
    monkeypatch.setattr(rewriting, "rewrite", lambda *_, **__: records)

    class Prepared:
        train, tokenizer = Dataset.from_list(rows), None

        def load_model(self, **_):
            return None

    monkeypatch.setattr(rewriting, "replace", lambda prepared, train: train)
    train = rewriting.with_rewritten_answers(Prepared(), tmp_path)
    assert train.features == Prepared.train.features
    said = [row["messages"][-1]["content"] if chat else row["completion"] for row in train]
    assert said == (["the cat", "cat"] if chat else [" the cat", " cat"])
    assert [json.loads(line) for line in (tmp_path / "rewritten.jsonl").read_text().splitlines()] == records
