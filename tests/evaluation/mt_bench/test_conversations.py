"""Questions read, asked in two turns, and answered by a real model at the temperature of their category."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from balora.errors import BALoraError
from balora.evaluation.mt_bench import Question, answer_question, answer_questions, chat_answer, read_questions
from balora.evaluation.mt_bench.conversations import TEMPERATURES

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def test_the_real_questions_are_eighty_of_eight_categories(data_dir):
    questions = read_questions(data_dir / "mt_bench" / "question.jsonl")
    assert [question.question_id for question in questions] == list(range(81, 161))
    assert [question.category for question in questions[::10]] == [
        *("writing", "roleplay", "reasoning", "math"),
        *("coding", "extraction", "stem", "humanities"),
    ]
    assert {question.category for question in questions} == set(TEMPERATURES)
    rows = [json.loads(line) for line in (data_dir / "mt_bench/question.jsonl").read_text().splitlines()]
    assert [list(question.turns) for question in questions] == [row["turns"] for row in rows]
    assert [[text or "" for text in question.references] for question in questions] == [
        row.get("reference", ["", ""]) for row in rows
    ]
    assert None not in questions[20].references
    assert questions[0].references == (None, None)
    assert questions[50].references[1] is None  # an empty text is no reference


def row(**changes):
    return {"question_id": 1, "category": "math", "turns": ["a", "b"]} | changes


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(turns=["a"])], "row 1, field 'turns': expected two texts"),
        ([row(), row(question_id=2, turns=["a", " "])], "row 2, field 'turns': a turn is empty in ['a', ' ']"),
        ([row(), row()], "row 2, field 'question_id': 1 is also in row 1"),
        ([row(question_id="x")], "row 1, field 'question_id': expected a whole number, found 'x'"),
        ([row(category=None)], "row 1, field 'category': is missing"),
        ([row(reference=["a"])], "row 1, field 'reference': expected two texts"),
        ([{"category": "math"}], "no column 'question_id'"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, rows, said):
    file = tmp_path / "question.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(BALoraError) as error:
        read_questions(file)
    assert str(file) in str(error.value)
    assert said in str(error.value)


def test_no_file_is_named(tmp_path):
    with pytest.raises(BALoraError, match=r"question\.jsonl: no such file"):
        read_questions(tmp_path / "question.jsonl")


def test_the_second_turn_is_asked_with_the_first_and_its_answer():
    asked = []

    def answer(messages):
        asked.append(list(messages))
        return f"answer {len(asked)}"

    talk = answer_question(Question(1, "math", ("one?", "two?")), answer)
    assert talk.answers == ("answer 1", "answer 2")
    first, said, second = (
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "answer 1"},
        {"role": "user", "content": "two?"},
    )
    assert asked == [[first], [first, said, second]]


@pytest.fixture(scope="module")
def stories(models_dir):
    model = AutoModelForCausalLM.from_pretrained(models_dir / "stories260k")
    tokenizer = AutoTokenizer.from_pretrained(models_dir / "stories260k")
    tokenizer.chat_template = TEMPLATE
    return model, tokenizer


def greedy(model, tokenizer, text, steps):
    """Greedy decoding by a naive loop."""
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    length = ids.shape[1]
    for _ in range(steps):
        with torch.no_grad():
            best = model(ids).logits[0, -1].argmax()
        if best == model.generation_config.eos_token_id:
            break
        ids = torch.cat([ids, best.view(1, 1)], 1)
    return tokenizer.decode(ids[0, length:], skip_special_tokens=True).strip()


def test_greedy_answers_are_the_likeliest_tokens_after_the_template(stories):
    model, tokenizer = stories
    model.train()
    talk = answer_question(
        Question(1, "math", ("Once upon a time", "And then")), chat_answer(model, tokenizer, max_new_tokens=12)
    )
    assert model.training
    model.eval()
    first = greedy(model, tokenizer, "user: Once upon a time\nassistant:", 12)
    second = greedy(model, tokenizer, f"user: Once upon a time\nassistant: {first}\nuser: And then\nassistant:", 12)
    assert first
    assert talk.answers == (first, second)


def test_each_question_has_its_category_s_temperature_and_its_own_seed(stories):
    model, tokenizer = stories
    questions = [Question(i, name, ("Once upon", "And")) for i, name in enumerate(["writing", "math", "writing"])]
    state = torch.get_rng_state()
    writing, maths, again = answer_questions(questions, model, tokenizer, max_new_tokens=12, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert writing.answers == again.answers
    assert maths == answer_question(questions[1], chat_answer(model, tokenizer, max_new_tokens=12))
    assert writing.answers != maths.answers
    (other,) = answer_questions(questions[:1], model, tokenizer, max_new_tokens=12, seed=4)
    assert other.answers != writing.answers


def test_an_answer_ends_where_the_context_does(stories, monkeypatch):
    model, tokenizer = stories
    wanted = []

    def generate(input_ids, max_new_tokens, **_):
        wanted.append((input_ids.shape[1], max_new_tokens))
        return torch.nn.functional.pad(input_ids, (0, 1), value=400)

    monkeypatch.setattr(model, "generate", generate)
    answer = chat_answer(model, tokenizer, max_new_tokens=300)
    assert answer([{"role": "user", "content": "cat"}])
    assert answer([{"role": "user", "content": "cat " * 120}])
    assert answer([{"role": "user", "content": "cat " * 400}]) == ""
    (_, short), (length, long) = wanted
    assert short == 300
    assert 0 < long < 300
    assert length + long == model.config.max_position_embeddings


def test_a_tokenizer_without_a_chat_template_is_named(stories, models_dir):
    tokenizer = AutoTokenizer.from_pretrained(models_dir / "stories260k")
    with pytest.raises(BALoraError, match="stories260k: the tokenizer has no chat template"):
        answer_questions([Question(1, "math", ("a", "b"))], stories[0], tokenizer)
