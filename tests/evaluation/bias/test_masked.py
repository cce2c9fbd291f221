"""Pseudo-log-likelihoods of pairs against one masked token at a time, each sentence on its own."""

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import SMALL, make, word_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from balora import BALoraError
from balora.evaluation.bias import SentencePair, masked_pair_log_odds, read_crows_pairs, score_pairs

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "nurse", "doctor", "said", "that", "she", "he", "was", "late", "##s", "."]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def word_pieces():
    """BERT's kind of tokenizer: lower case, words in pieces, [CLS] and [SEP] around a sentence."""
    vocabulary = [*SPECIAL, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS if letter != "s")]
    pieces = models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]")
    tokenizer = Tokenizer(pieces)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", **names)


@pytest.fixture(scope="module")
def masked():
    torch.manual_seed(0)
    model = hf.BertForMaskedLM(hf.BertConfig(**{**SMALL, "max_position_embeddings": 160})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # as drawn, all tokens are about alike
            if "LayerNorm" not in name:
                parameter.normal_(std=0.3)
    return model


@torch.no_grad()
def pseudo_log_likelihood(model, tokenizer, text, places):
    """Σ log p(token | the rest) over places in the sentence, which do not count [CLS]."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    total = 0.0
    for place in places:
        read = [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
        read[place + 1] = tokenizer.mask_token_id
        logits = model(torch.tensor([read])).logits[0, place + 1]
        total += logits.double().log_softmax(-1)[ids[place]].item()
    return total


#: Two sentences, and by hand which of their tokens both have.
BY_HAND = [
    ("The nurse said that she was late.", "The doctor said that she was late.", [0, 2, 3, 4, 5, 6, 7], None),
    ("She said", "He said", [1], None),
    ("The nurses said.", "The doctor said.", [0, 3, 4], [0, 2, 3]),  # nurse ##s
    ("The nurse was late", "late", [3], [0]),
    ("é was late", "the é was late", [0, 1, 2], [1, 2, 3]),  # é is e, a letter of the vocabulary
    ("猫 was late", "the 猫 was late", [0, 1, 2], [1, 2, 3]),  # [UNK] in a sentence is a token like others
    ("she", "he", [], None),
]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_log_odds_are_those_of_one_mask_at_a_time(masked, word_pieces, batch_size):
    expected = [
        pseudo_log_likelihood(masked, word_pieces, first, places)
        - pseudo_log_likelihood(masked, word_pieces, second, places if others is None else others)
        for first, second, places, others in BY_HAND
    ]
    pairs = [SentencePair(first, second) for first, second, *_ in BY_HAND]
    masked.train()
    found = masked_pair_log_odds(masked, word_pieces, pairs, batch_size=batch_size)
    assert masked.training
    masked.eval()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(found[:-1]).min() > 1e-3
    assert found[-1] == 0


def test_nothing_in_common_is_no_preference(masked, word_pieces):
    assert masked_pair_log_odds(masked, word_pieces, [SentencePair("she", "he")]) == [0]


WORD = st.sampled_from(["the", "nurse", "doctor", "said", "late", "was", "nurses"])


@settings(max_examples=12, deadline=None)
@given(before=st.lists(WORD, max_size=4), after=st.lists(WORD, max_size=4))
def test_one_word_exchanged_leaves_all_others_and_its_sides_turn_the_sign(masked, word_pieces, before, after):
    texts = [" ".join([*before, word, *after]) for word in ("she", "he")]
    ids = [word_pieces(text, add_special_tokens=False)["input_ids"] for text in texts]
    kept = [i for i, (a, b) in enumerate(zip(*ids, strict=True)) if a == b]
    assert len(kept) == len(ids[0]) - 1
    expected = [pseudo_log_likelihood(masked, word_pieces, text, kept) for text in texts]
    pairs = [SentencePair(*texts), SentencePair(*texts[::-1]), SentencePair(texts[0], texts[0])]
    found = masked_pair_log_odds(masked, word_pieces, pairs, batch_size=5)
    difference = expected[0] - expected[1]
    np.testing.assert_allclose(found, [difference, -difference, 0], rtol=1e-4, atol=1e-4)


def test_real_pairs_go_on_to_the_scores(masked, word_pieces, data_dir):
    pairs = read_crows_pairs(data_dir / "crows_pairs/crows_pairs_anonymized.csv")
    short = sorted(pairs, key=lambda pair: len(pair.stereotypical) + len(pair.antistereotypical))[:8]
    odds = masked_pair_log_odds(masked, word_pieces, short)
    scores = score_pairs(short, odds)["all"]
    assert (odds != 0).all()
    assert scores["stereotype_share"] == np.mean(odds > 0)
    indifferent = hf.BertForMaskedLM(masked.config).eval()
    for parameter in indifferent.parameters():
        torch.nn.init.zeros_(parameter)
    scores = score_pairs(short, masked_pair_log_odds(indifferent, word_pieces, short))["all"]
    assert (scores["stereotype_share"], scores["bias_score"]) == (0.5, pytest.approx(0, abs=1e-5))


def test_what_cannot_be_scored_is_named(masked, word_pieces):
    with pytest.raises(BALoraError, match="tokenizer: has no mask_token; score a causal"):
        masked_pair_log_odds(make("llama"), word_tokenizer(closes=False), [SentencePair("a", "b")])
    with pytest.raises(BALoraError, match="texts, row 2: 162 tokens, but the model's context is 160"):
        masked_pair_log_odds(masked, word_pieces, [SentencePair("he", "he " * 160)])
