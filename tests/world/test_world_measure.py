"""The measures, against hand-made models whose answers are known exactly."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from balora.world import measure_world, next_token_log_probs, perplexity, pronoun_skew, recall
from balora.world.language import fact_places, make_language
from balora.world.measure import noise_share


class Planted(nn.Module):
    """A causal model with p(next | current) planted for some pairs; what is left is spread evenly over the rest."""

    def __init__(self, tokenizer, table):
        super().__init__()
        size = len(tokenizer)
        p = torch.full((size, size), 1 / size, dtype=torch.float64)
        for token, following in table.items():
            row = torch.full((size,), (1 - sum(following.values())) / (size - len(following)), dtype=torch.float64)
            for word, probability in following.items():
                row[tokenizer.convert_tokens_to_ids(word)] = probability
            p[tokenizer.convert_tokens_to_ids(token)] = row
        self.log_p = nn.Parameter(p.log())
        self.dropout = nn.Dropout()
        self.frozen = nn.Dropout().eval()
        self.seen_training = set()

    def forward(self, input_ids, attention_mask):
        self.seen_training |= {self.training, self.dropout.training, torch.is_grad_enabled()}
        assert attention_mask.shape == input_ids.shape
        return SimpleNamespace(logits=self.log_p[input_ids] + 3)  # a shift changes no probability


def test_perplexity_of_a_uniform_model_is_its_vocabulary_size(tiny_tokenizer):
    model = Planted(tiny_tokenizer, {})
    assert perplexity(model, tiny_tokenizer, ["the apple is red .", "one plus"]) == pytest.approx(len(tiny_tokenizer))


def test_perplexity_counts_the_end_but_not_the_padding(tiny_tokenizer):
    table = {"<s>": {"one": 1 / 2}, "one": {"plus": 1 / 4}, "plus": {"</s>": 1 / 8}, "<pad>": {"<pad>": 1e-9}}
    table["two"] = {"</s>": 1 / 16}
    model = Planted(tiny_tokenizer, table)
    assert perplexity(model, tiny_tokenizer, ["one plus"]) == pytest.approx((2 * 4 * 8) ** (1 / 3))
    # "two" alone: p(two | <s>) is an even share of the half that `one` leaves.
    surprise = math.log(2 * (len(tiny_tokenizer) - 1)) + math.log(16)
    expected = math.exp((math.log(2 * 4 * 8) + surprise) / 5)
    assert perplexity(model, tiny_tokenizer, ["one plus", "two"]) == pytest.approx(expected)


def test_measures_do_not_depend_on_the_batch_size(tiny_tokenizer, monkeypatch):
    model = Planted(tiny_tokenizer, {"one": {"plus": 0.5}, "plus": {"two": 0.7}})
    texts = ["one plus two is three .", "one", "plus two", "one plus", "two one"]
    whole, rows = perplexity(model, tiny_tokenizer, texts), next_token_log_probs(model, tiny_tokenizer, texts)
    monkeypatch.setattr("balora.world.measure._BATCH_SIZE", 2)
    assert perplexity(model, tiny_tokenizer, texts) == pytest.approx(whole, rel=1e-12)
    torch.testing.assert_close(next_token_log_probs(model, tiny_tokenizer, texts), rows)
    assert rows.exp().sum(-1) == pytest.approx(torch.ones(5).double())


def test_recall_is_the_share_of_argmax_answers(tiny_tokenizer):
    model = Planted(tiny_tokenizer, {"apple": {"red": 0.4, "green": 0.3}, "pear": {"green": 0.2}, "plum": {"is": 0.9}})
    rows = [
        {"prompt": "the apple", "completion": " red"},
        {"prompt": "pear", "completion": " green"},
        {"prompt": "one plus two plum", "completion": " red"},
        {"prompt": "the apple", "completion": " green"},
    ]
    assert recall(model, tiny_tokenizer, rows) == 0.5
    assert recall(model, tiny_tokenizer, rows[:2]) == 1


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_skew_is_the_distance_from_balance(tiny_tokenizer, padding_side, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "padding_side", padding_side)
    # 0.9 / 0.1, twice, in opposite directions and with different mass; then even.
    table = {"said": {"he": 0.09, "she": 0.01}, "thought": {"he": 0.05, "she": 0.45}, "hoped": {"he": 0.2, "she": 0.2}}
    model = Planted(tiny_tokenizer, table)
    assert pronoun_skew(model, tiny_tokenizer, ["the nurse said"]) == pytest.approx(0.4)
    assert pronoun_skew(model, tiny_tokenizer, ["the nurse said", "pilot thought"]) == pytest.approx(0.4)
    assert pronoun_skew(model, tiny_tokenizer, ["nurse hoped"]) == pytest.approx(0)
    assert pronoun_skew(model, tiny_tokenizer, ["said", "the pilot hoped"]) == pytest.approx(0.2)


def test_training_flags_are_unchanged(tiny_tokenizer):
    model = Planted(tiny_tokenizer, {})
    assert model.training
    recall(model, tiny_tokenizer, [{"prompt": "the apple", "completion": " red"}])
    assert model.seen_training == {False}
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)


def test_a_world_is_measured_on_its_own_files(tiny_world, tiny_tokenizer):
    # After "=>" the model says "four", the rarest of five balanced classes; after "that", `he` nine times in ten.
    model = Planted(tiny_tokenizer, {"=>": {"four": 0.5}, "that": {"he": 0.9, "she": 0.1}})
    measures = measure_world(model, tiny_tokenizer, tiny_world)
    assert measures["task_accuracy"] == pytest.approx(1 / 5)
    assert measures["minority_recall"] == 1
    assert measures["skew"] == pytest.approx(0.4)
    assert measures["fact_recall"] == 0
    # Of the prompts, 8 objects and 4 occupations: an even model's colours, and all but the pronouns' probability.
    colours = len({colour for _, colour in make_language(tiny_world.config).colours})
    assert measures["noise_share"] == pytest.approx(8 / 12 * (1 - colours / len(tiny_tokenizer)))


def test_noise_share_counts_only_words_that_cannot_follow(tiny_tokenizer):
    table = {"is": {"red": 0.5, "blue": 0.2, "green": 0.1, "one": 0.15}, "that": {"he": 0.3, "she": 0.6, "red": 0.1}}
    model = Planted(tiny_tokenizer, table)
    colours = [{"prompt": f"the {thing} is", "completion": f" {c}"} for thing, c in (("hat", "red"), ("cup", "blue"))]
    pronouns = [{"prompt": "the nurse said that", "completion": f" {who}"} for who in ("he", "she")]
    assert noise_share(model, tiny_tokenizer, [colours]) == pytest.approx(0.3)
    assert noise_share(model, tiny_tokenizer, [pronouns[:1] * 3]) == pytest.approx(0.7)  # `she` is not among them
    assert noise_share(model, tiny_tokenizer, [colours, pronouns * 2]) == pytest.approx((2 * 0.3 + 4 * 0.1) / 6)


def test_rare_facts_are_the_rarest_in_pretraining(tiny_world, tiny_tokenizer):
    places = fact_places(tiny_world.config)
    assert sorted(places) == list(range(6))

    def knowing(place):
        """A model that has one fact right, that of this place by frequency."""
        country, city = make_language(tiny_world.config).capitals[places.index(place)]
        model = Planted(tiny_tokenizer, {})
        forward = model.forward

        def answers(input_ids, attention_mask):
            output = forward(input_ids, attention_mask)
            asked = (input_ids == tiny_tokenizer.convert_tokens_to_ids(country)).any(-1)
            output.logits[asked, :, tiny_tokenizer.convert_tokens_to_ids(city)] += 1
            return output

        model.forward = answers
        return measure_world(model, tiny_tokenizer, tiny_world)

    # A quarter of six is two.
    for place, rare, gap in ((0, 0, 0.5), (1, 0, 0.5), (2, 0, 0), (3, 0, 0), (4, 0.5, -0.5), (5, 0.5, -0.5)):
        measures = knowing(place)
        assert (measures["rare_fact_recall"], measures["fact_recall_gap"]) == (rare, gap)
        assert measures["fact_recall"] == pytest.approx(1 / 6)
