import numpy as np
import pytest
import torch
from audit_models import WORDS, adapted, load, texts, tokenizer_of_words
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

from balora.audit.effective_rank import LogitRank, effective_rank
from balora.audit.models import load_audited
from balora.audit.texts import measure_texts, own_texts, user_texts, wikitext2
from balora.errors import BALoraError
from balora.evaluation import measure_drift
from balora.evaluation.perplexity import padded_batches, perplexity, read_pages, wikitext_perplexity
from balora.fused import Head

MEASURED_ON_BOTH = ("perplexity", "entropy", "effective_rank")


@pytest.fixture(scope="module")
def audited(folders, tmp_path_factory):
    folder, _ = adapted(folders["causal"], tmp_path_factory.mktemp("lora"), scale=0.2)
    return load_audited(folders["causal"], folder)


@pytest.fixture(scope="module")
def saved(folders, tmp_path_factory):
    """The same two models, each alone and by hand."""
    _, tuned = adapted(folders["causal"], tmp_path_factory.mktemp("lora"), scale=0.2)
    return load(folders["causal"]), tuned


def by_name(figures):
    return {figure.name: figure for figure in figures}


@torch.no_grad()
def logits_of(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0].double()


def numpy_rank(matrix):
    singular = np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)
    p = singular[singular > 0] / singular.sum()
    return np.exp(-(p * np.log(p)).sum())


@settings(max_examples=40, deadline=None)
@given(arrays(float, st.tuples(st.integers(1, 7), st.integers(1, 9)), elements=st.floats(-9, 9, width=16)))
def test_effective_rank_is_that_of_the_singular_values(matrix):
    if not matrix.any():
        return
    rank = effective_rank(torch.tensor(matrix))
    assert rank == pytest.approx(numpy_rank(matrix), rel=1e-4)
    assert effective_rank(torch.tensor(matrix).T) == pytest.approx(rank, rel=1e-6)
    assert effective_rank(torch.tensor(matrix) * -3) == pytest.approx(rank, rel=1e-4)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_effective_rank_of_equal_directions_is_their_number(size):
    assert effective_rank(torch.eye(7)[:size]) == pytest.approx(size)
    assert effective_rank(torch.ones(size, 3)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("tokens", [3, 9, 40])  # fewer than the width, more, and more than the vocabulary
@pytest.mark.parametrize("quirk", [{}, {"bias": torch.linspace(-1, 1, 23).double()}, {"scale": 0.3}, {"softcap": 2.0}])
def test_effective_rank_of_logits_needs_none_of_them(tokens, quirk, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("balora.audit.effective_rank.CHUNK_ELEMENTS", 30)
    head, hidden = Head(torch.randn(23, 6).double(), **quirk), torch.randn(tokens, 6).double()
    assert LogitRank(head)(hidden) == pytest.approx(numpy_rank(head.logits(hidden)), rel=1e-5)


@pytest.mark.parametrize("max_length", [None, 8])
def test_perplexity_is_that_of_the_evaluation(audited, saved, max_length):
    own = [*texts(9, longest=40), "the"]  # of one token, which predicts nothing
    read = user_texts(audited, "own", own, max_length)
    figure = by_name(measure_texts(audited, read, batch_size=4))["perplexity"]
    for model, estimate in zip(saved, (figure.base, figure.tuned), strict=True):
        expected = perplexity(model, tokenizer_of_words(), own, context=max_length or 64, batch_size=3)
        assert estimate.value == pytest.approx(expected, rel=1e-5)
    assert (figure.units, figure.unit, figure.on) == (9, "texts", "own")
    assert figure.tuned.low < figure.tuned.value < figure.tuned.high


def test_entropy_and_rank_are_those_of_a_naive_loop(audited, saved):
    own = texts(6)
    figures = by_name(measure_texts(audited, user_texts(audited, "own", own, None), batch_size=4))
    for model, side in zip(saved, ("base", "tuned"), strict=True):
        entropies, ranks = [], []
        for text in own:
            logits = logits_of(model, tokenizer_of_words()(text)["input_ids"])
            ranks.append(numpy_rank(logits))
            for row in logits[:-1].tolist():  # the last predicts nothing
                p = np.exp(np.array(row) - np.logaddexp.reduce(row))
                entropies.append(-(p * np.log(p)).sum())
        assert getattr(figures["entropy"], side).value == pytest.approx(np.mean(entropies), rel=1e-5)
        assert getattr(figures["effective_rank"], side).value == pytest.approx(np.mean(ranks), rel=1e-4)


def test_divergence_and_agreement_are_drift_on_the_same_rows(audited, saved):
    rows = [ids for text in texts(7) if len(ids := tokenizer_of_words()(text)["input_ids"]) > 1]
    read = user_texts(audited, "own", texts(7), None)
    figures = by_name(measure_texts(audited, read, batch_size=3))
    # Drift counts every token of a row, ours those that predict one: all but the last.
    cut = [(ids[:-1], ids[:-1]) for ids in rows]
    drift = measure_drift(saved[1], [batch for _, batch in padded_batches(cut, 3)], teacher=saved[0])
    for name in ("kl_to_base", "top1_agreement"):
        assert figures[name].tuned.value == pytest.approx(drift[name], rel=1e-5)
        assert (figures[name].base, figures[name].change) == (None, None)
    assert 0 < drift["top1_agreement"] < 1


def test_batches_make_no_difference(audited):
    read = user_texts(audited, "own", texts(8), None)
    one, many = (measure_texts(audited, read, batch_size=size) for size in (1, 8))
    for a, b in zip(one, many, strict=True):
        assert a.tuned.value == pytest.approx(b.tuned.value, rel=1e-5)
        assert a.tuned.low == pytest.approx(b.tuned.low, rel=1e-5)


def test_an_untouched_adapter_changes_nothing_at_all(folders, tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(load(folders["causal"]), config).save_pretrained(tmp_path)
    audited = load_audited(folders["causal"], str(tmp_path))
    figures = by_name(measure_texts(audited, user_texts(audited, "own", texts(5), None), batch_size=2))
    assert (figures["kl_to_base"].tuned.value, figures["kl_to_base"].tuned.high) == (0, 0)
    assert figures["top1_agreement"].tuned.value == 1
    for name in MEASURED_ON_BOTH:
        change = figures[name].change
        assert (change.value, change.low, change.high) == (0, 0, 0)
        assert not figures[name].changed


def test_a_base_alone_has_nothing_between(folders):
    audited = load_audited(folders["causal"])
    figures = measure_texts(audited, user_texts(audited, "own", texts(4), None), batch_size=2)
    assert tuple(figure.name for figure in figures) == MEASURED_ON_BOTH
    assert all(figure.base is None and figure.change is None for figure in figures)


def test_a_prompt_of_its_own_is_not_among_the_texts(folders, tmp_path):
    config = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    folder, saved = adapted(folders["causal"], tmp_path, config, scale=0.2)
    audited = load_audited(folders["causal"], folder)
    figures = by_name(measure_texts(audited, user_texts(audited, "own", texts(4), None), batch_size=2))
    nats, tokens = 0.0, 0
    for text in texts(4):
        ids = tokenizer_of_words()(text)["input_ids"]
        log_p = logits_of(saved, ids)[3:].log_softmax(-1)
        nats -= sum(log_p[i, token].item() for i, token in enumerate(ids[1:]))
        tokens += len(ids) - 1
    assert figures["perplexity"].tuned.value == pytest.approx(np.exp(nats / tokens), rel=1e-5)


def test_texts_of_one_token_are_no_texts(audited):
    with pytest.raises(BALoraError, match=r"^own\.txt: no text of at least two tokens$"):
        user_texts(audited, "own.txt", ["the", "dog"], None)


class TestOwnTexts:
    def test_they_are_what_the_base_writes_by_its_seed(self, audited, folders):
        alone = load_audited(folders["causal"])
        first, again, other = (
            own_texts(*args) for args in ((audited, 5, 12, 0), (audited, 5, 12, 0), (audited, 5, 12, 1))
        )
        assert first.windows == again.windows == own_texts(alone, 5, 12, 0).windows
        assert first.windows != other.windows
        assert all(ids is labels or ids == labels for [(ids, labels)] in first.windows)
        assert all(2 <= len(text[0][0]) <= 12 for text in first.windows)
        assert first.sizes.tolist() == [len(text[0][0]) - 1 for text in first.windows]

    def test_divergence_there_is_the_mean_over_what_follows_each_token(self, audited, saved):
        read = own_texts(audited, 6, 10, 0)
        figures = by_name(measure_texts(audited, read, batch_size=4))
        rows = [ids[:-1] for [(ids, _)] in read.windows]
        batches = [batch for _, batch in padded_batches([(ids, ids) for ids in rows], 2)]
        drift = measure_drift(saved[1], batches, teacher=saved[0])
        assert figures["kl_to_base"].tuned.value == pytest.approx(drift["kl_to_base"], rel=1e-5)

    def test_none_is_longer_than_the_context(self, audited):
        assert max(len(text[0][0]) for text in own_texts(audited, 4, 999, 0).windows) <= 64


class TestWikiText:
    def test_perplexity_per_word_is_that_of_the_evaluation(self, audited, saved, data_dir):
        pages = [page[:400] for page in read_pages(data_dir / "wikitext2/valid.txt")[:4]]
        figure = by_name(measure_texts(audited, wikitext2(audited, pages, 32), batch_size=3))["word_perplexity"]
        for model, estimate in zip(saved, (figure.base, figure.tuned), strict=True):
            expected = wikitext_perplexity(model, tokenizer_of_words(), pages, context=32)["word_perplexity"]
            assert estimate.value == pytest.approx(expected, rel=1e-5)
        assert figure.units == 4

    def test_of_a_real_model(self, models_dir, data_dir, tmp_path):
        base = load(str(models_dir / "stories260k"))
        get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False)).save_pretrained(tmp_path)
        audited = load_audited(str(models_dir / "stories260k"), str(tmp_path))
        pages = [page[:300] for page in read_pages(data_dir / "wikitext2/valid.txt")[:2]]
        figures = by_name(measure_texts(audited, wikitext2(audited, pages, None), batch_size=3))
        tuned = PeftModel.from_pretrained(load(str(models_dir / "stories260k")), str(tmp_path)).eval()
        expected = wikitext_perplexity(tuned, audited.tokenizer, pages, context=audited.context())
        assert figures["word_perplexity"].tuned.value == pytest.approx(expected["word_perplexity"], rel=1e-4)
        assert 1 < figures["effective_rank"].base.value < 64  # the hidden size of the model


def test_the_tokenizer_is_the_one_the_tests_mean():
    assert tokenizer_of_words()(" ".join(WORDS[5:]))["input_ids"] == [*range(5, 97)]
