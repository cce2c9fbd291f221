"""The reading world: questions whose answers follow from their contexts, and a T5 pretrained on the plain ones."""

import random

import pytest
import torch
from datasets import Dataset
from reading_world import TINY
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import balora.world.reading.build as build
from balora.data import hotpotqa_rows, load_table
from balora.data.perturbation import KINDS, perturb
from balora.errors import BALoraError
from balora.world.reading import ReadingConfig, build_reading_world, make_row
from balora.world.reading.lessons import make_lesson
from balora.world.reading.pretrain import UNK, make_tokenizer
from balora.world.reading.questions import YEARS


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build_reading_world(TINY, tmp_path_factory.mktemp("worlds"))


def told(row):
    """Return the context's facts: subject to the last word of each sentence."""
    context = row["context"]
    return {
        (title, place): sentence.split()[-1].rstrip(".")
        for title, sentences in zip(context["title"], context["sentences"], strict=True)
        for place, sentence in enumerate(sentences)
    }


def named(question, facts):
    """Names of the context in a question, in its order."""
    words = question.replace("?", " ").replace(",", " ").split()
    return [word for word in words if any(word == title for title, _ in facts)]


@pytest.mark.parametrize("index", range(200))
def test_answers_follow_from_the_context(index):
    row = make_row(ReadingConfig(), "eval", index)
    facts = told(row)
    subjects = named(row["question"], facts)
    if row["type"] == "bridge":
        (subject,) = subjects
        assert row["answer"] == facts[facts[subject, 0], 0]  # a film's director's town, or a director's town's country
        assert ("country" in row["question"]) == ((subject, 1) not in facts)
    elif "released first" in row["question"]:
        assert row["answer"] == min(subjects, key=lambda film: facts[film, 1])
    else:
        one, other = subjects
        assert one != other
        assert row["answer"] == ("yes" if facts[one, 0] == facts[other, 0] else "no")


@pytest.mark.parametrize("index", range(200))
def test_plain_questions_are_answered_by_one_sentence(index):
    row = make_row(ReadingConfig(), "single", index)
    facts = told(row)
    subjects = named(row["question"], facts)
    if not subjects:
        words = row["question"].replace("?", " ").replace(",", " ").split()
        one, other = (word for word in words if word in YEARS)
        assert row["answer"] == (("yes" if one == other else "no") if "same" in words else min(one, other))
    elif row["answer"] in ("yes", "no"):
        subject, claimed = subjects
        assert row["answer"] == ("yes" if facts[subject, 0] == claimed else "no")
    else:
        (subject,) = subjects
        place = int("released" in row["question"])
        assert row["answer"] == facts[subject, place]


def test_the_supporting_sentences_hold_the_answer():
    rows = hotpotqa_rows(Dataset.from_list([make_row(ReadingConfig(), "train", i) for i in range(100)]))
    for row in rows:
        assert len(row["supporting"]) == 2
        if row["type"] == "bridge":
            assert row["answer"] in row["supporting"][1]


def test_wordings_of_bridge_questions_occur_in_no_lesson():
    def words(text):
        return tuple(word if word.islower() or word in ("Where", "In", "From") else "_" for word in text.split())

    lessons = (make_lesson(ReadingConfig(), number, 1000)[0] for number in range(1000))
    known = {words(lesson.removeprefix("question: ").split(" context: ")[0]) for lesson in lessons}
    bridges = [row for row in (make_row(ReadingConfig(), "eval", i) for i in range(100)) if row["type"] == "bridge"]
    assert bridges
    assert not known & {words(row["question"]) for row in bridges}


def test_both_answers_and_both_types_occur():
    rows = [make_row(ReadingConfig(), "train", i) for i in range(600)]
    comparisons = [row for row in rows if row["type"] == "comparison"]
    assert 0.33 < len(comparisons) / len(rows) < 0.47
    verdicts = [row["answer"] for row in comparisons if row["answer"] in ("yes", "no")]
    assert 0.35 < verdicts.count("yes") / len(verdicts) < 0.65


def test_rows_are_a_function_of_seed_stream_and_index():
    config = ReadingConfig()
    assert make_row(config, "train", 3) == make_row(config, "train", 3)
    assert make_row(config, "train", 3) != make_row(config, "eval", 3)
    assert make_row(config, "train", 3) != make_row(ReadingConfig(seed=1), "train", 3)
    trained = {(row["question"], str(row["context"])) for row in (make_row(config, "train", i) for i in range(2000))}
    held_out = {(row["question"], str(row["context"])) for row in (make_row(config, "eval", i) for i in range(500))}
    assert not trained & held_out


def test_tokenizer_knows_every_word_of_perturbed_questions():
    config = ReadingConfig()
    tokenizer = make_tokenizer(config)
    draw = random.Random(0)
    for index in range(1000, 1300):
        row = make_row(config, "eval", index)
        text = perturb(row["question"], draw.choice(list(KINDS)), draw.random(), index)
        assert tokenizer.convert_tokens_to_ids(UNK) not in tokenizer(f"{text} {row['answer']}")["input_ids"], text


def test_a_reading_world_is_ordinary_files(world):
    tokenizer = AutoTokenizer.from_pretrained(world.model_dir)
    model = AutoModelForSeq2SeqLM.from_pretrained(world.model_dir)
    assert len(hotpotqa_rows(load_table(world.train_file))) == 60
    assert len(hotpotqa_rows(load_table(world.eval_file))) == 30
    assert set(load_table(world.single_file)["type"]) == {"single"}
    written = model.generate(**tokenizer(["question: Who directed"], return_tensors="pt"), max_new_tokens=2)
    assert written.shape[0] == 1


def test_the_second_call_writes_nothing_and_questions_share_the_model(world, monkeypatch):
    monkeypatch.setattr(build, "pretrain", lambda *_: pytest.fail("pretrained again"))
    cache = world.directory.parent
    assert build_reading_world(TINY, cache) == world
    other = build_reading_world(ReadingConfig(**{**vars(TINY), "comparison_share": 1.0}), cache)
    assert other.directory != world.directory
    assert set(load_table(other.train_file)["type"]) == {"comparison"}


def test_building_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    build_reading_world(TINY, tmp_path)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(("knob", "value"), [("chains", 1), ("names", 3.5), ("hidden_size", 31), ("num_layers", 2)])
def test_a_wrong_setting_is_named(knob, value):
    with pytest.raises(BALoraError, match=knob):
        ReadingConfig(**{knob: value})
