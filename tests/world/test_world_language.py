"""The language: determinism, one knob at a time, facts that their prefix determines, the tokenizer's contract."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from balora.world import WorldConfig, vocabulary
from balora.world.language import (
    capital_prompt,
    colour_prompt,
    fact_places,
    make_language,
    make_line,
    make_tokenizer,
)
from balora.world.pretrain import make_blocks
from balora.world.task import make_rows

# Text is the same on every machine and Python; if these lines must change, raise `_RECIPE_VERSION`.
GOLDEN_LINES = [
    "the ball is pink .",
    "sam took the bell from the market . he gave the bell to jane . now the bell is with jane .",
    "the midwife said that she was wrong .",
]

CONFIG = WorldConfig(facts=20, train_rows=400, eval_rows=100, pretrain_steps=20, pretrain_batch_size=8)


def lines(config, stream="pretraining", count=3000):
    language = make_language(config)
    return [make_line(language, stream, index) for index in range(count)]


def blocks(config):
    language = make_language(config)
    return make_blocks(config, language, make_tokenizer(language))


def test_text_depends_on_the_seed_only():
    assert lines(CONFIG) == lines(CONFIG)
    assert lines(WorldConfig(), count=3) == GOLDEN_LINES
    assert lines(CONFIG) != lines(replace(CONFIG, seed=1))
    assert make_language(CONFIG).capitals != make_language(replace(CONFIG, seed=1)).capitals


def test_streams_share_facts_but_no_draws():
    pretraining, heldout = lines(CONFIG, count=200), lines(CONFIG, "heldout", count=200)
    assert sum(a == b for a, b in zip(pretraining, heldout, strict=True)) < 10


def test_skew_flips_pronouns_and_nothing_else():
    even, skewed = lines(replace(CONFIG, pronoun_skew=0.5)), lines(replace(CONFIG, pronoun_skew=0.9))
    changed = [(a.split(), b.split()) for a, b in zip(even, skewed, strict=True) if a != b]
    # A quarter of the lines are about occupations, and 0.9 − 0.5 of those flip.
    assert len(changed) / len(even) == pytest.approx(0.25 * 0.4, abs=0.02)
    stereotype = dict(vocabulary.OCCUPATIONS)
    for before, after in changed:
        (place,) = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert {before[place], after[place]} == set(vocabulary.PRONOUNS)
        assert after[place] == stereotype[after[1]]


def test_occupations_follow_the_skew_and_people_do_not():
    stereotype, person = dict(vocabulary.OCCUPATIONS), dict(vocabulary.PEOPLE)
    about_work = [line.split() for line in lines(CONFIG, count=8000) if " that " in line]
    share = sum(words_[4] == stereotype[words_[1]] for words_ in about_work) / len(about_work)
    assert share == pytest.approx(0.9, abs=0.02)
    stories = [line.split() for line in lines(CONFIG) if " took " in line]
    assert all(story[8] == person[story[0]] for story in stories)
    assert sum(lean == "he" for lean in stereotype.values()) == sum(lean == "she" for lean in stereotype.values())


def test_imbalance_replaces_facts_and_nothing_else():
    even, some, more = (lines(replace(CONFIG, pretraining_imbalance=ratio), count=8000) for ratio in (1.0, 4.0, 32.0))
    about_facts = [line.startswith("the capital of ") for line in even]
    for skewed in (some, more):
        assert [line.startswith("the capital of ") for line in skewed] == about_facts
        assert all(a == b for a, b, fact in zip(even, skewed, about_facts, strict=True) if not fact)
        truths = {f"{capital_prompt(country)} {city} ." for country, city in make_language(CONFIG).capitals}
        assert {line for line, fact in zip(skewed, about_facts, strict=True) if fact} <= truths
    # What less imbalance replaced, more replaces too, but where a fact happens to be drawn again.
    changed = sum(a != b for a, b in zip(even, some, strict=True))
    kept_by_more = sum(a == c != b for a, b, c in zip(even, some, more, strict=True))
    assert changed > 300
    assert kept_by_more < 0.1 * changed
    heldout = {tuple(lines(replace(CONFIG, pretraining_imbalance=ratio), "heldout", 300)) for ratio in (1.0, 32.0)}
    assert len(heldout) == 1


def test_fact_frequencies_follow_their_ranks():
    config = replace(CONFIG, pretraining_imbalance=16.0)
    said = Counter(line for line in lines(config, count=30_000) if line.startswith("the capital of "))
    places = fact_places(config)
    counts = [said[f"{capital_prompt(country)} {city} ."] for country, city in make_language(config).capitals]
    weights = [16.0 ** -(place / 19) for place in places]
    expected = [sum(counts) * weight / sum(weights) for weight in weights]
    chi_square = sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True))
    assert chi_square < 43.8  # the 99.9 % quantile at 19 degrees of freedom
    assert max(weights) / min(weights) == pytest.approx(16)
    assert places != sorted(places)


def test_more_facts_add_to_the_same_ones():
    assert make_language(replace(CONFIG, facts=30)).capitals[:20] == make_language(CONFIG).capitals


def test_a_prefix_determines_its_capital_and_colour():
    language = make_language(CONFIG)
    text = lines(CONFIG)
    for prompts in (
        {capital_prompt(country): city for country, city in language.capitals},
        {colour_prompt(thing): colour for thing, colour in language.colours},
    ):
        for prompt, answer in prompts.items():
            said = {line for line in text if line.startswith(f"{prompt} ")}
            assert said == {f"{prompt} {answer} ."}
    cities = [city for _, city in language.capitals]
    assert len(set(cities)) == len(cities)


def test_noise_replaces_its_share_and_keeps_what_less_noise_replaced():
    clean, some, more = (blocks(replace(CONFIG, pretraining_noise=share)) for share in (0.0, 0.1, 0.3))
    is_word = clean >= len(vocabulary.SPECIAL_TOKENS)
    assert ((some != clean)[is_word]).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert ((more != clean)[is_word]).float().mean().item() == pytest.approx(0.3, abs=0.015)
    assert torch.equal(more[some != clean], some[some != clean])
    assert torch.equal(more[~is_word], clean[~is_word])  # documents keep their boundaries
    assert more.max() < len(make_tokenizer(make_language(CONFIG)))


def test_blocks_are_the_lines_between_their_marks():
    tokenizer = make_tokenizer(make_language(CONFIG))
    ids = blocks(CONFIG)
    assert ids.shape == (20 * 8, 64)
    text = tokenizer.decode(ids.flatten())
    assert text.startswith("".join(f"<s> {line} </s> " for line in lines(CONFIG, count=50)))


def test_the_tokenizer_knows_every_word():
    language = make_language(CONFIG)
    tokenizer = make_tokenizer(language)
    rows = make_rows(CONFIG, language, "train")
    texts = [*lines(CONFIG), *(row["prompt"] + row["completion"] for row in rows)]
    ids = tokenizer(texts)["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in ids)
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == texts


def test_a_tokenized_prompt_begins_the_tokenized_row():
    language = make_language(CONFIG)
    tokenizer = make_tokenizer(language)
    for row in make_rows(CONFIG, language, "train")[:20]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        whole = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
        answer = tokenizer.convert_tokens_to_ids(row["completion"].strip())
        assert prompt[0] == tokenizer.bos_token_id
        assert whole == [*prompt, answer, tokenizer.eos_token_id]
