"""Conversations through the program: which tokens are trained on, how benchmarks ask, where generation stops."""

import json
from pathlib import Path

import pytest
import torch
from bad_inputs import complaint
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from balora.audit.models import load_audited
from balora.data.special_tokens import added_tokens
from balora.recipe import Recipe
from balora.study.benchmarks import _prompt_settings
from balora.study.prepare import prepare
from balora.study.run import train_and_measure
from balora.study.trainers import build_trainer

WORDS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "user", "assistant", "who", "sat", "?", "the", "cat"]
WORDS += [str(number) for number in range(10)]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ ' <|im_start|> ' + m.role + ' ' + m.content + ' <|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <|im_start|> assistant ' }}{% endif %}"
)
TURNS = [{"role": "user", "content": "who sat ?"}, {"role": "assistant", "content": "the cat"}]
ROWS = {
    "messages": {"messages": TURNS},
    "conversations": {"conversations": [{"from": "human", "value": "who sat ?"}, {"from": "gpt", "value": "the cat"}]},
    "completion": {"prompt": TURNS[:1], "completion": TURNS[1:]},
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A tiny model whose template ends turns with another token than the tokenizer's end of text."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(WORDS[:5])
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "model_max_length": 64}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, chat_template=TEMPLATE, **special)
    tokenizer.save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"vocab_size": len(WORDS), "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(tmp_path / "model")
    question = {"question": "who sat ?", "answer": "so #### 4"}
    (tmp_path / "gsm8k.jsonl").write_text(json.dumps(question) + "\n")
    return tmp_path / "model"


def recipe(folder: Path, row: dict, **settings) -> Recipe:
    for name in ("train", "validation"):
        (folder.parent / f"{name}.jsonl").write_text(4 * (json.dumps(row) + "\n"))
    files = {f"{name}_file": str(folder.parent / f"{name}.jsonl") for name in ("train", "validation")}
    return Recipe(model_name_or_path=str(folder), **{"training_arguments": {"use_cpu": True}, **files, **settings})


STREAM = {"streaming": True, "max_steps": 1}


@pytest.mark.parametrize("form", ROWS)
@pytest.mark.parametrize("stream", [{}, STREAM])
@pytest.mark.parametrize("only", [None, False])
def test_the_loss_counts_the_answers_alone_unless_all_messages_are_asked_for(folder, form, stream, only):
    prepared = prepare(recipe(folder, ROWS[form], assistant_only_loss=only, **stream))
    trainer = build_trainer(prepared, prepared.load_model(), 0, folder.parent / "out", [])
    whole = "<s> <|im_start|> user who sat ? <|im_end|> <|im_start|> assistant the cat <|im_end|>"
    expected = whole if only is False and form != "completion" else "the cat <|im_end|>"
    for rows in (trainer.train_dataset, trainer.eval_dataset):
        row = next(iter(rows))
        assert prepared.tokenizer.decode(row["input_ids"]) == whole
        assert prepared.tokenizer.decode([label for label in row["labels"] if label != -100]) == expected


def test_tools_of_a_later_row_of_a_stream_reach_the_template(folder):
    template = "{% if tools %}{{ tools[0].name + ' ' }}{% endif %}" + TEMPLATE
    (folder.parent / "tools.jinja").write_text(template)
    given = recipe(folder, ROWS["messages"], chat_template_path=str(folder.parent / "tools.jinja"), **STREAM)
    later = {**ROWS["messages"], "tools": [{"name": "cat"}]}
    with Path(given.train_file).open("a") as file:
        file.write(json.dumps(later) + "\n")
    prepared = prepare(given)
    rows = [row["input_ids"] for row in one_pass(prepared, folder)]
    assert [WORDS[ids[0]] for ids in rows] == ["<s>"] * 4 + ["cat"]


def one_pass(prepared, folder: Path) -> list[dict]:
    """Return one pass over the tokenized training rows, in the order of the file."""
    trainer = build_trainer(prepared, prepared.load_model(), 0, folder.parent / "out", [])
    return sorted(trainer.train_dataset.rows, key=lambda row: row["row"])


def test_settings_without_effect_raise(folder):
    text = recipe(folder, {"text": "the cat"}, assistant_only_loss=True)
    assert complaint(lambda: prepare(text), "assistant_only_loss: only conversations have an assistant")
    given = {"training_arguments": {"assistant_only_loss": True, "use_cpu": True}}
    assert complaint(
        lambda: recipe(folder, ROWS["messages"], **given),
        "training_arguments: assistant_only_loss is a key of the recipe itself",
    )


@pytest.mark.parametrize("form", ROWS)
def test_benchmarks_ask_as_the_rows_do_however_these_are_named(folder, form):
    prepared = prepare(recipe(folder, ROWS[form]))
    config = LlamaConfig.from_pretrained(folder)
    settings = _prompt_settings(prepared.recipe, prepared.tokenizer, config, prepared)
    assert settings.instructed
    assert settings.format_prompt("who sat ?") == "<s> <|im_start|> user who sat ? <|im_end|> <|im_start|> assistant "


def test_a_start_token_that_the_tokenizer_adds_is_not_asked_twice(folder):
    given = recipe(folder, {"prompt": "who sat ?", "completion": "the cat"}, prompt_template="<s> {prompt}")
    prepared = prepare(given)
    settings = _prompt_settings(prepared.recipe, prepared.tokenizer, LlamaConfig.from_pretrained(folder), prepared)
    assert added_tokens(prepared.tokenizer) == ("", "")
    assert settings.format_prompt("who") == "<s> who"


@pytest.mark.parametrize(("method", "steps"), [("full", 60), ("lora", 1), ("ba-lora", 1), ("houlsby", 1)])
def test_an_answer_learned_by_heart_stops_at_the_end_of_its_turn(folder, method, steps):
    questions = {"file": str(folder.parent / "gsm8k.jsonl"), "max_new_tokens": 12}
    given = recipe(
        folder,
        ROWS["messages"],
        method=method,
        benchmarks={"gsm8k": questions},
        learning_rate=0.01,
        max_steps=steps,
        per_device_train_batch_size=4,
    )
    directory = folder.parent / "run"
    train_and_measure(given, method, 1, directory)
    if method == "full":
        written = [json.loads(line) for path in (directory / "benchmarks").glob("*") for line in path.open()]
        assert [answer["completion"] for answer in written] == ["the cat"]
    assert GenerationConfig.from_pretrained(directory).eos_token_id == [2, 4]
    assert AutoTokenizer.from_pretrained(directory).chat_template == TEMPLATE
    if method in ("full", "lora", "ba-lora"):
        audited = load_audited(str(folder), str(directory))
        assert audited.tuned.generation_config.eos_token_id == [2, 4]
        with audited.as_base() as base:
            assert base.generation_config.eos_token_id == [2, 4]
