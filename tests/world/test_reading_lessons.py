"""The pretraining curriculum of the small T5, and its initialization."""

import re

import pytest
import torch
from datasets import Dataset
from reading_world import TINY
from transformers import AutoTokenizer, DataCollatorForSeq2Seq

import balora.world.reading.pretrain as pretraining
from balora.data import hotpotqa_rows, to_qa_rows
from balora.world.reading import ReadingConfig
from balora.world.reading.lessons import STAGES, make_lesson, make_lessons, stage_at
from balora.world.reading.pretrain import LEFT, RIGHT, SAME, UNK, make_model, make_optimizer, make_tokenizer
from balora.world.reading.questions import DIRECTORS, FILMS, YEARS

CONFIG = ReadingConfig()
COUNT = 4000


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(CONFIG)


def lesson(progress, number=0):
    """A row some way through the steps, as question, context and answer."""
    prompt, answer = make_lesson(CONFIG, int(progress * COUNT) + number, COUNT)
    question, context = prompt.removeprefix("question: ").split(" context: ")
    return question, context, answer


@pytest.mark.parametrize("progress", [0.0, 0.15, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("number", range(40))
def test_a_lesson_s_context_has_the_supporting_sentences(progress, number):
    question, context, answer = lesson(progress, number)
    assert all(word in ("yes", "no", *YEARS) or word in context for word in answer.split())
    titles = {paragraph.split(":")[0] for paragraph in context.split(". ")}
    assert any(name in question for name in titles.union(YEARS))


@pytest.mark.parametrize("number", range(20))
def test_lessons_have_the_format_of_question_answering(tokenizer, number):
    question, context, answer = lesson(0.9, number)
    _, *parts = re.split(r"(\w+): ", context)  # title, sentences, title, …
    told = {"title": parts[::2], "sentences": [re.findall(r"[^.]+\.", said) for said in parts[1::2]]}
    facts = {"title": [], "sent_id": []}
    row = {"id": "a", "question": question, "answer": answer, "type": "", "level": "", "context": told}
    rows = hotpotqa_rows(Dataset.from_list([{**row, "supporting_facts": facts}]))
    expected = to_qa_rows(rows, source="", max_tokens=512, count=lambda text: len(tokenizer(text)["input_ids"]))
    assert expected["prompt"][0] == f"question: {question} context: {context}"
    assert expected["completion"][0] == answer


def test_lessons_begin_with_few_sentences_and_end_with_whole_contexts():
    first, last = [lesson(0.0, number) for number in range(100)], [lesson(0.95, number) for number in range(100)]
    assert {context.count(".") for _, context, _ in first} == {4}
    assert not {"yes", "no"} & {answer for *_, answer in first}
    assert max(context.count(".") for _, context, _ in last) == 12
    assert {"yes", "no"} <= {answer for *_, answer in last}


def said_first(words, told):
    """Return the answer's words before the last; none if one step or only the last is asked for."""
    subjects = [word for word in words if word in (*FILMS, *DIRECTORS)]
    if "and" not in words:
        return []
    if "when" in words:
        return [told[film, "year"] for film in subjects]
    if "same" in words:
        return [] if "years" in words else [told[subject] for subject in subjects]
    return [told[subjects[0]]]


@pytest.mark.parametrize("progress", [0.1, 0.3, 0.5, 0.68])
def test_aloud_answers_state_every_step_from_the_context(progress):
    spoken = 0
    for number in range(300):
        question, context, answer = lesson(progress, number)
        told = dict(re.findall(r"(\w+) is a \w+ (?:directed by|born in|located in) (\w+)\.", context))
        told |= {(film, "year"): year for film, year in re.findall(r"(\w+): [^:]*It was released in (\d+)", context)}
        words = question.replace("?", " ").replace(",", " ").split()
        *steps, last = answer.split()
        assert steps == said_first(words, told), question
        spoken += len(steps) > 0
        if not steps:
            continue
        if "country" in words or "director" in words:
            assert last == told[steps[0]]
        elif "first" in words:
            assert last == min((word for word in words if word in FILMS), key=lambda film: told[film, "year"])
        else:
            held = steps if "both" in words else [*steps, words[-1]]
            assert last == ("yes" if held[0] == held[1] else "no")
    assert spoken > 60


@pytest.mark.parametrize("progress", [0.1, 0.3, 0.5, 0.68])
def test_answers_without_steps_are_the_end_of_the_chain(progress):
    asked = r"the director of (\w+) born\?|the town of (\w+) located\?|the town located where (\w+) was born\?"
    alone = 0
    for question, context, answer in (lesson(progress, number) for number in range(300)):
        if found := re.search(asked, question):
            told = dict(re.findall(r"(\w+) is a \w+ (?:directed by|born in|located in) (\w+)\.", context))
            assert answer == told[told[found[found.lastindex]]], question
            alone += 1
    assert alone > 20


def test_comparisons_always_state_the_compared_values():
    rows = [lesson(progress, number) for progress in (0.5, 0.68) for number in range(300)]
    compared = [answer for question, _, answer in rows if "both" in question and "years" not in question]
    assert len(compared) > 50
    assert {len(answer.split()) for answer in compared} == {3}


def test_films_of_a_stage_share_facts_or_do_not():
    apart, alike = ([lesson(progress, number)[1] for number in range(300)] for progress in (0.1, 0.5))
    towns = [re.findall(r"born in (\w+)", context) for context in apart]
    assert sum(len(named) == 2 for named in towns) > 150
    assert all(len(set(named)) == len(named) for named in towns)
    shared = [re.findall(r"born in (\w+)", context) for context in alike]
    assert sum(len(named) == 2 and len(set(named)) == 1 for named in shared) > 30


def test_the_stages_fill_the_steps_in_their_order():
    assert sum(stage.share for stage in STAGES) == pytest.approx(1)
    numbers = [stage_at(step / 1000) for step in range(1000)]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(len(STAGES)))
    assert numbers.count(0) == pytest.approx(1000 * STAGES[0].share, abs=1)


def test_all_lessons_are_there_and_the_same_again():
    rows = make_lessons(TINY)
    assert len(rows) == TINY.pretrain_steps * TINY.pretrain_batch_size
    assert [tuple(row.values()) for row in rows] == [make_lesson(TINY, i, len(rows)) for i in range(len(rows))]
    assert rows[:] == make_lessons(TINY)[:]


def test_lessons_have_no_unknown_words(tokenizer):
    unknown = tokenizer.convert_tokens_to_ids(UNK)
    for number in range(600):
        prompt, answer = make_lesson(CONFIG, COUNT - 1 - number, COUNT)
        assert unknown not in tokenizer(prompt)["input_ids"], prompt
        assert unknown not in tokenizer.convert_tokens_to_ids(answer.split()), answer


def test_initialized_heads_attend_where_reading_needs_them(tokenizer):
    torch.manual_seed(0)
    model = make_model(CONFIG, tokenizer)
    model.set_attn_implementation("eager")
    ids = 3 + 7 * torch.arange(16)[None]  # sixteen words
    ids[0, 11] = ids[0, 2]  # of which one is there twice
    layers = model.encoder(input_ids=ids, output_attentions=True).attentions
    first = layers[0][0]  # (heads, S, S)
    assert first[SAME, [2, 11]].argmax(-1).tolist() == [11, 2]
    left, right = first[LEFT, 8], first[RIGHT, 2]
    assert left[4:8].sum() > 0.95
    assert right[3:14].sum() > 0.95


def test_decoder_start_token_is_the_word_after_the_question(tokenizer):
    torch.manual_seed(0)
    model = make_model(CONFIG, tokenizer)
    model.set_attn_implementation("eager")
    batch = tokenizer(lesson(0.0)[0] + " context: Badsuxo: 1960", return_tensors="pt")
    start = torch.tensor([[model.config.decoder_start_token_id]])
    looked = model(**batch, decoder_input_ids=start, output_attentions=True).cross_attentions[0][0].mean(0)[0]  # (S,)
    assert tokenizer.convert_ids_to_tokens(batch["input_ids"][0])[looked.argmax()] == "context"


def test_rates_follow_the_size_of_each_weight():
    model = make_model(TINY, make_tokenizer(TINY))
    groups = make_optimizer(model, 0.5).param_groups
    for weight, group in zip(model.parameters(), groups, strict=True):
        assert group["lr"] == pytest.approx(0.5 * weight.pow(2).mean().item() ** 0.5)


def test_lessons_are_trained_in_order(tmp_path, monkeypatch):
    seen = []

    class Recording(DataCollatorForSeq2Seq):
        def __call__(self, rows, *args, **kwargs):
            seen.extend(row["input_ids"] for row in rows)
            return super().__call__(rows, *args, **kwargs)

    monkeypatch.setattr(pretraining, "DataCollatorForSeq2Seq", Recording)
    pretraining.pretrain(TINY, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert seen == tokenizer(make_lessons(TINY)["prompt"][:])["input_ids"]
