"""Tokenizers without an end-of-text or padding token, or that add a token which the rows have already."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from bad_inputs import complaint
from tiny_folder import WORDS, tiny
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from balora.audit.models import load_audited
from balora.recipe import Recipe
from balora.study.prepare import prepare
from balora.study.trainers import build_trainer

TURNS = [{"role": "user", "content": "who sat ?"}, {"role": "assistant", "content": "the cat"}]
FORMS = {
    "text": {"text": "the cat sat"},
    "completion": {"prompt": "who sat ?", "completion": "the cat"},
    "messages": {"messages": TURNS},
}
TEMPLATE = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"


def tokenizer(folder: Path, *, adds: str = "$A", **special: str) -> None:
    """Write a word-level tokenizer with these special tokens into the folder."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<s>", "</s>"])
    words.post_processor = processors.TemplateProcessing(single=adds, special_tokens=[("<s>", 1), ("</s>", 2)])
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", **special).save_pretrained(folder)


@pytest.fixture
def folder(tmp_path) -> Path:
    tiny(tmp_path / "model")
    return tmp_path / "model"


def recipe(folder: Path, row: dict, **settings) -> Recipe:
    for name in ("train", "validation"):
        (folder.parent / f"{name}.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    (folder.parent / "chat.jinja").write_text(TEMPLATE)
    files = {f"{name}_file": str(folder.parent / f"{name}.jsonl") for name in ("train", "validation")}
    return Recipe(model_name_or_path=str(folder), training_arguments={"use_cpu": True}, **files, **settings)


def trainer_of(settings: Recipe):
    prepared = prepare(settings)
    return build_trainer(prepared, prepared.load_model(), 0, Path(settings.train_file).parent / "out", [])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("special", [{}, {"pad_token": "<unk>"}])
@pytest.mark.parametrize("stream", [{}, {"streaming": True, "max_steps": 1}])
def test_no_end_of_text_token(folder, form, special, stream):
    tokenizer(folder, **special)
    settings = recipe(folder, FORMS[form], chat_template_path=str(folder.parent / "chat.jinja"), **stream)
    if form == "messages" and special:
        assert torch.isfinite(torch.tensor(trainer_of(settings).evaluate()["eval_loss"]))  # the template ends turns
        return
    missing = "has no eos_token, which ends every text" if special else "has neither a pad_token nor an eos_token"
    assert missing in complaint(lambda: prepare(settings), str(folder))


def test_no_padding_token_for_a_classifier_or_an_audit(folder):
    tokenizer(folder)
    settings = recipe(folder, {"text": "the cat", "label": 0}, label_column="label")
    assert complaint(lambda: prepare(settings), "has neither a pad_token nor an eos_token")
    assert complaint(lambda: load_audited(str(folder)), "has neither a pad_token nor an eos_token")


@pytest.mark.parametrize("adds", ["<s> $A", "$A"])
@pytest.mark.parametrize("form", ["text", "completion"])
@pytest.mark.parametrize("stream", [{}, {"streaming": True, "max_steps": 1}])
def test_rows_begin_with_one_start_token(folder, adds, form, stream):
    tokenizer(folder, adds=adds, bos_token="<s>", eos_token="</s>")
    row = dict(FORMS[form])
    name = "text" if form == "text" else "prompt"
    row[name] = f"<s>{row[name]}"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = trainer_of(recipe(folder, row, **stream))
    ids = next(iter(trainer.train_dataset))["input_ids"]
    assert ids.count(1) == 1
    assert ids[0] == 1
    assert [str(w.message) for w in said if "begin with <s>" in str(w.message)] == (
        [
            f"balora: {name} rows: texts begin with <s>, which the tokenizer adds itself; it is kept once"
            for name in ("train", "validation")
        ]
        if adds != "$A"
        else []
    )


@pytest.mark.parametrize("adds", ["$A", "$A </s>", "<s> $A </s>"])
@pytest.mark.parametrize("form", ["text", "completion"])
@pytest.mark.parametrize("stream", [{}, {"streaming": True, "max_steps": 1}])
def test_rows_end_with_one_end_of_text_token(folder, adds, form, stream):
    tokenizer(folder, adds=adds, bos_token="<s>", eos_token="</s>")
    trainer = trainer_of(recipe(folder, FORMS[form], **stream))
    for rows in (trainer.train_dataset, trainer.eval_dataset):
        row = next(iter(rows))
        words = [WORDS[i] for i in row["input_ids"]]
        assert words == [*(["<s>"] if "<s>" in adds else []), *" ".join(FORMS[form].values()).split(), "</s>"]
        learned = [WORDS[i] for i in row["labels"] if i != -100]
        assert learned == (words if form == "text" else ["the", "cat", "</s>"])


@pytest.mark.parametrize("stream", [{}, {"streaming": True, "max_steps": 1}])
@pytest.mark.parametrize("place", ["train", "validation"])
@pytest.mark.parametrize("row", [{"messages": TURNS}, {"prompt": TURNS[:1], "completion": TURNS[1:]}])
def test_conversations_without_a_template_raise_before_the_model_is_loaded(folder, row, place, stream):
    settings = recipe(folder, FORMS["completion"] if "prompt" in row else FORMS["text"], **stream)
    (folder.parent / f"{place}.jsonl").write_text(json.dumps(row) + "\n")
    assert complaint(lambda: prepare(settings), f"{place} rows: chat rows need a chat template")
